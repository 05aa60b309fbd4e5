"""The state of explored objects as one flat tuple: take it, put it back, tell two apart.

An `Arena` knows every `order.State` object that can be reached from its roots, and those that operations make later.
For all of them together it generates three functions, which is what makes them fast: `take()` reads every slot,
`put(heap)` writes them back, `canon(heap)` replaces references by names so that the result can be fingerprinted the
same way in every process. All are total over the slots: a field cannot be forgotten, only classified.

Of the roots, WIRING does not change and is left out. Objects made later are pooled under a name (actor, operation,
n-th), and all their slots are state; where they do not exist yet every slot is None.
"""

from __future__ import annotations

import enum
import marshal
from collections import deque
from hashlib import blake2b
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from vmm.order import State

if TYPE_CHECKING:
    from collections.abc import Iterable

Heap = tuple[Any, ...]

_PLAIN = (int, bool, str, bytes, type(None))
_PLAIN_TYPES = frozenset(_PLAIN)
_CONTAINERS: dict[type, tuple[str, str]] = {
    list: ("tuple({x})", "{x}[:] = {v}"),
    deque: ("tuple({x})", "{x}.clear(); {x}.extend({v})"),
    dict: ("tuple({x}.items())", "{x}.clear(); {x}.update({v})"),
    bytearray: ("bytes({x})", "{x}[:] = {v}"),
}
"""How a mutable container is copied out of a slot and back into the same container."""


class Field:
    """One slot of one object. `kind`: plain, ref (a State or None), refs (a tuple of States), any."""

    __slots__ = ("container", "kind", "owner", "slot")

    def __init__(self, owner: int, slot: str, container: type | None) -> None:
        self.owner = owner
        self.slot = slot
        self.container = container
        self.kind = "plain"


class Arena:
    """The explored objects. `objects[i]` is known as number i; numbers of roots come from the order of discovery, which
    is that of slots, so they are the same in every process.
    """

    def __init__(self, *roots: State) -> None:
        self.objects: list[State] = []
        self.index: dict[State, int] = {}
        self.names: dict[State, str] = {}
        self.fields: list[Field] = []
        self.pool: dict[tuple[int, int, int], State] = {}
        self.atoms: dict[int, tuple[str, int]] = {}
        self._kept: list[object] = []
        for root in roots:
            self._discover(root)
        self._generate()

    # Objects.

    def _discover(self, root: State) -> None:
        todo: deque[State] = deque([root])
        while todo:
            thing = todo.popleft()
            if thing in self.index:
                continue
            self._enter(thing, wiring=False)
            for slot in slots_of(type(thing)):
                if hasattr(thing, slot):
                    todo.extend(self._states_in(getattr(thing, slot)))

    def _enter(self, thing: State, wiring: bool) -> int:
        number = self.index[thing] = len(self.objects)
        self.objects.append(thing)
        for slot in slots_of(type(thing), wiring):
            value = getattr(thing, slot, None)
            self.fields.append(Field(number, slot, type(value) if type(value) in _CONTAINERS else None))
        return number

    def _states_in(self, value: object) -> Iterable[State]:
        if isinstance(value, State):
            return [value]
        if isinstance(value, MethodType):
            return self._states_in(value.__self__)
        if isinstance(value, (tuple, list, deque)):
            return [state for item in value for state in self._states_in(item)]
        if isinstance(value, dict):
            return [state for pair in value.items() for state in self._states_in(pair)]
        self.adopt(value)
        return ()

    def adopt(self, value: object) -> None:
        """Name something that is no State and holds none that changes (a trace, an era, a scenario)."""
        if not isinstance(value, (*_PLAIN, State, enum.Enum, FunctionType)) and id(value) not in self.atoms:
            self.atoms[id(value)] = (type(value).__qualname__, len(self.atoms))
            self._kept.append(value)

    def named(self, name: tuple[int, int, int], cls: type[State]) -> State:
        """The pooled object of that name, made blank the first time."""
        found = self.pool.get(name)
        if found is None:
            found = self.pool[name] = object.__new__(cls)
            for slot in slots_of(cls):
                setattr(found, slot, None)
            self._enter(found, wiring=True)
            self._generate()
        elif type(found) is not cls:
            raise TypeError(f"{name} was a {type(found).__name__} and is now a {cls.__name__}: not deterministic")
        return found

    # The generated functions.

    def _generate(self) -> None:
        reads, writes, canons = [], [], []
        blank: list[object] = []
        for n, field in enumerate(self.fields):
            x = f"o{field.owner}.{field.slot}"
            copy, back = ("{x}", "{x} = {v}") if field.container is None else _CONTAINERS[field.container]
            reads.append(copy.format(x=x))
            writes.append(back.format(x=x, v=f"h[{n}]"))
            canons.append(_CANON[field.kind].format(v=f"h[{n}]"))
            blank.append(None)
        self._blank = tuple(blank)
        scope: dict[str, Any] = {f"o{i}": thing for i, thing in enumerate(self.objects)}
        self.names = {thing: f"@{number}" for thing, number in self.index.items()}
        names: dict[Any, Any] = {None: None, (): (), **self.names}
        scope |= {"names": names, "canonical": self.canonical}
        body = "\n    ".join(writes)
        source = (
            f"def take():\n    return ({', '.join(reads)},)\n"
            f"def put(h):\n    {body}\n"
            f"def canon(h):\n    return ({', '.join(canons)},)\n"
        )
        exec(source, scope)
        self._take, self._put, self._canon = scope["take"], scope["put"], scope["canon"]

    def take(self) -> Heap:
        """Every slot of every object, now."""
        heap: Heap = self._take()
        return heap

    def put(self, heap: Heap) -> None:
        """Make every slot what it was. A heap from before some objects were known leaves those blank."""
        missing = len(self._blank) - len(heap)
        self._put(heap + self._blank[-missing:] if missing else heap)

    def fingerprint(self, heap: Heap, *more: object) -> bytes:
        """16 bytes that tell states apart: of the heap, and of `more`, which is canonical already."""
        while True:
            missing = len(self._blank) - len(heap)
            if missing:
                heap = heap + self._blank[-missing:]
            try:
                # Format 0 has no back references and does not look at interning.
                canonical: Any = (self._canon(heap), more)
                data = marshal.dumps(canonical, 0)
            except (KeyError, TypeError, ValueError):
                self._classify(heap)
            else:
                return blake2b(data, digest_size=16).digest()

    def _classify(self, heap: Heap) -> None:
        """Find the slots that hold something new to them. The encoding does not depend on the kind, only its cost."""
        changed = False
        for field, value in zip(self.fields, heap, strict=True):
            kind = _kind_of(value)
            if field.kind != "any" and kind != field.kind and value not in _EMPTY:
                field.kind = kind if field.kind == "plain" else "any"
                changed = True
        if not changed:
            raise TypeError("a value has no stable name in this process")
        self._generate()

    def canonical(self, value: object) -> Any:
        """A value as plain numbers, strings and tuples. TypeError for what has no stable name."""
        if type(value) in _PLAIN_TYPES:
            return value
        if isinstance(value, State):
            return self.names[value]
        if isinstance(value, (tuple, list, deque)):
            return tuple([self.canonical(item) for item in value])
        if isinstance(value, dict):
            return tuple([(self.canonical(k), self.canonical(v)) for k, v in value.items()])
        if isinstance(value, MethodType):
            return ("method", self.canonical(value.__self__), value.__func__.__qualname__)
        if isinstance(value, FunctionType):
            return ("function", value.__qualname__)
        if isinstance(value, enum.Enum):
            return ("enum", type(value).__qualname__, value.name)
        if isinstance(value, type):
            return ("type", value.__qualname__)
        if isinstance(value, BaseException):
            return ("raised", type(value).__qualname__, self.canonical(value.args))
        atom = self.atoms.get(id(value))
        if atom is None:
            raise TypeError(f"{type(value).__qualname__} has no name that is the same in every process: {value!r}")
        return atom

    def check(self) -> None:
        """TypeError if a slot holds a mutable container that `take` would not copy. For tests."""
        for field in self.fields:
            value = getattr(self.objects[field.owner], field.slot, None)
            if isinstance(value, (list, dict, set, deque, bytearray)) and type(value) is not field.container:
                owner = type(self.objects[field.owner]).__name__
                raise TypeError(f"{owner}.{field.slot} became a {type(value).__name__}: make it a tuple")


_CANON = {
    "plain": "{v}",
    "ref": "names[{v}]",
    "refs": "{v} and tuple([names[x] for x in {v}])",
    "any": "canonical({v})",
}
_EMPTY = (None, ())
"""What fits every kind."""


def _kind_of(value: object) -> str:
    if isinstance(value, _PLAIN):
        return "plain"
    if isinstance(value, State):
        return "ref"
    if type(value) is tuple:
        if not value:
            return "plain"
        if all(isinstance(item, State) for item in value):
            return "refs"
        if all(_kind_of(item) == "plain" for item in value):
            return "plain"
    return "any"


_slots: dict[tuple[type, bool], tuple[str, ...]] = {}


def slots_of(cls: type[State], wiring: bool = True) -> tuple[str, ...]:
    """Every slot of a class, bases first; without WIRING on request."""
    known = _slots.get((cls, wiring))
    if known is None:
        found: list[str] = []
        for base in reversed(cls.__mro__):
            groups = ("WIRING", "VISIBLE", "BOOKKEEPING") if wiring else ("VISIBLE", "BOOKKEEPING")
            for group in groups:
                if issubclass(base, State):
                    found += base.__dict__.get(group, ())
        known = _slots[cls, wiring] = tuple(found)
    return known
