"""`query-qmp-schema`: the declarations of commands and events as QEMU's clients read them.

Types have numbers for names, as QEMU's have: what a type is called is nobody's business. Builtin types, commands and
events keep their names.

Ref: QEMU qapi/introspect.json.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

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
from vmm.qmp.commands.devices import object_options
from vmm.qmp.event_types import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmm.qmp.command import Arg, ArgType, Registry
    from vmm.qmp.target import MachineTarget

    Row = dict[str, Any]

_BUILTINS = {"str": "string", "any": "value", "bool": "boolean", "int": "int", "number": "number", "null": "null"}
_MAY_BE_NULL = {"default": None}


class _Named(NamedTuple):
    """A type that has its number. The type is kept: its id is the key."""

    number: str
    type: ArgType


class _Schema:
    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._types: dict[Any, _Named] = {}
        self._builtins: list[str] = []

    def of(self, kind: ArgType) -> str:
        """The name of a type, which is described if it was not yet."""
        if isinstance(kind, Later):
            return self.of(kind.type())
        builtin = _builtin(kind)
        if builtin:
            if builtin not in self._builtins:
                self._builtins.append(builtin)
            return builtin
        if isinstance(kind, ListOf):
            key: Any = ("list", self.of(kind.element))
        elif kind == NOTHING:
            key = ()
        else:
            key = id(kind)
        named = self._types.get(key)
        if named is None:
            named = self._types[key] = _Named(str(len(self._types)), kind)
            row: Row = {"name": named.number}
            self.rows.append(row)
            row |= self._describe(kind)
        return named.number

    def _describe(self, kind: ArgType) -> Row:
        if isinstance(kind, Enum):
            return {
                "meta-type": "enum",
                "members": [{"name": value} for value in kind.values],
                "values": list(kind.values),
            }
        if isinstance(kind, ListOf):
            return {"meta-type": "array", "element-type": self.of(kind.element)}
        if isinstance(kind, Alternate):
            return {"meta-type": "alternate", "members": [{"type": self.of(t)} for t in (kind.string, kind.mapping)]}
        if isinstance(kind, Union):
            return {
                "meta-type": "object",
                "members": self._members(kind.base),
                "tag": kind.tag,
                "variants": [{"case": name, "type": self.of(variant)} for name, variant in kind.variants.items()],
            }
        if isinstance(kind, Struct):
            return {"meta-type": "object", "members": self._members(kind.members)}
        raise TypeError(f"type {kind!r} has no description: teach vmm.qmp.introspect")

    def _members(self, members: Iterable[Arg]) -> list[Row]:
        return [
            {"name": member.name, "type": self.of(member.type)} | (_MAY_BE_NULL if member.optional else {})
            for member in members
        ]

    def builtins(self) -> list[Row]:
        return [{"name": name, "json-type": _BUILTINS[name], "meta-type": "builtin"} for name in self._builtins]


def _builtin(kind: ArgType) -> str:
    if isinstance(kind, Scalar):
        return {str: "str", bool: "bool"}[kind.python_type]
    if isinstance(kind, Integer):
        return "int"
    if isinstance(kind, Number):
        return "number"
    return "any" if isinstance(kind, Anything) else ""


def introspect(registry: Registry, target: MachineTarget) -> list[Row]:
    """The reply of query-qmp-schema. Which objects can be made, `target` knows."""
    schema = _Schema()
    schema.of(NOTHING)
    entities: list[Row] = []
    for command in registry:
        takes = object_options(target) if command.name == "object-add" else command.args
        row: Row = {
            "name": command.name,
            "ret-type": schema.of(NOTHING if command.returns is None else command.returns),
            "meta-type": "command",
            "arg-type": schema.of(takes),
        }
        if command.oob:
            row["allow-oob"] = True
        if command.features:
            row["features"] = list(command.features)
        entities.append(row)
    for event in EVENTS.values():
        entities.append({"name": event.name, "meta-type": "event", "arg-type": schema.of(event.data)})
    return entities + schema.rows + schema.builtins()
