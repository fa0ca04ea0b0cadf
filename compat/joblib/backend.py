"""``DistpoolBackend``: what joblib asks of a backend, done by a warm pool.

One backend object may serve several calls, one after the other or at once. A batch of joblib's is one task; its way::

    submit --submit_into--> pool --resolve--> finished --the listener's thread--> joblib's callback -> the next submit

The listener waits for outcomes in the pool's own way, so it is the thread that reads them: nothing is handed over.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from typing import Any

import joblib  # type: ignore[import-untyped]  # it has no types
from joblib.parallel import (  # type: ignore[import-untyped]
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)

import distpool

from ..arrays import SharedArrays
from .warm import WarmPool, warm_pool

_IDLE_SECONDS = 300.0  # as loky's workers
# What joblib hands every backend, and this one has no use for: nothing is written to files.
_NOT_NEEDED = frozenset({"temp_folder", "prefer", "require", "verbose", "context"})
_OF_POOLS = frozenset({"initializer", "initargs", "max_tasks_per_child", "preload", "output"})


class DistpoolBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """The backend "distpool" of ``joblib.parallel_config``, ``parallel_backend`` and ``Parallel``.

    As loky, joblib's own: ``n_jobs`` (-1 all cores, -2 all but one, None and 1 none beside this process),
    ``return_as`` with all its values, ``timeout``, ``pre_dispatch``, ``batch_size``, ``inner_max_num_threads``,
    ``idle_worker_timeout`` (seconds, 300), ``max_nbytes``, ``initializer`` with ``initargs``. Workers stay for the next
    call (``distpool.compat.joblib.shutdown`` ends them), and end with the program. Beyond these it takes
    ``max_tasks_per_child``, ``preload`` and ``output``, as ``distpool.WorkerPool`` does.

    Where it differs:

    - A worker that dies fails its call at once with ``concurrent.futures.process.BrokenProcessPool``, which says how it
      ended. Nothing else is lost; the next call has all its workers.
    - A call that fails, times out or is given up stops its own tasks and no others: they are interrupted
      (KeyboardInterrupt), and killed if they go on for a second.
    - Arrays of ``max_nbytes`` (1 MB) and more are in memory once, wherever in the arguments they are, and in no file.
      Tasks may write to them; each changes its own copy (joblib's ``mmap_mode="c"``; with ``mmap_mode=None`` they are
      copied from the start). They are taken as they are when the first task with them is sent. An array that is a file
      (``numpy.memmap``) is mapped again, and what tasks write to it is in the file.
    - It works in any thread, in daemonic processes, and below itself. Parallel calls within tasks run in threads, one
      level further in sequence, as under loky; but all cores (``n_jobs=-1``) are there this worker's share of them.
    - Functions of the script or notebook, lambdas and closures travel with the code they have now.

    Raises ValueError for ``n_jobs=0``, TypeError for options that nobody knows, what the initializer raised, and from
    calls what tasks raised: the original exception, with the worker's traceback as its cause.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    uses_threads = False
    supports_sharedmem = False
    default_n_jobs = -1

    def __init__(
        self, nesting_level: int | None = None, inner_max_num_threads: int | None = None, **backend_kwargs: Any
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self._own_options = backend_kwargs  # given to parallel_config, or to the constructor
        _check_options(backend_kwargs)
        self._options: dict[str, Any] = {}
        self._idle_seconds = _IDLE_SECONDS
        self._warm: WarmPool | None = None
        self._arrays = SharedArrays(None)
        self._lock = threading.Lock()  # protects the two below
        self._under_way: set[_Batch] = set()
        self._is_listening = False
        self._finished: deque[_Batch] = deque()
        self._waiter = distpool.Waiter()  # of the listener

    # -- before and after a call -----------------------------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many workers ``n_jobs`` means here; ValueError for 0."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return max(int(joblib.cpu_count()) + 1 + n_jobs, 1) if n_jobs < 0 else n_jobs

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Get ready for a call: see that there are workers. joblib calls it."""
        n_jobs = self.effective_n_jobs(n_jobs)
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        options = {**self._own_options, **options}
        _check_options(options)
        self.parallel = parallel
        idle_seconds = options.get("idle_worker_timeout")
        self._idle_seconds = _IDLE_SECONDS if idle_seconds is None else float(idle_seconds)
        of_pool = {name: value for name, value in options.items() if name in _OF_POOLS and value is not None}
        of_pool["initargs"] = tuple(of_pool.get("initargs", ()))
        self._options = {"processes": n_jobs, "env": self._environment(n_jobs), **of_pool}
        self._warm = warm_pool(self._options, self._idle_seconds)
        is_sharing = options.get("mmap_mode", "r") is not None
        self._arrays = SharedArrays(options.get("max_nbytes", 1 << 20) if is_sharing else None)
        return n_jobs

    def _environment(self, n_jobs: int) -> dict[str, str]:
        """Each worker's libraries, and Parallel calls within tasks, use their share of the cores."""
        share = str(max(int(joblib.cpu_count()) // n_jobs, 1))
        inner = self.inner_max_num_threads
        environment = {
            name: os.environ.get(name, share) if inner is None else str(inner) for name in self.MAX_NUM_THREADS_VARS
        }
        if self.TBB_ENABLE_IPC_VAR not in os.environ:
            environment[self.TBB_ENABLE_IPC_VAR] = "1"
        return {**environment, "LOKY_MAX_CPU_COUNT": share}

    def stop_call(self) -> None:
        """A call is over: arrays may have changed when the next one begins. joblib calls it."""
        self._arrays.close()

    def terminate(self) -> None:
        """The workers are not needed any more for now. joblib calls it."""
        self._arrays.close()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop the tasks of the calls that failed or were given up; the pool stays as it is. joblib calls it."""
        with self._lock:
            unwanted = [batch for batch in self._under_way if batch.is_aborted]
        for batch in unwanted:
            batch.cancel()

    # -- tasks -----------------------------------------------------------------------------------------------------

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> _Batch:
        """Have a batch of tasks run by a worker; ``callback(batch)`` is called when it is done. joblib calls it.

        What goes wrong here is the batch's failure: joblib submits from callbacks, too, where nobody would hear of it.
        """
        batch = _Batch(self._finish, callback)
        with self._lock:
            self._under_way.add(batch)
            must_listen, self._is_listening = not self._is_listening, True
        try:
            warm = batch.warm = self._begin()
            with self._arrays.active():
                warm.pool.submit_into(batch, run_batch, func)
        except Exception as error:
            batch.resolve(_Failed(_unsendable(error)))
        if must_listen:
            threading.Thread(target=self._listen, name="distpool-joblib", daemon=True).start()
        return batch

    apply_async = submit  # its name before joblib 1.5

    def _begin(self) -> WarmPool:
        while self._warm is None or not self._warm.begin():
            self._warm = warm_pool(self._options, self._idle_seconds)
        return self._warm

    def retrieve_result_callback(self, out: _Batch) -> Any:
        """Return what a batch returned, or raise what it raised. joblib calls it."""
        return out.result()

    def _finish(self, batch: _Batch) -> None:
        """A batch is done. On the reading thread."""
        self._finished.append(batch)
        self._waiter.complete()

    def _listen(self) -> None:
        """Call back for what is done, until nothing is under way. In a thread of its own."""
        while True:
            self._waiter = waiter = distpool.Waiter()  # before looking, so that what comes meanwhile is not overlooked
            try:
                batch = self._finished.popleft()
            except IndexError:
                with self._lock:
                    self._is_listening = bool(self._under_way)
                    if not self._is_listening:
                        return
                assert self._warm is not None
                self._warm.pool.wait_for(waiter)
                continue
            self._call_back(batch)

    def _call_back(self, batch: _Batch) -> None:
        with self._lock:
            self._under_way.discard(batch)
        if batch.warm is not None:
            batch.warm.done()
        try:
            batch.call_back()
        except Exception:  # joblib's own faults; whoever waits must not wait for ever for the others
            logging.getLogger("distpool").exception("a callback of joblib's raised")


class _Batch:
    """A batch under way: to joblib a future, to the pool a promise."""

    def __init__(self, finish: Callable[[_Batch], None], callback: Callable[[Any], object] | None) -> None:
        self.warm: WarmPool | None = None  # where it is
        self._finish = finish
        self._callback = callback
        self._outcome: Any = None
        # Under _lock:
        self._is_away = False
        self._is_cancelled = False
        self._is_done = False

    @property
    def is_aborted(self) -> bool:
        """Whether the call that it belongs to has been given up; joblib marks that before it tells the backend."""
        return bool(getattr(getattr(self._callback, "parallel", None), "_aborting", True))

    def call_back(self) -> None:
        """Tell joblib."""
        if self._callback is not None:
            self._callback(self)

    # -- as a promise ------------------------------------------------------------------------------------------------

    def leave(self) -> bool:
        """It is about to be sent; False if it was cancelled."""
        with _lock:
            self._is_away = not self._is_cancelled
            return self._is_away

    def come_back(self) -> None:
        """It has not begun, and waits again."""
        with _lock:
            self._is_away = False
            is_over = self._is_cancelled
        if is_over:
            self.resolve(_Failed(CancelledError()))

    def cancelled(self) -> bool:
        """True when nobody wants it any more."""
        return self._is_cancelled

    def resolve(self, outcome: Any, /) -> None:
        """Take what became of it; only the first counts."""
        with _lock:
            was_done, self._is_done = self._is_done, True
        if not was_done:
            self._outcome = outcome
            self._finish(self)

    def cancel(self) -> None:
        """Do not begin it, or stop it where it runs."""
        with _lock:
            self._is_cancelled = True
            is_away = self._is_away
        if not is_away:
            self.resolve(_Failed(CancelledError()))
        elif self.warm is not None:
            self.warm.pool.stop_call(self)

    # -- as a future -------------------------------------------------------------------------------------------------

    def result(self) -> Any:
        """Return its results, once, or raise what it raised."""
        outcome, self._outcome = self._outcome, None
        if not isinstance(outcome, distpool.Outcome):
            return outcome
        if outcome.ok:
            return outcome.value()
        error = outcome.exception()
        if isinstance(error, distpool.RemoteException):
            original = error.unwrap()
            original.__cause__ = _RemoteTraceback(error.captured.traceback)  # type: ignore[arg-type]  # it takes text
            raise original
        if isinstance(error, distpool.ProcessExitedException):
            told = f"{error.what_happened()}; this call of Parallel fails, the next has all its workers"
            raise BrokenProcessPool(told) from error
        raise error


class _Failed(distpool.Outcome):
    """The outcome of a batch that never got to a worker."""

    ok = False

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def value(self) -> Any:
        raise self._error


_lock = threading.Lock()  # protects the states of batches; held for an instant


def _unsendable(error: Exception) -> Exception:
    """What cannot be pickled is a PicklingError to users of joblib."""
    if not isinstance(error, TypeError) or error.__cause__ is None:
        return error
    told = pickle.PicklingError(str(error))
    told.__cause__ = error
    return told


def run_batch(batch: Callable[[], Any]) -> Any:
    """In the worker."""
    return batch()


def _check_options(options: dict[str, Any]) -> None:
    known = _NOT_NEEDED | _OF_POOLS | {"idle_worker_timeout", "max_nbytes", "mmap_mode"}
    for name in options:
        if name not in known:
            raise TypeError(f'the joblib backend "distpool" has no option {name}=; it takes {sorted(known)}')
