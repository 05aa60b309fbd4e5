"""Where the matrix finds something else than was expected: why. docs/dispute.md has the same in prose."""

from __future__ import annotations

from typing import Final

EXPLAINED: Final[dict[tuple[str, str, tuple[str, ...]], str]] = {}
"""By scenario/scene, rule, and what is found."""
