"""pvpanic: what a guest says at its end, and what becomes of the machine."""

import asyncio

import pytest

from devices.pvpanic import CRASH_LOADED, EVENTS, PANICKED, SHUTDOWN
from machine import Machine, MachineConfig
from support.qtest_link import LocalLink
from vmm.errors import ConfigError, QmpError

PORT = 0x505


def isa(**config):
    link = LocalLink(devices=({"driver": "pvpanic"},), **config)
    events = []
    link.machine.on_event(lambda name, data: events.append((name, data)))
    return link, events


def say(link, word, address=f"outb {PORT:#x}"):
    assert link(f"{address} {word}") == "OK"
    link.machine.loop.turn()


def test_byte_reads_the_events_the_guest_may_use():
    link = LocalLink(devices=({"driver": "pvpanic", "events": 3, "ioport": 0x600},))
    assert link.value("inb 0x600") == PANICKED | CRASH_LOADED
    link.close()


@pytest.mark.parametrize(
    ("config", "told", "state", "status"),
    [
        ({"panic": "none"}, ["run"], "running", None),
        ({"panic": "pause"}, ["pause"], "guest-panicked", None),
        ({"panic": "shutdown", "no_shutdown": True}, ["pause"], "guest-panicked", None),
        ({"panic": "shutdown"}, ["poweroff"], "guest-panicked", 0),
        ({"panic": "exit-failure"}, ["poweroff"], "guest-panicked", 1),
    ],
)
def test_panic_leads_to_the_action_that_was_asked_for(config, told, state, status):
    link, events = isa(**config)
    say(link, PANICKED)
    machine = link.machine
    assert [data["action"] for name, data in events if name == "GUEST_PANICKED"] == told
    assert machine.state.value == state
    ends = [data for name, data in events if name == "SHUTDOWN"]
    assert ends == ([] if status is None else [{"guest": True, "reason": "guest-panic"}])
    if status is not None:
        assert asyncio.run(machine.run()) == status
    link.close()


def test_panicked_machine_goes_on_only_after_a_reset():
    link, _ = isa(panic="pause")
    say(link, PANICKED)
    with pytest.raises(QmpError, match="Resetting the Virtual Machine is required"):
        link.machine.cont()
    link.machine.reset()
    link.machine.cont()
    assert link.machine.state.value == "running"
    link.close()


def test_crash_kernel_is_announced_and_the_guest_runs_on():
    link, events = isa()
    say(link, CRASH_LOADED)
    assert events == [("GUEST_CRASHLOADED", {"action": "run"})]
    assert link.machine.state.value == "running"
    link.close()


def test_shutdown_is_announced_before_it_is_done():
    link, events = isa()
    say(link, SHUTDOWN)
    assert events == [("GUEST_PVSHUTDOWN", {}), ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})]
    link.close()


def test_words_that_are_not_known_do_nothing():
    link, events = isa()
    say(link, 0xF8)
    assert events == []
    link.close()


def test_pci_device_says_the_same_through_its_bar():
    link = LocalLink(devices=({"driver": "pvpanic-pci", "addr": "4"},), panic="none")
    events = []
    link.machine.on_event(lambda name, data: events.append((name, data)))
    for command in ("outl 0xcf8 0x80002010", "outl 0xcfc 0xe0000000", "outl 0xcf8 0x80002004", "outl 0xcfc 2"):
        link(command)
    assert link.value("readb 0xe0000000") == EVENTS
    assert link.value("readb 0xe0000001") == 0
    say(link, PANICKED, "writeb 0xe0000001")
    assert events == []
    say(link, PANICKED, "writeb 0xe0000000")
    assert events == [("GUEST_PANICKED", {"action": "run"})]
    link.close()


def test_machine_without_a_board_refuses_the_device():
    machine = Machine.create("none", MachineConfig(accel="qtest", ram_size=1 << 20))
    with pytest.raises(ConfigError):
        machine.device_add({"driver": "pvpanic"})
    machine.close()
