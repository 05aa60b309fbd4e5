"""The options of `vintx explore` that say how to search, and its progress line."""

from __future__ import annotations

import io
import json
import sys

import pytest

from vmm.cli.explore_search import Line
from vmm.cli.vintx import main
from vmm.explore import search
from vmm.explore.search import Progress

SCENE = ["explore", "thread", "--scene", "close", "--sources", "1"]


def explored(capsys, *options: str) -> dict:
    status = main([*SCENE, "--json", *options])
    return {"status": status, **json.loads(capsys.readouterr().out)[0]}


def test_jobs_change_nothing_that_is_told(capsys, monkeypatch):
    monkeypatch.setattr(search, "WIDE", 8)
    told = [explored(capsys, "--policy", "deassign-fails", "--jobs", n) for n in ("1", "2")]
    for one in told:
        assert one["status"] == 1
        one["seconds"] = 0
    assert told[0] == told[1]


def test_strategies_agree_on_a_scene_that_holds(capsys):
    deep, wide = (explored(capsys, "--strategy", strategy) for strategy in ("dfs", "bfs"))
    assert (deep["status"], wide["status"]) == (0, 0)
    assert deep["states"] == wide["states"]
    assert explored(capsys, "--strategy", "pct", "--runs", "20", "--seed", "5")["status"] == 3


@pytest.mark.parametrize(
    "options",
    [("--jobs", "0"), ("--depth", "4"), ("--strategy", "dfs", "--depth", "0"), ("--runs", "0"), ("--checkpoint", "d")],
)
def test_options_that_make_no_sense_are_refused(capsys, options):
    strategy = () if "--depth" in options else ("--strategy", "random")
    assert main([*SCENE, *strategy, *options]) == 2
    assert "vintx explore: " in capsys.readouterr().err


def test_depth_first_does_not_say_that_goals_hold(capsys):
    scene = ["explore", "mask-eoi", "--scene", "for-ever", "--strategy"]
    assert (main([*scene, "bfs"]), main([*scene, "dfs"])) == (0, 3)
    assert "held, but for L" in capsys.readouterr().out


def test_checkpoint_is_of_one_scene_and_gone_on_with(capsys, tmp_path):
    where = "--checkpoint", str(tmp_path)
    plain = explored(capsys)
    assert explored(capsys, *where, "--max-states", "200")["status"] == 3
    assert explored(capsys, *where)["states"] == plain["states"]
    assert len(list(tmp_path.iterdir())) == 1
    assert explored(capsys, *where, "--policy", "assign-busy")["status"] == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpoint_is_not_of_a_scenario_that_was_changed(capsys, tmp_path):
    path, where = tmp_path / "mine.py", ["--checkpoint", str(tmp_path / "done"), "--json"]
    text = "def explore_it(board):\n    board.bind('e1', 'e2')\n    board.thread('u').signal('e1')\n"
    path.write_text(text)
    assert main(["explore", str(path), *where]) == 0
    path.write_text(f"{text}    board.at_rest(lambda: 'S0: the end')\n")
    capsys.readouterr()
    assert main(["explore", str(path), *where]) == 1
    assert json.loads(capsys.readouterr().out)[0]["rule"] == "S0: the end"


def test_cluster_without_dask_names_the_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main([*SCENE, "--cluster", "tcp://127.0.0.1:1"]) == 2
    assert "pip install 'vintx[cluster]'" in capsys.readouterr().err


def test_cluster_that_is_not_there_is_refused(capsys):
    pytest.importorskip("distributed", reason="dask.distributed is not installed (the extra `cluster`)")
    assert main([*SCENE, "--cluster", "nonsense://nowhere"]) == 2
    assert "no Dask scheduler at nonsense://nowhere" in capsys.readouterr().err


def test_progress_is_one_line_that_is_wiped(monkeypatch):
    now = iter([0.0, 0.05, 2.0, 2.01, 3.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    stream = io.StringIO()
    line = Line(stream)
    for states in (500, 40_000, 40_500, 60_000):
        line.tell(Progress(states, 12, 1_500))
    line.wipe()
    written = stream.getvalue().split("\r")
    told = "40,000 states, 20,000/s, depth 12, frontier 1,500", "60,000 states, 20,000/s, depth 12, frontier 1,500"
    assert written == ["", *told, " " * len(told[1]), ""]
    assert line.text == told[1]
