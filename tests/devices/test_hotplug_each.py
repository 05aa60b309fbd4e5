"""Each device that can be hot-plugged: it comes, interrupts, and goes, by the guest's eject or by a reset."""

from __future__ import annotations

import re

import pytest

from devices.pci.device import PciDevice
from machine import registry
from vmm.block_graph import BlockGraph
from vmm.chardev import MemoryBackend
from vmm.errors import ConfigError
from vmm.netdev import HubPort

SLOT = 7
EJECT = 0xAE08
DEVICES = {
    "edu": {},
    "ivshmem-plain": {"memdev": "m0"},
    "nvme": {"serial": "s", "drive": "d0"},
    "pci-serial": {"chardev": "c0"},
    "pci-testdev": {},
    "pvpanic-pci": {},
    "virtio-balloon-pci": {},
    "virtio-blk-pci": {"drive": "d0"},
    "virtio-keyboard-pci": {},
    "virtio-mouse-pci": {},
    "virtio-net-pci": {"netdev": "n0"},
    "virtio-rng-pci": {"rng": "r0"},
    "virtio-serial-pci": {},
    "virtio-tablet-pci": {},
}
ELSEWHERE = {"vfio-pci", "vfio-user-pci"}
"""Those want a device of somebody else's, and have tests of their own."""


@pytest.fixture
def machine(vm, tmp_path):
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(1 << 16))
    blocks = BlockGraph()
    blocks.add_drive("d0", {"driver": "raw", "file": {"driver": "file", "filename": str(image)}})
    guest = vm(
        "pc",
        accel="qtest",
        trace=False,
        blocks=blocks,
        netdevs={"n0": HubPort("n0", [])},
        chardevs={"c0": MemoryBackend("c0")},
        objects=[
            {"qom-type": "memory-backend-ram", "id": "m0", "size": 1 << 16},
            {"qom-type": "rng-builtin", "id": "r0"},
        ],
    )
    guest.machine.start()
    guest.machine.events = guest.events
    return guest.machine


def deleted(machine):
    return [e["data"]["device"] for e in machine.events if e["event"] == "DEVICE_DELETED" and "device" in e["data"]]


def high(machine):
    return [wire.name for wire in machine.pci.pirqs if wire.high]


def test_every_hot_pluggable_pci_device_is_here():
    found = {cls.driver for cls in registry.device_types() if issubclass(cls, PciDevice) and cls.hotpluggable}
    assert {name for name in found if registry.device_type(name).user_creatable} == {*DEVICES, *ELSEWHERE}


@pytest.mark.parametrize("way", ["eject", "reset"])
@pytest.mark.parametrize("driver", DEVICES)
def test_goes_with_its_pin_high_and_leaves_nothing(machine, driver, way):
    before = machine.ledger.snapshot()
    for _ in range(2):
        machine.events.clear()
        device = machine.device_add({"driver": driver, "id": "x0", "addr": f"{SLOT:x}", **DEVICES[driver]})
        assert machine.pci.config_read(SLOT << 3, 0, 4) == device.device_id << 16 | device.vendor_id
        machine.pci.config_write(SLOT << 3, 4, 2, 7)
        if device.interrupt_pin:
            device.set_intx(True)
            assert len(high(machine)) == 1
        machine.device_del("x0")
        assert deleted(machine) == []
        if way == "eject":
            machine.ports.write(EJECT, 4, 1 << SLOT)
        else:
            machine.reset()
        assert deleted(machine) == ["x0"]
        assert high(machine) == []
        assert machine.pci.config_read(SLOT << 3, 0, 4) == 0xFFFF_FFFF
        assert machine.ledger.difference(before) == ([], [])


@pytest.mark.parametrize("driver", DEVICES)
def test_plug_that_is_refused_leaves_nothing(machine, driver):
    machine.device_add({"driver": "pci-testdev", "id": "t0", "addr": f"{SLOT:x}"})
    before = machine.ledger.snapshot()
    for wrong, message in (
        ({"addr": f"{SLOT:x}"}, f"PCI: slot {SLOT} function 0 not available for {driver}, in use by pci-testdev,id=t0"),
        ({"bogus": 1}, f"Property '{driver}.bogus' not found"),
        ({"addr": "zz"}, f"Property '{driver}.addr' doesn't take value 'zz'"),
        ({"bus": "isa.0"}, f"Device '{driver}' can't go on ISA bus"),
        ({"bus": "nobus"}, "Bus 'nobus' not found"),
        ({"id": "9x"}, "Invalid qdev ID '9x'"),
        ({"id": "t0"}, "Duplicate device ID 't0'"),
        ({"multifunction": "on"}, "Invalid parameter type for 'multifunction', expected: boolean"),
    ):
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            machine.device_add({"driver": driver, "id": "x0", **DEVICES[driver], **wrong})
        assert machine.ledger.difference(before) == ([], [])


@pytest.mark.parametrize("driver", DEVICES)
def test_reset_lets_go_of_the_pin_and_keeps_the_device(machine, driver):
    device = machine.device_add({"driver": driver, "id": "x0", "addr": f"{SLOT:x}", **DEVICES[driver]})
    if device.interrupt_pin:
        device.set_intx(True)
    machine.reset()
    assert high(machine) == []
    assert machine.pci.config_read(SLOT << 3, 0, 4) == device.device_id << 16 | device.vendor_id
    assert machine.pci.config_read(SLOT << 3, 4, 2) == 0
