"""Commands that reach virtio devices: the balloon, and network cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm.announce import Pace
from vmm.errors import QmpError
from vmm.qmp.command import BOOL, INT, INT32, SIZE, STR, Arg, CommandGroup, Enum, ListOf, Struct, Union

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()


@GROUP.command("query-balloon", returns=Struct((Arg("actual", SIZE, doc="bytes"),), name="BalloonInfo"))
def query_balloon(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """How much memory the balloon leaves the guest. DeviceNotActive if there is no virtio-balloon-pci."""
    balloon = call.target.balloon()
    if balloon is None:
        raise QmpError("No balloon device has been activated", "DeviceNotActive")
    return {"actual": balloon.actual}


@GROUP.command("balloon", Arg("value", INT, doc="bytes that the guest is to keep"))
def set_balloon(call: Call, arguments: Arguments) -> None:
    """Ask the guest to give memory, or to take it back. BALLOON_CHANGE tells how it goes."""
    if arguments["value"] <= 0:
        raise QmpError("Parameter 'target' expects a size")
    balloon = call.target.balloon()
    if balloon is None:
        raise QmpError("No balloon device has been activated", "DeviceNotActive")
    balloon.set_target(arguments["value"])


@GROUP.command(
    "announce-self",
    Arg("initial", INT, doc="milliseconds to the second announcement"),
    Arg("max", INT, doc="milliseconds between two at most"),
    Arg("rounds", INT, doc="how many; 0 ends what was begun"),
    Arg("step", INT, doc="milliseconds that each waits longer"),
    Arg("interfaces", ListOf(STR), optional=True, doc="ids of network cards; all if not given"),
    Arg("id", STR, optional=True, doc="names the announcement"),
)
def announce_self(call: Call, arguments: Arguments) -> None:
    """Let the network know where the guest's cards are."""
    for name, least, most in (
        ("initial", 1, 100_000),
        ("max", 1, 100_000),
        ("rounds", 0, 1000),
        ("step", 0, 10_000),
    ):
        if not least <= arguments[name] <= most:
            raise QmpError(f"Parameter 'announce-{name}' expects a value between {least} and {most}")
    pace = Pace(arguments["initial"], arguments["max"], arguments["rounds"], arguments["step"])
    call.target.announce(arguments.get("id", ""), pace, arguments.get("interfaces"))


_NETDEV: Final = Union(
    "Netdev",
    (Arg("id", STR), Arg("type", Enum(("hubport", "socket"), "NetClientDriver"))),
    "type",
    {
        "hubport": Struct((Arg("hubid", INT32, doc="the hub"),)),
        "socket": Struct(
            (
                Arg("fd", STR, optional=True, doc="a descriptor of this process"),
                Arg("listen", STR, optional=True, doc="HOST:PORT to wait at"),
                Arg("connect", STR, optional=True, doc="HOST:PORT to go to"),
            )
        ),
    },
)


@GROUP.command("netdev_add", union=_NETDEV)
def netdev_add(call: Call, arguments: Arguments) -> None:
    """Make a network back end, for a card that device_add plugs."""
    call.target.netdev_add({name: str(value) for name, value in arguments.items()})


@GROUP.command("netdev_del", Arg("id", STR))
def netdev_del(call: Call, arguments: Arguments) -> None:
    """Remove a network back end that no card has."""
    call.target.netdev_del(arguments["id"])


@GROUP.command("set_link", Arg("name", STR, doc="a netdev or a network card"), Arg("up", BOOL))
def set_link(call: Call, arguments: Arguments) -> None:
    """Plug the cable of a network card in, or pull it out."""
    call.target.set_link(arguments["name"], arguments["up"])
