"""Virtio devices whose guest does anything at all: nothing escapes, and after a reset they work as ever."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.virtio import registers as r
from devices.virtio.balloon import VirtioBalloon
from devices.virtio.blk import VirtioBlk
from devices.virtio.input import VirtioTablet
from devices.virtio.net import VirtioNet
from devices.virtio.queue import QueueBroken
from devices.virtio.rng import VirtioRng
from devices.virtio.serial import VirtConsole, VirtioSerial
from support.virtio import BAR, BUFFERS, DEVFN, IO, RAM, RINGS, VirtioBoard
from vmm.block_graph import BlockGraph
from vmm.chardev import MemoryBackend
from vmm.netdev import Netdev

ADDRESS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, RAM + 64),
    st.sampled_from([0, RAM - 1, RAM, (1 << 64) - 16, RINGS, BUFFERS, BUFFERS, BUFFERS]),
)
LENGTH = st.one_of(st.integers(0, 64), st.integers(0, 0xFFFF_FFFF), st.sampled_from([1, 8, 16, 512, 1024, RAM]))
DESCRIPTOR = st.tuples(ADDRESS, LENGTH, st.sampled_from([0, 1, 2, 3, 4, 5, 7, 0xFFFF]), st.integers(0, 300))
OPERATION = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, 4), st.lists(DESCRIPTOR, min_size=1, max_size=4)),
    st.tuples(st.just("describe"), st.integers(0, 7), DESCRIPTOR),
    st.tuples(st.just("offer"), st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF)), st.just(0)),
    st.tuples(st.just("kick"), st.integers(0, 4), st.just(0)),
    st.tuples(st.just("memory"), st.integers(RINGS, BUFFERS + 0x2000), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("modern"), st.integers(0, r.MODERN_SIZE - 1), st.integers(0, 0xFFFF_FFFF)),
    st.tuples(st.just("common"), st.integers(0, 60), st.integers(0, 0xFFFF)),
    st.tuples(st.just("legacy"), st.integers(0, 63), st.integers(0, 0xFFFF_FFFF)),
    st.tuples(st.just("config"), st.integers(0x40, 0xFC), st.integers(0, 0xFFFF_FFFF)),
    st.tuples(st.just("world"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("start"), st.booleans(), st.just(0)),
)


class Rig:
    """One board for all examples of a kind of device; `recover` finds out whether it still works."""

    def __init__(self, kind, folder):
        self.kind = kind
        self.backend = MemoryBackend("c0", 1 << 16)
        self.wire = Netdev("n0")
        blocks = BlockGraph()
        image = folder / f"{kind}.img"
        image.write_bytes(bytes(32 * 512))
        blocks.add_drive("d0", {"driver": "raw", "file": {"driver": "file", "filename": str(image)}})
        device = {
            "rng": lambda: VirtioRng("v0", **{"max-bytes": 1 << 20}),
            "blk": lambda: VirtioBlk("v0", drive="d0", **{"queue-size": 8}),
            "net": lambda: VirtioNet("v0", netdev="n0"),
            "serial": lambda: VirtioSerial("v0", max_ports=2),
            "input": lambda: VirtioTablet("v0"),
            "balloon": lambda: VirtioBalloon("v0"),
        }[kind]()
        self.board = VirtioBoard(
            device, blocks=blocks, netdevs={"n0": self.wire}, buses={}, chardev={"c0": self.backend}.get
        )
        if kind == "serial":
            port = VirtConsole("p0", chardev="c0")
            port.bus = device.port_bus
            port.realize(self.board)

    def restore(self):
        board = self.board
        board.reset()
        board.route(11, 11, 11, 11)
        board.firmware()
        board.modern = True
        board.start()

    def world(self, what):
        """Something happens outside of the guest."""
        board = self.board
        if what == 0:
            self.backend.feed(b"input" * 20)
            self.wire.deliver(bytes(100))
        elif what == 1:
            board.clock.step(100_000_000)
        elif what == 2:
            board.device.config_interrupt()
            if self.kind == "input":
                board.device.send((3, 0, 100))
            elif self.kind == "balloon":
                board.device.set_target(RAM // 2)
                board.device.poll_stats()
        else:
            self.backend.take()

    def do(self, operation, first, second):
        board = self.board
        if operation == "describe":
            address, length, flags, following = second
            raw = struct.pack("<QIHH", address, length, flags, following)
            board.memory.write(board.rings[0].desc + 16 * first, raw)
        elif operation == "submit":
            ring = board.rings[first % len(board.rings)]
            for n, (address, length, flags, following) in enumerate(second):
                raw = struct.pack("<QIHH", address, length, flags, following % 8)
                board.memory.write(ring.desc + 16 * n, raw)
            ring.offer(0)
            ring.kick()
        elif operation == "offer":
            ring = board.rings[first % len(board.rings)]
            ring.offer(first)
        elif operation == "kick":
            board.notify_queue(first)
        elif operation == "memory":
            board.memory.write(first, second)
        elif operation == "modern":
            size = (1, 2, 4)[second % 3]
            board.write(BAR + first, second, size)
            board.read(BAR + first, size)
        elif operation == "common":
            board.write(BAR + first, second, 2)
        elif operation == "legacy":
            size = (1, 2, 4)[second % 3]
            board.ports.write(IO + first, size, second)
            board.ports.read(IO + first, size)
        elif operation == "config":
            board.config_write(DEVFN, first & ~3, second)
            board.config_read(DEVFN, first & ~3)
        elif operation == "world":
            self.world(first)
        else:
            self.board.firmware()
            board.modern = first
            with suppress(AssertionError):  # the driver gives up: its features were refused
                board.start()

    def works(self):
        """A chain that is good comes back, or the device keeps it and is not broken."""
        self.restore()
        board = self.board
        assert board.status == 0xF
        index = {"serial": 3, "net": 1, "input": 1}.get(self.kind, 0)
        readable = self.kind in ("serial", "net", "input", "balloon")
        board.memory.write(BUFFERS, bytes(16))
        if self.kind == "blk":
            board.rings[0].submit((BUFFERS, 16, False), (BUFFERS + 16, 513, True))
        else:
            board.rings[index].submit((BUFFERS, 16, not readable))
        assert len(board.rings[index].done()) == 1
        assert not board.device.broken


@pytest.fixture(scope="module")
def rigs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("virtio")
    return {kind: Rig(kind, folder) for kind in ("rng", "blk", "net", "serial", "input", "balloon")}


@pytest.mark.parametrize("kind", ["rng", "blk", "net", "serial", "input", "balloon"])
def test_guest_can_do_anything(kind, rigs):
    rig = rigs[kind]
    broken = []

    @settings(max_examples=60, deadline=None)
    @given(st.lists(OPERATION, min_size=1, max_size=25))
    def run(operations):
        rig.restore()
        for operation in operations:
            rig.do(*operation)
        broken.append(bool(rig.board.device.broken))
        rig.works()

    run()
    assert any(broken)
    assert not all(broken)


@given(
    st.lists(DESCRIPTOR, min_size=8, max_size=8),
    st.lists(st.integers(0, 9), min_size=1, max_size=8),
    st.binary(min_size=64, max_size=64),
)
@settings(max_examples=200, deadline=None)
def test_chain_that_is_taken_lies_in_memory_and_is_finite(descriptors, heads, indirect):
    """Whatever the tables hold, `pop` gives only buffers that are RAM, or says that the queue is broken."""
    board = _plain_board()
    queue = board.device.queues[0]
    ring = board.rings[0]
    board.memory.write(ring.desc, b"".join(struct.pack("<QIHH", *d) for d in descriptors))
    board.memory.write(BUFFERS, indirect)
    for head in heads:
        ring.offer(head)
    taken = list(_pop_all(queue))
    assert len(taken) <= len(heads)
    for element in taken:
        for address, length in (*element.readable, *element.writable):
            assert length > 0
            assert address + length <= RAM
        assert len(element.readable) + len(element.writable) <= r.MAX_QUEUE_SIZE


_BOARDS: list[VirtioBoard] = []


def _plain_board():
    if not _BOARDS:
        board = VirtioBoard(VirtioRng("r0"))
        _BOARDS.append(board)
    board = _BOARDS[0]
    board.start()
    return board


def _pop_all(queue):
    with suppress(QueueBroken):
        while (element := queue.pop()) is not None:
            yield element
