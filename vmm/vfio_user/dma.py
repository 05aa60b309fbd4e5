"""The client's memory as a device sees it: ranges behind descriptors, and ranges that only messages reach.

A client is not trusted: see `vmm.shared_memory` for what that means for a mapping.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from typing import TYPE_CHECKING, Protocol

from vmm.shared_memory import SharedBytes
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

    __slots__ = ("_bytes", "address", "fd", "flags", "read", "size", "write")

    def __init__(self, address: int, size: int, flags: int, fd: int = -1, offset: int = 0) -> None:
        """OSError EINVAL for a descriptor that is no file, or not as large; EACCES if it does not allow `flags`."""
        self.address = address
        self.size = size
        self.flags = flags
        self.fd = fd
        self._bytes: SharedBytes | None = None
        if fd >= 0:
            self._bytes = SharedBytes(fd, offset, size, bool(flags & DMA_MAP_WRITE), not flags & DMA_MAP_FILE_IO)
            self.read = self._bytes.read
            self.write = self._bytes.write

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.size

    def close(self) -> None:
        """Unmap, and close the descriptor."""
        if self._bytes is not None:
            self._bytes.close()
            os.close(self.fd)
            self._bytes = None
            self.fd = -1


class DirtyLog:
    """Which pages the device wrote since they were last asked for. `page_size`: bytes, a power of two."""

    __slots__ = ("_pages", "_shift", "page_size")

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self._shift = page_size.bit_length() - 1
        self._pages: set[int] = set()

    def add(self, address: int, count: int) -> None:
        """The device wrote there."""
        first, last = address >> self._shift, address + count - 1 >> self._shift
        if first == last:
            self._pages.add(first)
        else:
            self._pages.update(range(first, last + 1))

    def take(self, address: int, length: int, page_size: int) -> bytes:
        """The bitmap of a range in units of `page_size`, in whole 64-bit words; the range is clean afterwards.

        A logged page that is larger than the unit makes all its units dirty, as one bit could not say less.
        """
        size = bitmap_size(length, page_size)
        bits = bytearray(size)
        end = address + length
        shift, unit = self._shift, page_size.bit_length() - 1
        taken = [page for page in self._pages if page << shift < end and page + 1 << shift > address]
        for page in taken:
            low, high = max(page << shift, address), min(page + 1 << shift, end)
            _set_bits(bits, low - address >> unit, (high - 1 - address >> unit) + 1)
        self._pages.difference_update(taken)
        return bytes(bits)


def _set_bits(bits: bytearray, first: int, end: int) -> None:
    whole_from, whole_end = -(-first // 8), end // 8
    if whole_from < whole_end:
        bits[whole_from:whole_end] = b"\xff" * (whole_end - whole_from)
        edges = (*range(first, 8 * whole_from), *range(8 * whole_end, end))
    else:
        edges = tuple(range(first, end))
    for bit in edges:
        bits[bit >> 3] |= 1 << (bit & 7)


def bitmap_size(length: int, page_size: int) -> int:
    """Bytes of a bitmap with a bit for each page of `length` bytes."""
    pages = -(-length // page_size)
    return (pages + 63) // 64 * 8


class DmaMemory:
    """All ranges of a client. `read` and `write` are those of guest RAM, so devices need not know the difference."""

    def __init__(self, messenger: Messenger) -> None:
        self._messenger = messenger
        self._starts: list[int] = []
        self._ranges: list[DmaRange] = []
        self.max_transfer = CHUNK
        """The largest transfer by message, in bytes."""
        self.log: DirtyLog | None = None
        """Pages that the device wrote, while the client wants to know."""

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

    def check_mapped(self, address: int, size: int) -> int:
        """The place of a mapping in the list. OSError ENOENT if there is none of this address and size."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or self._starts[at] != address or self._ranges[at].size != size:
            raise OSError(errno.ENOENT, f"{address:#x}+{size:#x} is not mapped so")
        return at

    def unmap(self, address: int, size: int) -> None:
        """DMA_UNMAP of one mapping, whole. OSError ENOENT if there is none like it."""
        at = self.check_mapped(address, size)
        self._starts.pop(at)
        self._ranges.pop(at).close()

    def find(self, address: int, size: int) -> bool:
        """Whether some mapping has bytes of the range."""
        at = bisect_right(self._starts, address + size - 1)
        return bool(at) and self._ranges[at - 1].end > address

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
                if self.log is not None:
                    self.log.add(at, count)
                piece = view[at - address : at - address + count]
                if mapping.fd >= 0:
                    mapping.write(at - mapping.address, piece)
                else:
                    self._messenger.dma_write(at, bytes(piece))
