"""Work queues, SRCU and locks: what they promise in the running machine, and what they refuse."""

from __future__ import annotations

import pytest

from vmm import order
from vmm.clock import VirtualClock
from vmm.order import DelayedWork, Executor, Lock, Mortal, OrderError, Srcu, State, Violation, WorkQueue


@pytest.fixture
def executor() -> Executor:
    return Executor()


@pytest.fixture
def queue(executor: Executor) -> WorkQueue:
    return WorkQueue("events", executor)


@pytest.fixture
def points():
    """Points are live, nobody else runs: the names of those that were passed."""
    seen: list[str] = []
    order.hook = lambda name, _subject: seen.append(name)
    yield seen
    order.hook = None


def test_work_scheduled_twice_before_it_runs_runs_once(executor, queue):
    ran = []
    work = queue.work("w", lambda: ran.append(1))
    assert work.schedule() is True
    assert work.schedule() is False
    assert ran == []
    executor.drain()
    assert ran == [1]


def test_work_scheduled_while_it_runs_runs_again(executor, queue):
    ran = []

    def function() -> None:
        ran.append(len(ran))
        if len(ran) < 3:
            assert work.schedule()

    work = queue.work("w", function)
    work.schedule()
    executor.drain()
    assert ran == [0, 1, 2]


def test_works_run_in_the_order_of_scheduling_whatever_their_queue(executor, queue):
    ran = []
    other = WorkQueue("other", executor)
    for name, q in (("a", queue), ("b", other), ("c", queue)):
        q.work(name, lambda name=name: ran.append(name)).schedule()
    executor.drain()
    assert ran == ["a", "b", "c"]


def test_drain_from_a_work_does_not_nest(executor, queue):
    ran = []

    def outer() -> None:
        inner.schedule()
        executor.drain()
        ran.append("outer")

    inner = queue.work("inner", lambda: ran.append("inner"))
    queue.work("outer", outer).schedule()
    executor.drain()
    assert ran == ["outer", "inner"]


def test_flush_from_a_work_of_another_queue_runs_what_is_pending_now(executor, queue):
    ran = []
    inject = queue.work("inject", lambda: ran.append("inject"))
    cleanup = WorkQueue("cleanup", executor)

    def shutdown() -> None:
        inject.flush()
        ran.append("shutdown")

    cleanup.work("shutdown", shutdown).schedule()
    inject.schedule()
    executor.drain()
    assert ran == ["inject", "shutdown"]


def test_flush_of_an_idle_work_returns(queue):
    ran = []
    queue.work("w", lambda: ran.append(1)).flush()
    assert ran == []


def test_work_that_flushes_itself_is_refused(executor, queue):
    work = queue.work("w", lambda: work.flush())
    work.schedule()
    with pytest.raises(OrderError, match="waits for itself"):
        executor.drain()


def test_queue_flush_leaves_other_queues_alone(executor, queue):
    ran = []
    other = WorkQueue("other", executor)
    queue.work("mine", lambda: ran.append("mine")).schedule()
    other.work("theirs", lambda: ran.append("theirs")).schedule()
    queue.flush()
    assert ran == ["mine"]
    executor.drain()
    assert ran == ["mine", "theirs"]


def test_cancelled_work_does_not_run(executor, queue):
    ran = []
    work = queue.work("w", lambda: ran.append(1))
    work.schedule()
    assert work.cancel() is True
    assert work.cancel() is False
    executor.drain()
    assert ran == []


def test_work_that_raises_leaves_the_executor_usable(executor, queue):
    ran = []

    def fail() -> None:
        raise RuntimeError("once")

    queue.work("bad", fail).schedule()
    queue.work("good", lambda: ran.append(1)).schedule()
    with pytest.raises(RuntimeError, match="once"):
        executor.drain()
    executor.drain()
    assert ran == [1]


def test_single_worker_takes_works_in_order_and_never_one_that_runs(queue):
    a = queue.work("a", lambda: None)
    b = queue.work("b", lambda: None)
    a.schedule()
    b.schedule()
    assert queue.next() is a
    a.running = True
    assert queue.next() is b


def test_delayed_work_waits_for_the_clock_and_arms_once(executor, queue):
    clock = VirtualClock()
    ran = []
    work = DelayedWork("d", queue, lambda: ran.append(clock.now()), clock)
    assert work.schedule_after(100)
    assert not work.schedule_after(5)
    clock.step(99)
    executor.drain()
    assert ran == []
    clock.step(1)
    executor.drain()
    assert ran == [100]


def test_cancelled_delayed_work_never_expires(executor, queue):
    clock = VirtualClock()
    ran = []
    work = DelayedWork("d", queue, lambda: ran.append(1), clock)
    work.schedule_after(10)
    assert work.cancel()
    clock.step(20)
    executor.drain()
    assert ran == []


def test_srcu_callback_runs_from_a_work_not_from_call(executor, queue):
    ran = []
    srcu = Srcu("s", queue)
    srcu.call(lambda: ran.append(1))
    assert ran == []
    executor.drain()
    assert ran == [1]


@pytest.mark.usefixtures("points")
def test_srcu_synchronize_waits_only_for_older_readers(queue, monkeypatch):
    srcu = Srcu("s", queue)
    monkeypatch.setattr(order, "actor", 1)
    old = srcu.read_lock()
    monkeypatch.setattr(order, "actor", 2)
    srcu.graces = (*srcu.graces, (2, srcu.readers))  # the first half of synchronize
    monkeypatch.setattr(order, "actor", 3)
    srcu.read_lock()  # a younger reader, which stays
    monkeypatch.setattr(order, "actor", 2)
    assert not srcu.grace_is_over()
    monkeypatch.setattr(order, "actor", 1)
    srcu.read_unlock(old)
    monkeypatch.setattr(order, "actor", 2)
    assert srcu.grace_is_over()
    assert srcu.readers == ((3, 0),)


@pytest.mark.usefixtures("points")
def test_srcu_synchronize_inside_a_read_section_is_a_violation(queue):
    srcu = Srcu("s", queue)
    srcu.read_lock()
    with pytest.raises(Violation) as caught:
        srcu.synchronize()
    assert caught.value.rule == "deadlock"


def test_lock_costs_nobody_anything_in_the_running_machine():
    lock = Lock("l")
    with lock, lock:
        assert lock.is_free()


@pytest.mark.usefixtures("points")
def test_lock_taken_twice_by_its_owner_is_a_violation():
    lock = Lock("l", spin=True)
    with lock, pytest.raises(Violation, match="taken again by its owner"):
        lock.acquire()
    assert lock.is_free()


@pytest.mark.usefixtures("points")
def test_lock_released_by_another_is_a_violation():
    with pytest.raises(Violation, match="does not own it"):
        Lock("l").release()


@pytest.mark.usefixtures("points")
def test_waiting_with_nobody_else_to_run_is_refused_instead_of_hanging(monkeypatch):
    lock = Lock("l")
    lock.acquire()
    monkeypatch.setattr(order, "actor", 1)
    with pytest.raises(OrderError, match="nobody else runs"):
        lock.acquire()


def test_dead_object_names_the_step_that_freed_it_and_the_one_that_touched_it():
    thing = Mortal()
    thing.touch("use")
    thing.free("shutdown")
    assert not thing.alive
    with pytest.raises(Violation) as caught:
        thing.touch("late callback")
    assert caught.value.rule == "use-after-free"
    assert caught.value.steps == ("shutdown", "late callback")
    with pytest.raises(Violation, match="double-free"):
        thing.free("again")


def test_state_class_with_a_slot_in_no_group_is_refused():
    with pytest.raises(TypeError, match="differ in \\['stray'\\]"):
        type("Bad", (State,), {"VISIBLE": ("a",), "__slots__": ("a", "stray")})
    with pytest.raises(TypeError, match="has no __slots__"):
        type("Worse", (State,), {})
