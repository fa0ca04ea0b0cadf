"""The future of one task in a pool: a ``Future`` that can also be awaited, called back and cancelled.

Made by ``pool.submit``. Completed on the reading thread, which does no more than store the outcome and wake: an outcome
that may run strange code when opened stays unopened until somebody asks for it, and callbacks run in a thread of their
own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator

from distpool.bundles import Item
from distpool.errors import remote_exception
from distpool.light import Any, Final, Generic, Protocol, TypeVar
from distpool.member import Member
from distpool.pickling import note_ref
from distpool.refs import Future, future_from
from distpool.transport import Deadline, Waiter

T = TypeVar("T")

_PENDING: Final = 0
_DONE: Final = 1
_CANCELLED: Final = 2


class Outcome:
    """In the place of a value: what became of a task, to be looked at by whoever asked for it."""

    __slots__ = ()
    ok = True  # False when it is an exception

    def value(self) -> Any:
        """Return the value or raise."""
        raise NotImplementedError

    def exception(self) -> BaseException:
        """Return the exception; only when ``ok`` is False."""
        try:
            self.value()
        except BaseException as error:  # it is data here
            return error
        raise AssertionError("an outcome that is no exception was asked for one")


class Raised(Outcome):
    """The task ended with this exception, which is here already."""

    __slots__ = ("error",)
    ok = False

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def value(self) -> Any:
        """Raise it."""
        raise self.error


class Unopened(Outcome):
    """The task's value or exception as it came, pickled. Opened when asked for, as often as asked for."""

    __slots__ = ("_claims", "_item", "_member", "_pid", "ok")

    def __init__(self, member: Member, pid: int, item: Item, claims: object) -> None:
        self._claims = claims  # on the references in it; they live as long as it may be opened
        self._member = member
        self._pid = pid
        self._item = item
        self.ok = item.ok

    def value(self) -> Any:
        """Open it: return the value, or raise the exception as a RemoteException."""
        with self._member.opening():
            result = self._item.open()
        if self.ok:
            return result
        raise remote_exception(self._pid, result) from result.ex


class Promise(Protocol):
    """Where the outcome of one call goes: what ``WorkerPool.submit_into`` keeps its word to. ``TaskFuture`` is one.

    All four are called by the pool, in any thread, also in the one that reads for everybody: they must not block, nor
    run code of others.
    """

    def leave(self) -> bool:
        """The call is about to be sent to a worker; False: it was cancelled, and shall not be."""

    def come_back(self) -> None:
        """The call has not begun, and waits in the pool again."""

    def cancelled(self) -> bool:
        """True when nobody wants the outcome: if the call is being sent just now, it is stopped."""

    def resolve(self, outcome: Any, /) -> None:
        """The call has ended: with this value, or with an ``Outcome`` that tells more when it is asked."""


class TaskFuture(Future[T], Generic[T]):
    """The result of one task, when it is there. Owned by the process that submitted it.

    Has the methods of ``concurrent.futures.Future`` (``result``, ``exception``, ``done``, ``cancel``,
    ``add_done_callback``) and of a distpool ``Future`` (``fetch``, ``wait``, ``isready``), and can be awaited in
    asyncio.
    """

    __slots__ = ("_callbacks", "_outcome", "_state", "_stop", "_waiters", "is_away")

    def __init__(self, member: Member, stop: Callable[[TaskFuture[Any]], object]) -> None:
        self._member = member
        self._claim = None  # it is kept in the store only once it was sent somewhere
        self.where = member.pid
        self.rrid = self.whence, self.id = member.next_rrid()
        self._stop = stop  # interrupts the task where it runs
        self.is_away = False  # it is being sent to a worker, or there; set under _lock, for cancelling looks at it
        self._outcome: Any = None  # the value, or an Outcome that is opened when asked for
        self._state = _PENDING
        # None until somebody waits: most futures are done before. Emptied under _lock, which all futures share: it is
        # held for an instant, and a lock for each of a million futures would cost more than it saves.
        self._waiters: list[Waiter] | None = None
        self._callbacks: list[Callable[[TaskFuture[Any]], object]] | None = None

    # -- told by dispatch ----------------------------------------------------------------------------------------

    def leave(self) -> bool:
        """The task is about to be sent; False if it was cancelled, and shall not."""
        with _lock:
            self.is_away = self._state == _PENDING
            return self.is_away

    def come_back(self) -> None:
        """The task has not begun, and can be cancelled again."""
        self.is_away = False

    def resolve(self, outcome: Any) -> None:
        """Store the value, or an Outcome, and wake whoever waits. Only the first call counts."""
        self._settle(_DONE, outcome)

    def _settle(self, state: int, outcome: Any, unless_away: bool = False) -> bool:
        with _lock:
            if self._state != _PENDING or (unless_away and self.is_away):
                return False
            self._outcome = outcome
            self._state = state
            waiters, self._waiters = self._waiters, None
            callbacks, self._callbacks = self._callbacks, None
        for waiter in waiters or ():
            waiter.complete()
        if callbacks:
            self._member.threads.run(lambda: self._call_back(callbacks))
        return True

    def _call_back(self, callbacks: list[Callable[[TaskFuture[Any]], object]]) -> None:
        for callback in callbacks:
            try:
                callback(self)
            except Exception:  # as concurrent.futures: reported, and no harm to the others
                import logging

                logging.getLogger("distpool").exception("a callback of %r raised", self)

    # -- asked by users ------------------------------------------------------------------------------------------

    def done(self) -> bool:
        """True when there is a result, an exception, or it was cancelled."""
        return self._state != _PENDING

    def cancelled(self) -> bool:
        """True when it was cancelled in time."""
        return self._state == _CANCELLED

    def isready(self) -> bool:
        """Same as ``done``."""
        return self._state != _PENDING

    def result(self, timeout: float | None = None) -> T:
        """Wait for the task and return what it returned.

        Raises what it raised as a RemoteException that is also of the original type; ProcessExitedException when its
        worker died; TimeoutError after ``timeout`` seconds; concurrent.futures.CancelledError when it was cancelled.
        """
        self._until_done(timeout)
        if self._state == _CANCELLED:
            from concurrent.futures import CancelledError  # rarely needed, slow to import

            raise CancelledError(f"{self!r} was cancelled before it had a result")
        outcome = self._outcome
        if isinstance(outcome, Outcome):
            value = outcome.value()
            with _lock:  # every thread gets the same object
                if self._outcome is outcome:
                    self._outcome = value
        return self._outcome  # type: ignore[no-any-return]

    def fetch(self, timeout: float | None = None) -> T:
        """Same as ``result``."""
        return self.result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task and return what it raised, None when it returned."""
        self._until_done(timeout)
        try:
            self.result()
        except BaseException as error:  # it is data here
            if self._state == _CANCELLED or isinstance(error, KeyboardInterrupt):
                raise
            return error
        return None

    def wait(self, timeout: float | None = None) -> TaskFuture[T]:
        """Wait until it is done, at most ``timeout`` seconds; raises as ``result`` does. Returns the future."""
        self._until_done(timeout)
        if self._state == _CANCELLED or (isinstance(self._outcome, Outcome) and not self._outcome.ok):
            self.result()
        return self

    def _until_done(self, timeout: float | None) -> None:
        if self._state == _PENDING:
            waiter = Waiter()
            with _lock:
                if self._state == _PENDING:
                    self._waiters = [*(self._waiters or ()), waiter]
                else:
                    waiter.done = True
            try:
                deadline = None if timeout is None else Deadline(timeout)
                if not self._member.reader.wait(waiter, deadline, eager=True):
                    raise TimeoutError(f"{self!r} is not done after {timeout} seconds")
            finally:
                if not waiter.done:
                    with _lock:
                        self._waiters = [other for other in self._waiters or () if other is not waiter] or None

    def put(self, value: T) -> Future[T]:
        """Not for these: the value comes from the task. Raises RuntimeError."""
        raise RuntimeError(f"{self!r} gets its value from its task; nothing can be put into it")

    def add_done_callback(self, callback: Callable[[TaskFuture[T]], object]) -> None:
        """Call ``callback(self)`` when done, in a thread of distpool's; at once in this thread if it is done."""
        with _lock:
            if self._state == _PENDING:
                self._callbacks = [*(self._callbacks or ()), callback]
                is_pending = True
            else:
                is_pending = False
        if is_pending:
            self._member.reader.nudge()  # whoever is called back does not wait, and so does not read
        else:
            self._call_back([callback])

    def cancel(self, running: bool = False) -> bool:
        """Take the task back if it has not been sent to a worker yet; with ``running=True``, also stop it there.

        Returns whether it is cancelled. A running task gets a KeyboardInterrupt, and its worker is killed and replaced
        when it does not stop within a second.
        """
        is_ours = self._settle(_CANCELLED, None, unless_away=not running)
        if is_ours and self.is_away:
            self._stop(self)
        return self._state == _CANCELLED

    def running(self) -> bool:
        """Whether it is done is all that is known without asking its worker: False."""
        return False

    def __await__(self) -> Generator[Any, None, T]:
        """Wait in asyncio; cancelling the waiting task cancels this one, and stops it where it runs."""
        import asyncio  # a user who awaits has it

        loop = asyncio.get_running_loop()
        waiting = loop.create_future()

        def wake() -> None:
            if not waiting.done():
                waiting.set_result(None)

        def tell(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(wake)

        self.add_done_callback(tell)
        try:
            yield from waiting
        except asyncio.CancelledError:
            self._member.threads.run(lambda: self.cancel(running=True))
            raise
        return self.result(0)

    def __repr__(self) -> str:
        state = ("pending", "done", "cancelled")[self._state]
        return f"TaskFuture({state}, id={self.id})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as an ordinary Future that this process owns."""
        self._check_travels()
        if self._claim is None:
            self._claim = self._member.books.made(self.where, self.rrid)
            self._member.store.create(self.rrid)
            self.add_done_callback(_publish)
        note_ref(self._claim)
        return future_from, (self.where, *self.rrid)

    def publish(self) -> None:
        """Write the outcome where other processes look for it."""
        try:
            value = self.result(0)
        except BaseException as error:  # it travels on as what it is
            self._member.store.set_result(self.rrid, False, error)
        else:
            self._member.store.set_result(self.rrid, True, value)


def _publish(future: TaskFuture[Any]) -> None:
    future.publish()


_lock = threading.Lock()
