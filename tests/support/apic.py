"""Interrupt controllers without a machine: CPUs that write down their signals, and an ack notifier that does too."""

from __future__ import annotations

from devices import lapic_registers as r
from devices.apic_bus import FIXED, ApicBus
from devices.ioapic_kvm import KvmIoApic
from devices.ioapic_qemu import QemuIoApic
from devices.lapic import LocalApic
from vmm.clock import VirtualClock
from vmm.trace import Recording, Trace

LEVEL_FIXED = 0x8000


class FakeCpu:
    """A CPU that takes nothing by itself. `signals` lists what its local APIC told it, except `interrupt_changed`."""

    def __init__(self) -> None:
        self.signals: list[object] = []
        self.changes = 0

    def interrupt_changed(self) -> None:
        self.changes += 1

    def nmi(self) -> None:
        self.signals.append("nmi")

    def smi(self) -> None:
        self.signals.append("smi")

    def init(self) -> None:
        self.signals.append("init")

    def sipi(self, vector: int) -> None:
        self.signals.append(("sipi", vector))


class FakeAcks:
    """Ack notifiers of some pins. `on_ack(pin)` runs within a notification, as a resampler's callback does."""

    def __init__(self, *pins: int) -> None:
        self.pins = set(pins)
        self.acked: list[int] = []
        self.resampled: list[int] = []
        self.masks: list[tuple[int, bool]] = []
        self.on_ack = lambda _pin: None

    def has_notifier(self, pin: int) -> bool:
        return pin in self.pins

    def notify_acked(self, pin: int) -> None:
        self.acked.append(pin)
        self.on_ack(pin)

    def mask_changed(self, pin: int, masked: bool) -> None:
        self.masks.append((pin, masked))

    def resample(self, pin: int) -> bool:
        if pin in self.pins:
            self.resampled.append(pin)
        return pin in self.pins


class Chips:
    """`count` CPUs with enabled local APICs (flat logical ID 1 << n), and an I/O APIC of the given personality."""

    def __init__(
        self,
        count: int = 1,
        personality: str = "kvm",
        acks: FakeAcks | None = None,
        clock: VirtualClock | None = None,
        **lapic: object,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.trace = Trace(self.clock.now)
        self.recording = Recording()
        self.bus = ApicBus(self.trace)
        self.guests = [FakeCpu() for _ in range(count)]
        self.cpus = [LocalApic(i, g, self.bus, self.clock, self.trace, **lapic) for i, g in enumerate(self.guests)]
        self.acks = acks or FakeAcks()
        kind = {"kvm": KvmIoApic, "qemu": QemuIoApic}[personality]
        self.ioapic = kind(self.bus, self.clock, self.trace, self.acks)
        for cpu in self.cpus:
            cpu.mmio_write(r.SVR, 4, 0x1FF)
            cpu.mmio_write(r.LDR, 4, 1 << 24 + cpu.index)

    def watch(self) -> None:
        """Record trace events from now on."""
        self.trace.listen(self.recording)

    def events(self) -> list[str]:
        """The names of the events since the last call."""
        names = [record.event.name for record in self.recording]
        self.recording.clear()
        return names

    # What a guest does.

    def select(self, register: int) -> None:
        self.ioapic.mmio_write(0x00, 4, register)

    def write(self, register: int, value: int) -> None:
        self.select(register)
        self.ioapic.mmio_write(0x10, 4, value)

    def read(self, register: int) -> int:
        self.select(register)
        return self.ioapic.mmio_read(0x10, 4)

    def program(self, pin: int, entry: int) -> None:
        """Write a redirection entry, high half first."""
        self.write(0x11 + 2 * pin, entry >> 32)
        self.write(0x10 + 2 * pin, entry & 0xFFFF_FFFF)

    def entry(self, pin: int) -> int:
        return self.read(0x10 + 2 * pin) | self.read(0x11 + 2 * pin) << 32

    def take(self, cpu: int = 0) -> int | None:
        """The CPU takes its pending interrupt, if any."""
        vector = self.cpus[cpu].pending_vector()
        if vector is not None:
            self.cpus[cpu].acknowledge(vector)
        return vector

    def eoi(self, cpu: int = 0) -> None:
        self.cpus[cpu].mmio_write(r.EOI, 4, 0)


X2APIC = r.BASE_ENABLE | r.BASE_X2APIC | r.DEFAULT_BASE


def lapic(**options: object) -> LocalApic:
    """The only local APIC of a board of its own."""
    return Chips(**options).cpus[0]


def send(apic: LocalApic, vector: int) -> int:
    """A fixed edge-triggered interrupt for `apic`."""
    return apic.accept(FIXED, vector, False)


def x2(offset: int) -> int:
    """The MSR of a register in x2APIC mode."""
    return r.MSR_X2APIC + (offset >> 4)
