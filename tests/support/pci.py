"""A board with a PCI bus: the i440FX, the PIIX3 with its power management function, and the hot-plug block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from devices.pci.host import I440FX, I440FXPciHost
from devices.pci.hotplug import AcpiPciHotplug
from devices.pci.piix3 import Piix3, Piix4Pm
from support.board import FakeBoard
from vmm.memory import IoRegion

if TYPE_CHECKING:
    from devices.pci.device import PciDevice

    Plugged = TypeVar("Plugged", bound=PciDevice)

SCI = 9
PIIX3_DEVFN = 1 << 3
PM_DEVFN = 1 << 3 | 3


class FakePm:
    """Stands in for the ACPI registers: remembers where they were put, and answers PM1 control there."""

    def __init__(self, board: PciBoard) -> None:
        self.board = board
        self.base: int | None = None
        self.mapping = None
        self.region = IoRegion("acpi-pm", 0x40, lambda offset, _: offset, lambda *_: None)

    def set_base(self, base: int, enabled: bool) -> None:
        if self.mapping is not None:
            self.mapping.close()
            self.mapping = None
        self.base = base if enabled else None
        if enabled:
            self.mapping = self.board.ports.map(base, self.region)


class PciBoard(FakeBoard):
    """A FakeBoard with `host`, `bus`, `piix3`, `pm_function`, `hotplug`; ejected slots lose their devices."""

    def __init__(self, ram: int = 1 << 20, trace: bool = False) -> None:
        super().__init__(ram, trace)
        self.deleted: list[str | None] = []
        self.host = I440FXPciHost()
        self.host.realize(self)
        self.bus = self.host.pci
        self.i440fx = self.plug(I440FX(addr=0))
        self.piix3 = self.plug(Piix3(addr=PIIX3_DEVFN))
        self.pm = FakePm(self)
        self.pm_function = self.plug(Piix4Pm(pm=self.pm, addr=PM_DEVFN))
        self.hotplug = AcpiPciHotplug(bus=self.bus, sci=self.isa_irq("sci", SCI))
        self.hotplug.realize(self)
        self.hotplug.on_eject(self._ejected)

    def plug(self, device: Plugged, hot: bool = False) -> Plugged:
        """Realize a device on the bus; whatever it raises, it holds nothing then."""
        device.bus = self.bus
        device.hotplugged = hot
        try:
            device.realize(self)
        except Exception:
            device.holdings.close()
            raise
        if hot:
            self.hotplug.device_added(device)
        return device

    def _ejected(self, slot: int) -> None:
        for device in self.bus.slot_devices(slot):
            device.unrealize()
            self.deleted.append(device.id)

    def reset(self) -> None:
        """What system_reset does to these devices."""
        self.host.reset()
        self.hotplug.reset()
        for device in self.bus.all_devices():
            device.reset()

    def config_read(self, devfn: int, offset: int, size: int = 4) -> int:
        """A guest's configuration read through 0xcf8 and 0xcfc."""
        self.outl(0xCF8, 0x8000_0000 | devfn << 8 | offset & ~3)
        return self.ports.read(0xCFC + (offset & 3), size)

    def config_write(self, devfn: int, offset: int, value: int, size: int = 4) -> None:
        """A guest's configuration write through 0xcf8 and 0xcfc."""
        self.outl(0xCF8, 0x8000_0000 | devfn << 8 | offset & ~3)
        self.ports.write(0xCFC + (offset & 3), size, value)

    def route(self, *irqs: int) -> None:
        """Write PIRQRC[A:D]."""
        for pirq, irq in enumerate(irqs):
            self.config_write(PIIX3_DEVFN, 0x60 + pirq, irq, 1)

    def ledger_of(self, device: PciDevice) -> list[Any]:
        """What a device holds."""
        return self.ledger.rows(device.holdings.owner)
