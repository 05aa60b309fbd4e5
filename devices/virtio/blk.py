"""The block device: a disk behind one queue of requests. Ref: VIRTIO 1.2, 5.2."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Property
from devices.pci.dma import cut
from devices.virtio import registers as r
from devices.virtio.pci import VirtioPci
from devices.virtio.queue import QueueBroken
from vmm.errors import PropertyError
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.virtio.queue import Element, Virtqueue
    from vmm.block_graph import BlockGraph, BlockUse

SECTOR = 512
F_SEG_MAX = 1 << 2
F_GEOMETRY = 1 << 4
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_CONFIG_WCE = 1 << 11
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

T_IN, T_OUT, T_FLUSH, T_GET_ID, T_DISCARD, T_WRITE_ZEROES = 0, 1, 4, 8, 11, 13
S_OK, S_IOERR, S_UNSUPP = 0, 1, 2
ID_BYTES = 20
HEADER = struct.Struct("<IIQ")
SEGMENT = struct.Struct("<QII")
SEGMENT_UNMAP = 1
LARGEST = 64 << 20
"""Bytes that one request moves at most; a larger one fails. A request is carried out in one go."""
SYNC_COST = 1 << 18
"""What a flush counts like, in bytes: it waits for the medium."""
MAX_DISCARD_SECTORS = (1 << 31) // SECTOR - 1
MAX_SEGMENTS = 1
WRITEBACK_OFFSET = 32

BlkConfig = c.Struct(
    "capacity" / c.Int64ul,
    "size_max" / c.Default(c.Int32ul, 0),
    "seg_max" / c.Int32ul,
    "cylinders" / c.Int16ul,
    "heads" / c.Int8ul,
    "sectors" / c.Int8ul,
    "blk_size" / c.Int32ul,
    "physical_block_exp" / c.Default(c.Int8ul, 0),
    "alignment_offset" / c.Default(c.Int8ul, 0),
    "min_io_size" / c.Default(c.Int16ul, 0),
    "opt_io_size" / c.Default(c.Int32ul, 0),
    "writeback" / c.Int8ul,
    c.Padding(1),
    "num_queues" / c.Int16ul,
    "max_discard_sectors" / c.Int32ul,
    "max_discard_seg" / c.Int32ul,
    "discard_sector_alignment" / c.Int32ul,
    "max_write_zeroes_sectors" / c.Int32ul,
    "max_write_zeroes_seg" / c.Int32ul,
    "write_zeroes_may_unmap" / c.Int8ul,
    c.Padding(3),
)
"""Ref: VIRTIO 1.2, 5.2.4."""

RequestHeader = c.Struct("type" / c.Int32ul, "priority" / c.Int32ul, "sector" / c.Int64ul)
DiscardSegment = c.Struct("sector" / c.Int64ul, "num_sectors" / c.Int32ul, "flags" / c.Int32ul)
"""Ref: VIRTIO 1.2, 5.2.6."""


class VirtioBlkRequest(Event):
    """A request was carried out. `status`: 0 done, 1 failed, 2 not known."""

    device: str
    type: int
    sector: int
    length: int
    status: int


class VirtioBlk(VirtioPci):
    """`-device virtio-blk-pci,drive=ID`: one queue, flushes that wait for the medium, discard and write zeroes.

    PropertyError if there is no such drive; InUse if another device has it.
    """

    driver = "virtio-blk-pci"
    description = "disk"
    virtio_id, transitional_id, class_id = r.ID_BLOCK, 0x1001, 0x0100
    config_size = 60
    properties = (
        *VirtioPci.properties,
        Property("drive", "str", None, "drive or block node of the disk"),
        Property("serial", "str", None, "serial number, 20 characters at most"),
        Property("logical_block_size", "size", 512, "A power of two between 512 B and 2 MiB"),
        Property("queue-size", "uint16", 256, "entries of the queue: a power of two from 4 to 1024"),
        Property("config-wce", "bool", True, "the driver may switch the write cache"),
        Property("write-cache", "str", "auto", "off: each write waits for the medium"),
        Property("discard", "bool", True, "take discards"),
        Property("write-zeroes", "bool", True, "take write zeroes"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        given = self.values
        if given["drive"] is None:
            raise PropertyError("drive property not set", self.driver, "drive")
        size, block = given["queue-size"], given["logical_block_size"]
        if size & (size - 1) or not 4 <= size <= r.MAX_QUEUE_SIZE:
            raise PropertyError(
                f"invalid queue-size property ({size}), must be a power of 2 (max {r.MAX_QUEUE_SIZE})", self.driver
            )
        if not 512 <= block <= 1 << 21 or block & (block - 1):
            raise PropertyError(
                f"Property {self.driver}.logical_block_size doesn't take value {block} "
                "(a power of two between 512 B and 2 MiB)",
                self.driver,
                "logical_block_size",
            )
        if given["write-cache"] not in ("auto", "on", "off"):
            raise PropertyError(f"Parameter 'write-cache' does not accept value '{given['write-cache']}'", self.driver)
        self.queue_sizes = (size,)
        self.image: BlockUse
        self.writeback = given["write-cache"] != "off"
        self.reads = self.writes = self.flushes = 0

    def acquire(self) -> None:
        """Take the drive."""
        blocks: BlockGraph | None = getattr(self.board, "blocks", None)
        if blocks is None:
            raise PropertyError("Property 'drive': there are no drives here", self.driver, "drive")
        name = self.values["drive"]
        self.image = image = blocks.use(name, self.path, blocks.readonly(name), self.values["logical_block_size"])
        self.holdings.hold("image", image.path, image.close)
        image.on_resize = self.config_interrupt

    def features(self) -> int:
        values = self.values
        return (
            F_SEG_MAX | F_GEOMETRY | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY
            | (F_RO if self.image.readonly else 0)
            | (F_CONFIG_WCE if values["config-wce"] else 0)
            | (F_DISCARD if values["discard"] else 0)
            | (F_WRITE_ZEROES if values["write-zeroes"] else 0)
        )  # fmt: skip

    def config_bytes(self) -> bytes:
        sectors = self.image.size // SECTOR
        block = self.values["logical_block_size"]
        fields = {
            "capacity": sectors,
            "seg_max": self.queue_sizes[0] - 2,
            "cylinders": min(sectors // (16 * 63), 16383),
            "heads": 16,
            "sectors": 63,
            "blk_size": block,
            "writeback": int(self.writeback),
            "num_queues": 1,
            "max_discard_sectors": MAX_DISCARD_SECTORS,
            "max_discard_seg": MAX_SEGMENTS,
            "discard_sector_alignment": block // SECTOR,
            "max_write_zeroes_sectors": MAX_DISCARD_SECTORS,
            "max_write_zeroes_seg": MAX_SEGMENTS,
            "write_zeroes_may_unmap": 1,
        }
        return bytes(BlkConfig.build(fields))

    def config_written(self, data: bytes) -> None:
        """Only the write cache can be switched. Ref: VIRTIO 1.2, 5.2.5.2."""
        if self.has(F_CONFIG_WCE):
            self.writeback = bool(data[WRITEBACK_OFFSET])

    def restart(self) -> None:
        """The write cache is as at power-on."""
        self.writeback = self.values["write-cache"] != "off"

    # Requests. Ref: VIRTIO 1.2, 5.2.6.

    def handle(self, queue: Virtqueue) -> int | None:
        """Carry out one request."""
        element = queue.pop()
        if element is None:
            return None
        if element.readable_length < HEADER.size or not element.writable_length:
            raise QueueBroken("a request without header or status")
        header = self.dma.gather(element.readable, 0, HEADER.size)
        kind, _, sector = HEADER.unpack(header)
        try:
            status, written = self._execute(kind, sector, element)
        except OSError:
            status, written = S_IOERR, 0
        # The status is the last byte that the driver lets us write.
        self.dma.scatter(element.writable, bytes((status,)), element.writable_length - 1)
        length = max(element.readable_length - HEADER.size, element.writable_length - 1)
        if self.board.trace.on:
            self.board.trace.emit(VirtioBlkRequest(self.label, kind, sector, length, status))
        queue.push(element, written + 1)
        return SYNC_COST if kind == T_FLUSH else min(length, LARGEST)

    def _execute(self, kind: int, sector: int, element: Element) -> tuple[int, int]:
        """(status, bytes written to the guest). OSError if the host fails."""
        image = self.image
        if kind == T_IN:
            length = element.writable_length - 1
            if not self._fits(sector, length):
                return S_IOERR, 0
            self.reads += 1
            self.dma.fill(image, sector * SECTOR, cut(element.writable, 0, length))
            return S_OK, length
        if kind == T_OUT:
            length = element.readable_length - HEADER.size
            if image.readonly or not self._fits(sector, length):
                return S_IOERR, 0
            self.writes += 1
            self.dma.drain(image, sector * SECTOR, cut(element.readable, HEADER.size))
            self._write_through()
            return S_OK, 0
        if kind == T_FLUSH:
            self.flushes += 1
            image.flush()
            return S_OK, 0
        if kind == T_GET_ID:
            serial = (self.values["serial"] or "").encode()[:ID_BYTES].ljust(ID_BYTES, b"\0")
            return S_OK, self.dma.scatter(cut(element.writable, 0, element.writable_length - 1), serial)
        if kind in (T_DISCARD, T_WRITE_ZEROES) and self.values["discard" if kind == T_DISCARD else "write-zeroes"]:
            return self._zero(kind, element), 0
        return S_UNSUPP, 0

    def _fits(self, sector: int, length: int) -> bool:
        offset = sector * SECTOR
        if not 0 < length <= LARGEST or (offset | length) % self.values["logical_block_size"]:
            return False
        return offset + length <= self.image.size

    def _write_through(self) -> None:
        cached = self.writeback if self.has(F_CONFIG_WCE) else self.has(F_FLUSH) and self.writeback
        if not cached:
            self.image.flush()

    def _zero(self, kind: int, element: Element) -> int:
        """Discard or write zeroes: both leave zeroes."""
        raw = self.dma.gather(element.readable, HEADER.size, SEGMENT.size + 1)
        if len(raw) != SEGMENT.size or element.readable_length != HEADER.size + SEGMENT.size:
            return S_IOERR  # one segment, as max_discard_seg says
        sector, count, flags = SEGMENT.unpack(raw)
        if flags & ~SEGMENT_UNMAP or (kind == T_DISCARD and flags):
            return S_UNSUPP
        if count > MAX_DISCARD_SECTORS or (sector + count) * SECTOR > self.image.size or self.image.readonly:
            return S_IOERR
        if count:
            self.image.write_zeroes(sector * SECTOR, count * SECTOR)
            self._write_through()
        return S_OK
