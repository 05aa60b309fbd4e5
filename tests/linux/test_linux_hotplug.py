"""Plug and unplug as Linux does it: SCI, acpiphp, a driver that binds; eject, and DEVICE_DELETED."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from support.endurance import size
from support.linux_shell import boot, needs_linux
from vmm import pytest_plugin

pytestmark = needs_linux
CYCLES = size(5, 200)
DEVICES = {
    "edu": ({}, "1234:11e8"),
    "nvme": ({"serial": "v1"}, "1b36:0010"),
    "pci-serial": ({}, "1b36:0002"),
    "pci-testdev": ({}, "1b36:0005"),
    "vfio-pci": ({"x-host-object": "h0"}, "1234:11e8"),
    "virtio-rng-pci": ({"rng": "r0"}, "1af4:1005"),
    "virtio-net-pci": ({}, "1af4:1000"),
    "virtio-serial-pci": ({}, "1af4:1003"),
    "virtio-blk-pci": ({"drive": "b0"}, "1af4:1001"),
}
OBJECTS = {
    "vfio-pci": [{"qom-type": "vfio-host-device", "id": "h0", "driver": "edu"}],
    "virtio-rng-pci": [{"qom-type": "rng-builtin", "id": "r0"}],
}
SLOT = "0000:00:05.0"
GONE = f"until [ ! -e /sys/bus/pci/devices/{SLOT} ]; do usleep 2000; done"
BOUND = {
    "virtio-blk-pci": "until [ -b /dev/vda ]; do usleep 2000; done; head -c 4096 /dev/vda >/dev/null",
    "virtio-rng-pci": "until grep -q virtio /sys/class/misc/hw_random/rng_available; do usleep 2000; done",
    "virtio-net-pci": "until [ -e /sys/class/net/eth0 ]; do usleep 2000; done",
    "nvme": "until [ -b /dev/nvme0n1 ]; do usleep 2000; done",
    "pci-serial": f"until [ -e /sys/bus/pci/devices/{SLOT}/driver ]; do usleep 2000; done",
}


def descriptors() -> set[str]:
    """What the process has open, without the sockets of monitors."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue  # of the listing itself
        if not target.startswith("socket:"):
            found.add(f"{link.name} {target}")
    return found


@pytest.mark.parametrize("driver", DEVICES)
def test_cycles_of_plug_and_unplug_leave_ledger_and_descriptors_as_they_were(vm, driver, tmp_path, monkeypatch):
    monkeypatch.setattr(pytest_plugin, "PATIENCE", size(60, 600))
    given, ids = DEVICES[driver]
    arguments = {"driver": driver, "id": "d0", "addr": "5", **given}
    if driver == "nvme":
        (tmp_path / "disk").write_bytes(bytes(1 << 20))
        arguments["x-image"] = str(tmp_path / "disk")
    shell = boot(vm, cpus=2, objects=OBJECTS.get(driver, []))
    guest = shell.guest
    guest.qmp("query-status")  # from here on the monitor is open
    if driver == "virtio-blk-pci":
        (tmp_path / "disk").write_bytes(bytes(1 << 20))
        file = {"driver": "file", "filename": str(tmp_path / "disk")}
        guest.qmp("blockdev-add", driver="raw", node_name="b0", file=file)
    appears = f"until [ -e /sys/bus/pci/devices/{SLOT}/irq ]; do usleep 2000; done; "
    appears += f"cat /sys/bus/pci/devices/{SLOT}/vendor /sys/bus/pci/devices/{SLOT}/device"
    before = shell.machine.ledger.snapshot()
    opened = None
    for _ in range(CYCLES):
        guest.qmp("device_add", **arguments)
        found = shell.run(f"{appears}; {BOUND.get(driver, ':')}").split()
        assert ":".join(number.removeprefix("0x") for number in found) == ids
        guest.qmp("device_del", id="d0")
        guest.wait_event("DEVICE_DELETED", device="d0")
        shell.run(GONE)
        assert shell.machine.ledger.difference(before) == ([], [])
        assert guest.qmp("x-query-unplug") == []
        guest.forget()
        shell.forget()
        if opened is None:
            opened = descriptors()
    gc.collect()
    assert descriptors() == opened
    assert shell.run("dmesg | grep -ciE 'nobody cared|BUG:|call trace'", status=1) == "0"
    assert shell.power_off() == 0


def test_an_unplug_tells_whose_turn_it_is_until_the_guest_lets_go(vm):
    shell = boot(vm, devices=[{"driver": "edu", "id": "e0", "addr": "5"}])
    guest, machine = shell.guest, shell.machine
    assert guest.qmp("x-query-unplug") == []
    machine.device_del("e0")  # no guest runs between this and the next line
    (row,) = ({"waits": waits, "device": device.id} for device, _, waits in machine.pcihp.waiting())
    assert row == {"waits": "sci", "device": "e0"}
    guest.wait_event("DEVICE_DELETED", device="e0")
    assert guest.qmp("x-query-unplug") == []
    assert shell.power_off() == 0


def test_a_guest_without_acpi_is_named_as_the_one_who_does_not_listen(vm):
    shell = boot(vm, append="quiet acpi=off", cpus=1, devices=[{"driver": "edu", "id": "e0", "addr": "5"}])
    shell.guest.qmp("device_del", id="e0")
    shell.run("usleep 100000")
    (row,) = shell.guest.qmp("x-query-unplug")
    assert (row["device"], row["waits-for"]) == ("e0", "gpe-enable")
    assert row["since-ns"] >= 100_000_000
    shell.guest.qmp("system_reset")
    shell.guest.wait_event("DEVICE_DELETED", device="e0")
    assert shell.guest.qmp("x-query-unplug") == []
