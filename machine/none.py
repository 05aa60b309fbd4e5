"""Machine type `none`: no board and no CPU. For QMP clients, introspection and tests of the monitor."""

from __future__ import annotations

from machine.machine import Machine


class NoneMachine(Machine):
    """An empty machine."""

    type_name = "none"
    description = "empty machine"
