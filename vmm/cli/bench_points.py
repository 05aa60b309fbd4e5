"""What the explorer's points cost in the running machine: the irqchip's level loop as it is, and with them cut out.

    measure()     # {"points": 0.9}: per cent

A child process has each statement `if order.hook is not None: ...` of every module that it imports removed before it is
compiled; another one has them. They take turns, and each does the loop of `irqchip-loop`. The medians are compared.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import CodeType, ModuleType

ROWS: Final[tuple[tuple[str, str, str, float | None], ...]] = (
    ("points", "explorer's points, share of the level loop", "%", 2.0),
)
MODULE: Final = "vmm.cli.bench_points"
PACKAGES: Final = ("vmm", "devices", "machine")
WATCHED: Final = "order.hook is not None"
TURNS: Final = 5


class _Cut(ast.NodeTransformer):
    """Removes the points. `count`: how many there were."""

    def __init__(self) -> None:
        self.count = 0

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if ast.unparse(node.test) != WATCHED:
            return node
        self.count += 1
        return node.orelse or ast.copy_location(ast.Pass(), node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        return node.orelse if ast.unparse(node.test) == WATCHED else node


def cut(source: str | bytes) -> tuple[ast.Module, int]:
    """A module without points, and how many it had."""
    cutter = _Cut()
    return ast.fix_missing_locations(cutter.visit(ast.parse(source))), cutter.count


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data, path, *, _optimize: int = -1) -> CodeType:  # type: ignore[no-untyped-def,override]
        return compile(cut(data)[0], path, "exec", dont_inherit=True)

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)  # never from a file of byte code, and none is written
        return self.source_to_code(self.get_data(path), path)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(fullname, spec.loader.path)
        return spec


def measure() -> dict[str, float]:
    """The figure by its name."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    # Where strings hash to is good for 2 % from process to process.
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    for _ in range(TURNS):
        for how, found in rates.items():
            command = [sys.executable, "-m", MODULE, how]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            found.append(float(done.stdout))
    return {"points": (statistics.median(rates["without"]) / statistics.median(rates["with"]) - 1) * 100}


def _loop(how: str) -> float:
    """Loops a second, of this process."""
    if how == "without":
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Finder())
    bench_irqchip = importlib.import_module("vmm.cli.bench_irqchip")
    acts = bench_irqchip._acts(bench_irqchip.KvmReplay(1))
    rate: float = bench_irqchip._rate(acts["irqchip-loop"], 0.02, 20)
    return rate


if __name__ == "__main__":
    print(_loop(sys.argv[1]))
