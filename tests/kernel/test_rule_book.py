"""What the judge of the invariants knows of a user's calls, and its verdicts on single calls."""

from __future__ import annotations

import errno

import pytest

from tests.support.kvm_rig import KvmRig
from vmm.kernel.eoifd import KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD
from vmm.kernel.gsi import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID,
    KVM_PIT_IRQ_SOURCE_ID,
    KVM_USERSPACE_IRQ_SOURCE_ID,
    Route,
)
from vmm.kernel.invariants import Ledger, Step, View, holding, s2, s4, s5, s6, s7, s8, s9, s10, s19, s20, view
from vmm.order import WorkQueue

SAME = View((0,), ())
OTHER = View((1,), (2,))


class Book:
    """A ledger, and eventfds to write into it."""

    def __init__(self, policy: str = "resample") -> None:
        self.rig = KvmRig(policy=policy)
        self.vm, self.files = self.rig.vm, self.rig.files
        self.ledger = Ledger(self.vm)
        self.e, self.f, self.g = (self.files.ctx_fdget(self.rig.efd()) for _ in range(3))

    def step(self, kind, ctx=None, other=None, gsi=-1, **more) -> Step:
        error, level, last = more.pop("error", 0), more.pop("level", True), more.pop("last", False)
        return Step(kind, error, SAME, more.pop("after", SAME), ctx, other, gsi, level, more.pop("signals", {}), last)

    def note(self, *args, **more) -> None:
        self.ledger.record(self.step(*args, **more))


@pytest.fixture
def book() -> Book:
    return Book()


def test_assign_is_entered_with_what_it_binds_and_a_refused_one_is_not(book):
    book.note("I+", book.e, book.f, 5)
    book.note("I+", book.g, None, 6, error=errno.EBUSY)
    assert book.ledger.irqfds == {book.e: (5, True, book.f)}
    assert book.ledger.fired == set()


def test_event_that_is_there_at_the_assign_fires_a_level_irqfd(book):
    book.e.add(1)
    book.f.add(1)
    book.note("I+", book.e, None, 5)
    book.note("I+", book.f, None, 5, level=False)
    assert book.ledger.fired == {book.e}


def test_deassign_of_another_gsi_forgets_nothing(book):
    book.note("I+", book.e, None, 5)
    book.note("I-", book.e, gsi=6)
    assert book.e in book.ledger.irqfds
    book.note("SIG", book.e)
    book.note("I-", book.e, gsi=5)
    book.note("I-", book.f, gsi=5)
    assert (book.ledger.irqfds, book.ledger.fired) == ({}, set())


def test_signal_fires_what_is_bound_by_level(book):
    book.note("I+", book.e, None, 5)
    book.note("I+", book.f, None, 5, level=False)
    for ctx in (book.e, book.f, book.g):
        book.note("SIG", ctx)
    assert book.ledger.fired == {book.e}


def test_eoi_ends_what_somebody_listens_to_on_its_gsi(book):
    book.note("I+", book.e, book.f, 5)
    book.note("I+", book.g, None, 5)
    for ctx in (book.e, book.g):
        book.note("SIG", ctx)
    book.note("EOI", gsi=6)
    assert book.ledger.fired == {book.e, book.g}
    book.note("EOI", gsi=5)
    assert book.ledger.fired == {book.g}


def test_eoifd_is_entered_with_its_irqfd_and_left_out(book):
    book.note("E+", book.f, book.e)
    book.note("E+", book.g, book.e, error=errno.EINVAL)
    assert book.ledger.eoifds == {book.f: book.e}
    book.note("E-", book.f, book.e)
    assert book.ledger.eoifds == {}


def test_last_close_forgets_the_irqfd_and_one_of_several_does_not(book):
    book.note("I+", book.e, None, 5)
    book.note("C", book.e)
    assert (book.ledger.closed, list(book.ledger.irqfds)) == (set(), [book.e])
    book.note("C", book.e, last=True)
    assert (book.ledger.closed, book.ledger.irqfds) == ({book.e}, {})


def test_closed_irqfd_lives_while_an_eoifd_holds_its_file():
    book = Book("eoifd-holds-file")
    for irqfd in (book.e, book.g):
        book.note("I+", irqfd, None, 5)
    book.note("E+", book.f, book.e)
    for irqfd in (book.e, book.g):
        book.note("C", irqfd, last=True)
    assert list(book.ledger.irqfds) == [book.e]


def test_closed_irqfd_goes_with_the_last_eoifd_that_held_its_file():
    book = Book("eoifd-holds-file:eoifd-close=deassigns")
    book.note("I+", book.e, None, 5)
    for eoifd in (book.f, book.g):
        book.note("E+", eoifd, book.e)
    for ctx in (book.e, book.f):
        book.note("C", ctx, last=True)
        assert list(book.ledger.irqfds) == [book.e]
    book.note("C", book.g, last=True)
    assert (book.ledger.irqfds, book.ledger.eoifds) == ({}, {})


def test_close_of_the_vm_clears_the_book(book):
    book.note("I+", book.e, None, 5)
    book.note("E+", book.f, book.e)
    book.note("VM")
    assert (book.ledger.vm_closed, book.ledger.irqfds, book.ledger.eoifds) == (True, {}, {})


def test_unbinding_takes_the_eoifds_along_where_the_rule_says_so():
    for policy, left in (("eoifd-follows-irqfd", []), ("eoifd-v5", ["f"])):
        book = Book(policy)
        book.note("I+", book.e, None, 5)
        book.note("E+", book.f, book.e)
        book.note("E+", book.g, book.g)
        book.note("I-", book.e, gsi=5)
        names = {book.f: "f", book.g: "g"}
        assert [names[f] for f in book.ledger.eoifds] == [*left, "g"]


# Verdicts


def test_event_that_is_injected_and_can_be_read_breaks_s10(book):
    book.note("I+", book.e, None, 5)
    judged = book.step("SIG", book.e)
    assert s10(book.vm, book.ledger, judged) == ""
    book.e.add(1)
    assert "can be read as well" in s10(book.vm, book.ledger, judged)
    assert s10(book.vm, book.ledger, judged._replace(error=errno.EAGAIN)) == ""
    gone = book.step("I-", book.e, gsi=5)
    assert "still has what was injected" in s10(book.vm, book.ledger, gone)
    assert s10(book.vm, book.ledger, gone._replace(error=errno.EINVAL)) == ""
    assert s10(book.vm, book.ledger, gone._replace(gsi=6)) == ""
    assert s10(book.vm, book.ledger, gone._replace(ctx=book.f)) == ""


def test_failure_that_changes_something_breaks_s19(book):
    assert s19(book.vm, book.ledger, book.step("I+", book.e, error=errno.EBUSY, after=OTHER))
    assert not s19(book.vm, book.ledger, book.step("I+", book.e, error=errno.EBUSY))
    assert not s19(book.vm, book.ledger, book.step("I+", book.e, after=OTHER))


def test_ebusy_with_nothing_to_remove_breaks_s20():
    book = Book("eoifd-v5")
    e, f = book.rig.efd(), book.rig.efd()
    ectx, fctx = book.files.ctx_fdget(e), book.files.ctx_fdget(f)
    busy = [book.step("I+", ectx, error=errno.EBUSY), book.step("E+", fctx, ectx, error=errno.EBUSY)]
    assert all("nothing that can be removed" in s20(book.vm, book.ledger, step) for step in busy)
    book.vm.irqfd(e, 5, 2)
    book.vm.eoifd(f, KVM_EOIFD_FLAG_LEVEL_IRQFD, e)
    assert all(s20(book.vm, book.ledger, step) == "" for step in busy)
    book.vm.irqfd(e, 5, 1)
    book.rig.drain()
    assert s20(book.vm, book.ledger, busy[0]) == ""  # its eoifd can still be named
    book.ledger.closed.add(fctx)
    assert "nothing that can be removed" in s20(book.vm, book.ledger, busy[0])
    assert s20(book.vm, book.ledger, book.step("SIG", ectx, error=errno.EBUSY)) == ""


def test_efault_breaks_s20_while_there_is_room_for_a_level_irqfd():
    book = Book("eoifd-v5")
    refused = book.step("I+", book.e, error=errno.EFAULT)
    assert "no source id for the 1. level irqfd" in s20(book.vm, book.ledger, refused)
    for _ in range(book.vm.gsis.sources.capacity - len(book.ledger.static)):
        book.vm.irqfd(book.rig.efd(), 5, 2)
    assert s20(book.vm, book.ledger, refused) == ""


def test_open_descriptor_and_a_closed_one_are_told_apart(book):
    fd = book.rig.efd()
    before = view(book.vm, {})
    book.rig.close(fd)
    assert view(book.vm, {}) != before


def test_line_held_by_nobody_breaks_s5_unless_the_id_is_nobody_s_to_take(book):
    book.rig.ioapic.sources[5] = 1 << KVM_PIT_IRQ_SOURCE_ID
    book.ledger.static = {KVM_USERSPACE_IRQ_SOURCE_ID, KVM_PIT_IRQ_SOURCE_ID}
    assert s5(book.vm, book.ledger) == ""
    book.ledger.static = {KVM_USERSPACE_IRQ_SOURCE_ID}
    assert "GSI 5 is held high by sources" in s5(book.vm, book.ledger)


def test_source_of_another_gsi_s_irqfd_breaks_s5():
    book = Book("eoifd-v5")
    book.vm.irqfd(book.rig.efd(), 5, 2)
    source = book.vm.irqfds.items[0].source.source
    book.rig.ioapic.sources[5] = 1 << source
    assert s5(book.vm, book.ledger) == ""
    book.rig.ioapic.sources[6] = 1 << source
    assert "GSI 6 is held high" in s5(book.vm, book.ledger)


@pytest.mark.parametrize(("era", "wrong"), [("6.18", False), ("5.11", True)])
def test_level_that_is_held_and_not_latched_breaks_s8_unless_an_unmask_asked_the_resampler(era, wrong):
    rig = KvmRig(era=era)
    rig.ioapic.redir[5] = 0x8055
    rig.ioapic.sources[5] = 1 << KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID
    assert bool(s8(rig.vm, Ledger(rig.vm))) is wrong
    rig.ioapic.sources[5] = 1 << KVM_USERSPACE_IRQ_SOURCE_ID
    assert "pin 5: IRR 0, sources 0x1" in s8(rig.vm, Ledger(rig.vm))


def test_pin_of_another_chip_holds_nothing_at_the_ioapic(book):
    book.rig.ioapic.sources[5] = 1
    book.vm.set_gsi_routing([Route.irqchip(5, KVM_IRQCHIP_PIC_MASTER, 5), Route.irqchip(6, KVM_IRQCHIP_IOAPIC, 5)])
    assert (holding(book.vm, 5), holding(book.vm, 6)) == (0, 1)
    book.vm.set_gsi_routing([Route.irqchip(6, KVM_IRQCHIP_IOAPIC, 0)])
    del book.vm.gsis.chips[KVM_IRQCHIP_IOAPIC]
    assert holding(book.vm, 6) == 0


def test_eoi_that_leaves_its_line_high_breaks_s7():
    book = Book("eoifd-v5")
    fd, efd = book.rig.efd(), book.rig.efd()
    e, f = book.files.ctx_fdget(fd), book.files.ctx_fdget(efd)
    book.vm.irqfd(fd, 5, 2)
    book.vm.eoifd(efd, KVM_EOIFD_FLAG_LEVEL_IRQFD, fd)
    book.note("I+", e, None, 5)
    book.note("E+", f, e)
    book.note("SIG", e)
    ended = book.step("EOI", gsi=5, signals={f: 1})
    assert s7(book.vm, book.ledger, ended) == ""
    book.rig.write(fd)
    assert "did not lower GSI 5" in s7(book.vm, book.ledger, ended)


def test_eoifd_that_hears_of_another_s_interrupt_breaks_s7():
    book = Book("eoifd-v5")
    book.note("I+", book.e, None, 5)
    book.note("E+", book.f, book.e)
    ended = book.step("EOI", gsi=5, signals={book.f: 1})
    assert "not its irqfd's" in s7(book.vm, book.ledger, ended)
    book.note("SIG", book.e)
    assert s7(book.vm, book.ledger, ended) == ""


@pytest.mark.parametrize(
    "left",
    ["nothing", "a work", "an id", "an irqfd", "a resampler", "an eoifd", "a notifier", "a reference", "a context"],
)
def test_what_a_closed_vm_leaves_behind_breaks_s2(left):
    book = Book("eoifd-v5")
    fd = book.rig.efd()
    book.ledger.contexts.append(book.files.file(fd).ctx)
    book.vm.close()
    book.note("VM")
    for open_fd, file in enumerate(book.files.files):
        if file is not None and open_fd != fd:
            book.rig.close(open_fd)
    book.rig.close(fd)
    if left == "a work":
        WorkQueue("cleanup", book.vm.executor).work("late", lambda: None).enqueue()
    elif left == "an id":
        book.vm.gsis.sources.used |= 1 << 7
    elif left == "an irqfd":
        book.vm.irqfds.items = ("an eventfd's irqfd",)
    elif left == "a resampler":
        book.vm.irqfds.resamplers = ("an eventfd's resampler",)
    elif left == "a notifier":
        book.vm.gsis.notifiers = {5: ("an eventfd's notifier",)}
    elif left == "a reference":
        book.e.free("a test")
        book.ledger.contexts.append(book.e)
    elif left == "an eoifd":
        book.vm.irqfds.eoifds = ("an eventfd's eoifd",)
    elif left == "a context":
        book.ledger.contexts.append(book.e)
    says = {"nothing": "", "a work": "late", "an id": "source ids 0x", "a notifier": "[5]"}.get(left, "eventfd")
    wrong = s2(book.vm, book.ledger)
    assert says in wrong
    assert bool(wrong) is (left != "nothing")


def test_deassign_that_leaves_its_eoifd_breaks_s9():
    book = Book("eoifd-v5")
    fd, efd = book.rig.efd(), book.rig.efd()
    e, f = book.files.ctx_fdget(fd), book.files.ctx_fdget(efd)
    book.vm.irqfd(fd, 5, 2)
    book.vm.eoifd(efd, KVM_EOIFD_FLAG_LEVEL_IRQFD, fd)
    assert "deassign returned 0, and left" in s9(book.vm, book.ledger, book.step("E-", f, e))
    book.vm.eoifd(book.rig.efd(), KVM_EOIFD_FLAG_LEVEL_IRQFD, fd)  # another one, which may stay
    book.vm.eoifd(efd, KVM_EOIFD_FLAG_LEVEL_IRQFD | KVM_EOIFD_FLAG_DEASSIGN, fd)
    assert s9(book.vm, book.ledger, book.step("E-", f, e)) == ""


def test_signal_of_what_is_not_bound_breaks_s6(book):
    book.note("I+", book.e, book.f, 5)
    heard = book.step("EOI", gsi=5, signals={book.f: 1, book.g: 0})
    assert s6(book.vm, book.ledger, heard) == ""
    assert "is not bound" in s6(book.vm, book.ledger, heard._replace(signals={book.g: 1}))
    moved = book.step("SIG", book.g, after=OTHER)
    assert "moved a line" in s6(book.vm, book.ledger, moved)
    assert s6(book.vm, book.ledger, moved._replace(ctx=book.e)) == ""
    assert s6(book.vm, book.ledger, moved._replace(kind="EOI")) == ""
    assert s6(book.vm, book.ledger, moved._replace(ctx=None)) == ""


def test_resamplefd_that_does_not_hear_its_eoi_breaks_s7(book):
    book.note("I+", book.e, book.f, 5)
    book.note("SIG", book.e)
    ended = book.step("EOI", gsi=5, signals={book.f: 1})
    assert s7(book.vm, book.ledger, ended) == ""
    assert "0 times" in s7(book.vm, book.ledger, ended._replace(signals={}))
    assert "2 times" in s7(book.vm, book.ledger, ended._replace(signals={book.f: 2}))
    assert s7(book.vm, book.ledger, ended._replace(signals={}, gsi=6)) == ""
    assert s7(book.vm, book.ledger, ended._replace(signals={}, kind="SIG")) == ""
    book.ledger.closed.add(book.f)
    assert s7(book.vm, book.ledger, ended._replace(signals={})) == ""


def test_deassign_that_leaves_its_irqfd_breaks_s9(book):
    fd = book.rig.efd()
    book.vm.irqfd(fd, 5)
    step = book.step("I-", book.files.ctx_fdget(fd), gsi=5)
    assert "still has its irqfd" in s9(book.vm, book.ledger, step)
    assert s9(book.vm, book.ledger, step._replace(gsi=6)) == ""
    assert s9(book.vm, book.ledger, step._replace(error=errno.EINVAL)) == ""
    assert s9(book.vm, book.ledger, step._replace(ctx=book.f)) == ""


def test_dead_source_of_a_listed_irqfd_breaks_s4():
    book = Book("eoifd-v5")
    book.vm.irqfd(book.rig.efd(), 5, 2)
    assert s4(book.vm, book.ledger) == ""
    book.vm.irqfds.items[0].source.free("a test")
    assert "listed, and dead" in s4(book.vm, book.ledger)


def test_dead_resampler_breaks_s4(book):
    book.vm.irqfd(book.rig.efd(), 5, 2, book.rig.efd())
    assert s4(book.vm, book.ledger) == ""
    book.vm.irqfds.find_resampler(5).free("a test")
    assert "listed, and dead" in s4(book.vm, book.ledger)


def test_dead_source_of_an_eoifd_that_outlived_its_irqfd_breaks_s4():
    book = Book("eoifd-v5")
    fd = book.rig.efd()
    book.vm.irqfd(fd, 5, 2)
    book.vm.eoifd(book.rig.efd(), KVM_EOIFD_FLAG_LEVEL_IRQFD, fd)
    book.vm.irqfd(fd, 5, 1)
    assert s4(book.vm, book.ledger) == ""
    book.vm.irqfds.eoifds[0].source.free("a test")
    assert "listed, and dead" in s4(book.vm, book.ledger)


@pytest.mark.parametrize("end", ["deassign", "vm"])
def test_every_eoifd_goes_with_its_irqfd_or_its_vm(end):
    book = Book("eoifd-follows-irqfd")
    irqfd, eoifds = book.rig.efd(), [book.rig.efd() for _ in range(3)]
    book.vm.irqfd(irqfd, 5, 2)
    for fd in eoifds:
        book.vm.eoifd(fd, KVM_EOIFD_FLAG_LEVEL_IRQFD, irqfd)
    if end == "vm":
        book.vm.close()
    else:
        book.vm.irqfd(irqfd, 5, 1)
    book.rig.drain()
    assert book.vm.irqfds.eoifds == ()
    assert [book.files.file(fd).ctx.refs for fd in eoifds] == [1, 1, 1]


def test_refused_eoifd_is_freed(monkeypatch):
    book = Book("eoifd-v5")
    freed = []
    monkeypatch.setattr("vmm.kernel.eoifd.Eoifd.free", lambda _self, step: freed.append(step))
    fd = book.rig.efd()
    unbound = book.rig.efd()
    with pytest.raises(OSError, match="Errno"):
        book.vm.eoifd(fd, KVM_EOIFD_FLAG_LEVEL_IRQFD, unbound)
    assert freed == ["kvm_assign_eoifd failed"]
    assert book.files.file(fd).ctx.refs == 1
