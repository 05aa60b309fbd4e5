"""Commands about the machine as a whole: its state, its name, its CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import QmpError
from vmm.qmp.command import CommandGroup

if TYPE_CHECKING:
    from vmm.qmp.command import Arguments, Call

GROUP = CommandGroup()


@GROUP.command("query-status", preconfig=True)
def query_status(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The run state."""
    status = call.target.status()
    return {"status": status, "running": status == "running"}


@GROUP.command("query-name", preconfig=True)
def query_name(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The guest's name, if it has one."""
    name = call.target.name
    return {"name": name} if name else {}


@GROUP.command("query-uuid", preconfig=True)
def query_uuid(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The guest's UUID; all zeros if none was given."""
    return {"UUID": call.target.uuid}


@GROUP.command("query-kvm")
def query_kvm(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """Whether KVM is in use, and whether it could be."""
    enabled, present = call.target.kvm()
    return {"enabled": enabled, "present": present}


@GROUP.command("query-accelerators", preconfig=True)
def query_accelerators(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The CPU engine in use, and all there are."""
    enabled, present = call.target.accelerators()
    return {"enabled": enabled, "present": sorted(present)}


@GROUP.command("query-machines")
def query_machines(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The machine types."""
    return [machine.as_qmp() for machine in call.target.machines()]


@GROUP.command("query-cpus-fast")
def query_cpus_fast(call: Call, arguments: Arguments) -> Any:  # noqa: ARG001
    """The vCPUs; does not disturb them."""
    return [cpu.as_qmp() for cpu in call.target.cpus()]


@GROUP.command("stop")
def stop(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Stop the guest."""
    call.target.stop()


@GROUP.command("cont")
def cont(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Let the guest run."""
    call.target.cont()


@GROUP.command("system_reset")
def system_reset(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Reset the machine."""
    call.target.reset()


@GROUP.command("system_powerdown")
def system_powerdown(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Press the power button; what follows is the guest's choice."""
    call.target.powerdown()


@GROUP.command("x-exit-preconfig", preconfig=True)
def x_exit_preconfig(call: Call, arguments: Arguments) -> None:  # noqa: ARG001
    """Build the machine now."""
    if not call.target.preconfig:
        raise QmpError("The command is permitted only before machine initialization")
    call.target.exit_preconfig()
