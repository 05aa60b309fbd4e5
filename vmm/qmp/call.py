"""What all clients of a monitor share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmm.qmp.command import Registry
    from vmm.qmp.target import MachineTarget


class Call:
    """What a handler is given besides its arguments. `version` is the reply of `query-version`.

    The registry, when it is the standard one, is made when it is first asked for: a greeting needs none.
    """

    __slots__ = ("_registry", "_target", "version")

    def __init__(self, target: MachineTarget | None, registry: Registry | None, version: Mapping[str, Any]) -> None:
        self._target = target
        self._registry = registry
        self.version = version

    @property
    def target(self) -> MachineTarget:
        """The machine. Nothing is executed before there is one."""
        assert self._target is not None, "a monitor runs its first command when its machine is there"
        return self._target

    @target.setter
    def target(self, target: MachineTarget) -> None:
        self._target = target

    @property
    def registry(self) -> Registry:
        """The commands."""
        if self._registry is None:
            from vmm.qmp.commands import standard_registry

            self._registry = standard_registry()
        return self._registry
