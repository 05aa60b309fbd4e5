"""What the guest is told about memory: the address map a PC's firmware reports.

Guest RAM is one piece from address 0, and where there is much of it another one from 4 GiB. The pieces a PC keeps for
itself are cut out: the extended BIOS data area, the area where the ACPI tables are (`vmm.boot.acpi`), and the
firmware's image below 4 GiB.
Ref: ACPI 6.4, 15.1 (INT 15H, E820H), for the types and the names.
"""

from __future__ import annotations

from typing import NamedTuple

from vmm.errors import BootError
from vmm.memory import FOUR_GIB, split_ram

RAM = 1
RESERVED = 2

EBDA = 0x9FC00
"""Extended BIOS data area: the last KiB of conventional memory."""
CONVENTIONAL_END = 0xA0000
ACPI_AREA = 0xE0000
"""Here begin the ACPI tables; the RSDP is where a guest scans for it, 0xe0000-0xfffff."""
EXTENDED = 0x100000
RAM_LIMIT = 1 << 39
"""A guest-physical address has 40 bits; the upper half is for devices."""
FIRMWARE = 0xFFFC0000


class MapEntry(NamedTuple):
    """One range: first address, length in bytes, and type (`RAM` or `RESERVED`)."""

    base: int
    length: int
    type: int


def memory_map(ram_size: int) -> list[MapEntry]:
    """The ranges of a machine with `ram_size` bytes, in order of address.

    BootError when that is less than one MiB and a page (no guest has room) or more than there are addresses for.
    """
    if ram_size < EXTENDED + 0x1000:
        raise BootError(f"{ram_size:#x} bytes of RAM are too little for any kernel: give at least 2 MiB")
    if ram_size > RAM_LIMIT:
        raise BootError(f"{ram_size:#x} bytes of RAM are too many for 40-bit addresses: give at most {RAM_LIMIT:#x}")
    below, above = split_ram(ram_size)
    return [
        MapEntry(0, EBDA, RAM),
        MapEntry(EBDA, CONVENTIONAL_END - EBDA, RESERVED),
        MapEntry(ACPI_AREA, EXTENDED - ACPI_AREA, RESERVED),
        MapEntry(EXTENDED, below - EXTENDED, RAM),
        MapEntry(FIRMWARE, FOUR_GIB - FIRMWARE, RESERVED),
        *([MapEntry(FOUR_GIB, above, RAM)] if above else ()),
    ]


def low_ram(ram_size: int) -> int:
    """Where RAM below 4 GiB ends: all that loaders use."""
    return split_ram(ram_size)[0]
