"""The QMP commands, grouped by subject; `standard_registry` has them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmm.qmp.command import Call, Registry
from vmm.qmp.commands import control, devices, human, interrupts, kernel, machine, qom

if TYPE_CHECKING:
    from vmm.qmp.target import MachineTarget


def standard_registry() -> Registry:
    """A registry with every command; add your own to it."""
    return Registry(
        command
        for module in (control, machine, devices, qom, interrupts, kernel, human)
        for command in module.GROUP.commands
    )


def make_version(package: str) -> dict[str, Any]:
    """The reply of `query-version`: the QEMU release whose behaviour this monitor has, and the program's own name."""
    return {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": package}


def make_call(target: MachineTarget, package: str, registry: Registry | None = None) -> Call:
    """What all sessions of one monitor share. `package`: the program and its version, such as `vintx 0.1.0`."""
    return Call(target, registry or standard_registry(), make_version(package))
