"""What ``imap`` and ``imap_unordered`` return: iterators over a map that has begun.

The map goes on whether or not anybody takes results, but reads its input only some way ahead of who does. When the pool
is closed it reads on to the end, for ``join`` promises that all is done; so it does when the iterator is dropped.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from multiprocessing import TimeoutError, pool

import distpool

from .failures import failure_of

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any


class IMapIterator(pool.IMapIterator):  # type: ignore[type-arg]  # the standard library's, for isinstance()
    """Results one by one. A task that failed raises when its turn comes, and the iterator goes on after it."""

    _standard: Callable[[Any], Any] = pool.IMapIterator

    def __new__(cls, pool: Any, *made: object) -> Any:
        """Made from a pool alone, as recipes do that fill it themselves, it is the standard library's."""
        return object.__new__(cls) if made else cls._standard(pool)

    def __init__(self, pool: object, stream: distpool.ResultStream, is_bounded: bool) -> None:
        self._pool: object = pool  # which must not end before
        self._stream = stream
        self._is_bounded = is_bounded  # the input is read an exact number of tasks ahead of what was taken
        self._came: Iterator[list[Any]] = self._begin(None)
        self._lock = threading.Lock()  # one thread at a time waits for results
        self._outcomes: deque[distpool.Outcome] = deque()  # those that are not plain; under _lock
        plain: deque[Any] = deque()  # what came together and is taken next
        self._pop, self._extend = plain.popleft, plain.extend

    def _begin(self, timeout: float | None) -> Iterator[list[Any]]:
        if self._is_bounded:
            return ([each] for each in self._stream.outcomes(timeout))
        return self._stream.chunks(timeout)

    def __iter__(self) -> IMapIterator:
        return self

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result, or raise what it raised; StopIteration at the end.

        ``multiprocessing.TimeoutError`` after ``timeout`` seconds; it may be asked for again then.
        """
        if not self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise TimeoutError
        try:
            outcome = self._take(timeout)
        finally:
            self._lock.release()
        if not isinstance(outcome, distpool.Outcome):
            return outcome
        try:
            return outcome.value()
        except BaseException as error:
            failure = failure_of(error)
        raise failure

    def __next__(self, timeout: float | None = None) -> Any:
        try:
            return self._pop()  # one step, so several threads may take; most results come from here
        except IndexError:
            pass
        return self.next(timeout)

    def _take(self, timeout: float | None) -> Any:
        while True:
            try:
                return self._pop()
            except IndexError:
                pass
            if self._outcomes:
                return self._outcomes.popleft()
            several = self._wait(timeout)
            if isinstance(several[0], distpool.Outcome):
                self._outcomes.extend(several)
            else:
                self._extend(several)

    def _wait(self, timeout: float | None) -> list[Any]:
        """Return the next results that came together."""
        if self._pool is None:
            raise StopIteration
        came = self._came if timeout is None else self._begin(timeout)
        try:
            return next(came)
        except StopIteration:
            self._end()
            raise
        except Exception as error:
            if error is not self._stream.input_error:
                raise TimeoutError from None
            self._end()
            raise

    def _end(self) -> None:
        """Nothing more comes out."""
        self._pool = None

    def __del__(self) -> None:
        # As the standard library: the tasks are done even if nobody looks. Not if it was never made whole.
        stream = getattr(self, "_stream", None)
        if stream is not None and not stream.is_finished:
            stream.forsake()


class IMapUnorderedIterator(IMapIterator, pool.IMapUnorderedIterator):  # type: ignore[type-arg]
    """Results as they come."""

    _standard = pool.IMapUnorderedIterator
