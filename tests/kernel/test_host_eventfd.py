"""A real eventfd of the host behaves as a file of the model, within the limits its module names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vmm.kernel.files import POLLERR, POLLIN, POLLOUT, DescriptorTable, WaitEntry
from vmm.kernel.host_eventfd import HostEventfdCtx, HostEventFile, eventfd_id
from vmm.kernel.kvm import Vm
from vmm.order import Executor


class Pins:
    def __init__(self) -> None:
        self.log: list[tuple[int, int, bool]] = []

    def set_irq(self, pin: int, source: int, level: bool, _line_status: bool = False) -> int:
        self.log.append((pin, source, level))
        return 1


@pytest.fixture
def files() -> DescriptorTable:
    return DescriptorTable()


@pytest.fixture
def peer():
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def test_write_by_the_peer_reaches_the_gsi_once_the_loop_looks(files, peer):
    executor = Executor()
    vm = Vm(files, executor)
    pins = Pins()
    vm.connect(chips={2: pins})
    watched: list[bool] = []
    fd = HostEventFile.open(files, os.dup(peer), on_watch=lambda _ctx, wanted: watched.append(wanted))
    resample = files.eventfd()
    vm.irqfd(fd, 10, 2, resample)
    assert watched == [True]
    os.eventfd_write(peer, 2)
    os.eventfd_write(peer, 1)
    files.file(fd).ctx.readable_now()
    executor.drain()
    assert pins.log == [(10, 1, True)]
    with pytest.raises(BlockingIOError):
        os.eventfd_read(peer)
    vm.irqfd(fd, 10, 1)
    assert watched == [True, False]


def test_resample_signal_is_seen_by_the_peer(files, peer):
    vm = Vm(files, Executor())
    vm.connect(chips={2: Pins()})
    trigger = files.eventfd()
    resample = HostEventFile.open(files, os.dup(peer))
    vm.irqfd(trigger, 10, 2, resample)
    vm.ioapic_acks.notify_acked(10)
    vm.ioapic_acks.notify_acked(10)
    assert os.eventfd_read(peer) == 2


def test_pending_events_are_drained_without_o_nonblock(files):
    peer = os.eventfd(0)  # blocking
    fd = HostEventFile.open(files, os.dup(peer))
    ctx = files.file(fd).ctx
    assert ctx.take() == 0
    os.eventfd_write(peer, 5)
    assert ctx.take() == 5
    assert ctx.take() == 0
    os.close(peer)


def test_last_reference_closes_the_host_descriptor(files, peer):
    host = os.dup(peer)
    fd = HostEventFile.open(files, host)
    ctx = files.ctx_fdget(fd)
    files.close(fd)
    os.fstat(host)
    ctx.put()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(host)
    assert ctx.fd == -1


def test_same_eventfd_received_twice_is_one_to_kvm(files, peer):
    if "eventfd-id" not in Path(f"/proc/self/fdinfo/{peer}").read_text():
        pytest.skip("this kernel does not show eventfd-id in /proc/self/fdinfo")
    vm = Vm(files, Executor())
    vm.connect(chips={2: Pins()})
    a = HostEventFile.open(files, os.dup(peer))
    b = HostEventFile.open(files, os.dup(peer))
    vm.irqfd(a, 10)
    with pytest.raises(OSError, match="has an irqfd"):
        vm.irqfd(b, 11)
    assert files.file(a).refs == 2
    first = files.file(a).ctx.fd
    again = os.dup(peer)
    HostEventFile.open(files, again)
    os.fstat(first)
    with pytest.raises(OSError, match="Bad file descriptor"):  # what came again is not needed
        os.fstat(again)


def test_other_eventfds_are_others_to_kvm(files, peer):
    files.eventfd()
    other = os.eventfd(0)
    vm = Vm(files, Executor())
    vm.connect(chips={2: Pins()})
    vm.irqfd(HostEventFile.open(files, os.dup(peer)), 10)
    vm.irqfd(HostEventFile.open(files, other), 11)
    assert len({id(irqfd.ctx) for irqfd in vm.irqfds.items}) == 2


def test_eventfd_is_named_by_who_enters_it_or_by_its_number(files, peer):
    host, other = os.dup(peer), os.eventfd(0)
    assert files.file(HostEventFile.open(files, other, "intx")).ctx.name == "intx"
    assert files.file(HostEventFile.open(files, host)).ctx.name == f"host-eventfd-{host}"


def test_descriptor_that_is_closed_has_no_id(peer):
    closed = os.dup(peer)
    os.close(closed)
    assert eventfd_id(closed) is None


def test_reader_that_comes_too_late_does_not_sleep(files, monkeypatch):
    host = os.eventfd(3)  # blocking
    try:
        os.preadv(host, [bytearray(8)], -1, os.RWF_NOWAIT)
    except OSError as error:
        pytest.skip(f"this kernel knows no RWF_NOWAIT for eventfds: {error.strerror}")
    os.eventfd_write(host, 3)
    ctx = files.file(HostEventFile.open(files, host)).ctx
    monkeypatch.setattr(HostEventfdCtx, "readable", lambda _: pytest.fail("looked first: another may read in between"))
    assert (ctx.take(), ctx.take()) == (3, 0)


def test_older_kernel_is_asked_whether_there_is_something_to_read(files, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", unknown)
    host = os.eventfd(5)
    ctx = files.file(HostEventFile.open(files, host)).ctx
    assert (ctx.take(), ctx.take()) == (5, 0)
    os.set_blocking(host, False)
    monkeypatch.setattr(HostEventfdCtx, "readable", lambda _: True)  # another reads it meanwhile
    assert ctx.take() == 0


def test_full_counter_takes_no_signal_and_keeps_its_count(files):
    host = os.eventfd(0)
    fd = HostEventFile.open(files, host)
    ctx = files.file(fd).ctx
    assert files.poll(fd) == POLLOUT
    assert ctx.signal() is True
    assert files.poll(fd) == POLLIN | POLLOUT
    os.eventfd_write(host, 2**64 - 3)
    assert files.poll(fd) == POLLIN
    assert ctx.signal() is False
    assert files.read(fd) == 2**64 - 2
    assert POLLERR & files.poll(fd) == 0


def test_write_in_the_model_reaches_the_gsi_without_the_loop(files, peer):
    executor = Executor()
    vm = Vm(files, executor)
    pins = Pins()
    vm.connect(chips={2: pins})
    fd = HostEventFile.open(files, os.dup(peer))
    vm.irqfd(fd, 10, 2, files.eventfd())
    files.write(fd, 3)
    executor.drain()
    assert pins.log == [(10, 1, True)]


def test_loop_that_looks_at_an_empty_counter_wakes_nobody(files, peer):
    ctx = files.file(HostEventFile.open(files, os.dup(peer))).ctx
    woken: list[int] = []
    ctx.add_wait(WaitEntry(lambda key: bool(woken.append(key))))
    ctx.readable_now()
    assert woken == []
    os.eventfd_write(peer, 1)
    ctx.readable_now()
    assert woken == [POLLIN]


def test_signal_from_inside_the_wake_up_waits_for_the_loop(files, peer):
    ctx = files.file(HostEventFile.open(files, os.dup(peer))).ctx
    woken: list[int] = []

    def callback(key: int) -> bool:
        woken.append(ctx.drain())
        if len(woken) == 1:
            ctx.add(7)
        return bool(key)

    ctx.add_wait(WaitEntry(callback))
    ctx.add(2)
    assert woken == [2]
    ctx.readable_now()
    assert woken == [2, 7]


@pytest.mark.parametrize("how", ["add_wait", "add_wait_exclusive", "add_wait_priority", "add_wait_priority_exclusive"])
@pytest.mark.parametrize("end", ["remove_wait", "remove_wait_and_drain"])
def test_loop_is_told_to_watch_while_somebody_waits(files, peer, how, end):
    watched: list[tuple[HostEventfdCtx, bool]] = []
    ctx = files.file(HostEventFile.open(files, os.dup(peer), "x", lambda *told: watched.append(told))).ctx
    woken: list[int] = []
    entry = WaitEntry(lambda key: bool(woken.append(key)))
    assert getattr(ctx, how)(entry) is (True if how == "add_wait_priority_exclusive" else None)
    os.eventfd_write(peer, 4)
    ctx.readable_now()
    assert woken == [POLLIN]
    assert getattr(ctx, end)(entry) == (4 if end == "remove_wait_and_drain" else None)
    ctx.readable_now()
    assert woken == [POLLIN]
    assert watched == [(ctx, True), (ctx, False)]


def test_second_owner_is_refused_as_the_models_eventfds_do(files, peer):
    ctx = files.file(HostEventFile.open(files, os.dup(peer))).ctx
    assert ctx.add_wait_priority_exclusive(WaitEntry(bool)) is True
    assert ctx.add_wait_priority_exclusive(WaitEntry(bool)) is False
