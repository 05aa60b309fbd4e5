"""Events that may come in floods: the first at once, the last of each period at its end, nothing lost."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from machine import Machine, MachineConfig
from vmm.qmp.event_types import EVENTS
from vmm.qmp.events import Events
from vmm.qmp.machine_target import listen


class Clock:
    """Time for `Events`, in milliseconds."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[tuple[int, Any]] = []

    def later(self, ms: int, call: Any) -> None:
        self.calls.append((self.now + ms, call))

    def step(self, ms: int) -> None:
        end = self.now + ms
        while due := [entry for entry in self.calls if entry[0] <= end]:
            entry = min(due, key=lambda entry: entry[0])
            self.calls.remove(entry)
            self.now = entry[0]
            entry[1]()
        self.now = end


def made() -> tuple[Events, Clock, list[tuple[int, str, Any]]]:
    clock = Clock()
    events = Events(lambda: clock.now * 1000, clock.later)
    seen: list[tuple[int, str, Any]] = []
    events.subscribe(lambda message: seen.append((clock.now, message["event"], message.get("data"))))
    return events, clock, seen


def test_first_comes_at_once_and_of_the_others_only_the_last_after_a_second() -> None:
    events, clock, seen = made()
    for action in ("reset", "pause", "none"):
        events.emit("WATCHDOG", {"action": action})
    clock.step(999)
    assert seen == [(0, "WATCHDOG", {"action": "reset"})]
    clock.step(1)
    assert seen[1:] == [(1000, "WATCHDOG", {"action": "none"})]
    clock.step(5000)
    assert len(seen) == 2
    events.emit("WATCHDOG", {"action": "pause"})
    assert seen[2:] == [(6000, "WATCHDOG", {"action": "pause"})]


def test_held_event_tells_when_it_happened_not_when_it_was_sent() -> None:
    clock = Clock()
    events = Events(lambda: clock.now * 1000, clock.later)
    stamps: list[Any] = []
    events.subscribe(lambda message: stamps.append(message["timestamp"]))
    events.emit("RTC_CHANGE", {"offset": 1, "qom-path": "/rtc"})
    clock.step(400)
    events.emit("RTC_CHANGE", {"offset": 2, "qom-path": "/rtc"})
    clock.step(600)
    assert stamps == [{"seconds": 0, "microseconds": 0}, {"seconds": 0, "microseconds": 400_000}]


def test_sources_of_one_kind_do_not_hold_each_other_back() -> None:
    events, _clock, seen = made()
    for port in ("a", "b", "a"):
        events.emit("VSERPORT_CHANGE", {"id": port, "open": True})
    assert [data["id"] for _, _, data in seen] == ["a", "b"]


def test_events_without_a_period_all_come() -> None:
    events, _clock, seen = made()
    for _ in range(100):
        events.emit("STOP")
    assert len(seen) == 100


@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 99)), max_size=30))
def test_no_flood_exceeds_the_period_and_the_last_is_never_lost(steps: list[tuple[int, int]]) -> None:
    events, clock, seen = made()
    for wait, offset in steps:
        clock.step(wait)
        events.emit("RTC_CHANGE", {"offset": offset, "qom-path": "/rtc"})
    clock.step(2000)
    times = [time for time, _, _ in seen]
    assert all(later - earlier >= 1000 for earlier, later in pairwise(times))
    if steps:
        assert seen[-1][2]["offset"] == steps[-1][1]


def test_under_qtest_the_period_is_one_of_the_virtual_clock() -> None:
    machine = Machine.create("pc", MachineConfig(accel="qtest", ram_size=16 << 20))
    events = Events()
    listen(machine, events)
    seen: list[Any] = []
    events.subscribe(lambda message: seen.append(message["data"]["action"]))
    machine.start()
    for action in ("reset", "none"):
        machine.emit("WATCHDOG", {"action": action})
    assert seen == ["reset"]
    machine.clock.step(1_000_000_000)
    assert seen == ["reset", "none"]
    machine.close()


def test_periods_are_qemus() -> None:
    assert {name for name, event in EVENTS.items() if event.period_ms} == {
        "BALLOON_CHANGE",
        "BLOCK_IO_ERROR",
        "RTC_CHANGE",
        "VSERPORT_CHANGE",
        "WATCHDOG",
    }
