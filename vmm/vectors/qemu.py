"""Replays `vectors qemu-ioapic.json`: the I/O APIC with QEMU's rules, its 8259s, and every message that it sends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from devices.apic_bus import ApicBus
from devices.i8259 import Pic
from devices.ioapic import EOI, IOREGSEL, IOWIN, MASKED, PINS
from devices.ioapic_qemu import QemuIoApic
from vmm.clock import VirtualClock
from vmm.errors import ConfigError
from vmm.trace import Trace
from vmm.vectors.difference import Difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from devices.i8259 import PicChip

WIDTHS = {"b": 1, "w": 2, "l": 4, "q": 8}


class MessageTap(ApicBus):
    """A bus without CPUs that writes down what is sent: [destination, logical, delivery mode, vector, level]."""

    WIRING: ClassVar[tuple[str, ...]] = ("messages",)
    __slots__ = (*WIRING,)

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace)
        self.messages: list[list[int]] = []

    def deliver(
        self,
        dest: int,
        logical: bool,
        delivery_mode: int,
        vector: int,
        level_trigger: bool,
        level: bool = True,  # noqa: ARG002
        reached: dict[int, int] | None = None,  # noqa: ARG002
        x2apic_source: bool = False,  # noqa: ARG002
        redirection_hint: bool = False,  # noqa: ARG002
    ) -> int:
        self.messages.append([dest, int(logical), delivery_mode, vector, int(level_trigger)])
        return 1


class QemuReplay:
    """The interrupt controllers of a `pc`, and the recording's operations as methods `op_<name>`."""

    def __init__(self, version: int = 0x20) -> None:
        trace = Trace()
        self.clock = VirtualClock()
        self.bus = MessageTap(trace)
        self.ioapic = QemuIoApic(self.bus, self.clock, trace)
        self.ioapic.version = version
        self.pic = Pic("qemu", trace)
        self.ioapic.pic_read_irq = self.pic.intack

    def run(self, op: Sequence[Any]) -> Any:
        """Do one operation; returns the value it read. ConfigError: an unknown one."""
        self.bus.messages = []
        name = {"in": "inb", "out": "outb"}.get(op[0], op[0])
        method: Callable[..., Any] | None = getattr(self, f"op_{name}", None)
        if method is None:
            raise ConfigError(f"there is no operation {op[0]!r} in recordings of QEMU")
        return method(*op[1:])

    def messages(self) -> list[Any]:
        """What the last operation sent; more than three equal messages in a row as [message, count]."""
        sent: list[Any] = []
        run: list[list[int]] = []
        for message in [*self.bus.messages, None]:
            if run and message != run[0]:
                sent += [[run[0], len(run)]] if len(run) > 3 else run
                run = []
            if message is not None:
                run.append(message)
        return sent

    def state(self) -> dict[str, Any]:
        """What the recording shows of the chip."""
        chip = self.ioapic
        return {
            "c": {str(pin): hex(entry) for pin, entry in enumerate(chip.redir)},
            "irr": chip.irr,
            "id": chip.id,
            "sel": chip.ioregsel,
        }

    def final(self) -> dict[str, Any]:
        """What a guest reads from every register, with IOREGSEL put back."""
        select = self.ioapic.ioregsel
        values = []
        for register in (0, 1, 2, *range(0x10, 0x10 + 2 * PINS)):
            self.op_sel(register)
            values.append(self.op_rwin())
        self.op_sel(select)
        entries = [hex(values[i] | values[i + 1] << 32) for i in range(3, len(values), 2)]
        return {"sel": select, "id": values[0], "ver": values[1], "arb": values[2], "rte": entries}

    # Registers.

    def op_sel(self, register: int) -> None:
        self.ioapic.mmio_write(IOREGSEL, 4, register)

    def op_win(self, value: int) -> None:
        self.ioapic.mmio_write(IOWIN, 4, value)

    def op_rwin(self) -> int:
        return self.ioapic.mmio_read(IOWIN, 4)

    def op_w(self, width: str, offset: int, value: int) -> None:
        self.ioapic.mmio_write(offset, WIDTHS[width], value)

    def op_r(self, width: str, offset: int) -> int:
        return self.ioapic.mmio_read(offset, WIDTHS[width])

    def op_lo(self, pin: int, value: int) -> None:
        self.op_sel(0x10 + 2 * pin)
        self.op_win(value)

    def op_hi(self, pin: int, value: int) -> None:
        self.op_sel(0x11 + 2 * pin)
        self.op_win(value)

    def op_rte(self, pin: int, value: int) -> None:
        self.op_hi(pin, value >> 32)
        self.op_lo(pin, value & 0xFFFF_FFFF)

    def op_rrte(self, pin: int) -> int:
        self.op_sel(0x11 + 2 * pin)
        high = self.op_rwin()
        self.op_sel(0x10 + 2 * pin)
        return high << 32 | self.op_rwin()

    def op_eoi(self, vector: int) -> None:
        self.ioapic.mmio_write(EOI, 4, vector)

    def op_eoin(self, vector: int, times: int) -> None:
        for _ in range(times):
            self.op_eoi(vector)

    # Lines, ports, time.

    def op_irq(self, pin: int, level: int) -> None:
        self.ioapic.set_irq(pin, 0, bool(level))

    def op_isa(self, irq: int, level: int) -> None:
        self.pic.set_irq(irq, 0, bool(level))
        self.op_irq(irq, level)

    def _pic_port(self, port: int) -> tuple[PicChip, int]:
        return (self.pic.master if port & 0x80 == 0 else self.pic.slave), port & 1

    def op_outb(self, port: int, value: int) -> None:
        self.pic.write(*self._pic_port(port), value)

    def op_inb(self, port: int) -> int:
        return self.pic.read(*self._pic_port(port))

    def op_clock(self, ns: int) -> None:
        self.clock.step(ns)

    def op_reset(self) -> None:
        self.ioapic.reset()
        self.pic.reset()


def replay_qemu(sequence: dict[str, Any], version: int = 0x20) -> Difference | None:
    """Replay one sequence on a chip of `version`; the first difference, or None."""
    name = sequence["name"]
    chip = QemuReplay(version)
    entries = dict.fromkeys(map(str, range(PINS)), hex(MASKED))
    expected: dict[str, Any] = {"c": entries, "irr": 0, "id": 0, "sel": 0}
    for number, step in enumerate(sequence["steps"], 1):
        op = step["op"]
        value = chip.run(op)
        if value != step.get("v"):
            return Difference(name, number, op, "v", step.get("v"), value)
        messages = chip.messages()
        if messages != step.get("d", []):
            return Difference(name, number, op, "d", step.get("d", []), messages)
        entries.update(step.get("c", {}))
        expected.update({field: step[field] for field in ("irr", "id", "sel") if field in step})
        state = chip.state()
        for field, wanted in expected.items():
            if state[field] != wanted:
                return Difference(name, number, op, field, wanted, state[field])
    end = len(sequence["steps"])
    for field, got in (("final_mmio", chip.final()), ("final_irr", chip.ioapic.irr)):
        if field in sequence and got != sequence[field]:
            return Difference(name, end, None, field, sequence[field], got)
    return None
