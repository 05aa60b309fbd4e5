"""CPUs at their places: what query-hotpluggable-cpus shows, and what device_add makes of it."""

from __future__ import annotations

import pytest

from machine import registry
from machine.cpu_model import MODELS
from vmm.errors import ConfigError, InUse, PropertyError


def machine(vm, **config):
    config = {"accel": "qtest", "cpus": 1, "max_cpus": 6, "topology": (1, 3, 2), "trace": False} | config
    return vm("pc", **config)


def test_places_are_shown_last_first_and_the_taken_ones_name_their_cpu(vm):
    guest = machine(vm, cpus=2)
    rows = guest.qmp("query-hotpluggable-cpus")
    assert [tuple(row["props"].values()) for row in rows] == [
        (2, 1, 0), (2, 0, 0), (1, 1, 0), (1, 0, 0), (0, 1, 0), (0, 0, 0),
    ]  # fmt: skip
    assert {row["type"] for row in rows} == {"qemu64-x86_64-cpu"}
    taken = [row["qom-path"] for row in rows if "qom-path" in row]
    assert taken == [cpu.path for cpu in reversed(guest.machine.cpus())]
    assert all(guest.qmp("qom-get", path=path, property="type") == "qemu64-x86_64-cpu" for path in taken)


def test_every_place_can_be_filled_with_the_type_and_props_that_are_shown(vm):
    guest = machine(vm, cpu_model="Haswell")
    for n, row in enumerate(guest.qmp("query-hotpluggable-cpus")):
        if "qom-path" not in row:
            guest.qmp("device_add", driver=row["type"], id=f"cpu{n}", **row["props"])
    cpus = guest.qmp("query-cpus-fast")
    assert [tuple(cpu["props"].values()) for cpu in cpus] == [
        (0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 0), (2, 0, 0), (2, 1, 0),
    ]  # fmt: skip
    assert {cpu["qom-type"] for cpu in cpus} == {"Haswell-x86_64-cpu"}
    assert all("qom-path" in row for row in guest.qmp("query-hotpluggable-cpus"))


def test_without_a_topology_cpus_are_cores_of_one_socket(vm):
    guest = machine(vm, cpus=2, max_cpus=4, topology=None)
    assert [row["props"]["core-id"] for row in guest.qmp("query-hotpluggable-cpus")] == [3, 2, 1, 0]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"driver": "Haswell-x86_64-cpu"}, ConfigError, "Invalid CPU type, expected cpu type: 'qemu64-x86_64-cpu'"),
        ({}, PropertyError, "CPU socket-id is not set"),
        ({"socket-id": 0, "core-id": 1}, PropertyError, "CPU thread-id is not set"),
        ({"socket-id": 1, "core-id": 0, "thread-id": 0}, PropertyError, "Invalid CPU socket-id: 1 must be in range"),
        ({"socket-id": 0, "core-id": -1, "thread-id": 0}, PropertyError, "Invalid CPU core-id: -1"),
        ({"socket-id": 0, "core-id": 0, "thread-id": 0}, InUse, r"CPU\[0\] with APIC ID 0 exists"),
        ({"socket-id": 0, "core-id": 1, "thread-id": 0, "die-id": 1}, PropertyError, "Invalid CPU die-id"),
        ({"bus": "pci.0", "socket-id": 0, "core-id": 1, "thread-id": 0}, ConfigError, "does not go on a bus"),
    ],
)
def test_wrong_place_is_refused_and_the_machine_is_as_it_was(vm, given, error, message):
    made = machine(vm).machine
    made.start()
    before = made.ledger.snapshot()
    with pytest.raises(error, match=message):
        made.device_add({"driver": "qemu64-x86_64-cpu", **given})
    assert made.ledger.difference(before) == ([], [])
    assert len(made.cpus()) == 1


def test_cpu_cannot_be_unplugged(vm):
    made = machine(vm).machine
    made.device_add({"driver": "qemu64-x86_64-cpu", "id": "c1", "socket-id": 0, "core-id": 1, "thread-id": 0})
    with pytest.raises(ConfigError, match="cannot be unplugged"):
        made.device_del("c1")
    made.reset()
    assert len(made.cpus()) == 2


def test_engine_that_runs_cpus_takes_no_more_of_them(vm):
    made = machine(vm, accel="tcg").machine
    with pytest.raises(ConfigError, match="cannot be plugged under this engine"):
        made.device_add({"driver": "qemu64-x86_64-cpu", "socket-id": 0, "core-id": 1, "thread-id": 0})
    assert len(made.cpus()) == 1


def test_every_model_has_a_device_type():
    for name in MODELS:
        found = registry.device_type(f"{name}-x86_64-cpu")
        assert found is not None
        assert found.model == name


def test_machine_is_listed_under_the_name_and_the_alias_of_qemu_s(vm):
    rows = {row["name"]: row for row in machine(vm).qmp("query-machines")}
    assert rows["pc-i440fx"]["alias"] == "pc"
    assert rows["pc-i440fx"]["is-default"]
    assert rows["pc-i440fx"]["hotpluggable-cpus"]
    assert registry.machine_type("pc-i440fx") is registry.machine_type("pc")
