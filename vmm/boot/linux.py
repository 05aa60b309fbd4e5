"""Linux kernels: a bzImage, or the vmlinux inside it, by the 64-bit boot protocol, else by the 32-bit one.

A bzImage is a program that unpacks a kernel. Unpacking here takes a tenth of a second; in the guest, whose code and
data share writable and executable pages then, it takes several.
Ref: Linux Documentation/arch/x86/boot.rst ("32-bit boot protocol", "64-bit boot protocol") and zero-page.rst.
"""

from __future__ import annotations

import struct
from typing import Any

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from vmm.boot import elf
from vmm.boot.acpi import RSDP_ADDRESS
from vmm.boot.e820 import EXTENDED, low_ram, memory_map
from vmm.boot.image import (
    GDT_OFFSET,
    LOADER_PAGES,
    PAGE,
    BootState,
    Piece,
    check_layout,
    flat_registers,
    gdt_piece,
    piece,
)
from vmm.boot.pvh import COMMAND_LINE_ADDRESS, command_line_piece, place_initrd
from vmm.boot.unpack import unpack
from vmm.cpu.engine import Segment
from vmm.errors import BootError

SETUP_HEADER = 0x1F1
HDRS = 0x202
MAGIC = b"HdrS"
SECTOR = 512
HEADER_END = 0x268
KERNEL_VERSION = 0x20E
PARAMS_ADDRESS = 0x10000
PAGE_TABLES = 0x60000
PARAMS_SIZE = 0x1000
PARAMS_RSDP = 0x070
PARAMS_E820_ENTRIES = 0x1E8
PARAMS_E820_TABLE = 0x2D0
BOOT_CS = 0x10
LOADED_HIGH = 0x01
CAN_USE_HEAP = 0x80
LOADER_UNKNOWN = 0xFF
XLF_KERNEL_64 = 0x01
CR0_PG = 1 << 31
CR4_PAE = 1 << 5
EFER_LME = 1 << 8
PTE_PRESENT, PTE_WRITABLE, PTE_LARGE = 0x01, 0x02, 0x80
LONG_CODE_FLAGS = 0x00AF9A00
LONG_CODE = (0x00AF9A000000FFFF).to_bytes(8, "little")
FLAT_DATA_DESCRIPTOR = (0x00CF92000000FFFF).to_bytes(8, "little")
OLDEST = 0x0202
"""Protocol 2.02 (Linux 2.4): the first with a command-line pointer and a kernel at 1 MiB."""

SetupLayout = Struct(
    "setup_sects" / Int8ul,
    "root_flags" / Int16ul,
    "syssize" / Int32ul,
    "ram_size" / Int16ul,
    "vid_mode" / Int16ul,
    "root_dev" / Int16ul,
    "boot_flag" / Int16ul,
    "jump" / Bytes(2),
    "header" / Const(MAGIC),
    "version" / Int16ul,
    "realmode_swtch" / Int32ul,
    "start_sys_seg" / Int16ul,
    "kernel_version" / Int16ul,
    "type_of_loader" / Int8ul,
    "loadflags" / Int8ul,
    "setup_move_size" / Int16ul,
    "code32_start" / Int32ul,
    "ramdisk_image" / Int32ul,
    "ramdisk_size" / Int32ul,
    "bootsect_kludge" / Int32ul,
    "heap_end_ptr" / Int16ul,
    "ext_loader_ver" / Int8ul,
    "ext_loader_type" / Int8ul,
    "cmd_line_ptr" / Int32ul,
    "initrd_addr_max" / Int32ul,
    "kernel_alignment" / Int32ul,
    "relocatable_kernel" / Int8ul,
    "min_alignment" / Int8ul,
    "xloadflags" / Int16ul,
    "cmdline_size" / Int32ul,
    "hardware_subarch" / Int32ul,
    "hardware_subarch_data" / Int64ul,
    "payload_offset" / Int32ul,
    "payload_length" / Int32ul,
    "setup_data" / Int64ul,
    "pref_address" / Int64ul,
    "init_size" / Int32ul,
    "handover_offset" / Int32ul,
)
"""The setup header up to protocol 2.11; older kernels have other things in the fields behind theirs."""
E820Layout = Struct("addr" / Int64ul, "size" / Int64ul, "type" / Int32ul)


def is_linux(data: bytes) -> bool:
    """True if the file has Linux' setup header."""
    return data[HDRS : HDRS + 4] == MAGIC


def version(data: bytes, path: str) -> str:
    """The version string of a bzImage; its first word is what `uname -r` says. BootError if there is none."""
    start = int.from_bytes(data[KERNEL_VERSION : KERNEL_VERSION + 2], "little") + SECTOR
    text, end, _ = data[start : start + SECTOR].partition(b"\0")
    if not is_linux(data) or start == SECTOR or not end or not text.strip():
        raise BootError("not a Linux bzImage that tells its version", path)
    return text.decode("ascii", "replace")


def load(
    data: bytes, path: str, initrd: str | None, cmdline: str, ram_size: int, *, unpack_here: bool = True
) -> BootState:
    """Lay out a bzImage, its initrd and its command line.

    The kernel inside is unpacked here and entered in 64-bit mode, RSI = boot_params. Where that cannot be (a 32-bit
    kernel, a format whose package is missing), or with `unpack_here` off, the CPU starts at the 32-bit entry, ESI =
    boot_params, and the kernel unpacks itself.

    BootError when the kernel is too old, cut short, or something does not fit.
    """
    setup = _setup(data, path)
    image = _vmlinux(data, setup, path) if unpack_here else None
    if image is not None and image.end <= low_ram(ram_size):
        return _start64(image, setup, data, path, initrd, cmdline, ram_size)
    start = _setup_size(setup)
    kernel = data[start:]
    room = max(len(kernel), setup.init_size if setup.version >= 0x020A else len(kernel))
    ram_end = low_ram(ram_size)
    if EXTENDED + room > ram_end:
        raise BootError(
            f"the kernel needs {EXTENDED:#x}-{EXTENDED + room - 1:#x} to unpack itself, RAM ends at {ram_end:#x}:"
            " give the machine more memory (-m)",
            path,
        )
    unpacked = max(EXTENDED, setup.pref_address if setup.version >= 0x020A else EXTENDED) + room
    pieces = [Piece(EXTENDED, kernel, len(kernel), "the kernel")]
    pieces += _told(data, setup, path, initrd, cmdline, ram_size, min(unpacked, ram_end))
    gdt = gdt_piece(LOADER_PAGES[0], BOOT_CS // 8)
    registers = flat_registers(EXTENDED, gdt, BOOT_CS)
    registers.gpr[6] = PARAMS_ADDRESS
    return BootState("linux", registers, check_layout([*pieces, gdt], ram_size, path))


def load_vmlinux(image: elf.ElfImage, path: str, initrd: str | None, cmdline: str, ram_size: int) -> BootState:
    """Lay out Linux' own ELF file, which has no setup header: as `load` does with what it has unpacked."""
    blank = dict.fromkeys((field.name for field in SetupLayout.subcons), 0) | {
        "boot_flag": 0xAA55,
        "jump": bytes((0xEB, HEADER_END - HDRS)),
        "header": MAGIC,
        "version": 0x020C,
        "loadflags": LOADED_HIGH,
        "initrd_addr_max": 0x7FFFFFFF,
        "cmdline_size": 2047,
    }
    built = SetupLayout.build(blank)
    return _start64(image, SetupLayout.parse(built), bytes(SETUP_HEADER) + built, path, initrd, cmdline, ram_size)


def _setup(data: bytes, path: str) -> Any:
    """The setup header, checked."""
    if len(data) < SETUP_HEADER + SetupLayout.sizeof():
        raise BootError("truncated within the Linux setup header", path)
    setup = SetupLayout.parse(data[SETUP_HEADER : SETUP_HEADER + SetupLayout.sizeof()])
    if setup.version < OLDEST or not setup.loadflags & LOADED_HIGH:
        raise BootError(
            f"Linux boot protocol {setup.version >> 8}.{setup.version & 0xFF:02} without a kernel at 1 MiB;"
            f" {OLDEST >> 8}.{OLDEST & 0xFF:02} is needed",
            path,
        )
    length = len(data) - _setup_size(setup)
    if length <= 0 or setup.syssize * 16 > length + 15:
        raise BootError(f"truncated: the kernel has {max(length, 0)} bytes, its header says {setup.syssize * 16}", path)
    return setup


def _setup_size(setup: Any) -> int:
    size: int = ((setup.setup_sects or 4) + 1) * SECTOR
    return size


def _vmlinux(data: bytes, setup: Any, path: str) -> elf.ElfImage | None:
    """The kernel's ELF file, unpacked out of a bzImage; None if it is no 64-bit one, or cannot be had."""
    if setup.version < 0x020C or not setup.xloadflags & XLF_KERNEL_64 or not setup.payload_length:
        return None
    start = _setup_size(setup) + setup.payload_offset
    payload = memoryview(data)[start : start + setup.payload_length]
    try:
        if elf.is_elf(bytes(payload[:4])):
            unpacked = bytes(payload)
        else:
            unpacked = unpack(payload, path, limit=max(setup.init_size, 1))
            # Behind the relocations of the kernel, which it needs only elsewhere, every format has this size.
            if len(unpacked) != int.from_bytes(payload[-4:], "little"):
                return None
        image = elf.parse(unpacked, path)
    except BootError:
        return None
    return image if image.bits == 64 else None


def _start64(
    image: elf.ElfImage, setup: Any, header: bytes, path: str, initrd: str | None, cmdline: str, ram_size: int
) -> BootState:
    """The 64-bit entry: long mode, the first 4 GiB mapped one to one, flat segments, RSI = boot_params."""
    check_layout(image.segments, ram_size, path)
    pieces = [*image.segments, *_told(header, setup, path, initrd, cmdline, ram_size, image.end)]
    gdt = piece(LOADER_PAGES[0] + GDT_OFFSET, bytes(BOOT_CS) + LONG_CODE + FLAT_DATA_DESCRIPTOR, "the boot GDT")
    pieces += (piece(PAGE_TABLES, _identity_tables(), "the boot page tables"), gdt)
    registers = flat_registers(image.entry, gdt, BOOT_CS)
    registers.segments["cs"] = Segment(BOOT_CS, 0, 0xFFFFFFFF, LONG_CODE_FLAGS)
    registers.cr0 |= CR0_PG
    registers.cr3, registers.cr4, registers.efer = PAGE_TABLES, CR4_PAE, EFER_LME
    registers.gpr[6] = PARAMS_ADDRESS
    return BootState("linux", registers, check_layout(pieces, ram_size, path))


def _identity_tables() -> bytes:
    """A PML4, a page directory pointer table, and four page directories of 2 MiB pages."""
    entry = struct.Struct("<Q").pack
    flags = PTE_PRESENT | PTE_WRITABLE
    pml4 = entry(PAGE_TABLES + PAGE | flags).ljust(PAGE, b"\0")
    pointers = b"".join(entry(PAGE_TABLES + (2 + i) * PAGE | flags) for i in range(4)).ljust(PAGE, b"\0")
    pages = b"".join(entry(i << 21 | flags | PTE_LARGE) for i in range(4 * 512))
    return pml4 + pointers + pages


def _told(
    data: bytes, setup: Any, path: str, initrd: str | None, cmdline: str, ram_size: int, kernel_end: int
) -> list[Piece]:
    """What the kernel is told: boot_params, the command line, the initrd. `data` begins with its setup header."""
    limit = setup.cmdline_size + 1 if setup.version >= 0x0206 else 256
    pieces = [command_line_piece(cmdline, path, limit)]
    changes = {
        "type_of_loader": LOADER_UNKNOWN,
        "loadflags": setup.loadflags | CAN_USE_HEAP,
        "heap_end_ptr": 0xFE00,
        "code32_start": EXTENDED,
        "cmd_line_ptr": COMMAND_LINE_ADDRESS,
    }
    if initrd:
        highest = setup.initrd_addr_max if setup.version >= 0x0203 else 0x37FFFFFF
        address, content = place_initrd(initrd, kernel_end, ram_size, highest)
        pieces.append(piece(address, content, f"initrd {initrd}"))
        changes |= {"ramdisk_image": address, "ramdisk_size": len(content)}
    pieces.append(piece(PARAMS_ADDRESS, _boot_params(data, dict(setup) | changes, ram_size), "boot_params"))
    return pieces


def _boot_params(data: bytes, setup: dict[str, object], ram_size: int) -> bytes:
    """The zero page: the kernel's own setup header with the loader's fields set, the memory map, the RSDP."""
    params = bytearray(PARAMS_SIZE)
    header_end = HDRS + data[HDRS - 1]
    params[SETUP_HEADER:header_end] = data[SETUP_HEADER:header_end]
    known = SetupLayout.build(setup)[: header_end - SETUP_HEADER]
    params[SETUP_HEADER : SETUP_HEADER + len(known)] = known
    params[PARAMS_RSDP : PARAMS_RSDP + 8] = RSDP_ADDRESS.to_bytes(8, "little")
    ranges = memory_map(ram_size)
    params[PARAMS_E820_ENTRIES] = len(ranges)
    table = b"".join(E820Layout.build({"addr": r.base, "size": r.length, "type": r.type}) for r in ranges)
    params[PARAMS_E820_TABLE : PARAMS_E820_TABLE + len(table)] = table
    return bytes(params)
