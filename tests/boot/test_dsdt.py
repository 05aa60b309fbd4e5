"""The DSDT's bytes: each term by the grammar, the whole by ACPICA's disassembler where it is installed."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
def test_disassembler_sees_the_routing_that_the_pirqs_have(tmp_path):
    asl = disassemble(tmp_path, dsdt.build())
    numbers = {"Zero": 0, "One": 1}
    found = [
        tuple(numbers[word] if word in numbers else int(word, 16) for word in entry)
        for entry in re.findall(r"Package \(0x04\)\s*\{\s*(\w+FFFF),\s*(\w+),\s*(\w+),\s*(\w+)\s*\}", asl)
    ]
    assert len(found) == 31 * 4
    for address, pin, link, gsi in found:
        slot = address >> 16
        expected = 9 if (slot, pin) == (1, 0) else PIRQ_IRQS[(slot - 1 + pin) % 4]
        assert (link, gsi) == (0, expected)
