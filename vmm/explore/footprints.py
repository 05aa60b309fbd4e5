"""Steps that are known already: what a step does follows from its place and from the fields that it reads.

The first time that an actor takes a step from a place, the step is run, and the watched arena tells which fields it
read, in which order, and which it wrote. The next time that the same fields have the same values there, the outcome is
taken from here, and no code is run: most steps of a search are of this kind. Guards and checks are remembered likewise.

What is remembered is a tree per place: a node names the fields to look at, and their values lead to the next node or to
the outcome. A step is run again for the first, the 64th, the 4,096th use ... of what is known of it, from its own past,
and must do the same: one that depends on something else (a clock, a random number, a Python object that is no State)
is reported as not deterministic.
"""

from __future__ import annotations

import gc
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from vmm.explore.actors import CannotExplore, NotDeterministic, Standing
from vmm.explore.heap import is_kept

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.explore.actors import Place, Stage
    from vmm.explore.heap import Heap

AGAIN = frozenset(64**k for k in range(8))
"""The uses of an outcome for which its step is run."""


COLLECT = 20_000
"""Steps that are run between two collections: what code makes when it is run may be in cycles."""


class Node:
    """Look at `fields`; `after` says by their values what to do next."""

    __slots__ = ("after", "fields", "look")

    def __init__(self, fields: tuple[int, ...]) -> None:
        self.fields = fields
        self.look = itemgetter(*fields)
        self.after: dict[Any, Node | Outcome | Answer] = {}


class Outcome:
    """What a step does. `reads`: the fields that it read; `writes`: fields and their new values; `blind`: those of them
    that it did not read; `change`: what it does to a state's mark, its blind fields' old values apart.
    """

    __slots__ = ("blind", "change", "needs", "place", "reads", "rest", "step", "suspended", "uses", "writes")

    def __init__(
        self,
        place: Place,
        step: str,
        reads: tuple[int, ...],
        writes: tuple[tuple[int, int], ...],
        blind: tuple[int, ...],
        change: int,
    ) -> None:
        self.reads = reads
        self.place = place
        self.step = step
        self.suspended = bool(place.step)
        self.rest = Standing(place)
        self.writes = writes
        self.blind = blind
        self.change = change
        self.needs = 1 + max((field for field, _ in writes), default=-1)
        self.uses = 0

    def same(self, other: Outcome) -> bool:
        """They do the same."""
        return (
            self.place is other.place
            and self.step == other.step
            and self.reads == other.reads
            and self.writes == other.writes
        )


class Answer:
    """What a guard or a check says."""

    __slots__ = ("says",)

    def __init__(self, says: Any) -> None:
        self.says = says


Step = tuple[str, "Heap", "tuple[Standing, ...]", int]
"""A step's name, and the state that it leads to: heap, standings, mark."""


def grown(tree: Node | None, fields: tuple[int, ...], heap: Heap, end: Any) -> Any:
    """The tree with one more way in it: the values of `fields` in `heap` lead to `end`. The new tree's root."""
    if not fields:
        if tree is not None:
            raise _CannotTell
        return end
    if tree is None:
        node = Node(fields)
        node.after[node.look(heap)] = end
        return node
    if not isinstance(tree, Node):
        raise _CannotTell
    common = 0
    for mine, its in zip(tree.fields, fields, strict=False):
        if mine != its:
            break
        common += 1
    if not common:
        raise _CannotTell
    if common < len(tree.fields):
        tree = _split(tree, common)
    key = tree.look(heap)
    tree.after[key] = grown(tree.after.get(key), fields[common:], heap, end)  # type: ignore[arg-type]
    return tree


class _CannotTell(Exception):
    """The same values led to two things."""


def _split(tree: Node, common: int) -> Node:
    """The same tree with a node for the first `common` of its fields, and nodes for the others."""
    first, rest = tree.fields[:common], tree.fields[common:]
    made = Node(first)
    for key, end in tree.after.items():
        values = key if len(tree.fields) > 1 else (key,)
        front = values[:common] if common > 1 else values[0]
        back = values[common:] if len(rest) > 1 else values[common]
        node = made.after.get(front)
        if node is None:
            node = made.after[front] = Node(rest)
        assert isinstance(node, Node)
        node.after[back] = end
    return made


class Footprints:
    """Takes the steps of a stage, and remembers them."""

    def __init__(self, stage: Stage, audit: bool = False) -> None:
        self.stage = stage
        self.arena = stage.arena
        self.audit = audit
        """Run every step, whatever is known, and check what is in the slots."""
        self.acting = -1
        """Whose step is in hand."""
        self._collected = False
        self.run = 0
        """Steps that were run, those for a check included."""
        self.sums = stage.arena.sums
        self._changed: list[int] = []
        """Fields that the last guard or check has written."""
        self._checks: dict[Callable[[], Any], Any] = {}

    def __enter__(self) -> Footprints:
        """Python's collector rests meanwhile: states are many, and none of them is in a cycle."""
        self._collected = gc.isenabled()
        gc.disable()
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        if self._collected:
            gc.enable()

    def open(self) -> None:
        """Watch the arena."""
        self.arena.watch()

    def close(self) -> None:
        """Leave the classes as they were."""
        self.arena.unwatch()

    def beginning(self) -> tuple[Heap, tuple[Standing, ...], int]:
        """The state that is in place, nobody having done anything."""
        heap, standings = self.arena.take(), self.stage.beginning()
        mark = self.arena.mark(heap)
        for standing in standings:
            mark ^= standing.place.sum
        return heap, standings, mark

    def enabled(self, heap: Heap, standings: tuple[Standing, ...]) -> list[int]:
        """The actors that may take a step."""
        found = []
        for n, standing in enumerate(standings):
            place = standing[0]
            if place.over:
                continue
            if place.guard is not None:
                end = place.ask
                try:
                    while end.__class__ is Node:
                        end = end.after.get(end.look(heap))
                except IndexError:
                    end = self._find(place.ask, heap)
                if end is None:
                    end = self._ask(place, heap)
                if not end.says:
                    continue
            found.append(n)
        return found

    def _find(self, tree: Any, heap: Heap) -> Any:
        """What a tree says of a heap from before some objects were known."""
        heap = self.arena.padded(heap)
        while tree.__class__ is Node:
            tree = tree.after.get(tree.look(heap))
        return tree

    def _ask(self, place: Place, heap: Heap) -> Answer:
        answer, fields = self._noted(lambda: self.stage.ask(place), heap)
        if self._changed:
            raise self._blamed(place, f"{place.name}: its `when` changes {self._named(self._changed)}")
        if not place.step and self.stage.actors[place.actor].at(place.done).own:
            again, _ = self._noted(lambda: self.stage.ask(place), heap)
            if bool(again.says) is not bool(answer.says):
                raise self._blamed(place, f"{place.name}: its `when` says {answer.says!r}, and then {again.says!r}")
        place.ask = self._grown(place.ask, fields, heap, answer, f"the guard of {place!r}")
        return answer

    def _blamed(self, place: Place, text: str) -> NotDeterministic:
        fault = NotDeterministic(text)
        fault.operation = self.stage.actors[place.actor].at(place.done)
        return fault

    def says(self, check: Callable[[], Any], heap: Heap) -> Any:
        """What a check that has no effect on the heap says of a state."""
        end = self._checks.get(check)
        try:
            while end.__class__ is Node:
                end = end.after.get(end.look(heap))
        except IndexError:
            end = self._find(self._checks[check], heap)
        if end is None:
            end, fields = self._noted(check, heap)
            if self._changed:
                raise _looks_only(check, self._named(self._changed))
            heap = self.arena.padded(heap)
            try:
                self._checks[check] = grown(self._checks.get(check), fields, heap, end)
            except _CannotTell:  # it keeps a list of its own of what it saw
                self._checks[check] = grown(None, fields, heap, end)
        return end.says

    def _noted(self, question: Callable[[], Any], heap: Heap) -> tuple[Answer, tuple[int, ...]]:
        """What a question says of a heap, and which fields it looked at. `_changed`: it was more than a question."""
        arena = self.arena
        arena.put(heap)
        dirty = frozenset(arena.dirty)
        arena.handed.clear()
        arena.touched.clear()
        arena.noting = True
        try:
            answer = Answer(question())
        finally:
            arena.noting = False
        self._changed = sorted(arena.dirty - dirty) if len(arena.dirty) > len(dirty) else []
        return answer, tuple(arena.touched)

    def _grown(self, tree: Any, fields: tuple[int, ...], heap: Heap, end: Any, what: str) -> Any:
        try:
            return grown(tree, fields, self.arena.padded(heap), end)
        except _CannotTell:
            raise NotDeterministic(f"{what} does not follow from the fields that are read") from None

    def step(self, heap: Heap, standings: tuple[Standing, ...], mark: int, n: int) -> Step:
        """Let an actor that may do so take a step. Violation, NotDeterministic."""
        standing = standings[n]
        place, log, left = standing
        end = place.tree
        try:
            while end.__class__ is Node:
                end = end.after.get(end.look(heap))
        except IndexError:
            end = self._find(place.tree, heap)
        if end is None:
            return self._run(heap, standings, mark, n, None)
        end.uses = uses = end.uses + 1
        if uses in AGAIN or self.audit:
            return self._run(heap, standings, mark, n, end)
        mark ^= end.change
        if end.writes:
            if len(heap) < end.needs:
                heap = self.arena.padded(heap)
            fields = list(heap)
            for field, value in end.writes:
                fields[field] = value
            after = tuple(fields)
            for field in end.blind:
                mark ^= self.sums[field][heap[field]]
        else:
            after = heap
        now = _new(Standing, (end.place, (log, None if heap is left else heap), after)) if end.suspended else end.rest
        return end.step, after, (*standings[:n], now, *standings[n + 1 :]), mark

    def _run(self, heap: Heap, standings: tuple[Standing, ...], mark: int, n: int, known: Outcome | None) -> Step:
        """Run the code, and remember what it did; or compare, if that is known."""
        place = standings[n].place
        self.acting = n
        after, now, outcome, before = self._once(heap, standings[n], n)
        if known is None and self.stage.actors[n].at(place.done).own:
            known = outcome
            after, now, outcome, before = self._once(heap, standings[n], n)
            place.tree = self._grown(place.tree, known.reads, before, known, f"what {place!r} does")
        if known is None:
            place.tree = self._grown(place.tree, outcome.reads, before, outcome, f"what {place!r} does")
        elif not outcome.same(known):
            raise NotDeterministic(
                f"{place.name} did something else {'at ' + place.step if place.step else 'in its first step'} than "
                f"before: {self._difference(outcome, known)}; it depends on something that is no State"
            )
        change = outcome.change
        for field in outcome.blind:
            change ^= self.sums[field][before[field]]
        return outcome.step, after, (*standings[:n], now, *standings[n + 1 :]), mark ^ change

    def _once(self, heap: Heap, standing: Standing, n: int) -> tuple[Heap, Standing, Outcome, Heap]:
        """Run a step's code: the heap then, where the actor is, what it did, and the heap before it, padded."""
        arena, place = self.arena, standing.place
        self.run += 1
        if not self.run % COLLECT:
            gc.collect()
        before = arena.padded(heap)
        after, now, name = self.stage.step(heap, n, standing)
        if self.audit:
            arena.check()
        before = arena.padded(before)
        touched = arena.touched
        reads = list(place.aliases) + [f for f, reading in touched.items() if reading and f not in place.aliases]
        read = set(reads)
        blind = tuple(sorted(f for f, reading in touched.items() if not reading and f not in read))
        writes = [(f, after[f]) for f in {*touched, *arena.handed, *reads} if before[f] != after[f]]
        known_writes = {f for f, _ in writes}
        if not known_writes <= read.union(blind):
            strange = sorted(known_writes - read.union(blind))
            raise NotDeterministic(f"{place!r} changed {self._named(strange)} behind the explorer's back")
        writes += [(f, after[f]) for f in blind if f not in known_writes]
        if self.stage.actors[n].at(place.done).own:
            self._refuse_what_is_not_kept(place, writes)
        change = place.sum ^ now.place.sum
        for field, value in writes:
            change ^= arena.sums[field][value]
            if field in read:
                change ^= arena.sums[field][before[field]]
        return after, now, Outcome(now.place, name, tuple(reads), tuple(sorted(writes)), blind, change), before

    def _refuse_what_is_not_kept(self, place: Place, writes: list[tuple[int, int]]) -> None:
        for field, number in writes:
            value = self.arena.values[number]
            owner = type(self.arena.fields[field].thing)
            if owner.__module__.partition(".")[0] not in ("vmm", "devices") and not is_kept(value):
                raise CannotExplore(f"{place.name} made {self._named([field])} {value!r}: make it a tuple")

    def _difference(self, one: Outcome, other: Outcome) -> str:
        """In what an outcome differs from one before."""
        if one.place is not other.place or one.step != other.step:
            return f"it went to {one.step}, and to {other.step} then"
        if one.writes != other.writes:
            fields = sorted({field for field, _ in {*one.writes} ^ {*other.writes}})
            return f"it left {self._named(fields)} otherwise"
        return f"it looked at {self._named(sorted({*one.reads} ^ {*other.reads})) or 'the same, in another order'}"

    def _named(self, fields: list[int]) -> str:
        return ", ".join(f"{type(self.arena.fields[f].thing).__name__}.{self.arena.fields[f].slot}" for f in fields)


def _looks_only(check: Callable[[], Any], changed: str) -> NotDeterministic:
    fault = NotDeterministic(f"a check changes {changed}; it may only look")
    code = getattr(getattr(check, "__wrapped__", check), "__code__", None)
    fault.where = (code.co_filename, code.co_firstlineno) if code is not None else None
    return fault


_new: Any = tuple.__new__
"""Makes a named tuple in a third of the time."""
