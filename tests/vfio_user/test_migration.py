"""Migration of a served device: the states, the stream, and a device that goes on elsewhere as it was."""

from __future__ import annotations

import threading
import time
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.edu import REG_DMA_CMD, REG_DMA_COUNT, REG_DMA_DST, REG_DMA_SRC, REG_FACTORIAL, REG_IRQ_RAISE, Edu
from devices.pci import config as cfg
from devices.pci.msi import MSI_ENABLE
from support.malformed import feature
from support.vfio_user import RawClient, serving
from vmm.kernel.files import DescriptorTable
from vmm.memory import GuestMemory
from vmm.vfio_user import protocol as p
from vmm.vfio_user.client import RemoteDevice
from vmm.vfio_user.migration import ARCS, SAVING, Migration, way
from vmm.vfio_user.protocol import Command, MigrationState
from vmm.vfio_user.server import Server

S = MigrationState


def shortest(before, after):
    """The length of the shortest way with no saving state inside, by trying all; None if there is none."""
    queue, seen = deque([(before, 0)]), set()
    while queue:
        at, steps = queue.popleft()
        if at is after:
            return steps
        if at in seen or (at is not before and at in SAVING):
            continue
        seen.add(at)
        queue.extend((following, steps + 1) for following in ARCS.get(at, ()))
    return None


@given(st.sampled_from(S), st.sampled_from(S))
def test_way_is_the_shortest_of_arcs_and_saves_only_at_its_ends(before, after):
    found = way(before, after)
    if (before, after) == (S.STOP_COPY, S.PRE_COPY):
        assert found is None
        return
    assert (None if found is None else len(found)) == shortest(before, after)
    at = before
    for step in found or ():
        assert step in ARCS[at]
        at = step
    assert not SAVING & set((found or [])[:-1])


def test_stop_copy_to_pre_copy_and_states_of_kernels_only_cannot_be_had():
    assert way(S.STOP_COPY, S.PRE_COPY) is None
    assert way(S.RUNNING, S.RUNNING_P2P) is None
    assert way(S.ERROR, S.RUNNING) is None
    assert way(S.RUNNING, S.STOP_COPY) == [S.STOP, S.STOP_COPY]
    assert way(S.RESUMING, S.RUNNING) == [S.STOP, S.RUNNING]


class Two:
    """Two servers of an edu on threads, and a client for each."""

    def __init__(self, path):
        self.servers, self.threads, self.clients = [], [], []
        for name in ("from", "to"):
            server = Server(Edu(**{"x-dma-delay-us": 100}), str(path / name))
            thread = threading.Thread(target=server.run)
            thread.start()
            client = RemoteDevice(name, server.path, GuestMemory(1 << 20), DescriptorTable(), lambda _: None)
            client.attach()
            self.servers.append(server)
            self.threads.append(thread)
            self.clients.append(client)

    def close(self):
        for server, thread, client in zip(self.servers, self.threads, self.clients, strict=True):
            client.close()
            server.stop()
            thread.join()
            server.close()


@pytest.fixture
def two(tmp_path):
    made = Two(tmp_path)
    yield made
    made.close()


def test_device_goes_on_elsewhere_with_registers_configuration_and_interrupt(two):
    source, target = two.clients
    source.config_write(cfg.COMMAND, 2, cfg.COMMAND_MASTER | cfg.COMMAND_MEMORY)
    source.config_write(cfg.BASE_ADDRESS_0, 4, 0xFE00_0000)
    source.config_write(0x44, 4, 0xFEE0_0000)
    source.bar_write(0, 4, 4, 0x1234)
    source.bar_write(0, REG_IRQ_RAISE, 4, 5)
    target.load_state(source.save_state())
    for offset in (0, cfg.COMMAND, cfg.BASE_ADDRESS_0, 0x40, 0x44):
        assert target.config_read(offset, 4) == source.config_read(offset, 4)
    assert target.config_read(cfg.STATUS, 2) & cfg.STATUS_INTERRUPT
    assert target.bar_read(0, 4, 4) == 0x1234 ^ 0xFFFF_FFFF
    assert target.bar_read(0, 0x24, 4) == 5


def test_what_was_under_way_comes_to_its_end_elsewhere(two):
    source, target = two.clients
    for client in two.clients:
        client.config_write(cfg.COMMAND, 2, cfg.COMMAND_MASTER)
    target.offer.memory.write(0x1000, b"elsewhere")
    source.set_state(S.STOP)  # nothing passes meanwhile
    for register, value in ((REG_DMA_SRC, 0x1000), (REG_DMA_DST, 0x40000), (REG_DMA_COUNT, 9), (REG_DMA_CMD, 1)):
        source.bar_write(0, register, 8, value)
    source.bar_write(0, REG_FACTORIAL, 4, 5)
    target.load_state(source.save_state())
    deadline = time.monotonic() + 10
    while target.bar_read(0, REG_DMA_CMD, 8) & 1 or target.bar_read(0, 0x20, 4) & 1:
        assert time.monotonic() < deadline
    assert bytes(two.servers[1].device.buffer[:9]) == b"elsewhere"
    assert target.bar_read(0, REG_FACTORIAL, 4) == 120
    assert source.bar_read(0, 0x20, 4) & 1  # the one that was left stands still


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
    reply = client.call(Command.DEVICE_FEATURE, feature(2, p.FEATURE_SET, data))
    return reply.failure


def get_state(client):
    reply = client.call(Command.DEVICE_FEATURE, feature(2, p.FEATURE_GET, argsz=16))
    return p.FeatureMigDeviceState.parse(p.DeviceFeature.parse(reply.payload).data).device_state


def read_state(client, size):
    reply = client.call(Command.MIG_DATA_READ, p.MigData.build({"argsz": 8 + size, "size": size, "data": b""}))
    return p.MigData.parse(reply.payload)


def test_stream_is_read_in_pieces_and_ends_with_a_short_one(client):
    assert set_state(client, S.STOP_COPY) == 0
    pieces = []
    while not pieces or pieces[-1].size == 1000:
        pieces.append(read_state(client, 1000))
        assert len(pieces[-1].data) == 1000  # as long as was asked for
    data = b"".join(piece.data[: piece.size] for piece in pieces)
    assert data.startswith(b'{"device":"edu"')
    assert read_state(client, 1000).size == 0
    assert set_state(client, S.RUNNING) == 0


def test_writes_are_refused_while_the_state_is_read_or_replaced(client):
    for state in (S.STOP_COPY, S.RESUMING):
        assert set_state(client, state) == 0
        write = p.REGION_ACCESS.pack(4, 0, 4) + bytes(4)
        assert client.call(Command.REGION_WRITE, write).failure
        assert client.read(0, 0) == 0x0100_00ED
    assert set_state(client, S.PRE_COPY) == 0
    client.write(0, 4, 7)


def test_stopped_device_does_nothing_until_it_runs_again(client):
    assert set_state(client, S.STOP) == 0
    client.write(0, REG_FACTORIAL, 6)
    for _ in range(20):
        client.server.turn()
    assert client.read(0, 0x20) & 1
    assert set_state(client, S.RUNNING) == 0
    deadline = time.monotonic() + 10
    while client.read(0, 0x20) & 1:
        assert time.monotonic() < deadline
    assert client.read(0, REG_FACTORIAL) == 720


def test_client_that_goes_with_the_device_stopped_leaves_it_running(server):
    client = RawClient(server)
    assert set_state(client, S.STOP_COPY) == 0
    client.close()
    client = RawClient(server)
    assert get_state(client) == S.RUNNING
    client.close()


def test_reset_leads_back_to_running(client):
    assert set_state(client, S.RESUMING) == 0
    assert client.call(Command.DEVICE_RESET).failure == 0
    assert get_state(client) == S.RUNNING


def test_msi_is_part_of_the_state(tmp_path):
    with serving(Edu(), tmp_path) as server:
        device = server.device
        device.config_write(0x42, 2, MSI_ENABLE)
        device.msi.pending = 1
        saved = Migration(device, lambda _: None).save()
        device.reset()
        assert not device.msi.enabled
        Migration(device, lambda _: None).load(saved)
        assert device.msi.enabled
        assert device.msi.pending == 1


def test_state_that_fails_half_way_leaves_nothing_of_itself(client):
    client.write(p.REGION_CONFIG, cfg.COMMAND, cfg.COMMAND_MASTER, 2)
    assert set_state(client, S.STOP_COPY) == 0
    piece = read_state(client, 1 << 16)
    broken = piece.data[: piece.size].replace(b'"msi":{"pending":0}', b'"msi":{"pending":99}')
    assert len(broken) == piece.size + 1
    assert client.call(Command.DEVICE_RESET).failure == 0
    assert set_state(client, S.RESUMING) == 0
    written = p.MigData.build({"argsz": 8 + len(broken), "size": len(broken), "data": broken})
    assert client.call(Command.MIG_DATA_WRITE, written).failure == 0
    assert set_state(client, S.STOP)
    assert get_state(client) == S.ERROR
    assert client.read(p.REGION_CONFIG, cfg.COMMAND, 2) == 0


def test_device_that_cannot_be_migrated_says_so(tmp_path):
    class Plain(Edu):
        migratable = False

    with serving(Plain(), tmp_path) as server:
        client = RawClient(server)
        assert client.call(Command.DEVICE_FEATURE, feature(1, p.FEATURE_PROBE)).failure
        assert client.call(Command.MIG_DATA_READ, p.MigData.build({"argsz": 16, "size": 8, "data": b""})).failure
        assert client.call(Command.MIG_DATA_WRITE, p.MigData.build({"argsz": 8, "size": 0, "data": b""})).failure
        client.close()
