"""Commands about the machine as a whole: its state, its name, its CPUs and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import ConfigError, QmpError
from vmm.qmp import types
from vmm.qmp.command import INT, STR, Arg, CommandGroup, ListOf

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()
_PIECE = 1 << 20


@GROUP.command("query-status", returns=types.STATUS_INFO, preconfig=True)
def query_status(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The run state."""
    status = call.target.status()
    return {"status": status, "running": status == "running"}


@GROUP.command("query-name", returns=types.NAME_INFO, preconfig=True)
def query_name(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The guest's name, if it has one."""
    name = call.target.name
    return {"name": name} if name else {}


@GROUP.command("query-uuid", returns=types.UUID_INFO, preconfig=True)
def query_uuid(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The guest's UUID; all zeros if none was given."""
    return {"UUID": call.target.uuid}


@GROUP.command("query-kvm", returns=types.KVM_INFO)
def query_kvm(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Whether KVM is in use, and whether it could be."""
    enabled, present = call.target.kvm()
    return {"enabled": enabled, "present": present}


@GROUP.command("query-accelerators", returns=types.ACCELERATOR_INFO, preconfig=True)
def query_accelerators(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The CPU engine in use, and all there are."""
    enabled, present = call.target.accelerators()
    return {"enabled": enabled, "present": sorted(present)}


@GROUP.command("query-machines", returns=ListOf(types.MACHINE_INFO))
def query_machines(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The machine types."""
    return [machine.as_qmp() for machine in call.target.machines()]


@GROUP.command("query-current-machine", returns=types.CURRENT_MACHINE)
def query_current_machine(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """What this machine can do. It cannot suspend."""
    return {"wakeup-suspend-support": False}


@GROUP.command("query-cpus-fast", returns=ListOf(types.CPU_INFO_FAST))
def query_cpus_fast(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The vCPUs; does not disturb them."""
    return [cpu.as_qmp() for cpu in call.target.cpus()]


@GROUP.command("query-hotpluggable-cpus", returns=ListOf(types.HOTPLUGGABLE_CPU), preconfig=True)
def query_hotpluggable_cpus(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The sockets, cores and threads that a CPU is in or can be plugged into."""
    return call.target.hotpluggable_cpus()


@GROUP.command("query-acpi-ospm-status", returns=ListOf(types.OST_INFO))
def query_acpi_ospm_status(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """What the guest's ACPI code last said of each slot; it has said nothing."""
    return call.target.ospm_status()


@GROUP.command("query-cpu-definitions", returns=ListOf(types.CPU_DEFINITION))
def query_cpu_definitions(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The CPU models."""
    return [
        {
            "name": name,
            "typename": f"{name}-x86_64-cpu",
            "unavailable-features": [],
            "static": False,
            "migration-safe": False,
            "deprecated": False,
        }
        for name in call.target.cpu_models()
    ]


@GROUP.command("query-memory-size-summary", returns=types.MEMORY_SIZE)
def query_memory_size_summary(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """How much RAM the guest has."""
    return {"base-memory": call.target.memory_size(), "plugged-memory": 0}


@GROUP.command("query-memdev", returns=ListOf(types.MEMDEV))
def query_memdev(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Memory backends: the machine's own RAM, and objects."""
    return list(call.target.memdevs())


def _save(path: str, read: Callable[[int, int], bytes], address: int, size: int) -> None:
    try:
        with open(path, "wb") as file:  # noqa: PTH123  (a user's path, as it is)
            for start in range(address, address + size, _PIECE):
                file.write(read(start, min(_PIECE, address + size - start)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"Could not open '{path}': {reason}") from error


_MEMORY = (Arg("val", INT, doc="address"), Arg("size", INT, doc="bytes"), Arg("filename", STR, doc="the file to write"))


@GROUP.command("pmemsave", *_MEMORY)
def pmemsave(call: Call, arguments: Arguments) -> None:
    """Write guest memory, by physical address, to a file."""
    address, size = arguments["val"], arguments["size"]
    if address < 0 or not 0 <= size <= call.target.memory_size():
        raise QmpError(f"Invalid addr 0x{address & (1 << 64) - 1:016x}/size {size} specified")
    _save(arguments["filename"], call.target.read_memory, address, size)


@GROUP.command("inject-nmi")
def inject_nmi(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """An NMI to every vCPU."""
    call.target.inject_nmi()


@GROUP.command("stop")
def stop(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Stop the guest. STOP tells, if it ran."""
    call.target.stop()


@GROUP.command("cont")
def cont(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Let the guest run. RESUME tells, if it did not."""
    call.target.cont()


@GROUP.command("system_reset")
def system_reset(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Reset the machine. RESET tells."""
    call.target.reset()


@GROUP.command("system_powerdown")
def system_powerdown(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Press the power button; what follows is the guest's choice. POWERDOWN tells."""
    call.target.powerdown()


@GROUP.command("system_wakeup")
def system_wakeup(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Wake the guest up. It is never suspended: always refused."""
    raise QmpError("Unable to wake up: guest is not in suspended state")


@GROUP.command(
    "set-action",
    Arg("reboot", types.REBOOT_ACTION, optional=True),
    Arg("shutdown", types.SHUTDOWN_ACTION, optional=True),
    Arg("panic", types.PANIC_ACTION, optional=True),
    Arg("watchdog", types.WATCHDOG_ACTION, optional=True),
    preconfig=True,
)
def set_action(call: Call, arguments: Arguments) -> None:
    """What a guest's reboot, shutdown, panic and watchdog lead to."""
    for event, action in arguments.items():
        call.target.set_action(event, action)


@GROUP.command("watchdog-set-action", Arg("action", types.WATCHDOG_ACTION))
def watchdog_set_action(call: Call, arguments: Arguments) -> None:
    """What the watchdog's end leads to."""
    call.target.set_action("watchdog", arguments["action"])


@GROUP.command("rtc-reset-reinjection")
def rtc_reset_reinjection(call: Call, arguments: Arguments) -> None:
    """Forget the ticks that the guest missed. It never misses any."""


@GROUP.command("x-exit-preconfig", preconfig=True)
def x_exit_preconfig(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Build the machine now."""
    if not call.target.preconfig:
        raise QmpError("The command is permitted only before machine initialization")
    call.target.exit_preconfig()
