"""Commands about the monitor itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import QmpError
from vmm.qmp import types
from vmm.qmp.command import STR, Arg, CommandGroup, Enum, ListOf

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()
CAPABILITY = Enum(("oob",), "QMPCapability")


@GROUP.command(
    "qmp_capabilities",
    Arg("enable", ListOf(CAPABILITY), optional=True, doc="what to switch on for this session"),
    preconfig=True,
)
def qmp_capabilities(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Begin: the first command of a session. Any later one is refused."""
    raise QmpError("Capabilities negotiation is already complete, command ignored", "CommandNotFound")


@GROUP.command("query-version", returns=types.VERSION_INFO, preconfig=True)
def query_version(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """QEMU's release whose monitor this is, and the package."""
    return call.version


@GROUP.command("query-commands", returns=ListOf(types.COMMAND_INFO), preconfig=True)
def query_commands(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The names of all commands."""
    return [{"name": command.name} for command in call.registry]


@GROUP.command("query-qmp-schema", returns=ListOf(types.SCHEMA_INFO), preconfig=True)
def query_qmp_schema(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """What commands take and return, and what events hold. Names of types mean nothing and may change."""
    from vmm.qmp.introspect import introspect

    return introspect(call.registry, call.target)


@GROUP.command(
    "query-command-line-options",
    Arg("option", STR, optional=True, doc="only this one"),
    returns=ListOf(types.LINE_OPTION),
    preconfig=True,
)
def query_command_line_options(call: Call, arguments: Arguments) -> Any:
    """The options that take parameters, and which."""
    rows = call.target.command_line_options()
    option = arguments.get("option")
    if option is None:
        return rows
    found = [row for row in rows if row["option"] == option]
    if not found:
        raise QmpError(f"invalid option name: {option}")
    return found


@GROUP.command("query-target", returns=types.TARGET_INFO)
def query_target(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The guest's architecture."""
    return {"arch": "x86_64"}


@GROUP.command("quit", preconfig=True)
def quit_(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """End the process; SHUTDOWN and this command's reply still come."""
    call.target.quit()
