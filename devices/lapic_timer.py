"""The local APIC's timer: one-shot, periodic and TSC-deadline.

The timer counts at `BUS_HZ` divided by the divide configuration. One tick of the bus is one nanosecond, as in KVM and
QEMU, so a guest that calibrates against either finds the same. Ref: Intel SDM vol. 3, 11.5.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import order

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.order import ClockLike, TimerLike

BUS_HZ = 1_000_000_000
"""Ticks a second of the APIC bus."""

ONE_SHOT, PERIODIC, TSC_DEADLINE = 0, 1, 2

MIN_PERIOD_NS = 200_000
"""A periodic timer does not fire more often: a guest that asks for a tick each nanosecond must not stop the host
(the limit is KVM's, `min_timer_period_us`)."""

_FAR_NS = 1 << 62


class LapicTimer(order.State):
    """`expired()` is called when the count reaches zero. `clock` is None under the explorer: then nothing expires.

    `tsc()` reads the guest's time stamp counter; without it there is no TSC-deadline mode. `tsc_hz()` is its rate; it
    takes a while to measure, so only a deadline asks for it.
    """

    WIRING = ("clock", "expired", "timer", "tsc", "tsc_hz")
    VISIBLE = ("divide", "due", "initial", "mode", "period", "tsc_deadline")
    BOOKKEEPING = ()
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(
        self,
        name: str,
        clock: ClockLike | None,
        expired: Callable[[], None],
        tsc: Callable[[], int] | None = None,
        tsc_hz: Callable[[], float] = lambda: BUS_HZ,
    ) -> None:
        self.clock = clock
        self.expired = expired
        self.tsc = tsc
        self.tsc_hz = tsc_hz
        self.timer: TimerLike | None = None if clock is None else clock.timer(name, self._fire)
        self.divide = 0
        self.due = 0
        """When the count reaches zero (ns), 0 while it stands still."""
        self.initial = 0
        self.mode = ONE_SHOT
        self.period = 0
        """Nanoseconds from the initial count to zero."""
        self.tsc_deadline = 0

    def reset(self) -> None:
        """Stopped, one-shot, divided by 2."""
        self.stop()
        self.divide = 0
        self.mode = ONE_SHOT

    def stop(self) -> None:
        """Count no more; counts and deadline read zero."""
        if self.timer is not None:
            self.timer.cancel()
        self.due = 0
        self.initial = 0
        self.period = 0
        self.tsc_deadline = 0

    @property
    def divisor(self) -> int:
        """1 to 128. Ref: SDM vol. 3, figure 11-10: bits 3, 1 and 0; 111 divides by 1."""
        code = self.divide & 3 | self.divide >> 1 & 4
        return 1 << (code + 1 & 7)

    def set_mode(self, mode: int) -> None:
        """A write of the LVT entry. A change between one-shot and periodic lets the count go on; to or from
        TSC-deadline stops it. Ref: SDM vol. 3, 11.5.4.1."""
        if mode != self.mode:
            self._settle()
            if TSC_DEADLINE in (mode, self.mode):
                self.stop()
            self.mode = mode

    def set_divide(self, value: int) -> None:
        """A write of the divide configuration: what is left of the count stays, and runs at the new rate."""
        value &= 0xB
        if value == self.divide:
            return
        self._settle()
        before = self.divisor
        self.divide = value
        if self.due and self.clock is not None:
            now = self.clock.now()
            left = max(self.due - now, 0) * self.divisor // before
            self.period = self._period()
            self._arm(now + left)

    def set_initial(self, count: int) -> None:
        """A write of the initial count starts the timer, 0 stops it. Ignored in TSC-deadline mode."""
        if self.mode == TSC_DEADLINE:
            return
        self.stop()
        self.initial = count
        if count and self.clock is not None:
            self.period = self._period()
            self._arm(self.clock.now() + self.period)

    def _period(self) -> int:
        ns = self.initial * self.divisor
        return max(ns, MIN_PERIOD_NS) if self.mode == PERIODIC else ns

    def _arm(self, due: int) -> None:
        self.due = due
        if self.timer is not None:
            self.timer.arm(due)

    def _settle(self) -> None:
        """A guest may see the count at zero, and act on it, before the host's timer has called back."""
        if self.due and self.clock is not None and self.timer is not None and self.clock.now() >= self.due:
            self.timer.cancel()
            self._fire()

    @property
    def current(self) -> int:
        """The current count."""
        if not self.due or self.clock is None or self.mode == TSC_DEADLINE:
            return 0
        left = self.due - self.clock.now()
        if left < 0:
            # Due but not fired yet: a periodic timer has started over.
            left = left % self.period if self.mode == PERIODIC else 0
        return min(-(-left // self.divisor), self.initial)

    def set_tsc_deadline(self, deadline: int) -> None:
        """A write of IA32_TSC_DEADLINE; 0 disarms, the past fires at once. Ignored outside TSC-deadline mode."""
        if self.mode != TSC_DEADLINE or self.tsc is None or self.clock is None:
            return
        self.stop()
        self.tsc_deadline = deadline
        if deadline:
            self._arm_tsc()

    def _arm_tsc(self) -> None:
        assert self.tsc is not None
        assert self.clock is not None
        left = self.tsc_deadline - self.tsc()
        if left <= 0:
            self.tsc_deadline = 0
            self.due = 0
            self.expired()
        else:
            self._arm(self.clock.now() + min(-(-left * 1_000_000_000 // round(self.tsc_hz())), _FAR_NS))

    def _fire(self) -> None:
        if self.mode == TSC_DEADLINE:
            if self.tsc_deadline:
                self._arm_tsc()  # rounding may have woken it one tick early
            return
        assert self.clock is not None
        if self.mode == PERIODIC:
            # Ticks that were missed are not made up for: they would find IRR set.
            self.period = period = max(self.period, MIN_PERIOD_NS)
            late = self.clock.now() - self.due
            self._arm(self.due + period * (late // period + 1))
        else:
            self.due = 0
        self.expired()
