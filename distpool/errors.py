"""Every error that distpool raises in its own name, in one tree.

Used by every room. No thread, no lock, no state.
One class per thing that a caller can *do* about it::

    Exception
    ├── CompositeException         several tasks of one operation failed: look at each   (3.11+: an ExceptionGroup)
    ├── RemoteStandIn              an exception that could not travel: read its text
    ├── ProtocolError              the bytes of a connection make no sense: report it
    │   ├── LocalProtocolError         we were about to send nonsense
    │   └── RemoteProtocolError        the peer sent nonsense
    ├── RuntimeError
    │   ├── RemoteException        your function raised it, in the process named: mend the function
    │   │   └── RemoteException(ValueError), ...    made as needed: also caught by `except ValueError`
    │   ├── ProcessExitedException     a process died: run its work again
    │   ├── LaunchWorkerError      a process did not start: look at the machine, the command, the time limit
    │   └── ChannelClosedError     nothing more will come, nothing more is accepted: stop
    └── OSError
        └── ConnectionError
            └── HandshakeError     a stranger, or another version, at the other end: check secret and versions

What a caller did wrong raises the built-in errors (ValueError, TypeError, TimeoutError); `distpool.compat` raises those
of the standard library.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from distpool.light import TYPE_CHECKING, Any, Final, overload

if TYPE_CHECKING:
    from typing_extensions import Self


class ChannelClosedError(RuntimeError):
    """The channel is closed: it takes no more items, and when it is empty it gives none (Julia: InvalidStateException).

    >>> from distpool.channel import Channel
    >>> channel = Channel(1)
    >>> channel.close()
    >>> channel.put(1)
    Traceback (most recent call last):
    distpool.errors.ChannelClosedError: the channel is closed: <Channel size=1, 0 items, closed>
    """


class LaunchWorkerError(RuntimeError):
    """A worker process did not start, or did not report in time.

    >>> str(LaunchWorkerError("worker on host7: no address line within 60 s"))
    'worker on host7: no address line within 60 s'
    """


class ProtocolError(Exception):
    """The messages of a connection make no sense; the connection is over, and the process at its other end with it.

    >>> issubclass(RemoteProtocolError, ProtocolError)
    True
    """


class LocalProtocolError(ProtocolError):
    """We were asked to send what the protocol does not allow: a fault of distpool, or of a custom transport.

    >>> str(LocalProtocolError("there is no message kind 99"))
    'there is no message kind 99'
    """


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol does not allow.

    >>> str(RemoteProtocolError("process 3 sent a frame of unknown kind 99"))
    'process 3 sent a frame of unknown kind 99'
    """


class HandshakeError(ConnectionError):
    """The process at the other end does not belong to this cluster, or speaks another version.

    >>> isinstance(HandshakeError("the cluster's secret does not match"), OSError)
    True
    """


class RemoteStandIn(Exception):
    """Stands for an exception that could not travel: its class is unknown here, or it holds what cannot be pickled.

    Attributes: ``type_name``, ``text`` (its ``str``) and ``formatted`` (its traceback, as text).

    >>> str(RemoteStandIn("lab.SensorError", "sensor 4 is dead"))
    'lab.SensorError: sensor 4 is dead'
    """

    def __init__(self, type_name: str, text: str, formatted: str = "") -> None:
        super().__init__(type_name, text, formatted)
        self.type_name = type_name
        self.text = text
        self.formatted = formatted

    def __str__(self) -> str:
        return _titled(self.type_name, self.text)


class CapturedException:
    """An exception as it was caught: the object, its formatted traceback, and the processes it has come through.

    ``hops`` are process ids, the latest first, the one that ran the failing code last; empty where the exception was
    raised. Whoever catches a `RemoteException` passes that one's own ``hops`` on. ``stage`` says when a pool's task
    failed: "opening" its arguments, before the function was called; "packing" its result, after it; else "".

    >>> CapturedException(ValueError("foobar"), hops=[3])
    CapturedException(ValueError('foobar'), hops=(3,))
    """

    __slots__ = ("ex", "hops", "stage", "traceback")

    def __init__(self, ex: BaseException, traceback: str = "", hops: Iterable[int] = (), stage: str = "") -> None:
        self.ex = ex
        self.traceback = traceback
        self.hops: tuple[int, ...] = tuple(hops)
        self.stage = stage

    def __repr__(self) -> str:
        return f"CapturedException({_safely(repr, self.ex)}, hops={self.hops})"


_ARGS: Final[Any] = BaseException.__dict__["args"]  # also where a class has an `args` of its own


class RemoteException(RuntimeError):
    """What you called raised an exception, in the process that ran it (which may be your own).

    What `fetch`, `pmap` and the pools raise is made by `remote_exception`, and is an instance of the original's type
    too wherever Python allows it: both ``except RemoteException`` and ``except ValueError`` catch it. One flat rule:
    however many processes it crossed, ``captured.ex`` is what your function raised, its chain intact (in Julia they
    nest), and ``captured.traceback`` its traceback as text. ``args`` are the original's; ``__cause__`` is the original.

    Args:
        pid: the process that caught it; left out, it is 0.
        captured: what was caught.
        hops: the processes it came through, nearest first, as the text shows them; by default ``pid`` and
            ``captured.hops``. For an exception of one's own process pass ``captured.hops``: no "On worker" line then.

    >>> error = RemoteException(2, CapturedException(ValueError("foobar"), hops=[3]))
    >>> print(error)
    On worker 2:
    On worker 3:
    ValueError: foobar
    >>> error.pid, error.hops, error.unwrap()
    (2, [2, 3], ValueError('foobar'))
    """

    @overload
    def __init__(self, pid: CapturedException, /) -> None: ...
    @overload
    def __init__(self, pid: int, captured: CapturedException, hops: Iterable[int] | None = None) -> None: ...
    def __init__(
        self,
        pid: int | CapturedException,
        captured: CapturedException | None = None,
        hops: Iterable[int] | None = None,
    ) -> None:
        if isinstance(pid, CapturedException):
            captured, pid = pid, 0
        if not isinstance(captured, CapturedException):
            raise TypeError(f"RemoteException needs a CapturedException, not {captured!r}; use CapturedException(exc)")
        self._fill(pid, captured, hops)

    def _fill(self, pid: int, captured: CapturedException, hops: Iterable[int] | None) -> None:
        if hops is None:
            # Caught twice in one process (a call to oneself inside a call from elsewhere): one level.
            here = (pid,) if pid and captured.hops[:1] != (pid,) else ()
            hops = here + captured.hops
        # Past everything that the original's class may have redefined: attribute access, even `args`.
        object.__getattribute__(self, "__dict__")["_origin"] = (pid, captured, list(hops))
        _ARGS.__set__(self, _ARGS.__get__(captured.ex))
        BaseException.__setattr__(self, "__cause__", captured.ex)

    # Properties over one entry of __dict__: slots would not mix with OSError and its like, and plain attributes would
    # meet those of the original (a user's exception may well have a `pid` of its own).
    @property
    def pid(self) -> int:
        """The process that caught it."""
        return self.__dict__["_origin"][0]  # type: ignore[no-any-return]

    @property
    def captured(self) -> CapturedException:
        """What was caught, with its traceback as text."""
        return self.__dict__["_origin"][1]  # type: ignore[no-any-return]

    @property
    def hops(self) -> list[int]:
        """The processes it came through, nearest first."""
        return self.__dict__["_origin"][2]  # type: ignore[no-any-return]

    def unwrap(self) -> BaseException:
        """Returns what your function raised, without any wrapping of ours."""
        ex = self.captured.ex
        while isinstance(ex, RemoteException):  # only where somebody captured one by hand
            ex = ex.captured.ex
        return ex

    def __str__(self) -> str:
        levels = [f"On worker {pid}:" for pid in self.hops]
        trace = ["", self.captured.traceback.rstrip()] if self.captured.traceback else []
        return "\n".join([*levels, _describe(self.captured.ex), *trace])

    def __repr__(self) -> str:
        return f"RemoteException({self.pid}, {_safely(repr, self.captured.ex)})"

    # All the ways to copy, because the original's class may define any of them for objects made its own way.
    def __reduce__(self) -> tuple[Any, ...]:
        return remote_exception if isinstance(self, _Mixed) else type(self), self.__dict__["_origin"]

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return self.__reduce__()

    def __copy__(self) -> RemoteException:
        make, origin = self.__reduce__()
        return make(*origin)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: object) -> RemoteException:
        return self.__copy__()  # what was captured is a record; nobody changes it


class _Mixed(RemoteException):
    """Base of the classes that `remote_exception` has made, in their method order before the original's class."""

    def __init_subclass__(cls) -> None:
        """Stops here: a user's own ``__init_subclass__`` (a registry, say) must not see classes that nobody wrote."""


def remote_exception(pid: int, captured: CapturedException, hops: Iterable[int] | None = None) -> RemoteException:
    """Makes the `RemoteException` to raise: an instance of the original's type too, where Python allows it.

    The original's ``__init__`` is not run again: fields, slots and ``__dict__`` are copied. A plain `RemoteException`
    it stays for what must not be caught by accident (KeyboardInterrupt, SystemExit), for StopIteration, which
    generators would turn into something else, and for classes that do not go along (odd metaclasses, layouts in C).

    >>> try:
    ...     raise remote_exception(3, CapturedException(KeyError("colour")))
    ... except KeyError as error:
    ...     print(type(error).__name__, error.args, error.pid)
    RemoteException(KeyError) ('colour',) 3
    """
    if _can_mix(type(captured.ex)):
        try:
            return _blend(pid, captured, hops)
        except Exception:  # anything can happen in a class that is not ours; the plain form always works
            pass
    return RemoteException(pid, captured, hops)


def _blend(pid: int, captured: CapturedException, hops: Iterable[int] | None) -> RemoteException:
    from distpool.blending import blend  # only for failures

    error: _Mixed = blend(captured.ex, _Mixed, RemoteException.__name__)
    error._fill(pid, captured, hops)
    if error.captured is not captured:
        raise TypeError(f"{type(captured.ex)} hides the attributes of RemoteException")
    return error


def _can_mix(original: type[BaseException]) -> bool:
    if issubclass(original, (RemoteException, StopIteration, StopAsyncIteration)):
        return False
    # A plain one is an instance of Exception and of RuntimeError already.
    return issubclass(original, Exception) and original not in RemoteException.__mro__


class ProcessExitedException(RuntimeError):
    """A process of the cluster is gone, and with it what it ran and kept. Run the work again if it may run twice.

    Also raised by every later use of its pid. All arguments are attributes, and None where nothing is known.

    Args:
        worker_id: its process id in the cluster; -1 if it had none. ``os_pid`` is the operating system's.
        exit_code: how it ended, if it ended itself; ``signal``: the number of the signal that ended it.
        detail: what else is known, such as "out of memory?".
        running: what it ran at the end.
        remedy: what to do about lost work, in the words of the function that was used; None: what is always true.

    >>> error = ProcessExitedException(3, os_pid=4711, signal=9, detail="out of memory?", running="resize('a.png')")
    >>> str(error).partition(". ")[0]
    "worker 3 (os pid 4711) was killed by SIGKILL (out of memory?) while it ran resize('a.png')"
    """

    def __init__(
        self,
        worker_id: int = -1,
        *,
        os_pid: int | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        detail: str | None = None,
        running: str | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(worker_id)
        # All in __dict__, which travels along when an exception is pickled.
        self.worker_id = worker_id
        self.os_pid = os_pid
        self.exit_code = exit_code
        self.signal = signal
        self.detail = detail
        self.running = running
        self.remedy = remedy

    def __str__(self) -> str:
        remedy = self.remedy or (
            "Its work and the values it kept are lost: run it again on "
            "another worker (pmap(..., retry_delays=[...]) does so); workers() lists who is left."
        )
        return f"{self.what_happened()}. {remedy}"

    def what_happened(self) -> str:
        """Say who ended and how, without the remedy for work that is lost."""
        who = "a worker process" if self.worker_id == -1 else f"worker {self.worker_id}"
        os_pid = f" (os pid {self.os_pid})" if self.os_pid is not None else ""
        detail = f" ({self.detail})" if self.detail else ""
        running = f" while it ran {self.running}" if self.running else ""
        return f"{who}{os_pid} {self._how()}{detail}{running}"

    def _how(self) -> str:
        if self.signal is not None:
            return f"was killed by {_signal_name(self.signal)}"
        return "is gone" if self.exit_code is None else f"exited with code {self.exit_code}"


if sys.version_info >= (3, 11):
    from builtins import ExceptionGroup

    _Group = ExceptionGroup[Exception]
else:

    class _Group(Exception):
        """As much of ExceptionGroup as is of use where the language has none."""

        def __new__(cls, message: str, exceptions: Sequence[Exception]) -> Self:
            group = super().__new__(cls, message, exceptions)
            group.message = message
            return group

        message: str


class CompositeException(_Group):
    """Several tasks of one operation failed: ``exceptions``, in the order in which the tasks were started.

    From Python 3.11 on it is an ``ExceptionGroup``, so ``except*`` works. A member that is no ``Exception``
    (KeyboardInterrupt) cannot be in such a group and is wrapped in a `RemoteException`. ``len`` and iteration are those
    of ``exceptions``. ``pids``: the processes that the operation did reach; for `addprocs`, the workers that joined.

    >>> error = CompositeException([ValueError("a"), KeyError("b")], pids=[2])
    >>> str(error), len(error), error.pids
    ('ValueError: a\\n\\n... and 1 more exception.', 2, [2])
    """

    def __new__(cls, exceptions: Iterable[BaseException] = (), *, pids: Iterable[int] = ()) -> Self:
        members = tuple(_as_member(each) for each in exceptions)
        # Python has no empty group, Julia has: what nobody sees takes the place.
        group: Self = super().__new__(cls, f"{len(members)} failed", members or (RuntimeError("no exception"),))
        group._members = members
        return group

    def __init__(self, exceptions: Iterable[BaseException] = (), *, pids: Iterable[int] = ()) -> None:
        self._members: tuple[Exception, ...]  # set by __new__, which alone sees the items of an iterator
        self.pids: list[int] = list(pids)

    @property
    def exceptions(self) -> tuple[Exception, ...]:
        """What failed, in the order in which the tasks were started."""
        return self._members

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Exception]:
        return iter(self._members)

    def __bool__(self) -> bool:
        return True  # an error is one, also without members

    def __str__(self) -> str:
        if not self._members:
            return type(self).__name__
        first, rest = _describe(self._members[0]), len(self) - 1
        return f"{first}\n\n... and {rest} more exception{'' if rest == 1 else 's'}." if rest else first

    def derive(self, excs: Sequence[Any], /) -> Any:
        """The part that ``except*`` or ``split`` picked, as Python asks for it."""
        return CompositeException(excs, pids=self.pids)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._members,), dict(self.__dict__)  # the state: pids, notes, what else was attached


def _as_member(ex: BaseException) -> Exception:
    if isinstance(ex, Exception):
        return ex
    if not isinstance(ex, BaseException):
        raise TypeError(f"CompositeException holds exceptions, not {ex!r}")
    return RemoteException(CapturedException(ex))


def _describe(ex: BaseException) -> str:
    """The last line of a traceback: type and text."""
    if isinstance(ex, RemoteStandIn):
        return str(ex)
    cls = type(ex)
    home = "" if cls.__module__ in ("builtins", "__main__") else f"{cls.__module__}."
    return _titled(home + cls.__qualname__, _safely(str, ex))


def _titled(name: str, text: str) -> str:
    return f"{name}: {text}" if text else name


def _safely(show: Callable[[BaseException], str], ex: BaseException) -> str:
    try:
        return show(ex)
    except Exception:  # a user's __str__ or __repr__; an error about an error helps nobody
        return f"<unprintable {type(ex).__name__}>"


def _signal_name(number: int) -> str:
    import signal  # not at the top: a process that starts has no death to report

    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"
