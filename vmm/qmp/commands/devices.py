"""Commands that plug and unplug devices and objects, and look at the buses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import QmpError
from vmm.qmp.command import STR, Arg, CommandGroup

if TYPE_CHECKING:
    from vmm.qmp.command import Arguments, Call

GROUP = CommandGroup()


@GROUP.command("device_add", open=True)
def device_add(call: Call, arguments: Arguments) -> None:
    """Plug a device. No argument is checked here: a device's properties are known to its driver only."""
    if not isinstance(arguments.get("driver"), str):
        raise QmpError("Parameter 'driver' is missing")
    call.target.device_add(dict(arguments), from_text=False)


@GROUP.command("device_del", Arg("id", STR))
def device_del(call: Call, arguments: Arguments) -> None:
    """Ask for a device to be unplugged, by id or QOM path."""
    call.target.device_del(arguments["id"])


@GROUP.command("device-list-properties", Arg("typename", STR))
def device_list_properties(call: Call, arguments: Arguments) -> Any:
    """What `device_add` takes for a driver."""
    return [info.as_qmp() for info in call.target.device_list_properties(arguments["typename"])]


@GROUP.command("object-add", Arg("qom-type", STR), Arg("id", STR), open=True, preconfig=True)
def object_add(call: Call, arguments: Arguments) -> None:
    """Make an object below /objects."""
    qom_type = arguments["qom-type"]
    if qom_type not in call.target.object_types():
        raise QmpError(f"Parameter 'qom-type' does not accept value '{qom_type}'")
    props = {name: value for name, value in arguments.items() if name not in ("qom-type", "id")}
    call.target.object_add(qom_type, arguments["id"], props, from_text=False)


@GROUP.command("object-del", Arg("id", STR), preconfig=True)
def object_del(call: Call, arguments: Arguments) -> None:
    """Delete an object."""
    call.target.object_del(arguments["id"])


@GROUP.command("query-pci")
def query_pci(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The PCI buses and their devices."""
    return [bus.as_qmp() for bus in call.target.pci()]
