"""QMP events: from the machine to every session that has negotiated, and to subscribers in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Subscriber = Callable[[dict[str, Any]], None]
    """Called with an event's message. It must not raise, and must not change the message."""


class Subscription:
    """A registration with `Events`; `close` ends it, and may be called again."""

    __slots__ = ("_events", "_subscriber")

    def __init__(self, events: Events, subscriber: Subscriber) -> None:
        self._events: Events | None = events
        self._subscriber = subscriber

    def close(self) -> None:
        """End the registration."""
        if self._events is not None:
            self._events._subscribers.remove(self._subscriber)
            self._events = None


class _Held:
    """A kind of event that came a short while ago. `message`: the last one since, if there was one."""

    __slots__ = ("message",)

    def __init__(self) -> None:
        self.message: dict[str, Any] | None = None


class Events:
    """Where a machine emits its events.

    `now_us` is the host's time in microseconds since 1970. An event goes to the subscribers of that moment in the
    order of their registration, before `emit` returns; but of those that may come in floods (`EventType.period_ms`)
    only the first does, and at the end of each period the last one since.

    `later(ms, call)` calls that many milliseconds later. Without one the running loop's clock is used, and where
    there is no loop, nothing is held back.

    Ref: QEMU monitor/monitor.c, monitor_qapi_event_queue_no_reenter.
    """

    __slots__ = ("_held", "_now_us", "_subscribers", "later")

    def __init__(
        self,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
        later: Callable[[int, Callable[[], None]], object] | None = None,
    ) -> None:
        self._now_us = now_us
        self._subscribers: list[Subscriber] = []
        self._held: dict[tuple[str, object], _Held] = {}
        self.later = later

    def emit(self, name: str, data: Mapping[str, Any] | None = None) -> None:
        """Emit an event; `data` is left out of the message if None.

        Ref: vectors qemu-qmp-transcript.jsonl, every session (timestamp, event, data).
        """
        if not self._subscribers:
            return
        seconds, microseconds = divmod(self._now_us(), 1_000_000)
        message: dict[str, Any] = {"timestamp": {"seconds": seconds, "microseconds": microseconds}, "event": name}
        if data is not None:
            message["data"] = dict(data)
        from vmm.qmp.event_types import EVENTS

        kind = EVENTS.get(name)
        if kind is None or not kind.period_ms:
            self._send(message)
            return
        key = (name, data.get(kind.key) if data else None)
        held = self._held.get(key)
        if held is not None:
            held.message = message
            return
        self._send(message)
        self._hold(key, kind.period_ms)

    def _hold(self, key: tuple[str, object], period_ms: int) -> None:
        def over() -> None:
            held = self._held.pop(key)
            if held.message is not None:
                self._send(held.message)
                self._hold(key, period_ms)

        later = self.later
        if later is None:
            import asyncio

            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                return
            loop.call_later(period_ms / 1000, over)
        else:
            later(period_ms, over)
        self._held[key] = _Held()

    def _send(self, message: dict[str, Any]) -> None:
        for subscriber in tuple(self._subscribers):
            subscriber(message)

    def subscribe(self, subscriber: Subscriber) -> Subscription:
        """Have `subscriber` called with every event's message, as a dict, from now on."""
        self._subscribers.append(subscriber)
        return Subscription(self, subscriber)


def event_line(message: Mapping[str, Any], pretty: bool = False) -> bytes:
    """An event's message as bytes for the wire."""
    from vmm.qmp.json_stream import dumps

    return dumps(message, pretty).encode("ascii") + b"\r\n"
