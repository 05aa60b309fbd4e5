"""`vintx man`: the manual page of vintx-system-x86_64, or the completion of its options."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx man`."""
    parser.add_argument("--completion", action="store_true", help="print bash's completion instead, to be sourced")


def run(arguments: argparse.Namespace) -> int:
    """Print it: `vintx man | man -l -`, `source <(vintx man --completion)`."""
    from vmm.cli.reference import completion, man_page

    print(completion() if arguments.completion else man_page(), end="")
    return 0
