"""What the search remembers of a step, and what it notices when that is not all that the step depends on."""

from __future__ import annotations

from itertools import count

import pytest

from tests.explore.test_search import lifetime
from vmm import order
from vmm.explore import footprints
from vmm.explore.actors import Actor, NotDeterministic, Operation
from vmm.explore.footprints import Footprints, grown
from vmm.explore.search import Scenario, explore, set_up
from vmm.order import State


class Box(State):
    VISIBLE = ("a", "b", "c", "items", "log")
    __slots__ = VISIBLE

    def __init__(self) -> None:
        self.a = self.b = self.c = 0
        self.items: list[int] = []
        self.log: tuple[int, ...] = ()

    def choose(self) -> None:
        """Which field is read depends on another."""
        value = self.b if self.a else self.c
        order.hook("box.chosen", self)
        self.log = (*self.log, value)

    def set_a(self) -> None:
        self.a = 1

    def set_b(self) -> None:
        self.b = 7

    def truth(self) -> None:
        self.a = True if self.a == 1 else 0

    def hold(self) -> None:
        """The container is in the code's hands over a point."""
        items = self.items
        order.hook("box.held", self)
        items.append(len(items))

    def add(self) -> None:
        self.items.append(9)


class Thing(State):
    __slots__ = ()


def together(*calls, **more):
    actors = tuple(Actor(f"{n}", (Operation(call.__name__, call),)) for n, call in enumerate(calls))
    audit = more.pop("audit", False)
    return explore(Scenario((calls[0].__self__,), actors, **more), audit=audit)


@pytest.mark.parametrize("close", [False, True])
def test_counts_are_those_of_a_search_that_runs_the_code_for_every_step(close):
    assert explore(lifetime(close), 1_000) == explore(lifetime(close), 1_000, audit=True)


def test_most_steps_are_not_run():
    scenario = lifetime(signals=2)
    with Footprints(set_up(scenario)) as steps:
        run = []
        original = steps._run
        steps._run = lambda *step: run.append(step) or original(*step)
        start = steps.beginning()
        level, seen, taken = [start], {start[2]}, 0
        while level:
            following = []
            for heap, standings, mark in level:
                for n in steps.enabled(heap, standings):
                    step = steps.step(heap, standings, mark, n)
                    taken += 1
                    if step[3] not in seen:
                        seen.add(step[3])
                        following.append(step[1:])
            level = following
    assert len(run) < taken / 10


def test_field_that_is_read_only_for_some_values_of_another_counts_for_those():
    box = Box()
    ends = set()
    together(box.choose, box.set_a, box.set_b, at_rest=lambda: ends.add(box.log))
    assert ends == {(0,), (7,)}


def test_true_is_not_one():
    box = Box()
    ends = set()
    together(box.set_a, box.truth, at_rest=lambda: ends.add((type(box.a), box.a)))
    assert ends == {(int, 1), (bool, True)}


def test_container_that_code_holds_over_a_point_is_read_when_it_goes_on():
    box = Box()
    ends = set()
    together(box.hold, box.add, at_rest=lambda: ends.add(tuple(box.items)))
    assert ends == {(0, 9), (9, 1)}


def test_mark_of_a_state_does_not_depend_on_the_way_there():
    scenario = lifetime()
    with Footprints(set_up(scenario)) as steps:
        heap, standings, mark = steps.beginning()
        for _ in range(25):
            enabled = steps.enabled(heap, standings)
            step = steps.step(heap, standings, mark, enabled[len(enabled) // 2])
            heap, standings, mark = step[1:]
            whole = steps.arena.mark(heap)
            for standing in standings:
                whole ^= standing.place.sum
            assert mark == whole


def test_step_that_depends_on_a_clock_is_not_deterministic(monkeypatch):
    monkeypatch.setattr(footprints, "AGAIN", frozenset({1}))
    box, clock = Box(), count()

    def stamp() -> None:
        box.b = next(clock)

    with pytest.raises(NotDeterministic, match="depends on something that is no State"):
        together(box.set_a, stamp)


def test_step_that_reads_other_fields_for_the_same_values_is_not_deterministic():
    box, clock = Box(), count()

    def waver() -> None:
        if next(clock) % 2:
            box.log = (box.b,)
        else:
            box.log = (box.c,)

    with pytest.raises(NotDeterministic):
        together(box.set_a, box.set_b, waver)


def test_step_that_comes_to_another_point_when_it_is_run_again_is_not_deterministic():
    box, clock = Box(), count()

    def waver() -> None:
        order.hook("odd" if next(clock) % 2 else "even", box)

    with pytest.raises(NotDeterministic, match="came to odd, and to even before"):
        explore(Scenario((box,), (Actor("a", (Operation("waver", waver),)),)))


def test_objects_made_before_a_point_count_for_the_names_of_those_made_after_it():
    box = Box()

    def make() -> None:
        if box.a:
            Thing()
        order.hook("box.made", box)
        box.b = Thing()

    assert together(box.set_a, make, audit=True) == together(box.set_a, make)


def test_classes_have_their_slots_back_after_a_search():
    box = Box()
    before = dict(vars(Box))
    together(box.choose, box.set_a)
    assert dict(vars(Box)) == before
    with pytest.raises(ZeroDivisionError):
        together(box.set_a, always=lambda: 1 / 0)
    assert dict(vars(Box)) == before


def test_tree_is_split_where_ways_part():
    tree = grown(None, (0, 1, 2), (1, 2, 3), "first")
    tree = grown(tree, (0, 1, 3), (1, 5, 3, 4), "second")
    tree = grown(tree, (0,), (2,), "third")
    with pytest.raises(footprints._CannotTell):
        grown(tree, (1, 0), (1, 2), "fourth")
    found = {}
    for heap in ((1, 2, 3, 0), (1, 5, 9, 4), (2, 0, 0, 0), (1, 5, 9, 9)):
        end = tree
        while isinstance(end, footprints.Node):
            end = end.after.get(end.look(heap))
        found[heap] = end
    assert list(found.values()) == ["first", "second", "third", None]
