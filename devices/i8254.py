"""The 8254 interval timer at ports 0x40-0x43, and port 0x61, which gates its channel 2.

A channel is a load time and a count: everything else follows from the clock, so nothing runs while nobody looks. Only
channel 0 has a timer, for the rising edges of its OUT, which are IRQ 0; deadlines are computed from the load time, so
they do not drift. As in QEMU and KVM a new count takes effect at once, not at the end of the running cycle.
Ref: 8254 data sheet (order 231164); 82371AB (PIIX4), 4.2.3 (port 0x61).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import construct as c

from devices.device import Device, Property
from vmm.clock import NS_PER_SEC
from vmm.errors import PropertyError
from vmm.lines import EdgeLine
from vmm.memory import IoRegion
from vmm.trace import Event, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.device import Board
    from vmm.clock import Timer

FREQUENCY = 1_193_182
"""Input clock in Hz: 14.31818 MHz / 12."""
MIN_PERIOD_NS = 200_000
"""Channel 0 interrupts at most this often, whatever a guest programs; KVM's min_timer_period_us has this value."""
GIVE_UP_NS = NS_PER_SEC
"""A tick that nobody acknowledged for so long is given up with all that wait behind it."""
REFRESH_NS = 15_085
"""Half the period of bit 4 of port 0x61, which toggles with each refresh cycle."""

ControlWord = c.BitStruct(
    "select" / c.BitsInteger(2), "access" / c.BitsInteger(2), "mode" / c.BitsInteger(3), "bcd" / c.Flag
)
ReadBackCommand = c.BitStruct(
    "_three" / c.Const(3, c.BitsInteger(2)),
    "no_count" / c.Flag,
    "no_status" / c.Flag,
    "counters" / c.BitsInteger(3),
    "_zero" / c.Bit,
)
StatusByte = c.BitStruct(
    "out" / c.Flag, "null_count" / c.Flag, "access" / c.BitsInteger(2), "mode" / c.BitsInteger(3), "bcd" / c.Flag
)
Port61 = c.BitStruct(
    "serr" / c.Flag,
    "iochk" / c.Flag,
    "out2" / c.Flag,
    "refresh" / c.Flag,
    "iochk_disable" / c.Flag,
    "serr_disable" / c.Flag,
    "speaker" / c.Flag,
    "gate2" / c.Flag,
)

ACCESS_LATCH = 0
ACCESS_LOW = 1
ACCESS_HIGH = 2
ACCESS_WORD = 3


class PitIoportWrite(Event):
    """The guest wrote port 0x40 + `addr`."""

    addr: int
    val: int


class PitIoportRead(Event):
    """The guest read port 0x40 + `addr`."""

    addr: int
    val: int


def ticks_of(ns: int) -> int:
    """Whole clock ticks in a time."""
    return ns * FREQUENCY // NS_PER_SEC


def ns_of(ticks: int) -> int:
    """The first nanosecond at which so many ticks have passed."""
    return -(-ticks * NS_PER_SEC // FREQUENCY)


def to_bcd(value: int) -> int:
    """0..9999 as four decimal digits."""
    return value % 10 | value // 10 % 10 << 4 | value // 100 % 10 << 8 | value // 1000 % 10 << 12


def from_bcd(value: int) -> int:
    """Four digits as a number; a digit above 9 counts as it stands."""
    return (value & 15) + (value >> 4 & 15) * 10 + (value >> 8 & 15) * 100 + (value >> 12 & 15) * 1000


class Channel:
    """One counter. Times are nanoseconds of the machine's clock, given by the caller."""

    __slots__ = (
        "access",
        "bcd",
        "count",
        "elapsed",
        "gate",
        "latched",
        "latched_status",
        "mode",
        "null_count",
        "read_high",
        "start",
        "write_latch",
    )

    def __init__(self, gate: bool) -> None:
        self.gate = gate
        self.reset(0)

    def reset(self, now: int) -> None:
        """Mode 3 with the largest count, running: what QEMU shows after power-on (the real chip is undefined)."""
        self.mode = 3
        self.access = 0
        self.bcd = False
        self.count = 0x10000
        self.elapsed = 0
        """Ticks counted before `start`."""
        self.start: int | None = now if self.gate else None
        """Since when it counts; None while it does not."""
        self.null_count = False
        self.latched: list[int] = []
        """Bytes of a latched count that were not read yet."""
        self.latched_status: int | None = None
        self.read_high = False
        self.write_latch: int | None = None
        """The low byte of a count whose high byte is still to come."""

    # Counting.

    def ticks(self, now: int) -> int:
        """Ticks since the count was loaded, or since the trigger in modes 1 and 5."""
        if self.start is None:
            return self.elapsed
        return self.elapsed + ticks_of(now - self.start)

    def out(self, now: int) -> bool:
        """The OUT pin. Ref: 8254, figures 15 to 20."""
        if self.null_count:
            return self.mode != 0
        ticks = self.ticks(now)
        mode = self.mode
        if mode == 2:
            return self.start is None or ticks % self.count != self.count - 1
        if mode == 3:
            return self.start is None or ticks % self.count < (self.count + 1) >> 1
        if mode == 0:
            return ticks >= self.count
        if mode == 1:
            return not self._triggered or ticks >= self.count
        return not self._triggered or ticks != self.count

    @property
    def _triggered(self) -> bool:
        return self.start is not None or self.elapsed > 0

    def value(self, now: int) -> int:
        """The counting element, as a read gives it."""
        count, ticks = self.count, self.ticks(now)
        if self.mode == 2:
            value = count - ticks % count
        elif self.mode == 3:
            half = (count + 1) >> 1
            position = ticks % count
            value = (count & ~1) - 2 * (position if position < half else position - half)
        else:
            value = count - ticks
        return to_bcd(value % 10000) if self.bcd else value & 0xFFFF

    def rise_after(self, ticks: int) -> int | None:
        """The first tick after `ticks` at which OUT rises; None if it does not again."""
        if self.null_count or self.start is None:
            return None
        if self.mode in (2, 3):
            return (ticks // self.count + 1) * self.count
        rise = self.count + (1 if self.mode in (4, 5) else 0)
        return rise if ticks < rise else None

    def time_of(self, ticks: int) -> int:
        """When so many ticks will have been counted; only while it counts."""
        assert self.start is not None
        return self.start + ns_of(ticks - self.elapsed)

    # Programming.

    def control(self, access: int, mode: int, bcd: bool) -> None:
        """A control word: stop, and wait for a count."""
        self.access = access
        self.mode = mode if mode < 6 else mode - 4
        self.bcd = bcd
        self.null_count = True
        self.start = None
        self.elapsed = 0
        self.latched.clear()
        self.latched_status = None
        self.read_high = False
        self.write_latch = None

    def load(self, value: int, now: int) -> None:
        """A whole count was written. 0 is the largest one; modes 2 and 3 count at least 2."""
        count = from_bcd(value) if self.bcd else value
        if count == 0:
            count = 10000 if self.bcd else 0x10000
        if self.mode in (2, 3):
            count = max(count, 2)
        self.count = count
        self.null_count = False
        if self.mode in (1, 5):
            return  # counts from the next trigger on
        self.elapsed = 0
        self.start = now if self.gate else None

    def set_gate(self, gate: bool, now: int) -> None:
        """The GATE pin. Ref: 8254, figure 21."""
        if gate == self.gate:
            return
        self.gate = gate
        if self.null_count:
            return
        if self.mode in (1, 5):
            if gate:
                self.elapsed = 0
                self.start = now
        elif self.mode in (2, 3):
            self.elapsed = 0
            self.start = now if gate else None
        elif gate:
            self.start = now
        else:
            self.elapsed = self.ticks(now)
            self.start = None

    def write(self, value: int, now: int) -> bool:
        """The channel's data port. True if a count is complete."""
        if self.access == ACCESS_LOW:
            self.load(value, now)
        elif self.access == ACCESS_HIGH:
            self.load(value << 8, now)
        elif self.access == ACCESS_WORD:
            if self.write_latch is None:
                self.write_latch = value
                if self.mode == 0:  # the first byte stops it
                    self.elapsed = 0
                    self.start = None
                return False
            self.load(value << 8 | self.write_latch, now)
            self.write_latch = None
        else:
            return False
        return True

    def latch_count(self, now: int) -> None:
        """Hold the count until it is read; a second latch before that is ignored."""
        if not self.latched:
            value = self.value(now)
            if self.access == ACCESS_LOW:
                self.latched = [value & 0xFF]
            elif self.access == ACCESS_HIGH:
                self.latched = [value >> 8]
            else:
                self.latched = [value & 0xFF, value >> 8]

    def status(self, now: int) -> int:
        """The status byte of the read-back command."""
        return self.out(now) << 7 | self.null_count << 6 | self.access << 4 | self.mode << 1 | self.bcd

    def read(self, now: int) -> int:
        """The channel's data port: latched status, then the latched count, then the count as it runs."""
        if self.latched_status is not None:
            status, self.latched_status = self.latched_status, None
            return status
        if self.latched:
            return self.latched.pop(0)
        value = self.value(now)
        if self.access == ACCESS_LOW:
            return value & 0xFF
        if self.access == ACCESS_HIGH:
            return value >> 8
        high, self.read_high = self.read_high, not self.read_high
        return value >> 8 if high else value & 0xFF


class I8254(Device):
    """The timer. IRQ 0 is channel 0's.

    `lost_tick_policy`: `discard` drops ticks that could not be delivered in time; `delay` delivers them later, one
    after each acknowledge. For that the machine must say when IRQ 0 was acknowledged (`watch_acks`); until it does,
    ticks are discarded. QEMU's options name this property `kvm-pit.lost_tick_policy`.
    """

    driver = "isa-pit"
    description = "8254 interval timer"
    bus_type = "ISA"
    user_creatable = False
    properties = (Property("lost_tick_policy", "str", "delay", "discard or delay"),)
    aliases = ("kvm-pit",)
    """Other driver names that `-global` knows it by."""

    def __init__(self, id: str | None = None, **values: Any) -> None:
        super().__init__(id, **values)
        policy = self.values["lost_tick_policy"]
        if policy not in ("discard", "delay"):
            raise PropertyError(
                f"Property '{self.driver}.lost_tick_policy' doesn't take value '{policy}': it is discard or delay",
                self.driver,
                "lost_tick_policy",
            )
        self.channels = (Channel(True), Channel(True), Channel(False))
        self.pending = 0
        """Ticks that wait for the one in flight to be acknowledged."""
        self.trace = Trace()
        self._delay = policy == "delay"
        self._watched = False
        self._in_flight_since: int | None = None
        self._port61 = 0
        self._next_rise = 0
        self._line: EdgeLine
        self._timer: Timer

    def realize(self, board: Board) -> None:
        super().realize(board)
        self.trace = board.trace
        self._line = EdgeLine(self.isa_irq(0))
        self._timer = board.clock.timer(f"{self.path}/channel0", self._tick)
        self.holdings.hold("timer", "channel0", self._timer.cancel)
        self.map_ports(0x40, IoRegion("pit", 4, self._read, self._write, max_access=1))
        self.map_ports(0x61, IoRegion("port61", 1, self._read_port61, self._write_port61, max_access=1))

    def reset(self) -> None:
        now = self.board.clock.now()
        self._write_port61(0, 1, 0)
        for channel in self.channels:
            channel.reset(now)
        self.reset_reinject()
        self._arm(0)

    # IRQ 0.

    def watch_acks(self) -> Callable[[], None]:
        """The call to make each time IRQ 0 is acknowledged; from now on `delay` means something."""
        self._watched = True
        return self._acknowledged

    def mask_changed(self, masked: bool) -> None:
        """IRQ 0 was masked or unmasked at one of the chips.

        A tick that is in flight when a chip is masked may never be acknowledged; after an unmask ticks start anew, or
        a guest that looks whether its timer works finds it dead. (pit_mask_notifer)
        """
        if not masked:
            self.reset_reinject()

    def reset_reinject(self) -> None:
        """Forget ticks that wait: the guest unmasked IRQ 0, or programmed the channel anew."""
        self.pending = 0
        self._in_flight_since = None

    def _arm(self, after: int) -> None:
        channel = self.channels[0]
        rise = channel.rise_after(after)
        if rise is None:
            self._timer.cancel()
        else:
            self._next_rise = rise
            self._timer.arm(channel.time_of(rise))

    def _tick(self) -> None:
        channel = self.channels[0]
        now = self.board.clock.now()
        ticks = max(channel.ticks(now), self._next_rise)
        if channel.mode in (2, 3):
            due = ticks // channel.count - self._next_rise // channel.count + 1
            self._arm(max(ticks, channel.ticks(now + MIN_PERIOD_NS) - channel.count))
        else:
            due = 1
        if not (self._delay and self._watched):
            self._line.pulse()
            return
        if self._in_flight_since is not None and now - self._in_flight_since > GIVE_UP_NS:
            self.reset_reinject()
        self.pending += due
        if self._in_flight_since is None:
            self._inject()

    def _inject(self) -> None:
        self.pending -= 1
        self._in_flight_since = self.board.clock.now()
        self._line.pulse()

    def _acknowledged(self) -> None:
        if self._in_flight_since is not None:
            self._in_flight_since = None
            if self.pending:
                self._inject()

    # The guest's side.

    def _read(self, offset: int, _size: int) -> int:
        value = 0 if offset == 3 else self.channels[offset].read(self.board.clock.now())
        if self.trace.on:
            self.trace.emit(PitIoportRead(offset, value))
        return value

    def _write(self, offset: int, _size: int, value: int) -> None:
        value &= 0xFF
        if self.trace.on:
            self.trace.emit(PitIoportWrite(offset, value))
        if offset == 3:
            self._control(value)
        elif self.channels[offset].write(value, self.board.clock.now()):
            if offset == 0:
                self.reset_reinject()
                self._arm(0)
        elif offset == 0 and self.channels[0].start is None:
            self._timer.cancel()

    def _control(self, value: int) -> None:
        now = self.board.clock.now()
        select = value >> 6
        if select == 3:
            for i, channel in enumerate(self.channels):
                if value >> (i + 1) & 1:
                    if not value & 0x20:
                        channel.latch_count(now)
                    if not value & 0x10 and channel.latched_status is None:
                        channel.latched_status = channel.status(now)
            return
        channel = self.channels[select]
        access = value >> 4 & 3
        if access == ACCESS_LATCH:
            channel.latch_count(now)
            return
        channel.control(access, value >> 1 & 7, bool(value & 1))
        if select == 0:
            self._timer.cancel()

    def _read_port61(self, _offset: int, _size: int) -> int:
        now = self.board.clock.now()
        refresh = now // REFRESH_NS & 1
        return self._port61 | self.channels[2].out(now) << 5 | refresh << 4

    def _write_port61(self, _offset: int, _size: int, value: int) -> None:
        self._port61 = value & 0x0F
        self.channels[2].set_gate(bool(value & 1), self.board.clock.now())
