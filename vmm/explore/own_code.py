"""A scenario's own functions: what they may be, and that what they change is in States.

The search goes back to states that it has seen, and puts every `State` back to what it was there. A list, a global or
an object of another kind stays as it is, so a function that changes one does something else the second time, in an
order that depends on the search: what is found then is no fault of what is explored. So everything that the functions
of a scene can reach is looked at before the search, and again after each of their calls.
"""

from __future__ import annotations

import functools
import itertools
import operator
import sys
import sysconfig
from collections import deque
from pathlib import Path
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import TYPE_CHECKING, Any, Final

from vmm.errors import UsageError
from vmm.explore.heap import is_kept, slots_of
from vmm.order import State

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator

OURS: Final = tuple(Path(__file__).parents[2] / name for name in ("vmm", "devices", "machine"))
"""Folders of the explored code."""
LIBRARIES: Final = tuple(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))
MODULE: Final = "vintx_scenario_"
"""What the modules of scenario files are called, and the file's name."""
_ROOTS: Final = frozenset(folder.name for folder in OURS)
_PLAIN: Final = (int, float, complex, str, bytes, type(None))
_MOST: Final = 10_000
"""Objects that are looked at; whoever keeps more outside is not followed to the end."""


def is_within(name: str, folders: tuple[Path, ...]) -> bool:
    """A file, or what has no file, belongs to one of some folders."""
    return name.startswith("<") or any(Path(name).is_relative_to(folder) for folder in folders)


def is_own(function: object) -> bool:
    """It is a scenario's, or no function at all, and none of the explored code or of a library."""
    if not isinstance(function, FunctionType) or (function.__module__ or "").startswith(MODULE):
        return True
    return not is_within(function.__code__.co_filename, (*OURS, *LIBRARIES))


def callable_or_refuse(function: object, what: str) -> None:
    """UsageError for what cannot be called, or would not run if it is."""
    if not callable(function):
        raise UsageError(f"{what} is a function, and not {function!r}: lambda: ...")
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & 0x2A0:  # CO_GENERATOR, CO_COROUTINE, CO_ASYNC_GENERATOR
        raise UsageError(f"{what} has a yield or is async: called, it does nothing")


def is_never_run(result: object) -> bool:
    """What a call came to says that nothing of the function has run."""
    return isinstance(result, (GeneratorType, CoroutineType, AsyncGeneratorType))


def state_or_refuse(thing: object) -> State:
    """UsageError for what the explorer cannot put back."""
    if isinstance(thing, State):
        return thing
    raise UsageError(
        f"{thing!r} is no State, so its changes could not be taken back: make it a class of vmm.order.State, with "
        'BOOKKEEPING = __slots__ = ("field", ...)'
    )


def refuse_what_is_not_kept(state: State) -> None:
    """UsageError for a State with something in it that could not be put back."""
    kind = type(state)
    for slot in slots_of(kind, wiring=False):
        if not hasattr(state, slot):
            raise UsageError(f"{kind.__qualname__}.{slot} has no value: give it one in __init__")
        value = getattr(state, slot)
        if not is_kept(value, nested=False):
            raise UsageError(f"{kind.__qualname__}.{slot} is {value!r}, {NOT_KEPT}")


NOT_KEPT: Final = (
    "which could not be put back: a field holds None, numbers, texts, States, functions and tuples of these, or is a "
    "list, a deque or a dict of them from the beginning"
)


class Outside:
    """What some functions can reach and change, apart from the States that are `known`, as it is now."""

    def __init__(self, functions: Iterable[object], known: Container[State]) -> None:
        self.known = known
        self._places = list(_places(functions))
        self._was = [self._freeze(get) for _, _, get in self._places]

    def changed(self) -> tuple[str, FunctionType] | None:
        """The first that is not what it was: its name, and a function that refers to it."""
        for (name, function, get), was in zip(self._places, self._was, strict=True):
            if self._freeze(get) != was:
                return name, function
        return None

    def _freeze(self, get: Callable[[], object]) -> Any:
        left = itertools.count(_MOST, -1)
        return self._frozen(get(), left, {})

    def _frozen(self, value: Any, left: Iterator[int], seen: dict[int, int]) -> Any:
        """Something to be compared: equal as long as nothing has changed."""
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if id(value) in seen or next(left) < 0:
            return seen.get(id(value), -1)
        seen[id(value)] = len(seen)

        def all_of(values: Iterable[Any]) -> tuple[Any, ...]:
            return tuple([self._frozen(item, left, seen) for item in values])

        if isinstance(value, (set, frozenset)):
            return kind, frozenset(value)
        if isinstance(value, bytearray):
            return kind, bytes(value)
        if isinstance(value, dict):
            return kind, all_of(value), all_of(value.values())
        if isinstance(value, (list, tuple, deque)):
            return kind, all_of(value)
        if isinstance(value, State):
            if value in self.known:
                return id(value)
            return id(value), all_of(getattr(value, slot, None) for slot in slots_of(kind))
        if (
            isinstance(value, (FunctionType, MethodType, ModuleType, Path))
            or kind.__module__.partition(".")[0] in _ROOTS
        ):
            return id(value)
        if isinstance(value, type):
            mine = value.__module__.partition(".")[0] not in _ROOTS and value.__module__ != "builtins"
            own = [item for name, item in vars(value).items() if name[:2] != "__" and not hasattr(item, "__get__")]
            return id(value), all_of(own) if mine else ()
        if isinstance(value, GeneratorType):
            return id(value), value.gi_frame.f_lasti if value.gi_frame is not None else -1
        if isinstance(value, itertools.count):
            return id(value), repr(value)
        hint = operator.length_hint(value, -1)
        if _is_librarys(kind.__module__) and kind is not SimpleNamespace:
            return id(value), hint  # what it keeps for itself, a cache, is its own
        fields = getattr(value, "__dict__", None)
        return id(value), hint, all_of(fields.values()) if isinstance(fields, dict) else ()


@functools.cache
def _is_librarys(module: str) -> bool:
    known = sys.modules.get(module)  # a scenario's own is not in there
    file = getattr(known, "__file__", None)
    return known is not None and (file is None or is_within(file, LIBRARIES))


def _places(functions: Iterable[object]) -> Iterator[tuple[str, FunctionType, Callable[[], object]]]:
    """What the code of functions refers to: its name, by whom, and how it is looked up."""
    todo: deque[object] = deque(functions)
    seen: set[int] = set()
    while todo:
        function = todo.popleft()
        if isinstance(function, functools.partial):
            todo += (function.func, *function.args)
        elif isinstance(function, MethodType):
            todo.append(function.__func__)
        if not isinstance(function, FunctionType) or id(function) in seen:
            continue
        seen.add(id(function))
        if not is_own(function):
            continue
        for name, get in _references(function):
            todo.append(get())
            yield name, function, get


def _references(function: FunctionType) -> Iterator[tuple[str, Callable[[], object]]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        yield name, functools.partial(_content, cell)
    known = function.__globals__
    for name in sorted(_names(function.__code__)):
        if name in known:
            yield name, functools.partial(known.get, name)
    for value in function.__defaults__ or ():
        yield "a default", functools.partial(_same, value)


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing was assigned yet
        return None


def _same(value: object) -> object:
    return value


def _names(code: CodeType) -> set[str]:
    """Names that code looks up among the globals, with that of functions inside of it."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _names(constant)
    return found
