"""A machine under qtest, in this process or in one of its own, for tests."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from machine import Machine, MachineConfig
from vmm.chardev import MemoryBackend
from vmm.qtest import QtestServer


class Link:
    """Sends commands; `lines` gives everything that came back up to the reply."""

    def lines(self, command: str) -> list[str]:
        raise NotImplementedError

    def __call__(self, command: str) -> str:
        """The reply alone."""
        return self.lines(command)[-1]

    def value(self, command: str) -> int:
        status, _, value = self(command).partition(" ")
        assert status == "OK", (command, status, value)
        return int(value, 0)


class LocalLink(Link):
    """A machine in this process: what a command does has been done when the call returns."""

    def __init__(self, name: str = "pc", devices: tuple[dict[str, object], ...] = (), **config: object) -> None:
        self.machine = Machine.create(name, MachineConfig(**{"accel": "qtest", "ram_size": 16 << 20} | config))
        for device in devices:
            self.machine.device_add(device)
        self.machine.start()
        self.backend = MemoryBackend("qtest")
        self.server = QtestServer(self.machine, self.backend)

    def raw(self, data: bytes) -> bytes:
        self.backend.feed(data)
        return self.backend.take()

    def lines(self, command: str) -> list[str]:
        return self.raw(command.encode("latin-1") + b"\n").decode("latin-1").splitlines()

    def close(self) -> None:
        self.server.close()
        self.machine.close()


class ProcessLink(Link):
    """A process that is started and spoken to as QEMU's test programs do it: they listen, it connects."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        listeners = []
        for name in ("q", "m"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(os.fspath(folder / name))
            listener.listen(1)
            listeners.append(listener)
        command = [sys.executable, "-m", "vmm.cli.system", "-qtest", f"unix:{folder}/q", "-qtest-log", "/dev/null"]
        command += ["-chardev", f"socket,path={folder}/m,id=char0", "-mon", "chardev=char0,mode=control"]
        command += ["-display", "none", "-audio", "none", *arguments, "-accel", "qtest"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self._sockets = []
        for listener in listeners:
            listener.settimeout(60)
            peer, _ = listener.accept()
            listener.close()
            self._sockets.append(peer)
        self._qtest, self._qmp = self._sockets
        self._replies = self._qtest.makefile("r", encoding="latin-1")
        self._messages = self._qmp.makefile("r", encoding="utf-8")
        self.events: list[str] = []
        assert "QMP" in self.message()
        self.execute("qmp_capabilities")

    def send(self, data: bytes) -> None:
        self._qtest.sendall(data)

    def reply(self) -> list[str]:
        """The lines up to the next reply."""
        lines = [self._replies.readline()]
        while lines[-1].startswith("IRQ"):
            lines.append(self._replies.readline())
        assert lines[-1].endswith("\n"), "the machine is gone"
        return [line.rstrip("\n") for line in lines]

    def lines(self, command: str) -> list[str]:
        self.send(command.encode("latin-1") + b"\n")
        return self.reply()

    def message(self) -> dict[str, object]:
        """The monitor's next message; empty at its end."""
        text = self._messages.readline()
        found: dict[str, object] = json.loads(text) if text else {}
        if "event" in found:
            self.events.append(str(found["event"]))
        return found

    def execute(self, command: str, **arguments: object) -> object:
        self._qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            found = self.message()
            assert found, "the monitor is gone"
            if "return" in found:
                return found["return"]
            assert "error" not in found, found

    def human(self, line: str) -> str:
        return str(self.execute("human-monitor-command", **{"command-line": line}))

    def end(self) -> int:
        """SIGTERM, and the exit status; what the monitor said last is in `events`."""
        self.process.terminate()
        while self.message():
            pass
        return self.process.wait()

    def close(self) -> None:
        for peer in self._sockets:
            peer.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
