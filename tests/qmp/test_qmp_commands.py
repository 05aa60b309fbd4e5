"""What each command passes on to the machine, and what it makes of the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from support.qmp_target import DATA, Client
from vmm.qmp.target import CpuInfo, IoapicInfo, IrqChips, LapicInfo, LedgerRow, PicInfo


@pytest.fixture
def client() -> Client:
    client = Client()
    client.negotiate("oob")
    return client


def result(client: Client, command: str, **arguments: Any) -> Any:
    return client.ask({"execute": command, "arguments": arguments})[-1]["return"]


def test_commands_without_prefix_are_qemus(client: Client) -> None:
    ours = {row["name"] for row in result(client, "query-commands")}
    qemu = set(json.loads((DATA / "qemu-qmp-commands.json").read_text()))
    assert {name for name in ours - qemu if not name.startswith("x-")} == set()
    assert len(ours) > 30


def test_device_add_passes_every_property_on(client: Client) -> None:
    assert result(client, "device_add", driver="edu", id=5, addr=[1], anything={"a": 1}) == {}
    assert client.target.devices["5"] == {
        "driver": "edu",
        "id": 5,
        "addr": [1],
        "anything": {"a": 1},
        "from_text": False,
    }


@pytest.mark.parametrize("arguments", [{}, {"driver": 5}, {"id": "x"}])
def test_device_add_without_driver_is_refused(client: Client, arguments: Any) -> None:
    refused = client.error({"execute": "device_add", "arguments": arguments})
    assert refused == ("GenericError", "Parameter 'driver' is missing")


def test_error_of_the_machine_keeps_its_class(client: Client) -> None:
    assert client.error({"execute": "device_del", "arguments": {"id": "nosuch"}}) == (
        "DeviceNotFound",
        "Device 'nosuch' not found",
    )


def test_object_add_passes_type_id_and_the_rest(client: Client) -> None:
    result(client, "object-add", **{"qom-type": "memory-backend-ram", "id": "m0", "size": 4096})
    assert client.target.objects == {"m0": {"qom-type": "memory-backend-ram", "size": 4096, "from_text": False}}
    assert result(client, "object-del", id="m0") == {}
    assert client.error({"execute": "object-del", "arguments": {"id": "m0"}})[1] == "object 'm0' not found"


def test_properties_and_types_are_described(client: Client) -> None:
    addr, mask = result(client, "device-list-properties", typename="edu")
    assert addr == {"default-value": -1, "name": "addr", "description": "Slot and function", "type": "str"}
    assert mask == {"name": "dma_mask", "type": "uint64"}
    assert result(client, "qom-list-types", implements="device") == [{"name": "edu", "parent": "pci-device"}]
    assert len(result(client, "qom-list-types", abstract=True)) == 2
    assert result(client, "qom-list-types", implements="nosuch") == []


def test_qom_set_is_seen_by_get_list_and_list_get(client: Client) -> None:
    result(client, "qom-set", path="/machine", property="p", value={"any": [None]})
    assert result(client, "qom-get", path="/machine", property="p") == {"any": [None]}
    assert {"name": "p", "type": "string"} in result(client, "qom-list", path="/machine")
    (listed,) = result(client, "qom-list-get", paths=["/machine"])
    assert {"name": "p", "type": "string", "value": {"any": [None]}} in listed["properties"]
    assert {"name": "unreadable", "type": "string"} in listed["properties"]


def test_machines_carry_the_keys_that_clients_require(client: Client) -> None:
    pc, none = result(client, "query-machines")
    required = {"name", "cpu-max", "hotpluggable-cpus", "numa-mem-supported", "deprecated", "acpi"}
    assert set(pc) == required | {"alias", "is-default"}
    assert set(none) == required


def test_cpus_name_and_version_are_reported(client: Client) -> None:
    client.target.name = "guest"
    client.target.cpu_infos = [CpuInfo(0, "/machine/unattached/device[0]", "qemu64-x86_64-cpu", 99)]
    assert result(client, "query-name") == {"name": "guest"}
    (cpu,) = result(client, "query-cpus-fast")
    assert (cpu["cpu-index"], cpu["thread-id"], cpu["target"]) == (0, 99, "x86_64")
    assert result(client, "query-version")["qemu"]["major"] == 11


def test_irqchips_are_numbers_and_lists_of_vectors(client: Client) -> None:
    entries = (1 << 14 | 1 << 15 | 0x31,) + (1 << 16,) * 23
    client.target.chips = IrqChips(
        (IoapicInfo("ioapic0", 0x11, 0, 0, 1, entries),),
        (PicInfo("pic0", irr=1, elcr=0x20),),
        (LapicInfo(0, 0, isr=1 << 0x31, tmr=1 << 0x31, lvt={"lint0": 0x700}),),
    )
    (reply,) = client.ask({"exec-oob": "x-query-irqchip", "id": 1})
    chips = reply["return"]
    assert (chips["ioapics"][0]["remote-irr"], chips["ioapics"][0]["entries"][0]) == (1, 0xC031)
    assert chips["pics"][0]["elcr"] == 0x20
    assert (chips["lapics"][0]["isr"], chips["lapics"][0]["irr"]) == ([0x31], [])


def test_ledger_can_be_narrowed_to_one_owner(client: Client) -> None:
    client.target.rows = [LedgerRow("e0", "irq", "pin 11"), LedgerRow("e1", "mmio", "bar0")]
    assert len(result(client, "x-query-ledger")) == 2
    assert result(client, "x-query-ledger", owner="e1") == [{"owner": "e1", "kind": "mmio", "name": "bar0"}]


def test_monitor_command_for_a_cpu_that_is_there_runs(client: Client) -> None:
    client.target.cpu_infos = [CpuInfo(0, "/x", "qemu64-x86_64-cpu", 1)]
    assert "running" in result(client, "human-monitor-command", **{"command-line": "info status", "cpu-index": 0})


def test_machine_that_is_not_built_refuses_what_needs_one() -> None:
    client = Client(preconfig=True)
    client.negotiate()
    names = {row["name"] for row in result(client, "query-commands")} - {"x-exit-preconfig"}
    refused = {name for name in names if "only after machine init" in str(client.ask({"execute": name})[-1])}
    assert {"device_add", "query-pci", "cont", "system_reset", "query-cpus-fast"} <= refused
    assert refused.isdisjoint({"query-status", "query-version", "quit", "qom-list-types"})
