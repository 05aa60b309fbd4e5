"""Every image does on QEMU what its description says: the peer that our own machine is compared with."""

from __future__ import annotations

import pytest

import guest_images as g
from support.qemu_guest import ABSENT, QEMU, QemuGuest

pytestmark = pytest.mark.skipif(QEMU is None, reason=ABSENT)

PASSED, FAILED = g.EXIT_PASSED << 1 | 1, g.EXIT_FAILED << 1 | 1


def edus(*slots: int) -> list[str]:
    """Options for one edu in each slot."""
    return [word for slot in slots for word in ("-device", f"edu,addr={slot:#x}")]


def test_intx_loop_counts_every_interrupt_of_devices_that_share_pins():
    with QemuGuest("intx_loop", "n=200", *edus(2, 3, 4, 5)) as guest:
        assert guest.finish() == PASSED
    lines = guest.console.splitlines()
    assert (lines[0], lines[-1]) == (g.INTX_LOOP_START, g.INTX_LOOP_DONE)
    found = [m.groupdict() for m in g.INTX_LOOP_DEVICE.finditer(guest.console)]
    assert [d["device"] for d in found] == ["00:02.0", "00:03.0", "00:04.0", "00:05.0"]
    assert [d["pin"] for d in found] == ["10", "11", "11", "10"]
    assert {(d["raised"], d["handled"], d["spurious"]) for d in found} == {("200", "200", "0")}


def test_intx_loop_burst_prints_its_cycles_and_uses_as_many_devices_as_allowed():
    with QemuGuest("intx_loop", "n=50 burst devices=1 active-high", *edus(3, 4)) as guest:
        assert guest.finish() == PASSED
    assert [m["handled"] for m in g.INTX_LOOP_DEVICE.finditer(guest.console)] == ["50"]
    burst = g.INTX_LOOP_BURST.search(guest.console)
    assert burst["rounds"] == "50"
    assert int(burst["cycles"]) > 0


def test_intx_loop_without_a_device_fails():
    with QemuGuest("intx_loop") as guest:
        assert guest.finish() == FAILED
    assert g.INTX_LOOP_NO_DEVICES in guest.console


@pytest.mark.parametrize("append", ["n=20", "n=20 hold"])
def test_hotplug_enables_drives_and_ejects_devices(append):
    with QemuGuest("hotplug", append) as guest:
        guest.wait_for(g.HOTPLUG_READY)
        for slot in (4, 5, 6):
            guest.qmp("device_add", driver="edu", id=f"edu{slot}", addr=str(slot))
            assert guest.wait_for(g.HOTPLUG_ADD)["pin"] == {4: "11", 5: "10", 6: "10"}[slot]
            assert guest.wait_for(g.HOTPLUG_ENABLED).group("slot", "vendor", "device") == (str(slot), "1234", "11e8")
            assert guest.wait_for(g.HOTPLUG_HANDLED).group("handled", "spurious") == ("20", "0")
            if "hold" in append:
                assert guest.wait_for(g.HOTPLUG_HELD)["slot"] == str(slot)
        for slot in (5, 6, 4):
            guest.qmp("device_del", id=f"edu{slot}")
            assert guest.wait_for(g.HOTPLUG_REMOVE)["slot"] == str(slot)
            assert guest.wait_for(g.HOTPLUG_EJECTED)["slot"] == str(slot)
            guest.wait_event("DEVICE_DELETED", device=f"edu{slot}")
        guest.qmp("device_add", driver="edu", id="again", addr="5")
        assert guest.wait_for(g.HOTPLUG_HANDLED)["handled"] == "20"
        guest.send(g.HOTPLUG_QUIT)
        assert guest.wait_for(g.HOTPLUG_SUMMARY).groups() == ("4", "3", "80", "0")
        assert guest.finish() == PASSED
    assert g.HOTPLUG_STUCK.search(guest.console) is None


def test_hotplug_finds_what_was_there_and_enables_what_is_no_edu():
    with QemuGuest("hotplug", "n=5", *edus(3)) as guest:
        assert guest.wait_for(g.HOTPLUG_FOUND)["slot"] == "3"
        assert guest.wait_for(g.HOTPLUG_HANDLED)["handled"] == "5"
        guest.qmp("device_add", driver="virtio-rng-pci", id="rng", addr="7")
        assert guest.wait_for(g.HOTPLUG_ENABLED).group("slot", "vendor", "device") == ("7", "1af4", "1005")
        bars = [r["bar"] for r in _device(guest, 7)["regions"] if r["address"] not in (-1, 0)]
        assert bars == [0, 1, 4]
        guest.qmp("device_del", id="rng")
        guest.wait_event("DEVICE_DELETED", device="rng")


def test_hotplug_powers_off_at_the_power_button():
    with QemuGuest("hotplug") as guest:
        guest.wait_for(g.HOTPLUG_READY)
        guest.qmp("system_powerdown")
        guest.wait_for(g.HOTPLUG_DONE)
        assert guest.finish() == 0


def test_hotplug_that_ignores_removal_keeps_the_device_until_reset():
    with QemuGuest("hotplug", "n=5 ignore-eject") as guest:
        guest.wait_for(g.HOTPLUG_READY)
        guest.qmp("device_add", driver="edu", id="a", addr="4")
        guest.wait_for(g.HOTPLUG_HANDLED)
        guest.qmp("device_del", id="a")
        guest.wait_for(g.HOTPLUG_REMOVE)
        guest.qmp("device_add", driver="edu", id="b", addr="5")
        guest.wait_for(g.HOTPLUG_HANDLED)
        assert _device(guest, 4)["qdev_id"] == "a"
        guest.qmp("system_reset")
        guest.wait_event("DEVICE_DELETED", device="a")
        assert guest.wait_for(g.HOTPLUG_FOUND)["slot"] == "5"


def test_hotplug_in_cycle_mode_says_no_more_than_needed():
    with QemuGuest("hotplug", "n=3 cycle hold") as guest:
        guest.wait_for(g.HOTPLUG_READY)
        for slot in (3, 4, 3):
            guest.qmp("device_add", driver="edu", id="edu", addr=str(slot))
            assert guest.line() == f"+{slot}"
            guest.qmp("device_del", id="edu")
            assert guest.line() == f"-{slot}"
            guest.wait_event("DEVICE_DELETED", device="edu")
        guest.send(g.HOTPLUG_QUIT)
        assert guest.wait_for(g.HOTPLUG_SUMMARY).groups() == ("3", "3", "9", "0")


@pytest.mark.parametrize("cpus", [1, 2, 4])
def test_smp_starts_every_processor_and_loses_no_ipi(cpus):
    with QemuGuest("smp", "n=50", "-smp", str(cpus)) as guest:
        assert guest.finish() == PASSED
    assert g.SMP_CPUS.search(guest.console)["cpus"] == str(cpus)
    assert g.SMP_ONLINE.search(guest.console)["cpus"] == str(cpus)
    found = [m.groups() for m in g.SMP_CPU.finditer(guest.console)]
    assert found == [(str(cpu), "50", "50") for cpu in range(1, cpus)]
    assert guest.console.endswith(g.SMP_DONE + "\n")


def _device(guest: QemuGuest, slot: int) -> dict:
    return next(d for d in guest.qmp("query-pci")[0]["devices"] if d["slot"] == slot)


@pytest.mark.parametrize("append", ["n=50", "n=50 rotate"])
def test_smp_intx_handles_what_every_processor_raises(append):
    with QemuGuest("smp_intx", append, "-smp", "3", "-device", "edu,addr=4", "-device", "edu,addr=8") as guest:
        assert guest.finish() == PASSED
    assert [m.group("raised", "handled") for m in g.SMP_INTX_DEVICE.finditer(guest.console)] == [("50", "50")] * 2
    assert sum(int(m["handled"]) for m in g.SMP_INTX_CPU.finditer(guest.console)) == 100
