"""Run states, resets and ends of a machine, as a QMP script sees them."""

import pytest
from qemu.qmp import ExecuteError

import guest_images

HOTPLUG = guest_images.path("hotplug")
DEBUG_EXIT = {"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}


def names(guest) -> list[str]:
    return [event["event"] for event in guest.events]


def test_stopped_machine_stands_still_with_its_clock_and_goes_on(vm):
    guest = vm("pc", kernel=HOTPLUG, append="n=10")
    guest.wait_serial("hotplug: ready")
    guest.qmp("stop")
    guest.qmp("stop")
    assert guest.qmp("query-status") == {"status": "paused", "running": False}
    at = guest.machine.clock.now()
    guest.qmp("device_add", driver="edu", id="e0")
    for _ in range(50):
        guest.qmp("query-status")
    assert guest.machine.clock.now() == at
    assert "add slot" not in guest.serial, "a guest that stands still sees no hot-plug"
    guest.qmp("cont")
    guest.qmp("cont")
    guest.wait_serial("handled 10 spurious 0")
    assert names(guest) == ["STOP", "RESUME"]


def test_start_paused_runs_no_instruction_until_cont(vm):
    guest = vm("pc", kernel=HOTPLUG, start_paused=True)
    assert guest.qmp("query-status") == {"status": "prelaunch", "running": False}
    assert guest.serial == ""
    guest.qmp("cont")
    guest.wait_serial("hotplug: ready")


def test_system_reset_starts_the_guest_again_from_its_image(vm):
    guest = vm("pc", kernel=HOTPLUG, append="n=5")
    guest.wait_serial("hotplug: ready")
    guest.qmp("device_add", driver="edu", id="e0")
    guest.wait_serial("handled 5 spurious 0")
    guest.qmp("system_reset")
    guest.wait_for(lambda: guest.serial.count("hotplug: ready") == 2, "the guest's second start")
    guest.wait_for(lambda: guest.serial.count("handled 5 spurious 0") == 2, "the device found and driven again")
    assert guest.wait_event("RESET")["data"] == {"guest": False, "reason": "host-qmp-system-reset"}


@pytest.mark.parametrize(("port", "value"), [(0xCF9, 0x06), (0x64, 0xFE), (0x92, 0x01)])
def test_guest_reset_port_resets_or_ends_as_asked(vm, port, value):
    guest = vm("pc", kernel=HOTPLUG)
    guest.wait_serial("hotplug: ready")
    guest.machine.ports.write(port, 1, value)
    guest.wait_for(lambda: guest.serial.count("hotplug: ready") == 2, "the guest's second start")
    assert guest.wait_event("RESET")["data"] == {"guest": True, "reason": "guest-reset"}
    last = vm("pc", kernel=HOTPLUG, no_reboot=True)
    last.wait_serial("hotplug: ready")
    last.machine.ports.write(port, 1, value)
    assert last.wait_exit() == 0
    assert last.events == [{"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-reset"}}]


def test_power_button_lets_the_guest_switch_itself_off(vm):
    guest = vm("pc", kernel=HOTPLUG)
    guest.wait_serial("hotplug: ready")
    guest.qmp("system_powerdown")
    assert guest.wait_exit() == 0
    assert names(guest) == ["POWERDOWN", "SHUTDOWN"]
    assert guest.events[-1]["data"] == {"guest": True, "reason": "guest-shutdown"}


def test_no_shutdown_keeps_the_machine_until_it_is_reset(vm):
    guest = vm("pc", kernel=HOTPLUG, no_shutdown=True)
    guest.wait_serial("hotplug: ready")
    guest.qmp("system_powerdown")
    guest.wait_event("SHUTDOWN")
    assert guest.qmp("query-status") == {"status": "shutdown", "running": False}
    with pytest.raises(ExecuteError, match="Resetting the Virtual Machine is required"):
        guest.qmp("cont")
    guest.qmp("system_reset")
    assert guest.qmp("query-status")["status"] == "prelaunch"
    guest.qmp("cont")
    guest.wait_for(lambda: guest.serial.count("hotplug: ready") == 2, "the guest's second start")


def test_debug_exit_gives_the_process_its_status(vm):
    guest = vm("pc", kernel=HOTPLUG, devices=[DEBUG_EXIT])
    guest.wait_serial("hotplug: ready")
    guest.type("quit\n")
    assert guest.wait_exit() == guest_images.EXIT_PASSED << 1 | 1
    assert guest_images.HOTPLUG_SUMMARY.search(guest.serial)


def test_closed_machine_holds_nothing_any_more(vm):
    guest = vm(
        "pc",
        kernel=HOTPLUG,
        objects=[{"qom-type": "vfio-host-device", "id": "h0", "driver": "edu"}],
        devices=[{"driver": "vfio-pci", "id": "v0", "x-host-object": "h0"}, {"driver": "edu", "id": "e0"}],
        append="n=3 hold",
    )
    guest.wait_for(lambda: guest.serial.count("line held high") == 2, "both lines held high")
    guest.qmp("quit")
    assert guest.wait_exit() == 0
    guest.machine.close()
    assert guest.machine.ledger.rows() == []
    assert not any(wire.high or wire.holders for wire in guest.machine.gsi_wires)


def test_object_in_use_cannot_be_deleted(vm):
    guest = vm("pc", accel="qtest")
    guest.qmp("object-add", qom_type="vfio-host-device", id="h0", driver="edu")
    guest.qmp("device_add", driver="vfio-pci", id="v0", x_host_object="h0")
    before = guest.machine.ledger.snapshot()
    with pytest.raises(ExecuteError, match="object 'h0' is in use"):
        guest.qmp("object-del", id="h0")
    with pytest.raises(ExecuteError, match="h0"):
        guest.qmp("device_add", driver="vfio-pci", id="v1", x_host_object="h0")
    assert guest.machine.ledger.difference(before) == ([], [])
    guest.qmp("device_del", id="v0")
    guest.qmp("system_reset")
    guest.qmp("object-del", id="h0")
    with pytest.raises(ExecuteError, match="object 'h0' not found"):
        guest.qmp("object-del", id="h0")
