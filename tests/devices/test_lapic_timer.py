"""The local APIC's timer under a clock that moves only when told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import lapic_registers as r
from devices.lapic_timer import MIN_PERIOD_NS
from tests.support.apic import Chips
from vmm.clock import VirtualClock

PERIODIC, DEADLINE = 1 << 17, 2 << 17
BY_ONE = 0xB
VECTOR = 0xEE


def make(**options):
    chips = Chips(**options)
    apic = chips.cpus[0]
    apic.mmio_write(r.LVT_TIMER, 4, VECTOR)
    apic.mmio_write(r.DIVIDE, 4, BY_ONE)
    return chips, apic


def fired(chips, apic):
    """Whether the timer interrupted since last asked."""
    taken = chips.take() == VECTOR
    if taken:
        apic.mmio_write(r.EOI, 4, 0)
    return taken


def test_one_shot_fires_once_at_its_time():
    chips, apic = make()
    apic.mmio_write(r.INITIAL_COUNT, 4, 1000)
    chips.clock.step(999)
    assert not fired(chips, apic)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 1
    chips.clock.step(1)
    assert fired(chips, apic)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 0
    chips.clock.step(10_000)
    assert not fired(chips, apic)
    assert apic.mmio_read(r.INITIAL_COUNT, 4) == 1000


@given(st.sampled_from([0, 1, 2, 3, 8, 9, 10, 11]), st.integers(1, 0xFFFF_FFFF))
def test_divide_configuration_slows_the_count(divide, count):
    chips, apic = make()
    apic.mmio_write(r.DIVIDE, 4, divide)
    apic.mmio_write(r.INITIAL_COUNT, 4, count)
    factor = {0: 2, 1: 4, 2: 8, 3: 16, 8: 32, 9: 64, 10: 128, 11: 1}[divide]
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == count
    chips.clock.step(count * factor - 1)
    assert not fired(chips, apic)
    chips.clock.step(1)
    assert fired(chips, apic)


def test_periodic_fires_again_and_again_and_wraps_its_count():
    chips, apic = make()
    apic.mmio_write(r.LVT_TIMER, 4, PERIODIC | VECTOR)
    apic.mmio_write(r.INITIAL_COUNT, 4, 1_000_000)
    for _ in range(3):
        chips.clock.step(999_999)
        assert not fired(chips, apic)
        chips.clock.step(1)
        assert fired(chips, apic)
        assert apic.mmio_read(r.CURRENT_COUNT, 4) == 1_000_000


def test_periodic_with_a_tiny_count_cannot_stop_the_host():
    chips, apic = make()
    apic.mmio_write(r.LVT_TIMER, 4, PERIODIC | VECTOR)
    apic.mmio_write(r.INITIAL_COUNT, 4, 1)
    assert chips.clock.next_deadline() >= MIN_PERIOD_NS
    chips.clock.step(10 * MIN_PERIOD_NS)
    assert fired(chips, apic)


def test_mode_change_lets_the_count_go_on():
    chips, apic = make()
    apic.mmio_write(r.INITIAL_COUNT, 4, 1_000_000)
    chips.clock.step(600_000)
    apic.mmio_write(r.LVT_TIMER, 4, PERIODIC | VECTOR)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 400_000
    chips.clock.step(400_000)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 1_000_000
    chips.clock.step(700_000)
    apic.mmio_write(r.LVT_TIMER, 4, VECTOR)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 300_000
    chips.clock.step(300_000)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 0
    apic.mmio_write(r.LVT_TIMER, 4, PERIODIC | VECTOR)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 0
    assert chips.clock.next_deadline() is None


class LateClock(VirtualClock):
    """Its timers fire only when `run_due` is called: a host that is busy running the guest."""

    __slots__ = ()

    def pass_by(self, ns):
        self._now += ns


def test_count_seen_at_zero_stays_there_though_the_host_is_late():
    chips, apic = make(clock=LateClock())
    apic.mmio_write(r.INITIAL_COUNT, 4, 1_000_000)
    chips.clock.pass_by(1_500_000)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 0
    apic.mmio_write(r.LVT_TIMER, 4, PERIODIC | VECTOR)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 0
    assert fired(chips, apic)
    chips.clock.run_due()
    assert not fired(chips, apic)


def test_late_periodic_timer_has_started_over_and_makes_up_for_nothing():
    chips, apic = make(clock=LateClock())
    apic.mmio_write(r.LVT_TIMER, 4, PERIODIC | VECTOR)
    apic.mmio_write(r.INITIAL_COUNT, 4, 1_000_000)
    chips.clock.pass_by(3_400_000)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 600_000
    chips.clock.run_due()
    assert fired(chips, apic)
    assert not fired(chips, apic)
    assert chips.clock.next_deadline() == 4_000_000


def test_divide_change_keeps_what_is_left_of_the_count():
    chips, apic = make()
    apic.mmio_write(r.INITIAL_COUNT, 4, 1000)
    chips.clock.step(400)
    apic.mmio_write(r.DIVIDE, 4, 0)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 600
    chips.clock.step(1199)
    assert not fired(chips, apic)
    chips.clock.step(1)
    assert fired(chips, apic)


def test_initial_count_of_zero_stops():
    chips, apic = make()
    apic.mmio_write(r.INITIAL_COUNT, 4, 1000)
    apic.mmio_write(r.INITIAL_COUNT, 4, 0)
    assert chips.clock.next_deadline() is None
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 0


def test_masked_timer_counts_silently():
    chips, apic = make()
    apic.mmio_write(r.LVT_TIMER, 4, r.LVT_MASKED | VECTOR)
    apic.mmio_write(r.INITIAL_COUNT, 4, 1000)
    chips.clock.step(1000)
    apic.mmio_write(r.LVT_TIMER, 4, VECTOR)
    assert not fired(chips, apic)
    assert apic.mmio_read(r.CURRENT_COUNT, 4) == 0


@pytest.mark.parametrize("end", ["init", "reset", "close"])
def test_timer_does_not_outlive_its_apic(end):
    chips, apic = make()
    apic.mmio_write(r.INITIAL_COUNT, 4, 1000)
    getattr(apic, end)()
    chips.clock.step(2000)
    assert chips.take() is None


# TSC deadline.


def deadline_timer(tsc_hz=2_000_000_000):
    chips = Chips()
    now = chips.clock.now
    chips.cpus[0].close()
    chips = Chips(tsc=lambda: now() * tsc_hz // 1_000_000_000, tsc_hz=lambda: tsc_hz)
    now = chips.clock.now
    apic = chips.cpus[0]
    apic.mmio_write(r.LVT_TIMER, 4, DEADLINE | VECTOR)
    return chips, apic


def test_tsc_deadline_fires_when_the_counter_reaches_it_and_reads_zero():
    chips, apic = deadline_timer()
    assert apic.msr_write(r.MSR_TSC_DEADLINE, 2001)
    assert apic.msr_read(r.MSR_TSC_DEADLINE) == 2001
    chips.clock.step(1000)
    assert not fired(chips, apic)
    chips.clock.step(1)
    assert fired(chips, apic)
    assert apic.msr_read(r.MSR_TSC_DEADLINE) == 0


def test_deadline_in_the_past_fires_at_once_and_zero_disarms():
    chips, apic = deadline_timer()
    chips.clock.step(1000)
    apic.msr_write(r.MSR_TSC_DEADLINE, 1)
    assert fired(chips, apic)
    apic.msr_write(r.MSR_TSC_DEADLINE, 1 << 40)
    apic.msr_write(r.MSR_TSC_DEADLINE, 0)
    assert chips.clock.next_deadline() is None


def test_deadline_is_ignored_outside_its_mode_and_counts_within_it():
    chips, apic = deadline_timer()
    apic.mmio_write(r.INITIAL_COUNT, 4, 1000)
    assert apic.mmio_read(r.INITIAL_COUNT, 4) == apic.mmio_read(r.CURRENT_COUNT, 4) == 0
    apic.mmio_write(r.LVT_TIMER, 4, VECTOR)
    assert apic.msr_write(r.MSR_TSC_DEADLINE, 1000)
    assert apic.msr_read(r.MSR_TSC_DEADLINE) == 0
    assert chips.clock.next_deadline() is None


def test_leaving_the_deadline_mode_disarms():
    chips, apic = deadline_timer()
    apic.msr_write(r.MSR_TSC_DEADLINE, 2000)
    apic.mmio_write(r.LVT_TIMER, 4, VECTOR)
    chips.clock.step(5000)
    assert not fired(chips, apic)
    assert apic.msr_read(r.MSR_TSC_DEADLINE) == 0


def test_deadline_at_the_end_of_time_is_only_far_away():
    chips, apic = deadline_timer()
    apic.msr_write(r.MSR_TSC_DEADLINE, 2**64 - 1)
    assert chips.clock.next_deadline() < 1 << 63
    assert apic.msr_read(r.MSR_TSC_DEADLINE) == 2**64 - 1


def test_cpu_without_the_deadline_mode_faults_and_has_no_mode_bit():
    apic = Chips().cpus[0]
    assert apic.msr_read(r.MSR_TSC_DEADLINE) is None
    assert not apic.msr_write(r.MSR_TSC_DEADLINE, 1)
    apic.mmio_write(r.LVT_TIMER, 4, DEADLINE | VECTOR)
    assert apic.mmio_read(r.LVT_TIMER, 4) == VECTOR
