"""The QMP commands, grouped by subject; `standard_registry` has them all."""

from __future__ import annotations

from vmm.qmp.command import Registry
from vmm.qmp.commands import (
    absent,
    block,
    character,
    control,
    devices,
    human,
    interrupts,
    kernel,
    machine,
    qom,
    virtio,
)


def standard_registry() -> Registry:
    """A registry with every command; add your own to it."""
    return Registry(
        command
        for module in (control, machine, devices, qom, block, character, interrupts, kernel, virtio, human, absent)
        for command in module.GROUP.commands
    )
