"""MSI-X: a table of messages in a BAR of its own, and a pending bit for each.

Only where a device is asked for it (`vectors=`): interrupts go by the pin otherwise. Ref: PCI 3.0, 6.8.2.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import construct as c

from vmm.memory import IoRegion

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.pci.device import PciDevice

CAP_MSIX = 0x11
BAR_SIZE = 4096
PBA_OFFSET = 2048
MAX_VECTORS = PBA_OFFSET // 16
CONTROL_ENABLE = 0x8000
CONTROL_MASK = 0x4000
ENTRY_MASKED = 1

Capability = c.Struct("control" / c.Int16ul, "table" / c.Int32ul, "pending" / c.Int32ul)
"""The capability behind its id and next pointer; the low three bits of the offsets are the BAR."""

Entry = c.Struct("address" / c.Int64ul, "data" / c.Int32ul, "control" / c.Int32ul)
"""A row of the table."""

_ENTRY = struct.Struct("<QII")


class Msix:
    """The MSI-X of one function, with its table in memory BAR `bar`. Made while the device is realized."""

    __slots__ = ("_capability", "_device", "_send", "count", "pending", "table")

    def __init__(self, device: PciDevice, count: int, bar: int, send: Callable[[int, int], None]) -> None:
        """`send(address, data)`: put a message on the bus."""
        self._device = device
        self._send = send
        self.count = count
        self.table = bytearray()
        self.pending = 0
        body = Capability.build({"control": count - 1, "table": bar, "pending": PBA_OFFSET | bar})
        self._capability = device.config.add_capability(
            CAP_MSIX, body, (CONTROL_ENABLE | CONTROL_MASK).to_bytes(2, "little")
        )
        device.register_bar(bar, IoRegion("msix", BAR_SIZE, self._read, self._write, min_access=4, max_access=8))
        self.reset()

    def reset(self) -> None:
        """Every row masked, nothing pending."""
        self.table[:] = Entry.build({"address": 0, "data": 0, "control": ENTRY_MASKED}) * self.count
        self.pending = 0

    @property
    def enabled(self) -> bool:
        """Whether messages have taken the pin's place."""
        return bool(self._control & CONTROL_ENABLE)

    @property
    def _control(self) -> int:
        return self._device.config.get(self._capability + 2, 2)

    def config_changed(self, offset: int, size: int) -> bool:
        """After a write to configuration space: was it to MSI-X? What is no longer masked is sent."""
        if not self._capability < offset + size <= self._capability + 4 + size:
            return False
        self._send_pending()
        return True

    def _masked(self, vector: int) -> bool:
        return bool(self._control & CONTROL_MASK or self.table[16 * vector + 12] & ENTRY_MASKED)

    def notify(self, vector: int) -> None:
        """Send the message of a vector, or keep it pending while it is masked."""
        if vector >= self.count or not self.enabled:
            return
        if self._masked(vector):
            self.pending |= 1 << vector
            return
        address, data, _ = _ENTRY.unpack_from(self.table, 16 * vector)
        self._send(address, data)

    def _send_pending(self) -> None:
        if self.pending and self.enabled:
            for vector in range(self.count):
                if self.pending >> vector & 1 and not self._masked(vector):
                    self.pending &= ~(1 << vector)
                    self.notify(vector)

    def _read(self, offset: int, size: int) -> int:
        if offset < PBA_OFFSET:
            return int.from_bytes(self.table[offset : offset + size], "little")
        return self.pending >> 8 * (offset - PBA_OFFSET) if offset < PBA_OFFSET + MAX_VECTORS // 8 else 0

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset + size <= len(self.table):
            self.table[offset : offset + size] = value.to_bytes(size, "little")
            self._send_pending()
