"""What a reset, and saving and restoring, leave of an I/O APIC."""

from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from devices import ioapic
from devices import lapic_registers as r
from devices.ioapic import (
    LEVEL,
    MASKED,
    PINS,
    IoApic,
    IoApicState,
)
from tests.support.apic import Chips
from vmm.errors import ConfigError

both = pytest.mark.parametrize("personality", ["kvm", "qemu"])


# Reset, save, restore.


@both
def test_reset_masks_everything_and_level_that_is_high_comes_back_at_unmask(personality):
    chips = Chips(personality=personality)
    chips.program(5, 0x8051)
    chips.write(ioapic.IOAPICID, 0x0F00_0000)
    chips.ioapic.set_irq(5, 0, True)
    chips.take()
    chips.cpus[0].isr = 0
    chips.ioapic.reset()
    assert [chips.entry(pin) for pin in range(PINS)] == [MASKED] * PINS
    assert chips.read(ioapic.IOAPICID) == 0
    if personality == "kvm":
        chips.program(5, 0x8051)
        assert chips.take() == 0x51


ACTS = st.one_of(
    st.tuples(
        st.just("entry"),
        st.sampled_from([0, 5, 8]),
        st.sampled_from([0, 0x51, 0x61]),
        st.sampled_from([0, LEVEL, LEVEL, MASKED, LEVEL | MASKED]),
        st.sampled_from([0, 1, 0xFF]),
    ),
    st.tuples(st.just("line"), st.sampled_from([0, 5, 8]), st.booleans()),
    st.tuples(st.just("id"), st.integers(0, 15)),
    st.tuples(st.just("serve"), st.integers(0, 1), st.integers(1, 3)),
    st.tuples(st.sampled_from(["take", "eoi"]), st.integers(0, 1)),
    st.just(("wait",)),
)
PROBE = [
    *[("ipi", cpu, vector) for cpu in (0, 1) for vector in (0x51, 0x61)],
    ("entry", 5, 0x41, LEVEL, 0),
    ("entry", 8, 0x51, LEVEL, 0),
    ("line", 5, True),
    ("line", 8, True),
    ("serve", 0, 8),
    ("wait",),
    ("serve", 0, 8),
    ("end", 0),
]
"""EOIs that no pin wants, two pins that are never silenced, until the storm limiter stops both, and all other pins."""


def live(chips, acts):
    """What guest and devices do; returns what they see, what goes over the bus, who is told of an EOI, and the end."""
    seen = []
    chips.recording.clear()
    chips.acks.acked.clear()
    for act in acts:
        match act:
            case ("entry", pin, vector, bits, destination):
                chips.program(pin, destination << ioapic.DESTINATION_SHIFT | bits | vector)
            case ("line", pin, level):
                seen.append(chips.ioapic.set_irq(pin, 0, level, True))
            case ("id", number):
                chips.write(ioapic.IOAPICID, number << 24)
            case ("serve", cpu, turns):
                for _ in range(turns):
                    seen.append(chips.take(cpu))
                    chips.eoi(cpu)
            case ("ipi", cpu, vector):
                chips.bus.deliver(cpu, False, 0, vector, False)
                chips.take(cpu)
                chips.eoi(cpu)
            case ("end", vector):
                chips.bus.broadcast_eoi(vector, 0, True)
            case ("take", cpu):
                seen.append(chips.take(cpu))
            case ("eoi", cpu):
                chips.eoi(cpu)
            case ("wait",):
                chips.clock.step(ioapic.EOI_DELAY_NS)
    return seen, [record.event for record in chips.recording], chips.acks.acked, chips.ioapic.get_state()


@both
@given(st.lists(ACTS, max_size=20))
@example([("entry", 5, 0x51, LEVEL, 0), ("line", 5, True), ("serve", 0, 2)])
@settings(max_examples=100, deadline=None)
def test_chip_that_was_reset_is_as_a_new_one(personality, acts):
    with mock.patch.object(IoApic, "max_successive_eois", 3):
        used, new = Chips(2, personality), Chips(2, personality)
        for chips in (used, new):
            chips.watch()
        live(used, acts)
        for cpu in used.cpus:  # no interrupt is under way, and they know which EOIs to forward
            cpu.reset()
            cpu.mmio_write(r.SVR, 4, 0x1FF)
            cpu.enter_guest()
        used.ioapic.reset()
        for pin in range(PINS):
            used.ioapic.set_irq(pin, 0, False)
        assert used.ioapic.get_state() == new.ioapic.get_state()
        assert live(used, PROBE) == live(new, PROBE)


@both
@pytest.mark.parametrize("again", [False, True])
def test_vector_of_a_chip_that_nobody_has_programmed_belongs_to_each_of_its_pins(personality, again):
    chips = Chips(personality=personality)
    if again:
        chips.program(0, 0x8051)
        chips.ioapic.reset()
    for pin in (0, PINS - 1):
        chips.program(pin, 0x8000)
        chips.ioapic.redir[pin] |= ioapic.REMOTE_IRR
    chips.ioapic.eoi(0, 0)
    assert [chips.entry(pin) & ioapic.REMOTE_IRR for pin in (0, PINS - 1)] == [0, 0]


@both
def test_restored_chip_delivers_what_was_pending(personality):
    chips, other = Chips(personality=personality), Chips(personality=personality)
    chips.program(5, 0x1_8051)
    chips.ioapic.set_irq(5, 0, True)
    state = IoApicState.parse(chips.ioapic.get_state().build())
    assert state == chips.ioapic.get_state()
    entries = list(state.redirtbl)
    entries[5] = 0x8051
    other.ioapic.set_state(state._replace(redirtbl=tuple(entries)))
    assert other.take() == 0x51
    assert other.ioapic.get_state().irr == 1 << 5


@both
def test_state_of_another_size_is_refused(personality):
    chips = Chips(personality=personality)
    with pytest.raises(ConfigError, match="23 redirection entries"):
        chips.ioapic.set_state(chips.ioapic.get_state()._replace(redirtbl=(0,) * 23))


@both
def test_identification_is_in_the_saved_state_and_four_bits_wide(personality):
    chips = Chips(personality=personality)
    chips.ioapic.set_state(chips.ioapic.get_state()._replace(id=0x5))
    assert chips.ioapic.get_state().id == 5
    chips.ioapic.set_state(chips.ioapic.get_state()._replace(id=0x1A))
    assert chips.ioapic.get_state().id == 0xA


@both
def test_selected_register_is_in_the_saved_state_and_eight_bits_wide(personality):
    chips = Chips(personality=personality)
    chips.ioapic.set_state(chips.ioapic.get_state()._replace(ioregsel=0x112))
    assert chips.ioapic.mmio_read(ioapic.IOREGSEL, 4) == 0x12
