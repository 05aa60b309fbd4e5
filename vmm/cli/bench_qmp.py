"""What a script that drives a machine has to wait for: the monitor, qtest, plug and unplug.

Both machines run `-accel qtest`, where no guest takes any time: a QEMU without it (Debian 12's 7.2) is not measured,
and `NOT_MEASURED` says so.
"""

from __future__ import annotations

import functools
import json
import select
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmm.cli.process import GuestLost

if TYPE_CHECKING:
    from types import TracebackType

    from vmm.cli.bench_figures import Subject

COMMANDS = 2_000
ACCESSES = 10_000
PIPELINE = 200
CYCLES = 300
PATIENCE_S = 60
EJECT = 0xAE08
"""Port of the ACPI hot-plug block: what a guest's _EJ0 writes to."""
SLOT = 0x1D
NOT_MEASURED = "{} has no -accel qtest: monitor and qtest are not measured with it"


class _Lines:
    """A connection of lines, without buffers of its own but one."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._have = b""

    def send(self, data: bytes) -> None:
        self._peer.sendall(data)

    def line(self) -> bytes:
        while b"\n" not in self._have:
            data = self._peer.recv(65536)
            if not data:
                raise GuestLost("the machine hung up", "")
            self._have += data
        line, _, self._have = self._have.partition(b"\n")
        return line

    def lines(self, count: int) -> None:
        """Skip lines."""
        while (there := self._have.count(b"\n")) < count:
            count -= there
            self._have = self._have.rpartition(b"\n")[2]
            data = self._peer.recv(65536)
            if not data:
                raise GuestLost("the machine hung up", "")
            self._have += data
        for _ in range(count):
            self._have = self._have.partition(b"\n")[2]


class Driven:
    """`with Driven(program) as vm`: a pc under qtest, with sockets of both kinds."""

    def __init__(self, program: str) -> None:
        self._program = program

    def __enter__(self) -> Driven:
        self._folder = tempfile.TemporaryDirectory(prefix="vintx-")
        paths = {name: str(Path(self._folder.name) / name) for name in ("qtest", "qmp")}
        listeners = {}
        for name, path in paths.items():
            listeners[name] = socket.socket(socket.AF_UNIX)
            listeners[name].bind(path)
            listeners[name].listen(1)
        command = [self._program, "-M", "pc", "-accel", "qtest", "-nodefaults", "-display", "none"]
        command += ["-device", "pc-testdev", "-qtest", f"unix:{paths['qtest']}", "-qtest-log", "/dev/null"]
        self._process = subprocess.Popen(
            [*command, "-qmp", f"unix:{paths['qmp']}"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self._peers = [self._accept(listeners[name]) for name in ("qtest", "qmp")]
        self.qtest, self.qmp = map(_Lines, self._peers)
        self.qmp.line()
        self.execute("qmp_capabilities")
        return self

    def _accept(self, listener: socket.socket) -> socket.socket:
        with listener:
            if not select.select([listener], [], [], PATIENCE_S)[0] or self._process.poll() is not None:
                raise GuestLost(f"{self._program} does not connect", "")
            peer, _ = listener.accept()
            peer.settimeout(PATIENCE_S)
            return peer

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for peer in self._peers:
            peer.close()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._folder.cleanup()

    def execute(self, command: str, **arguments: Any) -> None:
        """Execute a command, and skip the events that come before its reply. GuestLost if it is refused."""
        self.qmp.send(json.dumps({"execute": command, "arguments": arguments}).encode())
        message: dict[str, Any] = {}
        while "return" not in message:
            message = json.loads(self.qmp.line())
            if "error" in message:
                raise GuestLost(f"{self._program}: {message['error']['desc']}", "")

    def event(self, name: str) -> None:
        """Wait for an event."""
        while True:
            message = json.loads(self.qmp.line())
            if message.get("event") == name:
                return


@functools.cache
def has_qtest(subject: Subject) -> bool:
    """Whether a program knows -accel qtest."""
    command = [subject.program, "-M", "none", "-accel", "qtest", "-S", "-display", "none", "-qmp", "stdio"]
    done = subprocess.run(
        command, input=b'{"execute":"qmp_capabilities"}{"execute":"quit"}', capture_output=True, check=False, timeout=30
    )
    return done.returncode == 0


def first_reply(subject: Subject) -> dict[str, float]:
    """From exec to the first reply of a machine that is made."""
    command = [subject.program, "-M", "pc", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b'{"execute":"qmp_capabilities"}{"execute":"query-status"}')
        process.stdin.flush()
        text = b"".join(process.stdout.readline() for _ in range(3))
        ms = (time.perf_counter() - began) * 1e3
        process.kill()
    if b"prelaunch" not in text:
        raise GuestLost(f"{subject.name} did not answer query-status", text.decode("utf-8", "replace"))
    return {"first-reply": ms}


def qmp_rate(subject: Subject) -> dict[str, float]:
    """QMP commands, one at a time."""
    if not has_qtest(subject):
        return {}
    with Driven(subject.program) as vm:
        began = time.perf_counter()
        for _ in range(COMMANDS):
            vm.qmp.send(b'{"execute":"query-status"}')
            vm.qmp.line()
        return {"qmp": COMMANDS / (time.perf_counter() - began)}


def qtest_rates(subject: Subject) -> dict[str, float]:
    """qtest commands: one at a time, and many in one write."""
    if not has_qtest(subject):
        return {}
    rates = {}
    with Driven(subject.program) as vm:
        for name, command in (("qtest-in", b"inb 0x71\n"), ("qtest-out", b"outb 0x70 0x0a\n")):
            began = time.perf_counter()
            for _ in range(ACCESSES):
                vm.qtest.send(command)
                vm.qtest.line()
            rates[name] = ACCESSES / (time.perf_counter() - began)
        batch = b"writel 0xfec00000 0x10\n" * PIPELINE
        began = time.perf_counter()
        for _ in range(ACCESSES // PIPELINE):
            vm.qtest.send(batch)
            vm.qtest.lines(PIPELINE)
        rates["qtest-pipelined"] = ACCESSES / (time.perf_counter() - began)
    return rates


def plug_rate(subject: Subject) -> dict[str, float]:
    """device_add, device_del, and the guest's word that lets the device go."""
    if not has_qtest(subject):
        return {}
    with Driven(subject.program) as vm:
        began = time.perf_counter()
        for _ in range(CYCLES):
            vm.execute("device_add", driver="edu", id="e0", addr=f"{SLOT:x}")
            vm.execute("device_del", id="e0")
            vm.qtest.send(f"outl {EJECT:#x} {1 << SLOT:#x}\n".encode())
            vm.event("DEVICE_DELETED")
            vm.qtest.line()
        return {"plug-cycle": CYCLES / (time.perf_counter() - began)}
