"""`vintx zoo`: historical bugs, each found by the explorer, and not found in the real class.

vintx zoo
vintx zoo --list
vintx zoo Z12
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vmm.errors import UsageError
from vmm.explore import chart, story, zoo

if TYPE_CHECKING:
    import argparse

    from vmm.explore.zoo import Shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx zoo`."""
    parser.add_argument("number", nargs="*", metavar="ZNN", help="these only, and told")
    parser.add_argument("--list", action="store_true", help="what there is; nothing is run")
    parser.add_argument("--steps", action="store_true", help="tell every step of a story, not only the switches")


def run(arguments: argparse.Namespace) -> int:
    """0 if each was found and the real class is clean, 1 if not, 2 for a number that is not there."""
    try:
        chosen = [zoo.bug(number.upper()) for number in arguments.number] or list(zoo.bugs().values())
    except UsageError as error:
        print(f"vintx zoo: {error}", file=sys.stderr)
        return 2
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=150)
    if arguments.list:
        table = Table("", "bug", "breaks", "reference")
        for bug in chosen:
            table.add_row(bug.number, bug.title, " or ".join(bug.breaks), bug.reference)
        console.print(table)
        return 0
    shown = [zoo.show(bug) for bug in chosen]
    for one in shown if arguments.number else ():
        finding = one.broken.result.finding
        if finding is not None:
            console.rule(f"{one.bug.number}: {one.bug.title}", align="left")
            console.print(one.bug.reference, markup=False)
            console.print(chart.terminal(story.of(one.bug.family(), one.broken), arguments.steps))
            console.print(f"{finding.rule}\n", markup=False, soft_wrap=True)
    console.print(_table(shown))
    return 0 if all(one.found and one.clean for one in shown) else 1


def _table(shown: list[Shown]) -> Table:
    table = Table("", "bug", "found", "steps", "states", "real class", "states", "s")
    for one in shown:
        finding, real = one.broken.result.finding, one.real.result
        found = "not demonstrated" if finding is None else finding.rule.partition(":")[0]
        if finding is not None and not one.found:
            found = f"something else: {found}"
        clean = (
            "clean" if one.clean else "not finished" if real.finding is None else real.finding.rule.partition(":")[0]
        )
        steps = "-" if finding is None else str(len(finding.choices))
        counts = str(one.broken.result.states), clean, str(real.states)
        table.add_row(one.bug.number, one.bug.title, found, steps, *counts, f"{one.seconds:.2f}")
    return table
