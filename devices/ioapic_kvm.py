"""The I/O APIC with the rules of Linux' in-kernel irqchip (`kvm` personality).

What is special about it, all of it recorded in `vectors kvm-ioapic.json`:
  * version 0x11, so no EOI register; the window is 0x100 bytes; IOWIN takes any access size (mmio-sizes, mmio-mirror);
  * an edge while masked stays in IRR and is not replayed: the line must fall first (edge-masked-lost);
  * an EOI matches on the vector that the entry has *now*, so a vector changed in service leaves Remote IRR stuck
    (vector-change-pending);
  * the ack notifiers run with the chip's lock dropped, and Remote IRR is cleared only afterwards;
  * unmasking a pin whose level is latched asks the resampler instead of delivering (unmask-resamples-*);
  * a local APIC forwards only EOIs of vectors in a bitmap that is computed from the table (dest-change-in-service).
Ref: Linux, arch/x86/kvm/ioapic.c of 6.18 for the names of the steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from devices.ioapic import (
    DELIVERY_MODE_SHIFT,
    DESTINATION_SHIFT,
    EOI_DELAY_NS,
    FIXED,
    IOREGSEL,
    IOWIN,
    LEVEL,
    LOGICAL,
    MASKED,
    PINS,
    REMOTE_IRR,
    VECTOR,
    IoApic,
    IoapicClearRemoteIrr,
    IoapicEoiBroadcast,
    IoapicEoiDelayedReassert,
    IoapicSetIrq,
    IoapicSetRemoteIrr,
    IoApicState,
    IoapicUnmaskResample,
)
from vmm import order

if TYPE_CHECKING:
    from devices.apic_bus import ApicBus
    from devices.ioapic import AckNotifiers
    from devices.lapic_core import LapicCore
    from vmm.order import ClockLike
    from vmm.trace import Trace

RTC_PIN = 8

POINTS = {
    "ioapic.eoi.before-ack": "kvm_ioapic_update_eoi_one: ioapic->lock dropped, before kvm_notify_acked_irq",
    "ioapic.eoi.after-ack": "kvm_ioapic_update_eoi_one: the notifiers ran, before ioapic->lock is taken again",
}
"""Besides these, each taking of `IoApic.lock` is one."""


class KvmIoApic(IoApic):
    """The kernel's I/O APIC. `resample_on_unmask`: the rule of kernels since 6.3 (Linux fef8f2b90edb)."""

    WIRING: ClassVar[tuple[str, ...]] = ("resample_on_unmask",)
    VISIBLE: ClassVar[tuple[str, ...]] = ("irr_delivered", "rtc_cpus", "rtc_pending")
    __slots__ = (*WIRING, *VISIBLE)

    personality = "kvm"
    window_size = 0x100
    read_unknown = 0xFFFF_FFFF

    def __init__(
        self,
        bus: ApicBus,
        clock: ClockLike | None,
        trace: Trace,
        acks: AckNotifiers | None = None,
        queue: order.WorkQueue | None = None,
        name: str = "ioapic",
    ) -> None:
        self.resample_on_unmask = True
        self.irr_delivered = 0
        """Edges that were sent: the line may still be high, but `get_state` does not show them as pending."""
        self.rtc_cpus: dict[int, int] = {}
        """Per local APIC that has not ended the last RTC tick yet, the tick's vector."""
        self.rtc_pending = 0
        """How many EOIs are missing until the next tick is no longer coalesced."""
        super().__init__(bus, clock, trace, acks, queue, name)

    def reset(self) -> None:
        super().reset()
        self.irr_delivered = 0
        self.rtc_cpus.clear()
        self.rtc_pending = 0
        # The lines are still what they are: a level that is high is pending again as soon as its pin is unmasked.
        for pin in range(PINS):
            if self.sources[pin]:
                self.irr |= 1 << pin

    # Inputs.

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = False) -> int:
        if not 0 <= pin < PINS:
            return -1
        if order.hook is not None:  # kvm_ioapic_set_irq: spin_lock(&ioapic->lock)
            self.lock.acquire()
        if self.trace.on:
            self.trace.emit(IoapicSetIrq(pin, source, bool(level)))
        sources = self.sources
        if level:
            sources[pin] |= 1 << source
        else:
            sources[pin] &= ~(1 << source)
        ret = self.drive(pin, sources[pin] != 0, line_status)
        if order.hook is not None:
            self.lock.release()
        return ret

    def clear_irq(self, pin: int, source: int) -> bool:
        """Let a source go if it holds the pin; whether it did. (kvm_clear_irq as posted in July 2012, never merged)"""
        if not 0 <= pin < PINS:
            return False
        if order.hook is not None:
            self.lock.acquire()
        bit = 1 << source
        held = bool(self.sources[pin] & bit)
        if held:
            if self.trace.on:
                self.trace.emit(IoapicSetIrq(pin, source, False))
            self.sources[pin] &= ~bit
            self.drive(pin, self.sources[pin] != 0, False)
        if order.hook is not None:
            self.lock.release()
        return held

    def drive(self, pin: int, level: bool, line_status: bool) -> int:
        """The OR of the pin's sources is `level` (again). Lock held. (ioapic_set_irq)"""
        bit = 1 << pin
        if not level:
            self.irr &= ~bit
            return 1
        if line_status and pin == RTC_PIN and self.rtc_pending:
            return 0
        if not self.redir[pin] & LEVEL:
            self.irr_delivered &= ~bit
            if self.irr & bit:
                return 0
        self.irr |= bit
        return self.evaluate(pin, line_status)

    def evaluate(self, pin: int, line_status: bool = False) -> int:
        """Deliver unless masked or waiting for an EOI. The callers know that IRR is set. (ioapic_service)"""
        entry = self.redir[pin]
        if entry & MASKED or entry & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR:
            return -1
        level = entry & LEVEL
        if not level:
            self.irr_delivered |= 1 << pin
        tick = line_status and pin == RTC_PIN
        ret = self.bus.deliver(
            entry >> DESTINATION_SHIFT,
            bool(entry & LOGICAL),
            entry >> DELIVERY_MODE_SHIFT & 7,
            entry & VECTOR,
            bool(level),
            reached=self.rtc_cpus if tick else None,
        )
        if tick:
            self.await_ticks(ret)
        if ret and level:
            # Also after "no destination" (-1) of the slow path, as the kernel has it.
            self.redir[pin] = entry | REMOTE_IRR
            if self.trace.on:
                self.trace.emit(IoapicSetRemoteIrr(pin))
        return ret

    def await_ticks(self, delivered: int) -> None:
        """So many CPUs have an RTC tick to end. Never the raw value, which may be -1 (5678de3f1501, CVE-2014-0155)."""
        self.rtc_pending = max(delivered, 0)

    # EOI.

    def eoi(self, vector: int, cpu: int, level: bool = True, suppressed: bool = False) -> None:
        if order.hook is not None:  # kvm_ioapic_update_eoi
            self.lock.acquire()
        if self.trace.on:
            self.trace.emit(IoapicEoiBroadcast(vector))
        if self.rtc_cpus and self.rtc_cpus.get(cpu) == vector:
            del self.rtc_cpus[cpu]
            self.rtc_pending = max(self.rtc_pending - 1, 0)
        # All pins with this vector (Linux 4fa6b9c5dc41), looked up anew after each: an ack notifier, or whoever had
        # the lock meanwhile, may have changed a later entry.
        pin = -1
        pins = self.vector_pins.get(vector, 0)
        while pins:
            pin += (pins & -pins).bit_length()
            self.eoi_pin(pin, level and not suppressed)
            pins = self.vector_pins.get(vector, 0) >> pin + 1
        if order.hook is not None:
            self.lock.release()

    def eoi_pin(self, pin: int, end: bool) -> None:
        """Acknowledge one pin; `end`: and clear Remote IRR. Lock held. (kvm_ioapic_update_eoi_one)"""
        self.ack(pin)
        if not end:
            return
        bit = 1 << pin
        entry = self.redir[pin] & ~REMOTE_IRR
        self.redir[pin] = entry
        if self.trace.on:
            self.trace.emit(IoapicClearRemoteIrr(pin, entry & VECTOR))
        if entry & MASKED or not self.irr & bit:
            self.eoi_runs[pin] = 0
            return
        self.again(pin)

    def again(self, pin: int) -> None:
        """The line is still high at the EOI: deliver anew, now or, for once in so many times, later."""
        self.eoi_runs[pin] += 1
        if self.eoi_runs[pin] == self.max_successive_eois:
            # Linux 184564efae4d: let the guest make progress.
            self.eoi_runs[pin] = 0
            self.eoi_inject.schedule_after(EOI_DELAY_NS)
            if self.trace.on:
                self.trace.emit(IoapicEoiDelayedReassert(pin))
        else:
            self.evaluate(pin)

    def ack(self, pin: int) -> None:
        """Tell the ack notifiers, with the lock dropped: they call `set_irq`. What is asserted meanwhile only reaches
        IRR, because Remote IRR is still set, and is delivered by the caller."""
        if order.hook is not None:
            self.lock.release()
            order.hook("ioapic.eoi.before-ack", self)
        self.acks.notify_acked(pin)
        if order.hook is not None:
            order.hook("ioapic.eoi.after-ack", self)
            self.lock.acquire()

    def inject_delayed(self) -> None:
        """The storm limiter's work: deliver every level pin that waits. (kvm_ioapic_eoi_inject_work)"""
        if order.hook is not None:
            self.lock.acquire()
        for pin in range(PINS):
            entry = self.redir[pin]
            if entry & (LEVEL | REMOTE_IRR) == LEVEL and self.irr >> pin & 1:
                self.evaluate(pin)
        if order.hook is not None:
            self.lock.release()

    def eoi_vectors(self, lapic: LapicCore) -> tuple[int, int]:
        """(kvm_ioapic_scan_entry) A vector whose entry now aims elsewhere still counts while this APIC has it pending
        (Linux 0fc5a36dd6b3): else its EOI would be lost and Remote IRR stuck."""
        vectors = 0
        stale = -1
        tick = self.rtc_cpus.get(lapic.index)
        if tick is not None:
            vectors |= 1 << tick
        for pin, entry in enumerate(self.redir):
            if entry & LEVEL or pin == RTC_PIN or self.acks.has_notifier(pin):
                vector = entry & VECTOR
                if lapic.matches(entry >> DESTINATION_SHIFT, bool(entry & LOGICAL)):
                    vectors |= 1 << vector
                elif (lapic.irr | lapic.isr) >> vector & 1:
                    vectors |= 1 << vector
                    stale = max(stale, vector)
        return vectors, stale

    # Registers.

    def mmio_read(self, offset: int, size: int) -> int:  # noqa: ARG002
        if offset == IOREGSEL:
            return self.ioregsel
        if offset == IOWIN:
            return self.read_register()
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        if size == 8:
            value &= 0xFFFF_FFFF
        if order.hook is not None:  # ioapic_mmio_write
            self.lock.acquire()
        if offset == IOREGSEL:
            self.ioregsel = value & 0xFF
        elif offset == IOWIN:
            self.write_register(value)
        if order.hook is not None:
            self.lock.release()

    def write_redirection(self, pin: int, high: bool, value: int) -> None:
        old = self.redir[pin]
        new = self._store(pin, high, value)
        if self.irr >> pin & 1 and new & (LEVEL | MASKED | REMOTE_IRR) == LEVEL:
            self.unmasked(pin)
        # Who must forward which EOI has changed. The kernel asks only those CPUs that the entry means or meant; it
        # reads the old destination in the new destination mode.
        if new >> DELIVERY_MODE_SHIFT & 7 == FIXED:
            self.bus.request_scan_of(new >> DESTINATION_SHIFT, bool(new & LOGICAL))
            if (old ^ new) >> DESTINATION_SHIFT or (old ^ new) & LOGICAL:
                self.bus.request_scan_of(old >> DESTINATION_SHIFT, bool(new & LOGICAL))
        else:
            self.bus.request_scan()

    def unmasked(self, pin: int) -> None:
        """A level pin can deliver again and its level is latched in IRR, perhaps from before its device was served.

        A resampler is asked to look again, and the device asserts once more if it still wants service. The sources
        keep what they have: that is what makes `unmask-resamples-line0-refires` happen. (ioapic_write_indirect)
        """
        if self.resample_on_unmask and self.acks.resample(pin):
            if self.trace.on:
                self.trace.emit(IoapicUnmaskResample(pin))
            self.irr &= ~(1 << pin)
        else:
            self.evaluate(pin)

    # Save and restore.

    def get_state(self) -> IoApicState:
        return super().get_state()._replace(irr=self.irr & ~self.irr_delivered)

    def set_state(self, state: IoApicState) -> None:
        """As KVM_SET_IRQCHIP: raw entries, no unmask rule; every bit of `irr` is driven high anew. The levels of the
        sources stay as they are."""
        if order.hook is not None:  # kvm_set_ioapic
            self.lock.acquire()
        self._load(state)
        self.irr = 0
        self.irr_delivered = 0
        self.bus.request_scan()
        self.rtc_cpus.clear()
        self.rtc_pending = 0
        for pin in range(PINS):
            if state.irr >> pin & 1:
                self.drive(pin, True, True)
        self.rtc_cpus.clear()
        self.rtc_pending = 0
        for lapic in self.bus.lapics:
            self.restore_rtc(lapic)
        if order.hook is not None:
            self.lock.release()

    def restore_rtc(self, lapic: LapicCore) -> None:
        """A local APIC's state was set: has it an RTC tick to end? (kvm_rtc_eoi_tracking_restore_one)"""
        entry = self.redir[RTC_PIN]
        vector = entry & VECTOR
        if not lapic.matches(entry >> DESTINATION_SHIFT, bool(entry & LOGICAL)):
            return
        pending = bool((lapic.irr | lapic.isr) >> vector & 1)
        if pending == (lapic.index in self.rtc_cpus):
            return
        if pending:
            self.rtc_cpus[lapic.index] = vector
            self.rtc_pending += 1
        else:
            del self.rtc_cpus[lapic.index]
            self.rtc_pending = max(self.rtc_pending - 1, 0)
