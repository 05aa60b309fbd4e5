"""A finding, told: the schedule that leads there, step by step, and as a string that runs it again.

A schedule is `SCENE/POLICY/ERA/SOURCES/a4b2a-5f3a`: actor a four steps, b two, a one, and a check sum of where those
steps led, so that a schedule of another version of the code is noticed. SOURCES is `-` if there was no limit.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Final, NamedTuple

from rich.table import Table

from vmm.errors import UsageError
from vmm.explore.scenes import Setup, blame, set_up
from vmm.explore.search import Finding, stuck
from vmm.explore.search import set_up as make_stage
from vmm.kernel import invariants
from vmm.order import Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.explore.scenes import Family, Outcome

LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
WORDS: Final = {
    "S1": "no source-id leak",
    "S3": "close equals deassign",
    "S6": "no event after unbind",
    "S7": "EOI fan-out",
    "S10": "single consumer",
    "S17": "mask depth",
    "L1": "no lost level interrupt",
    "deadlock": "somebody waits for ever (S15)",
    "use-after-free": "an object is touched after it was freed (S4)",
    "double-free": "an object is freed twice (S4)",
    "double-put": "a reference is given back that nobody has (S4)",
    "deactivated-twice": "an object is shut down twice (S4)",
    "wait-entry-never-added": "a wait entry is removed that was never added (S13)",
    "wait-entry-added-twice": "a wait entry is added twice (S13)",
    "sleeps-in-atomic": "sleeping under a spin lock (S15)",
    "eventfd-recursion": "an eventfd is signalled from inside a wake-up (S15)",
}


def words(rule: str) -> str:
    """The invariant that a finding's rule is about, in words; empty if it has none."""
    number = rule.partition(":")[0]
    if number in WORDS:
        return WORDS[number]
    check = invariants.STATE.get(number) or invariants.STEP.get(number)
    return (check.__doc__ or "").partition(":")[0].partition(".")[0] if check is not None else ""


class Row(NamedTuple):
    """One step: actor `n`, which of its operations, where it stood then, and the board afterwards."""

    n: int
    actor: str
    number: int
    operation: str
    step: str
    finished: bool
    board: str


class Story(NamedTuple):
    """A schedule that was run, and what was wrong in the end (None: nothing)."""

    rows: tuple[Row, ...]
    rule: str | None
    before: str


def encode(outcome: Outcome) -> str:
    """The schedule string of an outcome's finding."""
    finding, setup = outcome.result.finding, outcome.setup
    assert finding is not None
    runs = [(LETTERS[n], len(list(steps))) for n, steps in groupby(finding.choices)]
    way = "".join(letter if times == 1 else f"{letter}{times}" for letter, times in runs)
    sources = "-" if setup.sources is None else setup.sources
    return f"{outcome.scene}/{setup.policy}/{outcome.era}/{sources}/{way}-{_sum(finding.trail)}"


def _sum(trail: Sequence[tuple[str, str]]) -> str:
    return blake2b("\n".join(f"{actor} {step}" for actor, step in trail).encode(), digest_size=2).hexdigest()


def decode(text: str) -> tuple[str, Setup, tuple[int, ...], str]:
    """Scene, set-up, numbers of actors, check sum. UsageError."""
    parts = re.fullmatch(r"([^/]+)/([^/]+)/([^/]+)/(-|\d+)/((?:[a-zA-Z]\d*)*)-([0-9a-f]{4})", text)
    if parts is None:
        raise UsageError(f"{text!r} is no schedule: they look like SCENE/POLICY/ERA/SOURCES/a4b2a-5f3a")
    scene, policy, era, sources, way, check = parts.groups()
    choices: list[int] = []
    for letter, times in re.findall(r"([a-zA-Z])(\d*)", way):
        choices += [LETTERS.index(letter)] * int(times or 1)
    return scene, Setup(policy, era, None if sources == "-" else int(sources)), tuple(choices), check


def replay(family: Family, text: str) -> tuple[Setup, Story]:
    """Run a schedule string. UsageError if it is not one of this scenario as it is now."""
    scene, setup, choices, check = decode(text)
    story = tell(family, scene, setup, choices)
    if _sum([(row.actor, row.step) for row in story.rows]) != check:
        raise UsageError(f"{text}: its steps lead elsewhere now; the scenario or the code is not what it was")
    return setup, story


def tell(family: Family, scene: str, setup: Setup, choices: Sequence[int]) -> Story:
    """Run the steps of a scene in the order given. UsageError if that cannot be."""
    board, scenario = set_up(family, scene, setup)
    stage = make_stage(scenario)
    heap = stage.arena.take()
    standings = stage.beginning()
    before = board.describe()
    rows: list[Row] = []
    running: dict[int, str] = {}
    rule: str | None = None
    for k, n in enumerate(choices):
        if n not in stage.enabled(heap, standings):
            raise UsageError(f"step {k + 1}: {LETTERS[n]} cannot act there: this is no schedule of scene {scene}")
        actor, number = scenario.actors[n], standings[n].done
        if standings[n].suspended is None:
            running[n] = actor.at(number).name
        try:
            heap, standing, step = stage.step(heap, n, standings[n])
        except Violation as violation:
            if violation.__cause__ is not None:
                blame(family, violation.__cause__)
            rule = str(violation)
            result = board.result_of(actor.name)
            operation = result if result.startswith(f"{running[n]} = ") else running[n]
            rows.append(Row(n, actor.name, _count(rows, n), operation, "violates", True, board.describe()))
            break
        stage.arena.put(heap)  # the step's last state: its greenlet has unwound since
        if actor.repeats and running[n] == "work":
            running[n] = board.executor.running[-1].name if board.executor.running else "work"
        standings = (*standings[:n], standing, *standings[n + 1 :])
        done = standing.suspended is None
        results = board.result_of(actor.name) if done and not actor.repeats else ""
        rows.append(Row(n, actor.name, _count(rows, n), results or running[n], step, done, board.describe()))
    if rule is None:
        enabled = stage.enabled(heap, standings)
        rule = scenario.always() if scenario.always is not None else None
        if rule is None and not enabled:
            rule = stuck(scenario, standings) or (scenario.at_rest() if scenario.at_rest is not None else None)
    return Story(tuple(rows), rule, before)


def _count(rows: list[Row], n: int) -> int:
    """Which operation of actor `n` this is, from what came before."""
    return sum(row.finished for row in rows if row.n == n)


def of(family: Family, outcome: Outcome) -> Story:
    """The story of an outcome's finding."""
    finding = outcome.result.finding
    assert isinstance(finding, Finding)
    return tell(family, outcome.scene, outcome.setup, finding.choices)


def table(story: Story, every_step: bool = False) -> Table:
    """A column for each actor that acts. Steps of one operation in a row are one line, unless `every_step`."""
    actors = list(dict.fromkeys(row.actor for row in story.rows))
    made = Table("step", *actors, "board", pad_edge=False)
    made.add_row("", *[""] * len(actors), story.before)
    shown = story.before
    begun: set[tuple[int, int]] = set()
    lines = [[row] for row in story.rows]
    if not every_step:
        lines = [list(found) for _, found in groupby(story.rows, lambda row: (row.n, row.number))]
    k = 0
    for rows in lines:
        last = rows[-1]
        text = ("... " if (last.n, last.number) in begun else "") + last.operation
        begun.add((last.n, last.number))
        if last.step == "violates":
            text += ": violates"
        elif not last.finished:
            text += f" ... {last.step}"
        k += len(rows)
        cells = [text if actor == last.actor else "" for actor in actors]
        made.add_row(str(k), *cells, "" if last.board == shown else last.board)
        shown = last.board
    return made
