"""Actors: ordinary synchronous code, suspended at points, continued from any stored state.

Python cannot copy a suspended frame, so a suspended operation is a *record*: which operation it is, and the heap it saw
at each of its steps so far. To continue it, the operation is run again from its beginning in a pooled greenlet, each
step against its own old heap, until it stands where it stood; then the wanted heap is put in place and it goes on.
Only the operation in hand is run again, never the history before it.

What tells two suspended operations apart is their position: code, instruction and locals of every frame. The iterator
of a `for` loop and values on the interpreter's stack are not in there, so code with points keeps its sequence in a
local and walks it by index, and does not call what has points in the middle of an expression that uses the result of
another call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import greenlet  # type: ignore[import-untyped]

from vmm import order
from vmm.order import Lock, State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from vmm.explore.heap import Arena, Heap

    Guard = Callable[[], bool]


class Operation(NamedTuple):
    """Something that an actor does. `ready` (pure) says when it may begin, always if None."""

    name: str
    function: Callable[[], object]
    ready: Guard | None = None


class Actor(NamedTuple):
    """A thread of the model: operations in order, or one again and again (`repeats`: a worker, a timer).

    `fair`: if it can act all the time, it does. One that is not may stop for good between its operations, never in the
    middle of one. It matters for liveness only.
    """

    name: str
    operations: tuple[Operation, ...]
    repeats: bool = False
    fair: bool = True

    def at(self, done: int) -> Operation:
        """The operation that comes after `done` others."""
        return self.operations[0 if self.repeats else done]


class Suspended(NamedTuple):
    """A suspended operation. `log[i]` is the heap that step i began with, None for what step i - 1 left;
    `after` is what the last step left; `guard` holds it back until it is true.
    """

    log: tuple[Heap | None, ...]
    after: Heap
    step: str
    guard: Guard | None
    position: tuple[Any, ...]


class Standing(NamedTuple):
    """Where an actor is: `done` operations lie behind it, one may be suspended."""

    done: int
    suspended: Suspended | None


class Abort(BaseException):
    """Thrown into an operation that is not wanted any more."""


class NotDeterministic(Exception):
    """An operation that was run again did something else than before, or would. `operation`: which, if known."""

    operation: Operation | None = None


class Stage:
    """Runs operations of actors over an arena. One at a time; not re-entrant."""

    def __init__(self, arena: Arena, actors: tuple[Actor, ...]) -> None:
        self.arena = arena
        self.actors = actors
        self.steps = 0
        """Steps run, those included that were run again."""
        self._idle: list[greenlet.greenlet] = []
        self._main = greenlet.getcurrent()
        self._made = 0
        self._number = (0, 0)
        self._stop: tuple[str, Guard | None] = ("", None)
        self._locks = [thing for thing in arena.objects if isinstance(thing, Lock)]

    # What may happen.

    def beginning(self) -> tuple[Standing, ...]:
        """Nobody has done anything."""
        return tuple(Standing(0, None) for _ in self.actors)

    def enabled(self, heap: Heap, standings: tuple[Standing, ...]) -> list[int]:
        """The actors that may take a step from this state; the heap is put in place to ask them."""
        self.arena.put(heap)
        found = []
        for n, (actor, standing) in enumerate(zip(self.actors, standings, strict=True)):
            if standing.suspended is not None:
                guard = standing.suspended.guard
            elif actor.repeats or standing.done < len(actor.operations):
                guard = self._operation(n, standing.done).ready
            else:
                continue
            order.actor = n + 1
            if guard is None or guard():
                found.append(n)
        order.actor = 0
        return found

    def _operation(self, n: int, done: int) -> Operation:
        return self.actors[n].at(done)

    # One step.

    def step(self, heap: Heap, n: int, standing: Standing) -> tuple[Heap, Standing, str]:
        """Let actor `n` take one step from `heap`: the new heap, where the actor is then, and the step's name.

        Violation if the code finds its rules broken, or raises something.
        """
        suspended = standing.suspended
        operation = self._operation(n, standing.done)
        log: tuple[Heap | None, ...] = (heap,)
        if suspended is not None:
            log = (*suspended.log, None if heap is suspended.after else heap)
        runner = self._idle.pop() if self._idle else greenlet.greenlet(self._run)
        self._made = 0
        order.actor = n + 1
        order.hook, order.wait, order.allocate = self._point, self._wait, self._allocate
        self._number = (n, standing.done)
        finished = False
        try:
            argument: tuple[object, ...] = (operation.function,)
            last = len(log) - 1
            for i, seen in enumerate(log):
                if finished:
                    raise NotDeterministic(f"{operation.name} ended early when it was run again")
                if i == last and suspended is not None:
                    self._check_again(operation, suspended)
                if seen is not None:
                    self.arena.put(seen)
                finished = runner.switch(*argument)
                argument = ()
            self.steps += len(log)
            after = self.arena.take()
            if finished:
                return after, Standing(standing.done + (not self.actors[n].repeats), None), operation.name
            step, guard = self._stop
            position = self._position(step, runner.gr_frame)
            return after, Standing(standing.done, Suspended(log, after, step, guard, position)), step
        finally:
            order.hook = order.wait = order.allocate = None
            order.actor = 0
            if not finished and not runner.dead:
                runner.throw(Abort)
            if not runner.dead:
                self._idle.append(runner)

    def _check_again(self, operation: Operation, suspended: Suspended) -> None:
        """It was run again: it must stand where it stood, and have left what it left."""
        if self._stop[0] != suspended.step:
            raise NotDeterministic(f"{operation.name} came to {self._stop[0]}, and to {suspended.step} before")
        if self.arena.take()[: len(suspended.after)] != suspended.after:
            raise NotDeterministic(f"{operation.name} left something else at {suspended.step} than before")

    def _run(self, function: Callable[[], object]) -> bool:
        """A pooled greenlet: run one operation after the other; True to the main one when an operation has ended."""
        self_switch = self._main.switch
        while True:
            try:
                self._enter(function)
            except Abort:
                function = self_switch(False)
            else:
                function = self_switch(True)

    def _enter(self, function: Callable[[], object]) -> None:
        """Code that breaks down breaks a rule too: whatever it raises is a Violation."""
        try:
            function()
        except (Violation, NotDeterministic):
            raise
        except Exception as error:
            raise Violation(f"raised {type(error).__name__}", error, self._stop[0] or "start") from error

    # What the explored code calls.

    def _point(self, name: str, _subject: object) -> None:
        self._stop = (name, None)
        self._main.switch(False)

    def _wait(self, name: str, subject: object, ready: Guard, sleeps: bool) -> None:
        if sleeps:
            self._check_may_sleep(name)
        self._stop = (name, ready)
        self._main.switch(False)
        if not ready():
            raise NotDeterministic(f"{name} of {subject!r} went on although it was held back")

    def _check_may_sleep(self, name: str) -> None:
        me = order.actor
        for lock in self._locks:
            if lock.spin and lock.owner == me:
                raise Violation("sleeps-in-atomic", lock, "taken", name)

    def _allocate(self, cls: type[State]) -> State:
        n, done = self._number
        if self.actors[n].repeats:
            raise NotDeterministic(
                f"{self.actors[n].name} makes a {cls.__name__}: a repeating actor has no name for it"
            )
        self._made += 1
        known = len(self.arena.objects)
        made = self.arena.named((n, done, self._made), cls)
        if isinstance(made, Lock) and len(self.arena.objects) > known:
            self._locks.append(made)
        return made

    def _position(self, name: str, frame: FrameType | None) -> tuple[Any, ...]:
        """Code, instruction and locals of every frame of the suspended operation, innermost first."""
        canonical = self.arena.canonical
        frames: list[Any] = [name]
        while frame is not None and frame.f_code in _OURS:
            frame = frame.f_back
        while frame is not None and frame.f_code is not _ENTER:
            frames.append(frame.f_code.co_qualname)
            frames.append(frame.f_lasti)
            frames.append(tuple([(local, canonical(value)) for local, value in frame.f_locals.items()]))
            frame = frame.f_back
        return tuple(frames)


_ENTER = Stage._enter.__code__
_OURS = {Stage._point.__code__, Stage._wait.__code__}
