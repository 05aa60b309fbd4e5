"""Message signalled interrupts of a PCI function: the MSI and MSI-X capabilities.

    def realize(self, board):
        super().realize(board)
        self.msi = Msi(self, vectors=4)
        self.msix = Msix(self, vectors=8, bar=1, table=0x0, pba=0x800)
        self.register_bar(1, self.msix.wrap(IoRegion(...)))

    if self.msi.enabled:
        self.msi.notify(0)
    else:
        self.set_intx(True)

A message is a write of the device to the address that the guest gave: to an interrupt controller, or wherever the
guest had it point. It is lost while bus mastering is off. A vector that is masked is kept pending, and sent when the
guest unmasks it.
Ref: PCI Local Bus Specification 3.0, 6.8
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import construct as c

from vmm.errors import ConfigError
from vmm.memory import IoRegion

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.pci.device import PciDevice

CAP_ID_MSI = 0x05
CAP_ID_MSIX = 0x11
MESSAGE_CONTROL = 2
"""Offset in the capability."""
MSI_ENABLE = 0x0001
MSI_MULTIPLE_CAPABLE_SHIFT = 1
MSI_MULTIPLE_ENABLE_SHIFT = 4
MSI_64_BIT = 0x0080
MSI_PER_VECTOR_MASKING = 0x0100
MSI_MAX_VECTORS = 32
MSIX_TABLE_SIZE = 0x07FF
MSIX_FUNCTION_MASK = 0x4000
MSIX_ENABLE = 0x8000
MSIX_MAX_VECTORS = 2048
MSIX_ENTRY_SIZE = 16
MSIX_ENTRY_MASKED = 1

APIC_WINDOW = 0xFEE
"""Address bits 31:20 of what a local APIC takes. Ref: Intel SDM vol. 3, 11.11.1"""

MsiMessageControl = c.ByteSwapped(
    c.BitStruct(
        c.Padding(7),
        "per_vector_masking" / c.Flag,
        "address_64" / c.Flag,
        "multiple_message_enable" / c.BitsInteger(3),
        "multiple_message_capable" / c.BitsInteger(3),
        "enable" / c.Flag,
    )
)
"""Ref: PCI 3.0, 6.8.1.3"""
MsixCapability = c.Struct(
    "id" / c.Const(CAP_ID_MSIX, c.Int8ul),
    "next" / c.Int8ul,
    "message_control" / c.Int16ul,
    "table" / c.Int32ul,
    "pba" / c.Int32ul,
)
"""`table` and `pba`: a BAR's index in the lowest three bits, an offset in it in the others. Ref: PCI 3.0, 6.8.2"""
MsixEntry = c.Struct("address" / c.Int64ul, "data" / c.Int32ul, "vector_control" / c.Int32ul)
"""Ref: PCI 3.0, 6.8.2.6"""


def send_message(device: PciDevice, address: int, data: int) -> None:
    """Write `data` to `address` as the device does it; lost while it is no bus master."""
    if not device.bus_master:
        return
    kvm = getattr(device.board, "kvm", None)
    if address >> 20 == APIC_WINDOW:
        if kvm is not None:
            with contextlib.suppress(OSError):  # a machine without an APIC
                kvm.signal_msi(address, 0, data)
    else:
        device.dma_write(address, data.to_bytes(4, "little"))


class _Vectors:
    """What MSI and MSI-X have in common. `pending`: vectors that wait for being unmasked, as bits."""

    irq_index: int
    """The number of this kind of interrupt in VFIO."""

    def __init__(self, device: PciDevice, vectors: int, at: int) -> None:
        self.device = device
        self.vectors = vectors
        self.at = at
        """Where the capability is in configuration space."""
        self.pending = 0

    @property
    def control(self) -> int:
        """Message Control."""
        return self.device.config.get(self.at + MESSAGE_CONTROL, 2)

    @property
    def enabled(self) -> bool:
        """The guest wants messages instead of the pin."""
        raise NotImplementedError

    def masked(self, vector: int) -> bool:
        """The guest does not want this one now."""
        raise NotImplementedError

    def message(self, vector: int) -> tuple[int, int]:
        """Address and data of a vector."""
        raise NotImplementedError

    def notify(self, vector: int) -> None:
        """Send a vector's message. Nothing happens while messages are not enabled."""
        if not self.enabled:
            return
        if self.device.message_sink is not None:
            self.device.message_sink(self.irq_index, vector)  # who takes it there does the masking
        elif self.masked(vector):
            self.pending |= 1 << vector
        else:
            send_message(self.device, *self.message(vector))

    def config_written(self, offset: int, size: int) -> None:
        """A guest wrote configuration space: what was unmasked is sent."""
        if self.pending and offset < self.at + 24 and offset + size > self.at:
            self.send_pending()

    def send_pending(self) -> None:
        """Send what waits and is masked no more."""
        for vector in range(self.vectors):
            if self.pending >> vector & 1 and self.enabled and not self.masked(vector):
                self.pending &= ~(1 << vector)
                send_message(self.device, *self.message(vector))

    def reset(self) -> None:
        """Nothing pending; the configuration space resets itself."""
        self.pending = 0

    def save_state(self) -> dict[str, Any]:
        """What is not in configuration space."""
        return {"pending": self.pending}

    def load_state(self, state: dict[str, Any]) -> None:
        """Be what `save_state` said. KeyError, TypeError or ValueError if it is nothing such."""
        if not 0 <= state["pending"] < 1 << self.vectors:
            raise ValueError(f"{state['pending']:#x} of {self.vectors} vectors are pending")
        self.pending = int(state["pending"])


class Msi(_Vectors):
    """The MSI capability: up to 32 `vectors`, a power of two. ConfigError for another number."""

    irq_index = 1

    def __init__(
        self, device: PciDevice, vectors: int = 1, address_64: bool = True, maskable: bool = False, offset: int = 0
    ) -> None:
        if not 1 <= vectors <= MSI_MAX_VECTORS or vectors & (vectors - 1):
            raise ConfigError(f"{device.driver}: {vectors} MSI vectors; 1, 2, 4, 8, 16 or 32 there may be")
        control = (vectors.bit_length() - 1) << MSI_MULTIPLE_CAPABLE_SHIFT
        control |= (MSI_64_BIT if address_64 else 0) | (MSI_PER_VECTOR_MASKING if maskable else 0)
        writable = MSI_ENABLE | 7 << MSI_MULTIPLE_ENABLE_SHIFT
        address = 8 if address_64 else 4
        body = control.to_bytes(2, "little") + bytes(address + 2 + (10 if maskable else 0))
        mask = writable.to_bytes(2, "little") + b"\xfc" + b"\xff" * (address - 1) + b"\xff\xff"
        if maskable:
            mask += bytes(2) + ((1 << vectors) - 1).to_bytes(4, "little")
        super().__init__(device, vectors, device.config.add_capability(CAP_ID_MSI, body, mask, offset))
        self._data = self.at + 4 + address
        self._wide = address_64
        self._mask = self._data + 4 if maskable else 0

    @property
    def enabled(self) -> bool:
        return bool(self.control & MSI_ENABLE)

    @property
    def allocated(self) -> int:
        """How many vectors the guest gave: it may be fewer than were asked for."""
        return min(self.vectors, 1 << (self.control >> MSI_MULTIPLE_ENABLE_SHIFT & 7))

    def masked(self, vector: int) -> bool:
        return bool(self._mask) and bool(self.device.config.get(self._mask, 4) >> vector & 1)

    def message(self, vector: int) -> tuple[int, int]:
        get = self.device.config.get
        data = get(self._data, 2)
        return get(self.at + 4, 8 if self._wide else 4), data & ~(self.allocated - 1) | vector

    def notify(self, vector: int) -> None:
        """Send a vector's message; vectors that the guest did not give share those that it gave."""
        super().notify(vector & (self.allocated - 1))
        self._show_pending()

    def send_pending(self) -> None:
        super().send_pending()
        self._show_pending()

    def _show_pending(self) -> None:
        if self._mask:
            self.device.config.set(self._mask + 4, 4, self.pending)


class Msix(_Vectors):
    """The MSI-X capability. The table of `vectors` entries is at `table` of BAR `bar`, the pending bits at `pba`.

    ConfigError if they overlap or are not aligned to 8.
    """

    irq_index = 2

    def __init__(self, device: PciDevice, vectors: int, bar: int, table: int, pba: int, offset: int = 0) -> None:
        what = f"{device.driver}: MSI-X with {vectors} vectors"
        if not 1 <= vectors <= MSIX_MAX_VECTORS or not 0 <= bar <= 5:
            raise ConfigError(f"{what} in BAR{bar}; there may be {MSIX_MAX_VECTORS} of them, and BARs 0 to 5")
        self.bar, self.table, self.pba = bar, table, pba
        self._table_end = table + vectors * MSIX_ENTRY_SIZE
        self._pba_end = pba + (vectors + 63) // 64 * 8
        if (table | pba) & 7 or max(table, pba) < min(self._table_end, self._pba_end):
            raise ConfigError(f"{what}: table {table:#x} and pending bits {pba:#x} overlap, or are not aligned to 8")
        layout = {"next": 0, "message_control": vectors - 1, "table": table | bar, "pba": pba | bar}
        body = MsixCapability.build(layout)[2:]
        mask = (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_bytes(2, "little")
        super().__init__(device, vectors, device.config.add_capability(CAP_ID_MSIX, body, mask, offset))
        self.entries = bytearray()
        """The table, as the guest sees it."""
        self.on_change: Callable[[int], None] | None = None
        """Told of the vector of an entry that was written."""
        self.reset()

    def reset(self) -> None:
        """Every vector is masked, and its message nowhere."""
        super().reset()
        self.entries = bytearray(
            MsixEntry.build({"address": 0, "data": 0, "vector_control": MSIX_ENTRY_MASKED}) * self.vectors
        )

    def save_state(self) -> dict[str, Any]:
        return {**super().save_state(), "entries": self.entries.hex()}

    def load_state(self, state: dict[str, Any]) -> None:
        super().load_state(state)
        entries = bytes.fromhex(state["entries"])
        if len(entries) != len(self.entries):
            raise ValueError(f"a table of {len(entries)} bytes, not {len(self.entries)}")
        self.entries[:] = entries

    @property
    def enabled(self) -> bool:
        return bool(self.control & MSIX_ENABLE)

    def masked(self, vector: int) -> bool:
        at = vector * MSIX_ENTRY_SIZE + 12
        return bool(self.control & MSIX_FUNCTION_MASK or self.entries[at] & MSIX_ENTRY_MASKED)

    def message(self, vector: int) -> tuple[int, int]:
        entry = MsixEntry.parse(bytes(self.entries[vector * MSIX_ENTRY_SIZE :][:MSIX_ENTRY_SIZE]))
        return entry.address, entry.data

    def wrap(self, region: IoRegion) -> IoRegion:
        """The BAR that has table and pending bits, and for the rest is `region`. ConfigError if they do not fit."""
        if region.max_access < 4 or region.size < max(self._table_end, self._pba_end):
            raise ConfigError(f"{region.name}: no room for an MSI-X table of {self.vectors} vectors, or for dwords")

        def read(offset: int, size: int) -> int:
            if self.owns(offset):
                return self.read(offset, size)
            return region.read(offset, size) if size >= region.min_access else (1 << 8 * size) - 1

        def write(offset: int, size: int, value: int) -> None:
            if self.owns(offset):
                self.write(offset, size, value)
            elif size >= region.min_access:
                region.write(offset, size, value)

        return IoRegion(region.name, region.size, read, write, max_access=region.max_access)

    def owns(self, offset: int) -> bool:
        """Whether table or pending bits are at an offset of the BAR."""
        return self.table <= offset < self._table_end or self.pba <= offset < self._pba_end

    def read(self, offset: int, size: int) -> int:
        """A guest's read of table or pending bits."""
        if self.pba <= offset < self._pba_end:
            return self.pending >> 8 * (offset - self.pba) & ((1 << 8 * size) - 1)
        at = offset - self.table
        return int.from_bytes(self.entries[at : at + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write. Entries take aligned dwords and quadwords; pending bits cannot be written."""
        at = offset - self.table
        if size < 4 or offset & 3 or not 0 <= at <= len(self.entries) - size:
            return
        self.entries[at : at + size] = value.to_bytes(size, "little")
        vector = at // MSIX_ENTRY_SIZE
        entry = vector * MSIX_ENTRY_SIZE
        self.entries[entry] &= 0xFC
        self.entries[entry + 12 : entry + 16] = bytes((self.entries[entry + 12] & MSIX_ENTRY_MASKED, 0, 0, 0))
        if self.pending:
            self.send_pending()
        if self.on_change is not None:
            self.on_change(vector)
