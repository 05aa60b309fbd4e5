"""Multiboot 1: header, modules, information structure, and the state an operating system image finds.

The layout is QEMU's: memory map at 0x9000 and information at 0x9500 (elsewhere if the kernel wants that page), and
page-aligned behind the kernel the module list, the strings and the modules (above 1 MiB at least).

Ref: Multiboot Specification 0.6.96, sections 3.1-3.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from construct import Bytes, Const, Int32ul, Int64ul, Struct

from vmm.boot import elf
from vmm.boot.e820 import EBDA, EXTENDED, low_ram, memory_map
from vmm.boot.image import BootState, Piece, check_layout, flat_registers, gdt_piece, loader_page, page_up, piece
from vmm.errors import BootError

HEADER_MAGIC = 0x1BADB002
LOADED_MAGIC = 0x2BADB002
SEARCH = 8192
"""The header lies wholly within these first bytes of the file, 4-byte aligned."""
INFO_OFFSET = 0x500
STACK = 0x7000
BOOT_LOADER_NAME = "vintx"

FLAG_PAGE_ALIGN = 1 << 0
FLAG_MEMORY_INFO = 1 << 1
FLAG_VIDEO_MODE = 1 << 2
FLAG_ADDRESSES = 1 << 16
KNOWN_REQUIREMENTS = FLAG_PAGE_ALIGN | FLAG_MEMORY_INFO | FLAG_VIDEO_MODE
REQUIREMENTS = 0xFFFF

INFO_MEMORY = 1 << 0
INFO_BOOT_DEVICE = 1 << 1
INFO_COMMAND_LINE = 1 << 2
INFO_MODULES = 1 << 3
INFO_MEMORY_MAP = 1 << 6
INFO_LOADER_NAME = 1 << 9

HeaderLayout = Struct("magic" / Const(HEADER_MAGIC, Int32ul), "flags" / Int32ul, "checksum" / Int32ul)
AddressesLayout = Struct(
    "header_addr" / Int32ul,
    "load_addr" / Int32ul,
    "load_end_addr" / Int32ul,
    "bss_end_addr" / Int32ul,
    "entry_addr" / Int32ul,
)
ModuleLayout = Struct("mod_start" / Int32ul, "mod_end" / Int32ul, "string" / Int32ul, "reserved" / Const(0, Int32ul))
MapEntryLayout = Struct("size" / Const(20, Int32ul), "base_addr" / Int64ul, "length" / Int64ul, "type" / Int32ul)
InfoLayout = Struct(
    "flags" / Int32ul,
    "mem_lower" / Int32ul,
    "mem_upper" / Int32ul,
    "boot_device" / Int32ul,
    "cmdline" / Int32ul,
    "mods_count" / Int32ul,
    "mods_addr" / Int32ul,
    "syms" / Bytes(16),
    "mmap_length" / Int32ul,
    "mmap_addr" / Int32ul,
    "drives_length" / Int32ul,
    "drives_addr" / Int32ul,
    "config_table" / Int32ul,
    "boot_loader_name" / Int32ul,
    "apm_table" / Int32ul,
    "vbe" / Bytes(16),
)
"""Only `flags` says which of the fields mean anything."""


class Header(NamedTuple):
    """A valid header: where in the file it is, and its flags."""

    offset: int
    flags: int


def find_header(data: bytes, path: str = "") -> Header | None:
    """The first valid header, or None if the file has none. BootError if there are headers but only damaged ones."""
    damaged = None
    magic = HEADER_MAGIC.to_bytes(4, "little")
    offset = data.find(magic, 0, SEARCH)
    while offset >= 0:
        raw = data[offset : min(offset + HeaderLayout.sizeof(), SEARCH)]
        if offset % 4 == 0 and len(raw) == HeaderLayout.sizeof():
            header = HeaderLayout.parse(raw)
            if (header.magic + header.flags + header.checksum) & 0xFFFFFFFF == 0:
                return Header(offset, header.flags)
            damaged = offset
        offset = data.find(magic, offset + 1, SEARCH)
    if damaged is not None and not elf.is_elf(data):
        raise BootError(f"Multiboot header at byte {damaged}, but its checksum is wrong", path)
    return None


def split_modules(initrd: str) -> list[str]:
    """The module strings of `-initrd "file args,file2"`; a comma that belongs to one is written twice."""
    modules = [""]
    i = 0
    while i < len(initrd):
        if initrd[i] != ",":
            modules[-1] += initrd[i]
        elif initrd.startswith(",,", i):
            modules[-1] += ","
            i += 1
        else:
            modules.append("")
        i += 1
    return modules


def load(data: bytes, header: Header, path: str, initrd: str | None, cmdline: str, ram_size: int) -> BootState:
    """Lay out the kernel in `data` (file `path`), the modules in `initrd` and the command line.

    The guest sees the command line with `path` before it, as QEMU gives it. BootError for what cannot be loaded.
    """
    unknown = header.flags & REQUIREMENTS & ~KNOWN_REQUIREMENTS
    if unknown:
        raise BootError(f"Multiboot header requires features {unknown:#x} that are not known", path)
    if header.flags & FLAG_ADDRESSES:
        entry, kernel = _by_addresses(data, header, path)
    else:
        entry, kernel = _by_elf(data, path)
    check_layout(kernel, ram_size, path)

    modules = _read_modules(initrd)
    page = loader_page(kernel)
    list_address = max(page_up(max(part.end for part in kernel)), EXTENDED)
    strings_address = list_address + 16 * len(modules)
    strings = bytearray()

    def string(text: str) -> int:
        address = strings_address + len(strings)
        strings.extend(text.encode("utf-8", "surrogateescape") + b"\0")
        return address

    module_strings = [string(text) for text, _ in modules]
    cmdline_address = string(f"{path} {cmdline}" if cmdline else path)
    loader_address = string(BOOT_LOADER_NAME)
    address = page_up(strings_address + len(strings))
    module_list = bytearray()
    pieces: list[Piece] = list(kernel)
    for (text, content), text_address in zip(modules, module_strings, strict=True):
        layout = {"mod_start": address, "mod_end": address + len(content), "string": text_address}
        module_list += ModuleLayout.build(layout)
        pieces.append(piece(address, content, f"module {text.split(' ', 1)[0]}"))
        address = page_up(address + len(content))

    ranges = memory_map(ram_size)
    mmap = b"".join(MapEntryLayout.build({"base_addr": r.base, "length": r.length, "type": r.type}) for r in ranges)
    flags = INFO_MEMORY | INFO_BOOT_DEVICE | INFO_COMMAND_LINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME
    info = dict.fromkeys((field.name for field in InfoLayout.subcons), 0) | {
        "flags": flags,
        "mem_lower": EBDA // 1024,
        "mem_upper": (low_ram(ram_size) - EXTENDED) // 1024,
        "boot_device": 0x8000FFFF,
        "cmdline": cmdline_address,
        "mods_count": len(modules),
        "mods_addr": list_address,
        "syms": bytes(16),
        "mmap_length": len(mmap),
        "mmap_addr": page,
        "boot_loader_name": loader_address,
        "vbe": bytes(16),
    }
    gdt = gdt_piece(page)
    pieces += (
        piece(list_address, bytes(module_list + strings), "the module list and the strings"),
        piece(page, mmap, "the Multiboot memory map"),
        piece(page + INFO_OFFSET, InfoLayout.build(info), "the Multiboot information"),
        gdt,
    )
    registers = flat_registers(entry, gdt)
    registers.gpr[0] = LOADED_MAGIC
    registers.gpr[3] = page + INFO_OFFSET
    registers.gpr[4] = STACK
    return BootState("multiboot", registers, check_layout(pieces, ram_size, path))


def _by_addresses(data: bytes, header: Header, path: str) -> tuple[int, list[Piece]]:
    """The header itself says what goes where (flag bit 16)."""
    raw = data[header.offset + 12 : header.offset + 32]
    if len(raw) < AddressesLayout.sizeof():
        raise BootError("truncated within the Multiboot header", path)
    fields = AddressesLayout.parse(raw)
    start = header.offset - (fields.header_addr - fields.load_addr)
    if fields.load_addr > fields.header_addr or start < 0:
        raise BootError(
            f"Multiboot header: load_addr {fields.load_addr:#x} does not fit header_addr {fields.header_addr:#x}", path
        )
    size = fields.load_end_addr - fields.load_addr if fields.load_end_addr else len(data) - start
    if size < 0 or start + size > len(data):
        raise BootError(f"Multiboot header: {size} bytes to load, the file has {len(data) - start}", path)
    length = size
    if fields.bss_end_addr:
        length = fields.bss_end_addr - fields.load_addr
        if length < size:
            raise BootError(f"Multiboot header: bss_end_addr {fields.bss_end_addr:#x} lies within the data", path)
    if not fields.load_addr <= fields.entry_addr < fields.load_addr + max(length, 1):
        raise BootError(f"Multiboot header: entry_addr {fields.entry_addr:#x} is outside what is loaded", path)
    return fields.entry_addr, [Piece(fields.load_addr, data[start : start + size], length, "the kernel")]


def _by_elf(data: bytes, path: str) -> tuple[int, list[Piece]]:
    if not elf.is_elf(data):
        raise BootError("Multiboot header without addresses (flag bit 16), and not an ELF file", path)
    image = elf.parse(data, path)
    if image.bits != 32:
        raise BootError("Multiboot starts 32-bit images, this ELF file has 64 bits: link it as elf32-i386", path)
    return image.entry, list(image.segments)


def _read_modules(initrd: str | None) -> list[tuple[str, bytes]]:
    """(string, content) of each module; the file's name is the first word of its string."""
    modules = []
    for text in split_modules(initrd) if initrd else ():
        name = text.split(" ", 1)[0]
        if not name:
            raise BootError("empty module name in the initrd list")
        try:
            modules.append((text, Path(name).read_bytes()))
        except OSError as error:
            raise BootError(f"module cannot be read: {error.strerror}", name) from error
    return modules
