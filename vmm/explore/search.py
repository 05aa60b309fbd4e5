"""A breadth-first search over every order of a scenario's actors. The first violation found is a shortest one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.explore.actors import Actor, Stage, Standing
from vmm.explore.heap import Arena
from vmm.order import State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.heap import Heap

    Check = Callable[[], str | None]


class Scenario(NamedTuple):
    """What to explore. `always` is asked in every state, `at_rest` where nobody can act: a text says what is wrong."""

    roots: tuple[State, ...]
    actors: tuple[Actor, ...]
    always: Check | None = None
    at_rest: Check | None = None


class Finding(NamedTuple):
    """A rule that was broken, and a shortest way there: (actor, step) from the beginning."""

    rule: str
    trail: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "\n".join([self.rule, *(f"  {n:3} {actor}: {step}" for n, (actor, step) in enumerate(self.trail, 1))])


class Result(NamedTuple):
    """How much there was, and what was wrong (None: nothing, in no order)."""

    states: int
    transitions: int
    depth: int
    ends: int
    finding: Finding | None


class _Node(NamedTuple):
    heap: Heap
    standings: tuple[Standing, ...]
    mark: bytes


def explore(scenario: Scenario, limit: int = 1_000_000, audit: bool = False) -> Result:
    """Try every order, level by level, until all states are seen, a rule is broken, or `limit` states are known.

    The count is exact and the same every time. `audit` checks each heap for containers that would not be copied.
    """
    owners = _owners(scenario.actors)
    arena = Arena(*scenario.roots, *[owner for owner in owners if isinstance(owner, State)])
    for owner in owners:
        arena.adopt(owner)
    stage = Stage(arena, scenario.actors)
    names = [actor.name for actor in scenario.actors]
    start = arena.take()
    standings = tuple(Standing(0, None) for _ in scenario.actors)
    first = _Node(start, standings, _mark(arena, start, standings))
    seen: dict[bytes, tuple[bytes, int, str]] = {first.mark: (b"", -1, "")}
    level = [first]
    transitions = depth = ends = 0

    def trail(mark: bytes, *last: tuple[str, str]) -> tuple[tuple[str, str], ...]:
        steps: list[tuple[str, str]] = list(last)
        while True:
            mark, actor, step = seen[mark]
            if actor < 0:
                return tuple(steps)
            steps.insert(0, (names[actor], step))

    def result(finding: Finding | None) -> Result:
        arena.put(start)
        return Result(len(seen), transitions, depth, ends, finding)

    while level:
        following: list[_Node] = []
        for node in level:
            enabled = stage.enabled(node.heap, node.standings)
            wrong = scenario.always() if scenario.always is not None else None
            if wrong is None and not enabled:
                ends += 1
                wrong = _stuck(scenario, node.standings)
                if wrong is None and scenario.at_rest is not None:
                    wrong = scenario.at_rest()
            if wrong is not None:
                return result(Finding(wrong, trail(node.mark)))
            for n in enabled:
                transitions += 1
                try:
                    heap, standing, step = stage.step(node.heap, n, node.standings[n])
                except Violation as violation:
                    return result(Finding(str(violation), trail(node.mark, (names[n], "violates"))))
                if audit:
                    arena.check()
                after = (*node.standings[:n], standing, *node.standings[n + 1 :])
                mark = _mark(arena, heap, after)
                if mark not in seen:
                    seen[mark] = (node.mark, n, step)
                    following.append(_Node(heap, after, mark))
                    if len(seen) >= limit:
                        return result(Finding(f"not finished: {limit} states are known", ()))
        level = following
        depth += 1
    return result(None)


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


def _stuck(scenario: Scenario, standings: tuple[Standing, ...]) -> str | None:
    held = [
        f"{actor.name} at {standing.suspended.step}"
        for actor, standing in zip(scenario.actors, standings, strict=True)
        if standing.suspended is not None
    ]
    return f"deadlock: {', '.join(held)}" if held else None
