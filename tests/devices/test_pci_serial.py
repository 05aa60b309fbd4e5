"""The PCI serial port: the 16550A behind an I/O BAR, its interrupt on INTx."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import uart16550 as u
from devices.isa_serial import IsaSerial
from devices.pci_serial import PciSerial
from machine import Machine, MachineConfig
from support.pci import PciBoard
from vmm.chardev import MemoryBackend
from vmm.errors import InUse, PropertyError

DEVFN = 5 << 3
BAR = 0xC000
IRQ = 10
COM1 = 0x3F8


class SerialBoard(PciBoard):
    """A board with a pci-serial on a character device in memory, set up as firmware does."""

    def __init__(self, **values: object) -> None:
        super().__init__()
        self.wire = MemoryBackend("c0")
        self.route(IRQ)
        self.before = self.ledger.snapshot()
        self.port = self.plug(PciSerial("s0", addr=DEVFN, chardev="c0", **values))
        self.firmware()

    def firmware(self) -> None:
        self.config_write(DEVFN, 0x10, BAR)
        self.config_write(DEVFN, 4, 1, 2)
        self.route(IRQ)

    def chardev(self, name: str) -> MemoryBackend | None:
        return self.wire if name == "c0" else None


def test_identity_is_that_of_qemus_pci_serial():
    board = SerialBoard()
    assert board.config_read(DEVFN, 0x00) == 0x0002_1B36
    assert board.config_read(DEVFN, 0x08) == 0x0700_0201
    assert board.config_read(DEVFN, 0x2C) == 0x1100_1AF4
    assert board.config_read(DEVFN, 0x3D, 1) == 1
    board.config_write(DEVFN, 0x10, 0xFFFF_FFFF)
    assert board.config_read(DEVFN, 0x10) == 0xFFFF_FFF9


def test_prog_if_property_shows_in_configuration_space():
    assert SerialBoard(prog_if=6).config_read(DEVFN, 0x09, 1) == 6


def test_characters_go_out_and_come_in_through_the_bar():
    board = SerialBoard()
    board.outb(BAR + u.FCR, 1)
    for value in b"out":
        board.outb(BAR + u.THR, value)
    board.wire.feed(b"in")
    assert board.wire.output == b"out"
    assert bytes(board.inb(BAR + u.RBR) for _ in range(2)) == b"in"
    assert board.inb(BAR + u.LSR) == 0x60


def test_line_is_high_while_data_waits_and_interrupts_are_on():
    board = SerialBoard()
    board.outb(BAR + u.IER, u.IER_RDA)
    assert board.high() == []
    board.wire.feed(b"x")
    assert board.high() == [IRQ]
    assert board.config_read(DEVFN, 6, 2) & 8
    board.config_write(DEVFN, 4, 0x401, 2)
    assert board.high() == []
    board.config_write(DEVFN, 4, 0x001, 2)
    assert board.high() == [IRQ]
    board.inb(BAR + u.RBR)
    assert board.high() == []


def test_reset_lowers_the_line_and_unmaps_the_port():
    board = SerialBoard()
    board.outb(BAR + u.IER, u.IER_THRE)
    assert board.high() == [IRQ]
    board.reset()
    assert (board.high(), board.inb(BAR + u.LSR)) == ([], 0xFF)
    board.firmware()
    assert [board.inb(BAR + r) for r in (u.IER, u.IIR, u.LCR, u.MCR, u.LSR)] == [0, 1, 0, 0, 0x60]


def test_unplug_with_the_line_high_gives_back_everything_and_frees_the_chardev():
    board = SerialBoard()
    board.outb(BAR + u.IER, u.IER_THRE)
    with pytest.raises(InUse, match="c0"):
        board.plug(PciSerial("s1", chardev="c0"))
    board.port.unrealize()
    assert board.high() == []
    assert board.ledger.difference(board.before) == ([], [])
    again = board.plug(PciSerial("s1", chardev="c0"))
    assert again.uart.backend is board.wire


def test_chardev_that_does_not_exist_is_named():
    board = SerialBoard()
    with pytest.raises(PropertyError, match=r"Property 'pci-serial.chardev' can't find value 'nosuch'"):
        board.plug(PciSerial("s1", chardev="nosuch"))


@given(
    operations=st.lists(
        st.one_of(
            st.tuples(st.just("read"), st.integers(0, 7), st.just(0)),
            st.tuples(st.just("write"), st.integers(0, 7), st.integers(0, 255)),
            st.tuples(st.just("feed"), st.just(0), st.integers(0, 255)),
        ),
        max_size=40,
    )
)
def test_guest_sees_the_same_chip_behind_the_bar_as_on_the_isa_bus(operations):
    board = SerialBoard()
    other = MemoryBackend("isa")
    isa = IsaSerial()
    isa.backend = other
    isa.realize(board)
    for kind, register, value in operations:
        if kind == "read":
            assert board.inb(BAR + register) == board.inb(COM1 + register)
        elif kind == "write":
            board.outb(BAR + register, value)
            board.outb(COM1 + register, value)
        else:
            board.wire.feed(bytes((value,)))
            other.feed(bytes((value,)))
        assert (IRQ in board.high()) == (isa.irq in board.high())
    assert board.wire.output == other.output


def test_machine_plugs_it_on_a_chardev_of_the_command_line():
    wire = MemoryBackend("c0")
    machine = Machine.create("pc", MachineConfig(accel="qtest", chardevs={"c0": wire}))
    device = machine.device_add({"driver": "pci-serial", "chardev": "c0", "id": "s0"})
    assert wire.frontend is device.uart
