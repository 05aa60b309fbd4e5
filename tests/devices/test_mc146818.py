"""The real-time clock, on a clock that moves only when told."""

from __future__ import annotations

import calendar
import datetime
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import mc146818 as m
from devices.mc146818 import CmosMemory, Mc146818, RegisterA, RegisterB, RegisterC
from tests.support.board import FakeBoard
from vmm.errors import PropertyError

SECOND = 1_000_000_000
BCD24 = m.B_24H
BIN24 = m.B_24H | m.B_DM


class Rtc:
    def __init__(self, base: str = "2024-02-28T23:59:58") -> None:
        self.board = FakeBoard()
        self.device = Mc146818(base=base)
        self.device.realize(self.board)

    def read(self, register: int) -> int:
        self.board.outb(0x70, register)
        return self.board.inb(0x71)

    def write(self, register: int, value: int) -> None:
        self.board.outb(0x70, register)
        self.board.outb(0x71, value)

    def step(self, ns: int) -> None:
        self.board.clock.step(ns)

    def set(self, mode: int, hour: int, minute: int, second: int) -> None:
        """Set the time with the divider held; the first update is half a second later."""
        self.write(m.REG_B, mode)
        self.write(m.REG_A, 0x76)
        for register, value in ((m.HOURS, hour), (m.MINUTES, minute), (m.SECONDS, second)):
            self.write(register, value)
        self.write(m.REG_A, 0x26)

    @property
    def time(self) -> tuple[int, int, int]:
        return self.read(m.HOURS), self.read(m.MINUTES), self.read(m.SECONDS)

    @property
    def date(self) -> tuple[int, int, int, int]:
        return self.read(m.CENTURY), self.read(m.YEAR), self.read(m.MONTH), self.read(m.DAY_OF_MONTH)

    @property
    def irq(self) -> bool:
        return 8 in self.board.high()


# Time.


def test_base_date_runs_on_over_midnight_and_leap_day():
    rtc = Rtc()
    assert (rtc.date, rtc.time) == ((0x20, 0x24, 0x02, 0x28), (0x23, 0x59, 0x58))
    rtc.step(2 * SECOND)
    assert (rtc.date, rtc.time) == ((0x20, 0x24, 0x02, 0x29), (0, 0, 0))
    rtc.step(86400 * SECOND)
    assert rtc.date == (0x20, 0x24, 0x03, 0x01)


def test_utc_base_is_the_host_date():
    before = int(time.time())
    rtc = Rtc("utc")
    assert before <= rtc.device.seconds() <= int(time.time())


def test_binary_mode_shows_the_same_date_in_binary():
    rtc = Rtc()
    rtc.write(m.REG_B, BIN24)
    assert (rtc.date, rtc.time) == ((20, 24, 2, 28), (23, 59, 58))


@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        (0, (0x81, 0x59, 0x59), (0x82, 0x00, 0x00)),
        (0, (0x12, 0x59, 0x59), (0x01, 0x00, 0x00)),
        (0, (0x92, 0x59, 0x59), (0x81, 0x00, 0x00)),
        (0, (0x11, 0x59, 0x59), (0x92, 0x00, 0x00)),
        (0, (0x91, 0x59, 0x59), (0x12, 0x00, 0x00)),
        (m.B_DM, (0x8B, 59, 59), (0x0C, 0, 0)),
        (m.B_DM, (0x0C, 59, 59), (0x01, 0, 0)),
        (BCD24, (0x09, 0x59, 0x59), (0x10, 0x00, 0x00)),
        (BIN24, (23, 59, 59), (0, 0, 0)),
    ],
)
def test_hours_carry_in_every_mode(mode, before, after):
    rtc = Rtc()
    rtc.set(mode, *before)
    assert rtc.time == before
    rtc.step(SECOND)
    assert rtc.time == after


@given(
    st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2200, 1, 1)),
    st.integers(0, 40 * 86400),
    st.sampled_from([0, m.B_DM, BCD24, BIN24]),
)
def test_set_then_run_gives_the_calendar_date(start, seconds, mode):
    rtc = Rtc()
    start = start.replace(microsecond=0)
    dec = (lambda n: n) if mode & m.B_DM else (lambda n: n // 10 << 4 | n % 10)

    def registers(date: datetime.datetime) -> list[int]:
        hour = dec(date.hour)
        if not mode & m.B_24H:
            hour = dec(date.hour % 12 or 12) | (0x80 if date.hour >= 12 else 0)
        return [
            dec(date.second), dec(date.minute), hour, dec((date.weekday() + 1) % 7 + 1), dec(date.day),
            dec(date.month), dec(date.year % 100), dec(date.year // 100),
        ]  # fmt: skip

    indexes = [m.SECONDS, m.MINUTES, m.HOURS, m.DAY_OF_WEEK, m.DAY_OF_MONTH, m.MONTH, m.YEAR, m.CENTURY]
    rtc.write(m.REG_B, mode | m.B_SET)
    for index, value in zip(indexes, registers(start), strict=True):
        rtc.write(index, value)
    rtc.write(m.REG_B, mode)
    assert [rtc.read(i) for i in indexes] == registers(start)
    rtc.step(seconds * SECOND)
    assert [rtc.read(i) for i in indexes] == registers(start + datetime.timedelta(seconds=seconds))
    assert rtc.device.seconds() == calendar.timegm((start + datetime.timedelta(seconds=seconds)).timetuple())


def test_set_flag_holds_what_was_written_then_time_goes_on():
    rtc = Rtc()
    rtc.write(m.REG_B, BCD24 | m.B_SET)
    rtc.write(m.HOURS, 0x02)
    rtc.write(m.MINUTES, 0x04)
    rtc.write(m.SECONDS, 0x58)
    rtc.step(SECOND)
    assert rtc.time == (0x02, 0x04, 0x58)
    rtc.write(m.REG_B, BCD24)
    assert rtc.time == (0x02, 0x04, 0x58)
    rtc.step(SECOND)
    assert rtc.time == (0x02, 0x04, 0x59)


def test_first_update_ends_half_a_second_after_divider_reset():
    rtc = Rtc()
    rtc.write(m.REG_A, 0x76)
    rtc.write(m.SECONDS, 0x10)
    rtc.step(3 * SECOND)
    assert rtc.read(m.SECONDS) == 0x10
    rtc.write(m.REG_A, 0x26)
    rtc.step(SECOND // 2 - m.UIP_NS - 1)
    assert (rtc.read(m.REG_A) & m.A_UIP, rtc.read(m.SECONDS)) == (0, 0x10)
    rtc.step(1)
    assert (rtc.read(m.REG_A) & m.A_UIP, rtc.read(m.SECONDS)) == (m.A_UIP, 0x10)
    rtc.step(m.UIP_NS)
    assert (rtc.read(m.REG_A) & m.A_UIP, rtc.read(m.SECONDS)) == (0, 0x11)


def test_writing_one_field_while_running_keeps_the_others_and_the_phase():
    rtc = Rtc()
    rtc.step(SECOND // 4)
    rtc.write(m.MINUTES, 0x30)
    assert rtc.time == (0x23, 0x30, 0x58)
    rtc.step(SECOND * 3 // 4 - 1)
    assert rtc.time == (0x23, 0x30, 0x58)
    rtc.step(1)
    assert rtc.time == (0x23, 0x30, 0x59)


def test_both_century_bytes_are_one():
    rtc = Rtc()
    rtc.write(m.PS2_CENTURY, 0x19)
    assert (rtc.read(m.CENTURY), rtc.read(m.PS2_CENTURY)) == (0x19, 0x19)


def test_setting_the_time_is_told_with_its_offset():
    rtc = Rtc()
    offsets = []
    rtc.device.changed = offsets.append
    rtc.step(10 * SECOND)
    rtc.write(m.REG_B, BCD24 | m.B_SET)
    rtc.write(m.MINUTES, 0x05)
    rtc.write(m.REG_B, BCD24)
    assert offsets == [5 * 60]


# Flags and interrupts.


def test_alarm_interrupts_at_its_second_only():
    rtc = Rtc()
    rtc.set(BCD24, 0x10, 0x00, 0x00)
    for register, value in ((m.SECONDS_ALARM, 0x05), (m.MINUTES_ALARM, 0x00), (m.HOURS_ALARM, 0x10)):
        rtc.write(register, value)
    rtc.read(m.REG_C)
    rtc.write(m.REG_B, BCD24 | m.B_AIE)
    rtc.step(4 * SECOND)
    assert not rtc.irq
    rtc.step(SECOND)
    assert rtc.irq
    assert rtc.read(m.REG_C) & (m.C_IRQF | m.C_AF) == m.C_IRQF | m.C_AF
    assert not rtc.irq
    assert rtc.read(m.REG_C) == 0
    rtc.step(86399 * SECOND)
    assert not rtc.irq
    rtc.step(SECOND)
    assert rtc.irq


def test_alarm_flag_is_set_without_interrupt_and_minds_am_and_pm():
    rtc = Rtc()
    rtc.write(m.MINUTES_ALARM, 0xC0)
    rtc.write(m.SECONDS_ALARM, 0xC0)
    rtc.write(m.HOURS_ALARM, 0x82)
    rtc.set(0, 0x01, 0x59, 0x00)
    rtc.read(m.REG_C)
    rtc.step(60 * SECOND)
    assert rtc.read(m.REG_C) & m.C_AF == 0
    rtc.set(0, 0x81, 0x59, 0x00)
    rtc.read(m.REG_C)
    rtc.step(60 * SECOND)
    assert rtc.read(m.REG_C) & m.C_AF
    assert not rtc.irq


def test_alarm_that_is_no_time_never_comes():
    rtc = Rtc()
    rtc.write(m.SECONDS_ALARM, 0x75)
    rtc.write(m.REG_B, BCD24 | m.B_AIE)
    rtc.step(2 * 86400 * SECOND)
    assert not rtc.irq


@given(st.integers(0, 86399), *[st.one_of(st.just(0xFF), st.integers(0, n - 1)) for n in (24, 60, 60)])
def test_next_alarm_is_the_first_match_by_search(start, hour, minute, second):
    rtc = Rtc("2024-01-01")
    rtc.write(m.REG_B, BIN24)
    for register, value in ((m.HOURS_ALARM, hour), (m.MINUTES_ALARM, minute), (m.SECONDS_ALARM, second)):
        rtc.write(register, value)
    found = rtc.device._next_alarm(start)
    assert start < found <= start + 86400

    def matches(t: int) -> bool:
        parts = (t % 86400 // 3600, t % 3600 // 60, t % 60)
        return all(want in (0xFF, have) for want, have in zip((hour, minute, second), parts, strict=True))

    assert matches(found)
    assert not any(matches(t) for t in range(max(start + 1, found - 4000), found))


def test_update_interrupt_comes_each_second_once_acknowledged():
    rtc = Rtc()
    rtc.write(m.REG_B, BCD24 | m.B_UIE)
    for _ in range(3):
        rtc.step(SECOND)
        assert rtc.read(m.REG_C) & (m.C_IRQF | m.C_UF) == m.C_IRQF | m.C_UF
    assert rtc.board.take_irq_events() == [("raise", 8), ("lower", 8)] * 3
    rtc.step(10 * SECOND)
    assert rtc.board.take_irq_events() == [("raise", 8)]


@pytest.mark.parametrize(("rate", "hertz"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (13, 8), (15, 2)])
def test_periodic_rate_is_the_tables(rate, hertz):
    rtc = Rtc()
    rtc.write(m.REG_A, 0x20 | rate)
    rtc.read(m.REG_C)
    rtc.write(m.REG_B, BCD24 | m.B_PIE)
    count = 0
    end = rtc.board.clock.now() + SECOND
    while (deadline := rtc.board.clock.next_deadline()) is not None and deadline <= end:
        rtc.board.clock.set(deadline)
        count += bool(rtc.read(m.REG_C) & m.C_PF)
    assert count == hertz


def test_changed_rate_counts_from_the_last_periodic_interrupt():
    rtc = Rtc()
    rtc.write(m.REG_A, 13)
    rtc.write(m.REG_B, BCD24 | m.B_PIE)
    rtc.board.clock.step()
    rtc.read(m.REG_C)
    start = rtc.board.clock.now()
    for _ in range(4):
        for rate in (13, 15):
            rtc.write(m.REG_A, rate)
            rtc.board.clock.step()
            assert rtc.read(m.REG_C) & m.C_PF
    expected = 4 * (4096 + 16384) * SECOND // 32768
    assert abs(rtc.board.clock.now() - start - expected) <= 100_000


def test_periodic_flag_is_set_for_who_polls():
    rtc = Rtc()
    rtc.read(m.REG_C)
    assert rtc.read(m.REG_C) == 0
    rtc.step(SECOND // 1024 + 1)
    assert rtc.read(m.REG_C) == m.C_PF


def test_set_turns_update_interrupts_off():
    rtc = Rtc()
    rtc.write(m.REG_B, BCD24 | m.B_SET | m.B_UIE)
    assert not RegisterB.parse(bytes([rtc.read(m.REG_B)])).uie


def test_enabling_an_interrupt_whose_flag_is_set_interrupts_at_once():
    rtc = Rtc()
    rtc.step(SECOND)
    rtc.write(m.REG_B, BCD24 | m.B_UIE)
    assert rtc.irq
    assert RegisterC.parse(bytes([rtc.read(m.REG_C)])).uf


def test_reset_clears_interrupts_and_keeps_date_and_ram():
    rtc = Rtc()
    rtc.write(0x40, 0xA5)
    rtc.write(m.REG_B, BCD24 | m.B_UIE)
    rtc.step(SECOND)
    rtc.device.reset()
    assert not rtc.irq
    assert (rtc.read(m.REG_B), rtc.read(m.REG_C), rtc.read(0x40)) == (BCD24, 0, 0xA5)
    assert rtc.time == (0x23, 0x59, 0x59)


# Ports and RAM.


def test_status_registers_have_their_power_on_values_and_limits():
    rtc = Rtc()
    assert [rtc.read(r) for r in (m.REG_A, m.REG_B, m.REG_D)] == [0x26, 0x02, 0x80]
    rtc.write(m.REG_A, 0xA6)
    assert not RegisterA.parse(bytes([rtc.read(m.REG_A)])).uip
    rtc.write(m.REG_C, 0xFF)
    rtc.write(m.REG_D, 0x00)
    assert (rtc.read(m.REG_C), rtc.read(m.REG_D)) == (0, 0x80)


def test_index_port_is_write_only_and_carries_the_nmi_mask():
    rtc = Rtc()
    rtc.board.outb(0x70, 0x80 | m.REG_D)
    assert rtc.device.nmi_disabled
    assert rtc.board.inb(0x71) == 0x80
    assert rtc.board.inb(0x70) == 0xFF
    rtc.board.outb(0x70, m.REG_D)
    assert not rtc.device.nmi_disabled


@pytest.mark.parametrize(
    ("below", "above", "cpus"), [(128 << 20, 0, 1), (3 << 30, 5 << 30, 4), (1 << 20, 0, 2), (512 << 10, 0, 1)]
)
def test_memory_sizes_are_where_firmware_looks(below, above, cpus):
    rtc = Rtc()
    rtc.device.set_memory(below, above)
    rtc.device.set_cpus(cpus)
    rtc.device.set_equipment()
    sizes = CmosMemory.parse(bytes(rtc.read(r) for r in range(0x15, 0x60)))
    assert sizes.base_kb == min(640, below >> 10)
    assert sizes.extended_kb == sizes.extended_kb_post == min(0xFFFF, max(0, (below >> 10) - 1024))
    assert sizes.above_16m_64kb == max(0, below - (16 << 20)) >> 16
    assert sizes.above_4g_64kb == above >> 16
    assert sizes.cpus_less_one == cpus - 1
    assert [rtc.read(r) for r in (0x14, 0x38, 0x3D)] == [0x06, 0x30, 0x12]


@pytest.mark.parametrize("base", ["tomorrow", "2024-13-01", "2024-01-01T00:00:00+01:00", ""])
def test_base_that_is_no_date_is_refused(base):
    with pytest.raises(PropertyError, match="invalid datetime format"):
        Mc146818(base=base)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 127), st.integers(0, 255)),
            st.tuples(st.integers(0, 127), st.none()),
            st.tuples(st.none(), st.integers(0, 400 * 86400 * SECOND)),
        ),
        max_size=30,
    )
)
def test_anything_a_guest_writes_leaves_a_clock_that_answers(steps):
    rtc = Rtc()
    for register, value in steps:
        if register is None:
            rtc.board.clock._now += value
            rtc.board.clock.run_due()
        elif value is None:
            assert 0 <= rtc.read(register) <= 255
        else:
            rtc.write(register, value)
        assert rtc.device.date()["tm_mon"] in range(12)


def test_unrealize_disarms_and_gives_everything_back():
    rtc = Rtc()
    rtc.write(m.REG_B, BCD24 | m.B_UIE | m.B_PIE)
    rtc.device.unrealize()
    assert rtc.board.clock.next_deadline() is None
    assert rtc.board.ledger.rows() == []
