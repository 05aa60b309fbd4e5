"""What `query-pci` and `info pci` show of a bus, as plain data. `as_qmp` gives QEMU's reply.

Ref: QEMU qapi/pci.json; `vectors qemu-qmp-transcript.jsonl`, session pc.
"""

from __future__ import annotations

from typing import Any, NamedTuple

UNMAPPED = -1
"""Address of a BAR that answers nowhere."""

CLASS_DESCRIPTIONS = {
    0x0001: "VGA controller",
    0x0100: "SCSI controller",
    0x0101: "IDE controller",
    0x0102: "Floppy controller",
    0x0103: "IPI controller",
    0x0104: "RAID controller",
    0x0106: "SATA controller",
    0x0107: "SAS controller",
    0x0180: "Storage controller",
    0x0200: "Ethernet controller",
    0x0201: "Token Ring controller",
    0x0202: "FDDI controller",
    0x0203: "ATM controller",
    0x0280: "Network controller",
    0x0300: "VGA controller",
    0x0301: "XGA controller",
    0x0302: "3D controller",
    0x0380: "Display controller",
    0x0400: "Video controller",
    0x0401: "Audio controller",
    0x0480: "Multimedia controller",
    0x0500: "RAM controller",
    0x0501: "Flash controller",
    0x0580: "Memory controller",
    0x0600: "Host bridge",
    0x0601: "ISA bridge",
    0x0602: "EISA bridge",
    0x0603: "MC bridge",
    0x0604: "PCI bridge",
    0x0605: "PCMCIA bridge",
    0x0606: "NUBUS bridge",
    0x0607: "CARDBUS bridge",
    0x0680: "Bridge",
    0x0700: "Serial port",
    0x0701: "Parallel port",
    0x0900: "Keyboard",
    0x0901: "Pen",
    0x0902: "Mouse",
    0x0C00: "Firewire controller",
    0x0C01: "Access bus controller",
    0x0C02: "SSA controller",
    0x0C03: "USB controller",
    0x0C04: "Fibre channel controller",
    0x0C05: "SMBus",
}
"""Base class and subclass to QEMU's name for it; classes that are not here have no `desc`."""


class PciRegionInfo(NamedTuple):
    """A BAR. `kind` is `io` or `memory`; `address` is `UNMAPPED` until the guest maps it."""

    bar: int
    kind: str
    size: int
    address: int = UNMAPPED
    prefetch: bool = False
    mem_type_64: bool = False

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type PciMemoryRegion."""
        reply: dict[str, Any] = {}
        if self.kind == "memory":
            reply = {"prefetch": self.prefetch, "mem_type_64": self.mem_type_64}
        reply.update(bar=self.bar, size=self.size, address=self.address, type=self.kind)
        return reply


class PciRangeInfo(NamedTuple):
    """A window of a bridge, both ends included."""

    base: int
    limit: int

    def as_qmp(self) -> dict[str, int]:
        """The QAPI type PciMemoryRange."""
        return {"base": self.base, "limit": self.limit}


class PciBridgeInfo(NamedTuple):
    """The bus numbers and windows of a PCI-to-PCI bridge, and what is behind it."""

    number: int
    secondary: int
    subordinate: int
    io_range: PciRangeInfo
    memory_range: PciRangeInfo
    prefetchable_range: PciRangeInfo
    devices: tuple[PciDeviceInfo, ...] = ()

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type PciBridgeInfo."""
        reply: dict[str, Any] = {
            "bus": {
                "number": self.number,
                "secondary": self.secondary,
                "subordinate": self.subordinate,
                "io_range": self.io_range.as_qmp(),
                "memory_range": self.memory_range.as_qmp(),
                "prefetchable_range": self.prefetchable_range.as_qmp(),
            }
        }
        if self.devices:
            reply["devices"] = [device.as_qmp() for device in self.devices]
        return reply


class PciDeviceInfo(NamedTuple):
    """One function on a PCI bus.

    `class_code` is base class and subclass (0x0600 for a host bridge); `irq_pin` 0 is none, 1 is INTA#; `irq` is what
    the guest wrote into INTERRUPT_LINE, shown only where there is a pin.
    """

    bus: int
    slot: int
    function: int
    vendor: int
    device: int
    class_code: int
    class_desc: str = ""
    subsystem_vendor: int | None = None
    subsystem: int | None = None
    irq: int = 0
    irq_pin: int = 0
    qdev_id: str = ""
    regions: tuple[PciRegionInfo, ...] = ()
    bridge: PciBridgeInfo | None = None

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type PciDeviceInfo."""
        class_info: dict[str, Any] = {"class": self.class_code}
        if self.class_desc:
            class_info["desc"] = self.class_desc
        ids = {"device": self.device, "vendor": self.vendor}
        if self.subsystem_vendor is not None:
            ids["subsystem-vendor"] = self.subsystem_vendor
        if self.subsystem is not None:
            ids["subsystem"] = self.subsystem
        reply: dict[str, Any] = {"irq_pin": self.irq_pin, "bus": self.bus}
        if self.bridge is not None:
            reply["pci_bridge"] = self.bridge.as_qmp()
        reply["qdev_id"] = self.qdev_id
        if self.irq_pin:
            reply["irq"] = self.irq
        reply.update(slot=self.slot, class_info=class_info, id=ids, function=self.function)
        reply["regions"] = [region.as_qmp() for region in self.regions]
        return reply


class PciInfo(NamedTuple):
    """A root bus with its devices (`query-pci`)."""

    bus: int
    devices: tuple[PciDeviceInfo, ...] = ()

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type PciInfo."""
        return {"bus": self.bus, "devices": [device.as_qmp() for device in self.devices]}
