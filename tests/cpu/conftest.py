"""Fixtures of the CPU engine tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.cpu_guest import Guest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def guest() -> Iterator[Guest]:
    """A guest with two vCPUs."""
    made = Guest(ncpus=2)
    yield made
    made.close()
