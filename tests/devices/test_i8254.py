"""The 8254: counting, OUT, reading back, IRQ 0 and port 0x61."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import i8254
from devices.i8254 import FREQUENCY, I8254, StatusByte, from_bcd, to_bcd
from tests.support.board import FakeBoard
from vmm.errors import PropertyError

SECOND = 1_000_000_000


class Machine:
    def __init__(self, **values: object) -> None:
        self.board = FakeBoard()
        self.pit = I8254(**values)
        self.pit.realize(self.board)
        self.pit.reset()
        self.ticks_gone = 0

    def program(self, channel: int, mode: int, count: int, bcd: bool = False) -> None:
        self.board.outb(0x43, channel << 6 | 0x30 | mode << 1 | bcd)
        self.board.outb(0x40 + channel, count & 0xFF)
        self.board.outb(0x40 + channel, count >> 8)
        self.loaded = self.board.clock.now()

    def step_to(self, ticks: int) -> None:
        """Move to the moment when so many ticks have passed since `program`."""
        self.board.clock.set(self.loaded + i8254.ns_of(ticks))

    def count(self, channel: int) -> int:
        self.board.outb(0x43, channel << 6)
        return self.board.inb(0x40 + channel) | self.board.inb(0x40 + channel) << 8

    def status(self, channel: int):
        self.board.outb(0x43, 0xE0 | 2 << channel)
        return StatusByte.parse(bytes([self.board.inb(0x40 + channel)]))

    def irqs(self) -> int:
        return self.board.take_irq_events().count(("raise", 0))


# Counting and OUT.


@pytest.mark.parametrize(
    ("mode", "count", "outs"),
    [
        (0, 4, "0000111"),
        (2, 4, "111011101110"),
        (3, 4, "110011001100"),
        (3, 5, "1110011100"),
        (4, 3, "1110111"),
    ],
)
def test_out_follows_the_data_sheet(mode, count, outs):
    m = Machine()
    m.program(0, mode, count)
    seen = ""
    for tick in range(len(outs)):
        m.step_to(tick)
        seen += "1" if m.status(0).out else "0"
    assert seen == outs


@pytest.mark.parametrize(
    ("mode", "count", "values"),
    [
        (0, 3, [3, 2, 1, 0, 0xFFFF, 0xFFFE]),
        (2, 3, [3, 2, 1, 3, 2, 1]),
        (3, 4, [4, 2, 4, 2, 4]),
        (3, 5, [4, 2, 0, 4, 2, 4]),
        (4, 2, [2, 1, 0, 0xFFFF]),
    ],
)
def test_counter_reads_as_the_data_sheet_counts(mode, count, values):
    m = Machine()
    m.program(0, mode, count)
    seen = []
    for tick in range(len(values)):
        m.step_to(tick)
        seen.append(m.count(0))
    assert seen == values


@given(st.sampled_from([0, 2, 4]), st.integers(2, 0xFFFF), st.lists(st.integers(0, 40_000_000), max_size=20))
def test_count_never_rises_within_a_period(mode, count, steps):
    m = Machine()
    m.program(2, mode, count)
    m.board.outb(0x61, 1)
    start = m.board.clock.now()
    last, last_period = count, 0
    for step in steps:
        m.board.clock.step(step)
        ticks = i8254.ticks_of(m.board.clock.now() - start)
        period = ticks // count if mode == 2 else ticks // 0x10000
        value = m.count(2)
        assert value == ((count - ticks % count) if mode == 2 else (count - ticks) & 0xFFFF)
        if period == last_period and mode == 2:
            assert value <= last
        last, last_period = value, period


def test_zero_is_the_largest_count():
    m = Machine()
    m.program(0, 2, 0)
    m.step_to(1)
    assert m.count(0) == 0xFFFF
    m.step_to(0x10000 + 1)
    assert m.count(0) == 0xFFFF


def test_bcd_counts_in_decimal_digits():
    m = Machine()
    m.program(0, 2, 0x1000, bcd=True)
    m.step_to(1)
    assert m.count(0) == 0x0999
    m.program(0, 2, 0, bcd=True)
    m.step_to(1)
    assert m.count(0) == 0x9999


@given(st.integers(0, 9999))
def test_bcd_conversion_is_its_own_inverse(value):
    assert from_bcd(to_bcd(value)) == value


# Reading.


def test_latched_count_stands_still_until_read():
    m = Machine()
    m.program(0, 2, 1000)
    m.step_to(10)
    m.board.outb(0x43, 0x00)
    m.step_to(500)
    m.board.outb(0x43, 0x00)
    assert m.board.inb(0x40) | m.board.inb(0x40) << 8 == 990
    assert m.count(0) == 500


def test_unlatched_word_reads_low_then_high():
    m = Machine()
    m.program(0, 2, 0x1234)
    assert [m.board.inb(0x40) for _ in range(4)] == [0x34, 0x12, 0x34, 0x12]


def test_read_back_gives_status_then_count():
    m = Machine()
    m.program(2, 3, 0x0100)
    m.board.outb(0x43, 0xC8)
    status = StatusByte.parse(bytes([m.board.inb(0x42)]))
    assert (status.out, status.null_count, status.access, status.mode, status.bcd) == (True, False, 3, 3, False)
    assert m.board.inb(0x42) | m.board.inb(0x42) << 8 == 0x100


def test_null_count_is_shown_between_control_word_and_count():
    m = Machine()
    m.board.outb(0x43, 0x34)
    assert m.status(0).null_count
    m.board.outb(0x40, 1)
    assert m.status(0).null_count
    m.board.outb(0x40, 0)
    assert not m.status(0).null_count


@pytest.mark.parametrize(("access", "count", "byte"), [(1, 0x34, 0x34), (2, 0x1200, 0x12)])
def test_single_byte_access_sets_and_reads_that_byte(access, count, byte):
    m = Machine()
    m.board.outb(0x43, access << 4 | 4)
    m.board.outb(0x40, byte)
    assert [m.board.inb(0x40), m.board.inb(0x40)] == [byte, byte]
    assert m.pit.channels[0].count == count


def test_modes_6_and_7_are_2_and_3():
    m = Machine()
    m.program(0, 6, 100)
    assert m.status(0).mode == 2
    m.program(0, 7, 100)
    assert m.status(0).mode == 3


def test_after_reset_status_is_that_of_a_pc():
    m = Machine()
    m.board.outb(0x43, 0xE8)
    assert m.board.inb(0x42) == 0x86
    assert m.board.inb(0x43) == 0


# IRQ 0.


@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_modes_interrupt_once_a_period_without_drift(mode):
    m = Machine()
    m.program(0, mode, 11932)
    m.irqs()
    m.board.clock.set(m.loaded + 100 * SECOND)
    assert m.irqs() == 100 * FREQUENCY // 11932


@pytest.mark.parametrize(("mode", "rise"), [(0, 100), (4, 101)])
def test_one_shot_modes_interrupt_once_at_their_tick(mode, rise):
    m = Machine()
    m.program(0, mode, 100)
    m.irqs()
    m.step_to(rise)
    assert m.irqs() == 1
    m.board.clock.step(SECOND)
    assert m.irqs() == 0


def test_one_shot_does_not_interrupt_early():
    m = Machine()
    m.program(0, 0, 1000)
    m.irqs()
    m.board.clock.set(m.loaded + i8254.ns_of(1000) - 1)
    assert m.irqs() == 0


def test_control_word_stops_interrupts_until_a_count_comes():
    m = Machine()
    m.program(0, 2, 1000)
    m.board.outb(0x43, 0x34)
    m.irqs()
    m.board.clock.step(SECOND)
    assert m.irqs() == 0


def test_first_byte_of_a_mode_0_count_stops_it():
    m = Machine()
    m.program(0, 0, 1000)
    m.board.outb(0x40, 0xFF)
    m.irqs()
    m.board.clock.step(SECOND)
    assert m.irqs() == 0


def test_absurd_rate_is_limited():
    m = Machine()
    m.program(0, 2, 2)
    m.irqs()
    m.board.clock.step(SECOND // 10)
    assert 400 < m.irqs() < 510


class LateBoard(FakeBoard):
    """A board whose clock may jump over deadlines, as a host's does when the process was not running."""

    def jump(self, ns: int) -> None:
        self.clock._now += ns
        self.clock.run_due()


def late(policy: str):
    m = Machine(lost_tick_policy=policy)
    m.board.__class__ = LateBoard
    return m


def test_discard_delivers_one_tick_for_all_that_were_missed():
    m = late("discard")
    m.pit.watch_acks()
    m.program(0, 2, 1193)
    m.irqs()
    m.board.jump(10_500_000)
    assert m.irqs() == 1
    m.board.jump(1_000_000)
    assert m.irqs() == 1


def test_delay_delivers_missed_ticks_one_after_each_acknowledge():
    m = late("delay")
    acknowledged = m.pit.watch_acks()
    m.program(0, 2, 1193)
    m.irqs()
    m.board.jump(10_500_000)
    delivered = m.irqs()
    for _ in range(20):
        acknowledged()
        delivered += m.irqs()
    assert delivered == 10


def test_delay_holds_ticks_back_while_one_is_not_acknowledged():
    m = late("delay")
    acknowledged = m.pit.watch_acks()
    m.program(0, 2, 1193)
    m.irqs()
    m.board.clock.step(5_500_000)
    assert m.irqs() == 1
    acknowledged()
    assert m.irqs() == 1
    m.pit.reset_reinject()
    acknowledged()
    assert m.irqs() == 0


def test_delay_gives_up_a_tick_that_nobody_takes():
    m = late("delay")
    m.pit.watch_acks()
    m.program(0, 2, 11932)
    m.irqs()
    m.board.clock.step(5 * SECOND)
    assert 4 <= m.irqs() <= 6


def test_delay_without_anyone_to_acknowledge_is_discard():
    m = Machine()
    m.program(0, 2, 11932)
    m.irqs()
    m.board.clock.step(SECOND)
    assert m.irqs() == 99


def test_unknown_policy_is_refused_by_name():
    with pytest.raises(PropertyError, match=r"lost_tick_policy.*'slew'"):
        I8254(lost_tick_policy="slew")


# Port 0x61.


def test_gate_of_channel_2_holds_a_one_shot_and_lets_it_go_on():
    m = Machine()
    m.board.outb(0x61, 0)
    m.program(2, 0, 1000)
    m.board.clock.step(SECOND)
    assert m.count(2) == 1000
    m.board.outb(0x61, 1)
    m.board.clock.step(i8254.ns_of(400))
    m.board.outb(0x61, 0)
    m.board.clock.step(SECOND)
    assert m.count(2) == 600
    m.board.outb(0x61, 1)
    assert not m.board.inb(0x61) & 0x20
    m.board.clock.step(i8254.ns_of(600))
    assert m.board.inb(0x61) & 0x20


def test_calibration_loop_of_an_operating_system_sees_out_after_its_count():
    m = Machine()
    m.board.outb(0x61, (m.board.inb(0x61) & ~0x02) | 0x01)
    count = FREQUENCY // 100
    m.program(2, 0, count)
    polls = 0
    while not m.board.inb(0x61) & 0x20:
        m.board.clock.step(1_000_000)
        polls += 1
    assert polls in (10, 11)


@pytest.mark.parametrize(("mode", "low"), [(1, range(5)), (5, [5])])
def test_gate_triggers_hardware_modes(mode, low):
    m = Machine()
    m.program(2, mode, 5)
    m.board.clock.step(SECOND)
    assert m.status(2).out
    m.board.outb(0x61, 1)
    m.loaded = m.board.clock.now()
    outs = []
    for tick in range(8):
        m.step_to(tick)
        outs.append(m.status(2).out)
    assert outs == [tick not in low for tick in range(8)]
    m.board.outb(0x61, 0)
    m.board.outb(0x61, 1)
    assert m.status(2).out is (0 not in low)


def test_gate_restarts_rate_generator():
    m = Machine()
    m.board.outb(0x61, 1)
    m.program(2, 2, 1000)
    m.step_to(300)
    m.board.outb(0x61, 0)
    assert m.status(2).out
    m.board.outb(0x61, 1)
    assert m.count(2) == 1000


def test_refresh_bit_toggles_with_time_and_enables_are_kept():
    m = Machine()
    m.board.outb(0x61, 0x0E)
    assert m.board.inb(0x61) & 0xCF == 0x0E
    seen = set()
    for _ in range(4):
        seen.add(m.board.inb(0x61) & 0x10)
        m.board.clock.step(i8254.REFRESH_NS)
    assert seen == {0, 0x10}


@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([0x40, 0x41, 0x42, 0x43, 0x61]), st.integers(0, 255)),
            st.tuples(st.sampled_from([0x40, 0x41, 0x42, 0x61]), st.none()),
            st.tuples(st.none(), st.integers(0, 10_000_000)),
        ),
        max_size=40,
    )
)
def test_anything_a_guest_does_leaves_a_byte_to_read(steps):
    m = Machine()
    for port, value in steps:
        if port is None:
            m.board.clock.step(value)
        elif value is None:
            assert 0 <= m.board.inb(port) <= 255
        else:
            m.board.outb(port, value)


def test_unrealize_disarms_and_gives_everything_back():
    m = Machine()
    m.program(0, 2, 1000)
    m.pit.unrealize()
    assert m.board.clock.next_deadline() is None
    assert m.board.ledger.rows() == []
