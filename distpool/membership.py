"""Who works here: adding and removing processes, and counting them.

``addprocs`` and ``rmprocs`` run on process 1 only, one at a time (a lock shared by both). A worker's way in::

    manager.launch -> WorkerConfig -> a stream -> JOIN -> JOINED -> member, told to all -> default pool

and out: EXIT, and if that is not obeyed within the grace time, SIGKILL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from distpool import lifecycle
from distpool import messages as m
from distpool.calls import remotecall_fetch
from distpool.cores import usable_cores
from distpool.errors import CompositeException
from distpool.joining import add_workers
from distpool.leaving import begin_removal, drain_and_remove, finish_removal, remove_workers
from distpool.light import Any, Final
from distpool.managers.interface import ClusterManager
from distpool.managers.local import LocalManager
from distpool.managers.machines import MachineSpec
from distpool.member import Member, default_member
from distpool.messages import DRIVER
from distpool.output import checked_mode
from distpool.peer import Reply
from distpool.serving import NOTHING
from distpool.transport import Deadline

# Seconds that a worker has to confirm the order to stop, before its manager is asked to send it a signal. Arbitrary.
ORDER_SECONDS: Final = 0.5
# What a manager may call the machine that process 1 runs on.
_THIS_MACHINE: Final = ("127.0.0.1", "::1", "localhost")


def myid() -> int:
    """Return the id of this process; 1 before any ``addprocs``. Never fails, asks nobody. Julia's ``myid``.

    >>> myid()
    1
    """
    return default_member().pid


def procs(pid: int | None = None) -> list[int]:
    """Return the ids of all processes, this one included, ascending; with ``pid`` those on the same machine as it.

    Without ``pid`` as this process knows it, at once; with it a worker asks process 1. Raises ValueError for a ``pid``
    that never was a process, ProcessExitedException for one that is gone. Julia's ``procs``.

    >>> pids = addprocs(2)
    >>> procs() == [1, *pids] == procs(pids[0])
    True
    >>> _ = rmprocs(pids)
    >>> procs()
    [1]
    """
    member = default_member()
    if pid is None:
        return member.cluster.procs()
    if member.pid != DRIVER:  # process 1 knows who runs where
        return remotecall_fetch(procs, DRIVER, pid)
    host = _host(member, pid)
    return [each for each in member.cluster.procs() if _host(member, each) == host]


def check_same_host(pids: Iterable[int]) -> bool:
    """Return whether all these processes run on one machine; asks process 1. Raises as ``procs(pid)`` does.

    >>> check_same_host([1])
    True
    """
    member = default_member()
    if member.pid != DRIVER:
        return remotecall_fetch(check_same_host, DRIVER, list(pids))
    return len({_host(member, pid) for pid in pids}) <= 1


def _host(member: Member, pid: int) -> str:
    """The machine of a process, as process 1 knows it; one name for this machine, however a worker here was started."""
    if not member.cluster.is_member(pid):
        raise member.cluster.absence(pid)
    config = member.configs.get(pid)
    host = config.host if config is not None else None
    return host if host is not None and host not in _THIS_MACHINE else "localhost"


def workers() -> list[int]:
    """Return the ids of all workers, ascending; ``[1]`` when there is none, so that work always has somewhere to go.

    As this process knows it, at once. Julia's ``workers``.

    >>> workers()
    [1]
    """
    return default_member().cluster.workers()


def nprocs() -> int:
    """Return the number of processes, this one included: of ``procs()``. Julia's ``nprocs``.

    >>> nprocs()
    1
    """
    return len(procs())


def nworkers() -> int:
    """Return the number of workers, of ``workers()``: so 1 when there is none. Julia's ``nworkers``.

    >>> nworkers()
    1
    """
    return len(workers())


def other_procs(pid: int | None = None) -> list[int]:
    """Return ``procs(pid)`` without this process; raises as that does. From Julia's DistributedNext.

    >>> other_procs()
    []
    """
    return [each for each in procs(pid) if each != myid()]


def other_workers() -> list[int]:
    """Return the ids of all workers but this process; empty when there is none. From Julia's DistributedNext.

    >>> workers(), other_workers()
    ([1], [])
    """
    return [pid for pid in procs() if pid not in (DRIVER, myid())]


# -- adding ------------------------------------------------------------------------------------------------------------


def addprocs(
    what: int | ClusterManager | Sequence[MachineSpec] | None = None,
    *,
    preload: Sequence[str] = (),
    timeout: float | None = None,
    on_failure: str = "raise",
    **options: Any,
) -> list[int]:
    """Start workers and return their ids, ascending, when all have joined.

    ``what`` is a number of local workers (None: as many as cores that this process may use), a list of machines that
    ssh can log in to, each ``"[user@]host[:port]"`` or such a text with a number of workers or "auto" (``SSHManager``
    tells more), or a ``ClusterManager``.
    Options: ``dir``, ``env``, ``exename``, ``exeflags``, ``enable_threaded_blas``, ``topology``, ``lazy``, ``output``,
    ``logging``, for local workers ``restrict``, for machines ``ssh``, ``sshflags``, ``shell``, ``venv``, ``tunnel``,
    ``multiplex``, ``max_parallel``, ``cmdline_cookie``; ``preload`` names modules that the workers of a machine share;
    ``timeout`` is the limit in seconds for one to join, by default the environment variable
    ``DISTPOOL_WORKER_TIMEOUT``, else 60.
    ``on_failure`` says what happens when some do not join: "raise" an error while the others stay, "warn" and return
    the others, or "rollback": remove the others and raise.

    What workers write to stdout and stderr, C code and programs they start included, is written line by line to this
    process's ``sys.stdout`` and ``sys.stderr`` as they are at that moment. ``output`` says how: "prefix" puts
    ``From worker N:`` and a tab before each line, "raw" nothing, "none" drops it all, and a callable
    ``(pid, "stdout" or "stderr", line)`` returns the text to write, or None; when it raises, the line gets the prefix.
    ``logging=True`` has what is logged in the workers handled by this process's ``logging``, from this process's root
    level on (or from the level given instead of True); such records carry the worker's id as ``record.worker``.

    Raises RuntimeError on a worker, ValueError for a negative number or a bad option value, TypeError for an unknown
    option, CompositeException when some did not join: one LaunchWorkerError each, and ``.pids`` has those that did.
    Julia's ``addprocs``.

    >>> pids = addprocs(2)
    >>> len(pids), workers() == pids
    (2, True)
    >>> rmprocs(pids).pids == pids
    True
    """
    member = default_member()
    _require_driver(member, "addprocs")
    if on_failure not in ("raise", "warn", "rollback"):
        raise ValueError(f"on_failure={on_failure!r}: it is 'raise', 'warn' or 'rollback'")
    if what is None:
        what = usable_cores()
    if isinstance(what, bool) or not isinstance(what, (int, list, tuple, ClusterManager)):
        raise TypeError(
            "addprocs() takes a number of workers, a list of machines such as ['host', ('host', 4)] or a "
            f"ClusterManager, not a {type(what).__name__}"
        )
    if isinstance(what, int):
        if what < 0:
            raise ValueError(f"addprocs({what}): the number of workers cannot be negative")
        restrict = bool(options.pop("restrict", True))
        manager: ClusterManager = LocalManager(what, restrict, reader=member.reader, preload=preload)
        params = _checked(manager, options)
    elif not isinstance(what, ClusterManager):
        from distpool.managers.ssh import SSHManager  # here: most programs stay on one machine

        manager = SSHManager(what)
        params = _checked(manager, {**options, "preload": tuple(preload)})
    else:
        manager = what
        params = {**manager.default_addprocs_params(), **options}
        if preload and "preload" in params:
            params["preload"] = tuple(preload)
    try:
        return add_workers(member, manager, params, timeout)
    except CompositeException as error:
        if on_failure == "raise":
            raise
        if on_failure == "rollback":
            remove_workers(member, error.pids)
            error.pids = []
            raise
        _warn("\n".join(["addprocs: not all workers have joined", *map(str, error.exceptions)]))
        return list(error.pids)


def _warn(text: str) -> None:
    import warnings  # rarely needed

    warnings.warn(text, RuntimeWarning, stacklevel=3)


def _require_driver(member: Member, deed: str) -> None:
    if member.pid != DRIVER:
        raise RuntimeError(f"{deed}() was called on process {member.pid}, but only process 1 may manage members")


def _checked(manager: ClusterManager, options: dict[str, Any]) -> dict[str, Any]:
    params = manager.default_addprocs_params()
    for name in options:
        if name not in params:
            raise TypeError(f"addprocs() has no option {name!r} for {manager!r}; it has {', '.join(sorted(params))}")
    params.update(options)
    if params["topology"] not in ("all_to_all", "master_worker", "custom"):
        raise ValueError(f"topology={params['topology']!r}: it is 'all_to_all', 'master_worker' or 'custom'")
    checked_mode(params["output"])
    return params


# -- removing ----------------------------------------------------------------------------------------------------------


class Removal:
    """The handle of a removal: ``wait`` until the processes are gone."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = list(pids)
        self._done = threading.Event()
        self._error: BaseException | None = None

    def wait(self, timeout: float | None = None) -> Removal:
        """Block until they are gone, or ``timeout`` seconds; raises TimeoutError then, or what the removal raised."""
        if not self._done.wait(timeout):
            raise TimeoutError(f"processes {self.pids} are not gone after {timeout} seconds")
        if self._error is not None:
            raise self._error
        return self

    def isready(self) -> bool:
        """True when they are gone, or the removal has failed."""
        return self._done.is_set()

    def __reduce__(self) -> tuple[Any, ...]:
        if not self._done.is_set() or self._error is not None:
            raise TypeError("the handle of a removal can be sent to another process only when the removal is done")
        return _finished_removal, (self.pids,)

    def run(self, remove: Callable[[], None]) -> None:
        """Do it, and remember how it ended."""
        try:
            remove()
        except BaseException as error:  # raised by wait()
            self._error = error
        finally:
            self._done.set()


def _finished_removal(pids: Sequence[int]) -> Removal:
    removal = Removal(pids)
    removal._done.set()
    return removal


def rmprocs(*pids: int | Iterable[int], waitfor: float | None = None, drain: bool = False) -> Removal:
    """Remove workers: each ends in good order, or is killed after a grace time. Returns a handle with ``wait``.

    ``waitfor`` is the limit in seconds for all of them (TimeoutError names those left), None waits as long as it takes,
    0 returns at once with the removal going on. With ``drain=True`` the workers get nothing more and first finish what
    they have; without it what runs is lost. Removing process 1 only warns; a process that is gone is skipped; one
    that never was is a ValueError; RuntimeError on a worker. Julia's ``rmprocs``.

    >>> removal = rmprocs(addprocs(1), waitfor=0)  # goes on
    >>> removal.wait(60).pids == removal.pids
    True
    """
    member = default_member()
    _require_driver(member, "rmprocs")
    wanted = _flat(pids)
    for pid in wanted:
        if pid != DRIVER and not member.cluster.is_member(pid) and not member.cluster.was_member(pid):
            raise ValueError(f"rmprocs({pid}): there never was such a process; procs() is {member.cluster.procs()}")
    if DRIVER in wanted:
        _warn("rmprocs: process 1 is not removed")
        wanted = [pid for pid in wanted if pid != DRIVER]
    removal = Removal(wanted)
    lifecycle.exiting(member, [pid for pid in wanted if member.cluster.is_member(pid)])
    if drain:
        if waitfor == 0:
            member.threads.run(lambda: removal.run(lambda: drain_and_remove(member, wanted, None)))
            return removal
        removal.run(lambda: drain_and_remove(member, wanted, waitfor))
        return removal.wait()
    if waitfor == 0:
        leaving = begin_removal(member, wanted)
        member.threads.run(lambda: removal.run(lambda: finish_removal(member, leaving, None)))
        return removal
    removal.run(lambda: remove_workers(member, wanted, waitfor))
    return removal.wait()


def interrupt(*pids: int | Iterable[int]) -> None:
    """Stop what workers are doing: each of their running requests fails with KeyboardInterrupt in a RemoteException.

    No arguments means all workers. Returns when the orders are sent. An idle worker is not harmed, and requests that
    come later are not affected; process 1 is left alone. What runs in a worker's main thread is interrupted where it
    is, C code that holds the interpreter when it next lets go; for other threads the caller is answered at once.
    Raises RuntimeError on a worker, ValueError for a pid that never was a process, ProcessExitedException for one that
    is gone. Julia's ``interrupt``.
    """
    member = default_member()
    if member.pid != DRIVER:
        raise RuntimeError(f"interrupt() was called on process {member.pid}, but only process 1 may interrupt workers")
    wanted = _flat(pids) if pids else workers()
    peers = [member.peer(pid) for pid in wanted if pid != DRIVER]
    orders = [(peer, Reply()) for peer in peers]
    for peer, reply in orders:
        member.send_request(peer, reply, m.INTERRUPT, NOTHING)
    deadline = Deadline(ORDER_SECONDS)
    for peer, reply in orders:
        has_heard = member.reader.wait(reply, deadline, eager=True)
        manager, config = member.managers.get(peer.pid), member.configs.get(peer.pid)
        # A worker that holds the interpreter reads no messages: a signal reaches it. One that has heard needs none.
        if manager is not None and config is not None and not (has_heard and manager.signals_the_deaf_only):
            manager.manage(peer.pid, config, "interrupt")


def _flat(pids: Iterable[Any]) -> list[int]:
    flat: list[int] = []
    for pid in pids:
        flat.extend([pid] if isinstance(pid, int) else _flat(pid))
    return flat
