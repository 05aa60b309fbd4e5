"""Linux kernels in bzImage form, by the 32-bit boot protocol.

Ref: Linux Documentation/arch/x86/boot.rst ("32-bit boot protocol") and zero-page.rst.
"""

from __future__ import annotations

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Struct

from vmm.boot.acpi import RSDP_ADDRESS
from vmm.boot.e820 import EXTENDED, memory_map
from vmm.boot.image import LOADER_PAGES, BootState, Piece, check_layout, flat_registers, gdt_piece, piece
from vmm.boot.pvh import COMMAND_LINE_ADDRESS, command_line_piece, place_initrd
from vmm.errors import BootError

SETUP_HEADER = 0x1F1
HDRS = 0x202
MAGIC = b"HdrS"
SECTOR = 512
PARAMS_ADDRESS = 0x10000
PARAMS_SIZE = 0x1000
PARAMS_RSDP = 0x070
PARAMS_E820_ENTRIES = 0x1E8
PARAMS_E820_TABLE = 0x2D0
BOOT_CS = 0x10
LOADED_HIGH = 0x01
CAN_USE_HEAP = 0x80
LOADER_UNKNOWN = 0xFF
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


def load(data: bytes, path: str, initrd: str | None, cmdline: str, ram_size: int) -> BootState:
    """Lay out a bzImage, its initrd and its command line; the CPU starts at the 32-bit entry, ESI = boot_params.

    BootError when the kernel is too old, cut short, or something does not fit.
    """
    if len(data) < SETUP_HEADER + SetupLayout.sizeof():
        raise BootError("truncated within the Linux setup header", path)
    setup = SetupLayout.parse(data[SETUP_HEADER:])
    if setup.version < OLDEST or not setup.loadflags & LOADED_HIGH:
        raise BootError(
            f"Linux boot protocol {setup.version >> 8}.{setup.version & 0xFF:02} without a kernel at 1 MiB;"
            f" {OLDEST >> 8}.{OLDEST & 0xFF:02} is needed",
            path,
        )
    start = ((setup.setup_sects or 4) + 1) * SECTOR
    kernel = data[start:]
    if not kernel or setup.syssize * 16 > len(kernel) + 15:
        raise BootError(f"truncated: the kernel has {len(kernel)} bytes, its header says {setup.syssize * 16}", path)
    room = max(len(kernel), setup.init_size if setup.version >= 0x020A else len(kernel))
    kernel_piece = Piece(EXTENDED, kernel, len(kernel), "the kernel")
    if EXTENDED + room > ram_size:
        raise BootError(
            f"the kernel needs {EXTENDED:#x}-{EXTENDED + room - 1:#x} to unpack itself, RAM ends at {ram_size:#x}:"
            " give the machine more memory (-m)",
            path,
        )
    limit = setup.cmdline_size + 1 if setup.version >= 0x0206 else 256
    pieces = [kernel_piece, command_line_piece(cmdline, path, limit)]
    changes = {
        "type_of_loader": LOADER_UNKNOWN,
        "loadflags": setup.loadflags | CAN_USE_HEAP,
        "heap_end_ptr": 0xFE00,
        "code32_start": EXTENDED,
        "cmd_line_ptr": COMMAND_LINE_ADDRESS,
    }
    if initrd:
        highest = setup.initrd_addr_max if setup.version >= 0x0203 else 0x37FFFFFF
        unpacked = max(EXTENDED, setup.pref_address if setup.version >= 0x020A else EXTENDED) + room
        address, content = place_initrd(initrd, min(unpacked, ram_size), ram_size, highest)
        pieces.append(piece(address, content, f"initrd {initrd}"))
        changes |= {"ramdisk_image": address, "ramdisk_size": len(content)}
    gdt = gdt_piece(LOADER_PAGES[0], BOOT_CS // 8)
    pieces += (
        piece(PARAMS_ADDRESS, _boot_params(data, dict(setup) | changes, ram_size), "boot_params"),
        gdt,
    )
    registers = flat_registers(EXTENDED, gdt, BOOT_CS)
    registers.gpr[6] = PARAMS_ADDRESS
    return BootState("linux", registers, check_layout(pieces, ram_size, path))


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
