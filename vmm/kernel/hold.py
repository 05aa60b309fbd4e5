"""Stopping an operation half-way in the running machine, at a point of `vmm/order.py`.

    holder = Holder(executor, lambda: "")
    holder.hold("eoifd.assign.looked-up")
    op = holder.run("E+", lambda: vm.eoifd(f, 2, e))        # op.state is HELD: it has found its irqfd, and stops there
    holder.run("I-", lambda: vm.irqfd(e, 10, 1))            # the irqfd goes meanwhile
    holder.release("eoifd.assign.looked-up")                # and the first goes on, to whatever it comes to

Only operations given to `run` stop, with the works that they wait for and those that they leave queued; each has a
stack of its own (greenlet). The machine goes on meanwhile. Its vCPUs and its own works have no second stack and never
stop at a point; what is queued while a worker is held runs at its usual time. So what is reached from a vCPU, under a
lock or inside an SRCU read section cannot be held, and `why_not` says so: the kernel's other threads would wait there,
and nobody here would. The explorer has no such limits.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

from vmm import order
from vmm.errors import ConfigError
from vmm.kernel import eoifd, files, gsi, irqfd
from vmm.order import OrderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.order import Executor

POINTS: Final = {**files.POINTS, **irqfd.POINTS, **eoifd.POINTS, **gsi.POINTS}
"""Name and what it mirrors, of the host kernel's side."""

_ATOMIC = "it is reached with a spin lock held, where nothing can sleep"
_READER = "it is inside an SRCU read section, for which the kernel's other threads would wait"
_LOCKED = "it is reached with a mutex held, for which the kernel's other threads would wait"
_VCPU = "it is reached from a vCPU's EOI or an inject work, which have no stack of their own here"
_NEVER = "no command leads to it"
_WHY_NOT: Final = {
    "irqfd.assign.listed": _READER,
    "irqfd.assign.attached": _READER,
    "irqfd.wakeup.drained": _ATOMIC,
    "irqfd.inject.between": _VCPU,
    "irqfd.release": _NEVER,
    "irqfd.shutdown.lower": _LOCKED,
    "resampler.ack.lowered": _VCPU,
    "resampler.notify.member": _VCPU,
    "eoifd.ack": _VCPU,
    "eventfd.signal": _VCPU,
    "gsi.set-routing": _LOCKED,
    "gsi.ack": _VCPU,
}


def why_not(point: str) -> str:
    """Why a point cannot be held in the running machine; empty if it can. ConfigError if there is no such point."""
    if point not in POINTS:
        raise ConfigError(f"there is no point '{point}'; there are {', '.join(sorted(POINTS))}")
    return _WHY_NOT.get(point, "")


class Progress(enum.Enum):
    """Where an operation is."""

    RUNNING = "running"
    HELD = "held"
    WAITING = "waiting"
    DONE = "done"


class Operation:
    """One operation. `point`: where it is held, or what it waits for. `error`: what it failed with."""

    def __init__(self, number: int, name: str, function: Callable[[], object]) -> None:
        self.number = number
        self.name = name
        self.state = Progress.RUNNING
        self.point = ""
        self.ready: Callable[[], bool] | None = None
        self.result: object = None
        self.error: OSError | OrderError | None = None
        self.passed: list[str] = []
        """Points that it should have been held at and could not."""
        self.function = function
        self.stack: greenlet | None = None
        self.actor = number
        """Who acts on its stack now: the operation, or a worker for it."""


class Holder:
    """Holds operations at points. `busy()`: which lock or read section is taken now, or empty."""

    def __init__(self, executor: Executor, busy: Callable[[], str]) -> None:
        self.executor = executor
        self.busy = busy
        self.armed: dict[str, None] = {}
        self.stopped: list[Operation] = []
        """Operations that are held or wait, in the order in which they stopped."""
        self._count = 0
        self._current: Operation | None = None

    def hold(self, point: str) -> None:
        """From now on each operation that reaches `point` stops there. ConfigError if that cannot be."""
        reason = why_not(point)
        if reason:
            raise ConfigError(f"point '{point}' cannot be held in the running machine: {reason}")
        self.armed[point] = None

    def release(self, point: str) -> list[Operation]:
        """Let go whoever is held at `point`, in order of arrival, and hold nobody there any more.

        Returns those, and others that could go on because of them. ConfigError if it is not held.
        """
        if point not in self.armed:
            raise ConfigError(f"point '{point}' is not held")
        del self.armed[point]
        moved = [op for op in self.stopped if op.state is Progress.HELD and op.point == point]
        for op in moved:
            self._resume(op)
        return moved + [op for op in self._wake() if op not in moved]

    def run(self, name: str, function: Callable[[], object]) -> Operation:
        """Do an operation, as far as it comes."""
        self._count += 1
        op = Operation(self._count, name, function)
        if not self.armed and not self.stopped:
            self._body(op)
            return op
        op.stack = greenlet(self._body)
        self._resume(op)
        self._wake()
        return op

    def _body(self, op: Operation) -> None:
        try:
            op.result = op.function()
            while self._work(op):
                pass
        except (OSError, OrderError) as error:
            op.error = error
        op.state = Progress.DONE

    def _resume(self, op: Operation) -> None:
        """Let an operation run until it is held, waits or is done."""
        if order.hook is not None:
            raise ConfigError("an operation cannot be held from inside another one, or under the explorer")
        if op in self.stopped:
            self.stopped.remove(op)
        assert op.stack is not None
        op.state = Progress.RUNNING
        op.point = ""
        self._current = op
        order.hook, order.wait = self._reached, self._wait
        order.actor = op.actor
        try:
            op.stack.parent = getcurrent()
            op.stack.switch(op) if not op.stack else op.stack.switch()
        finally:
            order.hook, order.wait = None, None
            order.actor = 0
            self._current = None
        if op.state is not Progress.DONE:
            self.stopped.append(op)

    def _wake(self) -> list[Operation]:
        """Let those go on that waited for what has come true."""
        woken: list[Operation] = []
        again = True
        while again:
            again = False
            for op in list(self.stopped):
                if op.state is Progress.WAITING and self._is_ready(op):
                    self._resume(op)
                    woken.append(op)
                    again = True
        return woken

    @staticmethod
    def _is_ready(op: Operation) -> bool:
        order.actor = op.actor
        try:
            return op.ready is None or op.ready()
        finally:
            order.actor = 0

    # On the operation's own stack.

    def _reached(self, point: str, _subject: object) -> None:
        op = self._current
        if op is None or point not in self.armed:
            return
        taken = self.busy()
        if taken:
            op.passed.append(f"{point}: {taken} was taken")
            return
        self._stop(op, Progress.HELD, point)

    def _wait(self, step: str, subject: object, ready: Callable[[], bool], _sleeps: bool) -> None:
        op = self._current
        assert op is not None
        while not ready():
            if not self._work(op):
                op.ready = ready
                self._stop(op, Progress.WAITING, f"{step} of {subject!r}")

    def _work(self, op: Operation) -> bool:
        """A worker of a queue that has one free takes a work; False if there is none to take."""
        executor = self.executor
        for work in executor.pending:
            if not work.running and sum(other.queue is work.queue for other in executor.running) < work.queue.workers:
                break
        else:
            return False
        executor.pending.remove(work)
        before = op.actor
        self._count += 1
        op.actor = self._count
        if order.hook is not None:
            order.actor = op.actor
        try:
            executor.run(work)
        finally:
            op.actor = before
            if order.hook is not None:
                order.actor = before
        return True

    def _stop(self, op: Operation, state: Progress, point: str) -> None:
        op.state, op.point = state, point
        parent = getcurrent().parent
        assert parent is not None
        parent.switch()
