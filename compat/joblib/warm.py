"""Pools that stay warm between calls of ``Parallel``: one for each number of workers, until it has been idle for long.

Used by the backend, from any thread. A program makes many short calls; what costs is not starting workers (that takes
milliseconds) but what they import. A pool may end between two batches of a call that takes its time; whoever comes next
gets a new one.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import distpool


class WarmPool:
    """A pool, and when it was last used."""

    def __init__(self, options: dict[str, Any], idle_seconds: float) -> None:
        self.pool = distpool.WorkerPool(**options)
        self._options = options
        self._idle_seconds = idle_seconds
        # Under _lock:
        self._under_way = 0  # tasks
        self._last_used = time.monotonic()
        self._has_ended = False
        self._timer = _timer(idle_seconds, self._look)

    def fits(self, options: dict[str, Any]) -> bool:
        """Whether it was made with the same options. They are compared as objects: they may be arrays."""
        return self.pool.broken is None and _is_same(options, self._options)

    def is_idle_rival(self, options: dict[str, Any]) -> bool:
        """Whether it has as many workers as these options ask for, and nothing to do. Under the lock."""
        return not self._under_way and options["processes"] == self._options["processes"]

    def use(self, idle_seconds: float) -> None:
        """Somebody means to use it. Under the lock."""
        self._last_used, self._idle_seconds = time.monotonic(), idle_seconds

    def begin(self) -> bool:
        """A task shall be given to it; False when it has ended."""
        with _lock:
            self._under_way += not self._has_ended
            return not self._has_ended

    def done(self) -> None:
        """A task that was begun has ended."""
        with _lock:
            self._under_way -= 1
            self._last_used = time.monotonic()

    def retire(self) -> None:
        """Take no more tasks. Under the lock."""
        self._has_ended = True
        self._timer.cancel()
        if self in _warm:
            _warm.remove(self)

    def _look(self) -> None:
        """End it if it has been idle for long, else look again. In a timer's thread."""
        with _lock:
            if self._has_ended:
                return
            left = self._last_used + self._idle_seconds - time.monotonic()
            if left > 0 or self._under_way:
                self._timer = _timer(max(left, self._idle_seconds / 4), self._look)
                return
            self.retire()
        self.pool.close()


_lock = threading.Lock()  # protects the following, and what is said to be under it
_warm: list[WarmPool] = []


def warm_pool(options: dict[str, Any], idle_seconds: float) -> WarmPool:
    """Return the pool with these options (of ``distpool.WorkerPool``), started if there is none yet.

    Idle ones with as many workers and other options are ended.
    """
    with _lock:
        found = _find(options)
        if found is not None:
            found.use(idle_seconds)
            return found
    made = WarmPool(options, idle_seconds)  # not under the lock; two threads may both do it
    _end_with_the_program()
    with _lock:
        found = _find(options)
        rivals = [made] if found is not None else [warm for warm in _warm if warm.is_idle_rival(options)]
        for rival in rivals:
            rival.retire()
        if found is None:
            _warm.append(made)
    for rival in rivals:
        rival.pool.close()
    return found or made


def _find(options: dict[str, Any]) -> WarmPool | None:
    return next((warm for warm in _warm if warm.fits(options)), None)


def shutdown() -> None:
    """End the workers that wait for the next call of ``Parallel``; what is under way is finished first.

    They end by themselves after five minutes without work (``idle_worker_timeout``, in seconds), and with the program.
    The next call starts new ones.
    """
    for warm in _retired():
        warm.pool.close()


@functools.cache
def _end_with_the_program() -> None:
    """Registered with the first pool: exit handlers run last one first, and one of distpool's ends its processes."""
    atexit.register(_end_at_once)


def _end_at_once() -> None:
    for warm in _retired():
        warm.pool.terminate()


def _retired() -> list[WarmPool]:
    with _lock:
        ending = list(_warm)
        for warm in ending:
            warm.retire()
    return ending


def _timer(seconds: float, look: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, look)
    timer.daemon = True
    timer.start()
    return timer


def _is_same(one: Any, other: Any) -> bool:
    """Equal texts and numbers, else the very same objects, also within tuples and dicts."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    return one is other or (isinstance(one, (str, int)) and type(one) is type(other) and one == other)


def _forget() -> None:
    """In a forked copy of this process: its parent's pools are not its own."""
    global _lock
    _lock = threading.Lock()
    _warm.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
