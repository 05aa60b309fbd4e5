"""One human's session, without I/O: lines in by `feed`, text out by a callable, with a prompt."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.qmp.call import Call

PROMPT: Final = "(qemu) "
LINE_LIMIT: Final = 4095
"""Bytes of a line; the rest of a longer one is dropped."""


class HmpSession:
    """A session of the human monitor. It is used as a `Session` is."""

    def __init__(self, call: Call, write: Callable[[bytes], object]) -> None:
        self._call = call
        self._write = write
        self._line = bytearray()
        self._held = False
        self._waiting: deque[str] = deque()
        """Lines that wait while the client does not read."""
        self._closed = False

    def greet(self) -> None:
        """Send the banner and a prompt."""
        qemu, package = self._call.version["qemu"], self._call.version["package"]
        version = f"{qemu['major']}.{qemu['minor']}.{qemu['micro']}{package}"
        self._say(f"{version} monitor - type 'help' for more information\n{PROMPT}")

    def feed(self, data: bytes) -> None:
        """Take bytes of the client, and run each line that they complete."""
        *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line += line
            text = self._line[:LINE_LIMIT].decode("utf-8", "replace")
            self._line.clear()
            self._waiting.append(text)
        self._line += rest
        del self._line[LINE_LIMIT:]
        self._pump()

    @property
    def wants_input(self) -> bool:
        """False while the client does not read."""
        return not self._held

    def hold(self) -> None:
        """The client does not read: run nothing until `release`."""
        self._held = True

    def release(self) -> None:
        """The client reads again."""
        self._held = False
        self._pump()

    def close(self) -> None:
        """The client is gone."""
        self._closed = True
        self._waiting.clear()

    def _pump(self) -> None:
        from vmm.qmp.hmp import run_hmp  # a greeting needs none of it

        while self._waiting and not (self._held or self._closed):
            line = self._waiting.popleft()
            self._say((run_hmp(self._call.target, self._call.version, line) if line.strip() else "") + PROMPT)

    def _say(self, text: str) -> None:
        if not self._closed:
            self._write(text.replace("\n", "\r\n").encode("utf-8", "replace"))
