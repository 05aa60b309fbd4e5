"""Types from third parties, and the object tree."""

import sys

import pytest
from qemu.qmp import ExecuteError

from machine import registry

THERMOMETER = '''
from devices.pci.device import PciDevice
from vmm.memory import IoRegion


class Thermometer(PciDevice):
    """A page-long device: one register, one interrupt."""

    driver = "thermometer"
    vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x0777, 0x1180, 1

    def realize(self, board):
        super().realize(board)
        self.register_bar(0, IoRegion("thermometer", 16, self.read, self.write))

    def read(self, offset, size):
        return 21

    def write(self, offset, size, value):
        self.set_intx(bool(value))
'''


@pytest.fixture
def thermometer(tmp_path, monkeypatch):
    """A distribution that adds device type `thermometer` by its entry point."""
    (tmp_path / "thermo.py").write_text(THERMOMETER)
    info = tmp_path / "thermo-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thermo\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vintx.devices]\nthermometer = thermo:Thermometer\nbroken = thermo:Nothing\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def forget():
        for cached in vars(registry).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()
        sys.modules.pop("thermo", None)

    forget()
    yield
    forget()


@pytest.mark.usefixtures("thermometer")
def test_third_party_device_is_listed_plugged_and_interrupts(vm):
    guest = vm("pc", accel="qtest")
    assert "thermometer" in {t["name"] for t in guest.qmp("qom-list-types", implements="pci-device")}
    guest.qmp("device_add", driver="thermometer", id="t0", addr="5")
    device = guest.machine.device("t0")
    device.write(0, 1, 1)
    assert [line.name for wire in guest.machine.pci.pirqs for line in wire.holders if line.level] == ["t0"]
    with pytest.raises(ExecuteError, match="device type 'broken' cannot be loaded from thermo:Nothing"):
        guest.qmp("device_add", driver="broken")


def test_every_type_that_is_listed_can_be_asked_for_its_properties(vm):
    guest = vm("none")
    names = [t["name"] for t in guest.qmp("qom-list-types", implements="device", abstract=False)]
    assert {"edu", "vfio-pci", "ioapic", "isa-debug-exit"} <= set(names)
    for name in names:
        for row in guest.qmp("device-list-properties", typename=name):
            assert {"name", "type"} <= set(row), name
    addresses = [row for row in guest.qmp("device-list-properties", typename="edu") if row["name"] == "addr"]
    assert [row["type"] for row in addresses] == ["str"]


def test_object_tree_shows_what_is_plugged_and_a_partial_path_finds_it(vm):
    guest = vm("pc", accel="qtest")
    guest.qmp("device_add", driver="edu", id="e0", addr="7")
    guest.qmp("device_add", driver="pci-testdev")
    assert {"name": "e0", "type": "child<edu>"} in guest.qmp("qom-list", path="/machine/peripheral")
    assert guest.qmp("qom-list", path="/machine/peripheral-anon")[1]["type"] == "child<pci-testdev>"
    assert guest.qmp("qom-get", path="e0", property="addr") == 7 << 3
    assert guest.qmp("qom-get", path="e0", property="hotplugged") is True
    assert guest.qmp("qom-get", path="/machine", property="type") == "pc-machine"
    for path in ("/nosuch", "nosuch"):
        with pytest.raises(ExecuteError) as caught:
            guest.qmp("qom-list", path=path)
        assert (caught.value.error_class, str(caught.value)) == ("DeviceNotFound", f"Device '{path}' not found")
    with pytest.raises(ExecuteError, match=r"Property 'edu\.nosuch' not found"):
        guest.qmp("qom-get", path="e0", property="nosuch")
    with pytest.raises(ExecuteError, match="after it was realized"):
        guest.qmp("qom-set", path="e0", property="addr", value="8")


def test_every_property_of_every_object_can_be_read(vm):
    guest = vm("pc", accel="qtest")
    guest.qmp("device_add", driver="edu", id="e0")
    read = 0

    def walk(path: str) -> None:
        nonlocal read
        for row in guest.qmp("qom-list", path=path):
            if row["type"].startswith("child<"):
                walk(f"{path.rstrip('/')}/{row['name']}")
            else:
                guest.qmp("qom-get", path=path, property=row["name"])
                read += 1

    walk("/")
    assert read > 60
