"""Processes that end with who started them, however that ends. (prctl(2), PR_SET_PDEATHSIG)"""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


def end_with(parent: int) -> None:
    """Called in a child: the kernel kills it when the thread of process `parent` that made it ends.

    Between fork and exec, too: it allocates nothing. Does nothing where there is no prctl(2).
    """
    if _prctl is None:
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it is gone already
        os._exit(1)
