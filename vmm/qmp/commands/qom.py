"""Commands of the object model: paths, properties and types."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vmm.errors import VintxError
from vmm.qmp import types
from vmm.qmp.command import ANY, BOOL, STR, Arg, CommandGroup, ListOf

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()
_PATH = Arg("path", STR, doc="absolute, or the end of one object's path")


@GROUP.command("qom-list", _PATH, returns=ListOf(types.PROPERTY), preconfig=True)
def qom_list(call: Call, arguments: Arguments) -> Any:
    """The properties of an object."""
    return [info.as_qmp() for info in call.target.qom_list(arguments["path"])]


@GROUP.command("qom-get", _PATH, Arg("property", STR), returns=ANY, preconfig=True)
def qom_get(call: Call, arguments: Arguments) -> Any:
    """A property's value."""
    return call.target.qom_get(arguments["path"], arguments["property"])


@GROUP.command("qom-list-get", Arg("paths", ListOf(STR)), returns=ListOf(types.PROPERTY_VALUES), preconfig=True)
def qom_list_get(call: Call, arguments: Arguments) -> Any:
    """All properties of several objects, with those values that can be read."""
    return [{"properties": _values(call, path)} for path in arguments["paths"]]


def _values(call: Call, path: str) -> list[dict[str, Any]]:
    values = []
    for info in call.target.qom_list(path):
        value = {"name": info.name, "type": info.type}
        with suppress(VintxError):  # A property that cannot be read is listed without its value.
            value["value"] = call.target.qom_get(path, info.name)
        values.append(value)
    return values


@GROUP.command("qom-set", _PATH, Arg("property", STR), Arg("value", ANY), preconfig=True)
def qom_set(call: Call, arguments: Arguments) -> None:
    """Set a property."""
    call.target.qom_set(arguments["path"], arguments["property"], arguments["value"])


@GROUP.command(
    "qom-list-types",
    Arg("implements", STR, optional=True, doc="only those that are, or derive from, this"),
    Arg("abstract", BOOL, optional=True, doc="abstract ones, too"),
    returns=ListOf(types.TYPE_INFO),
    preconfig=True,
)
def qom_list_types(call: Call, arguments: Arguments) -> Any:
    """The types that there are."""
    types = call.target.qom_list_types(arguments.get("implements"), arguments.get("abstract", False))
    return [info.as_qmp() for info in types]


@GROUP.command("qom-list-properties", Arg("typename", STR), returns=ListOf(types.PROPERTY), preconfig=True)
def qom_list_properties(call: Call, arguments: Arguments) -> Any:
    """The properties that an object of a type will have."""
    return [info.as_qmp() for info in call.target.qom_list_properties(arguments["typename"])]
