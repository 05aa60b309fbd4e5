"""Memory that the guest shares with whoever else has the backend: `ivshmem-plain`.

    -object memory-backend-file,id=m0,size=1M,share=on,mem-path=/dev/shm/m0 -device ivshmem-plain,memdev=m0

BAR2 is the memory. BAR0 has the registers of the device's kin with doorbells: nobody rings here, but what is written to
the interrupt status raises the pin where the mask allows it. Ref: QEMU, docs/specs/ivshmem-spec.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Property
from devices.memory_backend import MemoryBackendRam
from devices.pci.device import PciDevice
from vmm.errors import ConfigError, InUse, PropertyError
from vmm.memory import IoRegion

if TYPE_CHECKING:
    from devices.device import Board

REGISTERS_SIZE = 256
INTR_MASK, INTR_STATUS, IV_POSITION, DOORBELL = 0, 4, 8, 12

IvshmemRegisters = c.Struct(
    "intr_mask" / c.Int32ul,
    "intr_status" / c.Int32ul,
    "iv_position" / c.Int32ul,
    "doorbell" / c.Int32ul,
)
"""BAR0. Reading the status clears it; the position is 0, as there are no peers; the doorbell is write-only."""


class IvshmemPlain(PciDevice):
    """`-device ivshmem-plain,memdev=ID`.

    PropertyError if there is no memory backend of that id, InUse if another device has it, ConfigError if its size is
    not a power of two.
    """

    driver = "ivshmem-plain"
    description = "Inter-VM shared memory"
    vendor_id, device_id, class_id, revision, interrupt_pin = 0x1AF4, 0x1110, 0x0500, 1, 1
    properties = (
        *PciDevice.properties,
        Property("memdev", "link", None, "id of a memory backend"),
        Property("master", "str", "off", "on/off/auto"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        if self.values["memdev"] is None:
            raise PropertyError("You must specify a 'memdev'", self.driver, "memdev")
        if self.values["master"] not in ("on", "off", "auto"):
            raise PropertyError(f"Parameter 'master' does not accept value '{self.values['master']}'", self.driver)
        self.mask = self.status = 0
        self._memory: memoryview

    def realize(self, board: Board) -> None:
        """Take the backend, slot and line."""
        super().realize(board)
        name = self.values["memdev"]
        found = getattr(board, "objects", {}).get(name)
        if found is None:
            raise PropertyError(f"Device '{name}' not found", self.driver, "memdev")
        if not isinstance(found, MemoryBackendRam):
            raise PropertyError(
                f"Invalid parameter type for 'memdev', expected: memory-backend (it is a {found.qom_type})", self.driver
            )
        if found.in_use is not None:
            raise InUse(f"can't use already busy memdev: {name}", holder=found.in_use)
        found.in_use = self.label
        self.holdings.hold("object", name, lambda: setattr(found, "in_use", None))
        self._memory = view = memoryview(found.memory)
        self.holdings.hold("memory", name, view.release)
        size = len(view)
        if size & (size - 1):
            raise ConfigError(f"{self.driver}: memory of {size:#x} bytes; BAR2 takes powers of two")
        registers = IoRegion("ivshmem-mmio", REGISTERS_SIZE, self._read, self._write, min_access=4, max_access=4)
        self.register_bar(0, registers)
        region = IoRegion("ivshmem.bar2", size, self._load, self._store)
        self.register_bar(2, region, mem64=True, prefetchable=True)

    def reset(self) -> None:
        """No interrupt; the memory stays what it is."""
        super().reset()
        self.mask = self.status = 0

    def _update(self) -> None:
        self.set_intx(bool(self.status & self.mask))

    def _read(self, offset: int, _size: int) -> int:
        if offset == INTR_MASK:
            return self.mask
        if offset == INTR_STATUS:
            status, self.status = self.status, 0
            self._update()
            return status
        return 0

    def _write(self, offset: int, _size: int, value: int) -> None:
        if offset == INTR_MASK:
            self.mask = value & 0xFFFF_FFFF
            self._update()
        elif offset == INTR_STATUS:
            self.status = value & 0xFFFF_FFFF
            self._update()

    def _load(self, offset: int, size: int) -> int:
        return int.from_bytes(self._memory[offset : offset + size], "little")

    def _store(self, offset: int, size: int, value: int) -> None:
        self._memory[offset : offset + size] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")
