"""QEMU's pci-testdev: headers, counting, and the optional third BAR."""

import pytest

from devices.pci_testdev import PciTestdev, TestHeader
from support.pci import PciBoard
from vmm.errors import PropertyError

DEVFN = 4 << 3
MEMORY, IO, MEMBAR = 0xFD00_0000, 0xC000, 0xFA00_0000


def made(**values):
    board = PciBoard()
    board.plug(PciTestdev("t0", addr=DEVFN, **values))
    board.config_write(DEVFN, 0x10, MEMORY)
    board.config_write(DEVFN, 0x14, IO)
    board.config_write(DEVFN, 0x18, MEMBAR)
    board.config_write(DEVFN, 4, 3, 2)
    return board


@pytest.fixture
def board():
    return made()


def header(board, io):
    read = (lambda i: board.inb(IO + i)) if io else (lambda i: board.read(MEMORY + i, 1))
    return TestHeader.parse(bytes(read(i) for i in range(64)))


@pytest.mark.parametrize(
    ("io", "number", "test", "offset", "data", "name"),
    [
        (False, 0, 0, 0x800, 0xFA, "mmio-no-eventfd"),
        (False, 1, 1, 0x801, 0xCE, "mmio-wildcard-eventfd"),
        (False, 2, 2, 0x802, 0xFA, "mmio-datamatch-eventfd"),
        (True, 0, 3, 0x83, 0xFA, "portio-no-eventfd"),
        (True, 1, 4, 0x84, 0xCE, "portio-wildcard-eventfd"),
        (True, 2, 5, 0x85, 0xFA, "portio-datamatch-eventfd"),
    ],
)
def test_header_of_each_test_is_that_of_qemu(board, io, number, test, offset, data, name):
    board.outb(IO, number) if io else board.write(MEMORY, number, 1)
    found = header(board, io)
    assert (found.test, found.width, found.offset) == (test, 1, offset)
    assert (found.data, found.count, found.name) == (data, 0, name)


@pytest.mark.parametrize("number", [3, 4, 255])
def test_number_that_is_no_test_reads_zeros(board, number):
    board.write(MEMORY, 0, 1)
    board.write(MEMORY, number, 1)
    assert [board.read(MEMORY + i, 1) for i in range(64)] == [0] * 64


@pytest.mark.parametrize(("number", "value", "counted"), [(0, 0xFA, 2), (0, 0xFB, 0), (1, 0x00, 2), (2, 0xFA, 2)])
def test_write_counts_if_it_matches_whatever_its_width(board, number, value, counted):
    board.write(MEMORY, number, 1)
    board.write(MEMORY + 0x800 + number, value, 1)
    board.write(MEMORY + 0x800 + number, value, 4)
    board.write(MEMORY + 0x700 + number, value, 1)
    assert board.read(MEMORY + 12) == counted
    board.write(MEMORY, number, 1)
    assert board.read(MEMORY + 12) == 0


def test_memory_and_port_tests_are_selected_apart(board):
    board.write(MEMORY, 0, 1)
    board.outb(IO, 0)
    board.outb(IO + 0x83, 0xFA)
    assert (board.read(MEMORY + 12), board.inl(IO + 12)) == (0, 1)


def test_reset_selects_no_test(board):
    board.write(MEMORY, 0, 1)
    board.reset()
    board.config_write(DEVFN, 0x10, MEMORY)
    board.config_write(DEVFN, 4, 3, 2)
    assert board.read(MEMORY) == 0


def test_membar_is_a_64_bit_prefetchable_bar_that_reads_zero_unless_backed():
    board = made(membar=65536)
    assert board.config_read(DEVFN, 0x18) & 0xF == 0xC
    board.write(MEMBAR + 0x10, 0x1234_5678)
    assert board.read(MEMBAR + 0x10) == 0
    board = made(membar=65536, **{"membar-backed": True})
    board.write(MEMBAR + 0xFFF8, 0x1122_3344_5566_7788, 8)
    assert board.read(MEMBAR + 0xFFFC) == 0x1122_3344


@pytest.mark.parametrize("size", [1000, 8, 1 << 48])
def test_membar_of_a_size_that_no_bar_has_is_refused(size):
    board = PciBoard()
    before = board.ledger.snapshot()
    with pytest.raises(PropertyError, match="membar"):
        board.plug(PciTestdev("t0", addr=DEVFN, membar=size))
    assert board.ledger.difference(before) == ([], [])


def test_device_has_no_interrupt_pin(board):
    assert board.config_read(DEVFN, 0x3C, 2) == 0
