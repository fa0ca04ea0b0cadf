"""What stands behind a `Channel`: its items, and who waits for what, under one lock.

Used by `Channel`, which adds the blocking form, and by the store, which uses the asynchronous one: `Desk.request`
holds no thread while it waits. Any thread may enter. Whoever waited is answered after the lock is released, by the
thread that made the answer possible::

     put ──▶ putters ──▶ items ──▶ takers ──▶ take         putters  wait for room      (come first, served first)
              inbox ──▶    │    ──▶ shelf                  takers   wait for an item   (come first, served first)
                           └─────▶ watchers ──▶ fetch, wait    all woken by the next item

Either something is here and nobody waits for it, or somebody waits and nothing is here. So there are never takers or
watchers beside items or putters.

Two more places hold items where other processes use the channel much (see `shelf` and `inbox`): the first items may lie
on a shelf, from which those processes take without asking, and what they have put may stand in an inbox that nobody has
looked into. Both belong to the channel as if there were one deque: under the lock, the inboxes are emptied before
anything else is looked at, and what is on the shelf comes before the items.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

from distpool.errors import ChannelClosedError, RemoteException
from distpool.light import Any, Final, Generic, Protocol, TypeVar

T = TypeVar("T")

NOTHING: Final[Any] = object()  # "no item", which None is not
INFINITE: Final = float("inf")
# After how many puts the shelf is looked at. With fewer each would pay for it, with more a quick taker finds it empty.
PUTS_PER_STOCKING: Final = 8
PUTS_AT_FULL: Final = 64  # when it was full
# How many items are laid on the shelf at once: a few, so that a taker who waits has the first of many soon.
ITEMS_AT_ONCE: Final = 16


class Ticket:
    """A request at a channel; what `Desk.withdraw` wants to see.

    >>> from distpool.channel import Channel
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


class Shelf(Protocol):
    """The first items of a channel, where several processes take them (`shelf.Shelf`). Under the channel's lock."""

    def room(self) -> int:
        """Return for how many more items there is room."""

    def count(self) -> int:
        """Return how many lie there at this moment; others may take some in the next."""

    def take(self) -> Any:
        """Take the first one; NOTHING if others have taken all."""

    def let_go(self) -> list[Any]:
        """Return what others have taken, to be dropped under no lock."""

    def first(self) -> Any:
        """Return the first one and leave it; NOTHING if there is none."""

    def recall(self) -> list[Any]:
        """Take all."""

    def pack(self, item: Any) -> bytes | None:
        """Pickle an item, under no lock; None if it cannot lie on the shelf."""

    def lay(self, items: Sequence[Any], packed: Sequence[bytes], tell: bool, is_last: bool) -> int:
        """Lay out some; who takes one tells us if ``tell``. Return how many, in order, there was room for.

        ``is_last`` says that these are all: else somebody tells us when it is time to lay out more.
        """

    def has_untold(self) -> bool:
        """Whether some lie there whose taker will not tell."""


class Inbox(Protocol):
    """Where another process puts without asking (`inbox.Inbox`). Under the channel's lock."""

    granted: int  # places of a channel with a limit that are kept for it

    def empty(self) -> list[Any]:
        """Return what has come since the last time."""

    def grant(self, free: int) -> None:
        """Keep so many places for it, if it has few."""

    def recall(self) -> None:
        """Take places back that it does not use."""

    def shut(self) -> None:
        """Let no more in; what is inside stays there for `empty`."""


class Desk(Generic[T]):
    """The items and requests of one channel."""

    def __init__(self, size: int | float, items: Iterable[T], is_open: bool, failure: BaseException | None) -> None:
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
        self._shelf: Shelf | None = None
        self._inboxes: tuple[Inbox, ...] = ()
        self._unstocked = 0  # puts since the shelf was looked at
        self._stock_after = PUTS_PER_STOCKING  # so many

    # -- the asynchronous form

    def request(self, op: str, value: Any, answer: Callable[[bool, Any], object]) -> Ticket | None:
        """Starts ``"put"``, ``"take"``, ``"fetch"``, ``"wait"`` or a ``_many`` form and returns; holds no thread.

        Args:
            op: as the method of that name.
            value: the item to put, or a list of items; how many to take; None otherwise.
            answer: called exactly once, with ``(True, value)`` or ``(False, exception)``: here and now, or later by the
                thread that put, took or closed. "fetch" and "wait" answer with the first item, "put" with None. It
                runs under no lock and may use the channel; it must not raise. A taker is answered before its putter
                is: so what an answer copies or writes out is not yet changed again by who put it (J#29932).

        Returns: None if it is answered already, else a ticket for `withdraw`.
        """
        if op not in self._STARTS:
            raise ValueError(f"a channel knows {', '.join(self._STARTS)}, not {op!r}")
        ticket = Ticket(op, deque(value) if op == "put_many" else value, answer)
        return ticket if self._enter(ticket) else None

    def withdraw(self, ticket: Ticket) -> bool:
        """True: it was still waiting and will never be answered. False: it has its answer, or is about to get it."""
        with self._lock:
            return self._queue(ticket.op).pop(ticket, NOTHING) is None

    def put_back(self, value: T) -> None:
        """Puts an item that was taken, but could not be delivered, in front of all others, whatever the size.

        Works on a closed channel too. Several items go back in the reverse order of their taking.
        """
        with self._lock:
            replies, handed_over = self._hand_over(value)
            if not handed_over:
                self._recall()
                self._items.appendleft(value)
        deliver(replies)

    def _enter(self, ticket: Ticket) -> bool:
        """Starts a request; True if it has to wait."""
        with self._lock:
            replies = self._arrivals()
            replies += self._STARTS[ticket.op](self, ticket)
            if self._inboxes:
                self._share_room()
            parked = ticket.parked
            is_due = self._is_stocking_due()
        deliver(replies)
        if is_due:
            self.stock()
        return parked

    # -- the shelf and the inboxes

    def lend(self, shelf: Shelf) -> bool:
        """Lets other processes take from this shelf from now on. False if there is one already."""
        with self._lock:
            if self._shelf is not None:
                return False
            self._shelf = shelf
            return True

    def listen_to(self, inbox: Inbox) -> bool:
        """Counts what comes into this inbox as put, from now on. False if the channel is closed."""
        with self._lock:
            if not self._is_open:
                return False
            self._inboxes = (*self._inboxes, inbox)
            self._share_room()
            return True

    def forget(self, inbox: Inbox) -> None:
        """Nothing comes into this inbox any more: takes the last items out, and looks no more."""
        with self._lock:
            replies = self._arrivals()
            self._inboxes = tuple(each for each in self._inboxes if each is not inbox)
        deliver(replies)

    def look(self) -> None:
        """Notices what other processes have put or taken, and answers who waits for it."""
        with self._lock:
            replies = self._arrivals()
            replies += self._admit()
            if self._inboxes:
                self._share_room()
        deliver(replies)
        self.stock()

    def stock(self) -> None:
        """Lays the first items on the shelf, as many as there is room for; pickles them in this thread."""
        shelf = self._shelf
        if shelf is None:
            return
        while self._items and self._lay_some(shelf):
            pass
        with self._lock:
            gone = shelf.let_go()
        del gone  # under no lock

    def _lay_some(self, shelf: Shelf) -> bool:
        """Lays a few items on the shelf, so that takers need not wait for all; False when nothing was laid."""
        with self._lock:
            room = shelf.room()
            self._unstocked = 0
            self._stock_after = PUTS_PER_STOCKING if room else PUTS_AT_FULL
            fresh = list(islice(self._items, min(room, ITEMS_AT_ONCE)))
        packed: list[bytes] = []
        for item in fresh:  # under no lock: it may be the user's code that runs
            record = shelf.pack(item)
            if record is None:
                break
            packed.append(record)
        with self._lock:
            # Some may have gone meanwhile, by whatever way. What stands in front is still in front.
            still = 0
            for item, other in zip(fresh[: len(packed)], self._items, strict=False):
                if item is not other:
                    break
                still += 1
            is_last = still == len(self._items)
            laid = shelf.lay(fresh[:still], packed[:still], bool(self._putters), is_last) if still else 0
            for _ in range(laid):
                self._items.popleft()
        return laid == len(fresh) > 0

    def _is_stocking_due(self) -> bool:
        if self._shelf is None or not self._items:
            return False
        self._unstocked += 1
        return self._unstocked >= self._stock_after

    # -- under the lock, all below

    def _arrivals(self) -> Replies:
        """Takes in what other processes have put: it came before whatever is asked now."""
        replies: Replies = []
        if not self._inboxes:
            return replies
        for inbox in self._inboxes:
            for value in inbox.empty():
                more, handed_over = self._hand_over(value)
                replies += more
                if not handed_over:
                    self._items.append(value)  # its place was kept
        self._share_room()
        return replies

    def _share_room(self) -> None:
        """Keeps some of the free places for those who put into inboxes. Not all: taking places back costs time."""
        if self.size == INFINITE or self._putters:
            return
        free = int(self.size) - self._count() - sum(inbox.granted for inbox in self._inboxes)
        for inbox in self._inboxes:
            inbox.grant(free // (2 * len(self._inboxes)))

    def _recall(self) -> None:
        """Takes everything back from the shelf."""
        if self._shelf is not None:
            self._items.extendleft(reversed(self._shelf.recall()))

    def _start_put(self, ticket: Ticket) -> Replies:
        if not self._is_open:
            return [(ticket, False, self._closed_error())]
        replies = self._admit()  # those who wait come first
        if not self._putters:
            more, placed = self._place(ticket.value)
            replies += more
            if placed:
                return [*replies, (ticket, True, None)]
        return replies + self._park(ticket) + self._watch_the_shelf()

    def _start_put_many(self, ticket: Ticket) -> Replies:
        if not self._is_open:
            return [(ticket, False, self._closed_error())]
        if not ticket.value:
            return [(ticket, True, None)]
        replies = self._admit()
        while not self._putters:
            more, placed = self._place(ticket.value[0])
            if not placed:
                break
            replies += more
            ticket.value.popleft()
            if not ticket.value:
                return [*replies, (ticket, True, None)]
        return replies + self._park(ticket) + self._watch_the_shelf()

    def _start_take(self, ticket: Ticket) -> Replies:
        value, replies = self._pop()
        return self._park(ticket) if value is NOTHING else [(ticket, True, value), *replies]

    def _start_take_many(self, ticket: Ticket) -> Replies:
        value, replies = self._pop()
        if value is NOTHING:
            return self._park(ticket)
        values = [value]
        while len(values) < ticket.value and not issubclass(type(value), RemoteException):
            # One that is raised at the taker comes alone. (isinstance would ask the object itself, under the lock.)
            value = self._first()
            if value is NOTHING or issubclass(type(value), RemoteException):
                break
            value, more = self._pop()
            if value is NOTHING:
                break
            values.append(value)
            replies += more
        return [(ticket, True, values), *replies]

    def _start_look(self, ticket: Ticket) -> Replies:
        if ticket.op == "fetch" and self.size == 0:
            return [(ticket, False, self._unbuffered_error())]
        value = self._first()
        return self._park(ticket) if value is NOTHING else [(ticket, True, value)]

    _STARTS: Final = {
        "put": _start_put,
        "take": _start_take,
        "fetch": _start_look,
        "wait": _start_look,
        "put_many": _start_put_many,
        "take_many": _start_take_many,
    }

    def _park(self, ticket: Ticket) -> Replies:
        if not self._is_open:
            return [(ticket, False, self._closed_error())]
        ticket.parked = True
        self._queue(ticket.op)[ticket] = None
        return []

    def _queue(self, op: str) -> OrderedDict[Ticket, None]:
        if op == "put" or op == "put_many":
            return self._putters
        return self._takers if op == "take" or op == "take_many" else self._watchers

    def _watch_the_shelf(self) -> Replies:
        """Somebody waits for room: who takes from the shelf must tell from now on. Admits those for whom there is room.

        What lies there unmarked is taken back, and marked when it is laid out again.
        """
        if self._shelf is None or not self._shelf.has_untold():
            return []
        self._recall()
        self._unstocked = PUTS_AT_FULL
        return self._admit()

    def _count(self) -> int:
        shelf = self._shelf
        return len(self._items) if shelf is None else len(self._items) + shelf.count()

    def _has_room(self) -> bool:
        if self.size == INFINITE:
            return True
        count = self._count()
        if not self._inboxes:
            return count < self.size
        if count + sum(inbox.granted for inbox in self._inboxes) >= self.size:
            for inbox in self._inboxes:
                inbox.recall()
        return count + sum(inbox.granted for inbox in self._inboxes) < self.size

    def _has_item(self) -> bool:
        return bool(self._items or self._putters) or (self._shelf is not None and self._shelf.count() > 0)

    def _first(self) -> Any:
        """The next item, which stays; NOTHING if there is none."""
        if self._shelf is not None and (first := self._shelf.first()) is not NOTHING:
            return first
        if self._items:
            return self._items[0]
        if not self._putters:
            return NOTHING
        putter = next(iter(self._putters))
        return putter.value[0] if putter.op == "put_many" else putter.value

    def _place(self, value: T) -> tuple[Replies, bool]:
        """Finds a place for a new item: who waits for it, else the buffer. False if there is none."""
        replies, handed_over = self._hand_over(value)
        if handed_over:
            return replies, True
        if self._has_room():
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
        replies.append((taker, True, [value] if taker.op == "take_many" else value))
        return replies, True

    def _pop(self) -> tuple[Any, Replies]:
        """Removes the first item, NOTHING if there is none, and lets putters in where that makes room."""
        if self._shelf is not None and (value := self._shelf.take()) is not NOTHING:
            return value, self._admit()
        if self._items:
            return self._items.popleft(), self._admit()
        if self._putters:  # size 0, or a shelf that others have emptied: straight out of the putter's hands
            return self._draw()
        return NOTHING, []

    def _admit(self) -> Replies:
        """Lets in those who wait to put, as far as there is room."""
        replies: Replies = []
        while self._putters and self._has_room():
            value, more = self._draw()
            self._items.append(value)
            replies += more
        return replies

    def _draw(self) -> tuple[T, Replies]:
        """Takes the next item out of the hands of who waits to put it."""
        putter = next(iter(self._putters))
        if putter.op != "put_many":
            del self._putters[putter]
            return putter.value, [(putter, True, None)]
        value = putter.value.popleft()
        if putter.value:
            return value, []
        del self._putters[putter]
        return value, [(putter, True, None)]

    def _closed_error(self) -> BaseException:
        if self._failure is None:
            return ChannelClosedError(f"the channel is closed: {self!r}")
        # One object for all who get it; each raise would lengthen its traceback, so it starts from the first again.
        return self._failure.with_traceback(self._failure_traceback)

    def _unbuffered_error(self) -> RuntimeError:
        return RuntimeError("fetch needs a channel that holds items; one of size 0 only hands them over: use take")


def deliver(replies: Replies) -> None:
    """Answers, in order. Never under a lock."""
    for index, (ticket, ok, value) in enumerate(replies):
        try:
            ticket.answer(ok, value)
        except BaseException:  # an interrupt, in this thread by chance: it must not cost the others their answers
            deliver(replies[index + 1 :])
            raise
