"""Virtio drivers for tests, legacy and modern: queues in the memory of a board, chains by what they hold."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from devices.virtio import registers as r
from support.pci import PciBoard

if TYPE_CHECKING:
    from devices.virtio.pci import VirtioPci

DEVFN = 5 << 3
IO = 0xC000
BAR = 0xFE00_0000
MSIX_BAR = 0xFE01_0000
IRQ = 11
RAM = 1 << 20
RINGS = 0x1_0000
"""Each queue has 64 KiB here."""
BUFFERS = 0x8_0000


class Ring:
    """One queue as the driver sees it."""

    def __init__(self, board: VirtioBoard, index: int, size: int, base: int) -> None:
        self.board = board
        self.index = index
        self.size = size
        self.desc = base
        self.avail = base + 16 * size
        self.used = (self.avail + 6 + 2 * size + 4095) & ~4095
        self.free = 0
        self.added = 0
        self.seen = 0

    def describe(self, at: int, address: int, length: int, flags: int, following: int = 0) -> None:
        """Write descriptor `at`."""
        entry = {"address": address, "length": length, "flags": flags, "next": following}
        self.board.memory.write(self.desc + 16 * at, r.Descriptor.build(entry))

    def offer(self, head: int) -> None:
        """Put a chain in the available ring; no notification."""
        memory = self.board.memory
        memory.write(self.avail + 4 + 2 * (self.added % self.size), struct.pack("<H", head))
        self.added = (self.added + 1) & 0xFFFF
        memory.write(self.avail + 2, struct.pack("<H", self.added))

    def chain(self, *pieces: tuple[int, int, bool], indirect: int = 0) -> int:
        """Descriptors for (address, length, writable) pieces, in the table or from `indirect` on; the head."""
        count = len(pieces)
        if indirect:
            table = b""
            for i, (address, length, writable) in enumerate(pieces):
                flags = (r.DESC_F_WRITE if writable else 0) | (r.DESC_F_NEXT if i + 1 < count else 0)
                table += r.Descriptor.build({"address": address, "length": length, "flags": flags, "next": i + 1})
            self.board.memory.write(indirect, table)
            head = self.free
            self.describe(head, indirect, len(table), r.DESC_F_INDIRECT)
            self.free = (self.free + 1) % self.size
            return head
        head = self.free
        for i, (address, length, writable) in enumerate(pieces):
            at = (head + i) % self.size
            flags = (r.DESC_F_WRITE if writable else 0) | (r.DESC_F_NEXT if i + 1 < count else 0)
            self.describe(at, address, length, flags, (at + 1) % self.size)
        self.free = (head + count) % self.size
        return head

    def kick(self) -> None:
        self.board.notify_queue(self.index)

    def submit(self, *pieces: tuple[int, int, bool], indirect: int = 0) -> int:
        """Offer a chain and notify; its head."""
        head = self.chain(*pieces, indirect=indirect)
        self.offer(head)
        self.kick()
        return head

    def done(self) -> list[tuple[int, int]]:
        """(head, written) of what was given back since the last call."""
        memory = self.board.memory
        index = struct.unpack("<H", memory.read(self.used + 2, 2))[0]
        found = []
        while self.seen != index:
            raw = r.UsedElement.parse(memory.read(self.used + 4 + 8 * (self.seen % self.size), 8))
            found.append((raw.id, raw.length))
            self.seen = (self.seen + 1) & 0xFFFF
        return found


class VirtioBoard(PciBoard):
    """A board with a virtio device that firmware has set up; `start` negotiates and makes the queues."""

    def __init__(
        self, device: VirtioPci, modern: bool = True, trace: bool = False, before: Any = None, **attributes: Any
    ) -> None:
        super().__init__(RAM, trace)
        self.objects: dict[str, Any] = {}
        self.listeners: list[Any] = []
        for name, value in attributes.items():
            setattr(self, name, value)
        if before is not None:
            before(self)
        self.route(IRQ, IRQ, IRQ, IRQ)
        self.before = self.ledger.snapshot()
        device.values["addr"] = DEVFN
        self.device = self.plug(device)
        self.modern = modern
        self.rings: list[Ring] = []
        self.firmware()

    def on_event(self, sink: Any) -> Any:
        self.listeners.append(sink)
        return lambda: self.listeners.remove(sink)

    def firmware(self) -> None:
        self.config_write(DEVFN, 0x10, IO)
        self.config_write(DEVFN, 0x14, MSIX_BAR)
        self.config_write(DEVFN, 0x20, BAR)
        self.config_write(DEVFN, 0x24, 0)
        self.config_write(DEVFN, 4, 7, 2)

    @property
    def irq(self) -> bool:
        return IRQ in self.high()

    # Registers of either interface.

    def common(self, register: int, size: int = 4) -> int:
        return self.read(BAR + r.AREA_COMMON + register, size)

    def set_common(self, register: int, value: int, size: int = 4) -> None:
        self.write(BAR + r.AREA_COMMON + register, value, size)

    @property
    def status(self) -> int:
        return self.common(r.COMMON_STATUS, 1) if self.modern else self.inb(IO + r.LEGACY_STATUS)

    @status.setter
    def status(self, value: int) -> None:
        if self.modern:
            self.set_common(r.COMMON_STATUS, value, 1)
        else:
            self.outb(IO + r.LEGACY_STATUS, value)

    @property
    def isr(self) -> int:
        """Reads ISR status, which clears it."""
        return self.read(BAR + r.AREA_ISR, 1) if self.modern else self.inb(IO + r.LEGACY_ISR)

    def offered(self) -> int:
        if not self.modern:
            return self.inl(IO + r.LEGACY_FEATURES)
        words = []
        for select in (0, 1):
            self.set_common(r.COMMON_DEVICE_FEATURE_SELECT, select)
            words.append(self.common(r.COMMON_DEVICE_FEATURE))
        return words[0] | words[1] << 32

    def accept(self, features: int) -> None:
        if not self.modern:
            self.outl(IO + r.LEGACY_DRIVER_FEATURES, features & 0xFFFF_FFFF)
            return
        for select in (0, 1):
            self.set_common(r.COMMON_DRIVER_FEATURE_SELECT, select)
            self.set_common(r.COMMON_DRIVER_FEATURE, features >> 32 * select & 0xFFFF_FFFF)

    def own(self, offset: int, size: int) -> int:
        """The device's own configuration."""
        if self.modern:
            return self.read(BAR + r.AREA_DEVICE + offset, size)
        return self.ports.read(IO + r.LEGACY_CONFIG + offset, size)

    def set_own(self, offset: int, value: int, size: int) -> None:
        if self.modern:
            self.write(BAR + r.AREA_DEVICE + offset, value, size)
        else:
            self.ports.write(IO + r.LEGACY_CONFIG + offset, size, value)

    def notify_queue(self, index: int) -> None:
        if self.modern:
            self.write(BAR + r.AREA_NOTIFY + index * r.NOTIFY_MULTIPLIER, index, 2)
        else:
            self.outw(IO + r.LEGACY_QUEUE_NOTIFY, index)

    # Bringing it up.

    def negotiate(self, features: int | None = None) -> None:
        """Reset, and accept `features` (all that are offered)."""
        self.status = 0
        self.status = r.STATUS_ACKNOWLEDGE
        self.status = r.STATUS_ACKNOWLEDGE | r.STATUS_DRIVER
        self.accept(self.offered() if features is None else features)
        if self.modern:
            self.status = self.status | r.STATUS_FEATURES_OK
            assert self.status & r.STATUS_FEATURES_OK

    def make_queues(self) -> None:
        self.rings = []
        for index in range(len(self.device.queue_sizes)):
            base = RINGS + 0x1_0000 * index % 0x7_0000
            if self.modern:
                self.set_common(r.COMMON_QUEUE_SELECT, index, 2)
                ring = Ring(self, index, self.common(r.COMMON_QUEUE_SIZE, 2), base)
                places = {
                    r.COMMON_QUEUE_DESC: ring.desc,
                    r.COMMON_QUEUE_DRIVER: ring.avail,
                    r.COMMON_QUEUE_DEVICE: ring.used,
                }
                for register, address in places.items():
                    self.set_common(register, address & 0xFFFF_FFFF)
                    self.set_common(register + 4, address >> 32)
                self.set_common(r.COMMON_QUEUE_ENABLE, 1, 2)
            else:
                self.outw(IO + r.LEGACY_QUEUE_SELECT, index)
                ring = Ring(self, index, self.inw(IO + r.LEGACY_QUEUE_SIZE), base)
                self.outl(IO + r.LEGACY_QUEUE_ADDRESS, base // 4096)
            self.memory.write(ring.avail, bytes(6 + 2 * ring.size))
            self.memory.write(ring.used, bytes(6 + 8 * ring.size))
            self.rings.append(ring)

    def start(self, features: int | None = None) -> VirtioBoard:
        self.negotiate(features)
        self.make_queues()
        self.status = self.status | r.STATUS_DRIVER_OK
        return self
