"""vfio-user for tests: a raw client that says anything, and recorded exchanges as bytes."""

from __future__ import annotations

import array
import ast
import os
import re
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.server import Server
from vmm.vfio_user.transport import Connection, PeerGone

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devices.pci.device import PciDevice
    from vmm.vfio_user.stream import Message

DATA = Path(__file__).parents[1] / "conformance/data/vfio-user"
VERSION = b'{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576}}\0'


def open_fds() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


class RawClient:
    """A connection to a `Server` on the same thread: whoever waits lets the server take its turns."""

    def __init__(self, server: Server, negotiate: bool = True) -> None:
        self.server = server
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(server.path)
        self.connection = Connection(self.socket)
        self._id = 100
        server.turn()
        if negotiate:
            assert not self.call(Command.VERSION, version()).failure

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Any bytes, with descriptors."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.setblocking(True)
        self.socket.sendmsg([data], ancillary)
        self.socket.setblocking(False)

    def receive(self) -> Message:
        """The next message from the server. PeerGone if it hung up."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.server.turn()
            message = self.connection.receive()
            if message is not None:
                return message
        raise AssertionError("the server does not answer")

    def call(self, command: int, payload: bytes = b"", fds: Sequence[int] = ()) -> Message:
        """A command and its reply."""
        self._id += 1
        self.send(p.command_bytes(self._id, command, payload), fds)
        reply = self.receive()
        assert (reply.msg_id, reply.command, reply.is_reply) == (self._id, command, True)
        return reply

    def read(self, region: int, offset: int, count: int = 4) -> int:
        """A register."""
        reply = self.call(Command.REGION_READ, p.REGION_ACCESS.pack(offset, region, count))
        assert not reply.failure
        return int.from_bytes(reply.payload[16:], "little")

    def write(self, region: int, offset: int, value: int, count: int = 4) -> None:
        """A register."""
        data = value.to_bytes(count, "little")
        assert not self.call(Command.REGION_WRITE, p.REGION_ACCESS.pack(offset, region, count) + data).failure

    def set_irqs(self, flags: int, fds: Sequence[int] = (), index: int = 0, count: int = 1) -> int:
        """DEVICE_SET_IRQS; the errno of its reply."""
        payload = p.IrqSet.build({"argsz": 20, "flags": flags, "index": index, "start": 0, "count": count, "data": b""})
        return self.call(Command.DEVICE_SET_IRQS, payload, fds).failure

    def dma_map(self, address: int, size: int, fd: int | None = None, flags: int = 3, offset: int = 0) -> int:
        """DMA_MAP; the errno of its reply."""
        payload = p.DmaMap.build(
            {"argsz": 32, "flags": flags, "offset": offset, "address": address, "size": size},
        )
        return self.call(Command.DMA_MAP, payload, () if fd is None else (fd,)).failure

    def is_served(self) -> bool:
        """The server still answers."""
        try:
            return not self.call(Command.DEVICE_GET_INFO, b"\x10" + bytes(15)).failure
        except (PeerGone, OSError):
            return False

    def close(self) -> None:
        """Hang up, and let the server see it."""
        self.connection.close()
        self.server.turn()


def version(data: bytes = VERSION, major: int = 0, minor: int = 2) -> bytes:
    """A payload of VERSION."""
    built: bytes = p.Version.build({"major": major, "minor": minor, "data": data})
    return built


def serving(device: PciDevice, path: Path) -> Server:
    """A server that takes its turns when a RawClient waits."""
    return Server(device, str(path / "socket"))


class Recorded(NamedTuple):
    """A message of a recording. `fields` are those of its declaration; `whole`: the recording has all its data."""

    to_server: bool
    reply: bool
    msg_id: int
    command: Command
    size: int | None
    flags: int
    error: int
    fds: int
    fields: dict[str, Any]
    whole: bool

    def bytes(self) -> bytes:
        """The message as it was sent; data that the recording cut off is zero."""
        table = p.REPLIES if self.reply else p.REQUESTS
        layout = table.get(self.command)
        payload = layout.build(self.fields) if layout is not None and self.fields else b""
        if self.size is not None and not self.whole:
            payload = payload.ljust(self.size - p.HEADER_SIZE, b"\0")
        size = p.HEADER_SIZE + len(payload)
        return p.HEADER.pack(self.msg_id, self.command, size, self.flags, self.error) + payload


_LINE = re.compile(
    r"\s*[\d.]+ (C->S|S->C) (CMD|REP) id=(\d+)\s+(\w+?)(?:\(\d+\))?(?: size=(\d+))? flags=(0x\w+)"
    r"(?: err=(\d+))?(?: fds=(\d+)(?:\[.*?\](?= argsz| *$))?)?\s*(.*)"
)
_REGIONS = {f"BAR{n}": n for n in range(6)} | {"ROM": 6, "CONFIG": 7, "VGA": 8}
_NAMES = {
    "off": "offset",
    "addr": "address",
    "iova": "address",
    "cap_off": "cap_offset",
    "regions": "num_regions",
    "irqs": "num_irqs",
}


def recording(name: str) -> Iterator[Recorded]:
    """The messages of a recording."""
    for line in (DATA / name).read_text().splitlines():
        found = _LINE.fullmatch(line)
        if found is None:
            continue
        way, kind, msg_id, command, size, flags, error, fds, text = found.groups()
        command = {"GET_REGION_INFO": "DEVICE_GET_REGION_INFO", "GET_IRQ_INFO": "DEVICE_GET_IRQ_INFO"}.get(
            command, command
        )
        command = "DEVICE_SET_IRQS" if command == "SET_IRQS" else command
        number = Command[command]
        reply = kind == "REP"
        fields, whole = _fields(number, reply, text)
        yield Recorded(
            way == "C->S",
            reply,
            int(msg_id),
            number,
            int(size) if size else None,
            int(flags, 16),
            int(error or 0),
            int(fds or 0),
            fields,
            whole,
        )


def _fields(command: Command, reply: bool, text: str) -> tuple[dict[str, Any], bool]:
    if command is Command.VERSION and text:
        number, _, data = text.partition(" ")
        major, minor = number.split(".")
        return {"major": int(major), "minor": int(minor), "data": ast.literal_eval(data)}, True
    pairs = re.findall(r"(\w+)=(0x[0-9a-f]+|\d+)\b", text)
    values = {k: int(v, 0) for k, v in pairs if k != "caps" and (k != "data" or v.startswith("0x"))}
    found = {_NAMES.get(key, key): value for key, value in values.items()}
    access = re.match(r"(BAR\d|ROM|CONFIG|VGA|R\d+)\+(0x\w+)", text)
    if access is not None:
        region = _REGIONS.get(access[1])
        found["region"] = int(access[1][1:]) if region is None else region
        found["offset"] = int(access[2], 16)
    if command in (Command.DEVICE_GET_IRQ_INFO, Command.DEVICE_SET_IRQS, Command.DMA_MAP, Command.DEVICE_GET_INFO):
        return found | {"data": b""}, True
    if command is Command.DEVICE_GET_REGION_INFO:
        caps = re.search(r"caps=([0-9a-f]*)", text)
        return found | {"capabilities": bytes.fromhex(caps[1]) if caps else b""}, True
    if command is Command.REGION_WRITE and not reply and found:
        value = values.get("data")
        return found | {"data": (value or 0).to_bytes(found["count"], "little")}, value is not None
    data = re.search(r"datalen=[1-9]|data=[0-9a-f]", text)
    return (found | {"data": b""}, data is None) if found else ({}, True)
