"""The schema: sound in itself, true of what a machine answers, and QEMU's wherever QEMU has the same command."""

from __future__ import annotations

import json
from typing import Any

import pytest

from machine import Machine, MachineConfig
from support.qmp_target import DATA, Client
from vmm.qmp.commands import standard_registry
from vmm.qmp.document import REFERENCE, STUBS, reference, stubs
from vmm.qmp.event_types import EVENTS
from vmm.qmp.introspect import introspect
from vmm.qmp.machine_target import MachineMonitor
from vmm.qmp.monitor import make_call

SCHEMA = introspect(standard_registry(), Client().target)
OURS = {row["name"]: row for row in SCHEMA}
QEMU = {row["name"]: row for row in json.loads((DATA / "qemu-qmp-schema.json").read_text())}
COMMANDS = sorted(name for name, row in OURS.items() if row["meta-type"] == "command")
SHARED = [name for name in COMMANDS if name in QEMU]
REFUSED = ("query-balloon", "query-vm-generation-id", "query-hotpluggable-cpus", "query-firmware-log")
OWN_EVENTS = {"VFIO_USER_CONNECTED", "VFIO_USER_DISCONNECTED"}


def names_in(row: dict[str, Any]) -> set[str]:
    """The types that an entity refers to."""
    found = {row[key] for key in ("arg-type", "ret-type", "element-type") if key in row}
    found |= {member["type"] for member in row.get("members", ()) if "type" in member}
    return found | {variant["type"] for variant in row.get("variants", ())}


def test_each_name_is_described_once_and_each_reference_leads_somewhere() -> None:
    assert len(OURS) == len(SCHEMA)
    for row in SCHEMA:
        assert names_in(row) <= OURS.keys(), row
    assert {row["meta-type"] for row in SCHEMA} == {
        "builtin",
        "enum",
        "array",
        "object",
        "alternate",
        "command",
        "event",
    }


def test_nothing_is_described_that_nobody_reaches() -> None:
    reached = {name for row in SCHEMA for name in names_in(row)}
    entities = {row["name"] for row in SCHEMA if row["meta-type"] in ("command", "event")}
    assert OURS.keys() - entities <= reached | {OURS[next(iter(OURS))]["ret-type"]}


def test_a_tag_is_an_enum_and_its_variants_are_its_values() -> None:
    unions = [row for row in SCHEMA if "tag" in row]
    assert len(unions) >= 4
    for row in unions:
        (tag,) = (member for member in row["members"] if member["name"] == row["tag"])
        assert {variant["case"] for variant in row["variants"]} == set(OURS[tag["type"]]["values"])


def json_shape(schema: dict[str, dict[str, Any]], name: str) -> str:
    row = schema[name]
    if row["meta-type"] == "builtin":
        return str(row["json-type"])
    return {"enum": "string", "array": "array", "object": "object", "alternate": "alternate"}[row["meta-type"]]


def members(schema: dict[str, dict[str, Any]], name: str) -> dict[str, dict[str, Any]]:
    row = schema[name]
    while row["meta-type"] == "array":
        row = schema[row["element-type"]]
    return {member["name"]: member for member in row.get("members", ()) if "name" in member and "type" in member}


@pytest.mark.parametrize("name", SHARED)
def test_arguments_of_a_command_of_qemu_are_qemus(name: str) -> None:
    ours, qemu = members(OURS, OURS[name]["arg-type"]), members(QEMU, QEMU[name]["arg-type"])
    assert ours.keys() <= qemu.keys()
    for argument, member in ours.items():
        assert json_shape(OURS, member["type"]) == json_shape(QEMU, qemu[argument]["type"]), argument
        assert ("default" in member) == ("default" in qemu[argument]), argument
    assert {argument for argument, member in qemu.items() if "default" not in member} <= ours.keys()
    assert OURS[name].get("allow-oob") == QEMU[name].get("allow-oob")


@pytest.mark.parametrize("name", SHARED)
def test_reply_of_a_command_of_qemu_has_what_qemus_must_have_and_nothing_else(name: str) -> None:
    ours, qemu = OURS[name]["ret-type"], QEMU[name]["ret-type"]
    assert json_shape(OURS, ours) == json_shape(QEMU, qemu)
    have, known = members(OURS, ours), members(QEMU, qemu)
    assert have.keys() <= known.keys()
    for member, row in have.items():
        assert json_shape(OURS, row["type"]) == json_shape(QEMU, known[member]["type"]), member
    if name not in {"query-iothreads", "query-mice", "query-rx-filter", "query-jobs", "query-block-jobs"} | {
        "query-stats-schemas",
        "query-fdsets",
        "query-memory-devices",
        "query-tpm",
        "query-audiodevs",
        "query-qmp-schema",
        "query-migrate-capabilities",
        "query-vcpu-dirty-limit",
    }:  # lists that are always empty, and the schema itself, say less of their elements
        assert {member for member, row in known.items() if "default" not in row} <= have.keys()


def test_events_are_qemus_but_for_two() -> None:
    assert {name for name in EVENTS if name not in QEMU} == OWN_EVENTS
    for name in EVENTS.keys() - OWN_EVENTS:
        ours, qemu = members(OURS, OURS[name]["arg-type"]), members(QEMU, QEMU[name]["arg-type"])
        assert ours.keys() <= qemu.keys()
        assert {member for member, row in qemu.items() if "default" not in row} <= ours.keys()


@pytest.mark.parametrize("machine_type", ["pc", "none"])
def test_each_reply_of_a_machine_is_as_declared(machine_type: str) -> None:
    machine = Machine.create(machine_type, MachineConfig(accel="qtest", ram_size=16 << 20))
    try:
        if machine_type == "pc":
            machine.device_add({"driver": "edu", "id": "e0"})
        machine.start()
        call = make_call(MachineMonitor(machine), "test")
        asked = 0
        for command in call.registry:
            harmless = command.name.startswith(("query-", "x-query-"))
            if not harmless or command.returns is None or any(not member.optional for member in command.args.members):
                continue
            if command.name in REFUSED or (machine_type, command.name) == ("none", "query-acpi-ospm-status"):
                continue  # test_qmp_commands has them
            command.returns.check(command.handler(call, {}), "return", "return")
            asked += 1
        assert asked > 35
    finally:
        machine.close()


def test_object_add_tells_of_each_type_and_its_properties() -> None:
    machine = Machine.create("none", MachineConfig())
    schema = {row["name"]: row for row in introspect(standard_registry(), MachineMonitor(machine))}
    options = schema[schema["object-add"]["arg-type"]]
    variants = {variant["case"]: members(schema, variant["type"]) for variant in options["variants"]}
    assert json_shape(schema, variants["memory-backend-ram"]["size"]["type"]) == "int"
    assert json_shape(schema, variants["memory-backend-ram"]["share"]["type"]) == "boolean"
    machine.close()


def test_reference_and_stubs_are_current() -> None:
    again = "they are old: python -m vmm.qmp.document"
    assert reference() == REFERENCE.read_text(encoding="utf-8"), again
    assert stubs() == STUBS.read_text(encoding="utf-8"), again
