"""A timer that ends a run at its deadline, without the GIL.

POSIX timers with SIGEV_THREAD run a routine of machine code on a thread of the C library. It sets flags only; the
CPU leaves at the next translation block. Nothing is lost when it fires just before the run starts, because the run
loop looks at the flag first.
"""

from __future__ import annotations

import ctypes
import os
from typing import ClassVar

from vmm.cpu.unicorn.thunk import Page
from vmm.errors import EngineRefused

_SIGEV_THREAD = 2
_CLOCK_MONOTONIC = 1
_TIMER_ABSTIME = 1
_NS = 1_000_000_000


class _SigEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("attributes", ctypes.c_void_p),
        ("padding", ctypes.c_byte * 32),
    )


_libc = ctypes.PyDLL(None, use_errno=True)
_settime = _libc.timer_settime
_settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class Alarm:
    """The timer of one engine. `control`: address of its control block."""

    _spare: ClassVar[list[Page]] = []
    """Pages of closed engines. A thread of the timer may still be on its way into one, so they are never unmapped."""

    def __init__(self, control: int) -> None:
        self._page = Alarm._spare.pop() if Alarm._spare else Page(data_size=16)
        self._page.quads[0] = control
        event = _SigEvent(
            value=self._page.address, signo=0, notify=_SIGEV_THREAD, function=self._page.entry("alarm"), attributes=None
        )
        self._timer = ctypes.c_void_p()
        if _libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(self._timer)) != 0:
            error = os.strerror(ctypes.get_errno())
            raise EngineRefused("unicorn", f"no POSIX timer for deadlines ({error})", "See ulimit -i")
        self._spec = (ctypes.c_int64 * 4)()
        self._spec_address = ctypes.addressof(self._spec)

    def set(self, deadline_ns: int) -> None:
        """Go off at this time of CLOCK_MONOTONIC, at once if it is over. Replaces what was set before."""
        self._spec[2], self._spec[3] = divmod(deadline_ns, _NS)
        _settime(self._timer, _TIMER_ABSTIME, self._spec_address, None)

    def close(self) -> None:
        """Delete the timer. After this nothing touches the engine any more."""
        if self._timer.value is None:
            return
        _libc.timer_delete(self._timer)
        self._timer.value = None
        self._page.quads[0] = 0
        while self._page.words[2]:  # a thread is in the few instructions between its two counts
            os.sched_yield()
        Alarm._spare.append(self._page)
