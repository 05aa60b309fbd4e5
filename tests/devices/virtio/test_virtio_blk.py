"""The block device: requests as a driver makes them, and a drive behind it."""

from __future__ import annotations

import struct

import pytest

from devices.virtio import blk
from devices.virtio import registers as r
from devices.virtio.blk import BlkConfig, VirtioBlk
from support.virtio import BUFFERS, VirtioBoard
from vmm.block_graph import BlockGraph
from vmm.errors import ConfigError, InUse, PropertyError

SECTORS = 64
HEADER, DATA, STATUS = BUFFERS, BUFFERS + 0x1000, BUFFERS + 0x800


class BlkBoard(VirtioBoard):
    """A disk of 64 sectors, each filled with its number."""

    def __init__(self, path, modern=True, drive=None, features=None, **values):
        if not path.exists():
            path.write_bytes(b"".join(bytes([n]) * 512 for n in range(SECTORS)))
        blocks = BlockGraph()
        blocks.add_drive("d0", {"driver": "raw", "file": {"driver": "file", "filename": str(path)}} | (drive or {}))
        super().__init__(VirtioBlk("b0", **{"drive": "d0"} | values), modern, blocks=blocks)
        self.start(features)

    def request(self, kind, sector=0, data=b"", length=0, indirect=0):
        """(status, what the device wrote, used length) of a request."""
        self.memory.write(HEADER, blk.RequestHeader.build({"type": kind, "priority": 0, "sector": sector}))
        self.memory.write(STATUS, b"\xee")
        pieces = [(HEADER, 16, False)]
        if data:
            self.memory.write(DATA, data)
            pieces.append((DATA, len(data), False))
        elif length:
            pieces.append((DATA, length, True))
        pieces.append((STATUS, 1, True))
        head = self.rings[0].submit(*pieces, indirect=indirect)
        [(done, used)] = self.rings[0].done()
        assert done == head
        return self.memory.read(STATUS, 1)[0], self.memory.read(DATA, length), used

    def segment(self, sector, count, flags=0):
        return blk.DiscardSegment.build({"sector": sector, "num_sectors": count, "flags": flags})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "disk.img"


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "legacy"])
class TestTransfers:
    def test_read_and_write(self, path, modern):
        board = BlkBoard(path, modern)
        assert board.request(blk.T_IN, 3, length=1024) == (0, bytes([3]) * 512 + bytes([4]) * 512, 1025)
        assert board.request(blk.T_OUT, 5, data=b"new!" * 128) == (0, b"", 1)
        assert board.request(blk.T_IN, 5, length=512)[1] == b"new!" * 128
        assert path.read_bytes()[5 * 512 : 6 * 512] == b"new!" * 128

    def test_indirect(self, path, modern):
        board = BlkBoard(path, modern)
        assert board.request(blk.T_IN, 7, length=512, indirect=BUFFERS + 0x400) == (0, bytes([7]) * 512, 513)

    def test_any_layout(self, path, modern):
        """Header cut in two, data and status in one descriptor."""
        board = BlkBoard(path, modern)
        board.memory.write(HEADER, blk.RequestHeader.build({"type": blk.T_IN, "priority": 0, "sector": 9}))
        board.rings[0].submit((HEADER, 5, False), (HEADER + 5, 11, False), (DATA, 513, True))
        assert board.rings[0].done() == [(0, 513)]
        assert board.memory.read(DATA, 513) == bytes([9]) * 512 + b"\0"

    def test_end_of_the_disk(self, path, modern):
        board = BlkBoard(path, modern)
        assert board.request(blk.T_IN, SECTORS - 1, length=512)[0] == blk.S_OK
        assert board.request(blk.T_IN, SECTORS - 1, length=1024)[0] == blk.S_IOERR
        assert board.request(blk.T_IN, 1 << 63, length=512)[0] == blk.S_IOERR
        assert board.request(blk.T_OUT, SECTORS, data=bytes(512))[0] == blk.S_IOERR
        assert path.stat().st_size == SECTORS * 512


class TestRequests:
    def test_parts_of_sectors_and_nothing_fail(self, path):
        board = BlkBoard(path)
        assert board.request(blk.T_IN, 0, length=511)[0] == blk.S_IOERR
        assert board.request(blk.T_IN, 0)[0] == blk.S_IOERR

    def test_unknown_request_is_unsupported(self, path):
        board = BlkBoard(path)
        assert board.request(77)[0] == blk.S_UNSUPP

    def test_flush_waits_for_the_medium(self, path):
        board = BlkBoard(path)
        flushes = []
        board.device.image.flush = lambda: flushes.append(1)
        board.request(blk.T_OUT, 0, data=bytes(512))
        assert flushes == []
        assert board.request(blk.T_FLUSH)[0] == blk.S_OK
        assert flushes == [1]

    @pytest.mark.parametrize("how", ["config", "property", "driver"])
    def test_without_write_cache_each_write_waits(self, path, how):
        values = {"write-cache": "off"} if how == "property" else {}
        features = r.F_VERSION_1 if how == "driver" else None
        board = BlkBoard(path, features=features, **values)
        flushes = []
        board.device.image.flush = lambda: flushes.append(1)
        if how == "config":
            board.set_own(blk.WRITEBACK_OFFSET, 0, 1)
        board.request(blk.T_OUT, 0, data=bytes(512))
        assert flushes == [1]

    def test_host_error_is_an_io_error(self, path):
        board = BlkBoard(path)

        def fails(*_):
            raise OSError(5, "no")

        board.device.image.flush = board.device.image.read = board.device.image.write = fails
        assert board.request(blk.T_FLUSH)[0] == blk.S_IOERR
        assert board.request(blk.T_IN, 0, length=512)[0] == blk.S_IOERR
        assert board.request(blk.T_OUT, 0, data=bytes(512))[0] == blk.S_IOERR

    def test_serial_number(self, path):
        board = BlkBoard(path, serial="disk-one")
        assert board.request(blk.T_GET_ID, length=20) == (0, b"disk-one".ljust(20, b"\0"), 21)

    @pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
    def test_discard_and_write_zeroes_leave_zeroes(self, path, kind):
        board = BlkBoard(path)
        assert board.request(kind, data=board.segment(2, 3))[0] == blk.S_OK
        assert path.read_bytes()[: 6 * 512] == bytes([0]) * 512 + bytes([1]) * 512 + bytes(3 * 512) + bytes([5]) * 512

    @pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
    def test_discard_of_what_is_not_there_fails(self, path, kind):
        board = BlkBoard(path)
        before = path.read_bytes()
        assert board.request(kind, data=board.segment(SECTORS - 1, 2))[0] == blk.S_IOERR
        assert board.request(kind, data=board.segment(0, 0xFFFF_FFFF))[0] == blk.S_IOERR
        assert board.request(kind, data=board.segment((1 << 64) - 1, 1))[0] == blk.S_IOERR
        assert board.request(kind, data=board.segment(0, 1, 2))[0] == blk.S_UNSUPP
        assert board.request(kind, data=board.segment(0, 1) * 2)[0] == blk.S_IOERR
        assert board.request(kind, data=b"short")[0] == blk.S_IOERR
        assert path.read_bytes() == before

    def test_discard_that_is_not_offered_is_unsupported(self, path):
        board = BlkBoard(path, discard=False, **{"write-zeroes": False})
        assert not board.offered() & (blk.F_DISCARD | blk.F_WRITE_ZEROES)
        assert board.request(blk.T_DISCARD, data=board.segment(0, 1))[0] == blk.S_UNSUPP
        assert board.request(blk.T_WRITE_ZEROES, data=board.segment(0, 1))[0] == blk.S_UNSUPP

    def test_blocks_of_4096_bytes_are_moved_whole(self, path):
        board = BlkBoard(path, logical_block_size=4096)
        assert board.own(20, 4) == 4096
        assert board.request(blk.T_IN, 8, length=4096)[0] == blk.S_OK
        assert board.request(blk.T_IN, 1, length=4096)[0] == blk.S_IOERR
        assert board.request(blk.T_IN, 8, length=512)[0] == blk.S_IOERR

    def test_request_without_header_or_status_breaks_the_device(self, path):
        board = BlkBoard(path)
        board.rings[0].submit((HEADER, 16, False))
        assert board.status & r.STATUS_NEEDS_RESET
        board.start()
        board.rings[0].submit((HEADER, 15, False), (STATUS, 1, True))
        assert board.status & r.STATUS_NEEDS_RESET

    def test_request_larger_than_the_limit_fails(self, path):
        board = BlkBoard(path)
        piece = (HEADER, 512 << 10, True)
        ring = board.rings[0]
        board.memory.write(HEADER - 0x1000, blk.RequestHeader.build({"type": blk.T_IN, "priority": 0, "sector": 0}))
        ring.submit((HEADER - 0x1000, 16, False), *[piece] * 129, (STATUS, 1, True))
        assert board.memory.read(STATUS, 1)[0] == blk.S_IOERR

    def test_file_that_is_used_as_it_is_does_not_grow(self, path):
        path.write_bytes(bytes(SECTORS * 512))
        board = BlkBoard(path, drive={"driver": "file", "filename": str(path), "file": None})
        assert board.request(blk.T_OUT, SECTORS - 1, data=bytes(1024))[0] == blk.S_IOERR
        assert board.request(blk.T_OUT, SECTORS + 7, data=bytes(512))[0] == blk.S_IOERR
        assert board.request(blk.T_OUT, SECTORS - 1, data=b"last" * 128)[0] == blk.S_OK
        assert path.stat().st_size == SECTORS * 512


class TestReadOnly:
    def test_drive_that_cannot_be_written(self, path):
        board = BlkBoard(path, drive={"read-only": True})
        assert board.offered() & blk.F_RO
        assert board.request(blk.T_OUT, 0, data=bytes(512))[0] == blk.S_IOERR
        assert board.request(blk.T_WRITE_ZEROES, data=board.segment(0, 1))[0] == blk.S_IOERR
        assert board.request(blk.T_IN, 1, length=512)[1] == bytes([1]) * 512


class TestConfiguration:
    def test_is_as_declared(self, path):
        board = BlkBoard(path)
        raw = b"".join(board.own(at, 4).to_bytes(4, "little") for at in range(0, 60, 4))
        config = BlkConfig.parse(raw)
        assert BlkConfig.sizeof() == VirtioBlk.config_size == 60
        assert (config.capacity, config.blk_size, config.seg_max) == (SECTORS, 512, 254)
        assert (config.num_queues, config.writeback, config.write_zeroes_may_unmap) == (1, 1, 1)
        assert config.max_discard_seg == config.max_write_zeroes_seg == config.discard_sector_alignment == 1
        # What lies beyond is nothing, and cannot be written.
        assert board.own(60, 4) == 0
        board.set_own(58, 0xFFFF_FFFF, 4)
        board.set_own(0, 7, 8)
        assert board.own(0, 8) == SECTORS

    def test_resize_is_told_to_the_driver(self, path):
        board = BlkBoard(path)
        board.blocks.resize("d0", 32 * 512)
        assert board.irq
        assert board.isr & r.ISR_CONFIG
        assert board.own(0, 8) == 32
        assert board.request(blk.T_IN, 32, length=512)[0] == blk.S_IOERR
        assert path.stat().st_size == 32 * 512

    def test_header_and_segment_are_as_declared(self):
        assert blk.RequestHeader.build({"type": 1, "priority": 2, "sector": 3}) == blk.HEADER.pack(1, 2, 3)
        assert blk.DiscardSegment.build({"sector": 1, "num_sectors": 2, "flags": 3}) == blk.SEGMENT.pack(1, 2, 3)


class TestProperties:
    def test_wrong_ones_are_refused(self):
        for values, message in (
            ({}, "drive property not set"),
            ({"drive": "d0", "queue-size": 100}, "must be a power of 2"),
            ({"drive": "d0", "queue-size": 2048}, "max 1024"),
            ({"drive": "d0", "logical_block_size": 600}, "doesn't take value 600"),
            ({"drive": "d0", "write-cache": "maybe"}, "does not accept value 'maybe'"),
        ):
            with pytest.raises(PropertyError, match=message):
                VirtioBlk("b0", **values)

    def test_drive_that_is_not_there_or_taken_is_refused_and_nothing_is_held(self, path):
        board = BlkBoard(path)
        held = board.ledger.snapshot()
        for drive, error, message in (("d1", ConfigError, "can't find value 'd1'"), ("d0", InUse, "already in use")):
            with pytest.raises(error, match=message):
                board.plug(VirtioBlk("b1", drive=drive, addr=6 << 3))
        assert board.ledger.difference(held) == ([], [])

    def test_drive_is_free_after_a_plug_that_failed_and_after_an_unplug(self, path):
        board = BlkBoard(path)
        board.device.unrealize()
        assert board.ledger.difference(board.before) == ([], [])
        with pytest.raises(InUse, match="slot 1"):
            board.plug(VirtioBlk("b1", drive="d0", addr=1 << 3))
        again = board.plug(VirtioBlk("b2", drive="d0", addr=6 << 3))
        assert board.blocks.drives["d0"].user == again.path


def test_status_of_each_request_in_one_batch(path):
    board = BlkBoard(path)
    ring = board.rings[0]
    for n, sector in enumerate((0, SECTORS, 1)):
        at = HEADER + 0x100 * n
        board.memory.write(at, struct.pack("<IIQ", blk.T_IN, 0, sector))
        ring.offer(ring.chain((at, 16, False), (DATA + 512 * n, 512, True), (STATUS + n, 1, True)))
    ring.kick()
    assert ring.done() == [(0, 513), (3, 1), (6, 513)]
    assert board.memory.read(STATUS, 3) == bytes([0, 1, 0])
