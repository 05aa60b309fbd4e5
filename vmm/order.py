"""Where order can change. Imports nothing of vintx; everything that is explored imports this.

In the running machine there is one thread, and this module costs next to nothing. Under the explorer the same
lines run in several actors, and each *point* is a place where another actor may go first. A point is written

    if order.hook is not None:
        order.hook("irqfd.assign.listed", self)

so that the running machine pays one load and one compare (docs/adr/001 has the figures).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    class TimerLike(Protocol):
        """A one-shot timer."""

        def arm(self, deadline: int) -> None:
            """Fire once the clock reaches `deadline` (ns)."""

        def cancel(self) -> None:
            """Do not fire."""

    class ClockLike(Protocol):
        """What `DelayedWork` wants of a clock."""

        def now(self) -> int:
            """Nanoseconds."""

        def timer(self, name: str, callback: Callable[[], None]) -> TimerLike:
            """A new timer, not armed."""


hook: Callable[[str, object], None] | None = None
"""Installed by the explorer (and by whoever holds an actor at a point); None in the running machine.

Called with the point's name and the object it concerns. It may switch to another actor and come back later.
"""

wait: Callable[[str, object, Callable[[], bool], bool], None] | None = None
"""Installed by the explorer together with `hook`: hold the actor back until a pure guard is true.

Called with the step's name, the object, the guard (a bound method of a `State`, so that it can be asked again in any
stored state), and whether the step sleeps, which it may not do under a spin lock.
"""

NOBODY = -1
"""The owner of a free lock."""

allocate: Callable[[type[State]], State] | None = None
"""Installed by the explorer: gives a new object of a class its identity, so that an operation that is run again makes
the same objects again."""

actor = 0
"""Who acts: 0 in the running machine, a number per actor under the explorer, which sets it before each step."""


class State:
    """Base of every class whose objects are explored. Each slot belongs to exactly one of three groups.

    WIRING       what the object is connected to and never changes while the explorer runs: names, peers, callbacks
    VISIBLE      what a guest, a user of the interface or a peer can tell apart
    BOOKKEEPING  what the object needs for itself: queues, flags, counters, ghosts

    A subclass writes the groups and `__slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)` in its body. Snapshot, restore
    and hash are generated from the groups, so a slot in none or two of them is refused when the class is made.
    """

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__: tuple[str, ...] = ()

    def __new__(cls, *_args: object, **_kwargs: object) -> Self:
        if allocate is None:
            return object.__new__(cls)
        made = allocate(cls)
        assert isinstance(made, cls)
        return made

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own: list[str] = []
        for group in ("WIRING", "VISIBLE", "BOOKKEEPING"):
            own += cls.__dict__.get(group, ())
        slots = cls.__dict__.get("__slots__")
        if slots is None:
            raise TypeError(f"{cls.__name__} has no __slots__: its state could not be restored")
        if sorted(own) != sorted(slots):
            raise TypeError(f"{cls.__name__}: __slots__ and the groups differ in {sorted(set(own) ^ set(slots))}")


class OrderError(RuntimeError):
    """A rule of order was broken: a lock taken twice, a work that waits for itself. A bug of ours, never a guest's."""


class Violation(OrderError):
    """What an explorer reports: a rule, the object it is about, and the steps that broke it.

    `rule` names the rule (`use-after-free`, `sleeps-in-atomic`, ...), `subject` the object, `steps` what happened to
    it, oldest first.
    """

    def __init__(self, rule: str, subject: object, *steps: str) -> None:
        super().__init__(f"{rule}: {subject!r}: " + "; then ".join(steps))
        self.rule = rule
        self.subject = subject
        self.steps = steps


class Mortal(State):
    """An object with a life of its own, like the kernel's counted ones. Touching a dead one is a Violation.

    `freed_by` is empty while it lives and names the step that freed it afterwards. `shutdowns` counts how often its
    shutdown was queued: more than once is a Violation.
    """

    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("freed_by", "shutdowns")
    __slots__ = BOOKKEEPING

    def __init__(self) -> None:
        self.freed_by = ""
        self.shutdowns = 0

    @property
    def alive(self) -> bool:
        """Nobody freed it yet."""
        return not self.freed_by

    def touch(self, step: str) -> None:
        """`step` is about to use it."""
        if self.freed_by:
            raise Violation("use-after-free", self, self.freed_by, step)

    def free(self, step: str) -> None:
        """`step` frees it."""
        if self.freed_by:
            raise Violation("double-free", self, self.freed_by, step)
        self.freed_by = step


class Lock(State):
    """A spin lock or a mutex. In the running machine there is nobody to keep out, so it only looks at `hook`.

    Under the explorer its owner is state, and whoever wants it is held back until it is free.
    """

    WIRING = ("name", "spin")
    BOOKKEEPING = ("owner",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, name: str, spin: bool = False) -> None:
        self.name = name
        self.spin = spin
        self.owner = NOBODY

    def is_free(self) -> bool:
        """Nobody owns it."""
        return self.owner == NOBODY

    def acquire(self) -> None:
        """Take it; under the explorer, once it is free."""
        if hook is None:
            return
        if self.owner == actor:
            raise Violation("deadlock", self, "taken", "taken again by its owner")
        hold_back("lock.acquire", self, self.is_free, sleeps=not self.spin)
        self.owner = actor

    def release(self) -> None:
        """Give it back."""
        if hook is None:
            return
        if self.owner != actor:
            raise Violation("not-owner", self, "released by one who does not own it")
        self.owner = NOBODY

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<{'SpinLock' if self.spin else 'Mutex'} {self.name}>"


def hold_back(step: str, subject: object, ready: Callable[[], bool], sleeps: bool = True) -> None:
    """Under the explorer: let others act until `ready()`. `sleeps`: it may not happen under a spin lock.

    In the running machine nobody else could make it true, so it must be true already.
    """
    if wait is not None:
        wait(step, subject, ready, sleeps)
    elif not ready():
        raise OrderError(f"{step}: {subject!r} would wait for ever: nobody else runs")


class Work(State):
    """A function that a work queue calls later. Queued again while it is queued, it still runs once (it coalesces);
    queued while it runs, it runs again. It never runs twice at once.

    `pending`, `running`: where it is. `flushers`: actors that wait for the queued instance; `waiters`: for the
    running one.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("function", "name", "queue")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("flushers", "pending", "running", "waiters")
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, name: str, queue: WorkQueue, function: Callable[[], None]) -> None:
        self.name = name
        self.queue = queue
        self.function = function
        self.pending = False
        self.running = False
        self.flushers: tuple[int, ...] = ()
        self.waiters: tuple[int, ...] = ()

    def schedule(self) -> bool:
        """Queue it on its own queue. False if it is queued already. Never sleeps. (queue_work, schedule_work)"""
        if hook is not None:
            hook("work.queue", self)
        return self.enqueue()

    def enqueue(self) -> bool:
        """The same as one step with what the caller does."""
        if self.pending:
            return False
        self.pending = True
        self.queue.executor.pending.append(self)
        return True

    def flush(self) -> None:
        """Return once what is queued or running now has run; a later queueing does not count. (flush_work)"""
        if hook is None:
            if self.pending:
                self.queue.executor.pending.remove(self)
                self.queue.executor.run(self)
            elif self.running:
                raise OrderError(f"work {self.name} waits for itself")
            return
        self.await_instance()
        executor = self.queue.executor
        hold_back("work.flush", self, executor.has_flushed)

    def await_instance(self) -> None:
        """Enter the acting actor among those who wait for the queued instance, or else for the running one."""
        if self.pending:
            self.flushers = (*self.flushers, actor)
        elif self.running:
            self.waiters = (*self.waiters, actor)

    def cancel(self, sync: bool = True) -> bool:
        """Take it off its queue and, if `sync`, wait until it does not run. True if it was queued.

        (cancel_work_sync, cancel_work)
        """
        was = self.pending
        if was:
            self.queue.executor.pending.remove(self)
            self.pending = False
            self.flushers = ()
        if hook is not None and sync and self.running:
            self.waiters = (*self.waiters, actor)
            hold_back("work.cancel", self, self.queue.executor.has_flushed)
        return was

    def __repr__(self) -> str:
        return f"<Work {self.name}{' pending' if self.pending else ''}{' running' if self.running else ''}>"


class WorkQueue(State):
    """A queue of works with `workers` workers (1: works run one after the other, in order)."""

    WIRING = ("executor", "name", "workers")
    __slots__ = WIRING

    def __init__(self, name: str, executor: Executor, workers: int = 1) -> None:
        self.name = name
        self.executor = executor
        self.workers = workers

    def work(self, name: str, function: Callable[[], None]) -> Work:
        """A new work of this queue."""
        return Work(name, self, function)

    def next(self) -> Work | None:
        """The work that a free worker takes now: the first that does not run already."""
        for work in self.executor.pending:
            if work.queue is self and not work.running:
                return work
        return None

    def has_next(self) -> bool:
        """A free worker of this queue would find something to do."""
        return self.next() is not None

    def flush(self) -> None:
        """Return once every work that is queued or running here now has run. (flush_workqueue)"""
        executor = self.executor
        if hook is None:
            mine = [work for work in executor.pending if work.queue is self]
            for work in mine:
                if work.pending:
                    executor.pending.remove(work)
                    executor.run(work)
            return
        waited: list[Work] = []
        for work in (*executor.pending, *executor.running):
            if work.queue is self and work not in waited:
                waited.append(work)
                work.await_instance()
                if work.pending and work.running:
                    work.waiters = (*work.waiters, actor)
        hold_back("workqueue.flush", self, executor.has_flushed)

    def __repr__(self) -> str:
        return f"<WorkQueue {self.name}>"


class Executor(State):
    """Runs queued works. The machine calls `drain` after each outermost exit handler, descriptor event, timer and
    command: `if executor.pending: executor.drain()`. Under the explorer, workers take works by `run_next` instead.
    """

    BOOKKEEPING = ("draining", "pending", "running")
    __slots__ = BOOKKEEPING

    def __init__(self) -> None:
        self.pending: deque[Work] = deque()
        self.running: list[Work] = []
        self.draining = False

    def drain(self) -> None:
        """Run works until none is queued, those included that works queue. Does nothing when called from a work."""
        if self.draining:
            return
        self.draining = True
        pending = self.pending
        try:
            while pending:
                self.run(pending.popleft())
        finally:
            self.draining = False

    def run(self, work: Work) -> None:
        """Run a work that was just taken off `pending`."""
        work.pending = False
        work.running = True
        if hook is None:  # nobody else is there to wait for it
            try:
                work.function()
            finally:
                work.running = False
            return
        work.waiters += work.flushers
        work.flushers = ()
        self.running.append(work)
        try:
            hook("work.start", work)
            work.function()
        finally:
            work.running = False
            work.waiters = ()
            self.running.remove(work)

    def run_next(self, queue: WorkQueue) -> bool:
        """A worker of `queue` takes one work and runs it. False if there is none."""
        work = queue.next()
        if work is None:
            return False
        self.pending.remove(work)
        self.run(work)
        return True

    def has_flushed(self) -> bool:
        """The acting actor waits for no work any more."""
        for work in self.pending:
            if actor in work.flushers or actor in work.waiters:
                return False
        return all(actor not in work.waiters for work in self.running)


class DelayedWork(Work):
    """A work that a timer queues. `timer` is a clock's timer (`arm(deadline)`, `cancel()`), None under the explorer,
    where `armed` alone says that `expire` may happen at any time.
    """

    WIRING = ("clock", "timer")
    BOOKKEEPING = ("armed",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, name: str, queue: WorkQueue, function: Callable[[], None], clock: ClockLike | None) -> None:
        super().__init__(name, queue, function)
        self.clock = clock
        self.timer = None if clock is None else clock.timer(name, self.expire)
        self.armed = False

    def schedule_after(self, ns: int) -> bool:
        """Queue it `ns` nanoseconds from now; False if it waits or is queued already. (schedule_delayed_work)"""
        if self.armed or self.pending:
            return False
        self.armed = True
        if self.timer is not None and self.clock is not None:
            self.timer.arm(self.clock.now() + ns)
        return True

    def expire(self) -> None:
        """The timer's callback: queue the work. Armed or pending, never in between, so that `cancel` finds it."""
        if hook is not None:
            hook("work.expire", self)
        if self.armed:
            self.armed = False
            self.enqueue()

    def cancel(self, sync: bool = True) -> bool:
        """Disarm, take off the queue and, if `sync`, wait until it does not run. (cancel_delayed_work_sync)"""
        was = self.armed
        self.armed = False
        if self.timer is not None:
            self.timer.cancel()
        return super().cancel(sync) or was


class Srcu(State):
    """Sleepable RCU. Readers may sleep; `synchronize` waits for the readers that began before it, and only those.

    `readers`: (actor, nesting) of each read section in progress; `graces`: for each waiting actor, the readers it
    still waits for. In the running machine a reader cannot be interrupted, so nothing is kept.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("callback_work", "name")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("callbacks", "graces", "readers")
    __slots__: tuple[str, ...] = (*WIRING, *BOOKKEEPING)

    def __init__(self, name: str, queue: WorkQueue) -> None:
        self.name = name
        self.callback_work = queue.work(f"{name}.callbacks", self.run_callbacks)
        self.callbacks: tuple[Callable[[], None], ...] = ()
        self.readers: tuple[tuple[int, int], ...] = ()
        self.graces: tuple[tuple[int, tuple[tuple[int, int], ...]], ...] = ()

    def read_lock(self) -> int:
        """Begin a read section; the value goes to `read_unlock`. Hot paths guard the call with `hook`."""
        if hook is None:
            return 0
        nesting = sum(1 for who, _ in self.readers if who == actor)
        self.readers = (*self.readers, (actor, nesting))
        return nesting

    def read_unlock(self, nesting: int) -> None:
        """End the read section that `read_lock` numbered."""
        if hook is None:
            return
        reader = (actor, nesting)
        self.readers = tuple(r for r in self.readers if r != reader)
        self.graces = tuple((who, tuple(r for r in left if r != reader)) for who, left in self.graces)

    def synchronize(self) -> None:
        """Return once every reader that began before has ended. (synchronize_srcu)"""
        if hook is None:
            return
        if any(who == actor for who, _ in self.readers):
            raise Violation("deadlock", self, "read_lock", "synchronize by the same reader")
        if self.readers:
            self.graces = (*self.graces, (actor, self.readers))
        hold_back("srcu.synchronize", self, self.grace_is_over)
        self.graces = tuple(grace for grace in self.graces if grace[0] != actor)

    synchronize_expedited = synchronize
    """The same promise, sooner in the kernel. (synchronize_srcu_expedited)"""

    def grace_is_over(self) -> bool:
        """The acting actor waits for no reader any more."""
        return all(not left for who, left in self.graces if who == actor)

    def call(self, callback: Callable[[], None]) -> None:
        """Call back from a work, after a grace period; never sleeps. (call_srcu)"""
        self.callbacks = (*self.callbacks, callback)
        self.callback_work.schedule()

    def run_callbacks(self) -> None:
        """The work behind `call`."""
        callbacks, self.callbacks = self.callbacks, ()
        self.synchronize()
        for callback in callbacks:
            callback()

    def __repr__(self) -> str:
        return f"<Srcu {self.name}>"
