"""The state of explored objects as one flat tuple of small numbers: take it, put it back, tell two apart.

An `Arena` knows every `order.State` object that can be reached from its roots, and those that operations make later.
Each slot of each is a *field*. A value that a field ever had is kept once, under a number, so that a heap is a tuple of
numbers: two heaps are compared, and a step is recognised, without looking at a value. Number 0 is None.

A heap's *mark* is 128 bits that tell states apart in every process alike: the exclusive or, over all fields that are
not None, of a blake2b sum of the field's name and value, so that a step only pays for what it changed.

Of the roots, WIRING does not change and is left out. Objects made later are pooled under a name (actor, operation,
n-th), and all their slots are state; where they do not exist yet every slot is None.

`watch` puts a descriptor in front of each slot, which notes what is read and written until `unwatch`. With it, `take`
and `put` look only at what was touched, and `vmm.explore.footprints` knows what a step depends on.
"""

from __future__ import annotations

import enum
import marshal
from collections import deque
from hashlib import blake2b
from itertools import compress
from operator import is_, ne
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from vmm.order import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Heap = tuple[int, ...]

NONE = 0
"""The number of None."""


class NotKept(TypeError):
    """A value that has no name that is the same in every process, or that could not be put back."""


_PLAIN_TYPES = frozenset((int, bool, str, bytes, type(None)))
_CONTAINERS = frozenset((list, deque, dict, bytearray))
"""What a slot may hold all the time and change in place. Its content is copied, and put back into the same object."""
_UNKNOWN = -1


class _Sums(dict[int, int]):
    """What each value of one field adds to a mark."""

    __slots__ = ("_keys", "_name")

    def __init__(self, name: str, keys: list[bytes]) -> None:
        super().__init__({NONE: 0})
        self._name = name.encode() + b"\0"
        self._keys = keys

    def __missing__(self, value: int) -> int:
        found = self[value] = sum_of(self._name + self._keys[value])
        return found


def sum_of(data: bytes) -> int:
    """128 bits."""
    return int.from_bytes(blake2b(data, digest_size=16).digest(), "little")


class Field:
    """One slot of one object."""

    __slots__ = ("container", "get", "set", "slot", "sums", "thing")

    def __init__(self, thing: State, slot: str, name: str, keys: list[bytes]) -> None:
        member = _member(type(thing), slot)
        self.thing = thing
        self.slot = slot
        self.get: Callable[[State], Any] = member.__get__
        self.set: Callable[[State, Any], None] = member.__set__
        value = getattr(thing, slot, None)
        self.container = type(value) if type(value) in _CONTAINERS else None
        self.sums = _Sums(f"{name}.{slot}", keys)


def _member(cls: type, slot: str) -> Any:
    for base in cls.__mro__:
        if slot in base.__dict__:
            return base.__dict__[slot]
    raise AttributeError(f"{cls.__name__} has no slot {slot}")


class Watched:
    """Stands in front of a slot while an arena watches: `numbers` are the fields that it is, by object; `containers`
    says that some of them hold containers.
    """

    __slots__ = ("arena", "containers", "get", "member", "numbers", "set")

    def __init__(self, arena: Arena, member: Any) -> None:
        self.arena = arena
        self.member = member
        self.get = member.__get__
        self.set = member.__set__
        self.containers = False
        self.numbers: dict[State, int] = {}

    def __get__(self, thing: State | None, owner: type | None = None) -> Any:
        if thing is None:
            return self
        arena = self.arena
        if arena.noting or self.containers:
            number = self.numbers.get(thing)
            if number is not None:
                if arena.noting and number not in arena.touched:
                    arena.touched[number] = True
                if self.containers:
                    arena.handed.add(number)
        return self.get(thing)

    def __set__(self, thing: State, value: object) -> None:
        self.set(thing, value)
        number = self.numbers.get(thing)
        if number is not None:
            arena = self.arena
            arena.dirty.add(number)
            if arena.noting and number not in arena.touched:
                arena.touched[number] = False


class Arena:
    """The explored objects. Root number i is `@i`: numbers come from the order of discovery, which is that of slots, so
    they are the same in every process.
    """

    def __init__(self, *roots: State) -> None:
        self.objects: list[State] = []
        self.names: dict[State, str] = {}
        self.fields: list[Field] = []
        self.pool: dict[tuple[int, int, int], State] = {}
        self.atoms: dict[int, tuple[str, int]] = {}
        self.values: list[Any] = [None]
        self.touched: dict[int, bool] = {}
        """Fields touched since `noting` was set, in order: True if by reading, False if written before it was read."""
        self.dirty: set[int] = set()
        """Fields written since the last `take`, if watched."""
        self.handed: set[int] = set()
        """Fields whose containers were looked at since this was cleared, so that they may change at any time."""
        self.noting = False
        self._keys = [marshal.dumps(None, 0)]
        self._numbers: dict[Any, int] = {self._keys[0]: NONE}
        self._plain: dict[tuple[type, Any], int] = {(type(None), None): NONE}
        self.sums: list[dict[int, int]] = []
        """Of each field, what each value adds to a mark."""
        self._live: list[int] = []
        """What is in place, as far as it is known."""
        self._containers: dict[int, tuple[Any, ...]] = {}
        """Fields that hold containers, and what was in them when that was looked up."""
        self._watched: dict[tuple[type, str], Watched] | None = None
        self._kept: list[object] = []
        for root in roots:
            self._discover(root)

    # Objects.

    def _discover(self, root: State) -> None:
        todo: deque[State] = deque([root])
        while todo:
            thing = todo.popleft()
            if thing in self.names:
                continue
            self._enter(thing, f"@{len(self.objects)}", wiring=False)
            for slot in slots_of(type(thing)):
                if hasattr(thing, slot):
                    todo.extend(self._states_in(getattr(thing, slot)))

    def _enter(self, thing: State, name: str, wiring: bool) -> None:
        self.names[thing] = name
        self.objects.append(thing)
        for slot in slots_of(type(thing), wiring):
            field = Field(thing, slot, name, self._keys)
            number = len(self.fields)
            self.fields.append(field)
            self.sums.append(field.sums)
            self._live.append(NONE if wiring else _UNKNOWN)
            if field.container is not None:
                self._containers[number] = (_UNKNOWN,)
            if self._watched is not None:
                self._watch(number)

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
        plain = isinstance(value, (int, str, bytes, type(None), State, enum.Enum, FunctionType))
        if not plain and id(value) not in self.atoms:
            self.atoms[id(value)] = (type(value).__qualname__, len(self.atoms))
            self._kept.append(value)

    def named(self, name: tuple[int, int, int], cls: type[State]) -> State:
        """The pooled object of that name, made blank the first time."""
        found = self.pool.get(name)
        if found is None:
            found = self.pool[name] = object.__new__(cls)
            for slot in slots_of(cls):
                setattr(found, slot, None)
            self._enter(found, "@" + ".".join(map(str, name)), wiring=True)
        elif type(found) is not cls:
            raise NotKept(f"{name} was a {type(found).__name__} and is now a {cls.__name__}: not deterministic")
        return found

    # Watching.

    def watch(self) -> None:
        """Note from now on what is touched."""
        if self._watched is None:
            self._watched = {}
            for number in range(len(self.fields)):
                self._watch(number)
            self.take_all()

    def unwatch(self) -> None:
        """Give the classes their slots back."""
        watched, self._watched = self._watched, None
        for (cls, slot), watcher in reversed((watched or {}).items()):
            setattr(cls, slot, watcher.member)

    def _watch(self, number: int) -> None:
        assert self._watched is not None
        field = self.fields[number]
        cls = next(base for base in type(field.thing).__mro__ if field.slot in base.__dict__)
        watcher = self._watched.get((cls, field.slot))
        if watcher is None:
            watcher = self._watched[cls, field.slot] = Watched(self, cls.__dict__[field.slot])
            setattr(cls, field.slot, watcher)
        watcher.numbers[field.thing] = number
        watcher.containers |= field.container is not None

    # Heaps.

    def take(self) -> Heap:
        """Every field, now."""
        if self._watched is None:
            return self.take_all()
        live, fields = self._live, self.fields
        for number in self.dirty:
            live[number] = self._number_of(fields[number])
        self.dirty.clear()
        for number in self.handed:
            known = self._containers.get(number)
            if known is None:
                continue
            content = _flat(fields[number].get(fields[number].thing))
            if live[number] == _UNKNOWN or len(content) != len(known) or not all(map(is_, content, known)):
                live[number] = self._number_of(fields[number])
                self._containers[number] = content
        return tuple(live)

    def take_all(self) -> Heap:
        """The same, whatever is thought to be known."""
        self._live = [self._number_of(field) for field in self.fields]
        self.dirty.clear()
        return tuple(self._live)

    def _number_of(self, field: Field) -> int:
        value = field.get(field.thing)
        if field.container is None:
            return self.number(value)
        if type(value) is not field.container:
            raise NotKept(f"{type(field.thing).__name__}.{field.slot} is a {type(value).__name__} now")
        return self.number(_content(value))

    def number(self, value: Any) -> int:
        """The number of a value."""
        kind = type(value)
        if kind in _PLAIN_TYPES:
            found = self._plain.get((kind, value))
            if found is None:
                found = self._plain[kind, value] = self._number(marshal.dumps(value, 0), value)
            return found
        try:
            # Format 0 has no back references and does not look at interning.
            key = marshal.dumps(self.canonical(value), 0)
        except (KeyError, ValueError):
            raise NotKept(f"{value!r} has no name that is the same in every process") from None
        return self._number(key, value)

    def _number(self, key: bytes, value: object) -> int:
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.values)
            self.values.append(value)
            self._keys.append(key)
        return found

    def put(self, heap: Heap) -> None:
        """Make every field what it was. A heap from before some objects were known leaves those blank."""
        heap = self.padded(heap)
        live, fields, values = self._live, self.fields, self.values
        if self._watched is None:
            changed: Iterable[int] = range(len(fields))
        else:
            for number in (*self.dirty, *self.handed):
                live[number] = _UNKNOWN  # an operation that was not wanted any more may have changed them
            self.dirty.clear()
            changed = compress(range(len(fields)), map(ne, live, heap))
        for number in changed:
            field = fields[number]
            value = values[heap[number]]
            if field.container is None:
                field.set(field.thing, value)
            else:
                _refill(field.get(field.thing), value)
                self._containers[number] = _flat(field.get(field.thing))
        self._live = list(heap)

    def padded(self, heap: Heap) -> Heap:
        """As long as there are fields now."""
        missing = len(self.fields) - len(heap)
        return heap + (NONE,) * missing if missing else heap

    def mark(self, heap: Heap) -> int:
        """128 bits that tell heaps apart."""
        mark = 0
        for sums, value in zip(self.sums, heap, strict=False):
            mark ^= sums[value]
        return mark

    def aliases(self, values: Iterable[object]) -> tuple[int, ...]:
        """The fields whose containers are among some values."""
        held = {id(self.fields[number].get(self.fields[number].thing)): number for number in self._containers}
        return tuple(held[id(value)] for value in values if type(value) in _CONTAINERS and id(value) in held)

    def canonical(self, value: object) -> Any:
        """A value as plain numbers, strings and tuples. NotKept for what has no stable name."""
        if type(value) in _PLAIN_TYPES:
            return value
        if isinstance(value, State):
            return ("state", self.names[value])
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
        if isinstance(value, bytearray):
            return ("bytes", bytes(value))
        atom = self.atoms.get(id(value))
        if atom is None:
            raise NotKept(f"a {type(value).__qualname__} has no name that is the same in every process: {value!r}")
        return atom

    def check(self) -> None:
        """TypeError if a slot holds a mutable container that `take` would not copy. For tests.

        WIRING may: it is filled before anybody sees it.
        """
        for field in self.fields:
            if field.slot not in slots_of(type(field.thing), wiring=False):
                continue
            value = field.get(field.thing)
            if isinstance(value, (list, dict, set, deque, bytearray)) and type(value) is not field.container:
                owner = type(field.thing).__name__
                raise TypeError(f"{owner}.{field.slot} became a {type(value).__name__}: make it a tuple")


def is_kept(value: object, nested: bool = True) -> bool:
    """A value that can be put back as it was: nothing in it changes in place, but a container in a slot itself."""
    if type(value) in _PLAIN_TYPES or isinstance(value, (State, MethodType, FunctionType, enum.Enum, type)):
        return True
    if type(value) is dict and not nested:
        return all(is_kept(key) and is_kept(item) for key, item in value.items())
    if isinstance(value, tuple) or (type(value) in _CONTAINERS and not nested):
        return all(map(is_kept, value))  # type: ignore[call-overload]
    return isinstance(value, BaseException)


def _content(container: Any) -> tuple[Any, ...] | bytes:
    if type(container) is bytearray:
        return bytes(container)
    return tuple(container.items()) if type(container) is dict else tuple(container)


def _flat(container: Any) -> tuple[Any, ...]:
    """The same, to be compared by identity."""
    return (*container, *container.values()) if type(container) is dict else tuple(container)


def _refill(container: Any, content: Any) -> None:
    """Give a container the content that it had."""
    if type(container) is dict:
        container.clear()
        container.update(content)
    elif type(container) is deque:
        container.clear()
        container.extend(content)
    else:
        container[:] = content


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
