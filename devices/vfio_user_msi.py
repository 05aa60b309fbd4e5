"""Messages of a device that another process has: each vector an eventfd that the server signals.

MSI and MSI-X are the monitor's, as QEMU has it: capability, table and pending bits are kept here, at the places where
the server's configuration space says that they are, and the guest's writes to a table never reach the server. When the
guest enables messages INTx is switched off at the server, and each vector that is not masked gets its eventfd; a vector
of MSI-X that is unmasked later gets it then.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

from devices import vfio
from devices.pci.msi import (
    CAP_ID_MSI,
    CAP_ID_MSIX,
    MESSAGE_CONTROL,
    MSI_64_BIT,
    MSI_MULTIPLE_CAPABLE_SHIFT,
    MSI_PER_VECTOR_MASKING,
    MSIX_TABLE_SIZE,
    Msi,
    Msix,
)
from vmm.errors import ConfigError
from vmm.order import WorkQueue

if TYPE_CHECKING:
    from devices.vfio_user_pci import VfioUserPci
    from vmm.kernel.poll import FdHandler
    from vmm.lifecycle import Holdings

DISABLE = vfio.VFIO_IRQ_SET_DATA_NONE | vfio.VFIO_IRQ_SET_ACTION_TRIGGER
_CAPABILITIES = 48
"""More than there is room for."""


def find_capabilities(device: VfioUserPci) -> dict[int, int]:
    """The server's capabilities: where each id is found first. A list that goes in circles ends where it does."""
    read = device.remote.config_read
    found: dict[int, int] = {}
    if not read(0x06, 2) & 0x10:
        return found
    at = read(0x34, 1) & 0xFC
    for _ in range(_CAPABILITIES):
        if at < 0x40:
            break
        header = read(at, 2)
        found.setdefault(header & 0xFF, at)
        at = header >> 8 & 0xFC
    return found


class Messages:
    """MSI and MSI-X of a remote device. `active` is the one in use, None while messages are off."""

    def __init__(self, device: VfioUserPci) -> None:
        self.device = device
        self.active: Msi | Msix | None = None
        self._held: Holdings | None = None
        self._handlers: dict[int, FdHandler] = {}
        """By vector, those that have an eventfd."""

    def mirror(self) -> None:
        """Give the device the capabilities that the server's has. One that makes no sense is left out."""
        device, read = self.device, self.device.remote.config_read
        places = find_capabilities(device)
        with contextlib.suppress(ConfigError):
            if CAP_ID_MSI in places:
                at = places[CAP_ID_MSI]
                control = read(at + MESSAGE_CONTROL, 2)
                vectors = 1 << min(5, control >> MSI_MULTIPLE_CAPABLE_SHIFT & 7)
                maskable = bool(control & MSI_PER_VECTOR_MASKING)
                device.msi = Msi(device, vectors, bool(control & MSI_64_BIT), maskable, at)
        with contextlib.suppress(ConfigError):
            if CAP_ID_MSIX in places:
                at = places[CAP_ID_MSIX]
                vectors = (read(at + MESSAGE_CONTROL, 2) & MSIX_TABLE_SIZE) + 1
                table, pba = read(at + 4, 4), read(at + 8, 4)
                if table & 7 == pba & 7:
                    msix = Msix(device, vectors, table & 7, table & ~7, pba & ~7, at)
                    msix.on_change = self._entry_changed
                    device.msix = msix

    def wanted(self) -> Msi | Msix | None:
        """What the guest has enabled; MSI-X wins, which no guest asks for."""
        for vectors in (self.device.msix, self.device.msi):
            if vectors is not None and vectors.enabled:
                return vectors
        return None

    def enable(self, vectors: Msi | Msix) -> None:
        """Give eventfds to the vectors that the guest wants."""
        device = self.device
        self.active = vectors
        self._held = held = device.new_holdings()
        name = "MSI" if isinstance(vectors, Msi) else "MSI-X"
        device.mode = name
        held.hold("interrupt-mode", name, partial(setattr, device, "mode", "NONE"))
        held.hold("vfio-irq", name, partial(device.remote.set_irqs, DISABLE, vectors.irq_index, 0, 0))
        if isinstance(vectors, Msi):
            self._attach(range(vectors.allocated))
        else:
            self._attach([v for v in range(vectors.vectors) if not vectors.masked(v)])

    def _entry_changed(self, vector: int) -> None:
        msix = self.device.msix
        if msix is not None and self.active is msix and vector not in self._handlers and not msix.masked(vector):
            self._attach((vector,))

    def control_changed(self) -> None:
        """The guest wrote a capability: the whole function may have been unmasked."""
        active = self.active
        if isinstance(active, Msix):
            self._attach([v for v in range(active.vectors) if v not in self._handlers and not active.masked(v)])
        elif active is not None:
            self._attach([v for v in range(active.allocated) if v not in self._handlers])

    def _attach(self, vectors: range | list[int] | tuple[int, ...]) -> None:
        """Eventfds for vectors, which are signalled to us. A server that refuses sends nothing."""
        device, active, held = self.device, self.active, self._held
        assert active is not None
        assert held is not None
        fresh: list[tuple[int, int]] = []
        try:
            for vector in vectors:
                number = device.new_eventfd(f"vector-{vector}")
                held.hold("fd", f"vector-{vector}", partial(device.board.files.close, number))
                queue = WorkQueue("main-loop", device.board.executor)
                handler = device.fd_handler(device.board.files, number, queue, partial(self._arrived, vector, number))
                self._handlers[vector] = handler
                held.hold("fd-handler", f"vector-{vector}", handler.close)
                fresh.append((vector, number))
        except OSError:
            pass  # no descriptors are left: these vectors stay silent
        while fresh:
            # Vectors that follow one another go in one message.
            count = next((i for i in range(1, len(fresh)) if fresh[i][0] != fresh[0][0] + i), len(fresh))
            with contextlib.suppress(OSError):
                device.remote.set_vectors(active.irq_index, fresh[0][0], [number for _, number in fresh[:count]])
            del fresh[:count]

    def _arrived(self, vector: int, number: int) -> None:
        """The server sent a vector."""
        self.device.board.files.read(number)
        if self.active is not None:
            self.active.notify(vector)

    def disable(self) -> None:
        """Give all eventfds back. A second time does nothing."""
        held, self._held = self._held, None
        self.active = None
        if held is not None:
            held.close()
        self._handlers.clear()
