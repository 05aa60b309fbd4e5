"""A breadth-first search over every order of a scenario's actors. The first violation found is a shortest one.

States are numbered in the order of their discovery: by their parents' numbers, then by who acts. So of all shortest
ways to a violation the one that is told comes first in the dictionary, and however many processes share the work, the
numbers, the counts and the way are the same. A state is kept as its mark, its parent and who acted (what it was is
found by going there again); only those of the level in hand are kept whole.
"""

from __future__ import annotations

import re
from array import array
from functools import partial
from itertools import compress, islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vmm.explore import alone
from vmm.explore.actors import Actor, NotDeterministic, Stage
from vmm.explore.alone import Spoilt
from vmm.explore.footprints import Footprints
from vmm.explore.heap import Arena
from vmm.explore.liveness import Graph
from vmm.order import State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.actors import Standing
    from vmm.explore.alone import Atomic
    from vmm.explore.checkpoint import Checkpoint
    from vmm.explore.heap import Heap
    from vmm.explore.liveness import Live

    Check = Callable[[], str | None]

    class Known(Protocol):
        """Marks that need not be reported."""

        def add(self, mark: int, /) -> None:
            """It is reported."""

        def __contains__(self, mark: int, /) -> bool: ...


WIDE = 500
"""States of a level from which on it is worth to share them."""


class Scenario(NamedTuple):
    """What to explore. `always` is asked in every state, `at_rest` where nobody can act: a text says what is wrong.

    `live`: names and goals, each a pure function of the state that is to be true again and again in every fair run; see
    `vmm.explore.liveness`. `atomic`: calls that change nothing if they fail; see `vmm.explore.alone`. Both are asked if
    nothing else is wrong.
    """

    roots: tuple[State, ...]
    actors: tuple[Actor, ...]
    always: Check | None = None
    at_rest: Check | None = None
    live: Live = ()
    atomic: Atomic | None = None


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
    orders: int = 0
    """How many were tried, if not all of them were meant to be."""
    unasked: tuple[str, ...] = ()
    """Goals that this way of searching cannot ask; nothing else is wrong in any state."""


class Node(NamedTuple):
    """A state of the level in hand."""

    heap: Heap
    standings: tuple[Standing, ...]
    mark: int


class Progress(NamedTuple):
    """How far a search has come. `frontier`: states whose steps have not been taken yet."""

    states: int
    depth: int
    frontier: int


def explore(
    scenario: Scenario,
    limit: int = 1_000_000,
    audit: bool = False,
    jobs: int = 1,
    tell: Callable[[Progress], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Result:
    """Try every order, level by level, until all states are seen, a rule is broken, or `limit` states are known.

    The count is exact and the same every time, whatever `jobs` is: so many processes share the work as soon as there
    is enough of it. `always`, `at_rest` and the goals are asked in them, so there they cannot note anything. `audit`
    runs the code for every step, however well it is known, and checks each heap for containers that would not be
    copied. `tell` is called from time to time. With a `checkpoint` the search goes on where another one was when it was
    interrupted.
    """
    from vmm.explore import workers

    with Footprints(set_up(scenario), audit) as steps:
        search = Search(scenario, steps, limit, tell)
        try:
            if checkpoint is not None:
                checkpoint.resume(search)
            return search.run(partial(workers.share, jobs=jobs) if jobs > 1 else None)
        finally:
            steps.arena.put(search.first.heap)


class Report(NamedTuple):
    """What came of a shard, some consecutive states of a level, in another process. `counts`: of each state, how many
    could act; of each step to a state that was not known there: the parent's place in the shard, who acted, and the
    mark. `trouble`: something ends the search. For goals: of each state, whether it fulfils each; of each step, who
    acts (as a `Graph` has it), and the mark. `spoilt`: the state's place, the actor and the steps of calls that fail
    and change something.
    """

    counts: bytes
    parents: array[int]
    actors: bytes
    marks: list[int]
    trouble: bool
    reached: list[tuple[bool, ...]]
    edges: list[tuple[int, int]]
    spoilt: list[tuple[int, int, int]]


class Search:
    """A search in progress, at the beginning of a level. `parents` and `actors`: of each state, whence and by whom.

    `level` are the states whose steps are to be taken next, from number `base` on; `pending` those of the next level
    that are known already, if a level was left in the middle (see `vmm.explore.checkpoint`).
    """

    def __init__(
        self,
        scenario: Scenario,
        steps: Footprints,
        limit: int = 1_000_000,
        tell: Callable[[Progress], None] | None = None,
    ) -> None:
        self.scenario = scenario
        self.steps = steps
        self.limit = limit
        self.tell = tell
        self.first = Node(*steps.beginning())
        self.seen = {self.first.mark}
        self.parents = array("I", [0])
        self.actors = bytearray(1)
        self.level = [self.first]
        self.base = 0
        """The number of the level's first state."""
        self.pending = range(0)
        self.end = 1
        """The number behind the level's last state."""
        self.transitions = self.depth = self.ends = 0
        self.checkpoint: Checkpoint | None = None
        self.graph = Graph(len(scenario.live), len(scenario.actors)) if scenario.live else None
        self.spoilt: Spoilt | None = None
        """The first call that failed and changed something."""
        self._numbers = {self.first.mark: 0}
        """Numbers by marks, for the graph."""

    # Level by level.

    def run(self, share: Callable[[Search], Result] | None = None) -> Result:
        """To the end; with the help of others, by `share`, as soon as there is enough to do."""
        if len(self.parents) >= self.limit:
            return self.result(None, complete=False)
        while self.level:
            if share is not None and len(self.level) >= WIDE:
                return share(self)
            following = self.stand(self.pending)
            states = range(self.base, self.base + len(self.level))
            result = self.sweep(self.level, self.base, following)
            if result is not None:
                return result
            self.save(states, [node.mark for node in following[len(self.pending) :]])
            self.base, self.level = len(self.parents) - len(following), following
            self.go_down()
        return self.over()

    def go_down(self) -> None:
        """To the next level."""
        self.depth += 1
        self.end = len(self.parents)
        self.pending = range(0)

    def save(self, states: range, marks: list[int]) -> None:
        """Some states are done, and so many marks are new: write that down where it is wanted."""
        if self.checkpoint is not None:
            self.checkpoint.add(self, states, marks)

    def merge(self, states: range, report: Report) -> bytes | Result:
        """Number a shard's new states, and say which of those reported they are; a Result if the search is over. Shards
        are merged in their order.
        """
        seen = self.seen
        new = bytes([mark not in seen for mark in report.marks])
        if report.trouble or len(self.parents) + new.count(1) >= self.limit:
            result = self.sweep(self.stand(states), states.start, [])
            if result is None:
                raise NotDeterministic("what went wrong in one process does not in another")
            return result
        self.transitions += sum(report.counts)
        self.ends += report.counts.count(0)
        seen.update(report.marks)
        start = states.start
        self.parents.extend(array("I", [start + place for place in compress(report.parents, new)]))
        self.actors.extend(compress(report.actors, new))
        if self.graph is not None:
            fresh = compress(report.marks, new)
            self._numbers.update(zip(fresh, range(len(self.parents) - new.count(1), len(self.parents)), strict=True))
            self._draw(self.graph, report)
        for place, n, taken in report.spoilt:
            self._spoil(start + place, n, taken)
        self.save(states, list(compress(report.marks, new)) if self.checkpoint is not None else [])
        if self.tell is not None:
            self.tell(Progress(len(self.parents), self.depth, len(self.parents) - states.stop))
        return new

    def over(self) -> Result:
        """All states are seen."""
        finding = self._careless()
        if finding is None and self.graph is not None:
            finding = self._unfair(self.graph)
        return self.result(finding)

    def result(self, finding: Finding | None, complete: bool = True) -> Result:
        """What has come of it so far."""
        return Result(len(self.parents), self.transitions, self.depth, self.ends, finding, complete)

    def _draw(self, graph: Graph, report: Report) -> None:
        """A shard's states and steps."""
        edges = iter(report.edges)
        for count, reached in zip(report.counts, report.reached, strict=True):
            graph.state(reached)
            for actor, mark in islice(edges, count):
                graph.edge(actor, self._numbers[mark])

    def sweep(self, nodes: list[Node], base: int, following: list[Node]) -> Result | None:
        """Take all steps from these states, numbered from `base`: new states go to `following`. A Result if that ends
        the search.
        """
        scenario, steps, seen, parents, actors = self.scenario, self.steps, self.seen, self.parents, self.actors
        always, atomic, graph, numbers = scenario.always, scenario.atomic, self.graph, self._numbers
        take = steps.step
        for number, (heap, standings, mark) in enumerate(nodes, base):
            if self.tell is not None and not number & 1023:
                self.tell(Progress(len(parents), self.depth, len(parents) - number))
            enabled = steps.enabled(heap, standings)
            wrong = steps.says(always, heap) if always is not None else None
            if not enabled:
                self.ends += 1
                if wrong is None:
                    wrong = self.wrong_at_rest(heap, standings)
            if wrong is not None:
                return self.result(self.found(wrong, number))
            if atomic is not None:
                spoils = alone.spoiling(atomic, steps, heap, standings, mark, enabled)
                if spoils is not None:
                    self._spoil(number, *spoils[:2])
            if graph is not None:
                graph.state(steps.says(goal, heap) for _, goal in scenario.live)
            for n in enabled:
                self.transitions += 1
                try:
                    _, heap_after, standings_after, after = take(heap, standings, mark, n)
                except Violation as violation:
                    return self.result(self.found(nameless(str(violation)), number, n, violation.__cause__))
                except NotDeterministic as fault:
                    fault.operation = scenario.actors[n].at(standings[n].done)
                    raise
                if after not in seen:
                    seen.add(after)
                    parents.append(number)
                    actors.append(n)
                    following.append(Node(heap_after, standings_after, after))
                    if graph is not None:
                        numbers[after] = len(numbers)
                    if len(parents) >= self.limit:
                        return self.result(self._careless(), complete=False)
                if graph is not None:
                    graph.edge(n | standings[n].place.claim, numbers[after])
        return None

    def wrong_at_rest(self, heap: Heap, standings: tuple[Standing, ...]) -> str | None:
        """What is wrong with a state in which nobody can act."""
        wrong = stuck(self.scenario, standings)
        if wrong is None and self.scenario.at_rest is not None:
            self.steps.arena.put(heap)
            wrong = self.scenario.at_rest()
        return wrong

    # Ways.

    def way(self, state: int) -> tuple[int, ...]:
        """Who acts, from the beginning to a state."""
        choices = []
        while state:
            choices.append(self.actors[state])
            state = self.parents[state]
        return tuple(reversed(choices))

    def found(
        self, rule: str, state: int, last: int = -1, cause: BaseException | None = None, cycle: tuple[int, ...] = ()
    ) -> Finding:
        """A rule that is broken in a state, or by actor `last` there, or by going around a cycle."""
        stem = self.way(state) + (() if last < 0 else (last,))
        return finding(self.scenario, self.steps, self.first, rule, stem, cause, cycle)

    def stand(self, wanted: range) -> list[Node]:
        """States again, by their numbers."""
        return rebuild(self.steps, self.first, *self.ancestry(wanted), len(wanted))

    def ancestry(self, wanted: range) -> tuple[array[int], bytearray]:
        """What `rebuild` needs to make some states: of these and all before them the parent's place in the list, and
        who acted. The wanted ones are the last.
        """
        needed: set[int] = set()
        for state in wanted:
            while state and state not in needed:
                needed.add(state)
                state = self.parents[state]
        order = sorted(needed)
        places = {0: 0} | {state: place for place, state in enumerate(order, 1)}
        return array("I", [places[self.parents[s]] for s in order]), bytearray(self.actors[s] for s in order)

    def _spoil(self, state: int, n: int, taken: int) -> None:
        """A call fails there and changes something."""
        found = Spoilt(self.depth + taken, state, n, taken)
        if self.spoilt is None or found < self.spoilt:
            self.spoilt = found

    def _careless(self) -> Finding | None:
        """A call that fails and changes something."""
        if self.spoilt is None:
            return None
        _, state, n, taken = self.spoilt
        (node,) = self.stand(range(state, state + 1))
        assert self.scenario.atomic is not None
        spoils = alone.spoiling(self.scenario.atomic, self.steps, *node, [n])
        if spoils is None:
            raise NotDeterministic("a call that changed something when it failed does not now")
        stem = self.way(state) + (n,) * taken
        return finding(self.scenario, self.steps, self.first, spoils[2], stem)

    def _unfair(self, graph: Graph) -> Finding | None:
        """A goal that need not come true again."""
        for goal, (name, _) in enumerate(self.scenario.live):
            lasso = graph.lasso(goal)
            if lasso is None:
                continue
            if not lasso.cycle:
                who = "has to act" if graph.leads_on(lasso.start) else "can act"
                return self.found(f"{name}: not so where nobody {who} any more", lasso.start)
            text = f"{name}: need not come true again: {len(lasso.cycle)} steps that can be repeated for ever"
            return self.found(text, lasso.start, cycle=lasso.cycle)
        return None


def expand(scenario: Scenario, steps: Footprints, nodes: list[Node], known: Known) -> tuple[Report, list[Node]]:
    """Take all steps from a shard's states, in a process that does not number them: what came of it, and the states
    that were reported.
    """
    always, at_rest, atomic, live = scenario.always, scenario.at_rest, scenario.atomic, scenario.live
    take = steps.step
    counts, parents, actors = bytearray(), array("I"), bytearray()
    marks: list[int] = []
    reported: list[Node] = []
    reached: list[tuple[bool, ...]] = []
    edges: list[tuple[int, int]] = []
    spoilt: list[tuple[int, int, int]] = []
    trouble = False
    try:
        for place, (heap, standings, mark) in enumerate(nodes):
            enabled = steps.enabled(heap, standings)
            wrong = steps.says(always, heap) if always is not None else None
            if wrong is None and not enabled:
                wrong = stuck(scenario, standings)
                if wrong is None and at_rest is not None:
                    steps.arena.put(heap)
                    wrong = at_rest()
            if wrong is not None:
                trouble = True
                break
            counts.append(len(enabled))
            if atomic is not None:
                spoils = alone.spoiling(atomic, steps, heap, standings, mark, enabled)
                if spoils is not None:
                    spoilt.append((place, *spoils[:2]))
            if live:
                reached.append(tuple([steps.says(goal, heap) for _, goal in live]))
            for n in enabled:
                _, heap_after, standings_after, after = take(heap, standings, mark, n)
                if live:
                    edges.append((n | standings[n].place.claim, after))
                if after not in known:
                    known.add(after)
                    parents.append(place)
                    actors.append(n)
                    marks.append(after)
                    reported.append(Node(heap_after, standings_after, after))
    except Exception:
        trouble = True  # whatever it is, the process that numbers the states will meet it too
    return Report(bytes(counts), parents, bytes(actors), marks, trouble, reached, edges, spoilt), reported


def rebuild(steps: Footprints, first: Node, parents: array[int], actors: bytearray, wanted: int) -> list[Node]:
    """The last `wanted` of some states, each made by a step from one before it (0: the first)."""
    nodes = [first]
    for parent, n in zip(parents, actors, strict=True):
        node = nodes[parent]
        nodes.append(Node(*steps.step(node.heap, node.standings, node.mark, n)[1:]))
    return nodes[len(nodes) - wanted :]


def finding(
    scenario: Scenario,
    steps: Footprints,
    first: Node,
    rule: str,
    stem: tuple[int, ...],
    cause: BaseException | None = None,
    cycle: tuple[int, ...] = (),
) -> Finding:
    """A finding with the names of its steps."""
    trail = []
    heap, standings, mark = first
    for n in stem + cycle:
        try:
            name, heap, standings, mark = steps.step(heap, standings, mark, n)
        except Violation:
            name = "violates"
        trail.append((scenario.actors[n].name, name))
    return Finding(rule, tuple(trail), stem + cycle, cause, len(stem) if cycle else None)


def nameless(text: str) -> str:
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
