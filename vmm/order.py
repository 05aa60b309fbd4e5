"""Where order can change. Imports nothing of vintx; everything that is explored imports this.

In the running machine there is one thread, and this module costs next to nothing. Under the explorer the same
lines run in several actors, and each *point* is a place where another actor may go first. A point is written

    if order.hook is not None:
        order.hook("irqfd.assign.listed", self)

so that the running machine pays one load and one compare (docs/adr/001 has the figures).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable

hook: Callable[[str, object], None] | None = None
"""Installed by the explorer (and by whoever holds an actor at a point); None in the running machine.

Called with the point's name and the object it concerns. It may switch to another actor and come back later.
"""


class State:
    """Base of every class whose objects are explored. Each slot belongs to exactly one of three groups.

    WIRING       what the object is connected to and never changes while the explorer runs: names, peers, callbacks
    VISIBLE      what a guest, a user of the interface or a peer can tell apart
    BOOKKEEPING  what the object needs for itself: queues, flags, counters, ghosts

    A subclass writes the groups and `__slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)` in its body. Snapshot, restore
    and hash are generated from the groups, so a slot in none or two of them is refused when the class is made.
    """

    WIRING: ClassVar[tuple[str, ...]] = ()
    VISIBLE: ClassVar[tuple[str, ...]] = ()
    BOOKKEEPING: ClassVar[tuple[str, ...]] = ()
    __slots__: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        own: list[str] = []
        for group in ("WIRING", "VISIBLE", "BOOKKEEPING"):
            own += cls.__dict__.get(group, ())
        slots = cls.__dict__.get("__slots__")
        if slots is None:
            raise TypeError(f"{cls.__name__} has no __slots__: its state could not be restored")
        if sorted(own) != sorted(slots):
            raise TypeError(f"{cls.__name__}: __slots__ and the groups differ in {sorted(set(own) ^ set(slots))}")
