"""The host kernel's descriptor table, files and eventfds, as far as the life of an irqfd depends on them.

A descriptor is a slot of a table and holds one reference of a *file*; `dup`, `fork` and an ioctl in progress hold
more. The file of an eventfd holds one reference of its *context*, and KVM and VFIO hold contexts, never files: a
context keeps counter and wait queue alive but neither prevents nor causes the file's release. When the last file
reference goes, the wait queue is woken with POLLHUP, exactly once, and then the file's context reference is put.

Errors are OSError with the kernel's errno. Steps that another actor may precede are points; `POINTS` says what each
one mirrors.

Ref: eventfd(2), fs/eventfd.c, fs/file.c, include/linux/wait.h
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, ClassVar

from vmm import order
from vmm.order import Lock, Mortal, State, Violation

if TYPE_CHECKING:
    from collections.abc import Callable

U64_MAX = (1 << 64) - 1
POLLIN, POLLOUT, POLLERR, POLLHUP = 0x1, 0x4, 0x8, 0x10
EFD_SEMAPHORE, EFD_NONBLOCK, EFD_CLOEXEC = 0x1, 0o4000, 0o2000000

POINTS = {
    "files.fget": "fdget: the slot was looked up, the reference is held",
    "files.close": "close_fd: the slot is empty, fput comes next",
    "files.release": "__fput, perhaps from task work: the last file reference went, release comes next",
    "eventfd.signal": "eventfd_signal_mask: before wqh.lock",
    "eventfd.write": "eventfd_write: before wqh.lock",
    "eventfd.hup": "eventfd_release: before wake_up_poll(EPOLLHUP)",
    "eventfd.unhook": "eventfd_ctx_remove_wait_queue: before wqh.lock",
}


def os_error(number: int, what: str) -> OSError:
    """An OSError of the kernel: its errno, and what it is about."""
    return OSError(number, f"{os.strerror(number)}: {what}")


class EventfdDomain(State):
    """What the eventfds of one host kernel share: which tasks are inside an eventfd's wake-up (`in_eventfd`).

    `refused` counts signals that were lost because they came from inside a wake-up; there must be none.
    """

    BOOKKEEPING = ("refused", "signalling")
    __slots__ = BOOKKEEPING

    def __init__(self) -> None:
        self.signalling: tuple[int, ...] = ()
        self.refused = 0


class WaitEntry(State):
    """An entry of a wait queue. `callback(key)` runs in the waker's context under wqh.lock: it must not sleep, and may
    only unlink, inject what needs no sleep, and queue works. It returns True if it consumed the event.
    """

    WIRING = ("callback",)
    BOOKKEEPING = ("exclusive", "priority", "queued")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, callback: Callable[[int], bool]) -> None:
        self.callback = callback
        self.exclusive = False
        self.priority = False
        self.queued = False


class EventfdCtx(Mortal):
    """An eventfd's context: counter and wait queue. `refs` starts with the one that its file holds."""

    WIRING: ClassVar[tuple[str, ...]] = ("domain", "lock", "name", "semaphore")
    VISIBLE: ClassVar[tuple[str, ...]] = ("count",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("refs", "waiters")
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, domain: EventfdDomain, name: str, count: int = 0, semaphore: bool = False) -> None:
        super().__init__()
        self.domain = domain
        self.name = name
        self.semaphore = semaphore
        self.count = count
        self.refs = 1
        self.waiters: tuple[WaitEntry, ...] = ()
        self.lock = Lock(f"{name}.wqh", spin=True)

    # References.

    def get(self) -> EventfdCtx:
        """Take a reference."""
        if order.hook is not None:
            self.touch("eventfd_ctx_get")
        self.refs += 1
        return self

    def put(self) -> None:
        """Give a reference back; the last one frees the context. (eventfd_ctx_put)"""
        if order.hook is not None:
            self.touch("eventfd_ctx_put")
        if self.refs <= 0:
            raise Violation("double-put", self, "eventfd_ctx_put without a reference")
        self.refs -= 1
        if not self.refs:
            self.free("eventfd_free_ctx")

    # The counter.

    def take(self) -> int:
        """Consume the counter: all of it, or 1 of a semaphore; 0 if it is 0. Caller holds wqh.lock.

        (eventfd_ctx_do_read; since 2023 a semaphore at 0 stays at 0)
        """
        count = self.count
        if self.semaphore and count:
            count = 1
        self.count -= count
        return count

    def signal(self) -> bool:
        """Add 1 and wake the queue; never sleeps, saturates at 2**64-1. False if refused: called from inside a wake-up
        of this task, the event is lost. (eventfd_signal_mask)
        """
        if order.hook is not None:
            order.hook("eventfd.signal", self)
            self.touch("eventfd_signal")
        domain = self.domain
        if order.actor in domain.signalling:
            domain.refused += 1
            if order.hook is not None:
                raise Violation("eventfd-recursion", self, "wake-up", "eventfd_signal from inside it")
            return False
        if order.hook is not None:
            self.lock.acquire()
        if self.count < U64_MAX:
            self.count += 1
        if self.waiters:
            self._wake_as_task(POLLIN)
        if order.hook is not None:
            self.lock.release()
        return True

    def add(self, value: int) -> bool:
        """What write(2) does: add `value` and wake the queue, even for 0. False if the counter has no room.

        OSError EINVAL for 2**64-1. (eventfd_write)
        """
        if not 0 <= value < U64_MAX:
            raise os_error(errno.EINVAL, f"eventfd {self.name} cannot take {value:#x}")
        if order.hook is not None:
            order.hook("eventfd.write", self)
        self.lock.acquire()
        room = U64_MAX - self.count > value
        if room:
            self.count += value
            if self.waiters:
                self._wake_as_task(POLLIN)
        self.lock.release()
        return room

    def drain(self) -> int:
        """What read(2) does: consume, and wake writers; 0 if there is nothing. (eventfd_read)"""
        self.lock.acquire()
        count = self.take()
        if count and self.waiters:
            self._wake_as_task(POLLOUT)
        self.lock.release()
        return count

    def poll(self) -> int:
        """POLLIN if above 0, POLLOUT if there is room for 1, POLLERR at 2**64-1. (eventfd_poll)"""
        count = self.count
        if not count:
            return POLLOUT
        if count == U64_MAX:
            return POLLIN | POLLERR
        return POLLIN | POLLOUT if count < U64_MAX - 1 else POLLIN

    def readable(self) -> bool:
        """The counter is above 0."""
        return self.count > 0

    def writable(self) -> bool:
        """There is room for 1."""
        return self.count < U64_MAX - 1

    # The wait queue.

    def _wake_as_task(self, key: int) -> None:
        """Wake with the task marked as being inside an eventfd (`current->in_eventfd`)."""
        domain = self.domain
        before = domain.signalling
        domain.signalling = (*before, order.actor)
        self.wake(key)
        if order.hook is None:
            domain.signalling = before
        else:  # others may have come and gone meanwhile
            domain.signalling = tuple(task for task in domain.signalling if task != order.actor)

    def wake(self, key: int) -> None:
        """Call the entries in queue order, up to and including the first exclusive one that consumed the event.

        Caller holds wqh.lock. (__wake_up_common with nr_exclusive 1)
        """
        waiters = self.waiters
        i = 0
        while i < len(waiters):
            entry = waiters[i]
            if entry.callback(key) and entry.exclusive:
                return
            i += 1

    def add_wait(self, entry: WaitEntry) -> None:
        """Enter a plain waiter: behind the priority ones, before the others. (add_wait_queue)"""
        self.lock.acquire()
        self._check_new(entry)
        waiters = self.waiters
        at = 0
        while at < len(waiters) and waiters[at].priority:
            at += 1
        entry.queued = True
        self.waiters = (*waiters[:at], entry, *waiters[at:])
        self.lock.release()

    def add_wait_exclusive(self, entry: WaitEntry) -> None:
        """Enter an exclusive waiter, last. (add_wait_queue_exclusive)"""
        self.lock.acquire()
        self._check_new(entry)
        entry.queued = entry.exclusive = True
        self.waiters = (*self.waiters, entry)
        self.lock.release()

    def add_wait_priority(self, entry: WaitEntry) -> None:
        """Enter an exclusive waiter, first: what it consumes is hidden from all others. (add_wait_queue_priority)"""
        self.lock.acquire()
        self._check_new(entry)
        entry.queued = entry.exclusive = entry.priority = True
        self.waiters = (entry, *self.waiters)
        self.lock.release()

    def add_wait_priority_exclusive(self, entry: WaitEntry) -> bool:
        """As `add_wait_priority`, but False, and nothing done, if there is a priority waiter already.

        So an eventfd has at most one irqfd on the whole host. (add_wait_queue_priority_exclusive, 6.17)
        """
        self.lock.acquire()
        self._check_new(entry)
        free = not (self.waiters and self.waiters[0].priority)
        if free:
            entry.queued = entry.exclusive = entry.priority = True
            self.waiters = (entry, *self.waiters)
        self.lock.release()
        return free

    def remove_wait(self, entry: WaitEntry) -> None:
        """Take an entry out, whatever the counter says. (remove_wait_queue)"""
        self.lock.acquire()
        self._unlink(entry)
        self.lock.release()

    def remove_wait_and_drain(self, entry: WaitEntry) -> int:
        """Take an entry out and consume the counter in one step, so that the next owner is not given old events.

        Returns what was consumed, 0 for -EAGAIN. (eventfd_ctx_remove_wait_queue)
        """
        if order.hook is not None:
            order.hook("eventfd.unhook", self)
            self.touch("eventfd_ctx_remove_wait_queue")
        self.lock.acquire()
        count = self.take()
        self._unlink(entry)
        if count and self.waiters:
            self.wake(POLLOUT)
        self.lock.release()
        return count

    def _check_new(self, entry: WaitEntry) -> None:
        if order.hook is not None:
            self.touch("add_wait_queue")
        if entry.queued:
            raise Violation("wait-entry-added-twice", self, "add_wait_queue", "add_wait_queue of the same entry")

    def _unlink(self, entry: WaitEntry) -> None:
        if not entry.queued:
            raise Violation("wait-entry-never-added", self, "remove_wait_queue of an entry that is in no queue")
        entry.queued = False
        self.waiters = tuple(waiter for waiter in self.waiters if waiter is not entry)

    def hang_up(self) -> None:
        """Wake everybody with POLLHUP: the last file reference is gone. (eventfd_release)"""
        if order.hook is not None:
            order.hook("eventfd.hup", self)
        self.lock.acquire()
        if self.waiters:
            self.wake(POLLHUP)
        self.lock.release()

    def __repr__(self) -> str:
        return f"<eventfd {self.name} {self.count}>"


class File(Mortal):
    """An open file. `refs` counts descriptors and look-ups in progress; `nonblock` is shared by all of them."""

    WIRING: ClassVar[tuple[str, ...]] = ("name",)
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("nonblock", "refs")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.refs = 0
        self.nonblock = False

    def get(self) -> File:
        """Take a reference. (get_file)"""
        if order.hook is not None:
            self.touch("get_file")
        self.refs += 1
        return self

    def put(self) -> None:
        """Give a reference back; the last one releases the file. (fput)"""
        if self.refs <= 0:
            raise Violation("double-put", self, "fput without a reference")
        self.refs -= 1
        if not self.refs:
            if order.hook is not None:
                order.hook("files.release", self)
            self.free("__fput")
            self.release()

    def release(self) -> None:
        """What happens when the last reference goes (`file_operations.release`)."""

    def eventfd(self) -> EventfdCtx:
        """A new reference of the eventfd's context; OSError EINVAL if this is none. (eventfd_ctx_fileget)"""
        raise os_error(errno.EINVAL, f"{self.name} is not an eventfd")

    def __repr__(self) -> str:
        return f"<File {self.name} {self.refs}>"


class EventFile(File):
    """The file of an eventfd."""

    WIRING = ("ctx",)
    __slots__ = WIRING

    def __init__(self, ctx: EventfdCtx) -> None:
        super().__init__(ctx.name)
        self.ctx = ctx

    def release(self) -> None:
        self.ctx.hang_up()
        self.ctx.put()

    def eventfd(self) -> EventfdCtx:
        return self.ctx.get()


class DescriptorTable(State):
    """A process' descriptors. A new one gets the lowest free number: a number names whatever is there now.

    `limit` is RLIMIT_NOFILE. OSError: EBADF for a number without a file, EMFILE at the limit.
    """

    WIRING = ("domain", "limit")
    BOOKKEEPING = ("files",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, domain: EventfdDomain | None = None, limit: int = 1024) -> None:
        self.domain = domain or EventfdDomain()
        self.limit = limit
        self.files: list[File | None] = []

    # The table.

    def install(self, file: File, at: int | None = None) -> int:
        """Put a file at the lowest free number, or at `at` (closing what is there); the slot holds a new reference."""
        files = self.files
        if at is None:
            try:
                at = files.index(None)
            except ValueError:
                at = len(files)
        if not 0 <= at < self.limit:
            raise os_error(errno.EMFILE, f"{file.name}: {len(files)} descriptors of {self.limit} are in use")
        while len(files) <= at:
            files.append(None)
        file.get()
        old, files[at] = files[at], file
        if old is not None:
            old.put()
        return at

    def file(self, fd: int) -> File:
        """What is at `fd` now; no reference is taken. OSError EBADF."""
        if 0 <= fd < len(self.files):
            file = self.files[fd]
            if file is not None:
                return file
        raise os_error(errno.EBADF, f"descriptor {fd}")

    def fget(self, fd: int) -> File:
        """What is at `fd` now, with a reference of its own. OSError EBADF. (fdget)"""
        file = self.file(fd).get()
        if order.hook is not None:
            order.hook("files.fget", file)
        return file

    def ctx_fdget(self, fd: int) -> EventfdCtx:
        """A new reference of the context of the eventfd at `fd`. OSError EBADF, EINVAL. (eventfd_ctx_fdget)"""
        file = self.fget(fd)
        try:
            return file.eventfd()
        finally:
            file.put()

    def close(self, fd: int) -> None:
        """Empty the slot, then put the file's reference. OSError EBADF. (close(2))"""
        file = self.file(fd)
        self.files[fd] = None
        if order.hook is not None:
            order.hook("files.close", file)
        file.put()

    def dup(self, fd: int) -> int:
        """Another descriptor for the same file. OSError EBADF, EMFILE. (dup(2))"""
        return self.install(self.file(fd))

    def dup2(self, fd: int, at: int) -> int:
        """Make `at` a descriptor for the same file, closing what was there. OSError EBADF. (dup2(2))"""
        file = self.file(fd)
        if not 0 <= at < self.limit:
            raise os_error(errno.EBADF, f"descriptor {at}")
        if fd != at:
            self.install(file, at)
        return at

    def fork(self) -> DescriptorTable:
        """A child's table: the same files, one more reference each."""
        child = DescriptorTable(self.domain, self.limit)
        for fd, file in enumerate(self.files):
            if file is not None:
                child.install(file, fd)
        return child

    def close_all(self) -> None:
        """What exit(2) does: close every descriptor, lowest first."""
        for fd in range(len(self.files)):
            if self.files[fd] is not None:
                self.close(fd)

    # Eventfds.

    def eventfd(self, count: int = 0, flags: int = 0, name: str = "") -> int:
        """A new eventfd. OSError EINVAL for unknown flags or a count that is no u32, EMFILE. (eventfd2(2))

        EFD_CLOEXEC is accepted and means nothing: nobody here calls exec.
        """
        if flags & ~(EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC) or not 0 <= count < 1 << 32:
            raise os_error(errno.EINVAL, f"eventfd({count}, {flags:#x})")
        ctx = EventfdCtx(self.domain, name or "eventfd", count, bool(flags & EFD_SEMAPHORE))
        file = EventFile(ctx)
        file.nonblock = bool(flags & EFD_NONBLOCK)
        return self.install(file)

    def _ctx(self, fd: int) -> tuple[File, EventfdCtx]:
        file = self.file(fd)
        if not isinstance(file, EventFile):
            raise os_error(errno.EINVAL, f"descriptor {fd} ({file.name}) is not an eventfd")
        return file, file.ctx

    def set_nonblock(self, fd: int, nonblock: bool) -> None:
        """Set or clear O_NONBLOCK of the file, for all its descriptors. OSError EBADF. (fcntl(2), F_SETFL)"""
        self.file(fd).nonblock = nonblock

    def read(self, fd: int, size: int = 8) -> int:
        """Consume the counter: all of it, or 1 of a semaphore.

        OSError EBADF; EINVAL if no eventfd, or `size` is below 8; EAGAIN if it is 0 and O_NONBLOCK is set; EDEADLK if
        it would sleep in the running machine, where nobody could wake it.
        """
        file, ctx = self._ctx(fd)
        if size < 8:
            raise os_error(errno.EINVAL, f"read of {size} bytes from an eventfd")
        while not (count := ctx.drain()):
            self._sleep(file, "eventfd.read", ctx, ctx.readable)
        return count

    def write(self, fd: int, value: int = 1, size: int = 8) -> None:
        """Add to the counter. OSError as `read`; EINVAL also for 2**64-1; EAGAIN if there is no room."""
        file, ctx = self._ctx(fd)
        if size < 8:
            raise os_error(errno.EINVAL, f"write of {size} bytes to an eventfd")
        while not ctx.add(value):
            self._sleep(file, "eventfd.write", ctx, ctx.writable)

    def _sleep(self, file: File, step: str, ctx: EventfdCtx, ready: Callable[[], bool]) -> None:
        if file.nonblock:
            raise os_error(errno.EAGAIN, f"{step} of {ctx.name}")
        if order.wait is None:
            raise os_error(errno.EDEADLK, f"{step} of {ctx.name} would sleep for ever: open it with EFD_NONBLOCK")
        order.wait(step, ctx, ready, True)

    def poll(self, fd: int) -> int:
        """POLLIN, POLLOUT, POLLERR of an eventfd; 0 of any other file. OSError EBADF. (poll(2))"""
        file = self.file(fd)
        return file.ctx.poll() if isinstance(file, EventFile) else 0
