"""A machine without a CPU that has a device of a vfio-user server: what a driver does, and what the loop would do."""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from devices.pci import config as cfg
from devices.vfio_user_pci import VfioUserPci
from support.vfio_board import BAR, VfioBoard
from vmm.vfio_user.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from devices.pci.device import PciDevice

MESSAGE = 0xFEE0_0000
"""The address of CPU 0's local APIC."""


class FakeLoop:
    """What `VfioUserPci` wants of an event loop; `RemoteBoard.turn` is the loop."""

    def __init__(self) -> None:
        self.before_poll: list[Callable[[], None]] = []
        self.requests: deque[Callable[[], None]] = deque()

    def request(self, callback: Callable[[], None]) -> None:
        self.requests.append(callback)

    def wake(self) -> None:
        """Nobody sleeps."""


class RemoteBoard(VfioBoard):
    """As `VfioBoard`; `events` are the QMP events as (name, data)."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.loop = FakeLoop()
        self.events: list[tuple[str, dict[str, Any]]] = []

    def emit(self, name: str, data: dict[str, Any]) -> None:
        self.events.append((name, data))

    def attach(self, path: str, id: str = "v0", **properties: Any) -> VfioUserPci:
        """Plug a vfio-user-pci; if it cannot be, nothing of it is left."""
        values = VfioUserPci.parse({"socket": {"type": "unix", "path": path}, **properties})
        device = VfioUserPci(id, **values)
        device.path = f"/machine/peripheral/{id}"
        device.bus = self.bus
        try:
            device.realize(self)
        except BaseException:
            device.unwind()
            raise
        self.rig.drain()
        return device

    def turn(self, device: VfioUserPci) -> None:
        """What the loop does between slices: descriptors that are readable, requests, works."""
        waiting = device._watch._waiting if device.remote is not None else {}
        poller = select.poll()
        for fd in waiting:
            poller.register(fd, select.POLLIN)
        for fd, _ in poller.poll(0):
            if fd in waiting:
                waiting[fd]()
        while self.loop.requests:
            self.loop.requests.popleft()()
        self.rig.drain()

    def turn_until(self, device: VfioUserPci, condition: Callable[[], object]) -> None:
        """Turn until something is so; AssertionError if it never is."""
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it never came"
            self.turn(device)

    def enable(self, device: VfioUserPci, base: int = BAR) -> None:
        """What a driver's probe does: an address for BAR 0, memory and bus mastering on."""
        device.config_write(cfg.BASE_ADDRESS_0, 4, base)
        device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER)


class ServerThread:
    """A server of `device` on a thread of its own, until `close`."""

    def __init__(self, device: PciDevice, path: Path) -> None:
        self.server = Server(device, str(path))
        self.path = str(path)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def close(self) -> None:
        self.server.stop()
        self.thread.join()
        self.server.close()
