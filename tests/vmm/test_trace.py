"""Typed events and their sinks."""

import io
import json

import pytest

from vmm.trace import Event, Recording, Trace, json_sink, text_sink


class IoapicSetIrq(Event):
    pin: int
    level: bool


class LapicEoi(Event):
    vector: int


class Same(Event):
    """The fields of IoapicSetIrq."""

    pin: int
    level: bool


def test_event_name_is_qemu_like():
    assert IoapicSetIrq.name == "ioapic_set_irq"


def test_events_are_equal_if_class_and_fields_are_and_cannot_be_changed():
    event = IoapicSetIrq(11, level=True)
    assert event == IoapicSetIrq(11, True)
    assert hash(event) == hash(IoapicSetIrq(11, True))
    assert event != IoapicSetIrq(12, True)
    assert event != Same(11, True)
    assert event != (11, True)
    assert repr(event) == "IoapicSetIrq(pin=11, level=True)"
    with pytest.raises(AttributeError):
        event.pin = 12
    with pytest.raises(TypeError):
        IoapicSetIrq(11)


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
