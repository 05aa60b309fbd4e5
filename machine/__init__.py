"""Machine types, which wire devices up; the registry; plug and unplug."""

from machine.machine import Machine, MachineConfig, RunState

__all__ = ["Machine", "MachineConfig", "RunState"]
