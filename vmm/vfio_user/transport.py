"""The one place that touches a socket: messages in, messages out, descriptors with them.

Reading takes the header first and then the rest of its message, so that descriptors are those of the message at
hand; or, with `ahead`, whatever is there, and then they are those of the last message that begins in it: the kernel
ends a read behind bytes that came with descriptors. Each message goes out in one piece if the kernel takes it so, with
its descriptors on the first byte.
Ref: unix(7)
"""

from __future__ import annotations

import array
import contextlib
import errno
import os
import select
import socket
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import ConfigError, InUse
from vmm.vfio_user.protocol import HEADER, HEADER_SIZE, SCM_MAX_FD, TYPE_MASK, TYPE_REPLY
from vmm.vfio_user.stream import Message, MessageStream, close_all

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PATH = 107
"""Bytes that the name of a UNIX socket may have."""
PATIENCE = 5.0
"""Seconds that a peer may take to read what we send, or to answer."""

# As plain numbers: an IntFlag makes another IntFlag of each operation.
_CTRUNC, _CLOEXEC, _NOSIGNAL = int(socket.MSG_CTRUNC), int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_NOSIGNAL)
_ANCILLARY = socket.CMSG_SPACE(4 * SCM_MAX_FD)
"""With room for that many descriptors none is ever cut off."""


class PeerGone(ConnectionError):
    """The connection is over: the peer closed it, died, stalled, or sends what cannot be followed."""


AHEAD = 1 << 13
"""Bytes that are read at once by who reads ahead."""


class Connection:
    """A connected UNIX stream socket, owned. Every method raises PeerGone once nothing can be exchanged any more.

    `ahead`: bytes that may be read beyond the message at hand. Messages that have been read are in `queue`, and no
    poller knows of them.
    """

    def __init__(self, sock: socket.socket, ahead: int = 0) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.stream = MessageStream()
        self.closed = False
        self.ahead = ahead
        self.queue: deque[Message] = deque()
        self.drained = False
        """The last read took all that was there: another one would find nothing, as far as is known."""

    def fileno(self) -> int:
        """For pollers; -1 once closed."""
        return self._socket.fileno()

    def receive(self) -> Message | None:
        """The next message; None if it has not come yet, wholly. Does not wait."""
        if self.queue:
            return self.queue.popleft()
        stream = self.stream
        while not self.closed and not stream.broken:
            wanted = self.ahead
            if not wanted or stream.partial:
                wanted = max(wanted, stream.wanted)
            try:
                data, ancillary, flags, _ = self._socket.recvmsg(wanted, _ANCILLARY, _CLOEXEC)
            except (BlockingIOError, InterruptedError):
                self.drained = True
                return None
            except OSError as failure:
                raise PeerGone(failure.errno, failure.strerror) from failure
            length = len(data)
            self.drained = length < wanted and not ancillary
            if self.drained and length >= HEADER_SIZE and not stream.partial:
                # One whole message, as nearly always: the short way.
                msg_id, command, size, kind, error = HEADER.unpack_from(data)
                if size == length and kind & TYPE_MASK <= TYPE_REPLY:
                    return Message(msg_id, command, kind, error, data[HEADER_SIZE:], [])
            fds = _descriptors(ancillary) if ancillary else []
            if flags & _CTRUNC:
                # There was no room for them in our descriptor table; which message they were of is lost with them.
                close_all(fds)
                raise PeerGone("descriptors were lost")
            if not data:
                close_all(fds)
                raise PeerGone("end of file")
            messages = stream.feed(data, fds)
            if messages:
                if len(messages) > 1:
                    self.queue.extend(messages)
                    return self.queue.popleft()
                return messages[0]
        raise PeerGone("closed, or what came was no message")

    def wait(self, deadline: float) -> Message | None:
        """The next message; None if it has not come at `deadline` (time.monotonic)."""
        while True:
            message = self.receive()
            if message is not None:
                return message
            left = deadline - time.monotonic()
            if left <= 0 or not self._poll(select.POLLIN, left):
                return None

    def send(self, data: bytes, fds: Sequence[int] = (), patience: float = PATIENCE) -> None:
        """Send all of `data`, with `fds`, which stay the caller's. A peer that does not read for `patience` is gone."""
        if self.closed:
            raise PeerGone("closed")
        sent = 0
        if not fds:
            try:
                sent = self._socket.send(data, _NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as error:
                raise PeerGone(error.errno, error.strerror) from error
            if sent == len(data):
                return
        left = memoryview(data)[sent:]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        deadline = time.monotonic() + patience
        while left:
            try:
                sent = self._socket.sendmsg([left], ancillary, _NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                if not self._poll(select.POLLOUT, deadline - time.monotonic()):
                    raise PeerGone("the peer does not read") from None
                continue
            except OSError as error:
                raise PeerGone(error.errno, error.strerror) from error
            left = left[sent:]
            ancillary = []

    def _poll(self, events: int, seconds: float) -> bool:
        poller = select.poll()
        poller.register(self._socket, events)
        return bool(poller.poll(max(0, seconds) * 1000))

    def close(self) -> None:
        """End it. A second close does nothing."""
        if not self.closed:
            self.closed = True
            self.stream.close()
            while self.queue:
                self.queue.popleft().close()
            self._socket.close()


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
            fds += numbers
    return fds


def connect(path: str, patience: float = PATIENCE) -> Connection:
    """A connection to the server at `path`. OSError if there is none."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(patience)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return Connection(sock)


def listen(path: str) -> socket.socket:
    """A listening socket. A dead server's socket in the way is replaced. InUse, ConfigError."""
    place = Path(path)
    if place.is_socket():
        try:
            connect(path, 1).close()
        except ConnectionRefusedError:
            place.unlink(missing_ok=True)
        except OSError:
            pass  # bind says what is wrong
        else:
            raise InUse(f"{path}: another server listens there; choose another path or end it first", holder=path)
    listener = socket.socket(socket.AF_UNIX)
    # Who waits for the socket to appear connects at once: it must not appear before somebody listens.
    early = f"{path}.{os.getpid():x}"
    if len(os.fsencode(early)) > MAX_PATH:
        early = path
    try:
        if early != path and place.exists():
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        listener.bind(early)
        listener.listen(1)
        Path(early).rename(path)
    except OSError as error:
        listener.close()
        with contextlib.suppress(OSError):
            if early != path:
                Path(early).unlink()
        raise ConfigError(f"{path}: cannot listen there: {error.strerror or error}") from error
    listener.setblocking(False)
    return listener


def is_eventfd(fd: int) -> bool:
    """Whether a descriptor is an eventfd; True if /proc does not tell."""
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink()) == "anon_inode:[eventfd]"
    except OSError:
        return True
