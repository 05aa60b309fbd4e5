"""`vintx explore --matrix`: what each rule of the dispute breaks in each scene, expected beside found."""

from __future__ import annotations

import json
import sys
from concurrent.futures import BrokenExecutor
from typing import TYPE_CHECKING

from vmm.cli import explore_text
from vmm.dispute.row import POLICIES
from vmm.errors import EngineError, UsageError
from vmm.explore import matrix

if TYPE_CHECKING:
    import argparse


def run(arguments: argparse.Namespace) -> int:
    """0 if all is as expected or explained, 1 if not. UsageError."""
    policies = [arguments.policy] if arguments.policy else list(POLICIES)
    if not set(policies) <= set(POLICIES):
        raise UsageError(f"the matrix has no {policies[0]!r}; it has {', '.join(POLICIES)}")
    cases = matrix.chosen(arguments.scenario, arguments.scene)
    if not any(case.expected(policy) is not None for case in cases for policy in policies):
        raise UsageError(f"the matrix has nothing of {arguments.scenario or arguments.scene[0]} under {policies[0]}")
    if arguments.jobs is not None and arguments.jobs < 1:
        raise UsageError("--jobs is at least 1")
    try:
        cells = matrix.run(cases, policies, arguments.jobs or 0, _progress if sys.stderr.isatty() else None)
    except BrokenExecutor as error:
        raise EngineError("a process of the matrix died; --jobs 1 does without them") from error
    text, status = matrix.verdict(cells)
    if arguments.json:
        print(json.dumps(matrix.objects(cells), indent=2))
        return status
    console = explore_text.console(170)
    console.print(matrix.table(cells))
    console.print(text, markup=False, soft_wrap=True)
    return status


def _progress(done: int, of: int) -> None:
    end = "\n" if done == of else ""
    print(f"\r{done} of {of} cells", end=end, file=sys.stderr, flush=True)
