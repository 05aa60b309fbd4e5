"""Network back ends: where the frames of a network card go, and come from. What `-netdev` makes.

    -netdev hubport,id=n0,hubid=0                   frames go to all other ports of that hub, in this machine
    -netdev socket,id=n0,fd=3                       to another process: each frame behind its length, as QEMU sends it
    -netdev socket,id=n0,listen=127.0.0.1:1234      the same over TCP; the other side has connect=

A `Netdev` is one end; the card attaches with `connect`. A frame that nobody takes is lost, as on a wire.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING, Protocol

from vmm.chardev import FdBackend
from vmm.errors import ConfigError, DeviceNotFound, InUse, UsageError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from vmm.chardev import CharBackend, CharEvent

LARGEST_FRAME = 4096 + 65536
"""Bytes of a frame at most, as in QEMU."""
KEPT_FRAMES = 256
"""Frames that wait for a card to have room, at most."""
_LENGTH = struct.Struct(">I")
KINDS = ("hubport", "socket")


class NetFrontend(Protocol):
    """A network card."""

    def can_take_frame(self) -> bool:
        """Whether it has room for one."""

    def take_frame(self, frame: bytes) -> None:
        """A frame from the network."""

    def link_changed(self, up: bool) -> None:
        """The cable was plugged in or pulled out."""


class Netdev:
    """Base of all back ends. `up` is False while its cable is pulled (set_link)."""

    kind = ""

    def __init__(self, id: str) -> None:
        self.id = id
        self.frontend: NetFrontend | None = None
        self.up = True
        self._kept: deque[bytes] = deque(maxlen=KEPT_FRAMES)

    def connect(self, frontend: NetFrontend) -> None:
        """Attach a card. InUse if there is one."""
        if self.frontend is not None:
            raise InUse(f"netdev '{self.id}' is in use by another device", holder=self.id)
        self.frontend = frontend

    def disconnect(self) -> None:
        """The card goes, and what waited for it."""
        self.frontend = None
        self._kept.clear()

    def send(self, frame: bytes) -> None:
        """A frame from the card."""

    def deliver(self, frame: bytes) -> None:
        """A frame for the card, now or when it has room."""
        if self.frontend is not None and self.up:
            self._kept.append(frame)
            self.accept_frames()

    def accept_frames(self) -> None:
        """The card has room again."""
        kept, frontend = self._kept, self.frontend
        while kept and frontend is not None and frontend.can_take_frame():
            frontend.take_frame(kept.popleft())

    def set_link(self, up: bool) -> None:
        """Plug the cable in, or pull it out."""
        if up != self.up:
            self.up = up
            if self.frontend is not None:
                self.frontend.link_changed(up)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve it from `loop`."""

    def close(self) -> None:
        """Let go of everything."""


class HubPort(Netdev):
    """A port of a hub of this machine."""

    kind = "hubport"

    def __init__(self, id: str, hub: list[HubPort], number: int = 0) -> None:
        super().__init__(id)
        self.number = number
        self.hub = hub
        """All ports of the hub, this one among them."""
        hub.append(self)

    def send(self, frame: bytes) -> None:
        if self.up:
            for port in self.hub:
                if port is not self:
                    port.deliver(frame)

    def close(self) -> None:
        if self in self.hub:
            self.hub.remove(self)


class SocketNetdev(Netdev):
    """Frames over a byte stream, each behind its length in four bytes, the highest first. The front end of `stream`."""

    kind = "socket"

    def __init__(self, id: str, stream: CharBackend) -> None:
        super().__init__(id)
        self.stream = stream
        self._in = bytearray()
        self._rest = b""
        """What the stream did not take of a frame; others are lost meanwhile."""
        stream.connect(self)

    def send(self, frame: bytes) -> None:
        if self._rest or not (self.up and self.stream.open):
            return  # lost
        data = _LENGTH.pack(len(frame)) + frame
        self._rest = data[self.stream.write(data) :]
        self.stream.flush()

    # What the stream calls.

    def can_receive(self) -> int:
        """As much as it likes, unless frames wait."""
        return 0 if len(self._kept) == KEPT_FRAMES else 65536

    def receive(self, data: bytes) -> None:
        """Bytes of frames. A length that cannot be ends the stream's use: nothing behind it can be trusted."""
        buffer = self._in
        buffer += data
        while len(buffer) >= _LENGTH.size:
            length: int = _LENGTH.unpack_from(buffer)[0]
            if length > LARGEST_FRAME:
                buffer.clear()
                self.up = False
                return
            end = _LENGTH.size + length
            if len(buffer) < end:
                return
            frame = bytes(buffer[_LENGTH.size : end])
            del buffer[:end]
            self.deliver(frame)

    def accept_frames(self) -> None:
        super().accept_frames()
        self.stream.accept_input()

    def char_event(self, event: CharEvent) -> None:
        """A new peer begins with a whole frame."""
        if event != "break":
            self._in.clear()
            self._rest = b""

    def writable(self) -> None:
        """The stream takes the rest of a frame."""
        self._rest = self._rest[self.stream.write(self._rest) :]

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self.stream.start(loop)

    def close(self) -> None:
        self.stream.close()


def add_netdev(netdevs: dict[str, Netdev], options: Mapping[str, str]) -> Netdev:
    """Make a back end and put it among those of a machine. InUse if there is one of its id; else as `make_netdev`."""
    name = options.get("id", "")
    if name in netdevs:
        raise InUse(f"Duplicate ID '{name}' for netdev", holder=name)
    hubs = {port.number: port.hub for port in netdevs.values() if isinstance(port, HubPort)}
    netdev = make_netdev(options, hubs)
    netdevs[name] = netdev
    return netdev


def remove_netdev(netdevs: dict[str, Netdev], name: str) -> None:
    """Close a back end and forget it. DeviceNotFound if there is none; InUse while a card has it."""
    netdev = netdevs.get(name)
    if netdev is None:
        raise DeviceNotFound(name)
    if netdev.frontend is not None:
        raise InUse(f"netdev '{name}' is in use by a device; unplug that first", holder=name)
    netdev.close()
    del netdevs[name]


def make_netdev(options: Mapping[str, str], hubs: dict[int, list[HubPort]]) -> Netdev:
    """What `-netdev` asks for. `hubs`: those of the machine by number. UsageError or ConfigError."""
    given = dict(options)
    kind, name = given.pop("type", ""), given.pop("id", "")
    if kind not in KINDS:
        if not kind:
            raise UsageError("Parameter 'type' is missing")
        raise UsageError(f"Parameter 'type' does not accept value '{kind}'; known are {', '.join(KINDS)}")
    if not name:
        raise UsageError("Parameter 'id' is missing")
    if kind == "hubport":
        number = given.pop("hubid", None)
        if number is None:
            raise UsageError("Parameter 'hubid' is missing")
        _nothing_else(given)
        hubid = _number("hubid", number)
        return HubPort(name, hubs.setdefault(hubid, []), hubid)
    ways = [key for key in ("fd", "connect", "listen") if key in given]
    if len(ways) != 1:
        raise UsageError("exactly one of listen=, connect=, fd= is required for a socket")
    where = given.pop(ways[0])
    _nothing_else(given)
    return SocketNetdev(name, _stream(name, ways[0], where))


def _stream(name: str, way: str, where: str) -> CharBackend:
    if way == "fd":
        import os
        import stat

        fd = _number("fd", where)
        try:
            mode = os.fstat(fd).st_mode
        except (OSError, OverflowError) as error:
            raise ConfigError(f"netdev {name}: fd={fd} is not open") from error
        if not stat.S_ISSOCK(mode):
            raise ConfigError(f"netdev {name}: fd={fd} is not a socket")
        os.set_blocking(fd, False)
        return FdBackend(name, fd, fd)
    from vmm.chardev_options import make_chardev

    host, colon, port = where.rpartition(":")
    if not colon or not port.isdigit():
        raise UsageError(f"{way}={where}: want HOST:PORT")
    server = {"server": "on", "wait": "off"} if way == "listen" else {}
    return make_chardev("socket", name, {"host": host, "port": port, "nodelay": "on", **server})


def _number(key: str, text: str) -> int:
    if not text.isdigit():
        raise UsageError(f"Parameter '{key}' expects a number")
    return int(text)


def _nothing_else(given: Mapping[str, str]) -> None:
    for key in given:
        raise UsageError(f"Invalid parameter '{key}'")
