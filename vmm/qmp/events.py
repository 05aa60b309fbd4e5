"""QMP events: from the machine to every session that has negotiated, and to subscribers in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from vmm.qmp.json_stream import dumps

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


class Events:
    """Where a machine emits its events.

    `now_us` is the host's time in microseconds since 1970. An event goes to the subscribers of that moment in the
    order of their registration, before `emit` returns.
    """

    __slots__ = ("_now_us", "_subscribers")

    def __init__(self, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._now_us = now_us
        self._subscribers: list[Subscriber] = []

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
        for subscriber in tuple(self._subscribers):
            subscriber(message)

    def subscribe(self, subscriber: Subscriber) -> Subscription:
        """Have `subscriber` called with every event's message, as a dict, from now on."""
        self._subscribers.append(subscriber)
        return Subscription(self, subscriber)


def event_line(message: Mapping[str, Any], pretty: bool = False) -> bytes:
    """An event's message as bytes for the wire."""
    return dumps(message, pretty).encode("ascii") + b"\r\n"
