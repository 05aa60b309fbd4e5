"""A `machine.Machine` as a monitor sees it: `MachineTarget` on top of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from devices import lapic_registers as registers
from machine import qom, registry
from machine.pc import ISA_IRQS, PcMachine
from vmm import VERSION
from vmm.errors import ConfigError
from vmm.qmp.commands import make_call
from vmm.qmp.events import Events
from vmm.qmp.host_kernel import HostKernel
from vmm.qmp.server import Monitor
from vmm.qmp.target import (
    CpuInfo,
    IoapicInfo,
    IrqChips,
    IrqStatistics,
    LapicInfo,
    LedgerRow,
    MachineInfo,
    PicInfo,
    PropertyInfo,
    TypeInfo,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.pci.info import PciInfo
    from machine.machine import Machine

_LVT_NAMES = {
    registers.LVT_CMCI: "cmci",
    registers.LVT_TIMER: "timer",
    registers.LVT_THERMAL: "thermal",
    registers.LVT_PERFORMANCE: "performance",
    registers.LVT_LINT0: "lint0",
    registers.LVT_LINT1: "lint1",
    registers.LVT_ERROR: "error",
}

_HOST_KERNELS: WeakKeyDictionary[Machine, HostKernel] = WeakKeyDictionary()
"""By machine: all its monitors hold, and see held, the same operations."""


def monitor_of(machine: Machine, mode: str = "control", pretty: bool = False) -> Monitor:
    """A monitor of a machine: QMP (`control`) or HMP (`readline`). Each has its own registry and hears all events."""
    events = Events()
    machine.on_event(lambda name, data: events.emit(name, data or None))
    call = make_call(MachineMonitor(machine), f"vintx {VERSION}")
    return Monitor(call, events, mode, pretty)


class MachineMonitor:
    """Implements `vmm.qmp.target.MachineTarget` for a machine that is built."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    @property
    def name(self) -> str:
        """`-name`, or empty."""
        return self.machine.config.name or ""

    @property
    def uuid(self) -> str:
        """`-uuid`, or all zeros."""
        return self.machine.config.uuid

    def status(self) -> str:
        return self.machine.state.value

    def accelerators(self) -> tuple[str, Sequence[str]]:
        return self.machine.config.accel, ("qtest", "tcg")

    def kvm(self) -> tuple[bool, bool]:
        return False, False

    @property
    def preconfig(self) -> bool:
        """The machine waits for x-exit-preconfig."""
        return self.machine.preconfig

    def exit_preconfig(self) -> None:
        """Start the machine. Its board is built before a monitor sees it."""
        self.machine.exit_preconfig()

    def stop(self) -> None:
        self.machine.stop()

    def cont(self) -> None:
        self.machine.cont()

    def reset(self) -> None:
        self.machine.reset()
        self._settle()

    def powerdown(self) -> None:
        self.machine.powerdown()
        self._settle()

    def quit(self) -> None:
        self.machine.quit()

    def machines(self) -> Sequence[MachineInfo]:
        rows = []
        for name in registry.machine_names():
            cls = registry.machine_type(name)
            rows.append(
                MachineInfo(
                    name=name,
                    cpu_max=cls.max_cpus,
                    is_default=name == "pc",
                    acpi=name == "pc",
                    default_cpu_type="qemu64-x86_64-cpu" if name == "pc" else "",
                    default_ram_id="pc.ram" if name == "pc" else "",
                )
            )
        return rows

    def cpus(self) -> Sequence[CpuInfo]:
        return [
            CpuInfo(
                cpu_index=index,
                qom_path=device.path,
                qom_type=device.driver,
                thread_id=os.getpid(),
                core_id=index,
            )
            for index, device in enumerate(self.machine.cpus())
        ]

    def device_add(self, props: dict[str, object], from_text: bool) -> None:
        self.machine.device_add(props, from_text)
        self._settle()

    def device_del(self, id: str) -> None:
        self.machine.device_del(id)
        self._settle()

    def device_list_properties(self, typename: str) -> Sequence[PropertyInfo]:
        return [PropertyInfo(p.name, p.type_name, p.description, p.default) for p in qom.properties_of(typename)]

    def object_types(self) -> Sequence[str]:
        return registry.object_names()

    def object_add(self, qom_type: str, id: str, props: dict[str, object], from_text: bool) -> None:
        self.machine.object_add({"qom-type": qom_type, "id": id, **props}, from_text)

    def object_del(self, id: str) -> None:
        self.machine.object_del(id)
        self._settle()

    def qom_list(self, path: str) -> Sequence[PropertyInfo]:
        return [PropertyInfo(name, kind) for name, kind in qom.resolve(self.machine, path).listing()]

    def qom_get(self, path: str, name: str) -> Any:
        return qom.get(self.machine, path, name)

    def qom_set(self, path: str, name: str, value: object) -> None:  # noqa: ARG002
        qom.refuse_set(self.machine, path, name)

    def qom_list_types(self, implements: str | None, abstract: bool) -> Sequence[TypeInfo]:
        return [TypeInfo(t.name, t.parent, t.abstract) for t in qom.types(implements, abstract)]

    def pci(self) -> Sequence[PciInfo]:
        return self.machine.query_pci()

    def irqchips(self) -> IrqChips:
        machine = self.machine
        if not isinstance(machine, PcMachine):
            return IrqChips()
        state = machine.ioapic.get_state()
        chip = machine.ioapic
        ioapic = IoapicInfo("ioapic0", chip.version, state.id, state.ioregsel, state.irr, tuple(state.redirtbl))
        pics = tuple(
            PicInfo(
                name=f"pic{i}",
                irr=pic.irr,
                imr=pic.imr,
                isr=pic.isr,
                priority_add=pic.priority_add,
                irq_base=pic.irq_base,
                read_isr=bool(pic.read_reg_select),
                elcr=pic.elcr,
                special_fully_nested=bool(pic.special_fully_nested_mode),
            )
            for i, pic in reversed(list(enumerate(machine.pic.chips)))
        )
        lapics = tuple(
            LapicInfo(
                lapic.index,
                lapic.apic_id,
                lapic.svr,
                lapic.tpr,
                lapic.irr,
                lapic.isr,
                lapic.tmr,
                {_LVT_NAMES[register]: entry for register, entry in lapic.lvt.items()},
            )
            for lapic in (processor.lapic for processor in machine.processors.all)
        )
        counts = {n: count for n, count in enumerate(machine.irq_counts) if count}
        legacy = {n: count for n, count in counts.items() if n < ISA_IRQS}
        statistics = (IrqStatistics("ioapic", counts), IrqStatistics("isa-i8259", legacy))
        return IrqChips((ioapic,), pics, lapics, statistics)

    def ledger(self) -> Sequence[LedgerRow]:
        return [LedgerRow(row.owner, row.kind, row.name) for row in self.machine.ledger.rows()]

    def host_kernel(self) -> HostKernel:
        machine = self.machine
        if not isinstance(machine, PcMachine):
            raise ConfigError("this machine type has no irqfds: use pc")
        kernel = _HOST_KERNELS.get(machine)
        if kernel is None:
            kernel = HostKernel(machine.kvm, machine.files, machine.executor, machine.objects, machine.loop.wake)
            _HOST_KERNELS[machine] = kernel
        return kernel

    def _settle(self) -> None:
        """What the command queued on the kernel side's work queues happens before its reply."""
        if self.machine.executor.pending:
            self.machine.executor.drain()
        self.machine.loop.wake()
