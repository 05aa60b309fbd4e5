"""The life of a device, and the ledger of what it holds.

One table says who may move a device from which state to which. Everything a device acquires (a wire, a port range,
a descriptor, its id, its slot) is a row of the machine's `Ledger`, taken through `Holdings`, which gives all of it
back in reverse. After an unplug the ledger equals the one before the plug.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from vmm.errors import LedgerError, LifecycleError
from vmm.order import State

if TYPE_CHECKING:
    from collections.abc import Callable


class Phase(enum.Enum):
    """Where a device is in its life."""

    ABSENT = "absent"
    """Holds nothing; nobody can see it."""
    PLUGGED = "plugged"
    """Has its id, bus and slot; the guest cannot see it yet."""
    REALIZED = "realized"
    """Answers the guest. The last thing a plug does is to make this true."""
    UNPLUG_REQUESTED = "unplug-requested"
    """As realized; the guest was asked to let go of it."""
    UNREALIZING = "unrealizing"
    """The guest sees it no more; it gives back what it holds."""


class Who(enum.Enum):
    """Who may ask for a transition."""

    USER = "user"
    GUEST = "guest"
    MACHINE = "machine"


class Transition(NamedTuple):
    """One row of the table: `action` by one of `who` moves from one of `before` to `after`."""

    action: str
    before: tuple[Phase, ...]
    after: Phase
    who: tuple[Who, ...]
    then: str


TRANSITIONS = (
    Transition("plug", (Phase.ABSENT,), Phase.PLUGGED, (Who.USER, Who.MACHINE), "id, bus and slot are taken"),
    Transition("realize", (Phase.PLUGGED,), Phase.REALIZED, (Who.MACHINE,), "the guest can see it"),
    Transition(
        "fail", (Phase.PLUGGED,), Phase.UNREALIZING, (Who.MACHINE,), "a plug that failed gives back what it had taken"
    ),
    Transition(
        "request-unplug",
        (Phase.REALIZED, Phase.UNPLUG_REQUESTED),
        Phase.UNPLUG_REQUESTED,
        (Who.USER,),
        "the guest was told; nothing else has changed",
    ),
    Transition(
        "unrealize",
        (Phase.REALIZED, Phase.UNPLUG_REQUESTED),
        Phase.UNREALIZING,
        (Who.GUEST, Who.MACHINE, Who.USER),
        "the guest's eject, a reset with the request pending, the end of the machine, or the user pulled it out",
    ),
    Transition("gone", (Phase.UNREALIZING,), Phase.ABSENT, (Who.MACHINE,), "the ledger has no row of it"),
)
_TABLE = {(t.action, phase): t for t in TRANSITIONS for phase in t.before}


class Life(State):
    """A device's place in the table. `device` is its path, for messages."""

    WIRING = ("device",)
    VISIBLE = ("phase",)
    BOOKKEEPING = ()
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, device: str) -> None:
        self.device = device
        self.phase = Phase.ABSENT

    def move(self, action: str, who: Who) -> None:
        """Make the transition, or raise LifecycleError and change nothing."""
        row = _TABLE.get((action, self.phase))
        if row is None or who not in row.who:
            raise LifecycleError(self.device, self.phase.value, action)
        self.phase = row.after


class Row(NamedTuple):
    """Something held: by whom, what kind of thing, and which."""

    owner: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.owner}: {self.kind} {self.name}"


class Ledger:
    """What is held in a machine, as a multiset of rows."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: Counter[Row] = Counter()

    def take(self, row: Row) -> None:
        """Enter a row."""
        self._rows[row] += 1

    def give_back(self, row: Row) -> None:
        """Strike a row out. LedgerError if it is not there."""
        if not self._rows[row]:
            del self._rows[row]
            raise LedgerError(f"{row} is given back but not held", row)
        self._rows[row] -= 1
        if not self._rows[row]:
            del self._rows[row]

    def rows(self, owner: str | None = None) -> list[Row]:
        """All rows (of one owner), sorted, repeated as often as they are held."""
        return sorted(row for row in self._rows.elements() if owner is None or row.owner == owner)

    def snapshot(self) -> Counter[Row]:
        """A copy to compare with later."""
        return Counter(self._rows)

    def difference(self, before: Counter[Row]) -> tuple[list[Row], list[Row]]:
        """Rows that are new since `before`, and rows that are gone."""
        return sorted((self._rows - before).elements()), sorted((before - self._rows).elements())


class Holdings:
    """What one owner holds; `close` gives it back in the reverse order of taking.

    Every acquisition of a device goes through `hold`, so the release cannot be forgotten and cannot come in another
    order. A release that raises does not keep the others from running; the first error is raised at the end.
    """

    __slots__ = ("_ledger", "_releases", "owner")

    def __init__(self, ledger: Ledger, owner: str) -> None:
        self._ledger = ledger
        self.owner = owner
        self._releases: list[tuple[Row, Callable[[], object]]] = []

    def hold(self, kind: str, name: str, release: Callable[[], object]) -> Row:
        """Enter a row and remember how to give it back. The row names it for `drop`."""
        row = Row(self.owner, kind, name)
        self._ledger.take(row)
        self._releases.append((row, release))
        return row

    def drop(self, row: Row) -> None:
        """Give one thing back before the others. LedgerError if it is not held here."""
        for i in range(len(self._releases) - 1, -1, -1):
            if self._releases[i][0] == row:
                _, release = self._releases.pop(i)
                try:
                    release()
                finally:
                    self._ledger.give_back(row)
                return
        raise LedgerError(f"{row} is given back but not held", row)

    def close(self) -> None:
        """Give everything back, last taken first."""
        first: BaseException | None = None
        while self._releases:
            row, release = self._releases.pop()
            try:
                release()
            except Exception as error:
                first = first or error
            finally:
                self._ledger.give_back(row)
        if first is not None:
            raise first

    def __len__(self) -> int:
        return len(self._releases)
