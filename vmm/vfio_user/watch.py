"""Descriptors of the host that a machine's event loop polls.

They may be added before the loop runs (`-device` comes before it) and from inside a guest's access.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.loop import Loop


class Watch:
    """Calls back on the loop's thread when a descriptor is readable; whatever that makes due happens next."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[int, Callable[[], None]] = {}
        self._polled: dict[int, asyncio.AbstractEventLoop] = {}
        loop.before_poll.append(self._begin)

    def add(self, fd: int, callback: Callable[[], None]) -> None:
        """Poll `fd` from now on."""

        def readable() -> None:
            callback()
            self._loop.wake()

        self._waiting[fd] = readable

    def _begin(self) -> None:
        if self._waiting:
            aio = asyncio.get_running_loop()
            for fd, callback in self._waiting.items():
                aio.add_reader(fd, callback)
                self._polled[fd] = aio
            self._waiting.clear()

    def remove(self, fd: int) -> None:
        """Poll `fd` no more; it may be closed already. Nothing happens if it is not polled."""
        self._waiting.pop(fd, None)
        aio = self._polled.pop(fd, None)
        if aio is not None:
            aio.remove_reader(fd)

    def close(self) -> None:
        """Poll nothing any more. A second close does nothing."""
        for fd in [*self._waiting, *self._polled]:
            self.remove(fd)
        if self._begin in self._loop.before_poll:
            self._loop.before_poll.remove(self._begin)
