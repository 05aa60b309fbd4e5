"""Commands about the monitor itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import QmpError
from vmm.qmp.command import Arg, CommandGroup, Enum, ListOf

if TYPE_CHECKING:
    from vmm.qmp.command import Arguments, Call

GROUP = CommandGroup()


@GROUP.command("qmp_capabilities", Arg("enable", ListOf(Enum(("oob",))), optional=True), preconfig=True)
def qmp_capabilities(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """The session handles the first one; this is any later one."""
    raise QmpError("Capabilities negotiation is already complete, command ignored", "CommandNotFound")


@GROUP.command("query-version", preconfig=True)
def query_version(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """QEMU's release and the package."""
    return call.version


@GROUP.command("query-commands", preconfig=True)
def query_commands(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The names of all commands."""
    return [{"name": command.name} for command in call.registry]


@GROUP.command("query-target")
def query_target(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The guest's architecture."""
    return {"arch": "x86_64"}


@GROUP.command("quit", preconfig=True)
def quit_(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """End the process; SHUTDOWN and this command's reply still come."""
    call.target.quit()
