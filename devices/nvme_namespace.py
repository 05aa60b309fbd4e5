"""The one NVMe namespace: an image, and the commands of the NVM command set on it.

Ref: NVMe 1.4, 6.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices import nvme_registers as r
from devices.nvme_queues import CommandFailed

if TYPE_CHECKING:
    from devices.nvme_queues import GuestBuffers, Sqe
    from vmm.block import FileImage

NSID = 1
FUA = 1 << 30
SYNC_COST = 1 << 18
"""What a flush counts like, in bytes: it waits for the medium."""
UNIT = 512 * 1000
"""Bytes in a data unit of the SMART log."""


class Namespace:
    """Namespace 1. `write_cache` is the feature of that name: off means that each write is flushed."""

    __slots__ = (
        "_buffers",
        "_max_transfer",
        "_shift",
        "blocks",
        "bytes_read",
        "bytes_written",
        "image",
        "media_errors",
        "reads",
        "write_cache",
        "writes",
    )

    def __init__(self, image: FileImage, block_size: int, buffers: GuestBuffers, max_transfer: int) -> None:
        self.image = image
        self.blocks = image.size // block_size
        self.write_cache = True
        self._shift = block_size.bit_length() - 1
        self._buffers = buffers
        self._max_transfer = max_transfer
        self.reads = self.writes = self.bytes_read = self.bytes_written = self.media_errors = 0

    def identify(self) -> bytes:
        """Identify Namespace data."""
        zero = {"nsfeat": 0, "nlbaf": 0, "flbas": 0, "mc": 0, "dpc": 0, "dps": 0, "nmic": 0, "rescap": 0, "fpi": 0}
        data: bytes = r.IdentifyNamespace.build(
            zero
            | {
                "nsze": self.blocks,
                "ncap": self.blocks,
                "nuse": self.blocks,
                "dlfeat": 1,
                "nsattr": r.NSATTR_WRITE_PROTECTED if self.image.readonly else 0,
                "lbaf": [{"ms": 0, "lbads": self._shift, "rp": 0}],
            }
        )
        return data

    def execute(self, sqe: Sqe) -> int:
        """Carry out an I/O command: how much it did, in bytes. CommandFailed with what the guest is told."""
        opcode = sqe.opcode
        if opcode == r.NVM_FLUSH:
            if sqe.nsid not in (NSID, r.NSID_ALL):
                raise CommandFailed(r.INVALID_NAMESPACE)
            self.flush()
            return SYNC_COST
        if opcode not in (r.NVM_READ, r.NVM_WRITE, r.NVM_WRITE_ZEROES):
            raise CommandFailed(r.INVALID_OPCODE)
        if sqe.nsid != NSID:
            raise CommandFailed(r.INVALID_NAMESPACE)
        start = sqe.cdw11 << 32 | sqe.cdw10
        count = (sqe.cdw12 & 0xFFFF) + 1
        length = count << self._shift
        if opcode != r.NVM_WRITE_ZEROES and length > self._max_transfer:
            raise CommandFailed(r.INVALID_FIELD)
        if start + count > self.blocks:
            raise CommandFailed(r.LBA_OUT_OF_RANGE)
        offset = start << self._shift
        if opcode == r.NVM_READ:
            self._read(sqe, offset, length)
        else:
            if self.image.readonly:
                raise CommandFailed(r.NAMESPACE_WRITE_PROTECTED)
            self._write(sqe, offset, length)
            if sqe.cdw12 & FUA or not self.write_cache:
                self.flush()
                length += SYNC_COST
        return length

    def _read(self, sqe: Sqe, offset: int, length: int) -> None:
        segments = self._buffers.segments(sqe.prp1, sqe.prp2, length)
        try:
            self._buffers.fill(self.image, offset, segments)
        except OSError:
            self.media_errors += 1
            raise CommandFailed(r.UNRECOVERED_READ) from None
        self.reads += 1
        self.bytes_read += length

    def _write(self, sqe: Sqe, offset: int, length: int) -> None:
        try:
            if sqe.opcode == r.NVM_WRITE_ZEROES:
                self.image.write_zeroes(offset, length)
            else:
                self._buffers.drain(self.image, offset, self._buffers.segments(sqe.prp1, sqe.prp2, length))
                self.writes += 1
                self.bytes_written += length
        except OSError:
            self.media_errors += 1
            raise CommandFailed(r.WRITE_FAULT) from None

    def flush(self) -> None:
        """Put everything written on the medium. CommandFailed if the host could not."""
        try:
            self.image.flush()
        except OSError:
            self.media_errors += 1
            raise CommandFailed(r.WRITE_FAULT) from None
