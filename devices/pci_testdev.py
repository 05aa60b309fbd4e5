"""QEMU's pci-testdev: counts writes, so that a guest can measure port and memory accesses.

A guest writes the number of a test to offset 0 of a BAR; the BAR then reads as that test's header, which says where
to write what, and counts the writes that match.
Ref: QEMU docs/specs/pci-testdev.rst; kvm-unit-tests lib/pci-testdev.c, which drives it.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Property
from devices.pci.device import PciDevice
from vmm.errors import PropertyError
from vmm.memory import IoRegion
from vmm.shared_memory import SharedRegion

if TYPE_CHECKING:
    from devices.device import Board

MEMORY_SIZE = 4096
IO_SIZE = 256
MEMORY_OFFSET = 0x800
IO_OFFSET = 0x80
DATA_MATCH = 0xFA
DATA_NO_MATCH = 0xCE

TestHeader = c.Struct(
    "test" / c.Int8ul,
    "width" / c.Const(1, c.Int8ul),
    c.Padding(2),
    "offset" / c.Int32ul,
    "data" / c.Int8ul,
    c.Padding(3),
    "count" / c.Int32ul,
    "name" / c.CString("ascii"),
)
"""What a BAR reads as while a test is selected."""

_COUNT = slice(12, 16)
_KINDS = ("no-eventfd", "wildcard-eventfd", "datamatch-eventfd")


class _Tests:
    """The tests of one BAR."""

    __slots__ = ("current", "headers", "match", "offsets")

    def __init__(self, first: int, space: str, base: int) -> None:
        self.headers: list[bytearray] = []
        self.offsets = []
        self.match = [kind != "wildcard-eventfd" for kind in _KINDS]
        for i, kind in enumerate(_KINDS):
            offset = base + first + i
            data = DATA_MATCH if self.match[i] else DATA_NO_MATCH
            header = {"test": first + i, "offset": offset, "data": data, "count": 0, "name": f"{space}-{kind}"}
            self.headers.append(bytearray(TestHeader.build(header)))
            self.offsets.append(offset)
        self.current: int | None = None

    def read(self, offset: int, size: int) -> int:  # noqa: ARG002
        current = self.current
        if current is None or offset >= len(self.headers[current]):
            return 0
        return self.headers[current][offset]

    def write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        if offset == 0:
            self.current = value if value < len(self.headers) else None
            if self.current is not None:
                self.headers[self.current][_COUNT] = bytes(4)
            return
        current = self.current
        if current is None or offset != self.offsets[current]:
            return
        header = self.headers[current]
        if not self.match[current] or value == header[8]:
            count = int.from_bytes(header[_COUNT], "little") + 1
            header[_COUNT] = (count & 0xFFFF_FFFF).to_bytes(4, "little")

    def reset(self) -> None:
        self.current = None


class PciTestdev(PciDevice):
    """`-device pci-testdev`: BAR0 is memory, BAR1 is I/O, and BAR2 memory of `membar` bytes if asked for.

    All three kinds of test count in the device: there is no ioeventfd that could take the writes away. A client of a
    served one may map BAR2.
    """

    driver = "pci-testdev"
    description = "PCI Test Device"
    vendor_id, device_id, class_id = 0x1B36, 0x0005, 0x00FF
    properties = (
        *PciDevice.properties,
        Property("membar", "size", 0, "size of BAR2, a power of two; 0: none"),
        Property("membar-backed", "bool", False, "on/off"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self._memory = _Tests(0, "mmio", MEMORY_OFFSET)
        self._io = _Tests(3, "portio", IO_OFFSET)

    def realize(self, board: Board) -> None:
        super().realize(board)
        memory, io = self._memory, self._io
        region = IoRegion("pci-testdev-mmio", MEMORY_SIZE, memory.read, memory.write, max_access=1)
        self.register_bar(0, region)
        self.register_bar(1, IoRegion("pci-testdev-portio", IO_SIZE, io.read, io.write, max_access=1), io=True)
        size = self.values["membar"]
        if size:
            backed = self.values["membar-backed"]
            if size < 16 or size & (size - 1) or size > (1 << 24 if backed else 1 << 47):
                raise PropertyError(
                    f"Property '{self.driver}.membar' doesn't take value '{size}'", self.driver, "membar"
                )
            stub = self._backed(size) if backed else IoRegion("pci-testdev-membar", size, lambda *_: 0, lambda *_: None)
            self.register_bar(2, stub, mem64=True, prefetchable=True)

    def _backed(self, size: int) -> IoRegion:
        """Memory that another process may map, if it is made of pages."""
        if size % mmap.PAGESIZE:
            data = bytearray(size)

            def read(offset: int, length: int) -> int:
                return int.from_bytes(data[offset : offset + length], "little")

            def write(offset: int, length: int, value: int) -> None:
                data[offset : offset + length] = value.to_bytes(length, "little")

            return IoRegion("pci-testdev-membar", size, read, write)
        shared = SharedRegion("pci-testdev-membar", size)
        self.holdings.hold("memory", shared.name, shared.close)
        return shared

    def reset(self) -> None:
        """No test is selected."""
        super().reset()
        self._memory.reset()
        self._io.reset()
