"""`vfio-user-pci`: a machine here, the device in another process, and what is seen when one of the two dies."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from qemu.qmp import ExecuteError

import guest_images
from devices.edu import REG_IRQ_RAISE
from devices.vfio_user_pci import VfioUserPci
from support.vfio_user import open_fds
from vmm.errors import ConfigError, PropertyError
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.transport import Connection, PeerGone

if TYPE_CHECKING:
    from pathlib import Path

DEBUG_EXIT = {"driver": "isa-debug-exit", "iobase": 0xF4, "iosize": 4}


class Backend:
    """`vintx serve` in a process of its own."""

    def __init__(self, path: Path, *argv: str) -> None:
        self.path = path
        argv = argv or ("--device", "edu,x-dma-delay-us=0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vmm.cli.vintx", "serve", *argv, "--socket", str(path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End it, and see that it has ended."""
        self.process.send_signal(number)
        return self.process.wait()


@pytest.fixture
def backend(tmp_path):
    made = []

    def make(*argv: str) -> Backend:
        made.append(Backend(tmp_path / "edu.sock", *argv))
        return made[-1]

    yield make
    for one in made:
        one.kill()
        one.process.stdout.close()


def remote(path, **more) -> dict[str, object]:
    """The words of a device_add."""
    return {"driver": "vfio-user-pci", "id": "v0", "socket": {"type": "unix", "path": str(path)}, **more}


def pin_levels(guest) -> int:
    return guest.qmp("x-query-irqchip")["ioapics"][0]["irr"]


def wait_high(guest) -> None:
    """Let the machine run until the device's level has reached the IOAPIC."""
    guest.wait_for(lambda: guest.machine.ioapic.get_state().irr, "a pin to go high")


# Words.


def test_dotted_keys_and_json_mean_the_same():
    dotted = VfioUserPci.parse({"socket.type": "unix", "socket.path": "/a"}, from_text=True)
    assert dotted == VfioUserPci.parse({"socket": {"type": "unix", "path": "/a"}}) == {"socket": "/a"}


@pytest.mark.parametrize(
    ("given", "from_text", "message"),
    [
        ({}, True, "'socket' property must be set"),
        ({"socket": "/a"}, True, "expected: object"),
        ({"socket.type": "unix"}, True, "'socket.path' is missing"),
        ({"socket.path": "/a"}, True, "'socket.type' is missing"),
        ({"socket": {"type": "inet", "path": "/a"}}, False, "Unsupported socket type 'inet'"),
        ({"socket": {"type": "unix", "path": "/a", "port": 1}}, False, "'socket.port' is unexpected"),
        ({"socket": {"type": "unix", "path": 1}}, False, "expected: string"),
        ({"socket": {"type": "unix", "path": "x" * 108}}, False, "too long"),
        ({"socket.type": "unix", "socket.path": "/a"}, False, "'vfio-user-pci.socket.type' not found"),
        ({"socket.type": "unix", "socket.path": "/a", "nonsense": "1"}, True, "'vfio-user-pci.nonsense' not found"),
    ],
)
def test_wrong_words_are_refused_by_name(given, from_text, message):
    with pytest.raises(PropertyError, match=re.escape(message)):
        VfioUserPci.parse(given, from_text)


def test_plug_without_a_server_is_refused_and_leaves_the_machine_as_it_was(vm, tmp_path):
    guest = vm("pc")
    guest.qmp("query-status")
    before = guest.machine.ledger.snapshot()
    with pytest.raises(ExecuteError, match=r"Failed to connect to .*nobody.*No such file or directory"):
        guest.qmp("device_add", **remote(tmp_path / "nobody"))
    assert guest.machine.ledger.difference(before) == ([], [])


# Two processes.


@pytest.mark.parametrize("more", [{}, {"x-no-posted-writes": False}, {"x-no-kvm-intx": True}], ids=str)
def test_every_interrupt_of_a_device_in_another_process_is_handled_once(vm, backend, more):
    server = backend()
    devices = [DEBUG_EXIT, remote(server.path, **more), {"driver": "edu"}]
    guest = vm("pc", kernel=guest_images.path("intx_loop"), append="n=300", devices=devices, trace=False)
    guest.wait_exit()
    counts = [m.groupdict() for m in guest_images.INTX_LOOP_DEVICE.finditer(guest.serial)]
    assert [(c["raised"], c["handled"], c["spurious"]) for c in counts] == [("300", "300", "0")] * 2


def test_hot_plug_interrupts_and_unplug_with_the_line_high_leave_nothing_behind(vm, backend):
    server = backend()
    guest = vm("pc", kernel=guest_images.path("hotplug"), append="n=50 hold")
    guest.wait_serial(guest_images.HOTPLUG_READY)
    guest.qmp("query-status")  # from here on the monitor has its descriptors
    before, fds = guest.machine.ledger.snapshot(), open_fds()
    for slot in (4, 5):
        guest.qmp("device_add", **remote(server.path, addr=str(slot)))
        assert guest.wait_serial(rf"^hotplug: slot {slot} handled (\d+) spurious (\d+)").groups() == ("50", "0")
        guest.wait_serial(rf"^hotplug: slot {slot} line held high")
        wait_high(guest)
        guest.qmp("device_del", id="v0")
        guest.wait_event("DEVICE_DELETED", device="v0")
        assert guest.machine.ledger.difference(before) == ([], [])
        assert open_fds() == fds
    assert not pin_levels(guest)


def test_device_of_a_users_own_file_is_served(vm, backend, tmp_path):
    source = tmp_path / "mydevice.py"
    source.write_text(
        "from devices import PciDevice\n"
        "from vmm.memory import IoRegion\n"
        "class Thermometer(PciDevice):\n"
        "    driver, vendor_id, device_id, class_id = 'thermometer', 0x1234, 0x7E40, 0xFF\n"
        "    def realize(self, board):\n"
        "        super().realize(board)\n"
        "        self.register_bar(0, IoRegion('thermometer', 4096, lambda o, s: 2150, lambda *a: None))\n"
    )
    server = backend(f"{source}:Thermometer")
    assert server.ready == f"vintx serve: thermometer at {server.path}\n"
    guest = vm("pc", devices=[remote(server.path)])
    device = guest.machine.device("v0")
    assert (device.vendor_id, device.device_id) == (0x1234, 0x7E40)
    assert device.bars[0].region.read(0, 4) == 2150
    assert server.kill(signal.SIGTERM) == 0
    assert not server.path.exists()


def test_interrupt_that_a_write_causes_is_there_when_the_write_is_over(vm, backend):
    guest = vm("pc", kernel=guest_images.path("hotplug"), append="n=5", devices=[remote(backend().path, addr="4")])
    guest.wait_serial(r"^hotplug: slot 4 handled 5")
    guest.machine.device("v0").bars[0].region.write(REG_IRQ_RAISE, 4, 1)
    guest.machine.executor.drain()
    assert guest.machine.ioapic.get_state().irr


# Deaths.


def test_server_killed_with_the_line_high_is_seen_at_once_and_can_be_unplugged(vm, backend):
    server = backend()
    guest = vm("pc", kernel=guest_images.path("hotplug"), append="n=10 hold")
    guest.wait_serial(guest_images.HOTPLUG_READY)
    before = guest.machine.ledger.snapshot()
    guest.qmp("device_add", **remote(server.path, addr="4"))
    guest.wait_serial(r"^hotplug: slot 4 line held high")
    wait_high(guest)
    server.kill()
    event = guest.wait_event("VFIO_USER_DISCONNECTED", device="v0")
    assert event["data"]["path"] == "/machine/peripheral/v0"
    assert not pin_levels(guest)
    device = guest.machine.device("v0")
    assert device.bars[0].region.read(0, 4) == 0xFFFF_FFFF
    assert device.config_read(0, 4) == 0xFFFF_FFFF
    device.bars[0].region.write(0, 4, 0)
    device.config_write(4, 2, 7)
    guest.qmp("device_del", id="v0")
    guest.wait_event("DEVICE_DELETED", device="v0")
    assert guest.machine.ledger.difference(before) == ([], [])


def test_machine_resets_with_a_server_that_is_gone(vm, backend):
    server = backend()
    guest = vm("pc", kernel=guest_images.path("hotplug"), append="n=10", devices=[remote(server.path, addr="4")])
    guest.wait_serial(r"^hotplug: slot 4 handled 10")
    server.kill()
    guest.wait_event("VFIO_USER_DISCONNECTED")
    guest.qmp("system_reset")
    guest.wait_for(lambda: guest.serial.count(guest_images.HOTPLUG_READY) == 2, "a second start")
    assert guest.qmp("query-status")["status"] == "running"


def test_server_that_returns_is_attached_again_and_interrupts(vm, backend):
    server = backend()
    guest = vm("pc", kernel=guest_images.path("hotplug"), append="n=10 hold")
    guest.wait_serial(guest_images.HOTPLUG_READY)
    guest.qmp("device_add", **remote(server.path, addr="4", x_reconnect_ms=10))
    guest.wait_serial(r"^hotplug: slot 4 line held high")
    device = guest.machine.device("v0")
    command = device.config_read(4, 2)
    server.kill()
    guest.wait_event("VFIO_USER_DISCONNECTED", device="v0")
    assert not pin_levels(guest)
    backend()
    guest.wait_event("VFIO_USER_CONNECTED", device="v0")
    assert device.config_read(4, 2) == command
    device.bars[0].region.write(REG_IRQ_RAISE, 4, 1)
    wait_high(guest)
    guest.qmp("device_del", id="v0")
    guest.wait_event("DEVICE_DELETED", device="v0")


def test_another_device_at_the_same_place_is_not_attached(vm, backend, tmp_path):
    (tmp_path / "other.py").write_text("from devices.edu import Edu\nclass Other(Edu):\n    revision = 0x11\n")
    server = backend()
    guest = vm("pc", devices=[remote(server.path, **{"x-reconnect-ms": 10})])
    device = guest.machine.device("v0")
    guest.qmp("query-status")
    server.kill()
    guest.wait_event("VFIO_USER_DISCONNECTED")
    backend(f"{tmp_path}/other.py:Other")
    attach, tries = device.remote.attach, []
    device.remote.attach = lambda: (tries.append(1), attach())
    guest.wait_for(lambda: len(tries) > 2, "attempts to attach")
    assert not device.remote.attached


def test_machine_killed_leaves_the_server_ready_for_the_next(backend):
    server = backend()
    argv = [sys.executable, "-m", "vmm.cli.system", "-nodefaults", "-display", "none", "-serial", "stdio"]
    argv += ["-device", f"vfio-user-pci,socket.type=unix,socket.path={server.path}"]
    argv += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-kernel", str(guest_images.path("intx_loop"))]
    first = subprocess.Popen([*argv, "-append", "n=100000000"], stdout=subprocess.PIPE)
    assert first.stdout.readline().startswith(b"intx_loop: start")
    first.kill()
    first.wait()
    first.stdout.close()
    second = subprocess.run([*argv, "-append", "n=20"], capture_output=True, text=True, timeout=60, check=False)
    counts = guest_images.INTX_LOOP_DEVICE.search(second.stdout.replace("\r\n", "\n"))
    assert counts is not None, second.stdout + second.stderr
    # The first one died with an interrupt under way, perhaps; the next finds the device as it was left.
    assert int(counts["handled"]) >= 20
    assert server.process.poll() is None


# Servers that misbehave.


class Impostor:
    """Answers as an edu would, until `spoil(command)` says otherwise: bytes to send instead, or None to hang up."""

    def __init__(self, path: Path, spoil) -> None:
        self.spoil = spoil
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self) -> None:
        self.listener.settimeout(10)
        try:
            connection = Connection(self.listener.accept()[0])
            while not self.stop.is_set():
                message = connection.wait(0)
                if message is None:
                    self.stop.wait(0.001)
                    continue
                message.close()
                reply = self.spoil(message)
                if reply is None:
                    reply = p.reply_bytes(message.msg_id, message.command, self.honest(message))
                if reply == b"":
                    break
                connection.send(reply)
            connection.close()
        except (PeerGone, OSError):
            pass

    def honest(self, message) -> bytes:
        if message.command == Command.VERSION:
            return p.Version.build({"major": 0, "minor": 1, "data": b"{}\0"})
        if message.command == Command.DEVICE_GET_INFO:
            return p.DeviceInfo.build({"argsz": 16, "flags": 3, "num_regions": 9, "num_irqs": 5})
        if message.command == Command.DEVICE_GET_REGION_INFO:
            index = p.RegionInfo.parse(message.payload).index
            size = {0: 4096, 7: 256}.get(index, 0)
            fields = {"argsz": 32, "flags": 3, "index": index, "cap_offset": 0, "size": size, "offset": 0}
            return p.RegionInfo.build({**fields, "capabilities": b""})
        if message.command == Command.REGION_READ:
            offset, region, count = p.REGION_ACCESS.unpack(message.payload)
            value = {0: 0x00011234, 0x3D: 1}.get(offset, 0) if region == 7 else 0
            return message.payload + value.to_bytes(4, "little")[:count]
        return message.payload[:16] if message.command == Command.REGION_WRITE else b""

    def close(self) -> None:
        self.stop.set()
        self.thread.join()
        self.listener.close()


@pytest.fixture
def impostor(tmp_path):
    made = []

    def make(spoil) -> Path:
        path = tmp_path / "impostor.sock"
        made.append(Impostor(path, spoil))
        return path

    yield make
    for one in made:
        one.close()


def on(command, reply):
    """Spoil the answer to one command."""
    return lambda message: reply(message) if message.command == command else None


def wrong_info(**fields):
    good = {"argsz": 16, "flags": 3, "num_regions": 9, "num_irqs": 5}
    return lambda m: p.reply_bytes(m.msg_id, m.command, p.DeviceInfo.build(good | fields))


REFUSED = {
    "hangs up at VERSION": (on(Command.VERSION, lambda _: b""), "end of file"),
    "newer minor version": (
        on(Command.VERSION, lambda m: p.reply_bytes(m.msg_id, 1, b"\0\0\x09\0{}\0")),
        "incompatible server version 0.9",
    ),
    "version of nothing": (on(Command.VERSION, lambda m: p.reply_bytes(m.msg_id, 1)), "impostor.sock"),
    "damaged capabilities": (on(Command.VERSION, lambda m: p.reply_bytes(m.msg_id, 1, b"\0\0\0\0{[")), "impostor.sock"),
    "second socket that is not there": (
        on(
            Command.VERSION,
            lambda m: p.reply_bytes(m.msg_id, 1, b'\0\0\0\0{"capabilities":{"twin_socket":{"supported":true}}}'),
        ),
        "second socket",
    ),
    "error to VERSION": (on(Command.VERSION, lambda m: p.error_bytes(m.msg_id, 1, 22)), "refused command 1"),
    "answers another id": (on(Command.VERSION, lambda _: p.reply_bytes(999, 1)), "unexpected reply"),
    "no PCI device": (on(Command.DEVICE_GET_INFO, wrong_info(flags=1)), "isn't a PCI device"),
    "no regions": (on(Command.DEVICE_GET_INFO, wrong_info(num_regions=3)), "number of regions 3"),
    "impossible size": (on(Command.DEVICE_GET_INFO, lambda m: p.HEADER.pack(m.msg_id, 4, 3, 1, 0)), "unexpected reply"),
    "odd BAR": (
        on(
            Command.DEVICE_GET_REGION_INFO,
            lambda m: p.reply_bytes(m.msg_id, 5, m.payload[:16] + (0x1800).to_bytes(8, "little") + bytes(8)),
        ),
        "0x1800",
    ),
    "no configuration space": (
        on(Command.DEVICE_GET_REGION_INFO, lambda m: p.reply_bytes(m.msg_id, 5, m.payload[:32])),
        "configuration space of 0 bytes",
    ),
    "reads of the wrong size": (
        on(Command.REGION_READ, lambda m: p.reply_bytes(m.msg_id, 9, m.payload)),
        "read device",
    ),
    "refuses eventfds": (on(Command.DEVICE_SET_IRQS, lambda m: p.error_bytes(m.msg_id, 8, 22)), "trigger eventfd"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_server_that_cannot_be_worked_with_is_refused_and_nothing_is_left(vm, impostor, name):
    spoil, words = REFUSED[name]
    guest = vm("pc")
    before, fds = guest.machine.ledger.snapshot(), open_fds()
    path = impostor(spoil)
    with pytest.raises(ConfigError, match=re.escape(words)):
        guest.machine.device_add(remote(path))
    assert guest.machine.ledger.difference(before) == ([], [])
    assert open_fds() <= fds + 2  # the impostor's own


IN_USE = {
    "stalls": lambda _: None,
    "unexpected reply": lambda m: p.reply_bytes(m.msg_id + 1, m.command),
    "another command's reply": lambda m: p.reply_bytes(m.msg_id, 1, m.payload + bytes(4)),
    "wrong size": lambda m: p.reply_bytes(m.msg_id, m.command, bytes(400)),
    "hangs up": lambda _: b"",
    "noise": lambda _: b"\xff" * 64,
}


@pytest.mark.parametrize("name", IN_USE)
def test_server_that_goes_mad_in_use_is_dropped_and_the_guest_reads_all_ones(vm, impostor, name):
    mad = []

    def spoil(message):
        if mad and message.command == Command.REGION_READ:
            return b"\0" if name == "stalls" else IN_USE[name](message)
        return None

    guest = vm("pc")
    guest.machine.device_add(remote(impostor(spoil), **{"x-msg-timeout": 200}))
    device = guest.machine.device("v0")
    assert device.bars[0].region.read(0, 4) == 0
    mad.append(True)
    assert device.bars[0].region.read(0, 4) == 0xFFFF_FFFF
    guest.wait_event("VFIO_USER_DISCONNECTED", device="v0")


def test_error_replies_read_all_ones_and_the_device_stays(vm, impostor):
    path = impostor(
        lambda m: (
            p.error_bytes(m.msg_id, m.command, 5)
            if m.command in (Command.REGION_READ, Command.REGION_WRITE) and m.payload[8] == 0
            else None
        )
    )
    guest = vm("pc")
    guest.machine.device_add(remote(path))
    device = guest.machine.device("v0")
    assert device.bars[0].region.read(0, 4) == 0xFFFF_FFFF
    device.bars[0].region.write(0, 4, 0)
    assert device.remote.attached


@pytest.mark.parametrize(
    ("command", "address", "count", "data", "error"),
    [
        (Command.DMA_READ, 0x1000, 16, b"", 0),
        (Command.DMA_WRITE, 0x1000, 4, b"data", 0),
        (Command.DMA_WRITE, 0x1000, 8, b"data", 22),
        (Command.DMA_READ, 32 << 20, 1, b"", 14),
        (Command.DMA_READ, 2**64 - 1, 2, b"", 14),
        (Command.DMA_READ, 0, 2 << 20, b"", 7),
        (Command.VERSION, 0, 0, b"", 38),
    ],
)
def test_dma_of_a_server_stays_inside_ram(vm, impostor, command, address, count, data, error):
    answers = []

    def spoil(message):
        if message.is_reply:
            answers.append(message)
            return p.reply_bytes(asked[0], Command.REGION_READ, p.REGION_ACCESS.pack(8, 0, 4) + bytes(4))
        if message.command == Command.REGION_READ and message.payload[:9] == b"\x08" + bytes(8):
            asked.append(message.msg_id)
            return p.command_bytes(7, command, p.DMA_ACCESS.pack(address, count) + data)
        return None

    asked = []
    guest = vm("pc")
    guest.machine.device_add(remote(impostor(spoil)))
    guest.machine.memory.write(0x1000, b"0123456789abcdef")
    device = guest.machine.device("v0")
    assert device.bars[0].region.read(8, 4) == 0
    (answer,) = answers
    assert (answer.msg_id, answer.failure) == (7, error)
    if not error and command == Command.DMA_READ:
        assert answer.payload[16:] == b"0123456789abcdef"
    if not error and command == Command.DMA_WRITE:
        assert guest.machine.memory.read(0x1000, 5) == b"data4"
