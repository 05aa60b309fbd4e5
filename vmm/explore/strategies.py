"""Other ways through the orders than breadth-first, for scenarios that are too large for it.

bfs     every state, the fewest steps first: what is found is shortest, and counts are exact (`vmm.explore.search`)
dfs     every state, one order after the other: keeps marks and one order only. What is found is not shortest
random  many orders, each step by the lot. Finds what is common
pct     many orders by probabilistic concurrency testing (Burckhardt, Kothari, Musuvathi, Nagarakatte: A Randomized
        Scheduler with Probabilistic Guarantees of Finding Bugs, ASPLOS 2010): actors have priorities by the lot, the
        highest that can act does, and at d - 1 steps by the lot whoever acts falls below all. With n actors and k steps
        an order finds a bug that d ordering constraints make with a probability of at least 1 / (n k^(d-1))

The lot is a generator with a seed, so the same seed finds the same. All look for deadlocks, and what any of them finds
is a schedule like any other. Liveness needs all states at once: only bfs has it, and dfs says that it was not asked.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from vmm.errors import UsageError
from vmm.explore import alone
from vmm.explore.actors import NotDeterministic
from vmm.explore.footprints import Footprints
from vmm.explore.search import Node, Progress, Result, explore, finding, nameless, set_up, stuck
from vmm.order import Violation

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.actors import Standing
    from vmm.explore.checkpoint import Checkpoint
    from vmm.explore.heap import Heap
    from vmm.explore.search import Finding, Scenario

Strategy = Literal["bfs", "dfs", "pct", "random"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("bfs", "dfs", "pct", "random")
RUNS = 1_000
"""Orders, unless another number is asked for."""
LONGEST = 10_000
"""Steps of an order, unless another number is asked for: workers may find work for ever."""
DEEPEST = 1_000_000
"""Steps of an order that can be asked for. No schedule is read that has more."""
PCT_DEPTH = 3


class Plan(NamedTuple):
    """How to search. `runs`, `seed`: of pct and random. `depth`: of an order, the most steps (dfs, random); of pct, d,
    the number of ordering constraints.
    """

    strategy: Strategy = "bfs"
    jobs: int = 1
    seed: int = 0
    runs: int = RUNS
    depth: int | None = None
    tell: Callable[[Progress], None] | None = None
    checkpoint: Checkpoint | None = None

    def explore(self, scenario: Scenario, limit: int) -> Result:
        """Do it. UsageError for what does not go together."""
        if self.depth is not None and self.depth < 1:
            raise UsageError(f"depth {self.depth}: there is at least one")
        most = LONGEST if self.strategy == "pct" else DEEPEST
        if self.depth is not None and self.depth > most:
            raise UsageError(f"depth {self.depth}: {self.strategy} takes {most:,} at most")
        if self.runs < 1:
            raise UsageError(f"{self.runs} runs: there is at least one")
        if self.strategy == "bfs":
            if self.depth is not None:
                raise UsageError("breadth-first takes no depth: it goes down level by level until the limit")
            return explore(scenario, limit, jobs=self.jobs, tell=self.tell, checkpoint=self.checkpoint)
        with Footprints(set_up(scenario)) as steps:
            orders = _Orders(scenario, steps, limit, self.tell)
            try:
                if self.strategy == "dfs":
                    return _without_goals(scenario, orders.all_deep(self.depth))
                lot = random.Random(self.seed)
                if self.strategy == "random":
                    return orders.at_random(lot, self.runs, self.depth or LONGEST)
                return orders.by_priority(lot, self.runs, self.depth or PCT_DEPTH)
            finally:
                steps.arena.put(orders.first.heap)


def _without_goals(scenario: Scenario, result: Result) -> Result:
    """All states are seen, and no loop was looked for: that is not all that was asked."""
    goals = tuple(dict.fromkeys(name for name, _ in scenario.live))
    return result._replace(complete=False, unasked=goals) if goals and result.complete else result


class _Found(Exception):
    """The search is over: `finding` is what was found, None if the limit was reached."""

    def __init__(self, finding: Finding | None) -> None:
        self.finding = finding


class _Orders:
    """What is known of the states so far, and the order in hand."""

    def __init__(
        self, scenario: Scenario, steps: Footprints, limit: int, tell: Callable[[Progress], None] | None
    ) -> None:
        self.scenario = scenario
        self.steps = steps
        self.limit = limit
        self.tell = tell
        self.first = Node(*steps.beginning())
        self.seen: set[int] = set()
        self.depths: dict[int, int] | None = None
        """In how many steps each was reached, if that matters."""
        self.choices: list[int] = []
        self.transitions = self.deepest = self.ends = 0
        self.orders = 0
        self.cut = False
        """An order was given up."""

    # One state, one step.

    def enter(self, heap: Heap, standings: tuple[Standing, ...], mark: int) -> list[int]:
        """Judge a state; who can act there."""
        scenario, steps, depth = self.scenario, self.steps, len(self.choices)
        known = mark in self.seen
        self.seen.add(mark)
        if self.depths is not None:
            self.depths[mark] = min(depth, self.depths.get(mark, depth))
        self.deepest = max(self.deepest, depth)
        enabled = steps.enabled(heap, standings)
        if known:
            return enabled
        if self.tell is not None and not len(self.seen) & 1023:
            self.tell(Progress(len(self.seen), depth, 0))
        wrong = steps.says(scenario.always, heap) if scenario.always is not None else None
        if not enabled:
            self.ends += 1
            if wrong is None:
                wrong = stuck(scenario, standings)
            if wrong is None and scenario.at_rest is not None:
                steps.arena.put(heap)
                wrong = scenario.at_rest()
        if wrong is not None:
            raise self._found(wrong)
        if scenario.atomic is not None:
            spoils = alone.spoiling(scenario.atomic, steps, heap, standings, mark, enabled)
            if spoils is not None:
                n, taken, wrong = spoils
                self.choices += [n] * taken
                raise self._found(wrong)
        if len(self.seen) >= self.limit:
            raise _Found(None)
        return enabled

    def step(self, node: Node, n: int) -> Node:
        """Let an actor act."""
        self.transitions += 1
        self.choices.append(n)
        try:
            return Node(*self.steps.step(*node, n)[1:])
        except Violation as violation:
            raise self._found(nameless(str(violation)), violation.__cause__) from violation
        except NotDeterministic as fault:
            fault.operation = self.scenario.actors[n].at(node.standings[n].done)
            raise

    def _found(self, rule: str, cause: BaseException | None = None) -> _Found:
        return _Found(finding(self.scenario, self.steps, self.first, rule, tuple(self.choices), cause))

    def _result(self, finding: Finding | None, complete: bool) -> Result:
        return Result(len(self.seen), self.transitions, self.deepest, self.ends, finding, complete, self.orders)

    # Strategies.

    def all_deep(self, depth: int | None) -> Result:
        """Depth-first."""
        self.depths = None if depth is None else {}
        try:
            stack = [(self.first, iter(self.enter(*self.first)))]
            while stack:
                node, enabled = stack[-1]
                n = next(enabled, -1)
                if n < 0:
                    stack.pop()
                    if stack:
                        self.choices.pop()
                    continue
                after = self.step(node, n)
                # With a limit of depth a state that is reached in fewer steps leads further than it did.
                if after.mark in self.seen and (self.depths is None or self.depths[after.mark] <= len(self.choices)):
                    self.choices.pop()
                    continue
                able = self.enter(*after)
                if depth is not None and len(self.choices) >= depth and able:
                    self.cut = True
                    able = []
                stack.append((after, iter(able)))
        except _Found as over:
            return self._result(over.finding, False)
        return self._result(None, not self.cut)

    def at_random(self, lot: random.Random, runs: int, longest: int) -> Result:
        """Each step by the lot."""
        return self._runs(runs, longest, lambda: lot.choice)

    def by_priority(self, lot: random.Random, runs: int, depth: int) -> Result:
        """Probabilistic concurrency testing. The steps of an order are estimated by the longest so far."""

        def begin() -> Callable[[list[int]], int]:
            count = len(self.scenario.actors)
            ranks = [depth + n for n in range(count)]
            lot.shuffle(ranks)
            length = max(self.deepest, 2 * count)
            changes = {lot.randrange(length): depth - 1 - k for k in range(depth - 1)}

            def choose(enabled: list[int]) -> int:
                chosen = max(enabled, key=ranks.__getitem__)
                lower = changes.pop(len(self.choices), None)
                if lower is not None:
                    ranks[chosen] = lower
                    chosen = max(enabled, key=ranks.__getitem__)
                return chosen

            return choose

        return self._runs(runs, LONGEST, begin)

    def _runs(self, runs: int, longest: int, begin: Callable[[], Callable[[list[int]], int]]) -> Result:
        try:
            for self.orders in range(1, runs + 1):
                choose = begin()
                self.choices.clear()
                node = self.first
                while enabled := self.enter(*node):
                    if len(self.choices) >= longest:
                        break
                    node = self.step(node, choose(enabled))
        except _Found as over:
            return self._result(over.finding, False)
        return self._result(None, False)
