"""CPUs as devices: what QOM and query-cpus-fast name, and what CPU hot-plug plugs.

A CPU is at a place: socket, core and thread. Those that a machine starts with fill the places in order; the rest of
`-smp maxcpus=` is for device_add, with the `type` and `props` that query-hotpluggable-cpus gives. A CPU that is plugged
later is known to management and stands still: the engines make their vCPUs when the machine is made, so there is
hot-plug only where none runs (`-accel qtest`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from devices.device import Device, Property
from vmm.errors import ConfigError, InUse, PropertyError

if TYPE_CHECKING:
    from devices.device import Board
    from machine.machine import MachineConfig

BUS_TYPE = "CPU"
_AXES = ("socket-id", "core-id", "thread-id")


class Place(NamedTuple):
    """Where a CPU is."""

    socket: int
    core: int
    thread: int

    def props(self) -> dict[str, int]:
        """As query-hotpluggable-cpus shows it, and device_add takes it."""
        return {"core-id": self.core, "thread-id": self.thread, "socket-id": self.socket}


class Places:
    """The places of a machine, and who is there. Without a topology all CPUs are cores of one socket, as in QEMU."""

    def __init__(self, config: MachineConfig) -> None:
        total = max(config.max_cpus or config.cpus, config.cpus)
        shape = config.topology or (1, total, 1)
        self.sockets, self.cores, self.threads = shape
        self.type_name = f"{config.cpu_model or 'qemu64'}-x86_64-cpu"
        self.can_plug = config.accel == "qtest"
        self.all = [
            Place(socket, core, thread)
            for socket in range(self.sockets)
            for core in range(self.cores)
            for thread in range(self.threads)
        ]
        self.taken: dict[Place, X86Cpu] = {}

    def find(self, values: dict[str, Any], driver: str) -> Place:
        """The place that properties name. PropertyError if they do not; InUse if somebody is there."""
        limits = (self.sockets, self.cores, self.threads)
        for axis, limit in zip(_AXES, limits, strict=True):
            value = values[axis]
            if value is None:
                raise PropertyError(f"CPU {axis} is not set", driver, axis)
            if not 0 <= value < limit:
                raise PropertyError(f"Invalid CPU {axis}: {value} must be in range 0:{limit - 1}", driver, axis)
        place = Place(*(values[axis] for axis in _AXES))
        holder = self.taken.get(place)
        if holder is not None:
            index = self.all.index(place)
            raise InUse(f"CPU[{index}] with APIC ID {index} exists", holder=holder.path)
        return place

    def query(self) -> list[dict[str, Any]]:
        """query-hotpluggable-cpus, the last place first."""
        rows = []
        for place in reversed(self.all):
            row: dict[str, Any] = {"props": place.props(), "vcpus-count": 1, "type": self.type_name}
            if place in self.taken:
                row["qom-path"] = self.taken[place].path
            rows.append(row)
        return rows

    def cpus(self) -> list[X86Cpu]:
        """The CPUs in order of their places."""
        return [self.taken[place] for place in self.all if place in self.taken]


class X86Cpu(Device):
    """Base: a CPU of a model."""

    driver = "qemu64-x86_64-cpu"
    description = "x86-64 CPU of the engine"
    bus_type = BUS_TYPE
    hotpluggable = True
    model: ClassVar[str] = "qemu64"
    properties = (
        Property("socket-id", "int32", None, "number of the socket"),
        Property("core-id", "int32", None, "number of the core in the socket"),
        Property("thread-id", "int32", None, "number of the thread in the core"),
        Property("die-id", "int32", None, "0: a socket has one die"),
        Property("module-id", "int32", None, "0: a die has one module"),
        Property("node-id", "int32", None, "0: there is one NUMA node"),
    )

    def realize(self, board: Board) -> None:
        """Take the place. ConfigError for another model than the machine's, or where no CPU can be plugged."""
        super().realize(board)
        places: Places | None = getattr(board, "cpu_places", None)
        if places is None:
            raise ConfigError(f"Device '{self.driver}': this machine has no places for CPUs")
        if self.driver != places.type_name:
            raise ConfigError(f"Invalid CPU type, expected cpu type: '{places.type_name}'")
        for axis in ("die-id", "module-id", "node-id"):
            if self.values[axis] not in (None, 0):
                raise PropertyError(f"Invalid CPU {axis}: {self.values[axis]} must be in range 0:0", self.driver, axis)
        place = places.find(self.values, self.driver)
        if not (places.can_plug or self.path.startswith("/machine/unattached/")):
            raise ConfigError("CPUs cannot be plugged under this engine, which makes them when the machine is made")
        places.taken[place] = self
        self.place = place
        self.holdings.hold("cpu", str(places.all.index(place)), lambda: places.taken.pop(place))


class MaxCpu(X86Cpu):
    """`-cpu max`."""

    driver = "max-x86_64-cpu"
    description = "x86-64 CPU with all that the engine executes"
    model = "max"


class HaswellCpu(X86Cpu):
    """`-cpu Haswell`."""

    driver = "Haswell-x86_64-cpu"
    description = "Intel Core Processor (Haswell)"
    model = "Haswell"


class OpteronG1Cpu(X86Cpu):
    """`-cpu Opteron_G1`."""

    driver = "Opteron_G1-x86_64-cpu"
    description = "AMD Opteron 240 (Gen 1 Class Opteron)"
    model = "Opteron_G1"
