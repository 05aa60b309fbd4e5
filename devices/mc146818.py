"""The MC146818 real-time clock and its CMOS RAM at ports 0x70/0x71.

Time is one number: seconds of the guest's calendar at a moment of the machine's clock. Registers are computed when
they are read; flags (UF, AF, PF) when register C is read or an enabled interrupt is due, so a clock that nobody asks
costs nothing. While SET or a divider reset stops the clock the registers hold what was written, valid or not.
Ref: Motorola MC146818 (1984); 82371AB (PIIX4), 4.2.5 (RTC I/O); QEMU's layout of CMOS RAM.
"""

from __future__ import annotations

import calendar
import datetime
import time
from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Device, Property
from vmm.clock import NS_PER_SEC
from vmm.errors import PropertyError
from vmm.memory import IoRegion
from vmm.trace import Event, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Board
    from vmm.clock import Timer
    from vmm.lines import LevelLine

SECONDS = 0x00
SECONDS_ALARM = 0x01
MINUTES = 0x02
MINUTES_ALARM = 0x03
HOURS = 0x04
HOURS_ALARM = 0x05
DAY_OF_WEEK = 0x06
DAY_OF_MONTH = 0x07
MONTH = 0x08
YEAR = 0x09
REG_A = 0x0A
REG_B = 0x0B
REG_C = 0x0C
REG_D = 0x0D
CENTURY = 0x32
PS2_CENTURY = 0x37
"""Another place of the century byte; both are one."""

A_UIP = 0x80
A_DIVIDER = 0x70
A_RATE = 0x0F
B_SET = 0x80
B_PIE = 0x40
B_AIE = 0x20
B_UIE = 0x10
B_DM = 0x04
B_24H = 0x02
C_IRQF = 0x80
C_PF = 0x40
C_AF = 0x20
C_UF = 0x10
D_VRT = 0x80

RegisterA = c.BitStruct("uip" / c.Flag, "divider" / c.BitsInteger(3), "rate" / c.BitsInteger(4))
RegisterB = c.BitStruct(
    "set" / c.Flag,
    "pie" / c.Flag,
    "aie" / c.Flag,
    "uie" / c.Flag,
    "sqwe" / c.Flag,
    "binary" / c.Flag,
    "hour24" / c.Flag,
    "dse" / c.Flag,
)
RegisterC = c.BitStruct("irqf" / c.Flag, "pf" / c.Flag, "af" / c.Flag, "uf" / c.Flag, "_zero" / c.BitsInteger(4))

CRYSTAL = 32768
UIP_NS = 8 * NS_PER_SEC // CRYSTAL
"""UIP is up for so long before each update."""
DAY = 86400
_TIME_REGISTERS = frozenset((SECONDS, MINUTES, HOURS, DAY_OF_WEEK, DAY_OF_MONTH, MONTH, YEAR, CENTURY))
_EPOCH = datetime.datetime(1970, 1, 1)
_LATEST = int((datetime.datetime(9999, 12, 31, 23, 59, 59) - _EPOCH).total_seconds())
_EARLIEST = int((datetime.datetime(1, 1, 1) - _EPOCH).total_seconds())

CmosMemory = c.Struct(
    "base_kb" / c.Int16ul,
    "extended_kb" / c.Int16ul,
    c.Padding(0x30 - 0x19),
    "extended_kb_post" / c.Int16ul,
    c.Padding(2),
    "above_16m_64kb" / c.Int16ul,
    c.Padding(0x5B - 0x36),
    "above_4g_64kb" / c.Int24ul,
    c.Padding(1),
    "cpus_less_one" / c.Int8ul,
)
"""Bytes 0x15 to 0x5f as a PC's firmware reads the size of memory from them (the clock's century byte lies within)."""


class CmosIoportWrite(Event):
    """The guest wrote a register."""

    index: int
    val: int


class CmosIoportRead(Event):
    """The guest read a register."""

    index: int
    val: int


def parse_base(text: str) -> int:
    """`-rtc base=`: `utc`, `localtime`, or a date as 2006-06-17T16:01:21 or 2006-06-17, in seconds. ValueError."""
    if text == "utc":
        return int(time.time())
    if text == "localtime":
        return calendar.timegm(time.localtime())
    date = datetime.datetime.fromisoformat(text)
    if date.tzinfo is not None:
        raise ValueError(text)
    return int((date - _EPOCH).total_seconds())


class Mc146818(Device):
    """The clock, IRQ 8. `base` is the date at power-on; time then follows the machine's clock.

    `changed(offset)` is called when the guest sets the time: by how many seconds it now is ahead of what it would be.
    """

    driver = "mc146818rtc"
    description = "real-time clock"
    bus_type = "ISA"
    user_creatable = False
    properties = (
        Property("base", "str", "utc", "date at power-on: utc, localtime, or 2006-06-17T16:01:21"),
        Property("iobase", "uint16", 0x70, "index port; the data port follows"),
    )

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        base = self.values["base"]
        try:
            self._seconds = parse_base(base)
        except ValueError:
            raise PropertyError(
                f"invalid datetime format '{base}'; valid formats: '2006-06-17T16:01:21' or '2006-06-17'",
                self.driver,
                "base",
            ) from None
        self.cmos = bytearray(128)
        """The RAM, and the raw registers; clock registers are only valid here while the clock stands."""
        self.index = 0
        self.nmi_disabled = False
        """Bit 7 of the index port: the guest holds NMI off."""
        self.changed: Callable[[int], object] | None = None
        self.trace = Trace()
        self._origin = 0
        """When `_seconds` began, by the machine's clock; the second's phase while the clock stands."""
        self._base = self._seconds
        self._realized_at = 0
        self._weekday_offset = 0
        self._seen_seconds = 0
        """Second up to which UF and AF are accounted for."""
        self._periodic_clocks = 0
        """Crystal clock of the last periodic event."""
        self._line: LevelLine
        self._update_timer: Timer
        self._periodic_timer: Timer
        self.cmos[REG_A] = 0x26
        self.cmos[REG_B] = B_24H
        self.cmos[REG_D] = D_VRT

    # Life.

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.trace = board.trace
        self._origin = self._realized_at = board.clock.now()
        self._seen_seconds = self._seconds
        self._periodic_clocks = self._clocks()
        self._line = self.isa_irq(8)
        self._update_timer = board.clock.timer(f"{self.path}/update", self._interrupt_due)
        self._periodic_timer = board.clock.timer(f"{self.path}/periodic", self._interrupt_due)
        self.holdings.hold("timer", "update", self._update_timer.cancel)
        self.holdings.hold("timer", "periodic", self._periodic_timer.cancel)
        self.map_ports(self.values["iobase"], IoRegion("rtc", 2, self._read, self._write, max_access=1))

    def reset(self) -> None:
        """Interrupts off and flags clear; date, RAM and the other bits stay, as the battery keeps them."""
        self._catch_up()
        self.cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE | 0x08)
        self.cmos[REG_C] = 0
        self.index = 0
        self.nmi_disabled = False
        self._settle()

    # What firmware finds in the RAM.

    def set_memory(self, below_4g: int, above_4g: int = 0) -> None:
        """Enter the sizes of memory in bytes, as firmware expects them."""
        kb, units = 1024, 64 * 1024
        for register, width, value in (
            (0x15, 2, min(640, below_4g // kb)),
            (0x17, 2, min(0xFFFF, max(0, below_4g // kb - 1024))),
            (0x30, 2, min(0xFFFF, max(0, below_4g // kb - 1024))),
            (0x34, 2, min(0xFFFF, max(0, below_4g - (16 << 20)) // units)),
            (0x5B, 3, min(0xFFFFFF, above_4g // units)),
        ):
            self.cmos[register : register + width] = value.to_bytes(width, "little")

    def set_cpus(self, cpus: int) -> None:
        """Enter how many processors firmware shall wait for."""
        self.cmos[0x5F] = (cpus - 1) & 0xFF

    def set_equipment(self, boot_order: int = 0x1230) -> None:
        """Equipment (FPU, PS/2 mouse), no drives; boot devices as nibbles, the first one in bits 3:0 of 0x3d.

        Bit 0 of 0x38 tells firmware not to check a floppy's boot sector.
        """
        self.cmos[0x10] = self.cmos[0x12] = 0
        self.cmos[0x14] = 0x06
        self.cmos[0x38] = boot_order & 0xF1
        self.cmos[0x3D] = boot_order >> 8 & 0xFF

    # Time.

    @property
    def running(self) -> bool:
        """Neither SET nor a divider other than an oscillator's stops the clock."""
        return not self.cmos[REG_B] & B_SET and self.cmos[REG_A] & A_DIVIDER <= 0x20

    def _now(self) -> int:
        return self.board.clock.now()

    def _clocks(self) -> int:
        return self._now() * CRYSTAL // NS_PER_SEC

    def seconds(self) -> int:
        """The guest's calendar as seconds since 1970."""
        if not self.running:
            return self._parse()
        return self._seconds + (self._now() - self._origin) // NS_PER_SEC

    def date(self) -> dict[str, int]:
        """The guest's date with the names of struct tm, as the property rtc-time shows it."""
        date = _date(self.seconds())
        return {
            "tm_year": date.year - 1900,
            "tm_mon": date.month - 1,
            "tm_mday": date.day,
            "tm_hour": date.hour,
            "tm_min": date.minute,
            "tm_sec": date.second,
        }

    def _encode(self, value: int) -> int:
        return value if self.cmos[REG_B] & B_DM else value // 10 % 10 << 4 | value % 10

    def _decode(self, byte: int) -> int:
        return byte if self.cmos[REG_B] & B_DM else (byte >> 4) * 10 + (byte & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.cmos[REG_B] & B_24H:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (0x80 if hour >= 12 else 0)

    def _decode_hour(self, byte: int) -> int:
        """An hour register. In 12-hour mode binary 12 and 0 are both twelve o'clock."""
        if self.cmos[REG_B] & B_24H:
            return self._decode(byte)
        return self._decode(byte & 0x7F) % 12 + (12 if byte & 0x80 else 0)

    def _render(self, seconds: int) -> None:
        """Write a date into the registers, in the mode they are in."""
        date = _date(seconds)
        cmos = self.cmos
        cmos[SECONDS] = self._encode(date.second)
        cmos[MINUTES] = self._encode(date.minute)
        cmos[HOURS] = self._encode_hour(date.hour)
        cmos[DAY_OF_WEEK] = self._encode((date.isoweekday() + self._weekday_offset) % 7 + 1)
        cmos[DAY_OF_MONTH] = self._encode(date.day)
        cmos[MONTH] = self._encode(date.month)
        cmos[YEAR] = self._encode(date.year % 100)
        cmos[CENTURY] = cmos[PS2_CENTURY] = self._encode(date.year // 100)

    def _parse(self) -> int:
        """The registers as a date. Nonsense counts as the calendar would: 31 April is 1 May, hour 30 is 6 o'clock."""
        cmos = self.cmos
        year = self._decode(cmos[CENTURY]) * 100 + self._decode(cmos[YEAR])
        months = year * 12 + self._decode(cmos[MONTH]) - 1
        year = min(max(months // 12, 1), 9999)
        first = (datetime.datetime(year, months % 12 + 1, 1) - _EPOCH).days
        days = first + self._decode(cmos[DAY_OF_MONTH]) - 1
        hour, minute = self._decode_hour(cmos[HOURS]), self._decode(cmos[MINUTES])
        return _bounded(days * DAY + hour * 3600 + minute * 60 + self._decode(cmos[SECONDS]))

    def _stop(self) -> None:
        """The clock stands from now on: put the date into the registers."""
        self._catch_up()
        self._render(self.seconds())

    def _go(self, origin: int) -> None:
        """The clock goes: take the date from the registers; its second began at `origin`."""
        self._seconds = self._seen_seconds = self._parse()
        self._origin = origin
        weekday = self._decode(self.cmos[DAY_OF_WEEK])
        self._weekday_offset = (weekday - 1 - _date(self._seconds).isoweekday()) % 7
        if self.changed is not None:
            unchanged = self._base + (self._now() - self._realized_at) // NS_PER_SEC
            self.changed(self._seconds - unchanged)

    def _phase(self) -> int:
        """Nanoseconds since the last update."""
        return (self._now() - self._origin) % NS_PER_SEC

    # Flags and interrupts.

    def _period(self) -> int:
        """Crystal clocks between periodic events; 0: none. Ref: MC146818, table 5."""
        rate = self.cmos[REG_A] & A_RATE
        if rate == 0:
            return 0
        return 1 << (rate + 6 if rate < 3 else rate - 1)

    def _catch_up(self) -> None:
        """Set the flags of all that has happened until now."""
        flags = 0
        if self.running:
            seconds = self.seconds()
            if seconds > self._seen_seconds:
                flags |= C_UF
                alarm = self._next_alarm(self._seen_seconds)
                if alarm is not None and alarm <= seconds:
                    flags |= C_AF
                self._seen_seconds = seconds
        period = self._period()
        clocks = self._clocks()
        if period and clocks - self._periodic_clocks >= period:
            flags |= C_PF
            self._periodic_clocks = clocks - (clocks - self._periodic_clocks) % period
        self.cmos[REG_C] |= flags

    def _settle(self) -> None:
        """Drive the line as flags and enables say, and arm timers for what may raise it."""
        cmos = self.cmos
        enabled = cmos[REG_B] & (B_PIE | B_AIE | B_UIE)
        if cmos[REG_C] & enabled:
            cmos[REG_C] |= C_IRQF
        else:
            cmos[REG_C] &= ~C_IRQF
        high = bool(cmos[REG_C] & C_IRQF)
        self._line.set(high)
        update: int | None = None
        periodic: int | None = None
        if not high and enabled:
            if self.running:
                if enabled & B_UIE:
                    update = self._seen_seconds + 1
                elif enabled & B_AIE:
                    update = self._next_alarm(self._seen_seconds)
            if enabled & B_PIE and self._period():
                periodic = self._periodic_clocks + self._period()
        if update is None:
            self._update_timer.cancel()
        else:
            self._update_timer.arm(self._origin + (update - self._seconds) * NS_PER_SEC)
        if periodic is None:
            self._periodic_timer.cancel()
        else:
            self._periodic_timer.arm(-(-periodic * NS_PER_SEC // CRYSTAL))

    def _interrupt_due(self) -> None:
        self._catch_up()
        self._settle()

    def _next_alarm(self, after: int) -> int | None:
        """The first second behind `after` that matches the alarm; None if the alarm is no time of day."""
        cmos = self.cmos
        hours = _matching(cmos[HOURS_ALARM], self._decode_hour, 24)
        minutes = _matching(cmos[MINUTES_ALARM], self._decode, 60)
        seconds = _matching(cmos[SECONDS_ALARM], self._decode, 60)
        if not (hours and minutes and seconds):
            return None
        start = after + 1
        midnight, now = start - start % DAY, start % DAY
        for hour in hours:
            if hour * 3600 + 3599 < now:
                continue
            for minute in minutes:
                if hour * 3600 + minute * 60 + 59 < now:
                    continue
                for second in seconds:
                    if hour * 3600 + minute * 60 + second >= now:
                        return midnight + hour * 3600 + minute * 60 + second
        return midnight + DAY + hours[0] * 3600 + minutes[0] * 60 + seconds[0]

    # The guest's side.

    def _read(self, offset: int, _size: int) -> int:
        if offset == 0:
            return 0xFF
        value = self.read_register(self.index)
        if self.trace.on:
            self.trace.emit(CmosIoportRead(self.index, value))
        return value

    def _write(self, offset: int, _size: int, value: int) -> None:
        value &= 0xFF
        if offset == 0:
            self.index = value & 0x7F
            self.nmi_disabled = bool(value & 0x80)
            return
        if self.trace.on:
            self.trace.emit(CmosIoportWrite(self.index, value))
        self.write_register(self.index, value)

    def read_register(self, index: int) -> int:
        """A register or a byte of RAM, with the side effects of reading it."""
        if index == PS2_CENTURY:
            index = CENTURY
        if index in _TIME_REGISTERS:
            if self.running:
                self._render(self.seconds())
        elif index == REG_A:
            uip = self.running and self._phase() >= NS_PER_SEC - UIP_NS
            return self.cmos[REG_A] & ~A_UIP | (A_UIP if uip else 0)
        elif index == REG_C:
            self._interrupt_due()
            value = self.cmos[REG_C]
            self.cmos[REG_C] = 0
            self._settle()
            return value
        return self.cmos[index]

    def write_register(self, index: int, value: int) -> None:
        """Write a register or a byte of RAM."""
        if index == PS2_CENTURY:
            index = CENTURY
        if index in _TIME_REGISTERS:
            self._set_time(index, value)
        elif index == REG_A:
            self._write_a(value)
        elif index == REG_B:
            self._write_b(value)
        elif index in (SECONDS_ALARM, MINUTES_ALARM, HOURS_ALARM):
            self._catch_up()
            self.cmos[index] = value
            self._settle()
        elif index not in (REG_C, REG_D):  # those are read-only
            self.cmos[index] = value

    def _set_time(self, index: int, value: int) -> None:
        if not self.running:
            self.cmos[index] = value
            return
        self._stop()
        self.cmos[index] = value
        self._go(self._now() - self._phase())
        self._settle()

    def _write_a(self, value: int) -> None:
        self._catch_up()
        was_running = self.running
        was_reset = self.cmos[REG_A] & 0x60 == 0x60
        if was_running:
            self._render(self.seconds())
        phase = self._phase()
        self.cmos[REG_A] = value & ~A_UIP
        if self.running and not was_running:
            # The first update comes half a second after the divider is let go. Ref: MC146818, "Divider Control".
            self._go(self._now() - (NS_PER_SEC // 2 if was_reset else phase))
        self._settle()

    def _write_b(self, value: int) -> None:
        self._catch_up()
        was_running = self.running
        seconds = self.seconds() if was_running else 0
        phase = self._phase()
        if value & B_SET:
            value &= ~B_UIE  # Ref: MC146818, "Register B", SET
            if was_running:
                self._render(seconds)
        self.cmos[REG_B] = value
        if self.running and not was_running:
            self._go(self._now() - phase)
        self._settle()


def _matching(byte: int, decode: Callable[[int], int], limit: int) -> range:
    """Values that an alarm byte matches: all if its two upper bits are set, none if it is no value."""
    if byte & 0xC0 == 0xC0:
        return range(limit)
    value = decode(byte)
    return range(value, value + 1) if value < limit else range(0)


def _bounded(seconds: int) -> int:
    return min(max(seconds, _EARLIEST), _LATEST)


def _date(seconds: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(seconds=_bounded(seconds))
