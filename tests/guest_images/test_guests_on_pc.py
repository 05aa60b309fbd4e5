"""Every image does the same on our `pc` as on QEMU's."""

from __future__ import annotations

import re

import pytest

import guest_images as g
from support.qemu_guest import ABSENT, QEMU, QemuGuest

PASSED = g.EXIT_PASSED << 1 | 1
DEBUG_EXIT = {"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}


def edu(slot: int, **more: object) -> dict[str, object]:
    """device_add arguments of an edu in a slot."""
    return {"driver": "edu", "addr": f"{slot:#x}", **more}


def steady(console: str) -> str:
    """What was printed, without the times."""
    return re.sub(r"cycles \d+", "cycles N", console)


@pytest.mark.skipif(QEMU is None, reason=ABSENT)
@pytest.mark.parametrize(
    ("image", "append", "cpus", "slots"),
    [
        ("intx_loop", "n=30", 1, (3,)),
        ("intx_loop", "n=30", 1, (2, 3, 4, 5, 31)),
        ("intx_loop", "n=30 burst devices=2 active-high", 1, (2, 3, 4)),
        ("intx_loop", "", 1, ()),
        ("smp", "n=10", 1, ()),
        ("smp", "n=10", 3, ()),
    ],
)
def test_console_and_status_equal_qemus(vm, image, append, cpus, slots):
    ours = vm("pc", kernel=g.path(image), append=append, cpus=cpus, devices=[DEBUG_EXIT, *map(edu, slots)])
    status = ours.wait_exit()
    options = [word for slot in slots for word in ("-device", f"edu,addr={slot:#x}")]
    with QemuGuest(image, append, "-smp", str(cpus), *options) as theirs:
        assert theirs.finish() == status
    assert steady(ours.serial) == steady(theirs.console)


@pytest.mark.parametrize("append", ["n=20", "n=20 hold"])
def test_hotplug_enables_drives_and_ejects_devices(vm, append):
    guest = vm("pc", kernel=g.path("hotplug"), append=append, devices=[DEBUG_EXIT])
    guest.wait_serial(g.HOTPLUG_READY)
    for slot, pin in ((4, 11), (5, 10), (6, 10)):
        guest.qmp("device_add", driver="edu", id=f"edu{slot}", addr=str(slot))
        guest.wait_serial(f"add slot {slot} pin {pin}$")
        guest.wait_serial(f"slot {slot} handled 20 spurious 0$")
        if "hold" in append:
            guest.wait_serial(f"slot {slot} line held high$")
    for slot in (5, 6, 4):
        guest.qmp("device_del", id=f"edu{slot}")
        guest.wait_event("DEVICE_DELETED", device=f"edu{slot}")
        guest.wait_serial(f"ejected slot {slot}$")
    guest.qmp("device_add", driver="edu", id="again", addr="5")
    guest.wait_for(lambda: guest.serial.count("slot 5 handled 20 spurious 0") == 2)
    guest.type(g.HOTPLUG_QUIT.decode())
    assert guest.wait_exit() == PASSED
    assert g.HOTPLUG_SUMMARY.search(guest.serial).groups() == ("4", "3", "80", "0")
    assert g.HOTPLUG_STUCK.search(guest.serial) is None


def test_hotplug_powers_off_at_the_power_button(vm):
    guest = vm("pc", kernel=g.path("hotplug"))
    guest.wait_serial(g.HOTPLUG_READY)
    guest.qmp("system_powerdown")
    assert guest.wait_exit() == 0
    assert g.HOTPLUG_DONE in guest.serial


def test_hotplug_that_ignores_removal_keeps_the_device_until_reset(vm):
    guest = vm("pc", kernel=g.path("hotplug"), append="n=5 ignore-eject", devices=[edu(4, id="a"), edu(5, id="b")])
    guest.wait_serial(g.HOTPLUG_READY)
    guest.wait_serial("slot 5 handled 5 spurious 0$")
    guest.qmp("device_del", id="a")
    guest.wait_serial("remove slot 4$")
    assert not [e for e in guest.events if e["event"] == "DEVICE_DELETED"]
    guest.qmp("system_reset")
    guest.wait_event("DEVICE_DELETED", device="a")
    guest.wait_for(lambda: guest.serial.count("slot 5 handled 5 spurious 0") == 2)
    assert guest.serial.count("found slot 4") == 1


def test_hotplug_in_cycle_mode_comes_through_every_slot(vm):
    guest = vm("pc", kernel=g.path("hotplug"), append="n=3 cycle hold", trace=False)
    guest.wait_serial(g.HOTPLUG_READY)
    for slot in range(3, 32):
        guest.qmp("device_add", driver="edu", id="edu", addr=f"{slot:#x}")
        guest.wait_serial(f"^\\+{slot}$")
        guest.qmp("device_del", id="edu")
        guest.wait_event("DEVICE_DELETED", device="edu")
    guest.type(g.HOTPLUG_QUIT.decode())
    guest.wait_serial(g.HOTPLUG_DONE)
    assert g.HOTPLUG_SUMMARY.search(guest.serial).groups() == ("29", "29", "87", "0")


def test_a_guest_starts_again_after_a_reset_with_its_image_as_it_was(vm):
    guest = vm("pc", kernel=g.path("hotplug"), append="n=5", devices=[edu(3)])
    guest.wait_serial(g.HOTPLUG_READY)
    guest.wait_serial("slot 3 handled 5")
    guest.qmp("system_reset")
    guest.wait_for(lambda: guest.serial.count("slot 3 handled 5 spurious 0") == 2)
    first, second = guest.serial.split("hotplug: start\n")[1:]
    assert first == second
