"""pc-testdev, as kvm-unit-tests and qtest programs use it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.pc_testdev import IORAM_BASE, IORAM_SIZE, PcTestdev
from tests.support.board import FakeBoard
from vmm.lines import LevelLine, Wire


class GsiBoard(FakeBoard):
    """A board whose GSIs 16..23 can be driven too."""

    def __init__(self) -> None:
        super().__init__()
        self.gsis = {n: Wire(f"gsi-{n}") for n in range(16, 24)}

    def gsi_irq(self, holder: str, gsi: int) -> LevelLine:
        return self.gsis[gsi].hold(holder)


def realized(board: FakeBoard | None = None) -> tuple[FakeBoard, PcTestdev]:
    board = board or FakeBoard()
    device = PcTestdev()
    device.realize(board)
    return board, device


@pytest.mark.parametrize("port", [0xE0, 0xE8])
def test_pieces_of_a_dword_are_little_endian(port):
    board, _ = realized()
    board.outl(port, 0x87654321)
    assert board.inl(port) == 0x87654321
    assert [board.inw(port), board.inw(port + 2)] == [0x4321, 0x8765]
    assert [board.inb(port + n) for n in range(4)] == [0x21, 0x43, 0x65, 0x87]


@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.integers(0, 3), st.booleans(), st.integers(0, 2**32 - 1))),
)
def test_both_windows_show_one_register(writes):
    board, _ = realized()
    expected = bytearray(4)
    for size, at, byte_window, value in writes:
        at -= at % size
        value &= (1 << 8 * size) - 1
        board.ports.write((0xE8 if byte_window else 0xE0) + at, size, value)
        expected[at : at + size] = value.to_bytes(size, "little")
        for port in (0xE0, 0xE8):
            assert board.inl(port) == int.from_bytes(expected, "little")


def test_irq_port_drives_isa_line_by_level():
    board, _ = realized()
    board.outb(0x2000 + 14, 1)
    assert board.high() == [14]
    board.outb(0x2000 + 14, 0)
    assert board.take_irq_events() == [("raise", 14), ("lower", 14)]


def test_irq_port_above_15_drives_gsi():
    board, _ = realized(GsiBoard())
    board.outb(0x2000 + 23, 0x80)
    assert board.gsis[23].high
    assert board.high() == []


def test_irq_port_above_15_without_gsis_is_ignored():
    board, _ = realized()
    board.outb(0x2000 + 16, 1)
    assert board.high() == []


def test_ioram_keeps_what_was_written():
    board, _ = realized()
    board.write(IORAM_BASE, 0x1122334455667788, 8)
    assert board.read(IORAM_BASE + 2, 2) == 0x5566
    board.write(IORAM_BASE + IORAM_SIZE - 1, 0xAB, 1)
    assert board.read(IORAM_BASE + IORAM_SIZE - 1, 1) == 0xAB
    assert board.read(IORAM_BASE + IORAM_SIZE, 1) == 0xFF


def test_flush_port_makes_host_forget_the_page():
    board, _ = realized()
    told = []
    board.memory.on_write = lambda gpa, length: told.append((gpa, length))
    board.outl(0xE4, 0x3456)
    board.outl(0xE4, 0xFFFF_F000)
    assert told == [(0x3000, 4096)]


def test_reset_and_unrealize_lower_lines():
    board, device = realized()
    board.outb(0x2005, 1)
    device.reset()
    assert board.high() == []
    board.outb(0x2005, 1)
    device.unrealize()
    assert board.high() == []
    assert board.ledger.rows() == []
