"""Monitors on listening sockets, UNIX and TCP.

A listening socket serves one client at a time, as QEMU's chardevs do: a second one connects, waits in the kernel's
backlog, and is greeted when the first leaves. Each client gets a session of its own.

This is how a program in Python serves its own machine; on the command line a monitor is the front end of a character
device (`vmm.qmp.char_monitor`).

A client that does not read costs no more than HIGH_WATER bytes and a little: its commands wait meanwhile. Events cannot
wait; when OUTPUT_LIMIT bytes of them have piled up, the client is disconnected.

Everything here runs on one asyncio loop and never blocks it.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Final, NamedTuple

from vmm.errors import ConfigError
from vmm.qmp.monitor import OUTPUT_LIMIT
from vmm.unix_socket import UnixListener

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.qmp.monitor import Monitor

log = logging.getLogger(__name__)

HIGH_WATER: Final = 1 << 20
"""Bytes that may wait for a client before its commands wait too."""
BACKLOG: Final = 16


class UnixAddress(NamedTuple):
    """A UNIX socket's path. A leading `@` means the abstract name space."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


class TcpAddress(NamedTuple):
    """A TCP host and port; port 0 lets the kernel choose when listening."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:{self.host}:{self.port}"


Address = UnixAddress | TcpAddress


class MonitorConnection(asyncio.Protocol):
    """A client: its session, output with a limit, input on demand."""

    def __init__(self, monitor: Monitor, gone: Callable[[], None]) -> None:
        self.session = monitor.session(self.write, self._adjust)
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._left = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The client is there."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(HIGH_WATER)
        self.session.greet()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The client has left."""
        self.session.close()
        self._transport = None
        self._left.set()
        self._gone()

    def write(self, data: bytes) -> None:
        """Send, or disconnect a client that has too much to read already."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        if transport.get_write_buffer_size() > OUTPUT_LIMIT:
            log.warning("monitor client does not read; disconnected after %d bytes", OUTPUT_LIMIT)
            transport.abort()

    async def close(self, seconds: float = 1.0) -> None:
        """Send what is left, for at most `seconds`, and disconnect."""
        self.session.close()
        transport = self._transport
        if transport is None:
            return
        transport.close()
        try:
            async with asyncio.timeout(seconds):
                await self._left.wait()
        except TimeoutError:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.session.feed(data)
        self._adjust()

    def pause_writing(self) -> None:
        """The client does not read."""
        self.session.hold()
        self._adjust()

    def resume_writing(self) -> None:
        """It reads again."""
        self.session.release()
        self._adjust()

    def _adjust(self) -> None:
        """Read from the client, or let it wait."""
        wanted = self.session.wants_input
        if wanted is self._reading or self._transport is None or self._transport.is_closing():
            return
        self._reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()


class MonitorServer:
    """A listening socket, and the one client it serves."""

    def __init__(self, monitor: Monitor, address: Address) -> None:
        self._monitor = monitor
        self.address: Address = address
        """Where it listens; with TCP port 0, the real port once `start` has returned."""
        self._socket: socket.socket | None = None
        self._unix: UnixListener | None = None
        self._client: MonitorConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Listen. Raises InUse if somebody else does, ConfigError if it cannot be done."""
        try:
            self._socket = self._listen()
        except OSError as error:
            raise ConfigError(f"Failed to listen on {self.address}: {error.strerror or error}") from error
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)

    async def wait_connected(self) -> None:
        """Return once a client is there (`wait=on`)."""
        await self._connected.wait()

    async def close(self) -> None:
        """Stop listening, send the client what is left, disconnect it, remove the socket's file. May be repeated."""
        listener, self._socket = self._socket, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
            if self._unix is not None:
                self._unix.close()
        if self._client is not None:
            await self._client.close()
        self._monitor.cancel()

    def _listen(self) -> socket.socket:
        if isinstance(self.address, UnixAddress):
            self._unix = UnixListener(self.address.path, BACKLOG)
            return self._unix.socket
        infos = socket.getaddrinfo(self.address.host or None, self.address.port, type=socket.SOCK_STREAM)
        family, kind, proto, _, where = infos[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(BACKLOG)
        except BaseException:
            listener.close()
            raise
        self.address = TcpAddress(self.address.host, listener.getsockname()[1])
        return listener

    def _accept(self) -> None:
        listener = self._socket
        if listener is None:
            return
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            log.error("monitor %s cannot accept a client: %s", self.address, error.strerror)
            asyncio.get_running_loop().remove_reader(listener.fileno())
            asyncio.get_running_loop().call_later(1.0, self._listen_again)
            return
        asyncio.get_running_loop().remove_reader(listener.fileno())
        client.setblocking(False)
        connection = self._client = MonitorConnection(self._monitor, self._client_gone)
        self._connecting = asyncio.get_running_loop().create_task(_attach(client, connection, self._client_gone))
        self._connected.set()

    def _client_gone(self) -> None:
        self._client = None
        self._listen_again()

    def _listen_again(self) -> None:
        if self._socket is not None and self._client is None:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._accept)


async def _attach(client: socket.socket, connection: MonitorConnection, failed: Callable[[], None]) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client)
    except OSError as error:
        log.warning("monitor client was lost while connecting: %s", error)
        client.close()
        connection.session.close()
        failed()
