"""``concurrent.futures.thread``, unchanged, so that ``from distpool.compat.futures.thread import ...`` works."""

from __future__ import annotations

import concurrent.futures.thread
from concurrent.futures.thread import *  # noqa: F403
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(concurrent.futures.thread, name)
