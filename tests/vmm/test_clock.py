"""The clock: timers fire in order, once, and never after a cancel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.clock import HostClock, VirtualClock
from vmm.errors import ConfigError


@given(st.lists(st.integers(0, 100), min_size=1, max_size=30))
def test_timers_fire_in_order_of_deadline_then_of_arming(deadlines):
    clock = VirtualClock()
    fired: list[tuple[int, int, int]] = []
    for i, deadline in enumerate(deadlines):
        clock.timer(f"t{i}", lambda i=i, d=deadline: fired.append((d, i, clock.now()))).arm(deadline)
    clock.set(100)
    assert [(d, i) for d, i, _ in fired] == sorted((d, i) for i, d in enumerate(deadlines))
    assert all(now == d for d, _, now in fired)


def test_cancelled_and_rearmed_timer_fires_once_at_the_new_time():
    clock = VirtualClock()
    times: list[int] = []
    timer = clock.timer("t", lambda: times.append(clock.now()))
    timer.arm(10)
    timer.cancel()
    timer.arm(30)
    timer.arm(20)
    clock.set(100)
    assert times == [20]
    assert clock.next_deadline() is None


def test_timer_that_arms_itself_keeps_its_period():
    clock = VirtualClock()
    times: list[int] = []

    def tick() -> None:
        times.append(clock.now())
        timer.arm(times[-1] + 7)

    timer = clock.timer("periodic", tick)
    timer.arm(7)
    clock.set(30)
    assert times == [7, 14, 21, 28]


def test_step_without_argument_goes_to_the_next_deadline():
    clock = VirtualClock()
    assert not clock.step()
    clock.timer("t", lambda: None).arm(55)
    assert clock.step()
    assert clock.now() == 55


def test_virtual_clock_refuses_to_go_back():
    clock = VirtualClock()
    clock.set(10)
    with pytest.raises(ConfigError, match="10"):
        clock.set(9)
    assert clock.now() == 10


def test_earlier_deadline_is_reported_and_later_is_not():
    clock = VirtualClock()
    told: list[int] = []
    clock.on_earlier = told.append
    clock.timer("a", lambda: None).arm(50)
    clock.timer("b", lambda: None).arm(60)
    clock.timer("c", lambda: None).arm(40)
    assert told == [50, 40]


def test_stopped_host_clock_stands_still():
    clock = HostClock()
    clock.stop()
    at = clock.now()
    assert clock.now() == at
    clock.resume()
    assert clock.now() >= at
    assert clock.host_deadline(clock.now()) > 0


def test_a_timer_armed_anew_for_ever_takes_no_room_and_the_others_keep_their_turns():
    clock = VirtualClock()
    fired = []
    others = [clock.timer(f"other{i}", lambda i=i: fired.append(i)) for i in range(100)]
    for i, timer in enumerate(others):
        timer.arm(1_000 + i // 10)
    restless = clock.timer("restless", lambda: fired.append("restless"))
    for i in range(10_000):
        restless.arm(5_000_000 + i)
        if i % 2:
            restless.cancel()
    restless.arm(1_004)
    assert len(clock._heap) < 500
    clock.set(2_000)
    assert fired == [*range(50), "restless", *range(50, 100)]
