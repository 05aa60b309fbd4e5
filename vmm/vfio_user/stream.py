"""Bytes and descriptors to messages, without a socket.

    stream = MessageStream()
    for message in stream.feed(data, fds): ...

Whoever has a message owns its descriptors: take one out of `fds` to keep it, then `close` the message. Whatever a
peer sends, nothing is raised and no descriptor is lost: what cannot be a message comes out as one with `fault` set,
to be answered with that errno, and if nothing can be found behind it any more, `broken` is True and the connection
is to be closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from vmm.vfio_user.protocol import (
    FLAG_ERROR,
    FLAG_NO_REPLY,
    HEADER,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    TYPE_COMMAND,
    TYPE_MASK,
    TYPE_REPLY,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_FDS = 64
"""More descriptors than this for one message, in how many pieces it may come, are closed as they arrive."""


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


class Message:
    """One message. `fault`: the errno to answer with because it is none; `fds`: descriptors that came along."""

    __slots__ = ("command", "error", "fault", "fds", "flags", "msg_id", "payload")

    def __init__(self, msg_id: int, command: int, flags: int, error: int, payload: bytes, fds: list[int]) -> None:
        self.msg_id = msg_id
        self.command = command
        self.flags = flags
        self.error = error
        self.payload = payload
        self.fds = fds
        self.fault = 0

    @property
    def is_reply(self) -> bool:
        """It answers a command of ours."""
        return self.flags & TYPE_MASK == TYPE_REPLY

    @property
    def wants_reply(self) -> bool:
        """Its sender waits for an answer."""
        return not self.flags & FLAG_NO_REPLY

    @property
    def failure(self) -> int:
        """The errno that a reply reports; 0 if it reports none."""
        return (self.error or errno.EIO) if self.flags & FLAG_ERROR else 0

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        if self.fds:
            fds, self.fds = self.fds, []
            close_all(fds)

    def __repr__(self) -> str:
        return f"<Message {self.msg_id} command {self.command} flags {self.flags:#x} {len(self.payload)} bytes>"


class MessageStream:
    """One direction of a connection. `broken`: it cannot be followed any more; all later input is thrown away."""

    __slots__ = ("_buffer", "_excess", "_fds", "broken", "max_size")

    def __init__(self, max_size: int = MAX_MESSAGE_SIZE) -> None:
        self.max_size = max_size
        self.broken = False
        self._buffer = bytearray()
        self._fds: list[int] = []
        self._excess = False

    @property
    def partial(self) -> bool:
        """A message has begun to come."""
        return bool(self._buffer)

    @property
    def wanted(self) -> int:
        """How many bytes complete the header, or then the message: who reads no more gets one message at a time."""
        have = len(self._buffer)
        if have < HEADER_SIZE:
            return HEADER_SIZE - have
        return int.from_bytes(self._buffer[4:8], "little") - have

    def feed(self, data: bytes, fds: Iterable[int] = ()) -> list[Message]:
        """The messages that `data` completes. Takes over `fds`.

        Descriptors belong to the last message that begins in `data`, or else to the one that it goes on with: so the
        kernel delivers them, if a peer sends each message at once. Ref: unix(7), SCM_RIGHTS
        """
        messages: list[Message] = []
        if self.broken:
            close_all(fds)
            return messages
        if not self._buffer and not self._fds and not fds:
            data = self._feed_whole(data, messages)
            if not data:
                return messages
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER_SIZE:
            msg_id, command, size, flags, error = HEADER.unpack_from(buffer)
            message = Message(msg_id, command, flags, error, b"", [])
            if not HEADER_SIZE <= size <= self.max_size:
                message.fault = errno.EINVAL
                self.broken = True
            elif len(buffer) < size:
                break
            elif flags & TYPE_MASK not in (TYPE_COMMAND, TYPE_REPLY):
                message.fault = errno.EINVAL
            message.payload = bytes(buffer[HEADER_SIZE:size])
            self._hand_over(message)
            messages.append(message)
            if self.broken:
                self._buffer = buffer = bytearray()
            else:
                del buffer[:size]
        new = list(fds)
        if new:
            self._keep(new)
            if not buffer and messages:
                self._hand_over(messages[-1])
        if self.broken:
            self.close()
        return messages

    def _feed_whole(self, data: bytes, messages: list[Message]) -> bytes:
        """The short way for whole messages without descriptors; what is left for the long one."""
        at, end = 0, len(data)
        while end - at >= HEADER_SIZE:
            msg_id, command, size, flags, error = HEADER.unpack_from(data, at)
            if size > end - at or size < HEADER_SIZE or size > self.max_size or flags & TYPE_MASK > TYPE_REPLY:
                break
            messages.append(Message(msg_id, command, flags, error, data[at + HEADER_SIZE : at + size], []))
            at += size
        return data[at:]

    def _keep(self, new: list[int]) -> None:
        if self._excess or len(self._fds) + len(new) > MAX_FDS:
            self._excess = True
            close_all(new)
        else:
            self._fds += new

    def _hand_over(self, message: Message) -> None:
        """Give the message the descriptors that came for it."""
        message.fds += self._fds
        self._fds = []
        if self._excess:
            self._excess = False
            message.fault = errno.EINVAL
            message.close()

    def close(self) -> None:
        """Close the descriptors of a message that will not be completed."""
        self.broken = True
        fds, self._fds = self._fds, []
        close_all(fds)
