"""Calls of functions in other processes, by process id: ``remotecall`` and its three relatives.

What moves: the function and its arguments are pickled in the calling thread before the call returns, so later changes
are not seen; the result travels back (``remotecall_fetch``) or stays where it was made (``remotecall``). A call to the
own pid pickles nothing: arguments and results are the same objects (Julia's rule).
"""

from __future__ import annotations

from collections.abc import Callable

from distpool import messages as m
from distpool.errors import RemoteException, remote_exception
from distpool.light import Any, Protocol, TypeVar
from distpool.member import Member, default_member
from distpool.messages import RRID
from distpool.peer import Peer, Reply
from distpool.pickling import Parcel, capture, dump
from distpool.refs import Future
from distpool.segments import Segment
from distpool.serving import report_unraisable
from distpool.transport import Deadline, Waiter
from distpool.wire import Frame

T = TypeVar("T")


class Pool(Protocol):
    """What a call needs of a worker pool (``pools.AbstractWorkerPool``)."""

    def remotecall(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``AbstractWorkerPool``."""

    def remotecall_wait(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See ``AbstractWorkerPool``."""

    def remotecall_fetch(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """See ``AbstractWorkerPool``."""

    def remote_do(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """See ``AbstractWorkerPool``."""


def remotecall(f: Callable[..., T], pid: int | Pool, /, *args: Any, **kwargs: Any) -> Future[T]:
    """Run ``f(*args, **kwargs)`` in process ``pid``; return at once with a Future owned by that process.

    Raises ProcessExitedException for a process that is gone, ValueError for one that never was, TypeError when
    something cannot be pickled. What ``f`` raises comes out of ``fetch`` and ``wait`` of the Future, as a
    RemoteException. Julia's ``remotecall``; a failed local call raises on fetch here as well (there it returns the
    error).

    >>> remotecall(divmod, 1, 7, 2).fetch()
    (3, 1)
    """
    if not isinstance(pid, int):
        return pid.remotecall(f, *args, **kwargs)
    return call_into_future(default_member(), f, pid, args, kwargs)


class Completion(Waiter):
    """Done when a call has ended at its target, well or not; ``then`` is called at that moment and must not block."""

    __slots__ = ("_kept", "_then", "has_failed")

    def __init__(self, then: Callable[[], object] | None = None) -> None:
        super().__init__()
        self.has_failed = False
        self._kept: object = None
        self._then = then

    def keep(self, future: object) -> None:
        """Let the call's Future live until then: its owner says nothing about one that nobody holds any more."""
        self._kept = None if self.done else future

    def end(self, has_failed: bool) -> None:
        """Wake whoever waits."""
        self.has_failed = has_failed
        self.complete()
        self._kept = None
        then, self._then = self._then, None
        if then is not None:
            then()

    def arrived(self, frame: Frame) -> None:
        """The target says that it has ended."""
        self.end(bool(frame.flags & m.FLAG_ERROR))

    def lost(self, error: BaseException) -> None:
        """The target is gone."""
        self.end(True)


def call_into_future(
    member: Member,
    f: Callable[..., T],
    pid: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    completion: Completion | None = None,
) -> Future[T]:
    """``remotecall`` in a given cluster; ``completion`` is told when the call has ended."""
    rrid = member.next_rrid()
    if pid == member.pid:
        member.store.create(rrid)
        member.threads.run(lambda: _run_here(member, rrid, f, args, kwargs, completion))
        return Future.of(member, pid, rrid)
    peer, parcel = member.peer(pid), dump((f, args, kwargs), pid)
    future = Future.of(member, pid, rrid)  # before the call: an interrupt must not leave a result that nobody holds
    if completion is not None:
        member.send_request(peer, completion, m.CALL, parcel, *rrid)
        return future
    if not peer.send_parcel(m.CALL, parcel, whence=rrid.whence, ref=rrid.id):
        raise member.cluster.absence(pid)
    if peer.has_unsent:
        peer.wait_for_room()
    return future


def _run_here(
    member: Member,
    rrid: RRID,
    f: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    completion: Completion | None,
) -> None:
    try:
        value = f(*args, **kwargs)
        has_failed = False
    except BaseException as error:  # the user's code
        value, has_failed = wrapped(member.pid, error), True
    if rrid in member.store:  # else nobody holds it any more
        member.store.set_result(rrid, not has_failed, value)
    if completion is not None:
        completion.end(has_failed)


def wrapped(pid: int, error: BaseException) -> RemoteException:
    """Return an exception raised by user code in this process in the shape that callers of any process get."""
    if isinstance(error, RemoteException):
        return error
    captured = capture(error)
    result = remote_exception(pid, captured, captured.hops)  # the own process is no hop
    result.__cause__ = captured.ex
    return result


def remotecall_wait(f: Callable[..., T], pid: int | Pool, /, *args: Any, **kwargs: Any) -> Future[T]:
    """As ``remotecall``, but return when ``f`` is done; raises what it raised. The value stays at ``pid``.

    >>> remotecall_wait(len, 1, "abc").isready()
    True
    """
    if not isinstance(pid, int):
        return pid.remotecall_wait(f, *args, **kwargs)
    member = default_member()
    if pid == member.pid:
        return call_into_future(member, f, pid, args, kwargs).wait()
    rrid = member.next_rrid()
    peer, parcel = member.peer(pid), dump((f, args, kwargs), pid)
    future = Future.of(member, pid, rrid)  # before the call: what fails, or is interrupted, is given back with it
    member.open_answer(peer, member.request(peer, m.CALL_WAIT, parcel, rrid.whence, rrid.id))
    return future


def remotecall_fetch(f: Callable[..., T], pid: int | Pool, /, *args: Any, **kwargs: Any) -> T:
    """Run ``f(*args, **kwargs)`` in process ``pid`` and return its result: one message there, one back.

    Raises what ``f`` raised as a RemoteException that is also an instance of the original type; otherwise as
    ``remotecall``, and ProcessExitedException when the process ends before it answers. Julia's ``remotecall_fetch``.

    >>> remotecall_fetch(len, 1, "abc")
    3
    """
    if not isinstance(pid, int):
        return pid.remotecall_fetch(f, *args, **kwargs)  # type: ignore[no-any-return]
    return call_and_fetch(default_member(), f, pid, args, kwargs)


def call_and_fetch(member: Member, f: Callable[..., T], pid: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """``remotecall_fetch`` in a given cluster."""
    if pid == member.pid:
        try:
            return f(*args, **kwargs)
        except Exception as error:
            failure = wrapped(pid, error)
            raise failure from failure.captured.ex
    peer = member.peer(pid)
    frame = member.request(peer, m.CALL_FETCH, dump((f, args, kwargs), pid))
    return member.open_answer(peer, frame)  # type: ignore[no-any-return]


class OpenCall(Reply):
    """A ``remotecall_fetch`` under way, pickled already; ``following`` is sent when it has been answered."""

    __slots__ = ("_member", "_parcel", "_segment", "following", "peer")

    def __init__(self, member: Member, peer: Peer, parcel: Parcel, segment: Segment | None = None) -> None:
        super().__init__()
        self.peer = peer
        self.following: OpenCall | None = None
        self._member = member
        self._parcel = parcel
        self._segment = segment

    def start(self) -> None:
        """Send it. Never blocks on the reading thread."""
        self._member.send_request(self.peer, self, m.CALL_FETCH, self._parcel, segment=self._segment)

    def arrived(self, frame: Frame) -> None:
        """Take the answer, and send the next."""
        super().arrived(frame)
        if self.following is not None:
            self.following.start()

    def lost(self, error: BaseException) -> None:
        """The process is gone; the next call finds that out itself."""
        super().lost(error)
        if self.following is not None:
            self.following.start()

    def value(self, deadline: Deadline | None = None) -> Any:
        """Wait and return the value, or raise what came instead; TimeoutError when the deadline has passed."""
        if not self._member.reader.wait(self, deadline, eager=True):
            raise TimeoutError(f"process {self.peer.pid} has not answered in time")
        return self._member.open_answer(self.peer, self._member.answer_of(self))


def remote_do(f: Callable[..., Any], pid: int | Pool, /, *args: Any, **kwargs: Any) -> None:
    """Run ``f(*args, **kwargs)`` in process ``pid`` and forget it; what it raises is printed on that process's stderr.

    Calls from one process to another are started in the order in which they were made. Returns None at once; raises as
    ``remotecall`` does for a process that cannot be reached and for what cannot be pickled. Julia's ``remote_do``.

    >>> remote_do(print, 1, end="")
    """
    if not isinstance(pid, int):
        pid.remote_do(f, *args, **kwargs)
        return
    do_in(default_member(), f, pid, args, kwargs)


def do_in(member: Member, f: Callable[..., Any], pid: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """``remote_do`` in a given cluster."""
    if pid == member.pid:
        member.threads.run(lambda: _do_here(member, f, args, kwargs))
        return
    peer = member.peer(pid)
    if not peer.send_parcel(m.DO, dump((f, args, kwargs), pid)):
        raise member.cluster.absence(pid)
    if peer.has_unsent:
        peer.wait_for_room()


def _do_here(member: Member, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        f(*args, **kwargs)
    except BaseException as error:  # the user's code
        report_unraisable(member.pid, error)
