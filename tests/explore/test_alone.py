"""S19 in every order: a call that fails, and that nobody interfered with, has changed nothing."""

from __future__ import annotations

import errno

import pytest

from vmm.dispute.matrix_expected import CASES
from vmm.dispute.row import FAILS, MERGED
from vmm.explore import matrix, scenes, search, story
from vmm.explore.board import Board, Parts
from vmm.explore.checkpoint import Checkpoint
from vmm.explore.scenes import Family, Setup
from vmm.explore.search import explore
from vmm.kernel import invariants
from vmm.kernel.files import os_error
from vmm.kernel.irqfd import Irqfds


class Leaks(Irqfds):
    """An assign that is refused keeps the reference that it took."""

    __slots__ = ()

    def admit(self, _irqfd, ctx):
        if self.items:
            ctx.get()
            raise os_error(errno.EINVAL, "one is enough")


class Forgets(Irqfds):
    """A deassign that is refused because there is none takes another irqfd with it."""

    __slots__ = ()

    def deassign(self, fd, gsi):
        ctx = self.files.ctx_fdget(fd)
        ctx.put()
        if all(item.ctx is not ctx for item in self.items):
            self.items = self.items[1:]
            raise os_error(errno.ENOENT, "no such irqfd")
        super().deassign(fd, gsi)


def twice(board):
    board.bind("e1", "e2")
    board.thread("device").signal("e1")
    board.thread("user").assign("e3", eoi="e4")


def removed(board):
    """More levels than one before the call, and two who could make it."""
    board.bind("e1", "e2")
    board.thread("other").deassign("e5")
    board.thread("user").line(1)


FAMILY = Family("mine", "mine.py", {"twice": twice, "removed": removed})
LEAKS, FORGETS = Setup(parts=Parts(irqfds=Leaks)), Setup(parts=Parts(irqfds=Forgets))


@pytest.mark.parametrize(
    ("scene", "setup", "says"),
    [
        ("twice", LEAKS, "S19: I+ e3 e4 failed with EINVAL, and changed eventfds from "),
        ("removed", FORGETS, "S19: I- e5 failed with ENOENT, and changed irqfds from (('e1', 5, False),) to ()"),
    ],
)
def test_call_that_fails_and_changes_something_is_told_with_what(scene, setup, says):
    finding = scenes.run(FAMILY, scene, setup).result.finding
    assert finding.rule.startswith(says)
    assert {actor for actor, _ in finding.trail} == {"user" if scene == "twice" else "other"}
    assert scenes.run(FAMILY, scene, Setup()).result.finding is None


def test_way_to_it_can_be_told_and_replayed():
    outcome = scenes.run(FAMILY, "twice", LEAKS)
    told = story.of(FAMILY, outcome)
    assert told.rule == outcome.result.finding.rule
    assert told.rows[-1].operation == "I+ e3 e4 = EINVAL"
    assert story.words(told.rule) == "what fails changes nothing"


def test_call_that_another_one_interfered_with_is_not_judged():
    """Where the signal's injection is under way while the assign fails, there is no telling whose doing it was."""
    outcome = scenes.run(FAMILY, "twice", LEAKS)
    choices = outcome.result.finding.choices
    mixed = (*choices[:-1], 0, choices[-1])
    assert story.tell(FAMILY, "twice", LEAKS, mixed).rule is None


def test_states_are_not_more_for_it():
    _, scenario = scenes.set_up(FAMILY, "twice", Setup())
    assert explore(scenario).states == explore(scenario._replace(atomic=None)).states


@pytest.mark.parametrize("jobs", [2, 3])
def test_finding_is_the_same_in_many_processes(jobs, monkeypatch):
    monkeypatch.setattr(search, "WIDE", 8)
    _, scenario = scenes.set_up(FAMILY, "twice", LEAKS)
    alone = explore(scenario)
    assert alone.finding.rule.startswith("S19: ")
    assert explore(scenario, jobs=jobs) == alone


def test_search_that_was_interrupted_still_knows_of_it(tmp_path):
    def scenario():
        return scenes.set_up(FAMILY, "twice", LEAKS)[1]

    whole = explore(scenario())
    for limit in (whole.states // 2, whole.states - 1):
        partly = explore(scenario(), limit, checkpoint=Checkpoint(tmp_path, "twice"))
        assert not partly.complete
        assert partly.finding == whole.finding
    assert explore(scenario(), checkpoint=Checkpoint(tmp_path, "twice")) == whole


def test_scene_of_the_dispute_has_failures_to_judge_and_none_changes_anything():
    board = Board("eoifd-v5", sources=1)
    scenes.load("thread").scenes["counter-example"](board)
    scenario = board.scenario()
    failed = []
    judge = scenario.atomic.wrong
    atomic = scenario.atomic._replace(wrong=lambda *what: failed.append(what[0]) or judge(*what))
    board.notes = {}
    assert explore(scenario._replace(atomic=atomic)).finding is None
    assert {"I+ e3 = EFAULT", "E+ e2 e1 = ENODEV"} <= set(failed)


def test_matrix_notes_it(monkeypatch):
    monkeypatch.setattr(invariants, "s19", lambda *_: "it does")
    case = next(one for one in CASES if one.name == "dispute/deassign")
    assert "S19" in matrix.survey(case, FAILS).found
    assert "S19" not in matrix.survey(case, MERGED).found  # nothing fails there
