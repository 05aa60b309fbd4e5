"""A real eventfd of the host, entered in the model's descriptor table as a file like any other.

That is how an eventfd that came over a socket (vfio-user) becomes an irqfd's trigger or resamplefd. Rules that the
model keeps for its own eventfds and cannot keep for these:

  * POLLHUP never comes by itself. A held eventfd does not tell that its other owners closed it, so an irqfd on it lives
    until it is deassigned or the model's own descriptor is closed.
  * The wake-up is not inside the writer. It comes when the event loop finds the descriptor readable and calls
    `readable_now`; several writes may have become one by then (an irqfd makes one injection of them anyway).
  * Priority and exclusiveness hold among the model's waiters. Another process may still read the counter first.
  * One irqfd per eventfd holds per context object. Descriptors for the same eventfd that arrive twice are recognised by
    the kernel's `eventfd-id` where /proc shows it, else they are strangers.
  * A signal cannot saturate at 2**64-1: at 2**64-2 it is lost, as a write without room is.

Ref: eventfd(2), proc_pid_fdinfo(5)
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING

from vmm import order
from vmm.kernel.files import POLLERR, POLLHUP, POLLIN, POLLOUT, EventfdCtx, EventFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmm.kernel.files import DescriptorTable, EventfdDomain, WaitEntry


class HostEventfdCtx(EventfdCtx):
    """The context of a host eventfd. `fd` is ours and is closed with the last reference.

    `on_watch(ctx, wanted)` tells the event loop whether somebody waits, so whether to poll `fd`.
    """

    WIRING = ("fd", "on_watch")
    __slots__ = WIRING

    def __init__(
        self,
        domain: EventfdDomain,
        name: str,
        fd: int,
        on_watch: Callable[[HostEventfdCtx, bool], None] | None = None,
    ) -> None:
        super().__init__(domain, name)
        self.fd = fd
        self.on_watch = on_watch

    def put(self) -> None:
        super().put()
        if not self.refs:
            os.close(self.fd)
            self.fd = -1

    def take(self) -> int:
        """Consume the real counter without sleeping; 0 if it is 0."""
        buffer = bytearray(8)
        try:
            # RWF_NOWAIT does not touch O_NONBLOCK, which is shared with the other owners.
            os.preadv(self.fd, [buffer], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            if not self.readable():
                return 0
            with contextlib.suppress(BlockingIOError):
                buffer[:] = os.read(self.fd, 8)
        return int.from_bytes(buffer, "little")

    def signal(self) -> bool:
        """Add 1 to the real counter, if there is room, and wake the model's waiters."""
        return self.add(1)

    def add(self, value: int) -> bool:
        if not self.writable():
            return False
        os.eventfd_write(self.fd, value)
        if self.waiters:
            self.readable_now()
        return True

    def drain(self) -> int:
        return self.take()

    def poll(self) -> int:
        poller = select.poll()
        poller.register(self.fd, select.POLLIN | select.POLLOUT)
        events = dict(poller.poll(0)).get(self.fd, 0)
        return events & (POLLIN | POLLOUT | POLLERR | POLLHUP)

    def readable(self) -> bool:
        return bool(self.poll() & POLLIN)

    def writable(self) -> bool:
        return bool(self.poll() & POLLOUT)

    def readable_now(self) -> None:
        """The event loop found `fd` readable: wake the queue, as the writer would have done."""
        if order.actor in self.domain.signalling:
            return  # the loop comes again: the counter is still there
        if self.waiters and self.readable():
            self._wake_as_task(POLLIN)

    # The loop polls only what somebody waits for.

    def add_wait(self, entry: WaitEntry) -> None:
        super().add_wait(entry)
        self._watch()

    def add_wait_exclusive(self, entry: WaitEntry) -> None:
        super().add_wait_exclusive(entry)
        self._watch()

    def add_wait_priority(self, entry: WaitEntry) -> None:
        super().add_wait_priority(entry)
        self._watch()

    def add_wait_priority_exclusive(self, entry: WaitEntry) -> bool:
        added = super().add_wait_priority_exclusive(entry)
        self._watch()
        return added

    def remove_wait(self, entry: WaitEntry) -> None:
        super().remove_wait(entry)
        self._watch()

    def remove_wait_and_drain(self, entry: WaitEntry) -> int:
        count = super().remove_wait_and_drain(entry)
        self._watch()
        return count

    def _watch(self) -> None:
        if self.on_watch is not None:
            self.on_watch(self, bool(self.waiters))


class HostEventFile(EventFile):
    """The model's file of a host eventfd. Its release wakes the model's waiters with POLLHUP, and nobody else."""

    __slots__ = ()

    @classmethod
    def open(
        cls,
        files: DescriptorTable,
        fd: int,
        name: str = "",
        on_watch: Callable[[HostEventfdCtx, bool], None] | None = None,
    ) -> int:
        """Enter host descriptor `fd`, which is taken over, into `files`; returns its number there.

        A descriptor of an eventfd that is there already gets its context, so the two are one to KVM.
        """
        number = eventfd_id(fd)
        if number is not None:
            for file in files.files:
                if isinstance(file, HostEventFile) and eventfd_id(file.host_fd) == number:
                    os.close(fd)
                    return files.install(file)
        ctx = HostEventfdCtx(files.domain, name or f"host-eventfd-{fd}", fd, on_watch)
        return files.install(cls(ctx))

    @property
    def host_fd(self) -> int:
        """The host's descriptor."""
        assert isinstance(self.ctx, HostEventfdCtx)
        return self.ctx.fd


def eventfd_id(fd: int) -> int | None:
    """The kernel's number of the eventfd behind `fd`; None if it does not tell."""
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == "eventfd-id":
            return int(value)
    return None
