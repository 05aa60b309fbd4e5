"""Typed events and their sinks."""

import io
import json
from dataclasses import dataclass

from vmm.trace import Event, Recording, Trace, json_sink, text_sink


@dataclass(frozen=True, slots=True)
class IoapicSetIrq(Event):
    pin: int
    level: bool


@dataclass(frozen=True, slots=True)
class LapicEoi(Event):
    vector: int


def test_event_name_is_qemu_like():
    assert IoapicSetIrq.name == "ioapic_set_irq"


def test_text_and_json_lines_tell_time_name_and_fields():
    trace = Trace(lambda: 1_500_000_000)
    text, lines = io.StringIO(), io.StringIO()
    trace.listen(text_sink(text))
    trace.listen(json_sink(lines))
    trace.emit(IoapicSetIrq(11, True))
    assert text.getvalue() == "1.500000000 ioapic_set_irq pin=0xb level=1\n"
    assert json.loads(lines.getvalue()) == {
        "t": 1_500_000_000,
        "n": 1,
        "event": "ioapic_set_irq",
        "pin": 11,
        "level": True,
    }


def test_pattern_selects_events_and_closing_the_last_sink_turns_tracing_off():
    trace = Trace()
    assert not trace.on
    recording = Recording()
    close = trace.listen(recording, "lapic_*")
    assert trace.on
    trace.emit(IoapicSetIrq(1, True))
    trace.emit(LapicEoi(0x51))
    close()
    assert recording.of(LapicEoi, IoapicSetIrq) == [LapicEoi(0x51)]
    assert not trace.on


def test_recording_keeps_the_newest_up_to_its_limit():
    trace = Trace()
    recording = Recording(limit=2)
    trace.listen(recording)
    for vector in (1, 2, 3):
        trace.emit(LapicEoi(vector))
    assert [e.vector for e in recording.of(LapicEoi)] == [2, 3]
    assert len(recording) == 2
