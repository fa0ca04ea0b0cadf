"""``distributed``: a loop over a sequence, cut into one slice for each worker.

Used by users, in any thread. Each worker gets the body and its own slice, no more. With a reducer the partial results
come back and are reduced here; without one the loop goes on in the background, and its handle waits for it. Owns: the
loops that have failed and that nobody has waited for yet, whose errors must be printed in the end.
"""

from __future__ import annotations

import atexit
import sys
import threading
import weakref
from collections.abc import Callable, Iterable

from distpool.errands import reduce_slice, run_slice
from distpool.errors import CompositeException, RemoteException
from distpool.fanout import Call, fan_out, raise_failures
from distpool.light import Any, Final
from distpool.member import Member, default_member
from distpool.serving import report_unraisable
from distpool.spawning import Spawned, enlist, start
from distpool.transport import Deadline

# How long printing an error that nobody asked for may wait for it: the program may be about to end. Arbitrary.
PRINT_SECONDS: Final = 1.0

_NOT_GIVEN: Any = object()


def splitrange(first: int, last: int, np: int) -> list[range]:
    """Cut the indices from ``first`` to ``last``, both included, into at most ``np`` contiguous ranges.

    Their lengths differ by at most one, the longer ones come first, and none is empty. Raises ValueError unless
    ``np`` is positive. Julia's ``splitrange``.

    >>> splitrange(1, 11, 3)
    [range(1, 5), range(5, 9), range(9, 12)]
    >>> splitrange(0, 2, 4)
    [range(0, 1), range(1, 2), range(2, 3)]
    """
    if np < 1:
        raise ValueError(f"splitrange(..., np={np}): there must be at least one worker")
    each, extras = divmod(max(0, last - first + 1), np)
    ranges = []
    for index in range(np if each else extras):
        end = first + each + (index < extras)
        ranges.append(range(first, end))
        first = end
    return ranges


def distributed(*args: Any, reducer: Callable[[Any, Any], Any] | None = None, init: Any = _NOT_GIVEN) -> Any:
    """Run ``body(item)`` for all items: ``distributed(seq)(body)``, ``distributed(reducer, seq)(body)``.

    ``seq`` is cut into one slice for each worker (``splitrange``); the slice, ``body`` and ``reducer`` are pickled and
    sent. Anything with a length and slices is cut as it is, so a numpy array of 10 GB sends each worker its part; any
    other iterable is made a list first. What ``body`` changes in its surroundings changes only in the worker's copy.
    While there is no worker everything runs in this process. Also a decorator for ``body``.

    With a reducer (also as ``reducer=``): slice ``i`` goes to the ``i``-th worker; returns what ``reducer`` makes of
    all values, in the order of the items, so it must be associative and need not be commutative. ``init`` is put in
    front, once. Raises ValueError for an empty ``seq`` without ``init``.

    Without: returns a ``DistributedLoop`` at once; the values of ``body`` are dropped. ``wait()`` it, or use ``sync``;
    the errors of a loop that nobody waits for are printed.

    Errors in either form: CompositeException, when all slices are done, with what each failed slice raised: a
    RemoteException, or ProcessExitedException when its worker died. A slice ends at its first error. Julia's
    ``@distributed``; there, the whole sequence goes to every worker, and the first error is raised.

    >>> distributed(lambda a, b: a + b, range(1, 11))(lambda x: x * x)
    385
    >>> seen = []
    >>> @distributed("abc")
    ... def loop(letter):
    ...     seen.append(letter)  # seen here, because there is no worker now
    >>> loop.wait(), seen
    (<DistributedLoop: 1 of 1 slices done>, ['a', 'b', 'c'])
    """
    if len(args) == 2 and reducer is None:
        reducer, args = args[0], args[1:]
    if len(args) != 1:
        raise TypeError("distributed() takes a sequence, or a reducer and one: distributed([reducer,] seq)(body)")
    if reducer is not None and not callable(reducer):
        raise TypeError(f"distributed(reducer, seq): the reducer {reducer!r} is not callable")
    if reducer is None and init is not _NOT_GIVEN:
        raise TypeError("distributed(init=...) needs a reducer: without one the values are dropped")
    items = _sliceable(args[0])

    def run(body: Callable[[Any], Any]) -> Any:
        if not callable(body):
            raise TypeError(f"distributed(...)(body): the body {body!r} is not callable")
        member = default_member()
        pids = member.cluster.workers()
        slices = [items[part.start : part.stop] for part in splitrange(0, len(items) - 1, len(pids))]
        if reducer is None:
            return _begin(member, body, slices)
        # There are fewer slices than processes if the sequence is short.
        return _reduced(member, list(zip(pids, slices, strict=False)), body, reducer, init)

    return run


def _sliceable(sequence: Iterable[Any]) -> Any:
    """The sequence itself if it can be cut by position; a mapping or a data frame is not what its slices are."""
    if hasattr(sequence, "__len__") and hasattr(sequence, "__getitem__") and not hasattr(sequence, "keys"):
        try:
            sequence[0:0]
        except (TypeError, ValueError, LookupError):  # it has items, and no slices
            pass
        else:
            return sequence
    return list(sequence)


# -- with a reducer ----------------------------------------------------------------------------------------------------


def _reduced(
    member: Member,
    slices: list[tuple[int, Any]],
    body: Callable[[Any], Any],
    reducer: Callable[[Any, Any], Any],
    init: Any,
) -> Any:
    outcomes = fan_out(member, [(pid, Call(reduce_slice, body, reducer, part)) for pid, part in slices])
    raise_failures(outcomes)
    parts = [outcome.value for outcome in outcomes]
    if init is not _NOT_GIVEN:
        parts.insert(0, init)
    if not parts:
        raise ValueError("distributed() with a reducer got an empty sequence: give init= the value for that case")
    total = parts[0]
    for part in parts[1:]:
        total = reducer(total, part)
    return total


# -- without -----------------------------------------------------------------------------------------------------------


class _Slices:
    """The slices of one loop under way. Outlives its handle until all have ended."""

    def __init__(self, member: Member, count: int) -> None:
        self.started: list[Spawned] = []
        self.is_waited_for = False  # somebody was told how it ended
        self._dropped: list[object] = []  # filled by a finaliser when the handle is gone
        self._farewell: object = None  # what fills it; must live as long
        self._member = member
        self._left = count + 1  # the slices, and the one who starts them
        self._lock = threading.Lock()  # protects _left

    def one_ended(self) -> None:
        """Count what has ended. Mostly on the reading thread, so the rest is done on another."""
        with self._lock:
            self._left -= 1
            if self._left:
                return
        if any(each.completion.has_failed for each in self.started):
            with _unseen_lock:
                _unseen.add(self)
            self._member.threads.run(_print_dropped)

    def failures(self, timeout: float | None = None) -> list[Exception]:
        """Wait for all slices; return what the failed ones raised, in order."""
        return [failure for each in self.started for failure in each.failures(timeout)]

    def watch(self, handle: DistributedLoop) -> None:
        """Take note when the handle is gone. A finaliser, so no more is done at that moment."""
        self._farewell = weakref.ref(handle, self._dropped.append)

    @property
    def is_dropped(self) -> bool:
        """True when nobody can ask any more."""
        return bool(self._dropped)

    def print_errors(self) -> None:
        """Say what would be lost otherwise."""
        print("distpool: a distributed loop has failed, and nobody waited for it", file=sys.stderr)
        for error in self.failures(PRINT_SECONDS):
            pid = error.pid if isinstance(error, RemoteException) else self._member.pid
            report_unraisable(pid, error)


class DistributedLoop:
    """The handle of a ``distributed`` loop without a reducer; ``wait`` for it, or have ``sync`` do so.

    Both raise CompositeException with what failed. Julia's is a ``Task``.

    >>> distributed([])(print).wait().isready()
    True
    """

    def __init__(self, member: Member, slices: _Slices) -> None:
        self._member = member
        self._slices = slices
        slices.watch(self)

    def wait(self, timeout: float | None = None) -> DistributedLoop:
        """Wait until all items are done, at most ``timeout`` seconds (None: for ever). Returns the handle.

        Raises CompositeException, when all slices have ended, with what each failed one raised; TimeoutError.
        """
        deadline = Deadline(timeout)
        for each in self._slices.started:
            if not self._member.reader.wait(each.completion, deadline):
                raise TimeoutError(f"{self!r} is not done after {timeout} seconds")
        failures = self.failures()
        if failures:
            raise CompositeException(failures)
        return self

    def isready(self) -> bool:
        """True when all items are done, or their slices have failed."""
        return all(each.completion.done for each in self._slices.started)

    def failures(self) -> list[Exception]:
        """Wait until it is over and return what went wrong, in the order of the slices."""
        failures = self._slices.failures()
        self._slices.is_waited_for = True
        return failures

    def __repr__(self) -> str:
        done = sum(each.completion.done for each in self._slices.started)
        return f"<DistributedLoop: {done} of {len(self._slices.started)} slices done>"


def _begin(member: Member, body: Callable[[Any], Any], slices: list[Any]) -> DistributedLoop:
    _print_dropped()
    under_way = _Slices(member, len(slices))
    for part in slices:
        under_way.started.append(start(member, "any", run_slice, (body, part), {}, under_way.one_ended))
    loop = DistributedLoop(member, under_way)
    under_way.one_ended()
    enlist(loop)
    return loop


_unseen: set[_Slices] = set()  # have failed; whether anybody was told is not known yet
_unseen_lock = threading.Lock()  # protects _unseen


def _print_dropped(is_end: bool = False) -> None:
    """Print the errors of loops whose handle is gone without a wait: when they end, at the next loop, or at the end."""
    with _unseen_lock:
        over = [each for each in _unseen if is_end or each.is_dropped or each.is_waited_for]
        _unseen.difference_update(over)
    for each in over:
        if not each.is_waited_for:
            each.print_errors()


# Runs before the workers are removed, whose handler was registered earlier.
atexit.register(_print_dropped, is_end=True)
