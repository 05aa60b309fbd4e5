"""What `query-pci` and `info pci` show of a bus, as plain data. `as_qmp` gives QEMU's reply.

Ref: QEMU qapi/pci.json; `vectors qemu-qmp-transcript.jsonl`, session pc.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, slots=True)
class PciRegionInfo:
    """A BAR (QAPI PciMemoryRegion). `kind` is "io" or "memory"; `address` -1 while it answers nowhere."""

    bar: int
    kind: str
    address: int
    size: int
    prefetch: bool = False
    mem_type_64: bool = False

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type PciMemoryRegion."""
        reply: dict[str, Any] = {"bar": self.bar, "type": self.kind, "address": self.address, "size": self.size}
        if self.kind == "memory":
            reply |= {"prefetch": self.prefetch, "mem_type_64": self.mem_type_64}
        return reply


@dataclass(frozen=True, slots=True)
class PciDeviceInfo:
    """A function (QAPI PciDeviceInfo). `irq` is INTERRUPT_LINE, shown only where there is a pin."""

    bus: int
    slot: int
    function: int
    vendor: int
    device: int
    class_code: int
    subsystem_vendor: int
    subsystem: int
    irq: int
    irq_pin: int
    qdev_id: str
    regions: tuple[PciRegionInfo, ...]
    bridge: None = None
    """There are no PCI-to-PCI bridges."""

    @property
    def class_desc(self) -> str:
        """QEMU's name of the class, or ""."""
        return CLASS_DESCRIPTIONS.get(self.class_code, "")

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type PciDeviceInfo."""
        class_info: dict[str, Any] = {"class": self.class_code}
        if self.class_desc:
            class_info["desc"] = self.class_desc
        reply: dict[str, Any] = {
            "bus": self.bus,
            "slot": self.slot,
            "function": self.function,
            "class_info": class_info,
            "id": {
                "device": self.device,
                "vendor": self.vendor,
                "subsystem": self.subsystem,
                "subsystem-vendor": self.subsystem_vendor,
            },
            "irq_pin": self.irq_pin,
            "qdev_id": self.qdev_id,
            "regions": [region.as_qmp() for region in self.regions],
        }
        if self.irq_pin:
            reply["irq"] = self.irq
        return reply


@dataclass(frozen=True, slots=True)
class PciInfo:
    """A root bus with its functions, by address (QAPI PciInfo)."""

    bus: int
    devices: tuple[PciDeviceInfo, ...]

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type PciInfo."""
        return {"bus": self.bus, "devices": [device.as_qmp() for device in self.devices]}
