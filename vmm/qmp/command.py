"""The registry of QMP commands: each is declared once, with what it takes and what it returns.

A command is a function `handler(call, arguments) -> reply` and a declaration:

    @GROUP.command("device_del", Arg("id", STR, doc="id or QOM path"))
    def device_del(call: Call, arguments: Arguments) -> None:
        call.target.device_del(str(arguments["id"]))

From the declaration come the check of arguments, `query-qmp-schema` (`vmm.qmp.introspect`), the reference and the type
stubs (`vmm.qmp.document`). Arguments are checked before the handler runs, in the declared order, and refused in QEMU's
words. A handler returns what JSON can say (None stands for `{}`), or is an `async def`, and raises an error of
`vmm.errors` to refuse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from vmm.errors import QmpError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from vmm.qmp.call import Call

    Arguments = Mapping[str, Any]
    Handler = Callable[[Call, Arguments], Any]


class ArgType(Protocol):
    """A type of argument."""

    def check(self, value: object, path: str, name: str) -> None:
        """Raise QmpError unless `value` is of this type.

        `path` is the argument's full name (`model.name`, `paths[0]`); `name` its last part, `null` for an element.
        """


def _mistyped(path: str, expected: str) -> QmpError:
    return QmpError(f"Invalid parameter type for '{path}', expected: {expected}")


class Scalar(NamedTuple):
    """A JSON type that has a Python type of its own. `expected`: what QEMU calls it."""

    python_type: type
    expected: str

    def check(self, value: object, path: str, name: str) -> None:  # noqa: ARG002
        """See `ArgType`. True and 1 are not the same here."""
        if type(value) is not self.python_type:
            raise _mistyped(path, self.expected)


class Number:
    """An integer or a floating-point number."""

    def check(self, value: object, path: str, name: str) -> None:  # noqa: ARG002
        """See `ArgType`."""
        if type(value) is not int and type(value) is not float:
            raise _mistyped(path, "number")


class Integer(NamedTuple):
    """An integer with a range. `c_type` is QEMU's name of it, such as `int32_t`."""

    low: int = -(1 << 63)
    high: int = (1 << 63) - 1
    c_type: str = "int64"

    def check(self, value: object, path: str, name: str) -> None:
        """See `ArgType`."""
        unsigned = self.c_type.startswith("u")
        if type(value) is not int or not -(1 << 63) <= value < (1 << 64 if unsigned else 1 << 63):
            raise QmpError(f"Parameter '{path}' expects uint64") if unsigned else _mistyped(path, "integer")
        if not self.low <= value <= self.high:
            raise QmpError(f"Parameter '{name}' expects {self.c_type}")


class Anything:
    """Any JSON value."""

    def check(self, value: object, path: str, name: str) -> None:
        """See `ArgType`."""


class Enum(NamedTuple):
    """One of a few strings. A type with a name is shown under it in the reference."""

    values: tuple[str, ...]
    name: str = ""

    def check(self, value: object, path: str, name: str) -> None:
        """See `ArgType`. A bad element of a list is of parameter `null`, as recorded."""
        if type(value) is not str:
            raise _mistyped(path, "string")
        if value not in self.values:
            raise QmpError(f"Parameter '{name}' does not accept value '{value}'")


class ListOf(NamedTuple):
    """An array of one type."""

    element: ArgType

    def check(self, value: object, path: str, name: str) -> None:  # noqa: ARG002
        """See `ArgType`."""
        if type(value) is not list:
            raise _mistyped(path, "array")
        for index, element in enumerate(value):
            self.element.check(element, f"{path}[{index}]", "null")


class Struct(NamedTuple):
    """An object with declared members. `open`: undeclared members are let through to the handler."""

    members: tuple[Arg, ...]
    open: bool = False
    name: str = ""

    def check(self, value: object, path: str, name: str) -> None:  # noqa: ARG002
        """See `ArgType`."""
        if type(value) is not dict:
            raise _mistyped(path, "object")
        self.check_members(value, f"{path}.")

    def check_members(self, given: Mapping[str, Any], prefix: str = "") -> None:
        """Raise QmpError unless all that must be there is there, of its type, and nothing else."""
        known = 0
        for member in self.members:
            name = member.name
            if name in given:
                known += 1
                member.type.check(given[name], prefix + name, name)
            elif not member.optional:
                raise QmpError(f"Parameter '{prefix}{name}' is missing")
        if known != len(given) and not self.open:
            declared = {member.name for member in self.members}
            unknown = next(name for name in given if name not in declared)
            raise QmpError(f"Parameter '{prefix}{unknown}' is unexpected")


class Union(NamedTuple):
    """An object whose further members depend on one of its own, `tag`: a member of `base` that is an `Enum`.

    A value of the tag that is not in `variants` has no further members, or any if it is `open`.
    """

    name: str
    base: tuple[Arg, ...]
    tag: str
    variants: Mapping[str, Struct]
    open: bool = False

    def check(self, value: object, path: str, name: str) -> None:  # noqa: ARG002
        """See `ArgType`."""
        if type(value) is not dict:
            raise _mistyped(path, "object")
        self.check_members(value, f"{path}.")

    def check_members(self, given: Mapping[str, Any], prefix: str = "") -> None:
        """As `Struct.check_members`: the base first, then what the tag's value asks for."""
        Struct(self.base, open=True).check_members(given, prefix)
        variant = self.variants.get(given.get(self.tag, ""), NOTHING)
        Struct((*self.base, *variant.members), variant.open or self.open).check_members(given, prefix)


class Alternate(NamedTuple):
    """A string, or an object."""

    name: str
    string: ArgType
    mapping: ArgType

    def check(self, value: object, path: str, name: str) -> None:
        """See `ArgType`."""
        if type(value) is str:
            self.string.check(value, path, name)
        elif type(value) is dict:
            self.mapping.check(value, path, name)
        else:
            raise _mistyped(path, self.name)


class Later(NamedTuple):
    """A type that is declared further down, for types that hold their own kind."""

    type: Callable[[], ArgType]

    def check(self, value: object, path: str, name: str) -> None:
        """See `ArgType`."""
        self.type().check(value, path, name)


class Arg(NamedTuple):
    """An argument, or a member of a `Struct`. `doc`: a clause for the reference."""

    name: str
    type: ArgType
    optional: bool = False
    doc: str = ""


STR: Final = Scalar(str, "string")
BOOL: Final = Scalar(bool, "boolean")
NUMBER: Final = Number()
ANY: Final = Anything()
INT: Final = Integer()
INT8, INT16, INT32 = (Integer(-(1 << b - 1), (1 << b - 1) - 1, f"int{b}_t") for b in (8, 16, 32))
UINT8, UINT16, UINT32 = (Integer(0, (1 << b) - 1, f"uint{b}_t") for b in (8, 16, 32))
UINT64: Final = Integer(0, (1 << 64) - 1, "uint64")
SIZE: Final = UINT64
NOTHING: Final = Struct(())


class Command(NamedTuple):
    """A command. `oob`: it may run out of band, before those that wait; `preconfig`: also before the machine is.

    `returns` None stands for `{}`. `checked` False: the handler checks its arguments itself, `args` only tells of them.
    """

    name: str
    handler: Handler
    args: Struct | Union = NOTHING
    oob: bool = False
    preconfig: bool = False
    returns: ArgType | None = None
    checked: bool = True
    features: tuple[str, ...] = ()


class EventType(NamedTuple):
    """An event. `period_ms`: of several with the same `key` in this time only the first and the last are sent."""

    name: str
    doc: str
    data: Struct = NOTHING
    period_ms: int = 0
    key: str = ""
    """The member of the data that tells one source of such events from another; empty: there is one source."""


class CommandGroup:
    """Commands of one subject, in the order of their declaration."""

    def __init__(self) -> None:
        self.commands: list[Command] = []

    def command(
        self,
        name: str,
        *args: Arg,
        returns: ArgType | None = None,
        oob: bool = False,
        preconfig: bool = False,
        union: Union | None = None,
        checked: bool = True,
        features: tuple[str, ...] = (),
    ) -> Callable[[Handler], Handler]:
        """Declare the decorated function as a command. `union`: what it takes, if that is no list of arguments."""

        def declare(handler: Handler) -> Handler:
            self.commands.append(
                Command(name, handler, union or Struct(args), oob, preconfig, returns, checked, features)
            )
            return handler

        return declare


class Registry:
    """The commands that a monitor has, by name."""

    def __init__(self, commands: Iterable[Command] = ()) -> None:
        self._commands: dict[str, Command] = {}
        for command in commands:
            self.add(command)

    def add(self, command: Command) -> None:
        """Add one. Raises ValueError if the name is taken: two parts of a program claim one command."""
        if command.name in self._commands:
            raise ValueError(f"QMP command {command.name} is declared twice; rename one, or leave out its group")
        self._commands[command.name] = command

    def find(self, name: str) -> Command | None:
        """The command of that name."""
        return self._commands.get(name)

    def __iter__(self) -> Iterator[Command]:
        return iter(self._commands.values())

    def __len__(self) -> int:
        return len(self._commands)
