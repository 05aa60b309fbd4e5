"""What the clients of one monitor share: the machine, the commands, the events, the mode.

Nothing here needs a machine or a loop to be imported: a client is greeted while both are still being made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from vmm.errors import ConfigError
from vmm.qmp.call import Call
from vmm.qmp.session import Session

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from vmm.qmp.command import Registry
    from vmm.qmp.events import Events
    from vmm.qmp.hmp_session import HmpSession
    from vmm.qmp.target import MachineTarget

OUTPUT_LIMIT: Final = 16 << 20
"""Bytes that may wait for a client before it is disconnected."""


def make_version(package: str) -> dict[str, Any]:
    """The reply of `query-version`: the QEMU release whose behaviour this monitor has, and the program's own name."""
    return {"qemu": {"micro": 3, "minor": 1, "major": 11}, "package": package}


def make_call(target: MachineTarget | None, package: str, registry: Registry | None = None) -> Call:
    """What all sessions of one monitor share. `package`: the program and its version, such as `vintx 0.1.0`.

    Without a target, clients are greeted; set `target` before anything they say is read.
    """
    return Call(target, registry, make_version(package))


class Monitor:
    """What clients of one address talk to. `mode` is `control` (QMP) or `readline` (HMP)."""

    def __init__(self, call: Call, events: Events, mode: str = "control", pretty: bool = False) -> None:
        if mode not in ("control", "readline"):
            raise ConfigError(f"Parameter 'mode' does not accept value '{mode}'; use control or readline")
        self.call = call
        self.events = events
        self.mode = mode
        self.pretty = pretty
        self._tasks: set[asyncio.Task[None]] = set()

    def session(self, write: Callable[[bytes], object], adjust: Callable[[], None]) -> Session | HmpSession:
        """A session for a new client. `adjust` is called when what `wants_input` says may have changed."""
        if self.mode == "readline":
            from vmm.qmp.hmp_session import HmpSession

            return HmpSession(self.call, write)
        return Session(self.call, self.events, write, lambda work: self.spawn(work, adjust), self.pretty)

    def spawn(self, work: Coroutine[Any, Any, None], done: Callable[[], None]) -> None:
        """Run a command's coroutine to its end, whatever becomes of its client."""
        import asyncio

        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            done()

        task.add_done_callback(ended)

    def cancel(self) -> None:
        """Cancel commands that still run; for the end of the process."""
        for task in self._tasks:
            task.cancel()
