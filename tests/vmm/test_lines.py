"""Wires: the OR of their holders, whatever the holders do."""

from hypothesis import given
from hypothesis import strategies as st

from vmm.lines import EdgeLine, Wire


def heard(wire: Wire) -> list[bool]:
    log: list[bool] = []
    wire.connect(log.append)
    return log


def test_two_holders_high_one_lowers_wire_stays_high():
    wire = Wire("intx")
    log = heard(wire)
    a, b = wire.hold("a"), wire.hold("b")
    a.set(True)
    b.set(True)
    a.set(False)
    assert wire.high
    assert log == [True]
    b.set(False)
    assert log == [True, False]


def test_holder_closed_while_high_wire_falls():
    wire = Wire("intx")
    log = heard(wire)
    line = wire.hold("gone")
    line.set(True)
    line.close()
    line.set(True)
    assert log == [True, False]
    assert not wire.high
    assert wire.holders == []


def test_target_connected_to_a_high_wire_hears_it_at_once():
    wire = Wire("intx")
    wire.hold("a").set(True)
    assert heard(wire) == [True]


def test_edge_line_pulses_up_and_down():
    wire = Wire("irq0")
    log = heard(wire)
    EdgeLine(wire.hold("pit")).pulse()
    assert log == [True, False]


def test_edge_line_closed_pulses_no_more_and_lets_go_of_the_wire():
    wire = Wire("irq0")
    log = heard(wire)
    edge = EdgeLine(wire.hold("pit"))
    edge.close()
    edge.pulse()
    assert log == wire.holders == []


def test_wire_says_who_holds_it_high():
    wire = Wire("intx")
    wire.hold("edu").set(True)
    wire.hold("uart")
    assert repr(wire) == "<Wire intx high: edu+, uart->"


def test_one_wire_feeds_every_target_in_order():
    order: list[str] = []
    wire = Wire("irq4", lambda level: order.append(f"pic{level:d}"), lambda level: order.append(f"ioapic{level:d}"))
    wire.hold("uart").set(True)
    assert order == ["pic1", "ioapic1"]


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["up", "down", "close"])), max_size=60))
def test_wire_is_the_or_of_its_open_holders_after_any_history(steps):
    wire = Wire("w")
    log = heard(wire)
    lines = [wire.hold(f"h{i}") for i in range(5)]
    levels = [False] * 5
    closed = [False] * 5
    for who, what in steps:
        if what == "close":
            lines[who].close()
            closed[who], levels[who] = True, False
        else:
            lines[who].set(what == "up")
            levels[who] = what == "up" and not closed[who]
        assert wire.high == any(levels)
    assert log == [i % 2 == 0 for i in range(len(log))], "targets hear changes only"
