"""KVM_EOIFD as posted in July 2012 and never merged: an eventfd that is signalled at the EOI of one irqfd's interrupt.

    vm.irqfd(e, gsi, KVM_IRQFD_FLAG_LEVEL)         a level irqfd asserts its own irq source id
    vm.eoifd(f, KVM_EOIFD_FLAG_LEVEL_IRQFD, e)     at the EOI that source is lowered and f signalled
    vm.eoifd(f, ... | KVM_EOIFD_FLAG_DEASSIGN, e)

Two objects share one counted `IrqSource`; neither refers to the other, and which goes first is the caller's choice.
What should happen then is a `vmm.kernel.policies.Policy`. The eoifd keeps a context reference of the irqfd's eventfd,
only to be matched at deassign; it does not keep the file alive.

Where the posted code is not known these are our choices: no such irqfd is ENODEV, a deassign without a match ENOENT, a
second eoifd on one eventfd EBUSY; the last user of a source lowers its line before the id is given back, as the
first generation of the series did.

Ref: [PATCH v5 0/4] kvm: level irqfd and new eoifd, 16 Jul 2012, and the thread below its second patch
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from construct import Int32ul, Padding, Struct

from vmm import order
from vmm.kernel.files import POLLHUP, WaitEntry, os_error
from vmm.kernel.gsi import AckNotifier
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, Irqfd, Irqfds, KvmIrqfdInject
from vmm.order import Lock, Mortal, Violation
from vmm.trace import Event

if TYPE_CHECKING:
    from vmm.kernel.eras import Era
    from vmm.kernel.files import DescriptorTable, EventfdCtx, File
    from vmm.kernel.gsi import Gsis
    from vmm.kernel.policies import Policy
    from vmm.order import WorkQueue

KVM_IRQFD_FLAG_LEVEL = 2
KVM_EOIFD_FLAG_DEASSIGN, KVM_EOIFD_FLAG_LEVEL_IRQFD = 1, 2
KVM_CAP_IRQFD_LEVEL, KVM_CAP_EOIFD, KVM_CAP_EOIFD_LEVEL_IRQFD = 81, 82, 83
"""As posted; 81 and 82 mean other things in released kernels."""

KvmEoifd = Struct("fd" / Int32ul, "flags" / Int32ul, "irqfd" / Int32ul, Padding(20))
"""`struct kvm_eoifd`. There is no GSI: the eoifd learns it from the irqfd."""

POINTS = {
    "eoifd.assign.looked-up": "kvm_assign_eoifd: irqfd found, references taken, irqfds.lock dropped",
    "eoifd.assign.registered": "kvm_assign_eoifd: ack notifier registered, not yet listed",
    "eoifd.deassign.flush": "kvm_deassign_eoifd: unlisted, before the flush",
    "eoifd.shutdown": "eoifd teardown: before the ack notifier is unregistered",
    "eoifd.ack": "eoifd_event: before the source's lock",
    "irqsource.put": "kref_put of an irq source",
}


class KvmEoifdSignal(Event):
    """An eoifd was signalled: the interrupt of its irqfd was acknowledged."""

    gsi: int
    source: int


class IrqSource(Mortal):
    """An irq source id with a count of users, and whether it holds its GSI high. (struct _irq_source)

    `clears_irq`: there is no flag, the chip is asked (`kvm_clear_irq`; `asserted` stays False).
    """

    WIRING: ClassVar[tuple[str, ...]] = ("clears_irq", "gsi", "gsis", "lock", "source")
    VISIBLE: ClassVar[tuple[str, ...]] = ("asserted",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("refs",)
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, gsis: Gsis, gsi: int, clears_irq: bool) -> None:
        """OSError EFAULT if all ids are in use."""
        super().__init__()
        self.clears_irq = clears_irq
        self.gsis = gsis
        self.gsi = gsi
        self.source = gsis.sources.request()
        self.lock = Lock(f"irq-source-{self.source}", spin=True)
        self.asserted = False
        self.refs = 1

    def get(self) -> IrqSource:
        """Take a reference."""
        self.touch("_irq_source_get")
        self.refs += 1
        return self

    def put(self) -> None:
        """Give a reference back; the last one lowers the line and frees the id."""
        if order.hook is not None:
            order.hook("irqsource.put", self)
        self.touch("_irq_source_put")
        self.refs -= 1
        if not self.refs:
            self.deassert()
            self.gsis.sources.free(self.source)
            self.free("_irq_source_release")

    def raise_line(self) -> None:
        """Hold the GSI high."""
        with self.lock:
            self.touch("irqfd_inject")
            if not self.asserted:
                self.asserted = not self.clears_irq
                self.gsis.set_irq(self.source, self.gsi, 1)

    def deassert(self) -> bool:
        """Let the GSI go; False if it was not held, so that another's EOI does nothing."""
        if self.clears_irq:
            return self.gsis.clear_irq(self.source, self.gsi)
        with self.lock:
            was = self.asserted
            if was:
                self.asserted = False
                self.gsis.set_irq(self.source, self.gsi, 0)
        return was


class LevelIrqfd(Irqfd):
    """An irqfd that may have a source of its own; without one (`level` False) it is a plain one."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("level", "source")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, irqfds: Irqfds, gsi: int) -> None:
        super().__init__(irqfds, gsi)
        self.level = False
        self.source: IrqSource | None = None

    def inject(self) -> None:
        if self.source is None:
            super().inject()
            return
        trace = self.irqfds.gsis.trace
        if trace.on:
            trace.emit(KvmIrqfdInject(self.gsi, True))
        self.source.raise_line()

    def inject_in_atomic(self) -> bool:
        return self.source is None and super().inject_in_atomic()

    def leave(self) -> None:
        """Put the source; an eoifd may still have it."""
        source, self.source = self.source, None
        if source is not None:
            source.put()


class Eoifd(Mortal):
    """An eventfd bound to a source. `level_irqfd` is the irqfd's context, `file` its file if the policy holds that."""

    WIRING: ClassVar[tuple[str, ...]] = ("irqfds", "shutdown_work", "wait")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("active", "ctx", "file", "level_irqfd", "notifier", "source")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, irqfds: EoiIrqfds, ctx: EventfdCtx) -> None:
        super().__init__()
        self.irqfds = irqfds
        self.ctx = ctx
        self.active = False
        self.source: IrqSource | None = None
        self.level_irqfd: EventfdCtx | None = None
        self.file: File | None = None
        self.notifier: AckNotifier | None = None
        self.wait = WaitEntry(self.wakeup)
        self.shutdown_work = irqfds.cleanup_queue.work("eoifd.shutdown", self.shutdown)

    def acked(self) -> None:
        """The ack notifier's callback: if our source held the line, lower it and say so. (eoifd_event)"""
        if order.hook is not None:
            order.hook("eoifd.ack", self)
            self.touch("eoifd_event")
        source = self.source
        if source is not None and source.deassert():
            trace = self.irqfds.gsis.trace
            if trace.on:
                trace.emit(KvmEoifdSignal(source.gsi, source.source))
            self.ctx.signal()

    def wakeup(self, key: int) -> bool:
        """The wait entry's callback, wqh.lock held: all it looks for is the close."""
        if key & POLLHUP:
            with self.irqfds.lock:
                if self.active:
                    self.deactivate()
        return False

    def deactivate(self) -> None:
        """Unlist and queue the shutdown; irqfds.lock is held."""
        if not self.active:
            raise Violation("deactivated-twice", self, "eoifd_deactivate", "eoifd_deactivate")
        irqfds = self.irqfds
        self.active = False
        irqfds.eoifds = tuple(item for item in irqfds.eoifds if item is not self)
        self.shutdowns += 1
        self.shutdown_work.schedule()

    def shutdown(self) -> None:
        """The shutdown work: after it nothing is signalled."""
        self.touch("eoifd_shutdown")
        if order.hook is not None:
            order.hook("eoifd.shutdown", self)
        self.release()
        self.free("eoifd_shutdown")

    def release(self) -> None:
        """Give back whatever it has, in the reverse order of taking."""
        if self.notifier is not None:
            self.irqfds.gsis.unregister(self.notifier)
        if self.wait.queued:
            self.ctx.remove_wait(self.wait)
        if self.file is not None:
            self.file.put()
        if self.source is not None:
            self.source.put()
        if self.level_irqfd is not None:
            self.level_irqfd.put()
        self.ctx.put()

    def __repr__(self) -> str:
        return f"<Eoifd {self.ctx!r} for {self.level_irqfd!r}>"


class EoiIrqfds(Irqfds):
    """The irqfds and eoifds of one VM under a policy."""

    WIRING: ClassVar[tuple[str, ...]] = ("policy",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("eoifds",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    irqfd_class = LevelIrqfd
    flags = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_LEVEL

    def __init__(
        self,
        files: DescriptorTable,
        gsis: Gsis,
        era: Era,
        irqchip: str,
        inject_queue: WorkQueue,
        cleanup_queue: WorkQueue,
        policy: Policy,
    ) -> None:
        super().__init__(files, gsis, era, irqchip, inject_queue, cleanup_queue)
        self.policy = policy
        self.eoifds: tuple[Eoifd, ...] = ()

    # What irqfds ask.

    def prepare(self, irqfd: Irqfd, flags: int) -> None:
        assert isinstance(irqfd, LevelIrqfd)
        irqfd.level = bool(flags & KVM_IRQFD_FLAG_LEVEL)
        if irqfd.level and self.policy.source_first:
            irqfd.source = self.new_source(irqfd.gsi)

    def bind(self, irqfd: Irqfd, resamplefd: int) -> None:
        """There is no second descriptor: the EOI's is bound by KVM_EOIFD."""

    def admit(self, irqfd: Irqfd, ctx: EventfdCtx) -> None:
        assert isinstance(irqfd, LevelIrqfd)
        self.policy.admit(self, irqfd, ctx)

    def may_deassign(self, irqfd: Irqfd) -> bool:
        assert isinstance(irqfd, LevelIrqfd)
        return self.policy.may_deassign(self, irqfd)

    def deactivated(self, irqfd: Irqfd) -> None:
        assert isinstance(irqfd, LevelIrqfd)
        self.policy.irqfd_deactivated(self, irqfd)

    # What policies ask, irqfds.lock held.

    def new_source(self, gsi: int) -> IrqSource:
        """A source of its own for a level irqfd. OSError EFAULT."""
        return IrqSource(self.gsis, gsi, self.policy.clears_irq)

    def bound_to(self, irqfd: LevelIrqfd) -> tuple[Eoifd, ...]:
        """The eoifds that listen to the source of `irqfd`."""
        source = irqfd.source
        return () if source is None else tuple(e for e in self.eoifds if e.source is source)

    def naming(self, ctx: EventfdCtx) -> tuple[Eoifd, ...]:
        """The eoifds that were bound to an irqfd of eventfd `ctx`, whether or not it is still there."""
        return tuple(e for e in self.eoifds if e.level_irqfd is ctx)

    def listening(self, gsi: int) -> tuple[Eoifd, ...]:
        """The eoifds of a GSI."""
        return tuple(e for e in self.eoifds if e.source is not None and e.source.gsi == gsi)

    # KVM_EOIFD

    def assign_eoifd(self, fd: int, flags: int, irqfd_fd: int) -> None:
        """Signal the eventfd at `fd` at the EOIs of the level irqfd of the eventfd at `irqfd_fd`.

        OSError EINVAL (without LEVEL_IRQFD, edge irqfd, no eventfd), EBADF, ENODEV (no such irqfd), EBUSY (`fd` has an
        eoifd). On an error nothing is left.
        """
        if not flags & KVM_EOIFD_FLAG_LEVEL_IRQFD:
            raise os_error(errno.EINVAL, "KVM_EOIFD without LEVEL_IRQFD")
        # Its own file is held to the end, so that its POLLHUP cannot come before it is listed.
        own = self.files.fget(fd)
        try:
            eoifd = Eoifd(self, own.eventfd())
            try:
                self.bind_eoifd(eoifd, irqfd_fd)
            except OSError:
                eoifd.release()
                eoifd.free("kvm_assign_eoifd failed")
                raise
        finally:
            own.put()

    def bind_eoifd(self, eoifd: Eoifd, irqfd_fd: int) -> None:
        """Find the irqfd, share its source, and listen. Between the look-up and the listing the irqfd may go."""
        file = self.files.fget(irqfd_fd)
        if self.policy.holds_file:
            eoifd.file = file
        try:
            eoifd.level_irqfd = ctx = file.eventfd()
        finally:
            if eoifd.file is None:
                file.put()
        with self.lock:
            irqfd = self.find_irqfd(ctx)
            if irqfd is None:
                raise os_error(errno.ENODEV, f"{ctx!r} has no irqfd")
            if irqfd.source is None:
                raise os_error(errno.EINVAL, f"{irqfd!r} is not level-triggered")
            eoifd.source = irqfd.source.get()
        if order.hook is not None:
            order.hook("eoifd.assign.looked-up", eoifd)
        notifier = AckNotifier(eoifd.source.gsi, eoifd.acked)
        self.gsis.register(notifier)
        eoifd.notifier = notifier
        if order.hook is not None:
            order.hook("eoifd.assign.registered", eoifd)
        if self.policy.notices_close:
            eoifd.ctx.add_wait(eoifd.wait)
        with self.lock:
            if any(other.ctx is eoifd.ctx for other in self.eoifds):
                raise os_error(errno.EBUSY, f"{eoifd.ctx!r} has an eoifd")
            if not self.policy.may_bind(irqfd):
                raise os_error(errno.ENODEV, f"the irqfd of {ctx!r} went meanwhile")
            eoifd.active = True
            self.eoifds = (*self.eoifds, eoifd)

    def find_irqfd(self, ctx: EventfdCtx) -> LevelIrqfd | None:
        """The irqfd of an eventfd; irqfds.lock is held."""
        for item in self.items:
            if item.ctx is ctx:
                assert isinstance(item, LevelIrqfd)
                return item
        return None

    def deassign_eoifd(self, fd: int, irqfd_fd: int) -> None:
        """Unbind; matched by the two eventfds, so it works after the irqfd is gone, while both have descriptors.

        OSError EBADF, EINVAL, ENOENT (no such eoifd).
        """
        ctx = self.files.ctx_fdget(fd)
        try:
            level = self.files.ctx_fdget(irqfd_fd)
            try:
                with self.lock:
                    found = next((e for e in self.eoifds if e.ctx is ctx and e.level_irqfd is level), None)
                    if found is not None:
                        found.deactivate()
            finally:
                level.put()
        finally:
            ctx.put()
        if found is None:
            raise os_error(errno.ENOENT, "no such eoifd")
        if order.hook is not None:
            order.hook("eoifd.deassign.flush", self)
        self.cleanup_queue.flush()

    def release(self) -> None:
        """The VM's descriptor was closed: irqfds, then what is left of eoifds."""
        super().release()
        with self.lock:
            left = self.eoifds
            i = 0
            while i < len(left):
                left[i].deactivate()
                i += 1
        self.cleanup_queue.flush()
