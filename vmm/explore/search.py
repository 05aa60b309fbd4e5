"""A breadth-first search over every order of a scenario's actors. The first violation found is a shortest one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.explore.actors import Actor, NotDeterministic, Stage, Standing
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
    mark: bytes


def explore(scenario: Scenario, limit: int = 1_000_000, audit: bool = False) -> Result:
    """Try every order, level by level, until all states are seen, a rule is broken, or `limit` states are known.

    The count is exact and the same every time. `audit` checks each heap for containers that would not be copied.
    """
    stage = set_up(scenario)
    arena = stage.arena
    names = [actor.name for actor in scenario.actors]
    start = arena.take()
    standings = stage.beginning()
    first = _Node(start, standings, _mark(arena, start, standings))
    seen: dict[bytes, tuple[bytes, int, str]] = {first.mark: (b"", -1, "")}
    level = [first]
    transitions = depth = ends = 0
    graph = Graph(len(scenario.live)) if scenario.live else None
    numbers = {first.mark: 0}

    def found(rule: str, mark: bytes, last: int = -1, cause: BaseException | None = None) -> Finding:
        steps = [] if last < 0 else [(last, "violates")]
        while True:
            mark, actor, step = seen[mark]
            if actor < 0:
                break
            steps.append((actor, step))
        steps.reverse()
        return Finding(rule, tuple((names[n], step) for n, step in steps), tuple(n for n, _ in steps), cause)

    def result(finding: Finding | None, complete: bool = True) -> Result:
        arena.put(start)
        return Result(len(seen), transitions, depth, ends, finding, complete)

    while level:
        following: list[_Node] = []
        for node in level:
            enabled = stage.enabled(node.heap, node.standings)
            wrong = scenario.always() if scenario.always is not None else None
            if wrong is None and not enabled:
                ends += 1
                wrong = stuck(scenario, node.standings)
                if wrong is None and scenario.at_rest is not None:
                    wrong = scenario.at_rest()
            if wrong is not None:
                return result(found(wrong, node.mark))
            if graph is not None:
                graph.state(goal() for _, goal in scenario.live)
            for n in enabled:
                transitions += 1
                try:
                    heap, standing, step = stage.step(node.heap, n, node.standings[n])
                except Violation as violation:
                    return result(found(str(violation), node.mark, n, violation.__cause__))
                except NotDeterministic as fault:
                    fault.operation = scenario.actors[n].at(node.standings[n].done)
                    raise
                if audit:
                    arena.check()
                after = (*node.standings[:n], standing, *node.standings[n + 1 :])
                mark = _mark(arena, heap, after)
                if mark not in seen:
                    seen[mark] = (node.mark, n, step)
                    following.append(_Node(heap, after, mark))
                    numbers[mark] = len(numbers)
                if graph is not None:
                    owed = scenario.actors[n].fair or node.standings[n].suspended is not None
                    graph.edge(n, owed, numbers[mark])
                if len(seen) >= limit:
                    return result(None, complete=False)
        level = following
        depth += 1
    return result(None if graph is None else _unfair(scenario, graph, list(numbers), found))


def _unfair(
    scenario: Scenario, graph: Graph, marks: list[bytes], found: Callable[[str, bytes], Finding]
) -> Finding | None:
    """A goal that need not come true again."""
    for goal, (name, _) in enumerate(scenario.live):
        lasso = graph.lasso(goal)
        if lasso is None:
            continue
        if not lasso.cycle:
            return found(f"{name}: not so where nobody can act any more", marks[lasso.start])
        text = f"{name}: need not come true again: {len(lasso.cycle)} steps that can be repeated for ever"
        stem = found(text, marks[lasso.start])
        around = tuple((scenario.actors[n].name, "") for n in lasso.cycle)
        return stem._replace(trail=stem.trail + around, choices=stem.choices + lasso.cycle, loop=len(stem.choices))
    return None


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


def _mark(arena: Arena, heap: Heap, standings: tuple[Standing, ...]) -> bytes:
    return arena.fingerprint(
        heap, *[s.done if s.suspended is None else (s.done, s.suspended.position) for s in standings]
    )


def stuck(scenario: Scenario, standings: tuple[Standing, ...]) -> str | None:
    """Nobody can act: a deadlock if somebody is in the middle of an operation."""
    held = [
        f"{actor.name} at {standing.suspended.step}"
        for actor, standing in zip(scenario.actors, standings, strict=True)
        if standing.suspended is not None
    ]
    return f"deadlock: {', '.join(held)}" if held else None
