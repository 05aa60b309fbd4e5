"""Multiboot 1 images: what the guest finds in memory and in its registers, and which files are refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guest_images
from vmm.boot import load, prepare
from vmm.boot.multiboot import (
    AddressesLayout,
    HeaderLayout,
    InfoLayout,
    MapEntryLayout,
    ModuleLayout,
    find_header,
    split_modules,
)
from vmm.errors import BootError

MIB = 1 << 20
RAM = 8 * MIB
MAGIC = 0x1BADB002


def header(flags: int = 0, checksum: int | None = None) -> bytes:
    """A Multiboot header."""
    right = -(MAGIC + flags) & 0xFFFFFFFF
    return HeaderLayout.build({"flags": flags, "checksum": right if checksum is None else checksum})


def addressed(load_addr: int = MIB, code: bytes = b"\xf4", bss: int = 0, offset: int = 16, **changes: int) -> bytes:
    """A raw image with an address header at byte `offset`; `code` follows the header, `bss` zero bytes follow that."""
    size = offset + 32 + len(code)
    fields = {
        "header_addr": load_addr + offset,
        "load_addr": load_addr,
        "load_end_addr": load_addr + size,
        "bss_end_addr": load_addr + size + bss if bss else 0,
        "entry_addr": load_addr + offset + 32,
    } | changes
    return bytes(offset) + header(1 << 16) + AddressesLayout.build(fields) + code


@pytest.fixture
def kernel(tmp_path):
    """Writes bytes to a file and returns its name."""

    def write(data: bytes, name: str = "kernel") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    return write


def text(ram: bytearray, address: int) -> str:
    """The string at `address`."""
    return ram[address : ram.index(0, address)].decode()


def info_of(ram: bytearray, state) -> object:
    """The information structure that EBX points to."""
    return InfoLayout.parse(ram[state.registers.gpr[3] :])


def test_a_committed_image_starts_at_its_entry_in_flat_protected_mode():
    ram = bytearray(RAM)
    state = load(guest_images.path("intx_loop"), None, "n=5", ram, RAM)
    registers = state.registers
    assert state.protocol == "multiboot"
    assert registers.gpr[0] == 0x2BADB002
    assert ram[registers.rip] == 0xFA  # its first instruction is CLI
    assert registers.cr0 & 0x80000001 == 1
    assert registers.rflags & 0x200 == 0
    for name in ("cs", "ds", "es", "ss", "fs", "gs"):
        assert (registers.segments[name].base, registers.segments[name].limit) == (0, 0xFFFFFFFF)
    base, limit = registers.gdt
    code, data = struct.unpack_from("<QQ", ram, base + 8)
    assert (limit, code >> 40 & 0xFF, data >> 40 & 0xFF) == (23, 0x9A, 0x92)


def test_guest_is_told_memory_command_line_and_loader(kernel):
    path = kernel(addressed())
    ram = bytearray(RAM)
    info = info_of(ram, load(path, None, "n=5 burst", ram, RAM))
    assert info.flags & 0x247 == 0x247
    assert info.mem_lower == 639
    assert info.mem_upper == (RAM - MIB) // 1024
    assert text(ram, info.cmdline) == f"{path} n=5 burst"
    assert text(ram, info.boot_loader_name) == "vintx"
    assert info.mods_count == 0


def test_memory_map_is_ordered_disjoint_and_ends_ram_where_it_ends(kernel):
    ram = bytearray(RAM)
    info = info_of(ram, load(kernel(addressed()), None, "", ram, RAM))
    at, entries = info.mmap_addr, []
    while at < info.mmap_addr + info.mmap_length:
        entries.append(MapEntryLayout.parse(ram[at:]))
        at += entries[-1].size + 4
    ends = [e.base_addr + e.length for e in entries]
    assert all(end <= following.base_addr for end, following in zip(ends, entries[1:], strict=False))
    usable = [(e.base_addr, e.base_addr + e.length) for e in entries if e.type == 1]
    assert usable == [(0, 0x9FC00), (MIB, RAM)]


def test_modules_lie_on_pages_behind_the_kernel_with_their_strings(kernel):
    first, second = kernel(b"A" * 5000, "first"), kernel(b"B" * 10, "second")
    ram = bytearray(RAM)
    state = load(kernel(addressed(bss=9000)), f"{first} a b,{second}", "", ram, RAM)
    info = info_of(ram, state)
    modules = [ModuleLayout.parse(ram[info.mods_addr + 16 * i :]) for i in range(info.mods_count)]
    assert [text(ram, m.string) for m in modules] == [f"{first} a b", second]
    assert ram[modules[0].mod_start : modules[0].mod_end] == b"A" * 5000
    assert ram[modules[1].mod_start : modules[1].mod_end] == b"B" * 10
    assert all(m.mod_start % 4096 == 0 and m.mod_start > MIB + 9000 for m in modules)


def test_a_double_comma_belongs_to_the_module():
    assert split_modules("a,,b c,d") == ["a,b c", "d"]


@given(st.lists(st.text("ab ,", min_size=1, max_size=8).filter(lambda name: name[0] != ","), min_size=1, max_size=5))
def test_module_strings_survive_joining_with_escaped_commas(names):
    assert split_modules(",".join(name.replace(",", ",,") for name in names)) == names


def test_bss_is_zeroed_again_when_the_state_is_placed_after_a_reset(kernel):
    ram = bytearray(RAM)
    state = load(kernel(addressed(code=b"\x90\xf4", bss=64)), None, "", ram, RAM)
    end = state.registers.rip + 2
    ram[MIB : MIB + 200] = b"\xee" * 200
    written = state.place(ram)
    assert ram[state.registers.rip : end + 64] == b"\x90\xf4" + bytes(64)
    assert ram[end + 64] == 0xEE
    assert (MIB, end + 64 - MIB) in written


def test_a_kernel_on_the_loaders_page_moves_the_information_elsewhere(kernel):
    ram = bytearray(RAM)
    state = load(kernel(addressed(load_addr=0x8000, bss=0x4000)), None, "", ram, RAM)
    assert not 0x8000 <= state.registers.gpr[3] < 0xC000
    assert info_of(ram, state).mem_lower == 639
    assert info_of(ram, state).mods_addr >= MIB


def test_header_is_found_only_aligned_and_within_8_kib():
    assert find_header(bytes(8192 - 12) + header()).offset == 8192 - 12
    assert find_header(bytes(8192 - 8) + header()) is None
    assert find_header(bytes(6) + header() + bytes(100)) is None
    assert find_header(bytes(6) + header() + bytes(2) + header()).offset == 20


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (header(checksum=1) + bytes(64), "checksum"),
        (header(flags=1 << 5) + bytes(64), "features 0x20"),
        (header() + bytes(64), "not an ELF file"),
        (header(1 << 16) + bytes(8), "truncated"),
        (addressed(load_end_addr=MIB + 5000), "5000 bytes to load"),
        (addressed(load_addr=MIB, header_addr=MIB - 4), "load_addr"),
        (addressed(load_addr=MIB, header_addr=MIB + 999), "load_addr"),
        (addressed(bss_end_addr=MIB + 4), "bss_end_addr"),
        (addressed(entry_addr=2 * MIB), "entry_addr"),
        (addressed(load_addr=RAM - 16), "RAM ends"),
        (addressed(bss=RAM), "RAM ends"),
    ],
)
def test_a_bad_header_is_refused_with_its_reason_and_file(kernel, data, says):
    path = kernel(data)
    with pytest.raises(BootError, match=says) as caught:
        prepare(path, None, "", RAM)
    assert caught.value.path == path


def test_a_module_that_is_not_there_is_named(kernel, tmp_path):
    missing = str(tmp_path / "missing")
    with pytest.raises(BootError, match="module") as caught:
        prepare(kernel(addressed()), f"{missing} args", "", RAM)
    assert caught.value.path == missing


def test_modules_that_do_not_fit_are_refused(kernel):
    with pytest.raises(BootError, match="more memory"):
        prepare(kernel(addressed()), kernel(bytes(RAM), "big"), "", RAM)


@given(
    st.integers(0, 0xFFFFFFFF),
    st.fixed_dictionaries(
        {
            name: st.integers(0, 0xFFFFFFFF) | st.integers(MIB - 64, MIB + 64)
            for name in ("header_addr", "load_addr", "load_end_addr", "bss_end_addr", "entry_addr")
        }
    ),
)
def test_any_header_loads_within_ram_or_is_refused(tmp_path_factory, flags, addresses):
    path = tmp_path_factory.getbasetemp() / "any-header"
    path.write_bytes(header(flags) + AddressesLayout.build(addresses) + bytes(64))
    try:
        state = prepare(path, None, "", RAM)
    except BootError:
        return
    assert all(piece.address >= 0 and piece.end <= RAM for piece in state.pieces)
    assert any(piece.address <= state.registers.rip < piece.end for piece in state.pieces)
