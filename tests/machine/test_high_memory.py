"""A machine with more RAM than fits below the PCI hole: what firmware, devices and programs see of it."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from machine import Machine, MachineConfig
from vmm.qtest.space import GuestSpace

GIB = 1 << 30


@pytest.fixture
def machine():
    made = Machine.create("pc", MachineConfig(accel="qtest", ram_size=6 * GIB))
    made.power_on()
    yield made
    made.close()


def cmos(machine, register):
    machine.ports.write(0x70, 1, register)
    return machine.ports.read(0x71, 1)


def test_cmos_tells_what_is_below_and_what_is_above_4_gib(machine):
    below = cmos(machine, 0x34) | cmos(machine, 0x35) << 8
    above = cmos(machine, 0x5B) | cmos(machine, 0x5C) << 8 | cmos(machine, 0x5D) << 16
    assert below * 65536 + (16 << 20) == 3 * GIB
    assert above * 65536 == 3 * GIB


def test_fw_cfg_tells_all_of_it_and_its_dma_reaches_both_pieces(machine):
    ports = machine.ports
    ports.write(0x510, 2, 0x03)
    assert int.from_bytes(bytes(ports.read(0x511, 1) for _ in range(8)), "little") == 6 * GIB
    for target in (0x10000, 5 * GIB):
        access = 6 * GIB  # the descriptor itself is above 4 GiB
        machine.memory.write(
            access, (0x0000_000A).to_bytes(4, "big") + (4).to_bytes(4, "big") + target.to_bytes(8, "big")
        )
        machine.fw_cfg.select(0)
        ports.write(0x514, 4, int.from_bytes((access >> 32).to_bytes(4, "big"), "little"))
        ports.write(0x518, 4, int.from_bytes((access & 0xFFFF_FFFF).to_bytes(4, "big"), "little"))
        assert machine.memory.read(access, 4) == bytes(4)
        assert machine.memory.read(target, 4) == b"QEMU"


def test_a_test_program_reads_and_writes_across_the_hole(machine):
    space = GuestSpace(machine)
    space.write(3 * GIB - 4, b"end of low")
    assert space.read(3 * GIB - 4, 10) == b"end " + bytes(6)
    space.write(4 * GIB - 4, b"____high")
    assert space.read(4 * GIB - 2, 6) == bytes(2) + b"high"
    space.store(7 * GIB - 8, 8, 0x1122334455667788)
    assert space.load(7 * GIB - 4, 4) == 0x11223344
    assert space.load(7 * GIB, 4) == 0


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_memory_is_taken_where_it_is_touched_only():
    before = resident()
    made = Machine.create("pc", MachineConfig(accel="qtest", ram_size=64 * GIB))
    made.power_on()
    made.memory.write(60 * GIB, bytes(1 << 20))
    assert resident() - before < 64 << 20
    made.close()
