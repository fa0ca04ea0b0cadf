"""What the numbered cases share, beside the fixtures of all tests."""

from __future__ import annotations

import pytest

import distpool


@pytest.fixture(scope="session", autouse=True)
def _be_a_member() -> None:
    """Makes this process a cluster of one before the first leak census: its reader's descriptors stay by design."""
    distpool.workers()
