"""The everyday pool: ``map`` and its relatives, ``submit``, and Julia's ``take`` and ``put``.

Over given processes, or with workers of its own (``owned``). Work goes through the pool's ``Dispatch``; this room
checks what the user gave and makes jobs of it.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from distpool.light import TYPE_CHECKING, Any, TypeVar, later
from distpool.messages import DRIVER
from distpool.pools.making import Making
from distpool.pools.promising import Promising
from distpool.waiting import Deadline

if TYPE_CHECKING:
    from distpool import dispatch, futures, jobs, pickling
    from distpool import member as members
    from distpool.errors import ProcessExitedException
    from distpool.futures import TaskFuture
    from distpool.jobs import MapJob
    from distpool.managers.interface import ClusterManager
    from distpool.managers.machines import MachineSpec
    from distpool.member import Member
    from distpool.output import How
    from distpool.pools.owned import OwnedWorkers
    from distpool.refs import Future
else:  # imported with the first pool, while the fork server boots
    dispatch, futures, jobs = later("distpool.dispatch"), later("distpool.futures"), later("distpool.jobs")
    members, pickling = later("distpool.member"), later("distpool.pickling")

T = TypeVar("T")

_NOT_GIVEN: Any = object()


class WorkerPool(Promising):
    """A pool of workers: ``map`` and its relatives, ``submit``, and Julia's ``take`` and ``put``.

    ``WorkerPool([2, 3])`` uses processes that exist; ``WorkerPool(processes=4)`` starts four local workers of its own
    (``processes=None``: one for each core that this process may use), replaces those that die and removes them at the
    end of the ``with`` block. With ``manager=`` the workers of its own are those that a ``ClusterManager`` starts, all
    of them (``SlurmManager(8)``); ``machines=["h1", ("h2", 4)]`` are machines that ssh can log in to (``SSHManager``).
    The pool grows when more of them come, and is smaller after a death if the manager cannot start another. ``options``
    are those of ``addprocs`` that have no name here (``{"tls": True, "timeout": 300}``). ``initializer(*initargs)``
    runs on each of its own workers before any task; ``preload`` names modules that they share. What they print is shown
    as ``output`` says (see ``addprocs``; by default as if it were printed here), what they log is handled here if
    ``logging`` says so; ``env`` has environment variables for them, beside those of this process. With
    ``max_tasks_per_child=n`` a worker is replaced by a fresh one when it has run ``n`` tasks, however they were sent
    there (what ``remotecall`` runs on a taken worker does not count, a task that was cancelled on its way does). The
    next one is made ready while it runs the last ones, so there may be two processes for each place then.

    With ``wait=False`` the constructor returns at once: workers start meanwhile, tasks wait for them, and what the
    constructor would raise each task raises. With ``replace=False`` the first worker that dies takes the others with
    it, and every task that is not done fails with its ProcessExitedException.

    Raises ValueError for a pid that never was a process and for numbers below 1, TypeError for what is no number,
    ProcessExitedException for a pid that is gone, LaunchWorkerError when workers cannot be started, and what the
    initializer raised.

    >>> with WorkerPool(processes=2) as pool:
    ...     pool.map(lambda x: x * x, range(5))
    [0, 1, 4, 9, 16]
    """

    def __init__(
        self,
        pids: Iterable[int] | None = None,
        *,
        processes: int | None = _NOT_GIVEN,
        manager: ClusterManager | None = None,
        machines: Iterable[MachineSpec] | None = None,
        options: Mapping[str, Any] | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        preload: Sequence[str] = (),
        output: How = "raw",
        logging: bool | int | str = False,
        env: Mapping[str, str] | None = None,
        max_tasks_per_child: int | None = None,
        replace: bool = True,
        wait: bool = True,
    ) -> None:
        self._owned: OwnedWorkers | None = None
        if sum((pids is not None, processes is not _NOT_GIVEN, manager is not None, machines is not None)) > 1:
            raise TypeError("WorkerPool() takes one of pids, processes=, manager= and machines=")
        if machines is not None:
            from distpool.managers.ssh import SSHManager  # here: most programs stay on one machine

            manager = SSHManager(machines)
        if processes is not _NOT_GIVEN or manager is not None:
            if manager is None and not options:
                self.prepare(preload)
            from distpool.output import checked_mode  # here, and after that: the fork server boots meanwhile
            from distpool.pools.owned import OwnedWorkers
            from distpool.tallies import tally

            self._set_up(members.Member(DRIVER, members.process_reader()))
            how = {"output": checked_mode(output), "logging": logging, "env": dict(env or {}), **(options or {})}
            self._owned = OwnedWorkers(
                self._member,
                self._dispatch,
                processes if manager is None else manager,
                initializer,
                tuple(initargs),
                tuple(preload),
                max_tasks_per_child,
                replace,
                how,
            )
            self._dispatch.is_replenished = True
            tally("pools")
            # A pool that nobody has any more ends its workers: jobs under way and futures that wait keep it. Before
            # they start, as Ctrl-C may leave the pool to nobody at any moment.
            weakref.finalize(self, self._member.reader.run_soon, self._owned.last_resort()).atexit = False
            if wait:
                self._owned.start()
            else:
                self._owned.start_aside()
            return
        is_setting_up = initializer is not None or preload or env or options or max_tasks_per_child is not None
        if is_setting_up or not (replace and wait) or output != "raw" or logging is not False:
            names = (
                "initializer=, preload=, output=, logging=, env=, options=, max_tasks_per_child=, replace= and wait="
            )
            raise TypeError(f"{names} are for workers of the pool's own: give processes= or manager= as well")
        self._set_up(members.default_member())
        for pid in pids or ():
            self.push(pid)

    @staticmethod
    def prepare(preload: Sequence[str] = ()) -> None:
        """Have the process booted that forks local workers, in the background; the first pool comes sooner then.

        Of use to programs that know that they will have a pool and do something else first, such as imports. It is the
        process that all pools with the same ``preload`` have in common; it ends with the program. Not for the top of
        modules that workers import: each would boot one of its own. Returns at once, harmless to repeat. Raises nothing
        when that cannot be done: the pool will say why.

        >>> WorkerPool.prepare()
        """
        from distpool.managers.forks import boot

        boot(tuple(preload))

    def _set_up(self, member: Member) -> None:
        self._member = member
        self._dispatch = dispatch.Dispatch(member)
        self.callbacks = self.in_turn()  # of the futures of submit
        self._making = self._make_making()
        self._is_closed = False
        self._os_pid = os.getpid()  # a forked copy of this process has neither the pool nor its workers
        # The cluster must not keep the pool: it would never be collected.
        self._listeners = (_weakly(self._joined), _weakly(self._departed))
        member.cluster.listen(*self._listeners)
        self._leaving_listener = _weakly(self._leaving)
        self._stop_listening = threading.Lock()  # taken by the one who does, and kept
        member.cluster.listen_for_leaving(self._leaving_listener)
        self._left: set[int] = set()  # members that are being removed: they get nothing more, and are not gone yet

    def _make_making(self) -> Making:
        return Making(self._dispatch)

    def __repr__(self) -> str:
        state = " closed" if self._is_closed else ""
        return f"<{type(self).__name__} of {self.workers()}{state}>"

    # -- members -------------------------------------------------------------------------------------------------

    def _home(self) -> Member:
        return self._member

    def _joined(self, pid: int) -> None:
        """A process has joined the cluster; the default pool takes it."""

    def _departed(self, pid: int, error: ProcessExitedException) -> None:
        was_ours = self._dispatch.remove_worker(pid) or pid in self._left
        self._left.discard(pid)
        if self._owned is not None:
            self._owned.departed(pid, was_ours, error)
        elif was_ours and not self._dispatch.workers():
            self._dispatch.give_up(error)

    def _leaving(self, pid: int) -> None:
        if self._dispatch.remove_worker(pid):
            self._left.add(pid)

    def push(self, pid: int) -> None:
        """Make a process a member; nothing happens if it is one already."""
        cluster = self._member.cluster
        if not cluster.is_member(pid):
            raise cluster.absence(pid)
        self._dispatch.add_worker(pid)
        if self._owned is None:
            self._dispatch.hope()  # the pool may have lost its last worker before
            departure = cluster.departure(pid)
            if departure is not None:  # just before it was entered: nobody else takes it out again
                self._departed(pid, departure.error(pid))

    def remove(self, pid: int) -> None:
        """Take a process out of the pool; it is not ended."""
        self._dispatch.remove_worker(pid)

    def workers(self) -> list[int]:
        """Return the members, free and busy."""
        return self._dispatch.workers()

    def os_pids(self) -> dict[int, int]:
        """Return the operating system's process ids of the members, by pid; of those whose process is known here."""
        configs, found = self._member.configs, {}
        for pid in self._dispatch.workers():
            config = configs.get(pid)
            os_pid = getattr(config.process, "os_pid", None) if config is not None else None
            if os_pid is not None:
                found[pid] = os_pid
        return found

    def take(self, timeout: float | None = None) -> int:
        """Return a member that has nothing to do and hold it until ``put``; waits for one.

        Raises TimeoutError after ``timeout`` seconds, RuntimeError when the pool has no member.
        """
        pid = self._dispatch.take(Deadline(timeout))
        if pid is None:
            if not self._dispatch.workers():
                raise RuntimeError(f"{self!r} has no worker that could be taken")
            raise TimeoutError(f"no worker of {self!r} was free within {timeout} seconds")
        return pid

    def put(self, pid: int) -> int:
        """Give a worker back that ``take`` returned; any other is ignored. Returns the pid."""
        self._dispatch.put(pid)
        return pid

    def isready(self) -> bool:
        """True when ``take`` would return at once."""
        return self._dispatch.is_idle()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until a member has nothing to do; TimeoutError after ``timeout`` seconds."""
        self.put(self.take(timeout))

    # -- work ----------------------------------------------------------------------------------------------------

    def map(
        self,
        f: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        batch_size: int | str = "auto",
        timeout: float | None = None,
        on_error: Callable[[BaseException], Any] | None = None,
        retry_delays: Iterable[float] = (),
        retry_check: Callable[..., Any] | None = None,
        fail_fast: bool = True,
    ) -> list[T]:
        """Return ``[f(x) for x in iterable]``, computed by the workers; with several iterables ``f(x, y, ...)``.

        The input is read as workers need it. How many tasks travel together is found by measuring; ``batch_size=n``
        fixes it. ``timeout`` limits each task, in seconds: one that takes longer is interrupted, if need be with its
        worker, and counts as failed with TimeoutError. A failed task is given to ``on_error(exception)``, whose value
        takes its place; without it, or when it raises, the task is tried again after each of ``retry_delays`` (seconds)
        as long as ``retry_check(attempt, exception)`` agrees. Handlers run in this process. When a task has failed for
        good, those that have not begun are dropped; with ``fail_fast=False`` all are done before this raises.

        Raises the error of the first failed task in input order: a RemoteException that is also of the original type,
        or ProcessExitedException when the worker died in it; the input's own error as it is; TypeError for what cannot
        be pickled.
        """
        options = {
            "batch_size": batch_size,
            "timeout": timeout,
            "on_error": on_error,
            "retry_delays": retry_delays,
            "retry_check": retry_check,
        }
        return self._run(self._making.map_job(f, iterables, options, fail_fast=fail_fast))

    def starmap(
        self, f: Callable[..., T], iterable: Iterable[Iterable[Any]], /, *, fail_fast: bool = True, **options: Any
    ) -> list[T]:
        """Return ``[f(*args) for args in iterable]``; options as for ``map``."""
        return self._run(self._making.map_job(f, (iterable,), options, fail_fast=fail_fast, star=True))

    def _run(self, job: MapJob) -> list[Any]:
        self._check_open()
        return self._dispatch.run(job)

    def imap(
        self, f: Callable[..., T], /, *iterables: Iterable[Any], buffersize: int | None = None, **options: Any
    ) -> Iterator[T]:
        """Yield results in input order as soon as their turn comes; input may be infinite.

        At most ``buffersize`` tasks are read ahead of the consumer (None: a few envelopes for each worker), by whoever
        takes results or, when that is busy and workers are not, by another thread; ``map`` reads in the caller's. A
        failed task raises when its turn comes; the iterator ends with it. Dropping the iterator drops the tasks.
        Options as for ``map``.
        """
        return self._stream(f, iterables, True, buffersize, options)

    def imap_unordered(
        self, f: Callable[..., T], /, *iterables: Iterable[Any], buffersize: int | None = None, **options: Any
    ) -> Iterator[T]:
        """Yield results as they come; otherwise as ``imap``."""
        return self._stream(f, iterables, False, buffersize, options)

    def _stream(
        self,
        f: Callable[..., T],
        iterables: tuple[Iterable[Any], ...],
        is_ordered: bool,
        buffer_size: int | None,
        options: dict[str, Any],
    ) -> Iterator[T]:
        self._check_open()
        if buffer_size is not None and buffer_size < 1:
            raise ValueError(f"buffersize={buffer_size}: at least one task must be read ahead")
        return self._dispatch.stream(self._stream_job(f, iterables, is_ordered, buffer_size, options))

    def _width(self) -> int:
        return len(self._dispatch.workers()) if self._owned is None else self._owned.wanted

    def submit(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        """Run ``f(*args, **kwargs)`` on the first worker that is free; return its future at once.

        Arguments are pickled now. Raises TypeError, naming the part, when they cannot be.
        """
        future: TaskFuture[T] = futures.TaskFuture(self._member, self)
        self._send(future, f, args, kwargs)
        return future

    # -- calls on this pool go through its queue, so they never wait for each other ----------------------------------

    def remotecall(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As ``submit``: queued in the pool, so the caller does not wait for a free worker (in Julia it does)."""
        return self.submit(f, *args, **kwargs)

    def remotecall_fetch(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run ``f`` on the first free worker and return its result."""
        return self.submit(f, *args, **kwargs).result()

    # -- the end -------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._os_pid != os.getpid():  # no repr: a lock may have been held when the process was copied
            raise RuntimeError(
                f"this pool belongs to process {self._os_pid}, which forked this one; make a new pool here"
            )
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed; make a new pool")
        if self._owned is None and not self._dispatch.workers() and self._dispatch.broken is None:
            raise RuntimeError(f"{self!r} has no workers; push some, or make it with processes=")

    def close(self) -> None:
        """Take no more work; end the pool's own workers when what was submitted is done. Harmless to repeat.

        Returns when the callbacks of all futures have been made, too. Ctrl-C ends the wait, and the workers at once.
        """
        if self._is_closed or self._os_pid != os.getpid() or sys.is_finalizing():  # the last: the workers are gone
            return
        self._is_closed = True
        try:
            if self._owned is not None:
                self._owned.end(wait_for_work=True)
                self._dispatch.give_up(RuntimeError("the pool was closed before this task was done"))
                self.callbacks.wait()
            self._unlisten()
        except KeyboardInterrupt:
            self.terminate()
            raise

    def terminate(self, signal: int = 9) -> None:
        """Take no more work and end the pool's own workers at once, whatever they do; also while ``close`` waits.

        They get ``signal``; those that do not end by it within some seconds are killed. Harmless to repeat.
        """
        if self._os_pid != os.getpid() or sys.is_finalizing():
            return
        self._is_closed = True
        if self._owned is not None:
            self._owned.end(wait_for_work=False, signal=signal)
            self._dispatch.give_up(RuntimeError("the pool was closed before this task was done"))
        self._unlisten()

    def _unlisten(self) -> None:
        if self._stop_listening.acquire(False):  # close and terminate may both come here, more than once
            self._member.cluster.unlisten(*self._listeners)
            self._member.cluster.unlisten_for_leaving(self._leaving_listener)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.terminate()

    def __reduce__(self) -> Any:
        """Travel as a handle: what is done with it happens here, in the process that made the pool."""
        if not pickling.in_message():
            raise TypeError(f"{self!r} has a meaning only inside its cluster and cannot be pickled for anything else")
        from distpool.pools.handles import handle_of, register  # few pools travel

        return handle_of, (self._member.pid, register(self))


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """Return a function that calls a method as long as its object lives."""
    weak = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        target = weak()
        if target is not None:
            target(*args)

    return call
