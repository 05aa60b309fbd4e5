"""Threads that make their calls for ever: what they make is named again, and nobody's wait is in vain."""

from __future__ import annotations

import pytest

from vmm import order
from vmm.errors import UsageError
from vmm.explore import actors, export, in_machine, scenes, story, zoo
from vmm.explore.actors import LIVES, NotDeterministic
from vmm.explore.board import Board, Parts
from vmm.explore.in_machine import NotInMachine
from vmm.explore.kvm_trials import Trial
from vmm.explore.liveness import AT_LOCK, OWED
from vmm.explore.scenes import Family, Setup
from vmm.explore.search import explore
from vmm.explore.search import set_up as make_stage
from vmm.explore.user_calls import NotKvms
from vmm.kernel.irqfd import Irqfds
from vmm.order import Mortal, State


def looped(board):
    user = board.thread("user", for_ever=True)
    user.assign("e1", eoi="e2")
    user.deassign("e1")


def ready():
    return True


class Parent(Mortal):
    """One with a part."""

    WIRING = ("part",)
    __slots__ = WIRING

    def __init__(self):
        super().__init__()
        self.part = Part()


class Part(State):
    BOOKKEEPING = ("size",)
    __slots__ = BOOKKEEPING

    def __init__(self):
        self.size = 1


class Factory(State):
    """Makes things for ever, and keeps `most` of them."""

    WIRING = ("most",)
    BOOKKEEPING = ("kept",)
    __slots__ = (*WIRING, *BOOKKEEPING)

    def __init__(self, most):
        self.most = most
        self.kept = ()

    def make(self):
        self.kept = (*self.kept, Parent())
        if len(self.kept) > self.most:
            self.kept[0].part.size = 0
            self.kept[0].free("make")
            self.kept = self.kept[1:]


def made_by(most):
    board, factory = Board(), Factory(most)
    board.state(factory)
    board.worker("factory", factory.make, ready)
    board.thread("user").signal("e1")
    board.at_rest(lambda: None)
    return board.scenario()


def test_thread_that_assigns_and_deassigns_for_ever_comes_back_to_where_it_was():
    board = Board()
    looped(board)
    result = explore(board.scenario(), audit=True)
    assert result.complete
    assert result.finding is None, str(result.finding)
    assert result.ends == 0
    assert result.states < 200


def test_states_of_a_loop_are_the_same_in_every_process():
    family = scenes.load("irqfd-life")._replace(scenes={"two": two_loops})
    counts = {explore(scenes.set_up(family, "two", Setup())[1], jobs=jobs).states for jobs in (1, 2)}
    assert len(counts) == 1


def two_loops(board):
    looped(board)
    other = board.thread("other", for_ever=True)
    other.assign("e3", eoi="e4")
    other.deassign("e3")


@pytest.mark.parametrize("most", range(LIVES))
def test_name_of_what_is_dead_is_given_again(most):
    result = explore(made_by(most), audit=True)
    assert result.finding is None, str(result.finding)
    assert result.states < 100


def test_what_is_made_for_ever_and_never_freed_has_no_name():
    with pytest.raises(NotDeterministic, match=f"factory makes a Parent while {LIVES} others are alive"):
        explore(made_by(LIVES))


def test_calls_for_ever_come_in_their_order():
    with pytest.raises(UsageError, match="for ever, or in any order"):
        Board().thread("user", any_order=True, for_ever=True)


def never_removed(board):
    looped(board)
    board.live("L2", lambda: board.results("user")[-1:] != ("I- e1 = ok",))


def test_story_tells_what_the_calls_of_a_loop_came_to():
    family = Family("mine", "mine.py", {"removed": never_removed})
    outcome = scenes.run(family, "removed", Setup())
    assert outcome.result.finding.rule == "L2: not so where nobody has to act any more"
    told = story.of(family, outcome)
    assert told.rule == "L2: is not so where nobody has to act any more"
    calls = [row.operation for row in told.rows if row.finished and row.actor == "user"]
    assert calls == ["I+ e1 e2 = ok", "I- e1 = ok"]


def test_thread_may_stop_between_two_calls_and_not_within_one():
    board = Board()
    looped(board)
    (actor,) = [actor for actor in board.scenario().actors if actor.name == "user"]
    assert actor.repeats
    assert not actor.fair


# Fairness, on the real classes.

SCENES = ["for-ever", "for-ever-close", "for-ever-assign"]


@pytest.mark.parametrize("scene", SCENES)
def test_tear_down_would_starve_at_a_lock_if_locks_were_not_fair(scene, monkeypatch):
    monkeypatch.setattr(actors, "AT_LOCK", 0)
    finding = scenes.run(scenes.load("irqfd-life"), scene, Setup()).result.finding
    assert finding.rule.startswith("L4: need not come true again")
    last = dict(finding.trail[: finding.loop])
    starving = set(last) - {actor for actor, _ in finding.trail[finding.loop :]}
    assert "lock.acquire" in {last[actor] for actor in starving}


class DrainsToTheEnd(Irqfds):
    """A deassign that waits until the queue is empty, and not only for what was queued when it came."""

    __slots__ = ()

    def deassign(self, fd, gsi):
        super().deassign(fd, gsi)
        order.hold_back("workqueue.drain", self, self.is_drained)

    def is_drained(self):
        return not [work for work in self.cleanup_queue.executor.pending if work.queue is self.cleanup_queue]


def test_wait_for_an_empty_queue_starves_whatever_locks_promise():
    setup = Setup(parts=Parts(irqfds=DrainsToTheEnd))
    finding = explore(scenes.set_up(LOOPS, "removal", setup)[1]).finding
    assert finding.rule.startswith("L4: need not come true again")
    assert finding.trail[finding.loop :]
    assert "other" not in {actor for actor, _ in finding.trail[finding.loop :]}
    assert explore(scenes.set_up(LOOPS, "removal", Setup())[1]).finding is None


def removal(board):
    board.bind("e3", "e4")
    board.thread("other").deassign("e3")
    looped(board)
    board.eventually("L4")


LOOPS = Family("loops", "loops.py", {"removal": removal})


def visits(family, scene, setup, finding):
    """Of each state on a finding's loop: who could act and what they may claim, and who did."""
    _, scenario = scenes.set_up(family, scene, setup)
    stage = make_stage(scenario)
    heap, standings = stage.arena.take(), stage.beginning()
    found = []
    for k, n in enumerate(finding.choices):
        able = {m: standings[m].place.claim for m in stage.enabled(heap, standings)}
        if k >= finding.loop:
            found.append((able, n))
        heap, standing, _ = stage.step(heap, n, standings[n])
        standings = (*standings[:n], standing, *standings[n + 1 :])
    return found


@pytest.mark.parametrize(
    ("family", "scene", "setup"),
    [
        (scenes.load("Z07"), None, None),
        (LOOPS, "removal", Setup(parts=Parts(irqfds=DrainsToTheEnd))),
    ],
    ids=["Z07", "drain"],
)
def test_live_lock_is_told_as_a_run_that_is_fair_to_everybody(family, scene, setup):
    if scene is None:
        family = zoo.infected(family, "Z07")
        scene, setup = next(iter(family.scenes)), family.wears
    finding = scenes.run(family, scene, setup).result.finding
    assert finding.loop is not None
    loop = visits(family, scene, setup, finding)
    acted = {n for _, n in loop}
    for actor in {n for able, _ in loop for n in able} - acted:
        claims = [able.get(actor, 0) for able, _ in loop]
        assert not all(claim & OWED for claim in claims), actor
        assert not any(claim & AT_LOCK for claim in claims), actor


# What ends cannot play what does not.


def test_trial_and_program_and_machine_refuse_what_goes_on_for_ever(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "def explore_removed(board):\n"
        "    user = board.thread('user', for_ever=True)\n"
        "    user.assign('e1', eoi='e2')\n"
        "    user.deassign('e1')\n"
        "    board.live('L2', lambda: board.results('user')[-1:] != ('I- e1 = ok',))\n"
    )
    family = scenes.load(str(path))
    schedule = story.encode(scenes.run(family, "removed", Setup()))
    with pytest.raises(NotKvms, match="user: goes on for ever"):
        Trial(family, "removed")
    with pytest.raises(NotKvms, match="user: makes its calls for ever"):
        export.replayed(family, schedule)
    with pytest.raises(NotInMachine, match="user: makes its calls for ever"):
        in_machine.plan(family, schedule)
