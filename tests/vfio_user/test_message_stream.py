"""Framing: whatever bytes and descriptors come, messages or faults come out, and no descriptor is lost."""

import errno
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from support.vfio_user import open_fds
from vmm.vfio_user import protocol as p
from vmm.vfio_user.stream import MAX_FDS, MessageStream

READ = p.command_bytes(7, p.Command.REGION_READ, p.REGION_ACCESS.pack(4, 0, 4))
RESET = p.command_bytes(8, p.Command.DEVICE_RESET)


def null_fds(count):
    return [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(count)]


def test_message_in_single_bytes_comes_out_once_whole():
    stream = MessageStream()
    got = [m for byte in READ for m in stream.feed(bytes((byte,)))]
    assert [(m.msg_id, m.payload) for m in got] == [(7, READ[16:])]


def test_wanted_leads_from_message_to_message():
    stream = MessageStream()
    data = READ + RESET
    sizes = []
    while data:
        sizes.append(stream.wanted)
        stream.feed(data[: sizes[-1]])
        data = data[sizes[-1] :]
    assert sizes == [16, 16, 16]


def test_descriptors_go_to_the_last_message_that_begins_in_the_chunk():
    stream = MessageStream()
    fds = null_fds(2)
    first, second = stream.feed(RESET + READ, fds)
    assert (first.fds, second.fds) == ([], fds)
    second.close()


def test_descriptors_of_a_header_stay_with_the_body_that_follows():
    stream = MessageStream()
    fds = null_fds(1)
    assert stream.feed(READ[:16], fds) == []
    got = stream.feed(READ[16:] + RESET)
    assert [m.fds for m in got] == [fds, []]
    got[0].close()


def test_size_below_the_header_is_a_fault_and_breaks_the_stream():
    stream = MessageStream()
    bad = p.HEADER.pack(1, 4, 8, 0, 0)
    (message,) = stream.feed(bad + RESET, null_fds(1))
    assert (message.fault, stream.broken) == (errno.EINVAL, True)
    message.close()
    assert stream.feed(RESET) == []


def test_size_beyond_the_limit_is_a_fault_without_waiting_for_the_body():
    stream = MessageStream()
    (message,) = stream.feed(p.HEADER.pack(1, 10, p.MAX_MESSAGE_SIZE + 1, 0, 0))
    assert (message.fault, stream.broken) == (errno.EINVAL, True)


def test_unknown_type_is_a_fault_and_the_next_message_is_found():
    stream = MessageStream()
    first, second = stream.feed(p.HEADER.pack(1, 4, 20, 2, 0) + b"body" + RESET)
    assert (first.fault, second.fault, second.command) == (errno.EINVAL, 0, p.Command.DEVICE_RESET)


def test_descriptors_beyond_the_limit_are_closed_and_their_message_is_a_fault():
    before = open_fds()
    stream = MessageStream()
    assert stream.feed(READ[:8], null_fds(MAX_FDS)) == []
    assert stream.feed(READ[8:16], null_fds(1)) == []
    (message,) = stream.feed(READ[16:] + b"")
    assert (message.fault, message.fds) == (errno.EINVAL, [])
    assert open_fds() == before


def test_error_reply_without_an_errno_is_still_a_failure():
    (message,) = MessageStream().feed(p.HEADER.pack(1, 4, 16, p.TYPE_REPLY | p.FLAG_ERROR, 0))
    assert message.failure == errno.EIO


CHUNKS = st.lists(
    st.tuples(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda size, flags, body: p.HEADER.pack(1, 9, size, flags, 0) + body,
                st.one_of(st.integers(0, 64), st.integers(0, 2**32 - 1)),
                st.integers(0, 255),
                st.binary(max_size=48),
            ),
            st.just(READ),
            st.just(RESET),
        ),
        st.integers(0, 3),
    ),
    max_size=12,
)


@settings(max_examples=200)
@given(CHUNKS)
def test_any_input_raises_nothing_and_loses_no_descriptor(chunks):
    before = open_fds()
    stream = MessageStream()
    for data, count in chunks:
        for message in stream.feed(data, null_fds(count)):
            assert message.fault in (0, errno.EINVAL)
            message.close()
    stream.close()
    assert open_fds() == before
