"""The explorer's figures: states a second on one core and on two, bytes a state, and beside spin where there is one.

    measure()     # {"explore": 21000.0, "explore-large": 65000.0, ...}

`ROWS` describes them: name, what, unit, aim. The large scene is an irqfd's whole life at once, some 200,000 states.
Spin explores `vmm/explore/spin/thread.pml`, the calls of the thread's counter-example in Promela, with a statement for
each place where somebody else may go first; ours is the same calls on the kernel's own code. Spin's time to the bug is
that of spin, the C compiler and a breadth-first run, ours that of `vintx explore`; lines are those a user writes.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vmm.explore import scenes
from vmm.explore.search import explore

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.board import Board
    from vmm.explore.search import Result

ROWS: Final[tuple[tuple[str, str, str, float | None], ...]] = (
    ("explore", "states of irqfd-life, six scenes", "/s", None),
    ("explore-large", "states of a large scene, one core", "/s", 18_000.0),
    ("explore-two", "the same, two cores", "/s", None),
    ("explore-speed-up", "two cores against one", "x", 1.5),
    ("explore-memory", "memory of a state", "B", None),
    ("at-once", "states of the thread's calls at once", "states", None),
    ("at-once-spin", "the same in Promela", "states", None),
    ("at-once-rate", "their rate", "/s", None),
    ("at-once-rate-spin", "the same in Promela", "/s", None),
    ("bug", "command to the thread's counter-example, shortest", "ms", None),
    ("bug-spin", "the same in Promela", "ms", None),
    ("bug-lines", "lines that a user writes for it", "lines", None),
    ("bug-lines-spin", "the same in Promela", "lines", None),
)
NO_SPIN: Final = "spin or a C compiler is not installed: no figures of Promela (Debian: apt-get install spin gcc)"
LARGE: Final = scenes.Setup()
LIMIT: Final = 1_000_000
MODULE: Final = "vmm.cli.bench_explore"


def large(board: Board) -> None:
    """An irqfd is assigned, deassigned and closed while it fires and an interrupt is taken and ended."""
    board.thread("device").signal("e1")
    board.thread("vcpu").interrupt()
    board.thread("other").deassign("e1")
    board.thread("user").assign("e1", eoi="e2")
    board.thread("third").close("e1")


def at_once(board: Board) -> None:
    """The calls of the counter-example by a thread each."""
    board.thread("a").assign("e1", eoi="e2")
    board.thread("b").eoifd("e2", "e1")
    board.thread("c").deassign("e1")
    board.thread("d").assign("e3")


def has_spin() -> bool:
    """What spin needs is there."""
    return shutil.which("spin") is not None and shutil.which("cc") is not None


def explore_large(jobs: int) -> tuple[Result, float]:
    """The large scene, and the seconds that it took."""
    family = scenes.Family("large", __file__, {"large": large})
    _, scenario = scenes.set_up(family, "large", LARGE)
    began = time.perf_counter()
    result = explore(scenario, LIMIT, jobs=jobs)
    return result, time.perf_counter() - began


def measure() -> dict[str, float]:
    """Figures by name. Those of two cores are missing where there is one."""
    family = scenes.load("irqfd-life")
    states = 0
    began = time.perf_counter()
    for scene in [name for name in family.scenes if not name.startswith("for-ever")]:
        states += scenes.run(family, scene, scenes.Setup()).result.states
    figures = {"explore": states / (time.perf_counter() - began)}
    alone = _in_a_process("1")
    figures["explore-large"] = alone[0]
    figures["explore-memory"] = alone[1]
    if len(os.sched_getaffinity(0)) > 1:
        figures["explore-two"] = _in_a_process("2")[0]
        figures["explore-speed-up"] = figures["explore-two"] / alone[0]
    family = scenes.Family("at-once", __file__, {"at-once": at_once})
    outcome = scenes.run(family, "at-once", scenes.Setup("eoifd-follows-irqfd", None, 1))
    figures["at-once"] = outcome.result.states
    figures["at-once-rate"] = outcome.result.states / outcome.seconds
    figures["bug"] = _bug()
    figures["bug-lines"] = len(inspect.getsource(_scene()).splitlines()) - 1
    return figures | (_spin() if has_spin() else {})


def _scene() -> Callable[[Board], None]:
    return scenes.load("thread").scenes["counter-example"]


def _bug() -> float:
    """Milliseconds from the command to the finding."""
    command = [sys.executable, "-m", "vmm.cli.vintx", "explore", "thread", "--json", "--scene", "counter-example"]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--policy", "eoifd-v5", "--sources", "1"], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - began
    assert json.loads(done.stdout)[0]["rule"].startswith("S20")
    return seconds * 1000


def _spin() -> dict[str, float]:
    """The same in Promela."""
    source = Path(__file__).parents[1] / "explore" / "spin" / "thread.pml"
    lines = re.sub(r"/\*.*?\*/", "", source.read_text(), flags=re.DOTALL).splitlines()
    with tempfile.TemporaryDirectory() as made:
        said, _, seconds = _pan(source, Path(made), ["-DFOLLOWS", "-DAT_ONCE"], [])
        states = _stored(said)
        found, total, _ = _pan(source, Path(made), [], ["-DBFS"])
    assert "errors: 0" in said
    assert "assertion violated" in found
    return {
        "at-once-spin": states,
        "at-once-rate-spin": states / seconds,
        "bug-spin": total * 1000,
        "bug-lines-spin": sum(bool(line.strip()) for line in lines),
    }


def _pan(source: Path, directory: Path, model: list[str], options: list[str]) -> tuple[str, float, float]:
    """Make and run a verifier: what it said, the seconds of all that and of the run."""
    began = time.perf_counter()
    subprocess.run(["spin", "-a", *model, str(source)], cwd=directory, check=True, capture_output=True)
    compiler = ["cc", "-O2", "-w", "-DSAFETY", "-DNOREDUCE", *options, "-o", "pan", "pan.c"]
    subprocess.run(compiler, cwd=directory, check=True, capture_output=True)
    ran = time.perf_counter()
    done = subprocess.run([str(directory / "pan"), "-w18"], cwd=directory, check=False, capture_output=True, text=True)
    ended = time.perf_counter()
    return done.stdout, ended - began, ended - ran


def _stored(said: str) -> int:
    match = re.search(r"(\d+) states, stored", said)
    assert match is not None
    return int(match[1])


def _in_a_process(jobs: str) -> list[float]:
    """The large scene in a process of its own: states a second, and by how many bytes a state the process grows."""
    done = subprocess.run([sys.executable, "-m", MODULE, jobs], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def _print_large(jobs: int) -> None:
    scenes.run(scenes.load("thread"), "counter-example", scenes.Setup())  # what is imported and made for the first one
    before = _peak()
    result, seconds = explore_large(jobs)
    print(result.states / seconds, (_peak() - before) * 1024 / result.states)


def _peak() -> int:
    """KiB that this program had at most. (getrusage would count what forked it.)"""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    if sys.argv[1:]:
        _print_large(int(sys.argv[1]))
    else:
        print(json.dumps({name: round(value, 2) for name, value in measure().items()}, indent=2))
