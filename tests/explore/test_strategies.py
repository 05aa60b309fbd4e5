"""Depth-first, by the lot, and by priorities: what they see, what they find, and that it is found again."""

from __future__ import annotations

import pytest

from tests.explore.test_alone import FAMILY, LEAKS
from tests.explore.test_search import Counter, lifetime, shared
from tests.support.explored import LoweringIrqfds
from vmm.errors import UsageError
from vmm.explore import scenes, story
from vmm.explore.actors import Actor, Operation
from vmm.explore.scenes import Setup
from vmm.explore.search import Scenario, explore
from vmm.explore.strategies import STRATEGIES, Plan
from vmm.kernel.irqfd import Irqfds

MANY = 1_000_000
OTHERS = [strategy for strategy in STRATEGIES if strategy != "bfs"]


def crossed() -> Scenario:
    """Two locks in opposite orders."""
    counter = Counter(guarded=True)
    actors = (Actor("a", (Operation("forth", counter.forth),)), Actor("b", (Operation("back", counter.back),)))
    return Scenario((counter,), actors)


def test_depth_first_sees_all_states_and_steps():
    deep, wide = Plan("dfs").explore(lifetime(), MANY), explore(lifetime())
    assert deep.complete
    assert (deep.states, deep.transitions, deep.ends) == (wide.states, wide.transitions, wide.ends)
    assert deep.depth >= wide.depth


@pytest.mark.parametrize("depth", [5, 20, 100])
def test_depth_first_to_a_depth_sees_the_states_that_can_be_reached_in_so_many_steps(depth):
    seen: list[set[int]] = [set(), set()]
    for k, plan in enumerate((Plan("dfs", depth=depth), Plan("bfs"))):
        counter = Counter(guarded=False)
        actors = tuple(Actor(f"{n}", (Operation("add", counter.add),) * 6) for n in range(2))
        scenario = Scenario((counter,), actors, lambda k=k, counter=counter: seen[k].add(counter.value))
        result = plan.explore(scenario, MANY)
        assert result.complete == (depth > 24 or k == 1)
    assert seen[0] == {value for value in seen[1] if value * 2 <= depth}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_deadlock_is_found_by_every_strategy(strategy):
    result = Plan(strategy).explore(crossed(), MANY)
    assert result.finding.rule == "deadlock: a at lock.acquire, b at lock.acquire"
    assert len(result.finding.choices) >= 4


@pytest.mark.parametrize("strategy", OTHERS)
def test_lost_interrupt_is_found_and_not_where_there_is_none(strategy):
    plan = Plan(strategy, runs=3000, depth=4 if strategy == "pct" else None)
    assert plan.explore(shared(LoweringIrqfds), MANY).finding.rule.startswith("a device wants service")
    assert plan.explore(shared(Irqfds), MANY).finding is None


@pytest.mark.parametrize("strategy", ["pct", "random"])
def test_same_seed_sees_the_same_and_another_seed_something_else(strategy):
    def results(seed: int):
        return Plan(strategy, seed=seed, runs=30).explore(lifetime(), MANY)

    assert results(1) == results(1)
    assert results(1) != results(2)
    assert not results(1).complete
    assert results(1).orders == 30


@pytest.mark.parametrize("strategy", OTHERS)
def test_limit_ends_every_strategy(strategy):
    result = Plan(strategy).explore(lifetime(), 50)
    assert (result.states, result.complete, result.finding) == (50, False, None)


@pytest.mark.parametrize("strategy", OTHERS)
def test_what_is_found_is_replayed_by_the_same_string(strategy):
    family, setup = scenes.load("thread"), Setup("eoifd-v5", None, 1)
    found = scenes.run(family, "counter-example", setup, search=Plan(strategy).explore)
    assert found.result.finding.rule.startswith("S20")
    _, told = story.replay(family, story.encode(found))
    assert told.rule == found.result.finding.rule


@pytest.mark.parametrize("plan", [Plan("dfs", depth=0), Plan("bfs", depth=3), Plan("random", runs=0)])
def test_plan_that_cannot_be_is_refused(plan):
    with pytest.raises(UsageError):
        plan.explore(crossed(), MANY)


@pytest.mark.parametrize("strategy", OTHERS)
def test_call_that_fails_and_changes_something_is_found_by_every_strategy(strategy):
    outcome = scenes.run(FAMILY, "twice", LEAKS, MANY, Plan(strategy, runs=50).explore)
    assert outcome.result.finding is not None
    assert outcome.result.finding.rule.startswith("S19: I+ e3 e4 failed with EINVAL")
    assert story.of(FAMILY, outcome).rule == outcome.result.finding.rule


def test_goals_that_depth_first_cannot_ask_are_named_and_it_is_not_finished():
    scenario = lifetime()._replace(live=(("L1", bool), ("L5", bool), ("L1", bool)))
    result = Plan("dfs").explore(scenario, MANY)
    assert (result.complete, result.unasked) == (False, ("L1", "L5"))
    assert result.states == explore(lifetime()).states
