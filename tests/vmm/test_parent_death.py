"""A child that ends with its parent, and one whose parent was gone before it could say so."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

PATIENCE_S = 60
POOL = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
import multiprocessing
from vmm.parent_death import end_with

def forever(n):
    os.write(1, b"%d\\n" % os.getpid())
    signal.pause()

with ProcessPoolExecutor(2, multiprocessing.get_context("fork"), end_with, (os.getpid(),)) as pool:
    list(pool.map(forever, range(2)))
"""
LATE = """
import os, sys
from vmm.parent_death import end_with
end_with(os.getppid() + 1)
sys.exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no pidfd_open(2) to watch a stranger's end with")
def test_workers_of_a_pool_end_with_who_made_them():
    owner = subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    workers = [os.pidfd_open(int(owner.stdout.readline())) for _ in range(2)]
    owner.send_signal(signal.SIGKILL)
    owner.wait(PATIENCE_S)
    owner.stdout.close()
    for worker in workers:
        assert select.select([worker], [], [], PATIENCE_S)[0], "a worker runs on"
        os.close(worker)


def test_child_whose_parent_is_gone_already_ends_at_once():
    assert subprocess.run([sys.executable, "-c", LATE], check=False, timeout=PATIENCE_S).returncode == 1
