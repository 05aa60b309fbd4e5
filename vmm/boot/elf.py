"""ELF images: their loadable segments, their entry, their PVH note.

Ref: System V ABI, chapter 5 (program header); Xen public/elfnote.h (XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

import io
from typing import NamedTuple

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from vmm.boot.image import BootState, Piece, check_layout, flat_registers, gdt_piece, loader_page
from vmm.errors import BootError

MAGIC = b"\x7fELF"
EM_386 = 3
EM_X86_64 = 62
PF_X = 1
XEN_ELFNOTE_PHYS32_ENTRY = 18

_DAMAGED = (ELFError, ConstructError, ValueError, KeyError, TypeError, AttributeError, OverflowError, AssertionError)
"""What pyelftools raises on files that are none or were cut."""


class ElfImage(NamedTuple):
    """What matters of an ELF file. Addresses are guest-physical."""

    bits: int
    entry: int
    segments: tuple[Piece, ...]
    pvh_entry: int | None

    @property
    def end(self) -> int:
        """First address behind the last segment."""
        return max(segment.end for segment in self.segments)


def is_elf(data: bytes) -> bool:
    """True if the file claims to be ELF."""
    return data.startswith(MAGIC)


def parse(data: bytes, path: str) -> ElfImage:
    """Read an x86 ELF executable. BootError when it is damaged, not for x86, or has nothing to load."""
    try:
        return _parse(ELFFile(io.BytesIO(data)), data, path)
    except _DAMAGED as error:
        raise BootError(f"damaged ELF file ({str(error) or type(error).__name__})", path) from error


def _parse(file: ELFFile, data: bytes, path: str) -> ElfImage:
    machine = file.header["e_machine"]
    if machine not in ("EM_386", "EM_X86_64") or not file.little_endian:
        raise BootError(f"ELF file for {machine}, not for x86", path)
    entry = virtual_entry = file.header["e_entry"]
    segments: list[Piece] = []
    pvh_entry = None
    for header in file.iter_segments():
        offset, filesz, memsz = header["p_offset"], header["p_filesz"], header["p_memsz"]
        if isinstance(header, NoteSegment) and offset + filesz <= len(data):
            for note in header.iter_notes():
                if note["n_name"] == "Xen" and note["n_type"] in (XEN_ELFNOTE_PHYS32_ENTRY, "NT_GNU_PHYS32_ENTRY"):
                    description = note["n_descdata"]
                    pvh_entry = int.from_bytes(description[:8], "little")
        if header["p_type"] != "PT_LOAD" or not memsz:
            continue
        if offset + filesz > len(data):
            raise BootError(f"truncated: segment {len(segments)} ends at byte {offset + filesz} of {len(data)}", path)
        if filesz > memsz:
            raise BootError(f"segment {len(segments)} has more bytes in the file than in memory", path)
        physical, virtual = header["p_paddr"], header["p_vaddr"]
        if header["p_flags"] & PF_X and virtual <= virtual_entry < virtual + memsz:
            entry = virtual_entry - virtual + physical
        segments.append(Piece(physical, data[offset : offset + filesz], memsz, f"segment {len(segments)}"))
    if not segments:
        raise BootError("ELF file without a loadable segment", path)
    return ElfImage(file.elfclass, entry, tuple(segments), pvh_entry)


def load(data: bytes, path: str, ram_size: int) -> BootState:
    """A plain ELF executable with neither a Multiboot header nor a PVH note: 32-bit flat at its entry.

    BootError for ELF64: nobody defined how such a file starts.
    """
    image = parse(data, path)
    if image.bits != 32:
        raise BootError(
            "64-bit ELF file with neither a Multiboot header nor a PVH note (XEN_ELFNOTE_PHYS32_ENTRY):"
            " link it as elf32-i386, or build Linux with CONFIG_PVH",
            path,
        )
    gdt = gdt_piece(loader_page(image.segments))
    pieces = check_layout((*image.segments, gdt), ram_size, path)
    return BootState("elf", flat_registers(image.entry, gdt), pieces)
