"""The battery: messages that a client should not send, or may send but nobody does, by their names in vectors
conform-libvfio-user.txt, which has the reference server's answers.

`BATTERY` maps a name to what is done on a connection: a function that gets an `Attempt`. `outcome` says what came of
it: the reply's errno (`OK`, `EINVAL`, ...), `silence` where none is wanted, and `hung up` if the connection is over.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from typing import TYPE_CHECKING

from devices.pci.device import PciDevice
from support.vfio_user import DATA, RawClient, version
from vmm.memory import IoRegion
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.transport import PeerGone

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.vfio_user.server import Server

U64 = 2**64 - 1


class IdioLike(PciDevice):
    """The shape of the reference server's device: I/O BAR 2, INTx, a state that can be migrated."""

    driver = "battery"
    vendor_id, device_id, class_id, interrupt_pin = 0x494F, 0x0DC8, 0x0000, 1
    migratable = True

    def realize(self, board):
        super().realize(board)
        self.register_bar(2, IoRegion("battery", 0x100, lambda *_: 0, lambda *_: None), io=True)


def words(*values):
    return struct.pack(f"<{len(values)}I", *values)


def region(offset, index, count, data=b""):
    return p.REGION_ACCESS.pack(offset, index, count) + data


def irqs(flags, index=0, start=0, count=1, data=b"", argsz=20):
    return words(argsz, flags, index, start, count) + data


def dma_map(address, size, flags=3, offset=0, argsz=32):
    return struct.pack("<IIQQQ", argsz, flags, offset, address, size)


def dma_unmap(address, size, flags=0, argsz=24):
    return struct.pack("<IIQQ", argsz, flags, address, size)


def feature(number, method, data=b"", argsz=None):
    return words(argsz if argsz is not None else 8 + len(data), number | method) + data


class Attempt:
    """One case on a connection of its own."""

    def __init__(self, server: Server, negotiate: bool) -> None:
        self.server = server
        self.client = RawClient(server, negotiate)
        self.negotiated = negotiate
        self.fds: list[int] = []

    def open(self, kind: str, count: int = 1) -> list[int]:
        """Descriptors to send: eventfds, or memfds of 16 KiB."""
        for _ in range(count):
            fd = os.eventfd(0, os.EFD_NONBLOCK) if kind == "eventfd" else os.memfd_create("battery")
            if kind != "eventfd":
                os.truncate(fd, 0x4000)
            self.fds.append(fd)
        return self.fds[-count:]

    def answer(self) -> str:
        """What the server says next."""
        try:
            reply = self.client.receive()
        except (PeerGone, OSError):
            return "hung up"
        reply.close()
        assert reply.is_reply
        return errno.errorcode[reply.failure] if reply.failure else "OK"

    def raw(self, *pieces: bytes) -> str:
        """Bytes as they are, each piece in a send of its own, and the answer."""
        for piece in pieces:
            self.client.send(piece)
            self.server.turn()
        return self.answer()

    def call(self, command: int, payload: bytes = b"", fds: list[int] = (), flags: int = 0) -> str:  # type: ignore[assignment]
        """A command and its answer."""
        try:
            self.client.send(p.command_bytes(77, command, payload, flags), fds)
        except OSError:
            return "hung up"
        return "silence" if flags & p.FLAG_NO_REPLY else self.answer()

    def after(self) -> str:
        """Whether the connection still serves."""
        if not self.negotiated and self.client.call(Command.DEVICE_GET_INFO, words(16, 0, 0, 0)).failure:
            return "hung up"
        return "lives" if self.client.is_served() else "hung up"

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.client.close()


def send(command, payload=b"", kind=None, count=1, flags=0):
    """A command, with descriptors of a kind."""
    return lambda a: a.call(command, payload, a.open(kind, count) if kind else [], flags)


def propose(data, major=0, minor=2):
    """A VERSION."""
    return lambda a: a.call(Command.VERSION, version(data, major, minor))


def capability(text):
    return propose(b'{"capabilities":{' + text + b"}}\0")


def then(*actions):
    """The last action's answer; the others are what comes before."""

    def run(attempt):
        answers = [action(attempt) for action in actions]
        return answers[-1]

    return run


def header(size, command=Command.DEVICE_GET_INFO, flags=0, body=b""):
    return lambda a: a.raw(p.HEADER.pack(9, command, size, flags, 0) + body)


def signalled(attempt):
    """Loopback: the eventfd says how often it was signalled."""
    (fd,) = attempt.open("eventfd")
    attempt.call(Command.DEVICE_SET_IRQS, irqs(0x24), [fd])
    answer = attempt.call(Command.DEVICE_SET_IRQS, irqs(0x21))
    assert os.eventfd_read(fd) == 1
    return answer


GET_INFO = words(16, 0, 0, 0)
INFO = p.command_bytes(9, Command.DEVICE_GET_INFO, GET_INFO)
BAR = 2
SET_IRQS, MAP, UNMAP = Command.DEVICE_SET_IRQS, Command.DMA_MAP, Command.DMA_UNMAP
READ, WRITE, REGION_INFO = Command.REGION_READ, Command.REGION_WRITE, Command.DEVICE_GET_REGION_INFO
mapped = send(MAP, dma_map(0x10000, 0x1000))


def region_info(index, argsz=32):
    return words(argsz, 0, index, 0, 0, 0, 0, 0)


NEGOTIATION = {
    "GET_INFO before VERSION": send(Command.DEVICE_GET_INFO, GET_INFO),
    "VERSION major 1": propose(b"", major=1),
    "VERSION minor 99": propose(b"", minor=99),
    "VERSION without JSON": propose(b""),
    "VERSION JSON without NUL": propose(b"{}"),
    'VERSION JSON "{}"': propose(b"{}\0"),
    "VERSION broken JSON": propose(b'{"capabilities":\0'),
    "VERSION unknown capability": capability(b'"new":[1]'),
    "VERSION max_msg_fds -1": capability(b'"max_msg_fds":-1'),
    "VERSION max_msg_fds 5000": capability(b'"max_msg_fds":5000'),
    'VERSION max_msg_fds "x"': capability(b'"max_msg_fds":"x"'),
    "VERSION max_data_xfer_size 0": capability(b'"max_data_xfer_size":0'),
    "VERSION with an fd": send(Command.VERSION, version(), "memfd"),
    "VERSION 3-byte payload": send(Command.VERSION, b"\0\0\0"),
    "VERSION twin_socket supported": capability(b'"twin_socket":{"supported":true}'),
}
BATTERY = {
    "second VERSION": send(Command.VERSION, version()),
    "size 8 (<16)": header(8),
    "size 16, GET_INFO (no payload)": header(16),
    "size 2 MiB claimed (header only sent)": header(2 << 20),
    "size 0xffffffff": header(0xFFFF_FFFF),
    "unknown/unsupported cmd 0": send(0),
    "unknown/unsupported cmd 14": send(14),
    "unknown/unsupported cmd 15": send(15),
    "unknown/unsupported cmd 19": send(19),
    "unknown/unsupported cmd 255": send(255),
    "unknown/unsupported cmd 65535": send(65535),
    "REPLY type to server": header(32, flags=1, body=GET_INFO),
    "type 2 flags": header(32, flags=2, body=GET_INFO),
    "unknown flag bits 0x100": header(32, flags=0x100, body=GET_INFO),
    "Error flag in command": header(32, flags=p.FLAG_ERROR, body=GET_INFO),
    "header/body in two sends": lambda a: a.raw(INFO[:16], INFO[16:]),
    "header split 8+8": lambda a: a.raw(INFO[:8], INFO[8:]),
    "body split": lambda a: a.raw(INFO[:20], INFO[20:]),
    "two messages in one send": lambda a: then(lambda b: b.raw(INFO + INFO), Attempt.answer)(a),
    "NO_REPLY GET_INFO": send(Command.DEVICE_GET_INFO, GET_INFO, flags=p.FLAG_NO_REPLY),
    "NO_REPLY failing read": send(READ, region(0, 9, 4), flags=p.FLAG_NO_REPLY),
    "RESET": send(Command.DEVICE_RESET),
    "RESET with payload": send(Command.DEVICE_RESET, b"12345678"),
    "GET_INFO argsz 8": send(Command.DEVICE_GET_INFO, words(8, 0, 0, 0)),
    "GET_INFO short payload 8": send(Command.DEVICE_GET_INFO, words(16, 0)),
    "GET_INFO argsz 4096": send(Command.DEVICE_GET_INFO, words(4096, 0, 0, 0)),
    "REGION_INFO index 0": send(REGION_INFO, region_info(0)),
    "REGION_INFO index 7": send(REGION_INFO, region_info(7)),
    "REGION_INFO index 8": send(REGION_INFO, region_info(8)),
    "REGION_INFO index 9": send(REGION_INFO, region_info(9)),
    "REGION_INFO index 4294967295": send(REGION_INFO, region_info(2**32 - 1)),
    "REGION_INFO argsz 16": send(REGION_INFO, region_info(0, argsz=16)),
    "REGION_INFO 24-byte payload": send(REGION_INFO, region_info(0)[:24]),
    "IRQ_INFO index 0": send(Command.DEVICE_GET_IRQ_INFO, words(16, 0, 0, 0)),
    "IRQ_INFO index 3": send(Command.DEVICE_GET_IRQ_INFO, words(16, 0, 3, 0)),
    "IRQ_INFO index 4": send(Command.DEVICE_GET_IRQ_INFO, words(16, 0, 4, 0)),
    "IRQ_INFO index 5": send(Command.DEVICE_GET_IRQ_INFO, words(16, 0, 5, 0)),
    "IRQ_INFO argsz 8": send(Command.DEVICE_GET_IRQ_INFO, words(8, 0, 0, 0)),
    "SET_IRQS trigger eventfd": send(SET_IRQS, irqs(0x24), "eventfd"),
    "SET_IRQS trigger eventfd none (deassign)": send(SET_IRQS, irqs(0x24)),
    "SET_IRQS disable NONE|TRIGGER count 0": send(SET_IRQS, irqs(0x21, count=0)),
    "SET_IRQS disable when start=1 count 0": send(SET_IRQS, irqs(0x21, start=1, count=0)),
    "SET_IRQS two fds count 1": send(SET_IRQS, irqs(0x24), "eventfd", 2),
    "SET_IRQS 1 fd count 2": send(SET_IRQS, irqs(0x24, count=2), "eventfd"),
    "SET_IRQS fd with NONE": send(SET_IRQS, irqs(0x21), "eventfd"),
    "SET_IRQS MASK NONE": send(SET_IRQS, irqs(0x09)),
    "SET_IRQS UNMASK NONE": send(SET_IRQS, irqs(0x11)),
    "SET_IRQS MASK+UNMASK": send(SET_IRQS, irqs(0x19)),
    "SET_IRQS NONE+BOOL": send(SET_IRQS, irqs(0x23)),
    "SET_IRQS UNMASK eventfd (resample)": send(SET_IRQS, irqs(0x14), "eventfd"),
    "SET_IRQS MASK eventfd": send(SET_IRQS, irqs(0x0C), "eventfd"),
    "SET_IRQS BOOL trigger no data": send(SET_IRQS, irqs(0x22)),
    "SET_IRQS BOOL trigger 1 byte": send(SET_IRQS, irqs(0x22, data=b"\1", argsz=21)),
    "SET_IRQS BOOL trigger 4 bytes": send(SET_IRQS, irqs(0x22, data=b"\1\0\0\0", argsz=24)),
    "SET_IRQS argsz 8": send(SET_IRQS, irqs(0x21, argsz=8)),
    "SET_IRQS index 5": send(SET_IRQS, irqs(0x21, index=5)),
    "SET_IRQS index MSI count 0 device, start 0 count 1": send(SET_IRQS, irqs(0x24, index=1), "eventfd"),
    "SET_IRQS start 4": send(SET_IRQS, irqs(0x21, start=4)),
    "SET_IRQS start+count wrap": send(SET_IRQS, irqs(0x21, start=2**32 - 1, count=2)),
    "SET_IRQS REQ mask": send(SET_IRQS, irqs(0x09, index=4)),
    "SET_IRQS ERR trigger eventfd": send(SET_IRQS, irqs(0x24, index=3), "eventfd"),
    "SET_IRQS flags 0": send(SET_IRQS, irqs(0)),
    "SET_IRQS flags bit 6": send(SET_IRQS, irqs(0x61)),
    "SET_IRQS fd is a memfd, then trigger": send(SET_IRQS, irqs(0x24), "memfd"),
    "SET_IRQS loopback trigger NONE": signalled,
    "REGION read ok": send(READ, region(0, BAR, 1)),
    "REGION read count 0": send(READ, region(0, BAR, 0)),
    "REGION read cross end": send(READ, region(0xFE, BAR, 4)),
    "REGION read at end": send(READ, region(0x100, BAR, 1)),
    "REGION read off 2^64-1": send(READ, region(U64, BAR, 4)),
    "REGION read region 9": send(READ, region(0, 9, 4)),
    "REGION read empty region 5": send(READ, region(0, 5, 4)),
    "REGION read 2 MiB": send(READ, region(0, BAR, 2 << 20)),
    "REGION read 12-byte payload": send(READ, region(0, BAR, 4)[:12]),
    "REGION read with extra payload": send(READ, region(0, BAR, 1, b"more")),
    "REGION read 3 bytes unaligned": send(READ, region(1, BAR, 3)),
    "REGION cfg read 256": send(READ, region(0, 7, 256)),
    "REGION cfg read 0x1000": send(READ, region(0, 7, 0x1000)),
    "REGION write ok": send(WRITE, region(0, BAR, 1, b"\1")),
    "REGION write count>data": send(WRITE, region(0, BAR, 4, b"\1")),
    "REGION write count<data": send(WRITE, region(0, BAR, 1, b"1234")),
    "REGION write count 0": send(WRITE, region(0, BAR, 0)),
    "REGION write vendor id (RO)": send(WRITE, region(0, 7, 2, b"\0\0")),
    "REGION_READ with an fd attached": send(READ, region(0, BAR, 1), "memfd"),
    "REGION_READ with 20 fds attached": send(READ, region(0, BAR, 1), "memfd", 20),
    "DMA map fd": send(MAP, dma_map(0x10000, 0x1000), "memfd"),
    "DMA map no fd": mapped,
    "DMA map 2 fds": send(MAP, dma_map(0x10000, 0x1000), "memfd", 2),
    "DMA map dup exact same": then(mapped, mapped),
    "DMA map same, other offset": then(mapped, send(MAP, dma_map(0x10000, 0x1000, offset=0x1000), "memfd")),
    "DMA map overlap": then(mapped, send(MAP, dma_map(0xF000, 0x2000))),
    "DMA map size 0": send(MAP, dma_map(0x10000, 0), "memfd"),
    "DMA map size 0 no fd": send(MAP, dma_map(0x10000, 0)),
    "DMA map wraps 2^64": send(MAP, dma_map(U64 - 0xFFF, 0x2000)),
    "DMA map flags 0": send(MAP, dma_map(0x10000, 0x1000, flags=0)),
    "DMA map flags 0x10": send(MAP, dma_map(0x10000, 0x1000, flags=0x10)),
    "DMA map flag MMAP(4) no fd": send(MAP, dma_map(0x10000, 0x1000, flags=7)),
    "DMA map argsz 16": send(MAP, dma_map(0x10000, 0x1000, argsz=16)),
    "DMA map short payload": send(MAP, dma_map(0x10000, 0x1000)[:24]),
    "DMA map unaligned off 0x10": send(MAP, dma_map(0x10000, 0x1000, offset=0x10), "memfd"),
    "DMA map beyond EOF": send(MAP, dma_map(0x10000, 0x100000), "memfd"),
    "DMA map fd=eventfd": send(MAP, dma_map(0x10000, 0x1000), "eventfd"),
    "DMA unmap": then(mapped, send(UNMAP, dma_unmap(0x10000, 0x1000))),
    "DMA unmap missing": send(UNMAP, dma_unmap(0x10000, 0x1000)),
    "DMA unmap part": then(mapped, send(UNMAP, dma_unmap(0x10000, 0x800))),
    "DMA unmap argsz 16": then(mapped, send(UNMAP, dma_unmap(0x10000, 0x1000, argsz=16))),
    "DMA unmap ALL": then(mapped, send(UNMAP, dma_unmap(0, 0, flags=2))),
    "DMA unmap ALL with addr": then(mapped, send(UNMAP, dma_unmap(0x10000, 0x1000, flags=2))),
    "DMA unmap flags 3": then(mapped, send(UNMAP, dma_unmap(0, 0, flags=3))),
    "DMA unmap DIRTY_BITMAP without logging": then(
        mapped, send(UNMAP, dma_unmap(0x10000, 0x1000, flags=1, argsz=48) + struct.pack("<QQ", 4096, 8))
    ),
    "FEATURE PROBE MIGRATION": send(Command.DEVICE_FEATURE, feature(1, p.FEATURE_PROBE, bytes(16))),
    "FEATURE GET MIGRATION": send(Command.DEVICE_FEATURE, feature(1, p.FEATURE_GET, argsz=16)),
    "FEATURE GET MIG_STATE": send(Command.DEVICE_FEATURE, feature(2, p.FEATURE_GET, argsz=16)),
    "FEATURE PROBE unknown 99": send(Command.DEVICE_FEATURE, feature(99, p.FEATURE_PROBE)),
    "FEATURE GET+SET w/o PROBE": send(
        Command.DEVICE_FEATURE, feature(2, p.FEATURE_GET | p.FEATURE_SET, words(2, 0xFFFF_FFFF))
    ),
    "FEATURE no op": send(Command.DEVICE_FEATURE, feature(1, 0)),
    "FEATURE PROBE DMA_LOGGING_START": send(Command.DEVICE_FEATURE, feature(6, p.FEATURE_PROBE, bytes(16))),
    "MIG_DATA_READ while running": send(Command.MIG_DATA_READ, words(16, 8)),
    "GET_REGION_IO_FDS": send(Command.DEVICE_GET_REGION_IO_FDS, words(16, 0, BAR, 0)),
    "WRITE_MULTI 1 write": send(
        Command.REGION_WRITE_MULTI, struct.pack("<Q", 1) + region(0, BAR, 1, b"\1".ljust(8, b"\0"))
    ),
}


def second_client(server: Server) -> str:
    """Another one comes while the first has the device."""
    first = RawClient(server)
    second = RawClient(server, negotiate=False)
    try:
        answer = second.call(Command.VERSION, version()).failure
        outcome = errno.errorcode[answer] if answer else "OK"
    except (PeerGone, OSError):
        outcome = "hung up"
    second.close()
    assert first.is_served()
    first.close()
    return f"{outcome}, the first lives"


def reconnect(half: bool) -> Callable[[Server], str]:
    """The client goes, maybe in the middle of a message, and comes again."""

    def run(server: Server) -> str:
        first = RawClient(server)
        if half:
            first.send(INFO[:20])
            server.turn()
        first.close()
        second = RawClient(server)
        served = second.is_served()
        second.close()
        return "lives" if served else "hung up"

    return run


CONNECTIONS: dict[str, Callable[[Server], str]] = {
    "second client while first connected": second_client,
    "reconnect after close": reconnect(False),
    "reconnect after half a message": reconnect(True),
}


def outcome(server: Server, name: str) -> str:
    """What comes of a case, in the words of the table."""
    if name in CONNECTIONS:
        return CONNECTIONS[name](server)
    attempt = Attempt(server, name in BATTERY)
    try:
        answer = (BATTERY.get(name) or NEGOTIATION[name])(attempt)
        if answer == "hung up":
            return answer
        try:
            return f"{answer}, {attempt.after()}"
        except (PeerGone, OSError):
            return f"{answer}, hung up"
    finally:
        attempt.close()


ALL = (*NEGOTIATION, *BATTERY, *CONNECTIONS)


def reference() -> dict[str, str]:
    """What libvfio-user's server does, in the words of the table: after some it exits."""
    found: dict[str, str] = {}
    last = ""
    for line in (DATA / "conform-libvfio-user.txt").read_text().splitlines():
        if "server process exited" in line:
            found[last] = re.sub(", .*", "", found[last]) + ", exits"
            continue
        parts = re.match(r"(?P<name>\S.*?)(?: +-> (?:reply )?|: )(?P<rest>.*)", line)
        if line.startswith("---") or parts is None:
            continue
        last, rest = parts["name"], parts["rest"]
        answer = re.match(r"ERR (\w+)|(OK)|(noreply)|(alive)", rest)
        if answer is None:
            found[last] = "not served until the first goes" if "timed out" in rest else "hung up"
            continue
        said = answer[1] or answer[2] or ("silence" if answer[3] else "lives")
        after = ", loses track" if "BROKEN" in rest else ", lives" if "alive" in rest and not answer[4] else ""
        found[last] = said + after
    return found
