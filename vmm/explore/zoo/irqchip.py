"""Bugs of the irqchip as a whole: scanned before it is made, exchanged under who uses it, and that of another
architecture.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from devices.ioapic_kvm import KvmIoApic
from vmm.explore import rules
from vmm.explore.board import Parts
from vmm.explore.chip import Chips, MortalApic
from vmm.explore.consumer import IntxUser
from vmm.explore.parts import GSI, point
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC
from vmm.order import Lock, Mortal, State, Violation

if TYPE_CHECKING:
    from devices.ioapic import IoApic
    from vmm.explore.board import Board

NOW = Setup("resample")


def _monitor(kind: type[State]) -> Setup:
    return Setup("resample", None, None, Parts(monitor=kind))


# A VM whose irqchip is made later, or never.


class LateChips(Chips):
    """The chips of a VM that may have none yet: then no CPU has run, and nothing is settled."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def settle(self) -> None:
        if self.ioapic in self.bus.ioapics:
            super().settle()


class ScansUnchecked(MortalApic):
    """The scan asks the VM's I/O APIC, without a look whether it has one."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def _scan(self) -> None:
        self.scan_requested = False
        ioapic: IoApic = next(iter(self.bus.ioapics), None)  # type: ignore[assignment]  # kvm->arch.vioapic
        self.eoi_vectors, self.stale_eoi = ioapic.eoi_vectors(self)


class LateUnchecked(LateChips):
    """Its CPU scans what may not be there."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()
    apic_class = ScansUnchecked


class NewVm(State):
    """A VM that is being set up: an irqchip is made before the first CPU or not at all, and a CPU may do without.

    `starved`: there is no memory left for the routes.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("board", "lock")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("created_vcpus", "starved")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, board: Board) -> None:
        self.board = board
        self.lock = Lock("kvm.lock")
        self.created_vcpus = 0
        self.starved = False
        board.chips.ioapic.close()
        board.chips.lapics[0].scan_requested = False

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: EINVAL once there is a CPU; ENOMEM gives back what was made."""
        chips = self.board.chips
        with self.lock:
            if self.created_vcpus:
                return
            chips.ioapic.reset()
            chips.bus.attach_ioapic(chips.ioapic)
            point("kvm.create-irqchip.routes", self)
            if self.starved:
                chips.ioapic.close()

    def starve(self) -> None:
        """Somebody else takes the memory."""
        self.starved = True

    def create_vcpu(self) -> None:
        """KVM_CREATE_VCPU"""
        with self.lock:
            self.created_vcpus += 1

    def set_sint(self) -> None:
        """KVM_SET_MSRS of HV_X64_MSR_SINT6: its vector's EOI may have to be told. (kvm_hv_synic, synic_set_sint)"""
        self.board.chips.lapics[0].scan_requested = True

    def run_vcpu(self) -> None:
        """KVM_RUN (vcpu_enter_guest)"""
        self.board.chips.lapics[0].enter_guest()


def run_before_it_is_made(board: Board) -> None:
    """A CPU is made and runs, with a scan requested, while another thread makes the irqchip."""
    vm = NewVm(board)
    board.state(vm)
    board.thread("user").run("create irqchip", vm.create_irqchip)
    board.thread("other").run("no memory", vm.starve)
    vcpu = board.thread("vcpu")
    vcpu.run("create", vm.create_vcpu)
    vcpu.run("SINT", vm.set_sint)
    vcpu.run("run", vm.run_vcpu)


# Who wants to know that the irqchip was exchanged.


class Listener(State):
    """One who may be on the list."""

    __slots__ = ()

    def irqchip_changed(self) -> None:
        """There is another irqchip now."""
        raise NotImplementedError


class ChangeList(State):
    """Who is told. Members know their neighbours only, so to take out who is not in is to follow a NULL pointer.

    (kvm_irqchip_add_change_notifier, a NotifierList of QEMU's)
    """

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("members",)
    __slots__ = BOOKKEEPING

    def __init__(self) -> None:
        self.members: tuple[Listener, ...] = ()

    def add(self, listener: Listener) -> None:
        """Tell it from now on."""
        self.members = (listener, *self.members)

    def remove(self, listener: Listener) -> None:
        """Do not tell it any more. Only for who was added."""
        if listener not in self.members:
            raise Violation("S18", listener, "was never added to the list of who is told of another irqchip", "removed")
        self.members = tuple(other for other in self.members if other is not listener)

    def notify(self) -> None:
        """(kvm_irqchip_change_notify)"""
        members = self.members
        i = 0
        while i < len(members):
            members[i].irqchip_changed()
            i += 1


class AssignedDevice(Mortal, Listener):
    """A device of the host's for the guest, with an interrupt pin or without; one without has nobody to tell."""

    WIRING: ClassVar[tuple[str, ...]] = ("changes", "has_pin", "name")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = WIRING

    def __init__(self, changes: ChangeList, name: str, has_pin: bool) -> None:
        super().__init__()
        self.changes = changes
        self.name = name
        self.has_pin = has_pin

    def __repr__(self) -> str:
        return f"<device {self.name}>"

    def irqchip_changed(self) -> None:
        self.touch("vfio_irqchip_change")

    def realize(self, display: bool = True) -> None:
        """Interrupts first; what was set up goes again if there is no display for it later."""
        if self.has_pin:
            self.changes.add(self)
        point("vfio.realize", self)
        if not display:
            self.stop_listening()

    def stop_listening(self) -> None:
        """Who never listened has nothing to take back."""
        if self.has_pin:
            self.changes.remove(self)

    def unplug(self) -> None:
        """exit, finalize"""
        self.stop_listening()
        self.free("vfio_instance_finalize")


class UnregistersAlways(AssignedDevice):
    """It is taken from the list whether or not it is on it."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def stop_listening(self) -> None:
        self.changes.remove(self)


def plugged_without_pin(board: Board) -> None:
    """A device without an interrupt pin fails to realize, beside one that has a pin and comes and goes."""
    kind: type[AssignedDevice] = board.parts.monitor or AssignedDevice
    changes = ChangeList()
    a, b = kind(changes, "a", True), kind(changes, "b", False)
    board.state(changes, a, b)
    user = board.thread("user")
    user.run("plug a", a.realize)
    user.run("plug b, no display", lambda: b.realize(display=False))
    user.run("unplug a", a.unplug)
    board.thread("vcpu").run("negotiate", changes.notify)
    board.at_rest(lambda: f"S18: {changes.members} are told, and none is plugged" if changes.members else None)


# A machine that negotiates its irqchip with the guest: XICS or XIVE.


class Irqchip(State):
    """The irqchip that KVM has now. The other one keeps what it has, and nobody looks at it. (xics_on_xive)"""

    WIRING: ClassVar[tuple[str, ...]] = ("board", "changes", "first")
    VISIBLE: ClassVar[tuple[str, ...]] = ("exchanged",)
    __slots__ = (*WIRING, *VISIBLE)

    def __init__(self, board: Board, changes: ChangeList) -> None:
        """The one that the board has is the second; the first is as after power-on, every pin masked."""
        chips, vm = board.chips, board.vm
        self.board = board
        self.changes = changes
        self.exchanged = False
        chips.ioapic.close()
        board.pin.mask()
        self.first: KvmIoApic = KvmIoApic(
            chips.bus, None, vm.trace, vm.ioapic_acks, vm.irqfds.inject_queue, "first ioapic"
        )
        self.first.resample_on_unmask = vm.era.resample_on_unmask
        vm.gsis.chips[KVM_IRQCHIP_IOAPIC] = self

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = False) -> int:
        """Drive a pin of the one that there is now."""
        ioapic = self.board.chips.ioapic if self.exchanged else self.first
        return ioapic.set_irq(pin, source, level, line_status)

    def exchange(self) -> None:
        """The guest has chosen: the first goes, the second comes with the same routes, and who listens is told.

        (h_client_architecture_support, set_active_intc)
        """
        chips = self.board.chips
        self.first.close()
        self.exchanged = True
        chips.bus.attach_ioapic(chips.ioapic)
        point("irqchip.exchanged", self)
        self.changes.notify()


class RoutedUser(IntxUser, Listener):
    """Who has a device's INTx on an irqfd, and sees to it that it is on the irqchip that there is."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("route",)
    __slots__ = BOOKKEEPING

    def __init__(self, board: Board, name: str) -> None:
        super().__init__(board, name)
        self.route = board.vm.gsis.snapshot(GSI)

    def routes_changed(self) -> None:
        """Perhaps of another pin. (vfio_intx_routing_notifier)"""
        route = self.board.vm.gsis.snapshot(GSI)
        if route != self.route:
            self.route = route
            self.update()

    def irqchip_changed(self) -> None:
        """Whatever the route is. (vfio_irqchip_change)"""
        self.update()

    def update(self) -> None:
        """The irqfd anew, and an unmask in case an EOI was missed. (vfio_intx_update)"""
        self.mask()
        self.deassign()
        self.lower()
        self.assign()
        self.unmask_intx()


class EqualRouteIsNothing(RoutedUser):
    """Another irqchip is looked at as another route is."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def irqchip_changed(self) -> None:
        self.routes_changed()


def exchanged_at_boot(board: Board) -> None:
    """A device interrupts while the guest boots, chooses another irqchip, and then unmasks its pin there."""
    kind: type[RoutedUser] = board.parts.monitor or RoutedUser
    user = kind(board, "a")
    changes = ChangeList()
    changes.add(user)
    irqchip = Irqchip(board, changes)
    board.state(irqchip)
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.run("negotiate", irqchip.exchange)
    vcpu.unmask()
    vcpu.interrupt(serve=True)


# Arm's: a device's interrupt is mapped from the host's GIC to the guest's.


class MappedIrq(State):
    """A level-triggered interrupt of the host's that is one of the guest's. The host sees it rise, and no more of it
    while it is active there: `line_level` is what was seen last. (struct vgic_irq with hw)

    `high`: the device's line. `host_active`: taken at the host's GIC and not deactivated; what the guest ends in its
    list register is deactivated there as well.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("irq_lock",)
    VISIBLE: ClassVar[tuple[str, ...]] = ("active", "enabled", "line_level")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("high", "host_active")
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self) -> None:
        self.irq_lock = Lock("vgic.irq_lock", spin=True)
        self.active = False
        self.enabled = True
        self.line_level = False
        self.high = False
        self.host_active = False

    def __repr__(self) -> str:
        return "<interrupt of the GIC>"

    # The host's side.

    def drive(self, level: bool) -> None:
        """The device."""
        self.high = level

    def rises(self) -> bool:
        """The host's GIC interrupts."""
        return self.high and not self.host_active

    def inject(self) -> None:
        """Its handler. (kvm_vgic_inject_irq)"""
        self.host_active = True
        with self.irq_lock:
            self.line_level = True

    # What the guest does.

    def disable(self) -> None:
        """GICD_ICENABLER"""
        with self.irq_lock:
            self.enabled = False

    def enable(self) -> None:
        """GICD_ISENABLER (vgic_mmio_write_senable)"""
        with self.irq_lock:
            self.resample()
            self.enabled = True

    def resample(self) -> None:
        """What the line is now. If it fell unseen, let the host's GIC tell us of its next rise."""
        was_high = self.line_level
        self.line_level = self.high
        if was_high and not self.high and not self.active:
            self.host_active = False

    def pending(self) -> bool:
        """A CPU that enters the guest has it in a list register."""
        return self.enabled and self.line_level and not self.active

    def take(self) -> None:
        """GICC_IAR. The level is lowered as the list register is filled. (vgic_v2_populate_lr)"""
        with self.irq_lock:
            self.line_level = False
            self.active = True

    def end(self) -> None:
        """GICC_EOIR"""
        with self.irq_lock:
            self.active = False
            self.host_active = False


class EnablesCached(MappedIrq):
    """What was seen last is good enough."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def resample(self) -> None:
        pass


def polled_while_disabled(board: Board) -> None:
    """A driver disables its interrupt, serves the device, and enables it again; then the device wants service anew."""
    kind: type[MappedIrq] = board.parts.monitor or MappedIrq
    irq = kind()
    board.state(irq)
    board.worker("host irq", irq.inject, irq.rises)
    device = board.thread("device")
    device.run("assert", lambda: irq.drive(True))
    device.run("assert again", lambda: irq.drive(True), when=lambda: board.results("driver")[-1:] == ("enable = ok",))

    def enable() -> None:
        quiet, finished = board.is_quiet(1), board.finished()
        irq.enable()
        if quiet and board.is_quiet(1) and finished == board.finished() and rules.s11(irq.pending(), irq.high):
            board.report(Violation("S11", irq, "enabled, and injected though its line is low"))

    driver = board.thread("driver")
    driver.run("disable", irq.disable)
    driver.run("serve", lambda: irq.drive(False))
    driver.run("enable", enable)
    vcpu = board.thread("vcpu")
    vcpu.run("take", irq.take, when=irq.pending)
    vcpu.run("serve", lambda: irq.drive(False))
    vcpu.run("end", irq.end)

    def lost() -> str | None:
        unseen = irq.high and irq.enabled and not irq.line_level and not irq.active
        return "L1: the line is high and enabled, and nobody has seen it rise" if unseen else None

    board.at_rest(lost)


BUGS = (
    Bug(
        "Z43",
        "the I/O APIC is scanned before it is made",
        "e97f852fd456, CVE-2018-19407",
        ("raised AttributeError",),
        run_before_it_is_made,
        Setup("resample", None, None, Parts(chips=LateUnchecked)),
        Setup("resample", None, None, Parts(chips=LateChips)),
        "what there is is scanned (e97f852fd456)",
    ),
    Bug(
        "Z45",
        "what a disabled line was is injected when it is enabled",
        "16e604a437c8, the GIC's cousin of Z26",
        ("S11",),
        polled_while_disabled,
        _monitor(EnablesCached),
        NOW,
    ),
    Bug(
        "Z72",
        "a listener that was never registered is unregistered",
        "QEMU 0446f81217",
        ("S18",),
        plugged_without_pin,
        _monitor(UnregistersAlways),
        NOW,
    ),
    Bug(
        "Z73",
        "the irqchip is exchanged under an irqfd, and the route is the same",
        "QEMU c5478fea27",
        ("L1",),
        exchanged_at_boot,
        _monitor(EqualRouteIsNothing),
        NOW,
    ),
)
