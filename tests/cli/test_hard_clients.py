"""A process and the clients that nobody wants: rude, slow, many, and gone; and what it leaves behind at its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 60
PROGRAM = [sys.executable, "-m", "vmm.cli.system", "-M", "pc", "-accel", "qtest", "-nodefaults", "-m", "16"]
SOCKETS = ("qmp", "monitor", "qtest")
NEGOTIATE = b'{"execute":"qmp_capabilities"}'


class Process:
    """A machine with a listening socket of each kind, and a second QMP monitor that must always answer."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        command = [*PROGRAM]
        for name in SOCKETS:
            command += [f"-{name}", f"unix:{folder / name},server=on,wait=off"]
        command += ["-qtest-log", "/dev/null", "-qmp", f"unix:{folder / 'other'},server=on,wait=off", *more]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, umask=0, cwd=folder)
        self.other = self.connect("other")
        self.qmp_hello(self.other)

    def connect(self, name: str) -> socket.socket:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            peer = socket.socket(socket.AF_UNIX)
            peer.settimeout(PATIENCE_S)
            try:
                peer.connect(str(self.folder / name))
                return peer
            except (FileNotFoundError, ConnectionRefusedError):
                peer.close()
                assert time.monotonic() < deadline
                assert self.process.poll() is None, self.errors()
                time.sleep(0.01)

    def qmp_hello(self, peer: socket.socket) -> None:
        assert b'"QMP"' in line(peer)
        peer.sendall(NEGOTIATE)
        assert line(peer) == b'{"return": {}}'

    def still_answers(self) -> None:
        self.other.sendall(b'{"execute":"query-status"}')
        assert json.loads(line(self.other))["return"]["running"] is True

    def resident(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        self.other.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()


def line(peer: socket.socket) -> bytes:
    """One line, byte by byte: nothing of the next is taken."""
    out = bytearray()
    while not out.endswith(b"\n"):
        data = peer.recv(1)
        assert data, "the machine hung up"
        out += data
    return bytes(out).rstrip(b"\r\n")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Process]:
    made = Process(tmp_path)
    yield made
    made.close()


def test_sockets_are_private_even_where_the_umask_is_not(machine: Process) -> None:
    for name in (*SOCKETS, "other"):
        assert stat.S_IMODE((machine.folder / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_ends_it_in_order_with_status_0_and_nothing_left_behind(tmp_path: Path, number: int) -> None:
    machine = Process(tmp_path, "-pidfile", "pid")
    try:
        assert int((tmp_path / "pid").read_text()) == machine.process.pid
        assert machine.end(number) == 0
        event = json.loads(line(machine.other))
        assert (event["event"], event["data"]["reason"]) == ("SHUTDOWN", "host-signal")
        assert machine.other.recv(1) == b""
        assert machine.errors() == ""
        assert list(tmp_path.iterdir()) == []
    finally:
        machine.close()


def test_sockets_of_a_process_that_was_killed_are_taken_over(tmp_path: Path) -> None:
    first = Process(tmp_path)
    first.process.kill()
    first.process.wait()
    first.close()
    assert (tmp_path / "qmp").is_socket()
    second = Process(tmp_path)
    try:
        second.qmp_hello(second.connect("qmp"))
    finally:
        second.close()


@pytest.mark.parametrize("option", ["-qmp", "-monitor", "-qtest", "-serial"])
def test_socket_that_another_process_uses_is_refused_and_goes_on_working(machine: Process, option: str) -> None:
    done = subprocess.run(
        [*PROGRAM, option, f"unix:{machine.folder / 'qmp'},server=on,wait=off"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 1
    assert "another process listens there" in done.stderr
    assert done.stderr.count("\n") == 1
    machine.qmp_hello(machine.connect("qmp"))


def test_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    done = subprocess.run(
        [*PROGRAM, "-qmp", f"unix:{tmp_path / 'precious'},server=on"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, (tmp_path / "precious").read_text()) == (1, "data")
    assert "is no socket" in done.stderr


def test_hundred_clients_one_after_the_other_are_all_served(machine: Process) -> None:
    before = machine.resident()
    for number in range(100):
        peer = machine.connect("qmp")
        machine.qmp_hello(peer)
        peer.sendall(b'{"execute":"query-name","id":%d}' % number)
        assert json.loads(line(peer))["id"] == number
        peer.close()
    machine.still_answers()
    assert machine.resident() - before < 8 << 20


def test_client_that_dies_in_the_middle_of_a_command_leaves_the_monitor_to_the_next(machine: Process) -> None:
    for half in (b'{"execute":"query-', b'{"execute":"query-qmp-schema"}' * 20, b'{["', b"\xff"):
        peer = machine.connect("qmp")
        machine.qmp_hello(peer)
        peer.sendall(half)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
    machine.qmp_hello(machine.connect("qmp"))
    machine.still_answers()


def test_reader_that_is_slow_holds_up_nobody_else_and_loses_nothing(machine: Process) -> None:
    peer = machine.connect("qmp")
    machine.qmp_hello(peer)
    before = machine.resident()
    asked = 300
    peer.setblocking(False)
    request = b'{"execute":"query-qmp-schema"}' * asked
    sent = peer.send(request)
    machine.still_answers()
    machine.still_answers()
    assert machine.resident() - before < 64 << 20
    peer.setblocking(True)
    peer.settimeout(PATIENCE_S)
    replies, rest = 0, request[sent:]
    while replies < asked:
        if rest:
            rest = rest[peer.send(rest[:4096]) :]
        replies += peer.recv(1 << 20).count(b"\r\n")
    machine.still_answers()


FLOODS: dict[str, Any] = {
    "deeply nested": lambda: b'{"execute":' + b"[" * 200_000,
    "oversized string": lambda: b'{"execute":"' + b"x" * (8 << 20) + b'"}',
    "many tokens": lambda: b"[" + b"1," * (1 << 17),
    "binary": lambda: bytes(range(256)) * 512,
    "nothing but errors": lambda: b"]" * 20_000,
    "newlines": lambda: b"\n" * (1 << 20),
    "zeroes": lambda: bytes(1 << 15),
    "half a message": lambda: b'{"execute":"quer',
}


@pytest.mark.parametrize("name", SOCKETS)
def test_flood_of_anything_is_survived_and_costs_no_memory_that_stays(machine: Process, name: str) -> None:
    before = machine.resident()
    for what, made in FLOODS.items():
        peer = machine.connect(name)
        if name == "qmp":
            machine.qmp_hello(peer)
        peer.setblocking(False)
        data = memoryview(made())
        deadline = time.monotonic() + PATIENCE_S
        while data:
            try:
                data = data[peer.send(data[: 1 << 16]) :]
            except BlockingIOError:
                # It reads no more because we do not read its answers.
                try:
                    peer.recv(1 << 20)
                except BlockingIOError:
                    time.sleep(0.001)
            assert time.monotonic() < deadline, what
        machine.still_answers()
        peer.close()
    machine.still_answers()
    assert machine.resident() - before < 96 << 20
    assert machine.end() == 0
    assert "Traceback" not in machine.errors()


def test_limits_of_the_parser_are_answered_in_qemus_words(machine: Process) -> None:
    peer = machine.connect("qmp")
    machine.qmp_hello(peer)
    peer.sendall(b"[" * 1025 + b"]" * 1025)
    assert json.loads(line(peer))["error"]["desc"] == "JSON nesting depth limit exceeded"
    peer.sendall(b'{"execute":"query-name"}')
    assert b'"return"' in line(peer)
