"""The reference of the monitor and its type stubs, from the declarations of commands and events.

    python -m vmm.qmp.document          writes docs/qmp-reference.md and vmm/qmp/wire.pyi

Both are in the repository; a test says when they are not what this makes.
"""

from __future__ import annotations

import inspect
import keyword
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.qmp.command import (
    NOTHING,
    Alternate,
    Anything,
    Enum,
    Integer,
    Later,
    ListOf,
    Number,
    Scalar,
    Struct,
    Union,
)
from vmm.qmp.commands import absent, block, character, control, devices, human, interrupts, kernel, machine, qom, virtio
from vmm.qmp.event_types import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from vmm.qmp.command import Arg, ArgType, Command

SUBJECTS: tuple[ModuleType, ...] = (
    control,
    machine,
    devices,
    qom,
    block,
    character,
    interrupts,
    kernel,
    virtio,
    human,
    absent,
)
_ROOT = Path(__file__).parents[2]
REFERENCE = _ROOT / "docs" / "qmp-reference.md"
STUBS = _ROOT / "vmm" / "qmp" / "wire.pyi"


def _resolved(kind: ArgType) -> ArgType:
    return kind.type() if isinstance(kind, Later) else kind


def _name(kind: ArgType) -> str:
    """A type as the reference calls it."""
    kind = _resolved(kind)
    if isinstance(kind, Scalar):
        return {str: "str", bool: "bool"}[kind.python_type]
    if isinstance(kind, Integer):
        return "int" if kind.c_type == "int64" else kind.c_type.removesuffix("_t")
    if isinstance(kind, Number):
        return "number"
    if isinstance(kind, Anything):
        return "any"
    return str(getattr(kind, "name", "") or "object")


# --- the reference -----------------------------------------------------------------------------------------------


def _rows(members: Iterable[Arg], what: str) -> Iterator[str]:
    rows = []
    for member in members:
        optional = "optional" if member.optional else ""
        about = "; ".join(part for part in (optional, member.doc) if part)
        rows.append(f"| `{member.name}` | {_shown(member.type)} | {about} |")
    if rows:
        yield "\n".join([f"| {what} | type | |", "|---|---|---|", *rows]) + "\n"


def _shown(kind: ArgType) -> str:
    kind = _resolved(kind)
    if isinstance(kind, ListOf):
        return f"list of {_shown(kind.element)}"
    name = _name(kind)
    return f"`{name}`" if name[:1].islower() else f"[{name}](#{name.lower()})"


def _doc(command: Command) -> str:
    return inspect.getdoc(command.handler) or ""


def _command(command: Command) -> Iterator[str]:
    yield f"### {command.name}\n"
    yield _doc(command) + "\n"
    takes = command.args
    if isinstance(takes, Union):
        yield f"Takes {_shown(takes)}.\n" if takes.variants else ""
        if not takes.variants:
            yield from _rows(takes.base, "argument")
    else:
        yield from _rows(takes.members, "argument")
    if command.returns is not None:
        yield f"Returns {_shown(command.returns)}.\n"
    marks = []
    if command.oob:
        marks.append("may be sent out of band")
    if command.preconfig:
        marks.append("may be sent before the machine is built (`-preconfig`)")
    if marks:
        yield "It " + " and ".join(marks) + ".\n"


class _Types:
    """All named types that commands and events reach, in the order in which they are met."""

    def __init__(self) -> None:
        self.named: dict[str, ArgType] = {}
        self._seen: set[int] = set()

    def add(self, kind: ArgType | None) -> None:
        if kind is None:
            return
        kind = _resolved(kind)
        if id(kind) in self._seen:
            return
        self._seen.add(id(kind))
        name = getattr(kind, "name", "")
        if name and name != "ObjectOptions":
            known = self.named.setdefault(name, kind)
            if known != kind:
                raise ValueError(f"two types are called {name}")
        for inner in _parts(kind):
            self.add(inner)


def _parts(kind: ArgType) -> Iterator[ArgType]:
    if isinstance(kind, ListOf):
        yield kind.element
    elif isinstance(kind, Alternate):
        yield from (kind.string, kind.mapping)
    elif isinstance(kind, Union):
        for member in (*kind.base, *(m for variant in kind.variants.values() for m in variant.members)):
            yield member.type
    elif isinstance(kind, Struct):
        for member in kind.members:
            yield member.type


def _all_types() -> dict[str, ArgType]:
    types = _Types()
    for module in SUBJECTS:
        for command in module.GROUP.commands:
            types.add(command.args)
            types.add(command.returns)
    for event in EVENTS.values():
        types.add(event.data)
    return types.named


def _type(name: str, kind: ArgType) -> Iterator[str]:
    yield f"### {name}\n"
    if isinstance(kind, Enum):
        yield "One of " + ", ".join(f"`{value}`" for value in kind.values) + ".\n"
    elif isinstance(kind, Alternate):
        yield f"{_shown(kind.string)} or {_shown(kind.mapping)}.\n"
    elif isinstance(kind, Union):
        yield from _rows(kind.base, "member")
        for value, variant in kind.variants.items():
            yield f"`{kind.tag}` is `{value}`:\n"
            yield from _rows(variant.members, "member")
            if not variant.members:
                yield "nothing more.\n"
    elif isinstance(kind, Struct):
        yield from _rows(kind.members, "member")
        if kind.open:
            yield "Further members depend on what it is about.\n"


_ABOUT = """Made from the declarations in `vmm/qmp` by `python -m vmm.qmp.document`: the commands of the monitor, by
subject, its events, and their types. Names, arguments and replies are those of QEMU 11.1.3; what begins with `x-` and
is not QEMU's, and types with an X, are this monitor's own. A running machine tells the same by `query-qmp-schema`.
"""


def reference() -> str:
    """docs/qmp-reference.md."""
    parts = ["# QMP reference\n", _ABOUT]
    for module in SUBJECTS:
        title = (inspect.getdoc(module) or "").splitlines()[0].rstrip(".")
        parts.append(f"## {title}\n")
        for command in module.GROUP.commands:
            parts += _command(command)
    parts.append("## Events\n")
    for event in EVENTS.values():
        parts.append(f"### {event.name}\n")
        parts.append(event.doc + "\n")
        if event.period_ms:
            of = f" of each `{event.key}`" if event.key else ""
            parts.append(f"At most one{of} in {event.period_ms} ms; the last one is never lost.\n")
        parts += _rows(event.data.members, "data")
    parts.append("## Types\n")
    for name, kind in sorted(_all_types().items()):
        parts += _type(name, kind)
    return "\n".join(part for part in parts if part).rstrip().replace("\n\n\n", "\n\n") + "\n"


# --- the stubs ---------------------------------------------------------------------------------------------------


def _hint(kind: ArgType) -> str:
    kind = _resolved(kind)
    if isinstance(kind, Scalar):
        return kind.python_type.__name__
    if isinstance(kind, Integer):
        return "int"
    if isinstance(kind, Number):
        return "float"
    if isinstance(kind, ListOf):
        return f"list[{_hint(kind.element)}]"
    if isinstance(kind, Enum) and not kind.name:
        return f"Literal[{', '.join(map(repr, kind.values))}]".replace("'", '"')
    return str(getattr(kind, "name", "")) or ("Any" if isinstance(kind, Anything) else "dict[str, Any]")


def _typed_dict(name: str, members: Iterable[Arg]) -> Iterator[str]:
    members = list(members)
    if all(member.name.isidentifier() and not keyword.iskeyword(member.name) for member in members):
        yield f"class {name}(TypedDict):"
        for member in members:
            hint = f"NotRequired[{_hint(member.type)}]" if member.optional else _hint(member.type)
            yield f"    {member.name}: {hint}"
        if not members:
            yield "    pass"
    else:
        yield f"{name} = TypedDict("
        yield f'    "{name}",'
        yield "    {"
        for member in members:
            hint = f"NotRequired[{_hint(member.type)}]" if member.optional else _hint(member.type)
            yield f'        "{member.name}": {hint},'
        yield "    },"
        yield ")"
    yield ""


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:].lower() for part in name.replace("_", "-").split("-"))


def _stub_type(name: str, kind: ArgType) -> Iterator[str]:
    if isinstance(kind, Enum):
        text = f"{name} = Literal[{', '.join(chr(34) + value + chr(34) for value in kind.values)}]"
        yield from textwrap.wrap(text, 110, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
        yield ""
    elif isinstance(kind, Alternate):
        yield f"{name} = {_hint(kind.string)} | {_hint(kind.mapping)}\n"
    elif isinstance(kind, Union):
        cases = []
        for value, variant in kind.variants.items():
            case = f"{name}{_camel(value)}"
            cases.append(case)
            yield from _typed_dict(case, (*kind.base, *variant.members))
        yield f"{name} = {' | '.join(cases)}\n"
    elif isinstance(kind, Struct):
        yield from _typed_dict(name, kind.members)


def stubs() -> str:
    """vmm/qmp/wire.pyi: for `if TYPE_CHECKING: from vmm.qmp.wire import StatusInfo`."""
    lines = [
        '"""What goes over the wire of QMP, for type checkers. Made by `python -m vmm.qmp.document`."""\n',
        "# ruff: noqa",
        "# fmt: off",
        "from typing import Any, Literal, NotRequired, Protocol, TypedDict, overload\n",
    ]
    for name, kind in sorted(_all_types().items()):
        lines += _stub_type(name, kind)
    lines += [
        "class Execute(Protocol):",
        '    """Executes a command and returns its reply: `execute("query-status")`."""\n',
    ]
    for module in SUBJECTS:
        for command in module.GROUP.commands:
            returns = "dict[str, Any]" if command.returns is None else _hint(command.returns)
            takes = command.args
            needs = isinstance(takes, Union) or any(not member.optional for member in takes.members)
            default = "" if needs else " = ..."
            lines.append("    @overload")
            call = f'command: Literal["{command.name}"], arguments: dict[str, Any]{default}'
            lines.append(f"    def __call__(self, {call}) -> {returns}: ...")
    lines += ["", "class Events:", '    """The data of each event, by its name."""\n']
    for event in EVENTS.values():
        if event.data != NOTHING:
            lines += [f"    class {event.name}(TypedDict):"]
            for member in event.data.members:
                hint = f"NotRequired[{_hint(member.type)}]" if member.optional else _hint(member.type)
                known = member.name if member.name.isidentifier() else None
                lines += [f"        {known}: {hint}"] if known else [f"        # {member.name}: {hint}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both files."""
    REFERENCE.write_text(reference(), encoding="utf-8")
    STUBS.write_text(stubs(), encoding="utf-8")


if __name__ == "__main__":
    main()
