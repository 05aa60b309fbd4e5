"""Plug and unplug over QMP: refused commands leave the machine as it was, accepted ones leave nothing behind."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu.qmp import ExecuteError

from machine import Machine, MachineConfig
from vmm.errors import VintxError

TRANSCRIPT = Path(__file__).parent.parent / "conformance" / "data" / "qemu-qmp-transcript.jsonl"
OURS = {"pci-testdev", "no-such-device", "pci-device", "memory-backend-ram", "PIIX3", "i440FX", "isa-serial", "ioapic"}
OURS |= {"help", "edu"}
PROPERTIES_WE_LACK = {"membar"}
ADDRESSES = (-1, 0x18, 0x20, 0x21)


def recorded_plugs() -> list[tuple[dict[str, object], dict[str, object]]]:
    """device_add and device_del of session `pc`, with QEMU's replies, up to the first guest action."""
    pairs = []
    waiting = None
    for line in TRANSCRIPT.read_text().splitlines():
        row = json.loads(line)
        if row["sess"] != "pc":
            continue
        if row["dir"] == "qtest":
            break
        if row["dir"] == ">":
            waiting = json.loads(row["raw"])
        elif row["dir"] == "<" and waiting is not None:
            reply = json.loads(row["raw"])
            if waiting["execute"] in ("device_add", "device_del"):
                pairs.append((waiting, reply))
            waiting = None
    return pairs


def we_have(arguments: dict[str, object]) -> bool:
    """Whether a recorded device_add concerns devices, buses and properties that vintx has."""
    return (
        arguments.get("driver", "edu") in OURS
        and arguments.get("bus") not in ("br0",)
        and not PROPERTIES_WE_LACK & set(arguments)
    )


def state_of(guest) -> tuple[object, ...]:
    machine = guest.machine
    return (
        machine.ledger.snapshot(),
        sorted(machine.peripherals),
        sorted(machine.anonymous),
        repr(machine.pci.query()),
    )


def test_recorded_session_gets_qemus_replies_and_refusals_change_nothing(vm):
    guest = vm("pc", accel="qtest", devices=[{"driver": "pci-testdev", "id": "cold0", "addr": "4"}])
    guest.qmp("query-status")
    compared = refused = 0
    skipped = set()
    for request, reply in recorded_plugs():
        arguments = request["arguments"]
        if not we_have(arguments) and "desc" not in reply.get("error", {}):
            # A device of QEMU's that vintx has not: leave its slot taken, as in the recording.
            guest.qmp("device_add", driver="pci-testdev")
            skipped.add(arguments.get("driver"))
            continue
        if not we_have(arguments):
            skipped.add(arguments.get("driver"))
            continue
        before = state_of(guest)
        compared += 1
        if "error" in reply:
            with pytest.raises(ExecuteError) as caught:
                guest.qmp(request["execute"], **arguments)
            assert (caught.value.error_class, str(caught.value)) == (
                reply["error"]["class"],
                reply["error"]["desc"],
            ), request
            assert state_of(guest) == before, request
            refused += 1
        else:
            assert guest.qmp(request["execute"], **arguments) == {}, request
    assert (compared, refused) == (54, 31), skipped


@pytest.mark.parametrize(
    ("arguments", "error_class", "desc"),
    [
        ({"driver": "vfio-pci", "id": "v0"}, "GenericError", "x-host-object property not set"),
        (
            {"driver": "vfio-pci", "id": "v0", "x-host-object": "h9"},
            "DeviceNotFound",
            "Device 'h9' not found",
        ),
        ({"driver": "edu", "id": "e0", "addr": "1"}, "GenericError", None),
        ({"driver": "isa-debug-exit", "iobase": 0xF4}, "GenericError", "Bus 'isa.0' does not support hotplugging"),
    ],
)
def test_refused_device_add_says_why_and_leaves_the_machine_as_it_was(vm, arguments, error_class, desc):
    guest = vm("pc", accel="qtest")
    guest.qmp("query-status")
    before = state_of(guest)
    with pytest.raises(ExecuteError) as caught:
        guest.qmp("device_add", **arguments)
    assert caught.value.error_class == error_class
    if desc is not None:
        assert str(caught.value) == desc
    assert state_of(guest) == before


def test_reset_completes_a_pending_unplug_after_its_event(vm):
    guest = vm("pc", accel="qtest")
    guest.qmp("query-status")
    before = state_of(guest)
    guest.qmp("device_add", driver="edu", id="e0")
    guest.qmp("device_del", id="e0")
    with pytest.raises(ExecuteError, match="Device e0 is already in the process of unplug"):
        guest.qmp("device_del", id="e0")
    guest.qmp("system_reset")
    names = [event["event"] for event in guest.events]
    assert names == ["RESET", "DEVICE_DELETED"]
    assert guest.events[0]["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
    assert guest.events[1]["data"] == {"device": "e0", "path": "/machine/peripheral/e0"}
    assert state_of(guest) == before
    with pytest.raises(ExecuteError) as caught:
        guest.qmp("device_del", id="e0")
    assert caught.value.error_class == "DeviceNotFound"


def test_id_is_free_again_at_once_after_its_device_is_gone(vm):
    guest = vm("pc", accel="qtest")
    for _ in range(3):
        guest.qmp("device_add", driver="edu", id="again", addr="5")
        guest.machine.ports.write(0xAE08, 4, 1 << 5)
        assert guest.wait_event("DEVICE_DELETED")["data"]["device"] == "again"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "del", "eject", "reset"]),
            st.integers(0, 3),
            st.sampled_from([-1, 24, 32, 33]),
        ),
        max_size=12,
    )
)
def test_any_history_of_plugs_leaves_ledger_and_bus_in_step(steps):
    machine = Machine.create("pc", MachineConfig(ram_size=16 << 20, accel="qtest"))
    try:
        machine.start()
        empty = machine.ledger.snapshot()
        board_lines = {line.name for wire in machine.pci.pirqs for line in wire.holders}
        for what, n, addr in steps:
            try:
                if what == "add":
                    machine.device_add({"driver": "edu", "id": f"d{n}", "addr": addr})
                    machine.device(f"d{n}").set_intx(True)
                elif what == "del":
                    machine.device_del(f"d{n}")
                elif what == "eject":
                    machine.ports.write(0xAE08, 4, 1 << (2 + n))
                else:
                    machine.reset()
            except VintxError:
                pass
            owners = {row.owner for row in machine.ledger.difference(empty)[0]}
            assert owners == set(machine.peripherals)
            held = {line.name for wire in machine.pci.pirqs for line in wire.holders} - board_lines
            assert held == set(machine.peripherals)
        for slot in range(2, 32):
            machine.ports.write(0xAE08, 4, 1 << slot)
        assert machine.ledger.difference(empty) == ([], [])
        assert not any(wire.high for wire in machine.pci.pirqs)
    finally:
        machine.close()
