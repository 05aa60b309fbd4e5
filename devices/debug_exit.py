"""isa-debug-exit: a port that ends the machine with a status that the guest chooses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.device import Device, Property
from vmm.errors import PropertyError
from vmm.memory import ALL_ONES, IoRegion

if TYPE_CHECKING:
    from devices.device import Board


class DebugExit(Device):
    """Writing `value` ends the machine; the process exits with `(value << 1) | 1`, so never with success.

    Ref: QEMU, isa-debug-exit; kvm-unit-tests run it at `iobase=0xf4,iosize=0x4`.
    """

    driver = "isa-debug-exit"
    description = "ends the machine with a status that the guest chooses"
    bus_type = "ISA"
    properties = (
        Property("iobase", "uint32", 0x501, "first port"),
        Property("iosize", "uint32", 2, "number of ports"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        base, size = self.values["iobase"], self.values["iosize"]
        if size < 1 or base + size > 1 << 16:
            name = "iobase" if size else "iosize"
            raise PropertyError(
                f"isa-debug-exit: iobase {base:#x} with iosize {size:#x} is outside the 64 KiB of I/O ports",
                self.driver,
                name,
            )

    def realize(self, board: Board) -> None:
        super().realize(board)
        region = IoRegion("isa-debug-exit", self.values["iosize"], self._read, self._write, max_access=4)
        self.map_ports(self.values["iobase"], region)

    def _read(self, _offset: int, _size: int) -> int:
        return 0

    def _write(self, _offset: int, size: int, value: int) -> None:
        self.board.request_shutdown("guest-shutdown", (value & ALL_ONES[size]) << 1 | 1)
