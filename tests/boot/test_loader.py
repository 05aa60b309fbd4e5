"""Which file is taken for what; ELF, PVH, Linux and flat images."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import guest_images
from vmm.boot import flat, load, prepare
from vmm.boot.acpi import RSDP_ADDRESS
from vmm.boot.e820 import memory_map
from vmm.boot.image import check_layout, piece
from vmm.boot.linux import E820Layout, SetupLayout
from vmm.boot.pvh import MemoryMapLayout, ModuleLayout, StartInfoLayout
from vmm.errors import BootError

MIB = 1 << 20
RAM = 8 * MIB
CODE = b"\xfa\xf4"


def elf_file(bits: int = 32, machine: int = 0, note: int | None = None, entry: int = MIB, virtual: int = 0) -> bytes:
    """An executable of two instructions at 1 MiB with 16 bytes in memory; `note` is a PVH entry."""
    wide = bits == 64
    header_size, ph_size = (64, 56) if wide else (52, 32)
    notes = b"" if note is None else struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", note)
    count = 2 if notes else 1
    at = header_size + count * ph_size
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    machine = machine or (62 if wide else 3)
    layout = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    file = ident + struct.pack(layout, 2, machine, 1, entry, header_size, 0, 0, header_size, ph_size, count, 0, 0, 0)

    def program(kind: int, offset: int, address: int, filesz: int, memsz: int) -> bytes:
        where = virtual + address
        if wide:
            return struct.pack("<IIQQQQQQ", kind, 5, offset, where, address, filesz, memsz, 1)
        return struct.pack("<IIIIIIII", kind, offset, where, address, filesz, memsz, 5, 1)

    file += program(1, at, MIB, len(CODE), 16)
    if notes:
        file += program(4, at + len(CODE), 0, len(notes), len(notes))
    return file + CODE + notes


def bz_image(version: int = 0x020C, kernel: bytes = b"\xfa" * 64, **changes: int) -> bytes:
    """A file with a Linux setup header, four setup sectors and `kernel`."""
    fields = dict.fromkeys((f.name for f in SetupLayout.subcons), 0) | {
        "setup_sects": 4,
        "syssize": (len(kernel) + 15) // 16,
        "boot_flag": 0xAA55,
        "jump": b"\xeb\x66",
        "header": b"HdrS",
        "version": version,
        "loadflags": 1,
        "code32_start": MIB,
        "initrd_addr_max": 0x7FFFFFFF,
        "cmdline_size": 255,
        "pref_address": MIB,
        "init_size": MIB,
    }
    image = bytearray(5 * 512)
    built = SetupLayout.build(fields | changes)
    image[0x1F1 : 0x1F1 + len(built)] = built
    return bytes(image) + kernel


@pytest.fixture
def kernel(tmp_path):
    """Writes bytes to a file and returns its name."""

    def write(data: bytes, name: str = "kernel") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def test_elf32_without_other_signs_starts_flat_at_its_entry(kernel):
    ram = bytearray(b"\xee" * RAM)
    state = load(kernel(elf_file()), None, "", ram, RAM)
    assert (state.protocol, state.registers.rip) == ("elf", MIB)
    assert ram[MIB : MIB + 17] == CODE + bytes(14) + b"\xee"


def test_entry_given_as_virtual_address_is_where_the_segment_was_loaded(kernel):
    state = prepare(kernel(elf_file(virtual=0xC0000000, entry=0xC0000000 + MIB)), None, "", RAM)
    assert state.registers.rip == MIB


def test_elf64_with_pvh_note_starts_there_and_finds_its_start_information(kernel):
    ram = bytearray(RAM)
    initrd = kernel(b"cpio" * 3, "initrd")
    state = load(kernel(elf_file(64, note=MIB + 1)), initrd, "console=ttyS0", ram, RAM)
    assert (state.protocol, state.registers.rip) == ("pvh", MIB + 1)
    info = StartInfoLayout.parse(ram[state.registers.gpr[3] :])
    assert ram[info.cmdline_paddr :][:14] == b"console=ttyS0\0"
    assert info.rsdp_paddr == RSDP_ADDRESS
    ranges = [
        MemoryMapLayout.parse(ram[info.memmap_paddr + i * MemoryMapLayout.sizeof() :])
        for i in range(info.memmap_entries)
    ]
    assert [(r.addr, r.size, r.type) for r in ranges] == [tuple(r) for r in memory_map(RAM)]
    assert info.nr_modules == 1
    module = ModuleLayout.parse(ram[info.modlist_paddr :])
    assert ram[module.paddr : module.paddr + module.size] == b"cpio" * 3


def test_linux_gets_boot_params_with_command_line_initrd_memory_and_rsdp(kernel):
    ram = bytearray(RAM)
    initrd = kernel(b"cpio" * 3, "initrd")
    state = load(kernel(bz_image()), initrd, "quiet", ram, RAM)
    assert (state.protocol, state.registers.rip) == ("linux", MIB)
    assert state.registers.segments["cs"].selector == 0x10
    params = ram[state.registers.gpr[6] :][:4096]
    setup = SetupLayout.parse(params[0x1F1:])
    assert setup.type_of_loader == 0xFF
    assert ram[setup.cmd_line_ptr :][:6] == b"quiet\0"
    assert ram[setup.ramdisk_image : setup.ramdisk_image + setup.ramdisk_size] == b"cpio" * 3
    entries = [E820Layout.parse(params[0x2D0 + 20 * i :]) for i in range(params[0x1E8])]
    assert [(e.addr, e.size, e.type) for e in entries] == [tuple(r) for r in memory_map(RAM)]
    assert int.from_bytes(params[0x70:0x78], "little") == RSDP_ADDRESS
    assert ram[MIB : MIB + 64] == b"\xfa" * 64


def test_boot_sector_starts_at_7c00_in_real_mode_and_is_told_the_disk(kernel):
    ram = bytearray(RAM)
    state = load(kernel(CODE + bytes(508) + b"\x55\xaa"), None, "", ram, RAM)
    registers = state.registers
    assert (state.protocol, registers.segments["cs"].base + registers.rip) == ("flat", 0x7C00)
    assert registers.cr0 & 1 == 0
    assert registers.gpr[2] & 0xFF == 0x80
    assert ram[0x7C00:0x7C02] == CODE


def test_flat_image_for_a_high_address_has_its_segment():
    state = flat.load(CODE, "x", RAM, 0x20010)
    cs = state.registers.segments["cs"]
    assert (cs.selector, cs.base, state.registers.rip) == (0x2001, 0x20010, 0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty file"),
        (b"hello", "not a kernel"),
        (elf_file(64), "64-bit ELF file"),
        (elf_file(machine=40), "not for x86"),
        (elf_file()[:60], "ELF"),
        (elf_file()[:-1], "truncated"),
        (bz_image()[:0x210], "truncated"),
        (bz_image()[:-20], "truncated"),
        (bz_image(version=0x0201), "protocol 2.01"),
        (bz_image(loadflags=0), "1 MiB"),
        (bz_image(init_size=RAM), "unpack"),
    ],
)
def test_what_is_no_kernel_is_refused_with_reason_and_file(kernel, data, says):
    path = kernel(data)
    with pytest.raises(BootError, match=says) as caught:
        prepare(path, None, "", RAM)
    assert caught.value.path == path


def test_segments_that_overlap_are_refused_with_both_names():
    parts = [piece(MIB, bytes(100), "segment 0"), piece(MIB + 99, bytes(100), "segment 1")]
    with pytest.raises(BootError, match=r"segment 1 at 0x100063.* overlaps segment 0"):
        check_layout(parts, RAM, "x")
    assert check_layout([parts[1], parts[0]._replace(length=99)], RAM, "x")[1] is parts[1]


def test_boot_sector_that_is_too_large_is_refused(kernel):
    with pytest.raises(BootError, match="below 1 MiB"):
        prepare(kernel(bytes(510) + b"\x55\xaa" + bytes(MIB)), None, "", RAM)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BootError, match="could not open kernel file") as caught:
        prepare(tmp_path / "none", None, "", RAM)
    assert caught.value.path == str(tmp_path / "none")


@pytest.mark.parametrize(("initrd", "cmdline", "option"), [("x", "", "-initrd"), (None, "x", "-append")])
def test_options_that_nobody_would_read_are_refused(kernel, initrd, cmdline, option):
    with pytest.raises(BootError, match=option):
        prepare(kernel(elf_file()), initrd, cmdline, RAM)


def test_a_command_line_longer_than_the_kernel_takes_is_refused(kernel):
    path = kernel(bz_image())
    assert prepare(path, None, "x" * 255, RAM).protocol == "linux"
    with pytest.raises(BootError, match="at most 255"):
        prepare(path, None, "x" * 256, RAM)


def test_an_initrd_that_does_not_fit_is_refused(kernel):
    with pytest.raises(BootError, match="more memory"):
        prepare(kernel(bz_image()), kernel(bytes(RAM - 2 * MIB + 1), "initrd"), "", RAM)


@pytest.mark.parametrize("size", [0, MIB, (1 << 39) + 4096])
def test_ram_that_no_guest_can_have_is_refused(kernel, size):
    with pytest.raises(BootError, match="RAM"):
        prepare(kernel(elf_file()), None, "", size)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_damaged_files_load_within_ram_or_are_refused(tmp_path, data):
    originals = [
        elf_file(),
        elf_file(64, note=MIB),
        bz_image(),
        guest_images.path("smp").read_bytes(),
        bytes(510) + b"\x55\xaa",
    ]
    image = bytearray(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(0, 4))):
        image[data.draw(st.integers(0, min(len(image) - 1, 600)))] = data.draw(st.integers(0, 255))
    del image[data.draw(st.integers(0, len(image))) :]
    path = Path(tmp_path / "damaged")
    path.write_bytes(image)
    try:
        state = prepare(path, None, "", RAM)
    except BootError:
        return
    assert all(piece.address >= 0 and piece.end <= RAM for piece in state.pieces)
