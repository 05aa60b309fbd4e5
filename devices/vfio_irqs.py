"""VFIO's side of one INTx interrupt: auto-mask, unmask, the unmask eventfd, and the virtual INTx disable.

    hardware line high -> handler: mask at the device, masked = True, signal the trigger eventfd
    unmask (ioctl or unmask eventfd): line still high -> stay masked, signal again; else unmask at the device
    guest sets INTx disable -> virq_disabled: masked, nothing is signalled, no unmask until it is cleared

The depth of the hardware mask is 0 or 1 and equals `masked`; whoever signals reads the trigger once. Steps that other
actors may precede are points; `POINTS` names the kernel's function and lock.

Ref: drivers/vfio/pci/vfio_pci_intrs.c, drivers/vfio/virqfd.c; fe9a7082684e (CVE-2024-27437), 810cd4bb5345
(CVE-2024-26810), 18c198c96a81 (CVE-2024-26812), b68e7fa879cd
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar, Protocol

from vmm import order
from vmm.kernel.files import POLLHUP, POLLIN, WaitEntry, os_error
from vmm.order import Lock, Mortal, State, WorkQueue
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kernel.files import DescriptorTable, EventfdCtx
    from vmm.order import Executor
    from vmm.trace import Trace

POINTS = {
    "vfio.intx.handler": "vfio_intx_handler: hard irq, before irqlock",
    "vfio.intx.send": "vfio_send_intx_eventfd: irqlock dropped, before the trigger is read",
    "vfio.intx.signal": "vfio_send_intx_eventfd: trigger read, before eventfd_signal",
    "vfio.intx.unmask": "vfio_pci_intx_unmask_handler: before irqlock",
    "vfio.intx.mask": "vfio_pci_intx_mask: before irqlock",
    "vfio.intx.set-trigger": "vfio_intx_set_signal: trigger exchanged, before synchronize_irq",
    "vfio.intx.enable": "vfio_intx_enable: context filled, before request_irq",
    "vfio.intx.disable": "vfio_intx_disable: before the virqfds are disabled",
    "vfio.intx.free-irq": "vfio_intx_disable: virqfds gone, before free_irq",
    "virqfd.enable": "vfio_virqfd_enable: published, wait entry not yet added",
    "virqfd.disable": "vfio_virqfd_disable: before virqfd_lock",
    "virqfd.shutdown": "virqfd_shutdown: before the wait entry is removed",
}


class VfioIntxInterrupt(Event):
    """The hardware line was taken: masked, and the trigger signalled unless the guest disabled INTx."""

    device: str
    signalled: bool


class VfioIntxUnmask(Event):
    """An unmask was asked for; `pending`: the line was still high, so it stayed masked and was signalled again."""

    device: str
    pending: bool


class IntxHardware(Protocol):
    """A device's interrupt pin as its host driver sees it."""

    def pending(self) -> bool:
        """The device asserts INTx, masked or not (Interrupt Status of a PCI 2.3 function)."""

    def mask(self) -> None:
        """Keep INTx off the line."""

    def unmask(self) -> None:
        """Let INTx reach the line; if it is high then, the interrupt handler is called."""

    def request(self, masked: bool) -> None:
        """Register the interrupt handler, masked or not; it may be called from here."""

    def free(self) -> None:
        """The interrupt handler is not called any more, once those that run have returned."""


class Virqfd(Mortal):
    """An eventfd that calls `handler` in atomic context when it is signalled; if that says so, `inject` runs later.

    Its owner's pointer is the right to shut it down: whoever clears it, under virqfd_lock, queues the shutdown, so
    that POLLHUP and an ioctl cannot both do it.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("flush_work", "handler", "inject_work", "owner", "shutdown_work", "wait")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("ctx",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, owner: IntxContext, ctx: EventfdCtx, handler: Callable[[], bool], thread: Callable[[], None]):
        super().__init__()
        queues = owner.intx
        self.owner = owner
        self.ctx: EventfdCtx | None = ctx
        self.handler = handler
        self.wait = WaitEntry(self.wakeup)
        self.inject_work = queues.events.work("virqfd.inject", thread)
        self.flush_work = queues.cleanup.work("virqfd.flush-inject", self.inject_work.flush)
        self.shutdown_work = queues.cleanup.work("virqfd.shutdown", self.shutdown)

    def wakeup(self, key: int) -> bool:
        """The wait entry's callback, under wqh.lock. (virqfd_wakeup)"""
        if order.hook is not None:
            self.touch("virqfd_wakeup")
        if key & POLLIN:
            if self.ctx is not None:
                self.ctx.take()
            if self.handler():
                self.inject_work.schedule()
        if key & POLLHUP:
            # The eventfd is closing; if nobody has queued the shutdown yet, do.
            self.owner.intx.virqfd_lock.acquire()
            if self.owner.unmask is self:
                self.owner.unmask = None
                self.queue_shutdown()
            self.owner.intx.virqfd_lock.release()
        return False

    def queue_shutdown(self) -> None:
        """The caller cleared the owner's pointer."""
        self.shutdowns += 1
        self.shutdown_work.schedule()

    def shutdown(self) -> None:
        """Unhook, wait for the thread, let go. (virqfd_shutdown)"""
        self.touch("virqfd_shutdown")
        if order.hook is not None:
            order.hook("virqfd.shutdown", self)
        if self.ctx is not None:
            self.ctx.remove_wait_and_drain(self.wait)
        self.inject_work.flush()
        if self.ctx is not None:
            self.ctx.put()
            self.ctx = None
        self.free("virqfd_shutdown")


class IntxContext(Mortal):
    """What lives while INTx is enabled: it goes with the interrupt handler, not with the trigger."""

    WIRING: ClassVar[tuple[str, ...]] = ("intx",)
    VISIBLE: ClassVar[tuple[str, ...]] = ("masked",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("trigger", "unmask")
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, intx: VfioIntx, trigger: EventfdCtx | None) -> None:
        super().__init__()
        self.intx = intx
        self.masked = False
        self.trigger = trigger
        self.unmask: Virqfd | None = None


class VfioIntx(State):
    """The INTx of one device. `ctx` is None unless INTx is the interrupt type in use (`is_intx`).

    Lock order: igate (mutex; every ioctl and the guest's COMMAND writes) -> irqlock (spin).
    """

    WIRING: ClassVar[tuple[str, ...]] = (
        "cleanup",
        "events",
        "files",
        "hardware",
        "igate",
        "irqlock",
        "name",
        "trace",
        "virqfd_lock",
    )
    VISIBLE: ClassVar[tuple[str, ...]] = ("virq_disabled",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("ctx", "handling")
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(
        self, name: str, hardware: IntxHardware, files: DescriptorTable, executor: Executor, trace: Trace
    ) -> None:
        self.name = name
        self.hardware = hardware
        self.files = files
        self.trace = trace
        self.events = WorkQueue("events", executor, 2)
        self.cleanup = WorkQueue("vfio-irqfd-cleanup", executor)
        self.igate = Lock(f"{name}.igate")
        self.irqlock = Lock(f"{name}.irqlock", spin=True)
        self.virqfd_lock = Lock("virqfd_lock", spin=True)
        self.virq_disabled = False
        self.ctx: IntxContext | None = None
        self.handling: tuple[int, ...] = ()
        """Actors inside the hard interrupt handler."""

    # The hardware interrupt.

    def line_changed(self, level: bool) -> None:
        """What the host's interrupt wire is connected to."""
        if level:
            self.handler()

    def handler(self) -> None:
        """The hard interrupt handler: mask, and tell whoever holds the trigger. (vfio_intx_handler)"""
        if order.hook is not None:
            self.handling = (*self.handling, order.actor)  # the core marks it in progress before it calls us
            order.hook("vfio.intx.handler", self)
        ctx = self.ctx
        if ctx is None:
            # free_irq has come first: nobody listens. The line is masked, so that it cannot storm.
            self.hardware.mask()
        else:
            if order.hook is not None:
                ctx.touch("vfio_intx_handler")
            self.irqlock.acquire()
            handled = not ctx.masked and self.hardware.pending()
            if handled:
                ctx.masked = True
                self.hardware.mask()
            self.irqlock.release()
            if handled:
                sent = self.send(ctx)
                if self.trace.on:
                    self.trace.emit(VfioIntxInterrupt(self.name, sent))
        if order.hook is not None:
            self.handling = tuple(who for who in self.handling if who != order.actor)

    def send(self, ctx: IntxContext) -> bool:
        """Signal the trigger, unless the guest disabled INTx; reads the trigger once. (vfio_send_intx_eventfd)"""
        if order.hook is not None:
            order.hook("vfio.intx.send", ctx)
            ctx.touch("vfio_send_intx_eventfd")
        if self.ctx is None or self.virq_disabled:
            return False
        trigger = ctx.trigger
        if trigger is None:
            return False
        if order.hook is not None:
            order.hook("vfio.intx.signal", ctx)
        trigger.signal()
        return True

    def has_no_handler(self) -> bool:
        """No hard interrupt handler runs."""
        return not self.handling

    def synchronize_irq(self) -> None:
        """Return once no hard interrupt handler runs. (synchronize_irq)"""
        if order.hook is not None:
            order.hold_back("synchronize_irq", self, self.has_no_handler)

    # Masks. The ioctls hold igate.

    def mask(self) -> None:
        """Mask, whether or not anything is pending. Twice is once. (__vfio_pci_intx_mask)"""
        if order.hook is not None:
            order.hook("vfio.intx.mask", self)
        self.irqlock.acquire()
        ctx = self.ctx
        if ctx is None:
            self.hardware.mask()  # INTx is not in use: let the device's bit follow the guest's
        elif not ctx.masked:
            ctx.masked = True
            self.hardware.mask()
        self.irqlock.release()

    def unmask(self) -> None:
        """Unmask; if the line is still high, signal again instead. (__vfio_pci_intx_unmask)"""
        if self.unmask_handler():
            self.resend()

    def resend(self) -> None:
        """The line was high at the unmask: signal the trigger once more. Also the virqfd's thread."""
        ctx = self.ctx
        if ctx is not None:
            self.send(ctx)

    def unmask_handler(self) -> bool:
        """Unmask at the device unless it is pending; True: stay masked and signal again. Atomic.

        On an interrupt that is not masked it does nothing. (vfio_pci_intx_unmask_handler)
        """
        if order.hook is not None:
            order.hook("vfio.intx.unmask", self)
        again = False
        self.irqlock.acquire()
        ctx = self.ctx
        if ctx is None:
            if not self.virq_disabled:
                self.hardware.unmask()
        elif self.may_unmask(ctx):
            if order.hook is not None:
                ctx.touch("vfio_pci_intx_unmask_handler")
            again = self.hardware.pending()
            ctx.masked = again
            if not again:
                self.hardware.unmask()  # not pending, so this does not raise the line
            if self.trace.on:
                self.trace.emit(VfioIntxUnmask(self.name, again))
        self.irqlock.release()
        return again

    def may_unmask(self, ctx: IntxContext) -> bool:
        """There is a mask to take back, and the guest has not disabled INTx."""
        return ctx.masked and not self.virq_disabled

    def set_virq_disabled(self, disabled: bool) -> None:
        """The guest wrote INTx disable of COMMAND. (vfio_basic_config_write)"""
        with self.igate:
            if disabled and not self.virq_disabled:
                self.virq_disabled = True
                self.mask()
            elif not disabled and self.virq_disabled:
                self.virq_disabled = False
                self.unmask()

    # Enable and disable; igate is held.

    def enable(self, trigger: EventfdCtx | None) -> None:
        """Start with the mask that the guest's INTx disable asks for; takes over the trigger. (vfio_intx_enable)

        The mask is in place before the handler can run, so it is never applied twice.
        """
        ctx = IntxContext(self, trigger)
        ctx.masked = self.virq_disabled
        if order.hook is not None:
            order.hook("vfio.intx.enable", ctx)
        self.ctx = ctx
        self.hardware.request(ctx.masked)

    def set_trigger(self, trigger: EventfdCtx | None) -> None:
        """Exchange the trigger; the old one is put only when nobody can be signalling it. (vfio_intx_set_signal)"""
        ctx = self.ctx
        assert ctx is not None
        old, ctx.trigger = ctx.trigger, trigger
        if old is None:
            return
        if order.hook is not None:
            order.hook("vfio.intx.set-trigger", ctx)
        self.synchronize_irq()
        self.flush_virqfd(ctx)
        old.put()

    def disable(self) -> None:
        """Stop: virqfds first, then the handler, then the trigger. (vfio_intx_disable)"""
        ctx = self.ctx
        if ctx is None:
            return
        if order.hook is not None:
            order.hook("vfio.intx.disable", ctx)
        self.disable_virqfd(ctx)
        if order.hook is not None:
            order.hook("vfio.intx.free-irq", ctx)
        self.hardware.free()
        self.synchronize_irq()
        self.ctx = None
        if ctx.trigger is not None:
            ctx.trigger.put()
            ctx.trigger = None
        ctx.free("vfio_intx_disable")

    # The unmask eventfd.

    def enable_virqfd(self, fd: int) -> None:
        """Unmask whenever the eventfd at `fd` is signalled. OSError EBADF, EINVAL, EBUSY. (vfio_virqfd_enable)"""
        ctx = self.ctx
        assert ctx is not None
        file = self.files.fget(fd)
        try:
            virqfd = Virqfd(ctx, file.eventfd(), self.unmask_handler, self.resend)
            with self.virqfd_lock:
                busy = ctx.unmask is not None
                if not busy:
                    ctx.unmask = virqfd
            if busy:
                assert virqfd.ctx is not None
                virqfd.ctx.put()
                virqfd.free("vfio_virqfd_enable")
                raise os_error(errno.EBUSY, f"{self.name} has an unmask eventfd")
            if order.hook is not None:
                order.hook("virqfd.enable", virqfd)
            assert virqfd.ctx is not None
            virqfd.ctx.add_wait(virqfd.wait)
            if virqfd.ctx.poll() & POLLIN and virqfd.handler():
                virqfd.inject_work.schedule()
        finally:
            file.put()

    def disable_virqfd(self, ctx: IntxContext) -> None:
        """Once this returns the unmask eventfd does nothing any more. (vfio_virqfd_disable)"""
        if order.hook is not None:
            order.hook("virqfd.disable", ctx)
        with self.virqfd_lock:
            virqfd, ctx.unmask = ctx.unmask, None
            if virqfd is not None:
                virqfd.queue_shutdown()
        # Even if we queued nothing: a POLLHUP may have, and is to be over too.
        self.cleanup.flush()

    def flush_virqfd(self, ctx: IntxContext) -> None:
        """Wait for a thread that may still signal the old trigger. (vfio_virqfd_flush_thread)"""
        with self.virqfd_lock:
            if ctx.unmask is not None:
                ctx.unmask.flush_work.schedule()
        self.cleanup.flush()
