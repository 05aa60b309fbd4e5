"""Arguments that come as text, as on a command line, turned into what a declared type takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.cli.keyval import parse_bool, parse_size
from vmm.errors import UsageError
from vmm.qmp.command import Alternate, Integer, Later, ListOf, Scalar, Struct, Union

if TYPE_CHECKING:
    from vmm.qmp.command import Arg, ArgType


def from_text(kind: ArgType, value: Any, name: str = "") -> Any:
    """`value` with its texts as numbers and booleans, wherever `kind` has such. UsageError for a text that is none.

    Whatever does not fit is left as it is: the type's check says what is wrong.
    """
    if isinstance(kind, Later):
        return from_text(kind.type(), value, name)
    if isinstance(value, str):
        if isinstance(kind, Scalar) and kind.python_type is bool:
            return parse_bool(name, value)
        if isinstance(kind, Integer):
            sign = -1 if value.startswith("-") else 1
            try:
                return sign * parse_size(name, value.removeprefix("-"))
            except UsageError:
                raise UsageError(f"Parameter '{name}' expects an integer") from None
        return value
    if isinstance(value, list):
        return [from_text(kind.element, element, name) for element in value] if isinstance(kind, ListOf) else value
    if not isinstance(value, dict):
        return value
    if isinstance(kind, Alternate):
        return from_text(kind.mapping, value, name)
    members = {member.name: member.type for member in _members(kind, value)}
    return {key: from_text(members[key], given, key) if key in members else given for key, given in value.items()}


def _members(kind: ArgType, value: dict[str, Any]) -> tuple[Arg, ...]:
    if isinstance(kind, Union):
        variant = kind.variants.get(str(value.get(kind.tag)))
        return (*kind.base, *(variant.members if variant else ()))
    return kind.members if isinstance(kind, Struct) else ()
