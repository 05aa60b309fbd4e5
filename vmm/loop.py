"""The one event loop: vCPU slices, timers, deferred work, and asyncio for sockets and files.

Everything of a machine happens on the thread that runs this loop. A vCPU runs for at most a slice; between slices
the loop fires timers, drains the work queues of the kernel side, carries out requests (reset, shutdown), and lets
asyncio serve monitors and character devices. With nothing to run it sleeps until the next deadline or until `wake`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import time
from collections import deque
from typing import TYPE_CHECKING

from vmm.cpu.engine import ExitReason
from vmm.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.clock import Clock
    from vmm.cpu.engine import Engine
    from vmm.order import Executor

SLICE_NS = 2_000_000
"""How long a vCPU runs before the others and the sockets get their turn."""
SHARED_SLICE_NS = 250_000
"""The same while others are runnable: one that waits in a loop without PAUSE holds them up no longer."""
POLL_NS = 1_000_000
"""How long guests may keep halting and waking before asyncio gets a turn."""


class HostTimer:
    """A timerfd: asyncio's own timeouts are whole milliseconds, a local APIC's are not."""

    _libc = ctypes.CDLL(None, use_errno=True)
    _CLOCK_MONOTONIC = 1
    _TFD_NONBLOCK_CLOEXEC = os.O_NONBLOCK | os.O_CLOEXEC
    _TFD_TIMER_ABSTIME = 1

    class _Spec(ctypes.Structure):
        _fields_ = [(n, ctypes.c_long) for n in ("interval_s", "interval_ns", "value_s", "value_ns")]

    def __init__(self) -> None:
        self.fd: int = self._libc.timerfd_create(self._CLOCK_MONOTONIC, self._TFD_NONBLOCK_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = self._Spec()

    def arm(self, monotonic_ns: int) -> None:
        """Become readable at that CLOCK_MONOTONIC time."""
        self._spec.value_s, self._spec.value_ns = divmod(max(monotonic_ns, 1), 1_000_000_000)
        self._libc.timerfd_settime(self.fd, self._TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)

    def consume(self) -> None:
        """Read the expiry away."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd, 8)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)


class Loop:
    """Runs a machine until `finish`. `running` is False while the machine is stopped."""

    def __init__(self, clock: Clock, executor: Executor) -> None:
        self.clock = clock
        self.executor = executor
        self.engine: Engine | None = None
        self.running = False
        self.on_shutdown: Callable[[], None] = lambda: None
        """The guest triple-faulted."""
        self.before_poll: list[Callable[[], None]] = []
        """Called before asyncio gets its turn: character devices write out what they gathered."""
        self._requests: deque[Callable[[], None]] = deque()
        self._finished = False
        self._idle: asyncio.Future[None] | None = None
        self._next = 0
        self._slice_end = 0
        """Machine time at which the slice that runs ends; 0 between slices."""
        clock.on_earlier = self._earlier

    # What others call.

    def request(self, action: Callable[[], None]) -> None:
        """Carry `action` out between slices, soon. Safe from exit handlers."""
        self._requests.append(action)
        self.kick()

    def kick(self) -> None:
        """Leave the vCPU, or the sleep, soon."""
        if self.engine is not None:
            self.engine.kick()
        self.wake()

    def preempt(self, index: int) -> None:
        """A vCPU woke up: end the slice of another that runs, or the sleep."""
        engine = self.engine
        if self._slice_end and engine is not None:
            if engine.current != index:
                engine.kick()
        else:
            self.wake()

    def wake(self) -> None:
        """End the sleep: something became runnable, due or pending."""
        idle = self._idle
        if idle is not None and not idle.done():
            idle.set_result(None)

    def finish(self) -> None:
        """Make `run` return."""
        self._finished = True
        self.kick()

    def _earlier(self, deadline: int) -> None:
        if deadline < self._slice_end:
            # Armed by an exit handler: the engine runs with the old deadline.
            self.kick()
        else:
            self.wake()

    # Running.

    async def run(self) -> None:
        """Run until `finish`."""
        timer = HostTimer()
        aio = asyncio.get_running_loop()

        def expired() -> None:
            timer.consume()
            self.wake()

        aio.add_reader(timer.fd, expired)
        try:
            polled = 0
            while not self._finished:
                if not self.turn():
                    break
                index = self._pick() if self.running else None
                if index is None:
                    await self._sleep(timer)
                    polled = time.monotonic_ns()
                    continue
                self._slice(index)
                if time.monotonic_ns() - polled > POLL_NS:
                    for flush in self.before_poll:
                        flush()
                    await asyncio.sleep(0)
                    polled = time.monotonic_ns()
            for flush in self.before_poll:
                flush()
        finally:
            aio.remove_reader(timer.fd)
            timer.close()

    def turn(self) -> bool:
        """Everything that is due and needs no CPU: timers, deferred work, requests. False once finished."""
        if self.running:
            self.clock.run_due()
        if self.executor.pending:
            self.executor.drain()
        while self._requests and not self._finished:
            self._requests.popleft()()
            if self.executor.pending:
                self.executor.drain()
        return not self._finished

    def _pick(self) -> int | None:
        engine = self.engine
        if engine is None:
            return None
        count = len(engine.vcpus)
        if count == 1:
            return 0 if engine.vcpus[0].runnable else None
        first = None
        runnable = 0
        for i in range(count):
            index = (self._next + i) % count
            if engine.vcpus[index].runnable:
                runnable += 1
                if first is None:
                    first = index
        engine.yield_on_pause = runnable > 1
        return first

    def _slice(self, index: int) -> None:
        engine = self.engine
        assert engine is not None
        self._next = (index + 1) % len(engine.vcpus)
        now = self.clock.now()
        due = self.clock.next_deadline()
        longest = SHARED_SLICE_NS if engine.yield_on_pause else SLICE_NS
        end = now + longest if due is None else min(due, now + longest)
        if end <= now:
            return
        self._slice_end = end
        reason = engine.run(index, time.monotonic_ns() + end - now)
        self._slice_end = 0
        if reason is ExitReason.SHUTDOWN:
            self.on_shutdown()
        elif reason is ExitReason.ERROR:
            raise EngineError(f"vCPU {index}: {engine.error}")

    async def _sleep(self, timer: HostTimer) -> None:
        for flush in self.before_poll:
            flush()
        if self.executor.pending or self._requests:
            return
        if self.running:
            due = self.clock.next_deadline()
            if due is not None:
                left = due - self.clock.now()
                if left <= 0:
                    await asyncio.sleep(0)
                    return
                if self.clock.moves:
                    timer.arm(time.monotonic_ns() + left)
        self._idle = asyncio.get_running_loop().create_future()
        try:
            await self._idle
        finally:
            self._idle = None
