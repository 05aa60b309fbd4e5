"""Wires, and the handles that hold them high.

A device is given a `LevelLine` or an `EdgeLine`; it never sees a GSI, a vector or a chip. A `Wire` is the OR of its
holders and may feed several pins. Closing a holder lowers it: a device that is gone cannot hold a wire.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmm.order import State

if TYPE_CHECKING:
    from collections.abc import Callable

    Target = Callable[[bool], object]


class Wire(State):
    """A wired OR. `name` is for people; `targets` hear of each change of `high`, in the order of `connect`."""

    WIRING = ("name", "targets")
    VISIBLE = ("holders", "count")
    BOOKKEEPING = ()
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, name: str, *targets: Target) -> None:
        self.name = name
        self.targets: tuple[Target, ...] = targets
        self.holders: list[LevelLine] = []
        self.count = 0
        """How many holders are high."""

    @property
    def high(self) -> bool:
        """The level that the targets were last told."""
        return self.count > 0

    def connect(self, target: Target) -> None:
        """Feed one more target; it is told at once if the wire is high."""
        self.targets = (*self.targets, target)
        if self.count:
            target(True)

    def hold(self, name: str) -> LevelLine:
        """A new handle on this wire, low. The same name may hold several times (functions of a slot do)."""
        line = LevelLine(name, self)
        self.holders.append(line)
        return line

    def __repr__(self) -> str:
        who = ", ".join(f"{line.name}{'+' if line.level else '-'}" for line in self.holders)
        return f"<Wire {self.name} {'high' if self.count else 'low'}: {who}>"


class LevelLine(State):
    """One holder's handle on a wire: a level-triggered interrupt line as its device sees it."""

    WIRING = ("name", "wire")
    VISIBLE = ("level", "closed")
    BOOKKEEPING = ()
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, name: str, wire: Wire) -> None:
        self.name = name
        self.wire = wire
        self.level = False
        self.closed = False

    def set(self, level: bool) -> None:
        """Drive the line. Setting the level it has does nothing; a closed line stays low."""
        if level == self.level or self.closed:
            return
        self.level = level
        wire = self.wire
        if level:
            wire.count += 1
            if wire.count == 1:
                for target in wire.targets:
                    target(True)
        else:
            wire.count -= 1
            if wire.count == 0:
                for target in wire.targets:
                    target(False)

    def close(self) -> None:
        """Lower the line and let go of the wire. A second close does nothing."""
        if self.closed:
            return
        self.set(False)
        self.closed = True
        self.wire.holders.remove(self)

    def __repr__(self) -> str:
        return f"<LevelLine {self.name} on {self.wire.name} {'high' if self.level else 'low'}>"


class EdgeLine(State):
    """An edge-triggered interrupt line: all a device can do is pulse it."""

    WIRING = ("line",)
    VISIBLE = ()
    BOOKKEEPING = ()
    __slots__ = (*WIRING, *VISIBLE, *BOOKKEEPING)

    def __init__(self, line: LevelLine) -> None:
        self.line = line

    def pulse(self) -> None:
        """One rising and one falling edge."""
        self.line.set(True)
        self.line.set(False)

    def close(self) -> None:
        """Let go of the wire."""
        self.line.close()
