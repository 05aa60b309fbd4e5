r"""The DSDT: soft-off, the PCI host bridge with its windows and interrupt routing, and hot-plug of its slots.

Interrupts are routed by four link devices, LNKA to LNKD, each of which is one PIRQRC of the ISA bridge: the operating
system chooses among `LINK_IRQS`, and finds what the firmware chose (`vmm.boot.firmware.PIRQ_IRQS`). A PIRQ's ISA
interrupt and its IOAPIC pin have the same number, so the links serve both. Every slot that takes a hot-plug has a
device object with _SUN and _EJ0, and GPE 1 notifies those that changed.
Ref: ACPI 6.4, 6.2.13 (_PRT), 6.2.2, 6.2.12, 6.2.16 (_CRS, _PRS, _SRS), 6.3 (device insertion and removal), 5.6.4.1 (GPE
methods); 290550 (82371SB), 2.2.7 (PIRQRC);
QEMU docs/specs/acpi_pci_hotplug.
"""

from __future__ import annotations

from functools import cache

from vmm.boot import aml
from vmm.boot.firmware import MEMORY_BASE, MEMORY_END, SCI

HOTPLUG_BASE = 0xAE00
"""PCIU, PCID, B0EJ, RMV and BNUM, a dword each."""
FIRST_HOTPLUG_SLOT = 2
SLOTS = 32
BRIDGE_SLOT = 1
INT_PINS = 4
LINKS = ("LNKA", "LNKB", "LNKC", "LNKD")
"""The link device of each PIRQ."""
LINK_IRQS = (5, 10, 11)
"""What a link can be set to: no ISA device here has them."""
PIRQRC = 0x60
PIRQRC_DISABLED = 0x80
ISA_IRQS = 16
LINK_ENABLED, LINK_DISABLED = 0x0B, 0x09
"""_STA: present and works, and is enabled or not; not for users to see."""
S5_TYPE = 0
CONFIG_PORTS = 0xCF8
CONFIG_LENGTH = 8
BRIDGE = r"\_SB.PCI0"
ISA_BRIDGE = "ISA"


def slot_name(slot: int) -> str:
    """Name of a slot's device object: S, and its function 0 in hexadecimal, as QEMU names it."""
    return f"S{slot << 3:02X}"


def routing() -> bytes:
    """_PRT: {slot and any function, INTx, link device, 0}, but for the SCI, which is wired: {..., 0, GSI}."""
    entries = []
    for slot in range(1, SLOTS):
        for pin in range(INT_PINS):
            target = aml.path(rf"\_SB.{LINKS[(slot - 1 + pin) % INT_PINS]}"), aml.ZERO
            if slot == BRIDGE_SLOT and pin == 0:
                target = aml.ZERO, aml.integer(SCI)
            entries.append(aml.package(aml.integer(slot << 16 | 0xFFFF), aml.integer(pin), *target))
    return aml.name("_PRT", aml.package(*entries))


def _register(pirq: int) -> str:
    return f"PRC{'ABCD'[pirq]}"


def _isa_bridge() -> bytes:
    """The PIIX3's function 0, with PIRQRC[A:D] in its configuration space."""
    return aml.device(
        ISA_BRIDGE,
        aml.name("_ADR", aml.integer(BRIDGE_SLOT << 16)),
        aml.operation_region("PIRC", aml.PCI_CONFIG, PIRQRC, INT_PINS),
        aml.field("PIRC", aml.BYTE_ACCESS, [(_register(pirq), 8) for pirq in range(INT_PINS)]),
    )


def _link(pirq: int) -> bytes:
    """The device that sets a PIRQ's route. Routed is what PIRQRC has below 16, as in `devices.pci.piix3`."""
    register = aml.path(f"{BRIDGE}.{ISA_BRIDGE}.{_register(pirq)}")
    routed = aml.less(register, aml.integer(ISA_IRQS))
    current = (
        aml.name("NOW", aml.resource_template(aml.interrupt(0))),
        aml.create_dword_field(aml.path("NOW"), aml.INTERRUPT_NUMBER, "IRQ"),
        aml.if_(routed, aml.store(register, aml.path("IRQ"))),
        aml.return_(aml.path("NOW")),
    )
    choose = (
        aml.create_dword_field(aml.arg(0), aml.INTERRUPT_NUMBER, "IRQ"),
        aml.store(aml.path("IRQ"), register),
    )
    status = (
        aml.if_(routed, aml.return_(aml.integer(LINK_ENABLED))),
        aml.return_(aml.integer(LINK_DISABLED)),
    )
    return aml.device(
        LINKS[pirq],
        aml.name("_HID", aml.eisa_id("PNP0C0F")),
        aml.name("_UID", aml.integer(pirq + 1)),
        aml.name("_PRS", aml.resource_template(aml.interrupt(*LINK_IRQS))),
        aml.method("_STA", 0, *status),
        aml.method("_CRS", 0, *current),
        aml.method("_SRS", 1, *choose),
        aml.method("_DIS", 0, aml.bit_or(register, aml.integer(PIRQRC_DISABLED), register)),
    )


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
        _isa_bridge(),
        routing(),
        aml.operation_region("PHPR", aml.SYSTEM_IO, HOTPLUG_BASE, 4 * len(registers)),
        aml.field("PHPR", aml.DWORD_ACCESS, registers),
        *(_slot(slot) for slot in range(FIRST_HOTPLUG_SLOT, SLOTS)),
    )
    soft_off = aml.name("_S5", aml.package(*[aml.integer(S5_TYPE)] * 4))
    # Links before the _PRT: its packages name them, and not every interpreter resolves names that come later.
    links = [_link(pirq) for pirq in range(INT_PINS)]
    return soft_off + aml.scope(r"\_SB", *links, bridge) + _changed()
