"""System control port A, 0x92: fast reset and fast A20 gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Device
from vmm.memory import IoRegion

if TYPE_CHECKING:
    from devices.device import Board

FAST_INIT = 0x01
A20 = 0x02

SystemControlA = c.BitStruct(c.Padding(6), "a20" / c.Flag, "fast_init" / c.Flag)
"""Ref: 82371AB (PIIX4), 4.2.8."""


class Port92(Device):
    """A rising bit 0 resets the machine. Bit 1 is kept and read back; address line 20 is always on."""

    driver = "port92"
    description = "system control port A"
    bus_type = "ISA"
    user_creatable = False

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.value = 0

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.map_ports(0x92, IoRegion("port92", 1, self._read, self._write, max_access=1))

    def reset(self) -> None:
        self.value = 0

    def _read(self, _offset: int, _size: int) -> int:
        return self.value

    def _write(self, _offset: int, _size: int, value: int) -> None:
        before, self.value = self.value, value & (FAST_INIT | A20)
        if value & ~before & FAST_INIT:
            self.board.request_reset("guest-reset")
