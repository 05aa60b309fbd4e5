"""ELF images: their loadable segments, their entry, their PVH note.

Ref: System V ABI, chapters 4 (ELF header) and 5 (program header, note section); Xen public/elfnote.h
(XEN_ELFNOTE_PHYS32_ENTRY).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from construct import Aligned, Bytes, Const, ConstructError, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct, this

from vmm.boot.image import BootState, Piece, check_layout, flat_registers, gdt_piece, loader_page
from vmm.errors import BootError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"\x7fELF"
ELFDATA2LSB = 1
EM_386 = 3
EM_X86_64 = 62
PT_LOAD, PT_NOTE = 1, 4
PF_X = 1
XEN_ELFNOTE_PHYS32_ENTRY = 18

IdentLayout = Struct("magic" / Const(MAGIC), "elf_class" / Int8ul, "data" / Int8ul, "version" / Int8ul, Padding(9))


def _header_layout(word: Any) -> Any:
    return Struct(
        "type" / Int16ul,
        "machine" / Int16ul,
        "version" / Int32ul,
        "entry" / word,
        "phoff" / word,
        "shoff" / word,
        "flags" / Int32ul,
        "ehsize" / Int16ul,
        "phentsize" / Int16ul,
        "phnum" / Int16ul,
        "shentsize" / Int16ul,
        "shnum" / Int16ul,
        "shstrndx" / Int16ul,
    )


HeaderLayouts = {1: _header_layout(Int32ul), 2: _header_layout(Int64ul)}
"""Behind the identification, by `elf_class` (1: 32 bits, 2: 64 bits)."""
ProgramLayouts = {
    1: Struct(
        "type" / Int32ul,
        "offset" / Int32ul,
        "vaddr" / Int32ul,
        "paddr" / Int32ul,
        "filesz" / Int32ul,
        "memsz" / Int32ul,
        "flags" / Int32ul,
        "align" / Int32ul,
    ),
    2: Struct(
        "type" / Int32ul,
        "flags" / Int32ul,
        "offset" / Int64ul,
        "vaddr" / Int64ul,
        "paddr" / Int64ul,
        "filesz" / Int64ul,
        "memsz" / Int64ul,
        "align" / Int64ul,
    ),
}
NoteLayout = Struct(
    "namesz" / Int32ul,
    "descsz" / Int32ul,
    "type" / Int32ul,
    "name" / Aligned(4, Bytes(this.namesz)),
    "desc" / Aligned(4, Bytes(this.descsz)),
)


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
        return _parse(data, path)
    except ConstructError as error:
        raise BootError(f"damaged ELF file ({str(error).splitlines()[-1]})", path) from error


def _parse(data: bytes, path: str) -> ElfImage:
    ident = IdentLayout.parse(data)
    if ident.elf_class not in HeaderLayouts:
        raise BootError(f"damaged ELF file (class {ident.elf_class})", path)
    header = HeaderLayouts[ident.elf_class].parse(data[IdentLayout.sizeof() :])
    if header.machine not in (EM_386, EM_X86_64) or ident.data != ELFDATA2LSB:
        raise BootError(f"ELF file for machine {header.machine}, not for x86", path)
    entry = header.entry
    segments: list[Piece] = []
    pvh_entry = None
    for program in _programs(data, ident.elf_class, header, path):
        end = program.offset + program.filesz
        if program.type == PT_NOTE and end <= len(data):
            found = _pvh_entry(data[program.offset : end])
            pvh_entry = pvh_entry if found is None else found
        if program.type != PT_LOAD or not program.memsz:
            continue
        if end > len(data):
            raise BootError(f"truncated: segment {len(segments)} ends at byte {end} of {len(data)}", path)
        if program.filesz > program.memsz:
            raise BootError(f"segment {len(segments)} has more bytes in the file than in memory", path)
        if program.flags & PF_X and program.vaddr <= header.entry < program.vaddr + program.memsz:
            entry = header.entry - program.vaddr + program.paddr
        content = memoryview(data)[program.offset : end]  # a kernel's are tens of MiB: not copied
        segments.append(Piece(program.paddr, content, program.memsz, f"segment {len(segments)}"))
    if not segments:
        raise BootError("ELF file without a loadable segment", path)
    return ElfImage(32 * ident.elf_class, entry, tuple(segments), pvh_entry)


def _programs(data: bytes, elf_class: int, header: Any, path: str) -> Iterator[Any]:
    layout = ProgramLayouts[elf_class]
    size = layout.sizeof()
    if header.phnum and header.phentsize < size:
        raise BootError(f"damaged ELF file (program headers of {header.phentsize} bytes)", path)
    for index in range(header.phnum):
        at = header.phoff + index * header.phentsize
        yield layout.parse(data[at : at + size])


def _pvh_entry(notes: bytes) -> int | None:
    """What the last XEN_ELFNOTE_PHYS32_ENTRY says; a note that is cut ends the search."""
    entry = None
    at = 0
    while at + 12 <= len(notes):
        try:
            note = NoteLayout.parse(notes[at:] + bytes(3))  # the last one need not be padded
        except ConstructError:
            break
        if note.name == b"Xen\0" and note.type == XEN_ELFNOTE_PHYS32_ENTRY:
            entry = int.from_bytes(note.desc[:8], "little")
        at += 12 + (note.namesz + 3 & -4) + (note.descsz + 3 & -4)
    return entry


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
