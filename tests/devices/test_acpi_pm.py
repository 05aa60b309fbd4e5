"""ACPI power management at its ports."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import acpi_pm as pm
from devices.acpi_pm import AcpiPm, Pm1Control, Pm1Status
from tests.support.board import FakeBoard
from vmm.errors import PropertyError

SECOND = 1_000_000_000
BASE = 0x600
OVERFLOW_NS = -(-(1 << 23) * SECOND // pm.PM_TIMER_FREQUENCY)


class Machine:
    def __init__(self, base: int = BASE, **values: object) -> None:
        self.board = FakeBoard(trace=True)
        self.pm = AcpiPm(**values)
        self.pm.realize(self.board)
        self.pm.reset()
        self.pm.set_base(base, True)

    @property
    def sci(self) -> bool:
        return self.board.high() == [9]


def test_acpi_is_enabled_and_disabled_through_the_command_port():
    m = Machine()
    assert m.board.inw(BASE + pm.PM1_CNT) == 0
    m.board.outb(0xB2, 0xF1)
    assert m.board.inw(BASE + pm.PM1_CNT) == pm.SCI_EN
    m.board.outb(0xB2, 0xF0)
    assert m.board.inw(BASE + pm.PM1_CNT) == 0
    m.board.outb(0xB3, 0x5A)
    assert (m.board.inb(0xB2), m.board.inb(0xB3)) == (0xF0, 0x5A)


def test_power_button_raises_sci_once_enabled_until_cleared():
    m = Machine()
    m.pm.power_button()
    assert not m.sci
    m.board.outw(BASE + pm.PM1_EN, pm.PWRBTN)
    assert m.sci
    assert m.board.recording.of(pm.AcpiSci) == [pm.AcpiSci(True)]
    assert Pm1Status.parse(m.board.inw(BASE).to_bytes(2, "big")).pwrbtn
    m.board.outw(BASE, 0)
    assert m.sci
    m.board.outw(BASE, pm.PWRBTN)
    assert not m.sci
    assert m.board.inw(BASE) & pm.PWRBTN == 0


def test_sci_is_the_or_of_its_sources():
    m = Machine()
    gpe = m.pm.sci.source("gpe0")
    m.board.outw(BASE + pm.PM1_EN, pm.PWRBTN)
    m.pm.power_button()
    gpe.set(True)
    m.board.outw(BASE, pm.PWRBTN)
    assert m.sci
    gpe.set(False)
    assert not m.sci
    assert m.board.take_irq_events() == [("raise", 9), ("lower", 9)]


def test_closed_source_cannot_hold_sci():
    m = Machine()
    gpe = m.pm.sci.source("gpe0")
    gpe.set(True)
    gpe.close()
    assert not m.sci


@given(st.lists(st.integers(1, 10**11), min_size=1, max_size=10))
def test_timer_counts_at_its_frequency_modulo_its_width(steps):
    m = Machine()
    for step in steps:
        m.board.clock.step(step)
        ticks = m.board.clock.now() * pm.PM_TIMER_FREQUENCY // SECOND
        assert m.board.inl(BASE + pm.PM_TMR) == ticks & 0xFFFFFF


def test_timer_of_32_bits_does_not_wrap_at_24():
    m = Machine(**{"timer-bits": 32})
    m.board.clock.step(10 * SECOND)
    assert m.board.inl(BASE + pm.PM_TMR) == 10 * pm.PM_TIMER_FREQUENCY


def test_timer_is_read_only_and_readable_in_bytes():
    m = Machine()
    m.board.clock.step(SECOND)
    m.board.outl(BASE + pm.PM_TMR, 0)
    value = m.board.inl(BASE + pm.PM_TMR)
    assert value == pm.PM_TIMER_FREQUENCY
    assert [m.board.inb(BASE + pm.PM_TMR + n) for n in range(4)] == list(value.to_bytes(4, "little"))
    assert m.board.inw(BASE + pm.PM_TMR + 1) == value >> 8 & 0xFFFF


def test_overflow_is_flagged_at_each_change_of_the_top_bit():
    m = Machine()
    for _ in range(3):
        m.board.clock.set((m.board.clock.now() // OVERFLOW_NS + 1) * OVERFLOW_NS - 10_000)
        assert m.board.inw(BASE) & pm.TMROF == 0
        m.board.clock.step(20_000)
        assert m.board.inw(BASE) & pm.TMROF
        m.board.outw(BASE, pm.TMROF)


def test_enabled_overflow_interrupts_on_time_and_again_after_it_is_cleared():
    m = Machine()
    m.board.outw(BASE + pm.PM1_EN, pm.TMROF)
    m.board.clock.set(OVERFLOW_NS - 1)
    assert not m.sci
    m.board.clock.step(1)
    assert m.sci
    m.board.outw(BASE, pm.TMROF)
    assert not m.sci
    m.board.clock.step(OVERFLOW_NS)
    assert m.sci


@pytest.mark.parametrize("kind", [0, 2])
def test_soft_off_ends_the_machine(kind):
    m = Machine()
    m.board.outw(BASE + pm.PM1_CNT, kind << 10 | pm.SLP_EN)
    assert m.board.shutdowns == [("guest-shutdown", 0)]
    assert not Pm1Control.parse(m.board.inw(BASE + pm.PM1_CNT).to_bytes(2, "big")).slp_en


@pytest.mark.parametrize("value", [1 << 10 | 0x2000, 7 << 10 | 0x2000, 0x0001, 0x1C00])
def test_other_sleep_types_and_values_do_not_end_the_machine(value):
    m = Machine()
    m.board.outw(BASE + pm.PM1_CNT, value)
    assert m.board.shutdowns == []
    assert m.board.inw(BASE + pm.PM1_CNT) == value & ~pm.SLP_EN


def test_soft_off_by_its_high_byte_alone():
    m = Machine()
    m.board.outb(BASE + pm.PM1_CNT + 1, 0x20)
    assert m.board.shutdowns == [("guest-shutdown", 0)]


def test_dword_write_reaches_status_and_enable():
    m = Machine()
    m.pm.power_button()
    m.board.outl(BASE, pm.PWRBTN << 16)
    assert m.sci
    assert m.board.inl(BASE) == pm.PWRBTN << 16 | pm.PWRBTN
    m.board.outb(BASE + 1, pm.PWRBTN >> 8)
    assert m.board.inl(BASE) == pm.PWRBTN << 16


def test_registers_follow_base_and_vanish_when_disabled():
    m = Machine()
    m.board.outw(BASE + pm.PM1_EN, 0x21)
    m.pm.set_base(0xB000, True)
    assert (m.board.inw(BASE + 2), m.board.inw(0xB002)) == (0xFFFF, 0x21)
    m.pm.set_base(0xB000, False)
    assert m.board.inw(0xB002) == 0xFFFF
    m.pm.set_base(0, True)
    assert m.pm.base is None
    m.pm.set_base(0x10640, True)
    assert m.pm.base == 0x640


def test_reset_lowers_sci_and_turns_acpi_off():
    m = Machine()
    m.board.outb(0xB2, 0xF1)
    m.board.outw(BASE + pm.PM1_EN, pm.PWRBTN)
    m.pm.power_button()
    m.pm.reset()
    assert not m.sci
    assert (m.board.inl(BASE), m.board.inw(BASE + pm.PM1_CNT)) == (0, 0)


@given(
    st.lists(
        st.tuples(st.integers(0, 63), st.sampled_from([1, 2, 4]), st.one_of(st.none(), st.integers(0, 2**32 - 1))),
        max_size=30,
    )
)
def test_sci_is_high_exactly_while_an_enabled_event_is_set(accesses):
    m = Machine()
    for offset, size, value in accesses:
        if value is None:
            assert 0 <= m.board.ports.read(BASE + offset, size) < 1 << 8 * size
        else:
            m.board.ports.write(BASE + offset, size, value)
        m.board.clock.step(OVERFLOW_NS // 3)
        status, enable = m.board.inw(BASE), m.board.inw(BASE + 2)
        assert m.sci == bool(status & enable & pm.PM1_EVENTS)


@pytest.mark.parametrize(("name", "value"), [("timer-bits", 16), ("sci-irq", 16)])
def test_impossible_property_is_refused(name, value):
    with pytest.raises(PropertyError, match="16"):
        AcpiPm(**{name: value})


def test_unrealize_gives_everything_back():
    m = Machine()
    m.board.outw(BASE + pm.PM1_EN, pm.TMROF)
    m.pm.unrealize()
    assert m.board.ledger.rows() == []
    assert m.board.clock.next_deadline() is None
    assert m.board.inb(0xB2) == 0xFF
