"""Bugs of irqfd and the resampler."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from vmm import order
from vmm.explore.board import Parts
from vmm.explore.parts import GSI
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.files import U64_MAX, EventfdCtx, os_error
from vmm.kernel.irqfd import Irqfd, Irqfds, Resampler

if TYPE_CHECKING:
    from vmm.explore.board import Board

NOW = Setup("resample")


class LowersPerMember(Resampler):
    """The shared line is lowered again before each member is signalled."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def notify_member(self, member: Irqfd) -> None:
        self.deassert()
        if order.hook is not None:
            order.hook("resampler.lowered-again", member)
        super().notify_member(member)


class LowersPerMemberIrqfds(Irqfds):
    """Makes such resamplers."""

    __slots__ = ()
    resampler_class = LowersPerMember


def early_eoi(board: Board) -> None:
    """Two devices; the first EOI comes before the driver has served the one that interrupts."""
    board.vfio("a")
    board.vfio("b")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.interrupt()
    vcpu.interrupt(serve=True)


class DoesNotAwaitAssign(Irqfd):
    """The shutdown does not wait for an assign that has listed the irqfd and not yet attached it."""

    __slots__ = ()

    def await_assign(self) -> None:
        pass


class DoesNotAwaitAssignIrqfds(Irqfds):
    """Makes such irqfds."""

    __slots__ = ()
    irqfd_class = DoesNotAwaitAssign


class ActsAfterUnlock(Irqfds):
    """Assign polls under irqfds.lock, but queues the injection when it has let go of it; no read section."""

    __slots__ = ()
    irqfd_class = DoesNotAwaitAssign

    def attach(self, irqfd: Irqfd) -> None:
        ctx = irqfd.ctx
        assert ctx is not None
        with self.lock:
            for item in self.items:
                if item.ctx is ctx:
                    raise os_error(errno.EBUSY, f"{ctx!r} has an irqfd in this VM")
            irqfd.route = self.gsis.snapshot(irqfd.gsi)
            self.list(irqfd)
            ctx.add_wait(irqfd.wait)
        self.act_on_pending(irqfd, ctx)


def assign_and_deassign(board: Board) -> None:
    """One assigns, another deassigns."""
    board.eventfd("e1", count=1)
    board.thread("user").assign("e1")
    board.thread("other").deassign("e1")


class FlushesItsOwn(Irqfds):
    """Deassign waits for shutdowns only if it has queued one."""

    __slots__ = ()

    def deassign(self, fd: int, gsi: int) -> None:
        ctx = self.files.ctx_fdget(fd)
        if order.hook is not None:
            order.hook("irqfd.deassign", ctx)
        last: Irqfd | None = None
        with self.lock:
            items = self.items
            i = 0
            while i < len(items):
                item = items[i]
                i += 1
                if item.ctx is ctx and item.gsi == gsi:
                    item.route = None
                    item.deactivate()
                    last = item
        ctx.put()
        if last is not None:
            last.shutdown_work.flush()


def two_deassign(board: Board) -> None:
    """Two deassign the same; when either call has returned nothing may come from the irqfd."""
    board.vm.irqfd(board.fd("e1"), GSI)
    board.thread("user").deassign("e1")
    board.thread("other").deassign("e1")


class DoesNotDrain(Irqfd):
    """The shutdown leaves the counter as it is."""

    __slots__ = ()

    def unhook(self) -> None:
        if self.ctx is not None:
            self.ctx.remove_wait(self.wait)


class DoesNotDrainIrqfds(Irqfds):
    """Makes such irqfds."""

    __slots__ = ()
    irqfd_class = DoesNotDrain


def replay(board: Board) -> None:
    """An event is injected, then the irqfd deassigned: the next owner must not see it."""
    user = board.thread("user")
    user.assign("e1")
    user.signal("e1")
    user.deassign("e1")


class Underflows(EventfdCtx):
    """Reading a semaphore takes 1, also of 0."""

    __slots__ = ()

    def take(self) -> int:
        if not self.semaphore:
            return super().take()
        self.count = (self.count - 1) & U64_MAX
        return 1


def semaphore(board: Board) -> None:
    """An irqfd on an eventfd that is a semaphore, without any event."""
    board.eventfd("e1", semaphore=True)
    user = board.thread("user")
    user.assign("e1")
    user.deassign("e1")

    def full() -> str | None:
        count = board.ctx("e1").count
        return f"S10: the next owner of e1 reads {count:#x} events, and there was none" if count else None

    board.at_rest(full)


def _with(irqfds: type[Irqfds], era: str | None = None) -> Setup:
    return Setup("resample", era, None, Parts(irqfds=irqfds))


BUGS = (
    Bug(
        "Z12",
        "the shared line is lowered once per member",
        "7a84428af7ca, the comment at irqfd_resampler_ack",
        ("L1",),
        early_eoi,
        _with(LowersPerMemberIrqfds),
        NOW,
    ),
    Bug(
        "Z13",
        "assign queues the injection of an irqfd that was shut down meanwhile",
        '"KVM: fix irqfd assign/deassign race", 2010',
        ("use-after-free",),
        assign_and_deassign,
        _with(ActsAfterUnlock, "3.8"),
        Setup("resample", "3.8"),
    ),
    Bug(
        "Z15",
        "deassign between listed and attached",
        "611ff1b1ae98 (Xen privcmd); irq_srcu in kvm_irqfd_assign",
        ("wait-entry-never-added", "use-after-free"),
        assign_and_deassign,
        _with(DoesNotAwaitAssignIrqfds, "5.11"),
        Setup("resample", "5.11"),
    ),
    Bug(
        "Z17",
        "deassign flushes a work of its own, not the queue",
        '36343f6, "KVM: fix OOPS on flush_work"',
        ("S6",),
        two_deassign,
        _with(FlushesItsOwn),
        NOW,
    ),
    Bug(
        "Z20",
        "what was injected is seen again by the next owner",
        "b59e00dd8cda, b1b397aeef81",
        ("S10",),
        replay,
        _with(DoesNotDrainIrqfds, "3.8"),
        Setup("resample", "3.8"),
    ),
    Bug(
        "Z88",
        "a semaphore eventfd underflows when its irqfd goes",
        '"eventfd: prevent underflow for eventfd semaphores", 2023',
        ("S10",),
        semaphore,
        Setup("resample", None, None, Parts(ctx=Underflows)),
        NOW,
    ),
)
