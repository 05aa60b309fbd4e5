"""The 256 bytes of a PCI function's configuration space.

`ConfigSpace` holds the bytes with three masks a byte: what a guest may write, what it clears by writing ones, and
what the byte is after a reset. Everything else is read-only. `TYPE0_HEADER` says what the first 64 bytes are; it
builds the header and explains one, while accesses go through plain integers.
Ref: PCI Local Bus Specification 3.0, 6.1 and 6.2.
"""

from __future__ import annotations

from typing import Any

import construct as c

from vmm.errors import ConfigError

COMMAND = 0x04
STATUS = 0x06
CLASS_DEVICE = 0x0A
CACHE_LINE_SIZE = 0x0C
HEADER_TYPE = 0x0E
BASE_ADDRESS_0 = 0x10
BASE_ADDRESS_END = 0x28
SUBSYSTEM_VENDOR_ID = 0x2C
CAPABILITY_LIST = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D
HEADER_SIZE = 0x40
CONFIG_SIZE = 0x100

COMMAND_IO = 0x001
COMMAND_MEMORY = 0x002
COMMAND_MASTER = 0x004
COMMAND_SERR = 0x100
COMMAND_INTX_DISABLE = 0x400
COMMAND_WRITABLE = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_SERR | COMMAND_INTX_DISABLE
"""What software can set in COMMAND, as in QEMU. Ref: PCI 3.0, 6.2.2."""

STATUS_INTERRUPT = 0x0008
STATUS_CAPABILITIES = 0x0010
STATUS_WRITE_ONE_TO_CLEAR = 0xF900
"""The error bits of STATUS. Ref: PCI 3.0, 6.2.3."""

HEADER_TYPE_MULTIFUNCTION = 0x80

CommandRegister = c.BitsSwapped(
    c.BitStruct(
        "io_space" / c.Flag,
        "memory_space" / c.Flag,
        "bus_master" / c.Flag,
        "special_cycles" / c.Flag,
        "memory_write_and_invalidate" / c.Flag,
        "vga_palette_snoop" / c.Flag,
        "parity_error_response" / c.Flag,
        c.Padding(1),
        "serr_enable" / c.Flag,
        "fast_back_to_back" / c.Flag,
        "interrupt_disable" / c.Flag,
        c.Padding(5),
    )
)
"""Ref: PCI 3.0, 6.2.2."""

StatusRegister = c.ByteSwapped(
    c.BitStruct(
        "detected_parity_error" / c.Flag,
        "signaled_system_error" / c.Flag,
        "received_master_abort" / c.Flag,
        "received_target_abort" / c.Flag,
        "signaled_target_abort" / c.Flag,
        "devsel_timing" / c.BitsInteger(2),
        "master_data_parity_error" / c.Flag,
        "fast_back_to_back" / c.Flag,
        c.Padding(1),
        "capable_66_mhz" / c.Flag,
        "capabilities_list" / c.Flag,
        "interrupt" / c.Flag,
        c.Padding(3),
    )
)
"""Ref: PCI 3.0, 6.2.3."""

TYPE0_HEADER = c.Struct(
    "vendor_id" / c.Int16ul,
    "device_id" / c.Int16ul,
    "command" / c.Default(c.Int16ul, 0),
    "status" / c.Default(c.Int16ul, 0),
    "revision" / c.Default(c.Int8ul, 0),
    "prog_if" / c.Default(c.Int8ul, 0),
    "class_id" / c.Int16ul,
    "cache_line_size" / c.Default(c.Int8ul, 0),
    "latency_timer" / c.Default(c.Int8ul, 0),
    "header_type" / c.Default(c.Int8ul, 0),
    "bist" / c.Default(c.Int8ul, 0),
    "base_address" / c.Default(c.Int32ul[6], [0] * 6),
    "cardbus_cis" / c.Default(c.Int32ul, 0),
    "subsystem_vendor_id" / c.Default(c.Int16ul, 0),
    "subsystem_id" / c.Default(c.Int16ul, 0),
    "expansion_rom" / c.Default(c.Int32ul, 0),
    "capabilities_pointer" / c.Default(c.Int8ul, 0),
    c.Padding(7),
    "interrupt_line" / c.Default(c.Int8ul, 0),
    "interrupt_pin" / c.Default(c.Int8ul, 0),
    "min_grant" / c.Default(c.Int8ul, 0),
    "max_latency" / c.Default(c.Int8ul, 0),
)
"""Header of a function that is no bridge. Ref: PCI 3.0, figure 6-1."""

_from = int.from_bytes


class ConfigSpace:
    """The bytes of one function, and who may change them.

    `read` and `write` are a guest's accesses of 1, 2 or 4 bytes that stay inside. `get` and `set` are the device's
    own; `define` declares a register.
    """

    __slots__ = ("clear_mask", "data", "declared", "reset_data", "write_mask")

    def __init__(self, **header: Any) -> None:
        """`header`: fields of TYPE0_HEADER; vendor_id, device_id and class_id are required."""
        self.data = bytearray(TYPE0_HEADER.build(header)) + bytearray(CONFIG_SIZE - HEADER_SIZE)
        self.reset_data = bytearray(self.data)
        self.write_mask = bytearray(CONFIG_SIZE)
        self.clear_mask = bytearray(CONFIG_SIZE)
        self.declared = bytearray(CONFIG_SIZE)
        """1 where a register is, also one that reads 0 and cannot be written."""
        self.allow(COMMAND, 2, COMMAND_WRITABLE)
        self.allow(STATUS, 2, 0, clear=STATUS_WRITE_ONE_TO_CLEAR)
        self.allow(CACHE_LINE_SIZE, 1, 0xFF)
        self.allow(INTERRUPT_LINE, 1, 0xFF)

    # The guest's side.

    def read(self, offset: int, size: int) -> int:
        """The value of `size` bytes at `offset`."""
        return _from(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Change the bits that may be written, clear those that are cleared by ones; the rest stays."""
        end = offset + size
        old = _from(self.data[offset:end], "little")
        mask = _from(self.write_mask[offset:end], "little")
        clear = _from(self.clear_mask[offset:end], "little")
        new = ((old & ~mask) | (value & mask)) & ~(value & clear)
        self.data[offset:end] = new.to_bytes(size, "little")

    # The device's side.

    get = read

    def set(self, offset: int, size: int, value: int) -> None:
        """Store a value whatever the masks say; a reset forgets it."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")

    def allow(self, offset: int, size: int, mask: int, clear: int = 0) -> None:
        """Let a guest write the bits of `mask` and clear those of `clear` by writing ones."""
        self._check(offset, size)
        self.write_mask[offset : offset + size] = mask.to_bytes(size, "little")
        self.clear_mask[offset : offset + size] = clear.to_bytes(size, "little")

    def define(self, offset: int, size: int, value: int, mask: int = 0, clear: int = 0) -> None:
        """Declare a register: its value after reset, the bits a guest may write, the bits it clears by ones."""
        self.allow(offset, size, mask, clear)
        self.declared[offset : offset + size] = b"\1" * size
        self.set(offset, size, value)
        self.reset_data[offset : offset + size] = self.data[offset : offset + size]

    def add_capability(self, cap_id: int, body: bytes, writable: bytes = b"", offset: int = 0) -> int:
        """Put a capability at the head of the list and return where it is.

        `body` follows the two bytes of id and next pointer; `writable` is the write mask of the body. `offset` 0 means
        the first free place, aligned to 4. ConfigError if there is none. Ref: PCI 3.0, 6.7.
        """
        length = 2 + len(body)
        if not offset:
            offset = self._free_place(length)
        elif offset % 4 or offset < HEADER_SIZE:
            raise ConfigError(f"capability {cap_id:#x}: {offset:#x} is no place for one: 4-aligned, from 0x40 on")
        self._check(offset, length)
        following = self.data[CAPABILITY_LIST]
        self.define(offset, length, _from(bytes((cap_id, following)) + body, "little"))
        self.write_mask[offset + 2 : offset + 2 + len(writable)] = writable
        self.define(CAPABILITY_LIST, 1, offset)
        self.define(STATUS, 2, self.get(STATUS, 2) | STATUS_CAPABILITIES, clear=STATUS_WRITE_ONE_TO_CLEAR)
        return offset

    def capabilities(self) -> list[tuple[int, int]]:
        """(capability id, offset) in the order of the list, as a guest finds them."""
        found: list[tuple[int, int]] = []
        offset = self.data[CAPABILITY_LIST]
        while offset and len(found) < CONFIG_SIZE // 4:
            found.append((self.data[offset], offset))
            offset = self.data[offset + 1]
        return found

    def find_capability(self, cap_id: int) -> int | None:
        """Where the capability with this id is."""
        return next((offset for found, offset in self.capabilities() if found == cap_id), None)

    def reset(self) -> None:
        """Every byte as it was declared."""
        self.data[:] = self.reset_data

    def load(self, data: bytes) -> None:
        """Be `data` where a guest may write, and as declared elsewhere. ValueError if it is another function's."""
        if len(data) != CONFIG_SIZE:
            raise ValueError(f"{len(data)} bytes are no configuration space")
        for offset in range(CONFIG_SIZE):
            mask = self.write_mask[offset]
            fixed = ~(mask | self.clear_mask[offset]) & 0xFF
            if offset in (STATUS, STATUS + 1):
                continue  # follows from what the device does
            if (data[offset] ^ self.reset_data[offset]) & fixed and offset < HEADER_SIZE:
                raise ValueError(f"byte {offset:#x} is {data[offset]:#04x} and cannot be")
            self.data[offset] = self.reset_data[offset] & ~mask & 0xFF | data[offset] & mask

    def header(self) -> Any:
        """The first 64 bytes by name (a construct Container)."""
        return TYPE0_HEADER.parse(bytes(self.data[:HEADER_SIZE]))

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size <= 0 or offset + size > CONFIG_SIZE:
            raise ConfigError(f"{offset:#x}+{size:#x} is outside the 256 bytes of configuration space")

    def _free_place(self, length: int) -> int:
        offset = HEADER_SIZE
        while offset + length <= CONFIG_SIZE:
            span = slice(offset, offset + length)
            if not any(self.declared[span]) and not any(self.data[span]) and not any(self.write_mask[span]):
                return offset
            offset += 4
        raise ConfigError(f"no room for a capability of {length} bytes in configuration space")
