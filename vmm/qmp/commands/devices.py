"""Commands that plug and unplug devices and objects, and look at the buses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import QmpError
from vmm.qmp import types
from vmm.qmp.command import BOOL, INT, STR, Arg, CommandGroup, Enum, ListOf, Struct, Union

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import ArgType, Arguments
    from vmm.qmp.target import MachineTarget

GROUP = CommandGroup()


@GROUP.command(
    "device_add",
    Arg("driver", STR),
    Arg("bus", STR, optional=True),
    Arg("id", STR, optional=True, doc="its name; without one it can be unplugged by its path only"),
    checked=False,
    features=("json-cli", "json-cli-hotplug"),
)
def device_add(call: Call, arguments: Arguments) -> None:
    """Plug a device. Besides these arguments it takes all properties of the driver, of their JSON types."""
    if not isinstance(arguments.get("driver"), str):
        raise QmpError("Parameter 'driver' is missing")
    call.target.device_add(dict(arguments), from_text=False)


@GROUP.command("device_del", Arg("id", STR, doc="id or QOM path"))
def device_del(call: Call, arguments: Arguments) -> None:
    """Ask for a device to be unplugged. DEVICE_DELETED tells when it is gone."""
    call.target.device_del(arguments["id"])


@GROUP.command("x-device-pull", Arg("id", STR, doc="id or QOM path"))
def x_device_pull(call: Call, arguments: Arguments) -> None:
    """Pull a card out of its slot, as a hand would: the guest is not asked. DEVICE_DELETED comes at once."""
    call.target.device_pull(arguments["id"])


@GROUP.command("device-list-properties", Arg("typename", STR), returns=ListOf(types.PROPERTY))
def device_list_properties(call: Call, arguments: Arguments) -> Any:
    """What `device_add` takes for a driver."""
    return [info.as_qmp() for info in call.target.device_list_properties(arguments["typename"])]


@GROUP.command(
    "object-add",
    union=Union("ObjectOptions", (Arg("qom-type", STR), Arg("id", STR)), "qom-type", {}, open=True),
    preconfig=True,
)
def object_add(call: Call, arguments: Arguments) -> None:
    """Make an object below /objects. Which types there are, and what each takes, the schema tells."""
    qom_type = arguments["qom-type"]
    if qom_type not in call.target.object_types():
        raise QmpError(f"Parameter 'qom-type' does not accept value '{qom_type}'")
    props = {name: value for name, value in arguments.items() if name not in ("qom-type", "id")}
    call.target.object_add(qom_type, arguments["id"], props, from_text=False)


def object_options(call_target: MachineTarget) -> Union:
    """What object-add takes: a type of this machine, and its properties."""
    names = call_target.object_types()
    variants = {
        name: Struct(tuple(Arg(p.name, json_type(p.type), optional=True) for p in call_target.object_properties(name)))
        for name in names
    }
    base = (Arg("qom-type", Enum(tuple(names), "ObjectType")), Arg("id", STR))
    return Union("ObjectOptions", base, "qom-type", variants)


def json_type(name: str) -> ArgType:
    """The JSON type of a property, by the name that qom-list shows of its type."""
    if name in ("bool", "boolean"):
        return BOOL
    if name.startswith(("int", "uint", "size")):
        return INT
    return STR


@GROUP.command("object-del", Arg("id", STR), preconfig=True)
def object_del(call: Call, arguments: Arguments) -> None:
    """Delete an object."""
    call.target.object_del(arguments["id"])


@GROUP.command("query-pci", returns=ListOf(types.PCI_INFO))
def query_pci(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The PCI buses and their devices."""
    return [bus.as_qmp() for bus in call.target.pci()]
