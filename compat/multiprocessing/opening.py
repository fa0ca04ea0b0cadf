"""The function ``Pool``: what is needed for it to be called, and no more.

Used by the package, for whoever imports the name. What a pool needs of the standard library takes as long to import as
workers take to start, so it is imported when they have been begun with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import distpool

from .carried import preload
from .worker import PRELOAD

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any

    from . import pool


def Pool(
    processes: int | None = None,
    initializer: Callable[..., object] | None = None,
    initargs: Iterable[Any] = (),
    maxtasksperchild: int | None = None,
) -> pool.Pool:
    """Return a pool of ours; arguments are those of the class."""
    distpool.WorkerPool.prepare(preload(PRELOAD))
    from .context import default

    return default.Pool(processes, initializer, initargs, maxtasksperchild)
