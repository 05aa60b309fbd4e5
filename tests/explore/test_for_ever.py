"""Threads that make their calls for ever: what they make is named again, and nobody's wait is in vain."""

from __future__ import annotations

import pytest

from vmm.errors import UsageError
from vmm.explore import scenes, story
from vmm.explore.actors import LIVES, NotDeterministic
from vmm.explore.board import Board
from vmm.explore.scenes import Family, Setup
from vmm.explore.search import explore
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
