"""IRQ interception: what a test sees of the lines at a chip's inputs, or of the one that it drives.

A `PinTap` stands in a chip's place where GSIs are routed to it, so it sees wires, irqfds and resamplers alike, before
masks and redirection entries; the chip works on behind it. A line is told when its level changes, by its input number:
that of the GSI, so ISA interrupt 0 is 0 although the I/O APIC serves it by the entry of pin 2.
Ref: vectors qemu-qmp-transcript.jsonl, sessions qtest-protocol and intercept-out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Device
    from machine.machine import Machine
    from vmm.kernel.gsi import Chip, Gsis

    Report = Callable[[int, bool], None]

UNNAMED = "unnamed-gpio-in"
"""How a command names a device's list of inputs that has no name."""
_CHIPS = {
    "ioapic": (24, (KVM_IRQCHIP_IOAPIC,)),
    "isa-i8259": (16, (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE)),
}
"""Drivers with inputs: how many, and as which chips of the routing table. The 8259 pair counts through."""


class PinTap:
    """A chip as its routes see it, with a report of each change of level at one of its inputs."""

    __slots__ = ("_chip", "_number", "_report", "_sources")

    def __init__(self, chip: Chip, number: Callable[[int], int], report: Report) -> None:
        self._chip = chip
        self._number = number
        self._report = report
        self._sources: dict[int, int] = {}
        """Per pin, a bitmap of the irq source ids that hold it high: the input is their OR."""

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = False) -> int:
        """Drive a pin of the chip, having told of it."""
        before = self._sources.get(pin, 0)
        after = before | 1 << source if level else before & ~(1 << source)
        self._sources[pin] = after
        self._report(self._number(pin), after != 0)
        if line_status:
            return self._chip.set_irq(pin, source, level, True)  # type: ignore[call-arg]  # the I/O APIC takes it
        return self._chip.set_irq(pin, source, level)


def _gsis(machine: Machine) -> Gsis | None:
    kvm: Any = getattr(machine, "kvm", None)
    return None if kvm is None else kvm.gsis


def intercept_in(machine: Machine, device: Device, report: Report) -> None:
    """Report the inputs of a device. One that has none reports nothing."""
    gsis = _gsis(machine)
    if gsis is None or device.driver not in _CHIPS:
        return
    _, chips = _CHIPS[device.driver]

    def number(pin: int) -> int:
        return gsis.table.by_pin.get((chips[0], pin), pin) if len(chips) == 1 else pin

    tap = PinTap(gsis.chips[chips[0]], number, report)
    for chip in chips:
        gsis.chips[chip] = tap


def intercept_out(device: Device, name: str | None, report: Report) -> bool:
    """Report the outputs of a device; False if it has none of that name. Only the 8259 pair has one: INT, number 0."""
    pic: Any = getattr(device, "pic", None)
    if name is not None or device.driver != "isa-i8259" or pic is None:
        return False
    driven = pic.output

    def output(level: bool) -> None:
        report(0, level)
        if driven is not None:
            driven(level)

    pic.output = output
    return True


def set_input(machine: Machine, device: Device, name: str, number: int, level: bool) -> bool:
    """Drive an input of a device as its wire does; False if it has none of that name and number."""
    gsis = _gsis(machine)
    count, chips = _CHIPS.get(device.driver, (0, ()))
    if gsis is None or name != UNNAMED or not 0 <= number < count:
        return False
    gsis.chips[chips[0]].set_irq(number, 0, level)
    return True
