"""A process that makes one machine after the other ends up where it was."""

from __future__ import annotations

import asyncio

import pytest

import guest_images as g
from machine.machine import Machine, MachineConfig
from support.endurance import DEBUG_EXIT, PASSED, ROADS, live_objects, plug, resident, size
from vmm.chardev import MemoryBackend


@pytest.mark.parametrize("road", ROADS)
def test_machines_that_ran_leave_no_object_and_no_memory_behind(road):
    def one():
        config = MachineConfig(
            ram_size=8 << 20, kernel=str(g.path("intx_loop")), append="n=20", serial=[MemoryBackend("serial0")]
        )
        machine = Machine.create("pc", config)
        machine.device_add(DEBUG_EXIT)
        plug(machine, road, "d", 4)
        assert asyncio.run(machine.run()) == PASSED
        machine.close()
        assert machine.ledger.rows() == []

    for _ in range(5):
        one()
    objects, memory = live_objects(), resident()
    for _ in range(size(10, 200)):
        one()
    assert live_objects() - objects == {}
    # One machine's RAM is 8 MiB and its translated code more: a leak of either shows here, the allocator's ways do not.
    assert resident() - memory < 4 << 20
