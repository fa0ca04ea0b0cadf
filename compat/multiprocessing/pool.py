"""``multiprocessing.pool``: ``Pool`` on distpool's workers, ``ThreadPool`` and all else as the standard library has it.

``Pool`` hands everything to a ``distpool.WorkerPool`` and gives its answers the standard library's shape. Differences,
each on purpose: a worker that dies fails the call it was in with ``distpool.ProcessExitedException``, and only that;
an initializer that fails does so once, and every call tells of it; calls that ``terminate`` cuts off fail instead of
never being ready; lambdas, and functions of scripts and notebooks, work; there is no chunk size to guess; a worker may
have children. Workers are no copies of this process: what the program had loaded or set before it made the pool is
there only if a function brings it along, or the initializer makes it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from multiprocessing import pool as standard
from multiprocessing.pool import CLOSE, INIT, RUN, TERMINATE, ThreadPool

import distpool

from . import carried, children, travel
from .births import Births
from .context import default
from .failures import failure_of
from .insides import TaskQueue
from .results import ApplyResult, MapResult
from .streams import IMapIterator, IMapUnorderedIterator
from .worker import PRELOAD, begin

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any

    Callback = Callable[[Any], object] | None

__all__ = ["Pool", "ThreadPool"]


class Pool(standard.Pool):
    """A pool of worker processes; arguments and methods are those of ``multiprocessing.Pool``.

    Args:
        processes: how many workers; None: one for each core that this process may use.
        initializer: called with ``initargs`` in each worker before anything else, also in those that replace others.
            Locks, queues, pipes, shared memory and managers' proxies in ``initargs`` arrive working.
        initargs: its arguments.
        maxtasksperchild: how many calls a worker does before a fresh one takes its place; None: no limit.
        context: from ``get_context()``; names of workers follow its start method, how they start does not.

    Raises ValueError for numbers below 1, TypeError for an initializer that cannot be called.

    >>> with Pool(2) as pool:
    ...     pool.map(abs, [-1, -2]), pool.apply(pow, (2, 5))
    ([1, 2], 32)
    """

    _state = INIT  # looked at by __del__, whatever happens before there is another

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        if processes is not None and processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        preload = carried.preload(PRELOAD)
        distpool.WorkerPool.prepare(preload)  # it boots while the rest is imported
        travel.register()
        self._ctx = context or default.get_context()
        self._processes = distpool.usable_cores() if processes is None else processes
        self._births = Births(self._ctx, "PoolWorker")
        self._kept = tuple(initargs)  # locks in it must live as long as workers may open them
        self._native = distpool.WorkerPool(
            processes=self._processes,
            initializer=begin,
            initargs=(self._births, initializer, self._kept),
            max_tasks_per_child=maxtasksperchild,
            preload=preload,
            logging=carried.is_logging(),
            wait=False,
        )
        self._callbacks = self._native.in_turn()
        self._streams: weakref.WeakSet[distpool.ResultStream] = weakref.WeakSet()
        self._ended = threading.Event()  # its workers are gone
        self._is_terminated = False
        self._cache: dict[int, Any] = {}  # results that are not there, by what stands for them
        self._os_pid = os.getpid()
        self._state = RUN
        children.pools.add(self)

    def __del__(self, _warn: Any = warnings.warn, RUN: str = RUN) -> None:
        # The workers end by themselves when the native pool is collected.
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} state={self._state} pool_size={self._processes}>"

    def __reduce__(self) -> Any:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def _check_running(self) -> None:
        if self._state != RUN:
            raise ValueError("Pool not running")

    # -- one call ------------------------------------------------------------------------------------------------

    def apply(self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = {}) -> Any:
        """Return ``func(*args, **kwds)``, computed by a worker; waits for it. Ctrl-C stops the call."""
        result = self.apply_async(func, args, kwds)
        try:
            return result.get()
        except KeyboardInterrupt:
            if not result.ready():  # else it is the call's own
                result.is_unwanted = True
                self._native.stop_call(result)
            raise

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> ApplyResult:
        """Begin ``func(*args, **kwds)`` in a worker; return its result to be.

        When it is there, ``callback(value)`` or ``error_callback(exception)`` is called, in one thread for all results
        of the pool, before the result says that it is ready. Arguments are pickled now.
        """
        self._check_running()
        result = ApplyResult(self, callback, error_callback)
        self._cache[id(result)] = result
        try:
            self._native.submit_into(result, func, *args, **kwds)
        except Exception as error:  # as the standard library, which pickles in another thread: the result's error
            result.resolve(_Failure(error))
        if callback is not None or error_callback is not None:
            self._native.attend()
        return result

    # -- maps ----------------------------------------------------------------------------------------------------

    def map(self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None) -> list[Any]:
        """Return ``[func(x) for x in iterable]``, computed by the workers.

        ``chunksize`` tasks travel together; None: as many as measuring says. All tasks are done before the first
        failure, in input order, is raised.
        """
        return self._map(self._native.map, func, iterable, chunksize)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """Return ``[func(*args) for args in iterable]``; otherwise as ``map``."""
        return self._map(self._native.starmap, func, iterable, chunksize)

    def _map(
        self, do: Callable[..., list[Any]], func: Any, iterable: Iterable[Any], chunksize: int | None
    ) -> list[Any]:
        self._check_running()
        try:
            return do(func, iterable, batch_size=_batch_size(chunksize), fail_fast=False)
        except (distpool.RemoteException, distpool.ProcessExitedException, TypeError) as error:
            failure = failure_of(error)
        raise failure

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        """Begin ``map``; return its result to be. Callbacks as for ``apply_async``."""
        return self._map_aside(func, iterable, chunksize, callback, error_callback, star=False)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callback = None,
        error_callback: Callback = None,
    ) -> MapResult:
        """Begin ``starmap``; return its result to be. Callbacks as for ``apply_async``."""
        return self._map_aside(func, iterable, chunksize, callback, error_callback, star=True)

    def _map_aside(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callback,
        error_callback: Callback,
        star: bool,
    ) -> MapResult:
        self._check_running()
        batch_size = _batch_size(chunksize)
        # What an input of unknown length raises comes now, as in the standard library.
        items: Any = iterable if hasattr(iterable, "__len__") else list(iterable)
        result = MapResult(self, callback, error_callback)
        self._cache[id(result)] = result
        try:
            done = self._native.map_into(result, func, items, star=star, batch_size=batch_size)
            result.count(len(items), chunksize, done)
        except TypeError as error:  # the function cannot be pickled
            result.resolve(_Failure(error))
        if callback is not None or error_callback is not None:
            self._native.attend()
        return result

    # -- iterators -----------------------------------------------------------------------------------------------

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> IMapIterator:
        """Begin a map; return an iterator over the results in input order, with ``next(timeout)``.

        The input is read ``buffersize`` chunks ahead of who takes results (None: a few messages' worth for each
        worker), and to its end once the pool is closed or the iterator dropped. ``chunksize`` tasks travel together;
        None: as many as measuring says.
        """
        return IMapIterator(
            self, self._stream(func, iterable, chunksize, buffersize, ordered=True), buffersize is not None
        )

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        buffersize: int | None = None,
    ) -> IMapUnorderedIterator:
        """As ``imap``, but results come as soon as they are there."""
        return IMapUnorderedIterator(
            self, self._stream(func, iterable, chunksize, buffersize, ordered=False), buffersize is not None
        )

    def _stream(
        self, func: Any, iterable: Iterable[Any], chunksize: int | None, buffersize: int | None, ordered: bool
    ) -> distpool.ResultStream:
        self._check_running()
        batch_size = _batch_size(chunksize)
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        may_wait = not hasattr(iterable, "__len__")  # for what comes of the results
        if chunksize is not None and chunksize > 1:
            iterable = _whole_chunks(iter(iterable), chunksize)
        try:
            stream = self._native.stream(
                func,
                iterable,
                ordered=ordered,
                buffersize="auto" if buffersize is None else buffersize * (chunksize or 1),
                aside=may_wait,
                batch_size=batch_size,
            )
        except TypeError as error:
            raise failure_of(error) from None
        self._streams.add(stream)
        return stream

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more work; the workers end when all of it is done, which ``join`` waits for."""
        if self._state == RUN:
            self._state = CLOSE
            # No thread starts any more, and distpool's exit handler has ended the workers; or they are another's.
            if sys.is_finalizing() or self._is_copy:
                return self._has_ended()
            for stream in list(self._streams):
                stream.hurry()
            self._native.run_aside(self._end)

    def _end(self) -> None:
        try:
            self._until_started()  # for an initializer that is all that the pool was made for
            self._native.close()
            self._callbacks.wait()
        finally:
            self._has_ended()

    def terminate(self) -> None:
        """End the workers at once, by SIGTERM. Calls that are not done fail; their callbacks are not called."""
        self._state = TERMINATE
        self._is_terminated = True
        if not sys.is_finalizing():
            self._native.terminate(signal.SIGTERM)
        self._has_ended()

    def _has_ended(self) -> None:
        children.pools.discard(self)
        self._ended.set()
        self._births.forget()

    def join(self) -> None:
        """Wait until all is done and the workers have ended, after ``close`` or ``terminate``; else ValueError."""
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if not self._is_copy:
            self._ended.wait()

    @property
    def _is_copy(self) -> bool:
        """True in a process that the user's program has forked: what was submitted is done for its parent."""
        return self._os_pid != os.getpid()

    # -- what programs look at, although it is private ---------------------------------------------------------------

    @property
    def _pool(self) -> list[children.PoolWorker]:
        """The workers as process objects."""
        return self._until_started()

    def _until_started(self) -> list[children.PoolWorker]:
        """Wait until all places are taken, unless it is too late for that; return the workers."""
        return self._births.processes(
            self._native, self._processes, lambda: self._is_terminated or self._ended.is_set()
        )

    @property
    def _taskqueue(self) -> TaskQueue:
        return TaskQueue(self)

    def _repopulate_pool(self) -> None:
        """The native pool does that by itself."""


class _Failure(distpool.Outcome):
    """A call that was never sent."""

    ok = False

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def value(self) -> Any:
        """Raise the reason."""
        raise self._error


def _batch_size(chunksize: int | None) -> int | str:
    if chunksize is None:
        return "auto"
    if chunksize < 1:
        raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
    return chunksize


def _whole_chunks(items: Iterator[Any], size: int) -> Iterator[Any]:
    """The items, each chunk read as a whole: where the input raises, what belongs to the same chunk is not done."""
    while chunk := list(islice(items, size)):
        yield from chunk


def __getattr__(name: str) -> Any:
    return getattr(standard, name)
