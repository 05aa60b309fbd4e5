"""Which file is taken for what; ELF, PVH, Linux and flat images."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from pathlib import Path

import lz4.block
import pytest
import zstandard
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


def vmlinux(size: int = 3 * MIB // 2) -> bytes:
    """An ELF64 file with the words by which Linux is known."""
    return elf_file(64) + b"Linux version 6.1\0" + bytes(size)


def squeezed(kind: str, data: bytes) -> bytes:
    """As a kernel's build compresses it: what unpacks has its size behind it, but for gzip, which has it anyway."""
    size = len(data).to_bytes(4, "little")
    if kind == "gzip":
        return gzip.compress(data, mtime=0)
    if kind == "bzip2":
        return bz2.compress(data) + size
    if kind in ("xz", "lzma"):
        return lzma.compress(data, lzma.FORMAT_XZ if kind == "xz" else lzma.FORMAT_ALONE) + size
    if kind == "zstd":
        return zstandard.ZstdCompressor(write_content_size=False).compress(data) + size
    blocks = [lz4.block.compress(data[i : i + (8 << 20)], store_size=False) for i in range(0, len(data), 8 << 20)]
    return b"\x02\x21\x4c\x18" + b"".join(len(b).to_bytes(4, "little") + b for b in blocks) + size


def packed(payload: bytes, **changes: int) -> bytes:
    """A 64-bit bzImage around `payload`."""
    code = b"\xfa" * 64
    fields = {"xloadflags": 1, "payload_offset": len(code), "payload_length": len(payload), "init_size": 4 * MIB}
    return bz_image(kernel=code + payload, **fields | changes)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "lzma", "lz4", "zstd"])
def test_a_kernel_in_any_compression_is_unpacked_and_entered_in_64_bit_mode(kernel, kind):
    ram = bytearray(RAM)
    state = load(kernel(packed(squeezed(kind, vmlinux()))), kernel(b"cpio" * 3, "initrd"), "quiet", ram, RAM)
    registers = state.registers
    assert (state.protocol, registers.rip) == ("linux", MIB)
    assert ram[MIB : MIB + 2] == CODE
    assert registers.cr0 & (1 << 31 | 1) == 1 << 31 | 1
    assert (registers.cr4 >> 5 & 1, registers.efer >> 8 & 1) == (1, 1)
    cs = registers.segments["cs"]
    assert (cs.selector, cs.flags >> 21 & 1) == (0x10, 1)
    setup = SetupLayout.parse(ram[registers.gpr[6] + 0x1F1 :])
    assert ram[setup.cmd_line_ptr :][:6] == b"quiet\0"
    assert ram[setup.ramdisk_image : setup.ramdisk_image + setup.ramdisk_size] == b"cpio" * 3


def test_identity_page_tables_map_the_first_4_gib_onto_themselves(kernel):
    ram = bytearray(RAM)
    registers = load(kernel(packed(squeezed("gzip", vmlinux()))), None, "", ram, RAM).registers

    def walk(address: int) -> int:
        table = registers.cr3
        for shift in (39, 30, 21):
            entry = int.from_bytes(ram[table + 8 * (address >> shift & 511) :][:8], "little")
            assert entry & 3 == 3
            if entry & 0x80:
                return (entry & -(1 << 21)) + (address & (1 << 21) - 1)
            table = entry & ~0xFFF
        raise AssertionError

    for address in (0, MIB, 0x60000, 0xBFFF_FFFF, 0xFEE0_0000, 0xFFFF_FFFF):
        assert walk(address) == address


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(packed(squeezed("gzip", vmlinux()), xloadflags=0), id="32-bit"),
        pytest.param(packed(b"LZO?" + bytes(100)), id="unknown-format"),
        pytest.param(packed(squeezed("gzip", elf_file(32) + bytes(MIB))), id="32-bit-inside"),
        pytest.param(packed(squeezed("lz4", vmlinux())[:-4] + bytes(4)), id="wrong-size"),
        pytest.param(packed(squeezed("xz", vmlinux())[: 10_000 % 90]), id="cut-short"),
        pytest.param(packed(squeezed("gzip", vmlinux(5 * MIB))), id="larger-than-its-header-says"),
    ],
)
def test_a_kernel_that_cannot_be_unpacked_here_unpacks_itself(kernel, image):
    registers = prepare(kernel(image), None, "", RAM).registers
    assert (registers.rip, registers.cr0 >> 31) == (MIB, 0)


def test_unpacking_in_the_guest_can_be_asked_for(kernel):
    path = kernel(packed(squeezed("gzip", vmlinux())))
    assert prepare(path, None, "", RAM, unpack_here=False).registers.cr0 >> 31 == 0


def test_vmlinux_itself_starts_in_64_bit_mode_with_boot_params_compressed_or_not(kernel):
    for data in (vmlinux(), squeezed("zstd", vmlinux())[:-4]):
        ram = bytearray(RAM)
        registers = load(kernel(data), None, "console=ttyS0", ram, RAM).registers
        assert (registers.rip, registers.cr0 >> 31) == (MIB, 1)
        setup = SetupLayout.parse(ram[registers.gpr[6] + 0x1F1 :])
        assert (setup.boot_flag, setup.version) == (0xAA55, 0x020C)
        assert ram[setup.cmd_line_ptr :][:14] == b"console=ttyS0\0"


def test_ram_above_4_gib_is_in_the_memory_map_and_loaders_stay_below(kernel):
    size = 6 << 30
    state = prepare(kernel(packed(squeezed("gzip", vmlinux()))), kernel(bytes(64), "initrd"), "", size)
    assert all(p.end <= 0xC000_0000 for p in state.pieces)
    ram = [entry for entry in memory_map(size) if entry.type == 1]
    assert ram[-2:] == [(MIB, 0xC000_0000 - MIB, 1), (1 << 32, 3 << 30, 1)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"070701" + bytes(200), "cpio archive"),
        (gzip.compress(b"070701" + bytes(200), mtime=0), "cpio archive"),
        (b"!<arch>\ndebian-binary" + bytes(100), "package"),
        (b"QFI\xfb" + bytes(600), "disk image"),
        (b"#!/bin/sh\n", "script"),
        (b"MZ" + bytes(600), "EFI or DOS program"),
        (bytes(0x38) + b"ARM\x64" + bytes(200), "ARM64"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "damaged zstd data"),
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
