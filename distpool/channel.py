"""A bounded, closable queue inside one process: what a `Future` or `RemoteChannel` keeps its items in.

Used by the store and by anybody. Any thread may enter. What this room adds to the desk behind a channel (`desk`) is the
blocking form, the same requests with a lock to sleep on; the end; copies and text.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator

from distpool.desk import NOTHING, Desk, Replies, Ticket, deliver
from distpool.errors import ChannelClosedError
from distpool.light import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
D = TypeVar("D")


class Channel(Desk[T]):
    """A first-in first-out queue between threads, with a limit and an end.

    It stays in its process. Pickled, it arrives elsewhere as an independent copy with the same items; to share one
    between processes, use `RemoteChannel`. An empty channel is false, as every empty container.

    ``timeout`` is in seconds everywhere: None waits for ever, 0 only looks. Each method raises `ChannelClosedError`, or
    what `close` was given, when what it waits for cannot happen any more, and TimeoutError when it did not happen in
    time; then nothing was put and nothing taken. The same holds for a wait that Ctrl-C interrupts.

    Args:
        size: how many items it holds before `put` waits. 0: none, each put waits for its take (a rendezvous).
            ``math.inf``: no limit. ValueError if negative or no whole number.

    Julia: ``Channel{Any}(size)``; without element types. Each ``try_`` form is its namesake without the wait.

    >>> channel = Channel(2)
    >>> channel.put("a").put("b").fetch()
    'a'
    >>> channel.try_put("c"), channel.take(), channel.try_put("c")
    (False, 'a', True)
    >>> channel.close()
    >>> list(channel), channel.isopen()
    (['b', 'c'], False)
    """

    def __init__(self, size: int | float = 0) -> None:
        if not size >= 0 or (size != math.inf and size != int(size)):  # "not >=" catches NaN too
            raise ValueError(f"the size of a channel is 0, a positive whole number or math.inf, not {size!r}")
        super().__init__(size, (), is_open=True, failure=None)

    # -- the blocking form

    def put(self, value: T, timeout: float | None = None) -> Self:
        """Adds an item at the end, the object itself; waits while the channel is full, at size 0 until it is taken.

        Returns the channel. Julia: ``put!``, which returns the value.
        """
        if not self.try_put(value):
            self._wait_for("put", value, timeout)
        return self

    def take(self, timeout: float | None = None) -> T:
        """Removes and returns the first item; waits while there is none. First come, first served. Julia: ``take!``."""
        value = self.try_take(NOTHING)
        return self._wait_for("take", None, timeout) if value is NOTHING else value

    def fetch(self, timeout: float | None = None) -> T:
        """Returns the first item and leaves it; waits while there is none. RuntimeError at size 0: none can be left."""
        value = self.try_fetch(NOTHING)
        return self._wait_for("fetch", None, timeout) if value is NOTHING else value

    def wait(self, timeout: float | None = None) -> Self:
        """Waits until an item is there (at size 0: somebody who puts one), and returns the channel."""
        if not self.isready():
            self._wait_for("wait", None, timeout)
        return self

    def _wait_for(self, op: str, value: Any, timeout: float | None) -> Any:
        if timeout is not None and timeout <= 0 and op != "take_many":  # the others have looked
            raise TimeoutError(f"{op} would have to wait at {self!r}")
        waiter = _Waiter()
        ticket = Ticket(op, value, waiter.answer)
        try:
            self._enter(ticket)
            answered = waiter.wait(timeout)
        except BaseException:  # KeyboardInterrupt, or what else a signal handler raises
            # If it cannot be withdrawn and was parked, its answer is under way in another thread.
            answered = not self.withdraw(ticket) and waiter.wait(None if ticket.parked else 0)
            if answered and waiter.ok and op in ("take", "take_many"):
                for item in reversed(waiter.value if op == "take_many" else [waiter.value]):
                    self.put_back(item)
            raise
        if not answered:
            if self.withdraw(ticket):
                raise TimeoutError(f"{op} waited {timeout} s at {self!r}")
            waiter.wait(None)  # the answer won the race and is under way
        if not waiter.ok:
            raise waiter.value
        return waiter.value

    def put_many(self, items: Iterable[T]) -> Self:
        """Adds several items, one after the other; waits while the channel is full. Returns the channel.

        Items of others may come between. If the channel is closed meanwhile, those that were in by then stay in.

        >>> Channel(10).put_many("abc").take_many(10)
        ['a', 'b', 'c']
        """
        self._wait_for("put_many", deque(items), None)
        return self

    def take_many(self, n: int, timeout: float | None = None) -> list[T]:
        """Waits for an item, then removes and returns those that are there, the first ``n`` at most."""
        check_number(n)
        return self._wait_for("take_many", n, timeout)  # type: ignore[no-any-return]

    # -- without waiting

    def try_put(self, value: T) -> bool:
        """Adds an item if that needs no waiting; False otherwise."""
        with self._lock:
            if not self._is_open:
                raise self._closed_error()
            replies = self._arrivals() if self._inboxes else []
            if self._putters:
                replies += self._admit()  # they come first
            placed = False
            if not self._putters and (self._takers or self._has_room()):
                more, placed = self._place(value)
                replies += more
            is_due = self._shelf is not None and self._is_stocking_due()
        if replies:
            deliver(replies)
        if is_due:
            self.stock()
        return placed

    def try_take(self, default: D = None) -> T | D:  # type: ignore[assignment]
        """Removes and returns the first item, or returns ``default`` if there is none yet."""
        with self._lock:
            # What has come stands behind what is here.
            replies = self._arrivals() if self._inboxes and not self._items else []
            value, more = self._pop()
            if value is NOTHING:
                value = self._nothing_yet(default)
        if replies or more:
            deliver(replies + more)
        return value  # type: ignore[no-any-return]

    def try_fetch(self, default: D = None) -> T | D:  # type: ignore[assignment]
        """Returns the first item, or ``default`` if there is none yet."""
        with self._lock:
            if self.size == 0:
                raise self._unbuffered_error()
            replies = self._arrivals()
            value = self._first()
            if value is NOTHING:
                value = self._nothing_yet(default)
        deliver(replies)
        return value  # type: ignore[no-any-return]

    def _nothing_yet(self, default: D) -> D:
        """Under the lock. A closed channel has no arrivals whose replies an error could cost."""
        if not self._is_open:
            raise self._closed_error()
        return default

    def isready(self) -> bool:
        """True if an item is there (at size 0: somebody waits in `put`). The next moment it may be somebody else's."""
        with self._lock:
            replies = self._arrivals()
            is_ready = self._has_item()
        deliver(replies)
        return is_ready

    def isempty(self) -> bool:
        """The opposite of `isready`; it removes nothing."""
        return not self.isready()

    def isopen(self) -> bool:
        """False once `close` was called, even if items remain."""
        return self._is_open

    def __len__(self) -> int:
        with self._lock:
            replies = self._arrivals()
            count = self._count()
        deliver(replies)
        return count

    def __iter__(self) -> Iterator[T]:
        """Takes items until the channel is closed and empty. What else `close` was given is raised at the end."""
        while True:
            try:
                value = self.take()
            except ChannelClosedError:
                return
            yield value

    # -- the end

    def close(self, exc: BaseException | None = None) -> None:
        """Accepts no more items; those inside can still be taken. Whoever waits gets ``exc``, or `ChannelClosedError`.

        So does whoever would have to wait later, and who puts. Closing again changes nothing.
        """
        if exc is not None and not isinstance(exc, BaseException):
            raise TypeError(f"close() takes an exception or nothing, not {exc!r}")
        with self._lock:
            if not self._is_open:
                return
            for inbox in self._inboxes:
                inbox.shut()
            # What others have put before is in, and who has found room by what others took.
            replies: Replies = self._arrivals()
            replies += self._admit()
            self._is_open = False
            if exc is not None:
                self._failure, self._failure_traceback = exc, exc.__traceback__
            for queue in (self._takers, self._watchers, self._putters):
                replies += [(ticket, False, self._closed_error()) for ticket in queue]
                queue.clear()
        deliver(replies)

    def bind(self, task: Any) -> Self:
        """Closes the channel when ``task`` ends, with its error if it failed. Returns the channel.

        Args:
            task: a future (anything with ``add_done_callback``) or a ``threading.Thread``. Bind a thread before it
                starts: of one that runs already only the end can be seen, not the error.
        """
        if hasattr(task, "add_done_callback"):
            task.add_done_callback(self._close_after)
        elif not isinstance(task, threading.Thread):
            raise TypeError(f"a channel is bound to a thread or a future, not to {task!r}")
        elif task.ident is None:
            self._bind_unstarted(task)
        else:
            threading.Thread(target=self._close_when_over, args=(task,), name="distpool-bound", daemon=True).start()
        return self

    def _bind_unstarted(self, thread: threading.Thread) -> None:
        run = thread.run

        def run_and_close() -> None:
            try:
                run()
            except SystemExit:  # how a thread ends itself; threading ignores it too
                self.close()
                raise
            except BaseException as error:
                self.close(error)
                raise
            self.close()

        thread.run = run_and_close  # type: ignore[method-assign]  # a thread keeps its error nowhere else

    def _close_when_over(self, thread: threading.Thread) -> None:
        thread.join()
        self.close()

    def _close_after(self, future: Any) -> None:
        try:
            error = future.exception()
        except BaseException as cancelled:  # CancelledError, of which there are two
            error = cancelled
        self.close(error)

    # -- copies and text

    def __getstate__(self) -> tuple[int | float, list[T], bool, BaseException | None]:
        with self._lock:
            replies = self._arrivals()
            self._recall()
            state = self.size, list(self._items), self._is_open, self._failure
        deliver(replies)
        return state

    def __setstate__(self, state: tuple[int | float, list[T], bool, BaseException | None]) -> None:
        super().__init__(*state)

    def __repr__(self) -> str:
        count, state = self._count(), "open" if self._is_open else "closed"
        return f"<Channel size={self.size}, {count} item{'' if count == 1 else 's'}, {state}>"


class _Waiter:
    """A thread that sleeps until its request is answered."""

    __slots__ = ("_answered", "ok", "value")

    def __init__(self) -> None:
        self._answered = threading.Lock()
        self._answered.acquire()
        # None until answered. Looked at first, because a lock that was got just before an interrupt is not got again.
        self.ok: bool | None = None
        self.value: Any = None

    def answer(self, ok: bool, value: Any) -> None:
        self.value = value
        self.ok = ok
        self._answered.release()

    def wait(self, timeout: float | None) -> bool:
        if self.ok is not None:
            return True
        return self._answered.acquire(timeout=-1 if timeout is None else max(0, min(timeout, threading.TIMEOUT_MAX)))


def check_number(n: int) -> None:
    """``n`` of ``take_many``."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"take_many() takes at least one item, and a whole number of them, not {n!r}")
