"""Declarations of the messages, against recorded exchanges of other implementations and against the hot formats."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.vfio_user import recording
from vmm.vfio_user import protocol as p
from vmm.vfio_user.protocol import Command
from vmm.vfio_user.stream import MessageStream

RECORDINGS = ("lvu-client-server-src.log", "qemu11-gpio.log", "qemu11-python-server-kvm.log")
U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_messages_built_from_their_fields_have_the_size_on_the_wire(name):
    messages = list(recording(name))
    assert len(messages) > 150
    assert [m for m in messages if m.size is not None and len(m.bytes()) != m.size] == []


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_conversation_cut_anywhere_comes_out_as_the_messages_that_went_in(name):
    for to_server in (True, False):
        sent = [m for m in recording(name) if m.to_server == to_server]
        data = b"".join(m.bytes() for m in sent)
        for step in (7, 16, 100, len(data)):
            stream = MessageStream()
            got = [m for at in range(0, len(data), step) for m in stream.feed(data[at : at + step])]
            assert [(m.msg_id, m.command, m.flags, m.error) for m in got] == [
                (m.msg_id, m.command, m.flags, m.error) for m in sent
            ]
            assert [m.is_reply for m in got] == [m.reply for m in sent]


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_payloads_parse_back_to_their_fields(name):
    for message in recording(name):
        table = p.REPLIES if message.reply else p.REQUESTS
        layout = table.get(message.command)
        if layout is None or not message.fields:
            continue
        parsed = layout.parse(message.bytes()[p.HEADER_SIZE :])
        shared = {k: v for k, v in message.fields.items() if k in parsed and (k != "data" or message.whole)}
        assert {k: parsed[k] for k in shared} == shared


def test_recorded_sparse_mmap_capability_parses_to_its_areas():
    (message,) = (m for m in recording("lvu-client-server-src.log") if m.fields.get("cap_offset"))
    capability = p.SparseMmap.parse(message.fields["capabilities"])
    assert (capability.header.id, capability.header.next) == (p.CAP_SPARSE_MMAP, 0)
    assert [(a.offset, a.size) for a in capability.areas] == [(0, 0x1000), (0x2000, 0x1000)]


def test_every_command_number_is_the_one_of_the_specification():
    assert {c.name: c.value for c in Command} == {
        "VERSION": 1,
        "DMA_MAP": 2,
        "DMA_UNMAP": 3,
        "DEVICE_GET_INFO": 4,
        "DEVICE_GET_REGION_INFO": 5,
        "DEVICE_GET_REGION_IO_FDS": 6,
        "DEVICE_GET_IRQ_INFO": 7,
        "DEVICE_SET_IRQS": 8,
        "REGION_READ": 9,
        "REGION_WRITE": 10,
        "DMA_READ": 11,
        "DMA_WRITE": 12,
        "DEVICE_RESET": 13,
        "REGION_WRITE_MULTI": 15,
        "DEVICE_FEATURE": 16,
        "MIG_DATA_READ": 17,
        "MIG_DATA_WRITE": 18,
    }


@given(st.integers(0, 65535), st.integers(0, 65535), U32, U32, U32)
def test_header_format_agrees_with_its_declaration(msg_id, command, size, flags, error):
    fields = {"msg_id": msg_id, "command": command, "msg_size": size, "flags": flags, "error": error}
    assert p.HEADER.pack(msg_id, command, size, flags, error) == p.Header.build(fields)


@given(U64, U32, U32, U64, st.binary(max_size=8))
def test_access_formats_agree_with_their_declarations(offset, region, count, long_count, data):
    fields = {"offset": offset, "region": region, "count": count, "data": data}
    assert p.REGION_ACCESS.pack(offset, region, count) + data == p.RegionAccess.build(fields)
    assert p.DMA_ACCESS.pack(offset, long_count) + data == p.DmaAccess.build(
        {"address": offset, "count": long_count, "data": data}
    )
    entry = {**fields, "data": data.ljust(8, b"\0")}
    packed = p.WRITE_MULTI_ENTRY.pack(offset, region, count, data)
    assert (2).to_bytes(8, "little") + packed * 2 == p.RegionWriteMulti.build({"writes": [entry, entry]})
