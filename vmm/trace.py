"""Typed events, and the sinks that write them down.

Each transition on an interrupt's road is one event: a small immutable class next to the code that emits it, named
like QEMU's trace points (`IoapicSetIrq` is `ioapic_set_irq`). Emitting is guarded, so a machine that nobody watches
pays one attribute load:

    if trace.on:
        trace.emit(IoapicSetIrq(pin, level))

Sinks: text (one line an event), JSON lines, and a list in memory for tests and `vintx demo`.
"""

from __future__ import annotations

import json
import re
from collections import deque, namedtuple
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TextIO, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Sink = Callable[["Record"], None]

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


@dataclass_transform(frozen_default=True)
class EventType(type):
    """Makes an event class from its annotations: an immutable tuple with named fields.

    A frozen dataclass would do the same, but takes fifteen times as long to define, and every start defines them all.
    """

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> EventType:
        if bases:
            fields = namedtuple(name, namespace.get("__annotations__", ()))  # type: ignore[misc]
            namespace |= {"__slots__": (), "name": _CAMEL.sub("_", name).lower()}
            bases = (*bases, fields)
        return super().__new__(cls, name, bases, namespace)


class Event(metaclass=EventType):
    """Base of all events. A subclass annotates its fields; `name` is made from its class."""

    __slots__ = ()
    name: ClassVar[str] = "event"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and type(self) is type(other) and self.fields() == other.fields()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((type(self).name, *self.fields().values()))

    def fields(self) -> dict[str, Any]:
        """The event's fields by name, in order."""
        fields: dict[str, Any] = self._asdict()  # type: ignore[attr-defined]
        return fields


class Record(NamedTuple):
    """An event as it was emitted: machine time in ns, serial number, event."""

    time: int
    serial: int
    event: Event

    def text(self) -> str:
        """One line: seconds, name, fields."""
        fields = " ".join(f"{k}={_show(v)}" for k, v in self.event.fields().items())
        return f"{self.time / 1e9:.9f} {self.event.name} {fields}".rstrip()

    def json(self) -> str:
        """One JSON object: `t` (ns), `n` (serial), `event`, and the event's fields."""
        return json.dumps({"t": self.time, "n": self.serial, "event": self.event.name, **self.event.fields()})


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int):
        return str(value) if -10 < value < 10 else hex(value)
    return str(value)


class Trace:
    """Where a machine's events go. `on` is True while somebody listens; check it before making an event."""

    __slots__ = ("_now", "_patterns", "_serial", "_sinks", "on")

    def __init__(self, now: Callable[[], int] = lambda: 0) -> None:
        self._now = now
        self._serial = 0
        self._sinks: list[tuple[Sink, re.Pattern[str] | None]] = []
        self.on = False

    def emit(self, event: Event) -> None:
        """Hand an event to every sink that wants it."""
        self._serial += 1
        record = Record(self._now(), self._serial, event)
        for sink, wanted in self._sinks:
            if wanted is None or wanted.fullmatch(event.name):
                sink(record)

    def listen(self, sink: Sink, pattern: str | None = None) -> Callable[[], None]:
        """Add a sink; `pattern` is a glob over event names as in QEMU's -trace. Returns the call that removes it."""
        wanted = None if pattern is None else re.compile(pattern.replace("*", ".*").replace("?", "."))
        entry = (sink, wanted)
        self._sinks.append(entry)
        self.on = True

        def close() -> None:
            if entry in self._sinks:
                self._sinks.remove(entry)
            self.on = bool(self._sinks)

        return close


def text_sink(stream: TextIO) -> Sink:
    """Write each event as a line of text."""
    return lambda record: print(record.text(), file=stream)


def json_sink(stream: TextIO) -> Sink:
    """Write each event as a JSON line."""
    return lambda record: print(record.json(), file=stream)


class Recording:
    """A sink that keeps events in memory, at most `limit` of them (the oldest go first)."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.records: deque[Record] = deque(maxlen=limit)

    def __call__(self, record: Record) -> None:
        self.records.append(record)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def of(self, *kinds: type[Event]) -> list[Event]:
        """The events of the given classes, oldest first."""
        return [r.event for r in self.records if isinstance(r.event, kinds)]

    def clear(self) -> None:
        """Forget what was recorded."""
        self.records.clear()
