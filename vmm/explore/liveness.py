"""Liveness: what must happen again and again in every fair run, and the loop in which it does not.

A scenario says what must keep coming true, and who may not stand still for ever:

    Scenario(roots, actors, always, at_rest, live=(("L5", no_interrupt_under_way),))
    Actor("device", operations, fair=False)

Each goal is a pure function of the state. An infinite run breaks it if from some state on the goal is false for ever.
Only *fair* runs count:

    weakly    an actor that can act all the time does act
    strongly  an actor that waits at a lock, and can have it again and again, gets it: spin locks are queued, a mutex
              is handed to who waits longest

Of an actor that is not `fair` (a user, a device: nobody makes them) this is asked only in the middle of an operation;
it need not begin one. Whoever waits for anything else than a lock (a flush, a grace period, something to do) has the
weak promise only: the kernel makes no other. A run that ends, because nobody has to act any more, stays in its last
state for ever, so the goal has to be true there.

Nothing is counted: a loop is a strongly connected part of the graph of states in which the goal is false, every actor
that is owed a step takes one or cannot act somewhere on the way, and every actor that could have its lock takes it. If
one could and never does, the part has no fair run through the states where it could; they are taken out, and what is
left falls into smaller parts, each of them looked at in the same way (Emerson and Lei, 1987: Streett's condition). The
finding is a lasso: `choices` leads to the loop and once around it, and `loop` says how many of the steps come before
it. The loop is a fair run as it is printed: it has the steps that justify it, however long they make it.
"""

from __future__ import annotations

from array import array
from collections import deque
from itertools import compress
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    Goal = Callable[[], bool]
    Live = tuple[tuple[str, Goal], ...]

UNSEEN: Final = 0xFFFF_FFFF
OWED: Final = 0x80
"""A claim: who stands here and can act all the time may not be left out for ever. Set beside an edge's actor."""
AT_LOCK: Final = 0x40
"""A claim, only beside OWED: nor who can act only now and then, for it waits at a lock."""
ACTOR: Final = 0x3F
MOST: Final = ACTOR + 1
"""Actors of a scenario that has goals."""


class Lasso(NamedTuple):
    """`start` is reached by the search's own way; `cycle` leads from it around to it (empty: nobody has to)."""

    start: int
    cycle: tuple[int, ...]


class Claims(NamedTuple):
    """Of a part: bits of the actors that are owed a step in all of its states, that could have their lock in some of
    them, and that act inside.
    """

    owed: int
    at_lock: int
    act: int


class Graph:
    """The states in the order of their discovery, and who leads from each to which. Fed by the search.

    Who can act in a state is who has an edge there; what that actor may claim is two bits of the edge, so fairness
    costs no memory. UsageError for more than 64 actors.
    """

    def __init__(self, goals: int, actors: int = 0) -> None:
        if actors > MOST:
            raise UsageError(f"a scene with goals may have {MOST} actors; this one has {actors}")
        self.first = array("I")
        """Of each state, where its edges begin."""
        self.actors = bytearray()
        self.targets = array("I")
        self.reached = [bytearray() for _ in range(goals)]
        """Of each goal, whether each state fulfils it."""

    def state(self, goals: Iterable[bool]) -> None:
        """The next state; its edges follow."""
        self.first.append(len(self.targets))
        for bits, reached in zip(self.reached, goals, strict=True):
            bits.append(reached)

    def edge(self, actor: int, target: int) -> None:
        """From the last state. `actor`: its number, with what it claims there (OWED, AT_LOCK)."""
        self.actors.append(actor)
        self.targets.append(target)

    def leads_on(self, state: int) -> bool:
        """Somebody can act in a state."""
        following = self.first[state + 1] if state + 1 < len(self.first) else len(self.targets)
        return following > self.first[state]

    def lasso(self, goal: int) -> Lasso | None:
        """A fair run in which goal number `goal` stays false: with a shortest way there, then a short loop."""
        first = array("I", self.first)
        first.append(len(self.targets))
        reached = self.reached[goal]
        parts = _Parts(first, self.targets, reached)
        best = self._fair_part(parts)
        for state in range(len(reached)):
            if best is not None and state > best:
                break
            if not reached[state] and not self._masks(parts, state)[0]:
                return Lasso(state, ())
        return None if best is None else Lasso(best, self._around(parts, best))

    def _fair_part(self, parts: _Parts) -> int | None:
        """The first state of a part, a group of `parts` now, all of whose edges make a fair run: of those parts the one
        that begins first. Any other fair run begins later, or is within it.
        """
        best: int | None = None
        work: list[Iterable[int]] = [range(len(parts.group))]
        while work:
            for part in parts.of(work.pop()):
                start = min(part)
                if best is not None and start >= best:
                    continue
                parts.separate(part)
                claims = self._claims(parts, part)
                if claims.owed & ~claims.act:
                    continue  # nor is any part of it fair
                passed_over = claims.at_lock & ~claims.act
                if passed_over:
                    work.append(parts.without(part, [s for s in part if self._masks(parts, s)[1] & passed_over]))
                else:
                    best = start
        return best

    def _masks(self, parts: _Parts, state: int) -> tuple[int, int]:
        """Bits of the actors that are owed a step in a state, and of those of them that can have their lock there."""
        owed = at_lock = 0
        for actor in self.actors[parts.first[state] : parts.first[state + 1]]:
            if actor & OWED:
                owed |= 1 << (actor & ACTOR)
                if actor & AT_LOCK:
                    at_lock |= 1 << (actor & ACTOR)
        return owed, at_lock

    def _claims(self, parts: _Parts, part: array[int]) -> Claims:
        """Of a part that is a group."""
        first, targets, group = parts.first, self.targets, parts.group
        own = group[part[0]]
        owed, at_lock, act = -1, 0, 0
        for state in part:
            here, locks = self._masks(parts, state)
            owed &= here
            at_lock |= locks
            for edge in range(first[state], first[state + 1]):
                if group[targets[edge]] == own:
                    act |= 1 << (self.actors[edge] & ACTOR)
        return Claims(owed, at_lock, act)

    def _around(self, parts: _Parts, start: int) -> tuple[int, ...]:
        """From a state of a group around to it, such that nobody who is owed a step is left out, nor who could have its
        lock on the way.
        """
        state = start
        owed, at_lock = self._masks(parts, start)
        acted = 0
        cycle: list[int] = []
        # `owed` are still to act, or to be found unable; `at_lock` are still to act.
        while owed | at_lock or state != start or not cycle:
            for actor, after in self._way(parts, state, owed, at_lock, start if cycle else None):
                cycle.append(actor)
                state = after
                acted |= 1 << actor
                able, locks = self._masks(parts, state)
                owed &= able & ~acted
                at_lock = (at_lock | locks) & ~acted
        return tuple(cycle)

    def _way(self, parts: _Parts, source: int, owed: int, at_lock: int, goal: int | None) -> list[tuple[int, int]]:
        """A shortest way inside a group to where one of `owed` acts or need not, or one of `at_lock` acts; if there are
        none, to `goal`, or a single step if that is None. As (actor, state after it).
        """
        first, group = parts.first, parts.group
        wanted = owed | at_lock
        merely = owed & ~at_lock
        came: dict[int, tuple[int, int]] = {}
        queue = deque([source])
        while queue:
            state = queue.popleft()
            for edge in range(first[state], first[state + 1]):
                target, actor = self.targets[edge], self.actors[edge] & ACTOR
                if group[target] != group[source]:
                    continue
                if wanted:
                    done = bool(wanted >> actor & 1) or bool(merely & ~self._masks(parts, target)[0])
                else:
                    done = goal in (None, target)
                if done:
                    way = [(actor, target)]
                    while state != source:
                        actor, before = came[state]
                        way.append((actor, state))
                        state = before
                    return way[::-1]
                if target not in came and target != source:
                    came[target] = (actor, state)
                    queue.append(target)
        raise AssertionError("a strongly connected part has a way from each state to each")


class _Parts:
    """The states of a graph in groups, and the strongly connected parts of each group. `group`: of each state, UNSEEN
    if it belongs to none; in the beginning all where the goal is false are in one.
    """

    def __init__(self, first: array[int], targets: array[int], reached: bytearray) -> None:
        self.first = first
        self.targets = targets
        self.group = array("I", [0]) * len(reached)
        for state in compress(range(len(reached)), reached):
            self.group[state] = UNSEEN
        self._groups = 0
        self._index = array("I", [UNSEEN]) * len(reached)
        self._low = array("I", [0]) * len(reached)
        self._on_stack = bytearray(len(reached))

    def separate(self, part: array[int]) -> None:
        """Make it a group of its own."""
        self._groups += 1
        for state in part:
            self.group[state] = self._groups

    def without(self, part: array[int], gone: list[int]) -> array[int]:
        """What is left of a group, to be decomposed again, when some of its states belong to none any more."""
        for state in gone:
            self.group[state] = UNSEEN
        left = array("I", [state for state in part if self.group[state] != UNSEEN])
        for state in left:
            self._index[state] = UNSEEN
        return left

    def of(self, roots: Iterable[int]) -> Iterator[array[int]]:
        """The parts, with an edge inside, of the groups of some states, each group being among them. (Tarjan)

        A part that has been given may be made another group meanwhile.
        """
        first, targets, group = self.first, self.targets, self.group
        index, low, on_stack = self._index, self._low, self._on_stack
        stack = array("I")
        number = 0
        for root in roots:
            own = group[root]
            if own == UNSEEN or index[root] != UNSEEN:
                continue
            work = [(root, first[root])]
            while work:
                state, edge = work.pop()
                if edge == first[state] and index[state] == UNSEEN:
                    index[state] = low[state] = number
                    number += 1
                    stack.append(state)
                    on_stack[state] = 1
                descended = False
                while edge < first[state + 1]:
                    target = targets[edge]
                    edge += 1
                    if group[target] != own:
                        continue
                    if index[target] == UNSEEN:
                        work.append((state, edge))
                        work.append((target, first[target]))
                        descended = True
                        break
                    if on_stack[target]:
                        low[state] = min(low[state], index[target])
                if descended:
                    continue
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[state])
                if low[state] == index[state]:
                    part = array("I")
                    while True:
                        member = stack.pop()
                        on_stack[member] = 0
                        part.append(member)
                        if member == state:
                            break
                    if len(part) > 1 or state in targets[first[state] : first[state + 1]]:
                        yield part
