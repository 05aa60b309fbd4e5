"""Locks are given back, and what is dead is not touched: what only a second actor would notice, watched by one."""

from __future__ import annotations

import contextlib

import pytest

from tests.support.kvm_rig import LEVEL, KvmRig
from vmm import order
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD
from vmm.kernel.files import POLLHUP, POLLIN, DescriptorTable, WaitEntry
from vmm.kernel.hold import POINTS
from vmm.order import Lock, OrderError, Violation


class Watcher:
    """Sees every lock that is made, and lets workers run while the one actor waits for them."""

    def __init__(self) -> None:
        self.locks: list[Lock] = []
        self.rig: KvmRig | None = None

    def allocate(self, kind):
        made = object.__new__(kind)
        if isinstance(made, Lock):
            self.locks.append(made)
        return made

    def wait(self, step, subject, ready, sleeps):
        assert not (sleeps and any(lock.spin for lock in self.held())), f"{step}: {subject!r} under a spin lock"
        while not ready():
            if self.rig is None or not self.rig.executor.pending:
                raise OrderError(f"{step}: {subject!r} would wait for ever")
            me, order.actor = order.actor, 7
            work = self.rig.executor.pending.popleft()
            self.rig.executor.run(work)
            order.actor = me

    def held(self) -> list[Lock]:
        return [lock for lock in self.locks if not lock.is_free()]


@pytest.fixture
def watcher(monkeypatch):
    watcher = Watcher()
    monkeypatch.setattr(order, "allocate", watcher.allocate)
    monkeypatch.setattr(order, "hook", lambda _point, _subject: None)
    monkeypatch.setattr(order, "wait", watcher.wait)
    return watcher


def lives(rig: KvmRig):
    """A life of everything, call by call."""
    a, r, b, plain = rig.efd(), rig.efd(), rig.efd(), rig.efd()
    rig.redir(5, LEVEL | 0x55)
    yield lambda: rig.files.eventfd(0, 1)
    if not hasattr(rig.vm.irqfds, "eoifds"):
        yield lambda: rig.assign(a, 5, r)
        yield lambda: rig.assign(b, 5, r)
    else:
        yield lambda: rig.vm.irqfd(a, 5, 2)
        yield lambda: rig.vm.eoifd(r, KVM_EOIFD_FLAG_LEVEL_IRQFD, a)
        yield lambda: rig.vm.eoifd(r, KVM_EOIFD_FLAG_DEASSIGN, a)
        yield lambda: rig.vm.eoifd(r, KVM_EOIFD_FLAG_LEVEL_IRQFD, a)
        yield lambda: rig.vm.irqfd(b, 5, 2)
    yield lambda: rig.assign(plain, 5)
    for fd in (a, plain, b, r):
        yield lambda fd=fd: rig.write(fd)
        yield lambda fd=fd: rig.files.file(fd).ctx.signal()
    yield rig.inta
    yield rig.eoi
    yield lambda: rig.line(5, 1)
    yield lambda: rig.line(5, 0)
    yield lambda: rig.route({5: 5, 6: 6})
    yield lambda: rig.redir(5, LEVEL | 0x10055)
    yield lambda: rig.redir(5, LEVEL | 0x55)
    for fd in (r, plain):
        yield lambda fd=fd: rig.count(fd)
    yield lambda: rig.deassign(plain)
    with contextlib.suppress(OSError):
        yield lambda: rig.assign(a, 5)
    yield lambda: rig.close(b)
    yield lambda: rig.deassign(a)
    yield lambda: rig.close(r)
    yield rig.vm.close
    yield lambda: rig.close(a)


@pytest.mark.parametrize("policy", ["resample", "eoifd-v5", "eoifd-follows-irqfd", "eoifd-holds-file"])
def test_every_call_gives_back_every_lock_that_it_took(watcher, policy):
    rig = watcher.rig = KvmRig(policy=policy)
    count = 0
    for call in lives(rig):
        with contextlib.suppress(OSError):  # a call that is refused gives its locks back, too
            call()
        rig.drain()
        assert watcher.held() == [], f"after call {count}"
        count += 1
    assert count > 20
    assert len(watcher.locks) > 4


def test_every_point_is_passed_in_some_kernel(watcher, monkeypatch):
    passed: set[str] = set()
    monkeypatch.setattr(order, "hook", lambda point, _subject: passed.add(point))
    for options in ({}, {"era": "5.11"}, {"policy": "eoifd-v5"}):
        rig = watcher.rig = KvmRig(**options)
        for call in lives(rig):
            with contextlib.suppress(OSError):
                call()
            rig.drain()
    assert passed >= set(POINTS)


def test_eventfd_gives_its_lock_back_whoever_waits(watcher):
    files = DescriptorTable()
    ctx = files.ctx_fdget(files.eventfd())
    entries = [WaitEntry(lambda _key: True) for _ in range(4)]
    acts = [
        lambda: ctx.add_wait(entries[0]),
        lambda: ctx.add_wait_exclusive(entries[1]),
        lambda: ctx.add_wait_priority(entries[2]),
        lambda: ctx.add_wait_priority_exclusive(entries[3]),
        ctx.signal,
        lambda: ctx.add(3),
        lambda: ctx.add(0xFFFF_FFFF_FFFF_FFFE),
        ctx.drain,
        ctx.hang_up,
        lambda: ctx.remove_wait_and_drain(entries[0]),
        lambda: ctx.remove_wait(entries[1]),
    ]
    for act in acts:
        act()
        assert watcher.held() == []


def freed(rig: KvmRig):
    """Objects that are gone, and what must not be done with them any more."""
    policy = "eoifd" if hasattr(rig.vm.irqfds, "eoifds") else "resample"
    a, r = rig.efd(), rig.efd()
    if policy == "resample":
        rig.assign(a, 5, r)
    else:
        rig.vm.irqfd(a, 5, 2)
        rig.vm.eoifd(r, KVM_EOIFD_FLAG_LEVEL_IRQFD, a)
    irqfd = rig.vm.irqfds.items[0]
    ctx, file = irqfd.ctx, rig.files.file(a)
    used = [(irqfd, "wakeup", POLLIN), (irqfd, "inject"), (irqfd, "shutdown")]
    if policy == "resample":
        used.append((irqfd.resampler, "touch", "irqfd_resampler_ack"))
    if policy != "resample":
        eoifd, source = rig.vm.irqfds.eoifds[0], irqfd.source
        used += [(eoifd, "acked"), (eoifd, "shutdown")]
        used += [(source, name) for name in ("get", "put", "raise_line")]
        rig.vm.eoifd(r, KVM_EOIFD_FLAG_DEASSIGN, a)
        rig.drain()
    rig.deassign(a, resample=r if policy == "resample" else 0)
    rig.close(a)
    used += [(ctx, name) for name in ("get", "put", "signal")]
    used += [(ctx, "remove_wait_and_drain", WaitEntry(bool)), (ctx, "add_wait", WaitEntry(bool)), (file, "get")]
    return used


@pytest.mark.parametrize("policy", ["resample", "eoifd-v5"])
def test_use_of_what_is_gone_is_a_violation(watcher, policy):
    rig = watcher.rig = KvmRig(policy=policy)
    for subject, name, *args in freed(rig):
        assert subject.freed_by, f"{subject!r} lives"
        with pytest.raises(Violation, match="use-after-free") as found:
            getattr(subject, name)(*args)
        assert found.value.subject is subject


@pytest.mark.parametrize("policy", ["resample", "eoifd-v5"])
def test_irqfd_of_a_refused_assign_is_gone(watcher, monkeypatch, policy):
    rig = watcher.rig = KvmRig(policy=policy)
    a = rig.efd()
    rig.assign(a)
    made = []
    monkeypatch.setattr(order, "hook", lambda point, subject: point == "irqfd.assign.fput" and made.append(subject))
    with pytest.raises(OSError, match="has an irqfd"):
        rig.assign(a, 6)
    assert [(irqfd.gsi, irqfd.active) for irqfd in made] == [(6, False)]
    with pytest.raises(Violation, match="use-after-free"):
        made[0].wakeup(POLLIN)


def test_eoifd_of_a_refused_assign_is_gone(watcher, monkeypatch):
    rig = watcher.rig = KvmRig(policy="eoifd-v5")
    e, f = rig.efd(), rig.efd()
    rig.vm.irqfd(e, 5, 2)
    rig.vm.eoifd(f, KVM_EOIFD_FLAG_LEVEL_IRQFD, e)
    made = []
    point = "eoifd.assign.looked-up"
    monkeypatch.setattr(order, "hook", lambda reached, subject: reached == point and made.append(subject))
    with pytest.raises(OSError, match="has an eoifd"):
        rig.vm.eoifd(f, KVM_EOIFD_FLAG_LEVEL_IRQFD, e)
    assert [(eoifd.source.gsi, eoifd.active) for eoifd in made] == [(5, False)]
    with pytest.raises(Violation, match="use-after-free"):
        made[0].acked()


def test_assign_that_goes_on_after_its_irqfd_went_is_a_violation(watcher):
    rig = watcher.rig = KvmRig()
    a = rig.efd()
    rig.assign(a)
    irqfds = rig.vm.irqfds
    irqfd = irqfds.items[0]
    rig.deassign(a)
    with pytest.raises(Violation, match="use-after-free") as found:
        irqfds.act_on_pending(irqfd, rig.files.file(a).ctx)
    assert found.value.subject is irqfd


def test_member_that_is_gone_is_not_signalled(watcher):
    rig = watcher.rig = KvmRig()
    a, _ = rig.pair()
    rig.pair()
    resampler = rig.vm.irqfds.resamplers[0]
    members = resampler.members
    rig.deassign(a)
    resampler.members = members
    with pytest.raises(Violation, match="use-after-free") as found:
        resampler.notify()
    assert found.value.subject is members[0]


@pytest.mark.parametrize("policy", ["resample", "eoifd-v5"])
def test_what_is_deactivated_is_deactivated_once(policy):
    rig = KvmRig(policy=policy)
    a, r = rig.efd(), rig.efd()
    if policy == "resample":
        rig.assign(a, 5, r)
        objects = [rig.vm.irqfds.items[0]]
    else:
        rig.vm.irqfd(a, 5, 2)
        rig.vm.eoifd(r, KVM_EOIFD_FLAG_LEVEL_IRQFD, a)
        objects = [rig.vm.irqfds.items[0], rig.vm.irqfds.eoifds[0]]
    for one in objects:
        one.deactivate()
        assert one.shutdowns == 1
        with pytest.raises(Violation, match="deactivated-twice"):
            one.deactivate()
        one.wakeup(POLLHUP)
        assert one.shutdowns == 1


CHANGES = {
    "new routes": ("gsi.set-routing", lambda rig: rig.route({5: 5})),
    "first member": ("irqfd.assign.resampler", lambda rig: rig.assign(rig.efd(), 7, rig.efd())),
    "another member": ("irqfd.assign.resampler", lambda rig: rig.assign(rig.efd(), 5, rig.efd())),
    "a plain irqfd goes": ("irqfd.deassign.flush", lambda rig: rig.deassign(rig.plain, 8)),
    "a member goes": ("irqfd.shutdown.leave", lambda rig: rig.deassign(rig.first)),
    "the last member goes": ("irqfd.shutdown.leave", lambda rig: rig.deassign(rig.alone, 6)),
}


@pytest.mark.parametrize(("point", "change"), CHANGES.values(), ids=CHANGES)
def test_change_waits_for_an_eoi_that_may_look_at_what_was(watcher, monkeypatch, point, change):
    """Another actor's read section begins as the change comes to a point, and ends when the change waits for it."""
    rig = watcher.rig = KvmRig()
    rig.first, _ = rig.pair(5)
    rig.pair(5)
    rig.alone, _ = rig.pair(6)
    rig.plain = rig.efd()
    rig.assign(rig.plain, 8)
    srcu = rig.vm.gsis.irq_srcu
    waited: list[str] = []

    def as_another(act) -> None:
        me, order.actor = order.actor, 9
        act()
        order.actor = me

    def hook(reached, _subject):
        if reached == point and not srcu.readers:
            as_another(srcu.read_lock)

    def wait(step, subject, ready, sleeps):
        if step == "srcu.synchronize" and not ready():
            waited.append(step)
            as_another(lambda: srcu.read_unlock(0))
        watcher.wait(step, subject, ready, sleeps)

    monkeypatch.setattr(order, "hook", hook)
    monkeypatch.setattr(order, "wait", wait)
    change(rig)
    assert waited == ["srcu.synchronize"]
    assert srcu.readers == ()


def test_eoi_reads_what_a_change_waits_for(watcher, monkeypatch):
    rig = watcher.rig = KvmRig()
    rig.redir(5, LEVEL | 0x55)
    a, _ = rig.pair()
    rig.write(a)
    rig.inta()
    srcu = rig.vm.gsis.irq_srcu
    reading: dict[str, int] = {}
    monkeypatch.setattr(order, "hook", lambda point, _subject: reading.update({point: len(srcu.readers)}))
    rig.eoi()
    assert (reading["gsi.ack"], reading["resampler.notify.member"]) == (1, 2)
    assert srcu.readers == ()
    reading.clear()
    rig.redir(5, LEVEL | 0x10055)
    rig.write(a)
    rig.redir(5, LEVEL | 0x55)  # the unmask asks the resampler, too
    assert reading["resampler.notify.member"] == 2
    assert srcu.readers == ()
