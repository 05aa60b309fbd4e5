"""The PIRQ of a device is routed elsewhere and back while its line is high, again and again."""

from __future__ import annotations

import random

import pytest

import guest_images as g
from devices.pci.bus import pirq_of
from devices.pci.piix3 import PIRQRC
from support.endurance import DEBUG_EXIT, PASSED, ROADS, held, live_objects, plug, size
from vmm.attribution import Attribution

SLOT, IRQ = 4, 11
ELSEWHERE = (5, 10, 0x80)
"""Masked pins, and nowhere."""


@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
@pytest.mark.parametrize("road", ROADS)
def test_a_level_that_moves_with_its_pirq_is_served_when_it_comes_back(vm, road, ioapic):
    trace = Attribution()
    guest = vm(
        "pc", kernel=g.path("hotplug"), append="n=1", devices=[DEBUG_EXIT], options={"ioapic": ioapic}, trace=False
    )
    machine = guest.machine
    machine.trace.listen(trace)
    device = plug(machine, road, "d", SLOT)
    guest.wait_serial(g.HOTPLUG_READY)
    guest.wait_serial(f"slot {SLOT} handled 1 spurious 0$")
    choose = random.Random(1)

    def route(irq):
        machine.piix3.config_write(PIRQRC + pirq_of(SLOT << 3, 1), 1, irq)
        machine.executor.drain()

    def once():
        moves = [choose.choice(ELSEWHERE) for _ in range(choose.randrange(1, 4))]
        when = choose.randrange(len(moves) + 1)
        for i, irq in enumerate(moves):
            if i == when:
                device.raise_irq(1)
            route(irq)
        if when == len(moves):
            device.raise_irq(1)
        route(IRQ)
        guest.wait_for(lambda: not device.irq_status, "the device served")

    once()
    before, objects = held(machine), live_objects()
    rounds = size(60, 5_000)
    for _ in range(rounds):
        once()
    assert held(machine) == before
    assert live_objects() - objects == {}
    guest.type(g.HOTPLUG_QUIT.decode())
    assert guest.wait_exit() == PASSED
    summary = g.HOTPLUG_SUMMARY.search(guest.serial)
    assert int(summary["handled"]) == device.stats()["raised"] == rounds + 2
    assert int(summary["spurious"]) == len(trace.spurious)
    assert trace.unattributed == []
