"""The ACPI tables as a guest finds them: by scanning, following addresses and checking sums."""

from __future__ import annotations

import struct

import pytest

from vmm.boot import acpi

RAM = 1 << 20


def find_tables(cpus: int) -> tuple[dict[str, bytes], bytearray]:
    """Scan for the RSDP, follow the RSDT and the FADT as ACPI 1.0 has it; every checksum is verified on the way."""
    ram = bytearray(RAM)
    for piece in acpi.tables(cpus):
        ram[piece.address : piece.end] = piece.data
    at = next(a for a in range(0xE0000, 0x100000, 16) if ram[a : a + 8] == b"RSD PTR ")
    assert sum(ram[at : at + 20]) % 256 == 0
    found: dict[str, bytes] = {}

    def table(address: int) -> bytes:
        length = struct.unpack_from("<I", ram, address + 4)[0]
        body = bytes(ram[address : address + length])
        assert address >= 0xE0000
        assert sum(body) % 256 == 0
        found[body[:4].decode()] = body
        return body

    rsdt = table(struct.unpack_from("<I", ram, at + 16)[0])
    for (address,) in struct.iter_unpack("<I", rsdt[36:]):
        table(address)
    facs, dsdt = struct.unpack_from("<II", found["FACP"], 36)
    table(dsdt)
    found["FACS"] = bytes(ram[facs : facs + 64])
    assert facs % 64 == 0
    return found, ram


def test_xsdt_of_an_rsdp_of_revision_2_names_the_tables_of_the_rsdt():
    found, ram = find_tables(2)
    at = ram.index(b"RSD PTR ")
    revision, length = ram[at + 15], struct.unpack_from("<I", ram, at + 20)[0]
    assert (revision, length) == (2, 36)
    assert sum(ram[at : at + length]) % 256 == 0
    assert ram[at + 33 : at + 36] == bytes(3)  # reserved
    address = struct.unpack_from("<Q", ram, at + 24)[0]
    size = struct.unpack_from("<I", ram, address + 4)[0]
    xsdt = ram[address : address + size]
    assert (xsdt[:4], sum(xsdt) % 256) == (b"XSDT", 0)
    listed = [entry for (entry,) in struct.iter_unpack("<Q", xsdt[36:])]
    assert listed == [entry for (entry,) in struct.iter_unpack("<I", found["RSDT"][36:])]
    assert [bytes(ram[entry : entry + 4]) for entry in listed] == [b"FACP", b"APIC"]


@pytest.mark.parametrize("cpus", [1, 2, 4, 255])
def test_scanning_guest_counts_the_cpus_in_the_madt(cpus):
    madt = find_tables(cpus)[0]["APIC"]
    ids, at = [], 44
    while at < len(madt):
        kind, length = madt[at : at + 2]
        if kind == 0 and madt[at + 4] & 1:
            ids.append(madt[at + 3])
        at += length
    assert at == len(madt)
    assert ids == list(range(cpus))


def test_madt_gives_the_ioapic_the_timer_override_and_level_pci_interrupts():
    madt = acpi.MadtLayout.parse(find_tables(1)[0]["APIC"][36:])
    bodies = {kind: [e.body for e in madt.entries if e.type == kind] for kind in (1, 2, 4)}
    assert madt.lapic_address == 0xFEE00000
    assert [(b.address, b.gsi_base) for b in bodies[1]] == [(0xFEC00000, 0)]
    assert [(b.source, b.gsi, b.flags) for b in bodies[2]] == [(0, 2, 0), *((i, i, 0xD) for i in (5, 9, 10, 11))]
    assert [b.lint for b in bodies[4]] == [1]


def test_fadt_says_where_the_pm_block_gpe_and_acpi_switch_are():
    fadt = acpi.FadtLayout.parse(find_tables(1)[0]["FACP"][36:])
    assert len(find_tables(1)[0]["FACP"]) == 116
    assert (fadt.sci_int, fadt.smi_cmd, fadt.acpi_enable) == (9, 0xB2, 0xF1)
    assert (fadt.pm1a_evt_blk, fadt.pm1a_cnt_blk, fadt.pm_tmr_blk) == (0x600, 0x604, 0x608)
    assert (fadt.gpe0_blk, fadt.gpe0_blk_len) == (0xAFE0, 4)


def test_other_aml_takes_the_place_of_our_dsdt():
    ram = bytearray(RAM)
    for piece in acpi.tables(1, dsdt=b"AML"):
        ram[piece.address : piece.end] = piece.data
    at = ram.index(b"DSDT", 0xE0000)
    assert ram[at + 36 : at + 39] == b"AML"


def test_tables_leave_most_of_their_area_free():
    assert max(piece.end for piece in acpi.tables(255)) < 0xE4000


def test_facs_is_what_the_specification_asks_for():
    facs = find_tables(1)[0]["FACS"]
    assert (facs[:4], struct.unpack_from("<I", facs, 4)[0]) == (b"FACS", 64)


@pytest.mark.parametrize("cpus", [0, 256])
def test_a_number_of_cpus_without_apic_ids_is_refused(cpus):
    with pytest.raises(ValueError, match=f"{cpus} CPUs"):
        acpi.tables(cpus)
