"""The operations of `vectors kvm-ioapic.json` on the real KVM: how they were recorded, and what a fuzzer asks.

A guest is run only where a guest is needed: for a register access, an EOI, a task priority. Nothing is injected into
it. The interrupt acknowledge cycle is KVM_GET_LAPIC and KVM_SET_LAPIC (IRR to ISR), so no quirk of how a host enters
its guests is in the way, and each step has one outcome.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices import lapic_registers as regs
from devices.ioapic import IoApicState
from vmm.kernel import hostkvm_abi as abi
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE
from vmm.kernel.hostkvm import LAPIC_IRR, LAPIC_ISR, LAPIC_TMR, HostVm, lapic_bits, pinned
from vmm.kernel.hostkvm_guest import MailboxGuest, UserMmio
from vmm.vectors.kvm import HostProfile
from vmm.vectors.kvm_ops import CpuSnapshot, KvmOps, Snapshot

if TYPE_CHECKING:
    from vmm.kernel.hostkvm import HostCpu, HostKvm

LAPIC_BASE = 0xFEE0_0000
_IOAPIC = struct.Struct("<Q4I24Q")
_EVENTFD_OPS = frozenset({"efd_write", "efd_close", "irqfd", "unassign"})


class HostFiles:
    """The process' own descriptors, as the model's table does them."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def eventfd(self, count: int, flags: int, name: str) -> int:  # noqa: ARG002
        """eventfd(2)."""
        return self._keep(os.eventfd(count, flags | os.EFD_CLOEXEC))

    def write(self, fd: int, value: int) -> None:
        """write(2) of eight bytes."""
        os.write(fd, value.to_bytes(8, "little"))

    def read(self, fd: int) -> int:
        """read(2); BlockingIOError if the counter is 0."""
        return os.eventfd_read(fd)

    def dup(self, fd: int) -> int:
        """dup(2)."""
        return self._keep(os.dup(fd))

    def no_eventfd(self) -> int:
        """A descriptor of something else."""
        return self._keep(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))

    def close(self, fd: int) -> None:
        """close(2)."""
        self._open.discard(fd)
        os.close(fd)

    def close_all(self) -> None:
        """Close what is open."""
        while self._open:
            os.close(self._open.pop())

    def _keep(self, fd: int) -> int:
        self._open.add(fd)
        return fd


class KvmLive(KvmOps):
    """A VM of the real KVM, set up as recordings are. The thread stays pinned to a CPU until `close`.

    In operations descriptor 0 is a file that is no eventfd.
    """

    vm: HostVm
    files: HostFiles

    def __init__(self, kvm: HostKvm, cpus: int = 1, default_routing: bool = False) -> None:
        """EngineRefused or EngineError if this host cannot."""
        super().__init__()
        self.default_routing = default_routing
        self.files = HostFiles()
        self._no_eventfd = -1
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            stack.enter_context(pinned())
            stack.callback(self.files.close_all)
            self.vm = vm = stack.enter_context(HostVm(kvm))
            self.guest = MailboxGuest(vm)
            self.cpus = [vm.add_cpu() for _ in range(cpus)]
            for cpu in self.cpus:
                self.guest.start(cpu)
            for cpu in self.cpus:
                page = cpu.get_lapic()
                for register, value in (
                    (regs.SVR, 0x1FF),
                    (regs.LDR, 1 << 24 + cpu.index),
                    (regs.DFR, 0xFFFF_FFFF),
                    (regs.LVT_LINT0, regs.LVT_MASKED),
                ):
                    struct.pack_into("<I", page, register, value)
                cpu.set_lapic(page)
            if not default_routing:
                self.identity_routing()
            self._queued = False
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def run(self, op: Any) -> Any:
        if op[0] in _EVENTFD_OPS:
            self._queued = True
        return super().run(op)

    def settle(self) -> None:
        # Only eventfds queue work, and once one is a trigger an EOI or an entry write may signal it.
        if self._queued:
            self.vm.settle()

    def _fd(self, name: str | int) -> int:
        if name == 0:
            if self._no_eventfd < 0:
                self._no_eventfd = self.files.no_eventfd()
            return self._no_eventfd
        return super()._fd(name)

    def snapshot(self) -> Snapshot:
        base, select, ident, irr, _, *entries = _IOAPIC.unpack(self.vm.get_irqchip(KVM_IRQCHIP_IOAPIC))
        pics: tuple[tuple[int, int, int, int], ...] = ()
        if self.default_routing:
            pics = tuple(self._pic(chip) for chip in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE))
        return Snapshot(
            IoApicState(base, select, ident, irr, tuple(entries)), tuple(self._cpu(cpu) for cpu in self.cpus), pics
        )

    def _pic(self, chip: int) -> tuple[int, int, int, int]:
        last_irr, irr, imr, isr = self.vm.get_irqchip(chip)[:4]
        return irr, isr, imr, last_irr

    @staticmethod
    def _cpu(cpu: HostCpu) -> CpuSnapshot:
        page = cpu.get_lapic()
        return CpuSnapshot(
            lapic_bits(page, LAPIC_IRR), lapic_bits(page, LAPIC_ISR), lapic_bits(page, LAPIC_TMR), cpu.nmi_pending()
        )

    def access(self, write: bool, address: int, size: int, value: int = 0, cpu: int = 0) -> Any:
        name = f"{'write' if write else 'read'}{8 * size}"
        answer = self.guest.call(self.cpus[cpu], name, address, value & 0xFFFF_FFFF_FFFF_FFFF)
        if write:
            self._enter(cpu)
        if isinstance(answer, UserMmio):
            return {"user_mmio": [int(answer.write), f"{answer.address:x}", answer.size]}
        return None if write else answer

    def port(self, port: int, value: int | None = None) -> int:
        cpu = self.cpus[0]
        answer = self.guest.call(cpu, "in8", port) if value is None else self.guest.call(cpu, "out8", port, value)
        self._enter(0)
        return answer if isinstance(answer, int) else 0

    def op_wreg(self, register: int, value: int) -> None:
        self.guest.call(self.cpus[0], "wreg", register, value & 0xFFFF_FFFF)
        self._enter(0)

    def _enter(self, cpu: int) -> None:
        """Run the guest once more, for nothing. With hardware virtualisation it is entered anew after each access, and
        then looks at what the access asks of its CPU (KVM_REQ_SCAN_IOAPIC). A host that emulates guest code goes on
        with it, and would look only at its next run, when a recording may already have changed the routes.
        """
        self.guest.call(self.cpus[cpu], "ready")

    def _lapic_write(self, cpu: int, register: int, value: int) -> None:
        self.access(True, LAPIC_BASE + register, 4, value, cpu)

    def inta(self, cpu: int) -> int:
        return self.cpus[cpu].acknowledge()


def host_profile(kvm: HostKvm) -> HostProfile:
    """What this host is like, as far as recordings depend on it. CPUs are made without CPUID, so EOI broadcasts are
    never suppressed."""
    try:
        hashing = Path("/sys/module/kvm/parameters/vector_hashing").read_text().strip() in ("Y", "1")
    except OSError:
        hashing = True
    return HostProfile(vector_hashing=hashing, smm=bool(kvm.check_extension(abi.KVM_CAP_X86_SMM)))


def host_description() -> dict[str, Any]:
    """What a file of vectors says of the host that it was recorded on. Of the kernel's release only the numbers."""
    system = os.uname()
    release = re.match(r"[\d.]*\d", system.release)
    cpu = ""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        cpu = found[1] if found else ""
    modules = [name for name in ("kvm", "kvm_intel", "kvm_amd", "kvm_pvm") if Path("/sys/module", name).exists()]
    return {"kernel": f"{system.sysname} {release[0] if release else ''}".strip(), "cpu": cpu, "kvm": modules}
