"""Which lock is taken under which, over all orders of a scenario: S15, as lockdep sees it.

A circle is reported although no order closes it: two who take two locks in opposite orders are one change away from a
deadlock, and the search finds real ones by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm import order
from vmm.explore import rules
from vmm.explore.footprints import Footprints
from vmm.explore.search import Search, set_up
from vmm.order import Lock

if TYPE_CHECKING:
    from vmm.explore.actors import Guard, Stage
    from vmm.explore.search import Scenario


class Nesting:
    """Listens to a stage. `nested`: (outer, inner) kinds of locks, and who did it first."""

    def __init__(self, stage: Stage) -> None:
        self.nested: dict[tuple[str, str], str] = {}
        self._stage = stage
        self._locks = [thing for thing in stage.arena.objects if isinstance(thing, Lock)]
        self._wait = stage._wait
        stage.arena.adopt(self)  # it stands in the way of each wait
        stage._wait = self.wait  # type: ignore[method-assign]

    def wait(self, name: str, subject: object, ready: Guard, sleeps: bool) -> None:
        """Somebody is held back: for a lock, perhaps, while he has others."""
        if isinstance(subject, Lock) and name == "lock.acquire":
            self._note(subject)
        self._wait(name, subject, ready, sleeps)

    def _note(self, wanted: Lock) -> None:
        arena = self._stage.arena
        noting, arena.noting = arena.noting, False
        for lock in self._locks:
            if lock.owner == order.actor and lock is not wanted:
                pair = rules.kind_of(lock.name), rules.kind_of(wanted.name)
                self.nested.setdefault(pair, self._stage.actors[order.actor - 1].name)
        arena.noting = noting


def nesting(scenario: Scenario, limit: int) -> dict[tuple[str, str], str]:
    """Every order, for the locks' sake."""
    stage = set_up(scenario)
    found = Nesting(stage)
    with Footprints(stage) as steps:
        search = Search(scenario._replace(always=None, at_rest=None, live=(), atomic=None), steps, limit)
        search.run()
        steps.arena.put(search.first.heap)
    return found.nested


def circle(scenario: Scenario, limit: int) -> str:
    """S15: what is wrong, with who takes what; empty if locks nest in one order."""
    nested = nesting(scenario, limit)
    wrong = rules.s15(nested)
    if not wrong:
        return ""
    who = [
        f"{name} takes {inner} under {outer}"
        for (outer, inner), name in nested.items()
        if outer in wrong and inner in wrong
    ]
    return f"S15: {wrong}: {'; '.join(who)}"
