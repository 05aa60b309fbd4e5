"""The log of a device's writes, and its vectors: each page and each message is told once, and no other."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.edu import Edu
from support.malformed import feature
from support.vfio_user import RawClient, serving
from vmm.vfio_user import protocol as p
from vmm.vfio_user.dma import DirtyLog, bitmap_size
from vmm.vfio_user.protocol import Command

WRITES = st.lists(st.tuples(st.integers(0, 0x5_0000), st.integers(1, 0x9000)), max_size=8)


@given(WRITES, st.integers(0, 0x40), st.integers(1, 0x40_000), st.sampled_from([512, 4096, 8192, 1 << 16]))
def test_bit_is_set_if_a_logged_page_of_the_unit_was_written(writes, first, length, unit):
    start = first * unit
    log = DirtyLog(4096)
    for address, count in writes:
        log.add(address, count)
    bits = int.from_bytes(log.take(start, length, unit), "little")
    pages = {page for a, n in writes for page in range(a // 4096, (a + n - 1) // 4096 + 1)}
    wanted = {
        at // unit
        for page in pages
        for at in range(max(page * 4096, start), min((page + 1) * 4096, start + length), min(unit, 512))
    } | {
        max(page * 4096, start) // unit for page in pages if page * 4096 < start + length and (page + 1) * 4096 > start
    }
    assert {start // unit + n for n in range(bits.bit_length()) if bits >> n & 1} == wanted
    assert not any(log.take(start, length, unit))


@given(st.integers(1, 1 << 30), st.sampled_from([4096, 1 << 21]))
def test_bitmap_is_whole_words_with_a_bit_for_each_page(length, page):
    size = bitmap_size(length, page)
    assert size % 8 == 0
    assert size * 8 >= -(-length // page) > size * 8 - 64


@pytest.fixture
def client(tmp_path):
    with serving(Edu(), tmp_path) as server:
        raw = RawClient(server)
        assert raw.dma_map(0x10000, 0x10000) == 0
        fd = os.memfd_create("ram")
        os.truncate(fd, 0x4000)
        assert raw.dma_map(0x40000, 0x4000, fd) == 0
        os.close(fd)
        yield raw
        raw.close()


def log(client, number):
    data = struct.pack("<QII", 4096, 0, 0)
    return client.call(Command.DEVICE_FEATURE, feature(number, p.FEATURE_SET, data)).failure


def report(client, address, length):
    data = struct.pack("<QQQ", address, length, 4096)
    reply = client.call(Command.DEVICE_FEATURE, feature(8, p.FEATURE_GET, data, argsz=1024))
    return p.FeatureDmaLoggingReport.parse(reply.payload[8:]).bitmap


def test_writes_are_logged_from_the_start_to_the_end_and_told_once(client):
    memory = client.server.memory
    memory.write(0x40000, b"before")
    assert log(client, 6) == 0
    assert log(client, 6) == 0  # again is no harm
    memory.write(0x41FFF, b"two")
    memory.read(0x43000, 4)
    memory.write(0x80000, b"nowhere")
    memory.write(0x42FFC, b"last")  # up to the end of its page, and no further
    assert report(client, 0x40000, 0x4000) == b"\x06" + bytes(7)
    assert report(client, 0x40000, 0x4000) == bytes(8)
    assert log(client, 7) == 0
    memory.write(0x40000, b"after")
    assert log(client, 6) == 0
    assert report(client, 0x40000, 0x4000) == bytes(8)


def test_unmap_tells_what_was_written_and_is_refused_without_room_for_it(client):
    assert log(client, 6) == 0
    client.server.memory.write(0x43000, b"x")

    def unmap(argsz, size):
        request = {"argsz": argsz, "flags": p.DMA_UNMAP_GET_DIRTY_BITMAP, "address": 0x40000, "size": 0x4000}
        wanted = p.DirtyBitmap.build({"pgsize": 4096, "size": size, "data": b""})
        return client.call(Command.DMA_UNMAP, p.DmaUnmap.build(request) + wanted)

    assert unmap(24 + 16, 8).failure
    assert unmap(24 + 16 + 8, 0).failure
    reply = unmap(24 + 16 + 8, 8)
    found = p.DirtyBitmap.parse(reply.payload[24:])
    assert (found.pgsize, found.size, found.data) == (4096, 8, b"\x08" + bytes(7))
    assert unmap(24 + 16 + 8, 8).failure  # it is gone


def test_vectors_that_come_while_masked_come_once_when_unmasked(tmp_path):
    device = Edu()
    with serving(device, tmp_path) as server:
        client = RawClient(server)
        fd = os.eventfd(0, os.EFD_NONBLOCK)
        assert client.set_irqs(0x24, [fd], index=p.IRQ_MSI) == 0
        interrupts = server.endpoint.interrupts
        interrupts.send(p.IRQ_MSI, 0)
        assert os.eventfd_read(fd) == 1
        assert client.set_irqs(0x09, index=p.IRQ_MSI) == 0
        interrupts.send(p.IRQ_MSI, 0)
        interrupts.send(p.IRQ_MSI, 0)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        assert client.set_irqs(0x11, index=p.IRQ_MSI) == 0
        assert os.eventfd_read(fd) == 1
        assert client.set_irqs(0x11, index=p.IRQ_MSI) == 0
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
        client.close()
        os.close(fd)


def test_eventfd_of_a_client_that_sleeps_in_its_reads_stays_as_it_is(tmp_path):
    with serving(Edu(), tmp_path) as server:
        client = RawClient(server)
        fd = os.eventfd(0)
        assert client.set_irqs(0x24, [fd]) == 0
        assert os.get_blocking(fd)
        client.close()
        os.close(fd)
