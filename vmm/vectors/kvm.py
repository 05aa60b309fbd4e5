"""Replays `vectors kvm-ioapic.json`: the models wired as a VM whose irqchip is in the kernel.

What the recording did with a real vCPU is done the way the recorder did it: registers are written by a guest on CPU 0
(so CPU 0 enters the guest around each access), an EOI by the guest of the CPU it is for, and the interrupt acknowledge
cycle by KVM_GET_LAPIC and KVM_SET_LAPIC.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from devices import lapic_registers as regs
from devices.apic_bus import ApicBus
from devices.i8259 import Pic
from devices.ioapic import IOAPIC_BASE
from devices.ioapic_kvm import KvmIoApic
from devices.lapic import LocalApic
from vmm.clock import VirtualClock
from vmm.kernel.files import DescriptorTable
from vmm.kernel.kvm import Vm
from vmm.order import Executor
from vmm.trace import Trace
from vmm.vectors.difference import Difference
from vmm.vectors.kvm_ops import CpuSnapshot, KvmOps, Snapshot

ELCR = 0x4D0


@dataclass(frozen=True, slots=True)
class HostProfile:
    """What a recording depends on besides the rules: `vector_hashing` is kvm's module parameter, `smm` says that the
    host's kernel was built with CONFIG_KVM_SMM, `suppress_eoi` that the guest's CPUID offered what makes SVR bit 12
    work. The defaults are the recorded host's."""

    vector_hashing: bool = True
    smm: bool = False
    suppress_eoi: bool = False


class _Guest:
    """A CPU that executes nothing: the recorder's guest runs with interrupts disabled. NMIs stay pending."""

    def __init__(self) -> None:
        self.nmis = 0

    def interrupt_changed(self) -> None:
        pass

    def nmi(self) -> None:
        self.nmis = 1

    def smi(self) -> None:
        pass

    def init(self) -> None:
        pass

    def sipi(self, vector: int) -> None:
        pass


class KvmReplay(KvmOps):
    """The models, wired as a VM."""

    vm: Vm
    files: DescriptorTable

    def __init__(self, cpus: int = 1, default_routing: bool = False, host: HostProfile | None = None) -> None:
        super().__init__()
        host = HostProfile() if host is None else host
        self.default_routing = default_routing
        trace = Trace()
        clock = VirtualClock()
        self.executor = Executor()
        self.files = DescriptorTable()
        self.bus = ApicBus(trace, host.vector_hashing, host.smm)
        self.guests = [_Guest() for _ in range(cpus)]
        self.cpus = [
            LocalApic(i, guest, self.bus, clock, trace, suppress_eoi=host.suppress_eoi)
            for i, guest in enumerate(self.guests)
        ]
        self.ioapic = KvmIoApic(self.bus, clock, trace)
        self.pic = Pic("kvm", trace)
        self.pic.accepts = self._accepts_pic
        self.vm = vm = Vm(self.files, self.executor, trace)
        vm.connect(ioapic=self.ioapic, pic=self.pic, bus=self.bus)
        for cpu in self.cpus:
            cpu.write(regs.SVR, 0x1FF)
            cpu.write(regs.LDR, 1 << 24 + cpu.index)
            cpu.write(regs.LVT_LINT0, regs.LVT_MASKED)
        if not default_routing:
            self.identity_routing()

    def _accepts_pic(self) -> bool:
        return any(cpu.accept_pic_intr for cpu in self.cpus)

    def close(self) -> None:
        """Close every descriptor."""
        self.vm.close()
        self.files.close_all()

    def settle(self) -> None:
        self.executor.drain()

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.ioapic.get_state(),
            tuple(
                CpuSnapshot(lapic.irr, lapic.isr, lapic.tmr, guest.nmis > 0)
                for lapic, guest in zip(self.cpus, self.guests, strict=True)
            ),
            tuple((c.irr, c.isr, c.imr, c.last_irr) for c in self.pic.chips) if self.default_routing else (),
        )

    def access(self, write: bool, address: int, size: int, value: int = 0, cpu: int = 0) -> Any:
        lapic = self.cpus[cpu]
        offset = address - IOAPIC_BASE
        if not 0 <= offset < self.ioapic.region.size:
            return {"user_mmio": [int(write), f"{address:x}", size]}
        lapic.enter_guest()
        if not write:
            return self.ioapic.mmio_read(offset, size) & (1 << 8 * size) - 1
        self.ioapic.mmio_write(offset, size, value)
        lapic.enter_guest()
        return None

    def port(self, port: int, value: int | None = None) -> int:
        self.cpus[0].enter_guest()
        chip = self.pic.chips[port & 1 if port >= ELCR else port >> 7 & 1]
        if port >= ELCR:
            if value is None:
                return chip.elcr
            self.pic.write_elcr(chip, value)
        elif value is None:
            return self.pic.read(chip, port & 1)
        else:
            self.pic.write(chip, port & 1, value)
        return 0

    def _lapic_write(self, cpu: int, register: int, value: int) -> None:
        lapic = self.cpus[cpu]
        lapic.enter_guest()
        lapic.mmio_write(register, 4, value)
        lapic.enter_guest()

    def inta(self, cpu: int) -> int:
        lapic = self.cpus[cpu]
        vector = lapic.pending_vector()
        if vector is None:
            return -1
        lapic.acknowledge(vector)
        # KVM_SET_LAPIC: the APIC map is made anew, and so is the RTC's bookkeeping.
        self.bus.changed()
        self.ioapic.restore_rtc(lapic)
        return vector


def replay_kvm(sequence: dict[str, Any], host: HostProfile | None = None) -> Difference | None:
    """Replay one sequence; the first difference, or None."""
    name = sequence["name"]
    vm = KvmReplay(sequence.get("ncpu", 1), sequence.get("default_routing", False), host)
    try:
        expected: dict[str, Any] = {}
        for step, entry in enumerate(sequence["trace"]):
            op = sequence["ops"][step - 1] if step else None
            got = vm.run(op) if op else None
            if op and got != entry.get("ret"):
                return Difference(name, step, op, "ret", entry.get("ret"), got)
            changed = dict(entry.get("chg", {}))
            resampled = changed.pop("resampled", {})
            if resampled != vm.resampled:
                return Difference(name, step, op, "resampled", resampled, vm.resampled)
            expected |= changed
            state = vm.state()
            for field in expected.keys() | state.keys():
                if expected.get(field) != state.get(field):
                    return Difference(name, step, op, field, expected.get(field), state.get(field))
        return None
    finally:
        vm.close()
