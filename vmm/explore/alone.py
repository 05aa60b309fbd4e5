"""S19, a call that fails changes nothing: asked of each call that can begin where nobody is in the middle of anything,
by making it there and letting nobody in between.

These runs are among the orders of the search. But two orders that meet in a state are one from there on, and whether
one of them came by a quiet state is not kept, because that would make two states of one. So each is run once more from
there. Its steps are remembered, and quiet states are few, so that costs little.

    Atomic(board.is_quiet, board.view_all, {0: failure_of_the_user}, changed)

What is found is the shortest, and it is told if the search finds nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vmm.order import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmm.explore.actors import Standing
    from vmm.explore.footprints import Footprints
    from vmm.explore.heap import Heap


class Atomic(NamedTuple):
    """What is asked. All are pure functions of the state: whether nothing is queued or running; what can be told apart
    of it; of actors by their numbers, how the call failed that they made last, empty if it did not. `wrong` says what
    is, of a failure and of what was before and after it.
    """

    quiet: Callable[[], bool]
    view: Callable[[], object]
    failures: dict[int, Callable[[], str]]
    wrong: Callable[[str, object, object], str]


class Spoilt(NamedTuple):
    """A call that fails and changes something: actor `n` makes it in `state` in `steps` steps; `length` is all the way
    to its end. The least is told.
    """

    length: int
    state: int
    n: int
    steps: int


def spoiling(
    atomic: Atomic, steps: Footprints, heap: Heap, standings: tuple[Standing, ...], mark: int, enabled: Iterable[int]
) -> tuple[int, int, str] | None:
    """The first actor whose call fails in a state and changes something, in how many steps, and what is wrong."""
    for standing in standings:
        if standing[0].step:
            return None
    if not steps.says(atomic.quiet, heap):
        return None
    for n in enabled:
        failure = atomic.failures.get(n)
        if failure is None:
            continue
        made = _alone(steps, heap, standings, mark, n)
        if made is None:
            continue
        after, taken = made
        failed = steps.says(failure, after)
        if failed:
            wrong = atomic.wrong(failed, steps.says(atomic.view, heap), steps.says(atomic.view, after))
            if wrong:
                return n, taken, wrong
    return None


def _alone(
    steps: Footprints, heap: Heap, standings: tuple[Standing, ...], mark: int, n: int
) -> tuple[Heap, int] | None:
    """What an actor's call comes to, and in how many steps. None: it waits for others, or breaks a rule, which the
    search will find.
    """
    taken = 0
    while True:
        try:
            _, heap, standings, mark = steps.step(heap, standings, mark, n)
        except Violation:
            return None
        taken += 1
        if not standings[n].place.step:
            return heap, taken
        if n not in steps.enabled(heap, standings):
            return None
