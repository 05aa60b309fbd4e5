"""Bugs of the I/O APIC: levels, EOIs, masks, its storm limiter, and lazy EOI."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from devices.ioapic import DELIVERY_STATUS, DESTINATION_SHIFT, LEVEL, LOGICAL, MASKED, PINS, REMOTE_IRR, VECTOR
from devices.ioapic_kvm import KvmIoApic
from devices.ioapic_qemu import QemuIoApic
from vmm.explore.board import Parts
from vmm.explore.chip import FIRST_VECTOR
from vmm.explore.parts import GSI
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug

if TYPE_CHECKING:
    from devices.ioapic import IoApic
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
        "Z26",
        "an unmask delivers a level from before the device was served",
        "fef8f2b90edb, fixed in 6.3",
        ("S11",),
        one_shot,
        Setup("resample", "5.11"),
        NOW,
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
)
