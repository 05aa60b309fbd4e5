"""Mutation testing: does a test or the explorer notice each small change of the code?

    python tests/mutation/run.py [--sample N] [--jobs N] [FILE ...]

Each mutant runs in a process of its own with the tests that reach its line, fastest first, until one fails. A mutant
that no test notices has survived; `survivors.toml` has the known ones with their reasons. Exit status 1: one survived
that is not in there.
"""

from __future__ import annotations

import argparse
import bisect
import contextlib
import importlib.abc
import importlib.util
import itertools
import json
import os
import random
import selectors
import signal
import sys
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import construct  # noqa: F401 - what the tests need is loaded once, before the children are forked
import coverage
import greenlet  # noqa: F401
import hypothesis.strategies  # noqa: F401
import pytest
from mutants import Mutant, mutants

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FILES = ("vmm/kernel", "devices/ioapic.py", "devices/vfio.py", "vmm/lines.py")
NOT_HERE = "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "hostkvm"
"""The door to a real /dev/kvm, where there is none: nothing can judge it."""
TESTS = (
    "tests/kernel",
    "tests/vmm/test_lines.py",
    "tests/devices/test_ioapic.py",
    "tests/devices/test_ioapic_state.py",
    "tests/devices/test_vfio.py",
    "tests/devices/test_vfio_details.py",
    "tests/devices/test_vfio_pci.py",
    "tests/devices/test_reset_lines.py",
    "tests/explore",
    "tests/conformance",
    "tests/oracle",
    "tests/qmp/test_kernel_commands.py",
)
SURVIVORS = Path(__file__).with_name("survivors.toml")
OPTIONS = ("-q", "-x", "--no-header", "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist")
"""Plain assertions: pytest's rewriting would load our modules before `Mutated` is asked."""
NUMBERS = ("tests/kernel/test_numbers.py::", "tests/devices/test_vfio_details.py::test_numbers")
"""They look at constants, which belong to no test: they come to be when a module is loaded."""
FIRST = 25
"""So many of the fastest tests are tried first: most mutants do not live longer, and collecting is what takes time."""
BUDGET = 20
"""Seconds of tests for one mutant, as long as they take unchanged. What is slower than all those is left out."""
PATIENCE = 60
"""Seconds of CPU after which a mutant counts as noticed: an endless loop. What it has to do takes a third of that."""
SLACK = 10
"""So many times as long as unchanged, and PATIENCE more, it may take by the clock: who waits for ever uses no CPU."""


class Watch:
    """A pytest plugin: which lines each test reaches, and how long it takes."""

    def __init__(self, cover: coverage.Coverage) -> None:
        self.cover = cover
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.cover.switch_context(item.nodeid)
        begun = time.perf_counter()
        result = yield
        self.seconds[item.nodeid] = time.perf_counter() - begun
        return result


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a changed tree; all others as they are."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self.name, self.path, self.tree = name, path, tree

    def find_spec(self, name: str, *_: object) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def exec_module(self, module: Any) -> None:
        exec(compile(self.tree, self.path, "exec"), module.__dict__)


def sources(names: list[str]) -> list[Path]:
    """Files to mutate."""
    found: list[Path] = []
    for name in names or FILES:
        path = ROOT / name
        found += sorted(path.glob("*.py")) if path.is_dir() else [path]
    return [path for path in found if path.name != "__init__.py" and not (NOT_HERE and path.name.startswith(NOT_HERE))]


def reach(files: list[Path], out: Path) -> None:
    """Run the tests once and write down file -> line -> tests, in a child, for it loads what is to be mutated."""
    pid = os.fork()
    if not pid:
        cover = coverage.Coverage(
            data_file=None, include=[str(path) for path in files], concurrency=["greenlet", "thread"], config_file=False
        )
        watch = Watch(cover)
        cover.start()
        status = pytest.main([*OPTIONS, *TESTS], plugins=[watch])
        cover.stop()
        data = cover.get_data()
        by_line = {str(path): data.contexts_by_lineno(str(path)) for path in files}
        lines = {path: {n: [t for t in at if t] for n, at in found.items()} for path, found in by_line.items()}
        out.write_text(json.dumps({"lines": lines, "seconds": watch.seconds}))
        os._exit(int(status))
    if os.waitpid(pid, 0)[1]:
        sys.exit("the tests do not pass unchanged: nothing can be said of mutants")


def judge(mutant: Mutant, names: list[str], seconds: float) -> bool:
    """True: some test noticed; unchanged, they take so many seconds. Runs in a child with nothing of ours loaded."""
    pid = os.fork()
    if not pid:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        signal.setitimer(signal.ITIMER_PROF, PATIENCE)  # SIGPROF ends it
        signal.alarm(PATIENCE + int(SLACK * seconds))
        module = ".".join(mutant.path.relative_to(ROOT).with_suffix("").parts)
        sys.meta_path.insert(0, Mutated(module, mutant.path, mutant.mutate()))
        status = 1
        with contextlib.suppress(BaseException):
            status = int(pytest.main([*OPTIONS, *names]))
        os._exit(status != 0)
    return os.waitpid(pid, 0)[1] != 0


def work(mine: list[tuple[Mutant, list[str]]], seconds: dict[str, float], out: int) -> None:
    """One worker: a line of JSON for each of its mutants."""
    for mutant, names in mine:
        shares = [share for share in (names[:FIRST], names[FIRST:]) if share]
        noticed = any(judge(mutant, share, sum(seconds.get(name, 1.0) for name in share)) for share in shares)
        text = json.dumps({"name": mutant.name, "line": mutant.line, "noticed": noticed, "tests": len(names)})
        os.write(out, text.encode() + b"\n")


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Mutation testing of the interrupt path.")
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"what to mutate (default: {' '.join(FILES)})")
    parser.add_argument("--sample", type=int, metavar="N", help="only N mutants, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--again", action="store_true", help="the code is as it was: which tests reach what is known")
    args = parser.parse_args()
    os.chdir(ROOT)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    if not NOT_HERE:
        os.environ["VINTX_KVM"] = "required"  # or the tests of a mutant that breaks the probe would skip
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    files = sources(args.files)
    log = ROOT / "build" / "mutation"
    log.mkdir(parents=True, exist_ok=True)
    if not args.again:
        reach(files, log / "reach.json")
    known = json.loads((log / "reach.json").read_text())
    found = [mutant for path in files for mutant in mutants(path, ROOT)]
    found = random.Random(args.seed).sample(found, min(args.sample or len(found), len(found)))
    jobs = [(mutant, _tests_of(mutant, known)) for mutant in found]
    reasons: dict[str, str] = tomllib.loads(SURVIVORS.read_text()) if SURVIVORS.exists() else {}
    results = _run(jobs, known["seconds"], args.jobs, log / "results.jsonl")
    survivors = sorted((one["name"], one["tests"]) for one in results if not one["noticed"])
    for name, reached in survivors:
        print(f"survived ({reached} tests reach it): {name}\n    {reasons.get(name, 'NOT EXPLAINED')}")
    killed = Counter(one["name"].split(":")[0] for one in results if one["noticed"])
    total = Counter(one["name"].split(":")[0] for one in results)
    for path, count in sorted(total.items()):
        print(f"{path}: {killed[path]} of {count} noticed ({killed[path] / count:.1%})")
    print(f"in all: {killed.total()} of {total.total()} noticed ({killed.total() / max(total.total(), 1):.1%})")
    return int(any(name not in reasons for name, _ in survivors))


def _tests_of(mutant: Mutant, known: dict[str, Any]) -> list[str]:
    lines = known["lines"][str(mutant.path)]
    names = lines.get(str(mutant.line), [])
    if not names:  # reached when the module was loaded: any of its tests may notice
        names = list({name for line in lines.values() for name in line})
        names += [name for name in known["seconds"] if name.startswith(NUMBERS)]
    names = sorted(names, key=lambda name: known["seconds"].get(name, 0.0))
    spent = list(itertools.accumulate(known["seconds"].get(name, 0.0) for name in names))
    return names[: max(FIRST, bisect.bisect(spent, BUDGET))]


def _run(
    jobs: list[tuple[Mutant, list[str]]], seconds: dict[str, float], workers: int, log: Path
) -> list[dict[str, Any]]:
    readers: list[int] = []
    children: list[int] = []
    for nth in range(workers):
        out, into = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(out)
            work(jobs[nth::workers], seconds, into)
            os._exit(0)
        os.close(into)
        readers.append(out)
        children.append(pid)
    results: list[dict[str, Any]] = []
    with log.open("w") as file:
        watch = selectors.DefaultSelector()
        rest = dict.fromkeys(readers, b"")
        for out in readers:
            watch.register(out, selectors.EVENT_READ)
        while rest:
            for key, _ in watch.select():
                data = os.read(key.fd, 65536)
                if not data:
                    watch.unregister(key.fd)
                    del rest[key.fd]
                    continue
                *whole, rest[key.fd] = (rest[key.fd] + data).split(b"\n")
                for line in whole:
                    results.append(json.loads(line))
                    file.write(line.decode() + "\n")
                file.flush()
                print(f"\r{len(results)} of {len(jobs)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    for pid in children:
        os.waitpid(pid, 0)
    return results


if __name__ == "__main__":
    sys.exit(main())
