"""QMP clients that are killed (SIGKILL) with a command half said, said, or answered: the machine goes on, whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys

import pytest
from qemu.qmp import ExecuteError

import guest_images as g
from support.endurance import IRQFD, ROADS, arguments, held, plug, size
from vmm.qmp.machine_target import monitor_of
from vmm.qmp.server import MonitorServer, UnixAddress

CLIENT = """
import os, signal, socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect(sys.argv[1])
client.recv(4096)
client.sendall(sys.argv[2].encode())
if sys.argv[3] == "answered":
    seen = b""
    while b'"id": "last"' not in seen:
        seen += client.recv(4096)
os.kill(os.getpid(), signal.SIGKILL)
"""


def command(execute, arguments=None, id=""):
    """A QMP command as text."""
    return json.dumps({"execute": execute, "arguments": arguments or {}, "id": id})


class Monitored:
    """The hot-plug guest with a monitor for clients that will be killed, beside the test's own."""

    def __init__(self, vm, tmp_path, append="n=2 hold cycle"):
        self.guest = vm("pc", kernel=g.path("hotplug"), append=append, trace=False)
        self.machine = self.guest.machine
        self.path = str(tmp_path / "qmp")
        self.guest.wait_serial(g.HOTPLUG_READY)
        self.guest.qmp("query-status")
        self.server = MonitorServer(monitor_of(self.machine), UnixAddress(self.path))
        self.guest._runner.run(self.server.start())
        self.before = held(self.machine)

    def kill_after(self, text, when="said"):
        """Run a client that says `text` and is killed."""
        client = subprocess.Popen([sys.executable, "-S", "-E", "-c", CLIENT, self.path, text, when])
        self.guest.wait_for(lambda: client.poll() is not None, "end of the client")
        assert client.returncode == -signal.SIGKILL
        # What it had said was heard; then it was missed.
        self.guest.wait_for(lambda: self.server._client is None, "a monitor without a client")

    def close(self):
        self.guest._runner.run(self.server.close())


@pytest.fixture
def monitored(vm, tmp_path):
    made = Monitored(vm, tmp_path)
    yield made
    made.close()


def empty(monitored, *ids):
    """Unplug what is there; afterwards nothing is left."""
    guest, machine = monitored.guest, monitored.machine
    for name in ids:
        if name in machine.peripherals:
            with contextlib.suppress(ExecuteError):  # refused if an earlier request comes true just now
                guest.qmp("device_del", id=name)
            guest.wait_for(lambda name=name: name not in machine.peripherals, "eject")
    for name in list(machine.objects):
        guest.qmp("object-del", id=name)
    assert held(machine) == monitored.before


@pytest.mark.parametrize("road", ROADS)
def test_a_client_killed_anywhere_in_device_add_leaves_a_whole_device_or_none(monitored, road):
    guest, machine = monitored.guest, monitored.machine
    hello = command("qmp_capabilities")
    add = command("device_add", arguments(road, "d", 5))
    cuts = range(0, len(add) + 1, size(len(add) // 4, 3))
    for cut in (*cuts, len(add)):
        if road != ROADS[0]:
            guest.qmp("object-add", qom_type="vfio-host-device", id="d-host", driver="edu")
        monitored.kill_after(hello + add[:cut])
        # All was said: whether it was heard before the client was missed, is the kernel's to say.
        assert "d" not in machine.peripherals or cut == len(add)
        if "d" in machine.peripherals:
            guest.wait_serial(r"^\+5$")
        empty(monitored, "d")
        guest.forget()


@pytest.mark.parametrize("when", ["said", "answered"])
@pytest.mark.parametrize("road", ROADS)
def test_a_client_killed_in_the_middle_of_a_cycle_is_followed_by_one_that_ends_it(monitored, road, when):
    guest, machine = monitored.guest, monitored.machine
    hello = command("qmp_capabilities")
    for _ in range(size(3, 100)):
        device = plug(machine, road, "d", 6)
        guest.wait_serial(r"^\+6$")
        assert device.intx_level
        monitored.kill_after(hello + command("device_del", {"id": "d"}, "last"), when)
        if when == "answered":
            guest.wait_for(lambda: "d" not in machine.peripherals, "eject")
        empty(monitored, "d")
        assert not device.intx_level
        guest.forget()


def test_a_client_killed_with_a_thousand_commands_under_way_costs_no_descriptor_and_no_machine(monitored):
    guest, machine = monitored.guest, monitored.machine
    text = command("qmp_capabilities") + command("query-pci") * 1_000 + command("system_reset")
    for _ in range(size(2, 50)):
        monitored.kill_after(text)
        assert guest.qmp("query-status")["status"] == "running"
    guest.wait_serial(g.HOTPLUG_READY)
    assert held(machine) == monitored.before


@pytest.mark.parametrize("road", size([IRQFD], ROADS))
def test_a_process_whose_client_is_killed_serves_the_next_and_exits_cleanly(tmp_path, road):
    path = tmp_path / "qmp"
    host = [] if road == ROADS[0] else ["-object", "vfio-host-device,id=d-host,driver=edu"]
    machine = subprocess.Popen(
        [
            *(sys.executable, "-m", "vmm.cli.system", "-m", "16", "-nodefaults", "-display", "none"),
            *("-qmp", f"unix:{path},server=on,wait=off", "-kernel", g.path("hotplug"), "-append", "n=2 hold cycle"),
            *("-chardev", f"file,id=s,path={tmp_path / 'serial'}", "-serial", "chardev:s", *host),
        ]
    )
    try:
        asyncio.run(_two_clients(machine, path, road))
        assert machine.wait() == 0
    finally:
        if machine.poll() is None:
            machine.kill()
            machine.wait()
    assert "+5\n" in (tmp_path / "serial").read_text().replace("\r", "")


async def _two_clients(machine, path, road):
    from qemu.qmp import QMPClient

    while not path.exists():
        assert machine.poll() is None
        await asyncio.sleep(0)
    text = command("qmp_capabilities") + command("device_add", arguments(road, "d", 5), "last")
    killed = await asyncio.create_subprocess_exec(sys.executable, "-S", "-E", "-c", CLIENT, str(path), text, "answered")
    assert await killed.wait() == -signal.SIGKILL
    client = QMPClient("second")
    await client.connect(str(path))
    with client.listener(names="DEVICE_DELETED") as deleted:
        await client.execute("device_del", {"id": "d"})
        await deleted.get()
    await client.execute("quit")
    with contextlib.suppress(EOFError):  # the process may be gone first
        await client.disconnect()
