"""A timer that ends a run at its deadline, without the GIL.

A timerfd, and a thread of machine code that reads it: each expiry sets the flags that make the CPU leave at the next
translation block. Nothing is lost when it fires just before the run starts, because the run loop looks first. The
thread blocks all signals: Python wants them on its main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal

from vmm.cpu.unicorn import thunk
from vmm.errors import EngineRefused

_CLOCK_MONOTONIC = 1
_TFD_CLOEXEC = os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1
_NS = 1_000_000_000

_libc = ctypes.PyDLL(None, use_errno=True)
_settime = _libc.timerfd_settime
_settime.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_join = ctypes.CDLL(None).pthread_join
_join.argtypes = (ctypes.c_ulong, ctypes.c_void_p)
_create = _libc.pthread_create
_create.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class Alarm:
    """The timer of one engine. `control`: address of its control block."""

    def __init__(self, control: int) -> None:
        self._page = thunk.Page()
        self._fd: int = _libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_CLOEXEC)
        if self._fd < 0:
            raise EngineRefused(
                "unicorn", f"no timer for deadlines ({os.strerror(ctypes.get_errno())})", "See ulimit -n"
            )
        self._page.quads[thunk.A_CONTROL >> 3] = control
        self._page.quads[thunk.A_READ >> 3] = ctypes.cast(_libc.read, ctypes.c_void_p).value or 0
        self._page.words[thunk.A_FD >> 2] = self._fd
        thread = ctypes.c_ulong()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            status = _create(ctypes.byref(thread), None, self._page.entry("alarm"), self._page.address)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if status:
            os.close(self._fd)
            raise EngineRefused("unicorn", f"no thread for deadlines ({os.strerror(status)})", "See ulimit -u")
        self._thread: int | None = thread.value
        self._spec = (ctypes.c_int64 * 4)()
        self._spec_address = ctypes.addressof(self._spec)

    def set(self, deadline_ns: int) -> None:
        """Go off at this time of CLOCK_MONOTONIC, at once if it is over. Replaces what was set before."""
        self._spec[2], self._spec[3] = divmod(deadline_ns, _NS)
        _settime(self._fd, _TFD_TIMER_ABSTIME, self._spec_address, None)

    def close(self) -> None:
        """End the thread. After this nothing touches the engine any more."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._page.words[thunk.A_QUIT >> 2] = 1
        self.set(1)
        _join(thread, None)
        os.close(self._fd)
