"""What a local APIC does with interrupts: accept, prioritize, hand to the CPU, end. `devices.lapic` has its registers.

Where the manual leaves room, it does as Linux' in-kernel irqchip: the trigger mode register is written when IRR is set,
vectors 0 to 15 are accepted and never delivered, a software-disabled APIC refuses fixed interrupts and takes NMI, INIT
and SIPI, and an EOI is forwarded to the I/O APICs only for vectors that they want to hear of.
Ref: Intel SDM vol. 3, chapter 11; `vectors kvm-ioapic.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

from devices import lapic_registers as r
from devices.apic_bus import (
    CLUSTER,
    EXTINT,
    FIXED,
    FLAT,
    INIT,
    LOWEST_PRIORITY,
    NMI,
    REMOTE_READ,
    SMI,
    STARTUP,
    X2APIC,
    X2APIC_BROADCAST,
)
from devices.lapic_timer import BUS_HZ, LapicTimer
from vmm import order
from vmm.errors import ConfigError
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.apic_bus import ApicBus
    from vmm.order import ClockLike
    from vmm.trace import Trace


POINTS = {
    "lapic.accept": "__apic_accept_irq: IRR and TMR change without a lock, under whatever the sender holds",
}


class CpuSignals(Protocol):
    """What a local APIC tells its CPU. All of it may happen during any access; none of it may raise."""

    def interrupt_changed(self) -> None:
        """`pending_vector` or `accept_pic_intr` may have changed."""

    def nmi(self) -> None: ...
    def smi(self) -> None: ...

    def init(self) -> None:
        """INIT: the APIC was reset already; an application processor waits for SIPI now."""

    def sipi(self, vector: int) -> None:
        """Start at `vector` << 12. Sent only to a CPU that waits for it."""


class ApicAcceptIrq(Event):
    """A local APIC set its IRR."""

    cpu: int
    vector: int
    level: bool
    coalesced: bool


class ApicLocalDeliver(Event):
    """An event of the local vector table."""

    cpu: int
    lvt: int
    entry: int


class ApicAcknowledge(Event):
    """The CPU took an interrupt: IRR to ISR."""

    cpu: int
    vector: int


class ApicEoi(Event):
    """An EOI; `vector` is -1 if nothing was in service."""

    cpu: int
    vector: int


class LapicCore(order.State):
    """One CPU's local APIC. `index` is the CPU's number and its initial APIC ID.

    `suppress_eoi`: the version register offers EOI-broadcast suppression; `cmci`: there is a CMCI entry; `x2apic`: the
    CPU has x2APIC mode; `physical_bits`: width of a physical address. `tsc`, `tsc_hz`: as in `LapicTimer`.
    """

    WIRING: ClassVar[tuple[str, ...]] = (
        "bus",
        "cmci",
        "cpu",
        "has_x2apic",
        "index",
        "physical_bits",
        "suppress_eoi",
        "timer",
        "trace",
    )
    VISIBLE: ClassVar[tuple[str, ...]] = (
        "_tpr",
        "apic_id",
        "arb_prio",
        "base",
        "dfr",
        "esr",
        "icr",
        "irr",
        "isr",
        "ldr",
        "lint0_level",
        "lint1_level",
        "lvt",
        "new_errors",
        "svr",
        "tmr",
        "wait_for_sipi",
    )
    BOOKKEEPING: ClassVar[tuple[str, ...]] = (
        "eoi_vectors",
        "hardware_enabled",
        "page",
        "pending",
        "scan_requested",
        "software_enabled",
        "stale_eoi",
        "x2apic_mode",
    )
    __slots__: tuple[str, ...] = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(
        self,
        index: int,
        cpu: CpuSignals,
        bus: ApicBus,
        clock: ClockLike | None,
        trace: Trace,
        *,
        tsc: Callable[[], int] | None = None,
        tsc_hz: Callable[[], float] = lambda: BUS_HZ,
        x2apic: bool = True,
        suppress_eoi: bool = False,
        cmci: bool = False,
        physical_bits: int = 40,
    ) -> None:
        if not 0 <= index < 255:
            raise ConfigError(f"CPU {index}: an xAPIC ID is 0 to 254")
        self.index = index
        self.cpu = cpu
        self.bus = bus
        self.trace = trace
        self.has_x2apic = x2apic
        self.suppress_eoi = suppress_eoi
        self.cmci = cmci
        self.physical_bits = physical_bits
        self.timer = LapicTimer(f"lapic{index}.timer", clock, self._timer_expired, tsc, tsc_hz)
        self.lint0_level = False
        self.lint1_level = False
        self.arb_prio = 0
        self.scan_requested = True
        self.eoi_vectors = 0
        self.stale_eoi = -1
        self.pending: int | None = None
        self._power_on()
        bus.attach(self)

    def reset(self) -> None:
        """Power-on state; an application processor waits for SIPI."""
        self._power_on()
        self.bus.changed()
        self.cpu.interrupt_changed()

    def close(self) -> None:
        """Leave the bus; the timer does not fire any more."""
        self.timer.stop()
        self.bus.detach(self)

    def _power_on(self) -> None:
        self.base = r.DEFAULT_BASE | r.BASE_ENABLE | (0 if self.index else r.BASE_BSP)
        self._base_changed()
        self.apic_id = self.index
        self.wait_for_sipi = self.index != 0
        self._clear()

    def _base_changed(self) -> None:
        """Derive the mode, and where the registers answer, from IA32_APIC_BASE."""
        self.hardware_enabled = bool(self.base & r.BASE_ENABLE)
        self.x2apic_mode = self.base & (r.BASE_ENABLE | r.BASE_X2APIC) == r.BASE_ENABLE | r.BASE_X2APIC
        xapic = self.hardware_enabled and not self.x2apic_mode
        self.page = self.base >> 12 & 0xF_FFFF_FFFF if xapic else -1
        """Number of the 4 KiB page at which the registers answer, -1 in x2APIC mode or while disabled."""

    def _clear(self) -> None:
        """What INIT resets: everything but ID and mode. Ref: SDM vol. 3, 11.4.7.1 and 11.4.7.3."""
        self.timer.reset()
        self._tpr = 0
        self.irr = self.isr = self.tmr = 0
        self.icr = 0
        self.esr = self.new_errors = 0
        self.dfr = 0xFFFF_FFFF
        self.ldr = self._x2apic_ldr() if self.x2apic_mode else 0
        self.svr = 0xFF
        self.software_enabled = False
        self.lvt = dict.fromkeys(r.LVT_WRITABLE, r.LVT_MASKED)
        if not self.cmci:
            del self.lvt[r.LVT_CMCI]
        if self.base & r.BASE_BSP:
            # What firmware leaves: the 8259 reaches the boot processor through LINT0 ("virtual wire", MP spec 3.6.2.2).
            self.lvt[r.LVT_LINT0] = EXTINT << 8
        self.pending = None

    # What the CPU asks.

    @property
    def enabled(self) -> bool:
        """The APIC exists for its CPU: IA32_APIC_BASE bit 11, and CPUID.1:EDX.APIC."""
        return self.hardware_enabled

    def pending_vector(self) -> int | None:
        """The vector to inject: highest of IRR, if its class is above that of PPR."""
        return self.pending

    def acknowledge(self, vector: int) -> None:
        """The CPU took `vector`: IRR to ISR. One that is not pending any more leaves both as they are."""
        bit = 1 << vector
        if self.irr & bit:
            self.irr ^= bit
            self.isr |= bit
            if self.trace.on:
                self.trace.emit(ApicAcknowledge(self.index, vector))
            self._update()

    @property
    def tpr(self) -> int:
        """Task priority, 8 bits; CR8 is its upper four."""
        return self._tpr

    @tpr.setter
    def tpr(self, value: int) -> None:
        self._tpr = value & 0xFF
        self._update()

    @property
    def ppr(self) -> int:
        """Processor priority. Ref: SDM vol. 3, 11.8.3.1."""
        in_service = max(self.isr.bit_length() - 1, 0) & 0xF0
        return self._tpr if self._tpr & 0xF0 >= in_service else in_service

    @property
    def accept_pic_intr(self) -> bool:
        """The 8259's INTR reaches the CPU: through LINT0 as ExtINT, or past a disabled APIC."""
        return not self.hardware_enabled or self.lvt[r.LVT_LINT0] & (r.LVT_MASKED | r.LVT_MODE) == EXTINT << 8

    def _update(self) -> None:
        irr = self.irr
        pending = None
        if irr and self.hardware_enabled:
            vector = irr.bit_length() - 1
            threshold = self._tpr & 0xF0
            isr = self.isr
            if isr:
                in_service = isr.bit_length() - 1 & 0xF0
                if in_service > threshold:
                    threshold = in_service
            if vector & 0xF0 > threshold:
                pending = vector
        if pending != self.pending:
            self.pending = pending
            self.cpu.interrupt_changed()

    # The bus.

    @property
    def logical_mode(self) -> str:
        """How logical destinations are compared: "flat", "cluster" or "x2apic"."""
        if self.x2apic_mode:
            return X2APIC
        return FLAT if self.dfr >> 28 == 0xF else CLUSTER

    def logical_bits(self) -> tuple[int, int]:
        """Own bits, and the cluster they are in."""
        if self.x2apic_mode:
            return self.ldr & 0xFFFF, self.ldr >> 16
        ldr = self.ldr >> 24
        return (ldr, 0) if self.dfr >> 28 == 0xF else (ldr & 0xF, ldr >> 4)

    def matches(self, dest: int, logical: bool, x2apic_source: bool = False) -> bool:
        """A message to `dest` is for this APIC. Ref: SDM vol. 3, 11.6.2; KVM's rule for 0xff from outside x2APICs."""
        if self.x2apic_mode:
            if dest == X2APIC_BROADCAST or (dest == 0xFF and not x2apic_source):
                return True
            if not logical:
                return dest == self.apic_id
            return dest >> 16 == self.ldr >> 16 and bool(dest & self.ldr & 0xFFFF)
        if dest == 0xFF or (x2apic_source and dest == X2APIC_BROADCAST):
            return True
        if not logical:
            return dest == self.apic_id
        ldr = self.ldr >> 24
        if self.dfr >> 28 == 0xF:
            return bool(ldr & dest)
        return ldr >> 4 == dest >> 4 and bool(ldr & dest & 0xF)

    def accept(
        self,
        delivery_mode: int,
        vector: int,
        level_trigger: bool,
        level: bool = True,
        reached: dict[int, int] | None = None,
    ) -> int:
        """Take a message: 1, or 0 if this APIC refuses it. (__apic_accept_irq)"""
        if delivery_mode <= LOWEST_PRIORITY:
            if delivery_mode == LOWEST_PRIORITY:
                self.arb_prio += 1
            if not self.software_enabled or not self.hardware_enabled or (level_trigger and not level):
                return 0
            if order.hook is not None:  # kvm_apic_set_irq: IRR and TMR are changed without the chip's lock
                order.hook("lapic.accept", self)
            bit = 1 << vector
            if reached is not None:
                reached[self.index] = vector
            if self.trace.on:
                self.trace.emit(ApicAcceptIrq(self.index, vector, level_trigger, bool(self.irr & bit)))
            if level_trigger:
                self.tmr |= bit
            elif self.tmr & bit:
                self.tmr ^= bit
            self.irr |= bit
            if vector < 16:
                self._error(r.ESR_RECEIVED_ILLEGAL_VECTOR)
            self._update()
            return 1
        if delivery_mode == NMI:
            self.cpu.nmi()
            return 1
        if delivery_mode == SMI:
            if not self.bus.smm:
                return 0
            self.cpu.smi()
            return 1
        if delivery_mode == INIT:
            if level_trigger and not level:
                return 0  # INIT level de-assert: nothing to do since the Pentium 4
            self.init()
            return 1
        if delivery_mode == STARTUP:
            if self.wait_for_sipi:
                self.wait_for_sipi = False
                self.cpu.sipi(vector)
            return 1
        # Reserved mode 3 ("remote read") reaches a CPU and does nothing; ExtINT comes only by LINT0.
        return 1 if delivery_mode == REMOTE_READ else 0

    def init(self) -> None:
        """INIT#: reset but for ID and mode, and wait for SIPI unless this is the boot processor."""
        self._clear()
        self.wait_for_sipi = not self.base & r.BASE_BSP
        self.bus.changed()
        self.cpu.init()
        self.cpu.interrupt_changed()

    def enter_guest(self) -> None:
        """The CPU is about to run guest code: which EOIs to forward is settled now. (vcpu_scan_ioapic)"""
        if self.scan_requested:
            self._scan()

    def _scan(self) -> None:
        self.scan_requested = False
        self.eoi_vectors = 0
        self.stale_eoi = -1
        for ioapic in self.bus.ioapics:
            vectors, stale = ioapic.eoi_vectors(self)
            self.eoi_vectors |= vectors
            self.stale_eoi = max(self.stale_eoi, stale)

    def eoi(self) -> None:
        """End the highest interrupt in service; level-triggered ones are told to the I/O APICs. (apic_set_eoi)"""
        if self.scan_requested:
            self._scan()
        isr = self.isr
        if not isr:
            if self.trace.on:
                self.trace.emit(ApicEoi(self.index, -1))
            return
        vector = isr.bit_length() - 1
        bit = 1 << vector
        self.isr = isr ^ bit
        if self.trace.on:
            self.trace.emit(ApicEoi(self.index, vector))
        if self.eoi_vectors & bit:
            if self.stale_eoi == vector:
                # It was there only for an interrupt from before a change of routes; that is over now.
                self.scan_requested = True
            self.bus.broadcast_eoi(vector, self.index, bool(self.tmr & bit), bool(self.svr & r.SVR_SUPPRESS_EOI))
        if self.lvt[r.LVT_LINT0] & r.LVT_REMOTE_IRR:
            self._lint0_eoi(vector)
        self._update()

    # The local vector table.

    def local_deliver(self, register: int) -> bool:
        """An event of LVT entry `register` (its offset). False if it is masked or refused."""
        entry = self.lvt.get(register, r.LVT_MASKED)
        if entry & r.LVT_MASKED or not self.hardware_enabled:
            return False
        if self.trace.on:
            self.trace.emit(ApicLocalDeliver(self.index, register, entry))
        mode = entry >> 8 & 7
        if mode == EXTINT:
            self.cpu.interrupt_changed()
            return True
        level = bool(entry & r.LVT_LEVEL) and mode == FIXED
        taken = self.accept(mode, entry & 0xFF, level) > 0
        if taken and register == r.LVT_PERFORMANCE:
            self.lvt[register] |= r.LVT_MASKED  # Ref: SDM vol. 3, 11.5.1
        return taken

    def _timer_expired(self) -> None:
        self.local_deliver(r.LVT_TIMER)

    def lint0(self, level: bool) -> None:
        """Drive the LINT0 input: the 8259's INTR in a PC."""
        if level == self.lint0_level:
            return
        self.lint0_level = level
        entry = self.lvt[r.LVT_LINT0]
        if entry & r.LVT_MODE == EXTINT << 8 or not self.hardware_enabled:
            self.cpu.interrupt_changed()
        elif level:
            self._lint0_service()

    def _lint0_service(self) -> None:
        entry = self.lvt[r.LVT_LINT0]
        triggered = entry & r.LVT_LEVEL and entry & r.LVT_MODE == FIXED
        if triggered and entry & r.LVT_REMOTE_IRR:
            return
        if self.local_deliver(r.LVT_LINT0) and triggered:
            self.lvt[r.LVT_LINT0] |= r.LVT_REMOTE_IRR

    def _lint0_eoi(self, vector: int) -> None:
        entry = self.lvt[r.LVT_LINT0]
        if entry & 0xFF == vector:
            self.lvt[r.LVT_LINT0] = entry & ~r.LVT_REMOTE_IRR
            if self.lint0_level:
                self._lint0_service()

    def lint1(self, level: bool) -> None:
        """Drive the LINT1 input: the NMI line of a PC."""
        if level != self.lint1_level:
            self.lint1_level = level
            if level:
                self.local_deliver(r.LVT_LINT1)

    def _error(self, bit: int) -> None:
        """Note an error; an unmasked LVT error entry interrupts. Ref: SDM vol. 3, 11.5.3."""
        if not self.new_errors & bit:
            self.new_errors |= bit
            self.local_deliver(r.LVT_ERROR)

    def _x2apic_ldr(self) -> int:
        """Ref: SDM vol. 3, 11.12.10.2."""
        return (self.index >> 4) << 16 | 1 << (self.index & 0xF)
