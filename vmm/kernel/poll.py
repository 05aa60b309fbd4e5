"""A poller in user space: what an event loop does with the eventfds it watches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.kernel.files import POLLIN, WaitEntry
from vmm.order import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kernel.files import DescriptorTable
    from vmm.order import WorkQueue


class FdHandler(State):
    """A user-space poller of one eventfd, as an event loop's descriptor handler is: a plain waiter, level-triggered.

    `handler` runs from a work while the counter is above 0, so it may come after the event was consumed by others;
    it is called again only if it consumed something or a new event came. It holds the context, not the file.
    """

    WIRING = ("ctx", "entry", "handler", "work")
    BOOKKEEPING = ("closed",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(
        self, files: DescriptorTable, fd: int, queue: WorkQueue, handler: Callable[[], None], name: str = "poll"
    ) -> None:
        self.ctx = files.ctx_fdget(fd)
        self.handler = handler
        self.closed = False
        self.work = queue.work(name, self._run)
        self.entry = WaitEntry(self._wake)
        self.ctx.add_wait(self.entry)
        if self.ctx.poll() & POLLIN:
            self.work.schedule()

    def _wake(self, key: int) -> bool:
        if key & POLLIN:
            self.work.schedule()
        return False

    def _run(self) -> None:
        before = self.ctx.count
        if self.closed or not before:
            return
        self.handler()
        if not self.closed and 0 < self.ctx.count < before:
            self.work.schedule()

    def close(self) -> None:
        """Poll no more; the handler does not run after this. A second close does nothing."""
        if self.closed:
            return
        self.closed = True
        self.ctx.remove_wait(self.entry)
        self.work.cancel(sync=False)
        self.ctx.put()
