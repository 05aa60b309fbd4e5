"""Shared memory: ivshmem-plain, and the memory backends behind it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devices.ivshmem import DOORBELL, INTR_MASK, INTR_STATUS, IV_POSITION, IvshmemPlain, IvshmemRegisters
from devices.memory_backend import MemoryBackendRam
from devices.memory_file import MemoryBackendFile
from support.pci import PciBoard
from vmm.errors import ConfigError, InUse, PropertyError

DEVFN = 6 << 3
REGISTERS, MEMORY = 0xFE00_0000, 0xE000_0000
SIZE = 1 << 16
IRQ = 10


def backend(size=SIZE, **values):
    return MemoryBackendRam.create("m0", {"size": size, **values}, False, None)


class Board(PciBoard):
    def __init__(self, memory=None):
        super().__init__()
        self.objects = {"m0": memory or backend()}
        self.route(IRQ, IRQ, IRQ, IRQ)
        self.before = self.ledger.snapshot()
        self.device = self.plug(IvshmemPlain("iv0", memdev="m0", addr=DEVFN))
        self.firmware()

    def firmware(self):
        self.config_write(DEVFN, 0x10, REGISTERS)
        self.config_write(DEVFN, 0x18, MEMORY)
        self.config_write(DEVFN, 0x1C, 0)
        self.config_write(DEVFN, 4, 7, 2)

    def get(self, register):
        return self.read(REGISTERS + register)

    def put(self, register, value):
        self.write(REGISTERS + register, value)

    @property
    def irq(self):
        return IRQ in self.high()


class TestRegisters:
    def test_identity(self):
        board = Board()
        assert board.config_read(DEVFN, 0) == 0x1110_1AF4
        assert board.config_read(DEVFN, 8) == 0x0500_0001

    def test_status_is_cleared_by_reading_and_raises_the_pin_where_the_mask_allows(self):
        board = Board()
        board.put(INTR_STATUS, 1)
        assert not board.irq
        board.put(INTR_MASK, 0xFFFF_FFFF)
        assert board.irq
        assert board.get(INTR_STATUS) == 1
        assert not board.irq
        assert board.get(INTR_STATUS) == 0
        board.put(INTR_STATUS, 6)
        board.put(INTR_MASK, 1)
        assert not board.irq
        board.put(INTR_MASK, 4)
        assert board.irq

    def test_block_is_as_declared(self):
        board = Board()
        board.put(INTR_MASK, 0x1234)
        board.put(INTR_STATUS, 0x8)
        board.put(IV_POSITION, 77)
        board.put(DOORBELL, 8 << 16)
        raw = b"".join(board.get(at).to_bytes(4, "little") for at in range(0, 16, 4))
        registers = IvshmemRegisters.parse(raw)
        assert (registers.intr_mask, registers.intr_status) == (0x1234, 8)
        assert (registers.iv_position, registers.doorbell) == (0, 0)
        assert board.get(0x10) == board.get(0xFC) == 0

    def test_reset_lets_go_of_the_pin_and_keeps_the_memory(self):
        board = Board()
        board.write(MEMORY, 0x1122_3344)
        board.put(INTR_MASK, 1)
        board.put(INTR_STATUS, 1)
        board.reset()
        assert not board.irq
        board.firmware()
        assert board.get(INTR_MASK) == 0
        assert board.read(MEMORY) == 0x1122_3344


class TestMemory:
    def test_is_the_backend_s_in_any_size(self):
        memory = backend()
        board = Board(memory)
        board.write(MEMORY + 8, 0x1122_3344_5566_7788, 8)
        board.write(MEMORY + SIZE - 1, 0xAB, 1)
        assert memory.memory[8:16] == bytes.fromhex("8877665544332211")
        assert memory.memory[-1] == 0xAB
        memory.memory[100:102] = b"hi"
        assert board.read(MEMORY + 100, 2) == int.from_bytes(b"hi", "little")

    def test_file_is_shared_with_whoever_maps_it(self, tmp_path):
        path = tmp_path / "shared"
        values = {"size": SIZE, "share": True, "mem-path": str(path)}
        boards = [Board(MemoryBackendFile.create("m0", values, False, None)) for _ in range(2)]
        boards[0].write(MEMORY + 4, 0xCAFE_F00D)
        assert boards[1].read(MEMORY + 4) == 0xCAFE_F00D
        assert path.read_bytes()[4:8] == 0xCAFE_F00D.to_bytes(4, "little")
        assert path.stat().st_size == SIZE

    def test_backend_has_one_user_and_is_free_after_unplug_with_the_pin_high(self):
        board = Board()
        with pytest.raises(InUse, match="can't use already busy memdev: m0"):
            board.plug(IvshmemPlain("iv1", memdev="m0", addr=7 << 3))
        board.put(INTR_MASK, 1)
        board.put(INTR_STATUS, 1)
        assert board.irq
        board.device.unrealize()
        assert not board.irq
        assert board.ledger.difference(board.before) == ([], [])
        board.objects["m0"].close()

    def test_wrong_memdev_is_refused_and_nothing_is_held(self):
        board = Board()
        board.objects["odd"] = backend(3 * 4096)
        board.objects["other"] = board.device
        board.device.qom_type = "some-type"
        before = board.ledger.snapshot()
        for name, error, message in (
            ("m9", PropertyError, "'m9' not found"),
            ("other", PropertyError, "expected: memory-backend"),
            ("odd", ConfigError, "powers of two"),
        ):
            with pytest.raises(error, match=message):
                board.plug(IvshmemPlain("iv1", memdev=name, addr=7 << 3))
        assert board.ledger.difference(before) == ([], [])
        board.objects["odd"].close()
        with pytest.raises(PropertyError, match="You must specify a 'memdev'"):
            IvshmemPlain("iv1")
        with pytest.raises(PropertyError, match="'master' does not accept"):
            IvshmemPlain("iv1", memdev="m0", master="perhaps")


class TestFileBackend:
    def make(self, **values):
        return MemoryBackendFile.create("m0", {"size": 8192, **values}, False, None)

    def test_private_mapping_leaves_the_file_as_it_is(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"A" * 8192)
        made = self.make(**{"mem-path": str(path), "readonly": True})
        made.memory[0] = 0
        made.close()
        assert path.read_bytes() == b"A" * 8192

    def test_short_file_grows_and_a_long_one_keeps_its_length(self, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(b"A" * 100)
        self.make(**{"mem-path": str(path)}).close()
        assert path.stat().st_size == 8192
        path.write_bytes(bytes(20_000))
        self.make(**{"mem-path": str(path)}).close()
        assert path.stat().st_size == 20_000

    def test_directory_gets_a_file_without_a_name(self, tmp_path):
        made = self.make(**{"mem-path": str(tmp_path), "share": True})
        assert list(tmp_path.iterdir()) == []
        assert os.fstat(made.fd).st_size == 8192
        made.close()
        made.close()

    def test_wrong_ones_are_refused_and_leave_no_descriptor(self, tmp_path):
        before = len(list(Path("/proc/self/fd").iterdir()))
        short, fifo = tmp_path / "short", tmp_path / "fifo"
        os.mkfifo(fifo)
        short.write_bytes(b"A")
        for values, error, message in (
            ({}, PropertyError, "mem-path property not set"),
            ({"mem-path": str(tmp_path / "a" / "b")}, ConfigError, "can't open backing store .* No such file"),
            ({"mem-path": "a\0b"}, ConfigError, "can't open backing store"),
            ({"mem-path": str(short), "readonly": True}, ConfigError, "shorter than 8192"),
            ({"mem-path": str(short), "readonly": True, "share": True}, ConfigError, "readonly=on,share=on"),
            ({"mem-path": str(short), "size": 0}, PropertyError, "size 0"),
            ({"mem-path": str(short), "foo": 1}, PropertyError, "not found"),
            ({"mem-path": "/dev/null"}, ConfigError, "unable to map backing store"),
            ({"mem-path": str(fifo), "readonly": True}, ConfigError, "unable to map backing store"),
        ):
            with pytest.raises(error, match=message):
                self.make(**values)
        assert len(list(Path("/proc/self/fd").iterdir())) == before
