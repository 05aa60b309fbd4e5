"""Where the matrix finds something else than was expected: why. docs/dispute.md has the same in prose."""

from __future__ import annotations

from typing import Final

from vmm.dispute.row import BUSY, FAILS, FOLLOWS, HOLDS, REBINDS

_NOT_YET: Final = (
    "A close is asynchronous: the irqfd may fire, and the guest may end it, before the eoifd's shutdown has run, and "
    "then the line is lowered once more. A deassign returns when the shutdown is done. S3 means the states after a "
    "flush; this scene fires without waiting for one."
)

EXPLAINED: Final[dict[tuple[str, str, tuple[str, ...]], str]] = {
    **{("dispute/eoifd-closed", rule, ("L5", "S3")): _NOT_YET for rule in (FAILS, FOLLOWS, BUSY, REBINDS, HOLDS)},
    ("dispute/bind", FAILS, ()): "The model looks at the irqfd again, under the lock, when it binds: a rule that "
    "refuses a deassign for the eoifd's sake has to, or it has the zombie that it is there to avoid. The rule was "
    "proposed without code; without this look the search finds S1 here, as expected.",
}
"""By scenario/scene, rule, and what is found."""
