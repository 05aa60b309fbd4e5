"""The search in several processes of this machine: a level is cut into shards, and each worker has some of them.

A shard is a run of consecutive states, and its new states are a run of the next level; so what comes of the shards,
taken one after the other, is numbered as one process would have numbered it. Workers are forked when a level is wide
enough, know all that is known then, and keep their states: only marks and parents travel. The first process decides
which states are new. Whoever ends the search (a finding, a fault, the limit) is looked at again in the first process.

A worker that dies is replaced: its shards are made again from the ways to their states, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
from itertools import compress, pairwise
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from vmm.errors import EngineError
from vmm.explore import search as searching

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator
    from multiprocessing.process import BaseProcess

    from vmm.explore.footprints import Footprints
    from vmm.explore.search import Node, Report, Result, Scenario, Search

SHARDS = 10
"""For each worker. A worker with several shards has about its share of the states for longer."""
DEATHS = 8
"""So many, and it is no accident."""
UNEVEN = 1.1
"""How much more than its share of a level a worker may have."""


class Shards:
    """The shards of a worker: their states, and those that may be their states in the next level.

    `seen`: marks that need not be reported, a copy of the worker's own that it adds to.
    """

    def __init__(self, scenario: Scenario, steps: Footprints, first: Node, seen: set[int]) -> None:
        self.scenario = scenario
        self.steps = steps
        self.first = first
        self.nodes: dict[int, list[Node]] = {}
        self._candidates: dict[int, list[Node]] = {}
        self._known = seen

    def stand(self, shard: int, parents: array[int], actors: bytearray, wanted: int) -> None:
        """Make the states of a shard."""
        self.nodes[shard] = searching.rebuild(self.steps, self.first, parents, actors, wanted)

    def keep(self, shard: int, new: bytes) -> None:
        """Which of those that were reported are new."""
        self.nodes[shard] = list(compress(self._candidates.pop(shard), new))

    def expand(self, shard: int) -> Report:
        """Take all steps from a shard's states."""
        report, candidates = searching.expand(self.scenario, self.steps, self.nodes[shard], self._known)
        self._candidates[shard] = candidates
        return report


class _Worker:
    """A forked process with some of the shards."""

    def __init__(self, search: Search, context: multiprocessing.context.ForkContext) -> None:
        self.line, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(search, theirs, self.line), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, *message: object) -> None:
        """Tell it. One that is dead is noticed when it is listened to."""
        with contextlib.suppress(OSError):
            self.line.send(message)

    def end(self) -> None:
        self.line.close()
        self.process.terminate()
        self.process.join()


def _serve(search: Search, line: Connection, theirs: Connection) -> None:
    """A worker's life."""
    theirs.close()
    shards = Shards(search.scenario, search.steps, search.first, search.seen)
    level, search.level = search.level, []
    try:
        while True:
            what, shard, *arguments = line.recv()
            if what == "take":
                start, count = arguments
                shards.nodes[shard] = level[start : start + count]
            elif what == "stand":
                shards.stand(shard, *arguments)
            elif what == "keep":
                shards.keep(shard, *arguments)
            elif what == "expand":
                line.send((shard, shards.expand(shard)))
            else:
                shards.nodes.pop(shard, None)
    except (EOFError, OSError, KeyboardInterrupt):
        pass


def share(search: Search, jobs: int) -> Result:
    """Go on with a search in `jobs` processes. In this one where there is no fork(2)."""
    if "fork" not in multiprocessing.get_all_start_methods():
        return search.run()
    gc.collect()
    gc.freeze()  # or the first collection in a worker would copy every page
    try:
        workers = list(_started(search, jobs))
        return _Shared(search, workers).run() if workers else search.run()
    finally:
        gc.unfreeze()


def _started(search: Search, jobs: int) -> Iterator[_Worker]:
    """So many workers, or as many as the system lets us have: what comes of them is the same."""
    context = multiprocessing.get_context("fork")
    with contextlib.suppress(OSError):  # no more processes, or descriptors
        for _ in range(jobs):
            yield _Worker(search, context)


class _Shared:
    def __init__(self, search: Search, workers: list[_Worker]) -> None:
        self.search = search
        self.context = multiprocessing.get_context("fork")
        self.workers = workers
        jobs = len(workers)
        self.owner = [shard % jobs for shard in range(jobs * SHARDS)]
        """Which worker has each shard."""
        self.ranges: list[range] = []
        """The states of each shard."""
        self.lost: set[int] = set()
        """Shards whose new states died with their worker."""
        self.deaths = 0
        self.moved = 0
        """States that were made again for another worker."""

    def run(self) -> Result:
        search = self.search
        self._cut(search.base, len(search.level))
        for shard, states in enumerate(self.ranges):
            self._worker(shard).send("take", shard, states.start - search.base, len(states))
        search.level = []
        try:
            while any(self.ranges):
                result = self._level()
                if result is not None:
                    return result
                if search.pending:
                    start = search.pending.start
                    self._cut(start, len(search.parents) - start)
                    for shard in range(len(self.ranges)):
                        self._stand(shard)
                search.go_down()
                self._even_out()
            return search.over()
        finally:
            for worker in self.workers:
                worker.end()

    def _cut(self, base: int, count: int) -> None:
        """Equal shards of the states from `base` on."""
        parts = len(self.owner)
        edges = [base + count * k // parts for k in range(parts + 1)]
        self.ranges = [range(a, b) for a, b in pairwise(edges)]

    def _worker(self, shard: int) -> _Worker:
        return self.workers[self.owner[shard]]

    def _level(self) -> Result | None:
        """Everybody takes the steps of their states; what comes of it is merged in the shards' order."""
        for shard in range(len(self.ranges)):
            self._worker(shard).send("expand", shard)
        reports: dict[int, Report] = {}
        merged: list[tuple[int, bytes]] = []
        """How many new states each shard has, and which of the reported ones they are."""
        while len(merged) < len(self.ranges):
            for line in wait([worker.line for worker in self.workers]):
                assert isinstance(line, Connection)
                try:
                    shard, report = line.recv()
                except (EOFError, OSError):
                    dead = next(n for n, worker in enumerate(self.workers) if worker.line is line)
                    self._replace(dead, len(merged), reports)
                else:
                    reports[shard] = report
            while len(merged) in reports:
                new = self.search.merge(self.ranges[len(merged)], reports.pop(len(merged)))
                if not isinstance(new, bytes):
                    return new
                merged.append((new.count(1), new))
        start = len(self.search.parents) - sum(count for count, _ in merged)
        for shard, (count, new) in enumerate(merged):
            self.ranges[shard] = range(start, start + count)
            if shard in self.lost:
                self._stand(shard)
            else:
                self._worker(shard).send("keep", shard, new)
            start += count
        self.lost.clear()
        return None

    def _stand(self, shard: int) -> None:
        """Let the shard's worker make its states again."""
        states = self.ranges[shard]
        self.moved += len(states)
        self._worker(shard).send("stand", shard, *self.search.ancestry(states), len(states))

    def _replace(self, dead: int, merged: int, reports: dict[int, Report]) -> None:
        """A worker died: another one takes its shards, and makes those again that have not been merged."""
        self.deaths += 1
        if self.deaths > DEATHS:
            raise EngineError(f"{self.deaths} workers died; --jobs 1 does without them")
        self.workers[dead].end()
        try:
            self.workers[dead] = _Worker(self.search, self.context)
        except OSError as error:
            words = f"a worker died, and no other can be started ({error.strerror}); --jobs 1 does without them"
            raise EngineError(words) from error
        again = []
        for shard, owner in enumerate(self.owner):
            if owner == dead and (shard < merged or shard in reports):
                self.lost.add(shard)
            elif owner == dead:
                again.append(shard)
                self._stand(shard)
        for shard in again:  # not before it has read all the others: both would wait for each other to read
            self._worker(shard).send("expand", shard)

    def _even_out(self) -> None:
        """Move shards from who has much more than others to who has least."""
        jobs = len(self.workers)
        while True:
            loads = [0] * jobs
            for owner, states in zip(self.owner, self.ranges, strict=True):
                loads[owner] += len(states)
            most, least = loads.index(max(loads)), loads.index(min(loads))
            gap = loads[most] - loads[least]
            if loads[most] < UNEVEN * sum(loads) / jobs or sum(loads) < searching.WIDE:
                return
            fitting = [n for n, owner in enumerate(self.owner) if owner == most and 0 < len(self.ranges[n]) < gap]
            if not fitting:
                return
            shard = min(fitting, key=lambda n: abs(len(self.ranges[n]) - gap // 2))
            self.workers[most].send("drop", shard)
            self.owner[shard] = least
            self._stand(shard)
