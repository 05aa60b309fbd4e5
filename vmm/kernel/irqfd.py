"""irqfd: an eventfd that injects an interrupt; and the resampler, which tells its users of the EOI.

A plain irqfd pulses its GSI from irq source 0. A resampling irqfd only asserts, from source 1; all of one GSI share a
`Resampler`, which at the EOI de-asserts once and then signals every member's resamplefd. De-asserting per member could
erase what the first member's answer had already asserted.

Each step of an operation is a method, so that another rule can be told apart by the step it changes. Places where
another actor may act in between are points; `POINTS` names the kernel's function and lock.

Ref: virt/kvm/eventfd.c; vectors kvm-ioapic.json, irqfd-* and resample-*
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from construct import Const, Int32ul, Struct

from vmm import order
from vmm.kernel.files import POLLHUP, POLLIN, WaitEntry, os_error
from vmm.kernel.gsi import (
    KVM_IRQ_ROUTING_MSI,
    KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID,
    KVM_USERSPACE_IRQ_SOURCE_ID,
    AckNotifier,
)
from vmm.order import Lock, Mortal, State, Violation
from vmm.trace import Event

if TYPE_CHECKING:
    from vmm.kernel.eras import Era
    from vmm.kernel.files import DescriptorTable, EventfdCtx, File
    from vmm.kernel.gsi import Gsis, Route
    from vmm.order import Srcu, WorkQueue

KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE = 1, 2

KvmIrqfd = Struct("fd" / Int32ul, "gsi" / Int32ul, "flags" / Int32ul, "resamplefd" / Int32ul, "pad" / Const(bytes(16)))
"""`struct kvm_irqfd`. Ref: Documentation/virt/kvm/api.rst, 4.75"""

POINTS = {
    "irqfd.assign.resampler": "kvm_irqfd_assign: before resampler_lock",
    "irqfd.assign.joined": "kvm_irqfd_assign: member of its resampler, not yet attached; resampler_lock dropped",
    "irqfd.assign.listed": "kvm_irqfd_assign before 6.17: listed, irqfds.lock dropped, wait entry not yet added",
    "irqfd.assign.attached": "kvm_irqfd_assign: listed and attached, the initial POLLIN not yet acted on",
    "irqfd.assign.fput": "kvm_irqfd_assign: initialised, before the file is let go",
    "irqfd.wakeup.drained": "irqfd_wakeup: counter consumed, under wqh.lock",
    "irqfd.inject.between": "irqfd_inject: between the pulse's 1 and 0",
    "irqfd.deassign": "kvm_irqfd_deassign: context looked up, before irqfds.lock",
    "irqfd.deassign.flush": "kvm_irqfd_deassign: shutdowns queued, before flush_workqueue(irqfd_cleanup_wq)",
    "irqfd.release": "kvm_irqfd_release: before irqfds.lock",
    "irqfd.shutdown.unhook": "irqfd_shutdown: after the grace period, before eventfd_ctx_remove_wait_queue",
    "irqfd.shutdown.flush": "irqfd_shutdown: unhooked, before flush_work(inject)",
    "irqfd.shutdown.leave": "irqfd_resampler_shutdown: before resampler_lock",
    "irqfd.shutdown.lower": "irqfd_resampler_shutdown: last member, notifier gone, before the line is lowered",
    "irqfd.shutdown.put": "irqfd_shutdown: before the contexts are put",
    "resampler.ack.lowered": "irqfd_resampler_ack: de-asserted, before the members are signalled",
    "resampler.notify.member": "irqfd_resampler_notify: inside the SRCU read section, before each member",
}


class KvmIrqfdAssign(Event):
    """An irqfd was attached to a GSI."""

    fd: int
    gsi: int
    resample: bool


class KvmIrqfdInject(Event):
    """An irqfd's event reached its GSI."""

    gsi: int
    resample: bool


class KvmIrqfdShutdown(Event):
    """An irqfd is gone: nothing comes from it any more."""

    gsi: int


class KvmResample(Event):
    """A GSI's resampler signals its members."""

    gsi: int
    members: int


class Irqfd(Mortal):
    """One eventfd bound to one GSI. `active`: listed, so it may be deactivated, which happens once."""

    WIRING: ClassVar[tuple[str, ...]] = ("gsi", "inject_work", "irqfds", "shutdown_work", "wait")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("active", "ctx", "resamplefd", "resampler", "route")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, irqfds: Irqfds, gsi: int) -> None:
        super().__init__()
        self.irqfds = irqfds
        self.gsi = gsi
        self.ctx: EventfdCtx | None = None
        self.resamplefd: EventfdCtx | None = None
        self.resampler: Resampler | None = None
        self.route: Route | None = None
        self.active = False
        self.wait = WaitEntry(self.wakeup)
        self.inject_work = irqfds.inject_queue.work(f"irqfd.inject gsi {gsi}", self.inject)
        self.shutdown_work = irqfds.cleanup_queue.work(f"irqfd.shutdown gsi {gsi}", self.shutdown)

    # An event comes in.

    def wakeup(self, key: int) -> bool:
        """The wait entry's callback: atomic context, wqh.lock held. (irqfd_wakeup)"""
        if order.hook is not None:
            self.touch("irqfd_wakeup")
        consumed = False
        if key & POLLIN:
            self.event()
            consumed = self.irqfds.era.consumes
        if key & POLLHUP:
            self.irqfds.hang_up(self)
        return consumed

    def event(self) -> None:
        """Take the event and see it injected: at once if that needs no sleep, else by the inject work."""
        irqfds = self.irqfds
        ctx = self.ctx
        if irqfds.era.consumes and ctx is not None:
            ctx.take()
        if order.hook is not None:
            order.hook("irqfd.wakeup.drained", self)
        # An irqfd that is being shut down goes by the work, which the shutdown flushes.
        if not self.active or not self.inject_in_atomic():
            self.inject_work.schedule()

    def inject_in_atomic(self) -> bool:
        """Inject without sleeping; False (-EWOULDBLOCK) unless the GSI's only route is a message.

        (kvm_arch_set_irq_inatomic)
        """
        route = self.route
        if route is None or route.kind != KVM_IRQ_ROUTING_MSI:
            return False
        self.irqfds.gsis.deliver_msi(route.address, route.data)
        return True

    def inject(self) -> None:
        """The inject work. (irqfd_inject)"""
        if order.hook is not None:
            self.touch("irqfd_inject")
        gsis = self.irqfds.gsis
        if gsis.trace.on:
            gsis.trace.emit(KvmIrqfdInject(self.gsi, self.resampler is not None))
        if self.resampler is not None:
            gsis.set_irq(KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, self.gsi, 1)
            return
        gsis.set_irq(KVM_USERSPACE_IRQ_SOURCE_ID, self.gsi, 1)
        if order.hook is not None:
            order.hook("irqfd.inject.between", self)
        gsis.set_irq(KVM_USERSPACE_IRQ_SOURCE_ID, self.gsi, 0)

    # It goes away.

    def deactivate(self) -> None:
        """Unlist and queue the shutdown; irqfds.lock is held. (irqfd_deactivate)"""
        irqfds = self.irqfds
        if not self.active:
            raise Violation("deactivated-twice", self, "irqfd_deactivate", "irqfd_deactivate")
        self.active = False
        irqfds.items = tuple(item for item in irqfds.items if item is not self)
        self.shutdowns += 1
        self.shutdown_work.schedule()
        irqfds.deactivated(self)

    def shutdown(self) -> None:
        """The shutdown work: after it nothing comes from this irqfd and nothing of it is left. (irqfd_shutdown)"""
        self.touch("irqfd_shutdown")
        self.await_assign()
        if order.hook is not None:
            order.hook("irqfd.shutdown.unhook", self)
        self.unhook()
        if order.hook is not None:
            order.hook("irqfd.shutdown.flush", self)
        self.inject_work.flush()
        if order.hook is not None:
            order.hook("irqfd.shutdown.leave", self)
        self.leave()
        if order.hook is not None:
            order.hook("irqfd.shutdown.put", self)
        self.put_contexts()
        trace = self.irqfds.gsis.trace
        if trace.on:
            trace.emit(KvmIrqfdShutdown(self.gsi))
        self.free("irqfd_shutdown")

    def await_assign(self) -> None:
        """Let an assign that is still in its SRCU read section finish attaching."""
        self.irqfds.gsis.irq_srcu.synchronize_expedited()

    def unhook(self) -> None:
        """Leave the wait queue, and consume what was not injected, so that the next owner does not see it."""
        if self.ctx is not None:
            self.ctx.remove_wait_and_drain(self.wait)

    def leave(self) -> None:
        """Leave the GSI's resampler, if a member. (irqfd_resampler_shutdown)"""
        if self.resampler is not None:
            self.irqfds.leave_resampler(self, self.resampler)
            self.resampler = None

    def put_contexts(self) -> None:
        """Give back what assign took."""
        if self.resamplefd is not None:
            self.resamplefd.put()
            self.resamplefd = None
        if self.ctx is not None:
            self.ctx.put()
            self.ctx = None

    def __repr__(self) -> str:
        return f"<Irqfd {self.ctx!r} gsi {self.gsi}{'' if self.active else ' inactive'}>"


class Resampler(Mortal):
    """All resampling irqfds of one GSI. `members` is replaced whole: a walk in progress goes on over the old ones."""

    WIRING: ClassVar[tuple[str, ...]] = ("gsi", "irqfds", "notifier")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("members",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, irqfds: Irqfds, gsi: int) -> None:
        super().__init__()
        self.irqfds = irqfds
        self.gsi = gsi
        self.members: tuple[Irqfd, ...] = ()
        self.notifier = AckNotifier(gsi, self.ack)

    def ack(self) -> None:
        """The GSI's interrupt was acknowledged: lower the shared line once, then ask every member. Even members that
        had asserted nothing are asked, and even if source 0 alone held the line. (irqfd_resampler_ack)
        """
        self.deassert()
        if order.hook is not None:
            order.hook("resampler.ack.lowered", self)
        self.notify()

    def deassert(self) -> None:
        """Lower what all members share."""
        self.irqfds.gsis.set_irq(KVM_IRQFD_RESAMPLE_IRQ_SOURCE_ID, self.gsi, 0)

    def notify(self) -> None:
        """Signal each member's resamplefd once; never sleeps. (irqfd_resampler_notify)"""
        gsis = self.irqfds.gsis
        nesting = gsis.irq_srcu.read_lock() if order.hook is not None else 0
        members = self.members
        if gsis.trace.on:
            gsis.trace.emit(KvmResample(self.gsi, len(members)))
        i = 0
        while i < len(members):
            member = members[i]
            i += 1
            if order.hook is not None:
                order.hook("resampler.notify.member", member)
                member.touch("irqfd_resampler_notify")
            self.notify_member(member)
        if order.hook is not None:
            gsis.irq_srcu.read_unlock(nesting)

    def notify_member(self, member: Irqfd) -> None:
        """Signal one member's resamplefd."""
        if member.resamplefd is not None:
            member.resamplefd.signal()

    def __repr__(self) -> str:
        return f"<Resampler gsi {self.gsi}: {len(self.members)}>"


class Irqfds(State):
    """The irqfds of one VM. `irqchip` is `full`, `split` or `none`: where the VM's interrupt controllers are.

    `irqfd_class` and `resampler_class` are what assign makes; a rule that differs in a step is a subclass.
    """

    WIRING: ClassVar[tuple[str, ...]] = (
        "cleanup_queue",
        "era",
        "files",
        "gsis",
        "inject_queue",
        "irqchip",
        "lock",
        "resampler_lock",
    )
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("items", "resamplers")
    __slots__ = (*WIRING, *BOOKKEEPING)

    irqfd_class: ClassVar[type[Irqfd]] = Irqfd
    resampler_class: ClassVar[type[Resampler]] = Resampler
    flags: ClassVar[int] = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE

    def __init__(
        self,
        files: DescriptorTable,
        gsis: Gsis,
        era: Era,
        irqchip: str,
        inject_queue: WorkQueue,
        cleanup_queue: WorkQueue,
    ) -> None:
        self.files = files
        self.gsis = gsis
        self.era = era
        self.irqchip = irqchip
        self.inject_queue = inject_queue
        self.cleanup_queue = cleanup_queue
        self.lock = Lock("kvm.irqfds.lock", spin=True)
        self.resampler_lock = Lock("kvm.irqfds.resampler_lock")
        self.items: tuple[Irqfd, ...] = ()
        self.resamplers: tuple[Resampler, ...] = ()

    @property
    def srcu(self) -> Srcu:
        """The VM's irq_srcu."""
        return self.gsis.irq_srcu

    # Assign.

    def assign(self, fd: int, gsi: int, flags: int, resamplefd: int) -> None:
        """Bind the eventfd at `fd` to `gsi`, which need not be routed or exist; deliver what it has already.

        OSError EINVAL (flags, irqchip, no eventfd), EBADF, EBUSY (has an irqfd already). On an error nothing is left.
        (kvm_irqfd_assign)
        """
        self.check(flags)
        irqfd = self.irqfd_class(self, gsi)
        file: File | None = None
        try:
            self.prepare(irqfd, flags)
            file = self.files.fget(fd)
            irqfd.ctx = file.eventfd()
            if flags & KVM_IRQFD_FLAG_RESAMPLE:
                self.bind(irqfd, resamplefd)
            nesting = self.srcu.read_lock()
            try:
                self.attach(irqfd)
            finally:
                self.srcu.read_unlock(nesting)
        except OSError:
            # The mirror of what was taken; it was never listed, so nobody else shuts it down.
            irqfd.leave()
            irqfd.put_contexts()
            irqfd.free("kvm_irqfd_assign failed")
            raise
        finally:
            # Only now: while the file is held POLLHUP cannot come, so an irqfd is never shut down half made.
            if order.hook is not None:
                order.hook("irqfd.assign.fput", irqfd)
            self.let_go(file)
        trace = self.gsis.trace
        if trace.on:
            trace.emit(KvmIrqfdAssign(fd, gsi, bool(flags & KVM_IRQFD_FLAG_RESAMPLE)))

    def let_go(self, file: File | None) -> None:
        """Put the eventfd's file, if assign came so far as to look it up."""
        if file is not None:
            file.put()

    def check(self, flags: int) -> None:
        """Refuse what could not work: unknown flags, no chip, a resampler without EOIs from the kernel's IOAPIC."""
        if flags & ~self.flags:
            raise os_error(errno.EINVAL, f"KVM_IRQFD flags {flags:#x}")
        if not self.era.checks_irqchip:
            if self.irqchip == "none":
                raise os_error(errno.EINVAL, "KVM_IRQFD without an irqchip")
        elif self.irqchip == "none" or (flags & KVM_IRQFD_FLAG_RESAMPLE and self.irqchip != "full"):
            raise os_error(errno.EINVAL, f"KVM_IRQFD flags {flags:#x} with irqchip {self.irqchip}")

    def prepare(self, irqfd: Irqfd, flags: int) -> None:
        """What an assign takes before it looks at any descriptor: nothing here."""

    def admit(self, irqfd: Irqfd, ctx: EventfdCtx) -> None:
        """The last word before listing, irqfds.lock held: OSError if another rule forbids it. Here none does."""

    def may_deassign(self, irqfd: Irqfd) -> bool:  # noqa: ARG002
        """Whether deassign may take this irqfd, irqfds.lock held: always here."""
        return True

    def deactivated(self, irqfd: Irqfd) -> None:
        """It was unlisted and its shutdown queued; irqfds.lock held. Nothing depends on it here."""

    def bind(self, irqfd: Irqfd, resamplefd: int) -> None:
        """Find the eventfd that EOIs are told to, and join the GSI's resampler."""
        irqfd.resamplefd = self.files.ctx_fdget(resamplefd)
        if order.hook is not None:
            order.hook("irqfd.assign.resampler", irqfd)
        self.join_resampler(irqfd)
        if order.hook is not None:
            order.hook("irqfd.assign.joined", irqfd)

    def join_resampler(self, irqfd: Irqfd) -> None:
        """Join the GSI's resampler, made here for the first member; return once every EOI will see the new member."""
        with self.resampler_lock:
            resampler = self.find_resampler(irqfd.gsi)
            if resampler is None:
                resampler = self.resampler_class(self, irqfd.gsi)
                self.resamplers = (*self.resamplers, resampler)
                self.gsis.register(resampler.notifier)
            irqfd.resampler = resampler
            resampler.members = (*resampler.members, irqfd)
            self.await_readers()

    def await_readers(self) -> None:
        """Let EOIs end that look at the members as they were."""
        self.srcu.synchronize_expedited()

    def find_resampler(self, gsi: int) -> Resampler | None:
        """The resampler of a GSI."""
        for resampler in self.resamplers:
            if resampler.gsi == gsi:
                return resampler
        return None

    def attach(self, irqfd: Irqfd) -> None:
        """List the irqfd and enter the eventfd's wait queue; if it has events already, queue the injection.

        OSError EBUSY: the eventfd has an irqfd. That counter stays as it is until the next wake-up.
        """
        ctx = irqfd.ctx
        assert ctx is not None
        if self.era.unique:
            # kvm_irqfd_register: wqh.lock inside irqfds.lock. Assign holds the file, so POLLHUP cannot invert them.
            with self.lock:
                self.admit(irqfd, ctx)
                irqfd.route = self.gsis.snapshot(irqfd.gsi)
                if not ctx.add_wait_priority_exclusive(irqfd.wait):
                    raise os_error(errno.EBUSY, f"{ctx!r} has an irqfd on this host")
                self.list(irqfd)
            self.act_on_pending(irqfd, ctx)
            return
        with self.lock:
            for item in self.items:
                if item.ctx is ctx:
                    raise os_error(errno.EBUSY, f"{ctx!r} has an irqfd in this VM")
            self.admit(irqfd, ctx)
            irqfd.route = self.gsis.snapshot(irqfd.gsi)
            self.list(irqfd)
            if self.era.poll_under_lock:
                ctx.add_wait(irqfd.wait)
                self.act_on_pending(irqfd, ctx)
                return
        if order.hook is not None:
            order.hook("irqfd.assign.listed", irqfd)
        ctx.add_wait_priority(irqfd.wait)
        self.act_on_pending(irqfd, ctx)

    def list(self, irqfd: Irqfd) -> None:
        """Make it one of the VM's; irqfds.lock is held."""
        irqfd.active = True
        self.items = (*self.items, irqfd)

    def act_on_pending(self, irqfd: Irqfd, ctx: EventfdCtx) -> None:
        """Events from before the assign are injected once."""
        if order.hook is not None:
            order.hook("irqfd.assign.attached", irqfd)
            irqfd.touch("kvm_irqfd_assign")
        if ctx.poll() & POLLIN:
            irqfd.inject_work.schedule()

    # Deassign.

    def deassign(self, fd: int, gsi: int) -> None:
        """Unbind the eventfd at `fd` from `gsi`; once this returns nothing comes from it. No match is no error.

        OSError EBADF, EINVAL (no eventfd). (kvm_irqfd_deassign)
        """
        ctx = self.files.ctx_fdget(fd)
        if order.hook is not None:
            order.hook("irqfd.deassign", ctx)
        try:
            with self.lock:
                items = self.items
                i = 0
                while i < len(items):
                    item = items[i]
                    i += 1
                    if self.matches(item, ctx, gsi):
                        if not self.may_deassign(item):
                            raise os_error(errno.EBUSY, f"{item!r} is still bound")
                        self.forget_route(item)
                        item.deactivate()
        finally:
            ctx.put()
        if order.hook is not None:
            order.hook("irqfd.deassign.flush", self)
        self.cleanup_queue.flush()

    def forget_route(self, irqfd: Irqfd) -> None:
        """Nobody renews what it cached from here on, so it has to ask."""
        irqfd.route = None

    def matches(self, item: Irqfd, ctx: EventfdCtx, gsi: int) -> bool:
        """A deassign of eventfd and GSI means this irqfd, resampling or not."""
        return item.ctx is ctx and item.gsi == gsi

    def hang_up(self, irqfd: Irqfd) -> None:
        """The eventfd's last file reference went; wqh.lock is held. (irqfd_wakeup, EPOLLHUP)"""
        with self.lock:
            if irqfd.active:
                irqfd.deactivate()

    def release(self) -> None:
        """The VM's descriptor was closed: all irqfds go. vCPUs may run on, with no resampler left.

        (kvm_irqfd_release)
        """
        if order.hook is not None:
            order.hook("irqfd.release", self)
        with self.lock:
            items = self.items
            i = 0
            while i < len(items):
                items[i].deactivate()
                i += 1
        self.cleanup_queue.flush()

    def leave_resampler(self, irqfd: Irqfd, resampler: Resampler) -> None:
        """Leave; the last member takes the resampler down and lowers what it may have left high.

        If others stay, the line stays as it is until their next EOI. (irqfd_resampler_shutdown)
        """
        with self.resampler_lock:
            resampler.members = tuple(member for member in resampler.members if member is not irqfd)
            if resampler.members:
                self.srcu.synchronize_expedited()
                return
            self.resamplers = tuple(r for r in self.resamplers if r is not resampler)
            self.gsis.unregister(resampler.notifier)
            if order.hook is not None:
                order.hook("irqfd.shutdown.lower", resampler)
            resampler.deassert()
            resampler.free("irqfd_resampler_shutdown")

    # What others tell us.

    def update_routes(self) -> None:
        """The routing table changed: renew what each irqfd cached. (kvm_irq_routing_update)"""
        with self.lock:
            for item in self.items:
                item.route = self.gsis.snapshot(item.gsi)

    def notify_resampler(self, gsi: int) -> bool:
        """Signal a GSI's resampler without lowering anything; False if it has none. (kvm_notify_irqfd_resampler)"""
        nesting = self.srcu.read_lock()
        resampler = self.find_resampler(gsi)
        if resampler is not None:
            resampler.notify()
        self.srcu.read_unlock(nesting)
        return resampler is not None
