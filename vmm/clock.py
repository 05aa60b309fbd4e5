"""The one clock of a machine, and its timers. Times are nanoseconds since the machine was made.

`HostClock` follows CLOCK_MONOTONIC and stands still while the machine is stopped. `VirtualClock` moves only when it
is told to (qtest's clock_step, tests, the explorer).
"""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, ClassVar

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

NS_PER_SEC = 1_000_000_000


_ROOMY = 64
"""Entries of a heap that is never worth cleaning."""


class Timer:
    """A one-shot timer of a clock. Made by `Clock.timer`; `deadline` is None while it is not armed."""

    __slots__ = ("_callback", "_clock", "deadline", "name")

    def __init__(self, clock: Clock, name: str, callback: Callable[[], None]) -> None:
        self._clock = clock
        self._callback = callback
        self.name = name
        self.deadline: int | None = None

    def arm(self, deadline: int) -> None:
        """Call back once the clock reaches `deadline` (ns); replaces an earlier deadline."""
        self.deadline = deadline
        self._clock._push(deadline, self)

    def cancel(self) -> None:
        """Forget the deadline; the callback will not run."""
        self.deadline = None

    def fire(self) -> None:
        """Run the callback now, disarmed first so that it may arm again."""
        self.deadline = None
        self._callback()

    def __repr__(self) -> str:
        return f"<Timer {self.name} {self.deadline}>"


class Clock:
    """What both clocks share: a heap of timers. `on_earlier(deadline)` is told when the next deadline moves nearer."""

    moves: ClassVar[bool] = True
    """Time passes by itself, so that waiting for a deadline makes sense."""

    __slots__ = ("_heap", "_limit", "_serial", "on_earlier")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Timer]] = []
        self._limit = _ROOMY
        self._serial = 0
        self.on_earlier: Callable[[int], None] | None = None

    def now(self) -> int:
        """Nanoseconds since the machine was made."""
        raise NotImplementedError

    def timer(self, name: str, callback: Callable[[], None]) -> Timer:
        """A new timer, not armed."""
        return Timer(self, name, callback)

    def _push(self, deadline: int, timer: Timer) -> None:
        self._serial += 1
        entry = (deadline, self._serial, timer)
        heapq.heappush(self._heap, entry)
        if self.on_earlier is not None and self._heap[0] is entry:
            self.on_earlier(deadline)

        if len(self._heap) > self._limit:
            self._clean()

    def _clean(self) -> None:
        """Drop entries of timers that were cancelled or armed anew: a guest may do so for ever without one being due.

        In place: `run_due` may be walking the heap. Of a timer's equal entries, the oldest is the one that counts.
        """
        kept: dict[Timer, tuple[int, int, Timer]] = {}
        for entry in sorted(self._heap, key=_entry_key):
            if entry[2].deadline == entry[0]:
                kept.setdefault(entry[2], entry)
        self._heap[:] = kept.values()  # sorted, so a heap
        self._limit = max(_ROOMY, 2 * len(self._heap))

    def next_deadline(self) -> int | None:
        """When the next armed timer is due; None if none is armed."""
        heap = self._heap
        while heap:
            deadline, _, timer = heap[0]
            if timer.deadline == deadline:
                return deadline
            heapq.heappop(heap)  # cancelled or armed anew
        return None

    def run_due(self) -> int:
        """Fire every timer that is due, in order of deadline and then of arming. Returns how many."""
        fired = 0
        now = self.now()
        while True:
            deadline = self.next_deadline()
            if deadline is None or deadline > now:
                return fired
            _, _, timer = heapq.heappop(self._heap)
            timer.fire()
            fired += 1


def _entry_key(entry: tuple[int, int, Timer]) -> tuple[int, int]:
    return entry[:2]


class HostClock(Clock):
    """Follows CLOCK_MONOTONIC from 0; stands still between `stop` and `resume`."""

    __slots__ = ("_offset", "_stopped_at")

    def __init__(self) -> None:
        super().__init__()
        self._offset = time.monotonic_ns()
        self._stopped_at: int | None = None

    def now(self) -> int:
        if self._stopped_at is not None:
            return self._stopped_at
        return time.monotonic_ns() - self._offset

    def host_deadline(self, deadline: int) -> int:
        """The CLOCK_MONOTONIC time of a deadline of this clock."""
        return deadline + self._offset

    def stop(self) -> None:
        """Stand still. Stopping twice does nothing."""
        if self._stopped_at is None:
            self._stopped_at = self.now()

    def resume(self) -> None:
        """Go on from where `stop` left it."""
        if self._stopped_at is not None:
            self._offset = time.monotonic_ns() - self._stopped_at
            self._stopped_at = None


class VirtualClock(Clock):
    """Moves only by `step` and `set`."""

    __slots__ = ("_now",)

    moves = False

    def __init__(self) -> None:
        super().__init__()
        self._now = 0

    def now(self) -> int:
        return self._now

    def stop(self) -> None:
        """A virtual clock stands still anyway."""

    def resume(self) -> None:
        """A virtual clock moves only when told."""

    def set(self, now: int) -> None:
        """Move to `now`, firing each timer at its own deadline. ConfigError if that is in the past."""
        if now < self._now:
            raise ConfigError(f"the clock is at {self._now} ns and cannot go back to {now}")
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            self._now = max(self._now, deadline)
            self.run_due()
        self._now = now

    def step(self, ns: int | None = None) -> bool:
        """Move by `ns`, or to the next deadline. False if there is none to move to."""
        if ns is None:
            deadline = self.next_deadline()
            if deadline is None:
                return False
            self.set(max(deadline, self._now))
        else:
            self.set(self._now + ns)
        return True
