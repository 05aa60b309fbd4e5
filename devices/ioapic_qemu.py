"""The I/O APIC with the rules of QEMU's user-space device (`qemu` personality).

What is special about it, all of it recorded in `vectors qemu-ioapic.json`:
  * version 0x20 with an EOI register at 0x40, or 0x11 without one;
  * IOWIN and the EOI register take 32-bit accesses only (window-width, eoi-access-size), and the 256 bytes repeat
    through the page;
  * each high level on an unmasked edge pin delivers, also without a falling edge before it (isa-no-dedupe-level); an
    edge while masked is lost for good (edge-masked-lost);
  * any write of any entry evaluates all pins (service-runs-on-any-rte-write);
  * input 0 uses the entry of pin 2: ISA IRQ 0 is GSI 2 (pin0-aliases-pin2);
  * an ExtINT entry runs the 8259's acknowledge cycle each time it is looked at (extint-takes-pic-vector);
  * messages go out as MSI writes, so entry bits 55:48 are address bits 11:4 (dest-ext-bits-55-48).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from devices.apic_bus import MSI_BASE
from devices.ioapic import (
    DELIVERY_MODE_SHIFT,
    EOI,
    EOI_DELAY_NS,
    EXTINT,
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
)
from vmm import order

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.apic_bus import ApicBus
    from devices.ioapic import AckNotifiers
    from devices.lapic_core import LapicCore
    from vmm.order import ClockLike
    from vmm.trace import Trace

ALL_VECTORS = (1 << 256) - 1


class QemuIoApic(IoApic):
    """QEMU's I/O APIC. `version`: 0x20 or 0x11. `pic_read_irq()`: the 8259 pair's interrupt acknowledge cycle."""

    WIRING: ClassVar[tuple[str, ...]] = ("pic_read_irq",)
    __slots__ = (*WIRING,)

    personality = "qemu"
    window_size = 0x1000

    def __init__(
        self,
        bus: ApicBus,
        clock: ClockLike | None,
        trace: Trace,
        acks: AckNotifiers | None = None,
        queue: order.WorkQueue | None = None,
        name: str = "ioapic",
    ) -> None:
        super().__init__(bus, clock, trace, acks, queue, name)
        self.version = 0x20
        self.pic_read_irq: Callable[[], int] = _spurious

    # Inputs.

    def set_irq(self, pin: int, source: int, level: bool, line_status: bool = False) -> int:  # noqa: ARG002
        if not 0 <= pin < PINS:
            return -1
        if pin == 0:
            pin = 2
        if order.hook is not None:  # QEMU's big lock
            self.lock.acquire()
        if self.trace.on:
            self.trace.emit(IoapicSetIrq(pin, source, bool(level)))
        sources = self.sources
        bit = 1 << pin
        entry = self.redir[pin]
        ret = 1
        if level:
            sources[pin] |= 1 << source
            if entry & LEVEL:
                self.irr |= bit
                # A masked pin starts a pass, too: other pins' ExtINT entries fetch a vector in it.
                ret = -1 if entry & REMOTE_IRR else self.service(pin)
            elif entry & MASKED:
                # Ref: 82093AA, 3.2.4, bit 16: edges on a masked pin are ignored.
                ret = -1
            else:
                self.irr |= bit
                ret = self.service(pin)
        else:
            sources[pin] &= ~(1 << source)
            if not sources[pin] and entry & LEVEL:
                self.irr &= ~bit
        if order.hook is not None:
            self.lock.release()
        return ret

    def service(self, asked: int = -1) -> int:
        """Evaluate all pins that have something pending; returns what became of pin `asked`."""
        ret = 0
        pending = self.irr
        while pending:
            pin = (pending & -pending).bit_length() - 1
            pending &= pending - 1
            outcome = self.evaluate(pin)
            if pin == asked:
                ret = outcome
        return ret

    def evaluate(self, pin: int) -> int:
        """Deliver unless masked or waiting for an EOI; an edge is used up by it."""
        bit = 1 << pin
        if not self.irr & bit:
            return 0
        entry = self.redir[pin]
        mode = entry >> DELIVERY_MODE_SHIFT & 7
        # The vector is fetched before the mask is looked at: that is a side effect on the 8259.
        vector = self.pic_read_irq() & VECTOR if mode == EXTINT else entry & VECTOR
        if entry & MASKED:
            return -1
        level = entry & LEVEL
        if level:
            if entry & REMOTE_IRR:
                return 0
            self.redir[pin] = entry | REMOTE_IRR
            if self.trace.on:
                self.trace.emit(IoapicSetRemoteIrr(pin))
        else:
            self.irr &= ~bit
        address = MSI_BASE | entry >> 48 << 4 | (4 if entry & LOGICAL else 0)
        return max(self.bus.msi_from_cpu_side(address, mode << 8 | (0x8000 if level else 0) | vector), 0)

    # EOI.

    def eoi(self, vector: int, cpu: int, level: bool = True, suppressed: bool = False) -> None:  # noqa: ARG002
        if level and not suppressed:
            self.broadcast(vector)

    def broadcast(self, vector: int) -> None:
        """End `vector` on every level pin that has it now. A value above 0xff matches none."""
        if order.hook is not None:
            self.lock.acquire()
        if self.trace.on:
            self.trace.emit(IoapicEoiBroadcast(vector))
        pin = -1
        pins = self.vector_pins.get(vector, 0)
        while pins:
            pin += (pins & -pins).bit_length()
            if self.redir[pin] & LEVEL:
                self.eoi_pin(pin)
            pins = self.vector_pins.get(vector, 0) >> pin + 1
        if order.hook is not None:
            self.lock.release()

    def eoi_pin(self, pin: int) -> None:
        """End one level pin, whether it waits for an EOI or not: an irqfd may have gone past the chip."""
        self._acknowledge(pin)
        if pin == 2:
            self._acknowledge(0)  # input 0 has no entry of its own
        entry = self.redir[pin]
        if not entry & REMOTE_IRR:
            return
        self.redir[pin] = entry & ~REMOTE_IRR
        if self.trace.on:
            self.trace.emit(IoapicClearRemoteIrr(pin, entry & VECTOR))
        if entry & MASKED or not self.irr >> pin & 1:
            self.eoi_runs[pin] = 0
            return
        self.again(pin)

    def again(self, pin: int) -> None:
        """The line is still high at the EOI: deliver anew, now or, for once in so many times, later."""
        self.eoi_runs[pin] += 1
        if self.eoi_runs[pin] >= self.max_successive_eois:
            self.eoi_runs[pin] = 0
            self.eoi_inject.schedule_after(EOI_DELAY_NS)
            if self.trace.on:
                self.trace.emit(IoapicEoiDelayedReassert(pin))
        else:
            self.service()

    def _acknowledge(self, pin: int) -> None:
        if self.acks.has_notifier(pin):
            if order.hook is not None:
                self.lock.release()
                order.hook("ioapic.eoi.before-ack", self)
            self.acks.notify_acked(pin)
            if order.hook is not None:
                order.hook("ioapic.eoi.after-ack", self)
                self.lock.acquire()

    def inject_delayed(self) -> None:
        if order.hook is not None:
            self.lock.acquire()
        self.service()
        if order.hook is not None:
            self.lock.release()

    def eoi_vectors(self, lapic: LapicCore) -> tuple[int, int]:  # noqa: ARG002
        """Every EOI of a level-triggered interrupt comes here."""
        return ALL_VECTORS, -1

    # Registers.

    def mmio_read(self, offset: int, size: int) -> int:
        if size == 8:
            return self.mmio_read(offset, 4) | self.mmio_read(offset + 4, 4) << 32
        offset &= 0xFF
        if offset == IOREGSEL:
            return self.ioregsel
        if offset == IOWIN and size == 4:
            return self.read_register()
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        if size == 8:
            self.mmio_write(offset, 4, value & 0xFFFF_FFFF)
            self.mmio_write(offset + 4, 4, value >> 32)
            return
        offset &= 0xFF
        if order.hook is not None:
            self.lock.acquire()
        if offset == IOREGSEL:
            self.ioregsel = value & 0xFF
        elif offset == IOWIN and size == 4:
            self.write_register(value)
        if order.hook is not None:
            self.lock.release()
        if offset == EOI and size == 4 and self.version == 0x20:
            self.broadcast(value)

    def write_redirection(self, pin: int, high: bool, value: int) -> None:
        self._store(pin, high, value)
        self.eoi_runs[pin] = 0
        self.service()

    # Save and restore.

    def set_state(self, state: IoApicState) -> None:
        """Entries and IRR as they are given. Pins that can deliver do so: a level that was high must not be lost."""
        self._load(state)
        self.irr = state.irr & (1 << PINS) - 1
        self.service()


def _spurious() -> int:
    """No 8259: what one without requests answers."""
    return 7
