"""A search that goes on where it was interrupted."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests.explore.test_search import lifetime, shared
from tests.support.explored import LoweringIrqfds
from vmm.errors import UsageError
from vmm.explore import search
from vmm.explore.checkpoint import Checkpoint
from vmm.explore.search import explore


@pytest.fixture(autouse=True)
def _shared_early(monkeypatch):
    monkeypatch.setattr(search, "WIDE", 8)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (2, 1), (1, 3)])
def test_interrupted_search_comes_to_the_same_end(tmp_path, before, after):
    plain = explore(lifetime())
    for limit in (300, 650, 651):
        partly = explore(lifetime(), limit, jobs=before, checkpoint=Checkpoint(tmp_path, "life"))
        assert (partly.states, partly.complete) == (limit, False)
    shards = len(list(tmp_path.iterdir()))
    assert shards > 10
    assert explore(lifetime(), jobs=after, checkpoint=Checkpoint(tmp_path, "life")) == plain
    assert len(list(tmp_path.iterdir())) > shards


def test_search_that_was_over_is_over_at_once(tmp_path):
    first = explore(lifetime(), checkpoint=Checkpoint(tmp_path, "life"))
    asked = []
    scenario = lifetime()._replace(always=lambda: asked.append(1))
    assert explore(scenario, checkpoint=Checkpoint(tmp_path, "life")) == first
    assert not asked


def test_way_to_a_violation_is_the_same_after_an_interruption(tmp_path):
    plain = explore(shared(LoweringIrqfds))
    explore(shared(LoweringIrqfds), plain.states // 2, jobs=2, checkpoint=Checkpoint(tmp_path, "shared"))
    for _ in range(2):
        assert explore(shared(LoweringIrqfds), checkpoint=Checkpoint(tmp_path, "shared")) == plain


def test_search_with_goals_begins_anew(tmp_path):
    scenario = lifetime()._replace(live=(("never", bool),))
    plain = explore(scenario)
    assert plain.finding is not None
    for _ in range(2):
        assert explore(scenario, checkpoint=Checkpoint(tmp_path, "life")) == plain
    assert not list(tmp_path.iterdir())


def test_directory_of_another_search_is_refused(tmp_path):
    explore(lifetime(), 300, checkpoint=Checkpoint(tmp_path, "life"))
    with pytest.raises(UsageError, match="is of another search"):
        explore(lifetime(close=True), checkpoint=Checkpoint(tmp_path, "life, closed"))


def test_scenario_that_is_not_what_it_was_is_refused(tmp_path):
    explore(lifetime(), 300, checkpoint=Checkpoint(tmp_path, "life"))
    with pytest.raises(UsageError, match="lead elsewhere"):
        explore(lifetime(close=True), checkpoint=Checkpoint(tmp_path, "life"))


def test_damaged_file_is_named(tmp_path):
    explore(lifetime(), 300, checkpoint=Checkpoint(tmp_path, "life"))
    damaged = tmp_path / "00002.shard"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with pytest.raises(UsageError, match=r"00002\.shard is no part of a search"):
        explore(lifetime(), checkpoint=Checkpoint(tmp_path, "life"))


HOLDER = """
import fcntl, sys
with open(sys.argv[1], "wb") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_directory_that_another_process_writes_is_refused(tmp_path):
    explore(lifetime(), 300, checkpoint=Checkpoint(tmp_path, "life"))
    argv = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="another search is at it"):
            explore(lifetime(), checkpoint=Checkpoint(tmp_path, "life"))
    assert explore(lifetime(), checkpoint=Checkpoint(tmp_path, "life")) == explore(lifetime())


def test_path_that_is_no_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--checkpoint .*file/scene: Not a directory"):
        explore(lifetime(), checkpoint=Checkpoint(tmp_path / "file" / "scene", "life"))


def test_full_disk_is_told_and_what_was_written_is_good(tmp_path, monkeypatch):
    plain, write = explore(lifetime()), Path.write_bytes

    def write_a_little(path: Path, data: bytes) -> int:
        if path.stem == "00005":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_a_little)
        with pytest.raises(UsageError, match=r"00005\.half: No space left on device"):
            explore(lifetime(), checkpoint=Checkpoint(tmp_path, "life"))
    assert explore(lifetime(), checkpoint=Checkpoint(tmp_path, "life")) == plain
