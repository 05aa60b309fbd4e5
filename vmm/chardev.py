"""Character devices: where the bytes of a serial port, a console or a monitor go, and come from.

A `CharBackend` is one end; its front end (a UART, say) attaches with `connect`. Output never blocks the machine:
`write` buffers, and the event loop's next turn hands the whole buffer to the host in one call. When the host does
not take it and the buffer is full, `write` takes nothing and the front end hears `writable()` later. Input is read
only as fast as the front end says it can take it.

Without an event loop (`start` was not called) output goes out when the buffer is half full, on `flush` and on `close`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, BinaryIO, ClassVar, Literal, Protocol

from vmm.errors import ConfigError, InUse

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

CharEvent = Literal["opened", "closed", "break"]

BUFFER_SIZE = 64 * 1024
"""Output that a backend holds back at most, in bytes."""
_READ_SIZE = 4096


class CharFrontend(Protocol):
    """Who uses a backend."""

    def can_receive(self) -> int:
        """How many bytes it can take now."""

    def receive(self, data: bytes) -> None:
        """Input; never more than `can_receive` said."""

    def char_event(self, event: CharEvent) -> None:
        """The other side came, went, or sent a break."""

    def writable(self) -> None:
        """The backend takes output again after `write` had refused some."""


class CharBackend:
    """Base of all backends. `id` names it; `filename` is what query-chardev shows."""

    kind: ClassVar[str] = ""

    def __init__(self, id: str) -> None:
        self.id = id
        self.frontend: CharFrontend | None = None
        self.open = True
        """Somebody is at the other side."""
        self.log: BinaryIO | None = None
        self.on_exit: Callable[[], None] = lambda: None
        """The user at the other side wants the machine to end (Ctrl-A x, where several share a terminal)."""
        self._out = bytearray()
        self._refused = False
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def filename(self) -> str:
        """How query-chardev names it."""
        return self.kind

    # The front end's side.

    def connect(self, frontend: CharFrontend) -> None:
        """Attach the front end. InUse if there is one."""
        if self.frontend is not None:
            raise InUse(f"Device '{self.id}' is in use", self.id)
        self.frontend = frontend
        if self.open:
            frontend.char_event("opened")

    def shared(self) -> CharBackend | None:
        """What one of several users has of it; None where there can be one user only."""
        return None

    def disconnect(self) -> None:
        """The front end goes; what it wrote is still delivered."""
        self.frontend = None
        self._refused = False

    def write(self, data: bytes) -> int:
        """Send bytes; how many were taken. Less than all only when the buffer is full: `writable()` comes later."""
        out = self._out
        room = BUFFER_SIZE - len(out)
        if room < len(data):
            self.flush()
            room = BUFFER_SIZE - len(out)
            if room < len(data):
                self._refused = True
                data = data[:room]
        out += data
        if self._loop is None:
            if len(out) >= BUFFER_SIZE // 2:
                self.flush()
        elif not self._scheduled:
            if self._loop.is_closed():
                self._loop = None
            else:
                self._scheduled = True
                self._loop.call_soon(self._turn)
        return len(data)

    def accept_input(self) -> None:
        """The front end has room again."""

    def flush(self) -> None:
        """Hand over as much output as the host takes without blocking."""
        if not self._out:
            return
        sent = self._send(self._out)
        if sent:
            if self.log is not None:
                self.log.write(self._out[:sent])
                self.log.flush()
            del self._out[:sent]
            if self._refused:
                self._refused = False
                if self.frontend is not None:
                    self.frontend.writable()

    # What a kind of backend does.

    def _send(self, data: bytearray) -> int:
        """Hand bytes to the host without blocking; how many it took. A reader that is gone takes all."""
        raise NotImplementedError

    def _wait_writable(self) -> None:
        """Output is left over: see to it that `_turn` is called once the host takes more."""

    def _turn(self) -> None:
        self._scheduled = False
        self.flush()
        if self._out:
            self._wait_writable()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve this backend from `loop`; a second call moves it to another loop, the first having ended."""
        self._loop = loop
        self._scheduled = False
        if self._out:
            self._scheduled = True
            loop.call_soon(self._turn)

    def close(self) -> None:
        """Flush, then let go of everything. A second close does nothing."""
        self.flush()
        self._loop = None
        self.open = False
        if self.log is not None:
            self.log.close()
            self.log = None

    def log_to(self, path: str, append: bool = False) -> None:
        """Copy all output to a file too. ConfigError if it cannot be opened."""
        self.log = _open(self.id, path, "ab" if append else "wb")

    def hang_up(self) -> None:
        """Cut the connection to the other side, where there is one."""

    def send_break(self) -> None:
        """chardev-send-break."""
        self._event("break")

    def _event(self, event: CharEvent) -> None:
        if event != "break":
            self.open = event == "opened"
        if self.frontend is not None:
            self.frontend.char_event(event)


class Chardevs(dict[str, CharBackend]):
    """The character devices of a machine, by id. Once `serve` was called, a new one is served at once."""

    def __init__(self) -> None:
        super().__init__()
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, backend: CharBackend, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Take one in. InUse if its id is taken; it is closed then. `loop`: serve it from there at once."""
        if backend.id in self:
            backend.close()
            raise InUse(f"Chardev with id '{backend.id}' already exists", holder=backend.id)
        self[backend.id] = backend
        loop = loop or self._loop
        if loop is not None:
            backend.start(loop)

    def remove(self, id: str) -> None:
        """Close one and forget it."""
        self.pop(id).close()

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve all from a loop."""
        self._loop = loop
        for backend in list(self.values()):
            backend.start(loop)

    def close(self) -> None:
        """Close all."""
        self._loop = None
        for backend in self.values():
            backend.close()


class NullBackend(CharBackend):
    """Takes everything, gives nothing."""

    kind = "null"

    def _send(self, data: bytearray) -> int:
        return len(data)


class MemoryBackend(CharBackend):
    """Keeps output in memory, for scripts and tests: `output` has it, `feed` is input.

    `size`: keep only the last so many bytes (QEMU's ringbuf); None: all.
    """

    kind = "ringbuf"

    def __init__(self, id: str, size: int | None = None) -> None:
        super().__init__(id)
        if size is not None and (size <= 0 or size & (size - 1)):
            raise ConfigError("size of ringbuf chardev must be power of two")
        self.size = size
        self._kept = bytearray()
        self._input = bytearray()

    @property
    def output(self) -> bytes:
        """What was written and is kept."""
        self.flush()
        return bytes(self._kept)

    def take(self, limit: int | None = None) -> bytes:
        """Remove and return the oldest output (ringbuf-read)."""
        self.flush()
        data = bytes(self._kept[:limit])
        del self._kept[: len(data)]
        return data

    def feed(self, data: bytes) -> None:
        """Input for the front end, delivered as fast as it takes it."""
        self._input += data
        self.accept_input()

    def accept_input(self) -> None:
        frontend = self.frontend
        while self._input and frontend is not None and (room := frontend.can_receive()) > 0:
            data = bytes(self._input[:room])
            del self._input[: len(data)]
            frontend.receive(data)

    def _send(self, data: bytearray) -> int:
        self._kept += data
        if self.size is not None and len(self._kept) > self.size:
            del self._kept[: len(self._kept) - self.size]
        return len(data)


class FdBackend(CharBackend):
    """Reads one descriptor and writes another; both may be None, and may be the same."""

    def __init__(self, id: str, read_fd: int | None, write_fd: int | None, owned: bool = True) -> None:
        super().__init__(id)
        self._in_fd = read_fd
        self._out_fd = write_fd
        self._owned = owned
        self._reading = False
        self._waiting = False

    def _send(self, data: bytearray) -> int:
        fd = self._out_fd
        if fd is None:
            return len(data)
        done = 0
        with memoryview(data) as view:
            while done < len(data):
                try:
                    done += os.write(fd, view[done:])
                except BlockingIOError:
                    break
                except OSError:  # the reader is gone: nobody will ever take it
                    done = len(data)
        return done

    def _wait_writable(self) -> None:
        if self._loop is not None and self._out_fd is not None and not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._out_fd, self._can_write)

    def _can_write(self) -> None:
        if self._loop is not None and self._out_fd is not None:
            self._loop.remove_writer(self._out_fd)
        self._waiting = False
        self._turn()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._reading = self._waiting = False
        super().start(loop)
        self.accept_input()

    def accept_input(self) -> None:
        wanted = self.frontend is not None and self.frontend.can_receive() > 0
        if self._loop is None or self._in_fd is None or wanted == self._reading:
            return
        if wanted:
            try:
                self._loop.add_reader(self._in_fd, self._can_read)
            except OSError:  # a regular file or /dev/null as input cannot be polled: it is always readable
                self._loop.call_soon(self._can_read)
                return
        else:
            self._loop.remove_reader(self._in_fd)
        self._reading = wanted

    def connect(self, frontend: CharFrontend) -> None:
        super().connect(frontend)
        self.accept_input()

    def disconnect(self) -> None:
        super().disconnect()
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading and self._loop is not None and self._in_fd is not None:
            self._loop.remove_reader(self._in_fd)
        self._reading = False

    def _can_read(self) -> None:
        fd, frontend = self._in_fd, self.frontend
        if fd is None or frontend is None or self._loop is None:
            return
        room = frontend.can_receive()
        if room > 0:
            try:
                data = os.read(fd, min(room, _READ_SIZE))
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._end_of_input()
                return
            self._received(data)
        self.accept_input()

    def _received(self, data: bytes) -> None:
        if self.frontend is not None:
            self.frontend.receive(data)

    def _end_of_input(self) -> None:
        """Nothing more will come from there."""
        self._stop_reading()
        self._in_fd = None

    def close(self) -> None:
        self._stop_reading()
        if self._waiting and self._loop is not None and self._out_fd is not None:
            self._loop.remove_writer(self._out_fd)
        self._waiting = False
        super().close()
        fds = {fd for fd in (self._in_fd, self._out_fd) if fd is not None}
        self._in_fd = self._out_fd = None
        if self._owned:
            for fd in fds:
                os.close(fd)


class StdioBackend(FdBackend):
    """The process's own input and output. A terminal is put in raw mode and put back by `close`.

    `signal`: keep Ctrl-C and the like as signals. There is one stdio: a second backend on it is refused by InUse.
    """

    kind = "stdio"
    _owner: ClassVar[str | None] = None

    def __init__(self, id: str, signal: bool = True) -> None:
        if StdioBackend._owner is not None:
            raise InUse(f"cannot use stdio by multiple character devices: '{self._owner}' has it", self._owner or "")
        super().__init__(id, 0, 1, owned=False)
        StdioBackend._owner = id
        self._closed = False
        sys.stdout.flush()
        self._blocking = {fd: os.get_blocking(fd) for fd in (0, 1) if _is_open(fd)}
        if 0 not in self._blocking:
            self._in_fd = None
        if 1 not in self._blocking:
            self._out_fd = None
        self._terminal = _raw_terminal(signal) if self._in_fd is not None else None

    def _send(self, data: bytearray) -> int:
        # Not blocking only while we write: the terminal's file is shared with the shell and with stderr.
        if self._out_fd is None or not self._blocking[1]:
            return super()._send(data)
        os.set_blocking(1, False)
        try:
            return super()._send(data)
        finally:
            os.set_blocking(1, True)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        super().close()
        if self._out and 1 in self._blocking:  # the last words are worth waiting for
            with open(1, "wb", closefd=False) as stdout:
                stdout.write(self._out)
            self._out.clear()
        if self._terminal is not None:
            self._terminal()
        StdioBackend._owner = None


class FileBackend(FdBackend):
    """Output to a file, cut at first unless `append`; input from `input_path`."""

    kind = "file"

    def __init__(self, id: str, path: str, append: bool = False, input_path: str | None = None) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if append else os.O_TRUNC)
        out = _os_open(id, path, flags)
        try:
            read = None if input_path is None else _os_open(id, input_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except ConfigError:
            os.close(out)
            raise
        super().__init__(id, read, out)


class PipeBackend(FdBackend):
    """Named pipes PATH.in and PATH.out if they exist, else PATH itself both ways."""

    kind = "pipe"

    def __init__(self, id: str, path: str) -> None:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        if os.path.exists(f"{path}.in") and os.path.exists(f"{path}.out"):  # noqa: PTH110
            read = _os_open(id, f"{path}.in", flags)
            try:
                write = _os_open(id, f"{path}.out", flags)
            except ConfigError:
                os.close(read)
                raise
            super().__init__(id, read, write)
        else:
            fd = _os_open(id, path, flags & ~os.O_CREAT)
            super().__init__(id, fd, fd)


class PtyBackend(FdBackend):
    """A new pseudo-terminal; `name` is the side for the other program. ConfigError where there are none."""

    kind = "pty"

    def __init__(self, id: str) -> None:
        import termios
        import tty

        fds: tuple[int, ...] = ()
        try:
            ours, theirs = fds = os.openpty()
            tty.setraw(theirs)
            self.name = os.ttyname(theirs)
        except (OSError, termios.error) as error:
            for fd in fds:
                os.close(fd)
            reason = error.args[-1] if error.args else error
            raise ConfigError(
                f"chardev {id}: cannot make a pseudo-terminal: {reason}; is devpts mounted on /dev/pts?"
            ) from error
        self._theirs = theirs  # kept open, so that the first reader's close does not hang up
        os.set_blocking(ours, False)
        super().__init__(id, ours, ours)

    @property
    def filename(self) -> str:
        return f"pty:{self.name}"

    def close(self) -> None:
        super().close()
        if self._theirs >= 0:
            os.close(self._theirs)
            self._theirs = -1


def _open(id: str, path: str, mode: Literal["ab", "wb"]) -> BinaryIO:
    try:
        return open(path, mode)  # noqa: PTH123  (a user's path, as it is; and pathlib takes long to import)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"chardev {id}: cannot open '{path}': {reason}") from error


def _os_open(id: str, path: str, flags: int) -> int:
    try:
        return os.open(path, flags, 0o666)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"chardev {id}: cannot open '{path}': {reason}") from error


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _raw_terminal(signal: bool) -> Callable[[], None] | None:
    """Switch the terminal on descriptor 0 to raw mode; the call that puts it back. None if it is none."""
    import termios

    try:
        before = termios.tcgetattr(0)
    except termios.error:
        return None
    raw = termios.tcgetattr(0)
    raw[0] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    raw[1] |= termios.OPOST
    raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.IEXTEN)
    if not signal:
        raw[3] &= ~termios.ISIG
    raw[6][termios.VMIN] = 1
    raw[6][termios.VTIME] = 0
    termios.tcsetattr(0, termios.TCSANOW, raw)
    return lambda: termios.tcsetattr(0, termios.TCSANOW, before)
