"""The explorer's figures: each is there, and what is compared is comparable."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vmm.cli import bench_explore, bench_points
from vmm.cli.bench_figures import Figure
from vmm.explore import scenes
from vmm.explore.search import explore
from vmm.kernel import irqfd


def test_module_without_points_is_the_same_but_for_them():
    source = Path(irqfd.__file__).read_text()
    tree, count = bench_points.cut(source)
    text = ast.unparse(tree)
    assert count == source.count("if order.hook is not None:") > 5
    assert "order.hook is not None" not in text
    defined = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    whole = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert defined == whole


def test_branch_that_is_taken_where_nobody_explores_stays():
    tree, count = bench_points.cut("if order.hook is not None:\n    a()\nelse:\n    b()\n")
    assert (ast.unparse(tree), count) == ("b()", 1)


def test_process_without_points_imports_none():
    code = """
import vmm.cli.bench_irqchip
from vmm.cli import bench_points
bench_points._loop("without")
from vmm.kernel.irqfd import Irqfds
print([name for name, f in vars(Irqfds).items() if "hook" in getattr(getattr(f, "__code__", None), "co_names", ())])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_large_scene_is_the_size_that_is_said():
    board, scenario = scenes.set_up(
        scenes.Family("large", "", {"large": bench_explore.large}), "large", bench_explore.LARGE
    )
    result = explore(scenario, 30_000)
    assert board.vm.era.name
    assert (result.states, result.complete, result.finding) == (30_000, False, None)


@pytest.mark.skipif(not bench_explore.has_spin(), reason=bench_explore.NO_SPIN)
def test_spin_finds_the_counter_example_and_nothing_where_the_eoifd_follows():
    figures = bench_explore._spin()
    assert figures["at-once-spin"] > 1_000
    assert figures["bug-lines-spin"] > 100


def test_speed_up_is_better_big():
    figure = Figure("explore-speed-up", "", "x")
    assert figure.cost(1.9) < figure.cost(1.2)
    assert {row[0] for row in bench_explore.ROWS} >= {"explore-large", "explore-two", "explore-memory"}
