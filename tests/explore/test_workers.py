"""A search that several processes share: the same numbers, the same way, whoever dies."""

from __future__ import annotations

import errno
import os
import signal
from functools import partial

import pytest

from tests.explore.test_search import Counter, lifetime, shared
from tests.support.explored import LoweringIrqfds
from vmm import order
from vmm.errors import EngineError
from vmm.explore import search, workers
from vmm.explore.actors import Actor, NotDeterministic, Operation
from vmm.explore.search import Scenario, explore

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork(2): one process does it all")


@pytest.fixture(autouse=True)
def _shared_early(monkeypatch):
    monkeypatch.setattr(search, "WIDE", 8)


@pytest.mark.parametrize("jobs", [2, 3])
def test_counts_do_not_depend_on_the_number_of_processes(jobs):
    assert explore(lifetime(close=True), jobs=jobs) == explore(lifetime(close=True))


def test_way_to_a_violation_does_not_depend_on_the_number_of_processes():
    alone = explore(shared(LoweringIrqfds))
    assert alone.finding is not None
    assert [explore(shared(LoweringIrqfds), jobs=n) for n in (2, 4)] == [alone, alone]


def turning(n: int = 4) -> Scenario:
    """Hands that turn by themselves, and one who may stop them, but need not."""
    counters = [Counter(guarded=False) for _ in range(n)]

    def turn(counter: Counter) -> None:
        value = counter.value
        order.hook("turn", counter)
        counter.value = (value + 1) % 4

    def stop() -> None:
        counters[0].other.owner = 9

    def going() -> bool:
        return counters[0].other.owner < 0

    hands = [
        Actor(f"{k}", (Operation("turn", partial(turn, counter), going),), repeats=True)
        for k, counter in enumerate(counters)
    ]
    live = (("stopped", lambda: not going()), ("round", lambda: counters[1].value == 0))
    return Scenario(tuple(counters), (*hands, Actor("stop", (Operation("stop", stop),), fair=False)), live=live)


def test_loop_that_is_found_does_not_depend_on_the_number_of_processes():
    alone = explore(turning())
    assert alone.finding.rule.startswith("stopped: need not come true again")
    assert alone.finding.loop is not None
    assert explore(turning(), jobs=2) == alone
    rounds = turning()._replace(live=turning().live[1:])
    assert explore(rounds, jobs=3) == explore(rounds)


def adders(add, n: int = 6):
    return tuple(Actor(f"{k}", (Operation("add", add),)) for k in range(n))


@pytest.mark.parametrize("limit", range(60, 90))
def test_limit_is_reached_at_the_same_state(limit):
    def result(jobs: int):
        counter = Counter(guarded=False)
        return explore(Scenario((counter,), adders(counter.add, 4)), limit=limit, jobs=jobs)

    assert not result(1).complete
    assert result(2) == result(1)


def test_violation_of_the_code_has_the_same_cause():
    counter = Counter(guarded=False)

    def add() -> None:
        counter.add()
        if counter.value == 2:
            counter.other.nothing()

    alone, together = (explore(Scenario((counter,), adders(add)), jobs=n).finding for n in (1, 2))
    assert together.choices == alone.choices
    assert type(together.cause) is AttributeError


def test_what_a_check_raises_comes_out_as_it_is():
    counter = Counter(guarded=False)
    with pytest.raises(ZeroDivisionError):
        explore(Scenario((counter,), adders(counter.add), lambda: str(1 // (4 - counter.value)) and None), jobs=2)


def dying(monkeypatch, here: str, times: int, tmp_path) -> list[int]:
    """Workers kill themselves in `Shards.here`, the n-th time that any of them comes there, for some n."""
    original, mother = getattr(workers.Shards, here), os.getpid()
    marks = tmp_path / "marks"
    marks.mkdir()

    def act(shards, *arguments):
        result = original(shards, *arguments)
        assert os.getpid() != mother
        (marks / f"{len(list(marks.iterdir()))}").touch()
        if len(list(marks.iterdir())) % 7 == 3 and len(list(tmp_path.glob("died*"))) < times:
            (tmp_path / f"died{os.getpid()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(workers.Shards, here, act)


@pytest.mark.parametrize("here", ["expand", "keep"])
def test_death_of_workers_loses_nothing(monkeypatch, tmp_path, here):
    alone = explore(lifetime(), jobs=1)
    replaced = []
    original = workers._Shared._replace
    monkeypatch.setattr(
        workers._Shared, "_replace", lambda self, dead, *how: replaced.append(dead) or original(self, dead, *how)
    )
    dying(monkeypatch, here, 4, tmp_path)
    assert explore(lifetime(), jobs=2) == alone
    assert 4 <= len(list(tmp_path.glob("died*"))) == len(replaced) <= workers.DEATHS


def test_workers_that_die_for_ever_are_given_up(monkeypatch, tmp_path):
    dying(monkeypatch, "expand", 1000, tmp_path)
    with pytest.raises(EngineError, match="workers died"):
        explore(lifetime(), jobs=2)


def test_states_are_moved_from_a_worker_that_has_too_many(monkeypatch):
    moved = []
    original = workers._Shared._stand
    monkeypatch.setattr(workers, "UNEVEN", 1.0)
    monkeypatch.setattr(workers._Shared, "_stand", lambda self, shard: moved.append(shard) or original(self, shard))
    assert explore(lifetime(), jobs=2) == explore(lifetime())
    assert moved


def test_state_that_is_wrong_only_in_a_worker_is_not_deterministic():
    mother, counter = os.getpid(), Counter(guarded=False)

    def always() -> str | None:
        return "wrong" if counter.value > 3 and os.getpid() != mother else None

    scenario = Scenario((counter,), adders(counter.add), always)
    with pytest.raises(NotDeterministic):
        explore(scenario, jobs=2)


@pytest.mark.parametrize("there_are", [0, 1, 2])
def test_fewer_processes_than_asked_for_come_to_the_same(there_are, monkeypatch):
    started, original = [], workers._Worker

    def start(*args: object) -> workers._Worker:
        if len(started) == there_are:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(original(*args))
        return started[-1]

    monkeypatch.setattr(workers, "_Worker", start)
    assert explore(lifetime(), jobs=9) == explore(lifetime())
    assert len(started) == there_are


def test_worker_that_cannot_be_replaced_is_told(monkeypatch):
    original = workers._Worker
    first = []

    def start(*args: object) -> workers._Worker:
        if len(first) == 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        first.append(original(*args))
        return first[-1]

    def kill(_progress: object) -> None:
        if len(first) == 2:
            os.kill(first[0].process.pid, signal.SIGKILL)

    monkeypatch.setattr(workers, "_Worker", start)
    with pytest.raises(EngineError, match=r"no other can be started \(Resource temporarily unavailable\); --jobs 1"):
        explore(lifetime(), jobs=2, tell=kill)
