"""Bugs of the EOI: whom it tells, whether it looks at the line again, the storm limiter, and lazy EOI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from devices import lapic_registers
from devices.ioapic import DESTINATION_SHIFT, LEVEL, LOGICAL, VECTOR
from devices.ioapic_kvm import RTC_PIN, KvmIoApic
from devices.ioapic_qemu import QemuIoApic
from vmm import order
from vmm.explore.board import Parts
from vmm.explore.chip import Chips
from vmm.explore.parts import GSI
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.explore.zoo.ioapic import two_sources
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.order import Violation

if TYPE_CHECKING:
    from devices.ioapic import IoApic, IoApicState
    from devices.lapic_core import LapicCore
    from vmm.explore.board import Board

NOW = Setup("resample")
TICK = 0x71


def _with(ioapic: type[IoApic], era: str | None = None) -> Setup:
    return Setup("resample", era, None, Parts(ioapic=ioapic))


def _split(ioapic: type[IoApic] | None = None) -> Setup:
    return Setup("resample", None, None, Parts(ioapic=ioapic), "split")


class AcksLocked(KvmIoApic):
    """The ack notifiers run with the chip's lock held."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def ack(self, pin: int) -> None:
        self.acks.notify_acked(pin)


def plain_eoi(board: Board) -> None:
    """One interrupt, one EOI."""
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()


class DoesNotLookAgain(KvmIoApic):
    """An EOI ends the interrupt, and nobody looks whether the line is still high."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def again(self, pin: int) -> None:
        pass


class TellsNobody(KvmIoApic):
    """An irqchip whose EOI has no hook for ack notifiers."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def ack(self, pin: int) -> None:
        pass


def advertised(board: Board) -> None:
    """The capability is there and the assign was accepted: a device interrupts, is served, and is to be unmasked."""
    board.vfio("a")
    board.throttle(2)
    board.thread("device a").assert_intx("a")
    board.guest()
    board.eventually("L6")


class NeverPauses(KvmIoApic):
    """However often an EOI finds the line high, the next delivery comes at once."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def again(self, pin: int) -> None:
        self.evaluate(pin)


def storm(board: Board) -> None:
    """A guest that ends its interrupt before it silences the device, which it gets to only between interrupts."""
    pin = board.pin
    board.throttle(2, when=lambda: not pin.held or pin.requested or pin.in_service)
    board.vm.irq_line(GSI, 1)
    board.guest(serve=False)
    board.thread("guest's thread").line(0, when=lambda: not pin.requested and not pin.in_service)
    board.eventually("L3")


class CancelsLate(Chips):
    """CPUs are freed before the postponed delivery is cancelled."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def destroy(self) -> None:
        self.free_cpus()
        self.stop_chips()


def destroyed_in_storm(board: Board) -> None:
    """The VM is destroyed while the storm limiter has a delivery postponed."""
    board.throttle(2)
    board.vm.irq_line(GSI, 1)
    vcpu = board.thread("vcpu")
    vcpu.interrupt()
    vcpu.interrupt()
    vcpu.run("destroy", board.chips.destroy)


class CountsByVector(QemuIoApic):
    """The storm limiter counts per vector in an array of pins."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def again(self, pin: int) -> None:
        self.eoi_runs[self.redir[pin] & VECTOR] += 1
        super().again(pin)


def high_at_eoi(board: Board) -> None:
    """The line is still high at the EOI."""
    ioapic = board.chips.ioapic
    board.thread("device").run("line 1", lambda: ioapic.set_irq(GSI, 0, True))
    board.thread("vcpu").interrupt()


class RestoresQuietly(KvmIoApic):
    """Restore sets the registers and looks at no pin."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def set_state(self, state: IoApicState) -> None:
        with self.lock:
            self._load(state)
            self.irr = state.irr


def restored_in_storm(board: Board) -> None:
    """Saved and restored while a delivery is postponed: the pin is high, unmasked, and waits for no EOI."""
    board.throttle(2)
    board.vm.irq_line(GSI, 1)
    ioapic = board.chips.ioapic
    vcpu = board.thread("vcpu")
    vcpu.interrupt()
    vcpu.interrupt()
    vcpu.run("save, restore", lambda: ioapic.set_state(ioapic.get_state()))


class CountsRefused(KvmIoApic):
    """A tick that no CPU took is counted as what the delivery returned, -1."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def await_ticks(self, delivered: int) -> None:
        self.rtc_pending = delivered


def tick_to_nobody(board: Board) -> None:
    """A tick of the RTC goes to a CPU that there is not, and after the guest has seen to that another one comes."""
    lapic, vm = board.chips.lapics[0], board.vm
    lapic.write(lapic_registers.LDR, 3 << 24)  # two bits: so each CPU is asked, and -1 is that there was none
    pin = board.chips.pin(RTC_PIN, TICK)
    pin.write(TICK | LOGICAL, high=0x80 << DESTINATION_SHIFT - 32)
    vm.set_gsi_routing([Route.irqchip(RTC_PIN, KVM_IRQCHIP_IOAPIC, RTC_PIN)])
    guest = board.thread("guest")
    guest.run("tick", lambda: vm.irq_line_status(RTC_PIN, 1))
    guest.run("no tick", lambda: vm.irq_line_status(RTC_PIN, 0))
    guest.run("to CPU 0", lambda: pin.write(pin.entry, high=1 << DESTINATION_SHIFT - 32))
    guest.run("tick", lambda: vm.irq_line_status(RTC_PIN, 1))

    def lost() -> str | None:
        return None if lapic.irr >> TICK & 1 else "L1: a tick is coalesced with one that nobody has"

    board.at_rest(lost)


# Lazy EOI: with AVIC the CPU ends edge-triggered interrupts without an exit.


class LazyEoi(KvmIoApic):
    """Whoever drives an edge-triggered pin first looks whether the last interrupt is over, and notes it: for the RTC's
    ticks only. (ioapic_lazy_update_eoi as of 77377064c3a9)
    """

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("nested",)
    __slots__ = BOOKKEEPING

    def __init__(self, *rest: Any, **named: Any) -> None:
        self.nested: tuple[int, ...] = ()
        super().__init__(*rest, **named)

    def drive(self, pin: int, level: bool, line_status: bool) -> int:
        if level and self.is_lazy(pin):
            self.lazy_update_eoi(pin)
        return super().drive(pin, level, line_status)

    def is_lazy(self, pin: int) -> bool:
        """The CPU may have ended the pin's interrupt without telling."""
        return not self.redir[pin] & LEVEL

    def lazy_update_eoi(self, pin: int) -> None:
        """Look for a CPU that has it neither pending nor in service. The depth is a ghost."""
        entry = self.redir[pin]
        vector = entry & VECTOR
        if self.nested.count(order.actor) == 3:
            raise Violation("S16", self, "set_irq, ack and set_irq call each other without an end")
        self.nested = (*self.nested, order.actor)
        lapics = self.bus.lapics
        i = 0
        while i < len(lapics):
            lapic = lapics[i]
            i += 1
            pending = (lapic.irr | lapic.isr) >> vector & 1
            if not pending and lapic.matches(entry >> DESTINATION_SHIFT, bool(entry & LOGICAL)):
                self.is_over(pin, lapic)
                break
        i = self.nested.index(order.actor)
        self.nested = (*self.nested[:i], *self.nested[i + 1 :])

    def is_over(self, pin: int, lapic: LapicCore) -> None:  # noqa: ARG002
        """The last interrupt is over: one tick less to wait for."""
        if self.rtc_cpus.pop(lapic.index, None) is not None:
            self.rtc_pending = max(self.rtc_pending - 1, 0)


class LazyEoiAcks(LazyEoi):
    """It tells the ack notifiers. (8be8f932e3db)"""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def is_over(self, pin: int, lapic: LapicCore) -> None:  # noqa: ARG002
        self.eoi_pin(pin, end=False)


class LazyEoiForAll(LazyEoiAcks):
    """It does so for level-triggered pins as well. (f458d039db7e)"""

    __slots__ = ()

    def is_lazy(self, pin: int) -> bool:  # noqa: ARG002
        return True


def lazy_level(board: Board) -> None:
    """A level-triggered pin that user space raises, too."""
    board.bind("e1", "e2")
    board.thread("user").line(1)
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()


def lazy_edge(board: Board) -> None:
    """The guest shuts down and makes the pin edge-triggered under a live resampler; user space raises it, too."""
    board.bind("e1", "e2")
    board.thread("user").line(1)
    board.thread("device").signal("e1")
    board.thread("guest").run("make edge", board.pin.make_edge)
    board.thread("vcpu").interrupt()


BUGS = (
    Bug(
        "Z25",
        "RESAMPLE is offered by an irqchip whose EOI tells nobody",
        '"KVM: PPC: Make KVM_CAP_IRQFD_RESAMPLE support platform dependent", 2022',
        ("L6",),
        advertised,
        _with(TellsNobody),
        NOW,
    ),
    Bug(
        "Z27",
        "ack notifiers run under the chip's lock",
        "the comment in kvm_ioapic_update_eoi_one",
        ("deadlock",),
        plain_eoi,
        _with(AcksLocked),
        NOW,
    ),
    Bug(
        "Z30",
        "lazy EOI of a level pin calls itself without an end",
        "8be8f932e3db, fixed in 5.7",
        ("S16",),
        lazy_level,
        _with(LazyEoiForAll, "5.11"),
        _with(LazyEoiAcks, "5.11"),
        "lazy for edges only (8be8f932e3db)",
    ),
    Bug(
        "Z31",
        "lazy EOI at shutdown calls itself without an end",
        "77377064c3a9, CVE-2020-27152",
        ("S16",),
        lazy_edge,
        _with(LazyEoiAcks, "5.11"),
        _with(LazyEoi, "5.11"),
        "it tells no notifier (77377064c3a9)",
    ),
    Bug(
        "Z32",
        "a guest that ends before it serves gets nothing done",
        "184564efae4d; QEMU 958a01dab8",
        ("L3",),
        storm,
        _with(NeverPauses),
        NOW,
    ),
    Bug(
        "Z33",
        "a postponed delivery outlives the CPUs",
        '"destroy PIC/IOAPIC in pre_destroy", 2026, for 184564efae4d',
        ("use-after-free",),
        destroyed_in_storm,
        Setup("resample", None, None, Parts(chips=CancelsLate)),
        NOW,
    ),
    Bug(
        "Z34",
        "the storm limiter counts by vector in an array of pins",
        "QEMU 03f990a5e3, d15d3d573a",
        ("raised IndexError",),
        high_at_eoi,
        _split(CountsByVector),
        _split(),
    ),
    Bug(
        "Z41",
        "a tick that nobody took is awaited",
        "5678de3f1501, CVE-2014-0155",
        ("L1",),
        tick_to_nobody,
        _with(CountsRefused),
        NOW,
    ),
    Bug(
        "Z44",
        "an EOI does not look at the line again",
        "cloud-hypervisor issue 5260",
        ("L1",),
        two_sources,
        _with(DoesNotLookAgain),
        NOW,
    ),
    Bug(
        "Z46",
        "a restored pin is high, and nothing is delivered",
        "QEMU 0f254b1ae0",
        ("L1",),
        restored_in_storm,
        _with(RestoresQuietly),
        NOW,
    ),
)
