"""The entropy device: the driver gives buffers, the device fills them with random bytes. Ref: VIRTIO 1.2, 5.4."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.device import Property
from devices.rng_backend import RngBuiltin
from devices.virtio import registers as r
from devices.virtio.pci import VirtioPci
from vmm.errors import InUse, PropertyError
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.virtio.queue import Virtqueue
    from vmm.clock import Timer

LARGEST = 64 * 1024
"""Bytes that one buffer gets at most; a driver that wants more asks again."""
RETRY_NS = 10_000_000
"""When to ask a source again that had nothing."""
_NO_LIMIT = (1 << 63) - 1


class VirtioRngPushed(Event):
    """The driver got random bytes."""

    device: str
    length: int


class VirtioRng(VirtioPci):
    """`-device virtio-rng-pci[,rng=ID]`: the bytes are those of a backend object, the host's own if none is named."""

    driver = "virtio-rng-pci"
    description = "random numbers for the guest"
    virtio_id, transitional_id, class_id = r.ID_RNG, 0x1005, 0x00FF
    queue_sizes = (8,)
    properties = (
        *VirtioPci.properties,
        Property("rng", "link", None, "id of an rng-builtin or rng-random object"),
        Property("max-bytes", "uint64", _NO_LIMIT, "bytes that a guest gets in a period"),
        Property("period", "uint32", 1 << 16, "milliseconds"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        if self.values["period"] <= 0:
            raise PropertyError("'period' parameter expects a positive integer", self.driver, "period")
        if self.values["max-bytes"] > _NO_LIMIT:
            raise PropertyError("'max-bytes' parameter must be non-negative, and less than 2^63", self.driver)
        self._quota = self.values["max-bytes"]
        self._source: RngBuiltin
        self._again: Timer

    def acquire(self) -> None:
        """Take the backend object. PropertyError if there is none of that id; InUse if another device has it."""
        self._source = self._find_source()
        self._again = self.board.clock.timer(f"{self.path}/again", self._retry)
        self.holdings.hold("timer", "virtio-rng", self._again.cancel)

    def _find_source(self) -> RngBuiltin:
        name = self.values["rng"]
        if name is None:
            return RngBuiltin(f"{self.label}/rng", {})
        found = getattr(self.board, "objects", {}).get(name)
        if found is None:
            raise PropertyError(f"Device '{name}' not found", self.driver, "rng")
        if not isinstance(found, RngBuiltin):
            raise PropertyError(
                f"Invalid parameter type for 'rng', expected: rng-backend (it is a {found.qom_type})", self.driver
            )
        if found.in_use is not None:
            raise InUse(f"rng backend '{name}' is in use by {found.in_use}", holder=found.in_use)
        found.in_use = self.label
        self.holdings.hold("object", name, lambda: setattr(found, "in_use", None))
        return found

    def restart(self) -> None:
        """The quota is full again."""
        self._quota = self.values["max-bytes"]
        if self.queues:
            self._again.cancel()

    def handle(self, queue: Virtqueue) -> int | None:
        """Fill one buffer."""
        if self._again.deadline is not None:
            return None
        element = queue.pop()
        if element is None:
            return None
        data = self._source.random(min(element.writable_length, LARGEST, self._quota))
        if element.writable_length and not data:
            queue.unpop()
            wait = RETRY_NS if self._quota else 1_000_000 * self.values["period"]
            self._again.arm(self.board.clock.now() + wait)
            return None
        self._quota -= len(data)
        written = self.dma.scatter(element.writable, data)
        if self.board.trace.on:
            self.board.trace.emit(VirtioRngPushed(self.label, written))
        queue.push(element, written)
        return written

    def _retry(self) -> None:
        if not self._quota:
            self._quota = self.values["max-bytes"]
        self.wake(self.queues[0])
