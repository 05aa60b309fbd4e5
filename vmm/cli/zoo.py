"""`vintx zoo`: historical bugs, each found by the explorer, and not found once it is fixed.

vintx zoo
vintx zoo --list
vintx zoo Z12
vintx explore Z12 --bug Z12        its scene by itself; `--replay` takes the schedule that is printed
vintx explore shared-gsi --bug Z12 the bug in the scenes of a family
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from vmm.cli import explore_text
from vmm.errors import UsageError
from vmm.explore import chart, story, zoo
from vmm.kernel.eras import DEFAULT_ERA

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from vmm.explore.zoo import Bug, Shown, Verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx zoo`."""
    parser.add_argument("number", nargs="*", metavar="ZNN", help="these only, and told")
    parser.add_argument("--list", action="store_true", help="what there is; nothing is run")
    parser.add_argument("--steps", action="store_true", help="tell every step of a story, not only the switches")
    parser.add_argument("--json", action="store_true", help="one object per bug")
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per CPU)")


def run(arguments: argparse.Namespace) -> int:
    """0 if each is what it should be and the fix is clean, 1 if not, 2 if the command line is wrong."""
    try:
        if arguments.jobs is not None and arguments.jobs < 1:
            raise UsageError("--jobs is at least 1")
        chosen = [zoo.bug(number) for number in dict.fromkeys(map(str.upper, arguments.number))]
        chosen = chosen or list(zoo.bugs().values())
    except UsageError as error:
        if arguments.json:
            print(json.dumps({"error": str(error), "status": 2}, indent=2))
        print(f"vintx zoo: {error}", file=sys.stderr)
        return 2
    console = explore_text.console()
    if arguments.list:
        if arguments.json:
            print(json.dumps([_known(bug) for bug in chosen], indent=2))
        else:
            console.print(_list(chosen))
        return 0
    if arguments.number and not arguments.json:
        shown = [zoo.show(bug) for bug in chosen]
        for one in shown:
            _tell(console, one, arguments.steps)
        found = [one.verdict() for one in shown]
    else:
        jobs = arguments.jobs or os.cpu_count() or 1
        found = list(zoo.verdicts([bug.number for bug in chosen], min(jobs, len(chosen))))
    if arguments.json:
        print(json.dumps([verdict._asdict() for verdict in found], indent=2))
    else:
        console.print(_table(found))
        console.print(_sum(found), markup=False, soft_wrap=True)
    return 0 if all(verdict.right for verdict in found) else 1


def _tell(console: Console, one: Shown, every_step: bool) -> None:
    finding = one.broken.result.finding
    console.rule(f"{one.bug.number}: {one.bug.title}", align="left")
    console.print(one.bug.reference, markup=False)
    console.print(f"fixed: {one.bug.cure or 'the real class'}", markup=False)
    if finding is None:
        return
    told = story.of(one.bug.family(infected=True), one.broken)
    explore_text.print_chart(console, told, every_step)
    for n, sentence in enumerate(chart.sentences(told), 1):
        console.print(f"{n:3}. {sentence}", markup=False, soft_wrap=True)
    console.print(f"{finding.rule}", markup=False, soft_wrap=True)
    number, schedule = one.bug.number, story.encode(one.broken)
    console.print(f"again: vintx explore {number} --bug {number} --replay '{schedule}'\n", markup=False, soft_wrap=True)


def _known(bug: Bug) -> dict[str, str]:
    """What is known of a bug before anything is run."""
    base, real = (f"{s.policy} {s.era or DEFAULT_ERA}" for s in (bug.broken, bug.real))
    return {
        "number": bug.number,
        "bug": bug.title,
        "base": base,
        "breaks": " or ".join(bug.breaks),
        "reference": bug.reference,
        "fixed": bug.cure or ("the real class" if base == real else real),
    }


def _list(chosen: list[Bug]) -> Table:
    table = Table("", "bug", "base", "breaks", "reference", "fixed")
    for bug in chosen:
        table.add_row(*map(Text, _known(bug).values()))
    return table


def _table(found: list[Verdict]) -> Table:
    table = Table("", "bug", "verdict", "steps", "states", "with the fix", "states", "s")
    titles = {number: bug.title for number, bug in zoo.bugs().items()}
    for one in found:
        steps = str(one.steps) if one.steps else "-"
        counts = str(one.states), one.fix, str(one.fix_states)
        table.add_row(one.number, titles[one.number], one.text, steps, *counts, f"{one.seconds:.2f}")
    return table


def _sum(found: list[Verdict]) -> str:
    groups = (("that must have a verdict", True), ("more", False))
    texts = []
    for what, must in groups:
        group = [one for one in found if (one.number in zoo.MUST) == must]
        if group:
            shown, clean = sum(one.found for one in group), sum(one.fix == "clean" for one in group)
            texts.append(f"{len(group)} {what}: {shown} found, {len(group) - shown} not, {clean} clean with the fix")
    return "; ".join(texts) + "."
