"""The reset lines of a PC that ISA devices own: port 0x92 and the keyboard controller, and the rest of the latter."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from devices.i8042 import I8042, CommandByte, Status
from devices.port92 import Port92, SystemControlA
from tests.support.board import FakeBoard


class Keyboard:
    def __init__(self) -> None:
        self.board = FakeBoard()
        self.device = I8042()
        self.device.realize(self.board)

    def command(self, *values: int) -> None:
        self.board.outb(0x64, values[0])
        for value in values[1:]:
            self.board.outb(0x60, value)

    def status(self):
        return Status.parse(bytes([self.board.inb(0x64)]))

    def answers(self) -> list[int]:
        got = []
        while self.status().obf:
            got.append(self.board.inb(0x60))
        return got


def test_rising_fast_init_bit_resets_once():
    board = FakeBoard()
    device = Port92()
    device.realize(board)
    board.outb(0x92, 0x03)
    board.outb(0x92, 0x03)
    assert board.resets == ["guest-reset"]
    assert board.inb(0x92) == 0x03
    device.reset()
    assert board.inb(0x92) == 0


def test_a20_bit_is_kept_and_resets_nothing():
    board = FakeBoard()
    Port92().realize(board)
    board.outb(0x92, 0xFE)
    assert SystemControlA.parse(bytes([board.inb(0x92)])).a20
    assert board.resets == []


def test_reset_command_resets_and_other_pulses_do_not():
    k = Keyboard()
    k.command(0xFF)
    assert k.board.resets == []
    k.command(0xFE)
    assert k.board.resets == ["guest-reset"]


def test_output_port_written_with_reset_line_low_resets():
    k = Keyboard()
    k.command(0xD1, 0xCF)
    assert k.board.resets == []
    k.command(0xD1, 0xCE)
    assert k.board.resets == ["guest-reset"]


def test_self_tests_answer_and_interrupt():
    k = Keyboard()
    assert not k.status().system
    k.command(0xAA)
    assert k.board.high() == [1]
    assert k.answers() == [0x55]
    assert k.board.high() == []
    assert k.status().system
    k.command(0xAB)
    assert k.answers() == [0x00]


def test_command_byte_is_kept_and_masks_the_interrupt():
    k = Keyboard()
    k.command(0x20)
    assert CommandByte.parse(bytes(k.answers())).kbd_int
    k.command(0x60, 0x64)
    k.command(0x20)
    assert k.board.high() == []
    assert k.answers() == [0x64]


def test_a20_commands_show_in_output_port():
    k = Keyboard()
    k.command(0xDD)
    k.command(0xD0)
    assert k.answers() == [0xCD]
    k.command(0xDF)
    k.command(0xD0)
    assert k.answers() == [0xCF]


def test_keyboard_is_found_by_an_operating_system():
    k = Keyboard()
    k.board.outb(0x60, 0xF5)
    assert k.answers() == [0xFA]
    k.board.outb(0x60, 0xF2)
    assert k.answers() == [0xFA, 0xAB, 0x83]
    k.board.outb(0x60, 0xED)
    k.board.outb(0x60, 0x07)
    assert k.answers() == [0xFA, 0xFA]
    k.board.outb(0x60, 0xF0)
    k.board.outb(0x60, 0x00)
    assert k.answers() == [0xFA, 0xFA, 0x02]
    k.board.outb(0x60, 0xFF)
    assert k.answers() == [0xFA, 0xAA]
    k.board.outb(0x60, 0x01)
    assert k.answers() == [0xFE]


def test_each_byte_of_an_answer_is_an_edge():
    k = Keyboard()
    k.board.outb(0x60, 0xFF)
    k.answers()
    assert k.board.take_irq_events() == [("raise", 1), ("lower", 1)] * 2


def test_loop_back_appears_at_the_auxiliary_port_and_nobody_is_there():
    k = Keyboard()
    k.command(0xD3, 0x5A)
    assert k.status().aux
    assert k.board.high() == [12]
    assert k.answers() == [0x5A]
    k.command(0xD4, 0xF2)
    assert k.status().timeout
    assert k.answers() == [0xFE]


def test_data_port_repeats_the_last_byte():
    k = Keyboard()
    k.command(0xAA)
    assert [k.board.inb(0x60), k.board.inb(0x60)] == [0x55, 0x55]


@given(st.lists(st.tuples(st.sampled_from([0x60, 0x64]), st.one_of(st.none(), st.integers(0, 255))), max_size=60))
def test_line_is_high_exactly_while_there_is_a_byte_to_read(steps):
    k = Keyboard()
    for port, value in steps:
        if value is None:
            assert 0 <= k.board.inb(port) <= 255
        else:
            k.board.outb(port, value)
        status, mode = k.status(), k.device.mode
        wanted = [12] if status.aux and mode & 2 else [1] if status.obf and not status.aux and mode & 1 else []
        assert k.board.high() == wanted
    assert len(k.device.queue) <= 16


def test_reset_and_unrealize_leave_nothing():
    k = Keyboard()
    k.command(0xAA)
    k.device.reset()
    assert k.board.high() == []
    assert not k.status().obf
    k.device.unrealize()
    assert k.board.ledger.rows() == []
