"""Configuration space: masks, capabilities, and the declaration of the header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.pci import config as cfg
from devices.pci.config import CommandRegister, ConfigSpace, StatusRegister
from vmm.errors import ConfigError

ACCESSES = st.sampled_from((1, 2, 4)).flatmap(
    lambda size: st.tuples(st.integers(0, (256 - size) // size).map(lambda n: n * size), st.just(size))
)
MASKS = st.binary(min_size=256, max_size=256)


def space(**header):
    return ConfigSpace(**{"vendor_id": 0x1234, "device_id": 0x5678, "class_id": 0x00FF, **header})


@given(values=MASKS, write=MASKS, clear=MASKS, access=ACCESSES, value=st.integers(0, 0xFFFF_FFFF))
def test_write_changes_each_byte_as_its_masks_say_and_no_other(values, write, clear, access, value):
    config = space()
    clear = bytes(c & ~w & 0xFF for c, w in zip(clear, write, strict=True))
    config.define(0, 256, int.from_bytes(values, "little"))
    config.write_mask[:], config.clear_mask[:] = write, clear
    offset, size = access
    value &= (1 << 8 * size) - 1

    config.write(offset, size, value)

    expected = bytearray(values)
    for i in range(size):
        byte, at = value >> 8 * i & 0xFF, offset + i
        expected[at] = (values[at] & ~write[at] | byte & write[at]) & ~(byte & clear[at]) & 0xFF
    assert bytes(config) == bytes(expected)
    assert config.read(offset, size) == int.from_bytes(expected[offset : offset + size], "little")


@given(accesses=st.lists(st.tuples(ACCESSES, st.integers(0, 0xFFFF_FFFF)), max_size=20))
def test_reset_after_any_guest_writes_gives_the_declared_bytes(accesses):
    config = space(interrupt_pin=1)
    config.define(0x40, 4, 0xDEAD_BEEF, mask=0xFFFF_FFFF)
    config.define(0x44, 1, 0xFF, clear=0x0F)
    before = bytes(config)
    for (offset, size), value in accesses:
        config.write(offset, size, value & (1 << 8 * size) - 1)
    config.reset()
    assert bytes(config) == before


@given(accesses=st.lists(st.tuples(ACCESSES, st.integers(0, 0xFFFF_FFFF)), max_size=20))
def test_identity_after_any_guest_writes_is_what_it_was(accesses):
    config = space(revision=3, subsystem_vendor_id=0x1AF4, subsystem_id=0x1100, interrupt_pin=2)
    for (offset, size), value in accesses:
        config.write(offset, size, value & (1 << 8 * size) - 1)
    header = config.header()
    assert (header.vendor_id, header.device_id, header.class_id, header.revision) == (0x1234, 0x5678, 0x00FF, 3)
    assert (header.subsystem_vendor_id, header.subsystem_id, header.interrupt_pin) == (0x1AF4, 0x1100, 2)
    assert header.command & ~cfg.COMMAND_WRITABLE == 0


@given(data=st.binary(min_size=64, max_size=64))
def test_header_of_any_bytes_is_what_reads_of_the_registers_give(data):
    config = space()
    config.define(0, 64, int.from_bytes(data, "little"))
    header = config.header()
    assert header.vendor_id == config.read(0x00, 2)
    assert header.command == config.read(cfg.COMMAND, 2)
    assert header.status == config.read(cfg.STATUS, 2)
    assert header.class_id == config.read(cfg.CLASS_DEVICE, 2)
    assert header.header_type == config.read(cfg.HEADER_TYPE, 1)
    assert list(header.base_address) == [config.read(0x10 + 4 * i, 4) for i in range(6)]
    assert header.subsystem_vendor_id == config.read(cfg.SUBSYSTEM_VENDOR_ID, 2)
    assert header.capabilities_pointer == config.read(cfg.CAPABILITY_LIST, 1)
    assert header.interrupt_line == config.read(cfg.INTERRUPT_LINE, 1)
    assert header.interrupt_pin == config.read(cfg.INTERRUPT_PIN, 1)


@given(value=st.integers(0, 0xFFFF))
def test_command_and_status_declarations_agree_with_the_masks_of_the_code(value):
    raw = value.to_bytes(2, "little")
    command, status = CommandRegister.parse(raw), StatusRegister.parse(raw)
    assert command.io_space == bool(value & cfg.COMMAND_IO)
    assert command.memory_space == bool(value & cfg.COMMAND_MEMORY)
    assert command.bus_master == bool(value & cfg.COMMAND_MASTER)
    assert command.serr_enable == bool(value & cfg.COMMAND_SERR)
    assert command.interrupt_disable == bool(value & cfg.COMMAND_INTX_DISABLE)
    assert status.interrupt == bool(value & cfg.STATUS_INTERRUPT)
    assert status.capabilities_list == bool(value & cfg.STATUS_CAPABILITIES)
    errors = status.signaled_target_abort, status.received_target_abort, status.received_master_abort
    assert errors == tuple(bool(value & 1 << bit) for bit in (11, 12, 13))
    assert status.detected_parity_error == bool(value & 0x8000)


def test_error_bits_of_status_written_as_ones_are_cleared():
    config = space()
    config.set(cfg.STATUS, 2, 0xF908)
    config.write(cfg.STATUS, 2, 0x2100)
    assert config.read(cfg.STATUS, 2) == 0xD808


@given(lengths=st.lists(st.integers(0, 30), max_size=12))
def test_capabilities_added_while_there_is_room_are_all_found_by_a_guest_and_do_not_overlap(lengths):
    config = space()
    config.define(0x50, 1, 0, mask=0xFF)  # a register in the way
    added = {}
    for cap_id, length in enumerate(lengths, start=1):
        try:
            offset = config.add_capability(cap_id, bytes([0xA5] * length))
        except ConfigError:
            break
        added[cap_id] = (offset, length)
    assert dict(config.capabilities()) == {cap_id: offset for cap_id, (offset, _) in added.items()}
    assert bool(config.read(cfg.STATUS, 2) & cfg.STATUS_CAPABILITIES) == bool(added)
    used = [0x50]
    for offset, length in added.values():
        assert offset % 4 == 0
        used += range(offset, offset + 2 + length)
    assert len(used) == len(set(used))
    assert all(0x40 <= at < 0x100 for at in used)


def test_capability_with_writable_bits_takes_a_guests_write_there_only():
    config = space()
    offset = config.add_capability(0x05, bytes(6), writable=bytes((0x01, 0x00)))
    config.write(offset, 4, 0xFFFF_FFFF)
    assert config.read(offset, 4) == 0x0001_0005
    assert config.find_capability(0x05) == offset
    assert config.find_capability(0x11) is None


def test_second_capability_points_at_the_first():
    config = space()
    first = config.add_capability(0x01, bytes(6))
    second = config.add_capability(0x05, bytes(8), offset=0x80)
    assert config.read(cfg.CAPABILITY_LIST, 1) == second == 0x80
    assert config.read(second + 1, 1) == first
    assert config.capabilities() == [(0x05, 0x80), (0x01, first)]


@pytest.mark.parametrize("offset", [0x3C, 0x41, 0xFF])
def test_capability_at_a_place_that_is_none_is_refused(offset):
    with pytest.raises(ConfigError):
        space().add_capability(0x05, bytes(6), offset=offset)


def test_register_outside_configuration_space_is_refused():
    with pytest.raises(ConfigError, match="256 bytes"):
        space().define(0xFE, 4, 0)
