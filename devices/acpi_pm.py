"""ACPI power management as a PIIX4 has it: PM1 event and control, the PM timer, and the SMI command port.

The registers answer at PMBASE, which the power management PCI function sets through `AcpiPm.set_base`. Soft-off ends
the machine; there are no sleeping states, and no system management mode: port 0xb2 does what firmware's handler would.
As in QEMU, events reach the SCI whether SCI_EN is set or not.
Ref: 82371AB (PIIX4), 7.2 (power management I/O registers); ACPI 6.5, 4.8.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Device, Property
from vmm.clock import NS_PER_SEC
from vmm.errors import PropertyError
from vmm.lines import Wire
from vmm.memory import ALL_ONES, IoRegion
from vmm.trace import Event, Trace

if TYPE_CHECKING:
    from devices.device import Board
    from vmm.clock import Timer
    from vmm.lifecycle import Row
    from vmm.lines import LevelLine
    from vmm.memory import Mapping

PM_TIMER_FREQUENCY = 3_579_545
"""Hz."""
PM_BLOCK_SIZE = 64
PM1_STS = 0x00
PM1_EN = 0x02
PM1_CNT = 0x04
PM_TMR = 0x08

TMROF = 1 << 0
BM_STS = 1 << 4
GBL = 1 << 5
PWRBTN = 1 << 8
RTC = 1 << 10
WAK = 1 << 15
PM1_STS_MASK = TMROF | BM_STS | GBL | PWRBTN | RTC | WAK
PM1_EVENTS = TMROF | GBL | PWRBTN | RTC
"""Status bits that ask for the SCI if they are enabled."""

SCI_EN = 1 << 0
SLP_EN = 1 << 13
SLP_TYP_SHIFT = 10
SOFT_OFF = (0, 2)
"""SLP_TYP values that end the machine: S5 on this chip, and S4, of which nothing is left to wake from."""

APM_CONTROL = 0xB2
ACPI_ENABLE = 0xF1
ACPI_DISABLE = 0xF0

SCI_IRQ = 9

Pm1Status = c.BitStruct(
    "wak" / c.Flag,
    c.Padding(4),
    "rtc" / c.Flag,
    c.Padding(1),
    "pwrbtn" / c.Flag,
    c.Padding(2),
    "gbl" / c.Flag,
    "bm" / c.Flag,
    c.Padding(3),
    "tmrof" / c.Flag,
)
"""PM1_STS, most significant byte first. PM1_EN has the same bits."""
Pm1Control = c.BitStruct(
    c.Padding(2),
    "slp_en" / c.Flag,
    "slp_typ" / c.BitsInteger(3),
    c.Padding(7),
    "gbl_rls" / c.Flag,
    "bm_rld" / c.Flag,
    "sci_en" / c.Flag,
)
"""PM1_CNT, most significant byte first."""


class AcpiSci(Event):
    """The SCI changed."""

    level: bool


class Sci:
    """The system control interrupt: the OR of its sources on one line, ISA IRQ 9.

    A source is a LevelLine from `source`; it is low until set and lets go when closed.
    """

    __slots__ = ("line", "trace", "wire")

    def __init__(self, line: LevelLine, trace: Trace | None = None) -> None:
        self.line = line
        self.trace = trace or Trace()
        self.wire = Wire("sci", self._drive)

    def source(self, name: str) -> LevelLine:
        """A new source: PM1, GPE0, ..."""
        return self.wire.hold(name)

    @property
    def high(self) -> bool:
        """The level of the line."""
        return self.wire.high

    def _drive(self, level: bool) -> None:
        if self.trace.on:
            self.trace.emit(AcpiSci(level))
        self.line.set(level)


class AcpiPm(Device):
    """The registers at PMBASE and ports 0xb2/0xb3. `sci` is there from the making on, for others to join."""

    driver = "acpi-pm"
    description = "ACPI power management registers"
    user_creatable = False
    properties = (
        Property("timer-bits", "uint8", 24, "width of the PM timer: 24 or 32"),
        Property("sci-irq", "uint8", SCI_IRQ, "ISA IRQ of the SCI"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        bits: int = self.values["timer-bits"]
        if bits not in (24, 32):
            raise PropertyError(f"acpi-pm: the PM timer has 24 or 32 bits, not {bits}", self.driver, "timer-bits")
        if self.values["sci-irq"] > 15:
            raise PropertyError(f"acpi-pm: there is no ISA IRQ {self.values['sci-irq']}", self.driver, "sci-irq")
        self._half = 1 << (bits - 1)
        """Ticks between two overflows: TMROF is set when the most significant bit changes."""
        self._mask = (1 << bits) - 1
        self.sts = 0
        self.en = 0
        self.cnt = 0
        self.apm = [0, 0]
        """What was last written to ports 0xb2 and 0xb3."""
        self.base: int | None = None
        """Where the registers answer; None: nowhere."""
        self.trace = Trace()
        self.sci: Sci
        self._overflow = self._half
        """The tick at which TMROF is set next."""
        self._pm1: LevelLine
        self._timer: Timer
        self._mapping: Mapping | None = None
        self._row: Row | None = None

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.trace = board.trace
        self.sci = Sci(self.isa_irq(self.values["sci-irq"]), board.trace)
        self._pm1 = self.sci.source("pm1")
        self.holdings.hold("wire-holder", "sci-pm1", self._pm1.close)
        self._timer = board.clock.timer(f"{self.path}/overflow", self._overflowed)
        self.holdings.hold("timer", "overflow", self._timer.cancel)
        self.map_ports(APM_CONTROL, IoRegion("apm", 2, self._read_apm, self._write_apm, max_access=1))

    def reset(self) -> None:
        """Events off, ACPI off. The registers stay where they are until the PCI function moves them."""
        self.sts = self.en = self.cnt = 0
        self.apm = [0, 0]
        self._overflow = self._next_overflow()
        self._update()

    # The PCI function's side.

    def set_base(self, base: int, enabled: bool) -> None:
        """Answer at I/O port `base` (64 ports) if `enabled`, else nowhere."""
        base &= 0xFFC0
        wanted = base if enabled and base else None
        if wanted == self.base:
            return
        if self._row is not None:
            self.holdings.drop(self._row)
            self._row = None
        self.base = wanted
        if wanted is not None:
            region = IoRegion("acpi-pm", PM_BLOCK_SIZE, self._read, self._write, max_access=4)
            mapping = self.board.ports.map(wanted, region)
            self._row = self.holdings.hold("port-region", f"acpi-pm@{wanted:#x}", mapping.close)

    # The user's side.

    def power_button(self) -> None:
        """Somebody pressed it (system_powerdown). A guest that did not enable the event does not notice."""
        self.sts |= PWRBTN
        self._update()

    # The timer.

    def _ticks(self) -> int:
        return self.board.clock.now() * PM_TIMER_FREQUENCY // NS_PER_SEC

    def _next_overflow(self) -> int:
        return (self._ticks() // self._half + 1) * self._half

    def _status(self) -> int:
        if self._ticks() >= self._overflow:
            self.sts |= TMROF
        return self.sts

    def _overflowed(self) -> None:
        self._update()

    def _update(self) -> None:
        """Drive the SCI, and arm the timer while an overflow would raise it."""
        active = self._status() & self.en & PM1_EVENTS
        self._pm1.set(active != 0)
        if self.en & TMROF and not active & TMROF:
            self._timer.arm(-(-self._overflow * NS_PER_SEC // PM_TIMER_FREQUENCY))
        else:
            self._timer.cancel()

    # The guest's side.

    def _read(self, offset: int, size: int) -> int:
        if offset == PM_TMR and size == 4:
            return self._ticks() & self._mask
        if offset >= PM_TMR + 4:
            return 0xFFFF_FFFF
        if offset >= PM_TMR:
            registers = self._ticks() & self._mask
        elif offset >= PM1_CNT:
            registers = self.cnt
        else:
            registers = self._status() | self.en << 16
        return registers >> 8 * (offset & 3)

    def _write(self, offset: int, size: int, value: int) -> None:
        if offset >= PM1_CNT + 4:
            return  # the timer is read-only, and the rest is not there
        shift = 8 * (offset & 3)
        bits = (value & ALL_ONES[size]) << shift
        written = ALL_ONES[size] << shift
        if offset >= PM1_CNT:
            if written & 0xFFFF:
                self._write_control((self.cnt & ~written | bits) & 0xFFFF)
            return
        self._write_status(bits & 0xFFFF)
        if written >> 16:
            self.en = (self.en & ~(written >> 16) | bits >> 16) & 0xFFFF
        self._update()

    def _write_status(self, ones: int) -> None:
        self._status()
        self.sts &= ~ones
        if ones & TMROF:
            self._overflow = self._next_overflow()

    def _write_control(self, value: int) -> None:
        self.cnt = value & ~SLP_EN
        if value & SLP_EN and value >> SLP_TYP_SHIFT & 7 in SOFT_OFF:
            self.board.request_shutdown("guest-shutdown")

    def _read_apm(self, offset: int, _size: int) -> int:
        return self.apm[offset]

    def _write_apm(self, offset: int, _size: int, value: int) -> None:
        self.apm[offset] = value & 0xFF
        if offset == 0:
            if value == ACPI_ENABLE:
                self.cnt |= SCI_EN
            elif value == ACPI_DISABLE:
                self.cnt &= ~SCI_EN
