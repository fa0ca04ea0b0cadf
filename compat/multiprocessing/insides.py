"""What programs reach for inside the standard library's pool: how much is left; a way to hand in tasks of their own.

These names are private there, and yet known from many answers and recipes: ``pool._cache`` and
``pool._taskqueue.qsize()`` to see how much is under way, ``_taskqueue.put`` in recipes such as ``istarmap``, which
build an iterator by hand. Used by ``pool``. Owns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pool import Pool

# Number of the result in the pool's ``_cache``, number of the chunk, function, arguments.
Task = tuple[int, int, Callable[..., Any], tuple[Any, ...], dict[str, Any]]


class TaskQueue:
    """In the place of the queue of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def qsize(self) -> int:
        """How many calls and maps are not done."""
        return len(self._pool._cache)

    def empty(self) -> bool:
        """True when all are."""
        return not self._pool._cache

    def put(self, entry: tuple[Iterable[Task], Callable[[int], object] | None]) -> None:
        """Do tasks as the standard library's pool makes them, and tell the result in ``_cache`` of each."""
        tasks, set_length = entry
        self._pool._native.run_aside(lambda: self._do(tasks, set_length))

    def _do(self, tasks: Iterable[Task], set_length: Callable[[int], object] | None) -> None:
        count = 0
        for job, index, func, args, kwds in tasks:
            tell = partial(_tell, self._pool._cache[job], index)
            self._pool.apply_async(func, args, kwds, partial(tell, True), partial(tell, False))
            count = index + 1
        if set_length is not None:
            set_length(count)


def _tell(result: Any, index: int, is_value: bool, came: object) -> None:
    result._set(index, (is_value, came))
