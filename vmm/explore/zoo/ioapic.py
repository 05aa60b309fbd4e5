"""Bugs of the I/O APIC: levels, EOIs, masks, its storm limiter, and lazy EOI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from devices.ioapic import DELIVERY_STATUS, DESTINATION_SHIFT, LEVEL, LOGICAL, MASKED, PINS, REMOTE_IRR, VECTOR
from devices.ioapic_kvm import KvmIoApic
from devices.ioapic_qemu import QemuIoApic
from vmm import order
from vmm.explore.board import Parts
from vmm.explore.chip import FIRST_VECTOR, Chips
from vmm.explore.parts import GSI
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.order import Violation

if TYPE_CHECKING:
    from devices.ioapic import IoApic, IoApicState
    from devices.lapic_core import LapicCore
    from vmm.explore.board import Board

NOW = Setup("resample")


def _with(ioapic: type[IoApic], era: str | None = None) -> Setup:
    return Setup("resample", era, None, Parts(ioapic=ioapic))


def _split(ioapic: type[IoApic] | None = None) -> Setup:
    return Setup("resample", None, None, Parts(ioapic=ioapic), "split")


# Levels.


class SumsOutside(KvmIoApic):
    """The OR of the sources is computed before the chip's lock is taken."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = False) -> int:
        bit = 1 << source
        self.sources[pin] = self.sources[pin] | bit if level else self.sources[pin] & ~bit
        high = self.sources[pin] != 0
        with self.lock:
            return self.drive(pin, high, line_status)


def two_sources(board: Board) -> None:
    """The EOI lowers one source while user space raises another."""
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()
    board.thread("user").line(1)


# Masks.


def one_shot(board: Board) -> None:
    """A one-shot handler: mask, EOI, serve the device later, unmask."""
    board.vfio("a")
    board.thread("device a").assert_intx("a")
    vcpu = board.thread("vcpu")
    vcpu.take()
    vcpu.mask()
    vcpu.eoi()
    vcpu.serve("a")
    vcpu.unmask()


class LatchesMasked(QemuIoApic):
    """An edge on a masked pin stays in IRR."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = False) -> int:
        done = super().set_irq(pin, source, level, line_status)
        if level and self.redir[pin] & (MASKED | LEVEL) == MASKED:
            self.irr |= 1 << pin
        return done


def edge_then_level(board: Board) -> None:
    """An edge comes while the pin is masked, then the guest makes it level-triggered and unmasks it."""
    ioapic, pin = board.chips.ioapic, board.pin
    pin.write(FIRST_VECTOR | MASKED)
    device = board.thread("device")
    device.run("line 1", lambda: ioapic.set_irq(GSI, 0, True))
    device.run("line 0", lambda: ioapic.set_irq(GSI, 0, False))
    guest = board.thread("guest")
    guest.run("make level", pin.make_level)
    guest.unmask()


# Entries that the guest writes while an interrupt is in service.


class SeesEntryOnly(KvmIoApic):
    """Whose EOIs are wanted follows from the entries as they are now, not from what is in service."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def eoi_vectors(self, lapic: LapicCore) -> tuple[int, int]:
        vectors = 0
        for entry in self.redir:
            if entry & LEVEL and lapic.matches(entry >> DESTINATION_SHIFT, bool(entry & LOGICAL)):
                vectors |= 1 << (entry & VECTOR)
        return vectors, -1


def moved_in_service(board: Board) -> None:
    """The handler moves its interrupt to another CPU before it ends it."""
    cpu, pin = board.another_cpu(), board.pin
    board.thread("user").line(1)
    vcpu = board.thread("vcpu")
    vcpu.take()
    vcpu.run("to the other CPU", lambda: pin.write(pin.entry, cpu << DESTINATION_SHIFT - 32))
    vcpu.eoi()


class EndsFirst(KvmIoApic):
    """An EOI ends the first pin that has the vector."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def eoi(self, vector: int, cpu: int, level: bool = True, suppressed: bool = False) -> None:  # noqa: ARG002
        with self.lock:
            pins = self.vector_pins.get(vector, 0)
            if pins:
                self.eoi_pin((pins & -pins).bit_length() - 1, level and not suppressed)


def same_vector(board: Board) -> None:
    """The guest moved its interrupt here from another pin, whose masked entry still has the vector."""
    board.chips.pin(GSI - 1).write(FIRST_VECTOR | LEVEL | MASKED)
    board.thread("user").line(1)
    board.thread("vcpu").interrupt()


class WritesAll(KvmIoApic):
    """A write of an entry replaces its read-only bits, too."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def _store(self, pin: int, high: bool, value: int) -> int:
        if not high:
            self.redir[pin] &= ~(REMOTE_IRR | DELIVERY_STATUS)
        return super()._store(pin, high, value)


class DeliversAgain(KvmIoApic):
    """A level is delivered without a look at Remote IRR."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def evaluate(self, pin: int, line_status: bool = False) -> int:
        self.redir[pin] &= ~REMOTE_IRR
        return super().evaluate(pin, line_status)


def _once(board: Board) -> None:
    pin = board.pin

    def twice() -> str | None:
        again = pin.requested and pin.in_service
        return "S12: a level was delivered a second time before its EOI" if again else None

    board.always(twice)


def rewritten_in_service(board: Board) -> None:
    """The handler writes its entry back without its read-only bits, with the line still high."""
    _once(board)
    pin = board.pin
    board.thread("user").line(1)
    vcpu = board.thread("vcpu")
    vcpu.take()
    vcpu.run("write the entry", lambda: pin.write(FIRST_VECTOR | LEVEL))
    vcpu.eoi()


def falls_and_rises(board: Board) -> None:
    """The line falls and rises again before the EOI."""
    _once(board)
    user = board.thread("user")
    user.line(1)
    user.line(0)
    user.line(1)
    board.thread("vcpu").interrupt()


class KeepsRemoteIrr(KvmIoApic):
    """A change to edge leaves Remote IRR as it is."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def _store(self, pin: int, high: bool, value: int) -> int:
        waits = self.redir[pin] & REMOTE_IRR
        super()._store(pin, high, value)
        self.redir[pin] |= waits
        return self.redir[pin]


def ended_by_trigger_mode(board: Board) -> None:
    """A guest on a chip without EOI register: the broadcast is suppressed, and a change to edge and back ends it."""
    pin = board.pin
    board.bind("e1", "e2")
    pin.suppress_broadcast()
    board.thread("device").signal("e1")
    vcpu = board.thread("vcpu")
    vcpu.interrupt()
    vcpu.run("make edge", pin.make_edge)
    vcpu.run("make level", pin.make_level)


# EOI.


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


class ReadsUnchecked(KvmIoApic):
    """IOWIN is read without a look at how many entries there are."""

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    __slots__ = ()

    def read_register(self) -> int:
        if self.ioregsel >= 0x10:
            return self.redir[(self.ioregsel - 0x10) >> 1] & 0xFFFF_FFFF
        return super().read_register()


def beyond_the_table(board: Board) -> None:
    """The guest selects a register behind the table, and reads."""
    ioapic = board.chips.ioapic
    guest = board.thread("guest")
    guest.run("select", lambda: ioapic.mmio_write(0, 4, 0x10 + 2 * PINS))
    guest.run("read", lambda: ioapic.mmio_read(0x10, 4))


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
        "Z11",
        "sources are summed up outside the chip's lock",
        "1a577b72475d",
        ("S8",),
        two_sources,
        _with(SumsOutside),
        NOW,
    ),
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
        "Z26",
        "an unmask delivers a level from before the device was served",
        "fef8f2b90edb, fixed in 6.3",
        ("S11",),
        one_shot,
        Setup("resample", "5.11"),
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
        "Z35",
        "the EOI of an interrupt that was moved in service is lost",
        "0fc5a36dd6b3; 87e4951e250b",
        ("S12",),
        moved_in_service,
        _with(SeesEntryOnly),
        NOW,
    ),
    Bug(
        "Z36",
        "an EOI ends the first pin with its vector only",
        "4fa6b9c5dc41",
        ("S12",),
        same_vector,
        _with(EndsFirst),
        NOW,
    ),
    Bug(
        "Z37",
        "an edge on a masked pin is delivered as a level",
        "QEMU 47f7be394a",
        ("S11",),
        edge_then_level,
        _split(LatchesMasked),
        _split(),
    ),
    Bug(
        "Z38",
        "the guest can write read-only bits of an entry",
        "QEMU 479c2a1cb7",
        ("S12",),
        rewritten_in_service,
        _with(WritesAll),
        NOW,
    ),
    Bug(
        "Z39",
        "a change to edge leaves Remote IRR set",
        "QEMU ed1263c363",
        ("S12",),
        ended_by_trigger_mode,
        _with(KeepsRemoteIrr),
        NOW,
    ),
    Bug(
        "Z40",
        "a level is delivered again before its EOI",
        "QEMU c5955a561c, f99b86b949",
        ("S12",),
        falls_and_rises,
        _with(DeliversAgain),
        NOW,
    ),
    Bug(
        "Z42",
        "a register index beyond the table",
        "a2c118bfab8b, CVE-2013-1798",
        ("raised IndexError",),
        beyond_the_table,
        _with(ReadsUnchecked),
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
