"""A breadth-first search over every order of a scenario's actors. The first violation found is a shortest one."""

from __future__ import annotations

import re
from array import array
from typing import TYPE_CHECKING, NamedTuple

from vmm.explore.actors import Actor, NotDeterministic, Stage, Standing
from vmm.explore.footprints import Footprints
from vmm.explore.heap import Arena
from vmm.explore.liveness import Graph
from vmm.order import State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.heap import Heap
    from vmm.explore.liveness import Live

    Check = Callable[[], str | None]


class Scenario(NamedTuple):
    """What to explore. `always` is asked in every state, `at_rest` where nobody can act: a text says what is wrong.

    `live`: names and goals, each a pure function of the state that is to be true again and again in every fair run; see
    `vmm.explore.liveness`. Asked if nothing else is wrong.
    """

    roots: tuple[State, ...]
    actors: tuple[Actor, ...]
    always: Check | None = None
    at_rest: Check | None = None
    live: Live = ()


class Finding(NamedTuple):
    """A rule that was broken, and a shortest way there: (actor, step) from the beginning."""

    rule: str
    trail: tuple[tuple[str, str], ...]
    choices: tuple[int, ...] = ()
    """The same way as numbers of actors."""
    cause: BaseException | None = None
    """What the code raised, if the rule is that it may not."""
    loop: int | None = None
    """Of a goal that need not come true: the steps from here on can be repeated for ever."""

    def __str__(self) -> str:
        return "\n".join([self.rule, *(f"  {n:3} {actor}: {step}" for n, (actor, step) in enumerate(self.trail, 1))])


class Result(NamedTuple):
    """How much there was, and what was wrong (None: nothing, in no order)."""

    states: int
    transitions: int
    depth: int
    ends: int
    finding: Finding | None
    complete: bool = True
    """False: `limit` states were known before all were seen, and nothing was wrong with those."""


class _Node(NamedTuple):
    heap: Heap
    standings: tuple[Standing, ...]
    mark: int


def explore(scenario: Scenario, limit: int = 1_000_000, audit: bool = False) -> Result:
    """Try every order, level by level, until all states are seen, a rule is broken, or `limit` states are known.

    The count is exact and the same every time. `audit` runs the code for every step, however well it is known, and
    checks each heap for containers that would not be copied.
    """
    with Footprints(set_up(scenario), audit) as steps:
        return _explore(scenario, steps, limit)


def _explore(scenario: Scenario, steps: Footprints, limit: int) -> Result:
    first = _Node(*steps.beginning())
    numbers = {first.mark: 0}
    parents, actors = array("I", [0]), bytearray(1)
    level = [first]
    transitions = depth = ends = base = 0
    graph = Graph(len(scenario.live)) if scenario.live else None

    def found(
        rule: str, state: int, last: int = -1, cause: BaseException | None = None, cycle: tuple[int, ...] = ()
    ) -> Finding:
        choices = [] if last < 0 else [last]
        while state:
            choices.append(actors[state])
            state = parents[state]
        choices.reverse()
        stem = tuple(choices)
        return Finding(
            rule, _trail(scenario, steps, first, stem + cycle), stem + cycle, cause, len(stem) if cycle else None
        )

    def result(finding: Finding | None, complete: bool = True) -> Result:
        steps.arena.put(first.heap)
        return Result(len(numbers), transitions, depth, ends, finding, complete)

    while level:
        following: list[_Node] = []
        for number, (heap, standings, mark) in enumerate(level, base):
            enabled = steps.enabled(heap, standings)
            wrong = steps.says(scenario.always, heap) if scenario.always is not None else None
            if wrong is None and not enabled:
                ends += 1
                wrong = stuck(scenario, standings)
                if wrong is None and scenario.at_rest is not None:
                    steps.arena.put(heap)
                    wrong = scenario.at_rest()
            if wrong is not None:
                return result(found(wrong, number))
            if graph is not None:
                graph.state(steps.says(goal, heap) for _, goal in scenario.live)
            for n in enabled:
                transitions += 1
                try:
                    step = steps.step(heap, standings, mark, n)
                except Violation as violation:
                    return result(found(_nameless(str(violation)), number, n, violation.__cause__))
                except NotDeterministic as fault:
                    fault.operation = scenario.actors[n].at(standings[n].done)
                    raise
                after = step[4]
                if after not in numbers:
                    numbers[after] = len(numbers)
                    parents.append(number)
                    actors.append(n)
                    following.append(_Node(step[2], step[3], after))
                    if len(numbers) >= limit:
                        return result(None, complete=False)
                if graph is not None:
                    graph.edge(n, standings[n].place.owed, numbers[after])
        base += len(level)
        level = following
        depth += 1
    return result(None if graph is None else _unfair(scenario, graph, found))


def _trail(scenario: Scenario, steps: Footprints, node: _Node, choices: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    """The steps' names."""
    trail = []
    heap, standings, mark = node
    for n in choices:
        try:
            _, name, heap, standings, mark = steps.step(heap, standings, mark, n)
        except Violation:
            name = "violates"
        trail.append((scenario.actors[n].name, name))
    return tuple(trail)


def _unfair(scenario: Scenario, graph: Graph, found: Callable[..., Finding]) -> Finding | None:
    """A goal that need not come true again."""
    for goal, (name, _) in enumerate(scenario.live):
        lasso = graph.lasso(goal)
        if lasso is None:
            continue
        if not lasso.cycle:
            return found(f"{name}: not so where nobody can act any more", lasso.start)
        text = f"{name}: need not come true again: {len(lasso.cycle)} steps that can be repeated for ever"
        return found(text, lasso.start, cycle=lasso.cycle)
    return None


def _nameless(text: str) -> str:
    """Without the addresses that differ from run to run."""
    return re.sub(r" object at 0x[0-9a-f]+", "", text)


def set_up(scenario: Scenario) -> Stage:
    """A stage with the scenario's actors, over an arena of all that they can reach."""
    owners = _owners(scenario.actors)
    arena = Arena(*scenario.roots, *[owner for owner in owners if isinstance(owner, State)])
    for owner in owners:
        arena.adopt(owner)
    return Stage(arena, scenario.actors)


def _owners(actors: tuple[Actor, ...]) -> list[object]:
    """The objects whose methods the operations are, and what functions made in place refer to."""
    owners: list[object] = []
    for actor in actors:
        for operation in actor.operations:
            for call in (operation.function, operation.ready):
                owners.append(getattr(call, "__self__", None))
                owners += [cell.cell_contents for cell in getattr(call, "__closure__", None) or ()]
    return owners


def stuck(scenario: Scenario, standings: tuple[Standing, ...]) -> str | None:
    """Nobody can act: a deadlock if somebody is in the middle of an operation."""
    held = [
        f"{actor.name} at {standing.place.step}"
        for actor, standing in zip(scenario.actors, standings, strict=True)
        if standing.place.step
    ]
    return f"deadlock: {', '.join(held)}" if held else None
