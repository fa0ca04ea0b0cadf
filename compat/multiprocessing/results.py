"""What ``apply_async``, ``map_async`` and ``starmap_async`` return.

A result is the promise that the pool keeps: its outcome comes straight from the message, on the reading thread, which
stores it and wakes. It is opened (which may run the user's code) by whoever asks first, or by the callback thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from multiprocessing import TimeoutError, pool

import distpool

from .failures import failure_of

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any

    from .pool import Pool

_PENDING: Any = object()

# Protects who waits for which result. One for all of them: it is held for an instant, and a lock for each of a million
# results would cost more than it saves.
_lock = threading.Lock()


class ApplyResult(pool.ApplyResult):  # type: ignore[type-arg]  # the standard library's, for isinstance()
    """The result of one call, when it is there."""

    _is_quick = True  # it may take microseconds

    def __init__(
        self,
        pool: Pool,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._pool: Pool | None = pool  # which must not end before
        self._callback = callback
        self._error_callback = error_callback
        self._is_called_back = callback is not None or error_callback is not None
        if self._is_called_back:
            pool._callbacks.expect()
        self.is_unwanted = False
        self._outcome: Any = _PENDING
        self._waiters: list[distpool.Waiter] | None = None
        self._success = True
        self._value: Any = _PENDING

    # -- asked by users ------------------------------------------------------------------------------------------

    def ready(self) -> bool:
        """Tell whether there is a value or an exception."""
        return self._outcome is not _PENDING

    def successful(self) -> bool:
        """Tell whether there is a value; ValueError while there is nothing."""
        if self._outcome is _PENDING:
            raise ValueError(f"{self!r} not ready")
        self._open()
        return self._success

    def wait(self, timeout: float | None = None) -> None:
        """Wait until it is ready, at most ``timeout`` seconds; also for its callback."""
        pool = self._pool
        if pool is None or self._outcome is not _PENDING:
            return
        waiter = distpool.Waiter()
        with _lock:
            if self._outcome is not _PENDING:
                return
            self._waiters = [*(self._waiters or ()), waiter]
        try:
            pool._native.wait_for(waiter, timeout, eager=self._is_quick)
        finally:
            if not waiter.done:
                with _lock:
                    self._waiters = [other for other in self._waiters or () if other is not waiter] or None

    def get(self, timeout: float | None = None) -> Any:
        """Return the value, or raise what the call raised; ``multiprocessing.TimeoutError`` after ``timeout``."""
        if self._outcome is _PENDING:
            self.wait(timeout)
            if self._outcome is _PENDING:
                raise TimeoutError
        self._open()
        if self._success:
            return self._value
        raise self._value

    def _open(self) -> None:
        if self._value is not _PENDING:
            return
        outcome = self._outcome
        value: Any = outcome
        success = True
        if isinstance(outcome, distpool.Outcome):
            try:
                value = outcome.value()
            except BaseException as error:  # it is data here
                value, success = failure_of(error), False
        with _lock:  # every thread gets the same object
            if self._value is _PENDING:
                self._success, self._value = success, value
                self._outcome = None

    # -- told by the pool, on the reading thread -------------------------------------------------------------------

    def leave(self) -> bool:
        """It is about to be sent."""
        return not self.is_unwanted

    def come_back(self) -> None:
        """It waits again."""

    def cancelled(self) -> bool:
        """Only by Ctrl-C in ``apply``; the standard library has no way to do it."""
        return self.is_unwanted

    def resolve(self, outcome: Any) -> None:
        """Take what became of it; first the callback, if there is one, then it is ready."""
        pool = self._pool
        if pool is None:
            return
        if self._is_called_back and not pool._is_terminated:
            pool._callbacks.add(partial(self._call_back, outcome))
            return
        self._be_ready(outcome)
        if self._is_called_back:
            pool._callbacks.excuse()

    def _call_back(self, outcome: Any) -> None:
        """In the callback thread."""
        try:
            done = ApplyResult(self._pool)  # type: ignore[arg-type]
            done._outcome = outcome
            done._open()
            self._success, self._value = done._success, done._value
            callback = self._callback if done._success else self._error_callback
            if callback is not None:
                callback(done._value)
        finally:
            self._be_ready(None)

    def _be_ready(self, outcome: Any) -> None:
        pool = self._pool
        with _lock:
            self._outcome = outcome
            waiters, self._waiters = self._waiters, None
            self._pool = None
        if pool is not None:
            pool._cache.pop(id(self), None)
        for waiter in waiters or ():
            waiter.complete()


class MapResult(ApplyResult, pool.MapResult):  # type: ignore[type-arg]
    """The results of a map, when all are there."""

    _is_quick = False
    _chunksize = 1
    _done: Callable[[], int] | None = None
    _length = 0

    def count(self, length: int, chunksize: int | None, done: Callable[[], int]) -> None:
        """Be told how many tasks there are, and what tells how many are done."""
        self._length, self._chunksize, self._done = length, chunksize or 1, done

    @property
    def _number_left(self) -> int:
        """Chunks, or tasks where no chunk size was given, that are not done: private, and asked for progress."""
        if self.ready() or self._done is None:
            return 0
        return -(-(self._length - self._done()) // self._chunksize)


AsyncResult = ApplyResult
