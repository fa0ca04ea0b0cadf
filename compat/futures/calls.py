"""The future of one call: a real ``concurrent.futures.Future``, filled by the thread that reads the worker's answer.

Made by ``ProcessPoolExecutor.submit``; to the pool it is a promise (``WorkerPool.submit_into``). Life::

    PENDING --leave--> RUNNING --resolve--> FINISHED        RUNNING means: sent to a worker; some milliseconds of short
       |    <-come_back--  |                                 calls are sent ahead, and come back if they are stuck
       |                   |                                 there, or when they shall be cancelled
       +------- cancel ----+--> CANCELLED_AND_NOTIFIED       (a call that has begun: if the executor was made for it)

A thread in ``result()`` reads for itself. What ``concurrent.futures.wait`` and ``as_completed`` need (a condition and a
list of waiters, some 1.5 KB) is made when they look for it: most futures never are looked at that way. An outcome that
may run the code of strangers is opened by whoever asks for it.
"""

from __future__ import annotations

import concurrent.futures
import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING

import distpool

from .failures import failure_of, opened

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any, TypeVar

    from .engine import Engine

    T = TypeVar("T")

_OPEN = (PENDING, RUNNING)
_CANCELLED = (CANCELLED, CANCELLED_AND_NOTIFIED)

# Protects the state of all futures, and that what is made when needed is made once. Held for an instant; a lock of each
# future's own would cost more than they all wait for this one. Taken after a future's condition, never before.
_lock = threading.Lock()


class _AtNeed:
    """An attribute of the standard library's future that is made when somebody looks for it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, future: CallFuture[Any] | None, owner: type) -> Any:
        if future is None:
            return self
        with _lock:
            made = future.__dict__.setdefault(self._name, self._make())
        future._attend()
        if future._caller is not None:  # it is done, and so will not keep ``wait`` waiting; its callbacks shall
            future._wait(None)
        return made


class CallFuture(Future["T"]):
    """A ``concurrent.futures.Future`` of a call in a ``distpool.compat.futures.ProcessPoolExecutor``.

    As the standard library's; ``wait``, ``as_completed``, ``asyncio.wrap_future`` accept it. Callbacks run one after
    the other, in a thread that does nothing else. Who waits for a future hears of its end after its callbacks, so that
    what these have counted is right; but a slow one holds back nobody for more than 20 ms.
    """

    _state = PENDING
    _result: Any = None  # the value, or an Outcome that nobody has asked for it yet
    _exception: BaseException | None = None
    _condition: Any = _AtNeed(threading.Condition)
    _waiters: Any = _AtNeed(list)
    _done_callbacks: Any = ()
    _readers: tuple[distpool.Waiter, ...] = ()  # threads that wait in result()
    _watchers: tuple[Any, ...] = ()  # the waiters of ``wait`` and ``as_completed`` that shall hear that it is done
    _is_kept_back = False  # somebody would cancel it: should it come back it is not sent again
    _caller: Engine | None = None  # makes the callbacks; after that those who wait are told
    _judge: Callable[[distpool.Outcome], BaseException] = failure_of  # of the engine, when it failed

    def __init__(self, engine: Engine) -> None:
        # Not super().__init__(): all that it sets has a value above.
        self._engine: Engine | None = engine  # until it is done: futures that are kept shall keep no workers
        with _lock:
            engine.pending += 1
            engine.submitted += 1
            self._number = engine.submitted

    # -- told by the pool --------------------------------------------------------------------------------------------

    def leave(self) -> bool:
        """It is about to be sent to a worker; False if it was cancelled."""
        with _lock:
            engine = self._engine
            if self._state != PENDING or engine is None or self._is_kept_back:
                return False
            if self._number < engine.first_taken_back:
                self._state = RUNNING
                return True
        self._take_back(engine)
        return False

    def come_back(self) -> None:
        """It has not begun, and waits again; or not even that, if the executor is shut down that way."""
        with _lock:
            engine = self._engine
            if self._state != RUNNING or engine is None:
                return
            self._state = PENDING
        if self._number >= engine.first_taken_back:
            self._take_back(engine)

    def resolve(self, outcome: Any, /) -> None:
        """Take what became of it. On the reading thread: nothing is opened, nothing of the user's runs."""
        engine = self._engine
        if engine is not None and self._end(engine, FINISHED, outcome):
            self._have_called_back(engine)

    def _take_back(self, engine: Engine) -> None:
        if self._end(engine, CANCELLED_AND_NOTIFIED, None, unless_running=True):
            self._have_called_back(engine)

    def _have_called_back(self, engine: Engine) -> None:
        """Those who wait are told, but before that callbacks are made if there are any."""
        if self._done_callbacks:
            engine.callbacks.add(self._invoke_callbacks, then=self._tell)
        else:
            self._tell()

    # -- the end of it -----------------------------------------------------------------------------------------------

    def _end(self, engine: Engine, state: str, outcome: Any, unless_running: bool = False) -> bool:
        """Be done, once; return whether it was this call. Nobody is told yet."""
        if isinstance(outcome, distpool.Outcome) and not outcome.ok:
            self._judge = engine.judge()
        with _lock:
            # What ``wait`` and ``as_completed`` hold while they look; made under the same lock as this looks for it.
            condition = self.__dict__.get("_condition")
            if condition is None and not self._settle(engine, state, outcome, unless_running):
                return False
        if condition is not None:
            with condition:
                with _lock:
                    if not self._settle(engine, state, outcome, unless_running):
                        return False
                    self._watchers = tuple(self.__dict__.get("_waiters", ()))
                condition.notify_all()
        if not engine.pending:
            engine.wake_idlers()
        return True

    def _settle(self, engine: Engine, state: str, outcome: Any, unless_running: bool) -> bool:
        """Under the lock of all."""
        self._is_kept_back = False
        if self._state not in _OPEN or (unless_running and self._state == RUNNING):
            return False
        if self._done_callbacks:
            self._caller = engine
        self._state, self._result, self._engine = state, outcome, None
        engine.pending -= 1
        return True

    def _tell(self) -> None:
        """Wake whoever waits, ``wait`` and ``as_completed`` included."""
        if not self._readers and not self._watchers and self._caller is None:
            return
        with _lock:
            self._caller = None
            readers, self._readers = self._readers, ()
            watchers, self._watchers = self._watchers, ()
        for reader in readers:
            reader.complete()
        for watcher in watchers:
            if self._state != FINISHED:
                watcher.add_cancelled(self)
            elif self._exception is not None or (isinstance(self._result, distpool.Outcome) and not self._result.ok):
                watcher.add_exception(self)
            else:
                watcher.add_result(self)

    def fail(self, error: BaseException) -> None:
        """It could not be sent at all."""
        self._exception = error
        self.resolve(None)

    # -- asked by users ----------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """True when it has a result or an exception, or was cancelled."""
        return self._state not in _OPEN

    def running(self) -> bool:
        """True when it was sent to a worker and is not done."""
        return self._state == RUNNING

    def cancelled(self) -> bool:
        """True when it was cancelled."""
        engine = self._engine
        if engine is not None and self._number >= engine.first_taken_back:
            self._take_back(engine)  # unless it has been sent
        return self._state in _CANCELLED

    def cancel(self) -> bool:
        """Cancel it if it has not begun; return whether it is cancelled.

        If it was sent ahead to a worker, that is asked to give it back: a fraction of a millisecond, and a second at
        most (where C code holds the worker's interpreter; then it counts as begun). A call that has begun is stopped
        only if the executor was made with ``cancel_running=True``: it is interrupted, and its worker is killed and
        replaced when that does not end it within a second.
        """
        engine = self._engine
        if engine is not None:
            try:
                if self._state == RUNNING and not engine.stops_running:
                    self._is_kept_back = True
                    engine.pool.recall(self)
            finally:  # also after Ctrl-C: what is kept back belongs to nobody else
                was_running = self._state == RUNNING
                is_ours = self._end(engine, CANCELLED_AND_NOTIFIED, None, unless_running=not engine.stops_running)
            if is_ours:
                if was_running:
                    engine.pool.stop_call(self)
                if self._caller is not None:
                    self._caller.callbacks.excuse()
                self._tell()
                self._invoke_callbacks()  # in this thread, as in the standard library
        return self._state in _CANCELLED

    def result(self, timeout: float | None = None) -> T:
        """Return what the call returned, waiting at most ``timeout`` seconds for it.

        Raises what it raised, the very exception, with the worker's traceback as its cause; BrokenProcessPool when its
        worker died; ``concurrent.futures.TimeoutError``; ``concurrent.futures.CancelledError``.
        """
        try:
            self._look(timeout)
            if self._exception is not None:
                raise self._exception
            return self._result  # type: ignore[no-any-return]
        finally:
            del self  # an exception refers to this frame, and the future to the exception: no cycle

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the call raised, None when it returned; waits and raises otherwise as ``result``."""
        self._look(timeout)
        return self._exception

    def _look(self, timeout: float | None) -> None:
        """Wait until it is done, and open what it holds."""
        if self._state in _OPEN or self._caller is not None:
            self._wait(timeout)
        if self._state in _CANCELLED:
            raise CancelledError
        outcome = self._result
        if isinstance(outcome, distpool.Outcome):
            value, error = opened(outcome, self._judge)
            with _lock:  # every thread gets the same object
                if self._result is outcome:
                    self._exception, self._result = error, value

    def _wait(self, timeout: float | None) -> None:
        caller = self._caller
        engine = self._engine or caller
        if engine is None or (caller is not None and caller.callbacks.is_here):  # done just now, or for this thread
            return
        waiter = distpool.Waiter()
        with _lock:
            if self._state in _OPEN or self._caller is not None:
                self._readers = (*self._readers, waiter)
            else:
                waiter.done = True
        try:
            if not engine.pool.wait_for(waiter, timeout, eager=True) and self._state in _OPEN:
                raise concurrent.futures.TimeoutError
        finally:
            with _lock:
                self._readers = tuple(other for other in self._readers if other is not waiter)

    def _attend(self) -> None:
        """Somebody waits who does not read: let the outcome be read without delay."""
        engine = self._engine
        if engine is not None:
            engine.pool.attend()

    def _get_snapshot(self) -> tuple[bool, bool, Any, BaseException | None]:
        """Done, cancelled, result, exception: what asyncio asks from Python 3.14 on."""
        if self._state in _OPEN:
            return False, False, None, None
        if self._state in _CANCELLED:
            return True, True, None, None
        self._look(0)
        return True, False, self._result, self._exception

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Call ``fn(self)`` when it is done: at once if it is, else in a thread of the executor's."""
        with _lock:
            engine = self._engine if self._state in _OPEN else None
            if engine is not None:
                if not self._done_callbacks:
                    engine.callbacks.expect()
                self._done_callbacks = [*self._done_callbacks, fn]
        if engine is not None:
            self._attend()
        else:
            self._invoke(fn)

    def _invoke_callbacks(self) -> None:
        for callback in self._done_callbacks:
            self._invoke(callback)

    def _invoke(self, callback: Callable[[Future[T]], object]) -> None:
        try:
            callback(self)
        except BaseException as error:  # reported as by the standard library, and no harm to the others
            if isinstance(error, KeyboardInterrupt):  # the user's, in the main thread
                raise
            logging.getLogger("concurrent.futures").exception("exception calling callback for %r", self)

    def __repr__(self) -> str:
        what = ""
        if self._exception is not None:
            what = f" raised {type(self._exception).__name__}"
        elif isinstance(self._result, distpool.Outcome) and not self._result.ok:
            what = " raised an exception that nobody has looked at"
        elif self._state == FINISHED and not isinstance(self._result, distpool.Outcome):
            what = f" returned {type(self._result).__name__}"
        state = "cancelled" if self._state in _CANCELLED else self._state.lower()
        return f"<{type(self).__name__} at {id(self):#x} state={state}{what}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"cannot pickle {type(self).__name__!r} object: send its result() instead")
