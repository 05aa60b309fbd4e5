"""What must happen again and again: loops that are fair, loops that are not, locks, and ends."""

from __future__ import annotations

from vmm import order
from vmm.explore.actors import Actor, Operation
from vmm.explore.search import Scenario, explore
from vmm.order import Lock, State


class Ring(State):
    """Two who hand a token to each other, and a third who may take it away."""

    VISIBLE = ("at", "goal")
    __slots__ = VISIBLE

    def __init__(self) -> None:
        self.at = 0
        self.goal = False

    def forth(self) -> None:
        self.at = 1

    def back(self) -> None:
        self.at = 0

    def is_here(self) -> bool:
        return self.at == 0

    def is_there(self) -> bool:
        return self.at == 1

    def take_away(self) -> None:
        self.at = 2
        self.goal = True

    def is_reached(self) -> bool:
        return self.goal


def ring(fair: bool | None = None, only_there: bool = False):
    """`fair`: of the third, who may take the token away; None: there is no third."""
    token = Ring()
    actors = [
        Actor("a", (Operation("forth", token.forth, token.is_here),), repeats=True),
        Actor("b", (Operation("back", token.back, token.is_there),), repeats=True),
    ]
    if fair is not None:
        take = Operation("take", token.take_away, token.is_there if only_there else None)
        actors.append(Actor("c", (take,), fair=fair))
    return explore(Scenario((token,), tuple(actors), live=(("goal", token.is_reached),))).finding


def test_loop_of_fair_actors_without_the_goal_is_a_lasso():
    finding = ring()
    assert finding.rule.startswith("goal: need not come true again")
    assert finding.loop == 0
    assert [name for name, _ in finding.trail] == ["a", "b"]


def test_actor_who_can_always_end_the_loop_does_so_if_it_is_fair():
    assert ring(fair=True) is None


def test_actor_that_nobody_makes_may_let_the_loop_go_on():
    finding = ring(fair=False)
    assert finding is not None
    assert finding.loop == 0


def test_loop_that_comes_by_the_goal_is_none():
    token = Ring()
    actors = (
        Actor("a", (Operation("forth", token.forth, token.is_here),), repeats=True),
        Actor("b", (Operation("back", token.back, token.is_there),), repeats=True),
    )
    live = (("here", token.is_here), ("there", token.is_there))
    assert explore(Scenario((token,), actors, live=live)).finding is None


def test_weak_fairness_owes_nothing_to_who_is_able_only_now_and_then():
    finding = ring(fair=True, only_there=True)
    assert finding is not None


def test_end_without_the_goal_is_found_by_the_shortest_way():
    token = Ring()
    actors = (Actor("a", (Operation("forth", token.forth),)), Actor("b", (Operation("back", token.back),)))
    finding = explore(Scenario((token,), actors, live=(("goal", token.is_here),))).finding
    assert finding.rule == "goal: not so where nobody can act any more"
    assert finding.loop is None
    assert finding.choices == (1, 0)


class Door(State):
    """Two who go in and out for ever, and one who has to go in once. By a lock, or by a flag that nobody hands over."""

    WIRING = ("lock",)
    VISIBLE = ("inside", "goal")
    __slots__ = (*WIRING, *VISIBLE)

    def __init__(self) -> None:
        self.lock = Lock("door", spin=True)
        self.inside = 0
        self.goal = False

    def by_lock(self) -> None:
        with self.lock:
            order.hook("door.inside", self)

    def is_empty(self) -> bool:
        return not self.inside

    def by_flag(self) -> None:
        order.hold_back("door.flag", self, self.is_empty)
        self.inside = order.actor
        order.hook("door.inside", self)
        self.inside = 0

    def stay(self) -> None:
        """Go in, and let others act again and again, but not in."""
        if self.lock.owner == order.NOBODY:
            self.lock.acquire()
        self.inside = 1 - self.inside

    def enter_by_lock(self) -> None:
        with self.lock:
            self.goal = True

    def enter_by_flag(self) -> None:
        order.hold_back("door.flag", self, self.is_empty)
        self.goal = True

    def is_reached(self) -> bool:
        return self.goal


def door(others, waits):
    """`others` of the door's methods for ever, `waits` once, as calls of their actors."""
    door = Door()
    actors = [
        Actor(f"o{n}", (Operation("in, out", getattr(door, name)),), repeats=True) for n, name in enumerate(others)
    ]
    actors.append(Actor("w", (Operation("in", getattr(door, waits)),)))
    return explore(Scenario((door,), tuple(actors), live=(("goal", door.is_reached),)))


def test_lock_that_others_take_again_and_again_is_had_in_the_end():
    result = door(["by_lock", "by_lock"], "enter_by_lock")
    assert result.complete
    assert result.finding is None, str(result.finding)


def test_whoever_waits_for_a_flag_that_is_down_now_and_then_may_starve():
    finding = door(["by_flag", "by_flag"], "enter_by_flag").finding
    assert finding.rule.startswith("goal: need not come true again")
    looping = [name for name, _ in finding.trail[finding.loop :]]
    assert "w" not in looping
    assert looping


def test_lock_that_is_never_given_back_is_waited_for_for_ever():
    finding = door(["stay"], "enter_by_lock").finding
    assert finding.rule.startswith("goal: need not come true again")
    assert [name for name, _ in finding.trail[finding.loop :]] == ["o0", "o0"]


def test_end_where_only_those_could_act_who_need_not_is_an_end():
    token = Ring()
    actors = (
        Actor("a", (Operation("forth", token.forth),)),
        Actor("b", (Operation("back", token.back, token.is_there),), fair=False),
    )
    finding = explore(Scenario((token,), actors, live=(("goal", token.is_here),))).finding
    assert finding.rule == "goal: not so where nobody has to act any more"
    assert finding.choices == (0,)
