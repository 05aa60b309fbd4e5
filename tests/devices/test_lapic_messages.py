"""What local APICs send each other, and messages from elsewhere: IPIs, MSIs, and whom they reach."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices import lapic_registers as r
from devices.apic_bus import (
    FIXED,
    INIT,
    LOWEST_PRIORITY,
    NMI,
    REMOTE_READ,
    SMI,
    STARTUP,
    ApicBus,
    MsiAddress,
    MsiData,
)
from devices.lapic import LocalApic
from tests.support.apic import X2APIC, Chips, FakeCpu, lapic, send, x2
from vmm.clock import VirtualClock
from vmm.errors import ConfigError, InUse
from vmm.trace import Trace

# Inter-processor interrupts.


def icr(apic, low, high=0):
    apic.mmio_write(r.ICR_HIGH, 4, high << 24)
    apic.mmio_write(r.ICR, 4, low)


def test_icr_sends_to_the_destination_and_is_never_busy():
    chips = Chips(2)
    icr(chips.cpus[0], 0x4051, 1)
    assert [c.pending_vector() for c in chips.cpus] == [None, 0x51]
    assert chips.cpus[0].mmio_read(r.ICR, 4) == 0x4051
    assert chips.cpus[0].mmio_read(r.ICR_HIGH, 4) == 0x0100_0000


@pytest.mark.parametrize(("shorthand", "expected"), [(1, [1]), (2, [0, 1, 2]), (3, [0, 2])])
def test_shorthand_names_its_targets(shorthand, expected):
    chips = Chips(3)
    icr(chips.cpus[1], shorthand << 18 | 0x4051)
    assert [c.index for c in chips.cpus if c.pending_vector()] == expected


def test_init_then_startup_starts_an_application_processor_once():
    chips = Chips(2)
    guest = chips.guests[1]
    icr(chips.cpus[0], 0xC000 | INIT << 8, 1)
    icr(chips.cpus[0], 0x8000 | INIT << 8, 1)  # level de-assert
    icr(chips.cpus[0], 0x4000 | STARTUP << 8 | 0x9A, 1)
    icr(chips.cpus[0], 0x4000 | STARTUP << 8 | 0x9A, 1)
    assert guest.signals == ["init", ("sipi", 0x9A)]


def test_init_resets_the_apic_but_not_its_identity():
    chips = Chips(2)
    apic = chips.cpus[1]
    apic.mmio_write(r.ID, 4, 0x0900_0000)
    send(apic, 0x51)
    icr(chips.cpus[0], 0xC000 | INIT << 8, 9)
    assert apic.wait_for_sipi
    assert apic.pending_vector() is None
    assert apic.mmio_read(r.SVR, 4) == 0xFF
    assert apic.mmio_read(r.ID, 4) == 0x0900_0000


def test_illegal_vector_in_the_icr_is_reported_by_the_error_interrupt():
    apic = lapic()
    apic.mmio_write(r.LVT_ERROR, 4, 0xFE)
    icr(apic, 1 << 18 | 0x05)
    assert apic.pending_vector() == 0xFE
    apic.mmio_write(r.ESR, 4, 0)
    assert apic.mmio_read(r.ESR, 4) == r.ESR_SEND_ILLEGAL_VECTOR | r.ESR_RECEIVED_ILLEGAL_VECTOR
    apic.mmio_write(r.ESR, 4, 0)
    assert apic.mmio_read(r.ESR, 4) == 0


def test_x2apic_icr_addresses_32_bits_and_self_ipi_oneself():
    chips = Chips(2)
    for cpu in chips.cpus:
        assert cpu.msr_write(r.MSR_APIC_BASE, X2APIC | (0 if cpu.index else r.BASE_BSP))
    chips.cpus[0].msr_write(x2(r.ICR), 1 << 32 | 0x4051)
    chips.cpus[0].msr_write(x2(r.SELF_IPI), 0x61)
    assert [c.pending_vector() for c in chips.cpus] == [0x61, 0x51]
    chips.cpus[0].msr_write(x2(r.ICR), 0xFFFF_FFFF << 32 | 0x40F1)
    assert [c.pending_vector() for c in chips.cpus] == [0xF1, 0xF1]


@pytest.mark.parametrize(
    ("dfr", "ldrs", "dest", "expected"),
    [
        (0xFFFF_FFFF, [1, 2, 4], 0x05, [0, 2]),
        (0xFFFF_FFFF, [1, 2, 4], 0x08, []),
        (0xFFFF_FFFF, [1, 2, 4], 0xFF, [0, 1, 2]),
        (0xFFFF_FFFF, [3, 6, 4], 0x02, [0, 1]),  # several bits each: not in the kernel's table
        (0x0FFF_FFFF, [0x11, 0x12, 0x21], 0x13, [0, 1]),
        (0x0FFF_FFFF, [0x11, 0x12, 0x21], 0x21, [2]),
        (0x0FFF_FFFF, [0x11, 0x12, 0x21], 0x31, []),
        (0xFFFF_FFFF, [0, 2, 4], 0x07, [1, 2]),
    ],
)
def test_logical_destination_reaches_whom_it_names(dfr, ldrs, dest, expected):
    chips = Chips(3)
    for cpu, ldr in zip(chips.cpus, ldrs, strict=True):
        cpu.mmio_write(r.DFR, 4, dfr)
        cpu.mmio_write(r.LDR, 4, ldr << 24)
    icr(chips.cpus[0], 0x4851, dest)
    assert [c.index for c in chips.cpus if c.pending_vector()] == expected


def test_two_apics_with_one_id_both_take_its_messages():
    chips = Chips(2, x2apic=False)
    for cpu in chips.cpus:
        cpu.mmio_write(r.ID, 4, 0x3300_0000)
    assert chips.bus.deliver(0x33, False, FIXED, 0x51, False) == 2


def test_lowest_priority_hashes_by_vector_or_goes_round():
    hashed, round_robin = Chips(3), Chips(3)
    round_robin.bus.vector_hashing = False
    for vector in (0x60, 0x61, 0x62):
        hashed.bus.deliver(0x07, True, LOWEST_PRIORITY, vector, False)
        round_robin.bus.deliver(0x07, True, LOWEST_PRIORITY, 0x70, False)
    assert [c.pending_vector() for c in hashed.cpus] == [0x60, 0x61, 0x62]
    assert [c.pending_vector() for c in round_robin.cpus] == [0x70] * 3


def test_smi_reaches_the_cpu_only_where_there_is_system_management_mode():
    chips = Chips()
    assert chips.bus.deliver(0, False, SMI, 0, False) == 1
    chips.bus.smm = False
    assert chips.bus.deliver(0, False, SMI, 0, False) == 0
    assert chips.guests[0].signals == ["smi"]


def test_index_that_is_taken_or_too_large_is_refused():
    chips = Chips()
    with pytest.raises(InUse, match="local APIC 0"):
        LocalApic(0, FakeCpu(), chips.bus, chips.clock, chips.trace)
    with pytest.raises(ConfigError, match="255"):
        LocalApic(255, FakeCpu(), ApicBus(Trace()), VirtualClock(), Trace())


def test_closed_apic_is_not_addressed_any_more():
    chips = Chips(2)
    chips.cpus[1].close()
    assert chips.bus.deliver(0xFF, False, FIXED, 0x51, False) == 1


# Messages.


@given(
    st.integers(0, 255),
    st.booleans(),
    st.sampled_from([FIXED, LOWEST_PRIORITY, NMI]),
    st.integers(16, 255),
    st.booleans(),
)
def test_msi_says_what_its_declaration_says(dest, logical, mode, vector, level):
    seen = []

    class Tap(ApicBus):
        __slots__ = ()

        def deliver(self, *message, **_):
            seen.append(message)
            return 1

    address = MsiAddress.build(
        {"prefix": 0xFEE, "destination": dest, "reserved": 0, "redirection_hint": False, "logical": logical}
    )
    data = MsiData.build(
        {"reserved": 0, "level_triggered": level, "assert_level": True, "delivery_mode": mode, "vector": vector}
    )
    assert Tap(Trace()).msi(int.from_bytes(address, "little"), int.from_bytes(data, "little")) == 1
    assert seen == [(dest, logical, mode, vector, level)]


def test_redirection_hint_chooses_one_of_those_addressed():
    chips = Chips(3)
    assert chips.bus.msi(0xFEE0_700C, 0x61) == 1
    assert [c.pending_vector() for c in chips.cpus] == [None, 0x61, None]


def test_lowest_priority_that_hashes_onto_a_missing_cpu_is_lost():
    chips = Chips(2)
    assert chips.bus.deliver(0x07, True, LOWEST_PRIORITY, 0x62, False) == 0
    assert chips.bus.deliver(0x03, True, LOWEST_PRIORITY, 0x62, False) == 1


def test_write_outside_the_msi_window_sends_nothing():
    chips = Chips()
    assert [chips.bus.msi_from_cpu_side(a, 0x51) for a in (0xFED0_0000, 1 << 32 | 0xFEE0_0000)] == [0, 0]
    assert chips.cpus[0].pending_vector() is None


def test_message_by_ioctl_is_one_at_any_address():
    chips = Chips()
    assert chips.bus.msi(1 << 32 | 0xFED0_0000, 0x51) == 1
    assert chips.cpus[0].pending_vector() == 0x51


def test_broadcast_with_redirection_hint_is_fixed_for_one():
    chips = Chips(3)
    assert chips.bus.msi(0xFEEF_F008, REMOTE_READ << 8 | 0x61) == 1
    assert [c.pending_vector() for c in chips.cpus] == [None, 0x61, None]


def test_declared_icr_agrees_with_what_is_sent():
    chips = Chips(2)
    fields = {
        "destination": 1 << 24,
        "shorthand": "none",
        "level_triggered": False,
        "assert_level": True,
        "delivery_status": False,
        "logical": False,
        "delivery_mode": "fixed",
        "vector": 0x51,
    }
    value = int.from_bytes(r.InterruptCommand.build(fields), "little")
    icr(chips.cpus[0], value & 0xFFFF_FFFF, value >> 56)
    assert chips.cpus[1].pending_vector() == 0x51
