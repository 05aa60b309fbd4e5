"""Commands about what this machine has none of, answered as QEMU answers where it has none.

Clients ask for these before they do anything else; `[]` and a refusal in the expected words keep them going.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import QmpError
from vmm.qmp import types
from vmm.qmp.command import BOOL, INT, SIZE, STR, Arg, CommandGroup, Enum, ListOf, Struct

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()

_EMPTY = {
    "query-iothreads": (
        "IOThreadInfo",
        "I/O threads. One thread does everything.",
        (Arg("id", STR), Arg("thread-id", INT)),
    ),
    "query-mice": ("MouseInfo", "Pointing devices.", (Arg("name", STR), Arg("index", INT))),
    "query-rx-filter": ("RxFilterInfo", "Filters of network cards.", (Arg("name", STR),)),
    "query-jobs": ("JobInfo", "Background jobs.", (Arg("id", STR),)),
    "query-block-jobs": ("BlockJobInfo", "Background jobs of block devices.", (Arg("device", STR),)),
    "query-memory-devices": ("MemoryDeviceInfo", "DIMMs and the like.", (Arg("type", STR),)),
    "query-tpm": ("TPMInfo", "TPM devices.", (Arg("id", STR),)),
    "query-audiodevs": ("Audiodev", "Sound backends.", (Arg("id", STR),)),
    "query-stats-schemas": ("StatsSchema", "Statistics that there are.", (Arg("provider", STR),)),
    "query-migrate-capabilities": (
        "MigrationCapabilityStatus",
        "What a migration may use.",
        (Arg("state", BOOL),),
    ),
    "query-vcpu-dirty-limit": ("DirtyLimitInfo", "Limits of how fast a vCPU may write.", (Arg("cpu-index", INT),)),
    "query-fdsets": ("FdsetInfo", "Sets of descriptors that were handed over.", (Arg("fdset-id", INT),)),
}


def _empty(doc: str) -> Any:
    def handler(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
        return []

    handler.__doc__ = f"{doc} There are none: always `[]`."
    return handler


for _name, (_type, _doc, _members) in _EMPTY.items():
    GROUP.command(_name, returns=ListOf(Struct(_members, name=_type)), preconfig=_name == "query-iothreads")(
        _empty(_doc)
    )


@GROUP.command(
    "query-display-options", returns=Struct((Arg("type", Enum(("none",), "DisplayType")),), name="DisplayOptions")
)
def query_display_options(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """What `-display` said."""
    return {"type": "none"}


@GROUP.command("query-vm-generation-id", returns=Struct((Arg("guid", STR),), name="GuidInfo"))
def query_vm_generation_id(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The VM Generation ID device. There is none: always refused."""
    raise QmpError("VM Generation ID device not found")


_DUMP_FORMAT = Enum(("elf", "kdump-zlib", "kdump-raw-zlib"), "DumpGuestMemoryFormat")


@GROUP.command(
    "query-dump-guest-memory-capability",
    returns=Struct((Arg("formats", ListOf(_DUMP_FORMAT)),), name="DumpGuestMemoryCapability"),
)
def query_dump_guest_memory_capability(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Formats of a dump, of which there are none; pmemsave writes plain memory."""
    return {"formats": []}


@GROUP.command(
    "query-firmware-log",
    Arg("max-size", SIZE, optional=True),
    returns=Struct((Arg("log", STR),), name="FirmwareLog"),
)
def query_firmware_log(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """What the firmware had to say. There is none: always refused."""
    raise QmpError("firmware log buffer not found")


@GROUP.command(
    "query-replay",
    returns=Struct(
        (Arg("mode", Enum(("none", "record", "play"), "ReplayMode")), Arg("icount", INT)), name="ReplayInfo"
    ),
)
def query_replay(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Record and replay of a guest, which there is not."""
    return {"mode": "none", "icount": 0}


_MIGRATION_STATUS = Enum(("none", "setup", "active", "completed", "failed"), "MigrationStatus")


@GROUP.command(
    "query-migrate", returns=Struct((Arg("status", _MIGRATION_STATUS, optional=True),), name="MigrationInfo")
)
def query_migrate(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The migration at hand. There never is one: always `{}`."""
    return {}


@GROUP.command("migrate-pause", oob=True)
def migrate_pause(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Pause a migration. There never is one: always refused."""
    raise QmpError("migrate-pause is currently only supported during postcopy-active or postcopy-recover state")


@GROUP.command("migrate-recover", Arg("uri", STR), oob=True)
def migrate_recover(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Resume a migration. There never is one: always refused."""
    raise QmpError("Migrate recover can only be run when postcopy is paused.")


@GROUP.command("query-yank", returns=ListOf(types.YANK_INSTANCE), oob=True)
def query_yank(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """What can be yanked: sockets of character devices."""
    return [
        {"type": "chardev", "id": backend.id} for backend in call.target.chardevs.values() if backend.kind == "socket"
    ]


@GROUP.command("yank", Arg("instances", ListOf(types.YANK_INSTANCE)), oob=True)
def yank(call: Call, arguments: Arguments) -> None:
    """Cut connections that hang."""
    sockets = {row["id"] for row in query_yank(call, {})}
    for instance in arguments["instances"]:
        if instance["type"] != "chardev" or instance.get("id") not in sockets:
            raise QmpError("Instance not found", "DeviceNotFound")
    for instance in arguments["instances"]:
        call.target.chardevs[instance["id"]].hang_up()
