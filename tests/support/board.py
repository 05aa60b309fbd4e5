"""A board for tests of one device: real spaces, wires, clock and ledger, nothing behind them."""

from __future__ import annotations

from vmm.clock import VirtualClock
from vmm.lifecycle import Ledger
from vmm.lines import LevelLine, Wire
from vmm.memory import AddressSpace, GuestMemory
from vmm.trace import Recording, Trace


class FakeBoard:
    """A `devices.device.Board` that writes down what reaches it.

    `irq_events` is the list of ("raise" | "lower", irq) since the last `take_irq_events`; `resets` and `shutdowns`
    list what was asked for. `recording` holds the trace events if `trace=True`.
    """

    def __init__(self, ram: int = 1 << 20, trace: bool = False) -> None:
        self.ports = AddressSpace.ports()
        self.mmio = AddressSpace.memory()
        self.memory = GuestMemory(ram)
        self.clock = VirtualClock()
        self.trace = Trace(self.clock.now)
        self.ledger = Ledger()
        self.irq_events: list[tuple[str, int]] = []
        self.resets: list[str] = []
        self.shutdowns: list[tuple[str, int]] = []
        self.recording = Recording()
        self.isa_wires = [Wire(f"isa-irq-{n}", self._watch(n)) for n in range(16)]
        if trace:
            self.trace.listen(self.recording)

    def _watch(self, irq: int):
        return lambda level: self.irq_events.append(("raise" if level else "lower", irq))

    def isa_irq(self, holder: str, irq: int) -> LevelLine:
        return self.isa_wires[irq].hold(holder)

    def request_reset(self, reason: str) -> None:
        self.resets.append(reason)

    def request_shutdown(self, reason: str, status: int = 0) -> None:
        self.shutdowns.append((reason, status))

    # What a test asks for.

    def high(self) -> list[int]:
        """The ISA IRQs that are high now."""
        return [n for n, wire in enumerate(self.isa_wires) if wire.high]

    def take_irq_events(self) -> list[tuple[str, int]]:
        """The changes of ISA IRQs since the last call."""
        events, self.irq_events = self.irq_events, []
        return events

    def inb(self, port: int) -> int:
        return self.ports.read(port, 1)

    def inw(self, port: int) -> int:
        return self.ports.read(port, 2)

    def inl(self, port: int) -> int:
        return self.ports.read(port, 4)

    def outb(self, port: int, value: int) -> None:
        self.ports.write(port, 1, value)

    def outw(self, port: int, value: int) -> None:
        self.ports.write(port, 2, value)

    def outl(self, port: int, value: int) -> None:
        self.ports.write(port, 4, value)

    def read(self, address: int, size: int = 4) -> int:
        """A guest's read of MMIO."""
        return self.mmio.read(address, size)

    def write(self, address: int, value: int, size: int = 4) -> None:
        """A guest's write to MMIO."""
        self.mmio.write(address, size, value)
