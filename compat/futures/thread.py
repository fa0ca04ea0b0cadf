"""``concurrent.futures.thread``, unchanged, so that ``from distpool.compat.futures.thread import ...`` works."""

from __future__ import annotations

import concurrent.futures.thread
from concurrent.futures.thread import *  # noqa: F403

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(concurrent.futures.thread, name)
