"""``spawn`` and its relatives: calls in a process that is chosen here; and ``sync``, which waits for all that it began.

Used by users and by ``distributed``, in any thread. Which process: the one with the fewest requests in flight from
here, or strictly the next in turn. Owns: the counter of turns, the calls under way in this process itself, and for each
thread the ``sync`` blocks that it is in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from distpool.calls import Completion, call_and_fetch, call_into_future
from distpool.errors import CompositeException, ProcessExitedException
from distpool.light import Any, Literal, Protocol, TypeVar
from distpool.member import Member, default_member
from distpool.refs import Future

T = TypeVar("T")
Where = int | Literal["any", "next"]

_turn = count().__next__  # atomic; Julia's counter, one for each process
_under_way_here: set[Completion] = set()  # calls to this process itself, which no peer counts


def spawn(f: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
    """Run ``f(*args, **kwargs)`` on some worker; return at once with a Future owned by it.

    The worker with the fewest requests in flight from this process is taken, in turn among equals; while there is no
    worker, ``f`` runs in this process. What moves, and the errors, as for ``remotecall``; values that change later (a
    loop variable in a lambda, say) are passed as arguments or bound with ``functools.partial``.

    Julia's ``@spawn``, which goes strictly round robin, whatever the load: that is ``spawnat("next", f, ...)`` here,
    so that all keywords are left to ``f``.

    >>> spawn(divmod, 7, 2).fetch()
    (3, 1)
    """
    return spawnat("any", f, *args, **kwargs)


def spawnat(pid: Where, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
    """Run ``f(*args, **kwargs)`` in process ``pid``; return at once with a Future owned by it.

    ``"any"`` for ``pid`` takes the least busy worker, as ``spawn``; ``"next"`` takes strictly the next one in turn, so
    that ``nworkers()`` calls in a row reach each worker once. Inside ``sync`` the block waits for it. Errors as for
    ``remotecall``; ValueError for another word. Julia's ``@spawnat``.

    >>> spawnat("next", len, "abc").fetch()
    3
    """
    spawned = start(default_member(), pid, f, args, kwargs)
    enlist(spawned)
    return spawned.future


def fetchfrom(pid: Where, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Run ``f(*args, **kwargs)`` in process ``pid`` and return its result; ``pid`` as for ``spawnat``.

    Raises what ``f`` raised as a RemoteException that is also of the original type; otherwise as ``remotecall_fetch``.
    Julia's ``@fetchfrom``, and with ``"next"`` its ``@fetch``.

    >>> fetchfrom("any", max, 3, 4)
    4
    """
    member = default_member()
    return call_and_fetch(member, f, _choices(member, pid)[0], args, kwargs)


class Collected(Protocol):
    """Something that a ``sync`` block waits for."""

    def failures(self) -> list[Exception]:
        """Wait until it is over and return what went wrong."""


class Spawned:
    """A call that was spawned: its Future, and when it ends."""

    __slots__ = ("completion", "future", "member")

    def __init__(self, member: Member, future: Future[Any], completion: Completion) -> None:
        self.member = member
        self.future = future
        self.completion = completion

    def failures(self, timeout: float | None = None) -> list[Exception]:
        """Wait until it has ended; its error, if it has failed. The value stays where it is.

        ``timeout`` limits the time in which the owner must tell the error of a call that has ended, in seconds.
        """
        self.member.reader.wait(self.completion)
        if not self.completion.has_failed:
            return []
        try:
            self.future.wait(timeout)
        except Exception as error:
            return [error]
        return []


def start(
    member: Member,
    where: Where,
    f: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    then: Callable[[], object] | None = None,
) -> Spawned:
    """Begin a call; ``then`` is called when it has ended. A worker that dies just then is passed over."""
    *others, last = _choices(member, where)
    for pid in others:
        try:
            return _start_at(member, pid, f, args, kwargs, then)
        except ProcessExitedException:
            continue
    return _start_at(member, last, f, args, kwargs, then)


def _start_at(
    member: Member,
    pid: int,
    f: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    then: Callable[[], object] | None,
) -> Spawned:
    completion = Completion(then)
    if pid == member.pid:
        completion = Completion(lambda: _ended_here(completion, then))
        _under_way_here.add(completion)
    future = call_into_future(member, f, pid, args, kwargs, completion)
    completion.keep(future)
    return Spawned(member, future, completion)


def _ended_here(completion: Completion, then: Callable[[], object] | None) -> None:
    _under_way_here.discard(completion)
    if then is not None:
        then()


def _choices(member: Member, where: Where) -> list[int]:
    """The processes that may run a call, the best one first."""
    if isinstance(where, int):
        return [where]
    if where not in ("any", "next"):
        raise ValueError(f"{where!r} is no process: give a process id, 'any' (the least busy) or 'next' (in turn)")
    pids = member.cluster.workers()
    turn = _turn() % len(pids)
    pids = pids[turn:] + pids[:turn]
    if where == "any":
        load = {peer.pid: len(peer.pending) for peer in member.cluster.peers()}
        load[member.pid] = len(_under_way_here)
        pids.sort(key=lambda pid: load.get(pid, 0))  # stable: equals stay in turn
    return pids


# -- sync --------------------------------------------------------------------------------------------------------------


class _Thread(threading.local):
    """What one thread is in the middle of."""

    def __init__(self) -> None:
        self.blocks: list[list[Collected]] = []


_thread = _Thread()


@contextmanager
def sync() -> Iterator[None]:
    """``with sync():`` waits at its end for everything that its thread began inside it.

    That is ``spawn``, ``spawnat`` and ``distributed`` without a reducer; a block inside another waits for its own. The
    values stay where they were computed. When the block itself raises, that is raised at once: what was begun runs on,
    since it may be waiting for something that will not come now.

    Raises CompositeException when anything failed, with all failures in the order in which the calls were begun:
    RemoteException for what a function raised, ProcessExitedException where its process died. Julia's ``@sync``.

    >>> with sync():
    ...     lengths = [spawn(len, text) for text in ("one", "three")]
    >>> [each.isready() for each in lengths]
    [True, True]
    """
    collected: list[Collected] = []
    _thread.blocks.append(collected)
    try:
        yield
    finally:
        _thread.blocks.remove(collected)
    failures = [failure for each in collected for failure in each.failures()]
    if failures:
        raise CompositeException(failures)


def enlist(thing: Collected) -> None:
    """Have the innermost ``sync`` block of this thread wait for it."""
    if _thread.blocks:
        _thread.blocks[-1].append(thing)
