"""``ProcessPoolExecutor``: the standard library's executor over a distpool pool, whose workers may die.

Everything else of ``concurrent.futures.process`` is passed through, so the module replaces that one, too.
"""

from __future__ import annotations

import concurrent.futures.process
import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool as BrokenProcessPool
from functools import partial

import distpool

from ..multiprocessing import carried, travel
from ..multiprocessing.births import Births
from ..multiprocessing.worker import PRELOAD, begin
from ..unpicklable import unexplained
from . import maps
from .calls import CallFuture
from .engine import Engine
from .failures import broken
from .worker import logged

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any, Literal, TypeVar

    T = TypeVar("T")

_NOT_GIVEN: Any = object()


def __getattr__(name: str) -> Any:
    return getattr(concurrent.futures.process, name)


class ProcessPoolExecutor(concurrent.futures.process.ProcessPoolExecutor):
    """``concurrent.futures.ProcessPoolExecutor`` that lives on when a worker dies, and takes any function.

    As the newest standard library's on every Python from 3.10. What is better:

    * A worker that dies fails the one call that it ran, with a ``BrokenProcessPool`` that says who died how in what;
      another takes its place, everything else goes on. ``strict=True`` keeps the standard library's rule: the whole
      executor is broken then, and everything in it fails.
    * Lambdas, closures, functions of notebooks and of ``__main__``; no ``if __name__ == "__main__"``; exceptions and
      results that cannot travel cost themselves only.
    * Running calls can be stopped: ``cancel_running=True`` lets ``future.cancel()`` (and the cancellation of an asyncio
      task that waits for one) interrupt them; after a second the worker is killed and replaced.
    * ``map`` finds by measuring how many items shall travel together.

    What differs: arguments are pickled when a call is submitted, so later changes to them do not matter. Workers never
    are forks of this process, whatever ``mp_context`` says: they have what is sent to them and what they import.
    A dropped executor ends its workers when its calls are done. After Ctrl-C a ``with`` block and the end of the
    program do not wait for what still runs: it is killed.

    Args:
        max_workers: the number of processes; None: as many as there are cores that this process may use.
        mp_context: checked as by the standard library; names of workers follow its start method, how they start does
            not.
        initializer: called with ``initargs`` in each worker before anything else. When it raises, the executor is
            broken: pending and later calls fail with BrokenProcessPool, whose cause is the worker's traceback. Locks,
            queues, pipes, shared memory and managers' proxies arrive working.
        max_tasks_per_child: a worker is replaced after so many calls (items of maps count one each).
        strict: a worker's death breaks the executor.
        cancel_running: ``cancel()`` stops what runs.
        pool: run in the workers of this ``distpool.WorkerPool``, which the executor does not end.

    Raises ValueError and TypeError for arguments as the standard library does.

    >>> with ProcessPoolExecutor(max_workers=2) as executor:
    ...     future = executor.submit(pow, 2, 10)
    ...     print(future.result(), list(executor.map(lambda x: x + 1, range(4))))
    1024 [1, 2, 3, 4]
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        strict: bool = False,
        cancel_running: bool = False,
        pool: distpool.WorkerPool | None = None,
    ) -> None:
        if pool is not None:
            given = (max_workers, initializer, max_tasks_per_child)
            if strict or given != (None, None, None):
                raise TypeError(
                    "the workers of pool= exist: max_workers, initializer, max_tasks_per_child and strict "
                    "are for workers of the executor's own"
                )
            max_workers = len(pool)
        _check(max_workers, mp_context, initializer, max_tasks_per_child)
        self._max_workers = distpool.usable_cores() if max_workers is None else max_workers
        self._mp_context = mp_context or multiprocessing.get_context("spawn" if max_tasks_per_child else None)
        self._births = Births(self._mp_context, "Process")
        start = partial(
            _start,
            processes=self._max_workers,
            initializer=begin,
            initargs=(self._births, None if initializer is None else logged, (initializer, tuple(initargs))),
            max_tasks_per_child=max_tasks_per_child,
            replace=not strict,
        )
        if pool is not None:
            travel.register()
        self._engine = Engine(pool, self._max_workers, start)
        self._engine.stops_running = cancel_running
        self._engine.is_strict = strict

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a worker and return its future at once.

        Arguments that cannot be pickled fail the future, with pickle's own exception; its cause names the part. Raises
        RuntimeError after ``shutdown``, BrokenProcessPool when the executor is broken.
        """
        engine = self._engine
        pool = engine.ready()
        if pool.broken is not None:
            raise broken(pool.broken)
        future: CallFuture[T] = CallFuture(engine)
        try:
            pool.submit_into(future, fn, *args, **kwargs)
        except Exception as error:
            if type(error) is RuntimeError:  # the pool that was given is closed
                future.cancel()
                raise
            future.fail(unexplained(error))
        return future

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = _NOT_GIVEN,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over ``fn`` of each item (several iterables: each tuple), in input order.

        The tasks begin now. The whole input is read now, unless ``buffersize`` is given: then so many items, and one
        more for each result that is asked for. Items travel in messages of some milliseconds of work, found by
        measuring; ``chunksize`` fixes their number. A failed item raises when its turn comes and ends the iterator;
        unlike in the standard library the other items of its chunk are not lost. Closing the iterator takes back what
        has not begun. One that is dropped before its first result leaves its tasks to be done. When ``submit`` was
        replaced, in a subclass or on the executor, it is called for each chunk, as in the standard library.

        ``timeout`` is in seconds from this call: ``concurrent.futures.TimeoutError`` when a result is not there then.
        """
        if chunksize is not _NOT_GIVEN and chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        pool = self._engine.ready()
        if pool.broken is not None:
            raise broken(pool.broken)
        per_chunk = 1 if chunksize is _NOT_GIVEN else chunksize
        if getattr(self.submit, "__func__", None) is not ProcessPoolExecutor.submit:
            tuples = zip(*iterables)  # noqa: B905  # as map() does
            return maps.by_submit(self._engine, self.submit, fn, tuples, per_chunk, buffersize, timeout)
        source = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables)  # noqa: B905  # as map() does
        options: dict[str, Any] = {"star": len(iterables) != 1}
        if chunksize is not _NOT_GIVEN:
            options["batch_size"] = per_chunk
        ahead: maps.Ahead | None = None
        if buffersize is None:
            stream = pool.stream(fn, list(source), **options)
        else:
            size = buffersize * per_chunk
            ahead = maps.Ahead(source, size)
            # A stream may go beyond its limit by less than a chunk; here that would be beyond what was read.
            stream = pool.stream(fn, ahead, buffersize=size - per_chunk + 1, **options)
        return maps.results(self._engine, stream, ahead, timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls. Harmless to repeat.

        ``wait``: return when all calls are done and called back, and the workers have ended (with ``pool=``: when the
        executor's own futures are done); else that happens in the background, and the program does not end before.
        ``cancel_futures``: calls that have not begun are cancelled (the first ones of all, one for each worker, count
        as begun), maps end with CancelledError where they have come to.
        """
        self._engine.shut(wait, cancel_futures)

    def terminate_workers(self) -> None:
        """End the workers now, with SIGTERM (SIGKILL when that does not help): running calls fail with
        BrokenProcessPool, those that have not begun are cancelled, and the executor is shut down. From Python 3.14."""
        self._engine.kill(15)

    def kill_workers(self) -> None:
        """As ``terminate_workers``, with SIGKILL at once."""
        self._engine.kill()

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> Literal[False]:
        if kind is not None and issubclass(kind, KeyboardInterrupt):  # the user does not want to wait
            self._engine.kill()
        else:
            self.shutdown(wait=True)
        return False

    @property
    def _processes(self) -> dict[int, Any] | None:  # type: ignore[override]  # theirs is an attribute
        """The workers as process objects, by the system's ids: not public, but much used, to kill them."""
        engine = self._engine
        if not engine.is_running:
            return {} if not engine.has_begun else None
        workers = self._births.processes(engine.pool, self._max_workers, lambda: not engine.is_running)
        return {worker.pid: worker for worker in workers if worker.pid is not None}

    @property
    def _pending_work_items(self) -> dict[int, None]:  # type: ignore[override]  # likewise
        """As many entries as futures are not done: not public, but much counted, to submit no more than so many."""
        return dict.fromkeys(range(self._engine.pending))

    @property
    def _broken(self) -> str | bool:  # type: ignore[override]  # likewise
        """Why it is broken, or False: not public, but looked at by programs that make themselves a new executor."""
        why = self._engine.pool.broken if self._engine.has_begun else None
        return False if why is None else str(broken(why))

    def __repr__(self) -> str:
        workers = f"of {self._max_workers} workers" if self._engine.has_begun else "not begun"
        return f"<{type(self).__name__} {workers}, {self._engine.pending} calls pending>"


def _check(max_workers: Any, mp_context: Any, initializer: Any, max_tasks_per_child: Any) -> None:
    """Raise what the standard library raises, in its words."""
    if max_workers is not None and (isinstance(max_workers, bool) or not isinstance(max_workers, int)):
        raise TypeError(f"max_workers must be an integer, not {max_workers!r}")
    if max_workers is not None and max_workers <= 0:
        raise ValueError("max_workers must be greater than 0")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")
    if max_tasks_per_child is None:
        return
    if not isinstance(max_tasks_per_child, int):
        raise TypeError("max_tasks_per_child must be an integer")
    if max_tasks_per_child <= 0:
        raise ValueError("max_tasks_per_child must be >= 1")
    if mp_context is not None and mp_context.get_start_method(allow_none=False) == "fork":
        raise ValueError(
            "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
            "supply a different mp_context."
        )


def _start(**options: Any) -> distpool.WorkerPool:
    """Start the workers of an executor's own, when its first call comes."""
    preload = carried.preload(PRELOAD)
    distpool.WorkerPool.prepare(preload)  # it boots while the rest is imported
    travel.register()  # locks, queues, proxies may be in initargs and arguments
    return distpool.WorkerPool(preload=preload, logging=carried.is_logging(), wait=False, **options)
