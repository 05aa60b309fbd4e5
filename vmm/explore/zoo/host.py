"""Bugs of the host's side: interrupts that are masked lazily, triggers without their gate, tokens, late works."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, ClassVar

from devices.vfio_irqs import IntxContext, VfioIntx
from vmm import order
from vmm.explore.board import Parts
from vmm.explore.parts import GSI, Hardware, point
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.files import os_error
from vmm.order import Lock, Mortal, State, Violation

if TYPE_CHECKING:
    from vmm.explore.board import Board
    from vmm.kernel.files import EventfdCtx
    from vmm.order import WorkQueue

NOW = Setup("resample")


def _monitor(kind: type[State]) -> Setup:
    return Setup("resample", None, None, Parts(monitor=kind))


# A device from before PCI 2.3: it has no INTx disable and no status, so it is masked at the host's chip.


class OldHardware(Hardware):
    """The host's chip raises its interrupt whenever the line is high and not masked there."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("dropped",)
    __slots__ = BOOKKEEPING

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.dropped = False
        """The chip took the line's rise, and nobody handled it: it wants to see the line rise anew."""

    def pending(self) -> bool:
        """What is masked cannot be asked."""
        return self.level and not self.depth

    def assert_intx(self) -> None:
        self.level = True
        if self.depth:
            self.taken_masked()

    def taken_masked(self) -> None:
        """The line rises while it is disabled: the chip has it masked, and does not see it. (IRQ_DISABLE_UNLAZY)"""

    def serve(self) -> None:
        self.level = self.dropped = False

    def unmask(self) -> None:
        """The chip looks at the line by itself."""
        self.depth -= 1

    def fires(self) -> bool:
        """The chip interrupts."""
        return self.level and not self.depth and not self.dropped

    def fire(self) -> None:
        """The hard interrupt."""
        self.intx.handler()


class LazyHardware(OldHardware):
    """disable_irq only makes a note; what rises then is taken, acknowledged and dropped."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def taken_masked(self) -> None:
        self.dropped = True


def rises_again(board: Board) -> None:
    """The guest serves the device, and it interrupts again before the EOI takes the mask back."""
    hardware = board.vfio("a")
    assert isinstance(hardware, OldHardware)
    board.worker("host irq", hardware.fire, hardware.fires)
    device = board.thread("device a")
    device.assert_intx("a")
    device.assert_intx("a", when=lambda: not hardware.level)
    vcpu = board.thread("vcpu")
    vcpu.take(serve=True)
    vcpu.eoi()

    def stalled() -> str | None:
        waits = hardware.level and not board.pin.on_its_way()
        return "L1: a wants service, and its chip waits for a rise that will not come" if waits else None

    board.at_rest(stalled)


# The request that a device be given back.


class Request(State):
    """VFIO's request eventfd: signalled at hot-unplug, put at release."""

    WIRING: ClassVar[tuple[str, ...]] = ("igate",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("trigger",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, trigger: EventfdCtx) -> None:
        self.igate = Lock("igate")
        self.trigger: EventfdCtx | None = trigger

    def request(self) -> None:
        """The host wants the device back. (vfio_pci_core_request)"""
        with self.igate:
            trigger = self.trigger
            if trigger is not None:
                point("vfio.request", trigger)
                trigger.signal()

    def release(self) -> None:
        """The device's file is closed. (vfio_pci_core_close_device)"""
        with self.igate:
            self.put()

    def put(self) -> None:
        """Under igate."""
        if self.trigger is not None:
            self.trigger.put()
            self.trigger = None


class ReleasesUngated(Request):
    """Release does not take igate."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def release(self) -> None:
        self.put()


def requested_and_released(board: Board) -> None:
    """The host asks for the device while its user closes it."""
    kind: type[Request] = board.parts.monitor or Request
    request = kind(board.held("req"))
    board.files.close(board.fd("req"))  # nobody but VFIO has it now
    board.state(request)
    board.thread("host").run("request", request.request)
    board.thread("user").run("release", request.release)


# The table of interrupt contexts.


class LooksUpFirst(VfioIntx):
    """The context is looked up before the number of contexts says that there is one."""

    __slots__ = ()

    def enable(self, trigger: EventfdCtx | None) -> None:
        if self.ctx is None:
            raise os_error(errno.EINVAL, "INTx has no context 0")
        super().enable(trigger)


def switched_on(board: Board) -> None:
    """INTx is enabled."""
    intx = board.vfio("a", irqfd=False).intx
    trigger = board.held("a.trigger")

    def enable() -> None:
        try:
            intx.enable(trigger)
        except OSError:
            trigger.put()

    board.thread("user").run("enable INTx", enable)
    board.at_rest(lambda: None if intx.ctx is not None else "L2: INTx of a can never be enabled")


# KVM's own device assignment, before VFIO.


class AssignedIrq(Mortal):
    """A host interrupt whose handler queues a work that raises the guest's."""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "work")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("handling", "requested")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board, queue: WorkQueue) -> None:
        super().__init__()
        self.board = board
        self.work = queue.work("assigned.interrupt", self.deliver)
        self.requested = True
        self.handling = False

    def fire(self) -> None:
        """The hard interrupt, if it is requested still."""
        if self.requested:
            self.handling = True
            self.work.schedule()
            self.handling = False

    def deliver(self) -> None:
        """The work. (kvm_assigned_dev_interrupt_work_handler)"""
        self.touch("kvm_assigned_dev_interrupt_work_handler")
        self.board.vm.irq_line(GSI, 1)

    def is_over(self) -> bool:
        """No handler runs."""
        return not self.handling

    def free_irq(self) -> None:
        """No handler runs from here on."""
        self.requested = False
        order.hold_back("free_irq", self, self.is_over)

    def deassign(self) -> None:
        """The interrupt first, then what it has queued. (kvm_free_assigned_irq)"""
        self.free_irq()
        self.work.cancel()
        self.free("kvm_free_assigned_device")


class CancelsFirst(AssignedIrq):
    """What is queued is cancelled first."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def deassign(self) -> None:
        self.work.cancel()
        point("kvm_free_assigned_irq", self)
        self.free_irq()
        self.free("kvm_free_assigned_device")


def assigned_and_freed(board: Board) -> None:
    """The device interrupts while it is deassigned."""
    kind: type[AssignedIrq] = board.parts.monitor or AssignedIrq
    assigned = kind(board, board.vm.irqfds.inject_queue)
    board.state(assigned)
    board.thread("device").run("interrupt", assigned.fire)
    board.thread("user").run("deassign", assigned.deassign)


# The guest's INTx disable.


class UnmasksDisabled(VfioIntx):
    """An unmask does not look whether the guest has disabled INTx."""

    __slots__ = ()

    def may_unmask(self, ctx: IntxContext) -> bool:
        return ctx.masked


def disabled_and_resampled(board: Board) -> None:
    """The guest disables INTx while its EOI asks for an unmask."""
    intx = board.vfio("a").intx
    board.device("a").assert_intx()
    board.thread("resample").signal("a.unmask")
    board.thread("guest").run("disable INTx", lambda: intx.set_virq_disabled(True))
    board.thread("guest's driver").serve("a")


# irq bypass: who has the same token is connected.


class Bypass(State):
    """irq_bypass: consumers by their token, which is an eventfd; one for each."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("consumers",)
    __slots__ = BOOKKEEPING

    def __init__(self) -> None:
        self.consumers: tuple[tuple[str, str], ...] = ()

    def register(self, token: str, consumer: str) -> bool:
        """False (-EBUSY) if the token has one. Who is refused goes on without."""
        if any(other == token for other, _ in self.consumers):
            return False
        self.consumers = (*self.consumers, (token, consumer))
        return True

    def unregister(self, token: str, consumer: str) -> None:
        """Whoever registered is forgotten; who was refused has nothing to take back."""
        self.consumers = tuple(entry for entry in self.consumers if entry != (token, consumer))


class ByToken(Bypass):
    """Whoever has the token is forgotten."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def unregister(self, token: str, consumer: str) -> None:
        found = [entry for entry in self.consumers if entry[0] == token]
        if not found:
            raise Violation("use-after-free", self, f"{consumer} was unregistered by another", "irq_bypass_unregister")
        self.consumers = tuple(entry for entry in self.consumers if entry is not found[0])


def same_token(board: Board) -> None:
    """Two irqfds of one eventfd, in two VMs, come and go; the second was refused."""
    kind: type[Bypass] = board.parts.monitor or Bypass
    bypass = kind()
    board.state(bypass)
    for name in ("first", "second"):
        thread = board.thread(name)

        def register(name: str = name) -> None:
            bypass.register("e1", name)

        def unregister(name: str = name) -> None:
            bypass.unregister("e1", name)

        thread.run("register", register)
        thread.run("unregister", unregister)


BUGS = (
    Bug(
        "Z18",
        "a bypass consumer that was refused unregisters another",
        "4f3dbdf47e15",
        ("use-after-free",),
        same_token,
        _monitor(ByToken),
        NOW,
    ),
    Bug(
        "Z55",
        "a lazily masked line rises, and nobody sees it",
        "8b9f128947dd",
        ("L1",),
        rises_again,
        Setup("resample", None, None, Parts(hardware=LazyHardware)),
        Setup("resample", None, None, Parts(hardware=OldHardware)),
        "it is masked at the chip (8b9f128947dd)",
    ),
    Bug(
        "Z56",
        "the request eventfd is put while it is signalled",
        "b872d0640840",
        ("use-after-free",),
        requested_and_released,
        _monitor(ReleasesUngated),
        NOW,
    ),
    Bug(
        "Z57",
        "a context is looked up before it is counted",
        'stable backports of "vfio/pci: Prepare for dynamic interrupt context storage"',
        ("L2",),
        switched_on,
        Setup("resample", None, None, Parts(intx=LooksUpFirst)),
        NOW,
    ),
    Bug(
        "Z58",
        "an assigned device's work is cancelled before its interrupt is freed",
        "ba4cef31d5a3",
        ("use-after-free",),
        assigned_and_freed,
        _monitor(CancelsFirst),
        NOW,
    ),
    Bug(
        "Z59",
        "an unmask does not mind the guest's INTx disable",
        "vfio_pci_intx_unmask_handler",
        ("S17",),
        disabled_and_resampled,
        Setup("resample", None, None, Parts(intx=UnmasksDisabled)),
        NOW,
    ),
)
