"""Spurious interrupts that are legal, provoked one by one: the guest counts each, and the trace names its cause."""

from __future__ import annotations

import pytest

import guest_images as g
from support.endurance import DEBUG_EXIT, EDU, FORWARDED, IRQFD, PASSED, plug, set_mask
from vmm.attribution import Attribution, Cause

PIN = 11
"""Of slots 4, 8, 12, ..."""


class Watched:
    """The hot-plug guest with its trace followed. With `hold` the devices' lines are left high and the pin masked."""

    def __init__(self, vm, roads, append="", **options):
        self.trace = Attribution()
        self.guest = vm(
            "pc", kernel=g.path("hotplug"), append=f"n=2 {append}", devices=[DEBUG_EXIT], options=options, trace=False
        )
        self.machine = self.guest.machine
        self.machine.trace.listen(self.trace)
        self.devices = []
        self.guest.wait_serial(g.HOTPLUG_READY)
        for i, road in enumerate(roads):
            self.devices.append(plug(self.machine, road, f"d{i}", 4 + 4 * i))
            self.guest.wait_serial(f"slot {4 + 4 * i} {'line held high' if append else 'handled 2 spurious 0'}$")

    def eject(self, i):
        """Unplug device i by the guest's eject."""
        self.guest.qmp("device_del", id=f"d{i}")
        self.guest.wait_serial(f"ejected slot {4 + 4 * i}$")

    def finish(self):
        """Causes of all spurious interrupts, as many as the guest counted."""
        self.guest.type(g.HOTPLUG_QUIT.decode())
        assert self.guest.wait_exit() == PASSED
        assert int(g.HOTPLUG_SUMMARY.search(self.guest.serial)["spurious"]) == len(self.trace.spurious)
        return [(one.cause, one.device) for one in self.trace.spurious]


@pytest.mark.parametrize(("era", "spurious"), [("5.11", [(Cause.MEMBER_LEFT, "d0-host")]), ("6.18", [])])
def test_a_member_that_leaves_while_asserted_costs_one_interrupt_unless_the_unmask_asks_again(vm, era, spurious):
    watched = Watched(vm, [IRQFD, IRQFD], "hold", **{"irqfd-era": era})
    watched.eject(0)
    stays = watched.devices[1]
    stays.lower(stays.irq_status)
    assert watched.machine.ioapic.sources[PIN]
    set_mask(watched.machine, PIN, False)
    assert watched.finish() == spurious


@pytest.mark.parametrize(
    ("road", "era", "spurious"),
    [
        (EDU, "6.18", []),
        (IRQFD, "5.11", [(Cause.LATCHED, "d0-host")]),
        (IRQFD, "6.18", []),
        (FORWARDED, "6.18", [(Cause.LATCHED, "d0-host")]),
    ],
)
def test_an_assertion_that_outlives_its_device_costs_one_interrupt_on_forwarded_roads(vm, road, era, spurious):
    watched = Watched(vm, [road], "hold", **{"irqfd-era": era})
    device = watched.devices[0]
    device.lower(device.irq_status)
    set_mask(watched.machine, PIN, False)
    assert watched.finish() == spurious


@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
@pytest.mark.parametrize("road", [EDU, IRQFD, FORWARDED])
def test_a_device_unplugged_behind_its_accepted_interrupt_costs_one(vm, road, ioapic):
    watched = Watched(vm, [road, EDU], ioapic=ioapic)

    def at_the_eject(_record):
        watched.devices[0].raise_irq(1)  # interrupts are off: the vector waits in the local APIC
        watched.machine.executor.drain()

    watched.machine.trace.listen(at_the_eject, "acpi_pci_ej_write")
    watched.eject(0)
    name = "d0" if road == EDU else "d0-host"
    assert watched.finish() == [(Cause.DEVICE_LEFT, name)]


@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
def test_a_line_lowered_behind_its_accepted_interrupt_costs_one(vm, ioapic):
    watched = Watched(vm, [EDU, EDU], ioapic=ioapic)

    def at_the_eject(_record):
        watched.devices[1].raise_irq(1)
        watched.devices[1].lower(1)

    watched.machine.trace.listen(at_the_eject, "acpi_pci_ej_write")
    watched.eject(0)
    assert watched.finish() == [(Cause.WITHDRAWN, "d1")]


def test_a_line_that_the_machine_leaves_high_is_nobodys_and_unattributed(vm):
    watched = Watched(vm, [EDU, EDU])
    # What a bug would do: the wire is high, and no device is.
    line = watched.machine.gsi_irq("nobody", PIN)
    watched.machine.trace.listen(lambda _record: line.close(), "apic_eoi")
    line.set(True)
    watched.guest.wait_for(lambda: watched.trace.spurious)
    assert watched.finish() == [(Cause.UNATTRIBUTED, "")]
