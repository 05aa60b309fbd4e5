"""Peers that mean harm with what only regions, messages, migration and memory have; see `test_malformed`, too."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time

import pytest

from devices.edu import REG_IRQ_RAISE, Edu
from devices.pci import config as cfg
from devices.pci.device import Doorbell, PciDevice
from support.malformed import feature
from support.vfio_board import BAR
from support.vfio_user import RawClient, open_fds, serving, version
from support.vfio_user_board import RemoteBoard
from vmm.errors import ConfigError
from vmm.memory import GuestMemory, IoRegion
from vmm.shared_memory import SharedRegion, memfd
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command, MigrationState
from vmm.vfio_user.server import Server

ALL_ONES = 0xFFFF_FFFF
AREA = (0x1000, 0x1000)


class Shared(PciDevice):
    """BAR 0: a page of registers, a page of memory; one doorbell."""

    driver = "shared"
    vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x5EA0, 0x00FF, 1

    def __init__(self, id=None, **values):
        super().__init__(id, **values)
        self.doorbells = [Doorbell(0, 0x20, 4)]

    def realize(self, board):
        super().realize(board)
        region = SharedRegion("shared", 0x2000, [AREA], lambda *_: 0x1234, lambda *_: None)
        self.holdings.hold("memory", "shared", region.close)
        self.register_bar(0, region)


class Liar(Server):
    """A server that changes what it answers to one command: `lie(payload, fds)` gives payload and descriptors.

    No payload at all is an error.
    """

    def __init__(self, device, path, command, lie):
        self.command, self.lie = command, lie
        super().__init__(device, path)

    def _dispatch(self, connection, message):
        if message.command != self.command or message.is_reply:
            super()._dispatch(connection, message)
            return
        reply = self.endpoint.handle(message)
        fds, self.endpoint.reply_fds = self.endpoint.reply_fds, []
        payload, fds = self.lie(reply[p.HEADER_SIZE :], fds)
        refusal = p.error_bytes(message.msg_id, message.command, errno.EPERM)
        connection.send(refusal if payload is None else p.reply_bytes(message.msg_id, message.command, payload), fds)
        for fd in fds:
            os.close(fd)


@pytest.fixture
def liar(tmp_path):
    made = []

    def start(device, command, lie):
        server = Liar(device, str(tmp_path / "liar"), command, lie)
        thread = threading.Thread(target=server.run)
        thread.start()
        made.append((server, thread))
        return server.path

    yield start
    for server, thread in made:
        server.stop()
        thread.join()
        server.close()


# Servers.


def sparse(*areas, header=(1, 1, 0), cap_offset=32, flags=0xF, size=0x2000):
    """A region information of our own, with the right descriptor."""

    def lie(payload, fds):
        info = p.RegionInfo.parse(payload)
        if info.index != 0 or not fds:
            return payload, fds
        capability = struct.pack("<HHIII", *header, len(areas), 0) + b"".join(struct.pack("<QQ", *a) for a in areas)
        fields = {"argsz": 32 + len(capability), "flags": flags, "index": 0, "cap_offset": cap_offset}
        built = p.RegionInfo.build({**fields, "size": size, "offset": 0, "capabilities": capability})
        return built, fds

    return lie


def other_fd(make):
    def lie(payload, fds):
        if not fds:
            return payload, fds
        for fd in fds:
            os.close(fd)
        return payload, [make()]

    return lie


def short_file():
    fd = os.memfd_create("short")
    os.truncate(fd, 0x1000)
    return fd


MAPPINGS = {
    "area outside the region": sparse((0x1000, 0x10000)),
    "area that wraps": sparse((2**64 - 0x1000, 0x2000)),
    "area that is no page": sparse((0x800, 0x10)),
    "empty area": sparse((0x1000, 0)),
    "a thousand areas": sparse(*[(0x1000, 0x1000)] * 1000),
    "no area": sparse(),
    "capabilities in a circle": sparse((0, 0x1000), header=(9, 1, 32)),
    "capability behind the end": sparse((0, 0x1000), cap_offset=4000),
    "an eventfd": other_fd(lambda: os.eventfd(0)),
    "a file that is too short": other_fd(short_file),
    "a file that is read-only": other_fd(lambda: os.open("/proc/self/exe", os.O_RDONLY)),
    "descriptors that nobody asked for": lambda payload, fds: (payload, [*fds, *(os.eventfd(0) for _ in range(9))]),
}


@pytest.mark.parametrize("name", MAPPINGS)
def test_region_that_cannot_be_mapped_as_told_is_accessed_by_messages(liar, name):
    board = RemoteBoard()
    device = board.attach(liar(Shared(), Command.DEVICE_GET_REGION_INFO, MAPPINGS[name]))
    assert device._mapped == {}
    board.enable(device)
    assert board.read(BAR) == 0x1234
    board.write(BAR + 0x1800, 0x55)
    assert board.read(BAR + 0x1800) == 0x55
    device.unrealize()
    assert board.ledger.rows() == []
    assert [region.fd for region in device.remote.regions] == [-1] * 8


def test_file_behind_a_mapped_region_that_is_cut_off_reads_all_ones(liar):
    unsealed = os.memfd_create("unsealed")
    os.truncate(unsealed, 0x2000)
    path = liar(Shared(), Command.DEVICE_GET_REGION_INFO, other_fd(lambda: os.dup(unsealed)))
    board = RemoteBoard()
    device = board.attach(path)
    board.enable(device)
    board.write(BAR + 0x1000, 7)
    assert os.pread(unsealed, 1, 0x1000) == b"\7"
    os.truncate(unsealed, 0)
    assert board.read(BAR + 0x1000) == ALL_ONES
    board.write(BAR + 0x1000, 7)
    assert os.fstat(unsealed).st_size == 0
    device.unrealize()
    os.close(unsealed)


def io_fds(argsz=56, count=1, offset=0x20, size=4, index=0, kind=0, flags=0, layout=p.SubRegionIoFd):
    entry = {"offset": offset, "size": size, "fd_index": index, "type": kind, "flags": flags, "datamatch": 0}
    entry |= {"shadow_mem_fd_index": 0, "shadow_offset": 0} if layout is not p.SubRegionIoFd else {}

    def lie(_payload, fds):
        reply = {"argsz": argsz, "flags": 0, "index": 0, "count": count, "sub_regions": layout.build(entry)}
        return p.RegionIoFds.build(reply), fds or [os.eventfd(0)]

    return lie


BELLS = {
    "another descriptor's index": (io_fds(index=7), False),
    "no descriptor": (io_fds(index=0xFFFF_FFFF), False),
    "outside the region": (io_fds(offset=0x2000), False),
    "any size": (io_fds(size=0), False),
    "an ioregionfd": (io_fds(kind=1), False),
    "a shadow ioeventfd": (io_fds(kind=2), False),
    "more than there are": (io_fds(count=1000), False),
    "entries of an odd size": (io_fds(argsz=57), False),
    "a file": (lambda payload, fds: (io_fds()(payload, fds)[0], [short_file()]), False),
    "nothing": (lambda _payload, _fds: (b"", []), False),
    "libvfio-user's layout": (io_fds(argsz=64, layout=p.LibvfioUserSubRegionIoFd), True),
    "the specification's layout": (io_fds(), True),
}


@pytest.mark.parametrize("name", BELLS)
def test_doorbell_that_makes_no_sense_is_written_by_message(liar, name):
    lie, works = BELLS[name]
    board = RemoteBoard()
    device = board.attach(liar(Shared(), Command.DEVICE_GET_REGION_IO_FDS, lie))
    board.enable(device)
    assert bool(device._doorbells) == works
    board.write(BAR + 0x20, 1)
    assert board.read(BAR) == 0x1234
    device.unrealize()
    assert board.ledger.rows() == []


def config_of(**bytes_at):
    """Configuration space with other bytes."""

    def lie(payload, fds):
        offset, region, count = p.REGION_ACCESS.unpack_from(payload)
        data = bytearray(payload[16:])
        if region == p.REGION_CONFIG:
            for at, value in bytes_at.items():
                place = int(at[1:], 16) - offset
                if 0 <= place < count:
                    data[place] = value
        return payload[:16] + bytes(data), fds

    return lie


CAPABILITIES = {
    "a list in a circle": config_of(x6=0x10, x34=0x40, x40=0x09, x41=0x40),
    "a list that leads into the header": config_of(x6=0x10, x34=0x04),
    "MSI at the end of the space": config_of(x6=0x10, x34=0xFC, xfc=0x05, xfd=0),
    "MSI-X outside its BAR": config_of(
        x6=0x10, x34=0x40, x40=0x11, x41=0, x42=0xFF, x43=7, x45=0xFF, x46=0xFF, x49=0x80
    ),
    "MSI-X with table and pending bits in one place": config_of(x6=0x10, x34=0x40, x40=0x11, x41=0),
    "MSI-X in a BAR that is not there": config_of(x6=0x10, x34=0x40, x40=0x11, x41=0, x44=5, x48=5, x49=0x80),
    "MSI-X in BAR 7": config_of(x6=0x10, x34=0x40, x40=0x11, x41=0, x44=7, x48=7, x49=0x80),
}


@pytest.mark.parametrize("name", CAPABILITIES)
def test_capability_that_makes_no_sense_does_no_harm(liar, name):
    board = RemoteBoard()
    device = board.attach(liar(Shared(), Command.REGION_READ, CAPABILITIES[name]))
    board.enable(device)
    for at in range(0x40, 0x100, 4):
        device.config_write(at, 4, ALL_ONES)
    board.turn(device)
    device.reset()
    device.unrealize()
    assert board.ledger.rows() == []


def test_log_of_the_wrong_size_makes_all_of_ram_suspect(liar):
    fd = memfd("ram", 1 << 20)
    board = RemoteBoard()
    board.memory = GuestMemory(1 << 20, fd)
    written = []
    board.memory.on_write = lambda address, length: written.append((address, length))
    lie = {"on": False}

    def shorten(payload, fds):
        return (payload[:-8] if lie["on"] else payload), fds

    device = board.attach(liar(Shared(), Command.DEVICE_FEATURE, shorten))
    assert device.remote.offer.logged
    board.enable(device)
    written.clear()
    board.read(BAR)
    assert written == []
    lie["on"] = True
    board.read(BAR)
    assert written == [(0, 1 << 20)]
    device.unrealize()
    os.close(fd)


def test_state_without_end_is_given_up(liar, monkeypatch):
    monkeypatch.setattr("vmm.vfio_user.client.MAX_STATE", 1 << 20)

    def endless(_payload, fds):
        return p.MigData.build({"argsz": 8 + (1 << 16), "size": 1 << 16, "data": bytes(1 << 16)}), fds

    board = RemoteBoard()
    device = board.attach(liar(Edu(), Command.MIG_DATA_READ, endless))
    with pytest.raises(OSError, match="more than 1048576 bytes"):
        device.remote.save_state()
    device.unrealize()


def test_region_information_about_another_region_is_refused(liar):
    board = RemoteBoard()
    path = liar(
        Shared(), Command.DEVICE_GET_REGION_INFO, lambda payload, fds: (payload[:8] + b"\x63" + payload[9:], fds)
    )
    with pytest.raises(ConfigError, match="told of 99"):
        board.attach(path)
    assert board.ledger.rows() == []


def test_descriptors_of_a_refusal_are_closed(liar):
    board = RemoteBoard()
    path = liar(Shared(), Command.DEVICE_GET_REGION_INFO, lambda _payload, fds: (None, [*fds, os.eventfd(0)]))
    with pytest.raises(ConfigError, match="refused command 5"):
        board.attach(path)
    before = open_fds()
    for _ in range(20):
        with pytest.raises(ConfigError, match="refused command 5"):
            board.attach(path)
    assert open_fds() < before + 10  # the server's thread may be about to close what it has of the last connection
    assert board.ledger.rows() == []


# Clients.


@pytest.fixture
def server(tmp_path):
    with serving(Edu(**{"x-dma-delay-us": 0}), tmp_path) as made:
        yield made


@pytest.fixture
def client(server):
    raw = RawClient(server)
    yield raw
    raw.close()


def set_state(client, state):
    data = p.FeatureMigDeviceState.build({"device_state": state, "data_fd": -1})
    return client.call(Command.DEVICE_FEATURE, feature(2, p.FEATURE_SET, data)).failure


STATES = {
    "no JSON": b"\xff\xfe\xfd",
    "nested without end": b"[" * 60_000,
    "a number": b"1",
    "another device's": b'{"device":"nvme","version":1,"state":{}}',
    "another version's": b'{"device":"edu","version":2,"state":{}}',
    "nothing in it": b'{"device":"edu","version":1,"state":{}}',
    "no object": b'{"device":"edu","version":1,"state":[]}',
}


@pytest.mark.parametrize("name", STATES)
def test_state_that_is_none_is_refused_and_a_reset_makes_the_device_work_again(client, name):
    assert set_state(client, MigrationState.RESUMING) == 0
    data = STATES[name]
    assert client.call(Command.MIG_DATA_WRITE, struct.pack("<II", 8 + len(data), len(data)) + data).failure == 0
    assert set_state(client, MigrationState.RUNNING) == errno.EINVAL
    reply = client.call(Command.DEVICE_FEATURE, feature(2, p.FEATURE_GET, argsz=16))
    assert p.FeatureMigDeviceState.parse(reply.payload[8:]).device_state == MigrationState.ERROR
    assert set_state(client, MigrationState.RUNNING) == errno.EINVAL
    assert client.call(Command.DEVICE_RESET).failure == 0
    client.write(0, 4, 0x1234)
    assert client.read(0, 4) == 0x1234 ^ ALL_ONES


def test_state_that_is_too_long_is_refused(client, monkeypatch):
    monkeypatch.setattr("vmm.vfio_user.migration.MAX_STATE", 1 << 17)
    assert set_state(client, MigrationState.RESUMING) == 0
    piece = struct.pack("<II", 8 + (1 << 16), 1 << 16) + bytes(1 << 16)
    answers = [client.call(Command.MIG_DATA_WRITE, piece).failure for _ in range(3)]
    assert answers == [0, 0, errno.ENOSPC]


LOGS = {
    "pages of nothing": (6, struct.pack("<QII", 0, 0, 0), p.FEATURE_SET),
    "odd pages": (6, struct.pack("<QII", 4097, 0, 0), p.FEATURE_SET),
    "enormous pages": (6, struct.pack("<QII", 1 << 63, 0, 0), p.FEATURE_SET),
    "ranges that are not there": (6, struct.pack("<QII", 4096, 2**32 - 1, 0), p.FEATURE_SET),
    "range that wraps": (6, struct.pack("<QIIQQ", 4096, 1, 0, 2**64 - 1, 2), p.FEATURE_SET),
    "report without a log": (8, struct.pack("<QQQ", 0, 4096, 4096), p.FEATURE_GET),
}


@pytest.mark.parametrize("name", LOGS)
def test_log_that_makes_no_sense_is_refused(client, name):
    number, data, method = LOGS[name]
    assert client.call(Command.DEVICE_FEATURE, feature(number, method, data, argsz=1 << 16)).failure == errno.EINVAL
    assert client.is_served()


REPORTS = {
    "nothing mapped": (struct.pack("<QQQ", 1 << 40, 4096, 4096), errno.ENOENT),
    "nothing": (struct.pack("<QQQ", 0, 0, 4096), errno.EINVAL),
    "wraps": (struct.pack("<QQQ", 2**64 - 4096, 8192, 4096), errno.EINVAL),
    "unit of nothing": (struct.pack("<QQQ", 0, 4096, 0), errno.EINVAL),
    "unit of three": (struct.pack("<QQQ", 0, 4096, 3), errno.EINVAL),
    "bitmap of the whole world": (struct.pack("<QQQ", 0, 2**64 - 4096, 1), errno.EINVAL),
    "cut off": (struct.pack("<QQ", 0, 4096), errno.EINVAL),
}


@pytest.mark.parametrize("name", REPORTS)
def test_report_that_cannot_be_is_refused(client, name):
    data, expected = REPORTS[name]
    assert client.dma_map(0, 4096) == 0
    assert client.call(Command.DEVICE_FEATURE, feature(6, p.FEATURE_SET, struct.pack("<QII", 4096, 0, 0))).failure == 0
    assert client.call(Command.DEVICE_FEATURE, feature(8, p.FEATURE_GET, data, argsz=1 << 16)).failure == expected
    assert client.is_served()


def test_mappings_without_end_are_refused_at_the_limit(client, monkeypatch):
    monkeypatch.setattr("vmm.vfio_user.dma.MAX_DMA_MAPS", 100)
    answers = [client.dma_map(n << 12, 4096) for n in range(101)]
    assert answers == [0] * 100 + [errno.ENOSPC]
    assert client.is_served()


def test_eventfds_for_vectors_that_are_not_there_are_closed(client):
    fds = [os.eventfd(0) for _ in range(8)]
    before = open_fds()
    assert client.set_irqs(0x24, fds, index=1, count=8) == errno.EINVAL
    assert open_fds() == before
    for fd in fds:
        os.close(fd)


def test_flood_of_every_kind_of_message_is_answered_in_order_and_the_device_lives(client):
    write = p.REGION_ACCESS.pack(4, 0, 4) + bytes(4)
    burst = b"".join(
        (
            p.command_bytes(1, Command.REGION_WRITE, write, p.FLAG_NO_REPLY),
            p.command_bytes(2, Command.REGION_WRITE_MULTI, bytes(8), p.FLAG_NO_REPLY),
            p.command_bytes(3, 999, b"", p.FLAG_NO_REPLY),
            p.command_bytes(4, Command.DMA_MAP, bytes(32), p.FLAG_NO_REPLY),
        )
    )
    for _ in range(20):
        client.send(burst * 20)
        client.server.turn()
    assert client.is_served()


def test_client_that_stalls_inside_a_message_keeps_no_timer_waiting(client, server):
    client.send(p.command_bytes(1, Command.REGION_WRITE, bytes(20))[:20])
    done = []
    server.clock.timer("test", lambda: done.append(True)).arm(server.clock.now() + 1000)
    server.turn(1)
    server.turn()
    assert done == [True]


class Reader(PciDevice):
    """A read of register 0 is a read of memory."""

    driver = "reader"
    vendor_id, device_id, class_id = 0x1234, 0x0004, 0x00FF

    def realize(self, board):
        super().realize(board)
        read = lambda _offset, size: int.from_bytes(self.dma_read(0x1000, size), "little")  # noqa: E731
        self.register_bar(0, IoRegion("reader", 0x1000, read, lambda *_: None))


@pytest.mark.parametrize(
    "answer",
    [
        lambda m: p.reply_bytes(m.msg_id, m.command),
        lambda m: p.reply_bytes(m.msg_id, m.command, bytes(1000)),
        lambda m: p.error_bytes(m.msg_id, m.command, 0),
        lambda m: p.reply_bytes(m.msg_id + 1, m.command, bytes(20)) + p.error_bytes(m.msg_id, m.command, 5),
        lambda m: p.reply_bytes(m.msg_id, Command.DMA_WRITE, m.payload),
    ],
    ids=["empty", "too long", "an error without a number", "another's first", "of another command"],
)
def test_wrong_answers_to_dma_read_all_ones(tmp_path, answer):
    with serving(Reader(), tmp_path) as server:
        client = RawClient(server)
        client.dma_map(0, 1 << 20)
        client.write(p.REGION_CONFIG, cfg.COMMAND, cfg.COMMAND_MASTER, 2)
        thread = threading.Thread(target=answer_one, args=(client, answer))
        client.send(p.command_bytes(5, Command.REGION_READ, p.REGION_ACCESS.pack(0, 0, 4)))
        thread.start()
        server.turn(5)
        thread.join()
        reply = client.receive()
        assert (reply.msg_id, reply.payload[16:]) == (5, b"\xff\xff\xff\xff")
        assert client.is_served()
        client.close()


def answer_one(client, answer):
    message = client.connection.wait(time.monotonic() + 5)
    assert message.command == Command.DMA_READ
    client.connection.send(answer(message))


def test_client_that_truncates_the_file_under_a_device_does_not_end_the_server(client, server):
    fd = os.memfd_create("ram")
    os.truncate(fd, 0x4000)
    assert client.dma_map(0, 0x4000, fd) == 0
    os.truncate(fd, 0x1000)
    assert server.memory.read(0x800, 4) == bytes(4)
    assert server.memory.read(0xFFE, 4) == b"\0\0\xff\xff"
    assert server.memory.read(0x3000, 4) == b"\xff" * 4
    server.memory.write(0x3000, b"lost")
    assert os.fstat(fd).st_size == 0x1000
    os.close(fd)


def test_interrupt_of_a_client_that_went_and_came_is_told_to_the_new_eventfd_only(server):
    first = RawClient(server)
    old, new = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    first.set_irqs(0x24, [old])
    first.close()
    second = RawClient(server)
    second.set_irqs(0x24, [new])
    second.write(0, REG_IRQ_RAISE, 1)
    assert os.eventfd_read(new) == 1
    with pytest.raises(BlockingIOError):
        os.eventfd_read(old)
    second.close()
    for fd in (old, new):
        os.close(fd)


def test_version_again_and_again_is_one_connection_each(server):
    before = open_fds()
    for _ in range(50):
        client = RawClient(server, negotiate=False)
        assert client.call(Command.VERSION, version(major=9)).failure == errno.EINVAL
        client.close()
    assert open_fds() == before
