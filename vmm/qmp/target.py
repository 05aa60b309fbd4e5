"""What the monitor asks of a machine, and the shapes of the answers.

`MachineTarget` is the whole of it: a monitor knows a machine by nothing else, so a test gives it a fake and a script
may give it a machine of its own. Methods raise errors of `vmm.errors`; such an error becomes the reply's class and
description. Each is called on the event loop's thread and should return soon; what takes long belongs into an
`async def` command.

The named tuples mirror the QAPI types of the same meaning, with `_` for `-`; `as_qmp` gives the reply.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from devices.pci.info import PciInfo
    from vmm.announce import Pace
    from vmm.block_graph import BlockGraph
    from vmm.chardev import Chardevs
    from vmm.qmp.host_kernel import HostKernel


class MachineInfo(NamedTuple):
    """A machine type (`query-machines`). `default_cpu_type` and `default_ram_id` are left out if empty."""

    name: str
    cpu_max: int = 1
    alias: str = ""
    is_default: bool = False
    hotpluggable_cpus: bool = False
    numa_mem_supported: bool = False
    deprecated: bool = False
    acpi: bool = False
    default_cpu_type: str = ""
    default_ram_id: str = ""

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type MachineInfo."""
        reply: dict[str, Any] = {
            "hotpluggable-cpus": self.hotpluggable_cpus,
            "name": self.name,
            "numa-mem-supported": self.numa_mem_supported,
            "acpi": self.acpi,
            "cpu-max": self.cpu_max,
            "deprecated": self.deprecated,
        }
        if self.alias:
            reply["alias"] = self.alias
        if self.is_default:
            reply["is-default"] = True
        if self.default_cpu_type:
            reply["default-cpu-type"] = self.default_cpu_type
        if self.default_ram_id:
            reply["default-ram-id"] = self.default_ram_id
        return reply


class CpuInfo(NamedTuple):
    """A vCPU (`query-cpus-fast`). `thread_id`: the host thread that runs it."""

    cpu_index: int
    qom_path: str
    qom_type: str
    thread_id: int
    socket_id: int = 0
    core_id: int = 0
    cpu_thread_id: int = 0

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type CpuInfoFast."""
        return {
            "thread-id": self.thread_id,
            "qom-type": self.qom_type,
            "props": {"core-id": self.core_id, "thread-id": self.cpu_thread_id, "socket-id": self.socket_id},
            "qom-path": self.qom_path,
            "cpu-index": self.cpu_index,
            "target": "x86_64",
        }


class PropertyInfo(NamedTuple):
    """A property of a type or an object. `default` is left out of replies if None."""

    name: str
    type: str
    description: str = ""
    default: Any = None

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type ObjectPropertyInfo."""
        reply: dict[str, Any] = {} if self.default is None else {"default-value": self.default}
        reply["name"] = self.name
        if self.description:
            reply["description"] = self.description
        reply["type"] = self.type
        return reply


class TypeInfo(NamedTuple):
    """A type (`qom-list-types`)."""

    name: str
    parent: str = ""
    abstract: bool = False

    def as_qmp(self) -> dict[str, Any]:
        """The QAPI type ObjectTypeInfo."""
        reply: dict[str, Any] = {"abstract": True} if self.abstract else {}
        reply["name"] = self.name
        if self.parent:
            reply["parent"] = self.parent
        return reply


class IoapicInfo(NamedTuple):
    """An IOAPIC as software sees it: `entries` are the 64-bit redirection entries, `irr` a bit per pin."""

    name: str
    version: int
    id: int
    ioregsel: int
    irr: int
    entries: tuple[int, ...]

    @property
    def remote_irr(self) -> int:
        """A bit per pin: bit 14 of its entry. Ref: 82093AA, 3.2.4."""
        return sum(1 << pin for pin, entry in enumerate(self.entries) if entry & 1 << 14)

    def as_qmp(self) -> dict[str, Any]:
        """A member of `x-query-irqchip`'s `ioapics`."""
        return {
            "name": self.name,
            "version": self.version,
            "id": self.id,
            "ioregsel": self.ioregsel,
            "irr": self.irr,
            "remote-irr": self.remote_irr,
            "entries": list(self.entries),
        }


class PicInfo(NamedTuple):
    """One 8259A. `priority_add` is the highest-priority input after rotation, 0 to 7."""

    name: str
    irr: int = 0
    imr: int = 0
    isr: int = 0
    priority_add: int = 0
    irq_base: int = 0
    read_isr: bool = False
    elcr: int = 0
    special_fully_nested: bool = False

    def as_qmp(self) -> dict[str, Any]:
        """A member of `x-query-irqchip`'s `pics`."""
        return {
            "name": self.name,
            "irr": self.irr,
            "imr": self.imr,
            "isr": self.isr,
            "priority-add": self.priority_add,
            "irq-base": self.irq_base,
            "read-isr": self.read_isr,
            "elcr": self.elcr,
            "special-fully-nested": self.special_fully_nested,
        }


class LapicInfo(NamedTuple):
    """One local APIC: its 256-bit request, in-service and trigger-mode registers as numbers, bit N for vector N."""

    cpu_index: int
    id: int
    spiv: int = 0xFF
    tpr: int = 0
    irr: int = 0
    isr: int = 0
    tmr: int = 0
    lvt: Mapping[str, int] = MappingProxyType({})
    taken: Mapping[int, int] = MappingProxyType({})
    """How often the CPU took each vector, those that it never took left out."""

    def as_qmp(self) -> dict[str, Any]:
        """A member of `x-query-irqchip`'s `lapics`; the 256-bit registers are lists of vectors."""
        reply: dict[str, Any] = {"cpu-index": self.cpu_index, "id": self.id, "spiv": self.spiv, "tpr": self.tpr}
        for name, bits in (("irr", self.irr), ("isr", self.isr), ("tmr", self.tmr)):
            reply[name] = set_bits(bits)
        reply["lvt"] = dict(self.lvt)
        reply["taken"] = {str(vector): count for vector, count in self.taken.items()}
        return reply


class IrqStatistics(NamedTuple):
    """How often each input of a chip was raised (`info irq`)."""

    name: str
    counts: Mapping[int, int]


class IrqChips(NamedTuple):
    """All interrupt controllers (`x-query-irqchip`, `info pic`, `info irq`). `pics`: the slave before the master."""

    ioapics: tuple[IoapicInfo, ...] = ()
    pics: tuple[PicInfo, ...] = ()
    lapics: tuple[LapicInfo, ...] = ()
    statistics: tuple[IrqStatistics, ...] = ()

    def as_qmp(self) -> dict[str, Any]:
        """The reply of `x-query-irqchip`."""
        return {
            "ioapics": [chip.as_qmp() for chip in self.ioapics],
            "pics": [chip.as_qmp() for chip in self.pics],
            "lapics": [chip.as_qmp() for chip in self.lapics],
        }


class UnplugInfo(NamedTuple):
    """A device whose unplug was asked for and is not done (`x-query-unplug`)."""

    id: str | None
    path: str
    slot: int
    since: int
    """How long ago it was asked for, in nanoseconds of the machine's clock."""
    waits_for: str
    """`gpe-enable`: no guest listens to GPE0; `sci`: its handler has not looked; `eject`: it has, and keeps it."""

    def as_qmp(self) -> dict[str, Any]:
        """One row of the reply."""
        reply: dict[str, Any] = {} if self.id is None else {"device": self.id}
        return {**reply, "path": self.path, "slot": self.slot, "since-ns": self.since, "waits-for": self.waits_for}


class LedgerRow(NamedTuple):
    """A resource that somebody holds (`x-query-ledger`)."""

    owner: str
    kind: str
    name: str

    def as_qmp(self) -> dict[str, str]:
        """One row of the reply."""
        return {"owner": self.owner, "kind": self.kind, "name": self.name}


def set_bits(bits: int) -> list[int]:
    """The numbers of the bits that are set, lowest first."""
    return [n for n in range(bits.bit_length()) if bits >> n & 1]


class Balloon(Protocol):
    """A memory balloon."""

    @property
    def actual(self) -> int:
        """Bytes that it leaves the guest."""

    def set_target(self, size: int) -> None:
        """Ask the guest to make do with `size` bytes."""


class MachineTarget(Protocol):
    """A machine as a monitor sees it."""

    @property
    def name(self) -> str:
        """`-name`, or empty."""

    @property
    def uuid(self) -> str:
        """`-uuid`, or all zeros."""

    @property
    def preconfig(self) -> bool:
        """True until the machine is built (`--preconfig`); most commands are refused until then."""

    def status(self) -> str:
        """A QAPI RunState: `running`, `prelaunch`, `paused`, `shutdown`, `guest-panicked`, `internal-error`, ..."""

    def accelerators(self) -> tuple[str, Sequence[str]]:
        """The engine in use, and all there are."""

    def kvm(self) -> tuple[bool, bool]:
        """Whether KVM runs the vCPUs, and whether it could."""

    def exit_preconfig(self) -> None:
        """Build the machine and start it, unless -S."""

    def stop(self) -> None:
        """Stop all vCPUs and the machine's clock; no effect if stopped. Emits STOP if it ran."""

    def cont(self) -> None:
        """Let the vCPUs run; no effect if running. Emits RESUME. Refused while a reset is required."""

    def reset(self) -> None:
        """Reset the machine as by its button. Emits RESET."""

    def powerdown(self) -> None:
        """Press the power button. Emits POWERDOWN."""

    def quit(self) -> None:
        """End the monitor's process after this command's reply. Emits SHUTDOWN."""

    def machines(self) -> Sequence[MachineInfo]:
        """All machine types that can be made."""

    def cpus(self) -> Sequence[CpuInfo]:
        """The vCPUs that there are."""

    def device_add(self, props: dict[str, object], from_text: bool) -> None:
        """Plug a device: `driver`, `id`, `bus` and the driver's properties.

        `from_text`: the values are text of a command line, to be parsed; otherwise they are of JSON types.
        """

    def device_pull(self, id: str) -> None:
        """Take a device away without asking the guest."""

    def device_del(self, id: str) -> None:
        """Ask for a device, by id or QOM path, to be unplugged. DEVICE_DELETED tells when it is gone."""

    def device_list_properties(self, typename: str) -> Sequence[PropertyInfo]:
        """The properties that `device_add` takes for a driver."""

    def object_types(self) -> Sequence[str]:
        """The types that `object_add` takes."""

    def object_add(self, qom_type: str, id: str, props: dict[str, object], from_text: bool) -> None:
        """Make a user-creatable object below /objects."""

    def object_del(self, id: str) -> None:
        """Delete one."""

    def qom_list(self, path: str) -> Sequence[PropertyInfo]:
        """The properties of the object at a path, which may be partial."""

    def qom_get(self, path: str, name: str) -> Any:
        """A property's value, of a JSON type."""

    def qom_set(self, path: str, name: str, value: object) -> None:
        """Set a property."""

    def qom_list_types(self, implements: str | None, abstract: bool) -> Sequence[TypeInfo]:
        """The types that are, or derive from, `implements`; abstract ones only if asked for."""

    def balloon(self) -> Balloon | None:
        """The memory balloon, if there is one."""

    def announce(self, id: str, pace: Pace, interfaces: list[str] | None) -> None:
        """Let network cards (all, or those of these ids) announce themselves."""

    def netdev_add(self, options: dict[str, str]) -> None:
        """Make a network back end."""

    def netdev_del(self, id: str) -> None:
        """Remove one that no card has. DeviceNotFound if there is none."""

    def set_link(self, name: str, up: bool) -> None:
        """Plug in or pull out the cable of a network card or back end. DeviceNotFound if there is none."""

    def qom_list_properties(self, typename: str) -> Sequence[PropertyInfo]:
        """The properties that objects of a type have."""

    def object_properties(self, qom_type: str) -> Sequence[PropertyInfo]:
        """The properties that `object_add` takes for a type."""

    @property
    def chardevs(self) -> Chardevs:
        """The character devices."""

    @property
    def blocks(self) -> BlockGraph:
        """The block nodes and drives."""

    def command_line_options(self) -> list[dict[str, Any]]:
        """`query-command-line-options`."""

    def hotpluggable_cpus(self) -> list[dict[str, Any]]:
        """`query-hotpluggable-cpus`. Refused where there is no CPU hot-plug."""

    def ospm_status(self) -> list[dict[str, Any]]:
        """`query-acpi-ospm-status`. Refused where there is no ACPI."""

    def cpu_models(self) -> Sequence[str]:
        """The names that -cpu takes."""

    def memory_size(self) -> int:
        """Bytes of RAM."""

    def read_memory(self, address: int, size: int) -> bytes:
        """Guest memory, by physical address."""

    def memdevs(self) -> Sequence[dict[str, Any]]:
        """`query-memdev`."""

    def inject_nmi(self) -> None:
        """An NMI to every vCPU. Refused where there is none."""

    def set_action(self, event: str, action: str) -> None:
        """`set-action`: what a guest's `reboot`, `shutdown`, `panic` or `watchdog` leads to."""

    def pci(self) -> Sequence[PciInfo]:
        """The root buses."""

    def irqchips(self) -> IrqChips:
        """The interrupt controllers as they are now; looking changes nothing."""

    def unplugs(self) -> Sequence[UnplugInfo]:
        """Devices that the guest was asked to let go of, and has not."""

    def ledger(self) -> Sequence[LedgerRow]:
        """The resources that are held now."""

    def view(self, name: str, argument: str) -> str:
        """What `info NAME`, or NAME itself, prints of the machine's insides: `qtree`, `mtree`, `lapic`, `x`, ..."""

    def host_kernel(self) -> HostKernel:
        """The host kernel's side; ConfigError if the machine has none."""
