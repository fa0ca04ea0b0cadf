"""Being told when workers come and go: callbacks at four moments, and a small status for each worker.

For libraries that set up every worker of a cluster, or want to know what one was doing when it died. From
DistributedNext, the successor of Julia's Distributed. All of it on process 1, each callback in a thread of its own.
Errors: those of "starting" and "started" callbacks come out of ``addprocs`` (the workers stay), those of "exiting" and
"exited" are logged.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from distpool.callbacks import EXITED, EXITING, STARTED, STARTING, Running
from distpool.calls import remotecall_fetch
from distpool.light import Any, Final
from distpool.member import Member, default_member
from distpool.messages import DRIVER

# Seconds after which a callback that has not ended is warned about, and again after as many. DistributedNext's number.
WARNING_SECONDS: Final = 10.0
# Seconds that an orderly removal waits for "exiting" callbacks. DistributedNext's number.
EXITING_SECONDS: Final = 10.0


def add_worker_starting_callback(f: Callable[..., object], key: Hashable = None) -> Hashable:
    """Call ``f(manager, params)`` before each launch of workers. Returns the key, ``f`` itself unless given.

    ``params`` are the options of ``addprocs``, which waits for ``f`` and raises what it raises. Raises TypeError when
    ``f`` cannot take two arguments, ValueError when the key is in use. DistributedNext's.
    """
    return default_member().callbacks.add(STARTING, f, key)


def add_worker_started_callback(f: Callable[..., object], key: Hashable = None) -> Hashable:
    """Call ``f(pid)`` when a worker has joined. Returns the key, ``f`` itself unless given.

    ``addprocs`` returns when it has ended, and raises what it raises; the workers stay. Raises TypeError when ``f``
    cannot take one argument, ValueError when the key is in use. DistributedNext's.

    >>> from distpool import addprocs, rmprocs
    >>> joined = []
    >>> key = add_worker_started_callback(joined.append, "example")
    >>> pids = addprocs(1)
    >>> joined == pids
    True
    >>> remove_worker_started_callback(key)
    >>> _ = rmprocs(pids)
    """
    return default_member().callbacks.add(STARTED, f, key)


def add_worker_exiting_callback(f: Callable[..., object], key: Hashable = None) -> Hashable:
    """Call ``f(pid)`` before a worker is removed by ``rmprocs``, which waits for it at most 10 s.

    What it raises is logged. Returns the key, ``f`` itself unless given. Raises TypeError when ``f`` cannot take one
    argument, ValueError when the key is in use. DistributedNext's.
    """
    return default_member().callbacks.add(EXITING, f, key)


def add_worker_exited_callback(f: Callable[..., object], key: Hashable = None) -> Hashable:
    """Call ``f(pid, state)`` when a worker is gone: state is "terminated" when it was asked to, else "exterminated".

    Nobody waits for it, and what it raises is logged. Returns the key, ``f`` itself unless given. Raises TypeError when
    ``f`` cannot take two arguments, ValueError when the key is in use. DistributedNext's.
    """
    return default_member().callbacks.add(EXITED, f, key)


def remove_worker_starting_callback(key: Hashable) -> None:
    """Forget a callback; KeyError when there is none under this key."""
    default_member().callbacks.remove(STARTING, key)


def remove_worker_started_callback(key: Hashable) -> None:
    """Forget a callback; KeyError when there is none under this key."""
    default_member().callbacks.remove(STARTED, key)


def remove_worker_exiting_callback(key: Hashable) -> None:
    """Forget a callback; KeyError when there is none under this key."""
    default_member().callbacks.remove(EXITING, key)


def remove_worker_exited_callback(key: Hashable) -> None:
    """Forget a callback; KeyError when there is none under this key."""
    default_member().callbacks.remove(EXITED, key)


def setstatus(value: Any, key: Hashable, pid: int | None = None) -> None:
    """Keep one small value about a worker (default: this process) on process 1, under a key of your own.

    Readable by ``getstatus`` from everywhere, also inside an "exited" callback; forgotten after it. A worker's is sent
    to process 1 before this returns. Raises ValueError for a pid that never was a process, ProcessExitedException for
    one that is gone. DistributedNext's.

    >>> setstatus("loading", "deed")
    >>> getstatus("deed")
    'loading'
    """
    member = default_member()
    pid = member.pid if pid is None else pid
    if member.pid != DRIVER:
        remotecall_fetch(setstatus, DRIVER, value, key, pid)
        return
    if not member.cluster.is_member(pid):
        raise member.cluster.absence(pid)
    member.callbacks.set_status(value, key, pid)


def getstatus(key: Hashable, pid: int | None = None) -> Any:
    """Return what ``setstatus`` kept about a worker (default: this process); None when there is nothing.

    A worker asks process 1. Raises ValueError for a pid that never was a process. DistributedNext's.

    >>> getstatus("nothing of that name") is None
    True
    """
    member = default_member()
    pid = member.pid if pid is None else pid
    if member.pid != DRIVER:
        return remotecall_fetch(getstatus, DRIVER, key, pid)
    if not member.cluster.is_member(pid) and not member.cluster.was_member(pid):
        raise member.cluster.absence(pid)
    return member.callbacks.status(key, pid)


# -- told by joining and leaving ---------------------------------------------------------------------------------------


def starting(member: Member, manager: object, params: dict[str, Any]) -> None:
    """Run the "starting" callbacks; raises the first error."""
    _wait_and_raise(member.callbacks.begin(STARTING, manager, params))


def started(member: Member, pids: Iterable[int]) -> None:
    """Run the "started" callbacks for new workers; raises the first error."""
    _wait_and_raise([running for pid in pids for running in member.callbacks.begin(STARTED, pid)])


def exiting(member: Member, pids: Iterable[int]) -> None:
    """Run the "exiting" callbacks for workers that will be removed; none is waited for longer than 10 s."""
    for running in [running for pid in pids for running in member.callbacks.begin(EXITING, pid)]:
        if not running.wait(EXITING_SECONDS):
            _log(f"the callback {running.name} of an exiting worker has not ended after {EXITING_SECONDS} s: ignored")
        elif running.error is not None:
            _log(f"the callback {running.name} of an exiting worker raised {running.error!r}")


def watch_exits(member: Member) -> None:
    """Have the "exited" callbacks run whenever a worker of this cluster is gone."""
    if not member.watches_exits:
        member.watches_exits = True
        member.cluster.listen(departed=lambda pid, error: _exited(member, pid))


def _exited(member: Member, pid: int) -> None:
    departure = member.cluster.departure(pid)
    state = "terminated" if departure is not None and departure.was_asked else "exterminated"
    running = member.callbacks.begin(EXITED, pid, state)
    member.threads.run_unless_over(lambda: _after_exit(member, pid, running))


def _after_exit(member: Member, pid: int, callbacks: list[Running]) -> None:
    for running in callbacks:
        running.wait(None)
        if running.error is not None:
            _log(f"the callback {running.name} of the exited worker {pid} raised {running.error!r}")
    member.callbacks.forget(pid)


def _wait_and_raise(callbacks: list[Running]) -> None:
    for running in callbacks:
        while not running.wait(WARNING_SECONDS):
            _log(f"the callback {running.name} has not ended after {WARNING_SECONDS} s: still waiting")
    for running in callbacks:
        if running.error is not None:
            raise running.error


def _log(text: str) -> None:
    import logging  # rarely needed

    logging.getLogger("distpool").warning(text)
