"""What both personalities of the I/O APIC owe a guest and whoever drives its pins."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import ioapic
from devices.apic_bus import ApicDeliverIrq
from devices.ioapic import (
    LEVEL,
    MASKED,
    PINS,
    REMOTE_IRR,
    IoApicIdentification,
    IoApicVersion,
    RedirectionEntry,
    explain,
)
from devices.ioapic_device import IoApicDevice
from devices.ioapic_kvm import KvmIoApic
from tests.support.apic import Chips, FakeAcks
from tests.support.board import FakeBoard
from vmm.errors import ConfigError, PropertyError
from vmm.lines import Wire
from vmm.memory import AddressSpace

both = pytest.mark.parametrize("personality", ["kvm", "qemu"])


# Register layouts: the declaration and the integer code agree.


@given(st.integers(0, 2**64 - 1))
def test_declared_entry_and_integer_constants_agree(entry):
    fields = explain(entry)
    assert fields == {
        "destination": entry >> ioapic.DESTINATION_SHIFT,
        "reserved": entry >> 17 & (1 << 39) - 1,
        "masked": bool(entry & MASKED),
        "level_triggered": bool(entry & LEVEL),
        "remote_irr": bool(entry & REMOTE_IRR),
        "active_low": bool(entry & ioapic.ACTIVE_LOW),
        "delivery_status": bool(entry & ioapic.DELIVERY_STATUS),
        "logical": bool(entry & ioapic.LOGICAL),
        "delivery_mode": entry >> ioapic.DELIVERY_MODE_SHIFT & 7,
        "vector": entry & ioapic.VECTOR,
    }
    assert RedirectionEntry.build(fields) == entry.to_bytes(8, "little")


@both
def test_version_register_reads_as_declared(personality):
    chips = Chips(personality=personality)
    version = IoApicVersion.parse(chips.read(ioapic.IOAPICVER).to_bytes(4, "little"))
    assert version.max_redirection_entry == PINS - 1
    assert version.version == {"kvm": 0x11, "qemu": 0x20}[personality]


@both
def test_identification_register_keeps_four_bits_and_arbitration_follows(personality):
    chips = Chips(personality=personality)
    chips.write(ioapic.IOAPICID, 0xFFFF_FFFF)
    assert chips.read(ioapic.IOAPICID) == chips.read(ioapic.IOAPICARB) == 0x0F00_0000
    chips.write(ioapic.IOAPICID, 0x0A00_0000)
    assert IoApicIdentification.parse(chips.read(ioapic.IOAPICID).to_bytes(4, "little")).id == 0xA


@both
@given(entry=st.integers(0, 2**64 - 1), pin=st.integers(0, PINS - 1))
@settings(max_examples=40)
def test_entry_reads_back_except_read_only_bits(personality, entry, pin):
    chips = Chips(personality=personality)
    chips.program(pin, entry)
    assert chips.entry(pin) == entry & ~ioapic.READ_ONLY


# The level loop.


@both
def test_level_interrupt_is_delivered_once_until_its_eoi(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    assert chips.ioapic.set_irq(5, 0, True) == 1
    assert chips.take() == 0x51
    chips.ioapic.set_irq(5, 0, True)
    assert chips.take() is None
    chips.ioapic.set_irq(5, 0, False)
    chips.eoi()
    assert chips.take() is None
    assert not chips.entry(5) & REMOTE_IRR


@both
def test_entry_written_between_interrupts_has_its_eoi_forwarded(personality):
    chips = Chips(personality=personality)
    for pin, vector in ((5, 0x51), (6, 0x61), (7, 0x71)):
        chips.program(pin, 0x8000 | vector)
        chips.ioapic.set_irq(pin, 0, True)
        assert chips.take() == vector
        chips.ioapic.set_irq(pin, 0, False)
        chips.eoi()
        assert not chips.entry(pin) & REMOTE_IRR


@both
def test_level_still_high_at_eoi_is_delivered_again(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    assert [chips.take(), chips.eoi(), chips.take()] == [0x51, None, 0x51]


@both
def test_pin_stays_high_while_one_source_holds_it(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.ioapic.set_irq(5, 1, True)
    chips.take()
    chips.ioapic.set_irq(5, 0, False)
    chips.eoi()
    assert chips.take() == 0x51
    chips.ioapic.set_irq(5, 1, False)
    chips.eoi()
    assert chips.take() is None


@both
def test_masked_level_is_delivered_at_unmask_if_still_high(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x1_8051)
    assert chips.ioapic.set_irq(5, 0, True) == -1
    chips.program(5, 0x8051)
    assert chips.take() == 0x51


@both
def test_masked_level_that_fell_is_not_delivered_at_unmask(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x1_8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.ioapic.set_irq(5, 0, False)
    chips.program(5, 0x8051)
    assert chips.take() is None


@both
def test_masked_edge_is_not_replayed_as_a_level_storm(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x1_0051)
    chips.ioapic.set_irq(5, 0, True)
    chips.ioapic.set_irq(5, 0, False)
    chips.program(5, 0x8051)
    assert chips.take() is None


@both
def test_guest_cannot_clear_remote_irr_by_writing_zero(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.program(5, 0x8051)
    assert chips.entry(5) & REMOTE_IRR
    chips.take()
    assert chips.take() is None


@both
def test_write_as_level_keeps_remote_irr_and_as_edge_ends_it_at_once(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.ioapic.set_irq(5, 0, False)
    chips.program(5, 0x8052)
    assert chips.entry(5) == 0xC052
    chips.program(5, 0x52)
    assert chips.entry(5) == 0x52


@both
def test_write_as_edge_clears_remote_irr(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.ioapic.set_irq(5, 0, False)
    chips.program(5, 0x1_0051)
    chips.program(5, 0x8051)
    assert not chips.entry(5) & REMOTE_IRR


@both
def test_eoi_reaches_every_pin_with_the_vector(personality):
    chips = Chips(personality=personality)
    for pin in (3, 11, 23):
        chips.program(pin, 0x8051)
        chips.ioapic.set_irq(pin, 0, True)
        chips.ioapic.set_irq(pin, 0, False)
    chips.take()
    chips.eoi()
    assert [pin for pin in range(PINS) if chips.entry(pin) & REMOTE_IRR] == []


@both
def test_eoi_of_another_vector_leaves_remote_irr(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.program(6, 0x8061)
    for pin in (5, 6):
        chips.ioapic.set_irq(pin, 0, True)
        chips.ioapic.set_irq(pin, 0, False)
    assert chips.take() == 0x61
    chips.eoi()
    assert chips.entry(5) & REMOTE_IRR


# Ack notifiers.


@both
def test_who_listens_hears_of_each_change_of_a_mask(personality):
    chips = Chips(personality=personality)
    for entry in (0x8051, 0x8052, 0x1_8052, 0x1_8053, 0x8053):
        chips.program(5, entry)
    assert chips.acks.masks == [(5, False), (5, True), (5, False)]


@both
def test_ack_notifier_that_lowers_its_source_ends_the_interrupt(personality):
    acks = FakeAcks(5)
    chips = Chips(personality=personality, acks=acks)
    acks.on_ack = lambda pin: chips.ioapic.set_irq(pin, 1, False)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 1, True)
    chips.take()
    chips.eoi()
    assert acks.acked == [5]
    assert chips.take() is None


@both
def test_assert_from_within_the_notifier_is_delivered_once_after_it(personality):
    acks = FakeAcks(5)
    chips = Chips(personality=personality, acks=acks)
    pending_inside = []

    def ack(pin):
        chips.ioapic.set_irq(pin, 1, False)
        chips.ioapic.set_irq(pin, 1, True)
        pending_inside.append(chips.cpus[0].pending_vector())

    acks.on_ack = ack
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 1, True)
    chips.take()
    chips.eoi()
    assert pending_inside == [None]
    assert [chips.take(), chips.take()] == [0x51, None]


def test_notifier_that_moves_a_later_pin_away_keeps_it_from_being_acked():
    acks = FakeAcks(3, 11)
    chips = Chips(acks=acks)
    for pin in (3, 11):
        chips.program(pin, 0x8051)
    acks.on_ack = lambda pin: pin == 3 and chips.program(11, 0x8061)
    chips.ioapic.set_irq(3, 0, True)
    chips.take()
    chips.eoi()
    assert acks.acked == [3]


def test_unmask_of_a_latched_level_asks_the_resampler_instead_of_delivering():
    acks = FakeAcks(5)
    chips = Chips(acks=acks)
    chips.program(5, 0x1_8051)
    chips.ioapic.set_irq(5, 1, True)
    chips.program(5, 0x8051)
    assert acks.resampled == [5]
    assert chips.take() is None
    chips.ioapic.set_irq(5, 1, True)
    assert chips.take() == 0x51


def test_kernel_before_resample_on_unmask_delivers_the_stale_level():
    acks = FakeAcks(5)
    chips = Chips(acks=acks)
    chips.ioapic.resample_on_unmask = False
    chips.program(5, 0x1_8051)
    chips.ioapic.set_irq(5, 1, True)
    chips.program(5, 0x8051)
    assert acks.resampled == []
    assert chips.take() == 0x51


def chips_without_resamplers():
    chips = Chips()
    chips.ioapic.close()
    chips.ioapic = KvmIoApic(chips.bus, chips.clock, chips.trace)
    return chips


def test_chip_without_resamplers_does_not_hear_of_an_edges_eoi():
    chips = chips_without_resamplers()
    chips.program(5, 0x51)
    chips.ioapic.set_irq(5, 0, True)
    assert chips.take() == 0x51
    chips.watch()
    chips.eoi()
    assert "ioapic_eoi_broadcast" not in chips.events()


def test_chip_without_resamplers_delivers_a_latched_level_at_unmask():
    chips = chips_without_resamplers()
    chips.program(5, 0x1_8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.program(5, 0x8051)
    assert chips.take() == 0x51


# The storm limiter.


@both
def test_storm_is_delayed_after_ten_thousand_eois(personality):
    chips = Chips(personality=personality)
    chips.program(9, 0x8059)
    chips.ioapic.set_irq(9, 0, True)
    for _ in range(9_999):
        chips.take()
        chips.eoi()
    assert chips.take() == 0x59
    chips.eoi()
    assert chips.take() is None
    chips.clock.step(9_999_999)
    assert chips.take() is None
    chips.clock.step(1)
    assert chips.take() == 0x59


@both
@pytest.mark.parametrize("end", ["reset", "close", "restore", "line"])
def test_delayed_delivery_does_not_outlive_its_reason(personality, end):
    chips = Chips(personality=personality)
    chips.program(9, 0x8059)
    chips.ioapic.set_irq(9, 0, True)
    for _ in range(10_000):
        chips.take()
        chips.eoi()
    idle = chips.ioapic.get_state()._replace(irr=0)
    {
        "reset": chips.ioapic.reset,
        "close": chips.ioapic.close,
        "restore": lambda: chips.ioapic.set_state(idle),
        "line": lambda: chips.ioapic.set_irq(9, 0, False),
    }[end]()
    if end != "line":
        assert chips.clock.next_deadline() is None
    chips.clock.step(20_000_000)
    assert chips.take() is None


# Guests and hosts that do odd things.


@both
@given(st.data())
@settings(max_examples=30, deadline=None)
def test_no_guest_access_escapes_as_an_exception_or_leaves_a_level_behind(personality, data):
    chips = Chips(personality=personality)
    space = AddressSpace.memory()
    space.map(ioapic.IOAPIC_BASE, chips.ioapic.region)
    offsets = st.one_of(st.sampled_from([0, 0x10, 0x40]), st.integers(0, 0xFF))
    step = st.one_of(
        st.tuples(st.just("w"), offsets, st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("r"), offsets, st.sampled_from([1, 2, 4, 8])),
        st.tuples(st.just("entry"), st.integers(0, PINS - 1), st.integers(0, 0x1_FFFF)),
        st.tuples(st.just("line"), st.integers(0, PINS - 1), st.integers(0, 2), st.booleans()),
        st.just(("take",)),
        st.just(("eoi",)),
    )
    for op in data.draw(st.lists(step, max_size=40)):
        match op:
            case ("w", offset, size, value):
                space.write(ioapic.IOAPIC_BASE + offset, size, value & (1 << 8 * size) - 1)
            case ("r", offset, size):
                assert 0 <= space.read(ioapic.IOAPIC_BASE + offset, size) < 1 << 8 * size
            case ("entry", pin, entry):
                chips.program(pin, entry)
            case ("line", pin, source, level):
                chips.ioapic.set_irq(pin, source, level)
            case ("take",):
                chips.take()
            case ("eoi",):
                chips.eoi()
    for pin, entry in enumerate(chips.ioapic.redir):
        # No lost level: what could be delivered was.
        deliverable = entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL and chips.ioapic.irr >> pin & 1
        fields = explain(entry)
        if fields["delivery_mode"] <= 1 and fields["destination"] == 0 and not fields["logical"]:
            assert not (deliverable and fields["reserved"] == 0)
    assert sum(mask.bit_count() for mask in chips.ioapic.vector_pins.values()) == PINS


@both
def test_pin_that_does_not_exist_is_ignored_by_set_irq_and_refused_by_pin_target(personality):
    chips = Chips(personality=personality)
    assert chips.ioapic.set_irq(24, 0, True) == chips.ioapic.set_irq(-1, 0, True) == -1
    with pytest.raises(ConfigError, match="0 to 23, not 24"):
        chips.ioapic.pin_target(24)


@both
@pytest.mark.parametrize("pin", [0, PINS - 1])
def test_first_and_last_pin_can_be_wired(personality, pin):
    chips = Chips(personality=personality)
    chips.program(2 if personality == "qemu" and pin == 0 else pin, 0x8051)
    chips.ioapic.pin_target(pin)(True)
    assert chips.take() == 0x51


@both
def test_wire_drives_its_pin(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    wire = Wire("intx", chips.ioapic.pin_target(5))
    line = wire.hold("edu")
    line.set(True)
    assert chips.take() == 0x51
    line.close()
    chips.eoi()
    assert chips.take() is None


@both
def test_level_loop_is_traced_step_by_step(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.watch()
    chips.ioapic.set_irq(5, 0, True)
    raised = chips.events()
    chips.take()
    chips.ioapic.set_irq(5, 0, False)
    chips.events()
    chips.eoi()
    assert sorted(raised) == ["apic_accept_irq", "apic_deliver_irq", "ioapic_set_irq", "ioapic_set_remote_irr"]
    assert chips.events()[-3:] == ["apic_eoi", "ioapic_eoi_broadcast", "ioapic_clear_remote_irr"]


# The device.


def make_device(board, **values):
    chips = Chips()
    device = IoApicDevice(**values)
    device.wire(chips.bus)
    device.realize(board)
    return device, chips


def test_device_answers_at_its_base_and_is_gone_after_unrealize():
    board = FakeBoard()
    device, chips = make_device(board)
    board.mmio.write(ioapic.IOAPIC_BASE, 4, ioapic.IOAPICVER)
    assert board.mmio.read(ioapic.IOAPIC_BASE + 0x10, 4) == 0x0017_0011
    device.unrealize()
    assert board.mmio.read(ioapic.IOAPIC_BASE + 0x10, 4) == 0xFFFF_FFFF
    assert device.chip not in chips.bus.ioapics
    assert board.ledger.rows() == []


@pytest.mark.parametrize(("values", "version"), [({}, 0x20), ({"version": 0x11}, 0x11)])
def test_qemu_device_has_the_version_asked_for(values, version):
    device, _ = make_device(FakeBoard(), personality="qemu", **values)
    assert device.chip.version == version


@pytest.mark.parametrize(
    "values",
    [{"personality": "bochs"}, {"version": 0x20}, {"personality": "qemu", "version": 0x21}],
)
def test_device_with_wrong_property_is_refused(values):
    with pytest.raises(PropertyError):
        make_device(FakeBoard(), **values)


def test_qemu_device_takes_the_vector_of_an_extint_entry_from_the_8259():
    chips = Chips()
    device = IoApicDevice(personality="qemu")
    device.wire(chips.bus, pic_read_irq=lambda: 0x37)
    device.realize(FakeBoard())
    chips.watch()
    device.chip.write_redirection(3, False, 0x743)
    device.chip.set_irq(3, 0, True)
    assert [e.vector_num for e in chips.recording.of(ApicDeliverIrq)] == [0x37]


@both
def test_registers_behind_the_last_entry_are_nothing(personality):
    chips = Chips(personality=personality)
    before = chips.ioapic.get_state()
    for register in (3, ioapic.IOREDTBL + 2 * PINS, ioapic.IOREDTBL + 2 * PINS + 1, 0xFF):
        chips.write(register, 0x51)
        assert chips.read(register) == {"kvm": 0xFFFF_FFFF, "qemu": 0}[personality]
    assert chips.ioapic.get_state()._replace(ioregsel=before.ioregsel) == before
