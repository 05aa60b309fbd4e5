"""The search on a Dask cluster: a level is cut into shards, and each is a task.

Nothing of a state travels. A worker keeps the new states of the shards that it did, and is asked for those shards of
the next level that begin there; one that does not have them (it is new, or the scheduler chose another) says so, and
makes them again from the ways to them. So a worker may die, be added, or do a task twice, and the counts and the ways
are those of one process. The cluster's workers must have the same vintx, and see scenario files under the same path.

    with Client("tcp://10.0.0.1:8786") as client:
        cluster.explore(client, Recipe(of_scene, ("irqfd-life", "close", Setup())))

Wants the extra `cluster`: pip install 'vintx[cluster]'.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.errors import EngineError, UsageError
from vmm.explore import search as searching
from vmm.explore.checkpoint import digest as checkpoint_digest
from vmm.explore.footprints import Footprints
from vmm.explore.search import Report, Search

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable

    from vmm.explore.checkpoint import Checkpoint
    from vmm.explore.scenes import Setup
    from vmm.explore.search import Node, Progress, Result, Scenario

SHARD: Final = 4_000
"""States of a shard, about: a tenth of a second."""
ATTEMPTS: Final = 5
PATIENCE_S: Final = 10.0
ALONE_S: Final = 60
"""Seconds without any worker, and the search is given up."""
AGAIN: Final = "with --checkpoint the same command goes on where it was"
MISSING: Final = None
"""What a worker says that does not have a shard's states."""


class Recipe(NamedTuple):
    """How a process makes the scenario: a function of a module, and what to call it with. It has to be picklable."""

    make: Callable[..., Scenario]
    arguments: tuple[Any, ...] = ()

    def scenario(self) -> Scenario:
        """Make it."""
        return self.make(*self.arguments)


class Source(NamedTuple):
    """Some of what a shard reported: the number of its first state, and a 1 for each that is meant."""

    start: int
    which: bytes


class Task(NamedTuple):
    """A shard of a level. `sources`: the shards of the level before it whose new states it has; `ancestry`: how to make
    them, for who does not have them.
    """

    search: str
    level: int
    start: int
    size: int
    sources: tuple[Source, ...]
    ancestry: tuple[array[int], bytearray] | None = None


class _Station:
    """What a worker keeps of a search. Everything of it happens in one thread, which greenlets want."""

    def __init__(self, recipe: Recipe) -> None:
        self.scenario = recipe.scenario()
        self.steps = Footprints(searching.set_up(self.scenario))
        self.steps.open()
        self.first = searching.Node(*self.steps.beginning())
        self.reported: dict[int, int] = {}
        """Marks, and the level in which they were."""
        self.candidates: dict[tuple[int, int], list[Node]] = {}
        """What each shard reported, by its level and first state."""

    def close(self) -> None:
        self.steps.close()

    def do(self, task: Task) -> Report | None:
        """A task. Done twice, it comes to the same."""
        nodes = self._nodes(task)
        if nodes is None:
            return MISSING
        for key in [key for key in self.candidates if key[0] < task.level - 1]:
            del self.candidates[key]
        known = _Known(self.reported, task.level)
        report, candidates = searching.expand(self.scenario, self.steps, nodes, known)
        self.candidates[task.level, task.start] = candidates
        return report

    def _nodes(self, task: Task) -> list[Node] | None:
        if task.ancestry is not None:
            return searching.rebuild(self.steps, self.first, *task.ancestry, task.size)
        nodes: list[Node] = []
        for start, which in task.sources:
            candidates = self.candidates.get((task.level - 1, start))
            if candidates is None or len(candidates) != len(which):
                return None
            nodes += compress(candidates, which)
        return nodes


class _Known:
    """What a task need not report: what was reported in an earlier level, or by itself."""

    def __init__(self, reported: dict[int, int], level: int) -> None:
        self.reported = reported
        self.level = level
        self.own: set[int] = set()

    def add(self, mark: int) -> None:
        self.own.add(mark)
        self.reported.setdefault(mark, self.level)

    def __contains__(self, mark: int) -> bool:
        return mark in self.own or self.reported.get(mark, self.level) < self.level


_thread = ThreadPoolExecutor(1, "explorer")
_stations: dict[str, _Station] = {}


def perform(recipe: Recipe, task: Task) -> tuple[Report | None, str]:
    """On a worker: do a task; and who that is."""
    worker = importlib.import_module("distributed").get_worker()
    return _thread.submit(_perform, recipe, task).result(), worker.address


def _perform(recipe: Recipe, task: Task) -> Report | None:
    station = _stations.get(task.search)
    if station is None:
        for other in _stations.values():
            other.close()
        _stations.clear()
        station = _stations[task.search] = _Station(recipe)
    return station.do(task)


def forget(search: str) -> None:
    """On a worker: a search is over."""
    _thread.submit(_forget, search).result()


def _forget(search: str) -> None:
    station = _stations.pop(search, None)
    if station is not None:
        station.close()


def connect(address: str, patience: float = PATIENCE_S) -> Any:
    """A client of the cluster whose scheduler is there. UsageError without dask.distributed, without a scheduler, or
    without workers, after so many seconds each.
    """
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise UsageError("--cluster wants dask.distributed: pip install 'vintx[cluster]'") from None
    found: list[Any] = []

    def begin() -> None:
        try:
            found.append(distributed.Client(address, timeout=patience))
        except Exception as error:
            found.append(error)

    # In a thread: whoever answers, but is no scheduler, is waited for without an end.
    thread = threading.Thread(target=begin, name="cluster", daemon=True)
    thread.start()
    thread.join(2 * patience)
    if not found or isinstance(found[0], Exception):
        why = found[0] if found else f"who answers there has not said what it is in {2 * patience:g} s"
        raise UsageError(f"there is no Dask scheduler at {address}: {why}")
    client = found[0]
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError:
        client.close()
        raise UsageError(f"the cluster at {address} has no workers; start some: dask worker {address}") from None
    return client


def of_scene(name: str, scene: str, setup: Setup, bug: str = "", digest: str = "") -> Scenario:
    """The scenario of a scene of a family, or of one with a bug of the zoo: what a recipe of it calls. UsageError if
    the code or the scenario's file is not the one of that `digest`.
    """
    from vmm.explore import scenes, zoo

    path = Path(name)
    if digest and checkpoint_digest(path if path.is_absolute() else None) != digest:
        raise UsageError(f"{name}, or vintx itself, is not the same here: give all workers the same files")
    family = scenes.load(name)
    return scenes.set_up(zoo.infected(family, bug) if bug else family, scene, setup)[1]


def explore(
    client: Any,
    recipe: Recipe,
    limit: int = 1_000_000,
    tell: Callable[[Progress], None] | None = None,
    checkpoint: Checkpoint | None = None,
    shard: int = SHARD,
) -> Result:
    """Try every order, as `vmm.explore.search.explore` does, on the workers of a `distributed.Client`."""
    scenario = recipe.scenario()
    with Footprints(searching.set_up(scenario)) as steps:
        search = Search(scenario, steps, limit, tell)
        try:
            if checkpoint is not None:
                checkpoint.resume(search)
            return search.run(_Levels(client, recipe, shard).run)
        finally:
            steps.arena.put(search.first.heap)


class _Shard(NamedTuple):
    states: range
    sources: tuple[Source, ...] = ()
    home: str | None = None
    """The worker that has the states."""


class _Levels:
    def __init__(self, client: Any, recipe: Recipe, shard: int) -> None:
        self.client = client
        self.recipe = recipe
        self.size = shard
        self.name = uuid.uuid4().hex

    def run(self, search: Search) -> Result:
        self.search = search
        shards = self._cut(range(search.base, search.base + len(search.level)))
        search.level = []
        try:
            while shards:
                following = self._level(shards)
                if not isinstance(following, list):
                    return following
                if search.pending:
                    following = self._cut(range(search.pending.start, len(search.parents)))
                shards = following
                search.go_down()
            return search.over()
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone; whoever has forgotten us has done so
                self.client.run(forget, self.name, on_error="ignore")

    def _cut(self, states: range) -> list[_Shard]:
        return [_Shard(states[k : k + self.size]) for k in range(0, len(states), self.size)]

    def _level(self, shards: list[_Shard]) -> list[_Shard] | Result:
        """The shards of the next level."""
        search = self.search
        numbers: dict[Any, int] = {}
        attempts = [0] * len(shards)
        reports: dict[int, tuple[Report, str]] = {}
        following: list[_Shard] = []
        for n, shard in enumerate(shards):
            numbers[self._submit(shard, 0, not shard.sources)] = n
        arriving = importlib.import_module("distributed").as_completed(list(numbers))
        merged = 0
        while numbers:
            future = self._next(arriving)
            n = numbers.pop(future)
            if future.status == "finished":
                report, home = future.result()
            elif future.status == "cancelled" or attempts[n] + 1 < ATTEMPTS:
                report, home = MISSING, ""
            else:
                raise EngineError(f"a shard was lost {ATTEMPTS} times: {future.exception()}")
            if report is MISSING:
                attempts[n] += 1
                again = self._submit(shards[n], attempts[n], True)
                numbers[again] = n
                arriving.add(again)
                continue
            reports[n] = report, home
            while merged in reports:
                report, home = reports.pop(merged)
                states = shards[merged].states
                before = len(search.parents)
                new = search.merge(states, report)
                if not isinstance(new, bytes):
                    self.client.cancel(list(numbers))
                    return new
                self._add(following, states.start, before, new, home)
                merged += 1
        return following

    def _next(self, arriving: Any) -> Any:
        """The next future that is done. EngineError if there is nobody who could do one."""
        alone = 0
        while not arriving.has_ready():
            with arriving.thread_condition:
                if not arriving.has_ready():
                    arriving.thread_condition.wait(1)
            alone = 0 if self._workers() else alone + 1
            if alone > ALONE_S:
                raise EngineError(f"the cluster has had no worker for {ALONE_S} s; {AGAIN}")
        if self.client.status != "running":
            raise EngineError(f"the cluster's scheduler is gone; {AGAIN}")
        return next(arriving)

    def _workers(self) -> int:
        """How many there are. EngineError if the scheduler is gone."""
        try:
            if self.client.status == "running":
                return len(self.client.nthreads())
        except Exception as error:
            raise EngineError(f"the cluster's scheduler does not answer: {error}; {AGAIN}") from error
        raise EngineError(f"the cluster's scheduler is gone; {AGAIN}")

    def _add(self, shards: list[_Shard], start: int, first: int, new: bytes, home: str) -> None:
        """What is new of the shard from `start`, numbered from `first`: as shards, or with one that its worker has."""
        count = new.count(1)
        last = shards[-1] if shards else None
        if count and last is not None and last.home == home and len(last.states) + count <= self.size:
            states = range(last.states.start, first + count)
            shards[-1] = _Shard(states, (*last.sources, Source(start, new)), home)
            return
        parts = max(1, round(count / self.size)) if count else 0
        places = [place for place, one in enumerate(new) if one] if parts > 1 else []
        for k in range(parts):
            a, b = count * k // parts, count * (k + 1) // parts
            which = new
            if parts > 1:
                mask = bytearray(len(new))
                for place in places[a:b]:
                    mask[place] = 1
                which = bytes(mask)
            shards.append(_Shard(range(first + a, first + b), (Source(start, which),), home))

    def _submit(self, shard: _Shard, attempt: int, anew: bool) -> Any:
        search, states = self.search, shard.states
        ancestry = search.ancestry(states) if anew else None
        task = Task(self.name, search.depth, states.start, len(states), shard.sources, ancestry)
        key = f"vintx-{self.name}-{search.depth}-{states.start}-{attempt}"
        where = {"workers": [shard.home], "allow_other_workers": True} if shard.home and not anew else {}
        return self.client.submit(perform, self.recipe, task, key=key, pure=False, **where)
