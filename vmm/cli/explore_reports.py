"""What `vintx explore` leaves in files: a story as a picture (`--svg`), or as a program for /dev/kvm (`--export`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import UsageError
from vmm.explore import chart, export, story

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from vmm.explore.scenes import Family, Outcome, Setup
    from vmm.explore.story import Story


class Told(NamedTuple):
    """A story, and what it is of."""

    scene: str
    setup: Setup
    story: Story
    schedule: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the files."""
    parser.add_argument("--svg", metavar="FILE", help="draw what was found; of several, FILE gets their names")
    parser.add_argument(
        "--export",
        nargs=2,
        metavar=("kvm", "FILE"),
        help="make what was found a program that plays it on the real /dev/kvm",
    )


def check(arguments: argparse.Namespace) -> None:
    """UsageError for what cannot be exported to."""
    if arguments.export and arguments.export[0] != "kvm":
        raise UsageError(f"--export {arguments.export[0]}: there is `kvm` to export to")
    for name in (arguments.svg, arguments.export[1] if arguments.export else None):
        if name is not None:
            _refuse_what_cannot_be_written(Path(name))


def _refuse_what_cannot_be_written(path: Path) -> None:
    """Before a search that may take long. UsageError."""
    folder = path.parent
    if path.is_dir() or not path.name:
        raise UsageError(f"{path} is a directory; name a file")
    if not folder.is_dir():
        raise UsageError(f"{path}: there is no directory {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise UsageError(f"{path}: it must not be written")


def found(arguments: argparse.Namespace, family: Family, outcomes: Sequence[Outcome]) -> list[str]:
    """Write the files of all that was found; says which. UsageError."""
    if not (arguments.svg or arguments.export):
        return []
    told = [
        Told(outcome.scene, outcome.setup, story.of(family, outcome), story.encode(outcome))
        for outcome in outcomes
        if outcome.result.finding is not None
    ]
    if not told:
        return ["nothing was found, so no file was written"]
    return write(arguments, family, told)


def replayed(arguments: argparse.Namespace, family: Family, setup: Setup, told: Story) -> list[str]:
    """Write the files of one order that was run again. UsageError."""
    scene = story.decode(arguments.replay).scene
    return write(arguments, family, [Told(scene, setup, told, arguments.replay)])


def write(arguments: argparse.Namespace, family: Family, told: Sequence[Told]) -> list[str]:
    """Write what is asked for, and say so. UsageError."""
    said = []
    for one in told if arguments.svg else ():
        path = _name(Path(arguments.svg), one, len(told))
        title = f"{family.name}, scene {one.scene}, {one.setup.policy}"
        _put(path, chart.svg(one.story, title, one.schedule))
        said.append(f"drawn: {path}")
    for one in told if arguments.export else ():
        path = _name(Path(arguments.export[1]), one, len(told))
        _put(path, export.kvm(family, one.scene, one.setup, one.story, one.schedule), executable=True)
        said.append(f"exported: {path}; run it with python3")
    return said


def _name(path: Path, one: Told, of: int) -> Path:
    if of == 1:
        return path
    policy = "".join(c if c.isalnum() or c in "-=" else "-" for c in one.setup.policy)
    return path.with_name(f"{path.stem}-{one.scene}-{policy}{path.suffix}")


def _put(path: Path, text: str, executable: bool = False) -> None:
    try:
        path.write_text(text, encoding="utf-8")
        if executable:
            path.chmod(path.stat().st_mode | 0o111)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
