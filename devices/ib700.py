"""iBASE IB700, a watchdog on ISA: a guest that does not come back in time is reset, or what -watchdog-action says.

A write to port 0x443 starts it with one of sixteen times, a write to 0x441 stops it. Ref: Linux, ib700wdt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from devices.device import Device
from vmm.errors import PropertyError
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.device import Board
    from vmm.clock import Timer

PORT_DISABLE = 0x441
PORT_ENABLE = 0x443
SECONDS = tuple(range(30, -1, -2))
"""By the low four bits of what is written to the enable port."""
_NS_PER_SEC = 1_000_000_000


class Ib700Start(Event):
    """The guest started the watchdog, or showed that it lives."""

    seconds: int


class Ib700Stop(Event):
    """The guest stopped the watchdog."""


class Ib700Expired(Event):
    """The guest did not come back."""


class WatchdogBoard(Protocol):
    """A board that knows what to do with a guest that hangs."""

    def watchdog_expired(self) -> None: ...


class Ib700(Device):
    """`-device ib700`: two ports and a timer."""

    driver = "ib700"
    description = "watchdog"
    bus_type = "ISA"

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self._watched: WatchdogBoard
        self._timer: Timer

    def realize(self, board: Board) -> None:
        """Answer at the two ports."""
        super().realize(board)
        watched: Any = board
        if not hasattr(watched, "watchdog_expired"):
            raise PropertyError(f"{self.driver}: this machine takes no watchdogs", self.driver)
        self._watched = watched
        self._timer = board.clock.timer(f"{self.path}/timer", self._expired)
        self.holdings.hold("timer", "ib700", self._timer.cancel)
        self.map_ports(PORT_DISABLE, IoRegion("ib700-disable", 1, self._read, self._disable, max_access=1))
        self.map_ports(PORT_ENABLE, IoRegion("ib700-enable", 1, self._read, self._enable, max_access=1))

    def reset(self) -> None:
        """Stopped."""
        self._timer.cancel()

    def _read(self, _offset: int, _size: int) -> int:
        return 0xFF

    def _disable(self, _offset: int, _size: int, _value: int) -> None:
        self._timer.cancel()
        if self.board.trace.on:
            self.board.trace.emit(Ib700Stop())

    def _enable(self, _offset: int, _size: int, value: int) -> None:
        seconds = SECONDS[value & 0xF]
        if self.board.trace.on:
            self.board.trace.emit(Ib700Start(seconds))
        self._timer.arm(self.board.clock.now() + seconds * _NS_PER_SEC)

    def _expired(self) -> None:
        if self.board.trace.on:
            self.board.trace.emit(Ib700Expired())
        self._watched.watchdog_expired()
