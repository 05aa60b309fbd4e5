"""The NVMe controller: registers, queues, doorbells, the interrupt, and its life."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qemu.qmp import ExecuteError

from devices import nvme_registers as r
from devices.nvme import CAP, MAX_QUEUE_ENTRIES, Nvme, PciNvmeEnqueueReqCompletion, PciNvmeErrFatal, PciNvmeIoCmd
from devices.nvme_queues import CQE, SQE, Sqe
from support.nvme import ACQ, ASQ, BAR, BUFFER, DEVFN, IOCQ, IRQ, NvmeBoard
from vmm.errors import ConfigError, InUse, PropertyError

BLOCKS = 64


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 2 * BLOCKS)
    return path


@pytest.fixture
def board(disk):
    return NvmeBoard(disk).start()


# Registers.


def test_identity_is_that_of_qemus_nvme_without_msi(disk):
    board = NvmeBoard(disk)
    assert board.config_read(DEVFN, 0x00) == 0x0010_1B36
    assert board.config_read(DEVFN, 0x08) == 0x0108_0202
    assert board.config_read(DEVFN, 0x10) & 0xF == 4
    assert board.config_read(DEVFN, 0x34, 1) == 0
    assert board.config_read(DEVFN, 0x3D, 1) == 1


def test_declaration_has_every_register_where_the_device_answers(disk):
    board = NvmeBoard(disk)
    board.put(r.REG_AQA, 0x000F_001F)
    board.put(r.REG_ASQ, 0x1_2345_6000, 8)
    board.put(r.REG_ACQ, 0x7_8000)
    board.put(r.REG_ACQ + 4, 9)
    board.put(r.REG_INTMS, 5)
    raw = b"".join(board.get(at).to_bytes(4, "little") for at in range(0, 0x38, 4))
    parsed = r.ControllerRegisters.parse(raw)
    assert (parsed.cap, parsed.vs) == (CAP, 0x0001_0400)
    assert (parsed.intms, parsed.intmc) == (5, 5)
    assert (parsed.aqa, parsed.asq, parsed.acq) == (0x000F_001F, 0x1_2345_6000, 0x9_0007_8000)
    assert raw == b"".join(board.get(at, 8).to_bytes(8, "little") for at in range(0, 0x38, 8))
    assert raw == b"".join(board.get(at, 1).to_bytes(1, "little") for at in range(0x38))


def test_capabilities_say_what_the_controller_can(board):
    cap = r.Capabilities.parse(board.get(r.REG_CAP, 8).to_bytes(8, "big"))
    assert (cap.mqes, cap.cqr, cap.css, cap.dstrd) == (MAX_QUEUE_ENTRIES - 1, True, 1, 0)
    assert (cap.mpsmin, cap.mpsmax, cap.nssrs) == (0, 4, False)


@given(raw=st.binary(min_size=64, max_size=64))
def test_declared_command_and_the_one_that_is_unpacked_agree(raw):
    parsed = r.Command.parse(raw)
    assert Sqe(*SQE.unpack(raw))._asdict() == {name: parsed[name] for name in Sqe._fields}


@given(values=st.tuples(*[st.integers(0, 0xFFFF_FFFF)] * 2, *[st.integers(0, 0xFFFF)] * 4))
def test_declared_completion_and_the_one_that_is_packed_agree(values):
    parsed = r.Completion.parse(CQE.pack(*values))
    assert (parsed.result, parsed.sq_head, parsed.sq_id, parsed.cid, parsed.status) == (values[0], *values[2:])


# Enable, reset, shutdown.


def test_controller_is_ready_once_enabled_and_not_once_disabled(disk):
    board = NvmeBoard(disk)
    assert not board.status.rdy
    board.enable()
    assert (board.status.rdy, board.status.cfs) == (True, False)
    board.put(r.REG_CC, 0)
    assert not board.status.rdy
    assert (board.get(r.REG_ASQ, 8), board.get(r.REG_ACQ, 8), board.get(r.REG_AQA)) == (ASQ, ACQ, 0x000F_000F)


@pytest.mark.parametrize(
    ("register", "value", "fields"),
    [
        (r.REG_AQA, 0x000F_0000, {}),
        (r.REG_AQA, 0x0000_000F, {}),
        (r.REG_ASQ, ASQ | 0x1000, {"mps": 1}),
        (r.REG_ACQ, ACQ | 0x1000, {"mps": 1}),
        (None, 0, {"mps": 5}),
        (None, 0, {"css": 1}),
        (None, 0, {"ams": 1}),
    ],
)
def test_enable_with_what_the_controller_cannot_is_fatal_until_reset(disk, register, value, fields):
    board = NvmeBoard(disk)
    board.enable()
    board.put(r.REG_CC, 0)
    if register is not None:
        board.put(register, value)
    board.configure(**fields)
    assert (board.status.cfs, board.status.rdy) == (True, False)
    board.enable()
    assert (board.status.cfs, board.status.rdy) == (False, True)
    assert board.identify(r.CNS_CONTROLLER)


def test_queues_of_a_controller_that_was_reset_are_gone(board):
    board.transfer(r.NVM_READ, 0, 1, BUFFER)
    board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    board.ring(board.io)
    assert board.irq
    board.put(r.REG_INTMS, 1)
    board.enable()
    assert (board.irq, board.get(r.REG_INTMS)) == (False, 0)
    board.ring(board.io)
    assert board.completions(board.io) != []  # the one from before the reset
    board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    board.ring(board.io)
    assert board.completions(board.io) == []


def test_shutdown_notification_flushes_and_completes(board, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    board.configure(shn=1)
    assert (board.status.shst, len(synced)) == (2, 1)
    board.configure(shn=0)
    assert board.status.shst == 0


def test_system_reset_leaves_registers_as_at_power_on(board):
    board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    board.put(r.REG_DOORBELLS + 8, board.io.tail)
    board.put(r.REG_INTMS, 1)
    board.reset()
    assert (board.high(), board.clock.step()) == ([], False)
    board.firmware()
    assert [board.get(n) for n in (r.REG_CC, r.REG_CSTS, r.REG_AQA, r.REG_ASQ, r.REG_ACQ, r.REG_INTMS)] == [0] * 6
    board.start()
    assert board.transfer(r.NVM_READ, 0, 1, BUFFER) == 0


# The interrupt.


def test_line_is_high_until_the_guest_consumed_every_completion(board):
    for _ in range(3):
        board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    assert not board.irq
    board.ring(board.io)
    assert board.irq
    assert len(board.completions(board.io, consume=False)) == 3
    board.put(r.REG_DOORBELLS + 12, 2)
    assert board.irq
    board.put(r.REG_DOORBELLS + 12, 3)
    assert not board.irq
    assert board.take_irq_events()[-2:] == [("raise", IRQ), ("lower", IRQ)]


def test_masked_interrupt_keeps_the_line_low_until_unmasked(board):
    board.put(r.REG_INTMS, 1)
    board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    board.ring(board.io)
    assert not board.irq
    board.put(r.REG_INTMC, 2)
    assert not board.irq
    board.put(r.REG_INTMC, 1)
    assert board.irq
    board.put(r.REG_INTMS, 1)
    assert not board.irq


def test_deleted_completion_queue_takes_its_interrupt_along(board):
    board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    board.ring(board.io)
    assert board.command(r.ADMIN_DELETE_SQ, cdw10=1).status == 0
    assert board.irq
    assert board.command(r.ADMIN_DELETE_CQ, cdw10=1).status == 0
    assert not board.irq


@settings(max_examples=60, deadline=None)
@given(
    irq=st.booleans(),
    operations=st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.integers(1, 3)),
            st.tuples(st.just("consume"), st.integers(1, 4)),
            st.tuples(st.sampled_from(["mask", "unmask"]), st.sampled_from([0, 1, 2, 0xFFFF_FFFF])),
        ),
        max_size=40,
    ),
)
def test_line_is_high_exactly_while_an_interrupting_queue_has_entries_and_is_not_masked(
    tmp_path_factory, irq, operations
):
    path = tmp_path_factory.mktemp("nvme") / "disk"
    path.write_bytes(bytes(4096))
    board = NvmeBoard(path).start(size=4, irq=irq)
    io = board.io
    submitted = completed = consumed = masked = 0
    for kind, value in operations:
        if kind == "submit":
            value = min(value, 3 - (submitted - completed))
            for _ in range(value):
                board.queue(io, r.NVM_FLUSH, nsid=1)
            submitted += value
            board.ring(io)
        elif kind == "consume":
            value = min(value, completed - consumed)
            if value:
                consumed += value
                board.put(r.REG_DOORBELLS + 12, consumed % 4)
                board.clock.step(0)
        else:
            masked = masked | value & 1 if kind == "mask" else masked & ~(value & 1)
            board.put(r.REG_INTMS if kind == "mask" else r.REG_INTMC, value)
        completed = min(submitted, consumed + 3)
        assert board.irq == bool(irq and completed > consumed and not masked)


# Queues.


def test_completions_wrap_with_an_inverted_phase_and_in_order(board):
    cids = []
    for cid in range(50):
        board.queue(board.io, r.NVM_FLUSH, nsid=1, cid=cid)
        if cid % 7 == 6:
            board.ring(board.io)
            cids += [entry.cid for entry in board.completions(board.io)]
    board.ring(board.io)
    cids += [entry.cid for entry in board.completions(board.io)]
    assert cids == list(range(50))


def test_full_completion_queue_holds_commands_back_until_there_is_room(disk):
    board = NvmeBoard(disk).start(size=4)
    for cid in range(3):
        board.queue(board.io, r.NVM_FLUSH, nsid=1, cid=cid)
    board.ring(board.io)
    for cid in range(3, 6):
        board.queue(board.io, r.NVM_FLUSH, nsid=1, cid=cid)
    board.ring(board.io)
    first = board.completions(board.io, consume=False)
    assert [entry.cid for entry in first] == [0, 1, 2]
    assert first[-1].sq_head == 3
    board.consume(board.io)
    assert [entry.cid for entry in board.completions(board.io)] == [3, 4, 5]


def test_two_submission_queues_on_one_completion_queue_take_turns(board):
    assert board.command(r.ADMIN_CREATE_SQ, prp1=0x2_0000, cdw10=15 << 16 | 2, cdw11=1 | 1 << 16).status == 0
    other = type(board.io)(2, 0x2_0000, IOCQ, 16)
    for cid in range(3):
        board.queue(board.io, r.NVM_FLUSH, nsid=1, cid=cid)
        board.queue(other, r.NVM_FLUSH, nsid=1, cid=cid)
    board.put(r.REG_DOORBELLS + 8, board.io.tail)
    board.ring(other)
    entries = board.completions(board.io)
    assert [(entry.sq_id, entry.cid) for entry in entries] == [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2), (2, 2)]
    assert board.command(r.ADMIN_DELETE_CQ, cdw10=1).status == r.INVALID_QUEUE_DELETION | r.DNR


@pytest.mark.parametrize(
    ("cdw10", "cdw11", "prp1", "status"),
    [
        (15 << 16 | 0, 3, IOCQ, r.INVALID_QUEUE_ID),
        (15 << 16 | 1, 3, IOCQ, r.INVALID_QUEUE_ID),
        (15 << 16 | 65, 3, IOCQ, r.INVALID_QUEUE_ID),
        (0 << 16 | 2, 3, IOCQ, r.INVALID_QUEUE_SIZE),
        (MAX_QUEUE_ENTRIES << 16 | 2, 3, IOCQ, r.INVALID_QUEUE_SIZE),
        (15 << 16 | 2, 2, IOCQ, r.INVALID_FIELD),
        (15 << 16 | 2, 3, IOCQ + 8, r.INVALID_PRP_OFFSET),
        (15 << 16 | 2, 3 | 1 << 16, IOCQ, r.INVALID_VECTOR),
    ],
)
def test_completion_queue_that_cannot_be_is_refused(board, cdw10, cdw11, prp1, status):
    assert board.command(r.ADMIN_CREATE_CQ, cdw10=cdw10, cdw11=cdw11, prp1=prp1).status == status | r.DNR


@pytest.mark.parametrize(
    ("cdw10", "cdw11", "prp1", "status"),
    [
        (15 << 16 | 0, 1 | 1 << 16, IOCQ, r.INVALID_QUEUE_ID),
        (15 << 16 | 1, 1 | 1 << 16, IOCQ, r.INVALID_QUEUE_ID),
        (15 << 16 | 2, 1 | 0 << 16, IOCQ, r.INVALID_QUEUE_ID),
        (15 << 16 | 2, 1 | 65 << 16, IOCQ, r.INVALID_QUEUE_ID),
        (15 << 16 | 2, 1 | 2 << 16, IOCQ, r.CQ_INVALID),
        (0 << 16 | 2, 1 | 1 << 16, IOCQ, r.INVALID_QUEUE_SIZE),
        (15 << 16 | 2, 0 | 1 << 16, IOCQ, r.INVALID_FIELD),
        (15 << 16 | 2, 1 | 1 << 16, IOCQ + 64, r.INVALID_PRP_OFFSET),
    ],
)
def test_submission_queue_that_cannot_be_is_refused(board, cdw10, cdw11, prp1, status):
    assert board.command(r.ADMIN_CREATE_SQ, cdw10=cdw10, cdw11=cdw11, prp1=prp1).status == status | r.DNR


def test_io_queues_need_the_entry_sizes_of_the_controller(disk):
    board = NvmeBoard(disk)
    board.enable(iosqes=0, iocqes=0)
    refused = board.command(r.ADMIN_CREATE_CQ, cdw10=15 << 16 | 1, cdw11=3, prp1=IOCQ)
    assert refused.status == r.INVALID_QUEUE_SIZE | r.DNR


@pytest.mark.parametrize("opcode", [r.ADMIN_DELETE_SQ, r.ADMIN_DELETE_CQ])
@pytest.mark.parametrize("queue", [0, 2, 0xFFFF])
def test_queue_that_is_not_there_cannot_be_deleted(board, opcode, queue):
    assert board.command(opcode, cdw10=queue).status == r.INVALID_QUEUE_ID | r.DNR


@pytest.mark.parametrize("which", ["submission", "completion"])
def test_queue_out_of_memory_is_fatal_until_reset(disk, which):
    board = NvmeBoard(disk, trace=True)
    board.enable()
    board.put(r.REG_CC, 0)
    board.put(r.REG_ASQ if which == "submission" else r.REG_ACQ, 0xFFFF_FFFF_FFFF_F000, 8)
    board.configure()
    board.queue(board.admin, r.ADMIN_IDENTIFY, prp1=BUFFER, cdw10=1)
    board.ring(board.admin)
    assert board.status.cfs
    assert [event.reason for event in board.recording.of(PciNvmeErrFatal)] == [f"{which} queue 0 is out of memory"]
    board.start()
    assert board.transfer(r.NVM_READ, 0, 1, BUFFER) == 0


def test_controller_that_may_not_master_the_bus_fails_and_reaches_no_memory(board):
    before = bytes(board.memory.view)
    board.config_write(DEVFN, 4, 2, 2)
    board.put(r.REG_DOORBELLS + 8, 1)
    board.clock.step(0)
    assert board.status.cfs
    assert bytes(board.memory.view) == before


@pytest.mark.parametrize(("offset", "value"), [(0x1008, 16), (0x1008, 0), (0x100C, 16), (0x100C, 3), (0x1010, 1)])
def test_wrong_doorbell_is_reported_by_an_asynchronous_event(board, offset, value):
    assert board.submit(board.admin, r.ADMIN_ASYNC_EVENT, cid=77) == []
    board.put(offset, value)
    [event] = board.completions(board.admin)
    assert (event.cid, event.status) == (77, 0)
    parsed = r.AsyncEvent.parse(event.result.to_bytes(4, "big"))
    register = r.EVENT_INVALID_DOORBELL_REGISTER if offset == 0x1010 else r.EVENT_INVALID_DOORBELL_VALUE
    assert (parsed.log, parsed.info, parsed.type) == (r.LOG_ERROR, register, r.EVENT_ERROR)
    assert board.transfer(r.NVM_READ, 0, 1, BUFFER) == 0


def test_deleted_queues_commands_are_not_carried_out(board, disk):
    before = disk.read_bytes()
    board.queue(board.admin, r.ADMIN_DELETE_SQ, cdw10=1)
    for _ in range(3):
        board.queue(board.io, r.NVM_WRITE, nsid=1, prp1=BUFFER)
    board.put(r.REG_DOORBELLS, board.admin.tail)
    board.ring(board.io)
    assert [entry.status for entry in board.completions(board.admin)] == [0]
    assert board.completions(board.io) == []
    assert board.status.cfs is False
    assert disk.read_bytes() == before


# Its life.


def test_unplug_with_line_high_and_commands_queued_gives_everything_back(board, disk):
    board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    board.ring(board.io)
    board.queue(board.io, r.NVM_READ, nsid=1, prp1=BUFFER)
    board.put(r.REG_DOORBELLS + 8, board.io.tail)
    assert board.irq
    board.nvme.unrealize()
    assert (board.high(), board.clock.step(), board.read(BAR)) == ([], False, 0xFFFF_FFFF)
    assert board.ledger.difference(board.before) == ([], [])
    again = board.plug(Nvme("n1", serial="S2", **{"x-image": str(disk)}))
    assert again.namespace.blocks == BLOCKS


def test_image_of_a_plugged_controller_is_in_use_and_the_failed_plug_holds_nothing(board, disk):
    held = board.ledger.snapshot()
    with pytest.raises(InUse, match="lock"):
        board.plug(Nvme("n1", serial="S2", **{"x-image": str(disk)}))
    assert board.ledger.difference(held) == ([], [])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"serial": ""}, "1 to 20"),
        ({"serial": "s" * 21}, "1 to 20"),
        ({"serial": "ä"}, "1 to 20"),
        ({"logical_block_size": 513}, "power of two"),
        ({"logical_block_size": 256}, "power of two"),
        ({"max_ioqpairs": 0}, "between 1 and"),
        ({"max_ioqpairs": 1025}, "between 1 and"),
        ({"mdts": 0}, "between 1 and 13"),
        ({"mdts": 14}, "between 1 and 13"),
        ({"mdts": 1, "logical_block_size": 16384}, "at least a block"),
        ({"x-image": None}, "drive property not set"),
    ],
)
def test_property_that_cannot_be_is_refused(values, says):
    with pytest.raises(PropertyError, match=says):
        Nvme("n0", **{"serial": "S", "x-image": "nosuch", **values})


def test_image_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="Could not open"):
        NvmeBoard(tmp_path / "nosuch")


def test_missing_serial_is_qemus_error():
    with pytest.raises(PropertyError, match="serial property not set"):
        Nvme.parse({"x-image": "disk"})


def test_machine_plugs_refuses_and_unplugs_it_by_qmp(vm, disk):
    guest = vm("pc", accel="qtest")
    guest.qmp("query-status")
    before = guest.machine.ledger.snapshot()
    plug = {"driver": "nvme", "id": "n0", "serial": "S1", "x-image": str(disk)}
    for wrong, says in (
        ({"x-image": f"{disk}.not"}, "Could not open"),
        ({"drive": "d0"}, "exclude each other"),
        ({"serial": "s" * 21}, "1 to 20"),
    ):
        with pytest.raises(ExecuteError, match=says):
            guest.qmp("device_add", **(plug | wrong))
        assert guest.machine.ledger.difference(before) == ([], [])
    guest.qmp("device_add", **plug)
    with pytest.raises(ExecuteError, match="another device or process"):
        guest.qmp("device_add", **(plug | {"id": "n1"}))
    guest.qmp("device_del", id="n0")
    guest.qmp("system_reset")
    guest.wait_event("DEVICE_DELETED", device="n0")
    assert guest.machine.ledger.difference(before) == ([], [])


def test_watcher_sees_each_command_and_its_completion(disk):
    board = NvmeBoard(disk, trace=True).start()
    board.transfer(r.NVM_READ, 5, 2, BUFFER)
    assert board.recording.of(PciNvmeIoCmd) == [PciNvmeIoCmd("n0", 1, 0, r.NVM_READ, 1, 5, 2)]
    assert board.recording.of(PciNvmeEnqueueReqCompletion)[-1] == PciNvmeEnqueueReqCompletion("n0", 1, 0, 0)


def test_wide_and_unaligned_accesses_that_nvme_does_not_define_change_nothing(board):
    before = [board.get(at) for at in range(0, 0x40, 4)]
    for offset, size in ((r.REG_CC, 1), (r.REG_CC, 2), (r.REG_CC + 2, 4), (r.REG_ASQ + 1, 4), (r.REG_DOORBELLS, 8)):
        board.put(offset, 0, size)
    assert [board.get(at) for at in range(0, 0x40, 4)] == before
