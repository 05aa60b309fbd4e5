"""The local APIC, as xAPIC and as x2APIC: its registers, its MSRs, save and restore.

Ref: Intel SDM vol. 3, chapter 11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices import lapic_registers as r
from devices.apic_bus import LOWEST_PRIORITY
from devices.lapic_core import CpuSignals, LapicCore
from devices.lapic_timer import TSC_DEADLINE
from vmm.errors import ConfigError
from vmm.trace import Event

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ApicRegisterWrite", "CpuSignals", "LocalApic"]


class ApicRegisterWrite(Event):
    """A guest's write of a register."""

    cpu: int
    reg: int
    val: int


class LocalApic(LapicCore):
    """One CPU's local APIC: what a guest reads and writes, in front of `LapicCore`."""

    __slots__ = ()

    # Registers.

    @property
    def version(self) -> int:
        """The version register: an integrated APIC with six or seven LVT entries."""
        return 0x14 | len(self.lvt) - 1 << 16 | (r.VERSION_SUPPRESS_EOI if self.suppress_eoi else 0)

    def read(self, register: int) -> int | None:
        """A 32-bit register by its offset; None if there is none to read."""
        read = _READ.get(register)
        if read is not None:
            return read(self)
        if r.ISR <= register < r.ESR:
            bits = (self.isr, self.tmr, self.irr)[register - r.ISR >> 7]
            return bits >> 2 * (register & 0x70) & 0xFFFF_FFFF
        return self.lvt.get(register)

    def write(self, register: int, value: int) -> bool:
        """Write a 32-bit register by its offset; False if there is none to write."""
        if self.trace.on:
            self.trace.emit(ApicRegisterWrite(self.index, register, value))
        if register == r.EOI:
            self.eoi()
            return True
        write = _WRITE.get(register)
        if write is not None:
            write(self, value)
        elif register in self.lvt:
            self._write_lvt(register, value)
        else:
            return False
        return True

    def mmio_read(self, offset: int, size: int) -> int:
        """A guest's read of the register page. Only the first four bytes of each sixteen hold a register."""
        if self.page < 0:
            return (1 << 8 * size) - 1
        place = offset & 0xF
        if place + min(size, 4) > 4:
            return 0
        value = self.read(offset & 0xFF0)
        if value is None:
            self._error(r.ESR_ILLEGAL_REGISTER)
            return 0
        return value >> 8 * place & (1 << 8 * size) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """A guest's write of the register page: 32 bits at the start of a register, else nothing happens."""
        if self.page < 0 or size != 4 or offset & 0xF:
            return
        if not self.write(offset, value):
            self._error(r.ESR_ILLEGAL_REGISTER)

    def msr_read(self, msr: int) -> int | None:
        """RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; None for #GP."""
        if msr == r.MSR_APIC_BASE:
            return self.base
        if msr == r.MSR_TSC_DEADLINE:
            return None if self.timer.tsc is None else self.timer.tsc_deadline
        if not self.x2apic_mode or not r.MSR_X2APIC <= msr < r.MSR_X2APIC + 0x100:
            return None
        register = msr - r.MSR_X2APIC << 4
        if register == r.ICR:
            return self.icr
        if register in (r.APR, r.DFR, r.ICR_HIGH):
            return None
        return self.read(register)

    def msr_write(self, msr: int, value: int) -> bool:
        """WRMSR of the same; False for #GP. Ref: SDM vol. 3, 11.12.1.2 for reserved bits."""
        if msr == r.MSR_APIC_BASE:
            return self._write_base(value)
        if msr == r.MSR_TSC_DEADLINE:
            if self.timer.tsc is None:
                return False
            self.timer.set_tsc_deadline(value)
            return True
        if not self.x2apic_mode or not r.MSR_X2APIC <= msr < r.MSR_X2APIC + 0x100:
            return False
        register = msr - r.MSR_X2APIC << 4
        if register == r.ICR:
            if value & r.ICR_RESERVED:
                return False
            if self.trace.on:
                self.trace.emit(ApicRegisterWrite(self.index, register, value))
            self._send(value & ~r.ICR_PENDING)
            return True
        reserved = self._x2apic_reserved(register)
        if reserved is None or value & reserved:
            return False
        if register == r.SELF_IPI:
            self._send(1 << r.ICR_SHORTHAND_SHIFT | value)
            return True
        return self.write(register, value)

    def _x2apic_reserved(self, register: int) -> int | None:
        """The bits of an x2APIC register that must be written as zero; None if it cannot be written."""
        if register in self.lvt:
            writable = r.LVT_WRITABLE[register] | r.LVT_READ_ONLY
            if register == r.LVT_TIMER and self.timer.tsc is None:
                writable &= ~(TSC_DEADLINE << 17)
            return ~writable
        if register == r.SVR:
            return ~self._svr_writable()
        return _X2APIC_RESERVED.get(register)

    def _write_base(self, value: int) -> bool:
        mode = r.BASE_ENABLE | r.BASE_X2APIC
        reserved = -1 << self.physical_bits | r.BASE_RESERVED | (0 if self.has_x2apic else r.BASE_X2APIC)
        before, after = self.base & mode, value & mode
        # Ref: SDM vol. 3, figure 11-27: x2APIC comes after xAPIC, and goes only by way of disabled.
        if value & reserved or after == r.BASE_X2APIC:
            return False
        if after != before and (
            (before == mode and after == r.BASE_ENABLE) or (after == mode and before != r.BASE_ENABLE)
        ):
            return False
        self.base = value
        self._base_changed()
        if after == before:
            return True
        if self.hardware_enabled:
            self.apic_id = self.index
            self.ldr = self._x2apic_ldr() if self.x2apic_mode else 0
        self.bus.changed()
        self._update()
        self.cpu.interrupt_changed()  # ExtINT passes by a disabled APIC
        return True

    # Single registers.

    def _read_id(self) -> int:
        return self.apic_id if self.x2apic_mode else self.apic_id << 24

    def _write_id(self, value: int) -> None:
        self.apic_id = value >> 24
        self.bus.changed()

    def _read_apr(self) -> int:
        """Ref: SDM vol. 3, 11.6.2.4: arbitration priority of Pentium and P6 processors."""
        tpr, isr = self._tpr, max(self.isr.bit_length() - 1, 0)
        irr = max(self.irr.bit_length() - 1, 0)
        if tpr >> 4 >= irr >> 4 and tpr >> 4 > isr >> 4:
            return tpr
        return max(tpr & 0xF0, irr & 0xF0, isr & 0xF0)

    def _write_tpr(self, value: int) -> None:
        self._tpr = value & 0xFF
        self._update()

    def _write_ldr(self, value: int) -> None:
        self.ldr = value & 0xFF00_0000
        self.bus.changed()

    def _write_dfr(self, value: int) -> None:
        self.dfr = value | 0x0FFF_FFFF
        self.bus.changed()

    def _svr_writable(self) -> int:
        return 0x3FF | (r.SVR_SUPPRESS_EOI if self.suppress_eoi else 0)

    def _write_svr(self, value: int) -> None:
        self.svr = value & self._svr_writable()
        enabled = bool(value & r.SVR_ENABLED)
        if enabled != self.software_enabled:
            self.software_enabled = enabled
            if not enabled:
                # Ref: SDM vol. 3, 11.4.7.2: the mask bits are set and stay set.
                for register in self.lvt:
                    self.lvt[register] |= r.LVT_MASKED
                self.cpu.interrupt_changed()
            self.bus.changed()

    def _write_esr(self, value: int) -> None:  # noqa: ARG002
        """A write shows what was noted since the last one."""
        self.esr = self.new_errors
        self.new_errors = 0

    def _write_icr(self, value: int) -> None:
        self._send((self.icr & ~0xFFFF_FFFF) | (value & ~r.ICR_PENDING))

    def _write_icr_high(self, value: int) -> None:
        self.icr = (self.icr & 0xFFFF_FFFF) | (value & 0xFF00_0000) << 32

    def _send(self, icr: int) -> None:
        """Send an inter-processor interrupt; it is accepted at once, so the delivery status never shows pending."""
        self.icr = icr
        mode = icr >> 8 & 7
        vector = icr & 0xFF
        level_trigger, level = bool(icr & r.ICR_LEVEL), bool(icr & r.ICR_ASSERT)
        if mode <= LOWEST_PRIORITY and vector < 16:
            self._error(r.ESR_SEND_ILLEGAL_VECTOR)
        shorthand = icr >> r.ICR_SHORTHAND_SHIFT & 3
        if shorthand:
            self.bus.shorthand(self, shorthand != 3, shorthand != 1, mode, vector, level_trigger, level)
        else:
            x2apic = self.x2apic_mode
            dest = icr >> (32 if x2apic else 56)
            self.bus.deliver(dest, bool(icr & r.ICR_LOGICAL), mode, vector, level_trigger, level, x2apic_source=x2apic)

    def _write_lvt(self, register: int, value: int) -> None:
        if not self.software_enabled:
            value |= r.LVT_MASKED
        writable = r.LVT_WRITABLE[register]
        if register == r.LVT_TIMER:
            if self.timer.tsc is None:
                writable &= ~(TSC_DEADLINE << 17)
            self.timer.set_mode(value >> 17 & writable >> 17 & 3)
        before = self.lvt[register]
        entry = (value & writable) | (before & r.LVT_READ_ONLY)
        if not entry & r.LVT_LEVEL:
            entry &= ~r.LVT_REMOTE_IRR
        self.lvt[register] = entry
        if register == r.LVT_LINT0:
            if entry & (r.LVT_MASKED | r.LVT_LEVEL) == r.LVT_LEVEL and self.lint0_level:
                self._lint0_service()
            self.cpu.interrupt_changed()

    # Save and restore.

    def get_state(self) -> bytes:
        """The register page, as KVM_GET_LAPIC."""
        page: bytes = r.LapicState.build(
            {name: self.read(register) or 0 for name, register in _STATE.items()}
            | {"isr": r.words(self.isr), "tmr": r.words(self.tmr), "irr": r.words(self.irr)}
            | {"eoi": 0, "rrd": 0, "icr_high": self.icr >> 32}
        )
        return page

    def set_state(self, page: bytes) -> None:
        """Take over a register page, as KVM_SET_LAPIC; IA32_APIC_BASE is not part of it. ConfigError if too short.

        The timer starts anew from the initial count.
        """
        if len(page) < r.STATE_SIZE:
            raise ConfigError(f"a local APIC's state has {r.STATE_SIZE} bytes, not {len(page)}")
        s = r.LapicState.parse(page)
        if not self.x2apic_mode:
            self.apic_id = s.id >> 24
            self.ldr = s.ldr & 0xFF00_0000
        self._tpr = s.tpr & 0xFF
        self.dfr = s.dfr | 0x0FFF_FFFF
        self.svr = s.svr & self._svr_writable()
        self.software_enabled = bool(self.svr & r.SVR_ENABLED)
        self.isr, self.tmr, self.irr = r.from_words(s.isr), r.from_words(s.tmr), r.from_words(s.irr)
        self.esr = s.esr
        self.icr = s.icr_high << 32 | s.icr
        for name, register in _STATE.items():
            if register in self.lvt:
                self.lvt[register] = s[name] & (r.LVT_WRITABLE[register] | r.LVT_READ_ONLY)
        self.timer.reset()
        self.timer.set_mode(self.lvt[r.LVT_TIMER] >> 17 & 3)
        self.timer.set_divide(s.divide)
        self.timer.set_initial(s.initial_count)
        self.bus.changed()
        self.pending = None
        self._update()
        self.cpu.interrupt_changed()

    def __repr__(self) -> str:
        return f"<LocalApic {self.index} pending={self.pending}>"


_READ: dict[int, Callable[[LocalApic], int]] = {
    r.ID: LocalApic._read_id,
    r.VERSION: lambda a: a.version,
    r.TPR: lambda a: a._tpr,
    r.APR: LocalApic._read_apr,
    r.PPR: lambda a: a.ppr,
    r.LDR: lambda a: a.ldr,
    r.DFR: lambda a: a.dfr,
    r.SVR: lambda a: a.svr,
    r.ESR: lambda a: a.esr,
    r.ICR: lambda a: a.icr & 0xFFFF_FFFF,
    r.ICR_HIGH: lambda a: a.icr >> 32,
    r.INITIAL_COUNT: lambda a: a.timer.initial,
    r.CURRENT_COUNT: lambda a: a.timer.current,
    r.DIVIDE: lambda a: a.timer.divide,
}

_WRITE: dict[int, Callable[[LocalApic, int], None]] = {
    r.ID: LocalApic._write_id,
    r.TPR: LocalApic._write_tpr,
    r.LDR: LocalApic._write_ldr,
    r.DFR: LocalApic._write_dfr,
    r.SVR: LocalApic._write_svr,
    r.ESR: LocalApic._write_esr,
    r.ICR: LocalApic._write_icr,
    r.ICR_HIGH: LocalApic._write_icr_high,
    r.INITIAL_COUNT: lambda a, v: a.timer.set_initial(v),
    r.DIVIDE: lambda a, v: a.timer.set_divide(v),
}

_X2APIC_RESERVED = {
    r.TPR: ~0xFF,
    r.EOI: ~0,
    r.ESR: ~0,
    r.INITIAL_COUNT: ~0xFFFF_FFFF,
    r.DIVIDE: ~0xB,
    r.SELF_IPI: ~0xFF,
}

_STATE = {
    "id": r.ID,
    "version": r.VERSION,
    "tpr": r.TPR,
    "apr": r.APR,
    "ppr": r.PPR,
    "ldr": r.LDR,
    "dfr": r.DFR,
    "svr": r.SVR,
    "esr": r.ESR,
    "lvt_cmci": r.LVT_CMCI,
    "icr": r.ICR,
    "lvt_timer": r.LVT_TIMER,
    "lvt_thermal": r.LVT_THERMAL,
    "lvt_performance": r.LVT_PERFORMANCE,
    "lvt_lint0": r.LVT_LINT0,
    "lvt_lint1": r.LVT_LINT1,
    "lvt_error": r.LVT_ERROR,
    "initial_count": r.INITIAL_COUNT,
    "current_count": r.CURRENT_COUNT,
    "divide": r.DIVIDE,
}
