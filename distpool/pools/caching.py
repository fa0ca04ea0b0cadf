"""The pool that remembers what it has sent: each callable travels to each worker at most once."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable

from distpool.light import TYPE_CHECKING, Any, later
from distpool.pools.making import KEPT_FUNCTIONS, Making
from distpool.pools.worker_pool import WorkerPool

if TYPE_CHECKING:
    from distpool import jobs, pickling
    from distpool.dispatch import Dispatch
    from distpool.jobs import CallJob
else:
    jobs, pickling = later("distpool.jobs"), later("distpool.pickling")


class CachingPool(WorkerPool):
    """A pool that sends each callable to each worker at most once, with all it captured. Julia's ``CachingPool``.

    What a callable mentions is frozen at its first use in this pool; ``clear(pool)`` forgets all. A bounded number is
    kept, the least lately used goes first. It belongs to the process that made it and cannot be sent.

    >>> from distpool import addprocs, rmprocs
    >>> pids = addprocs(1)
    >>> CachingPool(pids).map(abs, [-1, 2])
    [1, 2]
    >>> _ = rmprocs(pids)
    """

    _making: _Keeping

    def __init__(self, pids: Iterable[int] | None = None) -> None:
        super().__init__(pids)

    def _make_making(self) -> Making:
        return _Keeping(self._dispatch)

    def cached(self) -> list[Any]:
        """Return the callables that are kept, the least lately used first."""
        return self._making.cached()

    def clear(self) -> CachingPool:
        """Forget all callables, here and at the workers. Returns the pool."""
        self._making.clear()
        return self

    def __reduce__(self) -> Any:
        raise RuntimeError("a CachingPool belongs to the process that made it and cannot be sent to another")


class _Keeping(Making):
    """Makes jobs whose callables stay at the workers."""

    def __init__(self, dispatch: Dispatch) -> None:
        super().__init__(dispatch)
        # By identity of the callable, which is kept alive so that the identity stays its own.
        self._cached: OrderedDict[int, tuple[Any, dict[str, Any]]] = OrderedDict()
        self._cached_lock = threading.Lock()  # protects _cached

    def function(self, f: Callable[..., Any]) -> dict[str, Any]:
        """How a callable travels: once per worker and pool."""
        with self._cached_lock:
            known = self._cached.get(id(f))
            if known is not None:
                self._cached.move_to_end(id(f))
                return known[1]
        options = {"function": pickling.dump(f), "number": jobs.next_number(), "is_kept": True}
        with self._cached_lock:
            options = self._cached.setdefault(id(f), (f, options))[1]  # another thread may have been quicker
            old = self._cached.popitem(last=False)[1] if len(self._cached) > KEPT_FUNCTIONS else None
        if old is not None:
            self._dispatch.forget(old[1]["number"])
        return options

    def call_job(self, f: Callable[..., Any]) -> CallJob:
        """A job of its own for each call, of the one callable that the workers have."""
        job = jobs.CallJob(f, self._dispatch.pump, **self.function(f))
        job.is_passing = True
        return job

    def cached(self) -> list[Any]:
        """The callables that are kept."""
        with self._cached_lock:
            return [f for f, _ in self._cached.values()]

    def clear(self) -> None:
        """Forget them."""
        with self._cached_lock:
            numbers = [options["number"] for _, options in self._cached.values()]
            self._cached.clear()
        for number in numbers:
            self._dispatch.forget(number)
