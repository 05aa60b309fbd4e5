"""Monitors on real sockets. Nothing here waits for a clock: each step waits for what must come."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from qemu.qmp import QMPClient

from support.qmp_target import PACKAGE, FakeTarget
from vmm.errors import ConfigError, InUse
from vmm.qmp import server as server_module
from vmm.qmp.command import Command
from vmm.qmp.events import Events
from vmm.qmp.monitor import Monitor, make_call
from vmm.qmp.server import MonitorServer, TcpAddress, UnixAddress

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Peer:
    """A raw client: bytes out, one JSON message a line in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, path: str) -> Peer:
        return cls(*await asyncio.open_unix_connection(path, limit=1 << 24))

    def send(self, *messages: dict[str, Any]) -> None:
        self.writer.write(b"".join(json.dumps(message).encode() for message in messages))

    async def receive(self) -> Any:
        line = await self.reader.readline()
        return json.loads(line) if line else None

    async def negotiate(self) -> None:
        assert "QMP" in await self.receive()
        self.send({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}})
        assert await self.receive() == {"return": {}}

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()


class Setup:
    """A fake machine with a monitor that listens on a UNIX socket."""

    def __init__(self, tmp_path: Path, mode: str = "control") -> None:
        self.path = str(tmp_path / "qmp.sock")
        self.events = Events()
        self.target = FakeTarget(self.events)
        self.monitor = Monitor(make_call(self.target, PACKAGE), self.events, mode)
        self.server = MonitorServer(self.monitor, UnixAddress(self.path))
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        self.monitor.call.registry.add(Command("x-wait", self._wait))
        self.monitor.call.registry.add(Command("x-big", lambda call, given: "x" * (1 << 20)))  # noqa: ARG005

    async def _wait(self, call: Any, arguments: Any) -> str:  # noqa: ARG002
        self.entered.set()
        await self.gate.wait()
        self.left.set()
        return "waited"


def served(tmp_path: Path, scenario: Callable[[Setup], Awaitable[None]], mode: str = "control") -> Setup:
    """Run a scenario against a listening monitor."""

    async def main() -> Setup:
        setup = Setup(tmp_path, mode)
        await setup.server.start()
        try:
            await scenario(setup)
        finally:
            await setup.server.close()
        return setup

    return asyncio.run(main())


def test_qmp_client_of_qemu_negotiates_executes_and_gets_events(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        client = QMPClient("test")
        await client.connect(setup.path)
        assert await client.execute("query-status") == {"status": "running", "running": True}
        assert await client.execute("x-query-ledger", oob=True) == []
        with client.listener("STOP") as listener:
            await client.execute("stop")
            event = await listener.get()
        assert event["event"] == "STOP"
        assert set(event["timestamp"]) == {"seconds", "microseconds"}
        await client.disconnect()

    served(tmp_path, scenario)


def test_second_client_is_greeted_when_the_first_leaves(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        first = await Peer.connect(setup.path)
        await first.negotiate()
        second = await Peer.connect(setup.path)
        second.send({"execute": "query-name", "id": "early"})
        first.send({"execute": "stop"})
        assert (await first.receive())["event"] == "STOP"
        assert second.reader._buffer == b""  # type: ignore[attr-defined]  # connected, and not greeted
        await first.close()
        assert "QMP" in await second.receive()
        assert (await second.receive())["error"]["class"] == "CommandNotFound"

    served(tmp_path, scenario)


def test_client_killed_in_the_middle_of_a_command_harms_nobody(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        first = await Peer.connect(setup.path)
        await first.negotiate()
        first.send({"execute": "x-wait"}, {"execute": "stop"})
        await setup.entered.wait()
        first.writer.write(b'{"execute": "sto')
        first.writer.transport.abort()
        second = await Peer.connect(setup.path)
        await second.negotiate()
        setup.gate.set()
        await setup.left.wait()
        second.send({"execute": "query-status"})
        assert (await second.receive())["return"]["status"] == "running"

    served(tmp_path, scenario)


def test_reply_of_oob_command_overtakes_one_that_waits(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        peer = await Peer.connect(setup.path)
        await peer.negotiate()
        peer.send({"execute": "x-wait", "id": 1}, {"exec-oob": "x-query-irqchip", "id": 2})
        assert (await peer.receive())["id"] == 2
        setup.gate.set()
        assert await peer.receive() == {"return": "waited", "id": 1}

    served(tmp_path, scenario)


def test_input_beyond_the_queue_waits_in_the_socket_and_is_answered_in_order(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        peer = await Peer.connect(setup.path)
        await peer.negotiate()
        peer.send({"execute": "x-wait", "id": -1})
        await setup.entered.wait()
        for n in range(200):
            peer.send({"execute": "query-name", "id": n})
            await asyncio.sleep(0)
        setup.gate.set()
        assert [(await peer.receive())["id"] for _ in range(201)] == list(range(-1, 200))

    served(tmp_path, scenario)


def test_reader_that_is_slow_makes_its_commands_wait_and_loses_nothing(tmp_path: Path) -> None:
    wanted = 12

    async def scenario(setup: Setup) -> None:
        ran = 0

        def big(call: Any, arguments: Any) -> str:  # noqa: ARG001
            nonlocal ran
            ran += 1
            return "x" * (1 << 20)

        setup.monitor.call.registry.add(Command("x-bigger", big))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, setup.path)
            await loop.sock_sendall(client, b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
            await loop.sock_sendall(client, b'{"execute":"x-bigger"}' * wanted)
            while ran == 0:
                await asyncio.sleep(0)
            for _ in range(50):
                await asyncio.sleep(0)
            assert ran < 4
            lines = 0
            while lines < wanted + 2:
                lines += (await loop.sock_recv(client, 1 << 22)).count(b"\n")
            assert ran == wanted

    served(tmp_path, scenario)


def test_reader_that_never_reads_is_disconnected_when_events_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "OUTPUT_LIMIT", 1 << 20)

    async def scenario(setup: Setup) -> None:
        deaf = await Peer.connect(setup.path)
        await deaf.negotiate()
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        waiting = await Peer.connect(setup.path)
        for _ in range(40):
            setup.events.emit("X_BIG", {"text": "x" * (1 << 16)})
        await waiting.negotiate()

    served(tmp_path, scenario)


def test_socket_is_private_and_gone_after_close(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        mode = Path(setup.path).stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600

    setup = served(tmp_path, scenario)
    assert not Path(setup.path).exists()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(tmp_path / "qmp.sock"))

    async def scenario(setup: Setup) -> None:
        peer = await Peer.connect(setup.path)
        await peer.negotiate()

    served(tmp_path, scenario)


def test_path_that_is_in_use_or_no_socket_is_refused_and_left_alone(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        with pytest.raises(InUse, match="another process listens"):
            await MonitorServer(setup.monitor, UnixAddress(setup.path)).start()
        precious = tmp_path / "precious"
        precious.write_text("kept")
        with pytest.raises(InUse, match="no socket"):
            await MonitorServer(setup.monitor, UnixAddress(str(precious))).start()
        assert precious.read_text() == "kept"
        with pytest.raises(ConfigError, match="No such file"):
            await MonitorServer(setup.monitor, UnixAddress(str(tmp_path / "no" / "dir"))).start()
        await (await Peer.connect(setup.path)).negotiate()

    served(tmp_path, scenario)


def test_socket_of_another_that_took_the_path_is_not_removed(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        Path(setup.path).unlink()
        Path(setup.path).write_text("somebody else's")

    setup = served(tmp_path, scenario)
    assert Path(setup.path).read_text() == "somebody else's"


def test_tcp_server_serves_and_tells_its_port(tmp_path: Path) -> None:
    async def main() -> None:
        setup = Setup(tmp_path)
        server = MonitorServer(setup.monitor, TcpAddress("127.0.0.1", 0))
        await server.start()
        assert isinstance(server.address, TcpAddress)
        peer = Peer(*await asyncio.open_connection("127.0.0.1", server.address.port))
        await server.wait_connected()
        await peer.negotiate()
        await server.close()
        assert await peer.receive() is None

    asyncio.run(main())


def test_human_monitor_answers_lines_with_a_prompt(tmp_path: Path) -> None:
    async def scenario(setup: Setup) -> None:
        reader, writer = await asyncio.open_unix_connection(setup.path)
        banner = await reader.readuntil(b"(qemu) ")
        assert b"monitor - type 'help' for more information\r\n" in banner
        writer.write(b"info sta")
        writer.write(b"tus\r\nnosuch\n")
        assert await reader.readuntil(b"(qemu) ") == b"VM status: running\r\n(qemu) "
        assert await reader.readuntil(b"(qemu) ") == b"unknown command: 'nosuch'\r\n(qemu) "
        writer.close()

    served(tmp_path, scenario, mode="readline")


def test_unknown_mode_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError, match="use control or readline"):
            Setup(tmp_path, mode="loud")

    asyncio.run(main())
