"""A bounded, closable queue inside one process: what a `Future` or `RemoteChannel` keeps its items in.

Used by the store (asynchronous form) and by anybody (blocking form). Any thread may enter. A channel owns its items and
the requests that wait at it, under one lock; whoever waited is answered after the lock is released, by the thread that
made the answer possible::

     put ──▶ putters ──▶ items ──▶ takers ──▶ take         putters  wait for room      (first come, first served)
                           │                               takers   wait for an item   (first come, first served)
                           └─────▶ watchers ──▶ fetch, wait    all woken by the next item

Either something is here and nobody waits for it, or somebody waits and nothing is here. So there are never takers or
watchers beside items or putters.

The asynchronous form (`Channel.request`, `Channel.withdraw`, `Channel.put_back`) holds no thread while it waits. The
blocking form is the same with a lock to sleep on.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator

from distpool.errors import ChannelClosedError
from distpool.light import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")
D = TypeVar("D")

_NOTHING: Final[Any] = object()


class Ticket:
    """A request at a channel; what `Channel.withdraw` wants to see.

    >>> ticket = Channel(1).request("take", None, print)
    >>> ticket.op
    'take'
    """

    __slots__ = ("answer", "op", "parked", "value")

    def __init__(self, op: str, value: Any, answer: Callable[[bool, Any], object]) -> None:
        self.op = op
        self.value = value
        self.answer = answer
        self.parked = False  # it had to wait; stays True when the waiting is over


Replies = list[tuple[Ticket, bool, Any]]  # whom to answer, and what, once the lock is released


class Channel(Generic[T]):
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
        self._set_up(size, (), is_open=True, failure=None)

    def _set_up(self, size: int | float, items: Iterable[T], is_open: bool, failure: BaseException | None) -> None:
        self.size = size
        self._lock = threading.Lock()  # protects everything below; no user code and no answer() under it
        self._items: deque[T] = deque(items)
        # Ordered dictionaries serve as queues from whose middle one can leave in constant time.
        self._putters: OrderedDict[Ticket, None] = OrderedDict()
        self._takers: OrderedDict[Ticket, None] = OrderedDict()
        self._watchers: OrderedDict[Ticket, None] = OrderedDict()
        self._is_open = is_open
        self._failure = failure  # what close() was given
        self._failure_traceback = failure.__traceback__ if failure is not None else None

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
        value = self.try_take(_NOTHING)
        return self._wait_for("take", None, timeout) if value is _NOTHING else value

    def fetch(self, timeout: float | None = None) -> T:
        """Returns the first item and leaves it; waits while there is none. RuntimeError at size 0: none can be left."""
        value = self.try_fetch(_NOTHING)
        return self._wait_for("fetch", None, timeout) if value is _NOTHING else value

    def wait(self, timeout: float | None = None) -> Self:
        """Waits until an item is there (at size 0: somebody who puts one), and returns the channel."""
        if not self.isready():
            self._wait_for("wait", None, timeout)
        return self

    def _wait_for(self, op: str, value: Any, timeout: float | None) -> Any:
        if timeout is not None and timeout <= 0:
            raise TimeoutError(f"{op} would have to wait at {self!r}")
        waiter = _Waiter()
        ticket = Ticket(op, value, waiter.answer)
        try:
            self._enter(ticket)
            answered = waiter.wait(timeout)
        except BaseException:  # KeyboardInterrupt, or what else a signal handler raises
            # If it cannot be withdrawn and was parked, its answer is under way in another thread.
            answered = not self.withdraw(ticket) and waiter.wait(None if ticket.parked else 0)
            if answered and op == "take" and waiter.ok:
                self.put_back(waiter.value)
            raise
        if not answered:
            if self.withdraw(ticket):
                raise TimeoutError(f"{op} waited {timeout} s at {self!r}")
            waiter.wait(None)  # the answer won the race and is under way
        if not waiter.ok:
            raise waiter.value
        return waiter.value

    # -- without waiting

    def try_put(self, value: T) -> bool:
        """Adds an item if that needs no waiting; False otherwise."""
        with self._lock:
            if not self._is_open:
                raise self._closed_error()
            if not self._takers and len(self._items) >= self.size:
                return False
            replies, _ = self._place(value)
        _deliver(replies)
        return True

    def try_take(self, default: D = None) -> T | D:  # type: ignore[assignment]
        """Removes and returns the first item, or returns ``default`` if there is none yet."""
        with self._lock:
            if not self._has_item():
                return self._nothing_yet(default)
            value, replies = self._pop()
        _deliver(replies)
        return value

    def try_fetch(self, default: D = None) -> T | D:  # type: ignore[assignment]
        """Returns the first item, or ``default`` if there is none yet."""
        with self._lock:
            if self.size == 0:
                raise self._unbuffered_error()
            return self._first() if self._has_item() else self._nothing_yet(default)

    def _nothing_yet(self, default: D) -> D:
        if not self._is_open:
            raise self._closed_error()
        return default

    def isready(self) -> bool:
        """True if an item is there (at size 0: somebody waits in `put`). The next moment it may be somebody else's."""
        with self._lock:
            return self._has_item()

    def isempty(self) -> bool:
        """The opposite of `isready`; it removes nothing."""
        return not self.isready()

    def isopen(self) -> bool:
        """False once `close` was called, even if items remain."""
        return self._is_open

    def __len__(self) -> int:
        return len(self._items)

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
            self._is_open = False
            if exc is not None:
                self._failure, self._failure_traceback = exc, exc.__traceback__
            replies: Replies = []
            for queue in (self._takers, self._watchers, self._putters):
                replies += [(ticket, False, self._closed_error()) for ticket in queue]
                queue.clear()
        _deliver(replies)

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

    # -- the asynchronous form

    def request(self, op: str, value: Any, answer: Callable[[bool, Any], object]) -> Ticket | None:
        """Starts ``"put"``, ``"take"``, ``"fetch"`` or ``"wait"`` and returns at once; holds no thread.

        Args:
            op: as the method of that name.
            value: the item to put; None otherwise.
            answer: called exactly once, with ``(True, value)`` or ``(False, exception)``: here and now, or later by the
                thread that put, took or closed. "fetch" and "wait" answer with the first item, "put" with None. It
                runs under no lock and may use the channel; it must not raise. A taker is answered before its putter
                is: so what an answer copies or writes out is not yet changed again by who put it (J#29932).

        Returns: None if it is answered already, else a ticket for `withdraw`.
        """
        if op not in self._STARTS:
            raise ValueError(f"a channel knows {', '.join(self._STARTS)}, not {op!r}")
        ticket = Ticket(op, value, answer)
        return ticket if self._enter(ticket) else None

    def withdraw(self, ticket: Ticket) -> bool:
        """True: it was still waiting and will never be answered. False: it has its answer, or is about to get it."""
        with self._lock:
            return self._queue(ticket.op).pop(ticket, _NOTHING) is None

    def put_back(self, value: T) -> None:
        """Puts an item that was taken, but could not be delivered, in front of all others, whatever the size.

        Works on a closed channel too. Several items go back in the reverse order of their taking.
        """
        with self._lock:
            replies, handed_over = self._hand_over(value)
            if not handed_over:
                self._items.appendleft(value)
        _deliver(replies)

    def _enter(self, ticket: Ticket) -> bool:
        """Starts a request; True if it has to wait."""
        with self._lock:
            replies = self._STARTS[ticket.op](self, ticket)
            parked = ticket.parked
        _deliver(replies)
        return parked

    # -- under the lock, all below

    def _start_put(self, ticket: Ticket) -> Replies:
        if not self._is_open:
            return [(ticket, False, self._closed_error())]
        replies, placed = self._place(ticket.value)
        if placed:
            return [*replies, (ticket, True, None)]
        return replies + self._park(ticket)

    def _start_take(self, ticket: Ticket) -> Replies:
        if not self._has_item():
            return self._park(ticket)
        value, replies = self._pop()
        return [(ticket, True, value), *replies]

    def _start_look(self, ticket: Ticket) -> Replies:
        if ticket.op == "fetch" and self.size == 0:
            return [(ticket, False, self._unbuffered_error())]
        return [(ticket, True, self._first())] if self._has_item() else self._park(ticket)

    _STARTS: Final = {"put": _start_put, "take": _start_take, "fetch": _start_look, "wait": _start_look}

    def _park(self, ticket: Ticket) -> Replies:
        if not self._is_open:
            return [(ticket, False, self._closed_error())]
        ticket.parked = True
        self._queue(ticket.op)[ticket] = None
        return []

    def _queue(self, op: str) -> OrderedDict[Ticket, None]:
        return self._putters if op == "put" else self._takers if op == "take" else self._watchers

    def _has_item(self) -> bool:
        return bool(self._items or self._putters)

    def _first(self) -> T:
        first: T = self._items[0] if self._items else next(iter(self._putters)).value
        return first

    def _place(self, value: T) -> tuple[Replies, bool]:
        """Finds a place for a new item: who waits for it, else the buffer. False if there is none."""
        replies, handed_over = self._hand_over(value)
        if handed_over:
            return replies, True
        if len(self._items) < self.size:
            self._items.append(value)
            return replies, True
        return replies, False

    def _hand_over(self, value: T) -> tuple[Replies, bool]:
        """Shows an item to all watchers and gives it to the first taker; False if there is no taker."""
        replies: Replies = []
        if self._watchers:
            replies += [(watcher, True, value) for watcher in self._watchers]
            self._watchers.clear()
        if not self._takers:
            return replies, False
        taker, _ = self._takers.popitem(last=False)
        replies.append((taker, True, value))
        return replies, True

    def _pop(self) -> tuple[T, Replies]:
        """Removes the first item, and lets the first putter in where that makes room."""
        if not self._items:  # size 0: straight out of the putter's hands
            putter, _ = self._putters.popitem(last=False)
            return putter.value, [(putter, True, None)]
        value = self._items.popleft()
        if not self._putters or len(self._items) >= self.size:
            return value, []
        putter, _ = self._putters.popitem(last=False)
        self._items.append(putter.value)
        return value, [(putter, True, None)]

    def _closed_error(self) -> BaseException:
        if self._failure is None:
            return ChannelClosedError(f"the channel is closed: {self!r}")
        # One object for all who get it; each raise would lengthen its traceback, so it starts from the first again.
        return self._failure.with_traceback(self._failure_traceback)

    def _unbuffered_error(self) -> RuntimeError:
        return RuntimeError("fetch needs a channel that holds items; one of size 0 only hands them over: use take")

    # -- copies and text

    def __getstate__(self) -> tuple[int | float, list[T], bool, BaseException | None]:
        with self._lock:
            return self.size, list(self._items), self._is_open, self._failure

    def __setstate__(self, state: tuple[int | float, list[T], bool, BaseException | None]) -> None:
        self._set_up(*state)

    def __repr__(self) -> str:
        count, state = len(self._items), "open" if self._is_open else "closed"
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
        return self._answered.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))


def _deliver(replies: Replies) -> None:
    """Answers, in order. Never under a lock."""
    for index, (ticket, ok, value) in enumerate(replies):
        try:
            ticket.answer(ok, value)
        except BaseException:  # an interrupt, in this thread by chance: it must not cost the others their answers
            _deliver(replies[index + 1 :])
            raise
