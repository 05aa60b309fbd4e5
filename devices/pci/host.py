"""The i440FX: PCI host bridge and configuration mechanism #1.

`I440FXPciHost` is the board's side: ports 0xcf8 (CONFADD) and 0xcfc (CONFDATA), and the bus behind them. `I440FX` is
function 00:00.0, where the guest finds it.
Ref: 290549 (440FX data sheet), 3.1 (I/O mapped registers), 3.2 (configuration registers); PCI 3.0, 3.2.2.3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Device
from devices.pci.bus import PciBus
from devices.pci.device import PciDevice
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from devices.device import Board
    from devices.pci.config import ConfigSpace

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC

ConfigAddress = c.ByteSwapped(
    c.BitStruct(
        "enable" / c.Flag,
        c.Padding(7),
        "bus" / c.BitsInteger(8),
        "device" / c.BitsInteger(5),
        "function" / c.BitsInteger(3),
        "register" / c.BitsInteger(6),
        c.Padding(2),
    )
)
"""CONFADD, port 0xcf8, accessed only as a dword. Ref: 290549, 3.1.1."""

_ENABLE = 1 << 31
_ALL_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}


class PciCfgRead(Event):
    """A guest read configuration space through the host bridge."""

    bus: int
    slot: int
    function: int
    offset: int
    value: int


class I440FXPciHost(Device):
    """The host bridge as the CPU sees it: two ports. `pci` is bus pci.0."""

    driver = "i440FX-pcihost"
    description = "PCI host bridge with configuration mechanism #1"
    user_creatable = False

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        self.pci = PciBus()
        self.config_address = 0

    def realize(self, board: Board) -> None:
        """Answer at 0xcf8 and 0xcfc."""
        super().realize(board)
        # Priority 0 as all board ports, but above any BAR that a guest puts here.
        for base, region in (
            (CONFIG_ADDRESS, IoRegion("pci-conf-idx", 4, self.address_read, self.address_write, min_access=4)),
            (CONFIG_DATA, IoRegion("pci-conf-data", 4, self.data_read, self.data_write)),
        ):
            mapping = board.ports.map(base, region, priority=2)
            self.holdings.hold("port-region", f"{region.name}@{base:#x}", mapping.close)

    def reset(self) -> None:
        """CONFADD is 0."""
        self.config_address = 0

    def address_read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """CONFADD."""
        return self.config_address

    def address_write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """CONFADD. A byte or word write is none: it goes to whoever else is at that port (0xcf9 is)."""
        self.config_address = value

    def data_read(self, offset: int, size: int) -> int:
        """The register that CONFADD names; all ones if it names none."""
        address = self.config_address
        if not address & _ENABLE or (address >> 16) & 0xFF != self.pci.number:
            return _ALL_ONES[size]
        devfn = address >> 8 & 0xFF
        register = _register(address, offset, size)
        if offset + size > 4:
            return _ALL_ONES[size]
        value = self.pci.config_read(devfn, register, size)
        trace = self.board.trace
        if trace.on:
            trace.emit(PciCfgRead(self.pci.number, devfn >> 3, devfn & 7, register, value))
        return value

    def data_write(self, offset: int, size: int, value: int) -> None:
        """The register that CONFADD names; lost if it names none."""
        address = self.config_address
        if address & _ENABLE and (address >> 16) & 0xFF == self.pci.number and offset + size <= 4:
            self.pci.config_write(address >> 8 & 0xFF, _register(address, offset, size), size, value)


def _register(address: int, offset: int, size: int) -> int:
    """The byte that an access means. Bits 1:0 of CONFADD are reserved; QEMU's bridge ORs them into the port's, and
    libqos counts on it for bytes and words. Where that would leave the dword they are ignored.
    """
    register = address & 0xFF | offset
    return register if (register & 3) + size <= 4 else (address & 0xFC) + offset


class I440FX(PciDevice):
    """Function 00:00.0. Its DRAM, PAM and SMRAM registers can be written and read; RAM is everywhere regardless."""

    driver = "i440FX"
    description = "Host bridge"
    user_creatable = False
    hotpluggable = False
    vendor_id, device_id, class_id, revision = 0x8086, 0x1237, 0x0600, 0x02

    def make_config(self) -> ConfigSpace:
        """Chipset registers from 0x40 on. Ref: 290549, table 3-2."""
        config = super().make_config()
        config.define(0x40, 0xC0, 0, mask=(1 << 8 * 0xC0) - 1)
        config.define(0x57, 1, 0x10, mask=0xFF)  # DRAMC
        config.define(0x72, 1, 0x02, mask=0xFF)  # SMRAM
        return config
