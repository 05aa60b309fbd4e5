"""What this machine's /dev/kvm is good for, step by step, with the reason where it is not.

    found = probe()
    if not found.oracle:
        print(found.reason)

Nothing is probed at import. A probe makes a few VMs and takes some tens of milliseconds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vmm.errors import EngineError, EngineRefused
from vmm.kernel import hostkvm_abi as abi
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC
from vmm.kernel.hostkvm import DEFAULT_PATH, LAPIC_ISR, HostKvm, HostVm, lapic_bits, pinned
from vmm.kernel.hostkvm_guest import MailboxGuest
from vmm.kernel.kvm import (
    KVM_CAP_IRQ_INJECT_STATUS,
    KVM_CAP_IRQ_ROUTING,
    KVM_CAP_IRQCHIP,
    KVM_CAP_IRQFD,
    KVM_CAP_IRQFD_RESAMPLE,
    KVM_CAP_SIGNAL_MSI,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kernel.hostkvm import HostCpu

WANTED = {
    "KVM_CAP_USER_MEMORY": abi.KVM_CAP_USER_MEMORY,
    "KVM_CAP_IRQCHIP": KVM_CAP_IRQCHIP,
    "KVM_CAP_IRQ_ROUTING": KVM_CAP_IRQ_ROUTING,
    "KVM_CAP_IRQ_INJECT_STATUS": KVM_CAP_IRQ_INJECT_STATUS,
    "KVM_CAP_IRQFD": KVM_CAP_IRQFD,
    "KVM_CAP_IRQFD_RESAMPLE": KVM_CAP_IRQFD_RESAMPLE,
    "KVM_CAP_SIGNAL_MSI": KVM_CAP_SIGNAL_MSI,
    "KVM_CAP_MP_STATE": abi.KVM_CAP_MP_STATE,
    "KVM_CAP_VCPU_EVENTS": abi.KVM_CAP_VCPU_EVENTS,
}

_PIN, _VECTOR, _LEVEL, _REMOTE_IRR = 5, 0x51, 0x8000, 0x4000
_IOREDTBL, _EOI, _SVR = 0x10, 0xFEE0_00B0, 0xFEE0_00F0
_ENTRY_OFFSET = 24
"""Of the redirection table in `struct kvm_ioapic_state`."""


@dataclass(frozen=True, slots=True)
class ProbeStep:
    """One question: `name`, whether the answer is yes, what was seen, and what the user can do about a no."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


@dataclass(slots=True)
class Probe:
    """What was found at `path`, in order; it ends with the first step without which the rest makes no sense.

    `oracle`: the in-kernel irqchip can be asked (tests marked `kvm`, `vintx vectors record` and `fuzz`).
    `faithful_injection`: an interrupt that a guest takes stays in service until the guest's EOI; without it a guest
    must not be run with an in-kernel local APIC if it is to see level interrupts as on hardware.
    `emulated_ring0`: the host interprets the guest's kernel, and not every instruction.
    """

    path: str
    steps: list[ProbeStep] = field(default_factory=list)
    oracle: bool = False
    faithful_injection: bool = False
    emulated_ring0: bool = False

    @property
    def reason(self) -> str:
        """Why it is no oracle; empty if it is one."""
        if self.oracle:
            return ""
        for step in self.steps:
            if not step.ok:
                return f"{step.name}: {step.detail}" + (f". {step.hint}" if step.hint else "")
        return "not probed"


def probe(path: str = DEFAULT_PATH) -> Probe:
    """Probe a KVM device. Never raises: what went wrong is in the steps."""
    found = Probe(path)
    try:
        kvm = HostKvm(path)
    except EngineRefused as error:
        found.steps.append(ProbeStep("open", False, error.reason, error.remedy))
        return found
    with kvm:
        found.steps.append(ProbeStep("open", True, f"{path}, API version {abi.KVM_API_VERSION}"))
        missing = [name for name, number in WANTED.items() if not kvm.check_extension(number)]
        found.steps.append(
            ProbeStep(
                "extensions",
                not missing,
                f"without {', '.join(missing)}" if missing else f"all {len(WANTED)} that the irqchip needs",
                "Use a kernel with CONFIG_KVM and an in-kernel irqchip for x86-64" if missing else "",
            )
        )
        if missing:
            return found
        if _step(found, "run", functools.partial(_runs, kvm)):
            found.oracle = _step(found, "oracle", functools.partial(_is_oracle, kvm))
            found.faithful_injection = _step(found, "faithful injection", functools.partial(_is_faithful, kvm))
            found.emulated_ring0 = not _step(found, "whole instruction set", functools.partial(_is_native, kvm))
    return found


@functools.cache
def probed() -> Probe:
    """The probe of /dev/kvm, once per process."""
    return probe()


def _step(found: Probe, name: str, question: Callable[[], tuple[bool, str, str]]) -> bool:
    try:
        ok, detail, hint = question()
    except (EngineRefused, EngineError, OSError) as error:
        ok, detail, hint = False, str(error), ""
    found.steps.append(ProbeStep(name, ok, detail, hint))
    return ok


def _started(vm: HostVm) -> tuple[MailboxGuest, HostCpu]:
    guest = MailboxGuest(vm)
    cpu = vm.add_cpu()
    guest.start(cpu)
    return guest, cpu


def _runs(kvm: HostKvm) -> tuple[bool, str, str]:
    with HostVm(kvm) as vm:
        guest, cpu = _started(vm)
        address, value = 0x30000, 0x1234_5678
        guest.call(cpu, "write32", address, value)
        ok = guest.call(cpu, "read32", address) == value
    return ok, "a VM with one CPU runs its guest" if ok else "the guest reads back something else than it wrote", ""


def _raise_level(vm: HostVm, guest: MailboxGuest, cpu: HostCpu) -> None:
    guest.call(cpu, "write32", _SVR, 0x1FF)
    guest.call(cpu, "wreg", _IOREDTBL + 2 * _PIN + 1, 0)
    guest.call(cpu, "wreg", _IOREDTBL + 2 * _PIN, _LEVEL | _VECTOR)
    vm.irq_line(_PIN, 1)


def _remote_irr(vm: HostVm) -> bool:
    state = vm.get_irqchip(KVM_IRQCHIP_IOAPIC)
    start = _ENTRY_OFFSET + 8 * _PIN
    return bool(int.from_bytes(state[start : start + 8], "little") & _REMOTE_IRR)


def _is_oracle(kvm: HostKvm) -> tuple[bool, str, str]:
    """A level interrupt from the line to its EOI, without injection; and the canary."""
    with pinned(), HostVm(kvm) as vm:
        guest, cpu = _started(vm)
        vm.settle()
        _raise_level(vm, guest, cpu)
        seen: list[object] = [_remote_irr(vm), cpu.acknowledge()]
        vm.irq_line(_PIN, 0)
        guest.call(cpu, "write32", _EOI, 0)
        seen += [_remote_irr(vm), lapic_bits(cpu.get_lapic(), LAPIC_ISR)]
    ok = seen == [True, _VECTOR, False, 0]
    if ok:
        return True, "a level interrupt goes from line to EOI as it should", ""
    return False, f"Remote IRR, vector, Remote IRR and ISR after the EOI are {seen}", "This kernel's irqchip is unusual"


def _is_faithful(kvm: HostKvm) -> tuple[bool, str, str]:
    with HostVm(kvm) as vm:
        guest, cpu = _started(vm)
        _raise_level(vm, guest, cpu)
        taken = guest.taken(cpu)
        in_service = lapic_bits(cpu.get_lapic(), LAPIC_ISR)
    if not taken:
        return False, "the guest took no interrupt in its window", _PYTHON_APIC
    if in_service != 1 << _VECTOR:
        return False, "the host ends an interrupt (EOI) when it injects it, not when the guest does", _PYTHON_APIC
    return True, "an interrupt stays in service until the guest's EOI", ""


_PYTHON_APIC = "Run guests with the local APIC and I/O APIC in user space on this host; as an oracle it is not affected"


def _is_native(kvm: HostKvm) -> tuple[bool, str, str]:
    pvm = Path("/sys/module/kvm_pvm").exists()
    with HostVm(kvm) as vm:
        guest, cpu = _started(vm)
        try:
            ok = guest.call(cpu, "popcnt", 0, 0xF0) == 4
        except EngineError as error:
            hint = "This is kvm_pvm, which interprets a guest's kernel" if pvm else "The guest's kernel is interpreted"
            return False, f"popcnt in ring 0: {error}", hint
    return ok, "popcnt in ring 0 works" if ok else "popcnt in ring 0 gives a wrong result", ""
