"""A virtual machine as a process: started with QEMU's command line, watched by its serial lines and its monitor.

`vintx demo` and `vintx bench` see a machine as any script does: over a pipe and over QMP, with QEMU's own client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemu.qmp import ConnectError, EventListener, QMPClient

from vmm.errors import VintxError
from vmm.parent_death import end_with

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


ANSWER_S = 60.0
"""Seconds that a monitor may take to answer."""
ENDING_S = 20.0
"""Seconds that a machine may take to end when it is asked to."""


def program() -> str:
    """`vintx-system-x86_64` beside this interpreter, else on the PATH."""
    beside = Path(sys.executable).with_name("vintx-system-x86_64")
    return str(beside) if beside.exists() else shutil.which("vintx-system-x86_64") or "vintx-system-x86_64"


class GuestLost(VintxError):
    """The process ended, or did not say what it should have said in time. `output`: what it said."""

    def __init__(self, message: str, output: str) -> None:
        last = output.strip().splitlines()[-5:]
        super().__init__(message + ("".join(f"\n    {line}" for line in last) if last else ""))
        self.output = output


class MachineProcess:
    """`async with MachineProcess([...]) as vm`: a running machine with its serial port on a pipe and a QMP client.

    `argv` is the whole command without the serial and monitor options; `typing`: the guest reads what `type` sends.
    Leaving the block ends the process, and so does the end of the thread that entered it, whatever ends that: a machine
    never outlives who watches it.
    """

    def __init__(self, argv: list[str], monitor: bool = True, typing: bool = False) -> None:
        self.argv = argv
        self._stdin = asyncio.subprocess.PIPE if typing else asyncio.subprocess.DEVNULL
        self.lines: list[str] = []
        self.first_output: float | None = None
        """Seconds from exec to the first line of the guest."""
        self._monitor = monitor
        self._partial = ""
        self._changed = asyncio.Condition()
        self._client: QMPClient | None = None
        self._deleted: EventListener | None = None

    async def __aenter__(self) -> MachineProcess:
        self._folder = tempfile.TemporaryDirectory(prefix="vintx-")
        argv = [*self.argv, "-serial", "stdio"]
        socket = str(Path(self._folder.name) / "qmp")
        if self._monitor:
            argv += ["-qmp", f"unix:{socket},server=on,wait=off"]
        self._started = time.perf_counter()
        self._process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=self._stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            preexec_fn=partial(end_with, os.getpid()),
        )
        self._errors = asyncio.ensure_future(self._process.stderr.read())  # type: ignore[union-attr]
        self._reader = asyncio.ensure_future(self._read())
        try:
            if self._monitor:
                await self._connect(socket)
        except BaseException:
            await self._end()
            raise
        self._folder.cleanup()  # the connection needs no name any more, and who is killed could not tidy up
        return self

    async def _connect(self, socket: str) -> None:
        await self._until(lambda: Path(socket).exists() or None, 10, "the monitor's socket")
        self._client = QMPClient("vintx")
        self._deleted = EventListener(names=("DEVICE_DELETED",))
        self._client.register_listener(self._deleted)
        tries = 0
        while True:
            try:
                await asyncio.wait_for(self._client.connect(socket), ANSWER_S)
                return
            except TimeoutError:
                raise GuestLost(f"no greeting of the monitor after {ANSWER_S:g} s", "\n".join(self.lines)) from None
            except ConnectError as error:
                tries += 1
                # Between bind and listen the socket is there and refuses.
                if not isinstance(error.exc, ConnectionRefusedError) or tries == 100 or self._reader.done():
                    raise
                await asyncio.sleep(0.01)

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._end()

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), ENDING_S)
        except TimeoutError:  # it is stopped, or hangs
            self._process.kill()
            await self._process.wait()
        await self._reader
        await self._errors
        if self._client is not None:
            with contextlib.suppress(EOFError, OSError):  # the machine hung up first
                await self._client.disconnect()
        self._folder.cleanup()

    async def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while data := await stream.read(65536):
            if self.first_output is None:
                self.first_output = time.perf_counter() - self._started
            text = self._partial + data.decode("utf-8", "replace").replace("\r\n", "\n")
            *whole, self._partial = text.split("\n")
            async with self._changed:
                self.lines += whole
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()

    async def wait(self) -> int:
        """The exit status, once the process has ended and all it said was read."""
        await self._reader
        return await self._process.wait()

    async def _until(self, found: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.perf_counter() + seconds
        while (result := found()) is None:
            if self._reader.done():
                errors = (await self._errors).decode("utf-8", "replace")
                raise GuestLost(f"{self.argv[0]} ended before {what}", "\n".join(self.lines) + errors)
            left = deadline - time.perf_counter()
            if left <= 0:
                raise GuestLost(f"no {what} after {seconds:g} s", "\n".join(self.lines))
            try:
                async with self._changed:
                    await asyncio.wait_for(self._changed.wait(), min(left, 0.01 if self._client is None else 0.5))
            except TimeoutError:
                continue
        return result

    async def line(self, pattern: str, seconds: float = 60, start: int = 0) -> re.Match[str]:
        """The first serial line from number `start` on that matches. GuestLost if none comes in time."""
        wanted = re.compile(pattern)

        def found() -> re.Match[str] | None:
            return next((m for text in self.lines[start:] if (m := wanted.search(text))), None)

        match = await self._until(found, seconds, f"line {pattern!r}")
        assert isinstance(match, re.Match)
        return match

    async def type(self, text: str) -> None:
        """Send input to the guest's serial port. Only of a machine that was made with `typing`."""
        stream = self._process.stdin
        assert stream is not None, "made without typing"
        stream.write(text.encode())
        await stream.drain()

    async def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command; underscores in argument names become dashes. ExecuteError if it is refused, GuestLost
        without an answer.
        """
        assert self._client is not None
        execution = self._client.execute(command, {k.replace("_", "-"): v for k, v in arguments.items()})
        try:
            return await asyncio.wait_for(execution, ANSWER_S)
        except TimeoutError:
            raise GuestLost(f"no answer to {command} after {ANSWER_S:g} s", "\n".join(self.lines)) from None

    async def deleted(self, device: str, seconds: float = 30) -> None:
        """Wait for DEVICE_DELETED of a device."""
        assert self._deleted is not None
        while True:
            try:
                event = await asyncio.wait_for(self._deleted.get(), seconds)
            except TimeoutError:
                raise GuestLost(f"no DEVICE_DELETED of {device} after {seconds:g} s", "\n".join(self.lines)) from None
            data = event["data"]
            if isinstance(data, dict) and data.get("device") == device:
                return
