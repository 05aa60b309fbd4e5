"""The human monitor, through QMP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.errors import QmpError
from vmm.qmp.command import INT, STR, Arg, CommandGroup
from vmm.qmp.hmp import run_hmp

if TYPE_CHECKING:
    from vmm.qmp.call import Call
    from vmm.qmp.command import Arguments

GROUP = CommandGroup()


@GROUP.command("human-monitor-command", Arg("command-line", STR), Arg("cpu-index", INT, optional=True), returns=STR)
def human_monitor_command(call: Call, arguments: Arguments) -> Any:
    """Run one line of the human monitor; its output is the reply, refusals of the line included."""
    cpu_index = arguments.get("cpu-index")
    if cpu_index is not None and all(cpu.cpu_index != cpu_index for cpu in call.target.cpus()):
        raise QmpError("Parameter 'cpu-index' expects a CPU number")
    return run_hmp(call.target, call.version, arguments["command-line"]).replace("\n", "\r\n")
