"""A finding, told: the schedule that leads there, step by step, and as a string that runs it again.

A schedule is `SCENE/POLICY/ERA/SOURCES/a4b2a-5f3a`: actor a four steps, b two, a one, and a check sum of where those
steps led, so that a schedule of another version of the code is noticed. SOURCES is `-` if there was no limit, and `1x2`
is one of them at scale 2. Of a loop, `a4b2*a2b-5f3a`: what comes after the star can be repeated for ever. Actors that
have no letter are numbers, `(52)4`.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vmm.errors import UsageError
from vmm.explore.actors import NotDeterministic
from vmm.explore.scenes import Blaming, ScenarioFault, Setup, blame, set_up
from vmm.explore.search import Finding, stuck
from vmm.explore.search import set_up as make_stage
from vmm.kernel import invariants
from vmm.order import Violation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.explore.actors import Stage
    from vmm.explore.board import Board
    from vmm.explore.heap import Heap
    from vmm.explore.scenes import Family, Outcome
    from vmm.explore.search import Scenario

LETTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
ACTOR: Final = r"(?:[a-zA-Z]|\(\d{1,3}\))"
STEPS: Final = 1_000_000
"""As many as an order of a search by the lot can have."""
WORDS: Final = {
    "S1": "no source-id leak",
    "S1'": "an id that is in use can be given back",
    "S3": "close equals deassign",
    "S6": "no event after unbind",
    "S7": "EOI fan-out",
    "S10": "single consumer",
    "S17": "mask depth",
    "S19": "what fails changes nothing",
    "S11": "no phantom",
    "S12": "one level delivery until its EOI",
    "L1": "no lost level interrupt",
    "L3": "a storm starves nobody",
    "L4": "tear-down ends",
    "L5": "the line comes to rest",
    "L6": "a mask is taken back",
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


class Wave(NamedTuple):
    """The levels of one moment. `line`: some source holds the pin high; `requested` and `in_service`: the vector is in
    the IRR or ISR of a local APIC; `devices`: of each behind VFIO, whether it asserts and whether it is masked.
    """

    line: bool
    irr: bool
    remote_irr: bool
    masked: bool
    requested: bool
    in_service: bool
    devices: tuple[tuple[str, bool, bool], ...] = ()

    def signals(self) -> dict[str, bool]:
        """By name, in the order in which they are drawn."""
        found = {
            "pin": self.line,
            "remote IRR": self.remote_irr,
            "mask": self.masked,
            "LAPIC IRR": self.requested,
            "LAPIC ISR": self.in_service,
        }
        for name, level, masked in self.devices:
            found |= {f"{name} INTx": level, f"{name} masked": masked}
        return found


class Row(NamedTuple):
    """One step: actor `n`, which of its operations, where it stood then, and the board afterwards. `quiet`: nothing is
    queued or running any more.
    """

    n: int
    actor: str
    number: int
    operation: str
    step: str
    finished: bool
    board: str
    wave: Wave
    quiet: bool = True

    def object(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {"wave": self.wave._asdict()}


class Story(NamedTuple):
    """A schedule that was run, and what was wrong in the end (None: nothing). `loop`: the rows from here on can be
    repeated for ever, if they lead back. `counts`: of the eventfds that have a descriptor in the end.
    """

    rows: tuple[Row, ...]
    rule: str | None
    before: str
    wave: Wave
    loop: int | None = None
    counts: tuple[tuple[str, int], ...] = ()
    leads_back: bool = True


def encode(outcome: Outcome) -> str:
    """The schedule string of an outcome's finding."""
    finding, setup = outcome.result.finding, outcome.setup
    assert finding is not None
    stem = len(finding.choices) if finding.loop is None else finding.loop
    way = _way(finding.choices[:stem]) + ("" if finding.loop is None else "*" + _way(finding.choices[stem:]))
    sources = "-" if setup.sources is None else str(setup.sources)
    sources += "" if setup.scale == 1 else f"x{setup.scale}"
    return f"{outcome.scene}/{setup.policy}/{outcome.era}/{sources}/{way}-{_sum(finding.trail)}"


def _way(choices: Sequence[int]) -> str:
    runs = [(_letter(n), len(list(steps))) for n, steps in groupby(choices)]
    return "".join(letter if times == 1 else f"{letter}{times}" for letter, times in runs)


def _letter(n: int) -> str:
    return LETTERS[n] if n < len(LETTERS) else f"({n})"


def _sum(trail: Sequence[tuple[str, str]]) -> str:
    return blake2b("\n".join(f"{actor} {step}" for actor, step in trail).encode(), digest_size=2).hexdigest()


class Schedule(NamedTuple):
    """A schedule string, read. `loop` as in `Story`; `check`: the check sum."""

    scene: str
    setup: Setup
    choices: tuple[int, ...]
    loop: int | None
    check: str


def decode(text: str) -> Schedule:
    """Read a schedule string. UsageError."""
    way = rf"(?:{ACTOR}(?:\d{{1,7}})?)*"
    end = rf"(-|\d{{1,4}})(?:x([1-9]\d{{0,4}}))?/({way})(?:\*({way}))?-([0-9a-f]{{4}})"
    parts = re.fullmatch(rf"([^/]+)/([^/]+)/([^/]+)/{end}", text)
    if parts is None:
        raise UsageError(f"{text!r} is no schedule: they look like SCENE/POLICY/ERA/SOURCES/a4b2a-5f3a")
    scene, policy, era, sources, scale, stem, cycle, check = parts.groups()
    if sum(int(times or 1) for _, times in _runs(stem + (cycle or ""))) > STEPS:
        raise UsageError(f"{text[:60]}...: more than {STEPS} steps; no schedule has so many")
    before = _choices(stem)
    setup = Setup(policy, era, None if sources == "-" else int(sources), scale=int(scale or 1))
    return Schedule(scene, setup, before + _choices(cycle or ""), None if cycle is None else len(before), check)


def _choices(way: str) -> tuple[int, ...]:
    found: list[int] = []
    for letter, times in _runs(way):
        found += [int(letter[1:-1]) if letter[0] == "(" else LETTERS.index(letter)] * int(times or 1)
    return tuple(found)


def _runs(way: str) -> list[tuple[str, str]]:
    """Actors, and how many steps each takes in a row; an empty text is one."""
    return re.findall(rf"({ACTOR})(\d*)", way)


def replay(family: Family, text: str) -> tuple[Setup, Story]:
    """Run a schedule string. UsageError if it is not one of this scenario as it is now."""
    schedule = decode(text)
    if schedule.loop == len(schedule.choices):
        raise UsageError(f"{text}: nothing comes after the star; a loop has at least one step")
    story = tell(family, schedule.scene, schedule.setup, schedule.choices, schedule.loop)
    if _sum([(row.actor, row.step) for row in story.rows]) != schedule.check:
        raise UsageError(f"{text}: its steps lead elsewhere now; the scenario or the code is not what it was")
    if not story.leads_back:
        raise UsageError(f"{text}: what comes after the star does not lead back, so it is no loop")
    return schedule.setup, story


def wave(board: Board) -> Wave:
    """The levels of a board, now."""
    pin = board.pin
    devices = tuple((hardware.name, hardware.level, hardware.depth > 0) for hardware in board.devices)
    return Wave(bool(pin.held), pin.irr, pin.remote_irr, pin.masked, pin.requested, pin.in_service, devices)


def tell(family: Family, scene: str, setup: Setup, choices: Sequence[int], loop: int | None = None) -> Story:
    """Run the steps of a scene in the order given. UsageError if that cannot be. `loop`: from which step on they are a
    loop, in which something never comes true.
    """
    board, scenario = set_up(family, scene, setup)
    with Blaming(family.path):
        return _tell(family, board, scenario, choices, loop)


def _tell(family: Family, board: Board, scenario: Scenario, choices: Sequence[int], loop: int | None) -> Story:
    stage = make_stage(scenario)
    heap = stage.arena.take()
    standings = stage.beginning()
    before, first = board.describe(), wave(board)
    rows: list[Row] = []
    running: dict[int, str] = {}
    rule: str | None = None
    begun: tuple[int, Heap] | None = None  # whose call has gone on alone, since when
    began: Any = None
    for k, n in enumerate(choices):
        if k == loop:
            began = heap, [standing.place for standing in standings]
        if n not in stage.enabled(heap, standings):
            raise UsageError(f"step {k + 1}: {_letter(n)} cannot act there: this is no schedule of this scene")
        actor, number = scenario.actors[n], standings[n].done
        if standings[n].suspended is None:
            running[n] = actor.at(number).name
            begun = n, heap
        elif begun is not None and begun[0] != n:
            begun = None
        try:
            heap, standing, step = stage.step(heap, n, standings[n])
        except Violation as violation:
            if violation.__cause__ is not None:
                blame(family, violation.__cause__)
            rule = str(violation)
            result = board.result_of(actor.name)
            operation = result if result.startswith(f"{running[n]} = ") else running[n]
            rows.append(Row(n, actor.name, _count(rows, n), operation, "violates", True, board.describe(), wave(board)))
            if k + 1 < len(choices):
                raise UsageError(
                    f"step {k + 1} breaks {rule.partition(':')[0]}, and the schedule goes on"
                ) from violation
            break
        except NotDeterministic as fault:
            fault.operation = actor.at(number)
            raise
        stage.arena.put(heap)  # the step's last state: its greenlet has unwound since
        if actor.repeats and running[n] == "work":
            running[n] = board.executor.running[-1].name if board.executor.running else "work"
        standings = (*standings[:n], standing, *standings[n + 1 :])
        done = standing.suspended is None
        result = board.result_of(actor.name) if done else ""
        queue = board.executor
        state = board.describe(), wave(board), not (queue.pending or queue.running)
        operation = result if result.startswith(f"{running[n]} = ") else running[n]
        rows.append(Row(n, actor.name, _count(rows, n), operation, step, done, *state))
    leads_back = began is None or (stage.arena.padded(began[0]), began[1]) == (heap, [s.place for s in standings])
    if rule is None:
        enabled = stage.enabled(heap, standings)
        rule = scenario.always() if scenario.always is not None else None
        if rule is None and not enabled:
            rule = stuck(scenario, standings) or (scenario.at_rest() if scenario.at_rest is not None else None)
            rule = rule or _never(scenario, "is not so where nobody can act any more")
        elif rule is None and loop is None and not any(standings[n].place.claim for n in enabled):
            rule = _never(scenario, "is not so where nobody has to act any more")
        elif rule is None and loop is not None:
            steps = len(choices) - loop
            rule = _never(scenario, f"need not come true again: {steps} steps that can be repeated for ever")
    if rule is None and begun is not None and not any(standing.place.step for standing in standings):
        rule = _careless(scenario, stage, *begun, heap)
    closed = board.ledger().closed
    counts = tuple((name, ctx.count) for name, ctx in board.eventfds().items() if ctx not in closed)
    return Story(tuple(rows), rule, before, first, loop, counts, leads_back)


def _careless(scenario: Scenario, stage: Stage, n: int, before: Heap, after: Heap) -> str | None:
    """S19 of the call of actor `n` that nobody interfered with, if it began where all was quiet."""
    failure = scenario.atomic.failures.get(n) if scenario.atomic is not None else None
    if scenario.atomic is None or failure is None or not failure():
        return None
    failed, now = failure(), scenario.atomic.view()
    stage.arena.put(before)
    try:
        quiet, then = scenario.atomic.quiet(), scenario.atomic.view()
    finally:
        stage.arena.put(after)
    return (scenario.atomic.wrong(failed, then, now) or None) if quiet else None


def _never(scenario: Scenario, text: str) -> str | None:
    """The first goal that is not reached now."""
    return next((f"{name}: {text}" for name, goal in scenario.live if not goal()), None)


def _count(rows: list[Row], n: int) -> int:
    """Which operation of actor `n` this is, from what came before."""
    return sum(row.finished for row in rows if row.n == n)


def of(family: Family, outcome: Outcome) -> Story:
    """The story of an outcome's finding. ScenarioFault if it does not come to that when it is run again."""
    finding = outcome.result.finding
    assert isinstance(finding, Finding)
    told = tell(family, outcome.scene, outcome.setup, finding.choices, finding.loop)
    if told.rule is None and finding.choices:
        broke = finding.rule.partition(":")[0]
        text = f"not deterministic: scene {outcome.scene}: an order broke {broke}, and nothing when it was run again"
        raise ScenarioFault(family.path, 0, text)
    return told


def lines(story: Story, every_step: bool = False) -> list[list[Row]]:
    """The rows that are told as one: steps of one operation in a row, or each by itself. A loop is told signal by
    signal, or it would seem that nothing happens in it.
    """
    if every_step:
        return [[row] for row in story.rows]
    loop = len(story.rows) if story.loop is None else story.loop
    keys = [(row.n, row.number, None if k < loop else row.wave) for k, row in enumerate(story.rows)]
    return [[story.rows[k] for k in ks] for _, ks in groupby(range(len(keys)), keys.__getitem__)]


def said(rows: Sequence[Row], begun: set[tuple[int, int]]) -> str:
    """A line of the table: `I- e1 ... workqueue.flush`. `begun`: what was begun in lines before it; kept up to date."""
    last = rows[-1]
    text = ("... " if (last.n, last.number) in begun else "") + last.operation
    begun.add((last.n, last.number))
    if last.step == "violates":
        return text + ": violates"
    return text if last.finished else f"{text} ... {last.step}"
