"""Calls to several processes at once: all are under way before any is waited for, and no failure stops the others.

Used by ``everywhere``, ``clear`` and ``distributed``, in the thread of the caller. What goes to several processes is
pickled once, and its large buffers are put once into memory that they share. The calls to one process run one after
the other, in order; those to this process come last, in the caller's thread, so that one that blocks delays no other::

    calls --dump--> parcels --to each process, the first of its calls--> OpenCall --answered--> the next one for it
                                                                             |
    calls to this process: run here                              values and errors, in the order of the calls
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from distpool.calls import OpenCall, wrapped
from distpool.errors import CompositeException
from distpool.light import Any
from distpool.member import Member
from distpool.pickling import Parcel, dump
from distpool.segments import THRESHOLD, Segment


class Call:
    """One call, for one process or several; pickled when first needed, once."""

    def __init__(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._f = f
        self._args = args
        self._kwargs = kwargs
        self._parcel: Parcel | None = None

    def parcel(self) -> Parcel:
        """Return it pickled. Raises TypeError for what cannot be pickled."""
        if self._parcel is None:
            self._parcel = dump((self._f, self._args, self._kwargs))
        return self._parcel

    def run(self) -> Any:
        """Run it here."""
        return self._f(*self._args, **self._kwargs)


class Outcome:
    """What became of one call: a value, or an error."""

    __slots__ = ("error", "pid", "value")

    def __init__(self, pid: int, value: Any = None, error: Exception | None = None) -> None:
        self.pid = pid
        self.value = value
        self.error = error


def fan_out(member: Member, calls: Sequence[tuple[int, Call]]) -> list[Outcome]:
    """Run each call in its process and wait for all of them; return what became of each, in the same order.

    Raises TypeError, before anything is sent, for what cannot be pickled. Errors of single calls are RemoteExceptions,
    those of calls to this process as well; ProcessExitedException for a process that is gone.
    """
    away = [(index, pid, call) for index, (pid, call) in enumerate(calls) if pid != member.pid]
    outcomes: dict[int, Outcome] = {}
    with _shared_buffers([call for _, _, call in away]) as segments:
        opened = _send(member, away, segments)
        for index, (pid, call) in enumerate(calls):
            if pid == member.pid:
                outcomes[index] = _run_here(member, call)
        for index, pid, _ in away:
            outcomes[index] = _outcome(pid, opened[index])
    return [outcomes[index] for index in range(len(calls))]


@contextmanager
def _shared_buffers(calls: list[Call]) -> Iterator[dict[int, Segment]]:
    """Shared memory for the large buffers of each call that several get, by the call's identity."""
    segments: dict[int, Segment] = {}
    try:
        for call in calls:
            parcel = call.parcel()
            large = [view for view in parcel.buffers if view.nbytes >= THRESHOLD]
            is_shared = len(calls) > 1 and all(other is call for other in calls)
            if large and is_shared and id(call) not in segments and not _has_large_globals(parcel):
                segments[id(call)] = Segment.store(large)
        yield segments
    finally:
        for segment in segments.values():
            segment.close()


def _has_large_globals(parcel: Parcel) -> bool:
    """Globals differ from connection to connection, so their buffers cannot be in a segment for all."""
    globals = (parcel.globals or {}).values()
    return any(view.nbytes >= THRESHOLD for shipped in globals for view in shipped.buffers)


def _send(
    member: Member, away: list[tuple[int, int, Call]], segments: dict[int, Segment]
) -> dict[int, OpenCall | Exception]:
    """Start the first call for each process; the others follow it. Returns each call, or why it could not be made."""
    opened: dict[int, OpenCall | Exception] = {}
    first: dict[int, OpenCall] = {}
    last: dict[int, OpenCall] = {}
    for index, pid, call in away:
        try:
            peer = last[pid].peer if pid in last else member.peer(pid)
        except Exception as error:  # it is gone, or cannot be reached from here
            opened[index] = error
            continue
        opened[index] = each = OpenCall(member, peer, call.parcel(), segments.get(id(call)))
        if pid in last:
            last[pid].following = each
        first.setdefault(pid, each)
        last[pid] = each
    for each in first.values():
        each.start()
    return opened


def _run_here(member: Member, call: Call) -> Outcome:
    try:
        return Outcome(member.pid, call.run())
    except Exception as error:  # the user's code
        return Outcome(member.pid, error=wrapped(member.pid, error))


def _outcome(pid: int, call: OpenCall | Exception) -> Outcome:
    if isinstance(call, Exception):
        return Outcome(pid, error=call)
    try:
        return Outcome(pid, call.value())
    except Exception as error:  # whatever it raised there
        return Outcome(pid, error=error)


def raise_failures(outcomes: Sequence[Outcome]) -> None:
    """Raise CompositeException when there is an error among them, with all of them in order."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if errors:
        raise CompositeException(errors, pids=[outcome.pid for outcome in outcomes if outcome.error is None])
