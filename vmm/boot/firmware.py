"""What a PC's firmware does before the kernel starts, as SeaBIOS 1.16 leaves it on QEMU's `pc`.

There is no firmware in this machine. `Firmware.run` makes, through the same ports and addresses a guest uses, the
settings that guests rely on: PIRQ routing, ELCR, BARs, INTERRUPT_LINE, the PIIX4's base addresses, the 8259A pair, the
timer, the real-time clock and the boot processor's local APIC. It runs before the first instruction and after every
reset. What is plugged later gets no help: its guest assigns addresses itself.

The values were read from a QEMU 7.2 `pc` that had just handed over to a Multiboot kernel.
Ref: 82371AB (PIIX4) and 82371SB (PIIX3) datasheets; PCI 2.1, 6.2.5 (sizing base address registers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC

COMMAND_IO = 0x1
COMMAND_MEMORY = 0x2
COMMAND_SERR = 0x100
BAR_IO = 0x1
BAR_64 = 0x4
BAR_PREFETCH = 0x8
MULTI_FUNCTION = 0x80
BRIDGE_HEADER = 1

PIRQ_IRQS = (10, 10, 11, 11)
"""PIRQ[A:D] to ISA interrupts."""
ELCR = 0x0C00
"""Interrupts 10 and 11 are level-triggered."""
PM_BASE = 0x600
SMBUS_BASE = 0x700
SCI = 9

IO_BASE = 0xC000
IO_END = 0x10000
MEMORY_END = 0xFEC00000
MEMORY_BASE = 0xE0000000
HIGH_BASE = 1 << 32
HIGH_ALIGN = 1 << 30
SMALLEST_MEMORY_BAR = 0x1000
"""Each memory BAR has a page of its own."""

LAPIC_SVR = 0xFEE000F0
LAPIC_LINT0 = 0xFEE00350
LAPIC_LINT1 = 0xFEE00360

HOST_BRIDGE = 0x12378086
PIIX3_ISA = 0x70008086
PIIX3_IDE = 0x70108086
PIIX4_PM = 0x71138086
SETTINGS = {
    # PAM: 0xc0000-0xeffff read-only, 0xf0000-0xfffff RAM; SMRAM closed.
    HOST_BRIDGE: ((0x59, 1, 0x10), *((o, 1, 0x11) for o in range(0x5A, 0x5F)), (0x5F, 1, 0x33), (0x72, 1, 0x0A)),
    PIIX3_ISA: tuple((0x60 + i, 1, irq) for i, irq in enumerate(PIRQ_IRQS)),
    # IDETIM: both channels decode.
    PIIX3_IDE: ((0x40, 2, 0x8000), (0x42, 2, 0x8000)),
    # PMBASE and PMREGMISC, SMBBA and SMBHSTCFG, DEVACTB.APMC_EN; the SCI is interrupt 9 whatever the pin says.
    PIIX4_PM: (
        (0x3C, 1, SCI),
        (0x40, 4, PM_BASE | 1),
        (0x80, 1, 0x01),
        (0x90, 4, SMBUS_BASE | 1),
        (0xD2, 1, 0x09),
        (0x5B, 1, 0x02),
    ),
}
"""Device and vendor id to what is written: (offset, size, value)."""


class Bus(Protocol):
    """How firmware reaches the machine: the boot processor's ports and physical addresses."""

    def port_read(self, port: int, size: int) -> int: ...
    def port_write(self, port: int, size: int, value: int) -> None: ...
    def mmio_write(self, gpa: int, size: int, value: int) -> None: ...


class Bar(NamedTuple):
    """A base address register that wants an address. `size` in bytes, a power of two; `offset` in config space."""

    devfn: int
    offset: int
    size: int
    io: bool
    wide: bool
    prefetch: bool


class Firmware:
    """One run of it over `bus`. After `run`, `assigned` tells what each BAR got: {(devfn, offset): address}."""

    def __init__(self, bus: Bus, high_base: int = HIGH_BASE) -> None:
        self._bus = bus
        self._high_base = high_base
        self.assigned: dict[tuple[int, int], int] = {}
        self.unassigned: list[Bar] = []
        """BARs for which no window has room; they stay as reset left them."""

    def run(self) -> None:
        """Set up the machine. Devices that are not there are passed over."""
        self._interrupt_controllers()
        functions = list(self._functions())
        self._assign([bar for devfn in functions for bar in self._bars(devfn)])
        for devfn in functions:
            self._set_up(devfn)
        self._timer_and_clock()
        self._local_apic()

    # --- configuration space

    def read(self, devfn: int, offset: int, size: int = 4) -> int:
        """A register of bus 0."""
        self._bus.port_write(CONFIG_ADDRESS, 4, 0x80000000 | devfn << 8 | offset & 0xFC)
        return self._bus.port_read(CONFIG_DATA + (offset & 3), size)

    def write(self, devfn: int, offset: int, size: int, value: int) -> None:
        """Write a register of bus 0."""
        self._bus.port_write(CONFIG_ADDRESS, 4, 0x80000000 | devfn << 8 | offset & 0xFC)
        self._bus.port_write(CONFIG_DATA + (offset & 3), size, value)

    def _functions(self) -> Iterator[int]:
        for slot in range(32):
            devfn = slot << 3
            if self.read(devfn, 0, 2) == 0xFFFF:
                continue
            yield devfn
            if self.read(devfn, 0x0E, 1) & MULTI_FUNCTION:
                yield from (devfn + f for f in range(1, 8) if self.read(devfn + f, 0, 2) != 0xFFFF)

    # --- base addresses

    def _bars(self, devfn: int) -> Iterator[Bar]:
        """Size what the function decodes: write ones, see which stick, put the old value back."""
        bridge = self.read(devfn, 0x0E, 1) & 0x7F == BRIDGE_HEADER
        if self.read(devfn, 0x0E, 1) & 0x7F > BRIDGE_HEADER:
            return
        self.write(devfn, 0x04, 2, self.read(devfn, 0x04, 2) & ~(COMMAND_IO | COMMAND_MEMORY))
        offset = 0x10
        while offset < (0x18 if bridge else 0x28):
            low = self.read(devfn, offset)
            kind = low & (3 if low & BAR_IO else 0xF)
            wide = not kind & BAR_IO and bool(kind & BAR_64)
            mask = self._stuck(devfn, offset) & ~(3 if kind & BAR_IO else 0xF)
            if wide and offset + 4 < 0x28:
                mask |= self._stuck(devfn, offset + 4) << 32
            size = mask & -mask
            if size:
                io = bool(kind & BAR_IO)
                yield Bar(devfn, offset, size, io, wide, bool(kind & BAR_PREFETCH) and not io)
            offset += 8 if wide else 4
        rom = 0x38 if bridge else 0x30
        size = self._stuck(devfn, rom) & 0xFFFFF800
        if size:
            yield Bar(devfn, rom, size & -size, io=False, wide=False, prefetch=False)

    def _stuck(self, devfn: int, offset: int) -> int:
        old = self.read(devfn, offset)
        self.write(devfn, offset, 4, 0xFFFFFFFE if offset in (0x30, 0x38) else 0xFFFFFFFF)
        mask = self.read(devfn, offset)
        self.write(devfn, offset, 4, old)
        return mask

    def _assign(self, bars: list[Bar]) -> None:
        """I/O from 0xc000 up; memory right below 0xfec00000. In each window the largest comes first.

        When the 32-bit window is too small, 64-bit BARs go above 4 GiB, and what is still too much gets nothing.
        """
        self._fill([bar for bar in bars if bar.io], IO_BASE, IO_END)
        memory = [bar for bar in bars if not bar.io]
        if self._place_low(memory):
            return
        self._fill([bar for bar in memory if bar.wide], self._high_base, 1 << 40, HIGH_ALIGN)
        low = sorted((bar for bar in memory if not bar.wide), key=_room)
        while not self._place_low(low):
            self.unassigned.append(low.pop())

    def _place_low(self, bars: list[Bar]) -> bool:
        """Two windows that end at 0xfec00000, prefetchable and not; the one with the largest BAR is below.

        False, with nothing written, if they do not fit.
        """
        kinds = [[bar for bar in bars if bar.prefetch is prefetch] for prefetch in (True, False)]
        end = MEMORY_END
        windows = []
        for members in sorted(kinds, key=_alignment):
            base = (end - sum(map(_room, members))) & -_alignment(members)
            if base < MEMORY_BASE:
                return False
            windows.append((members, base, end))
            end = base
        for window in windows:
            self._fill(*window)
        return True

    def _fill(self, bars: list[Bar], base: int, end: int, align: int = 1) -> None:
        address = (base + align - 1) & -align
        for bar in sorted(bars, key=_room, reverse=True):
            room = _room(bar)
            start = (address + room - 1) & -room
            if start + room > end:
                self.unassigned.append(bar)
                continue
            self.write(bar.devfn, bar.offset, 4, start & 0xFFFFFFFF)
            if bar.wide:
                self.write(bar.devfn, bar.offset + 4, 4, start >> 32)
            self.assigned[bar.devfn, bar.offset] = start
            address = start + room

    # --- devices

    def _set_up(self, devfn: int) -> None:
        pin = self.read(devfn, 0x3D, 1)
        if 1 <= pin <= 4:
            self.write(devfn, 0x3C, 1, PIRQ_IRQS[((devfn >> 3) - 1 + pin - 1) & 3])
        command = self.read(devfn, 0x04, 2)
        self.write(devfn, 0x04, 2, command | COMMAND_IO | COMMAND_MEMORY | COMMAND_SERR)
        for offset, size, value in SETTINGS.get(self.read(devfn, 0x00), ()):
            self.write(devfn, offset, size, value)

    def _interrupt_controllers(self) -> None:
        """ICW1-4 of both 8259A: vectors 08h and 70h, slave at 2; then the masks a BIOS leaves, and ELCR."""
        for command, base, wiring, mask in ((0x20, 0x08, 4, 0xB8), (0xA0, 0x70, 2, 0x8E)):
            self._bus.port_write(command, 1, 0x11)
            for value in (base, wiring, 0x01, mask):
                self._bus.port_write(command + 1, 1, value)
        self._bus.port_write(0x4D0, 1, ELCR & 0xFF)
        self._bus.port_write(0x4D1, 1, ELCR >> 8)

    def _timer_and_clock(self) -> None:
        self._bus.port_write(0x43, 1, 0x34)
        self._bus.port_write(0x40, 1, 0)
        self._bus.port_write(0x40, 1, 0)
        for register, value in ((0x0A, 0x26), (0x0B, 0x02)):
            self._bus.port_write(0x70, 1, register)
            self._bus.port_write(0x71, 1, value)
        a20 = self._bus.port_read(0x92, 1)
        if a20 != 0xFF:
            self._bus.port_write(0x92, 1, (a20 | 0x02) & ~0x01)

    def _local_apic(self) -> None:
        """Enabled, with the 8259A pair at LINT0 (ExtINT) and NMI at LINT1."""
        self._bus.mmio_write(LAPIC_SVR, 4, 0x1FF)
        self._bus.mmio_write(LAPIC_LINT0, 4, 0x8700)
        self._bus.mmio_write(LAPIC_LINT1, 4, 0x8400)


def _room(bar: Bar) -> int:
    return bar.size if bar.io else max(bar.size, SMALLEST_MEMORY_BAR)


def _alignment(bars: list[Bar]) -> int:
    return max(map(_room, bars), default=1)


def run(bus: Bus, high_base: int = HIGH_BASE) -> Firmware:
    """Do all that firmware does; the result says which BAR got which address. `high_base`: above all RAM."""
    firmware = Firmware(bus, high_base)
    firmware.run()
    return firmware
