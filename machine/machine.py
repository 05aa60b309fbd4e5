"""What every machine has: memory, a clock, a trace, a ledger, a loop, devices with ids, and a run state.

`from machine import Machine`: everything the command line can do, a script can.

    machine = Machine.create("pc", MachineConfig(ram_size=64 << 20, kernel="guest.elf"))
    machine.device_add({"driver": "edu", "id": "e0"})
    status = asyncio.run(machine.run())
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from machine import plug
from machine.registry import device_type, machine_type
from vmm.block_graph import BlockGraph
from vmm.clock import HostClock, VirtualClock
from vmm.errors import ConfigError, QmpError
from vmm.lifecycle import Holdings, Ledger, Phase, Row
from vmm.loop import Loop
from vmm.memory import AddressSpace, GuestMemory
from vmm.order import Executor
from vmm.trace import Event, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from devices.device import Device, Property
    from devices.memory_backend import MemoryBackendRam
    from vmm.announce import Announcer
    from vmm.chardev import CharBackend
    from vmm.netdev import Netdev

    D = TypeVar("D", bound=Device)
    EventSink = Callable[[str, dict[str, Any]], None]


class RunState(enum.Enum):
    """QEMU's run states, as query-status names them."""

    PRELAUNCH = "prelaunch"
    RUNNING = "running"
    PAUSED = "paused"
    SHUTDOWN = "shutdown"
    GUEST_PANICKED = "guest-panicked"
    WATCHDOG = "watchdog"


class SystemReset(Event):
    """The machine is reset: all devices, CPUs and interrupt controllers, without a word of their own."""

    reason: str


ENDED = (RunState.SHUTDOWN, RunState.GUEST_PANICKED)
"""States that only a reset can leave."""


@dataclass(slots=True)
class MachineConfig:
    """What a machine is made from. Sizes in bytes; paths as given by the user."""

    ram_size: int = 128 << 20
    ram_given: bool = False
    """Somebody asked for that size."""
    memory_backend: MemoryBackendRam | None = None
    """The object that RAM is in, if it is to be shared; of `ram_size` bytes. It is the machine's from here on."""
    cpus: int = 1
    max_cpus: int | None = None
    topology: tuple[int, int, int] | None = None
    """Sockets, cores in each, threads in each; None: all CPUs are cores of one socket."""
    accel: str = "tcg"
    """`tcg` (the Unicorn engine), or `qtest` (no instruction runs, the clock is virtual)."""
    kernel: str | None = None
    initrd: str | None = None
    append: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    """Properties of the machine type (`-machine pc,NAME=VALUE`)."""
    globals: list[tuple[str, str, Any]] = field(default_factory=list)
    """(driver, property, value) defaults of `-global`."""
    serial: list[CharBackend | None] = field(default_factory=list)
    """COM1 to COM4; None: the port is not there."""
    chardevs: dict[str, CharBackend] = field(default_factory=dict)
    """Character devices that devices name by id."""
    blocks: BlockGraph = field(default_factory=BlockGraph)
    """Drives and block nodes that devices name by id. The machine closes them at its end."""
    netdevs: dict[str, Netdev] = field(default_factory=dict)
    """Network back ends that devices name by id. The machine closes them at its end."""
    cpu_model: str | None = None
    cpu_options: dict[str, str] = field(default_factory=dict)
    """Features of the CPU, `on` or `off`."""
    start_paused: bool = False
    preconfig: bool = False
    """Wait for `exit_preconfig` before the machine is started; what is plugged until then is cold-plugged."""
    no_reboot: bool = False
    no_shutdown: bool = False
    panic: str = "shutdown"
    """What a panic of the guest leads to: `none`, `pause`, `shutdown` or `exit-failure`."""
    watchdog: str = "reset"
    """What a watchdog's end leads to: `reset`, `shutdown`, `poweroff`, `pause`, `debug`, `none` or `inject-nmi`."""
    name: str | None = None
    uuid: str = "00000000-0000-0000-0000-000000000000"
    rtc_base: str = "utc"
    boot_order: str = "cad"
    """Drive letters in the order to boot from, of a c d n; only told to the guest (CMOS)."""
    boot_once: str | None = None
    """The order until the first reset, if that is another one."""
    fd_bootchk: bool = True
    """The guest's firmware is told to check a floppy's boot sector."""
    boot_menu: bool = False
    fw_cfg: list[tuple[str, bytes]] = field(default_factory=list)


class Machine:
    """Base of the machine types. A subclass wires its board up in `build`, and says how to boot in `power_on`."""

    type_name: ClassVar[str] = ""
    description: ClassVar[str] = ""
    max_cpus: ClassVar[int] = 1
    properties: ClassVar[tuple[Property, ...]] = ()
    """Options of the machine type."""

    def __init__(self, config: MachineConfig | None = None) -> None:
        self.config = config or MachineConfig()
        self.values = self._options(self.config.options)
        self.executor = Executor()
        self.clock: HostClock | VirtualClock = VirtualClock() if self.config.accel == "qtest" else HostClock()
        self.trace = Trace(self.clock.now)
        self.ledger = Ledger()
        self.holdings = Holdings(self.ledger, "machine")
        self.loop = Loop(self.clock, self.executor)
        self.ports = AddressSpace.ports()
        self.mmio = AddressSpace.memory()
        backend = self.config.memory_backend
        self.memory = GuestMemory(
            self.config.ram_size, backend.fd if backend is not None and backend.values["share"] else -1
        )
        self.state = RunState.PRELAUNCH
        self.complete = False
        self.preconfig = self.config.preconfig
        """Everything that is there from the start is plugged."""
        self.exit_status = 0
        self.peripherals: dict[str, Device] = {}
        """Devices that the user named, by id."""
        self.anonymous: dict[int, Device] = {}
        """Devices that the user did not name, by their number in /machine/peripheral-anon."""
        self.unattached: list[Device] = []
        """Devices of the board, in the order of their making."""
        self.objects: dict[str, Any] = {}
        if backend is not None:
            self.objects[backend.id] = backend
            self.ledger.take(Row("machine", "object", backend.id))
        self.blocks = self.config.blocks
        self.netdevs = self.config.netdevs
        self.announcer: Announcer | None = None
        """What announce-self began."""
        self.default_msix = self.config.accel == "qtest"
        """Devices that can have MSI-X have it unless told otherwise, as QEMU's test programs expect."""
        self.watchdog_action = self.config.watchdog
        self.buses: dict[str, plug.Bus] = {}
        self._anonymous_numbers = itertools.count()
        self.warnings: list[str] = []
        """What was asked for and is not there, but does no harm."""
        self._event_sinks: list[EventSink] = []
        self._ended = False
        self._powered = False
        self.clock.stop()
        try:
            self.build()
        except BaseException:
            self.close()
            raise
        if isinstance(self.clock, VirtualClock):
            self.loop.running = False

    @classmethod
    def create(cls, name: str, config: MachineConfig | None = None) -> Machine:
        """A machine of a type from the registry. ConfigError if there is none, or for a bad option."""
        return machine_type(name)(config)

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = {p.name: p for p in self.properties}
        values = {p.name: p.default for p in self.properties}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"Property '{self.type_name}-machine.{name}' not found")
            values[name] = known[name].parse(f"{self.type_name}-machine", value, from_text=isinstance(value, str))
        return values

    # What monitors ask. Machines that have a board override these.

    def cpus(self) -> Sequence[Device]:
        """The CPUs, in order."""
        return ()

    def query_pci(self) -> Sequence[Any]:
        """The root buses, as `vmm.qmp.target.PciBus`."""
        return ()

    # For subclasses.

    def build(self) -> None:
        """Make and wire the board."""

    def power_on(self) -> None:
        """Reset all devices and CPUs and leave the machine as firmware would: the first instruction is next."""

    def make(self, cls: type[D], **values: Any) -> D:
        """A device of the board, with the defaults that `-global` gives its driver."""
        return cls(**plug.global_values(self, cls), **values)

    def add_board_device(self, device: Device) -> None:
        """Realize a device of the board; it lives as long as the machine."""
        device.path = f"/machine/unattached/device[{len(self.unattached)}]"
        self.unattached.append(device)
        device.realize(self)  # type: ignore[arg-type]  # a Board, for the machines that have devices

    def named_board_devices(self) -> dict[str, Device]:
        """Devices of the board that have a QOM path of their own, by that path beneath /machine."""
        return {}

    # Events.

    def on_event(self, sink: EventSink) -> Callable[[], None]:
        """Hear of QMP events (name, data). Returns the call that stops it."""
        self._event_sinks.append(sink)
        return lambda: self._event_sinks.remove(sink)

    def emit(self, name: str, data: dict[str, Any] | None = None) -> None:
        """Tell everyone who listens."""
        for sink in list(self._event_sinks):
            sink(name, data or {})

    # Run state.

    def start(self) -> None:
        """The machine is complete: power on and run, or with `start_paused` wait for `cont` to do both."""
        self.complete = True
        if not self.config.start_paused:
            self._power_on()
            self._resume()

    async def run(self) -> int:
        """Start if not started, and run until shutdown. Returns the exit status."""
        if not self.complete and not self.preconfig:
            self.start()
        await self.loop.run()
        return self.exit_status

    def exit_preconfig(self) -> None:
        """The machine is complete after all: start it."""
        self.preconfig = False
        self.start()
        if self.loop.running:
            self.emit("RESUME")

    def _power_on(self) -> None:
        self._powered = True
        self.power_on()

    def _resume(self) -> None:
        self.state = RunState.RUNNING
        if isinstance(self.clock, HostClock):
            self.clock.resume()
        self.loop.running = True
        self.loop.wake()

    def stop(self) -> None:
        """QMP stop: the guest stands still. Stopping twice does nothing."""
        if self.state is RunState.RUNNING:
            self._pause(RunState.PAUSED)

    def _pause(self, state: RunState) -> None:
        self.state = state
        self.loop.running = False
        self.clock.stop()
        self.loop.kick()
        self.emit("STOP")

    def cont(self) -> None:
        """QMP cont. LifecycleError after a shutdown that only a reset can leave."""
        if self.state in ENDED:
            raise QmpError("Resetting the Virtual Machine is required")
        if self.state is not RunState.RUNNING:
            if not self._powered:
                self._power_on()
            self._resume()
            self.emit("RESUME")

    def reset(self, reason: str = "host-qmp-system-reset") -> None:
        """Reset now (between slices). What the guest was asked to let go of goes with it."""
        self.emit("RESET", {"guest": reason.startswith("guest"), "reason": reason})
        if self.trace.on:
            self.trace.emit(SystemReset(reason))
        self.power_on()
        if self.state in ENDED:
            self.state = RunState.PRELAUNCH

    def request_reset(self, reason: str) -> None:
        """Reset as soon as the access at hand is over."""
        if self.config.no_reboot and reason.startswith("guest"):
            self.request_shutdown(reason)
        else:
            self.loop.request(lambda: self.reset(reason))

    def request_shutdown(self, reason: str, status: int = 0) -> None:
        """End (or, with -no-shutdown, stop) as soon as the access at hand is over."""
        self.loop.request(lambda: self._shutdown(reason, status))

    def _shutdown(self, reason: str, status: int) -> None:
        if self._ended:
            return
        self.emit("SHUTDOWN", {"guest": reason.startswith("guest"), "reason": reason})
        if self.config.no_shutdown and reason.startswith("guest"):
            self._pause(RunState.SHUTDOWN)
            return
        self._ended = True
        self.exit_status = status
        self.loop.finish()

    # What a guest says at its end (pvpanic).

    def guest_panicked(self) -> None:
        """The guest panicked: do with it what -action panic= says, as soon as the access at hand is over."""
        self.loop.request(self._panicked)

    def _panicked(self) -> None:
        action = self.config.panic
        if action == "shutdown" and self.config.no_shutdown:
            action = "pause"
        told = {"none": "run", "pause": "pause"}.get(action, "poweroff")
        self.emit("GUEST_PANICKED", {"action": told})
        if told != "run" and self.state is RunState.RUNNING:
            self._pause(RunState.GUEST_PANICKED)
        if told == "poweroff":
            self._shutdown("guest-panic", int(action == "exit-failure"))

    def guest_crash_loaded(self) -> None:
        """The guest panicked and goes on in its own crash kernel."""
        self.loop.request(lambda: self.emit("GUEST_CRASHLOADED", {"action": "run"}))

    def guest_pv_shutdown(self) -> None:
        """The guest shuts down and says so."""
        self.loop.request(lambda: self.emit("GUEST_PVSHUTDOWN"))
        self.request_shutdown("guest-shutdown")

    # What a watchdog says of a guest that hangs.

    def watchdog_expired(self) -> None:
        """The guest did not come back in time: do what -watchdog-action says, as soon as the access at hand is over."""
        self.loop.request(self._watchdog)

    def _watchdog(self) -> None:
        action = self.watchdog_action
        self.emit("WATCHDOG", {"action": action})
        if action == "reset":
            self.request_reset("guest-reset")
        elif action == "shutdown":
            self.powerdown()
        elif action == "poweroff":
            self._shutdown("guest-shutdown", 0)
        elif action == "pause":
            if self.state is RunState.RUNNING:
                self._pause(RunState.WATCHDOG)
        elif action == "inject-nmi":
            self.inject_nmi()

    def inject_nmi(self) -> None:
        """An NMI to each CPU, where there are any."""

    def powerdown(self) -> None:
        """QMP system_powerdown: press the power button, where there is one."""
        self.emit("POWERDOWN")

    def quit(self, reason: str = "host-qmp-quit") -> None:
        """End the machine."""
        self._shutdown(reason, 0)

    def close(self) -> None:
        """Unrealize everything, last made first; the ledger is empty afterwards."""
        for device in [*reversed(self.anonymous.values()), *reversed(self.peripherals.values())]:
            if device.life.phase is not Phase.ABSENT:  # as one is that went with what it was plugged into
                plug.remove(self, device, announce=False)
        if self.config.memory_backend is not None:
            self.config.memory_backend.in_use = None
        for name in reversed(list(self.objects)):
            plug.object_del(self, name)
        for device in reversed(self.unattached):
            device.unrealize()
        self.unattached.clear()
        self.blocks.close()
        for netdev in self.netdevs.values():
            netdev.close()
        self.holdings.close()

    # Devices and objects.

    def device_add(self, given: Mapping[str, object], from_text: bool = False) -> Device:
        """Plug a device: properties as in QMP's device_add (JSON types), or all text (`from_text`).

        Refused with a ConfigError in QEMU's words; the machine is then as it was.
        """
        return plug.device_add(self, given, from_text)

    def device_del(self, id: str) -> None:
        """Ask the guest to let go of a device, by id or QOM path."""
        plug.device_del(self, id)

    def device_pull(self, id: str) -> None:
        """Surprise removal: a device is gone at once. See `plug.device_pull`."""
        plug.device_pull(self, id)

    def object_add(self, given: Mapping[str, object], from_text: bool = False) -> None:
        """Make an object (`-object`, object-add)."""
        plug.object_add(self, given, from_text)

    def object_del(self, id: str) -> None:
        """Remove an object; ConfigError while something uses it."""
        plug.object_del(self, id)

    def device_class(self, driver: str) -> type[Device] | None:
        """The class of a driver of the registry, for objects that make devices of their own; None if there is none."""
        return device_type(driver)

    def plugged(self) -> list[Device]:
        """Devices that the user plugged."""
        return [*self.peripherals.values(), *self.anonymous.values()]

    def announce_cards(self, interfaces: Collection[str] | None = None) -> None:
        """Let network cards (all, or those of these ids) tell the network where they are."""
        for device in self.plugged():
            announce = getattr(device, "announce", None)
            if announce is not None and (interfaces is None or device.id in interfaces):
                announce()

    def next_anonymous(self) -> int:
        """The number of the next device without an id."""
        return next(self._anonymous_numbers)

    def device(self, name: str) -> Device:
        """A plugged device by id. DeviceNotFound otherwise."""
        return plug.find(self, name)

    @property
    def hotplugging(self) -> bool:
        """True once the machine is complete: from then on a plug is a hot-plug."""
        return self.complete
