"""Worker pools: who is a member, who is idle, and work for whoever is.

``WorkerPool`` is the everyday object: over given processes, or with workers of its own (``processes=N``), which live in
a private cluster, are replaced when they die and removed when the pool closes. ``CachingPool`` keeps each callable at
the workers between calls. The default pool has every worker that ``addprocs`` made. A pool of any other kind needs only
the methods of ``AbstractWorkerPool``.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

from distpool.calls import call_and_fetch, call_into_future, do_in, wrapped
from distpool.cores import usable_cores
from distpool.dispatch import Dispatch
from distpool.errors import CompositeException, LaunchWorkerError, ProcessExitedException
from distpool.futures import TaskFuture
from distpool.jobs import CallJob, MapJob, Retries, StreamJob, next_number
from distpool.joining import add_workers
from distpool.leaving import leave
from distpool.managers.local import LocalManager
from distpool.member import Member, default_member, process_reader

from distpool.messages import DRIVER
from distpool.output import How, checked_mode
from distpool.pickling import Parcel, dump, dump_arguments, goes_by_name
from distpool.refs import Future
from distpool.transport import Deadline

T = TypeVar("T")

# Callables that a pool keeps at its workers, beside those in use; the least lately used goes first. Arbitrary: enough
# for a program's own functions, and a bound for one that makes a new lambda for each call.
KEPT_FUNCTIONS: Final = 64
# A pool gives up when so many workers per process died in a row before they finished anything.
STILLBIRTHS: Final = 3

_NOT_GIVEN: Any = object()


class AbstractWorkerPool:
    """What a pool promises: ``push``, ``put``, ``take``, ``wait``, ``isready``, ``workers``. Julia's type.

    With these it can be used wherever a pool is expected: ``remotecall(f, pool)``, ``remote(pool, f)``,
    ``pmap(f, pool, xs)``.
    """

    def push(self, pid: int) -> None:
        """Make a process a member, and free."""
        raise NotImplementedError(f"{type(self).__name__} has to define push(pid)")

    def put(self, pid: int) -> int:
        """Give a process back that ``take`` returned."""
        raise NotImplementedError(f"{type(self).__name__} has to define put(pid)")

    def take(self, timeout: float | None = None) -> int:
        """Return a free member and hold it, waiting for one."""
        raise NotImplementedError(f"{type(self).__name__} has to define take(timeout)")

    def wait(self, timeout: float | None = None) -> None:
        """Wait until a member is free; holds none."""
        raise NotImplementedError(f"{type(self).__name__} has to define wait(timeout)")

    def isready(self) -> bool:
        """True when ``take`` would return at once."""
        raise NotImplementedError(f"{type(self).__name__} has to define isready()")

    def workers(self) -> list[int]:
        """Return the members."""
        raise NotImplementedError(f"{type(self).__name__} has to define workers()")

    def nworkers(self) -> int:
        """Return the number of members."""
        return len(self.workers())

    def __len__(self) -> int:
        return len(self.workers())

    def __bool__(self) -> bool:
        return True  # an empty pool is still a pool

    # -- calls on a pool -----------------------------------------------------------------------------------------

    def remotecall(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``f`` on a free member, which is held until ``f`` is done."""
        pid = self.take()
        try:
            future = call_into_future(self._home(), f, pid, args, kwargs)
        except BaseException:
            self.put(pid)
            raise
        self._home().threads.run(lambda: self._put_when_done(future, pid))
        return future

    def _put_when_done(self, future: Future[Any], pid: int) -> None:
        try:
            future.wait()
        except BaseException:  # whoever fetches is told
            pass
        finally:
            self.put(pid)

    def remotecall_fetch(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Run ``f`` on a free member and return its result."""
        pid = self.take()
        try:
            return call_and_fetch(self._home(), f, pid, args, kwargs)
        finally:
            self.put(pid)

    def remotecall_wait(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run ``f`` on a free member and wait for it; raises what it raised."""
        return self.remotecall(f, *args, **kwargs).wait()

    def remote_do(self, f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Run ``f`` on a free member and forget it; the member is free again at once."""
        pid = self.take()
        try:
            do_in(self._home(), f, pid, args, kwargs)
        finally:
            self.put(pid)

    def _home(self) -> Member:
        """The cluster that the pids belong to."""
        return default_member()


class WorkerPool(AbstractWorkerPool):
    """A pool of workers: ``map`` and its relatives, ``submit``, and Julia's ``take`` and ``put``.

    ``WorkerPool([2, 3])`` uses processes that exist; ``WorkerPool(processes=4)`` starts four local workers of its own
    (``processes=None``: one for each core that this process may use), replaces those that die and removes them at the
    end of the ``with`` block. ``initializer(*initargs)`` runs on each of its own workers before any task; ``preload``
    names modules that they share. What they print is shown as ``output`` says (see ``addprocs``; by default as if it
    were printed here), what they log is handled here if ``logging`` says so.

    Raises ValueError for a pid that never was a process, ProcessExitedException for one that is gone, LaunchWorkerError
    when workers cannot be started, and what the initializer raised.

    >>> with WorkerPool(processes=2) as pool:
    ...     pool.map(lambda x: x * x, range(5))
    [0, 1, 4, 9, 16]
    """

    def __init__(
        self,
        pids: Iterable[int] | None = None,
        *,
        processes: int | None = _NOT_GIVEN,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        preload: Sequence[str] = (),
        output: How = "raw",
        logging: bool | int | str = False,
    ) -> None:
        self._owned: _OwnedWorkers | None = None
        if processes is not _NOT_GIVEN:
            if pids is not None:
                raise TypeError("WorkerPool() takes pids, or processes=, but not both")
            self._set_up(Member(DRIVER, process_reader()))
            options = {"output": checked_mode(output), "logging": logging}
            self._owned = _OwnedWorkers(self, processes, initializer, tuple(initargs), tuple(preload), options)
            self._owned.start()
            return
        if initializer is not None or preload or output != "raw" or logging is not False:
            names = "initializer=, preload=, output= and logging="
            raise TypeError(f"{names} are for workers of the pool's own: give processes= as well")
        self._set_up(default_member())
        for pid in pids or ():
            self.push(pid)

    def _set_up(self, member: Member) -> None:
        self._member = member
        self._dispatch = Dispatch(member)
        # For submit, by callable or its pickle; oldest first.
        self._functions: OrderedDict[Any, CallJob] = OrderedDict()
        self._functions_lock = threading.Lock()  # protects _functions
        self._is_closed = False
        self._os_pid = os.getpid()  # a forked copy of this process has neither the pool nor its workers
        member.cluster.listen(self._joined, self._departed)

    def __repr__(self) -> str:
        state = " closed" if self._is_closed else ""
        return f"<{type(self).__name__} of {self.workers()}{state}>"

    # -- members -------------------------------------------------------------------------------------------------

    def _home(self) -> Member:
        return self._member

    def _joined(self, pid: int) -> None:
        """A process has joined the cluster; the default pool takes it."""

    def _departed(self, pid: int, error: ProcessExitedException) -> None:
        if not self._dispatch.remove_worker(pid):
            return
        if self._owned is not None:
            self._owned.departed(pid, error)
        elif not self._dispatch.workers():
            self._dispatch.give_up(error)

    def push(self, pid: int) -> None:
        """Make a process a member; nothing happens if it is one already."""
        cluster = self._member.cluster
        if not cluster.is_member(pid):
            raise cluster.absence(pid)
        self._dispatch.add_worker(pid)

    def remove(self, pid: int) -> None:
        """Take a process out of the pool; it is not ended."""
        self._dispatch.remove_worker(pid)

    def workers(self) -> list[int]:
        """Return the members, free and busy."""
        return self._dispatch.workers()

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
    ) -> list[T]:
        """Return ``[f(x) for x in iterable]``, computed by the workers; with several iterables ``f(x, y, ...)``.

        The input is read as workers need it. How many tasks travel together is found by measuring; ``batch_size=n``
        fixes it. ``timeout`` limits each task, in seconds: one that takes longer is interrupted, if need be with its
        worker, and counts as failed with TimeoutError. A failed task is given to ``on_error(exception)``, whose value
        takes its place; without it, or when it raises, the task is tried again after each of ``retry_delays`` (seconds)
        as long as ``retry_check(attempt, exception)`` agrees. Handlers run in this process.

        Raises the error of the first failed task in input order: a RemoteException that is also of the original type,
        or ProcessExitedException when the worker died in it; the input's own error as it is; TypeError for what cannot
        be pickled.
        """
        options = map_options(batch_size, timeout, on_error, retry_delays, retry_check)
        return self._run(MapJob(f, _checked_input(iterables), **self._function(f), **options))

    def starmap(self, f: Callable[..., T], iterable: Iterable[Iterable[Any]], /, **options: Any) -> list[T]:
        """Return ``[f(*args) for args in iterable]``; options as for ``map``."""
        return self._run(MapJob(f, (iterable,), star=True, **self._function(f), **map_options(**options)))

    def _run(self, job: MapJob) -> list[Any]:
        self._check_open()
        return self._dispatch.run(job)

    def _function(self, f: Callable[..., Any]) -> dict[str, Any]:
        """How a job's callable travels: once per worker and job."""
        return {}

    def imap(
        self, f: Callable[..., T], /, *iterables: Iterable[Any], buffersize: int | None = None, **options: Any
    ) -> Iterator[T]:
        """Yield results in input order as soon as their turn comes; input may be infinite.

        At most ``buffersize`` tasks are read ahead of the consumer (None: a few envelopes for each worker). A failed
        task raises when its turn comes; the iterator ends with it. Dropping the iterator drops the tasks. Options as
        for ``map``.
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
        job = StreamJob(
            f,
            _checked_input(iterables),
            is_ordered=is_ordered,
            buffer_size=buffer_size,
            workers=len(self._dispatch.workers()),
            schedule=self._dispatch.schedule,
            **self._function(f),
            **map_options(**options),
        )
        return self._dispatch.stream(job)

    def submit(self, f: Callable[..., T], /, *args: Any, **kwargs: Any) -> TaskFuture[T]:
        """Run ``f(*args, **kwargs)`` on the first worker that is free; return its future at once.

        Arguments are pickled now. Raises TypeError, naming the part, when they cannot be.
        """
        self._check_open()
        job = self._call_job(f)
        future: TaskFuture[T] = TaskFuture(self._member, self._cancel)
        job.waiting.append((dump_arguments(args, kwargs), future))
        if not job.is_listed or self._dispatch.broken is not None:  # it was just given up in favour of others
            self._dispatch.start(job)
        self._dispatch.pump(job)
        self._member.reader.nudge()
        return future

    def _call_job(self, f: Callable[..., Any]) -> CallJob:
        key: Any = f
        function: Parcel | None = None
        if not goes_by_name(f):
            function = dump(f)
            if function.globals or function.buffers:  # what it mentions may change: it is sent anew each time
                return self._new_call_job(f, function, is_passing=True)
            key = function.body
        with self._functions_lock:
            job = self._functions.get(key)
            if job is not None:
                return job
            job = self._functions[key] = self._new_call_job(f, function, is_passing=False)
            old = self._functions.popitem(last=False)[1] if len(self._functions) > KEPT_FUNCTIONS else None
        if old is not None:
            self._dispatch.pass_on(old)
        return job

    def _new_call_job(self, f: Callable[..., Any], function: Parcel | None, is_passing: bool) -> CallJob:
        job = CallJob(f, self._dispatch.pump, function=function)
        job.is_passing = is_passing
        return job

    def _cancel(self, future: TaskFuture[Any], running: bool) -> bool:
        shipment = self._dispatch.find(future)
        if shipment is None:
            return not future.done()  # still here: it is left out when its turn comes
        if not running:
            return False
        index = next(i for i, item in enumerate(shipment.run.items) if item[1] is future)
        self._dispatch.stop(shipment, index)
        return True

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
            raise RuntimeError(f"this pool belongs to process {self._os_pid}, which forked this one; make a new pool here")
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed; make a new pool")
        if not self._dispatch.workers() and self._owned is None and self._dispatch.broken is None:
            raise RuntimeError(f"{self!r} has no workers; push some, or make it with processes=")

    def close(self) -> None:
        """Take no more work; end the pool's own workers when what was submitted is done. Harmless to repeat."""
        if self._is_closed or self._os_pid != os.getpid():
            return
        self._is_closed = True
        if self._owned is not None:
            self._owned.end(wait_for_work=True)
            self._dispatch.give_up(RuntimeError("the pool was closed before this task was done"))
        self._member.cluster.unlisten(self._joined, self._departed)

    def terminate(self) -> None:
        """Take no more work and end the pool's own workers at once, whatever they do."""
        if self._is_closed or self._os_pid != os.getpid():
            return
        self._is_closed = True
        if self._owned is not None:
            self._owned.end(wait_for_work=False)
            self._dispatch.give_up(RuntimeError("the pool was closed before this task was done"))
        self._member.cluster.unlisten(self._joined, self._departed)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.close()
        else:
            self.terminate()

    def __reduce__(self) -> Any:
        raise TypeError(f"{self!r} cannot be sent to another process yet; send its pids and make a pool of them there")


class _OwnedWorkers:
    """The workers of a pool's own: started, initialised, replaced, ended."""

    def __init__(
        self,
        pool: WorkerPool,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: tuple[Any, ...],
        preload: tuple[str, ...],
        options: dict[str, Any],
    ) -> None:
        wanted = usable_cores() if processes is None else processes
        if isinstance(wanted, bool) or not isinstance(wanted, int):
            raise TypeError(f"processes={processes!r}: a number of workers, or None for as many as there are cores")
        if wanted < 1:
            raise ValueError(f"processes={processes}: a pool needs at least one worker")
        self._pool = pool
        self._wanted = wanted
        self._initializer = initializer
        self._initargs = initargs
        self._preload = preload
        self._options = options  # of addprocs
        self._is_ending = False
        self._stillbirths = 0  # workers in a row that died before one was ready

    def start(self) -> None:
        """Start all workers and wait until they are ready."""
        try:
            self._add(self._wanted)
        except BaseException:
            self.end(wait_for_work=False)
            raise

    def _add(self, count: int) -> None:
        member = self._pool._member
        manager = LocalManager(count, reader=member.reader, preload=self._preload)
        try:
            pids = add_workers(member, manager, {**manager.default_addprocs_params(), **self._options})
        except CompositeException as error:
            raise LaunchWorkerError(f"{len(error)} of {count} workers of the pool did not start: {error}") from error
        if self._is_ending:  # it began before these had joined
            leave(member)
            return
        if self._initializer is not None:
            self._initialize(pids)
        for pid in pids:
            if member.cluster.is_member(pid):
                self._pool._dispatch.add_worker(pid)

    def _initialize(self, pids: list[int]) -> None:
        assert self._initializer is not None
        member = self._pool._member
        futures = [call_into_future(member, self._initializer, pid, self._initargs, {}) for pid in pids]
        for future in futures:
            future.wait()

    def departed(self, pid: int, error: ProcessExitedException) -> None:
        """One is gone: start another in its place. Told on the reading thread."""
        if not self._is_ending:
            self._pool._member.threads.run(self._replace)

    def _replace(self) -> None:
        try:
            self._add(1)
            self._stillbirths = 0
        except BaseException as error:  # reported to everyone whose task waits
            self._stillbirths += 1
            if self._is_ending:
                return
            if self._initializer is None and self._stillbirths < STILLBIRTHS * self._wanted:
                self._replace()
            elif not self._pool._dispatch.workers():
                self._pool._dispatch.give_up(wrapped(DRIVER, error))

    def end(self, wait_for_work: bool) -> None:
        """End the workers."""
        member = self._pool._member
        if wait_for_work:
            self._pool._dispatch.drain()
        self._is_ending = True
        if not wait_for_work:
            for config in list(member.configs.values()):
                if config.process is not None:
                    config.process.send_signal(9)
        leave(member)


class CachingPool(WorkerPool):
    """A pool that sends each callable to each worker at most once, with all it captured. Julia's ``CachingPool``.

    What a callable mentions is frozen at its first use in this pool; ``clear(pool)`` forgets all. A bounded number is
    kept, the least lately used goes first. It belongs to the process that made it and cannot be sent.

    >>> from distpool import addprocs, rmprocs
    >>> pids = addprocs(1)
    >>> CachingPool(pids).map(abs, [-1, 2])
    [1, 2]
    >>> _ = rmprocs(pids)
    """

    def __init__(self, pids: Iterable[int] | None = None) -> None:
        # By identity of the callable, which is kept alive so that the identity stays its own.
        self._cached: OrderedDict[int, tuple[Any, dict[str, Any]]] = OrderedDict()
        self._cached_lock = threading.Lock()  # protects _cached
        super().__init__(pids)

    def _function(self, f: Callable[..., Any]) -> dict[str, Any]:
        """How a callable travels: once per worker and pool."""
        with self._cached_lock:
            known = self._cached.get(id(f))
            if known is not None:
                self._cached.move_to_end(id(f))
                return known[1]
        options = {"function": dump(f), "number": next_number(), "is_kept": True}
        with self._cached_lock:
            options = self._cached.setdefault(id(f), (f, options))[1]  # another thread may have been quicker
            old = self._cached.popitem(last=False)[1] if len(self._cached) > KEPT_FUNCTIONS else None
        if old is not None:
            self._dispatch.forget(old[1]["number"])
        return options

    def _call_job(self, f: Callable[..., Any]) -> CallJob:
        job = CallJob(f, self._dispatch.pump, **self._function(f))
        job.is_passing = True
        return job

    def cached(self) -> list[Any]:
        """Return the callables that are kept, the least lately used first."""
        with self._cached_lock:
            return [f for f, _ in self._cached.values()]

    def clear(self) -> CachingPool:
        """Forget all callables, here and at the workers. Returns the pool."""
        with self._cached_lock:
            numbers = [options["number"] for _, options in self._cached.values()]
            self._cached.clear()
        for number in numbers:
            self._dispatch.forget(number)
        return self

    def __reduce__(self) -> Any:
        raise RuntimeError("a CachingPool belongs to the process that made it and cannot be sent to another")


class _DefaultPool(WorkerPool):
    """Every worker of the default cluster; this process itself while there is none."""

    def __init__(self, member: Member) -> None:
        self._owned = None
        self._set_up(member)
        for pid in member.cluster.procs():
            if pid not in (DRIVER, member.pid):
                self._dispatch.add_worker(pid)
        self._stand_in()

    def _stand_in(self) -> None:
        if not self._dispatch.workers():
            self._dispatch.add_worker(self._member.pid)

    def _joined(self, pid: int) -> None:
        self._dispatch.add_worker(pid)
        self._dispatch.remove_worker(self._member.pid)

    def _departed(self, pid: int, error: ProcessExitedException) -> None:
        self._dispatch.remove_worker(pid)
        self._stand_in()

    def __len__(self) -> int:
        return len([pid for pid in self.workers() if pid != self._member.pid])

    def take(self, timeout: float | None = None) -> int:
        """As ``WorkerPool.take``; process 1, as often as asked, while there is no worker."""
        if not len(self):
            return self._member.pid
        return super().take(timeout)

    def isready(self) -> bool:
        """As ``WorkerPool.isready``; True while there is no worker."""
        return not len(self) or super().isready()


_default_lock = threading.Lock()
_default: dict[int, AbstractWorkerPool] = {}  # by the identity of the default member


def default_worker_pool() -> AbstractWorkerPool:
    """Return the pool that ``remote(f)`` uses: all workers of the default cluster. Julia's ``default_worker_pool``.

    While there is no worker its ``take`` returns 1 and work runs in this process.

    >>> default_worker_pool().workers()
    [1]
    """
    member = default_member()
    with _default_lock:
        pool = _default.get(id(member))
        if pool is None:
            pool = _default[id(member)] = _DefaultPool(member)
        return pool


def set_default_worker_pool(pool: AbstractWorkerPool) -> AbstractWorkerPool:
    """Replace the default pool; return the one before. Julia's ``default_worker_pool!``."""
    if not isinstance(pool, AbstractWorkerPool):
        raise TypeError(f"set_default_worker_pool() takes a pool, not a {type(pool).__name__}")
    before = default_worker_pool()
    with _default_lock:
        _default[id(default_member())] = pool
    return before


def remote(*args: Any) -> Callable[..., Any]:
    """``remote(f)`` or ``remote(pool, f)``: return a callable that runs ``f`` on a free worker and returns its result.

    The default pool is looked up when it is called. Julia's ``remote``.

    >>> remote(divmod)(7, 2)
    (3, 1)
    """
    pool, f = (None, *args) if len(args) == 1 else args

    def call(*args: Any, **kwargs: Any) -> Any:
        where = pool if pool is not None else default_worker_pool()
        return where.remotecall_fetch(f, *args, **kwargs)

    call.__name__ = getattr(f, "__name__", "remote")
    return call


def _checked_input(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterable[Any], ...]:
    if not iterables:
        raise TypeError("map() needs at least one iterable")
    for iterable in iterables:
        iter(iterable) if not hasattr(iterable, "__next__") else None
    return iterables


def map_options(
    batch_size: int | str = "auto",
    timeout: float | None = None,
    on_error: Callable[[BaseException], Any] | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    """Check the options of a map and its relatives; return them as a job wants them."""
    if batch_size != "auto" and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size={batch_size!r}: a number of tasks from 1 on, or 'auto'")
    if timeout is not None and timeout <= 0:
        raise ValueError(f"timeout={timeout}: a number of seconds above 0, or None")
    delays = list(retry_delays)
    has_handlers = bool(delays) or on_error is not None
    return {
        "batch_size": None if batch_size == "auto" else batch_size,
        "timeout": timeout,
        "retries": Retries(delays, retry_check, on_error) if has_handlers else None,
    }
