"""A QEMU that runs one of our guest images: its serial console by lines, and QMP."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import re
    from types import TracebackType

import guest_images

QEMU = shutil.which("qemu-system-x86_64")
ABSENT = "qemu-system-x86_64 is not installed"


class QemuGuest:
    """`image` on QEMU TCG `pc`, as a context manager that leaves no process behind."""

    def __init__(self, image: str, append: str = "", *options: str) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(60)
        command = [str(QEMU), "-accel", "tcg", "-M", "pc", "-nodefaults", "-display", "none", "-serial", "stdio"]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4"]
        command += ["-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
        command += ["-kernel", str(guest_images.path(image)), "-append", append, *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[theirs.fileno()]
        )
        theirs.close()
        self.console = ""
        """All that was read so far."""
        self.events: list[dict[str, Any]] = []
        self._socket = ours
        self._qmp = ours.makefile("rw")
        self._greeted = False

    def __enter__(self) -> QemuGuest:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.communicate()
        self._qmp.close()
        self._socket.close()

    def line(self) -> str:
        """The next line of the console. EOFError when QEMU ended."""
        text = self.process.stdout.readline()
        if not text:
            raise EOFError(self.console)
        self.console += text
        return text.rstrip("\n")

    def wait_for(self, pattern: re.Pattern[str] | str) -> Any:
        """Read up to the first line that is the text, or matches the pattern; returns the match."""
        while True:
            line = self.line()
            if isinstance(pattern, str):
                if line == pattern:
                    return line
            elif match := pattern.match(line):
                return match

    def finish(self) -> int:
        """Read to the end; the exit status."""
        self.console += self.process.stdout.read()
        return self.process.wait()

    def send(self, data: bytes) -> None:
        """Type on the console."""
        self.process.stdin.write(data.decode())
        self.process.stdin.flush()

    def qmp(self, execute: str, **arguments: object) -> Any:
        """Execute a command; its return value. AssertionError for an error reply."""
        if not self._greeted:
            self._greeted = True
            self._read()
            self.qmp("qmp_capabilities")
        self._qmp.write(json.dumps({"execute": execute, "arguments": arguments}) + "\n")
        self._qmp.flush()
        while "event" in (message := self._read()):
            self.events.append(message)
        assert "return" in message, f"{execute}: {message}"
        return message["return"]

    def wait_event(self, name: str, **data: object) -> dict[str, Any]:
        """The next (or an unread) event of that name and data."""
        while True:
            for event in self.events:
                if event["event"] == name and data.items() <= event.get("data", {}).items():
                    self.events.remove(event)
                    return event
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        return json.loads(self._qmp.readline())
