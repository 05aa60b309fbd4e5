"""Replays `vectors kvm-ioapic.json`: the models wired as a VM whose irqchip is in the kernel.

What the recording did with a real vCPU is done the way the recorder did it: registers are written by a guest on CPU 0
(so CPU 0 enters the guest around each access), an EOI by the guest of the CPU it is for, and the interrupt acknowledge
cycle by KVM_GET_LAPIC and KVM_SET_LAPIC.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from devices import lapic_registers as regs
from devices.apic_bus import ApicBus
from devices.i8259 import Pic
from devices.ioapic import IOAPIC_BASE, IOREGSEL, IOWIN, MASKED, IoApicState
from devices.ioapic_kvm import KvmIoApic
from devices.lapic import LocalApic
from vmm.clock import VirtualClock
from vmm.errors import ConfigError
from vmm.kernel.files import DescriptorTable
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN
from vmm.kernel.kvm import Vm
from vmm.order import Executor
from vmm.trace import Trace
from vmm.vectors.difference import Difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vmm.memory import IoRegion

EFD_NONBLOCK = 0o4000
PINS = 24


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


class KvmReplay:
    """One VM, and the recording's operations as methods `op_<name>`."""

    def __init__(self, cpus: int = 1, default_routing: bool = False, host: HostProfile | None = None) -> None:
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
        self.vm = Vm(self.files, self.executor, trace)
        self.vm.connect(ioapic=self.ioapic, pic=self.pic, bus=self.bus)
        self.fds: dict[str, int] = {}
        self.resamplefds: list[str] = []
        self.resampled: dict[str, int] = {}
        for cpu in self.cpus:
            cpu.write(regs.SVR, 0x1FF)
            cpu.write(regs.LDR, 1 << 24 + cpu.index)
            cpu.write(regs.LVT_LINT0, regs.LVT_MASKED)
        if not default_routing:
            self.vm.set_gsi_routing([Route.irqchip(n, KVM_IRQCHIP_IOAPIC, n) for n in range(PINS)])

    def close(self) -> None:
        """Close every descriptor."""
        self.vm.close()
        self.files.close_all()

    def run(self, op: Sequence[Any]) -> Any:
        """Do one operation, let everything settle, return its value or `{"errno": NAME}`. ConfigError: unknown one."""
        method: Callable[..., Any] | None = getattr(self, f"op_{op[0]}", None)
        if method is None:
            raise ConfigError(f"there is no operation {op[0]!r} in recordings of KVM")
        try:
            value = method(*op[1:])
        except OSError as error:
            value = {"errno": errno.errorcode.get(error.errno or 0, str(error.errno))}
        self.executor.drain()
        self.resampled = {}
        for name in self.resamplefds:
            count = self._take(name)
            if count:
                self.resampled[name] = count
        return value

    def state(self) -> dict[str, Any]:
        """What the recording shows of the VM."""
        chip = self.ioapic.get_state()
        state: dict[str, Any] = {
            "irr": f"{chip.irr:06x}",
            "redir": {str(pin): f"{entry:016x}" for pin, entry in enumerate(chip.redirtbl) if entry != MASKED},
            "sel": chip.ioregsel,
            "id": chip.id,
            "cpu": [self._cpu(cpu, guest) for cpu, guest in zip(self.cpus, self.guests, strict=True)],
        }
        if self.default_routing:
            state["pic"] = [[c.irr, c.isr, c.imr, c.last_irr] for c in self.pic.chips]
        return state

    @staticmethod
    def _cpu(lapic: LocalApic, guest: _Guest) -> dict[str, Any]:
        cpu: dict[str, Any] = {"irr": _bits(lapic.irr), "isr": _bits(lapic.isr), "tmr": _bits(lapic.tmr)}
        if guest.nmis:
            cpu["nmi"] = guest.nmis
        return cpu

    def _take(self, name: str) -> int:
        fd = self.fds.get(name)
        if fd is None:
            return 0
        try:
            return self.files.read(fd)
        except BlockingIOError:
            return 0

    def _fd(self, name: str | int) -> int:
        return name if isinstance(name, int) else self.fds[name]

    # Lines and registers.

    def op_line(self, gsi: int, level: int) -> None:
        self.vm.irq_line(gsi, level)

    def op_line_status(self, gsi: int, level: int) -> int:
        return self.vm.irq_line_status(gsi, level)

    def _write(self, offset: int, value: int, size: int = 4) -> None:
        self.cpus[0].enter_guest()
        self.ioapic.mmio_write(offset, size, value)
        self.cpus[0].enter_guest()

    def _read(self, offset: int, size: int = 4) -> int:
        self.cpus[0].enter_guest()
        return self.ioapic.mmio_read(offset, size) & (1 << 8 * size) - 1

    def op_wreg(self, register: int, value: int) -> None:
        self._write(IOREGSEL, register)
        self._write(IOWIN, value)

    def op_reg(self, register: int) -> int:
        self._write(IOREGSEL, register)
        return self._read(IOWIN)

    def op_redir_lo(self, pin: int, value: int) -> None:
        self.op_wreg(0x10 + 2 * pin, value)

    def op_redir_hi(self, pin: int, value: int) -> None:
        self.op_wreg(0x11 + 2 * pin, value)

    def op_redir(self, pin: int, entry: str) -> None:
        value = int(entry, 16)
        self.op_redir_hi(pin, value >> 32)
        self.op_redir_lo(pin, value & 0xFFFF_FFFF)

    def op_mmio(self, access: str, address: int, value: int = 0) -> Any:
        size = int(access[1:]) // 8
        offset = address - IOAPIC_BASE
        region: IoRegion = self.ioapic.region
        if not 0 <= offset < region.size:
            return {"user_mmio": [int(access[0] == "w"), f"{address:x}", size]}
        if access[0] == "r":
            return self._read(offset, size)
        self._write(offset, value, size)
        return None

    def op_set_ioapic(self, change: dict[str, Any]) -> None:
        state = self.ioapic.get_state()
        entries = list(state.redirtbl)
        for pin, entry in change.get("redir", {}).items():
            entries[int(pin)] = _number(entry)
        irr = _number(change["irr"]) if "irr" in change else state.irr
        changed = IoApicState(state.base_address, state.ioregsel, state.id, irr, tuple(entries))
        self.vm.set_irqchip(KVM_IRQCHIP_IOAPIC, changed.build())

    # CPUs.

    def _lapic_write(self, cpu: int, register: int, value: int) -> None:
        lapic = self.cpus[cpu]
        lapic.enter_guest()
        lapic.mmio_write(register, 4, value)
        lapic.enter_guest()

    def op_inta(self, cpu: int = 0) -> int:
        lapic = self.cpus[cpu]
        vector = lapic.pending_vector()
        if vector is None:
            return -1
        lapic.acknowledge(vector)
        # KVM_SET_LAPIC: the APIC map is made anew, and so is the RTC's bookkeeping.
        self.bus.changed()
        self.ioapic.restore_rtc(lapic)
        return vector

    def op_eoi(self, cpu: int = 0) -> None:
        self._lapic_write(cpu, regs.EOI, 0)

    def op_tpr(self, cpu: int, value: int) -> None:
        self._lapic_write(cpu, regs.TPR, value)

    def op_svr(self, cpu: int, value: int) -> None:
        self._lapic_write(cpu, regs.SVR, value)

    def op_msi(self, address: int, data: int) -> Any:
        status = self.vm.signal_msi(address & 0xFFFF_FFFF, address >> 32, data)
        # The ioctl's value is the status; libc takes -1 ("nobody") for an error, and EPERM is number 1.
        return {"errno": "EPERM"} if status < 0 else status

    # Routing and eventfds.

    def op_routing(self, routes: list[list[Any]]) -> None:
        self.vm.set_gsi_routing(
            [Route.irqchip(g, x, y) if k == "irqchip" else Route.msi(g, x, y) for g, k, x, y in routes]
        )

    def op_efd(self, name: str, count: int = 0) -> None:
        self.fds[name] = self.files.eventfd(count, EFD_NONBLOCK, name)

    def op_efd_write(self, name: str, value: int = 1) -> None:
        self.files.write(self.fds[name], value)

    def op_efd_read(self, name: str) -> int:
        return self.files.read(self.fds[name])

    def op_efd_close(self, name: str) -> None:
        self.files.close(self.fds.pop(name))

    def op_efd_dup(self, old: str, new: str) -> None:
        self.fds[new] = self.files.dup(self.fds[old])

    def op_irqfd(self, name: str | int, gsi: int, flags: int = 0, resamplefd: str | int = 0) -> None:
        self.vm.irqfd(self._fd(name), gsi, flags, self._fd(resamplefd))
        if isinstance(resamplefd, str) and resamplefd not in self.resamplefds:
            self.resamplefds.append(resamplefd)

    def op_unassign(self, name: str | int, gsi: int, flags: int = 0, resamplefd: str | int = 0) -> None:
        self.vm.irqfd(self._fd(name), gsi, flags | KVM_IRQFD_FLAG_DEASSIGN, self._fd(resamplefd))


def _bits(value: int) -> list[int]:
    return [n for n in range(256) if value >> n & 1]


def _number(value: int | str) -> int:
    return value if isinstance(value, int) else int(value, 16)


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
