"""Ports, memory-mapped I/O, and code written by others than the guest."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from vmm.cpu.engine import ExitReason

if TYPE_CHECKING:
    from tests.support.cpu_guest import Guest


def test_in_and_out_of_all_widths_reach_the_callbacks(guest: Guest) -> None:
    guest.start("ports16")
    assert guest.run() is ExitReason.HALT
    assert guest.log == [
        *(("in", 0x10, 1), ("in", 0x11, 2), ("in", 0x12, 4)),
        *(("in", 0xCF8, 1), ("in", 0xCF8, 2), ("in", 0xCF8, 4)),
        *(("out", 0x10, 1, 0x78), ("out", 0x11, 2, 0x5678), ("out", 0x12, 4, 0x12345678)),
        *(("out", 0xCFC, 1, 0x78), ("out", 0xCFC, 2, 0x5678), ("out", 0xCFC, 4, 0x12345678)),
    ]


def test_string_io_moves_each_element_between_port_and_ram(guest: Guest) -> None:
    guest.start("strings16")
    guest.ram[0x4000:0x400F] = bytes(range(1, 16))
    guest.inputs[0x70] = 0xA1B2C3D4
    assert guest.run() is ExitReason.HALT
    values = [(e[2], e[3]) for e in guest.log if e[0] == "out"]
    assert values == [(1, 1), (1, 2), (1, 3), (2, 0x0504), (2, 0x0706), (4, 0x0B0A0908), (4, 0x0F0E0D0C)]
    assert guest.ram[0x4100:0x410B] == b"\xd4" * 3 + bytes.fromhex("d4c3b2a1") * 2


def test_mmio_of_all_widths_has_absolute_addresses(guest: Guest) -> None:
    guest.start("mmio64")
    guest.mmio.update({0x8000_0000: 0x88, 0x8000_0002: 0x7766, 0x8000_0004: 0x55443322})
    guest.mmio.update({0x8000_0008: 0x89ABCDEF, 0x8000_000C: 0x01234567})
    assert guest.run() is ExitReason.HALT
    assert guest.log == [
        *(("write", 0x8000_0000, 1, 0x88), ("write", 0x8000_0002, 2, 0x7788), ("write", 0x8000_0004, 4, 0x55667788)),
        *(("write", 0x8000_0008, 4, 0x55667788), ("write", 0x8000_000C, 4, 0x11223344)),
        *(("read", 0x8000_0000, 1), ("read", 0x8000_0002, 2), ("read", 0x8000_0004, 4)),
        *(("read", 0x8000_0008, 4), ("read", 0x8000_000C, 4)),
    ]
    assert guest.gpr[1] == 0x0123456789ABCDEF


def test_read_modify_write_of_a_register_happens_once_even_when_the_read_kicks(guest: Guest) -> None:
    guest.start("rmwmmio64")
    guest.mmio[0x8000_0000] = 41
    guest.on_mmio = lambda _gpa: guest.engine.kick()
    reasons = []
    while not reasons or reasons[-1] is ExitReason.KICKED:
        reasons.append(guest.run())
    assert guest.log == [("read", 0x8000_0000, 4), ("write", 0x8000_0000, 4, 42)]
    assert reasons[-1] is ExitReason.HALT


def test_code_outside_ram_is_fetched_through_the_read_callback(guest: Guest) -> None:
    guest.start("mmiocode64")
    # All ones are no instruction: what a jump into an open bus runs into.
    assert guest.run() is ExitReason.HALT
    assert guest.fault is not None
    assert guest.fault[:3] == (6, 0, 0x8000_0000)
    assert guest.log[0][:2] == ("read", 0x8000_0000)


def test_code_that_a_device_wrote_runs_after_invalidate(guest: Guest) -> None:
    guest.start("dma64")
    guest.place("dmacode")

    def dma(_value: int) -> None:
        guest.ram[0x2F01] = 2
        guest.engine.invalidate(0x2F00, 6)

    guest.on_out[0x20] = dma
    assert guest.run() is ExitReason.HALT
    assert guest.outs() == [(0x20, 1), (0x21, 2)]


def test_invalidate_of_memory_without_code_changes_nothing(guest: Guest) -> None:
    guest.start("dma64")
    guest.place("dmacode")
    guest.on_out[0x20] = lambda _value: guest.engine.invalidate(0x40000, 0x10000)
    assert guest.run() is ExitReason.HALT
    assert guest.outs() == [(0x20, 1), (0x21, 1)]


def test_exception_of_a_callback_comes_out_of_run_and_the_engine_goes_on(guest: Guest) -> None:
    class Bug(Exception):
        pass

    def fail(_value: int) -> None:
        raise Bug("device model")

    guest.start("dma64")
    guest.place("dmacode")
    guest.on_out[0x20] = fail
    with pytest.raises(Bug, match="device model"):
        guest.run()
    assert guest.run() is ExitReason.HALT
    assert guest.outs() == [(0x20, 1), (0x21, 1)]


@pytest.mark.parametrize("name", ["mmio64", "rmwmmio64"])
def test_exception_of_a_memory_callback_comes_out_of_run(guest: Guest, name: str) -> None:
    def fail(_gpa: int) -> None:
        raise KeyError("no such register")

    guest.start(name)
    guest.on_mmio = fail
    with pytest.raises(KeyError):
        guest.run()
    guest.on_mmio = lambda _gpa: None
    assert guest.run() is ExitReason.HALT


def test_keyboard_interrupt_in_a_callback_is_not_swallowed(guest: Guest) -> None:
    def interrupt(_value: int) -> None:
        raise KeyboardInterrupt

    guest.start("dma64")
    guest.place("dmacode")
    guest.on_out[0x20] = interrupt
    with pytest.raises(KeyboardInterrupt):
        guest.run()


def test_store_to_code_through_another_mapping_after_a_store_beside_it_is_seen(guest: Guest) -> None:
    # 4 KiB pages: 0x0 to 0x1fffff as they are, and 0x200000 an NX alias of the page at 0x2000 that holds `dmacode`.
    guest.start("alias64")
    guest.place("dmacode")
    for i in range(512):
        struct.pack_into("<Q", guest.ram, 0x12000 + 8 * i, i << 12 | 7)
    struct.pack_into("<Q", guest.ram, 0x13000, 1 << 63 | 0x2007)
    struct.pack_into("<QQ", guest.ram, 0xC000, 0x12007, 0x13007)
    assert guest.run() is ExitReason.HALT
    assert guest.outs(0x20) == [(0x20, n) for n in (1, 2, 3, 4)]
