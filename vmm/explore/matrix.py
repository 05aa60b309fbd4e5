"""Rule by scene by invariant: what was expected, and what the search over every order finds.

    cells = matrix.run(CASES)
    print(matrix.table(cells))

A search for a story ends at the first thing that is wrong. Here it goes on, and notes each invariant that some order
breaks. S1 and S5 are asked in their strict forms (`vmm/kernel/invariants.py`) wherever nothing is queued or running;
what a scene asks at its ends is noted as S1' where it is about source ids.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rich.table import Table
from rich.text import Text

from vmm.dispute.matrix_expected import CASES
from vmm.dispute.matrix_explained import EXPLAINED
from vmm.dispute.row import POLICIES
from vmm.errors import UsageError
from vmm.explore import scenes
from vmm.explore.search import explore
from vmm.kernel import invariants
from vmm.parent_death import end_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vmm.dispute.matrix_expected import Case
    from vmm.explore.board import Board
    from vmm.explore.search import Check

STRICT: Final = ("S1", "S4", "S5", "S8", "S14")
"""Asked in every quiet state, as they stand in `vmm/kernel/invariants.py`."""
LIMIT: Final = 60_000
"""States of one cell; more is an error of the matrix, which is meant to be run often."""


class Cell(NamedTuple):
    """One scene under one rule. `found`: each invariant that some order breaks, and how; `None` states: not run."""

    case: Case
    policy: str
    found: dict[str, str]
    states: int
    transitions: int
    complete: bool
    seconds: float

    @property
    def breaks(self) -> tuple[str, ...]:
        """The invariants' numbers, in order."""
        return tuple(sorted(self.found, key=_order))

    @property
    def expected(self) -> tuple[str, ...]:
        """The numbers that were expected."""
        verdict = self.case.expected(self.policy)
        return () if verdict is None else tuple(sorted(verdict.breaks, key=_order))

    @property
    def explained(self) -> str:
        """Why it differs, empty if it does not, or if nobody knows."""
        return EXPLAINED.get((self.case.name, self.policy, self.breaks), "") if self.differs else ""

    @property
    def differs(self) -> bool:
        """Something else was found than was expected, or the search did not come to its end."""
        return self.breaks != self.expected or not self.complete


def _order(number: str) -> tuple[str, int, str]:
    digits = "".join(c for c in number if c.isdigit())
    return ("" if digits else "~") + number[:1], int(digits or 0), number


def chosen(scenario: str | None, names: Sequence[str]) -> list[Case]:
    """The cases of a scenario, of some of its scenes; all if nothing is named. UsageError."""
    cases = [case for case in CASES if scenario in (None, case.scenario)]
    if not cases:
        known = dict.fromkeys(case.scenario for case in CASES)
        raise UsageError(f"the matrix has nothing of {scenario!r}; it has {', '.join(known)}")
    for name in names:
        if name not in [case.scene for case in cases]:
            raise UsageError(f"the matrix has no scene {name!r}; it has {', '.join(c.scene for c in cases)}")
    return [case for case in cases if not names or case.scene in names]


def survey(case: Case, policy: str) -> Cell:
    """Try every order of one scene under one rule, and note all that is broken."""
    family = scenes.load(case.scenario)
    board, scenario = scenes.set_up(family, case.scene, scenes.Setup(policy, None, case.sources))
    quiet: dict[str, str] = {}
    ends: dict[str, str] = {}
    board.notes = ends
    began = time.perf_counter()
    result = explore(scenario._replace(always=_strictly(board, quiet, scenario.always)), LIMIT)
    found = {"S1'" if number == "S1" else number: text for number, text in ends.items()} | quiet
    if result.finding is not None:
        found[result.finding.rule.partition(":")[0]] = result.finding.rule
    complete = result.complete or result.finding is not None
    return Cell(case, policy, found, result.states, result.transitions, complete, time.perf_counter() - began)


def _strictly(board: Board, noted: dict[str, str], own: Check | None) -> Check:
    def always() -> str | None:
        if board.is_quiet():
            ledger = board.ledger()
            for number in STRICT:
                if number not in noted:
                    wrong = invariants.STATE[number](board.vm, ledger)
                    if wrong:
                        noted[number] = f"{number}: {wrong}"
        return own() if own is not None else None

    return always


def run(
    cases: Sequence[Case], policies: Iterable[str], jobs: int = 0, on_cell: Callable[[int, int], None] | None = None
) -> list[Cell]:
    """All cells, each in one of `jobs` processes (0: as many as there are CPUs), in the matrix' order."""
    wanted = [(case, policy) for case in cases for policy in policies if case.expected(policy) is not None]
    jobs = min(jobs or len(os.sched_getaffinity(0)), len(wanted))
    if jobs <= 1:
        return [survey(*one) for one in wanted]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), end_with, (os.getpid(),)) as pool:
        futures = [pool.submit(survey, *one) for one in wanted]
        for done, _ in enumerate(as_completed(futures), 1):
            if on_cell is not None:
                on_cell(done, len(futures))
        return [future.result() for future in futures]


def table(cells: Sequence[Cell]) -> Table:
    """A row for each scene, a column for each rule; found, expected where that is something else, states."""
    policies = [policy for policy in POLICIES if any(cell.policy == policy for cell in cells)]
    made = Table("scene", "row", *policies, title="what the orders of each scene break", pad_edge=False)
    for case in dict.fromkeys(cell.case for cell in cells):
        here = {cell.policy: cell for cell in cells if cell.case is case or cell.case == case}
        made.add_row(case.name, case.row, *[_text(here[p]) if p in here else Text("-") for p in policies])
    return made


def _text(cell: Cell) -> Text:
    first = " ".join(cell.breaks) or "holds"
    if not cell.complete:
        first += " so far"
    second = f"{cell.states} states"
    if not cell.differs:
        return Text(f"{first}\n{second}", style="" if cell.breaks else "dim")
    wanted = " ".join(cell.expected) or "hold"
    return Text(f"{first}\nnot {wanted}\n{second}", style="yellow" if cell.explained else "red")


def verdict(cells: Sequence[Cell]) -> tuple[str, int]:
    """What to say in the end, and the exit status: 1 if something differs and nobody knows why."""
    lines = []
    status = 0
    for cell in cells:
        if not cell.differs:
            continue
        expected, found = " ".join(cell.expected) or "nothing", " ".join(cell.breaks) or "nothing"
        lines.append(f"{cell.case.name} under {cell.policy}: expected {expected}, found {found}")
        lines += [f"  {cell.found[number]}" for number in cell.breaks if number not in cell.expected]
        lines.append(f"  {cell.explained or 'Nobody knows why: explain it in docs/dispute.md, or mend it'}")
        status |= not cell.explained
    same = sum(not cell.differs for cell in cells)
    known = sum(bool(cell.explained) for cell in cells)
    states = sum(cell.states for cell in cells)
    lines.append(
        f"{same} of {len(cells)} as expected, {known} explained, {len(cells) - same - known} not; {states} states"
    )
    return "\n".join(lines), status


def objects(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """For --json."""
    return [
        {
            "scenario": cell.case.scenario,
            "scene": cell.case.scene,
            "row": cell.case.row,
            "policy": cell.policy,
            "sources": cell.case.sources,
            "expected": list(cell.expected),
            "found": cell.found,
            "differs": cell.differs,
            "explained": cell.explained or None,
            "states": cell.states,
            "transitions": cell.transitions,
            "complete": cell.complete,
            "seconds": round(cell.seconds, 3),
        }
        for cell in cells
    ]
