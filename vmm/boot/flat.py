"""Raw binaries: a boot sector, or bytes for a given address, started in real mode."""

from __future__ import annotations

from vmm.boot.image import BootState, check_layout, piece
from vmm.cpu.engine import Registers, Segment
from vmm.errors import BootError

BOOT_SECTOR = 0x7C00
SIGNATURE = b"\x55\xaa"
REAL_MODE_LIMIT = 0x100000
CODE16 = 0x00009B00
DATA16 = 0x00009300
HARD_DISK = 0x80


def is_boot_sector(data: bytes) -> bool:
    """True if the first sector ends in 55 AA."""
    return data[510:512] == SIGNATURE


def load(data: bytes, path: str, ram_size: int, address: int = BOOT_SECTOR) -> BootState:
    """The file's bytes at `address`, CS:IP there in real mode, DL = 80h as for a disk.

    CS is 0 below 64 KiB, else `address >> 4`. BootError when the file is empty or does not fit below 1 MiB.
    """
    if not data:
        raise BootError("empty file", path)
    if not 0 <= address <= REAL_MODE_LIMIT - 16 or address + len(data) > REAL_MODE_LIMIT:
        raise BootError(
            f"{len(data)} bytes at {address:#x} do not fit below 1 MiB, where real mode ends: give a lower address"
            " or an ELF image",
            path,
        )
    selector, offset = (0, address) if address < 0x10000 else (address >> 4, address & 15)
    segments = {name: Segment(0, 0, 0xFFFF, DATA16) for name in ("es", "ss", "ds", "fs", "gs")}
    segments["cs"] = Segment(selector, selector << 4, 0xFFFF, CODE16)
    registers = Registers(rip=offset, segments=segments, idt=(0, 0x3FF), cr0=0x10)
    registers.gpr[2] = HARD_DISK
    registers.gpr[4] = BOOT_SECTOR
    return BootState("flat", registers, check_layout([piece(address, data, "the image")], ram_size, path))
