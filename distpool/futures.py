"""The future of one task in a pool: a ``Future`` that can also be awaited, called back and cancelled.

Made by ``pool.submit``. Completed on the reading thread, which does no more than store the outcome and wake: an outcome
that may run strange code when opened stays unopened until somebody asks for it, and callbacks run in another thread,
one after the other (``turns``).
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
from distpool.turns import InTurn

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


class Giver(Protocol):
    """What a future needs of the pool that its task was given to."""

    callbacks: InTurn

    def stop_call(self, promise: Promise) -> None:
        """Interrupt the task where it runs."""

    def recall(self, promise: Promise) -> None:
        """Ask for the task back, and wait for the answer: ``come_back`` is called before, if it has not begun."""


class TaskFuture(Future[T], Generic[T]):
    """The result of one task, when it is there. Owned by the process that submitted it.

    Has the methods of ``concurrent.futures.Future`` (``result``, ``exception``, ``done``, ``cancel``,
    ``add_done_callback``) and of a distpool ``Future`` (``fetch``, ``wait``, ``isready``), and can be awaited in
    asyncio.
    """

    __slots__ = (
        "_callbacks",
        "_giver",
        "_is_called_back",
        "_is_kept_back",
        "_outcome",
        "_state",
        "_waiters",
        "is_away",
    )

    def __init__(self, member: Member, giver: Giver) -> None:
        self._member = member
        self._claim = None  # it is kept in the store only once it was sent somewhere
        self.where = member.pid
        self.rrid = self.whence, self.id = member.next_rrid()
        self._giver = giver
        self.is_away = False  # it is being sent to a worker, or there; set under _lock, for cancelling looks at it
        self._is_kept_back = False  # somebody would cancel it: should it come back it is not sent again; under _lock
        self._outcome: Any = None  # the value, or an Outcome that is opened when asked for
        self._state = _PENDING
        # None until somebody waits: most futures are done before. Emptied under _lock, which all futures share: it is
        # held for an instant, and a lock for each of a million futures would cost more than it saves.
        self._waiters: list[Waiter | _Aside] | None = None
        self._callbacks: list[Callable[[TaskFuture[Any]], object]] | None = None
        self._is_called_back = False  # it is done, and those who wait for it hear of that after its callbacks

    # -- told by dispatch ----------------------------------------------------------------------------------------

    def leave(self) -> bool:
        """The task is about to be sent; False if it was cancelled, and shall not."""
        with _lock:
            self.is_away = self._state == _PENDING and not self._is_kept_back
            return self.is_away

    def come_back(self) -> None:
        """The task has not begun, and can be cancelled again."""
        self.is_away = False

    def resolve(self, outcome: Any) -> None:
        """Store the value, or an Outcome, and wake whoever waits. Only the first call counts."""
        self._settle(_DONE, outcome)

    def _settle(self, state: int, outcome: Any, unless_away: bool = False) -> bool:
        with _lock:
            self._is_kept_back = False
            if self._state != _PENDING or (unless_away and self.is_away):
                return False
            self._outcome = outcome
            self._is_called_back = self._callbacks is not None
            self._state = state
            callbacks, self._callbacks = self._callbacks, None
        if callbacks:
            self._giver.callbacks.add(lambda: self._call_back(callbacks), then=self._tell)
        elif self._waiters is not None:
            self._tell()
        return True

    def _tell(self) -> None:
        """Wake whoever waits."""
        with _lock:
            self._is_called_back = False
            waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            waiter.complete()

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
        waiter: Waiter
        if (self._state != _PENDING and not self._is_called_back) or not self._have_told(waiter := Waiter()):
            return
        try:
            deadline = None if timeout is None else Deadline(timeout)
            if not self._member.reader.wait(waiter, deadline, eager=True) and self._state == _PENDING:
                raise TimeoutError(f"{self!r} is not done after {timeout} seconds")
        finally:
            if not waiter.done:
                with _lock:
                    self._waiters = [other for other in self._waiters or () if other is not waiter] or None

    def _have_told(self, waiter: Waiter | _Aside) -> bool:
        """Have somebody told when it is done and called back; False when that is so, or is what this thread does."""
        with _lock:
            if self._state != _PENDING and (not self._is_called_back or self._giver.callbacks.is_here):
                return False
            self._waiters = [*(self._waiters or ()), waiter]
            return True

    def put(self, value: T) -> Future[T]:
        """Not for these: the value comes from the task. Raises RuntimeError."""
        raise RuntimeError(f"{self!r} gets its value from its task; nothing can be put into it")

    def add_done_callback(self, callback: Callable[[TaskFuture[T]], object]) -> None:
        """Call ``callback(self)`` when done, in a thread of the pool's; at once in this thread if it is done.

        The callbacks of a pool's futures run one after the other, in the order in which these were done. Those who wait
        for a future hear of its end when its callbacks have been made, but for slow ones wait 20 ms at most; the end of
        the pool, when it waits for work, waits for all callbacks.
        """
        with _lock:
            is_pending = self._state == _PENDING
            if is_pending and self._callbacks is None:
                self._callbacks = [callback]
                self._giver.callbacks.expect()
            elif is_pending:
                self._callbacks = [*(self._callbacks or ()), callback]
        if is_pending:
            self._member.reader.nudge()  # whoever is called back does not wait, and so does not read
        else:
            self._call_back([callback])

    def cancel(self, running: bool = False) -> bool:
        """Take the task back if it has not begun; with ``running=True``, also stop it if it has.

        Returns whether it is cancelled. If it was sent ahead to a worker, that is asked to give it back, which takes a
        fraction of a millisecond; when there is no answer for a second (C code that holds the interpreter), and the
        worker's notes do not tell either, it counts as begun. A running task gets a KeyboardInterrupt, and its worker
        is killed and replaced when it does not stop within a second.
        """
        try:
            if self.is_away and not running and self._state == _PENDING:
                self._is_kept_back = True
                self._giver.recall(self)
        finally:  # also after Ctrl-C: what is kept back belongs to nobody else
            is_ours = self._settle(_CANCELLED, None, unless_away=not running)
        if is_ours and self.is_away:
            self._giver.stop_call(self)
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

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(wake)

        if self._have_told(_Aside(self._member, tell)):
            self._member.reader.nudge()
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
            if self._have_told(_Aside(self._member, self.publish)):
                self._member.reader.nudge()
            else:
                self.publish()
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


class _Aside:
    """In the place of a waiter: what is to be done, in a thread of its own, when the future is done."""

    __slots__ = ("_call", "_member")

    def __init__(self, member: Member, call: Callable[[], object]) -> None:
        self._member = member
        self._call = call

    def complete(self) -> None:
        self._member.threads.run(self._call)


_lock = threading.Lock()
