"""A map that no thread owns: it is fed in the background, and its outcome goes to a promise.

Made by ``pool.map_into``. Looked after by ``dispatch.background``, which is told when a worker could have more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from distpool.futures import Outcome, Promise
from distpool.jobs.inputs import MapJob
from distpool.light import Any


class PromisedMap(MapJob):
    """All results, when all tasks are done, for a promise. Ends by itself."""

    def __init__(
        self, promise: Promise, f: Callable[..., Any], iterables: tuple[Iterable[Any], ...], **options: Any
    ) -> None:
        super().__init__(f, iterables, fail_fast=False, **options)
        self._promise: Promise | None = promise  # None when it was kept; under _lock
        self.feed: Callable[[PromisedMap], None] = _nothing  # has it pumped, in the background
        self.waiter = _Look(self)  # type: ignore[assignment]  # nobody waits: who would wake the owner makes us look
        self.is_passing = True

    def demand(self) -> None:
        """Have it pumped."""
        self.feed(self)

    def stop_reading(self, error: BaseException) -> None:
        """As if the input had failed with this error."""
        super().stop_reading(error)
        self.look()

    def look(self) -> None:
        """Keep the promise if everything is done. On any thread."""
        with self._lock:
            if not self.is_finished:
                return
            promise, self._promise = self._promise, None
        if promise is not None:
            promise.resolve(_Results(self))


class _Look:
    """Takes the place of a waiter."""

    __slots__ = ("_job", "done")

    def __init__(self, job: PromisedMap) -> None:
        self._job = job
        self.done = False

    def complete(self) -> None:
        self._job.look()


class _Results(Outcome):
    """What became of a map; put together in the thread that asks."""

    __slots__ = ("_job", "ok")

    def __init__(self, job: PromisedMap) -> None:
        self._job = job
        self.ok = not job.has_failed and job.input_error is None

    def value(self) -> list[Any]:
        """Return the results in input order, or raise: the first failed task's error, else the input's."""
        return self._job.results()


def _nothing(job: PromisedMap) -> None:
    """Before it is looked after."""
