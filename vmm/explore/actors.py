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

import marshal
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import greenlet  # type: ignore[import-untyped]

from vmm import order
from vmm.explore.heap import NotKept, sum_of
from vmm.explore.liveness import AT_LOCK, OWED
from vmm.order import Lock, Mortal, State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from vmm.explore.heap import Arena, Heap

    Guard = Callable[[], bool]


class Operation(NamedTuple):
    """Something that an actor does. `ready` (pure) says when it may begin, always if None. `own`: it is a function of a
    scenario's own, so it is run twice when it is met first, and has to do the same.
    """

    name: str
    function: Callable[[], object]
    ready: Guard | None = None
    own: bool = False


class Actor(NamedTuple):
    """A thread of the model: operations in order; or, if it `repeats` (a worker, a timer), the same for ever.

    `fair`: if it can act all the time, it does. One that is not may stop for good between its operations, never in the
    middle of one. It matters for liveness only.
    """

    name: str
    operations: tuple[Operation, ...]
    repeats: bool = False
    fair: bool = True

    def at(self, done: int) -> Operation:
        """The operation that comes after `done` others."""
        return self.operations[done]

    def after(self, done: int) -> int:
        """How many lie behind it when it has ended that operation; none, after the last of those that are repeated."""
        return (done + 1) % len(self.operations) if self.repeats else done + 1


class Place:
    """Where an actor can stand: `done` operations lie behind it, and it is in the middle of none (`step` is empty) or
    suspended at `step`. What it does from here depends on nothing but the heap.

    `guard` holds it back until it is true. `made`: how many objects the operation has made. `aliases`: fields whose
    containers the suspended code has in its hands. `sum` is what it adds to a state's mark. `claim`: what a fair run
    owes it (see `vmm.explore.liveness`).
    """

    __slots__ = (
        "actor",
        "aliases",
        "ask",
        "claim",
        "done",
        "guard",
        "made",
        "name",
        "over",
        "position",
        "step",
        "sum",
        "tree",
    )

    def __init__(
        self,
        actor: int,
        done: int,
        operation: Operation | None,
        step: str = "",
        guard: Guard | None = None,
        position: tuple[Any, ...] = (),
        made: int = 0,
        aliases: tuple[int, ...] = (),
    ) -> None:
        self.actor = actor
        self.done = done
        self.name = operation.name if operation is not None else ""
        self.over = operation is None
        self.step = step
        self.guard = guard
        self.position = position
        self.made = made
        self.aliases = aliases
        self.claim = 0
        self.sum = sum_of(marshal.dumps((actor, done, position), 0))
        self.tree: Any = None
        """What is known of the step from here: see `vmm.explore.footprints`."""
        self.ask: Any = None
        """What is known of the guard."""

    def __repr__(self) -> str:
        return f"<{self.actor}: {self.name} {self.step or 'not begun'}>"


Log = tuple["Log | None", "Heap | None"]
"""The heap that the last step began with, None for what the step before it left; and the log before that."""


class Standing(NamedTuple):
    """Where an actor is and how it came there: the heaps that its operation's steps saw, and what the last one left."""

    place: Place
    log: Log | None = None
    after: Heap | None = None

    @property
    def done(self) -> int:
        """Operations behind it."""
        return self.place.done

    @property
    def suspended(self) -> Place | None:
        """Its place, if it is in the middle of an operation."""
        return self.place if self.place.step else None


class Abort(BaseException):
    """Thrown into an operation that is not wanted any more."""


class NotDeterministic(Exception):
    """An operation that was run again did something else than before, or would. `operation`: which, if known; `where`:
    file and line, if something else is to blame.
    """

    says: ClassVar[str] = "not deterministic"
    operation: Operation | None = None
    where: tuple[str, int] | None = None


class CannotExplore(NotDeterministic):
    """An operation that the explorer cannot go on with: it keeps what cannot be put back, or does not end."""

    says = "cannot be explored"


LONGEST = 500
"""Points that one operation may pass. Each is reached by passing all the others again."""


LIVES = 4
"""So many objects with one name may be alive at a time."""


class Stage:
    """Runs operations of actors over an arena. One at a time; not re-entrant.

    An object is named after the operation that makes it. One that is made for ever would need ever new names; so the
    name of a `Mortal` that is dead is given again, as memory is, with those of the parts that were made after it.
    """

    def __init__(self, arena: Arena, actors: tuple[Actor, ...]) -> None:
        self.arena = arena
        self.actors = actors
        self.steps = 0
        """Steps run, those included that were run again."""
        self._idle: list[greenlet.greenlet] = []
        self._main = greenlet.getcurrent()
        self._made = 0
        self._life = -1
        """Of the `Mortal` that was made last by an operation that is repeated."""
        self._number = (0, 0)
        self._stop: tuple[str, Guard | None] = ("", None)
        self._locks = [thing for thing in arena.objects if isinstance(thing, Lock)]
        self._places: dict[Any, Place] = {}

    # What may happen.

    def beginning(self) -> tuple[Standing, ...]:
        """Nobody has done anything."""
        return tuple(Standing(self._between(n, 0)) for n in range(len(self.actors)))

    def enabled(self, heap: Heap, standings: tuple[Standing, ...]) -> list[int]:
        """The actors that may take a step from this state; the heap is put in place to ask them."""
        self.arena.put(heap)
        return [n for n, standing in enumerate(standings) if not standing.place.over and self.ask(standing.place)]

    def ask(self, place: Place) -> bool:
        """Whether the guard of a place is true, of the heap that is in place."""
        if place.guard is None:
            return True
        order.actor = place.actor + 1
        try:
            return place.guard()
        finally:
            order.actor = 0

    def _between(self, n: int, done: int) -> Place:
        """Between the operations of an actor."""
        place = self._places.get((n, done))
        if place is None:
            actor = self.actors[n]
            operation = actor.at(done) if actor.repeats or done < len(actor.operations) else None
            ready = operation.ready if operation is not None else None
            place = self._places[n, done] = Place(n, done, operation, guard=ready)
            place.claim = OWED if actor.fair else 0
        return place

    # One step.

    def step(self, heap: Heap, n: int, standing: Standing) -> tuple[Heap, Standing, str]:
        """Let actor `n` take one step from `heap`: the new heap, where the actor is then, and the step's name.

        Violation if the code finds its rules broken, or raises something. If the arena is watched, `arena.touched` is
        what the step touched.
        """
        place, log = standing.place, standing.log
        operation = self.actors[n].at(place.done)
        arena = self.arena
        log = (log, None if heap is standing.after else heap) if place.step else (None, heap)
        heaps = _heaps(log)
        if len(heaps) > LONGEST:
            raise CannotExplore(f"{operation.name} has passed {LONGEST} points and goes on; does it end?")
        runner = self._idle.pop() if self._idle else greenlet.greenlet(self._run)
        self._made = 0
        self._life = -1
        order.actor = n + 1
        order.hook, order.wait, order.allocate = self._point, self._wait, self._allocate
        self._number = (n, place.done)
        finished = False
        try:
            argument: tuple[object, ...] = (operation.function,)
            last = len(heaps) - 1
            for i, seen in enumerate(heaps):
                if finished:
                    raise NotDeterministic(f"{operation.name} ended early when it was run again")
                if i == last and place.step:
                    self._check_again(operation, standing)
                if seen is not None:
                    arena.put(seen)
                if not i:
                    arena.handed.clear()
                if i == last:
                    arena.touched.clear()
                    arena.noting = True
                finished = runner.switch(*argument)
                argument = ()
            arena.noting = False
            self.steps += len(heaps)
            after = arena.take()
            if finished:
                return after, Standing(self._between(n, self.actors[n].after(place.done))), operation.name
            step, guard = self._stop
            return after, Standing(self._suspended(n, place.done, step, guard, runner.gr_frame), log, after), step
        except NotKept as error:
            raise CannotExplore(f"{operation.name}: {error}") from error
        finally:
            arena.noting = False
            order.hook = order.wait = order.allocate = None
            order.actor = 0
            if not finished and not runner.dead:
                runner.throw(Abort)
            if not runner.dead:
                self._idle.append(runner)

    def _check_again(self, operation: Operation, standing: Standing) -> None:
        """It was run again: it must stand where it stood, and have left what it left."""
        step = standing.place.step
        if self._stop[0] != step:
            raise NotDeterministic(f"{operation.name} came to {self._stop[0]}, and to {step} before")
        assert standing.after is not None
        if self.arena.take()[: len(standing.after)] != standing.after:
            raise NotDeterministic(f"{operation.name} left something else at {step} than before")

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
        except (Violation, NotDeterministic, NotKept, Abort, KeyboardInterrupt, greenlet.GreenletExit):
            raise
        except BaseException as error:  # SystemExit, too: that is not how a search ends
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
        noting, self.arena.noting = self.arena.noting, False
        held = not ready()
        self.arena.noting = noting
        if held:
            raise NotDeterministic(f"{name} of {subject!r} went on although it was held back")

    def _check_may_sleep(self, name: str) -> None:
        """What it holds follows from where it stands, so this is no reading of the locks."""
        noting, self.arena.noting = self.arena.noting, False
        for lock in self._locks:
            if lock.spin and lock.owner == order.actor:
                raise Violation("sleeps-in-atomic", lock, "taken", name)
        self.arena.noting = noting

    def _allocate(self, cls: type[State]) -> State:
        n, done = self._number
        self._made += 1
        if not self.actors[n].repeats:
            return self._named((n, done, self._made), cls)
        if not issubclass(cls, Mortal):
            if self._life < 0:
                raise NotDeterministic(
                    f"{self.actors[n].name} makes a {cls.__name__}: a repeating actor has no name for it"
                )
            return self._named(self._again(self._life), cls)
        for life in range(LIVES):
            made = self._named(self._again(life), cls)
            if made.freed_by != "":  # type: ignore[attr-defined]  # None: it never lived
                self._life = life
                return made
        raise NotDeterministic(f"{self.actors[n].name} makes a {cls.__name__} while {LIVES} others are alive")

    def _again(self, life: int) -> tuple[int, int, int]:
        """The name of what a repeated operation makes now."""
        n, done = self._number
        return n, done + life * len(self.actors[n].operations), self._made

    def _named(self, name: tuple[int, int, int], cls: type[State]) -> State:
        known = len(self.arena.objects)
        made = self.arena.named(name, cls)
        if isinstance(made, Lock) and len(self.arena.objects) > known:
            self._locks.append(made)
        return made

    def _suspended(self, n: int, done: int, step: str, guard: Guard | None, frame: FrameType | None) -> Place:
        """The place of an operation that is suspended: code, instruction and locals of every frame, innermost first."""
        canonical = self.arena.canonical
        position: list[Any] = [step] if self._life <= 0 else [step, self._life]
        held: list[object] = []
        while frame is not None and frame.f_code in _OURS:
            frame = frame.f_back
        while frame is not None and frame.f_code is not _ENTER:
            position.append(frame.f_code.co_qualname)
            position.append(frame.f_lasti)
            local = frame.f_locals
            held += local.values()
            position.append(tuple([(name, canonical(value)) for name, value in local.items()]))
            frame = frame.f_back
        # Format 0 tells True from 1, where a comparison would not.
        key = marshal.dumps((n, done, self._made, tuple(position)), 0)
        place = self._places.get(key)
        if place is None:
            actor = self.actors[n]
            aliases = self.arena.aliases(held)
            place = Place(n, done, actor.at(done), step, guard, tuple(position), self._made, aliases)
            place.claim = OWED | AT_LOCK if isinstance(getattr(guard, "__self__", None), Lock) else OWED
            self._places[key] = place
        return place


def _heaps(log: Log | None) -> list[Heap | None]:
    """Oldest first."""
    heaps = []
    while log is not None:
        log, heap = log
        heaps.append(heap)
    heaps.reverse()
    return heaps


_ENTER = Stage._enter.__code__
_OURS = {Stage._point.__code__, Stage._wait.__code__}
