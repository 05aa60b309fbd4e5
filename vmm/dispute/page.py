"""The dispute as a page (docs/dispute.md), as text, and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm.dispute.matrix_expected import CASES
from vmm.dispute.matrix_explained import EXPLAINED
from vmm.dispute.row import POLICIES
from vmm.dispute.table import BY_ERA, cell, rows
from vmm.kernel.invariants import BREAKS, ELSEWHERE, catalogue
from vmm.kernel.policies import POLICIES as RULES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.dispute.row import Row
    from vmm.dispute.stage import Came
    from vmm.dispute.table import Cell

GRADES: Final = {
    "S": "stated in the thread",
    "E": "read in the source or a commit of the kernel or of QEMU",
    "K": "common knowledge of the kernel, not read again",
    "R": "reconstructed: the text of version 5 for this is not known",
}

HEAD: Final = """\
# The dispute over KVM_EOIFD, played

This page is made by `vintx dispute --markdown` and not written by hand; a test keeps it current.

In July 2012 an irqfd and an eoifd were two objects with one irq source id between them, and the thread under
"[PATCH v5 2/4] kvm: KVM_EOIFD, an eventfd for EOIs" argued over what should happen when the irqfd goes first. Each
sequence that it argues with, or leaves open, is played here under each rule that it proposes, and under the one
that was merged. The rules, and what was said for and against each, are in `vmm/kernel/policies.py`.

What was *expected* of each sequence is data, `vmm/dispute/expected.py`. It was written from the thread and
committed before the model was first run against it; a later change of it needs a decision record in docs/adr. What
is *shown* is what the model did.

    vintx dispute                                  # all of it
    vintx dispute --row a --policy eoifd-v5        # one sequence under one rule
    vintx dispute --row a --sources 2              # from a pool of two source ids: now it works
    vintx dispute --row i --policy eoifd-v5:eoifd-close=ignored

`I+`/`I-` assign and deassign an irqfd, `E+`/`E-` an eoifd; `C` closes, `D` dups, `SIG` writes to an eventfd; `EOI`
is the guest's; `VM` is the last close of the VM. e... are eventfds of irqfds, `g` and `h` GSIs. "ids" counts the
source ids that are given out, "line" the GSIs that are held high, "told" the eventfds that the EOI was reported to.
Evidence: {grades}.
"""

TAIL: Final = """\
## What the table says

* The counter-example (a) is right. Under version 5 as posted, and under every rule that leaves an eoifd its source
  (`assign-busy`, `assign-rebinds`, `eoifd-holds-file`), an assign fails that has nothing to do with what was done
  before. To fix assign does not help: it is another eventfd.
* The objection of the other side (a') is right, too. The same eventfd assigned again gives a stuck line under
  version 5; fixing assign cures that one.
* `deassign-fails` has neither, until the irqfd is closed (b): close is not deassign any more, and the zombie is
  back.
* `eoifd-follows-irqfd` breaks nothing here but h, which all rules with two objects break. Its price is in k: an
  interrupt in flight when the irqfd goes is reported to nobody, so whoever waits for that EOI to unmask a device
  has to unmask it itself.
* One object (`resample`) has nothing to order. What it costs is in h: all of a GSI are told of every EOI, idle ones
  too.

## Where sources and model differ

* **Does the close of an eoifd deassign it?** The author says so in the thread; when version 6 was posted it was
  said that version 5 did nothing until the VM went. Both can be had (`eoifd-close`). Rows other than `i-ignored`
  take the thread's word. `eoifd-v5` by itself has `ignored`: the posted code, as far as it is known; the argument is
  about what was meant.
* **Is close the same as deassign under version 5?** The thread: "close has the same bug as deassign". The model
  agrees: what is left in the kernel is the same (S3 holds). The difference is the user's, who after a close has no
  descriptor to name the zombie with (b: EBADF).
* **Does a dup help after the close (b-dup)?** Not as one might think: while a dup is open the close was not the
  last one, nothing is torn down, and the eoifd is deassigned as usual. A dup helps after a *deassign*.
* **An edge irqfd on the GSI (d').** Protecting against it was asked for as part of fixing assign, and not agreed.
  The model allows it: the level source keeps the line high whatever the pulse does, so nothing breaks.
  `assign-busy:edge-on-gsi=refused` is the other answer.
* **Two ways to tell whose EOI it is.** The asserted flag of patch 2 and `kvm_clear_irq` of patches 3 and 4
  (`deassert`) come to the same in every row; a test says so. They part where chip and flag disagree, as when the
  GSI is routed to another pin while it is high: the next event raises the new pin only without the flag.
* **S10** (an event is consumed once) is not in the table: every row with an event breaks it, whatever the rule. In
  July 2012 an irqfd left the eventfd's count where it was; since 5.11 it takes it.
"""


def markdown() -> str:
    """docs/dispute.md."""
    grades = "; ".join(f"**{grade}** {text}" for grade, text in GRADES.items())
    parts = [HEAD.format(grades=grades), _summary(), _invariants(), *(_row(row) for row in rows()), TAIL, _orders()]
    return "\n".join(parts)


ORDERS: Final = """\
## In every order

The rows above are played in one order each. `vintx explore --matrix` plays them in every order that their threads, the
kernel's workers and the guest can act in, and notes each invariant that some order breaks. Expected, from the
references, and committed before the first run (`vmm/dispute/matrix_expected.py` says why, with the evidence):
"""
DIFFERENT: Final = """\
S1 and S5 are asked wherever nothing is queued or running; S1' where nobody can act any more, and says that an id is in
use that nobody can give back. L5: the line is high after the EOI and nobody will lower it. L6: VFIO's mask stays.

What the search finds is this, but for:
"""


def _orders() -> str:
    lines = [ORDERS, "| scene | row | " + " | ".join(f"`{name}`" for name in POLICIES) + " |"]
    lines.append("|---" * (len(POLICIES) + 2) + "|")
    for case in CASES:
        verdicts = [case.expected(name) for name in POLICIES]
        cells = ["-" if verdict is None else " ".join(verdict.breaks) or "holds" for verdict in verdicts]
        lines.append(f"| {case.name} | {case.row} | " + " | ".join(cells) + " |")
    lines += ["", DIFFERENT]
    reasons: dict[tuple[str, tuple[str, ...], str], list[str]] = {}
    for (name, rule, found), text in EXPLAINED.items():
        reasons.setdefault((name, found, text), []).append(rule)
    for (name, found, text), rules_of in reasons.items():
        under = ", ".join(f"`{rule}`" for rule in rules_of)
        lines.append(f"* **{name}** under {under}: {' '.join(found) or 'nothing'} is broken. {text}")
    return "\n".join([*lines, ""])


def _summary() -> str:
    head = "| | " + " | ".join(f"`{name}`" for name in POLICIES) + " |"
    lines = ["## At a glance", "", "The first refusal, what is left, and the invariants that break.", ""]
    lines += [head, "|---" * (len(POLICIES) + 1) + "|"]
    for row in rows():
        cells = [_brief(cell(row, name)) for name in POLICIES]
        lines.append(f"| [{row.name}](#{_anchor(row)}) | " + " | ".join(cells) + " |")
    lines.append("")
    lines += [f"{number} is left out: era `{era}` breaks it under every rule." for number, era in BY_ERA.items()]
    return "\n".join([*lines, ""])


def _invariants() -> str:
    lines = ["## The invariants", ""]
    lines += [
        "Functions of `vmm/kernel/invariants.py`. A *state* holds whenever nothing is queued or running, a *step* is"
    ]
    lines += [
        "about one operation; *ghost* is what a check has to know that the kernel does not. The last column names the"
    ]
    lines += [
        "rules under which some life breaks it, with one eoifd to an irqfd (`tests/kernel/test_invariants.py` has the"
    ]
    lines += ["shortest for each, and random lives for all that a rule keeps).", ""]
    lines += ["| | says | form | ghost | broken by |", "|---|---|---|---|---|"]
    for invariant in catalogue():
        number = invariant.number
        by = ", ".join(f"`{name}`" for name, numbers in BREAKS.items() if number in numbers)
        if number in BY_ERA:
            by = f"era `{BY_ERA[number]}`"
        lines.append(f"| {number} | {invariant.says} | {invariant.form} | {invariant.ghost} | {by} |")
    lines.append("")
    lines += [f"* {number}: {where}" for number, where in ELSEWHERE.items() if number != "S3"]
    return "\n".join([*lines, ""])


def _brief(found: Cell | None) -> str:
    if found is None:
        return "-"
    parts = []
    refused = next((step for step in found.came if step.result != "ok"), None)
    if refused is not None:
        parts.append(f"{refused.result} at {refused.operation}")
    if any(step.line for step in found.came if step.operation.startswith("EOI")):
        parts.append("line stuck")
    told = sorted({name for step in found.came for name in step.signalled})
    if told:
        parts.append(f"{' '.join(told)} told")
    text = "; ".join(parts) or "works"
    return f"{text} **{' '.join(found.breaks)}**" if found.breaks else text


def _title(row: Row) -> str:
    return f"{row.name}: {row.title}"


def _anchor(row: Row) -> str:
    kept = "".join(c for c in _title(row).lower() if c.isalnum() or c in " -_")
    return kept.replace(" ", "-")


def groups(row: Row, policies: Sequence[str], sources: int | None = None) -> list[tuple[list[str], Cell | None]]:
    """The rules under which a row comes to the same, together."""
    found: list[tuple[list[str], Cell | None]] = []
    for name in policies:
        got = cell(row, name, sources)
        for names, other in found:
            if _same(other, got):
                names.append(name)
                break
        else:
            found.append(([name], got))
    return found


def _same(one: Cell | None, two: Cell | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.outcome is two.outcome and [_plain(s) for s in one.came] == [_plain(s) for s in two.came]


def _plain(step: Came) -> tuple[object, ...]:
    return (*step[:-1], sorted(step.broken))


def _row(row: Row) -> str:
    pool = "one source id" if row.sources == 1 else f"{row.sources} source ids"
    lines = [f"## {_title(row)}", "", f"From: {row.ref}. With {pool}.", ""]
    if row.eoifd_close != "deassigns":
        lines += [f"With `eoifd-close={row.eoifd_close}`.", ""]
    for names, found in groups(row, POLICIES):
        label = ", ".join(f"`{name}`" for name in names)
        if found is None:
            outcome = next(o for o in row.outcomes if names[0] in o.policies)
            lines += [f"**{label}** [{outcome.grade}] cannot say it. {outcome.says}", ""]
            continue
        lines += [f"**{label}** [{found.outcome.grade}] {found.outcome.says}", ""]
        lines += ["| | result | ids | line | told |", "|---|---|---|---|---|"]
        for step in found.came:
            line = " ".join(step.line) or "low"
            lines.append(f"| {step.operation} | {step.result} | {step.ids} | {line} | {' '.join(step.signalled)} |")
        lines += ["", f"Breaks {', '.join(found.breaks)}." if found.breaks else "Breaks nothing."]
        lines += ["", *(f"**Not as expected**: {text}." for text in found.differences)]
    return "\n".join(lines)


def text(names: Sequence[str], policies: Sequence[str], sources: int | None) -> tuple[str, int]:
    """For a terminal; and how many cells are not as expected."""
    lines: list[str] = []
    differing = 0
    for row in rows(names):
        pool = row.sources if sources is None else sources
        lines += [f"{row.name}: {row.title} ({pool} source id{'' if pool == 1 else 's'})"]
        for policy_names, found in groups(row, policies, sources):
            lines.append(f"  {', '.join(policy_names)}")
            if found is None:
                lines.append("    cannot be said in this interface")
                continue
            if found.expected is not None:
                lines.append(f"    [{found.outcome.grade}] {found.outcome.says}")
            for step in found.came:
                told = f"  told {' '.join(step.signalled)}" if step.signalled else ""
                line = f"high {' '.join(step.line)}" if step.line else "low"
                lines.append(f"    {step.operation:<14}{step.result:<8}{step.ids} ids  {line}{told}".rstrip())
            first = {number: step.broken[number] for step in reversed(found.came) for number in step.broken}
            lines += [f"    breaks {number}: {first[number]}" for number in found.breaks]
            lines += [f"    NOT AS EXPECTED: {text}" for text in found.differences]
            differing += bool(found.differences)
        lines.append("")
    return "\n".join(lines), differing


def as_json(names: Sequence[str], policies: Sequence[str], sources: int | None) -> list[dict[str, Any]]:
    """One object per sequence and rule that can say it."""
    objects = []
    for row in rows(names):
        for name in policies:
            found = cell(row, name, sources)
            if found is None:
                continue
            steps = [
                {
                    "operation": step.operation,
                    "result": step.result,
                    "ids": step.ids,
                    "line": list(step.line),
                    "signalled": list(step.signalled),
                    "broken": step.broken,
                }
                for step in found.came
            ]
            objects.append(
                {
                    "row": row.name,
                    "title": row.title,
                    "policy": name,
                    "sources": row.sources if sources is None else sources,
                    "grade": found.outcome.grade if found.expected is not None else None,
                    "says": found.outcome.says if found.expected is not None else None,
                    "steps": steps,
                    "breaks": list(found.breaks),
                    "differences": found.differences,
                }
            )
    return objects


def rules(name: str | None) -> list[str]:
    """The rules to play: one, with its options, or all."""
    assert set(POLICIES) == set(RULES)
    return list(POLICIES) if name is None else [name]
