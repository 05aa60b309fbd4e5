"""fw_cfg: how a guest asks the machine about itself, by ports 0x510/0x511 and by DMA at 0x514.

Ref: QEMU, docs/specs/fw_cfg.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Device
from vmm.chardev_options import split_options
from vmm.errors import ConfigError, InUse, UsageError
from vmm.memory import ALL_ONES, IoRegion

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Board

SIGNATURE = 0x00
ID = 0x01
UUID = 0x02
RAM_SIZE = 0x03
NOGRAPHIC = 0x04
NB_CPUS = 0x05
MACHINE_ID = 0x06
KERNEL_ADDR = 0x07
KERNEL_SIZE = 0x08
KERNEL_CMDLINE = 0x09
INITRD_ADDR = 0x0A
INITRD_SIZE = 0x0B
BOOT_DEVICE = 0x0C
NUMA = 0x0D
BOOT_MENU = 0x0E
MAX_CPUS = 0x0F
KERNEL_ENTRY = 0x10
KERNEL_DATA = 0x11
INITRD_DATA = 0x12
CMDLINE_ADDR = 0x13
CMDLINE_SIZE = 0x14
CMDLINE_DATA = 0x15
SETUP_ADDR = 0x16
SETUP_SIZE = 0x17
SETUP_DATA = 0x18
FILE_DIR = 0x19
FILE_FIRST = 0x20
FILE_SLOTS = 0x20
MAX_NAME = 55

ARCH_LOCAL = 0x8000
WRITE_CHANNEL = 0x4000
ACPI_TABLES = ARCH_LOCAL + 0
SMBIOS_ENTRIES = ARCH_LOCAL + 1
IRQ0_OVERRIDE = ARCH_LOCAL + 2
E820_TABLE = ARCH_LOCAL + 3
HPET = ARCH_LOCAL + 4

VERSION = 0x01
VERSION_DMA = 0x02
DMA_SIGNATURE = int.from_bytes(b"QEMU CFG", "big")

DMA_ERROR = 1 << 0
DMA_READ = 1 << 1
DMA_SKIP = 1 << 2
DMA_SELECT = 1 << 3
DMA_WRITE = 1 << 4

DmaAccess = c.Struct("control" / c.Int32ub, "length" / c.Int32ub, "address" / c.Int64ub)
"""What a guest leaves in memory for a DMA transfer; the selector is in bits 31:16 of `control`."""

FileEntry = c.Struct(
    "size" / c.Int32ub,
    "select" / c.Int16ub,
    "_reserved" / c.Const(0, c.Int16ub),
    "name" / c.PaddedString(MAX_NAME + 1, "ascii"),
)
FileDirectory = c.PrefixedArray(c.Int32ub, FileEntry)

_CHUNK = 1 << 20


@dataclass(slots=True)
class Item:
    """What is behind a selector. `changed`, if given, is told of each DMA write."""

    data: bytearray
    writable: bool = False
    changed: Callable[[], None] | None = None


class FwCfg(Device):
    """Items by selector, and files by name. Numbers are little-endian, as QEMU's x86 machines give them."""

    driver = "fw_cfg"
    description = "firmware configuration"
    user_creatable = False

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.items: dict[int, Item] = {}
        self.files: dict[str, Item] = {}
        self.selector = 0
        self.offset = 0
        self.dma_address = 0
        self._current: Item | None = None
        self.add_bytes(SIGNATURE, b"QEMU")
        self.add_u32(ID, VERSION | VERSION_DMA)
        self.add_bytes(UUID, bytes(16))
        for key in (NOGRAPHIC, BOOT_MENU):
            self.add_u16(key, 0)
        self._list_files()
        self.select(SIGNATURE)

    # What the machine offers.

    def add_bytes(self, key: int, data: bytes | bytearray) -> None:
        """Put `data` behind a selector, in place of what was there."""
        key &= ~WRITE_CHANNEL
        self.items[key] = Item(bytearray(data))
        if key == self.selector & ~WRITE_CHANNEL:
            self._current = self.items[key]

    def add_u16(self, key: int, value: int) -> None:
        """A 16-bit number."""
        self.add_bytes(key, value.to_bytes(2, "little"))

    def add_u32(self, key: int, value: int) -> None:
        """A 32-bit number."""
        self.add_bytes(key, value.to_bytes(4, "little"))

    def add_u64(self, key: int, value: int) -> None:
        """A 64-bit number."""
        self.add_bytes(key, value.to_bytes(8, "little"))

    def add_file(
        self, name: str, data: bytes, writable: bool = False, changed: Callable[[], None] | None = None
    ) -> None:
        """Offer a file in the directory; selectors follow the order of names, from 0x20 on.

        InUse if the name is taken, ConfigError if it is no name or there are 32 files already.
        """
        if not name or len(name) > MAX_NAME or not name.isascii() or not name.isprintable():
            raise ConfigError(f"fw_cfg file name {name!r}: want 1 to {MAX_NAME} printable ASCII characters")
        if name in self.files:
            raise InUse(f"duplicate fw_cfg file name: {name}", name)
        if len(self.files) >= FILE_SLOTS:
            raise ConfigError(f"no room for fw_cfg file {name}: there are {FILE_SLOTS} already")
        self.files[name] = Item(bytearray(data), writable, changed)
        self._list_files()

    def add_option(self, text: str) -> None:
        """An option as in `-fw_cfg name=opt/org.example/x,string=hello` or `...,file=PATH`. UsageError if it is not."""
        options: dict[str, str] = {}
        for i, part in enumerate(split_options(text)):
            key, equals, value = part.partition("=")
            if not equals and i == 0:
                key, value = "name", key
            elif not equals or key not in ("name", "file", "string"):
                raise UsageError(f"-fw_cfg {text}: Invalid parameter '{key}'; known are name, file, string")
            options[key] = value
        if not options.get("name") or ("file" in options) == ("string" in options):
            raise UsageError(f"-fw_cfg {text}: want name= and one of file= and string=")
        if "string" in options:
            data = options["string"].encode()
        else:
            try:
                data = Path(options["file"]).read_bytes()
            except OSError as error:
                raise UsageError(f"-fw_cfg {text}: can't load {options['file']}: {error.strerror}") from error
        try:
            self.add_file(options["name"], data)
        except ConfigError as error:
            raise UsageError(f"-fw_cfg {text}: {error}") from error

    def _list_files(self) -> None:
        names = sorted(self.files)
        for i, name in enumerate(names):
            self.items[FILE_FIRST + i] = self.files[name]
        entries = [
            {"size": len(self.files[name].data), "select": FILE_FIRST + i, "name": name} for i, name in enumerate(names)
        ]
        self.add_bytes(FILE_DIR, FileDirectory.build(entries))

    # Life.

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.map_ports(0x510, IoRegion("fw_cfg", 2, self._read_port, self._write_port, max_access=2))
        self.map_ports(0x514, IoRegion("fw_cfg.dma", 8, self._read_dma, self._write_dma))

    def reset(self) -> None:
        self.select(SIGNATURE)
        self.dma_address = 0

    # The guest's side.

    def select(self, key: int) -> None:
        """Go to the start of an item."""
        self.selector = key & 0xFFFF
        self.offset = 0
        self._current = self.items.get(self.selector & ~WRITE_CHANNEL)

    def _read_port(self, _offset: int, size: int) -> int:
        if size != 1:
            return 0
        item = self._current
        offset = self.offset
        if item is None or offset >= len(item.data):
            return 0
        self.offset = offset + 1
        return item.data[offset]

    def _write_port(self, offset: int, size: int, value: int) -> None:
        # Byte writes are the data register's, which is read-only for the guest.
        if size == 2 and offset == 0:
            self.select(value)

    def _read_dma(self, offset: int, size: int) -> int:
        data = DMA_SIGNATURE.to_bytes(8, "big")[offset : offset + size]
        return int.from_bytes(data, "little")

    def _write_dma(self, offset: int, size: int, value: int) -> None:
        # The register is big-endian: what the guest writes with OUT arrives swapped.
        value = int.from_bytes((value & ALL_ONES[size]).to_bytes(size, "little"), "big")
        if size == 8:
            self._transfer(value)
        elif size == 4 and offset == 0:
            self.dma_address = value << 32
        elif size == 4 and offset == 4:
            self._transfer(self.dma_address | value)

    def _transfer(self, gpa: int) -> None:
        self.dma_address = 0
        memory = self.board.memory
        if memory.locate(gpa, DmaAccess.sizeof()) < 0:
            return  # the guest cannot be told
        access = DmaAccess.parse(memory.read(gpa, DmaAccess.sizeof()))
        control = access.control
        if control & DMA_SELECT:
            self.select(control >> 16)
        ok = True
        if control & DMA_READ:
            ok = self._dma_read(access.address, access.length)
        elif control & DMA_WRITE:
            ok = self._dma_write(access.address, access.length)
        elif control & DMA_SKIP:
            self.offset = min(self.offset + access.length, self._size())
        memory.write(gpa, (0 if ok else DMA_ERROR).to_bytes(4, "big"))

    def _size(self) -> int:
        return len(self._current.data) if self._current is not None else 0

    def _dma_read(self, address: int, length: int) -> bool:
        memory = self.board.memory
        if memory.locate(address, length) < 0:
            return False
        data = self._current.data[self.offset : self.offset + length] if self._current is not None else b""
        memory.write(address, data)
        self.offset += len(data)
        for at in range(address + len(data), address + length, _CHUNK):  # behind the end an item is zero
            memory.write(at, bytes(min(_CHUNK, address + length - at)))
        return True

    def _dma_write(self, address: int, length: int) -> bool:
        item = self._current
        if item is None or not item.writable or self.offset + length > len(item.data):
            return False
        if self.board.memory.locate(address, length) < 0:
            return False
        item.data[self.offset : self.offset + length] = self.board.memory.read(address, length)
        self.offset += length
        if item.changed is not None:
            item.changed()
        return True
