"""The network card, and the back ends at the other end of its cable."""

from __future__ import annotations

import os
import socket

import pytest

from devices.virtio import net
from devices.virtio import registers as r
from devices.virtio.net import NetConfig, NetHeader, VirtioNet
from support.virtio import BUFFERS, VirtioBoard
from vmm.errors import ConfigError, InUse, PropertyError, UsageError
from vmm.netdev import KEPT_FRAMES, LARGEST_FRAME, HubPort, Netdev, make_netdev

MAC = bytes.fromhex("525400aabbcc")
PEER = bytes.fromhex("525400112233")
FRAME = MAC + PEER + b"\x08\x00" + bytes(range(50))


class Wire(Netdev):
    """A back end that keeps what it gets."""

    def __init__(self):
        super().__init__("n0")
        self.sent = []

    def send(self, frame):
        self.sent.append(frame)


class NetBoard(VirtioBoard):
    def __init__(self, modern=True, features=None, wire=None, **values):
        self.wire = wire or Wire()
        card = VirtioNet("net0", **{"mac": MAC.hex(":"), "netdev": "n0"} | values)
        super().__init__(card, modern, netdevs={"n0": self.wire})
        self.start(features)
        self.header = net.HEADER_SIZE if modern else net.LEGACY_HEADER_SIZE
        self.free = BUFFERS

    def transmit(self, frame):
        self.memory.write(BUFFERS + 0x8000, bytes(self.header) + frame)
        self.rings[net.TX].submit((BUFFERS + 0x8000, self.header + len(frame), False))

    def room(self, length=2048, count=1):
        for _ in range(count):
            self.rings[net.RX].submit((self.free, length, True))
            self.free += length

    def frames(self):
        """(header, frame) of what was received, one a buffer."""
        ring, found = self.rings[net.RX], []
        for head, length in ring.done():
            entry = r.Descriptor.parse(self.memory.read(ring.desc + 16 * head, 16))
            found.append(self.memory.read(entry.address, length))
        return found

    def command(self, kind, command, data=b""):
        self.memory.write(BUFFERS + 0x7000, bytes((kind, command)) + data)
        self.rings[net.CONTROL].submit((BUFFERS + 0x7000, 2 + len(data), False), (BUFFERS + 0x7800, 1, True))
        assert len(self.rings[net.CONTROL].done()) == 1
        return self.memory.read(BUFFERS + 0x7800, 1)[0]


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
def test_frames_go_out_and_come_in(modern):
    board = NetBoard(modern, features=None if modern else net.F_MAC)
    board.transmit(FRAME)
    assert board.wire.sent == [FRAME]
    assert board.rings[net.TX].done() == [(0, 0)]
    board.room()
    board.wire.deliver(FRAME)
    [raw] = board.frames()
    assert raw[board.header :] == FRAME
    if modern:
        assert NetHeader.parse(raw[: board.header]).num_buffers == 1
    assert board.irq


def test_frames_wait_for_room_in_order_and_the_oldest_are_lost():
    board = NetBoard()
    for n in range(KEPT_FRAMES + 2):
        board.wire.deliver(MAC + n.to_bytes(2, "big") + bytes(50))
    board.room(256, 2)
    assert [int.from_bytes(raw[18:20], "big") for raw in board.frames()] == [2, 3]


def test_mergeable_buffers_hold_what_one_cannot():
    board = NetBoard()
    board.room(40, 3)
    board.wire.deliver(FRAME)
    pieces = board.frames()
    assert NetHeader.parse(pieces[0][:12]).num_buffers == 2
    assert b"".join(pieces)[12:] == FRAME


def test_frame_that_finds_no_room_leaves_the_buffers_to_the_next():
    board = NetBoard()
    board.room(40)
    board.wire.deliver(FRAME)
    assert board.frames() == []
    assert board.device.dropped == 1
    board.wire.deliver(FRAME[:20])
    assert [raw[12:] for raw in board.frames()] == [FRAME[:20]]


def test_without_mergeable_buffers_a_frame_needs_one():
    board = NetBoard(mrg_rxbuf=False)
    board.room(40, 2)
    board.wire.deliver(FRAME)
    assert board.frames() == []


def test_huge_frame_is_dropped_and_the_queue_goes_on():
    board = NetBoard()
    ring = board.rings[net.TX]
    ring.submit(*[(BUFFERS, 0x8000, False)] * 64)
    assert ring.done() == [(0, 0)]
    assert board.wire.sent == []
    assert board.device.dropped == 1
    board.transmit(FRAME)
    assert board.wire.sent == [FRAME]


def test_frame_without_header_breaks_the_device():
    board = NetBoard()
    board.rings[net.TX].submit((BUFFERS, 11, False))
    assert board.status & r.STATUS_NEEDS_RESET


def test_stopped_machine_takes_no_frames_until_it_runs_on():
    board = NetBoard()
    board.room()
    [listener] = board.listeners
    listener("STOP", {})
    board.wire.deliver(FRAME)
    assert board.frames() == []
    listener("RESUME", {})
    assert len(board.frames()) == 1


class TestFilter:
    def modes(self, board, **modes):
        for name, on in {"promiscuous": False, **modes}.items():
            assert board.command(net.CTRL_RX, net.RX_MODES.index(name), bytes((on,))) == net.CONTROL_OK

    def received(self, board, address):
        board.wire.deliver(address + FRAME[6:])
        return len(board.frames()) == 1

    def test_everything_at_first_then_what_was_asked_for(self):
        board = NetBoard()
        board.room(256, 32)
        other, many, all_of_them = bytes.fromhex("525400999999"), bytes.fromhex("01005e000001"), b"\xff" * 6
        assert self.received(board, other)
        self.modes(board)
        assert [self.received(board, a) for a in (MAC, other, many, all_of_them)] == [True, False, False, True]
        self.modes(board, all_multicast=True, no_broadcast=True)
        assert [self.received(board, a) for a in (MAC, many, all_of_them)] == [True, True, False]
        self.modes(board, all_multicast=False, no_broadcast=False)
        table = (1).to_bytes(4, "little") + other + (1).to_bytes(4, "little") + many
        assert board.command(net.CTRL_MAC, net.MAC_TABLE_SET, table) == net.CONTROL_OK
        assert [self.received(board, a) for a in (other, many, PEER)] == [True, True, False]
        self.modes(board, no_unicast=True, no_multicast=True)
        assert [self.received(board, a) for a in (MAC, many)] == [False, False]

    def test_address_can_be_changed_and_comes_back_at_reset(self):
        board = NetBoard()
        assert board.command(net.CTRL_MAC, net.MAC_ADDRESS_SET, PEER) == net.CONTROL_OK
        assert board.own(0, 4).to_bytes(4, "little") == PEER[:4]
        board.start()
        assert board.own(0, 4).to_bytes(4, "little") == MAC[:4]

    def test_too_many_addresses_let_all_of_their_kind_in(self):
        board = NetBoard()
        board.room(256, 4)
        self.modes(board)
        table = (65).to_bytes(4, "little") + PEER * 65 + bytes(4)
        assert board.command(net.CTRL_MAC, net.MAC_TABLE_SET, table) == net.CONTROL_OK
        assert self.received(board, bytes.fromhex("525400777777"))

    @pytest.mark.parametrize(
        ("kind", "command", "data"),
        [
            (net.CTRL_RX, 9, b"\1"),
            (net.CTRL_RX, 0, b""),
            (net.CTRL_MAC, net.MAC_ADDRESS_SET, b"abc"),
            (net.CTRL_MAC, net.MAC_TABLE_SET, b"\xff\xff\xff\xff"),
            (net.CTRL_MAC, net.MAC_TABLE_SET, b"\0"),
            (net.CTRL_ANNOUNCE, 0, b""),
            (99, 0, b""),
        ],
    )
    def test_wrong_command_is_answered_with_an_error(self, kind, command, data):
        assert NetBoard().command(kind, command, data) == net.CONTROL_ERROR

    def test_command_without_room_for_the_answer_breaks_the_device(self):
        board = NetBoard()
        board.rings[net.CONTROL].submit((BUFFERS, 2, False))
        assert board.status & r.STATUS_NEEDS_RESET


class TestLink:
    def test_pulled_cable_is_told_and_nothing_passes(self):
        board = NetBoard()
        board.room()
        board.wire.set_link(False)
        assert board.isr & r.ISR_CONFIG
        assert not board.own(6, 2) & net.S_LINK_UP
        board.wire.deliver(FRAME)
        assert board.frames() == []
        board.wire.set_link(True)
        assert board.own(6, 2) & net.S_LINK_UP

    def test_configuration_is_as_declared(self):
        board = NetBoard()
        raw = b"".join(board.own(at, 4).to_bytes(4, "little") for at in (0, 4, 8))
        config = NetConfig.parse(raw)
        assert (config.mac, config.status, config.max_virtqueue_pairs) == (MAC, net.S_LINK_UP, 1)

    def test_announcement_is_a_rarp_frame_and_the_guest_is_asked(self):
        board = NetBoard()
        board.device.announce()
        [frame] = board.wire.sent
        assert frame[:6] == b"\xff" * 6
        assert frame[6:12] == MAC
        assert frame[12:14] == b"\x80\x35"
        assert len(frame) == 60
        assert board.own(6, 2) & net.S_ANNOUNCE
        assert board.command(net.CTRL_ANNOUNCE, 0) == net.CONTROL_OK
        assert not board.own(6, 2) & net.S_ANNOUNCE


class TestPlug:
    def test_card_without_cable_takes_frames_and_loses_them(self):
        board = NetBoard(netdev=None)
        board.transmit(FRAME)
        assert board.rings[net.TX].done() == [(0, 0)]

    def test_address_is_made_up_by_slot_if_none_is_given(self):
        board = NetBoard(mac=None)
        assert board.own(0, 4).to_bytes(4, "little") + board.own(4, 2).to_bytes(2, "little") == bytes.fromhex(
            "52540012345b"
        )

    def test_wrong_ones_are_refused(self):
        for mac in ("52:54", "xx:54:00:00:00:00", "525400000000", "52:54:00:00:00:0"):
            with pytest.raises(PropertyError, match="doesn't take value"):
                VirtioNet("n", mac=mac)
        board = NetBoard()
        before = board.ledger.snapshot()
        for name, error in (("n9", PropertyError), ("n0", InUse)):
            with pytest.raises(error):
                board.plug(VirtioNet("n1", netdev=name, addr=6 << 3))
        assert board.ledger.difference(before) == ([], [])

    def test_unplug_frees_the_back_end(self):
        board = NetBoard()
        board.device.unrealize()
        assert board.wire.frontend is None
        assert board.listeners == []
        board.wire.deliver(FRAME)
        assert board.ledger.difference(board.before) == ([], [])


class TestBackends:
    def test_hub_gives_frames_to_all_other_ports(self):
        hubs = {}
        ports = [make_netdev({"type": "hubport", "id": f"h{n}", "hubid": "3"}, hubs) for n in range(3)]
        stranger = make_netdev({"type": "hubport", "id": "s", "hubid": "4"}, hubs)
        boards = [NetBoard(wire=port) for port in (*ports, stranger)]
        for board in boards:
            board.room()
        boards[0].transmit(FRAME)
        assert [len(board.frames()) for board in boards] == [0, 1, 1, 0]
        ports[1].close()
        boards[0].transmit(FRAME)
        assert [len(board.frames()) for board in boards] == [0, 0, 0, 0]  # no room in the third: it keeps it
        assert isinstance(ports[0], HubPort)

    def test_socket_carries_frames_behind_their_length(self):
        ours, theirs = socket.socketpair()
        netdev = make_netdev({"type": "socket", "id": "n0", "fd": str(ours.detach())}, {})
        board = NetBoard(wire=netdev)
        board.transmit(FRAME)
        assert theirs.recv(1000) == len(FRAME).to_bytes(4, "big") + FRAME
        board.room(256, 3)
        raw = (len(FRAME).to_bytes(4, "big") + FRAME) * 2
        for piece in (raw[:1], raw[1:7], raw[7:80], raw[80:]):
            netdev.receive(piece)
        assert [frame[12:] for frame in board.frames()] == [FRAME, FRAME]
        netdev.close()
        theirs.close()

    def test_length_that_cannot_be_ends_the_use_of_a_socket(self):
        ours, theirs = socket.socketpair()
        netdev = make_netdev({"type": "socket", "id": "n0", "fd": str(ours.detach())}, {})
        board = NetBoard(wire=netdev)
        board.room(256, 2)
        netdev.receive((LARGEST_FRAME + 1).to_bytes(4, "big") + bytes(100))
        netdev.receive(len(FRAME).to_bytes(4, "big") + FRAME)
        assert board.frames() == []
        netdev.close()
        theirs.close()

    def test_peer_that_does_not_read_loses_whole_frames_only(self):
        ours, theirs = socket.socketpair()
        netdev = make_netdev({"type": "socket", "id": "n0", "fd": str(ours.detach())}, {})
        board = NetBoard(wire=netdev)
        big = bytes(30_000)
        for _ in range(60):
            board.transmit(big)
            board.rings[net.TX].done()
        theirs.setblocking(False)
        got = bytearray()
        while True:
            try:
                got += theirs.recv(1 << 20)
            except BlockingIOError:
                if not netdev.stream._out:
                    break
                netdev.stream.flush()
        whole = len(got) // 30_004
        assert 0 < whole < 60
        assert len(got) == whole * 30_004
        assert all(got[n * 30_004 : n * 30_004 + 4] == (30_000).to_bytes(4, "big") for n in range(whole))
        netdev.close()
        theirs.close()

    def test_wrong_options_are_refused(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"")
        fd = os.open(path, os.O_RDONLY)
        for options, error, message in (
            ({}, UsageError, "'type' is missing"),
            ({"type": "user", "id": "n"}, UsageError, "does not accept value 'user'"),
            ({"type": "hubport"}, UsageError, "'id' is missing"),
            ({"type": "hubport", "id": "n"}, UsageError, "'hubid' is missing"),
            ({"type": "hubport", "id": "n", "hubid": "x"}, UsageError, "expects a number"),
            ({"type": "hubport", "id": "n", "hubid": "0", "foo": "1"}, UsageError, "Invalid parameter 'foo'"),
            ({"type": "socket", "id": "n"}, UsageError, "exactly one of"),
            ({"type": "socket", "id": "n", "fd": "3", "listen": ":1"}, UsageError, "exactly one of"),
            ({"type": "socket", "id": "n", "fd": "999999"}, ConfigError, "is not open"),
            ({"type": "socket", "id": "n", "fd": str(fd)}, ConfigError, "is not a socket"),
            ({"type": "socket", "id": "n", "connect": "nowhere"}, UsageError, "want HOST:PORT"),
        ):
            with pytest.raises(error, match=message):
                make_netdev(options, {})
        os.close(fd)
