"""A PCI bus: slots and functions, configuration cycles, and the four interrupt wires.

INTx of a function reaches PIRQ (slot + pin - 1) & 3 with pin 0 for INTA#, the swizzle of the i440FX board. Each PIRQ is
one `Wire`, the OR of all functions on it; the ISA bridge connects the wires to IRQs and tells the bus its routing,
so that who wants to know (a VFIO device does) can ask which GSI its line reaches and be told of changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.pci.info import PciInfo
from vmm.errors import ConfigError, InUse
from vmm.lines import Wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.pci.device import PciDevice

PIRQS = 4
SLOTS = 32
FUNCTIONS = 8

_ALL_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}


def slot_of(devfn: int) -> int:
    """The slot (device number) of a devfn."""
    return devfn >> 3


def function_of(devfn: int) -> int:
    """The function number of a devfn."""
    return devfn & 7


def pirq_of(devfn: int, pin: int) -> int:
    """Which PIRQ (0..3: A..D) a pin (1..4: INTA#..INTD#) reaches. Ref: vectors qemu-intx-paths.json, pc."""
    return ((devfn >> 3) + pin - 2) & (PIRQS - 1)


class RouteSubscription:
    """What `PciBus.on_route_change` returns; `close` ends it."""

    __slots__ = ("_bus", "callback")

    def __init__(self, bus: PciBus, callback: Callable[[], None]) -> None:
        self._bus = bus
        self.callback = callback

    def close(self) -> None:
        """Be told no more. A second close does nothing."""
        if self in self._bus.route_subscriptions:
            self._bus.route_subscriptions.remove(self)


class PciBus:
    """A bus of 32 slots with 8 functions each. `devices` is indexed by devfn (slot << 3 | function)."""

    bus_type = "PCI"

    def __init__(self, name: str = "pci.0", number: int = 0, hotpluggable: bool = True) -> None:
        self.name = name
        self.number = number
        self.hotpluggable = hotpluggable
        self.devices: list[PciDevice | None] = [None] * (SLOTS * FUNCTIONS)
        self.pirqs = tuple(Wire(f"PIRQ{letter}") for letter in "ABCD")
        self.route_subscriptions: list[RouteSubscription] = []
        self._route: Callable[[int], int | None] = lambda pirq: None  # noqa: ARG005

    # Slots.

    def find_devfn(self, device: PciDevice, devfn: int) -> int:
        """The devfn that `device` gets if it asks for `devfn` (-1: any free slot). Changes nothing.

        InUse or ConfigError, in QEMU's words, if it cannot have it. A hot-plugged function must come before function
        0 of its slot, because the guest scans a slot when function 0 appears.
        """
        name = device.driver
        if devfn < 0:
            devfn = next((d for d in range(0, len(self.devices), FUNCTIONS) if self.devices[d] is None), -1)
            if devfn < 0:
                raise InUse(f"PCI: no slot/function available for {name}, all in use or reserved")
        slot, function = slot_of(devfn), function_of(devfn)
        holder = self.devices[devfn]
        first = self.devices[devfn & ~7]
        if holder is not None:
            who = f"{holder.driver},id={holder.id or '(null)'}"
            raise InUse(
                f"PCI: slot {slot} function {function} not available for {name}, in use by {who}", holder=holder.path
            )
        if device.hotplugged and first is not None:
            raise InUse(
                f"PCI: slot {slot} function 0 already occupied by {first.driver}, "
                f"new func {name} cannot be exposed to guest.",
                holder=first.path,
            )
        if function:
            if first is not None and not first.multifunction:
                raise ConfigError(f"PCI: single function device can't be populated in function {slot:x}.{function:x}")
        elif not device.multifunction:
            for other in self.slot_devices(slot):
                raise ConfigError(
                    f"PCI: {slot:x}.0 indicates single function, "
                    f"but {slot:x}.{function_of(other.devfn):x} is already populated."
                )
        return devfn

    def attach(self, device: PciDevice, devfn: int) -> None:
        """Let `device` answer at `devfn`, which `find_devfn` gave."""
        if self.devices[devfn] is not None:
            raise InUse(f"PCI: {slot_of(devfn):02x}.{function_of(devfn)} is taken", holder=str(self.devices[devfn]))
        self.devices[devfn] = device

    def detach(self, devfn: int) -> None:
        """Nobody answers at `devfn` any more."""
        self.devices[devfn] = None

    def slot_devices(self, slot: int) -> list[PciDevice]:
        """The functions in a slot, lowest first."""
        return [device for device in self.devices[slot << 3 : (slot + 1) << 3] if device is not None]

    def all_devices(self) -> list[PciDevice]:
        """Every function on the bus by devfn."""
        return [device for device in self.devices if device is not None]

    # Configuration cycles.

    def visible(self, devfn: int) -> PciDevice | None:
        """Who answers configuration cycles at `devfn`: functions other than 0 do once function 0 is there."""
        device = self.devices[devfn]
        if device is not None and devfn & 7 and self.devices[devfn & ~7] is None:
            return None
        return device

    def config_read(self, devfn: int, offset: int, size: int) -> int:
        """A configuration read; all ones where nobody answers (master abort)."""
        device = self.visible(devfn)
        if device is None:
            return _ALL_ONES[size]
        return device.config_read(offset, size)

    def config_write(self, devfn: int, offset: int, size: int, value: int) -> None:
        """A configuration write; lost where nobody answers."""
        device = self.visible(devfn)
        if device is not None:
            device.config_write(offset, size, value)

    # Interrupt routing.

    def set_router(self, route: Callable[[int], int | None]) -> None:
        """The ISA bridge's answer to "which GSI does PIRQ n reach" (None: no one)."""
        self._route = route
        self.route_changed()

    def intx_route(self, device: PciDevice) -> int | None:
        """The GSI that INTx of `device` reaches now; None if it has no pin or its PIRQ is not routed."""
        if not device.interrupt_pin:
            return None
        return self._route(pirq_of(device.devfn, device.interrupt_pin))

    def on_route_change(self, callback: Callable[[], None]) -> RouteSubscription:
        """Call `callback()` after each change of routing, before a level moves to its new IRQ. Close it in the end."""
        subscription = RouteSubscription(self, callback)
        self.route_subscriptions.append(subscription)
        return subscription

    def route_changed(self) -> None:
        """Tell everybody who asked. The ISA bridge calls this."""
        for subscription in tuple(self.route_subscriptions):
            subscription.callback()

    # Queries.

    def query(self) -> PciInfo:
        """The bus as `query-pci` shows it; functions that are not visible yet too, as in QEMU."""
        return PciInfo(self.number, tuple(device.pci_info() for device in self.all_devices()))

    def __repr__(self) -> str:
        return f"<PciBus {self.name}: {len(self.all_devices())} functions>"
