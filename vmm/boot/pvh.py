"""The PVH way into a kernel: what Linux with CONFIG_PVH and other ELF64 kernels announce in a note.

Ref: Xen docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from construct import Const, Int32ul, Int64ul, Struct

from vmm.boot.acpi import RSDP_ADDRESS
from vmm.boot.e820 import low_ram, memory_map
from vmm.boot.image import LOADER_PAGES, PAGE, BootState, Piece, check_layout, flat_registers, gdt_piece, piece
from vmm.errors import BootError

if TYPE_CHECKING:
    from vmm.boot import elf

MEMORY_MAP_ADDRESS = LOADER_PAGES[0]
START_INFO_ADDRESS = MEMORY_MAP_ADDRESS + 0x500
COMMAND_LINE_ADDRESS = 0x20000
COMMAND_LINE_LIMIT = 0x10000

StartInfoLayout = Struct(
    "magic" / Const(0x336EC578, Int32ul),
    "version" / Const(1, Int32ul),
    "flags" / Int32ul,
    "nr_modules" / Int32ul,
    "modlist_paddr" / Int64ul,
    "cmdline_paddr" / Int64ul,
    "rsdp_paddr" / Int64ul,
    "memmap_paddr" / Int64ul,
    "memmap_entries" / Int32ul,
    "reserved" / Const(0, Int32ul),
)
ModuleLayout = Struct("paddr" / Int64ul, "size" / Int64ul, "cmdline_paddr" / Int64ul, "reserved" / Const(0, Int64ul))
MemoryMapLayout = Struct("addr" / Int64ul, "size" / Int64ul, "type" / Int32ul, "reserved" / Const(0, Int32ul))


def load(image: elf.ElfImage, path: str, initrd: str | None, cmdline: str, ram_size: int) -> BootState:
    """Lay out `image` (which has a PVH note), one initrd file and the command line.

    The CPU starts at the noted address in flat 32-bit mode with EBX pointing to the start information.
    BootError when something does not fit or the initrd cannot be read.
    """
    if image.pvh_entry is None:
        raise BootError("no PVH note (XEN_ELFNOTE_PHYS32_ENTRY)", path)
    pieces: list[Piece] = list(image.segments)
    check_layout(pieces, ram_size, path)
    info = {"flags": 0, "nr_modules": 0, "modlist_paddr": 0, "rsdp_paddr": RSDP_ADDRESS}
    modules = b""
    if initrd:
        address, content = place_initrd(initrd, image.end, ram_size)
        pieces.append(piece(address, content, f"initrd {initrd}"))
        modules = ModuleLayout.build({"paddr": address, "size": len(content), "cmdline_paddr": 0})
        info["nr_modules"] = 1
        info["modlist_paddr"] = START_INFO_ADDRESS + StartInfoLayout.sizeof()
    ranges = memory_map(ram_size)
    info |= {
        "cmdline_paddr": COMMAND_LINE_ADDRESS,
        "memmap_paddr": MEMORY_MAP_ADDRESS,
        "memmap_entries": len(ranges),
    }
    gdt = gdt_piece(LOADER_PAGES[0])
    pieces += (
        command_line_piece(cmdline, path),
        piece(
            MEMORY_MAP_ADDRESS,
            b"".join(MemoryMapLayout.build({"addr": r.base, "size": r.length, "type": r.type}) for r in ranges),
            "the memory map",
        ),
        piece(START_INFO_ADDRESS, StartInfoLayout.build(info) + modules, "the PVH start information"),
        gdt,
    )
    registers = flat_registers(image.pvh_entry, gdt)
    registers.gpr[3] = START_INFO_ADDRESS
    return BootState("pvh", registers, check_layout(pieces, ram_size, path))


def command_line_piece(cmdline: str, path: str, limit: int = COMMAND_LINE_LIMIT) -> Piece:
    """The command line where kernels are told to look for it. BootError when longer than `limit` bytes with its end."""
    text = cmdline.encode("utf-8", "surrogateescape") + b"\0"
    if len(text) > limit:
        raise BootError(f"command line of {len(text) - 1} bytes, the kernel takes at most {limit - 1}", path)
    return piece(COMMAND_LINE_ADDRESS, text, "the command line")


def place_initrd(initrd: str, kernel_end: int, ram_size: int, highest: int = 0xFFFFFFFF) -> tuple[int, bytes]:
    """(address, content) of an initrd as high in RAM as it may be. BootError: unreadable, or no room."""
    try:
        content = Path(initrd).read_bytes()
    except OSError as error:
        raise BootError(f"initrd cannot be read: {error.strerror}", initrd) from error
    ram_end = low_ram(ram_size)
    address = (min(ram_end, highest + 1) - len(content)) & -PAGE
    if address < kernel_end:
        raise BootError(
            f"initrd of {len(content)} bytes does not fit between the kernel's end at {kernel_end:#x}"
            f" and the end of RAM at {ram_end:#x}: give the machine more memory (-m)",
            initrd,
        )
    return address, content
