"""A `machine.Machine` as a monitor sees it: `MachineTarget` on top of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from machine import qom, registry
from vmm.qmp.target import (
    CpuInfo,
    IrqChips,
    LedgerRow,
    MachineInfo,
    PciBus,
    PropertyInfo,
    TypeInfo,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from machine.machine import Machine


class MachineMonitor:
    """Implements `vmm.qmp.target.MachineTarget` for a machine that is built."""

    preconfig = False

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

    def exit_preconfig(self) -> None:
        """Nothing to do: the machine is built before a monitor sees it."""

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

    def pci(self) -> Sequence[PciBus]:
        return self.machine.query_pci()

    def irqchips(self) -> IrqChips:
        return self.machine.query_irqchips()

    def ledger(self) -> Sequence[LedgerRow]:
        return [LedgerRow(row.owner, row.kind, row.name) for row in self.machine.ledger.rows()]

    def _settle(self) -> None:
        """What the command queued on the kernel side's work queues happens before its reply."""
        if self.machine.executor.pending:
            self.machine.executor.drain()
        self.machine.loop.wake()
