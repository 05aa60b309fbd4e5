"""Every sequence under every rule: played on the model, beside what was expected of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.dispute.expected import ROWS
from vmm.dispute.row import POLICIES
from vmm.dispute.stage import GSIS, play
from vmm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.dispute.row import Outcome, Row
    from vmm.dispute.stage import Came

BY_ERA: Final = {"S10": "v5"}
"""What the era breaks, not the rule: before 5.11 an irqfd left the eventfd's count for others to read as well."""


class Expected(NamedTuple):
    """One line of an outcome's `steps`. `signalled` has what is allowed."""

    operation: str
    result: str
    ids: int
    line: tuple[str, ...]
    signalled: tuple[tuple[str, ...], ...]

    def differs(self, came: Came) -> str:
        """In what a step came to something else; empty if in nothing."""
        parts = []
        if came.result != self.result:
            parts.append(f"{came.result}, not {self.result}")
        if came.ids != self.ids:
            parts.append(f"{came.ids} ids, not {self.ids}")
        if came.line != self.line:
            parts.append(f"line {' '.join(came.line) or 'low'}, not {' '.join(self.line) or 'low'}")
        if came.signalled not in self.signalled:
            wanted = "/".join(" ".join(names) for names in self.signalled)
            parts.append(f"signalled {' '.join(came.signalled) or 'nobody'}, not {wanted or 'nobody'}")
        return "; ".join(parts)


class Cell(NamedTuple):
    """One sequence under one rule. `expected` is None where nothing was expected of it: another pool, other options."""

    row: Row
    policy: str
    outcome: Outcome
    came: list[Came]
    expected: list[Expected] | None

    @property
    def breaks(self) -> tuple[str, ...]:
        """The invariants that did not hold at some step, those that the era breaks left out."""
        found = {number for step in self.came for number in step.broken} - set(BY_ERA)
        return tuple(sorted(found, key=lambda number: int(number[1:])))

    @property
    def differences(self) -> list[str]:
        """Where the model does not do what was expected."""
        if self.expected is None:
            return []
        found = [
            f"{wanted.operation}: {text}"
            for wanted, came in zip(self.expected, self.came, strict=True)
            if (text := wanted.differs(came))
        ]
        if self.breaks != self.outcome.breaks:
            found.append(
                f"breaks {' '.join(self.breaks) or 'nothing'}, not {' '.join(self.outcome.breaks) or 'nothing'}"
            )
        return found


def parse(steps: str) -> list[Expected]:
    """The lines of an outcome."""
    found = []
    for text in steps.strip().splitlines():
        operation, result, ids, line, signalled = (part.strip() for part in text.split("|"))
        high = tuple(name for name in GSIS if name in line.split())
        allowed = tuple(tuple(sorted(choice.split())) for choice in signalled.split("/"))
        found.append(Expected(" ".join(operation.split()), result, int(ids), high, allowed))
    return found


def outcome_of(row: Row, policy: str) -> Outcome:
    """What was written down for a rule, its options left out."""
    bare = policy.partition(":")[0]
    for outcome in row.outcomes:
        if bare in outcome.policies:
            return outcome
    raise UsageError(f"--policy {bare}: there is no such rule; there are {', '.join(POLICIES)}")


def cell(row: Row, policy: str, sources: int | None = None) -> Cell | None:
    """Play one sequence under one rule; None if it cannot be said in the rule's interface.

    A rule without options is played with the `eoifd-close` that the row is about. `sources`: another pool.
    """
    outcome = outcome_of(row, policy)
    if not outcome.steps:
        return None
    expected = parse(outcome.steps)
    name = policy if ":" in policy or policy == "resample" else f"{policy}:eoifd-close={row.eoifd_close}"
    came = play([line.operation for line in expected], name, row.sources if sources is None else sources)
    as_written = ":" not in policy and sources in (None, row.sources)
    return Cell(row, policy, outcome, came, expected if as_written else None)


def rows(names: Iterable[str] = ()) -> list[Row]:
    """The rows of those names, or all. UsageError for one that there is not."""
    known = {row.name: row for row in ROWS}
    wanted = list(names) or list(known)
    for name in wanted:
        if name not in known:
            raise UsageError(f"--row {name}: there is no such sequence; there are {', '.join(known)}")
    return [known[name] for name in wanted]
