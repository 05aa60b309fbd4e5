"""The 16550A as its guest sees it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import uart16550 as u
from devices.isa_serial import IsaSerial
from tests.support.board import FakeBoard
from vmm.chardev import BUFFER_SIZE, CharBackend, MemoryBackend
from vmm.errors import InUse, PropertyError


class Port:
    """A realized port with a backend in memory, and the registers by offset."""

    def __init__(self, backend: CharBackend | None = None, **values: object) -> None:
        self.board = FakeBoard()
        self.wire = MemoryBackend("serial0") if backend is None else backend
        self.device = IsaSerial(**values)
        self.device.backend = self.wire
        self.device.realize(self.board)
        self.uart = self.device.uart

    def read(self, register: int) -> int:
        return self.board.inb(self.device.iobase + register)

    def write(self, register: int, value: int) -> None:
        self.board.outb(self.device.iobase + register, value)

    @property
    def irq(self) -> bool:
        return self.device.irq in self.board.high()

    def divisor(self, value: int) -> None:
        lcr = self.read(u.LCR)
        self.write(u.LCR, lcr | u.LCR_DLAB)
        self.write(u.DLL, value & 0xFF)
        self.write(u.DLM, value >> 8)
        self.write(u.LCR, lcr & ~u.LCR_DLAB)


class Slow(CharBackend):
    """Takes only as much as `room` says."""

    def __init__(self) -> None:
        super().__init__("slow")
        self.room = 0
        self.sent = b""

    def _send(self, data: bytearray) -> int:
        taken = min(self.room, len(data))
        self.sent += data[:taken]
        self.room -= taken
        return taken


class Refusing(CharBackend):
    """Refuses everything until told otherwise."""

    def __init__(self) -> None:
        super().__init__("refusing")
        self.takes = False
        self.sent = b""

    def write(self, data: bytes) -> int:
        if self.takes:
            self.sent += data
        return len(data) if self.takes else 0


# Output.


def test_polled_console_output_as_kvm_unit_tests_print_it():
    port = Port()
    port.write(u.LCR, port.read(u.LCR) | 0x80)
    port.write(u.DLL, 1)
    port.write(u.DLM, 0)
    port.write(u.LCR, port.read(u.LCR) & ~0x80)
    for register, value in ((u.IER, 0), (u.LCR, 3), (u.FCR, 0), (u.MCR, 3)):
        port.write(register, value)
    for character in b"enabling apic\r\n":
        assert port.read(u.LSR) & u.LSR_THRE
        port.write(u.THR, character)
    assert port.wire.output == b"enabling apic\r\n"
    assert port.board.take_irq_events() == []


def test_string_output_instruction_sends_each_byte():
    port = Port()
    for character in b"ab":
        port.board.ports.write(0x3F8, 1, character)
    assert port.wire.output == b"ab"


def test_enabling_thre_interrupt_with_empty_transmitter_interrupts_at_once():
    port = Port()
    port.write(u.IER, u.IER_THRE)
    assert port.irq
    assert port.read(u.IIR) == u.IIR_THRE
    assert not port.irq
    assert port.read(u.IIR) == u.IIR_NONE


def test_each_written_character_makes_a_new_edge():
    port = Port()
    port.write(u.IER, u.IER_THRE)
    port.board.take_irq_events()
    port.write(u.THR, 0x41)
    assert port.board.take_irq_events() == [("lower", 4), ("raise", 4)]


def test_disabling_and_enabling_thre_interrupt_asks_again():
    port = Port()
    port.write(u.IER, u.IER_THRE)
    port.read(u.IIR)
    port.write(u.IER, 0)
    port.write(u.IER, u.IER_THRE)
    assert port.read(u.IIR) == u.IIR_THRE


def test_backend_that_takes_nothing_keeps_transmitter_busy():
    wire = Refusing()
    port = Port(wire)
    port.write(u.IER, u.IER_THRE)
    port.read(u.IIR)
    port.write(u.THR, 0x41)
    assert port.read(u.LSR) & (u.LSR_THRE | u.LSR_TEMT) == 0
    assert not port.irq
    wire.takes = True
    port.uart.writable()
    assert wire.sent == b"A"
    assert port.read(u.LSR) & u.LSR_THRE
    assert port.irq


def test_transmit_fifo_holds_sixteen_while_backend_is_busy():
    wire = Refusing()
    port = Port(wire)
    port.write(u.FCR, 1)
    for n in range(20):
        port.write(u.THR, n)
    wire.takes = True
    port.uart.writable()
    assert wire.sent == bytes([*range(15), 19])


def test_full_buffer_stalls_and_drains_without_loss():
    wire = Slow()
    port = Port(wire)
    sent = bytearray()
    for n in range(BUFFER_SIZE + 8):
        if not port.read(u.LSR) & u.LSR_THRE:
            break
        port.write(u.THR, n & 0xFF)
        sent.append(n & 0xFF)
    assert len(sent) == BUFFER_SIZE + 1
    wire.room = 2 * BUFFER_SIZE
    wire.flush()
    assert port.read(u.LSR) & u.LSR_THRE
    wire.flush()
    assert wire.sent == bytes(sent)


def test_paced_output_takes_ten_bit_times():
    port = Port(**{"x-paced": True})
    port.write(u.LCR, 3)
    port.divisor(12)  # 9600 baud
    port.write(u.THR, 0x41)
    port.write(u.THR, 0x42)
    assert port.wire.output == b"A"
    assert port.read(u.LSR) & u.LSR_THRE == 0
    bits10 = 10 * 1_000_000_000 // 9600
    port.board.clock.step(bits10 - 1000)
    assert port.wire.output == b"A"
    port.board.clock.step(2000)
    assert port.wire.output == b"AB"
    assert port.read(u.LSR) & (u.LSR_THRE | u.LSR_TEMT) == u.LSR_THRE
    port.board.clock.step(bits10)
    assert port.read(u.LSR) & u.LSR_TEMT


# Input.


def test_received_character_interrupts_and_is_read_once():
    port = Port()
    port.write(u.IER, u.IER_RDA)
    port.wire.feed(b"x")
    assert port.irq
    assert port.read(u.IIR) == u.IIR_RDA
    assert port.read(u.LSR) & u.LSR_DR
    assert port.read(u.RBR) == ord("x")
    assert not port.irq
    assert port.read(u.LSR) & u.LSR_DR == 0


def test_holding_register_shows_its_last_character_again():
    port = Port()
    port.uart.receive(b"x")
    assert [port.read(u.RBR), port.read(u.RBR)] == [ord("x"), ord("x")]
    port.write(u.FCR, 1)
    assert port.read(u.RBR) == 0


def test_input_waits_for_room_and_arrives_in_order():
    port = Port()
    port.wire.feed(b"hello")
    assert bytes(port.read(u.RBR) for _ in range(5)) == b"hello"
    assert port.read(u.LSR) & (u.LSR_DR | u.LSR_OE) == 0


@pytest.mark.parametrize(("level", "trigger"), [(0x00, 1), (0x40, 4), (0x80, 8), (0xC0, 14)])
def test_fifo_interrupts_at_its_trigger_level(level, trigger):
    port = Port()
    port.write(u.FCR, 1 | level)
    port.write(u.IER, u.IER_RDA)
    port.wire.feed(bytes(trigger - 1))
    assert not port.irq
    port.wire.feed(b"!")
    assert port.read(u.IIR) == u.IIR_FIFO | u.IIR_RDA


def test_characters_below_trigger_time_out_after_four_character_times():
    port = Port()
    port.write(u.LCR, 3)
    port.divisor(1)
    port.write(u.FCR, 0xC1)
    port.write(u.IER, u.IER_RDA)
    port.wire.feed(b"ab")
    four = 4 * 10 * 1_000_000_000 // 115200
    port.board.clock.step(four - 1000)
    assert not port.irq
    port.board.clock.step(2000)
    assert port.read(u.IIR) == u.IIR_FIFO | u.IIR_CTI
    port.read(u.RBR)
    assert not port.irq
    port.board.clock.step(four + 1000)
    assert port.irq
    port.read(u.RBR)
    assert not port.irq


def test_overrun_of_fifo_keeps_what_was_there_and_says_so():
    port = Port()
    port.write(u.FCR, 1)
    port.write(u.IER, u.IER_RLS)
    port.uart.receive(bytes(range(17)))
    assert port.read(u.IIR) == u.IIR_FIFO | u.IIR_RLS
    assert port.read(u.LSR) & u.LSR_OE
    assert port.read(u.LSR) & u.LSR_OE == 0
    assert [port.read(u.RBR) for _ in range(16)] == list(range(16))


def test_break_is_a_nul_with_its_bit_set():
    port = Port()
    port.write(u.IER, u.IER_RLS | u.IER_RDA)
    port.wire.send_break()
    assert port.read(u.IIR) == u.IIR_RLS
    assert port.read(u.LSR) & (u.LSR_BI | u.LSR_DR) == u.LSR_BI | u.LSR_DR
    assert port.read(u.RBR) == 0


def test_clearing_the_receive_fifo_drops_what_it_held():
    port = Port()
    port.write(u.FCR, 1)
    port.write(u.IER, u.IER_RDA)
    port.uart.receive(b"abc")
    port.write(u.FCR, 3)
    assert port.read(u.LSR) & u.LSR_DR == 0
    assert not port.irq


def test_priorities_of_interrupt_causes():
    port = Port()
    port.write(u.IER, 0x0F)
    port.write(u.MCR, u.MCR_LOOP)
    port.write(u.THR, 0x41)
    port.write(u.THR, 0x42)
    causes = []
    causes.append(port.read(u.IIR))
    port.read(u.LSR)
    causes.append(port.read(u.IIR))
    port.read(u.RBR)
    causes.append(port.read(u.IIR))
    causes.append(port.read(u.IIR))
    port.read(u.MSR)
    causes.append(port.read(u.IIR))
    assert causes == [u.IIR_RLS, u.IIR_RDA, u.IIR_THRE, u.IIR_MSI, u.IIR_NONE]
    assert not port.irq


# Modem lines and loop-back.


@given(st.integers(0, 15))
def test_loopback_turns_outputs_into_inputs(outputs):
    port = Port()
    port.write(u.MCR, u.MCR_LOOP | outputs)
    mcr = u.ModemControl.parse(bytes([outputs]))
    msr = u.ModemStatus.parse(bytes([port.read(u.MSR)]))
    assert (msr.cts, msr.dsr, msr.ri, msr.dcd) == (mcr.rts, mcr.dtr, mcr.out1, mcr.out2)


def test_loopback_probe_of_an_operating_system_finds_a_uart():
    port = Port()
    port.write(u.MCR, 0x1A)
    assert port.read(u.MSR) & 0xF0 == 0x90


def test_loopback_returns_characters_and_sends_none_outside():
    port = Port()
    port.write(u.MCR, u.MCR_LOOP)
    port.write(u.THR, 0x5A)
    assert port.read(u.RBR) == 0x5A
    assert port.wire.output == b""
    port.wire.feed(b"outside")
    assert port.read(u.LSR) & u.LSR_DR == 0


def test_modem_deltas_are_cleared_by_reading_msr():
    port = Port()
    port.write(u.MCR, u.MCR_LOOP | 0x04)
    port.write(u.IER, u.IER_MSI)
    assert port.irq
    assert port.read(u.MSR) == 0x40 | 0x0B
    assert not port.irq
    port.write(u.MCR, u.MCR_LOOP)
    assert port.read(u.MSR) == u.MSR_TERI


# Registers.


@pytest.mark.parametrize("value", [0x00, 0x55, 0xAA, 0xFF])
def test_scratch_register_keeps_its_value(value):
    port = Port()
    port.write(u.SCR, value)
    assert port.read(u.SCR) == value


def test_reserved_bits_read_as_zero():
    port = Port()
    port.write(u.IER, 0xFF)
    port.write(u.MCR, 0xFF)
    assert (port.read(u.IER), port.read(u.MCR)) == (0x0F, 0x1F)


def test_divisor_is_behind_dlab():
    port = Port()
    port.write(u.LCR, 0x83)
    port.write(u.DLL, 0x34)
    port.write(u.DLM, 0x12)
    assert (port.read(u.DLL), port.read(u.DLM)) == (0x34, 0x12)
    port.write(u.LCR, 3)
    assert (port.read(u.IER), port.wire.output) == (0, b"")


def test_iir_shows_fifos_only_while_enabled():
    port = Port()
    assert port.read(u.IIR) == 0x01
    port.write(u.FCR, 0x01)
    assert port.read(u.IIR) == 0xC1
    port.write(u.FCR, 0x00)
    assert port.read(u.IIR) == 0x01


def test_reset_empties_the_port_and_lowers_its_line():
    port = Port()
    port.write(u.IER, u.IER_RDA | u.IER_THRE)
    port.wire.feed(b"x")
    port.device.reset()
    assert not port.irq
    assert [port.read(r) for r in (u.IER, u.IIR, u.LCR, u.MCR, u.LSR)] == [0, 1, 0, 0, 0x60]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("w"), st.integers(0, 7), st.integers(0, 255)),
            st.tuples(st.just("r"), st.integers(0, 7)),
            st.tuples(st.just("in"), st.binary(max_size=20)),
            st.tuples(st.just("t"), st.integers(0, 10**9)),
        ),
        max_size=50,
    )
)
def test_line_is_high_exactly_while_iir_shows_a_cause(steps):
    port = Port()
    for step in steps:
        match step:
            case ("w", register, value):
                port.write(register, value)
            case ("r", register):
                assert 0 <= port.read(register) <= 255
            case ("in", data):
                port.wire.feed(data)
            case ("t", ns):
                port.board.clock.step(ns)
        before = port.irq
        identification = u.InterruptIdentification.parse(bytes([port.read(u.IIR)]))
        assert before == (identification.id != u.IIR_NONE)


@given(st.integers(0, 255))
def test_declared_line_control_says_how_long_a_character_is(value):
    port = Port()
    port.divisor(1)
    port.write(u.LCR, value)
    lcr = u.LineControl.parse(bytes([value]))
    bits = 1 + 5 + lcr.word_length + lcr.parity + 1 + lcr.stop
    assert port.uart._char_ns == bits * 1_000_000_000 // 115200


# Its place in the machine.


@pytest.mark.parametrize(("index", "base", "irq"), [(0, 0x3F8, 4), (1, 0x2F8, 3), (2, 0x3E8, 4), (3, 0x2E8, 3)])
def test_index_gives_the_ports_of_a_pc(index, base, irq):
    port = Port(index=index)
    port.board.outb(base + u.IER, u.IER_THRE)
    assert port.board.high() == [irq]


@pytest.mark.parametrize(("values", "says"), [({"index": 4}, "4"), ({"irq": 16}, "16"), ({"iobase": 0xFFFF}, "0xffff")])
def test_impossible_place_is_refused(values, says):
    with pytest.raises(PropertyError, match=says):
        IsaSerial(**values)


def test_chardev_that_does_not_exist_is_named():
    with pytest.raises(PropertyError, match="can't find value 'nosuch'"):
        IsaSerial(chardev="nosuch").realize(FakeBoard())


def test_chardev_of_another_port_is_in_use_until_that_port_goes():
    port = Port()
    other = IsaSerial("other", index=1)
    other.backend = port.wire
    with pytest.raises(InUse, match="serial0"):
        other.realize(port.board)
    other.holdings.close()
    port.device.unrealize()
    assert port.board.ledger.rows() == []
    third = IsaSerial(index=1)
    third.backend = port.wire
    third.realize(port.board)
    port.board.outb(0x2F8, 0x41)
    assert port.wire.output == b"A"


def test_port_without_backend_swallows_output():
    board = FakeBoard()
    IsaSerial().realize(board)
    board.outb(0x3F8, 0x41)
    assert board.inb(0x3FD) == 0x60
