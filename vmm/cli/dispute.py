"""`vintx dispute`: each sequence that the KVM_EOIFD thread argues with, under each rule that it proposes.

vintx dispute                                    all of it
vintx dispute --row a --sources 2                the thread's counter-example, with two source ids
vintx dispute --policy eoifd-v5:eoifd-close=ignored
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vmm.dispute import page
from vmm.errors import UsageError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx dispute`."""
    parser.add_argument("--policy", metavar="P", help="one rule only, with options: NAME:OPTION=VALUE (irqfd-policy)")
    parser.add_argument("--row", action="append", default=[], metavar="R", help="one sequence only; may be repeated")
    parser.add_argument(
        "--sources", type=int, metavar="N", help="how many irq source ids there are to give out (default: the row's)"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--json", action="store_true", help="one object per sequence and rule")
    shape.add_argument("--markdown", action="store_true", help="docs/dispute.md")


def run(arguments: argparse.Namespace) -> int:
    """0 if all is as expected, or nothing was expected of it; 1 otherwise."""
    policies = page.rules(arguments.policy)
    if arguments.markdown:
        if arguments.policy or arguments.row or arguments.sources is not None:
            raise UsageError("--markdown makes the whole page; leave out --policy, --row and --sources")
        print(page.markdown(), end="")
        return 0
    if arguments.json:
        objects = page.as_json(arguments.row, policies, arguments.sources)
        print(json.dumps(objects, indent=2))
        return int(any(found["differences"] for found in objects))
    text, differing = page.text(arguments.row, policies, arguments.sources)
    print(text, end="")
    return int(differing > 0)
