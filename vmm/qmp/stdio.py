"""A monitor on two descriptors: standard input and output, or any other pair."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, Final

from vmm.errors import ConfigError

if TYPE_CHECKING:
    from vmm.qmp.server import Monitor, MonitorConnection

log = logging.getLogger(__name__)

READ_SIZE: Final = 64 << 10


class StdioMonitor:
    """A monitor on two descriptors.

    They may be pipes, sockets, terminals or files. At end of input the client has left. The descriptors are made
    non-blocking while the monitor is there, and are not closed.
    """

    def __init__(self, monitor: Monitor, input_fd: int = 0, output_fd: int = 1) -> None:
        self._monitor = monitor
        self._input_fd = input_fd
        self._output_fd = output_fd
        self._blocking: list[tuple[int, bool]] = []
        self._connection: MonitorConnection | None = None

    async def start(self) -> None:
        """Greet and read. Raises ConfigError if a descriptor is not open."""
        loop = asyncio.get_running_loop()
        connection = self._connection = self._monitor.connection(self._gone)
        try:
            self._blocking = [(fd, os.get_blocking(fd)) for fd in (self._input_fd, self._output_fd)]
            output = os.fdopen(os.dup(self._output_fd), "wb", buffering=0)
            try:
                await loop.connect_write_pipe(lambda: _Output(connection), output)
            except (ValueError, PermissionError):  # A file, or a device that is always ready.
                connection.output_ready(_FileOutput(connection, self._output_fd))
            source = os.fdopen(os.dup(self._input_fd), "rb", buffering=0)
            try:
                await loop.connect_read_pipe(lambda: connection, source)
            except (ValueError, PermissionError):
                connection.connection_made(_FileInput(connection, self._input_fd))
        except OSError as error:
            connection.session.close()
            raise ConfigError(f"A monitor cannot use standard input and output: {error.strerror}") from error

    async def close(self) -> None:
        """Send what is left, and leave the descriptors as they were. May be repeated."""
        if self._connection is not None:
            await self._connection.close()
        self._monitor.cancel()
        for fd, blocking in self._blocking:
            os.set_blocking(fd, blocking)
        self._blocking.clear()

    def _gone(self) -> None:
        self._connection = None


class _FileInput(asyncio.ReadTransport):
    """The reading side of a file: always ready, so it is read a piece each turn of the loop."""

    def __init__(self, connection: MonitorConnection, fd: int) -> None:
        super().__init__()
        self._connection = connection
        self._fd = fd
        self._paused = False
        self._closed = False
        asyncio.get_running_loop().call_soon(self._read)

    def _read(self) -> None:
        if self._paused or self._closed:
            return
        data = os.read(self._fd, READ_SIZE)
        if not data:
            self._connection.connection_lost(None)
            return
        self._connection.data_received(data)
        asyncio.get_running_loop().call_soon(self._read)

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`."""
        self._paused = True

    def resume_reading(self) -> None:
        """Read on."""
        self._paused = False
        asyncio.get_running_loop().call_soon(self._read)

    def is_closing(self) -> bool:
        """True after `close`."""
        return self._closed

    def close(self) -> None:
        """Read no more."""
        self._closed = True


class _FileOutput(asyncio.WriteTransport):
    """The writing side of a file: it takes everything at once."""

    def __init__(self, connection: MonitorConnection, fd: int) -> None:
        super().__init__()
        self._connection = connection
        self._fd = fd
        self._closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of it. A file that takes no more ends the session."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            log.error("monitor output: %s", error.strerror)
            self.close()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever buffered."""

    def get_write_buffer_size(self) -> int:
        """Always 0."""
        return 0

    def is_closing(self) -> bool:
        """True after `close`."""
        return self._closed

    def close(self) -> None:
        """Write no more."""
        if not self._closed:
            self._closed = True
            asyncio.get_running_loop().call_soon(self._connection.connection_lost, None)

    def abort(self) -> None:
        """The same as `close`."""
        self.close()


class _Output(asyncio.Protocol):
    """The writing side of a monitor whose two directions are two descriptors."""

    def __init__(self, connection: MonitorConnection) -> None:
        self._connection = connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The descriptor can be written to."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._connection.output_ready(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody reads any more."""
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader is slow."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """It reads again."""
        self._connection.resume_writing()
