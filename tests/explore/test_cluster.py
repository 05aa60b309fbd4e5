"""The search on a Dask cluster of this machine: the counts and ways of one process, whoever dies."""

from __future__ import annotations

import os
import signal
import threading
from array import array
from types import SimpleNamespace

import pytest

from vmm.errors import EngineError, UsageError
from vmm.explore import cluster, scenes, search
from vmm.explore.checkpoint import Checkpoint, digest
from vmm.explore.cluster import Recipe, Source, Task, of_scene
from vmm.explore.scenes import Setup
from vmm.explore.search import explore

distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed (the extra `cluster`)")

HOLDS = ("irqfd-life", "two-removers", Setup())
GOALS = ("mask-eoi", "for-ever", Setup())
FAILS = ("thread", "close", Setup("deassign-fails", None, 1))


@pytest.fixture(scope="module")
def client():
    quiet = {"distributed.admin.system-monitor.interval": "10s", "distributed.worker.daemon": True}
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50, config=quiet
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.fixture(autouse=True)
def _shared_early(monkeypatch):
    monkeypatch.setattr(search, "WIDE", 8)


def alone(scene):
    family = scenes.load(scene[0])
    return scenes.run(family, *scene[1:]).result


@pytest.mark.parametrize("workers", [1, 2])
def test_counts_do_not_depend_on_the_number_of_workers(client, workers):
    chosen = sorted(client.scheduler_info()["workers"])[:workers]
    original = client.submit
    client.submit = lambda *args, **more: original(*args, **more | {"workers": chosen, "allow_other_workers": False})
    try:
        assert cluster.explore(client, Recipe(of_scene, HOLDS), shard=30) == alone(HOLDS)
    finally:
        del client.submit


def test_goals_are_asked_of_what_all_workers_saw(client):
    recipe = Recipe(of_scene, GOALS)
    assert recipe.scenario().live
    assert cluster.explore(client, recipe, shard=100) == alone(GOALS)


def test_way_to_a_violation_is_the_shortest(client):
    found, expected = cluster.explore(client, Recipe(of_scene, FAILS), shard=30), alone(FAILS)
    assert expected.finding is not None
    assert found[:4] == expected[:4]
    assert found.finding[:3] == expected.finding[:3]


def test_worker_that_does_not_have_the_states_makes_them_again(client, monkeypatch):
    monkeypatch.setattr(cluster.Source, "__getnewargs__", lambda self: (self.start + 1, self.which))
    submitted = []
    original = cluster._Levels._submit
    monkeypatch.setattr(cluster._Levels, "_submit", lambda self, *how: submitted.append(how[2]) or original(self, *how))
    assert cluster.explore(client, Recipe(of_scene, HOLDS), shard=100) == alone(HOLDS)
    assert submitted.count(True) > 20


def test_task_that_is_done_twice_comes_to_the_same():
    station = cluster._Station(Recipe(of_scene, HOLDS))
    try:
        first = Task("s", 0, 0, 1, (), (array("I"), bytearray()))
        report = station.do(first)
        assert report is not None
        assert len(report.marks) > 1
        assert station.do(first) == report
        source = Source(0, b"\1" * len(report.marks))
        second = Task("s", 1, 1, len(report.marks), (source,))
        assert station.do(second) == station.do(second) != cluster.MISSING
        short = second._replace(sources=(source._replace(which=source.which[1:]),))
        assert station.do(short) is cluster.MISSING
    finally:
        station.close()


def test_interrupted_search_goes_on_elsewhere(client, tmp_path):
    recipe, plain = Recipe(of_scene, HOLDS), alone(HOLDS)
    partly = cluster.explore(client, recipe, limit=200, checkpoint=Checkpoint(tmp_path, "x"), shard=30)
    assert (partly.states, partly.complete) == (200, False)
    assert explore(recipe.scenario(), checkpoint=Checkpoint(tmp_path, "x")) == plain


def test_death_of_a_worker_loses_nothing(client):
    victims = list(client.run(os.getpid).values())
    killed = []

    def kill(progress) -> None:
        if progress.states > 150 and not killed:
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    assert cluster.explore(client, Recipe(of_scene, HOLDS), tell=kill, shard=30) == alone(HOLDS)
    assert killed


def test_address_where_nobody_is_is_refused(monkeypatch):
    def refuse(address: str, timeout: float):
        raise OSError(f"Timed out trying to connect to {address} after {timeout} s")

    monkeypatch.setattr(distributed, "Client", refuse)
    with pytest.raises(UsageError, match="no Dask scheduler at tcp://127"):
        cluster.connect("tcp://127.0.0.1:1")


def test_who_answers_and_is_no_scheduler_is_not_waited_for(monkeypatch):
    mute = threading.Event()
    monkeypatch.setattr(distributed, "Client", lambda *_args, **_more: mute.wait())
    with pytest.raises(UsageError, match=r"no Dask scheduler at tcp://127.*has not said what it is in 0\.2 s"):
        cluster.connect("tcp://127.0.0.1:80", patience=0.1)
    mute.set()


def test_cluster_without_workers_is_refused(monkeypatch):
    closed = []

    def nobody(count: int, timeout: float) -> None:
        raise TimeoutError(f"Only 0/{count} workers arrived after {timeout}")

    fake = SimpleNamespace(wait_for_workers=nobody, close=lambda: closed.append(True))
    monkeypatch.setattr(distributed, "Client", lambda *_args, **_more: fake)
    with pytest.raises(UsageError, match="the cluster at tcp://a:1 has no workers; start some: dask worker tcp://a:1"):
        cluster.connect("tcp://a:1")
    assert closed


@pytest.mark.parametrize(
    ("status", "words"), [("running", "has had no worker for 0 s"), ("closed", "the cluster's scheduler is gone")]
)
def test_search_that_nobody_works_at_is_given_up(status, words, monkeypatch):
    monkeypatch.setattr(cluster, "ALONE_S", 0)
    levels = cluster._Levels(SimpleNamespace(status=status, nthreads=dict), Recipe(of_scene, HOLDS), 30)
    condition = threading.Condition()
    monkeypatch.setattr(condition, "wait", lambda _seconds: None)
    with pytest.raises(EngineError, match=f"{words}.*with --checkpoint the same command goes on"):
        levels._next(SimpleNamespace(has_ready=lambda: False, thread_condition=condition))


def test_worker_with_other_files_is_told(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def explore_it(board):\n    board.thread('u').signal('e')\n")
    same = digest(path)
    assert of_scene(str(path), "it", Setup(), digest=same).actors
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UsageError, match=r"mine\.py, or vintx itself, is not the same here"):
        of_scene(str(path), "it", Setup(), digest=same)
    assert of_scene("irqfd-life", "close", Setup(), digest=digest()).actors
