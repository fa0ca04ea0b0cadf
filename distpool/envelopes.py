"""An envelope: tasks that came in one message, and their results until these have left.

`Envelope` is the worker's, used by ``tasks``: the thread that runs it takes from the left, the reading thread gives
back from the right. What both halves of a pool must know of one stands in front: how items are given to the callable,
and how the page is written on which a worker notes what it does.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from distpool import messages as m
from distpool.bundles import Item, bundle, unbundle
from distpool.light import TYPE_CHECKING, Any, Final
from distpool.pickling import Parcel, dump, dump_exception, load
from distpool.wire import Frame

if TYPE_CHECKING:
    from distpool.peer import Peer

# How the items of an envelope are given to the callable.
ONE: Final = 0  # f(item)
STAR: Final = 1  # f(*item)
CALL: Final = 2  # f(*item[0], **item[1])

# Words of the page: which envelope, how many of its tasks have begun, when the last of them began (nanoseconds,
# monotonic).
# Zero for the last means that all have ended and their results are on their way. The notes stay after that: whoever
# dies while it packs or sends a result is to blame for that, too. The extra runner's notes follow the main thread's.
PAGE_ENVELOPE: Final = 0
PAGE_STARTED: Final = 1
PAGE_SINCE: Final = 2
PAGE_NOTES: Final = 3  # words of one runner


class Failure:
    """In the place of a result: the task raised this."""

    __slots__ = ("error", "stage")

    def __init__(self, error: BaseException, stage: str = "") -> None:
        self.error = error
        self.stage = stage  # "opening": the function was not called


class KnownCallable:
    """What a pool has sent here to be called with its tasks: ``value`` is the unopened frame, later what was in it."""

    __slots__ = ("value",)

    def __init__(self, frame: Frame) -> None:
        self.value: Any = frame


class Envelope:
    """Tasks that came in one message. The runner takes from the left, ``take_back`` from the right; both are atomic."""

    __slots__ = (
        "callable",
        "count",
        "failed",
        "flush_lock",
        "frame",
        "items",
        "lock",
        "peer",
        "refused",
        "results",
        "sent",
        "since",
        "started",
        "unopened",
    )

    def __init__(self, peer: Peer, frame: Frame, known: KnownCallable | None) -> None:
        self.callable = known  # its own link: the pool may let us forget the callable while the envelope waits
        self.peer = peer
        self.frame = frame
        self.count = frame.whence  # how many tasks it holds; less after a part was taken back
        self.lock = threading.Lock()  # opening and taking back exclude each other: both change count and items
        self.unopened = True
        self.items: deque[Any] = deque()
        self.results: list[Any] = []  # finished, not sent
        self.failed = False  # one of them is a Failure
        self.refused: set[int] = set()  # tasks that were stopped before the items were opened
        self.flush_lock = threading.Lock()  # one sender of results at a time, so that they stay in order
        self.since = 0.0  # when the results last left
        self.started = 0  # how many tasks have begun
        self.sent = 0  # how many results have left

    def open(self) -> int:
        """Unpack the items; return how each is given to the callable."""
        if self.frame.error is not None:
            raise self.frame.error
        opened = unbundle if self.frame.flags & m.FLAG_APART else load
        how, items = opened(self.frame.body, self.frame.buffers)
        with self.lock:
            del items[self.count :]  # taken back while it waited
            self.items.extend(items)
            self.unopened = False
            for number in self.refused:
                self._refuse(number)
        return int(how)

    def refuse(self, number: int) -> None:
        """Task ``number`` (from 1) shall not begin. Of no effect when it has, or when it is not packed by itself."""
        with self.lock:
            if self.unopened:
                self.refused.add(number)
            else:
                self._refuse(number)

    def _refuse(self, number: int) -> None:
        if number > self.count:  # taken back
            return
        try:
            item = self.items[number - 1 - self.count]  # from the right end, which only take_back moves, under the lock
        except IndexError:
            return
        if isinstance(item, Item):
            item.refuse()

    def take_back(self, keep: int) -> int:
        """Give up tasks that have not started, all but ``keep`` of them; return how many the envelope now holds."""
        with self.lock:
            if self.unopened:
                self.count = min(self.count, keep)
            while not self.unopened and len(self.items) > keep:
                try:
                    self.items.pop()
                except IndexError:  # the runner was quicker
                    break
                self.count -= 1
            return self.count


def pack_results(
    results: list[Any], may_have_failed: bool, to: int, check: Callable[[Parcel], None]
) -> tuple[Parcel, bool]:
    """Pickle results: all at once when opening them can run no strange code, else one by one.

    One by one, a result that cannot be pickled here or opened there, or that must not be sent, costs only itself.
    """
    if not (may_have_failed and any(type(result) is Failure for result in results)):
        try:
            parcel = dump(results, to)
            check(parcel)
        except BaseException:
            pass  # some result cannot be pickled: find out which below
        else:
            if not parcel.foreign:
                return parcel, False
    return bundle([_pack_one(result, to, check) for result in results]), True


def _pack_one(result: Any, to: int, check: Callable[[Parcel], None]) -> tuple[bool, Parcel]:
    has_failed = type(result) is Failure
    try:
        parcel = dump_exception(result.error, result.stage) if has_failed else dump(result, to)
        check(parcel)
        return not has_failed, parcel
    except BaseException as error:
        return False, dump_exception(error, "packing")
