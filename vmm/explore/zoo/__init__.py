"""Historical bugs, each as a class that changes one named step of the real one, and a scene in which it shows.

A bug is *found* when the search breaks the rule that it is said to break, and *clean* when the same scene breaks none
under the real classes; of a rule of the dispute, under the rule that cures it; of an old kernel, in a later era.
Numbers are those of docs/explore.md.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import UsageError
from vmm.explore.scenes import Family, Outcome, Setup, run
from vmm.parent_death import end_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmm.explore.board import Board


MUST = (
    *("Z01", "Z02", "Z03", "Z04", "Z05", "Z07", "Z09", "Z10", "Z11", "Z12", "Z13", "Z15", "Z17", "Z19"),
    *("Z20", "Z22", "Z23", "Z24", "Z26", "Z31", "Z33", "Z35", "Z50", "Z52", "Z54", "Z71", "Z75", "Z88"),
)
"""Those that an explorer of this road has to have a verdict on."""


class Bug(NamedTuple):
    """`breaks`: what the finding's rule begins with. `broken` and `real`: under what it is found, and is not; `cure`:
    what is different there, if it is not simply the real class. `shown` False: the search finds nothing wrong.
    """

    number: str
    title: str
    reference: str
    breaks: tuple[str, ...]
    scene: Callable[[Board], None]
    broken: Setup
    real: Setup
    cure: str = ""
    shown: bool = True

    def family(self, infected: bool = False) -> Family:
        """The bug's scene as a scenario of its own, with the bug or without it. Its code is never blamed."""
        wears = self.broken if infected else self.real
        return Family(self.number, f"zoo {self.number}", {self.number: self.scene}, wears=wears)


class Shown(NamedTuple):
    """What came of a bug. `found`: the rule that it is said to break was broken; `clean`: the real one breaks none."""

    bug: Bug
    broken: Outcome
    real: Outcome
    seconds: float

    @property
    def found(self) -> bool:
        """The search found it, and by what it is said to break."""
        finding = self.broken.result.finding
        return finding is not None and finding.rule.startswith(self.bug.breaks)

    @property
    def clean(self) -> bool:
        """All orders of the real one were tried and none is wrong."""
        return self.real.result.complete and self.real.result.finding is None

    def verdict(self) -> Verdict:
        """In short."""
        result, real = self.broken.result, self.real.result
        if result.finding is None:
            text = f"not demonstrated over {result.states:,} states" if result.complete else "not finished"
        else:
            rule = result.finding.rule.partition(":")[0]
            text = rule if self.found else f"something else: {rule}"
        fix = "clean" if self.clean else "not finished"
        if real.finding is not None:
            fix = real.finding.rule.partition(":")[0]
        steps = len(result.finding.choices) if result.finding is not None else 0
        right = self.found if self.bug.shown else result.finding is None and result.complete
        return Verdict(
            self.bug.number,
            text,
            steps,
            result.states,
            fix,
            real.states,
            self.seconds,
            self.found,
            right and self.clean,
        )


class Verdict(NamedTuple):
    """The same without what cannot leave the process. `right`: as it should be, the fix included."""

    number: str
    text: str
    steps: int
    states: int
    fix: str
    fix_states: int
    seconds: float
    found: bool
    right: bool


def bugs() -> dict[str, Bug]:
    """All of them, by number."""
    from vmm.explore.zoo import binding, eoi, eoifd, eras, host, ioapic, irqchip, irqfd, monitor, pool, setup, vfio

    every = [
        bug
        for part in (binding, eoi, eoifd, eras, host, ioapic, irqchip, irqfd, monitor, pool, setup, vfio)
        for bug in part.BUGS
    ]
    return {bug.number: bug for bug in sorted(every, key=lambda bug: bug.number)}


def infected(family: Family, number: str) -> Family:
    """A family whose scenes have a bug: its classes, and, unless others are asked for, its rule, era and source ids.

    UsageError for a bug that there is not.
    """
    return family._replace(wears=bug(number).broken)


def bug(number: str) -> Bug:
    """The bug of that number. UsageError."""
    known, number = bugs(), number.upper()
    if number not in known:
        raise UsageError(f"there is no {number}; there are {', '.join(known)}")
    return known[number]


def show(one: Bug) -> Shown:
    """Look for the bug, and then for anything wrong with the real class."""
    began = time.perf_counter()
    broken = run(one.family(infected=True), one.number, one.broken)
    real = run(one.family(), one.number, one.real)
    return Shown(one, broken, real, time.perf_counter() - began)


def verdicts(numbers: Sequence[str], jobs: int = 1) -> Iterator[Verdict]:
    """What comes of each of these bugs, in their order, with so many processes. If one of those dies, this one does
    what is left.
    """
    done = 0
    if jobs > 1:
        context = multiprocessing.get_context("fork")
        with (
            contextlib.suppress(BrokenExecutor),
            ProcessPoolExecutor(jobs, context, end_with, (os.getpid(),)) as pool,
        ):
            for verdict in pool.map(_verdict, numbers):
                yield verdict
                done += 1
    yield from map(_verdict, numbers[done:])


def _verdict(number: str) -> Verdict:
    return show(bug(number)).verdict()
