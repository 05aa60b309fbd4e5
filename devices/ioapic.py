"""The 82093AA I/O APIC: registers, pins, and what its two personalities share.

Real VMMs disagree about this chip, so it comes twice: `devices.ioapic_kvm.KvmIoApic` follows Linux' in-kernel
irqchip and `devices.ioapic_qemu.QemuIoApic` follows QEMU's user-space device. Each has one `evaluate(pin)`, and every
path that can change a pin ends in it. What both agree on (register file, input levels, life) is here.

The chip knows its pins, the APIC bus that it sends on, and a small `AckNotifiers` interface that hears of each EOI. It
knows nothing of GSIs, irqfds or devices.

Ref: 82093AA I/O Advanced Programmable Interrupt Controller, Intel 290566-001.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from construct import Array, BitsInteger, BitStruct, ByteSwapped, Const, Flag, Int32ul, Int64ul, Padding, Struct

from vmm import order
from vmm.errors import ConfigError
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from devices.apic_bus import ApicBus
    from devices.lapic_core import LapicCore
    from vmm.order import ClockLike
    from vmm.trace import Trace

PINS = 24
IOAPIC_BASE = 0xFEC0_0000
"""Where the first I/O APIC of a PC answers. Ref: 82093AA, 3.0."""

# Memory-mapped registers. Ref: 82093AA, 3.1; the EOI register is that of version 0x20 chips.
IOREGSEL = 0x00
IOWIN = 0x10
EOI = 0x40

# Indirect registers. Ref: 82093AA, 3.2.
IOAPICID = 0x00
IOAPICVER = 0x01
IOAPICARB = 0x02
IOREDTBL = 0x10

# Redirection table entry. Ref: 82093AA, 3.2.4.
VECTOR = 0xFF
DELIVERY_MODE_SHIFT = 8
LOGICAL = 1 << 11
DELIVERY_STATUS = 1 << 12
ACTIVE_LOW = 1 << 13
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
READ_ONLY = DELIVERY_STATUS | REMOTE_IRR
DESTINATION_SHIFT = 56

# Delivery modes. Ref: 82093AA, 3.2.4, bits 10:8.
FIXED, LOWEST_PRIORITY, SMI, RESERVED_3, NMI, INIT, STARTUP, EXTINT = range(8)

MAX_SUCCESSIVE_EOIS = 10_000
"""So many EOIs in a row with the line still high, and the next delivery waits for `EOI_DELAY_NS`: a guest that never
silences its device would otherwise not run any code at all."""
EOI_DELAY_NS = 10_000_000

SOURCE_USERSPACE = 0
"""irq source id of wires and of KVM_IRQ_LINE."""
SOURCE_RESAMPLE = 1
"""irq source id that all resampling irqfds share."""

RedirectionEntry = ByteSwapped(
    BitStruct(
        "destination" / BitsInteger(8),
        "reserved" / BitsInteger(39),
        "masked" / Flag,
        "level_triggered" / Flag,
        "remote_irr" / Flag,
        "active_low" / Flag,
        "delivery_status" / Flag,
        "logical" / Flag,
        "delivery_mode" / BitsInteger(3),
        "vector" / BitsInteger(8),
    )
)
"""A redirection table entry as 8 little-endian bytes. Ref: 82093AA, 3.2.4."""

IoApicVersion = ByteSwapped(
    BitStruct(Padding(8), "max_redirection_entry" / BitsInteger(8), Padding(8), "version" / BitsInteger(8))
)
"""The IOAPICVER register. Ref: 82093AA, 3.2.2."""

IoApicIdentification = ByteSwapped(BitStruct(Padding(4), "id" / BitsInteger(4), Padding(24)))
"""The IOAPICID and IOAPICARB registers. Ref: 82093AA, 3.2.1 and 3.2.3."""

KvmIoApicState = Struct(
    "base_address" / Int64ul,
    "ioregsel" / Int32ul,
    "id" / Int32ul,
    "irr" / Int32ul,
    "pad" / Const(0, Int32ul),
    "redirtbl" / Array(PINS, Int64ul),
)
"""`struct kvm_ioapic_state`, what KVM_GET_IRQCHIP and KVM_SET_IRQCHIP carry for chip 2."""


class IoApicState(NamedTuple):
    """The chip's state as KVM_GET_IRQCHIP gives it."""

    base_address: int
    ioregsel: int
    id: int
    irr: int
    redirtbl: tuple[int, ...]

    def build(self) -> bytes:
        """As `struct kvm_ioapic_state`."""
        built: bytes = KvmIoApicState.build(self._asdict() | {"pad": 0})
        return built

    @classmethod
    def parse(cls, data: bytes) -> IoApicState:
        """From `struct kvm_ioapic_state`; construct's errors for too few bytes."""
        s = KvmIoApicState.parse(data)
        return cls(s.base_address, s.ioregsel, s.id, s.irr, tuple(s.redirtbl))


def explain(entry: int) -> dict[str, Any]:
    """The fields of a redirection entry by name."""
    parsed = RedirectionEntry.parse(entry.to_bytes(RedirectionEntry.sizeof(), "little"))
    return {name: value for name, value in parsed.items() if not name.startswith("_")}


class AckNotifiers(Protocol):
    """Who wants to hear that a pin's interrupt was acknowledged: the resamplers, on the kernel's side."""

    def has_notifier(self, pin: int) -> bool:
        """True if the GSI that is routed to `pin` has a resampler."""

    def notify_acked(self, pin: int) -> None:
        """An EOI reached `pin`. Called with the chip's lock dropped: it may call `set_irq`.

        The resampler de-asserts its source and then signals every member.
        """

    def mask_changed(self, pin: int, masked: bool) -> None:
        """The guest masked or unmasked `pin`. Called with the chip's lock held: it must not call `set_irq`."""

    def resample(self, pin: int) -> bool:
        """Signal every member without de-asserting: the pin was unmasked, its latched level may be stale.

        Called with the chip's lock held: it must not call `set_irq`. False if the pin's GSI has no resampler (it may
        have another ack notifier): then the level is delivered as it is. Ref: Linux fef8f2b90edb.
        """


class NoAckNotifiers:
    """Nobody listens."""

    __slots__ = ()

    def has_notifier(self, pin: int) -> bool:  # noqa: ARG002
        return False

    def notify_acked(self, pin: int) -> None:
        pass

    def mask_changed(self, pin: int, masked: bool) -> None:
        pass

    def resample(self, pin: int) -> bool:  # noqa: ARG002
        return False


class IoapicSetIrq(Event):
    """An input changed, or was driven again."""

    pin: int
    source: int
    level: bool


class IoapicSetRemoteIrr(Event):
    """A level interrupt was accepted; the pin waits for an EOI."""

    pin: int


class IoapicClearRemoteIrr(Event):
    """An EOI, or a change to edge, ended the pin's wait."""

    pin: int
    vector: int


class IoapicEoiBroadcast(Event):
    """An EOI came from the bus or from the EOI register."""

    vector: int


class IoapicEoiDelayedReassert(Event):
    """The storm limiter postponed the next delivery of a pin."""

    pin: int


class IoapicWriteRedirection(Event):
    """The guest wrote half of a redirection entry; `entry` is what it is now."""

    pin: int
    entry: int


class IoapicUnmaskResample(Event):
    """A pin was unmasked with its level latched and a resampler listening: asked again instead of delivered."""

    pin: int


class EoiInject(order.DelayedWork):
    """The storm limiter's work. In the running machine it runs as soon as its timer expires."""

    __slots__ = ()

    def expire(self) -> None:
        super().expire()
        if order.hook is None:
            self.queue.executor.drain()


class IoApic(order.State):
    """What the personalities share. Make a `KvmIoApic` or a `QemuIoApic`.

    Levels of a pin are kept per irq source id and ORed, so two sources cannot undo each other. `clock` times the storm
    limiter (None under the explorer) and `queue` is where its work runs (its own if None).
    """

    WIRING: ClassVar[tuple[str, ...]] = (
        "acks",
        "base_address",
        "bus",
        "eoi_inject",
        "lock",
        "name",
        "region",
        "trace",
        "version",
    )
    VISIBLE: ClassVar[tuple[str, ...]] = ("id", "ioregsel", "irr", "redir", "sources")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("eoi_runs", "vector_pins")
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    personality = ""
    window_size: ClassVar[int]
    """Bytes that it answers at."""
    max_successive_eois: ClassVar[int] = MAX_SUCCESSIVE_EOIS

    def __init__(
        self,
        bus: ApicBus,
        clock: ClockLike | None,
        trace: Trace,
        acks: AckNotifiers | None = None,
        queue: order.WorkQueue | None = None,
        name: str = "ioapic",
    ) -> None:
        self.name = name
        self.bus = bus
        self.trace = trace
        self.acks: AckNotifiers = NoAckNotifiers() if acks is None else acks
        self.base_address = IOAPIC_BASE
        self.version = 0x11
        self.lock = order.Lock(f"{name}.lock", spin=True)
        if queue is None:
            queue = order.WorkQueue("events", order.Executor())
        self.eoi_inject = EoiInject(f"{name}.eoi-inject", queue, self.inject_delayed, clock)
        self.region = IoRegion(name, self.window_size, self.mmio_read, self.mmio_write)
        self.id = 0
        self.ioregsel = 0
        self.irr = 0
        self.redir = [MASKED] * PINS
        self.sources = [0] * PINS
        """Per pin, a bitmap of the irq source ids that hold it high."""
        self.eoi_runs = [0] * PINS
        """Per pin, EOIs in a row that found the line still high."""
        self.vector_pins = {0: (1 << PINS) - 1}
        """Which pins have a vector, as a bitmap: what an EOI looks up."""
        bus.attach_ioapic(self)

    def reset(self) -> None:
        """Power-on state: every entry masked. Input levels stay: wires belong to who drives them."""
        self.eoi_inject.cancel()
        self.id = 0
        self.ioregsel = 0
        self.irr = 0
        self.redir = [MASKED] * PINS
        self.eoi_runs = [0] * PINS
        self.vector_pins = {0: (1 << PINS) - 1}
        self.bus.request_scan()

    def close(self) -> None:
        """Leave the bus. A postponed delivery is cancelled first: it must not find CPUs that are gone."""
        self.eoi_inject.cancel()
        self.bus.detach_ioapic(self)

    # Inputs.

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = False) -> int:
        """Drive `pin` from irq source `source`.

        Returns what KVM_IRQ_LINE_STATUS does: how many CPUs took it, 0 coalesced, -1 ignored (masked, waiting for an
        EOI). `line_status`: the caller looks at that value (the RTC's ticks are counted then).
        """
        raise NotImplementedError

    def pin_target(self, pin: int, source: int = SOURCE_USERSPACE) -> Callable[[bool], object]:
        """What a `Wire` may be connected to. ConfigError for a pin the chip does not have."""
        if not 0 <= pin < PINS:
            raise ConfigError(f"{self.name} has pins 0 to {PINS - 1}, not {pin}")
        return partial(self.set_irq, pin, source)

    def evaluate(self, pin: int) -> int:
        """Deliver `pin`'s interrupt if it is to be delivered now; returns as `set_irq`."""
        raise NotImplementedError

    # The bus.

    def eoi(self, vector: int, cpu: int, level: bool, suppressed: bool) -> None:
        """Local APIC `cpu` ended `vector`, which it had accepted as level-triggered if `level`.

        `suppressed`: that APIC suppresses EOI broadcasts (SVR bit 12).
        """
        raise NotImplementedError

    def eoi_vectors(self, lapic: LapicCore) -> tuple[int, int]:
        """Which vectors' EOIs `lapic` must tell this chip: a bitmap, and the highest that is there only because its
        interrupt is pending from an earlier routing (-1: none)."""
        raise NotImplementedError

    def inject_delayed(self) -> None:
        """The storm limiter's delay is over."""
        raise NotImplementedError

    # Registers.

    def mmio_read(self, offset: int, size: int) -> int:
        """A guest's read relative to the base address."""
        raise NotImplementedError

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write relative to the base address."""
        raise NotImplementedError

    def read_register(self) -> int:
        """What IOWIN shows for the selected register."""
        select = self.ioregsel
        if select >= IOREDTBL:
            pin = (select - IOREDTBL) >> 1
            if pin < PINS:
                return self.redir[pin] >> 32 if select & 1 else self.redir[pin] & 0xFFFF_FFFF
            return self.read_unknown
        if select == IOAPICVER:
            return (PINS - 1) << 16 | self.version
        if select in (IOAPICID, IOAPICARB):
            # Ref: 82093AA, 3.2.3: ARB is loaded from ID when ID is written; there is no bus to arbitrate for.
            return self.id << 24
        return self.read_unknown

    read_unknown = 0
    """What a register that does not exist reads as."""

    def write_register(self, value: int) -> None:
        """A write of IOWIN, 32 bits."""
        select = self.ioregsel
        if select >= IOREDTBL:
            pin = (select - IOREDTBL) >> 1
            if pin < PINS:
                self.write_redirection(pin, bool(select & 1), value)
        elif select == IOAPICID:
            self.id = value >> 24 & 0xF

    def write_redirection(self, pin: int, high: bool, value: int) -> None:
        """A write of half a redirection entry."""
        raise NotImplementedError

    def _store(self, pin: int, high: bool, value: int) -> int:
        """Merge a guest's half entry, keep the read-only bits, let a change to edge clear Remote IRR.

        Linux relies on the latter to end a level interrupt on chips that have no EOI register.
        """
        old = self.redir[pin]
        new = (old & 0xFFFF_FFFF) | value << 32 if high else (old & ~0xFFFF_FFFF) | value
        new = (new & ~READ_ONLY) | (old & READ_ONLY)
        if not new & LEVEL and new & REMOTE_IRR:
            new &= ~REMOTE_IRR
            if self.trace.on:
                self.trace.emit(IoapicClearRemoteIrr(pin, new & VECTOR))
        self._set_entry(pin, new)
        if self.trace.on:
            self.trace.emit(IoapicWriteRedirection(pin, new))
        if (old ^ new) & MASKED:
            self.acks.mask_changed(pin, bool(new & MASKED))
        return new

    def _set_entry(self, pin: int, entry: int) -> None:
        old = self.redir[pin]
        self.redir[pin] = entry
        before, after = old & VECTOR, entry & VECTOR
        if before != after:
            bit = 1 << pin
            pins = self.vector_pins
            left = pins[before] & ~bit
            if left:
                pins[before] = left
            else:
                del pins[before]
            pins[after] = pins.get(after, 0) | bit

    # Save and restore.

    def get_state(self) -> IoApicState:
        """As KVM_GET_IRQCHIP."""
        return IoApicState(self.base_address, self.ioregsel, self.id, self.irr, tuple(self.redir))

    def set_state(self, state: IoApicState) -> None:
        """As KVM_SET_IRQCHIP. ConfigError for a state that is not one of this chip."""
        raise NotImplementedError

    def _load(self, state: IoApicState) -> None:
        if len(state.redirtbl) != PINS:
            raise ConfigError(f"{self.name}: {len(state.redirtbl)} redirection entries, the chip has {PINS}")
        self.eoi_inject.cancel(sync=False)  # the lock is held, and one that runs wants it
        self.ioregsel = state.ioregsel & 0xFF
        self.id = state.id & 0xF
        for pin, entry in enumerate(state.redirtbl):
            self._set_entry(pin, entry & 0xFFFF_FFFF_FFFF_FFFF)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} irr={self.irr:06x}>"
