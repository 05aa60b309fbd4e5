"""Finds out what a kernel file is and lets the right loader lay it out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vmm.boot import elf, flat, linux, multiboot, pvh, unpack
from vmm.boot.e820 import memory_map
from vmm.errors import BootError

if TYPE_CHECKING:
    import mmap

    from vmm.boot.image import BootState


OTHERS = (
    (0, b"070701", "a cpio archive: give it as -initrd"),
    (0, b"!<arch>\n", "a package or a library: unpack it (dpkg-deb -x) and give its boot/vmlinuz-*"),
    (0, b"QFI\xfb", "a disk image"),
    (0, b"#!", "a script"),
    (0x38, b"ARM\x64", "a kernel for ARM64"),
    (0x8001, b"CD001", "the image of a CD"),
    (0, b"MZ", "an EFI or DOS program without Linux' setup header"),
)
"""What people give instead of a kernel, by bytes at an offset."""
LINUX_BANNER = b"Linux version "


def prepare(
    kernel: Path | str, initrd: str | None, cmdline: str, ram_size: int, *, unpack_here: bool = True
) -> BootState:
    """Read `kernel` and say what goes where in `ram_size` bytes of RAM; nothing is written.

    In this order: a Multiboot 1 header, an ELF file (PVH note, Linux, or plain ELF32), a Linux bzImage, a boot sector.
    A file that is compressed as a whole is unpacked first. `unpack_here` off: a bzImage unpacks itself in the guest.
    `initrd` is one file; for Multiboot a list of modules, ``"file args,file2"``. BootError says what is wrong with
    which file.
    """
    path = str(kernel)
    memory_map(ram_size)
    try:
        data = Path(kernel).read_bytes()
    except OSError as error:
        raise BootError(f"could not open kernel file: {error.strerror}", path) from error
    if not data:
        raise BootError("empty file", path)
    if unpack.kind(data) is not None:
        data = unpack.unpack(data, path)
    if (header := multiboot.find_header(data, path)) is not None:
        return multiboot.load(data, header, path, initrd, cmdline, ram_size)
    if elf.is_elf(data):
        image = elf.parse(data, path)
        if image.pvh_entry is not None:
            return pvh.load(image, path, initrd, cmdline, ram_size)
        if image.bits == 64 and LINUX_BANNER in data:
            return linux.load_vmlinux(image, path, initrd, cmdline, ram_size)
        _refuse(initrd, cmdline, "a plain ELF image", path)
        return elf.load(data, path, ram_size)
    if linux.is_linux(data):
        return linux.load(data, path, initrd, cmdline, ram_size, unpack_here=unpack_here)
    if flat.is_boot_sector(data):
        _refuse(initrd, cmdline, "a boot sector", path)
        return flat.load(data, path, ram_size)
    for offset, magic, what in OTHERS:
        if data.startswith(magic, offset):
            raise BootError(f"not a kernel: {what}", path)
    raise BootError(
        "not a kernel: no Multiboot header in the first 8 KiB, no ELF file, no Linux bzImage, and no boot sector", path
    )


def load(
    kernel: Path | str, initrd: str | None, cmdline: str, ram: bytearray | memoryview | mmap.mmap, ram_size: int
) -> BootState:
    """`prepare`, and place the result in `ram`. The state returned can be placed again after a reset."""
    state = prepare(kernel, initrd, cmdline, ram_size)
    state.place(ram)
    return state


def _refuse(initrd: str | None, cmdline: str, what: str, path: str) -> None:
    for option, value in (("-initrd", initrd), ("-append", cmdline)):
        if value:
            raise BootError(f"{what} takes no {option}: nothing would tell it", path)
