"""The ACPI PCI hot-plug block at 0xae00, and GPE0 at 0xafe0 that tells the guest to look there.

A plug sets the slot's bit in PCIU, an unplug request the one in PCID; both set GPE0 status bit 1, which is the SCI if
it is enabled. The guest's _EJ0 writes the slot's bit to EJ, and whoever is in the slot goes. Nothing else makes a
device go but a reset, which ejects all slots whose unplug is pending.
Ref: QEMU docs/specs/acpi_pci_hotplug.rst; vectors qemu-qmp-transcript.jsonl, sessions pc and pc-acpi-gpe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import construct as c

from devices.device import Device
from vmm.errors import LifecycleError
from vmm.memory import IoRegion
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Board
    from devices.pci.bus import PciBus
    from devices.pci.device import PciDevice

HOTPLUG_BASE = 0xAE00
HOTPLUG_SIZE = 0x18
REG_PCIU = 0x00
REG_PCID = 0x04
REG_EJ = 0x08
REG_RMV = 0x0C
REG_BSEL = 0x10
REG_ACPI_INDEX = 0x14
MAX_BSEL = 256

GPE0_BASE = 0xAFE0
GPE0_SIZE = 4
GPE0_PCI_HOTPLUG = 0x0002
"""Bit 1: _E01 of the DSDT looks at the hot-plug block."""

HotplugRegisters = c.Struct(
    "up" / c.Int32ul,
    "down" / c.Int32ul,
    "eject" / c.Int32ul,
    "removable" / c.Int32ul,
    "bus_select" / c.Int32ul,
    "acpi_index" / c.Int32ul,
)
"""The block at 0xae00, accessed by dwords."""

Gpe0Registers = c.Struct("status" / c.Int16ul, "enable" / c.Int16ul)
"""The block at 0xafe0. Status bits are cleared by writing ones. Ref: ACPI 6.5, 4.8.4.1."""

_NS_PER_MS = 1_000_000


class AcpiPciUpRead(Event):
    """The guest read PCIU, which clears it."""

    value: int


class AcpiPciDownRead(Event):
    """The guest read PCID."""

    value: int


class AcpiPciEjWrite(Event):
    """The guest ejects: `value` is what it wrote to EJ."""

    bsel: int
    value: int


class AcpiPciEjectSlot(Event):
    """Whoever is in `slot` goes."""

    slot: int


class AcpiGpe0(Event):
    """GPE0 changed; `level` is what it asks of the SCI."""

    status: int
    enable: int
    level: bool


class Line(Protocol):
    """Where GPE0 asserts the SCI: a LevelLine, or what the power management block gives out."""

    def set(self, level: bool) -> None:
        """Drive it."""


class AcpiPciHotplug(Device):
    """The hot-plug controller of one bus.

    The machine calls `device_added` after a hot-plug, `request_unplug` for device_del, `reset` with the rest of the
    board, and removes the functions of a slot when the callback given to `on_eject` names it.
    """

    driver = "acpi-pci-hotplug"
    description = "ACPI PCI hot-plug controller"
    user_creatable = False

    def __init__(self, id: str | None = None, *, bus: PciBus, sci: Line, **values: Any) -> None:
        super().__init__(id, **values)
        self.pci = bus
        self.sci = sci
        self.up = 0
        """Slots with a device that the guest has not looked at (PCIU)."""
        self.down = 0
        """Slots whose unplug was requested and is not done (PCID)."""
        self.bus_select = 0
        self.gpe_status = 0
        self.gpe_enable = 0
        self._index_slot: int | None = None
        self._requested: dict[PciDevice, int] = {}
        self._waiting: dict[PciDevice, list[int]] = {}
        """Unplugs asked for: when (ns), and whether the guest has read PCID since."""
        self._eject: Callable[[int], object] | None = None

    def realize(self, board: Board) -> None:
        """Answer at 0xae00 and 0xafe0."""
        super().realize(board)
        self.map_ports(HOTPLUG_BASE, IoRegion("acpi-pci-hotplug", HOTPLUG_SIZE, self.read, self.write, max_access=4))
        self.map_ports(GPE0_BASE, IoRegion("acpi-gpe0", GPE0_SIZE, self.gpe_read, self.gpe_write, max_access=1))

    # The machine's side.

    def on_eject(self, callback: Callable[[int], object]) -> None:
        """Call `callback(slot)` when a slot is ejected: the machine removes its functions (`bus.slot_devices`)."""
        self._eject = callback

    def device_added(self, device: PciDevice) -> None:
        """Tell the guest to look at the slot of a device that was hot-plugged."""
        self.up |= 1 << device.slot
        self._raise_gpe()

    def request_unplug(self, device: PciDevice) -> None:
        """Ask the guest to eject the slot of `device`. It stays, and answers, until the guest does.

        LifecycleError in QEMU's words if the last request for it still stands. A request stands until the millisecond
        of the machine's clock in which it was made, and one made at 0 ms for ever: QEMU's rule, which in a running
        machine lets a user ask again at any time.
        """
        now = self.board.clock.now() // _NS_PER_MS
        stands = self._requested.get(device)
        if stands is not None and (stands == 0 or stands > now):
            name = device.id or "(null)"
            raise LifecycleError(
                name, "unplug-requested", "device_del", f"Device {name} is already in the process of unplug"
            )
        self._requested[device] = now
        self._waiting.setdefault(device, [self.board.clock.now(), 0])[1] = 0
        self.down |= 1 << device.slot
        self._raise_gpe()

    @property
    def pending_slots(self) -> list[int]:
        """Slots whose unplug was requested and is not done."""
        return [slot for slot in range(32) if self.down >> slot & 1]

    def waiting(self) -> list[tuple[PciDevice, int, str]]:
        """Unplugs that are not done: the device, when it was first asked for, and what is waited for.

        `gpe-enable`: the guest does not listen to GPE0. `sci`: its handler has not looked yet. `eject`: it has looked,
        and a driver or the guest's user keeps the device.
        """
        rows = []
        for device, (since, seen) in self._waiting.items():
            listens = self.gpe_enable & GPE0_PCI_HOTPLUG
            rows.append((device, since, "eject" if seen else "sci" if listens else "gpe-enable"))
        return rows

    def reset(self) -> None:
        """Eject all that is pending, clear GPE0. What PCIU shows stays: the devices are there, and new."""
        super().reset()
        self.gpe_status = self.gpe_enable = 0
        self._update_sci()
        self.bus_select = 0
        self._index_slot = None
        while self.down:
            slot = (self.down & -self.down).bit_length() - 1
            self.down &= ~(1 << slot)  # also where nobody is left
            self.eject_slot(slot)

    # The guest's side.

    def read(self, offset: int, size: int) -> int:
        """A register of the block. Registers of a bus that BSEL does not name are empty."""
        if size != 4:
            return 0
        here = self.bus_select == self.pci.number
        trace = self.board.trace
        if self.bus_select > MAX_BSEL:
            return 0
        if offset == REG_PCIU:
            value = self.up if here else 0
            if here:
                self.up = 0
            if trace.on:
                trace.emit(AcpiPciUpRead(value))
            return value
        if offset == REG_PCID:
            value = self.down if here else 0
            if value:
                for request in self._waiting.values():
                    request[1] = 1
            if trace.on:
                trace.emit(AcpiPciDownRead(value))
            return value
        if offset == REG_RMV:
            return self.removable() if here else 0xFFFF_FFFF
        if offset == REG_BSEL:
            return self.bus_select
        if offset == REG_ACPI_INDEX:
            return self._acpi_index() if here else 0
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Eject, select a bus, or select the slot whose acpi-index is asked for."""
        if size != 4:
            return
        if offset == REG_EJ:
            trace = self.board.trace
            if trace.on:
                trace.emit(AcpiPciEjWrite(self.bus_select, value))
            if value and self.bus_select == self.pci.number:
                self.eject_slot((value & -value).bit_length() - 1)  # one slot a write, as in QEMU
        elif offset == REG_BSEL:
            self.bus_select = value
        elif offset == REG_ACPI_INDEX:
            self._index_slot = (value & -value).bit_length() - 1 if value else None

    def removable(self) -> int:
        """RMV: a bit for each slot that holds nothing that is not hot-pluggable."""
        mask = 0xFFFF_FFFF
        for device in self.pci.all_devices():
            if not device.hotpluggable:
                mask &= ~(1 << device.slot)
        return mask

    def _acpi_index(self) -> int:
        if self._index_slot is None:
            return 0
        devices = self.pci.slot_devices(self._index_slot)
        return int(devices[0].values.get("acpi-index", 0)) if devices else 0

    def eject_slot(self, slot: int) -> None:
        """Let go of a slot, asked for or not; one that is not hot-pluggable stays."""
        if not self.removable() >> slot & 1:
            return
        trace = self.board.trace
        if trace.on:
            trace.emit(AcpiPciEjectSlot(slot))
        if self.forget(slot) and self._eject is not None:
            self._eject(slot)

    def forget(self, slot: int) -> list[PciDevice]:
        """Nothing is pending for a slot any more: whoever is in it goes. These are returned."""
        self.down &= ~(1 << slot)
        self.up &= ~(1 << slot)
        devices = self.pci.slot_devices(slot)
        for device in devices:
            self._requested.pop(device, None)
            self._waiting.pop(device, None)
        return devices

    # GPE0.

    def gpe_read(self, offset: int, size: int) -> int:  # noqa: ARG002
        """A byte of status (0, 1) or enable (2, 3)."""
        register = self.gpe_status if offset < 2 else self.gpe_enable
        return register >> 8 * (offset & 1) & 0xFF

    def gpe_write(self, offset: int, size: int, value: int) -> None:  # noqa: ARG002
        """Clear status bits by ones, or set a byte of enable."""
        shift = 8 * (offset & 1)
        if offset < 2:
            self.gpe_status &= ~(value << shift)
        else:
            self.gpe_enable = self.gpe_enable & ~(0xFF << shift) | value << shift
        self._update_sci()

    def _raise_gpe(self) -> None:
        self.gpe_status |= GPE0_PCI_HOTPLUG
        self._update_sci()

    def _update_sci(self) -> None:
        level = bool(self.gpe_status & self.gpe_enable)
        trace = self.board.trace
        if trace.on:
            trace.emit(AcpiGpe0(self.gpe_status, self.gpe_enable, level))
        self.sci.set(level)
