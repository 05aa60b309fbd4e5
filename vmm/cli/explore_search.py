"""How `vintx explore` searches: its options, the plan that they make, and the line that says how far it is."""

from __future__ import annotations

import os
import shutil
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from vmm import VERSION
from vmm.errors import UsageError
from vmm.explore import cluster, scenes
from vmm.explore.checkpoint import Checkpoint, digest
from vmm.explore.strategies import PCT_DEPTH, RUNS, STRATEGIES, Plan

if TYPE_CHECKING:
    import argparse

    from vmm.explore.scenes import Family, Outcome, Setup
    from vmm.explore.search import Progress, Result, Scenario

REFRESH_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    group = parser.add_argument_group("search")
    group.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="bfs",
        help="bfs: all states, the shortest way to a violation (default); dfs: all states, in less memory; "
        "random, pct: some orders, for what is too large",
    )
    group.add_argument("--jobs", type=int, metavar="N", help="processes that share a large scene (default: all cores)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of random and pct (default 0)")
    group.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"orders of random and pct (default {RUNS})")
    group.add_argument(
        "--depth",
        type=int,
        metavar="N",
        help="dfs, random: give an order up after so many steps; "
        f"pct: ordering constraints (default {PCT_DEPTH}); --against-kvm: operations in an order",
    )
    group.add_argument(
        "--cluster", metavar="ADDRESS", help="share it on the Dask cluster of this scheduler, tcp://host:8786"
    )
    group.add_argument("--checkpoint", metavar="DIR", help="write down what is done, and go on there if interrupted")


class Searcher:
    """Explores scenes as the options say. UsageError."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        jobs = len(os.sched_getaffinity(0)) if arguments.jobs is None else arguments.jobs
        if jobs < 1:
            raise UsageError("--jobs is at least 1")
        self.line = Line(sys.stderr)
        tell = self.line.tell if sys.stderr.isatty() else None
        path = Path(arguments.scenario)
        self.name = str(path.resolve()) if path.is_file() else str(arguments.scenario)
        self.digest = digest(path if path.is_file() else None) if arguments.checkpoint or arguments.cluster else ""
        self.bug: str = arguments.bug or ""
        self.limit: int = arguments.max_states
        self.directory: str | None = arguments.checkpoint
        self.plan = Plan(arguments.strategy, jobs, arguments.seed, arguments.runs, arguments.depth, tell)
        self.client = cluster.connect(arguments.cluster) if arguments.cluster else None

    def run(self, family: Family, scene: str, setup: Setup) -> Outcome:
        """Explore one."""
        checkpoint = None
        if self.directory is not None:
            what = f"{VERSION} {self.digest} {family.name} {scene} {setup!r} {family.wears!r}"
            name = f"{family.name}-{scene}-{setup.policy.partition(':')[0]}-{zlib.crc32(what.encode()):08x}"
            checkpoint = Checkpoint(Path(self.directory) / name, what)
        try:
            if self.client is None:
                outcome = scenes.run(
                    family, scene, setup, self.limit, self.plan._replace(checkpoint=checkpoint).explore
                )
                self.line.text = ""
                return outcome
            recipe = cluster.Recipe(cluster.of_scene, (self.name, scene, setup, self.bug, self.digest))
            tell = self.plan.tell

            def search(_scenario: Scenario, limit: int) -> Result:
                return cluster.explore(self.client, recipe, limit, tell, checkpoint)

            outcome = scenes.run(family, scene, setup, self.limit, search)
            self.line.text = ""
            return outcome
        finally:
            self.line.wipe()


class Line:
    """One line that says how far a search is, written over again and again, and wiped in the end. `text`: what it said
    last of the search in hand.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.began = self.last = time.monotonic()
        self.states = 0
        self.text = ""
        self._shown = 0

    def tell(self, progress: Progress) -> None:
        """Write it, if there was none for a while."""
        now = time.monotonic()
        if progress.states < self.states:  # another search
            self.began, self.states = now, 0
        if now - self.last < REFRESH_S:
            return
        self.last, self.states = now, progress.states
        rate = progress.states / max(now - self.began, REFRESH_S)
        self.text = f"{progress.states:,} states, {rate:,.0f}/s, depth {progress.depth}, frontier {progress.frontier:,}"
        # What is longer than a line would stay there when the next one is written.
        self._write(self.text[: shutil.get_terminal_size().columns - 1])

    def wipe(self) -> None:
        """Leave nothing of it."""
        if self.states:
            self._write("")
            self.stream.write("\r")
            self.stream.flush()
            self.states = 0

    def _write(self, text: str) -> None:
        """With blanks over what is left of the line before: not every terminal has a sequence for that."""
        self.stream.write(f"\r{text}{' ' * (self._shown - len(text))}")
        self.stream.flush()
        self._shown = len(text)
