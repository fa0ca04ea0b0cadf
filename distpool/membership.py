"""Who works here: adding and removing processes, and counting them.

``addprocs`` and ``rmprocs`` run on process 1 only, one at a time (a lock shared by both). A worker's way in::

    manager.launch -> WorkerConfig -> a stream -> JOIN -> JOINED -> member, told to all -> default pool

and out: EXIT, and if that is not obeyed within the grace time, SIGKILL.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

from distpool import messages as m
from distpool.calls import OpenCall, remotecall_fetch
from distpool.cluster import Departure
from distpool.errors import CompositeException, LaunchWorkerError
from distpool.managers.interface import ClusterManager, WorkerConfig, worker_timeout
from distpool.managers.interpreter import as_worker_process
from distpool.managers.local import LocalManager
from distpool.member import Member, default_member, existing_default
from distpool.messages import DRIVER
from distpool.output import Output, checked_mode, wait_until_shown
from distpool.peer import Peer, Reply
from distpool.pickling import dump
from distpool.transport import Deadline, Waiter

# Seconds between asking a worker to end and killing it. Short, for a local process that does not obey is stuck.
GRACE_SECONDS: Final = 2.0
# Seconds that a connection which is too late has to report why. Arbitrary.
REPORT_SECONDS: Final = 1.0
# The same at the end of the program: with the kill after it, everything is over within two seconds.
FAREWELL_SECONDS: Final = 1.0
# Seconds that the removal of a worker waits for the end of its output, which comes before its end is known, or just
# then. Only a program that it left behind can keep the output open. Arbitrary.
LAST_WORDS_SECONDS: Final = 0.5
# What a manager may call the machine that process 1 runs on.
_THIS_MACHINE: Final = ("127.0.0.1", "::1", "localhost")


def myid() -> int:
    """Return the id of this process; 1 before any ``addprocs``.

    >>> myid()
    1
    """
    return default_member().pid


def procs(pid: int | None = None) -> list[int]:
    """Return the ids of all processes, this one included, ascending; with ``pid`` those on the same machine as it.

    Raises ValueError for a ``pid`` that never was a process, ProcessExitedException for one that is gone.
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
    """Return the ids of all workers, ascending; ``[1]`` when there is none, so that work always has somewhere to go."""
    return default_member().cluster.workers()


def nprocs() -> int:
    """Return the number of processes, this one included."""
    return len(procs())


def nworkers() -> int:
    """Return the number of workers; 1 when there is none."""
    return len(workers())


def other_procs(pid: int | None = None) -> list[int]:
    """Return ``procs(pid)`` without this process. From Julia's DistributedNext."""
    return [each for each in procs(pid) if each != myid()]


def other_workers() -> list[int]:
    """Return the ids of all workers but this process; empty when there is none."""
    return [pid for pid in procs() if pid not in (DRIVER, myid())]


# -- adding ------------------------------------------------------------------------------------------------------------


def addprocs(
    what: int | ClusterManager | None = None,
    *,
    preload: Sequence[str] = (),
    timeout: float | None = None,
    on_failure: str = "raise",
    **options: Any,
) -> list[int]:
    """Start workers and return their ids, ascending, when all have joined.

    ``what`` is a number of local workers (None: as many as cores that this process may use) or a ``ClusterManager``.
    Options of local workers: ``dir``, ``env``, ``exename``, ``exeflags``, ``enable_threaded_blas``, ``topology``,
    ``lazy``, ``restrict``, ``output``, ``logging``; ``preload`` names modules that all of them share; ``timeout`` is
    the limit in seconds for one to join, by default the environment variable ``DISTPOOL_WORKER_TIMEOUT``, else 60.
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
    """
    member = default_member()
    _require_driver(member, "addprocs")
    if on_failure not in ("raise", "warn", "rollback"):
        raise ValueError(f"on_failure={on_failure!r}: it is 'raise', 'warn' or 'rollback'")
    if what is None:
        what = usable_cores()
    if isinstance(what, bool) or not isinstance(what, (int, ClusterManager)):
        raise TypeError(f"addprocs() takes a number of workers or a ClusterManager, not a {type(what).__name__}")
    if isinstance(what, int):
        if what < 0:
            raise ValueError(f"addprocs({what}): the number of workers cannot be negative")
        restrict = bool(options.pop("restrict", True))
        manager: ClusterManager = LocalManager(what, restrict, reader=member.reader, preload=preload)
        params = _checked(manager, options)
    else:
        manager = what
        params = {**manager.default_addprocs_params(), **options}
    try:
        return add_workers(member, manager, params, timeout)
    except CompositeException as error:
        if on_failure == "raise":
            raise
        if on_failure == "rollback":
            remove_workers(member, error.pids)
            error.pids = []
            raise
        _warn(f"addprocs: {error}")
        return list(error.pids)


def _warn(text: str) -> None:
    import warnings  # rarely needed

    warnings.warn(text, RuntimeWarning, stacklevel=3)


def usable_cores() -> int:
    """Return how many cores this process may really use: its affinity, and the quota of its control group.

    >>> usable_cores() >= 1
    True
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, quota) if quota is not None else cores)


def _cgroup_quota() -> int | None:
    """Read the quota of version 2, then of version 1; an empty or odd file means none (some containers have such)."""
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            amount, period = file.read().split()[:2]
        return None if amount == "max" else -(-int(amount) // int(period))
    except (OSError, ValueError):
        pass
    try:
        with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as file:
            quota = int(file.read())
        with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as file:
            return -(-quota // int(file.read())) if quota > 0 else None
    except (OSError, ValueError):
        return None


def _require_driver(member: Member, deed: str) -> None:
    if member.pid != DRIVER:
        raise RuntimeError(f"{deed}() was called on process {member.pid}, but only process 1 may manage members")


def _checked(manager: ClusterManager, options: dict[str, Any]) -> dict[str, Any]:
    params = manager.default_addprocs_params()
    for name in options:
        if name not in params:
            raise TypeError(f"addprocs() has no option {name!r} for local workers; it has {', '.join(sorted(params))}")
    params.update(options)
    if params["topology"] not in ("all_to_all", "master_worker", "custom"):
        raise ValueError(f"topology={params['topology']!r}: it is 'all_to_all', 'master_worker' or 'custom'")
    checked_mode(params["output"])
    return params


class _Launched:
    """Takes the workers as they are launched and begins to connect each at once, each with the whole time limit."""

    def __init__(self, member: Member, manager: ClusterManager, limit: float, params: dict[str, Any]) -> None:
        self.joining: list[_Joining] = []
        self._output = checked_mode(params.get("output", "prefix"))
        self._welcome = _log_request(member, params.get("logging", False))
        self._member = member
        self._manager = manager
        self._limit = limit

    def append(self, config: WorkerConfig) -> None:
        config.deadline = Deadline(self._limit)
        if config.output is None:  # a manager without ways of its own
            config.output = Output(self._output)
        self.joining.append(_Joining(self._member, self._manager, config, self._welcome))


    def abandon(self) -> None:
        """An interrupt ends ``addprocs``: what has not joined would be nobody's."""
        for joining in self.joining:
            joining.abandon()


class _Joining:
    """One worker on its way in: connected (at once, or on a call thread), then asked to join."""

    def __init__(self, member: Member, manager: ClusterManager, config: WorkerConfig, welcome: dict[str, Any]) -> None:
        self.pid = member.cluster.next_pid()
        self._welcome = welcome  # what it is told beside its id and the others'
        assert config.output is not None
        config.output.assign(self.pid)
        self.reply = Reply()
        self._member = member
        self._manager = manager
        self._config = config
        self._lock = threading.Lock()  # protects the two below: who connects may be late
        self._peer: Peer | None = None
        self._is_given_up = False
        self._connected = Waiter()
        self._problem: Exception | None = None  # why it could not be connected
        self._first_calls: list[OpenCall] = []  # each is sent when the one before has been answered
        config.process = as_worker_process(config.process, member.reader)
        if config.stream is not None:
            self._begin(config.stream)
            self._connected.complete()
        else:
            member.threads.run(self._connect)

    def _connect(self) -> None:
        """Have the manager connect it; what goes wrong is the worker's set-up error. Runs on a call thread."""
        try:
            self._begin(self._manager.connect(self.pid, self._config))
        except Exception as error:
            self._problem = error
        self._connected.complete()

    def _begin(self, stream: Any) -> None:
        with self._lock:
            if self._is_given_up:
                stream.close()
                return
            self._peer = self._member.connect(self.pid, stream, self._config)
        welcome = {**self._welcome, "pid": self.pid, "members": self._member.cluster.procs()}
        self._member.send_request(self._peer, self.reply, m.JOIN, dump(welcome))
        for parcel in self._member.first_calls:
            self._first_calls.append(OpenCall(self._member, self._peer, parcel))
        for one, other in pairwise(self._first_calls):
            one.following = other
        if self._first_calls:
            self._first_calls[0].start()

    def finish(self, deadline: Deadline) -> Exception | None:
        """Wait for its answer and make it a member; return what went wrong instead."""
        reader = self._member.reader
        too_late = f"worker {self.pid} did not join in time; raise timeout= or DISTPOOL_WORKER_TIMEOUT"
        # Connecting has the same time limit and knows better why it took too long: it gets a moment to say so.
        if not reader.wait(self._connected, Deadline((deadline.remaining() or 0.0) + REPORT_SECONDS)):
            return self._give_up(LaunchWorkerError(too_late))
        if self._problem is not None:
            return self._give_up(self._problem)
        if not reader.wait(self.reply, deadline, eager=True):
            return self._give_up(LaunchWorkerError(too_late))
        if self.reply.error is not None:
            text = f"worker {self.pid} ended before it had joined: {self.reply.error}"
            return self._give_up(LaunchWorkerError(text))
        facts = self._member.open(self._member.answer_of(self.reply))
        self._config.ospid = facts["os_pid"]
        self._config.environ = {"cpu_threads": facts["cpus"]}
        try:
            for call in self._first_calls:
                call.value(deadline)
        except Exception as error:
            text = f"worker {self.pid} could not run what everywhere(persist=True) asks of all that join: {error}"
            problem = LaunchWorkerError(text)
            problem.__cause__ = error
            return self._give_up(problem)
        assert self._peer is not None
        self._member.cluster.add(self._peer)
        self._manager.manage(self.pid, self._config, "register")
        return None

    def abandon(self) -> None:
        """Kill it if it has not joined, without waiting for its end."""
        if not self._member.cluster.is_member(self.pid):
            with self._lock:
                self._is_given_up = True
            self._manager.kill(self.pid, self._config)

    def _give_up(self, error: Exception) -> Exception:
        """Leave nothing of it: neither the process, if we have it, nor the connection."""
        with self._lock:
            self._is_given_up = True
            peer = self._peer
        process = self._config.process
        self._manager.kill(self.pid, self._config)
        if process is not None:
            gone = Waiter()
            process.watch(lambda code, signum: gone.complete())
            self._member.reader.wait(gone, Deadline(GRACE_SECONDS))
        elif peer is not None:
            self._member.cluster.depart(peer, Departure(was_asked=True))
        return error


def add_workers(
    member: Member, manager: ClusterManager, params: dict[str, Any], timeout: float | None = None
) -> list[int]:
    """``addprocs`` in a given cluster."""
    limit = worker_timeout() if timeout is None else timeout
    with member.membership_lock:
        launched = _Launched(member, manager, limit, params)
        if isinstance(manager, LocalManager):
            manager.attach(member.reader)
        failure: Exception | None = None
        try:
            manager.launch(params, launched)
        except Exception as error:  # the manager's own: raised below, after those that did start have joined
            failure = error
        except BaseException:
            launched.abandon()
            raise
        deadline = Deadline(limit)
        try:
            outcomes = [joining.finish(deadline) for joining in launched.joining]
        except BaseException:
            launched.abandon()
            raise
        errors = [outcome for outcome in outcomes if outcome is not None]
        pids = sorted(joining.pid for joining in launched.joining if member.cluster.is_member(joining.pid))
        tell_members(member)
    if failure is not None:
        raise failure
    if errors:
        problem = CompositeException(errors)
        problem.pids = pids
        raise problem
    return pids


def _log_request(member: Member, level: object) -> dict[str, Any]:
    """Return what a worker is told about log records; makes this process take them, if they are wanted."""
    if level is False or level is None:
        return {}
    from distpool import logs  # here: it imports logging

    return {"logging": logs.receive(member, level)}


def tell_members(member: Member) -> None:
    """Tell every worker who belongs to the cluster now."""
    news = dump(member.cluster.procs())
    for peer in member.cluster.peers():
        peer.send_parcel(m.MEMBERS, news)


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


def rmprocs(*pids: int | Iterable[int], waitfor: float | None = None) -> Removal:
    """Remove workers: each ends in good order, or is killed after a grace time. Returns a handle with ``wait``.

    ``waitfor`` is the limit in seconds for all of them (TimeoutError names those left), None waits as long as it takes,
    0 returns at once with the removal going on. Removing process 1 only warns; a process that is gone is skipped; one
    that never was is a ValueError; RuntimeError on a worker. Julia's ``rmprocs``.
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
    if waitfor == 0:
        leaving = begin_removal(member, wanted)
        member.threads.run(lambda: removal.run(lambda: finish_removal(member, leaving, None)))
        return removal
    removal.run(lambda: remove_workers(member, wanted, waitfor))
    return removal.wait()


def remove_workers(member: Member, pids: Sequence[int], waitfor: float | None = None) -> None:
    """``rmprocs`` in a given cluster, waiting."""
    with member.membership_lock:
        finish_removal(member, begin_removal(member, pids), waitfor)


def begin_removal(member: Member, pids: Sequence[int]) -> list[Peer]:
    """Take workers out of the membership and ask them to end; those that are gone are left out."""
    leaving = [peer for pid in pids if (peer := member.cluster.terminate(pid)) is not None]
    for peer in leaving:
        peer.send(m.EXIT)
    return leaving


def finish_removal(member: Member, leaving: Sequence[Peer], waitfor: float | None) -> None:
    """Wait until the processes have ended, killing those that do not obey."""
    deadline = Deadline(waitfor)
    grace = Deadline(GRACE_SECONDS if waitfor is None else min(GRACE_SECONDS, waitfor / 2))
    gone = [_Gone(member, peer) for peer in leaving]
    for each in gone:
        member.reader.wait(each, grace, eager=True)
    stubborn = [each for each in gone if not each.done]
    for each in stubborn:
        each.kill()
    for each in stubborn:
        member.reader.wait(each, deadline)
    for each in gone:
        each.forget()
    _await_output(gone)
    tell_members(member)
    left = [each.pid for each in gone if not each.done]
    if left:
        raise TimeoutError(f"processes {left} are not gone after {waitfor} seconds; they have been killed and will be")


class _Gone(Waiter):
    """Done when a process has departed."""

    __slots__ = ("_member", "output", "pid")

    def __init__(self, member: Member, peer: Peer) -> None:
        super().__init__()
        self.pid = peer.pid
        config = member.configs.get(peer.pid)
        # Where what it printed goes, if we are told when it ends.
        self.output = config.output if config is not None and config.process is not None else None
        self._member = member
        member.cluster.listen(_nothing, self._departed)
        if member.cluster.departure(peer.pid) is not None:
            self.complete()

    def _departed(self, pid: int, error: BaseException) -> None:
        if pid == self.pid:
            self.complete()

    def kill(self) -> None:
        import logging  # rarely needed

        config = self._member.configs.get(self.pid)
        if config is not None and config.process is not None:
            logging.getLogger("distpool").warning("worker %d did not end when asked; it is killed", self.pid)
            config.process.send_signal(9)

    def forget(self) -> None:
        self._member.cluster.unlisten(_nothing, self._departed)


def _await_output(gone: Sequence[_Gone]) -> None:
    """Wait, within bounds, until what ended workers have printed is shown; something may hold their output open."""
    deadline = Deadline(LAST_WORDS_SECONDS)
    for each in gone:
        if each.done and each.output is not None:
            each.output.wait_for_end(deadline)
    wait_until_shown()


def _nothing(pid: int) -> None:
    pass


def _flat(pids: Iterable[Any]) -> list[int]:
    flat: list[int] = []
    for pid in pids:
        flat.extend([pid] if isinstance(pid, int) else _flat(pid))
    return flat


def leave(member: Member) -> None:
    """End every worker of a cluster, within bounds: for the end of a pool or of the process."""
    with member.membership_lock:  # before looking: one that is just joining must not be overlooked
        finish_removal(member, begin_removal(member, [peer.pid for peer in member.cluster.peers()]), None)


def _leave_at_exit() -> None:
    """Let the workers of the default cluster end in good order, so that what they have printed is not lost.

    Without the membership lock: a thread that adds or removes workers just now may never give it back. What is left
    after the bounded time is killed with the fork server, whose exit handler was registered earlier and so runs later.
    """
    member = existing_default()
    if member is None or member.pid != DRIVER:
        return
    leaving = begin_removal(member, member.cluster.procs())
    if leaving:
        deadline = Deadline(FAREWELL_SECONDS)
        for each in [_Gone(member, peer) for peer in leaving]:
            member.reader.wait(each, deadline)
    member.print_notices()


atexit.register(_leave_at_exit)
