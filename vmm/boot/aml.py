"""ACPI Machine Language: the terms our DSDT is made of, as functions that give their bytes.

Each name is that of the ASL operator. Terms are bytes and nest by being concatenated.
Ref: ACPI 6.4, 20.2 (AML grammar), 6.4 (resource descriptors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from construct import Const, Int8ul, Int16ul, Int32ul, PrefixedArray, Rebuild, Struct

if TYPE_CHECKING:
    from collections.abc import Iterable

ZERO, ONE = b"\x00", b"\x01"
SYSTEM_IO, PCI_CONFIG = 1, 2
BYTE_ACCESS, DWORD_ACCESS = 0x01, 0x03
"""Field flags: byte or dword access, no lock, preserve."""
SERIALIZED = 0x08
NOTIFY_DEVICE_CHECK = 1
NOTIFY_EJECT_REQUEST = 3

IoDescriptor = Struct(
    "tag" / Const(0x47, Int8ul),
    "decode" / Const(1, Int8ul),
    "min" / Int16ul,
    "max" / Int16ul,
    "align" / Int8ul,
    "length" / Int8ul,
)
WordDescriptor = Struct(
    "tag" / Const(0x88, Int8ul),
    "size" / Const(13, Int16ul),
    "kind" / Int8ul,
    "flags" / Int8ul,
    "kind_flags" / Int8ul,
    "granularity" / Const(0, Int16ul),
    "min" / Int16ul,
    "max" / Int16ul,
    "translation" / Const(0, Int16ul),
    "length" / Int16ul,
)
DwordDescriptor = Struct(
    "tag" / Const(0x87, Int8ul),
    "size" / Const(23, Int16ul),
    "kind" / Int8ul,
    "flags" / Int8ul,
    "kind_flags" / Int8ul,
    "granularity" / Const(0, Int32ul),
    "min" / Int32ul,
    "max" / Int32ul,
    "translation" / Const(0, Int32ul),
    "length" / Int32ul,
)
InterruptDescriptor = Struct(
    "tag" / Const(0x89, Int8ul),
    "size" / Rebuild(Int16ul, lambda this: 2 + 4 * len(this.irqs)),
    "flags" / Int8ul,
    "irqs" / PrefixedArray(Int8ul, Int32ul),
)
INTERRUPT_NUMBER = 5
"""Where the first interrupt of an `InterruptDescriptor` is."""
LEVEL_HIGH_SHARED = 0x09
"""The device consumes it; level-triggered, active high, shared."""
MEMORY_RANGE, IO_RANGE, BUS_RANGE = 0, 1, 2
FIXED_PRODUCER = 0x0C
"""Minimum and maximum are fixed; positive decode; the bridge passes the range on."""
ENTIRE_IO_RANGE = 0x03
READ_WRITE_UNCACHED = 0x01
END_TAG = b"\x79\x00"


def path(name: str) -> bytes:
    r"""A name string: ``\_SB.PCI0``, ``PCI0``; segments are padded to four characters."""
    root = b"\\" if name.startswith("\\") else b""
    segments = [part.encode().ljust(4, b"_") for part in name.lstrip("\\").split(".") if part]
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"AML name {name!r} has a segment of more than four characters")
    match len(segments):
        case 0:
            return root + b"\x00"
        case 1:
            prefix = b""
        case 2:
            prefix = b"\x2e"
        case count:
            prefix = bytes((0x2F, count))
    return root + prefix + b"".join(segments)


def integer(value: int) -> bytes:
    """The shortest constant for `value` (0 to 2^64 - 1)."""
    if value in (0, 1):
        return bytes((value,))
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes((prefix,)) + value.to_bytes(size, "little")
    raise ValueError(f"AML integer {value:#x} has more than 64 bits")


def encode_length(value: int) -> bytes:
    """The bytes of a PkgLength that says `value`: six bits, or four and up to three more bytes."""
    if value < 1 << 6:
        return bytes((value,))
    for extra in (1, 2, 3):
        if value < 1 << (4 + 8 * extra):
            return bytes((extra << 6 | value & 0xF,)) + (value >> 4).to_bytes(extra, "little")
    raise ValueError(f"AML length {value:#x} has more than 28 bits")


def package_length(body: int) -> bytes:
    """PkgLength of a term with `body` bytes behind it; it counts its own bytes too."""
    return next(e for size in (1, 2, 3, 4) if len(e := encode_length(body + size)) == size)


def _enclose(opcode: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return opcode + package_length(len(body)) + body


def name(where: str, value: bytes) -> bytes:
    """Name (where, value)"""
    return b"\x08" + path(where) + value


def package(*items: bytes) -> bytes:
    """Package () {items}"""
    return _enclose(b"\x12", bytes((len(items),)), *items)


def buffer(data: bytes) -> bytes:
    """Buffer () {data}"""
    return _enclose(b"\x11", integer(len(data)), data)


def scope(where: str, *terms: bytes) -> bytes:
    """Scope (where) {terms}"""
    return _enclose(b"\x10", path(where), *terms)


def device(where: str, *terms: bytes) -> bytes:
    """Device (where) {terms}"""
    return _enclose(b"\x5b\x82", path(where), *terms)


def method(where: str, arguments: int, *terms: bytes) -> bytes:
    """Method (where, arguments, Serialized) {terms}"""
    return _enclose(b"\x14", path(where), bytes((arguments | SERIALIZED,)), *terms)


def operation_region(where: str, space: int, offset: int, length: int) -> bytes:
    """OperationRegion (where, space, offset, length)"""
    return b"\x5b\x80" + path(where) + bytes((space,)) + integer(offset) + integer(length)


def field(region: str, flags: int, units: Iterable[tuple[str, int]]) -> bytes:
    """Field (region, flags) {name, bits ...}"""
    return _enclose(
        b"\x5b\x81", path(region), bytes((flags,)), *(path(unit) + encode_length(bits) for unit, bits in units)
    )


def local(number: int) -> bytes:
    """LocalX"""
    return bytes((0x60 + number,))


def arg(number: int) -> bytes:
    """ArgX"""
    return bytes((0x68 + number,))


def create_dword_field(source: bytes, index: int, where: str) -> bytes:
    """CreateDWordField (source, index, where)"""
    return b"\x8a" + source + integer(index) + path(where)


def store(value: bytes, target: bytes) -> bytes:
    """Store (value, target)"""
    return b"\x70" + value + target


def bit_and(left: bytes, right: bytes) -> bytes:
    """And (left, right)"""
    return b"\x7b" + left + right + ZERO


def bit_or(left: bytes, right: bytes, target: bytes) -> bytes:
    """Or (left, right, target)"""
    return b"\x7d" + left + right + target


def less(left: bytes, right: bytes) -> bytes:
    """LLess (left, right)"""
    return b"\x95" + left + right


def return_(value: bytes) -> bytes:
    """Return (value)"""
    return b"\xa4" + value


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) {terms}"""
    return _enclose(b"\xa0", condition, *terms)


def notify(target: str, value: int) -> bytes:
    """Notify (target, value)"""
    return b"\x86" + path(target) + integer(value)


def eisa_id(text: str) -> bytes:
    """EisaId ("PNP0A03"): three letters of five bits, then four hexadecimal digits, as a big-endian dword."""
    letters = [ord(c) - 0x40 for c in text[:3]]
    value = letters[0] << 26 | letters[1] << 21 | letters[2] << 16 | int(text[3:], 16)
    return b"\x0c" + value.to_bytes(4, "big")


def io(first: int, length: int) -> bytes:
    """IO (Decode16, first, first, 1, length)"""
    return bytes(IoDescriptor.build({"min": first, "max": first, "align": 1, "length": length}))


def bus_range(first: int, last: int) -> bytes:
    """WordBusNumber"""
    return _word(BUS_RANGE, 0, first, last)


def io_range(first: int, last: int) -> bytes:
    """WordIO (EntireRange)"""
    return _word(IO_RANGE, ENTIRE_IO_RANGE, first, last)


def _word(kind: int, kind_flags: int, first: int, last: int) -> bytes:
    fields = {"kind": kind, "flags": FIXED_PRODUCER, "kind_flags": kind_flags}
    return bytes(WordDescriptor.build(fields | {"min": first, "max": last, "length": last - first + 1}))


def memory_range(first: int, last: int) -> bytes:
    """DWordMemory (NonCacheable, ReadWrite)"""
    fields = {"kind": MEMORY_RANGE, "flags": FIXED_PRODUCER, "kind_flags": READ_WRITE_UNCACHED}
    return bytes(DwordDescriptor.build(fields | {"min": first, "max": last, "length": last - first + 1}))


def interrupt(*irqs: int) -> bytes:
    """Interrupt (ResourceConsumer, Level, ActiveHigh, Shared) {irqs}"""
    return bytes(InterruptDescriptor.build({"flags": LEVEL_HIGH_SHARED, "irqs": irqs}))


def resource_template(*descriptors: bytes) -> bytes:
    """ResourceTemplate () {descriptors}"""
    return buffer(b"".join(descriptors) + END_TAG)
