"""Slots, functions, configuration cycles and the errors of a plug, in QEMU's words."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.edu import Edu
from devices.pci.host import ConfigAddress
from devices.pci_testdev import PciTestdev
from support.pci import PIIX3_DEVFN, PM_DEVFN, PciBoard
from vmm.errors import ConfigError, InUse

TRANSCRIPT = Path(__file__).parent.parent / "conformance/data/qemu-qmp-transcript.jsonl"
BOARD = PciBoard()


@pytest.fixture
def board():
    return PciBoard()


def pci_testdev(name, addr=-1, multifunction=False):
    return PciTestdev(name, addr=addr, multifunction=multifunction)


def recorded(session, section, command):
    """The first reply to `command` in a section of the transcript."""
    lines = [json.loads(line) for line in TRANSCRIPT.read_text().splitlines()]
    lines = [line for line in lines if (line["sess"], line["sec"]) == (session, section)]
    at = next(i for i, line in enumerate(lines) if line["dir"] == ">" and command in line["raw"])
    return json.loads(lines[at + 1]["raw"])["return"]


def test_query_of_a_bus_with_cold_and_hot_devices_is_what_qemu_answered():
    expected = recorded("pc", "query-pci-after", "query-pci")[0]["devices"]
    board = PciBoard()
    board.plug(pci_testdev("cold0", 3 << 3))
    for name, addr in (("d0", 4 << 3), ("d1", 0x1C << 3 | 3), ("d3", 5 << 3)):
        board.plug(pci_testdev(name, addr), hot=True)
    board.plug(PciTestdev("d13", addr=9 << 3, membar=65536), hot=True)
    board.plug(Edu("edu0", addr=12 << 3), hot=True)
    ours = board.bus.query().as_qmp()["devices"]
    names = {"cold0", "d0", "d1", "d3", "d13", "edu0"}
    theirs = [
        device
        for device in expected
        if device["qdev_id"] in names or (device["slot"] < 2 and device["class_info"].get("desc") != "IDE controller")
    ]
    assert ours == theirs
    assert len(ours) == 9


def test_query_of_a_mapped_bar_shows_its_address(board):
    board.plug(pci_testdev("t0", 4 << 3))
    board.config_write(0x20, 0x10, 0xFEBF_1000)
    board.config_write(0x20, 0x14, 0xC001)
    board.config_write(0x20, 4, 1, 2)
    board.config_write(0x20, 0x3C, 11, 1)
    info = board.bus.query().devices[-1]
    assert [(region.bar, region.address) for region in info.regions] == [(0, -1), (1, 0xC000)]
    board.config_write(0x20, 4, 3, 2)
    assert board.bus.query().devices[-1].regions[0].address == 0xFEBF_1000


def test_device_without_address_gets_the_lowest_free_slot(board):
    assert [board.plug(pci_testdev(name)).devfn for name in "abc"] == [2 << 3, 3 << 3, 4 << 3]
    board.bus.devices[3 << 3].unrealize()
    assert board.plug(pci_testdev("d")).devfn == 3 << 3


def test_plug_into_a_taken_slot_names_who_has_it(board):
    board.plug(pci_testdev("d2", 0x1D << 3), hot=True)
    with pytest.raises(InUse) as refused:
        board.plug(pci_testdev("d10", 0x1D << 3), hot=True)
    assert str(refused.value) == ("PCI: slot 29 function 0 not available for pci-testdev, in use by pci-testdev,id=d2")
    assert refused.value.holder == "/machine/peripheral/d2"


def test_hot_plug_of_a_function_after_function_0_is_refused(board):
    board.plug(pci_testdev("d2", 0x1D << 3), hot=True)
    with pytest.raises(InUse) as refused:
        board.plug(pci_testdev("d10", 0x1D << 3 | 1), hot=True)
    assert str(refused.value) == (
        "PCI: slot 29 function 0 already occupied by pci-testdev, new func pci-testdev cannot be exposed to guest."
    )


def test_cold_plug_of_a_function_beside_a_single_function_is_refused(board):
    board.plug(pci_testdev("a", 5 << 3))
    with pytest.raises(ConfigError, match=r"^PCI: single function device can't be populated in function 5\.1$"):
        board.plug(pci_testdev("b", 5 << 3 | 1))


def test_function_0_without_multifunction_in_a_slot_with_others_is_refused(board):
    board.plug(pci_testdev("d1", 0x1C << 3 | 3), hot=True)
    message = r"^PCI: 1c\.0 indicates single function, but 1c\.3 is already populated\.$"
    with pytest.raises(ConfigError, match=message):
        board.plug(pci_testdev("f12", 0x1C << 3), hot=True)


def test_full_bus_with_one_lone_function_offers_its_slot_as_qemu_does(board):
    board.plug(pci_testdev("d1", 0x1C << 3 | 3), hot=True)
    for i in range(26):
        board.plug(pci_testdev(f"f{i}"), hot=True)
    assert board.bus.devices[0x1B << 3].id == "f25"
    with pytest.raises(ConfigError, match=r"1c\.0 indicates single function"):
        board.plug(pci_testdev("f26"), hot=True)
    assert board.bus.devices[0x1D << 3] is None


def test_full_bus_has_no_slot_for_one_more(board):
    for i in range(30):
        board.plug(pci_testdev(f"f{i}"))
    with pytest.raises(InUse, match="no slot/function available for pci-testdev, all in use or reserved"):
        board.plug(pci_testdev("one-more"))


def test_refused_plug_leaves_ledger_slots_and_spaces_as_they_were(board):
    board.plug(pci_testdev("a", 5 << 3))
    before, slots = board.ledger.snapshot(), list(board.bus.devices)
    mapped = len(board.mmio.mappings()), len(board.ports.mappings())
    for addr in (5 << 3, 5 << 3 | 1):
        with pytest.raises(ConfigError):
            board.plug(pci_testdev("b", addr))
    assert board.ledger.difference(before) == ([], [])
    assert board.bus.devices == slots
    assert (len(board.mmio.mappings()), len(board.ports.mappings())) == mapped


def test_function_is_invisible_until_function_0_is_there(board):
    board.plug(pci_testdev("m1", 8 << 3 | 1, multifunction=True), hot=True)
    assert board.config_read(0x41, 0) == 0xFFFF_FFFF
    board.config_write(0x41, 4, 7, 2)
    board.plug(pci_testdev("m0", 8 << 3, multifunction=True), hot=True)
    assert board.config_read(0x41, 0) == 0x0005_1B36
    assert board.config_read(0x41, 4, 2) == 0
    assert board.config_read(0x40, 0x0E, 1) == 0x80


@pytest.mark.parametrize("devfn", [2 << 3, 1 << 3 | 5, 31 << 3 | 7])
def test_configuration_cycle_to_nobody_reads_ones_and_is_lost(board, devfn):
    board.config_write(devfn, 4, 7, 2)
    assert board.config_read(devfn, 0) == 0xFFFF_FFFF
    assert board.config_read(devfn, 2, 2) == 0xFFFF
    assert board.config_read(devfn, 3, 1) == 0xFF


@pytest.mark.parametrize("address", [0x0000_0000, 0x7FFF_FFFC, 0x8001_0000, 0x80FF_0000])
def test_data_port_while_disabled_or_on_another_bus_reads_ones(board, address):
    board.outl(0xCF8, address)
    assert board.inl(0xCFC) == 0xFFFF_FFFF


def test_reserved_bits_of_the_address_port_are_kept_and_ignored(board):
    board.outl(0xCF8, 0xFF00_0003)
    assert board.inl(0xCF8) == 0xFF00_0003
    assert board.inl(0xCFC) == 0x1237_8086


def test_reserved_bits_of_the_address_port_choose_byte_or_word_as_in_qemu(board):
    board.outl(0xCF8, 0x8000_0002)
    assert board.inw(0xCFC) == 0x1237
    board.outl(0xCF8, 0x8000_0001)
    assert (board.inb(0xCFC), board.inb(0xCFE)) == (0x80, 0x12)


def test_address_port_takes_dwords_only(board):
    board.outl(0xCF8, 0x8000_0000)
    board.outb(0xCF8, 0x12)
    board.outw(0xCFA, 0x3456)
    assert board.inl(0xCF8) == 0x8000_0000


@given(bus=st.just(0), device=st.integers(0, 31), function=st.integers(0, 7), register=st.integers(0, 63))
def test_address_that_the_declaration_builds_reaches_the_register_it_names(bus, device, function, register):
    fields = {"enable": True, "bus": bus, "device": device, "function": function, "register": register}
    BOARD.outl(0xCF8, int.from_bytes(ConfigAddress.build(fields), "little"))
    assert BOARD.inl(0xCFC) == BOARD.bus.config_read(device << 3 | function, register * 4, 4)


@settings(max_examples=60)
@given(
    accesses=st.lists(
        st.tuples(
            st.sampled_from((0xCF8, 0xCF9, 0xCFA, 0xCFB, 0xCFC, 0xCFD, 0xCFE, 0xCFF, 0xCF7)),
            st.sampled_from((1, 2, 4)),
            st.one_of(st.integers(0, 0xFFFF_FFFF), st.integers(0x8000_0000, 0x8000_1FFF)),
        ),
        max_size=30,
    )
)
def test_any_accesses_to_the_configuration_ports_never_raise_and_keep_the_identity(accesses):
    board = BOARD
    for port, size, value in accesses:
        board.ports.write(port, size, value & (1 << 8 * size) - 1)
        assert 0 <= board.ports.read(port, size) < 1 << 8 * size
    assert board.config_read(0, 0) == 0x1237_8086
    assert board.config_read(PIIX3_DEVFN, 0) == 0x7000_8086
    assert board.config_read(PM_DEVFN, 0) == 0x7113_8086
    board.resets.clear()


@pytest.mark.parametrize(
    ("devfn", "registers"),
    [
        (0, {0x00: 0x1237_8086, 0x04: 0, 0x08: 0x0600_0002, 0x2C: 0x1100_1AF4, 0x54: 0x1000_0000, 0x70: 0x0002_0000}),
        (
            PIIX3_DEVFN,
            {0x04: 0x0200_0000, 0x08: 0x0601_0000, 0x0C: 0x0080_0000, 0x4C: 0x0003_004D, 0x60: 0x8080_8080}
            | {0x68: 0x0000_0200, 0x70: 0x80, 0x74: 0x0C0C_0000, 0x78: 2, 0xA0: 8, 0xA8: 0xF},
        ),
        (
            PM_DEVFN,
            {0x04: 0x0280_0000, 0x08: 0x0680_0003, 0x3C: 0x0100, 0x40: 1, 0x5C: 0x1000_0000, 0x60: 0x6000_0000}
            | {0x80: 0, 0x90: 0xB101, 0xD0: 0x0009_0000},
        ),
    ],
)
def test_chipset_registers_after_reset_read_as_in_qemu(board, devfn, registers):
    board.reset()
    assert {offset: board.config_read(devfn, offset) for offset in registers} == registers
