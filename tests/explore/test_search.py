"""The search over orders, on the kernel's own lines: counts that repeat, rules that hold, and a bug that is found."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.explored import GSI, LoweringIrqfds, Model
from vmm import order
from vmm.explore.actors import Actor, NotDeterministic, Operation, Stage
from vmm.explore.heap import Arena
from vmm.explore.search import Scenario, explore
from vmm.kernel.irqfd import Irqfds
from vmm.order import Lock, State


def lifetime(close: bool = False, signals: int = 1) -> Scenario:
    """assign, signal, EOI and deassign (or close) against each other."""
    model = Model()
    vm, files, pin = model.vm, model.files, model.pin
    a, r = model.efd("a"), model.efd("r")
    trigger = files.ctx_fdget(a)
    resample = files.ctx_fdget(r)

    def assign() -> None:
        vm.irqfd(a, GSI, 2, r)

    def remove() -> None:
        if close:
            files.close(a)
        else:
            vm.irqfd(a, GSI, 1)

    def assigned() -> bool:
        return bool(vm.irqfds.items)

    def gone() -> str | None:
        irqfds = vm.irqfds
        if irqfds.items:
            return "an irqfd is left"
        if irqfds.resamplers or vm.gsis.notifiers:
            return "a resampler is left"
        if pin.held:
            return "the line is high and nobody can lower it"
        if trigger.refs != (1 if close else 2) or resample.refs != 2:
            return "a context reference is left"
        return None

    def lawful() -> str | None:
        return "listed but not attached" if vm.irqfds.items and not trigger.waiters else None

    actors = (
        Actor("user", (Operation("assign", assign),)),
        Actor("other thread", (Operation("remove", remove, assigned),)),
        Actor("device", (Operation("signal", trigger.signal),) * signals),
        Actor("vcpu", (Operation("take", pin.take, pin.can_take), Operation("eoi", pin.eoi))),
        model.worker(vm.irqfds.inject_queue),
        model.worker(vm.irqfds.cleanup_queue),
    )
    return Scenario(model.roots(), actors, lawful, gone)


def shared(irqfds: type[Irqfds]) -> Scenario:
    """Two devices on one line; the first still wants service at the first EOI."""
    model = Model(irqfds)
    a, b = model.vfio("a"), model.vfio("b")
    pin = model.pin

    def served() -> str | None:
        if a.level or b.level:
            return "a device wants service and no interrupt is on its way"
        return None

    def serve() -> None:
        pin.take()
        a.serve()
        b.serve()
        pin.eoi()

    actors = (
        Actor("device a", (Operation("assert", a.assert_intx),)),
        Actor(
            "vcpu",
            (
                Operation("take", pin.take, pin.can_take),
                Operation("eoi", pin.eoi),
                Operation("serve", serve, pin.can_take),
            ),
        ),
        model.worker(model.vm.irqfds.inject_queue, "inject"),
        model.worker(a.intx.events, "virqfd a"),
        model.worker(b.intx.events, "virqfd b"),
    )
    return Scenario(model.roots(), actors, None, served)


@pytest.mark.parametrize("close", [False, True])
def test_no_order_of_assign_signal_eoi_and_removal_leaves_anything(close):
    result = explore(lifetime(close), audit=True)
    assert result.finding is None, str(result.finding)
    assert result.ends > 1
    assert result.states > 500


def test_counts_are_the_same_every_time_and_in_every_process():
    first = explore(lifetime(close=True))
    assert explore(lifetime(close=True)) == first
    code = (
        "from tests.explore.test_search import lifetime; from vmm.explore.search import explore;"
        "r = explore(lifetime(close=True)); print(r.states, r.transitions, r.depth, r.ends)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == [str(n) for n in first[:4]]


def test_shared_line_serves_a_device_that_still_wants_service():
    result = explore(shared(Irqfds))
    assert result.finding is None, str(result.finding)


def test_lowering_once_per_member_loses_an_interrupt_and_the_way_there_is_shown():
    finding = explore(shared(LoweringIrqfds)).finding
    assert finding is not None
    assert finding.rule == "a device wants service and no interrupt is on its way"
    steps = [step for _, step in finding.trail]
    assert steps.count("resampler.lowered-again") >= 1
    assert ("device a", "assert") in finding.trail


class Counter(State):
    WIRING = ("lock", "other")
    VISIBLE = ("seen", "value")
    __slots__ = (*WIRING, *VISIBLE)

    def __init__(self, guarded: bool) -> None:
        self.lock = Lock("counter") if guarded else None
        self.other = Lock("other")
        self.value = 0
        self.seen: list[int] = []

    def add(self) -> None:
        if self.lock is not None:
            self.lock.acquire()
        value = self.value
        order.hook("counter.read", self)
        self.value = value + 1
        if self.lock is not None:
            self.lock.release()

    def forth(self) -> None:
        with self.lock, self.other:
            self.value += 1

    def back(self) -> None:
        with self.other, self.lock:
            self.value += 1

    def pair(self) -> None:
        thing = Counter(guarded=False)
        order.hook("pair.made", thing)
        thing.value = 7
        order.hook("pair.set", thing)
        self.value += thing.value


def count(guarded: bool):
    counter = Counter(guarded)
    actors = tuple(Actor(name, (Operation("add", counter.add),)) for name in "ab")
    return explore(Scenario((counter,), actors, None, lambda: None if counter.value == 2 else f"{counter.value}"))


def test_lost_update_is_found_in_the_fewest_steps_and_a_lock_cures_it():
    finding = count(guarded=False).finding
    assert finding.rule == "1"
    assert len(finding.trail) == 4
    assert count(guarded=True).finding is None


def test_locks_in_opposite_orders_are_a_deadlock():
    counter = Counter(guarded=True)
    actors = (Actor("a", (Operation("forth", counter.forth),)), Actor("b", (Operation("back", counter.back),)))
    finding = explore(Scenario((counter,), actors)).finding
    assert finding.rule == "deadlock: a at lock.acquire, b at lock.acquire"


def test_operation_that_raises_is_a_finding_not_a_crash():
    counter = Counter(guarded=False)  # it has no lock to take
    finding = explore(Scenario((counter,), (Actor("a", (Operation("forth", counter.forth),)),))).finding
    assert finding.rule.startswith("raised TypeError")
    assert finding.trail == (("a", "violates"),)


def test_repeating_actor_that_makes_objects_is_refused():
    counter = Counter(guarded=False)
    with pytest.raises(NotDeterministic, match="has no name for it"):
        explore(Scenario((counter,), (Actor("w", (Operation("pair", counter.pair),), repeats=True),)))


def test_sleeping_under_a_spin_lock_is_a_violation():
    counter = Counter(guarded=True)
    counter.lock.spin = True
    finding = explore(Scenario((counter,), (Actor("a", (Operation("forth", counter.forth),)),))).finding
    assert finding.rule.startswith("sleeps-in-atomic")


def test_objects_made_by_an_operation_are_the_same_when_it_is_run_again():
    counter = Counter(guarded=False)
    actors = tuple(Actor(name, (Operation("pair", counter.pair),)) for name in "abc")
    result = explore(Scenario((counter,), actors, None, lambda: None if counter.value == 21 else f"{counter.value}"))
    assert result.finding is None
    assert result.states == 4**3


def test_search_leaves_the_objects_as_it_found_them():
    counter = Counter(guarded=False)
    actors = (Actor("a", (Operation("add", counter.add),)),)
    explore(Scenario((counter,), actors))
    assert counter.value == 0
    assert (order.hook, order.wait, order.allocate, order.actor) == (None, None, None, 0)


def test_suspended_operation_is_continued_from_any_heap():
    counter = Counter(guarded=False)
    arena = Arena(counter)
    stage = Stage(arena, (Actor("a", (Operation("add", counter.add),)),))
    start = arena.take()
    _, standing, step = stage.step(start, 0, stage.beginning()[0])
    assert step == "counter.read"
    counter.seen.append(4)
    other = arena.take()
    for heap, seen in ((other, [4]), (start, []), (other, [4])):
        after, done, _ = stage.step(heap, 0, standing)
        arena.put(after)
        assert (counter.value, counter.seen, done.done, done.suspended) == (1, seen, 1, None)


def test_slot_that_becomes_a_container_behind_the_arenas_back_is_refused():
    counter = Counter(guarded=False)
    arena = Arena(counter)
    counter.value = [1]
    with pytest.raises(TypeError, match=r"Counter\.value became a list"):
        arena.check()


def test_mark_sees_every_slot_and_does_not_depend_on_what_was_seen_before():
    counter = Counter(guarded=True)
    arena = Arena(counter)
    before = arena.mark(arena.take())
    marks = {before}
    for slot, value in (("value", 1), ("value", -1), ("value", -2), ("value", counter), ("value", (counter, 3))):
        setattr(counter, slot, value)
        marks.add(arena.mark(arena.take()))
    counter.value = 0
    counter.seen.append(0)
    marks.add(arena.mark(arena.take()))
    counter.seen.clear()
    counter.lock.owner = 2
    marks.add(arena.mark(arena.take()))
    counter.lock.owner = order.NOBODY
    assert len(marks) == 8
    assert arena.mark(arena.take()) == before
