"""Where a replay first leaves the recording."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """`step` counts from 1; 0 is the state before the first. `field` is what differs: `ret`, `v`, or a part of the
    state."""

    sequence: str
    step: int
    op: Any
    field: str
    expected: Any
    got: Any

    def __str__(self) -> str:
        return f"{self.sequence}: step {self.step} {self.op}: {self.field} is {self.got}, recorded {self.expected}"
