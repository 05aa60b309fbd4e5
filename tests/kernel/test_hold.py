"""Operations that stop half-way: who is held, who waits, what their works do, and what is told of them."""

import contextlib

import pytest
from greenlet import getcurrent, greenlet

from tests.support.kvm_rig import KvmRig
from vmm import order
from vmm.errors import ConfigError
from vmm.kernel.hold import Holder, Progress


class Stage:
    """A rig whose operations can be held."""

    def __init__(self) -> None:
        self.rig = KvmRig()
        self.busy = ""
        self.holder = Holder(self.rig.executor, lambda: self.busy)

    def high(self) -> list[int]:
        """Pins whose line is high."""
        return [pin for pin in range(24) if self.rig.ioapic.sources[pin]]


@pytest.fixture
def stage():
    return Stage()


def test_works_that_an_operation_leaves_all_run_before_it_is_done(stage):
    rig = stage.rig
    a, b = rig.efd(), rig.efd()
    rig.assign(a, 5, rig.efd())
    rig.assign(b, 6, rig.efd())
    stage.holder.hold("irqfd.deassign")

    op = stage.holder.run("SIG", lambda: (rig.files.write(a), rig.files.write(b)))

    assert op.state is Progress.DONE
    assert stage.high() == [5, 6]


def test_operation_is_done_at_once_where_nobody_is_to_be_held(stage):
    op = stage.holder.run("read", lambda: 7)
    assert (op.state, op.point, op.result, op.error, op.passed) == (Progress.DONE, "", 7, None, [])


def test_operations_are_numbered_from_one_and_tell_where_they_stand(stage):
    rig = stage.rig
    a = rig.efd()
    rig.assign(a, 5, rig.efd())
    stage.holder.hold("irqfd.deassign")

    one = stage.holder.run("I-", lambda: rig.vm.irqfd(a, 5, 1))
    two = stage.holder.run("I-", lambda: rig.vm.irqfd(a, 5, 1))
    assert [(op.number, op.state, op.point) for op in (one, two)] == [
        (1, Progress.HELD, "irqfd.deassign"),
        (2, Progress.HELD, "irqfd.deassign"),
    ]

    assert stage.holder.release("irqfd.deassign") == [one, two]
    assert [(op.state, op.point, op.error) for op in (one, two)] == [(Progress.DONE, "", None)] * 2
    assert stage.holder.stopped == []


def test_release_lets_go_who_is_held_there_and_nobody_else(stage):
    rig = stage.rig
    a = rig.efd()
    rig.assign(a, 5, rig.efd())
    for point in ("irqfd.deassign", "files.close"):
        stage.holder.hold(point)
    deassigns = stage.holder.run("I-", lambda: rig.vm.irqfd(a, 5, 1))
    closes = stage.holder.run("C", lambda: rig.files.close(a))

    assert stage.holder.release("files.close") == [closes]
    assert (deassigns.state, deassigns.point) == (Progress.HELD, "irqfd.deassign")


def test_operation_ends_where_it_was_released_not_where_it_was_begun(stage):
    told = []
    stage.holder.hold("irqfd.deassign")
    a = stage.rig.efd()

    def begin() -> None:
        stage.holder.run("I-", lambda: stage.rig.vm.irqfd(a, 5, 1))
        getcurrent().parent.switch()  # whoever began it waits for something else now
        told.append("woken by mistake")

    beginner = greenlet(begin)
    beginner.switch()
    stage.holder.release("irqfd.deassign")
    told.append("released")
    assert told == ["released"]


def test_worker_is_somebody_else_than_the_operation_that_waits_for_it(stage):
    """It waits for its flusher's lock, as a kernel thread would: that is not the same as taking it twice."""
    queue = order.WorkQueue("cleanup", stage.rig.executor)
    lock = order.Lock("mutex")

    def takes() -> None:
        with lock:
            pass

    work = queue.work("takes", takes)

    def flushes() -> None:
        with lock:
            work.enqueue()
            queue.flush()

    stage.holder.hold("irqfd.deassign")
    op = stage.holder.run("flush", flushes)
    assert (op.state, op.point) == (Progress.WAITING, "lock.acquire of <Mutex mutex>")


def test_operation_keeps_its_locks_over_the_works_that_it_waits_for(stage):
    rig = stage.rig
    queue = order.WorkQueue("cleanup", rig.executor)
    lock = order.Lock("mutex")
    ran = []
    work = queue.work("note", lambda: ran.append("note"))
    a = rig.efd()

    def flushes(*, stop: bool) -> None:
        with lock:
            work.enqueue()
            queue.flush()
            if stop:
                rig.vm.irqfd(a, 5, 1)

    stage.holder.hold("irqfd.deassign")
    straight = stage.holder.run("flush", lambda: flushes(stop=False))
    held = stage.holder.run("flush", lambda: flushes(stop=True))
    assert (straight.state, straight.error, held.state) == (Progress.DONE, None, Progress.HELD)
    assert not lock.is_free()

    stage.holder.release("irqfd.deassign")
    assert (held.state, held.error) == (Progress.DONE, None)
    assert lock.is_free()
    assert ran == ["note", "note"]


def test_queue_with_its_one_worker_held_runs_no_second_work(stage):
    rig, ran = stage.rig, []
    a = rig.efd()
    queue, other = order.WorkQueue("cleanup", rig.executor), order.WorkQueue("inject", rig.executor)

    def deassigns() -> None:
        with contextlib.suppress(OSError):  # nothing is bound: it only passes the point
            rig.vm.irqfd(a, 5, 1)
        ran.append("first")

    first, second = queue.work("first", deassigns), queue.work("second", lambda: ran.append("second"))
    third = other.work("third", lambda: ran.append("third"))
    stage.holder.hold("irqfd.deassign")
    assert stage.holder.run("first", first.enqueue).state is Progress.HELD
    assert stage.holder.run("third", third.enqueue).state is Progress.DONE
    waits = stage.holder.run("second", lambda: (second.enqueue(), queue.flush()))
    assert (waits.state, ran) == (Progress.WAITING, ["third"])

    stage.holder.release("irqfd.deassign")
    assert (waits.state, ran) == (Progress.DONE, ["third", "first", "second"])


def test_operation_goes_on_when_another_one_makes_true_what_it_waits_for(stage):
    came = []
    stage.holder.hold("irqfd.deassign")
    waits = stage.holder.run("wait", lambda: order.hold_back("grace", stage, lambda: bool(came)))
    assert waits.state is Progress.WAITING
    stage.holder.run("something else", lambda: None)
    assert (waits.state, order.actor) == (Progress.WAITING, 0)  # the machine itself acts between operations
    stage.holder.run("come", lambda: came.append(True))
    assert (waits.state, order.actor) == (Progress.DONE, 0)


def test_operation_that_goes_on_lets_one_go_on_that_has_waited_longer(stage):
    came, told = [], []
    stage.holder.hold("irqfd.deassign")
    first = stage.holder.run("first", lambda: order.hold_back("grace", stage, lambda: bool(told)))

    def tell() -> None:
        order.hold_back("grace", stage, lambda: bool(came))
        told.append(True)

    second = stage.holder.run("second", tell)
    stage.holder.run("come", lambda: came.append(True))
    assert (second.state, first.state) == (Progress.DONE, Progress.DONE)


def test_point_is_passed_and_that_is_told_while_a_lock_is_taken(stage):
    a = stage.rig.efd()
    stage.holder.hold("irqfd.deassign")
    stage.busy = "irqfds.lock"
    op = stage.holder.run("I-", lambda: stage.rig.vm.irqfd(a, 5, 1))
    assert (op.state, op.passed) == (Progress.DONE, ["irqfd.deassign: irqfds.lock was taken"])


@pytest.mark.parametrize(
    ("point", "why"), [("irqfd.nowhere", "there is no point"), ("gsi.ack", "cannot be held in the running machine")]
)
def test_point_that_cannot_be_held_is_refused(stage, point, why):
    with pytest.raises(ConfigError, match=why):
        stage.holder.hold(point)
    assert stage.holder.armed == {}


def test_operation_within_an_operation_is_refused(stage):
    stage.holder.hold("irqfd.deassign")

    def nested() -> None:
        with pytest.raises(ConfigError, match="inside another one"):
            stage.holder.run("inner", lambda: None)

    assert stage.holder.run("outer", nested).state is Progress.DONE
