"""Liveness: what must happen again and again, under weak fairness, and the loop in which it does not.

A scenario says what must keep coming true, and who may not stand still for ever:

    Scenario(roots, actors, always, at_rest, live=(("L5", no_interrupt_under_way),))
    Actor("device", operations, fair=False)

Each goal is a pure function of the state. An infinite run breaks it if from some state on the goal is false for ever.
Only *weakly fair* runs count: an actor that can act all the time does act. Of an actor that is not `fair` (a user, a
device: nobody makes them) this is asked only in the middle of an operation; it need not begin one. A run that ends,
because nobody can act any more, stays in its last state for ever, so the goal has to be true there.

Nothing is counted: a loop is a strongly connected part of the graph of states in which the goal is false and every
actor that is owed a step takes one, or cannot act somewhere on the way. The finding is a lasso: `choices` leads to
the loop and once around it, and `loop` says how many of the steps come before it.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Goal = Callable[[], bool]
    Live = tuple[tuple[str, Goal], ...]

UNSEEN = 0xFFFF_FFFF
OWED = 0x80
"""Set beside an edge's actor who may not be left out for ever."""


class Lasso(NamedTuple):
    """`start` is reached by the search's own way; `cycle` leads from it around to it (empty: nobody can act there)."""

    start: int
    cycle: tuple[int, ...]


class Graph:
    """The states in the order of their discovery, and who leads from each to which. Fed by the search."""

    def __init__(self, goals: int) -> None:
        self.first = array("I")
        """Of each state, where its edges begin; one more at the end."""
        self.actors = bytearray()
        self.targets = array("I")
        self.reached = [bytearray() for _ in range(goals)]
        """Of each goal, whether each state fulfils it."""

    def state(self, goals: Iterator[bool]) -> None:
        """The next state; its edges follow."""
        self.first.append(len(self.targets))
        for bits, reached in zip(self.reached, goals, strict=True):
            bits.append(reached)

    def edge(self, actor: int, owed: bool, target: int) -> None:
        """From the last state."""
        self.actors.append(actor | OWED if owed else actor)
        self.targets.append(target)

    def lasso(self, goal: int) -> Lasso | None:
        """A fair run in which goal number `goal` stays false: with a shortest way there, then a short loop."""
        first = array("I", self.first)
        first.append(len(self.targets))
        reached = self.reached[goal]
        best: list[int] | None = None
        for part in self._parts(first, reached):
            if (best is None or min(part) < min(best)) and self._is_fair(first, part):
                best = part
        for state in range(len(reached)):
            if best is not None and state >= min(best):
                break
            if not reached[state] and first[state] == first[state + 1]:
                return Lasso(state, ())
        return None if best is None else Lasso(min(best), self._around(first, best))

    def _parts(self, first: array[int], reached: bytearray) -> Iterator[list[int]]:
        """The strongly connected parts, with an edge inside, of the states where the goal is false. (Tarjan)"""
        count = len(reached)
        targets = self.targets
        index = array("I", [UNSEEN]) * count
        low = array("I", [0]) * count
        on_stack = bytearray(count)
        stack: list[int] = []
        number = 0
        for root in range(count):
            if reached[root] or index[root] != UNSEEN:
                continue
            work = [(root, first[root])]
            while work:
                state, edge = work.pop()
                if edge == first[state] and index[state] == UNSEEN:
                    index[state] = low[state] = number
                    number += 1
                    stack.append(state)
                    on_stack[state] = 1
                descended = False
                while edge < first[state + 1]:
                    target = targets[edge]
                    edge += 1
                    if target >= count or reached[target]:
                        continue
                    if index[target] == UNSEEN:
                        work.append((state, edge))
                        work.append((target, first[target]))
                        descended = True
                        break
                    if on_stack[target]:
                        low[state] = min(low[state], index[target])
                if descended:
                    continue
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[state])
                if low[state] == index[state]:
                    part = []
                    while True:
                        member = stack.pop()
                        on_stack[member] = 0
                        part.append(member)
                        if member == state:
                            break
                    if len(part) > 1 or any(targets[e] == state for e in range(first[state], first[state + 1])):
                        yield part

    def _debts(self, first: array[int], part: list[int]) -> set[int]:
        """Actors that are owed a step in every state of the part."""
        debts: set[int] | None = None
        for state in part:
            owed = {a & ~OWED for a in self.actors[first[state] : first[state + 1]] if a & OWED}
            debts = owed if debts is None else debts & owed
            if not debts:
                break
        return debts or set()

    def _is_fair(self, first: array[int], part: list[int]) -> bool:
        """Each actor that is owed a step everywhere in the part has one inside."""
        debts = self._debts(first, part)
        inside = set(part)
        for state in part:
            for edge in range(first[state], first[state + 1]):
                if self.targets[edge] in inside:
                    debts.discard(self.actors[edge] & ~OWED)
        return not debts

    def _around(self, first: array[int], part: list[int]) -> tuple[int, ...]:
        """From the part's first state around to it, such that nobody who is owed a step is left out."""
        inside = set(part)
        start = state = min(part)
        debts = self._debts(first, [start])  # who is still to act, or to be found unable
        cycle: list[int] = []
        while debts or not cycle:
            for actor, after in self._way(first, inside, state, debts, None):
                cycle.append(actor)
                state = after
                debts = (debts & self._debts(first, [state])) - {actor}
        for actor, _ in self._way(first, inside, state, set(), start) if state != start else ():
            cycle.append(actor)
        return tuple(cycle)

    def _way(
        self, first: array[int], inside: set[int], source: int, debts: set[int], goal: int | None
    ) -> list[tuple[int, int]]:
        """A shortest way inside: to `goal`; or, if that is None, to where one of `debts` acts or need not (or, if
        there are none, a single step). As (actor, state after it).
        """
        came: dict[int, tuple[int, int]] = {}
        queue = deque([source])
        while queue:
            state = queue.popleft()
            for edge in range(first[state], first[state + 1]):
                target, actor = self.targets[edge], self.actors[edge] & ~OWED
                if target not in inside:
                    continue
                if goal is None:
                    done = not debts or actor in debts or not debts <= self._debts(first, [target])
                else:
                    done = target == goal
                if done:
                    way = [(actor, target)]
                    while state != source:
                        actor, before = came[state]
                        way.append((actor, state))
                        state = before
                    return way[::-1]
                if target not in came and target != source:
                    came[target] = (actor, state)
                    queue.append(target)
        raise AssertionError("a strongly connected part has a way from each state to each")
