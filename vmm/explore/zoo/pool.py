"""A bounded worker pool (Z22): who sleeps lets the next work begin, who is preempted on his way to sleep does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vmm import order
from vmm.explore.actors import Actor, Operation
from vmm.explore.board import Parts
from vmm.explore.scenes import Setup
from vmm.explore.zoo import Bug
from vmm.kernel.irqfd import Irqfds
from vmm.order import Srcu, State, Violation

if TYPE_CHECKING:
    from vmm.explore.board import Board
    from vmm.kernel.irqfd import Irqfd, Resampler
    from vmm.order import Executor, Work, WorkQueue


class Pool(State):
    """The workers of one CPU. A work begins only while none is running; one that waits for a grace period sleeps, and
    does not count; one that waits for a mutex was preempted before it slept, and counts.
    """

    WIRING: ClassVar[tuple[str, ...]] = ("executor", "queues")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("running",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, executor: Executor, *queues: WorkQueue) -> None:
        self.executor = executor
        self.queues = queues
        self.running: tuple[int, ...] = ()

    def next(self) -> Work | None:
        """The work that would begin now."""
        for work in self.executor.pending:
            if work.queue in self.queues and not work.running:
                return work
        return None

    def is_ready(self) -> bool:
        """A worker that does nothing would begin one."""
        return not self.running and self.next() is not None

    def work(self) -> None:
        """A worker takes one work and runs it."""
        work = self.next()
        assert work is not None
        self.executor.pending.remove(work)
        self.running = (*self.running, order.actor)
        self.executor.run(work)
        self.sleep()

    def sleep(self) -> None:
        """The acting worker, if it is one, does not run any more. (wq_worker_sleeping)"""
        self.running = tuple(who for who in self.running if who != order.actor)

    def wake(self, was: bool) -> None:
        """It runs again, however many do."""
        if was:
            self.running = (*self.running, order.actor)


class PoolSrcu(Srcu):
    """A grace period is over when a work of the pool has seen it through."""

    WIRING: ClassVar[tuple[str, ...]] = ("pool", "process")
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ("asleep",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, name: str, queue: WorkQueue, pool: Pool) -> None:
        super().__init__(name, queue)
        self.pool = pool
        self.process = queue.work("process_srcu", self.see_through)
        self.asleep: tuple[int, ...] = ()

    def synchronize(self) -> None:
        if order.hook is None:
            return
        if any(who == order.actor for who, _ in self.readers):
            raise Violation("deadlock", self, "read_lock", "synchronize by the same reader")
        self.asleep = (*self.asleep, order.actor)
        self.process.schedule()
        worker = order.actor in self.pool.running
        self.pool.sleep()
        order.hold_back("srcu.synchronize", self, self.is_over)
        self.pool.wake(worker)

    synchronize_expedited = synchronize

    def is_over(self) -> bool:
        """The acting actor waits for no grace period any more."""
        return order.actor not in self.asleep

    def see_through(self) -> None:
        """The work: whoever began to wait before it is done when the readers of now are."""
        waiting = self.asleep
        super().synchronize()
        self.asleep = tuple(who for who in self.asleep if who not in waiting)


class SynchronizesOutside(Irqfds):
    """Leaving a resampler waits for its readers when resampler_lock is free again."""

    __slots__ = ()

    def leave_resampler(self, irqfd: Irqfd, resampler: Resampler) -> None:
        with self.resampler_lock:
            resampler.members = tuple(member for member in resampler.members if member is not irqfd)
            last = not resampler.members
            if last:
                self.resamplers = tuple(r for r in self.resamplers if r is not resampler)
        if not last:
            self.srcu.synchronize_expedited()
            return
        self.gsis.unregister(resampler.notifier)
        with self.resampler_lock:
            if self.find_resampler(resampler.gsi) is None:  # a new one may have asserted meanwhile
                resampler.deassert()
        resampler.free("irqfd_resampler_shutdown")


def unplugged_together(board: Board) -> None:
    """Two irqfds of one GSI are shut down at once, by the workers of one CPU."""
    irqfds = board.vm.irqfds
    pool = Pool(board.executor, irqfds.cleanup_queue, irqfds.inject_queue)
    board.vm.gsis.irq_srcu = PoolSrcu("kvm.irq_srcu", irqfds.inject_queue, pool)
    board.bind("e1", "e2")
    board.bind("e3", "e4")
    board.thread("user").close_vm()
    operation = Operation("work", pool.work, pool.is_ready)
    board.state(pool)
    board.pool(*(Actor(f"kworker {n}", (operation,), repeats=True) for n in (1, 2, 3)))


BUGS = (
    Bug(
        "Z22",
        "a grace period is awaited under a mutex that other workers of the pool want",
        '"KVM: irqfd: fix deadlock by moving synchronize_srcu out of resampler_lock", 2026',
        ("deadlock",),
        unplugged_together,
        Setup("resample"),
        Setup("resample", None, None, Parts(irqfds=SynchronizesOutside)),
        "it is awaited when the mutex is free again; era 6.18 has the flaw",
    ),
)
