"""What every kind of test here needs."""

from __future__ import annotations

import pytest

from tests.unit.fakes import FakeLog


@pytest.fixture
def log() -> FakeLog:
    """A log that remembers its lines."""
    return FakeLog()
