"""What a loader hands over: the pieces of a guest's memory, and how the boot processor starts.

A loader reads and checks its files once and writes nothing. `BootState.place` puts the pieces into RAM; the machine
calls it at start and again after every reset, as firmware would load the kernel again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vmm.boot.e820 import low_ram
from vmm.cpu.engine import Registers, Segment
from vmm.errors import BootError

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable

PAGE = 0x1000
LOADER_PAGES = (0x9000, 0x80000, 0x70000)
FLAT_CODE = 0x00CF9A00
"""Descriptor bits 8-23: 4 GiB, 32-bit, execute and read, ring 0."""
FLAT_DATA = 0x00CF9200
TSS32_BUSY = 0x00008B00
LDT = 0x00008200
CR0_PE = 0x1
CR0_ET = 0x10
CODE_SELECTOR = 0x08
DATA_SELECTOR = 0x10
GDT_OFFSET = 0x600
"""In the loader's page; before it are the memory map (0) and the structure the guest is told of (0x500)."""


class Piece(NamedTuple):
    """Bytes for guest-physical `address`, and zeroes up to `length` bytes in all. `what` names it in errors."""

    address: int
    data: bytes | memoryview
    length: int
    what: str

    @property
    def end(self) -> int:
        """First address behind it."""
        return self.address + self.length


def piece(address: int, data: bytes, what: str) -> Piece:
    """A piece that is all data."""
    return Piece(address, data, len(data), what)


@dataclass(frozen=True, slots=True)
class BootState:
    """A guest that was found bootable. `protocol`: `multiboot`, `pvh`, `linux`, `elf` or `flat`."""

    protocol: str
    registers: Registers
    pieces: tuple[Piece, ...]

    def place(self, ram: bytearray | memoryview | mmap.mmap) -> list[tuple[int, int]]:
        """Write every piece; returns (address, length) of each, for engines that keep translated code."""
        view = memoryview(ram)
        for item in self.pieces:
            view[item.address : item.address + len(item.data)] = item.data
            rest = item.length - len(item.data)
            if rest:
                view[item.address + len(item.data) : item.end] = bytes(rest)
        return [(item.address, item.length) for item in self.pieces]


def check_layout(pieces: Iterable[Piece], ram_size: int, path: str) -> tuple[Piece, ...]:
    """The pieces in order of address. BootError if one leaves RAM or two overlap."""
    ordered = tuple(sorted((p for p in pieces if p.length), key=lambda p: (p.address, p.end)))
    before: Piece | None = None
    ram_end = low_ram(ram_size)
    for item in ordered:
        if item.address < 0 or item.end > ram_end:
            raise BootError(
                f"{item.what} needs {item.address:#x}-{item.end - 1:#x}, but RAM ends at {ram_end:#x}:"
                " give the machine more memory (-m)",
                path,
            )
        if before is not None and item.address < before.end:
            raise BootError(
                f"{item.what} at {item.address:#x}-{item.end - 1:#x} overlaps"
                f" {before.what} at {before.address:#x}-{before.end - 1:#x}",
                path,
            )
        before = item
    return ordered


def loader_page(kernel: Iterable[Piece]) -> int:
    """A page for what the loader itself leaves in memory: QEMU's place if the kernel leaves it free."""
    taken = tuple(kernel)
    for page in LOADER_PAGES:
        if all(item.end <= page or item.address >= page + PAGE for item in taken):
            return page
    return page_up(max(item.end for item in taken))


def page_up(address: int) -> int:
    """`address` or the next page boundary."""
    return (address + PAGE - 1) & -PAGE


def flat_gdt(code_index: int = 1) -> bytes:
    """Null descriptors, then flat 32-bit code at `code_index` and flat data behind it."""
    code = 0x00CF9A000000FFFF
    data = 0x00CF92000000FFFF
    return bytes(8 * code_index) + code.to_bytes(8, "little") + data.to_bytes(8, "little")


def gdt_piece(page: int, code_index: int = 1) -> Piece:
    """The boot GDT in the loader's page."""
    return piece(page + GDT_OFFSET, flat_gdt(code_index), "the boot GDT")


def flat_registers(entry: int, gdt: Piece, code_selector: int = CODE_SELECTOR) -> Registers:
    """32-bit protected mode without paging: flat 4 GiB segments, interrupts off, execution from `entry`.

    `gdt` is the table that holds those segments; data follows code in it.
    """
    data = code_selector + 8
    segments = {name: Segment(data, 0, 0xFFFFFFFF, FLAT_DATA | 0x100) for name in ("es", "ss", "ds", "fs", "gs")}
    segments["cs"] = Segment(code_selector, 0, 0xFFFFFFFF, FLAT_CODE)
    segments["ldt"] = Segment(0, 0, 0xFFFF, LDT)
    segments["tr"] = Segment(0, 0, 0xFFFF, TSS32_BUSY)
    return Registers(
        rip=entry, segments=segments, gdt=(gdt.address, gdt.length - 1), idt=(0, 0x3FF), cr0=CR0_PE | CR0_ET
    )
