"""Operations of the irqchip a second: the model beside the real KVM through its ioctls, where the machine has one.

    measure()     # {"irqchip-loop": 110000.0, "irqchip-loop-kvm": 11000.0, ...}

`ROWS` describes the figures: name, what, unit, aim. Both sides do the same, from Python, with nothing traced; each
figure is that of the best of several short stretches, so that a busy host counts little. The real level loop has the
settling of the recordings in it (the injection is a work of the kernel's queue) and a guest that does the EOI.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

from devices import lapic_registers as regs
from vmm.errors import EngineError
from vmm.kernel.gsi import KVM_IRQCHIP_IOAPIC, Route
from vmm.kernel.hostkvm import DEFAULT_PATH, HostKvm
from vmm.kernel.hostkvm_probe import probe
from vmm.kernel.irqfd import KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE
from vmm.vectors.kvm import KvmReplay
from vmm.vectors.live import KvmLive

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.vectors.kvm_ops import KvmOps

KVM_SUFFIX = "-kvm"
OPERATIONS = (
    ("irqchip-loop", "irqfd, INTA, EOI, resample", 100_000.0),
    ("irqchip-line", "KVM_IRQ_LINE 1 and 0", None),
    ("irqchip-msi", "KVM_SIGNAL_MSI", None),
    ("irqchip-state", "KVM_GET_IRQCHIP", None),
    ("irqchip-routing", "KVM_SET_GSI_ROUTING", None),
    ("irqchip-irqfd", "KVM_IRQFD on and off", None),
)
ROWS: tuple[tuple[str, str, str, float | None], ...] = (
    *((name, f"{what}; model", "/s", aim) for name, what, aim in OPERATIONS),
    *((name + KVM_SUFFIX, f"{what}; KVM", "/s", None) for name, what, _ in OPERATIONS),
)
GSI, IDLE_GSI = 10, 11
VECTOR, LOW_VECTOR = 0x61, 0x31
STRETCH_S, STRETCHES = 0.01, 10


def measure(path: str = DEFAULT_PATH, stretch_s: float = STRETCH_S, stretches: int = STRETCHES) -> dict[str, float]:
    """Figures by name. Those of KVM are missing where the probe of `path` finds no oracle."""
    figures = _figures(KvmReplay(1), "", stretch_s, stretches)
    if probe(path).oracle:
        with HostKvm(path) as kvm:
            figures |= _figures(KvmLive(kvm), KVM_SUFFIX, stretch_s, stretches)
    return figures


def _figures(vm: KvmOps, suffix: str, stretch_s: float, stretches: int) -> dict[str, float]:
    with contextlib.closing(vm):
        return {name + suffix: _rate(act, stretch_s, stretches) for name, act in _acts(vm).items()}


def _rate(act: Callable[[], object], stretch_s: float, stretches: int) -> float:
    """Times a second, of the best stretch."""
    act()
    rounds = max(int(stretch_s / _seconds(act, 3)), 1)
    return 1 / min(_seconds(act, rounds) for _ in range(stretches))


def _seconds(act: Callable[[], object], rounds: int) -> float:
    """How long one takes."""
    began = time.perf_counter()
    for _ in range(rounds):
        act()
    return (time.perf_counter() - began) / rounds


def _acts(vm: KvmOps) -> dict[str, Callable[[], object]]:
    """What is measured, ready to be called again and again."""
    prepare: list[list[Any]] = [
        *(["efd", name] for name in ("trigger", "resample", "other", "unused")),
        ["redir", GSI, f"{regs.LVT_LEVEL | VECTOR:016x}"],
        ["irqfd", "trigger", GSI, KVM_IRQFD_FLAG_RESAMPLE, "resample"],
    ]
    for op in prepare:
        vm.run(op)
    trigger, resample, other, unused = (vm.fds[name] for name in ("trigger", "resample", "other", "unused"))
    routes = [Route.irqchip(n, KVM_IRQCHIP_IOAPIC, n) for n in range(24)]
    ioctls, write, read, settle = vm.vm, vm.files.write, vm.files.read, vm.settle
    inta, eoi = (vm.inta, vm.op_eoi) if not isinstance(vm, KvmReplay) else _cpu_side(vm)

    def loop() -> None:
        write(trigger, 1)
        settle()
        if inta(0) != VECTOR:
            raise EngineError("the level interrupt is lost")
        eoi(0)
        read(resample)

    def line() -> None:
        ioctls.irq_line(IDLE_GSI, 1)
        ioctls.irq_line(IDLE_GSI, 0)

    def irqfd() -> None:
        ioctls.irqfd(other, IDLE_GSI, KVM_IRQFD_FLAG_RESAMPLE, unused)
        ioctls.irqfd(other, IDLE_GSI, KVM_IRQFD_FLAG_DEASSIGN)
        settle()

    return {
        "irqchip-loop": loop,
        "irqchip-line": line,
        "irqchip-msi": lambda: ioctls.signal_msi(0xFEE0_0000, 0, LOW_VECTOR),
        "irqchip-state": lambda: ioctls.get_irqchip(KVM_IRQCHIP_IOAPIC),
        "irqchip-routing": lambda: ioctls.set_gsi_routing(routes),
        "irqchip-irqfd": irqfd,
    }


def _cpu_side(vm: KvmReplay) -> tuple[Callable[[int], int], Callable[[int], None]]:
    """INTA and EOI as a CPU of the machine does them, without what a recording adds."""
    lapic = vm.cpus[0]

    def inta(_cpu: int) -> int:
        vector = lapic.pending_vector()
        if vector is None:
            return -1
        lapic.acknowledge(vector)
        return vector

    def eoi(_cpu: int) -> None:
        lapic.mmio_write(regs.EOI, 4, 0)

    return inta, eoi


if __name__ == "__main__":
    print(json.dumps({name: round(value) for name, value in measure().items()}, indent=2))
