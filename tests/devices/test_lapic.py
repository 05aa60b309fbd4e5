"""The local APIC: what it hands to its CPU, what its registers show, and how messages find it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import lapic_registers as r
from devices.apic_bus import (
    EXTINT,
    FIXED,
    NMI,
)
from tests.support.apic import X2APIC, Chips, lapic, send, x2
from vmm.errors import ConfigError

XAPIC = r.BASE_ENABLE | r.DEFAULT_BASE


# Priorities.


def test_highest_vector_goes_first_and_lower_class_waits_for_its_eoi():
    chips = Chips()
    apic = chips.cpus[0]
    for vector in (0x41, 0x51, 0x53):
        send(apic, vector)
    assert chips.take() == 0x53
    assert chips.take() is None  # 0x51 is of the same class
    chips.eoi()
    assert chips.take() == 0x51
    send(apic, 0x61)
    assert chips.take() == 0x61  # a higher class nests
    chips.eoi()
    chips.eoi()
    assert chips.take() == 0x41


@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_pending_vector_is_the_highest_request_whose_class_beats_ppr(request_vector, in_service, tpr):
    apic = lapic()
    if in_service >= 16:
        send(apic, in_service)
        apic.acknowledge(in_service)
    apic.tpr = tpr
    send(apic, request_vector)
    isrv = in_service if in_service >= 16 else 0
    ppr = tpr if tpr >> 4 >= isrv >> 4 else isrv & 0xF0
    assert apic.mmio_read(r.PPR, 4) == ppr
    assert apic.pending_vector() == (request_vector if request_vector >> 4 > ppr >> 4 else None)


def test_tpr_holds_back_and_lowering_it_lets_through():
    apic = lapic()
    apic.tpr = 0x50
    send(apic, 0x5F)
    assert apic.pending_vector() is None
    apic.mmio_write(r.TPR, 4, 0x4F)
    assert apic.pending_vector() == 0x5F


def test_cpu_is_told_only_when_the_pending_vector_changes():
    chips = Chips()
    guest = chips.guests[0]
    guest.changes = 0
    send(chips.cpus[0], 0x51)
    send(chips.cpus[0], 0x51)
    send(chips.cpus[0], 0x41)
    assert guest.changes == 1


def test_acknowledge_of_a_vector_that_is_gone_changes_nothing():
    apic = lapic()
    apic.acknowledge(0x51)
    assert (apic.irr, apic.isr) == (0, 0)


def test_vector_below_sixteen_is_accepted_never_delivered_and_reported():
    apic = lapic()
    assert send(apic, 15) == 1
    assert apic.pending_vector() is None
    apic.mmio_write(r.ESR, 4, 0)
    assert apic.mmio_read(r.ESR, 4) == r.ESR_RECEIVED_ILLEGAL_VECTOR


@given(st.integers(0, 255), st.booleans())
def test_irr_isr_and_tmr_show_in_their_registers(vector, level):
    apic = lapic()
    apic.accept(FIXED, vector, level)
    word, bit = r.IRR + (vector >> 5 << 4), 1 << (vector & 31)
    assert apic.mmio_read(word, 4) == bit
    assert apic.mmio_read(word - r.IRR + r.TMR, 4) == (bit if level else 0)
    if vector >= 16:
        apic.acknowledge(vector)
        assert apic.mmio_read(word, 4) == 0
        assert apic.mmio_read(word - r.IRR + r.ISR, 4) == bit


def test_later_edge_makes_the_eoi_of_a_level_interrupt_an_edge_one():
    chips = Chips()
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    send(chips.cpus[0], 0x51)
    chips.ioapic.set_irq(5, 0, False)
    chips.take()
    chips.eoi()
    assert chips.entry(5) & 1 << 14


# Software and hardware disable.


def test_software_disabled_apic_refuses_fixed_and_takes_nmi():
    chips = Chips()
    apic = chips.cpus[0]
    apic.mmio_write(r.LVT_LINT1, 4, NMI << 8)
    apic.mmio_write(r.SVR, 4, 0xFF)
    assert send(apic, 0x51) == 0
    assert apic.accept(NMI, 0, False) == 1
    assert chips.guests[0].signals == ["nmi"]
    assert apic.mmio_read(r.LVT_LINT1, 4) & r.LVT_MASKED
    apic.mmio_write(r.LVT_LINT1, 4, NMI << 8)
    assert apic.mmio_read(r.LVT_LINT1, 4) & r.LVT_MASKED


def test_disabled_apic_is_an_open_bus_and_lets_the_8259_pass():
    apic = lapic()
    apic.mmio_write(r.LVT_LINT0, 4, r.LVT_MASKED)
    assert not apic.accept_pic_intr
    assert apic.msr_write(r.MSR_APIC_BASE, r.DEFAULT_BASE)
    assert apic.mmio_read(r.VERSION, 4) == 0xFFFF_FFFF
    apic.mmio_write(r.TPR, 4, 0xFF)
    assert apic.tpr == 0
    assert apic.accept_pic_intr
    assert not apic.enabled
    assert apic.page == -1


def test_disabled_apic_is_not_addressed():
    chips = Chips(2)
    chips.cpus[1].msr_write(r.MSR_APIC_BASE, r.DEFAULT_BASE)
    assert chips.bus.deliver(1, False, FIXED, 0x51, False) == 0
    assert chips.bus.deliver(0xFF, False, FIXED, 0x51, False) == 1


def test_boot_processor_starts_with_lint0_as_extint_and_others_masked():
    chips = Chips(2)
    for cpu in chips.cpus:
        cpu.reset()
    assert [cpu.accept_pic_intr for cpu in chips.cpus] == [True, False]


# Modes.


@pytest.mark.parametrize(
    ("start", "to", "allowed"),
    [
        ([], XAPIC, True),
        ([], X2APIC, True),
        ([], r.DEFAULT_BASE, True),
        ([], r.DEFAULT_BASE | r.BASE_X2APIC, False),
        ([X2APIC], XAPIC, False),
        ([X2APIC], X2APIC, True),
        ([X2APIC], r.DEFAULT_BASE, True),
        ([X2APIC], r.DEFAULT_BASE | r.BASE_X2APIC, False),
        ([r.DEFAULT_BASE], X2APIC, False),
        ([r.DEFAULT_BASE], XAPIC, True),
        ([], XAPIC | 1, False),
        ([], XAPIC | 1 << 9, False),
        ([], XAPIC | 1 << 40, False),
        ([], 0xFED4_0000 | r.BASE_ENABLE | r.BASE_BSP, True),
    ],
)
def test_apic_base_transition_is_allowed_or_faults(start, to, allowed):
    apic = lapic()
    for value in start:
        assert apic.msr_write(r.MSR_APIC_BASE, value)
    before = apic.msr_read(r.MSR_APIC_BASE)
    assert apic.msr_write(r.MSR_APIC_BASE, to) is allowed
    assert apic.msr_read(r.MSR_APIC_BASE) == (to if allowed else before)


def test_x2apic_mode_faults_on_a_cpu_without_it():
    assert not lapic(x2apic=False).msr_write(r.MSR_APIC_BASE, X2APIC)


def test_moved_apic_answers_at_its_new_page():
    apic = lapic()
    apic.msr_write(r.MSR_APIC_BASE, 0xFED4_0000 | r.BASE_ENABLE)
    assert apic.page == 0xFED40


def test_x2apic_identity_is_the_initial_one():
    chips = Chips(20)
    apic = chips.cpus[18]
    apic.mmio_write(r.ID, 4, 0x7700_0000)
    apic.msr_write(r.MSR_APIC_BASE, X2APIC)
    assert apic.msr_read(x2(r.ID)) == 18
    assert apic.msr_read(x2(r.LDR)) == 1 << 16 | 1 << 2


READABLE = {r.ID, r.VERSION, r.TPR, r.PPR, r.LDR, r.SVR, r.ESR, r.ICR, r.INITIAL_COUNT, r.CURRENT_COUNT, r.DIVIDE}
READABLE |= {*range(r.ISR, r.ESR, 0x10)} | r.LVT_WRITABLE.keys() - {r.LVT_CMCI}
WRITABLE = {r.TPR, r.EOI, r.SVR, r.ESR, r.ICR, r.INITIAL_COUNT, r.DIVIDE, r.SELF_IPI}
WRITABLE |= r.LVT_WRITABLE.keys() - {r.LVT_CMCI}


@pytest.mark.parametrize("mode", ["x2apic", "xapic"])
def test_x2apic_msr_faults_unless_it_exists_and_the_mode_is_on(mode):
    apic = lapic()
    if mode == "x2apic":
        apic.msr_write(r.MSR_APIC_BASE, X2APIC)
    offsets = range(0, 0x1000, 0x10)
    readable = {o for o in offsets if apic.msr_read(x2(o)) is not None}
    assert readable == (READABLE if mode == "x2apic" else set())
    writable = {o for o in offsets if apic.msr_write(x2(o), 0)}
    assert writable == (WRITABLE if mode == "x2apic" else set())


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (r.SELF_IPI, 0x100),
        (r.SELF_IPI, 0xFF00_0000),
        (r.TPR, 0x100),
        (r.EOI, 1),
        (r.ESR, 1),
        (r.SVR, 1 << 12),
        (r.DIVIDE, 4),
        (r.LVT_TIMER, 1 << 19),
        (r.LVT_ERROR, NMI << 8),
        (r.ICR, 1 << 20),
        *((offset, 1 << 32) for offset in sorted(WRITABLE - {r.ICR})),
    ],
)
def test_reserved_bit_of_an_x2apic_register_faults(offset, value):
    apic = lapic()
    apic.msr_write(r.MSR_APIC_BASE, X2APIC)
    assert not apic.msr_write(x2(offset), value)


def test_cmci_entry_exists_where_the_cpu_has_it():
    apic = lapic(cmci=True)
    assert r.ApicVersion.parse(apic.version.to_bytes(4, "little")).max_lvt == 6
    apic.mmio_write(r.LVT_CMCI, 4, 0x1_00F0)
    assert apic.mmio_read(r.LVT_CMCI, 4) == 0x1_00F0


# The local vector table.


def test_lint1_as_nmi_fires_on_the_rising_edge():
    chips = Chips()
    chips.cpus[0].mmio_write(r.LVT_LINT1, 4, NMI << 8)
    for level in (True, True, False, True):
        chips.cpus[0].lint1(level)
    assert chips.guests[0].signals == ["nmi", "nmi"]


def test_lint0_as_fixed_level_is_delivered_again_while_high():
    chips = Chips()
    apic = chips.cpus[0]
    apic.mmio_write(r.LVT_LINT0, 4, r.LVT_LEVEL | 0x71)
    apic.lint0(True)
    assert chips.take() == 0x71
    assert apic.mmio_read(r.LVT_LINT0, 4) & r.LVT_REMOTE_IRR
    chips.eoi()
    assert chips.take() == 0x71
    apic.lint0(False)
    chips.eoi()
    assert chips.take() is None
    assert not apic.mmio_read(r.LVT_LINT0, 4) & r.LVT_REMOTE_IRR


def test_lint0_as_extint_tells_the_cpu_to_look_at_the_8259():
    chips = Chips()
    chips.cpus[0].mmio_write(r.LVT_LINT0, 4, EXTINT << 8)
    before = chips.guests[0].changes
    chips.cpus[0].lint0(True)
    assert chips.guests[0].changes == before + 1
    assert chips.cpus[0].accept_pic_intr


def test_performance_interrupt_masks_its_entry():
    apic = lapic()
    apic.mmio_write(r.LVT_PERFORMANCE, 4, 0x91)
    assert apic.local_deliver(r.LVT_PERFORMANCE)
    assert apic.pending_vector() == 0x91
    assert not apic.local_deliver(r.LVT_PERFORMANCE)


@given(st.sampled_from(sorted(r.LVT_WRITABLE)), st.integers(0, 0xFFFF_FFFF))
def test_lvt_keeps_the_bits_that_its_declaration_has(register, value):
    apic = lapic(cmci=True, tsc=lambda: 0)
    apic.mmio_write(register, 4, value)
    entry = apic.mmio_read(register, 4)
    assert entry == value & r.LVT_WRITABLE[register]
    fields = r.LvtEntry.parse(entry.to_bytes(4, "little"))
    assert (fields.vector, fields.masked) == (value & 0xFF, bool(value & r.LVT_MASKED))


# EOI forwarding.


def test_suppressed_broadcast_leaves_remote_irr():
    chips = Chips(suppress_eoi=True)
    assert chips.cpus[0].version & r.VERSION_SUPPRESS_EOI
    chips.cpus[0].mmio_write(r.SVR, 4, 0x11FF)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.take()
    chips.eoi()
    assert chips.entry(5) & 1 << 14
    assert chips.acks.acked == [5]  # the kernel tells the notifiers all the same


def test_suppression_bit_is_not_there_unless_offered():
    chips = Chips()
    chips.cpus[0].mmio_write(r.SVR, 4, 0x11FF)
    assert chips.cpus[0].mmio_read(r.SVR, 4) == 0x1FF


def test_interrupt_moved_to_another_cpu_while_in_service_is_still_ended():
    chips = Chips(2)
    chips.program(5, 0x8051)
    chips.ioapic.set_irq(5, 0, True)
    chips.take()
    chips.program(5, 1 << 56 | 0x8051)
    chips.ioapic.set_irq(5, 0, False)
    chips.eoi()
    assert not chips.entry(5) & 1 << 14


# Registers.


@given(st.integers(0, 0xFFF), st.sampled_from([1, 2, 4, 8]))
def test_any_read_of_the_page_answers_within_its_size(offset, size):
    assert 0 <= lapic().mmio_read(offset, size) < 1 << 8 * size


@given(st.lists(st.tuples(st.integers(0, 0xFF), st.integers(0, 0xFFFF_FFFF)), max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_guest_write_escapes_as_an_exception(writes):
    chips = Chips(2, tsc=lambda: 0)
    for offset, value in writes:
        for apic in chips.cpus:
            apic.mmio_write(offset << 4, 4, value)
            apic.msr_write(r.MSR_X2APIC + offset, value)
            apic.msr_write(r.MSR_APIC_BASE, XAPIC | value)
            apic.msr_write(r.MSR_TSC_DEADLINE, value)
        chips.clock.step(1_000_000)
    assert all(0 <= apic.version < 1 << 32 for apic in chips.cpus)


def test_bytes_of_a_register_read_and_other_accesses_do_nothing():
    apic = lapic()
    assert apic.mmio_read(r.VERSION + 2, 1) == 5
    assert apic.mmio_read(r.VERSION + 4, 4) == 0
    apic.mmio_write(r.TPR, 1, 0x50)
    apic.mmio_write(r.TPR + 4, 4, 0x50)
    assert apic.tpr == 0


def test_register_that_does_not_exist_is_reported():
    apic = lapic()
    assert apic.mmio_read(0x3F0, 4) == 0
    apic.mmio_write(r.ESR, 4, 0)
    assert apic.mmio_read(r.ESR, 4) == r.ESR_ILLEGAL_REGISTER


# Save and restore.


def test_restored_apic_goes_on_where_the_saved_one_was():
    chips, other = Chips(), Chips()
    apic, twin = chips.cpus[0], other.cpus[0]
    for vector in (0x41, 0x51, 0x61):
        apic.accept(FIXED, vector, vector == 0x51)
    chips.take()
    apic.mmio_write(r.LVT_LINT1, 4, NMI << 8)
    apic.mmio_write(r.DIVIDE, 4, 0xB)
    apic.mmio_write(r.INITIAL_COUNT, 4, 5000)
    apic.tpr = 0x20
    page = apic.get_state()
    assert len(page) == 0x400
    twin.set_state(page)
    assert twin.get_state() == page
    other.eoi()
    assert other.take() == 0x51


def test_state_that_is_too_short_is_refused():
    with pytest.raises(ConfigError, match="1024 bytes, not 3"):
        lapic().set_state(b"abc")
