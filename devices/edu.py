"""QEMU's educational device: a factorial, a DMA engine, and an interrupt to acknowledge, on the pin or as a message.

The registers are those of QEMU's `edu`, so its drivers and exercises run unchanged. It differs in two points: a system
reset resets the registers too, and the factorial takes virtual time.
Ref: QEMU docs/specs/edu.rst.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Property
from devices.pci.device import PciDevice
from devices.pci.msi import Msi
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.device import Board
    from vmm.clock import Timer

IDENTIFICATION = 0x0100_00ED
"""Major version 1, minor version 0, 0xed."""

REG_ID = 0x00
REG_LIVENESS = 0x04
REG_FACTORIAL = 0x08
REG_STATUS = 0x20
REG_IRQ_STATUS = 0x24
REG_IRQ_RAISE = 0x60
REG_IRQ_ACK = 0x64
REG_DMA_SRC = 0x80
REG_DMA_DST = 0x88
REG_DMA_COUNT = 0x90
REG_DMA_CMD = 0x98

STATUS_COMPUTING = 0x01
STATUS_RAISE_IRQ = 0x80
IRQ_FACTORIAL = 0x001
IRQ_DMA = 0x100
DMA_RUN = 0x1
DMA_TO_MEMORY = 0x2
DMA_RAISE_IRQ = 0x4
DMA_START = 0x40000
DMA_SIZE = 4096

BAR_SIZE = 1 << 20
FACTORIAL_NS = 10_000
"""How long a factorial takes; QEMU leaves it to a thread."""

_M32 = 0xFFFF_FFFF
_M64 = 0xFFFF_FFFF_FFFF_FFFF

EduRegisters = c.Struct(
    "identification" / c.Int32ul,
    "liveness" / c.Int32ul,
    "factorial" / c.Int32ul,
    c.Padding(0x14),
    "status" / c.Int32ul,
    "irq_status" / c.Int32ul,
    c.Padding(0x38),
    "irq_raise" / c.Int32ul,
    "irq_acknowledge" / c.Int32ul,
    c.Padding(0x18),
    "dma_source" / c.Int64ul,
    "dma_destination" / c.Int64ul,
    "dma_count" / c.Int64ul,
    "dma_command" / c.Int64ul,
)
"""BAR0. Below 0x80 all accesses are dwords, from there on dwords or quadwords."""


class EduDma(Event):
    """A transfer is over. `done` is False if it left the device's 4 KiB buffer and nothing was copied."""

    source: int
    destination: int
    count: int
    to_memory: bool
    done: bool


class Edu(PciDevice):
    """`-device edu`: BAR0 is 1 MiB of registers; the 4 KiB buffer at 0x40000 is reached by DMA only."""

    driver = "edu"
    description = "educational device: factorial, DMA, INTx and MSI"
    vendor_id, device_id, class_id, revision, interrupt_pin = 0x1234, 0x11E8, 0x00FF, 0x10, 1
    properties = (
        *PciDevice.properties,
        Property("dma_mask", "uint64", (1 << 28) - 1, "bus addresses are cut to these bits"),
        Property("x-dma-delay-us", "uint32", 100_000, "virtual time that a transfer takes, in microseconds"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.buffer = bytearray(DMA_SIZE)
        self.raised = self.acked = 0
        self._power_on()

    def _power_on(self) -> None:
        self.liveness = self.factorial = self.status = self.irq_status = 0
        self.dma = {REG_DMA_SRC: 0, REG_DMA_DST: 0, REG_DMA_COUNT: 0, REG_DMA_CMD: 0}
        self.buffer[:] = bytes(DMA_SIZE)

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.msi = Msi(self)
        self.register_bar(0, IoRegion("edu-mmio", BAR_SIZE, self.read, self.write, min_access=4, max_access=8))
        self._factorial_timer = self._timer("edu-factorial", self._factorial_done)
        self._dma_timer = self._timer("edu-dma", self._dma_done)

    def _timer(self, name: str, callback: Any) -> Timer:
        timer = self.board.clock.timer(name, callback)
        self.holdings.hold("timer", name, timer.cancel)
        return timer

    def reset(self) -> None:
        """Idle: no interrupt, no computation, no transfer; the buffer is zero."""
        super().reset()
        self._factorial_timer.cancel()
        self._dma_timer.cancel()
        self._power_on()

    migratable = True

    def save_state(self) -> dict[str, Any]:
        """Registers, buffer, and what is under way, in time to go."""
        now = self.board.clock.now()
        timers = {"factorial": self._factorial_timer, "dma": self._dma_timer}
        return {
            **super().save_state(),
            "registers": [self.liveness, self.factorial, self.status, self.irq_status],
            "dma": [self.dma[at] for at in (REG_DMA_SRC, REG_DMA_DST, REG_DMA_COUNT, REG_DMA_CMD)],
            "buffer": self.buffer.hex(),
            "timers": {
                name: max(0, timer.deadline - now) for name, timer in timers.items() if timer.deadline is not None
            },
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """As every device's."""
        registers = [int(value) & _M32 for value in state["registers"]]
        source, destination, count, command = (int(value) & _M64 for value in state["dma"])
        buffer = bytes.fromhex(state["buffer"])
        timers = {name: int(left) for name, left in state["timers"].items()}
        if len(buffer) != DMA_SIZE or timers.keys() - {"factorial", "dma"} or min(timers.values(), default=0) < 0:
            raise ValueError(f"a buffer of {len(buffer)} bytes, and timers {timers}")
        super().load_state(state)
        self.liveness, self.factorial, self.status, self.irq_status = registers
        self.dma = {
            REG_DMA_SRC: source,
            REG_DMA_DST: destination,
            REG_DMA_COUNT: count,
            REG_DMA_CMD: command,
        }
        self.buffer[:] = buffer
        now = self.board.clock.now()
        for name, timer in (("factorial", self._factorial_timer), ("dma", self._dma_timer)):
            if name in timers:
                timer.arm(now + timers[name])
            else:
                timer.cancel()

    def stats(self) -> dict[str, int]:
        """Host's view: interrupts raised and acknowledged since the device was made."""
        return {"raised": self.raised, "acked": self.acked}

    # Registers.

    def read(self, offset: int, size: int) -> int:
        """A register; all ones where there is none or the size is wrong."""
        if offset >= REG_DMA_SRC:
            return self.dma.get(offset, _M64)
        if size != 4:
            return _M64
        if offset == REG_IRQ_STATUS:
            return self.irq_status
        if offset == REG_ID:
            return IDENTIFICATION
        if offset == REG_LIVENESS:
            return self.liveness
        if offset == REG_FACTORIAL:
            return self.factorial
        if offset == REG_STATUS:
            return self.status
        return _M32

    def write(self, offset: int, size: int, value: int) -> None:
        """Store into a register; lost where there is none or the size is wrong."""
        if offset >= REG_DMA_SRC:
            self._write_dma(offset, value)
        elif size != 4:
            return
        elif offset == REG_IRQ_ACK:
            self.acked += 1
            self.lower(value)
        elif offset == REG_IRQ_RAISE:
            self.raise_irq(value)
        elif offset == REG_LIVENESS:
            self.liveness = ~value & _M32
        elif offset == REG_FACTORIAL:
            if not self.status & STATUS_COMPUTING:
                self.factorial = value
                self.status |= STATUS_COMPUTING
                self._factorial_timer.arm(self.board.clock.now() + FACTORIAL_NS)
        elif offset == REG_STATUS:
            self.status = self.status & ~STATUS_RAISE_IRQ | value & STATUS_RAISE_IRQ

    def raise_irq(self, bits: int) -> None:
        """Set bits of the interrupt status: a message if MSI is enabled, else the pin is high while any is set."""
        if bits:
            self.raised += 1
        self.irq_status |= bits
        if self.irq_status:
            if self.msi is not None and self.msi.enabled:
                self.msi.notify(0)
            else:
                self.set_intx(True)

    def lower(self, bits: int) -> None:
        """Clear bits of the interrupt status."""
        self.irq_status &= ~bits
        if not self.irq_status:
            self.set_intx(False)

    def _factorial_done(self) -> None:
        # 34! and all that follow are multiples of 2**32.
        self.factorial = math.factorial(min(self.factorial, 34)) & _M32
        self.status &= ~STATUS_COMPUTING
        if self.status & STATUS_RAISE_IRQ:
            self.raise_irq(IRQ_FACTORIAL)

    # DMA.

    def _write_dma(self, offset: int, value: int) -> None:
        dma = self.dma
        if offset not in dma or dma[REG_DMA_CMD] & DMA_RUN:
            return
        if offset != REG_DMA_CMD:
            dma[offset] = value
        elif value & DMA_RUN:
            dma[REG_DMA_CMD] = value
            self._dma_timer.arm(self.board.clock.now() + 1000 * self.values["x-dma-delay-us"])

    def _dma_done(self) -> None:
        dma = self.dma
        source, destination, count = dma[REG_DMA_SRC], dma[REG_DMA_DST], dma[REG_DMA_COUNT]
        command = dma[REG_DMA_CMD]
        to_memory = bool(command & DMA_TO_MEMORY)
        start = (source if to_memory else destination) - DMA_START
        done = start >= 0 and start + count <= DMA_SIZE
        if done and to_memory:
            self.dma_write(destination & self.values["dma_mask"], self.buffer[start : start + count])
        elif done:
            self.buffer[start : start + count] = self.dma_read(source & self.values["dma_mask"], count)
        trace = self.board.trace
        if trace.on:
            trace.emit(EduDma(source, destination, count, to_memory, done))
        dma[REG_DMA_CMD] &= ~DMA_RUN
        if command & DMA_RAISE_IRQ:
            self.raise_irq(IRQ_DMA)
