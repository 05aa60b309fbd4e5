"""What firmware leaves behind, on a bus of fake PCI functions and, where QEMU is installed, on the real thing."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from vmm.boot import firmware

KIB, MIB = 1 << 10, 1 << 20
IO, MEMORY, MEMORY64, PREFETCH = 0x1, 0x0, 0x4, 0x8
PIIX3, PIIX3_IDE, PIIX4_PM = 0x08, 0x09, 0x0B


class Want(NamedTuple):
    """A BAR of a fake function: offset, size, type bits."""

    offset: int
    size: int
    kind: int = MEMORY


class FakeMachine:
    """Configuration space by mechanism #1, and a log of every other port and memory write."""

    def __init__(self) -> None:
        self.functions: dict[int, tuple[bytearray, dict[int, tuple[int, int]]]] = {}
        self.address = 0
        self.ports: list[tuple[int, int]] = []
        self.memory: dict[int, int] = {}
        self.a20_port = 0xFF

    def add(self, devfn: int, ident: int, *wants: Want, pin: int = 0, header: int = 0) -> None:
        config = bytearray(256)
        config[0:4] = ident.to_bytes(4, "little")
        config[0x0E], config[0x3D] = header, pin
        masks = {}
        for want in wants:
            mask = -want.size & ~(3 if want.kind & IO else 0x7FF if want.offset == 0x30 else 15)
            masks[want.offset] = (mask & 0xFFFFFFFF, want.kind)
            config[want.offset] = want.kind
            if want.kind & MEMORY64 and not want.kind & IO:
                masks[want.offset + 4] = (mask >> 32 & 0xFFFFFFFF, 0)
        self.functions[devfn] = (config, masks)

    def dword(self, devfn: int, offset: int) -> int:
        return int.from_bytes(self.functions[devfn][0][offset : offset + 4], "little")

    def bar(self, devfn: int, offset: int) -> int:
        return self.dword(devfn, offset) & ~(3 if self.dword(devfn, offset) & IO else 15)

    def command(self, devfn: int) -> int:
        return self.dword(devfn, 4) & 0xFFFF

    def port_read(self, port: int, size: int) -> int:
        if port == 0x92:
            return self.a20_port
        devfn = self.address >> 8 & 0xFF
        if not 0xCFC <= port < 0xD00 or self.address >> 16 != 0x8000 or devfn not in self.functions:
            return (1 << 8 * size) - 1
        offset = (self.address & 0xFC) + port - 0xCFC
        return int.from_bytes(self.functions[devfn][0][offset : offset + size], "little")

    def port_write(self, port: int, size: int, value: int) -> None:
        if port == 0xCF8:
            self.address = value
        elif 0xCFC <= port < 0xD00:
            config, masks = self.functions[self.address >> 8 & 0xFF]
            offset = (self.address & 0xFC) + port - 0xCFC
            mask, kind = masks.get(offset, (0xFFFFFFFF, 0))
            if 0x10 <= offset < 0x34 and offset not in masks:
                return
            config[offset : offset + size] = (value & mask | kind).to_bytes(8, "little")[:size]
        else:
            self.ports.append((port, value))

    def mmio_write(self, gpa: int, size: int, value: int) -> None:
        assert size == 4
        self.memory[gpa] = value


def pc(*extra: tuple) -> FakeMachine:
    """The board's functions and the given ones, (devfn, id, BARs, pin) each."""
    machine = FakeMachine()
    machine.add(0x00, firmware.HOST_BRIDGE)
    machine.add(PIIX3, firmware.PIIX3_ISA, header=0x80)
    machine.add(PIIX3_IDE, firmware.PIIX3_IDE, Want(0x20, 16, IO))
    machine.add(PIIX4_PM, firmware.PIIX4_PM, pin=1)
    for devfn, ident, wants, pin in extra:
        machine.add(devfn, ident, *wants, pin=pin)
    return machine


EDU = (Want(0x10, MIB),)


def test_bars_get_the_addresses_seabios_gave_on_qemu():
    """Recorded from SeaBIOS 1.16.2 on QEMU 7.2 with these eight devices on its command line."""
    virtio = (Want(0x10, 32, IO), Want(0x14, 4 * KIB), Want(0x20, 16 * KIB, MEMORY64 | PREFETCH))
    e1000 = (Want(0x10, 128 * KIB), Want(0x14, 64, IO), Want(0x30, 256 * KIB))
    vga = (Want(0x10, 16 * MIB, PREFETCH), Want(0x18, 4 * KIB), Want(0x30, 64 * KIB))
    rtl8139 = (Want(0x10, 256, IO), Want(0x14, 256), Want(0x30, 256 * KIB))
    machine = pc(
        (0x10, 0x11E81234, EDU, 1),
        (0x18, 0x10051AF4, virtio, 1),
        (0x20, 0x100E8086, e1000, 1),
        (0x28, 0x00101B36, (Want(0x10, 16 * KIB, MEMORY64),), 1),
        (0x30, 0x11111234, vga, 0),
        (0x38, 0x813910EC, rtl8139, 1),
        (0x40, 0x29228086, (Want(0x20, 32, IO), Want(0x24, 4 * KIB)), 1),
        (0x80, 0x11E81234, EDU, 1),
    )
    firmware.run(machine)
    ports = {
        (0x38, 0x10): 0xC000,
        (0x20, 0x14): 0xC100,
        (0x18, 0x10): 0xC140,
        (0x40, 0x20): 0xC160,
        (0x09, 0x20): 0xC180,
    }
    assert {key: machine.bar(*key) for key in ports} == ports
    memory = {
        (0x10, 0x10): 0xFE900000,
        (0x80, 0x10): 0xFEA00000,
        (0x20, 0x30): 0xFEB00000,
        (0x38, 0x30): 0xFEB40000,
        (0x20, 0x10): 0xFEB80000,
        (0x30, 0x30): 0xFEBA0000,
        (0x28, 0x10): 0xFEBB0000,
        (0x18, 0x14): 0xFEBB4000,
        (0x30, 0x18): 0xFEBB5000,
        (0x38, 0x14): 0xFEBB6000,
        (0x40, 0x24): 0xFEBB7000,
        (0x30, 0x10): 0xFD000000,
        (0x18, 0x20): 0xFE000000,
    }
    assert {key: machine.bar(*key) for key in memory} == memory


def test_the_window_with_the_larger_alignment_is_below_the_other():
    machine = pc((0x10, 0x11E81234, EDU, 1), (0x18, 0x10051AF4, (Want(0x20, 16 * KIB, MEMORY64 | PREFETCH),), 1))
    firmware.run(machine)
    assert (machine.bar(0x18, 0x20), machine.bar(0x10, 0x10)) == (0xFEBFC000, 0xFEA00000)


def test_interrupt_line_follows_slot_and_pin_through_the_pirqs():
    machine = pc(*((slot << 3, 0x11E81234, EDU, 1) for slot in range(2, 10)), (10 << 3, 0x11E81234, EDU, 3))
    firmware.run(machine)
    lines = {slot: machine.dword(slot << 3, 0x3C) & 0xFF for slot in range(2, 11)}
    assert lines == {2: 10, 3: 11, 4: 11, 5: 10, 6: 10, 7: 11, 8: 11, 9: 10, 10: 11}
    assert machine.dword(PIIX3, 0x60) == 0x0B0B0A0A
    assert machine.dword(PIIX4_PM, 0x3C) & 0xFF == 9


def test_a_function_without_pin_keeps_its_interrupt_line():
    machine = pc((0x18, 0x11111234, (), 0))
    firmware.run(machine)
    assert machine.dword(0x18, 0x3C) & 0xFF == 0


def test_every_function_decodes_and_none_masters_the_bus():
    machine = pc((0x18, 0x11E81234, EDU, 1))
    firmware.run(machine)
    assert {machine.command(devfn) for devfn in machine.functions} == {0x103}


def test_power_management_is_at_0x600_with_smbus_at_0x700_and_smi_on_apm():
    machine = pc()
    firmware.run(machine)
    assert (machine.dword(PIIX4_PM, 0x40), machine.dword(PIIX4_PM, 0x80)) == (0x601, 1)
    assert (machine.dword(PIIX4_PM, 0x90), machine.dword(PIIX4_PM, 0xD0) >> 16) == (0x701, 9)
    assert machine.dword(PIIX4_PM, 0x58) == 1 << 25


def test_pics_have_bios_vectors_masks_and_level_pci_interrupts():
    machine = pc()
    firmware.run(machine)
    assert [v for p, v in machine.ports if p in (0x20, 0x21)] == [0x11, 0x08, 0x04, 0x01, 0xB8]
    assert [v for p, v in machine.ports if p in (0xA0, 0xA1)] == [0x11, 0x70, 0x02, 0x01, 0x8E]
    assert [v for p, v in machine.ports if p in (0x4D0, 0x4D1)] == [0x00, 0x0C]


def test_local_apic_passes_extint_and_nmi():
    machine = pc()
    firmware.run(machine)
    assert machine.memory == {0xFEE000F0: 0x1FF, 0xFEE00350: 0x8700, 0xFEE00360: 0x8400}


def test_a20_is_opened_only_where_its_port_answers_and_never_resets():
    machine = pc()
    firmware.run(machine)
    assert not [p for p, _ in machine.ports if p == 0x92]
    machine.a20_port = 0x01
    firmware.run(machine)
    assert (0x92, 0x02) in machine.ports


def test_functions_of_a_single_function_device_are_not_looked_for():
    machine = pc((0x19, 0x11E81234, EDU, 1))
    firmware.run(machine)
    assert machine.bar(0x19, 0x10) == 0


def test_an_empty_bus_is_left_alone():
    machine = FakeMachine()
    assert firmware.run(machine).assigned == {}


def test_64_bit_bars_go_above_4_gib_when_the_low_window_is_too_small():
    big = (Want(0x10, 1 << 30, MEMORY64 | PREFETCH), Want(0x18, MIB))
    machine = pc((0x18, 0x11111234, big, 1), (0x20, 0x11111234, big, 1))
    done = firmware.run(machine)
    assert (done.assigned[0x18, 0x10], done.assigned[0x20, 0x10]) == (1 << 32, (1 << 32) + (1 << 30))
    assert machine.dword(0x20, 0x14) == 1
    assert machine.bar(0x18, 0x18) == 0xFEA00000


def test_a_32_bit_bar_that_fits_nowhere_stays_unassigned_and_harms_nobody():
    machine = pc((0x18, 0x11111234, (Want(0x10, 1 << 30),), 1), (0x20, 0x11E81234, EDU, 1))
    done = firmware.run(machine)
    assert [bar.devfn for bar in done.unassigned] == [0x18]
    assert machine.bar(0x18, 0x10) == 0
    assert machine.bar(0x20, 0x10) == 0xFEB00000


sizes = st.integers(4, 30).map(lambda bits: 1 << bits)
kinds = st.sampled_from([MEMORY, PREFETCH, MEMORY64, MEMORY64 | PREFETCH])
wanted = st.one_of(
    st.builds(Want, st.just(0x10), st.integers(2, 14).map(lambda bits: 1 << bits), st.just(IO)),
    st.builds(Want, st.just(0x10), sizes, kinds),
)


@given(st.lists(wanted, max_size=20))
def test_assigned_ranges_are_aligned_disjoint_and_within_their_windows(wants):
    machine = pc(*((slot << 3, 0x11111234, (want,), 1) for slot, want in enumerate(wants, 2)))
    done = firmware.run(machine)
    ranges: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for slot, want in enumerate(wants, 2):
        address = done.assigned.get((slot << 3, 0x10))
        if address is None:
            assert machine.bar(slot << 3, 0x10) == 0
            continue
        high = machine.dword(slot << 3, 0x14) if want.kind & 7 == MEMORY64 else 0
        assert machine.bar(slot << 3, 0x10) | high << 32 == address
        io = want.kind == IO
        room = want.size if io else max(want.size, 4096)
        assert address % room == 0
        windows = [(0xC000, 0x10000)] if io else [(0xE0000000, 0xFEC00000)]
        if want.kind & 7 == MEMORY64:
            windows.append((1 << 32, 1 << 40))
        assert any(first <= address and address + room <= end for first, end in windows)
        ranges[io].append((address, address + room))
    for found in ranges.values():
        found.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(found))
    assert len(done.assigned) + len(done.unassigned) == len(wants) + 1


@given(st.lists(wanted, min_size=1, max_size=20))
def test_memory_that_fits_low_is_all_assigned(wants):
    wants = [w._replace(size=min(w.size, 8 * MIB)) for w in wants]
    machine = pc(*((slot << 3, 0x11111234, (want,), 1) for slot, want in enumerate(wants, 2)))
    assert all(bar.io for bar in firmware.run(machine).unassigned)
