r"""The DSDT: soft-off, the PCI host bridge with its windows and interrupt routing, and hot-plug of its slots.

Interrupts are routed without link devices, straight to the pins that the firmware's PIRQ setting gives
(`vmm.boot.firmware.PIRQ_IRQS`): an operating system that uses the IOAPIC sees level-triggered GSIs 10 and 11. Every
slot that takes a hot-plug has a device object with _SUN and _EJ0, and GPE 1 notifies those that changed.
Ref: ACPI 6.4, 6.2.13 (_PRT), 6.3 (device insertion and removal), 5.6.4.1 (GPE methods);
QEMU docs/specs/acpi_pci_hotplug.
"""

from __future__ import annotations

from functools import cache

from vmm.boot import aml
from vmm.boot.firmware import MEMORY_BASE, MEMORY_END, PIRQ_IRQS, SCI

HOTPLUG_BASE = 0xAE00
"""PCIU, PCID, B0EJ, RMV and BNUM, a dword each."""
FIRST_HOTPLUG_SLOT = 2
SLOTS = 32
BRIDGE_SLOT = 1
INT_PINS = 4
S5_TYPE = 0
CONFIG_PORTS = 0xCF8
CONFIG_LENGTH = 8
BRIDGE = r"\_SB.PCI0"


def slot_name(slot: int) -> str:
    """Name of a slot's device object: S, and its function 0 in hexadecimal, as QEMU names it."""
    return f"S{slot << 3:02X}"


def routing() -> bytes:
    """_PRT: {slot and any function, INTx, no link device, GSI}."""
    entries = []
    for slot in range(1, SLOTS):
        for pin in range(INT_PINS):
            gsi = SCI if slot == BRIDGE_SLOT and pin == 0 else PIRQ_IRQS[(slot - 1 + pin) % INT_PINS]
            entries.append(aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), aml.ZERO, aml.integer(gsi)))
    return aml.name("_PRT", aml.package(*entries))


def _windows() -> bytes:
    return aml.name(
        "_CRS",
        aml.resource_template(
            aml.bus_range(0, 0xFF),
            aml.io(CONFIG_PORTS, CONFIG_LENGTH),
            aml.io_range(0, CONFIG_PORTS - 1),
            aml.io_range(CONFIG_PORTS + CONFIG_LENGTH, HOTPLUG_BASE - 1),
            aml.io_range(0xB000, 0xFFFF),
            aml.memory_range(0xA0000, 0xBFFFF),
            aml.memory_range(MEMORY_BASE, MEMORY_END - 1),
        ),
    )


def _slot(slot: int) -> bytes:
    eject = (
        aml.store(aml.ZERO, aml.path(f"{BRIDGE}.BNUM")),
        aml.store(aml.integer(1 << slot), aml.path(f"{BRIDGE}.B0EJ")),
    )
    return aml.device(
        slot_name(slot),
        aml.name("_ADR", aml.integer(slot << 16)),
        aml.name("_SUN", aml.integer(slot)),
        aml.method("_EJ0", 1, *eject),
    )


def _changed() -> bytes:
    """GPE 1: read both registers once (PCIU is cleared by that), then tell every slot that has a bit."""
    up, down = aml.local(0), aml.local(1)
    terms = [
        aml.store(aml.ZERO, aml.path(f"{BRIDGE}.BNUM")),
        aml.store(aml.path(f"{BRIDGE}.PCIU"), up),
        aml.store(aml.path(f"{BRIDGE}.PCID"), down),
    ]
    for slot in range(FIRST_HOTPLUG_SLOT, SLOTS):
        target, bit = f"{BRIDGE}.{slot_name(slot)}", aml.integer(1 << slot)
        terms.append(aml.if_(aml.bit_and(up, bit), aml.notify(target, aml.NOTIFY_DEVICE_CHECK)))
        terms.append(aml.if_(aml.bit_and(down, bit), aml.notify(target, aml.NOTIFY_EJECT_REQUEST)))
    return aml.scope(r"\_GPE", aml.method("_E01", 0, *terms))


@cache
def build() -> bytes:
    """The AML, without its table header."""
    registers = [("PCIU", 32), ("PCID", 32), ("B0EJ", 32), ("RMV", 32), ("BNUM", 32)]
    bridge = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A03")),
        aml.name("_ADR", aml.ZERO),
        aml.name("_UID", aml.ZERO),
        _windows(),
        routing(),
        aml.operation_region("PHPR", aml.SYSTEM_IO, HOTPLUG_BASE, 4 * len(registers)),
        aml.field("PHPR", aml.DWORD_ACCESS, registers),
        *(_slot(slot) for slot in range(FIRST_HOTPLUG_SLOT, SLOTS)),
    )
    soft_off = aml.name("_S5", aml.package(*[aml.integer(S5_TYPE)] * 4))
    return soft_off + aml.scope(r"\_SB", bridge) + _changed()
