"""What runs behind one executor: its pool of workers, what is pending, who is called back, how all of it ends.

Made by ``ProcessPoolExecutor``, cheap until the first call. Pending futures hold it, the executor object may be gone:
as in the standard library, what was submitted is done all the same, and the end of the program waits for it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial

import distpool

from .failures import failure_of

_engines: weakref.WeakSet[Engine] = weakref.WeakSet()  # those with a pool; for the end of the program
_is_over = False  # the program ends: nothing new begins


class Engine:
    """The pool of one executor, and all that is under way in it."""

    def __init__(self, pool: distpool.WorkerPool | None, workers: int, make: Callable[[], distpool.WorkerPool]) -> None:
        self._workers = workers
        self._make = make  # starts them, when the first call comes
        self._is_own = pool is None
        self.pool: distpool.WorkerPool = pool  # type: ignore[assignment]  # read only by what has called ready()
        self.has_begun = pool is not None
        self.is_strict = False  # a worker's death is the executor's
        self.stops_running = False  # a future's cancel() stops what runs
        self.pending = 0  # futures that are not done; protected by the lock of all futures
        self.submitted = 0  # all that ever were; likewise
        self.first_taken_back = sys.maxsize  # the number of the first that shall not begin any more, if it has not
        # Maps that are not done, and a weak reference to the iterator of each, which tells when that is dropped.
        self._streams: dict[distpool.ResultStream, object] = {}
        self._idlers: list[distpool.Waiter] = []  # threads that wait for the end of all futures; atomic appends
        self._lock = threading.Lock()  # protects what follows, and the making of the pool
        self._is_shut = False
        self._is_killed = False  # by kill_workers and the like
        self._is_copy = False  # in a process that the user's program has forked
        self._ended = threading.Event()  # the pool is closed
        self.callbacks: distpool.InTurn  # of all futures
        if pool is not None:
            self.callbacks = pool.in_turn()
            _engines.add(self)

    # -- begin ---------------------------------------------------------------------------------------------------

    def ready(self) -> distpool.WorkerPool:
        """Return the pool for one more call; its workers are started now if they have not been."""
        if _is_over:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if not self.has_begun:
            with self._lock:
                if not self.has_begun:
                    self.pool = self._make()
                    self.callbacks = self.pool.in_turn()
                    self.has_begun = True
                    _engines.add(self)
        return self.pool

    @property
    def is_running(self) -> bool:
        """True when there are workers, or soon will be."""
        return self.has_begun and not self._ended.is_set()

    def judge(self) -> Callable[[distpool.Outcome], BaseException]:
        """Return what makes of a failure, just now, what the standard library would raise."""
        why = None if self._is_killed else self.pool.broken
        return partial(failure_of, why_broken=why, is_last=self._is_killed, is_strict=self.is_strict)

    # -- maps ----------------------------------------------------------------------------------------------------

    def hold(self, stream: distpool.ResultStream, iterator: object) -> None:
        """Keep a map under way until it is done, or ``let_go``."""
        for done in [each for each in list(self._streams) if each.is_finished]:
            self._streams.pop(done, None)
        self._streams[stream] = iterator
        stream.keep(self)

    def let_go(self, stream: distpool.ResultStream) -> None:
        """Its iterator is closed."""
        self._streams.pop(stream, None)

    # -- the end -------------------------------------------------------------------------------------------------

    def wake_idlers(self) -> None:
        """Perhaps nothing is pending any more: let those look who wait for that."""
        for waiter in list(self._idlers):
            waiter.complete()

    def _wait_until_idle(self) -> None:
        """Wait until all futures are done and called back."""
        while True:
            waiter = distpool.Waiter()
            self._idlers.append(waiter)
            try:
                if not self.pending:
                    break
                self.pool.wait_for(waiter)
            finally:
                self._idlers.remove(waiter)
        self.callbacks.wait()

    def shut(self, wait: bool, cancel: bool) -> None:
        """Take no more calls; end the workers when all is done, with ``cancel`` without what has not begun.

        The first calls count as begun even while their workers start: in the standard library, too, they are running.
        """
        with self._lock:
            is_first, self._is_shut = not self._is_shut, True
        if not self.has_begun or self._is_copy:
            return
        if cancel:
            self._take_back(self._workers + 1)
        if not is_first:
            if wait:
                self._await_end()
        elif wait:
            self._end()
        else:  # not a daemon: the end of the program waits for it
            threading.Thread(target=self._end, name="distpool executor shutdown").start()

    def _take_back(self, first: int = 0) -> None:
        self.first_taken_back = first
        self.pool.sweep()
        for stream in list(self._streams):
            stream.stop(CancelledError())

    def _end(self) -> None:
        try:
            if self._is_own:
                self.pool.close()
            self._wait_until_idle()
        except KeyboardInterrupt:
            self.kill()
            raise
        finally:
            self._ended.set()

    def _await_end(self) -> None:
        self._wait_until_idle()
        if not self.callbacks.is_here:  # a callback may well be what the end waits for
            self._ended.wait()

    def disown(self) -> None:
        """Have nothing to end any more, in a forked copy of the process: the workers are its parent's."""
        self._is_copy = True
        self._lock = threading.Lock()  # some thread of the parent's may hold the old one

    def kill(self, signal: int = 9) -> None:
        """End now: what has not begun is cancelled, what runs is lost."""
        with self._lock:
            self._is_shut = self._is_killed = True
        if self.has_begun and not self._is_copy:
            self._take_back()
            if self._is_own:
                self.pool.terminate(signal)
            self._ended.set()


def _finish_all() -> None:
    """The program ends: do what was submitted, as the standard library does, unless Ctrl-C is why it ends."""
    global _is_over
    _is_over = True
    # In an interactive session the last exception may be hours old.
    is_script = not hasattr(sys, "ps1")
    is_interrupted = is_script and issubclass(getattr(sys, "last_type", None) or object, KeyboardInterrupt)
    for engine in list(_engines):
        if is_interrupted:
            engine.kill()
        else:
            engine.shut(wait=True, cancel=False)


def _forget_all() -> None:
    """A forked copy of the process has none of the workers."""
    for engine in list(_engines):
        engine.disown()
    _engines.clear()


# Before threads are joined and atexit's functions run, so that these find the work done: there the standard library's
# executors end, too. The name is private, has been the same since 3.9, and is not in what type checkers know.
getattr(threading, "_register_atexit", atexit.register)(_finish_all)
with contextlib.suppress(AttributeError):  # no fork on this system
    os.register_at_fork(after_in_child=_forget_all)
