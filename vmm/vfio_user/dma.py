"""The client's memory as a device sees it: ranges behind descriptors, and ranges that only messages reach.

A client is not trusted. Memory that it could truncate under a mapping of ours would end us with SIGBUS, so a file is
mapped only if it is sealed against shrinking, and read and written with pread(2) and pwrite(2) otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from vmm.vfio_user.protocol import (
    CHUNK,
    DMA_MAP_FILE_IO,
    DMA_MAP_MMAP,
    DMA_MAP_READ,
    DMA_MAP_WRITE,
    MAX_DMA_MAPS,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

F_GET_SEALS = getattr(fcntl, "F_GET_SEALS", 1034)
F_SEAL_SHRINK = getattr(fcntl, "F_SEAL_SHRINK", 2)
_END = 1 << 64
_FLAGS = DMA_MAP_READ | DMA_MAP_WRITE | DMA_MAP_MMAP | DMA_MAP_FILE_IO


class Messenger(Protocol):
    """Who reaches the client's memory by DMA_READ and DMA_WRITE."""

    def dma_read(self, address: int, count: int) -> bytes | None:
        """`count` bytes; None if the client refused or did not answer."""

    def dma_write(self, address: int, data: bytes) -> None:
        """Store; a refusal is not heard of."""


class DmaRange:
    """One mapping: `size` bytes at bus address `address`. `fd`, if not -1, is ours."""

    __slots__ = ("_offset", "_view", "address", "fd", "flags", "size")

    def __init__(self, address: int, size: int, flags: int, fd: int = -1, offset: int = 0) -> None:
        """OSError EINVAL for a descriptor that is no file, or not as large; EACCES if it does not allow `flags`."""
        self.address = address
        self.size = size
        self.flags = flags
        self.fd = fd
        self._offset = offset
        self._view: mmap.mmap | None = None
        if fd < 0:
            return
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or offset + size > status.st_size:
            raise OSError(errno.EINVAL, "the descriptor is no file, or ends before the range")
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == os.O_WRONLY or (flags & DMA_MAP_WRITE and mode != os.O_RDWR):
            raise OSError(errno.EACCES, "the descriptor does not allow what the range does")
        with contextlib.suppress(OSError):  # a file that cannot be sealed
            sealed = fcntl.fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK
            if sealed and not flags & DMA_MAP_FILE_IO and not offset % mmap.ALLOCATIONGRANULARITY:
                protection = mmap.PROT_READ | (mmap.PROT_WRITE if flags & DMA_MAP_WRITE else 0)
                self._view = mmap.mmap(fd, size, mmap.MAP_SHARED, protection, offset=offset)

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.size

    def read(self, at: int, count: int) -> bytes:
        """Bytes `at` the range's start and on; all ones where the file has been cut off."""
        if self._view is not None:
            return self._view[at : at + count]
        try:
            data = os.pread(self.fd, count, self._offset + at)
        except OSError:
            data = b""
        return data + b"\xff" * (count - len(data))

    def write(self, at: int, data: bytes | bytearray | memoryview) -> None:
        """Store; what lies where the file has been cut off is lost."""
        if self._view is not None:
            self._view[at : at + len(data)] = bytes(data)
            return
        with contextlib.suppress(OSError):
            # pwrite would make a file longer that was cut off.
            room = os.fstat(self.fd).st_size - self._offset - at
            if room > 0:
                os.pwrite(self.fd, data[:room], self._offset + at)

    def close(self) -> None:
        """Unmap, and close the descriptor."""
        if self._view is not None:
            self._view.close()
            self._view = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class DmaMemory:
    """All ranges of a client. `read` and `write` are those of guest RAM, so devices need not know the difference."""

    def __init__(self, messenger: Messenger) -> None:
        self._messenger = messenger
        self._starts: list[int] = []
        self._ranges: list[DmaRange] = []
        self.max_transfer = CHUNK
        """The largest transfer by message, in bytes."""

    def __len__(self) -> int:
        return len(self._ranges)

    # What the client does.

    def map(self, address: int, size: int, flags: int, fd: int = -1, offset: int = 0) -> None:
        """DMA_MAP. Takes over `fd` if it returns. OSError EINVAL, EEXIST (an overlap), ENOSPC, EACCES."""
        if not size or address + size > _END or offset + size > _END or flags & ~_FLAGS:
            raise OSError(errno.EINVAL, f"a mapping of {size:#x} bytes at {address:#x} with flags {flags:#x}")
        if fd < 0 and flags & (DMA_MAP_MMAP | DMA_MAP_FILE_IO):
            raise OSError(errno.EINVAL, "a mapping of a file without a file")
        at = bisect_right(self._starts, address)
        if (at and self._ranges[at - 1].end > address) or (
            at < len(self._ranges) and address + size > self._starts[at]
        ):
            raise OSError(errno.EEXIST, f"{address:#x}+{size:#x} overlaps a mapping")
        if len(self._ranges) >= MAX_DMA_MAPS:
            raise OSError(errno.ENOSPC, f"there are {MAX_DMA_MAPS} mappings already")
        self._ranges.insert(at, DmaRange(address, size, flags, fd, offset))
        self._starts.insert(at, address)

    def unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP of one mapping, whole. OSError ENOENT if there is none like it."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or self._starts[at] != address or self._ranges[at].size != size:
            raise OSError(errno.ENOENT, f"{address:#x}+{size:#x} is not mapped so")
        self._starts.pop(at)
        self._ranges.pop(at).close()

    def clear(self) -> None:
        """Forget all mappings."""
        ranges, self._ranges, self._starts = self._ranges, [], []
        for mapping in ranges:
            mapping.close()

    # What the device does.

    def _pieces(self, address: int, count: int) -> Iterator[tuple[DmaRange | None, int, int]]:
        """(range or None, address, count) for each part of an access."""
        while count > 0:
            at = bisect_right(self._starts, address)
            mapping = self._ranges[at - 1] if at else None
            if mapping is not None and address < mapping.end:
                length = min(count, mapping.end - address)
            else:
                mapping = None
                length = min(count, self._starts[at] - address) if at < len(self._starts) else count
            if mapping is not None and mapping.fd < 0:
                length = min(length, self.max_transfer)
            yield mapping, address, length
            address += length
            count -= length

    def read(self, address: int, length: int) -> bytes:
        """Bytes at a bus address; all ones where nothing is mapped for reading, or the client does not answer."""
        out = bytearray()
        for mapping, at, count in self._pieces(address, length):
            data = None
            if mapping is not None and mapping.flags & DMA_MAP_READ:
                if mapping.fd >= 0:
                    data = mapping.read(at - mapping.address, count)
                else:
                    data = self._messenger.dma_read(at, count)
            out += data if data is not None else b"\xff" * count
        return bytes(out)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Store at a bus address; lost where nothing is mapped for writing."""
        view = memoryview(data)
        for mapping, at, count in self._pieces(address, len(view)):
            if mapping is not None and mapping.flags & DMA_MAP_WRITE:
                piece = view[at - address : at - address + count]
                if mapping.fd >= 0:
                    mapping.write(at - mapping.address, piece)
                else:
                    self._messenger.dma_write(at, bytes(piece))
