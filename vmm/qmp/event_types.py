"""The events that machines and devices emit: their data, and how often one may come.

Ref: vectors qemu-qmp-schema.json; the periods are QEMU's (monitor/monitor.c).
"""

from __future__ import annotations

from typing import Final

from vmm.qmp.command import BOOL, INT, SIZE, STR, Arg, Enum, EventType, Struct
from vmm.qmp.types import OST_INFO, WATCHDOG_ACTION

_SHUTDOWN_CAUSE = Enum(
    (
        "none",
        "host-error",
        "host-qmp-quit",
        "host-qmp-system-reset",
        "host-signal",
        "host-ui",
        "guest-shutdown",
        "guest-reset",
        "guest-panic",
        "subsystem-reset",
        "snapshot-load",
    ),
    "ShutdownCause",
)
_CAUSE = Struct((Arg("guest", BOOL, doc="the guest asked for it"), Arg("reason", _SHUTDOWN_CAUSE)))
_PANIC = Struct((Arg("action", Enum(("pause", "poweroff", "run"), "GuestPanicAction")),))
_DEVICE = Struct((Arg("device", STR, optional=True, doc="its id, if it has one"), Arg("path", STR)))
_VFIO_USER = (Arg("device", STR, optional=True), Arg("path", STR), Arg("socket", STR, optional=True))

EVENTS: Final = {
    event.name: event
    for event in (
        EventType("SHUTDOWN", "The machine ends, or with -no-shutdown stands still for good.", _CAUSE),
        EventType("POWERDOWN", "The power button was pressed."),
        EventType("RESET", "The machine is reset.", _CAUSE),
        EventType("STOP", "The guest stands still."),
        EventType("RESUME", "The guest runs."),
        EventType(
            "WATCHDOG", "The watchdog's time ran out.", Struct((Arg("action", WATCHDOG_ACTION),)), period_ms=1000
        ),
        EventType("GUEST_PANICKED", "The guest told of its panic (pvpanic).", _PANIC),
        EventType("GUEST_CRASHLOADED", "The guest runs its crash kernel.", _PANIC),
        EventType("GUEST_PVSHUTDOWN", "The guest told of its end (pvpanic)."),
        EventType("DEVICE_DELETED", "A device is gone; its id is free.", _DEVICE),
        EventType("DEVICE_UNPLUG_GUEST_ERROR", "The guest does not let go of a device.", _DEVICE),
        EventType(
            "ACPI_DEVICE_OST",
            "The guest's ACPI code told how a hot-plug went.",
            Struct(
                (
                    Arg(
                        "info",
                        OST_INFO,
                    ),
                )
            ),
        ),
        EventType(
            "RTC_CHANGE",
            "The guest set its clock.",
            Struct((Arg("offset", INT, doc="seconds to the host's"), Arg("qom-path", STR))),
            period_ms=1000,
        ),
        EventType(
            "VSERPORT_CHANGE",
            "The guest opened or closed a virtio serial port.",
            Struct((Arg("id", STR), Arg("open", BOOL))),
            period_ms=1000,
            key="id",
        ),
        EventType(
            "BLOCK_IO_ERROR",
            "The host failed to read or write an image.",
            Struct(
                (
                    Arg("qom-path", STR),
                    Arg("device", STR),
                    Arg("node-name", STR, optional=True),
                    Arg("operation", Enum(("read", "write"), "IoOperationType")),
                    Arg("action", Enum(("ignore", "report", "stop"), "BlockErrorAction")),
                    Arg("nospace", BOOL, optional=True),
                    Arg("reason", STR),
                )
            ),
            period_ms=1000,
            key="qom-path",
        ),
        EventType(
            "BALLOON_CHANGE",
            "The guest changed the size of its balloon.",
            Struct((Arg("actual", SIZE, doc="bytes that are left to it"),)),
            period_ms=1000,
        ),
        EventType("VFIO_USER_CONNECTED", "A vfio-user-pci device has its server.", Struct(_VFIO_USER, open=True)),
        EventType(
            "VFIO_USER_DISCONNECTED",
            "A vfio-user-pci device lost its server.",
            Struct((*_VFIO_USER, Arg("reason", STR)), open=True),
        ),
    )
}
