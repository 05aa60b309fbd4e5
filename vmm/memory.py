"""Guest RAM, address spaces, and the dispatch of port and memory-mapped accesses.

An `IoRegion` answers accesses relative to its base. Mapping one into an `AddressSpace` gives a `Mapping`, the handle
that moves it (a BAR) or takes it away (an unplug). Whatever nobody answers is an open bus: reads give all ones,
writes are lost. Values are little-endian integers, sizes 1, 2, 4 or 8 bytes.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF, 8: 0xFFFF_FFFF_FFFF_FFFF}
PAGE_SHIFT = 12
MAP_NORESERVE = 0x4000
"""Of Linux on x86 and ARM, which not every Python's mmap names: the host need not have all of a guest's memory free."""
FOUR_GIB = 1 << 32
PCI_HOLE = 0xE000_0000
"""From here to 4 GiB are PCI memory, the interrupt controllers and the firmware: no RAM."""
SPLIT_BELOW = 0xC000_0000
"""RAM below 4 GiB in a machine that has some above. Ref: QEMU's pc, max-ram-below-4g."""
_LARGE = 1 << 24
"""Regions from this size on are kept in a list: a page table of them would cost more than it saves."""


class IoRegion:
    """A range that answers accesses.

    `read(offset, size) -> int` and `write(offset, size, value)` get offsets relative to the region and sizes up to
    `max_access` bytes; a wider access, or one that leaves the region, is split into little-endian pieces. A region
    whose `min_access` is larger than the access ignores it (reads give all ones).
    """

    __slots__ = ("max_access", "min_access", "name", "read", "size", "write")

    def __init__(
        self,
        name: str,
        size: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        min_access: int = 1,
        max_access: int = 8,
    ) -> None:
        self.name = name
        self.size = size
        self.read = read
        self.write = write
        self.min_access = min_access
        self.max_access = max_access

    def __repr__(self) -> str:
        return f"<IoRegion {self.name} {self.size:#x}>"


class Mapping:
    """A region at a place in an address space. `close` takes it away; `move` puts it elsewhere."""

    __slots__ = ("base", "end", "priority", "region", "serial", "space")

    def __init__(self, space: AddressSpace, region: IoRegion, base: int, priority: int, serial: int) -> None:
        self.space: AddressSpace | None = space
        self.region = region
        self.base = base
        self.end = base + region.size
        """First address behind it."""
        self.priority = priority
        self.serial = serial

    def move(self, base: int) -> None:
        """Answer at `base` from now on."""
        space = self.space
        if space is None:
            raise ConfigError(f"{self.region.name} is not mapped any more")
        if base != self.base:
            space._check(self.region, base)
            space._remove(self)
            self.base = base
            self.end = base + self.region.size
            space._insert(self)

    def close(self) -> None:
        """Answer no more. A second close does nothing."""
        if self.space is not None:
            self.space._remove(self)
            self.space = None

    def __repr__(self) -> str:
        return f"<Mapping {self.region.name} {self.base:#x}-{self.end - 1:#x}>"


class AddressSpace:
    """Ports (64 Ki) or guest-physical addresses, without RAM.

    Where regions overlap the higher `priority` answers, then the one mapped last. An access goes whole to whoever
    answers at its first address, as far as that region reaches: a dword at port 0xcf8 is CONFADD's although the byte
    at 0xcf9 is another register's. Small regions are found by page:
    `_pages` maps a page to its one mapping if that covers the page, else to the list to search.
    """

    __slots__ = ("_large", "_mappings", "_pages", "_serial", "_shift", "name", "size")

    def __init__(self, name: str, size: int, page_shift: int = PAGE_SHIFT) -> None:
        self.name = name
        self.size = size
        self._shift = page_shift
        self._pages: dict[int, tuple[Mapping, ...]] = {}
        self._large: list[Mapping] = []
        self._mappings: list[Mapping] = []
        self._serial = 0

    @classmethod
    def ports(cls) -> AddressSpace:
        """The 64 Ki I/O ports."""
        return cls("io", 1 << 16, page_shift=3)

    @classmethod
    def memory(cls) -> AddressSpace:
        """Guest-physical addresses outside RAM."""
        return cls("memory", 1 << 64)

    def map(self, base: int, region: IoRegion, priority: int = 0) -> Mapping:
        """Let `region` answer from `base` on. ConfigError if it would leave the space."""
        self._check(region, base)
        self._serial += 1
        mapping = Mapping(self, region, base, priority, self._serial)
        self._insert(mapping)
        return mapping

    def _check(self, region: IoRegion, base: int) -> None:
        if region.size <= 0 or base < 0 or base + region.size > self.size:
            raise ConfigError(f"{region.name}: {base:#x}+{region.size:#x} is outside the {self.name} space")

    def _insert(self, mapping: Mapping) -> None:
        self._mappings.append(mapping)
        if mapping.region.size >= _LARGE:
            self._large.append(mapping)
            self._large.sort(key=_rank)
            return
        pages = self._pages
        alone = (mapping,)
        for page in self._pages_of(mapping):
            others = pages.get(page)
            pages[page] = alone if others is None else tuple(sorted((*others, mapping), key=_rank))

    def _remove(self, mapping: Mapping) -> None:
        self._mappings.remove(mapping)
        if mapping.region.size >= _LARGE:
            self._large.remove(mapping)
            return
        pages = self._pages
        for page in self._pages_of(mapping):
            there = pages[page]
            if len(there) == 1:
                del pages[page]
            else:
                pages[page] = tuple(m for m in there if m is not mapping)

    def _pages_of(self, mapping: Mapping) -> range:
        return range(mapping.base >> self._shift, ((mapping.end - 1) >> self._shift) + 1)

    def find(self, address: int) -> Mapping | None:
        """Who answers at `address`."""
        for mapping in self._pages.get(address >> self._shift, ()):
            if mapping.base <= address < mapping.end:
                return mapping
        for mapping in self._large:
            if mapping.base <= address < mapping.end:
                return mapping
        return None

    def read(self, address: int, size: int) -> int:
        """The value a guest reads; all ones where nobody answers."""
        there = self._pages.get(address >> self._shift)
        if there is not None:
            for mapping in there:
                if mapping.base <= address < mapping.end:
                    region = mapping.region
                    if region.min_access <= size <= region.max_access and address + size <= mapping.end:
                        return region.read(address - mapping.base, size) & ALL_ONES[size]
                    break
        elif size == 1 and not self._large:
            return 0xFF
        return self._read_any(address, size)

    def _read_any(self, address: int, size: int) -> int:
        mapping = self.find(address)
        if mapping is None:
            if size > 1 and self._another_within(address, size):
                return self._read_split(address, size)
            return ALL_ONES[size]
        region = mapping.region
        offset = address - mapping.base
        if size <= region.max_access and offset + size <= region.size:
            if size < region.min_access:
                return ALL_ONES[size]
            return region.read(offset, size) & ALL_ONES[size]
        return self._read_split(address, size, region.max_access)

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's write; lost where nobody answers."""
        there = self._pages.get(address >> self._shift)
        if there is not None:
            for mapping in there:
                if mapping.base <= address < mapping.end:
                    region = mapping.region
                    if region.min_access <= size <= region.max_access and address + size <= mapping.end:
                        region.write(address - mapping.base, size, value)
                        return
                    break
        elif size == 1 and not self._large:
            return
        self._write_any(address, size, value)

    def _write_any(self, address: int, size: int, value: int) -> None:
        mapping = self.find(address)
        if mapping is None:
            if size > 1 and self._another_within(address, size):
                self._write_split(address, size, value)
            return
        region = mapping.region
        offset = address - mapping.base
        if size <= region.max_access and offset + size <= region.size:
            if size >= region.min_access:
                region.write(offset, size, value)
            return
        self._write_split(address, size, value, region.max_access)

    def _another_within(self, address: int, size: int) -> bool:
        pages = self._pages
        if not (self._large or address >> self._shift in pages or address + size - 1 >> self._shift in pages):
            return False
        return any(self.find(address + i) is not None for i in range(1, size))

    def _piece(self, address: int, left: int, widest: int) -> int:
        piece = min(widest, left)
        mapping = self.find(address)
        piece = 1 if mapping is None else min(piece, mapping.region.max_access, mapping.end - address)
        return 1 << (piece.bit_length() - 1)

    def _read_split(self, address: int, size: int, widest: int = 4) -> int:
        value = done = 0
        while done < size:
            piece = self._piece(address + done, size - done, min(widest, size))
            value |= self._one_read(address + done, piece) << (8 * done)
            done += piece
        return value

    def _one_read(self, address: int, size: int) -> int:
        mapping = self.find(address)
        if mapping is None or size < mapping.region.min_access:
            return ALL_ONES[size]
        return mapping.region.read(address - mapping.base, size) & ALL_ONES[size]

    def _write_split(self, address: int, size: int, value: int, widest: int = 4) -> None:
        done = 0
        while done < size:
            piece = self._piece(address + done, size - done, min(widest, size))
            mapping = self.find(address + done)
            if mapping is not None and piece >= mapping.region.min_access:
                mapping.region.write(address + done - mapping.base, piece, (value >> (8 * done)) & ALL_ONES[piece])
            done += piece

    def mappings(self) -> list[Mapping]:
        """All mappings by base address, as `info mtree` shows them."""
        return sorted(self._mappings, key=lambda m: (m.base, _rank(m)))


def _rank(mapping: Mapping) -> tuple[int, int]:
    return (-mapping.priority, -mapping.serial)


def split_ram(size: int) -> tuple[int, int]:
    """How many of `size` bytes of RAM begin at address 0, and how many at 4 GiB, as QEMU's `pc` has it.

    Up to 3.5 GiB all are below the window of 32-bit PCI memory; of more, 3 GiB are, and the rest is above 4 GiB.
    """
    below = size if size < PCI_HOLE else SPLIT_BELOW
    return below, size - below


class GuestMemory:
    """RAM from guest-physical address 0, more of it at 4 GiB, and the way devices reach memory (DMA).

    `ram` is an anonymous shared-nothing mapping of `size` bytes whose pages take memory once they are used: the
    `below` bytes that the guest has from address 0, and behind them the `above` bytes that it has from 4 GiB. `view`
    is all of it; `locate` says where in it an address is. Engines map the same pages; `on_write(gpa, length)` tells
    them that the host wrote there, so that they forget translated code.

    With `fd`, a file of that size, RAM is shared with whoever maps the file, too. It stays the caller's; `fd` is -1 if
    there is none.
    """

    __slots__ = ("above", "below", "fd", "on_write", "ram", "size", "view")

    def __init__(self, size: int, fd: int = -1) -> None:
        if size <= 0 or size % mmap.PAGESIZE:
            raise ConfigError(f"RAM of {size} bytes: the size must be a positive multiple of {mmap.PAGESIZE}")
        self.size = size
        self.below, self.above = split_ram(size)
        flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        try:
            self.ram = mmap.mmap(fd, size, flags=flags | MAP_NORESERVE)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"RAM of {size} bytes: the host has not that much address space ({error})") from error
        self.fd = fd
        self.view = memoryview(self.ram)
        self.on_write: Callable[[int, int], None] | None = None

    def locate(self, gpa: int, length: int) -> int:
        """Where in `view` the `length` bytes at `gpa` are; -1 if not all of them are RAM, in one piece."""
        if 0 <= gpa <= self.below - length:
            return gpa
        if self.above and FOUR_GIB <= gpa <= FOUR_GIB + self.above - length:
            return gpa - FOUR_GIB + self.below
        return -1

    def ranges(self) -> list[tuple[int, int]]:
        """(address, length) of each piece of RAM, in order of address."""
        pieces = [(0, self.below)]
        if self.above:
            pieces.append((FOUR_GIB, self.above))
        return pieces

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes at `gpa`; what lies outside RAM reads as all ones."""
        at = self.locate(gpa, length)
        if at >= 0:
            return bytes(self.view[at : at + length])
        data = bytearray(b"\xff") * length
        for start, end, at in self._inside(gpa, length):
            data[start:end] = self.view[at : at + end - start]
        return bytes(data)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Store bytes at `gpa`; what lies outside RAM is lost."""
        length = len(data)
        at = self.locate(gpa, length)
        if at >= 0:
            self.view[at : at + length] = data
            if self.on_write is not None and length:
                self.on_write(gpa, length)
            return
        for start, end, at in self._inside(gpa, length):
            self.view[at : at + end - start] = data[start:end]
            if self.on_write is not None:
                self.on_write(gpa + start, end - start)

    def _inside(self, gpa: int, length: int) -> Iterator[tuple[int, int, int]]:
        """The parts of an access that are RAM: (first and end offset in the access, place in `view`)."""
        for base, size, at in ((0, self.below, 0), (FOUR_GIB, self.above, self.below)):
            start, end = max(gpa, base), min(gpa + length, base + size)
            if start < end and gpa >= 0:
                yield start - gpa, end - gpa, at + start - base

    def close(self) -> None:
        """Give the pages back. Views that others hold must be gone first (BufferError)."""
        self.view.release()
        self.ram.close()
