"""NVMe commands: data to and from the image, Identify, features, log pages, events, and what a crash leaves."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import nvme_registers as r
from devices.nvme_namespace import FUA
from support.nvme import BUFFER, PAGE, RAM, NvmeBoard
from vmm.block import FileImage

BLOCKS = 2048
LISTS = 0x2_0000
"""Where the tests put PRP lists."""


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(n.to_bytes(4, "little") * 128 for n in range(BLOCKS)))
    return path


@pytest.fixture
def board(disk):
    return NvmeBoard(disk).start()


def prps(board, offset, length, pages):
    """PRP1 and PRP2 for `length` bytes at `offset` of the first of `pages`; lists in memory if there must be."""
    entries = list(pages)
    count = -(-(offset + length) // PAGE)
    first, rest = entries[0] + offset, entries[1:count]
    if len(rest) <= 1:
        return first, (rest[0] if rest else 0)
    board.memory.write(LISTS, b"".join(page.to_bytes(8, "little") for page in rest))
    return first, LISTS


# Data.


@settings(max_examples=60, deadline=None)
@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["read", "write", "zeroes"]),
            st.integers(0, 127),
            st.integers(1, 40),
            st.integers(0, PAGE // 4 - 1).map(lambda n: 4 * n),
            st.integers(0, 1 << 32),
        ),
        max_size=8,
    )
)
def test_what_is_read_is_what_was_written_last_wherever_in_memory_it_came_from(tmp_path_factory, operations):
    path = tmp_path_factory.mktemp("nvme") / "disk"
    path.write_bytes(bytes(128 * 512))
    board = NvmeBoard(path).start()
    model = bytearray(128 * 512)
    for kind, lba, count, offset, seed in operations:
        random = Random(seed)
        count = min(count, 128 - lba)
        length = count * 512
        pages = random.sample(range(BUFFER, RAM, PAGE), 16)
        prp1, prp2 = prps(board, offset, length, pages)
        data = random.randbytes(length)
        room, at = PAGE - offset, 0
        pieces = []
        for page in pages:
            pieces.append((page + offset if not at else page, data[at : at + room]))
            at, room = at + room, PAGE
        at = lba * 512
        if kind == "zeroes":
            assert board.io_command(r.NVM_WRITE_ZEROES, cdw10=lba, cdw12=count - 1).status == 0
            model[at : at + length] = bytes(length)
        elif kind == "write":
            for address, piece in pieces:
                board.memory.write(address, piece)
            assert board.transfer(r.NVM_WRITE, lba, count, prp1, prp2) == 0
            model[at : at + length] = data
        else:
            assert board.transfer(r.NVM_READ, lba, count, prp1, prp2) == 0
            got = b"".join(board.memory.read(address, len(piece)) for address, piece in pieces)
            assert got == model[at : at + length]
    assert path.read_bytes() == model


def test_largest_transfer_through_a_chain_of_lists(board, disk):
    blocks, pages = 1024, [BUFFER + PAGE * (n % 64) for n in range(129)]
    # The list begins two entries before the end of a page, so that it goes on in another one.
    board.memory.write(LISTS + PAGE - 16, pages[1].to_bytes(8, "little") + (LISTS + 4 * PAGE).to_bytes(8, "little"))
    board.memory.write(LISTS + 4 * PAGE, b"".join(page.to_bytes(8, "little") for page in pages[2:]))
    assert board.transfer(r.NVM_READ, 7, blocks, pages[0], LISTS + PAGE - 16) == 0
    # Pages 64 to 127 were read over pages 0 to 63.
    assert board.memory.read(BUFFER, 64 * PAGE) == disk.read_bytes()[(7 + 512) * 512 : (7 + 1024) * 512]


def test_larger_pages_of_the_guest_are_as_large_as_it_said(disk):
    board = NvmeBoard(disk)
    board.enable(mps=2)
    board.create_io()
    assert board.transfer(r.NVM_READ, 0, 32, BUFFER) == 0
    assert board.memory.read(BUFFER, 16384) == disk.read_bytes()[:16384]
    assert board.transfer(r.NVM_READ, 0, 33, BUFFER, BUFFER + PAGE) == r.INVALID_PRP_OFFSET | r.DNR


def test_host_is_told_which_memory_a_read_changed(board):
    changed = []
    board.memory.on_write = lambda address, length: changed.append((address, length))
    board.transfer(r.NVM_READ, 0, 16, BUFFER + 0x200, BUFFER + 4 * PAGE)
    assert (BUFFER + 0x200, PAGE - 0x200) in changed
    assert (BUFFER + 4 * PAGE, PAGE + 0x200) not in changed


@pytest.mark.parametrize(
    ("lba", "blocks", "prp1", "prp2", "status"),
    [
        (0, 1, BUFFER + 2, 0, r.INVALID_PRP_OFFSET | r.DNR),
        (0, 16, BUFFER, BUFFER + 8, r.INVALID_PRP_OFFSET | r.DNR),
        (0, 32, BUFFER, LISTS + 4, r.INVALID_PRP_OFFSET | r.DNR),
        (0, 32, BUFFER, LISTS, r.INVALID_PRP_OFFSET | r.DNR),
        (0, 1, RAM, 0, r.DATA_TRANSFER_ERROR),
        (0, 1, RAM - 256, RAM, r.DATA_TRANSFER_ERROR),
        (0, 1, (1 << 64) - 512, 0, r.DATA_TRANSFER_ERROR),
        (0, 16, BUFFER, RAM, r.DATA_TRANSFER_ERROR),
        (0, 32, BUFFER, RAM, r.DATA_TRANSFER_ERROR),
        (0, 32, BUFFER, LISTS + 0x800, r.DATA_TRANSFER_ERROR),
        (0, 32, BUFFER, LISTS + PAGE - 8, r.INVALID_PRP_OFFSET | r.DNR),
        (0, 1025, BUFFER, LISTS, r.INVALID_FIELD | r.DNR),
        (BLOCKS, 1, BUFFER, 0, r.LBA_OUT_OF_RANGE | r.DNR),
        (BLOCKS - 1, 2, BUFFER, 0, r.LBA_OUT_OF_RANGE | r.DNR),
        ((1 << 64) - 1, 2, BUFFER, 0, r.LBA_OUT_OF_RANGE | r.DNR),
    ],
)
@pytest.mark.parametrize("opcode", [r.NVM_READ, r.NVM_WRITE])
def test_transfer_that_cannot_be_ends_with_a_status_and_moves_nothing(
    board, disk, opcode, lba, blocks, prp1, prp2, status
):
    board.memory.write(LISTS, (BUFFER + 1).to_bytes(8, "little") * 8)
    board.memory.write(LISTS + 0x800, RAM.to_bytes(8, "little") * 8)
    board.memory.write(LISTS + PAGE - 8, (LISTS + 8).to_bytes(8, "little"))
    memory, image = board.memory.read(BUFFER, RAM - BUFFER), disk.read_bytes()
    assert board.transfer(opcode, lba, blocks, prp1, prp2) == status
    assert (board.memory.read(BUFFER, RAM - BUFFER), disk.read_bytes()) == (memory, image)
    assert board.transfer(r.NVM_READ, 0, 1, BUFFER) == 0


@pytest.mark.parametrize("nsid", [0, 2, 0xFFFF_FFFF])
@pytest.mark.parametrize("opcode", [r.NVM_READ, r.NVM_WRITE, r.NVM_WRITE_ZEROES])
def test_namespace_that_is_not_there_is_refused(board, opcode, nsid):
    assert board.io_command(opcode, nsid=nsid, prp1=BUFFER).status == r.INVALID_NAMESPACE | r.DNR


def test_flush_takes_this_namespace_or_all_of_them(board):
    statuses = [board.io_command(r.NVM_FLUSH, nsid=nsid).status for nsid in (1, 0xFFFF_FFFF, 0, 2)]
    assert statuses == [0, 0, r.INVALID_NAMESPACE | r.DNR, r.INVALID_NAMESPACE | r.DNR]


@pytest.mark.parametrize("flags", [0x01, 0x02, 0x40, 0x80])
def test_fused_commands_and_scatter_gather_lists_are_refused(board, flags):
    assert board.io_command(r.NVM_FLUSH, flags=flags).status == r.INVALID_FIELD | r.DNR
    assert board.command(r.ADMIN_GET_FEATURES, flags=flags, cdw10=7).status == r.INVALID_FIELD | r.DNR


@pytest.mark.parametrize("opcode", [0x03, 0x0A, 0x7F, 0xFF])
def test_command_that_the_controller_has_not_is_an_invalid_opcode(board, opcode):
    assert board.io_command(opcode).status == r.INVALID_OPCODE | r.DNR
    if opcode != r.ADMIN_GET_FEATURES:
        assert board.command(opcode).status == r.INVALID_OPCODE | r.DNR


def test_read_only_image_reads_and_refuses_to_be_written(disk):
    disk.chmod(0o444)
    before = disk.read_bytes()
    board = NvmeBoard(disk, **{"x-readonly": True}).start()
    assert r.IdentifyNamespace.parse(board.identify(r.CNS_NAMESPACE, 1)).nsattr == r.NSATTR_WRITE_PROTECTED
    assert board.transfer(r.NVM_READ, 3, 1, BUFFER) == 0
    assert board.memory.read(BUFFER, 512) == before[3 * 512 : 4 * 512]
    for opcode in (r.NVM_WRITE, r.NVM_WRITE_ZEROES):
        assert board.io_command(opcode, prp1=BUFFER).status == r.NAMESPACE_WRITE_PROTECTED | r.DNR
    assert board.io_command(r.NVM_FLUSH).status == 0
    assert disk.read_bytes() == before


# Durability.


def test_image_is_synced_by_flush_and_fua_and_by_each_write_without_a_write_cache(board, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    board.transfer(r.NVM_WRITE, 0, 1, BUFFER)
    assert len(synced) == 0
    board.io_command(r.NVM_FLUSH)
    assert len(synced) == 1
    board.transfer(r.NVM_WRITE, 0, 1, BUFFER, flags=FUA)
    assert len(synced) == 2
    board.command(r.ADMIN_SET_FEATURES, cdw10=r.FEATURE_WRITE_CACHE, cdw11=0)
    assert len(synced) == 3
    board.transfer(r.NVM_WRITE, 0, 1, BUFFER)
    board.io_command(r.NVM_WRITE_ZEROES)
    assert len(synced) == 5
    board.transfer(r.NVM_READ, 0, 1, BUFFER)
    assert len(synced) == 5
    board.enable()
    board.create_io()
    board.transfer(r.NVM_WRITE, 0, 1, BUFFER)
    assert len(synced) == 5


@pytest.mark.parametrize(
    ("opcode", "function", "status"),
    [
        (r.NVM_READ, "preadv", r.UNRECOVERED_READ),
        (r.NVM_WRITE, "pwritev", r.WRITE_FAULT),
        (r.NVM_FLUSH, "fdatasync", r.WRITE_FAULT),
    ],
)
def test_host_that_fails_is_a_media_error_to_the_guest(board, monkeypatch, opcode, function, status):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        assert board.io_command(opcode, prp1=BUFFER).status == status
    assert board.io_command(opcode, prp1=BUFFER).status == 0
    assert smart(board).media_errors == 1


def test_zeroes_that_the_host_has_no_room_for_are_a_write_fault(board, monkeypatch):
    def full(*_):
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr("vmm.block._fallocate", full)
    assert board.io_command(r.NVM_WRITE_ZEROES).status == r.WRITE_FAULT


def test_image_cut_off_under_the_guest_is_a_media_error(board, disk):
    os.truncate(disk, 512)
    assert board.transfer(r.NVM_READ, 0, 1, BUFFER) == 0
    assert board.transfer(r.NVM_READ, 1, 1, BUFFER) == r.UNRECOVERED_READ


KILLED = """
import os, sys
from pathlib import Path
from random import Random
from devices import nvme_registers as r
from support.nvme import BUFFER, NvmeBoard
board = NvmeBoard(Path(sys.argv[1])).start()
board.memory.write(BUFFER, b"flushed!" * 64)
assert board.transfer(r.NVM_WRITE, 9, 1, BUFFER) == 0
assert board.io_command(r.NVM_FLUSH).status == 0
board.queue(board.io, r.NVM_WRITE, nsid=1, prp1=BUFFER, cdw10=10)
board.put(r.REG_DOORBELLS + 8, board.io.tail)
os.kill(os.getpid(), 9)
"""


def test_killed_process_leaves_what_was_flushed_and_no_lock(disk):
    tests = Path(__file__).resolve().parents[1]
    env = os.environ | {"PYTHONPATH": f"{tests.parent}:{tests}"}
    before = disk.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, str(disk)], env=env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert disk.read_bytes() == before[: 9 * 512] + b"flushed!" * 64 + before[10 * 512 :]
    assert FileImage(str(disk)).size == len(before)


# Identify.


def test_identify_controller_says_who_it_is(board):
    data = r.IdentifyController.parse(board.identify(r.CNS_CONTROLLER))
    assert (data.vid, data.ssvid, data.sn, data.mn[:5]) == (0x1B36, 0x1AF4, b"S1".ljust(20), b"vintx")
    assert (data.ver, data.cntrltype, data.nn, data.sqes, data.cqes) == (0x0001_0400, 1, 1, 0x66, 0x44)
    assert (data.mdts, data.aerl, data.vwc, data.oncs, data.sgls) == (7, 3, 7, 8, 0)
    assert data.subnqn.startswith("nqn.2014-08.org.nvmexpress:uuid:")


@pytest.mark.parametrize(("offset", "name"), [(24, b"vintx NVMe"), (512, b"\x66\x44"), (768, b"nqn.2014-08.")])
def test_identify_controller_has_its_fields_where_the_specification_puts_them(board, offset, name):
    assert board.identify(r.CNS_CONTROLLER)[offset : offset + len(name)] == name


@pytest.mark.parametrize("block", [512, 4096])
def test_identify_namespace_says_how_large_it_is(disk, block):
    board = NvmeBoard(disk, logical_block_size=block).start()
    raw = board.identify(r.CNS_NAMESPACE, 1)
    data = r.IdentifyNamespace.parse(raw)
    assert data.nsze == data.ncap == data.nuse == BLOCKS * 512 // block
    assert 1 << data.lbaf[0].lbads == block == 1 << raw[130]
    assert board.transfer(r.NVM_READ, 1, 1, BUFFER) == 0
    assert board.memory.read(BUFFER, block) == disk.read_bytes()[block : 2 * block]


def test_namespace_list_and_descriptors_name_namespace_1(board, disk):
    assert board.identify(r.CNS_NAMESPACE_LIST, 0) == b"\1".ljust(4096, b"\0")
    assert board.identify(r.CNS_NAMESPACE_LIST, 1) == bytes(4096)
    raw = board.identify(r.CNS_NAMESPACE_DESCRIPTORS, 1)
    first = r.NamespaceDescriptor.parse(raw)
    assert (first.nidt, first.nidl, raw[20:]) == (r.NIDT_UUID, 16, bytes(4076))
    board.nvme.unrealize()
    other = NvmeBoard(disk, serial="other").start()
    assert other.identify(r.CNS_NAMESPACE_DESCRIPTORS, 1) != raw


@pytest.mark.parametrize(
    ("cns", "nsid", "status"),
    [
        (r.CNS_NAMESPACE, 0, r.INVALID_NAMESPACE),
        (r.CNS_NAMESPACE, 2, r.INVALID_NAMESPACE),
        (r.CNS_NAMESPACE, 0xFFFF_FFFF, r.INVALID_NAMESPACE),
        (r.CNS_NAMESPACE_LIST, 0xFFFF_FFFE, r.INVALID_NAMESPACE),
        (r.CNS_NAMESPACE_DESCRIPTORS, 0, r.INVALID_NAMESPACE),
        (0x04, 1, r.INVALID_FIELD),
        (0xFF, 1, r.INVALID_FIELD),
    ],
)
def test_identify_of_what_is_not_there_is_refused(board, cns, nsid, status):
    assert board.command(r.ADMIN_IDENTIFY, cdw10=cns, nsid=nsid, prp1=BUFFER).status == status | r.DNR


# Features and log pages.


def test_number_of_queues_is_what_the_property_says_and_fixed_once_there_are_some(disk):
    board = NvmeBoard(disk, max_ioqpairs=3)
    board.enable()
    granted = board.command(r.ADMIN_SET_FEATURES, cdw10=r.FEATURE_QUEUES, cdw11=7 << 16 | 7)
    assert (granted.status, granted.result) == (0, 2 << 16 | 2)
    for value in (0xFFFF, 0xFFFF << 16):
        refused = board.command(r.ADMIN_SET_FEATURES, cdw10=r.FEATURE_QUEUES, cdw11=value)
        assert refused.status == r.INVALID_FIELD | r.DNR
    board.create_io()
    late = board.command(r.ADMIN_SET_FEATURES, cdw10=r.FEATURE_QUEUES, cdw11=0)
    assert late.status == r.COMMAND_SEQUENCE | r.DNR
    assert board.command(r.ADMIN_GET_FEATURES, cdw10=r.FEATURE_QUEUES).result == 2 << 16 | 2


@pytest.mark.parametrize(
    ("feature", "value", "kept", "default"),
    [
        (r.FEATURE_ARBITRATION, 0xFFFF_FFFF, 0xFFFF_FF07, 0),
        (r.FEATURE_TEMPERATURE, 300, 300, 343),
        (r.FEATURE_ERROR_RECOVERY, 9, 9, 0),
        (r.FEATURE_WRITE_CACHE, 0, 0, 1),
        (r.FEATURE_COALESCING, 0x102, 0x102, 0),
        (r.FEATURE_VECTOR, 0x1_0000, 0x1_0000, 0),
        (r.FEATURE_ATOMICITY, 1, 1, 0),
        (r.FEATURE_ASYNC_EVENT, 0xFFFF, 0xFF, 0),
    ],
)
def test_feature_once_set_reads_back_until_the_controller_is_reset(board, feature, value, kept, default):
    def get(select=0):
        return board.command(r.ADMIN_GET_FEATURES, cdw10=select << 8 | feature).result

    assert get() == default
    assert board.command(r.ADMIN_SET_FEATURES, cdw10=feature, cdw11=value).status == 0
    assert (get(0), get(1), get(2), get(3)) == (kept, default, default, 4)
    board.enable()
    assert get() == default


@pytest.mark.parametrize(
    ("opcode", "cdw10", "cdw11", "status"),
    [
        (r.ADMIN_GET_FEATURES, 0x00, 0, r.INVALID_FIELD),
        (r.ADMIN_GET_FEATURES, 0x80, 0, r.INVALID_FIELD),
        (r.ADMIN_GET_FEATURES, 0x406, 0, r.INVALID_FIELD),
        (r.ADMIN_GET_FEATURES, r.FEATURE_VECTOR, 1, r.INVALID_FIELD),
        (r.ADMIN_GET_FEATURES, r.FEATURE_TEMPERATURE, 0x20_0000, r.INVALID_FIELD),
        (r.ADMIN_SET_FEATURES, 0x80, 0, r.INVALID_FIELD),
        (r.ADMIN_SET_FEATURES, r.FEATURE_POWER, 1, r.INVALID_FIELD),
        (r.ADMIN_SET_FEATURES, r.FEATURE_VECTOR, 1, r.INVALID_FIELD),
        (r.ADMIN_SET_FEATURES, r.FEATURE_TEMPERATURE, 0x20_0000, r.INVALID_FIELD),
        (r.ADMIN_SET_FEATURES, 1 << 31 | r.FEATURE_WRITE_CACHE, 1, r.FEATURE_NOT_SAVEABLE),
    ],
)
def test_feature_that_cannot_be_is_refused(board, opcode, cdw10, cdw11, status):
    assert board.command(opcode, cdw10=cdw10, cdw11=cdw11).status == status | r.DNR


def log(board, page, length=512, offset=0, flags=0, nsid=r.NSID_ALL):
    """The completion of Get Log Page."""
    dwords = length // 4 - 1
    cdw10 = (dwords & 0xFFFF) << 16 | flags | page
    cdw11, cdw12, cdw13 = dwords >> 16, offset & 0xFFFF_FFFF, offset >> 32
    fields = {"cdw10": cdw10, "cdw11": cdw11, "cdw12": cdw12, "cdw13": cdw13}
    return board.command(r.ADMIN_GET_LOG_PAGE, nsid=nsid, prp1=BUFFER, prp2=LISTS, **fields)


def smart(board):
    assert log(board, r.LOG_SMART).status == 0
    return r.SmartLog.parse(board.memory.read(BUFFER, 512))


def test_smart_log_counts_what_was_read_written_and_went_wrong(board):
    for _ in range(3):
        board.transfer(r.NVM_READ, 0, 8, BUFFER)
    board.transfer(r.NVM_WRITE, 0, 8, BUFFER)
    board.transfer(r.NVM_READ, BLOCKS, 1, BUFFER)
    data = smart(board)
    assert (data.host_reads, data.host_writes, data.error_entries, data.media_errors) == (3, 1, 1, 0)
    assert (data.data_units_read, data.data_units_written, data.available_spare) == (1, 1, 100)


def test_error_log_has_the_last_error(board):
    board.io_command(r.NVM_READ, nsid=9, cid=0x55)
    assert log(board, r.LOG_ERROR, 64).status == 0
    entry = r.ErrorLogEntry.parse(board.memory.read(BUFFER, 64))
    assert (entry.count, entry.sq_id, entry.cid, entry.status >> 1, entry.nsid) == (1, 1, 0x55, r.INVALID_NAMESPACE, 9)


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"page": 0}, r.INVALID_LOG_PAGE),
        ({"page": 0x80}, r.INVALID_LOG_PAGE),
        ({"page": r.LOG_SMART, "offset": 2}, r.INVALID_FIELD),
        ({"page": r.LOG_SMART, "offset": 516}, r.INVALID_FIELD),
        ({"page": r.LOG_SMART, "offset": 1 << 40}, r.INVALID_FIELD),
        ({"page": r.LOG_SMART, "length": 1 << 34}, r.INVALID_FIELD),
        ({"page": r.LOG_SMART, "nsid": 1}, r.INVALID_FIELD),
    ],
)
def test_log_page_that_cannot_be_is_refused(board, fields, status):
    assert log(board, **fields).status == status | r.DNR


def test_log_page_goes_on_from_an_offset_and_ends_in_zeroes(board):
    assert log(board, r.LOG_FIRMWARE).status == 0
    whole = board.memory.read(BUFFER, 512)
    assert whole[8:16] == b"1.0     "
    assert log(board, r.LOG_FIRMWARE, 512, offset=8).status == 0
    assert board.memory.read(BUFFER, 512) == whole[8:] + bytes(8)


# Events and aborts.


def test_event_requests_wait_up_to_a_limit_and_can_be_aborted(board):
    for cid in range(4):
        assert board.submit(board.admin, r.ADMIN_ASYNC_EVENT, cid=cid) == []
    assert board.command(r.ADMIN_ASYNC_EVENT, cid=9).status == r.AER_LIMIT_EXCEEDED
    aborted, abort = board.submit(board.admin, r.ADMIN_ABORT, cid=10, cdw10=2 << 16)
    assert (aborted.cid, aborted.status, abort.cid, abort.result) == (2, r.ABORT_REQUESTED, 10, 0)
    assert board.command(r.ADMIN_ABORT, cdw10=2 << 16).result == 1
    assert board.command(r.ADMIN_ABORT, cdw10=1).result == 1
    assert board.command(r.ADMIN_ABORT, cdw10=5).status == r.INVALID_FIELD | r.DNR


def test_abort_without_room_for_two_completions_aborts_nothing(disk):
    board = NvmeBoard(disk)
    board.enable(size=2)
    assert board.submit(board.admin, r.ADMIN_ASYNC_EVENT, cid=1) == []
    abort = board.command(r.ADMIN_ABORT, cid=2, cdw10=1 << 16)
    assert (abort.cid, abort.status, abort.result) == (2, 0, 1)
    board.put(r.REG_DOORBELLS + 8 * 9, 0)
    assert [entry.cid for entry in board.completions(board.admin)] == [1]


def test_event_of_one_kind_comes_once_until_its_log_page_was_read(board):
    for cid in (1, 2):
        board.submit(board.admin, r.ADMIN_ASYNC_EVENT, cid=cid)
    board.put(r.REG_DOORBELLS + 8 * 9, 0)
    board.put(r.REG_DOORBELLS + 8 * 9, 0)
    assert [entry.cid for entry in board.completions(board.admin)] == [1]
    assert log(board, r.LOG_ERROR, 64, flags=0x8000).status == 0
    board.put(r.REG_DOORBELLS + 8 * 9, 0)
    assert board.completions(board.admin) == []
    assert log(board, r.LOG_ERROR, 64).status == 0
    board.put(r.REG_DOORBELLS + 8 * 9, 0)
    assert [entry.cid for entry in board.completions(board.admin)] == [2]


def test_event_with_the_admin_queue_full_waits_for_room(disk):
    board = NvmeBoard(disk)
    board.enable(size=2)
    assert board.submit(board.admin, r.ADMIN_ASYNC_EVENT, cid=1) == []
    board.queue(board.admin, r.ADMIN_GET_FEATURES, cid=2, cdw10=7)
    board.ring(board.admin)
    board.put(r.REG_DOORBELLS + 8 * 9, 0)
    assert [entry.cid for entry in board.completions(board.admin)] == [2]
    assert [entry.cid for entry in board.completions(board.admin)] == [1]
