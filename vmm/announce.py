"""announce-self: let the network know again and again where the cards of a machine are, as after a migration."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Pace(NamedTuple):
    """How often: `rounds` times, the first at once, then after `initial` ms, `step` ms longer each time up to `max`."""

    initial: int
    max: int
    rounds: int
    step: int


class Announcer:
    """The announcements that are under way, by id. `announce(interfaces)` makes one; None: of all cards."""

    def __init__(self, announce: Callable[[Collection[str] | None], None]) -> None:
        self._announce = announce
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def start(self, id: str, pace: Pace, interfaces: list[str] | None = None) -> None:
        """Begin, or begin anew; with no rounds, end. An event loop must run."""
        self._cancel(id)
        if pace.rounds:
            self._round(id, pace, interfaces, 0)

    def _round(self, id: str, pace: Pace, interfaces: list[str] | None, done: int) -> None:
        self._timers.pop(id, None)
        self._announce(interfaces)
        if done + 1 < pace.rounds:
            delay = min(pace.initial + pace.step * done, pace.max) / 1000
            loop = asyncio.get_running_loop()
            self._timers[id] = loop.call_later(delay, self._round, id, pace, interfaces, done + 1)

    def _cancel(self, id: str) -> None:
        timer = self._timers.pop(id, None)
        if timer is not None:
            timer.cancel()
