"""pc-testdev: what kvm-unit-tests and qtest programs want of a test device on the ISA bus.

Ports 0xe0-0xe3 are a 32-bit register that takes accesses of any size, 0xe8-0xeb the same register byte by byte;
0xe4 makes the host forget its mapping of a guest page; 0x2000+n drives interrupt line n; 0xff000000 is 64 KiB of
memory behind MMIO. Ref: kvm-unit-tests, x86/ioram.h, lib/x86/apic.c (set_irq_line), x86/eventinj.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from devices.device import Device
from vmm.memory import ALL_ONES, IoRegion

if TYPE_CHECKING:
    from devices.device import Board
    from vmm.lines import LevelLine

IORAM_BASE = 0xFF00_0000
IORAM_SIZE = 0x1_0000
IRQ_BASE = 0x2000
IRQ_LINES = 24
PAGE = 4096


class GsiBoard(Protocol):
    """A board whose interrupt lines above the ISA ones can be driven too."""

    def gsi_irq(self, holder: str, gsi: int) -> LevelLine: ...


class PcTestdev(Device):
    """The test device. Lines 0..15 are ISA IRQs; 16..23 are GSIs where the board has them, and nothing elsewhere."""

    driver = "pc-testdev"
    description = "test device of kvm-unit-tests"
    bus_type = "ISA"

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.data = bytearray(4)
        self.ioram = bytearray(IORAM_SIZE)
        self.lines: list[LevelLine | None] = []

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.lines = [self.isa_irq(n) for n in range(16)]
        self.lines += [self._gsi_line(board, n) for n in range(16, IRQ_LINES)]
        self.map_ports(0xE0, IoRegion("pc-testdev-ioport", 4, self._read_data, self._write_data, max_access=4))
        self.map_ports(0xE8, IoRegion("pc-testdev-ioport-byte", 4, self._read_data, self._write_data, max_access=1))
        self.map_ports(0xE4, IoRegion("pc-testdev-flush-page", 4, lambda _o, _s: 0, self._flush, max_access=4))
        self.map_ports(IRQ_BASE, IoRegion("pc-testdev-irq-line", IRQ_LINES, lambda _o, _s: 0, self._irq, max_access=1))
        self.map_memory(IORAM_BASE, IoRegion("pc-testdev-iomem", IORAM_SIZE, self._read_ioram, self._write_ioram))

    def _gsi_line(self, board: Board, gsi: int) -> LevelLine | None:
        take = getattr(board, "gsi_irq", None)
        if take is None:
            return None
        line: LevelLine = take(self.id or self.driver, gsi)
        self.holdings.hold("wire-holder", f"gsi-{gsi}", line.close)
        return line

    def unrealize(self) -> None:
        super().unrealize()
        self.lines = []

    def reset(self) -> None:
        for line in self.lines:
            if line is not None:
                line.set(False)
        self.data[:] = bytes(4)

    def _read_data(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def _write_data(self, offset: int, size: int, value: int) -> None:
        self.data[offset : offset + size] = (value & ALL_ONES[size]).to_bytes(size, "little")

    def _flush(self, _offset: int, _size: int, value: int) -> None:
        memory = self.board.memory
        page = value & ~(PAGE - 1)
        if memory.on_write is not None and memory.locate(page, PAGE) >= 0:
            memory.on_write(page, PAGE)

    def _irq(self, offset: int, _size: int, value: int) -> None:
        line = self.lines[offset]
        if line is not None:
            line.set(value != 0)

    def _read_ioram(self, offset: int, size: int) -> int:
        return int.from_bytes(self.ioram[offset : offset + size], "little")

    def _write_ioram(self, offset: int, size: int, value: int) -> None:
        self.ioram[offset : offset + size] = (value & ALL_ONES[size]).to_bytes(size, "little")
