"""An NVMe controller whose guest does anything at all: nothing escapes, nothing is corrupted, and a reset helps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import nvme_registers as r
from support.nvme import ACQ, ASQ, BUFFER, IOCQ, IOSQ, RAM, NvmeBoard

BLOCKS = 16
DWORD = st.one_of(st.integers(0, 0xFFFF_FFFF), st.integers(0, 80), st.sampled_from([0xFFFF, 1 << 16, 1 << 31]))
POINTER = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, RAM // 512 + 8).map(lambda n: n * 512),
    st.sampled_from([0, RAM - 4, RAM, ASQ, ACQ, IOSQ, IOCQ, BUFFER, (1 << 64) - 4096]),
)
COMMAND = st.fixed_dictionaries(
    {
        "opcode": st.one_of(st.integers(0, 12), st.integers(0, 255)),
        "flags": st.sampled_from([0, 0, 0, 0, 1, 0x40, 0xFF]),
        "cid": st.integers(0, 0xFFFF),
        "nsid": st.sampled_from([0, 1, 1, 1, 2, 0xFFFF_FFFE, 0xFFFF_FFFF]),
        "prp1": POINTER,
        "prp2": POINTER,
        **{f"cdw{n}": DWORD for n in range(10, 16)},
    }
)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    path = tmp_path_factory.mktemp("nvme") / "disk.img"
    path.write_bytes(bytes(BLOCKS * 512))
    return path


def fresh(disk, hostile):
    """What is left of the last board goes first: the image has one user."""
    if hostile:
        hostile.pop().nvme.unrealize()
    board = NvmeBoard(disk).start()
    hostile.append(board)
    return board


def check_recovers(board, disk):
    """A reset, and it works as ever."""
    board.put(r.REG_CC, 0)
    board.put(r.REG_INTMC, 0xFFFF_FFFF)
    board.firmware()
    board.start()
    board.memory.write(BUFFER, b"good" * 128)
    assert board.transfer(r.NVM_WRITE, 3, 1, BUFFER) == 0
    assert disk.read_bytes()[3 * 512 : 4 * 512] == b"good" * 128
    assert disk.stat().st_size == BLOCKS * 512
    assert not board.irq


@pytest.fixture(scope="module")
def boards():
    return []


@settings(max_examples=120, deadline=None)
@given(commands=st.lists(st.tuples(st.booleans(), COMMAND), min_size=1, max_size=14))
def test_any_commands_are_completed_or_fatal_and_a_reset_recovers(disk, boards, commands):
    board = fresh(disk, boards)
    for admin, fields in commands:
        board.queue(board.admin if admin else board.io, **fields)
    board.put(r.REG_DOORBELLS, board.admin.tail)
    board.put(r.REG_DOORBELLS + 8, board.io.tail)
    board.clock.step(0)
    # A queue that is not full and not deleted was emptied, unless the controller failed.
    for sq in board.nvme.submission.values():
        assert sq.head == sq.tail or sq.cq.full or board.status.cfs
    assert board.clock.next_deadline() is None
    check_recovers(board, disk)


@settings(max_examples=80, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.one_of(
                st.sampled_from([0, 8, 0xC, 0x10, 0x14, 0x1C, 0x20, 0x24, 0x28, 0x2C, 0x30, 0x34]),
                st.integers(0, 12).map(lambda n: 0x1000 + 4 * n),
                st.integers(0, 0x3FFF),
            ),
            st.sampled_from([1, 2, 4, 4, 4, 8]),
            st.one_of(
                st.integers(0, (1 << 64) - 1),
                st.integers(0, 20),
                st.sampled_from([0x46_0001, 0x46_0000, 0x46_4001, ASQ, ACQ, RAM - 4096, RAM, 0xF_000F]),
            ),
            st.booleans(),
        ),
        max_size=30,
    )
)
def test_any_register_accesses_leave_a_controller_that_a_reset_recovers(disk, boards, accesses):
    board = fresh(disk, boards)
    for offset, size, value, write in accesses:
        if write:
            board.put(offset, value & (1 << 8 * size) - 1, size)
        else:
            assert 0 <= board.get(offset, size) < 1 << 8 * size
        board.clock.step(0)
    check_recovers(board, disk)


@settings(max_examples=60, deadline=None)
@given(
    opcode=st.sampled_from([r.NVM_READ, r.NVM_WRITE]),
    prp1=POINTER,
    prp2=POINTER,
    blocks=st.integers(1, BLOCKS),
    seed=st.binary(max_size=64),
)
def test_read_through_any_pointers_changes_only_what_they_name(disk, boards, opcode, prp1, prp2, blocks, seed):
    disk.write_bytes(b"\x5a" * BLOCKS * 512)
    board = fresh(disk, boards)
    board.memory.write(prp2, seed)
    listed = board.memory.read(prp2, 16)
    named = {prp1 >> 12, prp2 >> 12, *(int.from_bytes(listed[n : n + 8], "little") >> 12 for n in (0, 8))}
    before = bytes(board.memory.view)
    image = disk.read_bytes()
    status = board.transfer(opcode, 0, blocks, prp1, prp2)
    pages = range(BUFFER, RAM, 4096)
    changed = {at >> 12 for at in pages if board.memory.view[at : at + 4096] != before[at : at + 4096]}
    assert changed <= (named if opcode == r.NVM_READ and status == 0 else set())
    assert (disk.read_bytes() == image) or (opcode == r.NVM_WRITE and status == 0)
    assert disk.stat().st_size == BLOCKS * 512


def test_guest_that_submits_without_end_lets_others_have_their_turn(disk, boards):
    board = fresh(disk, boards)
    assert board.command(r.ADMIN_CREATE_CQ, prp1=0x8_0000, cdw10=1023 << 16 | 2, cdw11=3).status == 0
    assert board.command(r.ADMIN_CREATE_SQ, prp1=0x9_0000, cdw10=1023 << 16 | 2, cdw11=1 | 2 << 16).status == 0
    board.memory.write(0x9_0000, r.Command.build({"opcode": r.NVM_READ, "nsid": 1, "prp1": BUFFER}) * 1023)
    board.put(r.REG_DOORBELLS + 16, 1023)
    turns = 0
    while (deadline := board.clock.next_deadline()) is not None:
        assert deadline == board.clock.now()
        before = board.nvme.submission[2].head
        board.nvme._timer.fire()
        assert 0 < board.nvme.submission[2].head - before <= 64
        turns += 1
    assert turns == 16
    assert board.nvme.submission[2].head == 1023


def test_controller_that_writes_its_completions_over_its_commands_goes_on(disk, boards):
    board = fresh(disk, boards)
    board.put(r.REG_CC, 0)
    board.put(r.REG_ACQ, ASQ, 8)
    board.configure()
    for _ in range(8):
        board.queue(board.admin, r.ADMIN_IDENTIFY, cdw10=1, prp1=ASQ)
    board.admin.tail = 8
    board.put(r.REG_DOORBELLS, 8)
    board.clock.step(0)
    assert board.nvme.submission[0].head == 8
    check_recovers(board, disk)


def test_doorbells_of_a_controller_that_is_not_ready_do_nothing(disk, boards):
    board = fresh(disk, boards)
    before = bytes(board.memory.view)
    board.put(r.REG_CC, 0)
    for n in range(0, 0x40, 4):
        board.put(r.REG_DOORBELLS + n, 1)
    assert board.clock.step() is False
    assert bytes(board.memory.view) == before


# Memory of another process is reached by messages, and while one is waited for the guest goes on.


def meanwhile(monkeypatch, board, method, action):
    """Let the guest do something when the controller next uses `method` of guest memory, before it takes place."""
    original = getattr(board.nvme.buffers, method)
    left = [action]

    def hooked(address, argument):
        result = original(address, argument) if method == "write" else None
        if left:
            left.pop()()
        return original(address, argument) if result is None else result

    class Buffers:
        def __getattr__(self, name):
            return hooked if name == method else getattr(buffers, name)

    buffers = board.nvme.buffers
    monkeypatch.setattr(board.nvme, "buffers", Buffers())


def test_completions_consumed_while_a_command_is_fetched_fetch_nothing_twice(disk, boards, monkeypatch):
    board = fresh(disk, boards)
    board.queue(board.io, r.NVM_FLUSH, nsid=1, cid=1)
    board.ring(board.io)
    assert [c.cid for c in board.completions(board.io, consume=False)] == [1]
    board.queue(board.io, r.NVM_FLUSH, nsid=1, cid=2)
    meanwhile(monkeypatch, board, "read", lambda: board.put(r.REG_DOORBELLS + 12, board.io.head))
    board.ring(board.io)
    assert [c.cid for c in board.completions(board.io)] == [2]
    assert board.nvme.submission[1].head == board.io.tail
    assert not board.irq


def test_completion_consumed_as_soon_as_it_can_be_seen_leaves_no_interrupt(disk, boards, monkeypatch):
    board = fresh(disk, boards)
    board.queue(board.io, r.NVM_FLUSH, nsid=1, cid=7)
    meanwhile(monkeypatch, board, "write", lambda: board.put(r.REG_DOORBELLS + 12, 1))
    board.ring(board.io)
    assert [c.cid for c in board.completions(board.io, consume=False)] == [7]
    assert not board.irq
    assert board.nvme.completion[1].head == 1


@pytest.mark.parametrize("method", ["read", "write"])
def test_reset_while_a_command_is_carried_out_lets_the_next_driver_start_clean(disk, boards, monkeypatch, method):
    board = fresh(disk, boards)
    for _ in range(3):
        board.queue(board.io, r.NVM_FLUSH, nsid=1)

    def reset():
        board.enable()
        board.create_io()

    meanwhile(monkeypatch, board, method, reset)
    board.put(r.REG_DOORBELLS + 8, 3)
    board.nvme._timer.fire()
    board.clock.step(0)
    assert not board.irq
    assert board.nvme.submission[1].head == 0
    assert board.completions(board.io) == []
    monkeypatch.undo()
    check_recovers(board, disk)
