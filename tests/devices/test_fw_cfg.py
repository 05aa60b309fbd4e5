"""fw_cfg, through its ports and through DMA."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import fw_cfg
from devices.fw_cfg import DmaAccess, FileDirectory, FwCfg
from tests.support.board import FakeBoard
from vmm.errors import ConfigError, InUse, UsageError

DESCRIPTOR = 0x1000
BUFFER = 0x2000


class Machine:
    def __init__(self) -> None:
        self.board = FakeBoard()
        self.cfg = FwCfg()
        self.cfg.realize(self.board)

    def read(self, key: int, length: int) -> bytes:
        self.board.outw(0x510, key)
        return bytes(self.board.inb(0x511) for _ in range(length))

    def directory(self):
        count = int.from_bytes(self.read(fw_cfg.FILE_DIR, 4), "big")
        return FileDirectory.parse(self.read(fw_cfg.FILE_DIR, 4 + 64 * count))

    def dma(self, control: int, length: int, address: int, descriptor: int = DESCRIPTOR) -> int:
        access = DmaAccess.build({"control": control, "length": length, "address": address})
        self.board.memory.write(descriptor, access)
        swapped = int.from_bytes(descriptor.to_bytes(8, "big"), "little")
        self.board.outl(0x514, swapped & 0xFFFF_FFFF)
        self.board.outl(0x518, swapped >> 32)
        return int.from_bytes(self.board.memory.read(descriptor, 4), "big")


def test_signature_and_id_announce_dma():
    m = Machine()
    assert m.read(0, 4) == b"QEMU"
    assert m.read(1, 4) == b"\x03\0\0\0"


def test_signature_is_selected_after_reset():
    m = Machine()
    m.read(1, 2)
    m.cfg.reset()
    assert bytes(m.board.inb(0x511) for _ in range(4)) == b"QEMU"


def test_numbers_are_little_endian_and_zero_behind_their_end():
    m = Machine()
    m.cfg.add_u16(fw_cfg.NB_CPUS, 3)
    m.cfg.add_u64(fw_cfg.RAM_SIZE, 0x1_8000_0000)
    assert m.read(fw_cfg.NB_CPUS, 8) == b"\3\0" + bytes(6)
    assert int.from_bytes(m.read(fw_cfg.RAM_SIZE, 8), "little") == 0x1_8000_0000


def test_unknown_key_reads_as_zeros():
    assert Machine().read(0x7777, 3) == bytes(3)


def test_data_port_write_changes_nothing():
    m = Machine()
    m.read(0, 1)
    m.board.outb(0x511, 0xFF)
    m.board.outb(0x510, 0xFF)
    assert m.board.inb(0x511) == ord("E")


def test_files_are_listed_by_name_with_their_selectors():
    m = Machine()
    m.cfg.add_file("opt/z", b"last")
    m.cfg.add_file("etc/a", b"first!")
    files = m.directory()
    assert [(f.name, f.size, f.select) for f in files] == [("etc/a", 6, 0x20), ("opt/z", 4, 0x21)]
    assert m.read(files[0].select, 6) == b"first!"
    assert m.read(files[1].select, 4) == b"last"


def test_second_file_of_a_name_is_refused():
    m = Machine()
    m.cfg.add_file("etc/a", b"")
    with pytest.raises(InUse, match="etc/a"):
        m.cfg.add_file("etc/a", b"")


@pytest.mark.parametrize("name", ["", "x" * 56, "caf\u00e9", "a\nb"])
def test_bad_file_name_is_refused(name):
    with pytest.raises(ConfigError, match="fw_cfg file name"):
        Machine().cfg.add_file(name, b"")


def test_file_beyond_the_slots_is_refused():
    m = Machine()
    for n in range(fw_cfg.FILE_SLOTS):
        m.cfg.add_file(f"opt/{n}", b"")
    with pytest.raises(ConfigError, match="32"):
        m.cfg.add_file("opt/more", b"")
    assert len(m.directory()) == 32


def test_option_with_string_and_file(tmp_path):
    m = Machine()
    blob = tmp_path / "blob"
    blob.write_bytes(b"\0\1")
    m.cfg.add_option("name=opt/a,string=one,,two")
    m.cfg.add_option(f"opt/b,file={blob}")
    assert m.read(0x20, 7) == b"one,two"
    assert m.read(0x21, 2) == b"\0\1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name=opt/a", "one of file= and string="),
        ("name=opt/a,string=x,file=y", "one of file= and string="),
        ("string=x", "name="),
        ("name=opt/a,strong=x", "strong"),
        ("name=opt/a,file=/no/such/file", "/no/such/file"),
        ("name=" + "n" * 60 + ",string=x", "55"),
    ],
)
def test_bad_option_is_refused_naming_what_is_wrong(text, says):
    with pytest.raises(UsageError) as refused:
        Machine().cfg.add_option(text)
    assert says in str(refused.value)


def test_dma_signature_reads_as_qemu_cfg():
    m = Machine()
    assert m.board.inl(0x514).to_bytes(4, "little") + m.board.inl(0x518).to_bytes(4, "little") == b"QEMU CFG"


def test_dma_select_and_read_fills_memory_and_zeroes_the_rest():
    m = Machine()
    m.cfg.add_file("etc/a", b"hello")
    m.board.memory.write(BUFFER, b"\xaa" * 9)
    assert m.dma(0x20 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_READ, 8, BUFFER) == 0
    assert m.board.memory.read(BUFFER, 9) == b"hello\0\0\0\xaa"


def test_dma_skip_then_read_continues_there():
    m = Machine()
    m.dma(fw_cfg.DMA_SELECT | fw_cfg.DMA_SKIP, 2, 0)
    m.dma(fw_cfg.DMA_READ, 2, BUFFER)
    assert m.board.memory.read(BUFFER, 2) == b"MU"


def test_dma_write_reaches_writable_file_and_tells_its_owner():
    m = Machine()
    told = []
    m.cfg.add_file("etc/w", bytes(4), writable=True, changed=lambda: told.append(True))
    m.board.memory.write(BUFFER, b"abcd")
    assert m.dma(0x20 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_WRITE, 4, BUFFER) == 0
    assert m.read(0x20, 4) == b"abcd"
    assert told == [True]


def test_dma_write_to_read_only_or_beyond_end_fails():
    m = Machine()
    m.cfg.add_file("etc/r", bytes(4))
    m.cfg.add_file("etc/w", bytes(4), writable=True)
    assert m.dma(0x20 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_WRITE, 4, BUFFER) == fw_cfg.DMA_ERROR
    assert m.dma(0x21 << 16 | fw_cfg.DMA_SELECT | fw_cfg.DMA_WRITE, 5, BUFFER) == fw_cfg.DMA_ERROR


def test_dma_read_outside_memory_fails_without_a_partial_copy():
    m = Machine()
    assert m.dma(fw_cfg.DMA_SELECT | fw_cfg.DMA_READ, 0xFFFF_FFFF, 0) == fw_cfg.DMA_ERROR
    assert m.board.memory.read(0, 4) == bytes(4)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_no_dma_whatever_its_arguments_escapes(descriptor, control, length, address):
    m = Machine()
    if descriptor + 16 <= m.board.memory.size:
        assert m.dma(control, length, address, descriptor) in (0, 1)
    else:
        m.board.ports.write(0x514, 8, descriptor)
        assert m.cfg.dma_address == 0


def test_unrealize_gives_ports_back():
    m = Machine()
    m.cfg.unrealize()
    assert m.board.inb(0x511) == 0xFF
    assert m.board.ledger.rows() == []
