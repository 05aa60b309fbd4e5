"""The pytest plug-in: the `vm` fixture gives a machine, its QMP client and its trace.

    def test_unplug_leaves_nothing_behind(vm):
        guest = vm("pc", kernel=guest_images.path("hotplug"))
        guest.wait_serial("hotplug: ready")
        before = guest.machine.ledger.snapshot()
        guest.qmp("device_add", driver="edu", id="e0")
        guest.wait_serial("handled 1000 spurious 0")
        guest.qmp("device_del", id="e0")
        guest.wait_event("DEVICE_DELETED")
        assert guest.machine.ledger.difference(before) == ([], [])

The machine runs in the test's own process and on its thread, and only while the test waits: between two calls nothing
moves. Waiting is for something to be seen, never for time; a limit of 60 s only ends a test that waits in vain.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qemu.qmp import QMPClient

    from machine import Machine
    from vmm.chardev import MemoryBackend
    from vmm.qmp.server import MonitorServer
    from vmm.trace import Recording

PATIENCE = 60.0
"""Seconds after which a wait is given up and the test fails."""


class Guest:
    """A machine under test: `machine`, `trace` (a `Recording`), `serial` (what the guest wrote), and its monitor."""

    def __init__(self, machine: Machine, serial: MemoryBackend, trace: Recording, runner: asyncio.Runner) -> None:
        self.machine = machine
        self.trace = trace
        self.events: list[dict[str, Any]] = []
        """QMP events so far: {"event": name, "data": {...}}."""
        self.exit_status: int | None = None
        self._serial = serial
        self._runner = runner
        self._client: QMPClient | None = None
        self._server: MonitorServer | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._task: asyncio.Task[int] | None = None
        machine.on_event(lambda name, data: self.events.append({"event": name, "data": data}))

    @property
    def serial(self) -> str:
        """Everything that the guest has written to its serial port."""
        return self._serial.output.decode("latin-1").replace("\r\n", "\n")

    def forget(self) -> None:
        """Drop what was seen so far: serial output, events, trace. Between two rounds of a long run."""
        self._serial.take()
        self.events.clear()
        self.trace.clear()

    def type(self, text: str) -> None:
        """Send input to the guest's serial port."""
        self._serial.feed(text.encode())

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Execute a QMP command over a real socket with QEMU's client; `x_host_object` is sent as `x-host-object`.

        `qemu.qmp.ExecuteError` if it is refused: class in `.error_class`, description in `str()`.
        """
        return self._runner.run(self._execute(command, {k.replace("_", "-"): v for k, v in arguments.items()}))

    async def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        self._ensure_running()
        if self._client is None:
            await self._connect()
        assert self._client is not None
        return await self._client.execute(command, arguments or None)

    async def _connect(self) -> None:
        from qemu.qmp import QMPClient

        from vmm.qmp.machine_target import monitor_of
        from vmm.qmp.server import MonitorServer, UnixAddress

        self._folder = tempfile.TemporaryDirectory(prefix="vintx-")
        path = str(Path(self._folder.name) / "qmp")
        self._server = MonitorServer(monitor_of(self.machine), UnixAddress(path))
        await self._server.start()
        self._client = QMPClient("vm")
        self._client.events.event_filter = lambda _: False  # it would keep every event; `self.events` has them
        await self._client.connect(path)

    def _ensure_running(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self.machine.run())

    def wait_for(self, condition: Callable[[], Any], what: str = "the condition") -> Any:
        """Let the machine run until `condition()` is true, and return its value."""
        return self._runner.run(self._wait_for(condition, what))

    async def _wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        self._ensure_running()
        assert self._task is not None
        deadline = asyncio.get_running_loop().time() + PATIENCE
        while not (value := condition()):
            if self._task.done():
                self._task.result()
                pytest.fail(f"the machine ended before {what}; serial:\n{self.serial[-2000:]}")
            if asyncio.get_running_loop().time() > deadline:
                pytest.fail(f"no {what} within {PATIENCE:g} s; serial:\n{self.serial[-2000:]}")
            await asyncio.sleep(0.001)
        return value

    def wait_serial(self, pattern: str) -> re.Match[str]:
        """Let the machine run until what the guest wrote matches; `^` and `$` match at lines."""
        wanted = re.compile(pattern, re.MULTILINE)
        match = self.wait_for(lambda: wanted.search(self.serial), f"serial output {pattern!r}")
        assert isinstance(match, re.Match)
        return match

    def wait_event(self, name: str, **data: Any) -> dict[str, Any]:
        """Let the machine run until a QMP event of that name with that data was emitted; each is returned once."""

        def found() -> dict[str, Any] | None:
            for i, event in enumerate(self.events):
                if event["event"] == name and data.items() <= event["data"].items():
                    return self.events.pop(i)
            return None

        event = self.wait_for(found, f"event {name}")
        assert isinstance(event, dict)
        return event

    def wait_exit(self) -> int:
        """Let the machine run to its end; the exit status of its process."""
        return self._runner.run(self._finish())

    async def _finish(self) -> int:
        self._ensure_running()
        assert self._task is not None
        async with asyncio.timeout(PATIENCE):
            self.exit_status = await asyncio.shield(self._task)
        return self.exit_status

    def close(self) -> None:
        """End the machine and give everything back."""
        try:
            self._runner.run(self._close())
        finally:
            if self._folder is not None:
                self._folder.cleanup()
            self.machine.close()

    async def _close(self) -> None:
        if self._client is not None:
            with contextlib.suppress(EOFError, OSError):
                await self._client.disconnect()
        if self._task is not None:
            self.machine.quit()
            await self._task
        if self._server is not None:
            await self._server.close()


@pytest.fixture
def vm() -> Iterator[Callable[..., Guest]]:
    """`vm(type, **config)`: makes machines that the test drives and that are ended after it.

    Keywords are those of `machine.MachineConfig` (`kernel`, `append`, `cpus`, `ram_size`, `options`, ...), and
    `objects` and `devices`: lists of object-add and device_add arguments for what is there from the start. The first
    serial port is kept in `.serial`, every trace event in `.trace` (`trace=False`: none, for long runs).
    """
    from machine import Machine, MachineConfig
    from vmm.chardev import MemoryBackend
    from vmm.trace import Recording

    guests: list[Guest] = []
    with asyncio.Runner() as runner:

        def make(
            name: str = "pc",
            *,
            devices: list[dict[str, object]] | None = None,
            objects: list[dict[str, object]] | None = None,
            trace: bool = True,
            **config: Any,
        ) -> Guest:
            serial = MemoryBackend("serial0")
            config.setdefault("ram_size", 32 << 20)
            if config.get("kernel") is not None:
                config["kernel"] = str(config["kernel"])
            machine = Machine.create(name, MachineConfig(serial=[serial], **config))
            recording = Recording()
            if trace:
                machine.trace.listen(recording)
            guest = Guest(machine, serial, recording, runner)
            guests.append(guest)
            for given in objects or ():
                machine.object_add(given)
            for given in devices or ():
                machine.device_add(given)
            return guest

        try:
            yield make
        finally:
            for guest in reversed(guests):
                guest.close()
