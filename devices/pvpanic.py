"""pvpanic: a byte by which a guest tells the host that it has panicked, on ISA (`pvpanic`) or PCI (`pvpanic-pci`).

What becomes of a machine whose guest panicked is `-action panic=`. Ref: QEMU, docs/specs/pvpanic.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from devices.device import Device, Property
from devices.pci.device import PciDevice
from vmm.errors import PropertyError
from vmm.memory import IoRegion

if TYPE_CHECKING:
    from devices.device import Board

PANICKED, CRASH_LOADED, SHUTDOWN = 1, 2, 4
"""What the guest may say, a bit each: it panicked; it panicked and boots a crash kernel itself; it shuts down."""
EVENTS = PANICKED | CRASH_LOADED | SHUTDOWN
BAR_SIZE = 16
"""The least that a memory BAR can have; the byte is the first."""


class PanicBoard(Protocol):
    """A board that knows what to do with a guest's last words."""

    def guest_panicked(self) -> None: ...
    def guest_crash_loaded(self) -> None: ...
    def guest_pv_shutdown(self) -> None: ...


class _Port:
    """The byte. Reading gives the events that the guest may use; a write is one of them."""

    __slots__ = ("board", "events")

    def __init__(self, board: PanicBoard, events: int) -> None:
        self.board = board
        self.events = events

    def read(self, offset: int, _size: int) -> int:
        return self.events if offset == 0 else 0

    def write(self, offset: int, _size: int, value: int) -> None:
        if offset:
            return
        if value & PANICKED:
            self.board.guest_panicked()
        elif value & CRASH_LOADED:
            self.board.guest_crash_loaded()
        elif value & SHUTDOWN:
            self.board.guest_pv_shutdown()


def _panic_board(device: Device, board: Any) -> PanicBoard:
    if not hasattr(board, "guest_panicked"):
        raise PropertyError(f"{device.driver}: this machine takes no panics", device.driver)
    found: PanicBoard = board
    return found


class PvPanicIsa(Device):
    """One port."""

    driver = "pvpanic"
    description = "tells the host of a guest's panic, by a port"
    bus_type = "ISA"
    properties = (
        Property("ioport", "uint16", 0x505, "the port"),
        Property("events", "uint8", EVENTS, "what the guest may say: 1 panicked, 2 crash loaded, 4 shutdown"),
    )

    def realize(self, board: Board) -> None:
        super().realize(board)
        port = _Port(_panic_board(self, board), self.values["events"])
        self.map_ports(self.values["ioport"], IoRegion("pvpanic", 1, port.read, port.write, max_access=1))


class PvPanicPci(PciDevice):
    """The same byte behind BAR0."""

    driver = "pvpanic-pci"
    description = "tells the host of a guest's panic, by PCI"
    vendor_id, device_id, class_id, revision = 0x1B36, 0x0011, 0x0880, 1
    properties = (
        *PciDevice.properties,
        Property("events", "uint8", EVENTS, "what the guest may say: 1 panicked, 2 crash loaded, 4 shutdown"),
    )

    def realize(self, board: Board) -> None:
        super().realize(board)
        port = _Port(_panic_board(self, board), self.values["events"])
        self.register_bar(0, IoRegion("pvpanic", BAR_SIZE, port.read, port.write, max_access=1))
