"""`vintx explore --matrix`: what each rule of the dispute breaks in each scene, expected beside found."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from vmm.dispute.row import POLICIES
from vmm.errors import UsageError
from vmm.explore import matrix

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    """0 if all is as expected or explained, 1 if not. UsageError."""
    for option in ("replay", "era", "sources", "steps"):
        if getattr(arguments, option) not in (None, False):
            raise UsageError(f"--matrix takes no --{option}: each of its scenes says what it is explored with")
    policies = [arguments.policy] if arguments.policy else list(POLICIES)
    if not set(policies) <= set(POLICIES):
        raise UsageError(f"the matrix has no {policies[0]!r}; it has {', '.join(POLICIES)}")
    cases = matrix.chosen(arguments.scenario, arguments.scene)
    cells = matrix.run(cases, policies, on_cell=_progress if sys.stderr.isatty() else None)
    text, status = matrix.verdict(cells)
    if arguments.json:
        print(json.dumps(matrix.objects(cells), indent=2))
        return status
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=170)
    console.print(matrix.table(cells))
    console.print(text, markup=False, soft_wrap=True)
    return status


def _progress(done: int, of: int) -> None:
    end = "\n" if done == of else ""
    print(f"\r{done} of {of} cells", end=end, file=sys.stderr, flush=True)
