"""A `machine.Machine` as a monitor sees it: `MachineTarget` on top of it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from machine import qom, registry
from vmm import VERSION
from vmm.chardev import Chardevs
from vmm.clock import VirtualClock
from vmm.errors import ConfigError, DeviceNotFound, QmpError
from vmm.qmp.events import Events
from vmm.qmp.monitor import Monitor, make_call
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
    UnplugInfo,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from devices.pci.info import PciInfo
    from machine.machine import Machine
    from machine.pc import PcMachine
    from vmm.announce import Pace
    from vmm.block_graph import BlockGraph
    from vmm.qmp.host_kernel import HostKernel
    from vmm.qmp.target import Balloon

_LVTS = ("cmci", "timer", "thermal", "performance", "lint0", "lint1", "error")

_HOST_KERNELS: WeakKeyDictionary[Machine, HostKernel] = WeakKeyDictionary()
"""By machine: all its monitors hold, and see held, the same operations."""


_EVENTS: WeakKeyDictionary[Machine, Events] = WeakKeyDictionary()
"""By machine: what one monitor held back, the others shall not get at another time."""


def listen(machine: Machine, events: Events) -> None:
    """Let a machine's events go to `events`, which takes its time from the machine if that has one of its own."""
    clock = machine.clock
    if isinstance(clock, VirtualClock):
        events.later = lambda ms, call: clock.timer("qmp-event", call).arm(clock.now() + ms * 1_000_000)
    machine.on_event(lambda name, data: events.emit(name, data or None))
    _EVENTS[machine] = events


def monitor_of(machine: Machine, mode: str = "control", pretty: bool = False) -> Monitor:
    """A monitor of a machine: QMP (`control`) or HMP (`readline`). Each has its own registry and hears all events."""
    events = _EVENTS.get(machine)
    if events is None:
        events = Events()
        listen(machine, events)
    return Monitor(make_call(MachineMonitor(machine), f"vintx {VERSION}"), events, mode, pretty)


def _is_memory(qom_type: str) -> bool:
    return qom_type.startswith("memory-backend-")


def _memdev(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A row of query-memdev."""
    return {
        "id": name,
        "size": values["size"],
        "merge": values.get("merge", True),
        "dump": values.get("dump", True),
        "prealloc": values.get("prealloc", False),
        "share": values.get("share", False),
        "reserve": values.get("reserve", True),
        "host-nodes": [],
        "policy": "default",
    }


def _as_pc(machine: Machine) -> PcMachine | None:
    """The machine, if it is a PC. A process that has none need not import one to find out."""
    module = sys.modules.get("machine.pc")
    return machine if module is not None and isinstance(machine, module.PcMachine) else None


class MachineMonitor:
    """Implements `vmm.qmp.target.MachineTarget` for a machine that is built."""

    def __init__(self, machine: Machine, options: Callable[[], list[dict[str, Any]]] = list) -> None:
        """`options`: what `query-command-line-options` tells; nothing, where there was no command line."""
        self.machine = machine
        self._options = options

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
                    name="pc-i440fx" if name == "pc" else name,
                    alias="pc" if name == "pc" else "",
                    cpu_max=cls.max_cpus,
                    hotpluggable_cpus=name == "pc" and self.machine.config.accel == "qtest",
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
                socket_id=device.values["socket-id"],
                core_id=device.values["core-id"],
                cpu_thread_id=device.values["thread-id"],
            )
            for index, device in enumerate(self.machine.cpus())
        ]

    def device_add(self, props: dict[str, object], from_text: bool) -> None:
        self.machine.device_add(props, from_text)
        self._settle()

    def device_pull(self, id: str) -> None:
        self.machine.device_pull(id)
        self._settle()

    def device_del(self, id: str) -> None:
        self.machine.device_del(id)
        self._settle()

    def device_list_properties(self, typename: str) -> Sequence[PropertyInfo]:
        if typename in registry.object_names():
            raise QmpError("Parameter 'typename' expects a non-abstract device type")
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

    def balloon(self) -> Balloon | None:
        for device in self.machine.plugged():
            if device.driver == "virtio-balloon-pci":
                found: Any = device
                balloon: Balloon = found
                return balloon
        return None

    def announce(self, id: str, pace: Pace, interfaces: list[str] | None) -> None:
        from vmm.announce import Announcer

        machine = self.machine
        if machine.announcer is None:
            machine.announcer = Announcer(machine.announce_cards)
        machine.announcer.start(id, pace, interfaces)

    def netdev_add(self, options: dict[str, str]) -> None:
        from vmm.lean_imports import asyncio
        from vmm.netdev import add_netdev

        add_netdev(self.machine.netdevs, options).start(asyncio.get_running_loop())

    def netdev_del(self, id: str) -> None:
        from vmm.netdev import remove_netdev

        remove_netdev(self.machine.netdevs, id)

    def set_link(self, name: str, up: bool) -> None:
        netdev = self.machine.netdevs.get(name)
        if netdev is None:
            netdev = getattr(self.machine.peripherals.get(name), "netdev", None)
        if netdev is None:
            raise DeviceNotFound(name)
        netdev.set_link(up)

    def qom_list_properties(self, typename: str) -> Sequence[PropertyInfo]:
        common = [PropertyInfo("type", "string")]
        if typename.endswith("-machine") and typename.removesuffix("-machine") in registry.machine_names():
            known = registry.machine_type(typename.removesuffix("-machine")).properties
            return common + [PropertyInfo(p.name, p.type_name, p.description, p.default) for p in known]
        if typename in registry.object_names():
            return [*common, *self.object_properties(typename)]
        if typename in registry.ABSTRACT_DEVICES:
            return common
        return [*common, *self.device_list_properties(typename)]

    def object_properties(self, qom_type: str) -> Sequence[PropertyInfo]:
        cls = registry.object_type(qom_type)
        known = getattr(cls, "properties", ())
        return [PropertyInfo(p.name, p.type_name, p.description, p.default) for p in known]

    @property
    def chardevs(self) -> Chardevs:
        """The character devices of the machine's configuration."""
        chardevs = self.machine.config.chardevs
        if not isinstance(chardevs, Chardevs):
            made = Chardevs()
            made.update(chardevs)
            self.machine.config.chardevs = chardevs = made
        return chardevs

    @property
    def blocks(self) -> BlockGraph:
        """The machine's."""
        return self.machine.blocks

    def command_line_options(self) -> list[dict[str, Any]]:
        return self._options()

    def hotpluggable_cpus(self) -> list[dict[str, Any]]:
        query = getattr(self.machine, "hotpluggable_cpus", None)
        if query is None:
            raise ConfigError("machine does not support hot-plugging CPUs")
        return list(query())

    def ospm_status(self) -> list[dict[str, Any]]:
        if _as_pc(self.machine) is None:
            raise QmpError("command is not supported, missing ACPI device")
        slots = self.machine.config.max_cpus or self.machine.config.cpus
        return [{"slot-type": "CPU", "slot": str(slot), "source": 0, "status": 0} for slot in range(slots)]

    def cpu_models(self) -> Sequence[str]:
        from machine.cpu_model import MODELS

        return list(MODELS)

    def memory_size(self) -> int:
        return self.machine.memory.size

    def read_memory(self, address: int, size: int) -> bytes:
        memory = self.machine.memory
        at = memory.locate(address, size)
        if at < 0:
            raise QmpError(f"Invalid addr 0x{address:016x}/size {size} specified")
        return bytes(memory.view[at : at + size])

    def memdevs(self) -> Sequence[dict[str, Any]]:
        machine = self.machine
        rows = [_memdev(name, made.values) for name, made in machine.objects.items() if _is_memory(made.qom_type)]
        is_pc = _as_pc(machine) is not None
        name = "pc.ram" if is_pc else "ram"
        if is_pc or machine.config.ram_given:
            rows.append(_memdev(name, {"size": machine.memory.size}))
        return rows

    def inject_nmi(self) -> None:
        if _as_pc(self.machine) is None:
            raise QmpError("machine does not provide NMIs")
        self.machine.inject_nmi()
        self.machine.loop.wake()

    def set_action(self, event: str, action: str) -> None:
        config = self.machine.config
        if event == "reboot":
            config.no_reboot = action == "shutdown"
        elif event == "shutdown":
            config.no_shutdown = action == "pause"
        elif event == "panic":
            config.panic = action
        else:
            self.machine.watchdog_action = action

    def pci(self) -> Sequence[PciInfo]:
        return self.machine.query_pci()

    def irqchips(self) -> IrqChips:
        machine = _as_pc(self.machine)
        if machine is None:
            return IrqChips()
        from devices import lapic_registers as registers

        names = {getattr(registers, f"LVT_{name.upper()}"): name for name in _LVTS}
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
                {names[register]: entry for register, entry in lapic.lvt.items()},
                {vector: count for vector, count in enumerate(processor.taken) if count},
            )
            for processor in machine.processors.all
            for lapic in (processor.lapic,)
        )
        counts = {n: count for n, count in enumerate(machine.irq_counts) if count}
        legacy = {n: count for n, count in counts.items() if n < 16}
        statistics = (IrqStatistics("ioapic", counts), IrqStatistics("isa-i8259", legacy))
        return IrqChips((ioapic,), pics, lapics, statistics)

    def unplugs(self) -> Sequence[UnplugInfo]:
        machine = _as_pc(self.machine)
        if machine is None:
            return ()
        now = machine.clock.now()
        return [
            UnplugInfo(device.id, device.path, device.slot, now - since, waits_for)
            for device, since, waits_for in machine.pcihp.waiting()
        ]

    def ledger(self) -> Sequence[LedgerRow]:
        return [LedgerRow(row.owner, row.kind, row.name) for row in self.machine.ledger.rows()]

    def view(self, name: str, argument: str) -> str:
        from vmm.qmp.machine_views import VIEWS

        return VIEWS[name](self.machine, argument)

    def host_kernel(self) -> HostKernel:
        """The machine's. One without a board has a kernel without an irqchip, which refuses every irqfd."""
        machine = self.machine
        kernel = _HOST_KERNELS.get(machine)
        if kernel is None:
            from vmm.qmp.host_kernel import HostKernel

            pc = _as_pc(machine)
            if pc is not None:
                vm, files = pc.kvm, pc.files
            else:
                from vmm.kernel.files import DescriptorTable
                from vmm.kernel.kvm import Vm

                files = DescriptorTable()
                vm = Vm(files, machine.executor, machine.trace, irqchip="none")
            kernel = HostKernel(vm, files, machine.executor, machine.objects, machine.loop.wake)
            _HOST_KERNELS[machine] = kernel
        return kernel

    def _settle(self) -> None:
        """What the command queued on the kernel side's work queues happens before its reply."""
        if self.machine.executor.pending:
            self.machine.executor.drain()
        self.machine.loop.wake()
