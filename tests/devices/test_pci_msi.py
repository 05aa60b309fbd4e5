"""MSI and MSI-X of a device in the machine: capability, table, masks, and what arrives at the local APIC."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.edu import REG_IRQ_ACK, REG_IRQ_RAISE, Edu
from devices.pci import config as cfg
from devices.pci.device import PciDevice
from devices.pci.msi import (
    CAP_ID_MSI,
    CAP_ID_MSIX,
    MSI_ENABLE,
    MSIX_ENABLE,
    MSIX_FUNCTION_MASK,
    Msi,
    MsiMessageControl,
    Msix,
    MsixCapability,
    MsixEntry,
)
from support.vfio_board import BAR, VfioBoard
from vmm.errors import ConfigError
from vmm.memory import IoRegion

MESSAGE = 0xFEE0_0000
TABLE = 0xFD00_0000


class Messenger(PciDevice):
    """A device with what `made` adds to it."""

    driver = "messenger"
    vendor_id, device_id, class_id, interrupt_pin = 0x1234, 0x0005, 0x00FF, 1

    def __init__(self, made):
        super().__init__("m0")
        self.made = made

    def realize(self, board):
        super().realize(board)
        self.made(self)


def with_msi(**given):
    return lambda device: setattr(device, "msi", Msi(device, **given))


def with_msix(vectors=4, table=0, pba=0x800, size=0x1000, max_access=8):
    def made(device):
        device.msix = Msix(device, vectors, 0, table, pba)
        region = IoRegion("table", size, lambda *_: 0x77, lambda *_: None, max_access=max_access)
        device.register_bar(0, device.msix.wrap(region))

    return made


def plugged(board, device):
    device.path = "/machine/peripheral/m0"
    device.bus = board.bus
    device.realize(board)
    device.config_write(cfg.BASE_ADDRESS_0, 4, TABLE)
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER)
    return device


@pytest.fixture
def board():
    return VfioBoard()


def taken(board):
    board.rig.drain()
    vectors = []
    while (vector := board.rig.inta()) > 0:
        vectors.append(vector)
        board.rig.eoi()
    return vectors


def enable(device, data=0x50, flags=MSI_ENABLE):
    at = device.config.find_capability(CAP_ID_MSI)
    device.config_write(at + 4, 4, MESSAGE)
    wide = device.config_read(at + 2, 2) & 0x80
    device.config_write(at + (12 if wide else 8), 2, data)
    device.config_write(at + 2, 2, flags)
    return at


@settings(max_examples=30)
@given(st.sampled_from([1, 2, 4, 8, 16, 32]), st.booleans(), st.booleans(), st.integers(0, 0xFFFF))
def test_message_control_says_what_there_is_and_takes_only_what_software_sets(vectors, wide, maskable, written):
    device = plugged(VfioBoard(), Messenger(with_msi(vectors=vectors, address_64=wide, maskable=maskable)))
    at = device.config.find_capability(CAP_ID_MSI)
    device.config_write(at + 2, 2, written)
    control = MsiMessageControl.parse(device.config_read(at + 2, 2).to_bytes(2, "little"))
    assert 1 << control.multiple_message_capable == vectors
    assert (control.address_64, control.per_vector_masking) == (wide, maskable)
    assert control.enable == bool(written & 1) == device.msi.enabled
    assert control.multiple_message_enable == written >> 4 & 7


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("given", [1, 2, 4])
def test_vectors_change_the_low_bits_of_data_that_the_guest_gave(board, wide, given):
    device = plugged(board, Messenger(with_msi(vectors=4, address_64=wide)))
    enable(device, data=0x53, flags=MSI_ENABLE | (given.bit_length() - 1) << 4)
    for n in range(4):
        device.msi.notify(n)
        assert taken(board) == [0x53 & ~(given - 1) | n & (given - 1)]


def test_message_before_it_is_enabled_or_from_no_bus_master_is_lost(board):
    device = plugged(board, Messenger(with_msi()))
    device.msi.notify(0)
    enable(device)
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY)
    device.msi.notify(0)
    assert taken(board) == []


def test_masked_vector_shows_in_the_pending_bits_until_it_is_sent(board):
    device = plugged(board, Messenger(with_msi(vectors=2, maskable=True)))
    at = enable(device, flags=MSI_ENABLE | 1 << 4)
    device.config_write(at + 16, 4, 0xFFFF_FFFF)
    assert device.config_read(at + 16, 4) == 0b11  # there are two
    device.msi.notify(1)
    assert (taken(board), device.config_read(at + 20, 4)) == ([], 0b10)
    device.config_write(at + 16, 4, 0b01)
    assert (taken(board), device.config_read(at + 20, 4)) == ([0x51], 0)


def test_edu_interrupts_by_message_once_msi_is_on_and_by_pin_before(board):
    device = plugged(board, Edu("m0"))
    device.config_write(cfg.BASE_ADDRESS_0, 4, BAR)
    board.write(BAR + REG_IRQ_RAISE, 1)
    assert board.level == 1
    board.write(BAR + REG_IRQ_ACK, 1)
    assert board.level == 0
    board.rig.eoi()
    board.rig.inta()
    enable(device, data=0x61)
    board.write(BAR + REG_IRQ_RAISE, 1)
    assert board.level == 0
    assert 0x61 in taken(board)


def test_table_entries_take_dwords_and_send_what_they_say(board):
    device = plugged(board, Messenger(with_msix()))
    at = device.config.find_capability(CAP_ID_MSIX)
    found = MsixCapability.parse(bytes(device.config.data[at : at + 12]))
    assert (found.message_control, found.table, found.pba) == (3, 0, 0x800)
    for n in range(4):
        for offset, value in ((0, MESSAGE), (4, 0), (8, 0x60 + n), (12, 0xFFFF_FFFE)):
            board.mmio.write(TABLE + 16 * n + offset, 4, value)
    assert board.mmio.read(TABLE + 16 + 12, 4) == 0  # what is reserved stays 0
    entry = MsixEntry.parse(b"".join(board.mmio.read(TABLE + 16 + o, 8).to_bytes(8, "little") for o in (0, 8)))
    assert (entry.address, entry.data) == (MESSAGE, 0x61)
    board.mmio.write(TABLE + 8, 1, 0xEE)  # no dword
    device.config_write(at + 2, 2, MSIX_ENABLE)
    for n in range(4):
        device.msix.notify(n)
    assert sorted(taken(board)) == [0x60, 0x61, 0x62, 0x63]
    assert board.mmio.read(TABLE + 0x400, 4) == 0x77  # the device's own registers


def test_vectors_are_masked_after_a_reset_and_pending_when_they_come(board):
    device = plugged(board, Messenger(with_msix()))
    at = device.config.find_capability(CAP_ID_MSIX)
    device.config_write(at + 2, 2, MSIX_ENABLE)
    device.msix.notify(2)
    assert (taken(board), board.mmio.read(TABLE + 0x800, 8)) == ([], 0b100)
    board.mmio.write(TABLE + 0x800, 8, 0)
    assert board.mmio.read(TABLE + 0x800, 4) == 0b100  # cannot be written
    device.reset()
    device.config_write(cfg.BASE_ADDRESS_0, 4, TABLE)
    device.config_write(cfg.COMMAND, 2, cfg.COMMAND_MEMORY | cfg.COMMAND_MASTER)
    assert board.mmio.read(TABLE + 0x800, 4) == 0
    assert not device.msix.enabled


def test_function_mask_and_vector_mask_both_hold_back(board):
    device = plugged(board, Messenger(with_msix()))
    at = device.config.find_capability(CAP_ID_MSIX)
    device.config_write(at + 2, 2, MSIX_ENABLE | MSIX_FUNCTION_MASK)
    for offset, value in ((0, MESSAGE), (8, 0x70), (12, 0)):
        board.mmio.write(TABLE + offset, 4, value)
    device.msix.notify(0)
    assert taken(board) == []
    device.config_write(at + 2, 2, MSIX_ENABLE)
    assert taken(board) == [0x70]


def test_capabilities_that_find_their_own_place_do_not_overlap(board):
    def made(device):
        device.msi = Msi(device, 2, maskable=True)
        with_msix()(device)
        device.config.add_capability(0x09, b"\x04\0")

    device = plugged(board, Messenger(made))
    places = [offset for _, offset in device.config.capabilities()]
    assert sorted(places) == [0x40, 0x58, 0x64]  # 24 bytes with the pending bits, then 12
    at = enable(device, flags=MSI_ENABLE)
    device.config_write(at + 16, 4, 0b11)
    device.msi.notify(0)
    assert device.config.find_capability(CAP_ID_MSIX) == 0x58


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (with_msi(vectors=3), "3 MSI vectors"),
        (with_msi(vectors=64), "64 MSI vectors"),
        (with_msix(vectors=0), "0 vectors"),
        (with_msix(vectors=4096), "4096 vectors"),
        (with_msix(table=4), "not aligned"),
        (with_msix(table=0x7F8), "overlap"),
        (with_msix(pba=0x1000), "no room"),
        (with_msix(max_access=2), "for dwords"),
    ],
)
def test_capability_that_cannot_be_is_an_error_of_the_device_s_author(board, made, complaint):
    device = Messenger(made)
    device.path = "/machine/peripheral/m0"
    device.bus = board.bus
    with pytest.raises(ConfigError, match=complaint):
        device.realize(board)
    device.unwind()
    assert board.ledger.rows() == []


def test_state_of_vectors_is_refused_if_it_is_another_s(board):
    device = plugged(board, Messenger(with_msix()))
    device.msix.load_state(device.msix.save_state())
    for wrong in ({}, {"pending": 16, "entries": "00" * 64}, {"pending": 0, "entries": "00"}):
        with pytest.raises((KeyError, ValueError)):
            device.msix.load_state(wrong)
