"""`vintx bench`: what our machine costs, beside Debian's QEMU on the same guest images in the same run.

Both are measured alike: from outside, by the wall clock, for starts; by the guest, in cycles of the time stamp counter,
for exits and interrupts. The two take turns, so that a busy host meets both. A start and a ratio are the median of the
runs; all else is the best of them: whatever a host does besides can only make it worse.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from vmm.cli import bench_explore, bench_linux
from vmm.cli.bench_figures import GROUPS, Figure, Group, Subject
from vmm.cli.bench_qmp import NOT_MEASURED, has_qtest
from vmm.cli.process import program
from vmm.errors import UsageError

if TYPE_CHECKING:
    import argparse

    Values = dict[str, float]

WIDTH = 110
"""Columns where nobody says how many there are: in a file, in a pipe."""
QEMU = "qemu-system-x86_64"
NO_QEMU = f"{QEMU} is not installed: no figures to compare with (Debian: apt-get install qemu-system-x86)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `vintx bench`."""
    parser.add_argument("-k", dest="name", metavar="NAME", help="only figures whose name contains NAME")
    parser.add_argument("-r", "--runs", type=int, default=5, metavar="N", help="runs of each measurement (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--list", action="store_true", help="list the names, measure nothing")
    default = os.environ.get("VINTX_BENCH_QEMU", QEMU)
    parser.add_argument(
        "--qemu",
        default=default,
        metavar="PROGRAM",
        help="compare with PROGRAM (default: VINTX_BENCH_QEMU, or in PATH)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure and print. UsageError if nothing has that name, GuestLost if a machine does not do its part."""
    if arguments.runs < 1:
        raise UsageError("-r takes a positive number")
    wanted = [f for group in GROUPS for f in group.figures if arguments.name is None or arguments.name in f.name]
    if not wanted:
        raise UsageError(f"-k {arguments.name}: there is no such figure; --list shows all")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    if arguments.list:
        for figure in wanted:
            console.print(f"{figure.name:<18} {figure.what}", markup=False)
        return 0
    ours = Subject("vintx", program(), ours=True)
    found = shutil.which(arguments.qemu)
    qemu = Subject("qemu", found) if found else None
    values = _measure([ours] if qemu is None else [ours, qemu], wanted, arguments.runs)
    if arguments.json:
        print(json.dumps({"qemu": qemu and qemu.version(), "figures": _rows(wanted, values)}, indent=2))
        return 0
    console.print(_table(wanted, values))
    console.print(f"beside {qemu.version()}, {qemu.program}" if qemu else NO_QEMU, markup=False)
    if bench_linux.note() and any(figure.name.startswith("linux-") for figure in wanted):
        console.print(bench_linux.note(), markup=False)
    if not bench_explore.has_spin() and any(figure.name.endswith("-spin") for figure in wanted):
        console.print(bench_explore.NO_SPIN, markup=False)
    if (
        qemu is not None
        and any(figure.name in ("qmp", "qtest-in", "plug-cycle") for figure in wanted)
        and not has_qtest(qemu)
    ):
        console.print(NOT_MEASURED.format(qemu.version().split("(")[0].strip()), markup=False)
    return 0


def _measure(subjects: list[Subject], wanted: list[Figure], runs: int) -> dict[str, Values]:
    """What to show, by subject and figure."""
    steps = [
        (group, subject)
        for group in GROUPS
        if any(figure in wanted for figure in group.figures)
        for _ in range(runs)
        for subject in subjects
        if subject.ours or group.comparable
    ]
    samples: dict[str, dict[str, list[float]]] = {subject.name: {} for subject in subjects}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    met: set[tuple[Group, str]] = set()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(steps))
        for group, subject in steps:
            progress.update(task, description=f"{group.title}: {subject.name}")
            if (group, subject.name) not in met:
                met.add((group, subject.name))
                group.measure(subject)  # files read, caches filled: not counted
            for name, value in group.measure(subject).items():
                samples[subject.name].setdefault(name, []).append(value)
            progress.advance(task)
    return {
        subject: {figure.name: _of_runs(figure, by[figure.name]) for figure in wanted if figure.name in by}
        for subject, by in samples.items()
    }


def _of_runs(figure: Figure, values: list[float]) -> float:
    return statistics.median(values) if figure.unit in ("ms", "%", "x") else min(values, key=figure.cost)


def _rows(wanted: list[Figure], values: dict[str, Values]) -> list[dict[str, Any]]:
    rows = []
    for figure in wanted:
        ours, qemu = (values.get(subject, {}).get(figure.name) for subject in ("vintx", "qemu"))
        rows.append(
            {
                "name": figure.name,
                "what": figure.what,
                "unit": figure.unit,
                "ours": ours,
                "qemu": qemu,
                "ratio": None if ours is None or qemu is None else figure.cost(ours) / figure.cost(qemu),
                "aim": figure.aim,
            }
        )
    return rows


def _table(wanted: list[Figure], values: dict[str, Values]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("name", "what", "ours", "qemu", "ratio", "aim", "unit"):
        numeric = title in ("ours", "qemu", "ratio", "aim")
        table.add_column(title, justify="right" if numeric else "left", no_wrap=title != "what")
    for row in _rows(wanted, values):
        numbers = [_number(row[column]) for column in ("ours", "qemu", "ratio", "aim")]
        table.add_row(row["name"], row["what"], *numbers, row["unit"])
    return table


def _number(value: float | None) -> str:
    """Three digits that count; empty for what was not measured."""
    if value is None:
        return ""
    digits = max(0, 2 - len(str(int(abs(value)))) + 1)
    return f"{value:,.{digits}f}"
