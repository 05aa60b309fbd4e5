"""What a server answers to each malformed message; the cases are those of vectors conform-libvfio-user.txt and more.

The reference server's answers are kept but where it is lenient with what the specification forbids (mappings that
overlap, wrap or are empty, descriptors of the wrong kind) and where it loses the connection over a split message.
"""

import errno
import os
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.edu import Edu
from support.vfio_user import RawClient, open_fds, serving, version
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.transport import PeerGone

OK = 0
EINVAL, ENOENT, EEXIST, EACCES = errno.EINVAL, errno.ENOENT, errno.EEXIST, errno.EACCES
U64 = 2**64 - 1


@pytest.fixture
def server(tmp_path):
    with serving(Edu(), tmp_path) as made:
        yield made


@pytest.fixture
def client(server):
    raw = RawClient(server)
    yield raw
    raw.close()


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


CASES = {
    "unknown command 0": (0, b"", EINVAL),
    "obsolete command 14": (14, b"", EINVAL),
    "unknown command 19": (19, b"", EINVAL),
    "unknown command 65535": (65535, b"", EINVAL),
    "command for clients": (Command.DMA_READ, bytes(16), EINVAL),
    "second version": (Command.VERSION, version(), EINVAL),
    "reset": (Command.DEVICE_RESET, b"", OK),
    "reset with payload": (Command.DEVICE_RESET, b"12345", OK),
    "info": (Command.DEVICE_GET_INFO, words(16, 0, 0, 0), OK),
    "info without payload": (Command.DEVICE_GET_INFO, b"", EINVAL),
    "info short": (Command.DEVICE_GET_INFO, words(16, 0), EINVAL),
    "info argsz 8": (Command.DEVICE_GET_INFO, words(8, 0, 0, 0), EINVAL),
    "info argsz 4096": (Command.DEVICE_GET_INFO, words(4096, 0, 0, 0), OK),
    "region info 8": (Command.DEVICE_GET_REGION_INFO, words(32, 0, 8, 0, 0, 0, 0, 0), OK),
    "region info 9": (Command.DEVICE_GET_REGION_INFO, words(32, 0, 9, 0, 0, 0, 0, 0), EINVAL),
    "region info 2^32-1": (Command.DEVICE_GET_REGION_INFO, words(32, 0, 2**32 - 1, 0, 0, 0, 0, 0), EINVAL),
    "region info argsz 16": (Command.DEVICE_GET_REGION_INFO, words(16, 0, 0, 0, 0, 0, 0, 0), EINVAL),
    "region info short": (Command.DEVICE_GET_REGION_INFO, words(32, 0, 0, 0, 0, 0), EINVAL),
    "region info padded": (Command.DEVICE_GET_REGION_INFO, words(80, *[0] * 19), OK),
    "io fds": (Command.DEVICE_GET_REGION_IO_FDS, words(16, 0, 0, 0), OK),
    "io fds of region 9": (Command.DEVICE_GET_REGION_IO_FDS, words(16, 0, 9, 0), EINVAL),
    "irq info 4": (Command.DEVICE_GET_IRQ_INFO, words(16, 0, 4, 0), OK),
    "irq info 5": (Command.DEVICE_GET_IRQ_INFO, words(16, 0, 5, 0), EINVAL),
    "irq info argsz 8": (Command.DEVICE_GET_IRQ_INFO, words(8, 0, 0, 0), EINVAL),
    "irqs disable": (Command.DEVICE_SET_IRQS, irqs(0x21, count=0), OK),
    "irqs disable start 1": (Command.DEVICE_SET_IRQS, irqs(0x21, start=1, count=0), EINVAL),
    "irqs mask": (Command.DEVICE_SET_IRQS, irqs(0x09), OK),
    "irqs unmask": (Command.DEVICE_SET_IRQS, irqs(0x11), OK),
    "irqs mask count 0": (Command.DEVICE_SET_IRQS, irqs(0x09, count=0), EINVAL),
    "irqs mask and unmask": (Command.DEVICE_SET_IRQS, irqs(0x19), EINVAL),
    "irqs no action": (Command.DEVICE_SET_IRQS, irqs(0x01), EINVAL),
    "irqs two data types": (Command.DEVICE_SET_IRQS, irqs(0x23), EINVAL),
    "irqs no data type": (Command.DEVICE_SET_IRQS, irqs(0x20), EINVAL),
    "irqs flags 0": (Command.DEVICE_SET_IRQS, irqs(0), EINVAL),
    "irqs bool without data": (Command.DEVICE_SET_IRQS, irqs(0x22), EINVAL),
    "irqs bool": (Command.DEVICE_SET_IRQS, irqs(0x22, data=b"\1", argsz=21), OK),
    "irqs bool too long": (Command.DEVICE_SET_IRQS, irqs(0x22, data=b"\1\0\0\0", argsz=24), EINVAL),
    "irqs argsz 8": (Command.DEVICE_SET_IRQS, irqs(0x21, argsz=8), EINVAL),
    "irqs short": (Command.DEVICE_SET_IRQS, irqs(0x21)[:16], EINVAL),
    "irqs index 5": (Command.DEVICE_SET_IRQS, irqs(0x21, index=5), EINVAL),
    "irqs of MSI": (Command.DEVICE_SET_IRQS, irqs(0x24, index=1), OK),
    "irqs of MSI vector 1 of 1": (Command.DEVICE_SET_IRQS, irqs(0x24, index=1, start=1), EINVAL),
    "irqs of MSI-X that is not there": (Command.DEVICE_SET_IRQS, irqs(0x24, index=2), EINVAL),
    "irqs start 4": (Command.DEVICE_SET_IRQS, irqs(0x21, start=4), EINVAL),
    "irqs wrap": (Command.DEVICE_SET_IRQS, irqs(0x21, start=2**32 - 1, count=2), EINVAL),
    "irqs mask of REQ": (Command.DEVICE_SET_IRQS, irqs(0x09, index=4), EINVAL),
    "irqs loopback without eventfd": (Command.DEVICE_SET_IRQS, irqs(0x21), OK),
    "irqs eventfd none": (Command.DEVICE_SET_IRQS, irqs(0x24), OK),
    "read": (Command.REGION_READ, region(0, 0, 4), OK),
    "read nothing": (Command.REGION_READ, region(0, 0, 0), OK),
    "read across the end": (Command.REGION_READ, region(0xFFFFE, 0, 4), EINVAL),
    "read at the end": (Command.REGION_READ, region(0x100000, 0, 4), EINVAL),
    "read at 2^64-1": (Command.REGION_READ, region(U64, 0, 4), EINVAL),
    "read of region 9": (Command.REGION_READ, region(0, 9, 4), EINVAL),
    "read of region 0xdeadbeef": (Command.REGION_READ, region(0, 0xDEADBEEF, 4), EINVAL),
    "read of an absent region": (Command.REGION_READ, region(0, 5, 4), EINVAL),
    "read nothing of an absent region": (Command.REGION_READ, region(0, 5, 0), EINVAL),
    "read of 2 MiB": (Command.REGION_READ, region(0, 0, 2 << 20), EINVAL),
    "read short": (Command.REGION_READ, region(0, 0, 4)[:12], EINVAL),
    "read with data": (Command.REGION_READ, region(0, 0, 4, b"data"), OK),
    "read of 3 bytes unaligned": (Command.REGION_READ, region(1, 7, 3), OK),
    "read of all configuration space": (Command.REGION_READ, region(0, 7, 256), OK),
    "read beyond configuration space": (Command.REGION_READ, region(0, 7, 4096), EINVAL),
    "write": (Command.REGION_WRITE, region(4, 0, 4, bytes(4)), OK),
    "write with too little data": (Command.REGION_WRITE, region(4, 0, 4, bytes(3)), EINVAL),
    "write with too much data": (Command.REGION_WRITE, region(4, 0, 4, bytes(5)), EINVAL),
    "write nothing": (Command.REGION_WRITE, region(4, 0, 0), OK),
    "write short": (Command.REGION_WRITE, bytes(8), EINVAL),
    "write of a read-only register": (Command.REGION_WRITE, region(0, 7, 4, bytes(4)), OK),
    "multi": (Command.REGION_WRITE_MULTI, struct.pack("<Q", 1) + region(4, 0, 4, bytes(8)), OK),
    "multi of none": (Command.REGION_WRITE_MULTI, bytes(8), OK),
    "multi claims 2^64-1": (Command.REGION_WRITE_MULTI, struct.pack("<Q", U64) + bytes(24), EINVAL),
    "multi of 9 bytes": (Command.REGION_WRITE_MULTI, struct.pack("<Q", 1) + region(4, 0, 9, bytes(8)), EINVAL),
    "multi short": (Command.REGION_WRITE_MULTI, b"\1", EINVAL),
    "map": (Command.DMA_MAP, dma_map(0, 4096), OK),
    "map nothing": (Command.DMA_MAP, dma_map(0, 0), EINVAL),
    "map wraps": (Command.DMA_MAP, dma_map(U64 - 4095, 8192), EINVAL),
    "map file offset wraps": (Command.DMA_MAP, dma_map(0, 8192, offset=U64 - 4095), EINVAL),
    "map unknown flag": (Command.DMA_MAP, dma_map(0, 4096, flags=0x10), EINVAL),
    "map a file without one": (Command.DMA_MAP, dma_map(0, 4096, flags=4), EINVAL),
    "map argsz 16": (Command.DMA_MAP, dma_map(0, 4096, argsz=16), EINVAL),
    "map short": (Command.DMA_MAP, dma_map(0, 4096)[:24], EINVAL),
    "unmap what is not": (Command.DMA_UNMAP, dma_unmap(0, 4096), ENOENT),
    "unmap argsz 16": (Command.DMA_UNMAP, dma_unmap(0, 4096, argsz=16), EINVAL),
    "unmap all": (Command.DMA_UNMAP, dma_unmap(0, 0, flags=2), OK),
    "unmap all of a range": (Command.DMA_UNMAP, dma_unmap(4096, 0, flags=2), EINVAL),
    "unmap all with bitmap": (Command.DMA_UNMAP, dma_unmap(0, 0, flags=3), EINVAL),
    "unmap with bitmap": (Command.DMA_UNMAP, dma_unmap(0, 4096, flags=1) + bytes(16), EINVAL),
    "feature": (Command.DEVICE_FEATURE, words(16, 0x10001, 0, 0), OK),
    "migration read": (Command.MIG_DATA_READ, words(16, 8), EINVAL),
    "migration write": (Command.MIG_DATA_WRITE, words(16, 8, 0, 0), EINVAL),
}


@pytest.mark.parametrize("name", CASES)
def test_command_is_answered_as_it_deserves_and_the_connection_lives(client, name):
    command, payload, expected = CASES[name]
    reply = client.call(command, payload)
    assert reply.failure == expected
    if expected:
        assert reply.payload == b""
    assert client.is_served()


def fds_of(kind, count=1):
    if kind == "eventfd":
        return [os.eventfd(0) for _ in range(count)]
    if kind == "memfd":
        made = [os.memfd_create("test") for _ in range(count)]
        for fd in made:
            os.truncate(fd, 8192)
        return made
    if kind == "read-only":
        fd = os.memfd_create("test")
        os.truncate(fd, 8192)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        os.close(fd)
        return [again]
    return [socket.socket().detach() for _ in range(count)]


FD_CASES = {
    "trigger eventfd": (Command.DEVICE_SET_IRQS, irqs(0x24), ("eventfd", 1), OK),
    "two eventfds for one": (Command.DEVICE_SET_IRQS, irqs(0x24), ("eventfd", 2), EINVAL),
    "one eventfd for two": (Command.DEVICE_SET_IRQS, irqs(0x24, count=2), ("eventfd", 1), EINVAL),
    "eventfd with NONE": (Command.DEVICE_SET_IRQS, irqs(0x21), ("eventfd", 1), EINVAL),
    "eventfd with disable": (Command.DEVICE_SET_IRQS, irqs(0x21, count=0), ("eventfd", 1), EINVAL),
    "eventfd with BOOL": (Command.DEVICE_SET_IRQS, irqs(0x22, data=b"\1"), ("eventfd", 1), EINVAL),
    "unmask eventfd": (Command.DEVICE_SET_IRQS, irqs(0x14), ("eventfd", 1), OK),
    "mask eventfd": (Command.DEVICE_SET_IRQS, irqs(0x0C), ("eventfd", 1), OK),
    "error eventfd": (Command.DEVICE_SET_IRQS, irqs(0x24, index=3), ("eventfd", 1), OK),
    "memfd as eventfd": (Command.DEVICE_SET_IRQS, irqs(0x24), ("memfd", 1), EINVAL),
    "map with two files": (Command.DMA_MAP, dma_map(0, 4096), ("memfd", 2), EINVAL),
    "map of an eventfd": (Command.DMA_MAP, dma_map(0, 4096), ("eventfd", 1), EINVAL),
    "map of a socket": (Command.DMA_MAP, dma_map(0, 4096), ("socket", 1), EINVAL),
    "map beyond the end of the file": (Command.DMA_MAP, dma_map(0, 12288), ("memfd", 1), EINVAL),
    "map at an odd offset": (Command.DMA_MAP, dma_map(0, 4096, offset=0x10), ("memfd", 1), OK),
    "map of a file that is read-only": (Command.DMA_MAP, dma_map(0, 4096), ("read-only", 1), EACCES),
    "map for reading of a file that is read-only": (
        Command.DMA_MAP,
        dma_map(0, 4096, flags=1),
        ("read-only", 1),
        OK,
    ),
    "read with a descriptor": (Command.REGION_READ, region(0, 0, 4), ("memfd", 1), OK),
    "read with 20 descriptors": (Command.REGION_READ, region(0, 0, 4), ("memfd", 20), EINVAL),
    "read with 200 descriptors": (Command.REGION_READ, region(0, 0, 4), ("memfd", 200), EINVAL),
    "unknown command with a descriptor": (99, b"", ("memfd", 1), EINVAL),
}


@pytest.mark.parametrize("name", FD_CASES)
def test_descriptors_are_kept_or_closed_and_none_is_left_when_the_client_goes(server, name):
    before = open_fds()
    command, payload, kind, expected = FD_CASES[name]
    client = RawClient(server)
    fds = fds_of(*kind)
    assert client.call(command, payload, fds).failure == expected
    assert client.is_served()
    for fd in fds:
        os.close(fd)
    client.close()
    assert open_fds() == before


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (version(minor=99), OK),
        (version(b""), OK),
        (version(b"{}"), EINVAL),
        (version(b"{}\0"), OK),
        (version(b'{"capabilities":{"new_thing":{"a":[1]}}}\0'), OK),
        (version(major=1), EINVAL),
        (version(b'{"capabilities":\0'), EINVAL),
        (version(b"\xff\xfe\0"), EINVAL),
        (version(b"[" * 100_000 + b"\0"), EINVAL),
        (version(b"9" * 10_000 + b"\0"), EINVAL),
        (version(b'{"capabilities":[]}\0'), EINVAL),
        (version(b'{"capabilities":{"max_msg_fds":-1}}\0'), EINVAL),
        (version(b'{"capabilities":{"max_msg_fds":"x"}}\0'), EINVAL),
        (version(b'{"capabilities":{"max_data_xfer_size":0}}\0'), EINVAL),
        (version(b'{"capabilities":{"max_data_xfer_size":1e9}}\0'), EINVAL),
        (version(b'{"capabilities":{"twin_socket":true}}\0'), EINVAL),
        (version(b'{"capabilities":{"twin_socket":{"supported":true,"fd_index":-1}}}\0'), EINVAL),
        (version(b'{"capabilities":{"twin_socket":{"supported":0}}}\0'), OK),
        (b"\0\0\0", EINVAL),
    ],
)
def test_version_is_accepted_or_answered_and_hung_up_on(server, payload, expected):
    client = RawClient(server, negotiate=False)
    assert client.call(Command.VERSION, payload).failure == expected
    assert client.is_served() == (not expected)
    client.close()


def test_command_before_version_is_refused_and_hung_up_on(server):
    client = RawClient(server, negotiate=False)
    assert client.call(Command.DEVICE_GET_INFO, words(16, 0, 0, 0)).failure == EINVAL
    assert not client.is_served()
    client.close()


@pytest.mark.parametrize("size", [0, 8, 15, p.MAX_MESSAGE_SIZE + 1, 2**32 - 1])
def test_impossible_size_is_answered_and_hung_up_on(client, size):
    client.send(p.HEADER.pack(1, Command.REGION_READ, size, 0, 0))
    assert client.receive().failure == EINVAL
    with pytest.raises(PeerGone):
        client.receive()


@pytest.mark.parametrize("flags", [2, 15])
def test_unknown_message_type_is_refused_and_its_body_skipped(client, flags):
    client.send(p.HEADER.pack(1, Command.DEVICE_GET_INFO, 32, flags, 0) + words(16, 0, 0, 0))
    assert client.receive().failure == EINVAL
    assert client.is_served()


def test_unsolicited_reply_is_refused(client):
    client.send(p.HEADER.pack(1, Command.DEVICE_GET_INFO, 32, p.TYPE_REPLY, 0) + words(16, 0, 0, 0))
    assert client.receive().failure == EINVAL
    assert client.is_served()


def test_flags_that_mean_nothing_in_a_command_are_ignored(client):
    for flags in (0x100, p.FLAG_ERROR):
        client.send(p.HEADER.pack(1, Command.DEVICE_GET_INFO, 32, flags, 7) + words(16, 0, 0, 0))
        assert client.receive().failure == 0


def test_no_reply_commands_are_silent_also_when_they_fail(client):
    client.send(p.command_bytes(1, Command.DEVICE_GET_INFO, words(16, 0, 0, 0), p.FLAG_NO_REPLY))
    client.send(p.command_bytes(2, Command.REGION_READ, region(0, 9, 4), p.FLAG_NO_REPLY))
    client.send(p.command_bytes(3, Command.REGION_WRITE, region(4, 0, 4, b"\1\0\0\0"), p.FLAG_NO_REPLY))
    assert client.read(0, 4) == 0xFFFF_FFFE


def test_message_split_anywhere_and_two_in_one_send_are_understood(client):
    data = p.command_bytes(1, Command.REGION_READ, region(0, 0, 4))
    for cut in (1, 8, 16, 20, 31):
        client.send(data[:cut])
        client.server.turn()
        client.send(data[cut:])
        assert client.receive().payload[16:] == b"\xed\0\0\1"
    client.send(data + data)
    assert [client.receive().failure for _ in range(2)] == [0, 0]


CHUNK = st.one_of(
    st.binary(max_size=64),
    st.builds(
        lambda command, payload, flags: p.command_bytes(1, command, payload, flags),
        st.integers(0, 20),
        st.one_of(
            st.binary(max_size=48),
            st.builds(irqs, st.integers(0, 64), st.integers(0, 6), st.integers(0, 2), st.integers(0, 2)),
            st.builds(dma_map, st.integers(0, U64), st.integers(0, U64), st.integers(0, 16)),
            st.builds(region, st.integers(0, 1 << 20), st.integers(0, 9), st.integers(0, 16), st.binary(max_size=16)),
        ),
        st.sampled_from([0, p.FLAG_NO_REPLY]),
    ),
)


@settings(max_examples=60)
@given(chunks=st.lists(st.tuples(CHUNK, st.sampled_from(["", "eventfd", "memfd"])), max_size=10))
def test_whatever_one_client_sends_the_next_is_served_and_no_descriptor_is_lost(tmp_path_factory, chunks):
    with serving(Edu(), tmp_path_factory.mktemp("fuzz")) as server:
        before = open_fds()
        client = RawClient(server)
        try:
            for data, kind in chunks:
                if data:
                    fds = fds_of(kind) if kind else []
                    try:
                        client.send(data, fds)
                    finally:
                        for fd in fds:
                            os.close(fd)
                    server.turn()
        except OSError:
            pass  # it hung up on us
        client.close()
        client = RawClient(server)
        assert client.is_served()
        client.close()
        assert open_fds() == before
