"""The interrupt controllers of a board: the machine's own I/O APIC, APIC bus and local APICs, and a CPU that does
nothing by itself. `ApicPin` is how a scene's guest drives them: take, end, mask, unmask, reprogram.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from devices import lapic_registers
from devices.apic_bus import ApicBus
from devices.ioapic import IOREDTBL, IOREGSEL, IOWIN, LEVEL, MASKED, REMOTE_IRR, VECTOR
from devices.ioapic_kvm import KvmIoApic
from devices.lapic import LocalApic
from vmm import order
from vmm.order import State, Violation

if TYPE_CHECKING:
    from devices.ioapic import IoApic
    from vmm.order import WorkQueue
    from vmm.trace import Trace

FIRST_VECTOR = 0x50
"""What the board gives its pin; the next pin has the next."""
SUPPRESS_BROADCAST = 1 << 12
"""SVR: EOIs are not broadcast, the guest writes the I/O APIC's EOI register instead (directed EOI)."""


class Cpu(State):
    """A CPU that takes interrupts when a scene tells it to."""

    __slots__ = ()

    def interrupt_changed(self) -> None:
        """The scene asks `ApicPin.can_take` itself."""

    def nmi(self) -> None: ...

    def smi(self) -> None: ...

    def init(self) -> None: ...

    def sipi(self, vector: int) -> None: ...


class MortalApic(LocalApic):
    """A local APIC that is freed with its CPU. The bus still knows it then, as the kernel's `apic_map` does."""

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("freed_by",)
    __slots__ = BOOKKEEPING

    freed_by: str | None

    def accept(
        self,
        delivery_mode: int,
        vector: int,
        level_trigger: bool,
        level: bool = True,
        reached: dict[int, int] | None = None,
    ) -> int:
        if self.freed_by is not None:
            raise Violation("use-after-free", self, self.freed_by, "__apic_accept_irq")
        return super().accept(delivery_mode, vector, level_trigger, level, reached)


class Chips(State):
    """An APIC bus with one I/O APIC and a local APIC for each CPU, all software-enabled."""

    WIRING: ClassVar[tuple[str, ...]] = ("bus", "ioapic", "lapics", "pins")
    __slots__ = WIRING

    apic_class: ClassVar[type[MortalApic]] = MortalApic

    def __init__(self, trace: Trace, queue: WorkQueue, kind: type[IoApic] = KvmIoApic) -> None:
        self.bus = ApicBus(trace)
        self.ioapic = kind(self.bus, None, trace, queue=queue)
        self.lapics: tuple[MortalApic, ...] = ()
        self.pins: tuple[ApicPin, ...] = ()
        self.add_cpu()

    def add_cpu(self) -> int:
        """One more CPU, its local APIC software-enabled: its number."""
        number = len(self.lapics)
        lapic = self.apic_class(number, Cpu(), self.bus, None, self.bus.trace, suppress_eoi=True)
        lapic.freed_by = None
        lapic.write(lapic_registers.SVR, 0x1FF)
        self.lapics = (*self.lapics, lapic)
        self.settle()
        return number

    def settle(self) -> None:
        """Make the tables that are made when they are first asked for, so that a search does not find them twice."""
        self.bus.request_scan_of(0, logical=False)
        for lapic in self.lapics:
            lapic.enter_guest()

    # The last reference of the VM is gone: its release is long over, and no CPU runs.

    def destroy(self) -> None:
        """Free everything, each after what may touch it. (kvm_destroy_vm)"""
        self.stop_chips()
        self.free_cpus()

    def stop_chips(self) -> None:
        """Cancel a postponed delivery, and let it end if it runs. (kvm_ioapic_destroy)"""
        self.ioapic.close()

    def free_cpus(self) -> None:
        """(kvm_destroy_vcpus, kvm_free_lapic)"""
        if order.hook is not None:
            order.hook("kvm.free-cpus", self)
        i = 0
        while i < len(self.lapics):
            self.lapics[i].freed_by = "kvm_free_lapic"
            i += 1

    def pin(self, number: int, vector: int = FIRST_VECTOR) -> ApicPin:
        """A pin as a guest has set it up: level-triggered, unmasked, to the first CPU."""
        made = ApicPin(self, number)
        made.write(vector | LEVEL)
        self.pins = (*self.pins, made)
        self.settle()
        return made


class ApicPin(State):
    """One pin of the I/O APIC, and the CPU that its interrupt goes to. All that it does is what a guest does, by
    register accesses; all that it tells is read off the chips.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("chips", "ioapic", "number")
    __slots__ = WIRING

    def __init__(self, chips: Chips, number: int) -> None:
        self.chips = chips
        self.ioapic = chips.ioapic
        self.number = number

    # What is told.

    @property
    def entry(self) -> int:
        """The redirection entry."""
        return self.ioapic.redir[self.number]

    @property
    def held(self) -> int:
        """The sources that hold the pin high, a bit each."""
        return self.ioapic.sources[self.number]

    @property
    def irr(self) -> bool:
        """The I/O APIC's IRR bit."""
        return bool(self.ioapic.irr >> self.number & 1)

    @property
    def remote_irr(self) -> bool:
        """It was delivered as level and waits for an EOI."""
        return bool(self.entry & REMOTE_IRR)

    @property
    def level(self) -> bool:
        """It is level-triggered."""
        return bool(self.entry & LEVEL)

    @property
    def masked(self) -> bool:
        """The guest masked the entry."""
        return bool(self.entry & MASKED)

    @property
    def requested(self) -> bool:
        """Some CPU has its vector in IRR: delivered, and not taken yet."""
        vector = self.entry & VECTOR
        return any(lapic.irr >> vector & 1 for lapic in self.chips.lapics)

    @property
    def in_service(self) -> bool:
        """Some CPU has its vector in ISR: taken, and not ended yet."""
        vector = self.entry & VECTOR
        return any(lapic.isr >> vector & 1 for lapic in self.chips.lapics)

    def on_its_way(self) -> bool:
        """A guest that goes on will take an interrupt of this pin."""
        return self.requested or self.in_service or bool(self.held and self.masked)

    # What the guest does.

    def can_take(self, cpu: int = 0) -> bool:
        """The CPU would find an interrupt."""
        return self.chips.lapics[cpu].pending is not None

    def take(self, cpu: int = 0) -> None:
        """The CPU enters the guest with what is pending."""
        lapic = self.chips.lapics[cpu]
        lapic.enter_guest()
        vector = lapic.pending_vector()
        if vector is not None:
            lapic.acknowledge(vector)

    def eoi(self, cpu: int = 0) -> None:
        """It writes its EOI register."""
        self.chips.lapics[cpu].eoi()

    def write(self, entry: int, high: int | None = None) -> None:
        """Write the lower half of the redirection entry, and the upper one before it if `high` is given."""
        if high is not None:
            self.ioapic.mmio_write(IOREGSEL, 4, IOREDTBL + 2 * self.number + 1)
            self.ioapic.mmio_write(IOWIN, 4, high)
        self.ioapic.mmio_write(IOREGSEL, 4, IOREDTBL + 2 * self.number)
        self.ioapic.mmio_write(IOWIN, 4, entry & 0xFFFF_FFFF)

    def mask(self) -> None:
        """Mask the entry, the rest as it is."""
        self.write(self.entry | MASKED)

    def unmask(self) -> None:
        """Unmask it."""
        self.write(self.entry & ~MASKED)

    def make_edge(self) -> None:
        """Make it edge-triggered: Remote IRR goes."""
        self.write(self.entry & ~LEVEL)

    def make_level(self) -> None:
        """Make it level-triggered again."""
        self.write(self.entry | LEVEL)

    def suppress_broadcast(self, cpu: int = 0) -> None:
        """Ask for directed EOI: the local APIC tells nobody of EOIs from now on."""
        lapic = self.chips.lapics[cpu]
        lapic.write(lapic_registers.SVR, 0x1FF | SUPPRESS_BROADCAST)
