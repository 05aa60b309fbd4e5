"""A thousand times plugged, driven, and unplugged with its line high: nothing is left, and nothing grows."""

from __future__ import annotations

import pytest

import guest_images as g
from support.endurance import EDU, IRQFD, ROADS, arguments, held, live_objects, resident, size

CYCLES = size(60, 1_000)
WARM = size(20, 100)
GROWTH = 1 << 20
"""Bytes that a process may grow between cycle WARM and the last."""
SLOTS = tuple(range(4, 32))


class Cycles:
    """The hot-plug guest, whose devices are left with their lines high, and one cycle after the other over QMP."""

    def __init__(self, vm, road, append="", **more):
        self.road, self.append = road, append
        self.guest = vm("pc", kernel=g.path("hotplug"), append=f"n=5 hold cycle {append}", trace=False, **more)
        self.machine = self.guest.machine
        self.done = 0
        self.ready()

    def ready(self):
        """The guest has started (again)."""
        self.guest.wait_serial(g.HOTPLUG_READY)

    def plug(self):
        """A device in the next slot, driven and left with its line high."""
        slot = SLOTS[self.done % len(SLOTS)]
        if self.road != EDU:
            self.guest.qmp("object-add", qom_type="vfio-host-device", id="d-host", driver="edu")
        self.guest.qmp("device_add", **arguments(self.road, "d", slot))
        self.guest.wait_serial(f"^\\+{slot}$")
        return self.machine.objects["d-host"].device if self.road != EDU else self.machine.device("d")

    def unplug(self, by_reset):
        """Gone, by the guest's eject or by a reset of the machine."""
        self.guest.qmp("device_del", id="d")
        if by_reset:
            self.guest.forget()
            self.guest.qmp("system_reset")
        self.guest.wait_event("DEVICE_DELETED", device="d")
        if by_reset:
            self.ready()
        if self.road != EDU:
            self.guest.qmp("object-del", id="d-host")
        self.guest.forget()
        self.done += 1

    def cycle(self, by_reset):
        """Plug and unplug; the device's line must have been high in between."""
        device = self.plug()
        assert device.intx_level
        assert device.stats()["raised"] == 6
        self.unplug(by_reset)
        assert not device.intx_level


@pytest.mark.parametrize("by_reset", [False, True], ids=["ejected", "reset"])
@pytest.mark.parametrize("road", ROADS)
def test_after_many_unplugs_with_the_line_high_nothing_is_left_and_memory_stands_still(vm, road, by_reset):
    cycles = Cycles(vm, road, "ignore-eject" if by_reset else "")
    cycles.cycle(by_reset)
    before = held(cycles.machine)
    while cycles.done < WARM:
        cycles.cycle(by_reset)
    objects, memory = live_objects(), resident()
    while cycles.done < CYCLES:
        cycles.cycle(by_reset)
        if cycles.done % 10 == 0:
            assert held(cycles.machine) == before
    assert held(cycles.machine) == before
    assert live_objects() - objects == {}
    grown = resident() - memory
    assert grown < GROWTH
    print(f"{road}: {cycles.done} cycles, grown by {grown >> 10} KiB")


@pytest.mark.parametrize("ioapic", ["kvm", "qemu"])
def test_two_members_of_a_resampler_come_and_go_and_the_one_that_stays_is_served(vm, ioapic):
    cycles = Cycles(vm, IRQFD, options={"ioapic": ioapic})
    guest, machine = cycles.guest, cycles.machine
    guest.qmp("object-add", qom_type="vfio-host-device", id="stays-host", driver="edu")
    guest.qmp("device_add", **arguments(IRQFD, "stays", 3))
    guest.wait_serial("^\\+3$")
    stays = machine.objects["stays-host"].device
    # Slots 3, 7, 11, ... share a pin.
    for slot in SLOTS[3::4] * size(2, 40):
        handled = stays.stats()["acked"]
        guest.qmp("object-add", qom_type="vfio-host-device", id="d-host", driver="edu")
        guest.qmp("device_add", **arguments(IRQFD, "d", slot))
        guest.wait_serial(f"^\\+{slot}$")
        assert len(machine.kvm.irqfds.resamplers) == 1
        assert len(machine.kvm.irqfds.items) == 2
        cycles.unplug(by_reset=False)
        assert len(machine.kvm.irqfds.items) == 1
        # It let go of its line for the newcomer, and took it again.
        assert stays.stats()["acked"] > handled
        assert stays.intx_level


def test_resets_alone_do_not_make_the_process_grow(vm):
    cycles = Cycles(vm, EDU, cpus=2)
    for _ in range(WARM):
        cycles.guest.forget()
        cycles.guest.qmp("system_reset")
        cycles.ready()
    memory = resident()
    for _ in range(size(200, 5_000)):
        cycles.guest.forget()
        cycles.guest.qmp("system_reset")
        cycles.ready()
    assert resident() - memory < GROWTH
