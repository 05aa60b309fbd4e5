"""`vintx trace`: what a trace file tells.

vintx-system-x86_64 ... -trace '*',file=trace.jsonl
vintx trace attribute trace.jsonl
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vmm.attribution import Attribution
from vmm.errors import TraceError

if TYPE_CHECKING:
    import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Subcommands of `vintx trace`."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "count the level interrupts of each pin, and name the cause of each spurious one"
    attribute = commands.add_parser("attribute", help=text, description=text)
    attribute.add_argument("file", type=Path, metavar="FILE", help="trace in JSON lines, with all events")


def run(arguments: argparse.Namespace) -> int:
    """0 if every spurious interrupt has a legal cause, 1 if not. TraceError for a file that is no such trace."""
    try:
        with arguments.file.open(encoding="utf-8") as stream:
            found = Attribution().read(stream)
    except OSError as error:
        raise TraceError(f"{arguments.file}: {error.strerror}") from error
    except (TraceError, UnicodeDecodeError) as error:
        raise TraceError(f"{arguments.file}: {error}") from error
    console = Console(highlight=False)
    table = Table("pin", "interrupts", "spurious", title="level interrupts that CPUs took")
    for pin, count in sorted(found.by_pin.items()):
        table.add_row(str(pin), str(count), str(sum(one.pin == pin for one in found.spurious)))
    console.print(table)
    for one in found.spurious:
        console.print(one.text(), markup=False)
    for cause, count in found.causes().most_common():
        console.print(f"{cause.value}: {count}")
    console.print(f"spurious {len(found.spurious)}, unattributed {len(found.unattributed)}")
    return 1 if found.unattributed else 0
