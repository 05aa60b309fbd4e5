"""The DSDT's bytes: each term by the grammar, the whole by ACPICA's disassembler where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devices.pci.bus import pirq_of
from devices.pci.piix3 import PIRQRC, PIRQRC_DISABLED
from vmm.boot import acpi, aml, dsdt
from vmm.boot.firmware import PIRQ_IRQS

IASL = shutil.which("iasl")


def decode_length(data: bytes) -> tuple[int, int]:
    """(value, bytes used) of a PkgLength, written from the grammar's description."""
    extra = data[0] >> 6
    if extra == 0:
        return data[0], 1
    value = data[0] & 0xF
    for i in range(extra):
        value |= data[1 + i] << (4 + 8 * i)
    return value, 1 + extra


@given(st.integers(0, (1 << 28) - 5) | st.sampled_from([62, 63, 64, 4093, 4094, 4095, 1048572, 1048573]))
def test_package_length_counts_body_and_itself(body):
    value, used = decode_length(aml.package_length(body))
    assert value == body + used
    assert used == len(aml.package_length(body))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x12345678, "0c78563412"),
        (1 << 32, "0e0000000001000000"),
    ],
)
def test_integers_take_the_shortest_form(value, encoded):
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("_S5", b"_S5_"),
        ("\\_SB", b"\\_SB_"),
        ("\\_SB.PCI0", b"\\\x2e_SB_PCI0"),
        ("\\_SB.PCI0.S18", b"\\\x2f\x03_SB_PCI0S18_"),
        ("\\", b"\\\x00"),
    ],
)
def test_names_are_padded_and_prefixed_by_their_number_of_segments(text, encoded):
    assert aml.path(text) == encoded


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(ValueError, match="four characters"):
        aml.path("LONGNAME")
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)
    with pytest.raises(ValueError, match="28 bits"):
        aml.encode_length(1 << 28)


def test_eisa_id_of_the_pci_bus():
    assert aml.eisa_id("PNP0A03").hex() == "0c41d00a03"


def test_soft_off_is_type_0():
    assert dsdt.build().startswith(b"\x08_S5_\x12\x06\x04\x00\x00\x00\x00")


def disassemble(tmp_path, content: bytes) -> str:
    """ASL of a DSDT. AssertionError when ACPICA complains."""
    path = tmp_path / "dsdt.aml"
    path.write_bytes(acpi.table(b"DSDT", 1, content))
    done = subprocess.run([IASL, "-d", path], capture_output=True, text=True, check=True)
    assert not re.search(r"error|warning", done.stdout + done.stderr, re.IGNORECASE), done.stderr
    return (tmp_path / "dsdt.dsl").read_text()


@pytest.mark.skipif(IASL is None, reason="iasl (ACPICA) is not installed")
def test_disassembler_sees_every_slot_its_ejection_and_its_notifications(tmp_path):
    asl = disassemble(tmp_path, dsdt.build())
    slots = re.findall(
        r"Device \((S[0-9A-F]{2})\)\s*\{\s*Name \(_ADR, 0x00(..)0000\).*?Name \(_SUN, 0x(..)\).*?"
        r"BNUM = Zero\s*\S*B0EJ = (\w+)",
        asl,
        re.DOTALL,
    )
    assert [(int(name[1:], 16) >> 3, int(adr, 16), int(sun, 16), int(bit, 16)) for name, adr, sun, bit in slots] == [
        (slot, slot, slot, 1 << slot) for slot in range(2, 32)
    ]
    notified = re.findall(r"If \(\(Local(\d) & (\w+)\)\)\s*\{\s*Notify \(\S*\.(S\w+), (\w+)\)", asl)
    assert [(i, int(bit, 16), name, value) for i, bit, name, value in notified] == [
        (which, 1 << slot, f"S{slot << 3:02X}", value)
        for slot in range(2, 32)
        for which, value in (("0", "One"), ("1", "0x03"))
    ]


@pytest.mark.skipif(IASL is None, reason="iasl (ACPICA) is not installed")
def test_disassembler_sees_the_link_of_each_pirq_in_the_routing(tmp_path):
    asl = disassemble(tmp_path, dsdt.build())
    numbers = {"Zero": 0, "One": 1}
    found = [
        (int(address, 16), numbers[pin] if pin in numbers else int(pin, 16), link, numbers.get(gsi, gsi))
        for address, pin, link, gsi in re.findall(
            r"Package \(0x04\)\s*\{\s*(\w+FFFF),\s*(\w+),\s*([\w.\\]+),\s*(\w+)\s*\}", asl
        )
    ]
    assert [(address >> 16, pin) for address, pin, _, _ in found] == [(s, p) for s in range(1, 32) for p in range(4)]
    for address, pin, link, gsi in found:
        slot = address >> 16
        name = rf"\_SB.LNK{'ABCD'[pirq_of(slot << 3, pin + 1)]}"
        assert (link, gsi) == (("Zero", "0x09") if (slot, pin) == (1, 0) else (name, 0))


@pytest.mark.skipif(IASL is None, reason="iasl (ACPICA) is not installed")
def test_disassembler_sees_links_over_the_registers_of_the_isa_bridge(tmp_path):
    asl = disassemble(tmp_path, dsdt.build())
    bridge = re.search(r"Device \(ISA\)\s*\{\s*Name \(_ADR, 0x00010000\)(.*?)\n            \}", asl, re.DOTALL)[1]
    assert "PCI_Config, 0x60, 0x04" in bridge
    assert re.findall(r"(PRC\w), +8", bridge) == ["PRCA", "PRCB", "PRCC", "PRCD"]
    links = re.findall(r"Device \((LNK.)\)\s*\{(.*?)\n        \}", asl, re.DOTALL)
    assert [name for name, _ in links] == ["LNKA", "LNKB", "LNKC", "LNKD"]
    for name, body in links:
        assert 'EisaId ("PNP0C0F")' in body
        assert re.findall(r"Method \((\w+), (\d)", body) == [("_STA", "0"), ("_CRS", "0"), ("_SRS", "1"), ("_DIS", "0")]
        assert set(re.findall(r"PRC\w", body)) == {f"PRC{name[-1]}"}
        assert body.count("Interrupt (ResourceConsumer, Level, ActiveHigh, Shared") == 2
        possible = re.search(r"_PRS.*?Shared.*?\{(.*?)\}", body, re.DOTALL)[1]
        assert [int(irq, 16) for irq in re.findall(r"0x\w+", possible)] == [5, 10, 11]


def test_links_can_be_set_to_what_the_madt_calls_level_and_the_firmware_chose_among_it():
    assert {*dsdt.LINK_IRQS, acpi.SCI} == set(acpi.PCI_GSIS)
    assert set(PIRQ_IRQS) <= set(dsdt.LINK_IRQS)
    assert (dsdt.PIRQRC, dsdt.PIRQRC_DISABLED) == (PIRQRC, PIRQRC_DISABLED)


@pytest.mark.skipif(IASL is None, reason="iasl (ACPICA) is not installed")
def test_compiler_takes_back_what_the_disassembler_wrote(tmp_path):
    disassemble(tmp_path, dsdt.build())
    done = subprocess.run(
        [IASL, "-p", tmp_path / "again", tmp_path / "dsdt.dsl"], capture_output=True, text=True, check=True
    )
    assert " 0 Errors" in done.stdout


@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=16))
def test_interrupt_descriptor_is_as_long_as_it_says_and_starts_with_its_first_interrupt(irqs):
    descriptor = aml.interrupt(*irqs)
    assert (descriptor[0], int.from_bytes(descriptor[1:3], "little"), descriptor[4]) == (
        0x89,
        len(descriptor) - 3,
        len(irqs),
    )
    assert int.from_bytes(descriptor[aml.INTERRUPT_NUMBER :][:4], "little") == irqs[0]
