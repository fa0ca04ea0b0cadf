"""Workers that Dask places: a task for each, on whichever of Dask's workers has a free thread.

Used by who calls ``addprocs(DaskManager(client))``. The task is a coroutine, so it holds a place in Dask's books (a
thread, the resources that were asked for) without blocking anything there: it starts the worker as a child of Dask's
worker and is over when that has ended. So Dask does not retire a machine on which one of ours runs, and an adaptive
cluster grows for those that wait. Actors would hold no place: Dask would retire what they stand on.

Ends: Dask's worker closes, or dies -> the task is cancelled, the kernel kills the child (``hosted``). Our process dies
-> the scheduler releases the task, which the child is told of by ``_Watch``. The cookie is an argument of the task.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

from distpool.managers.hosted import End, HostedWorker, Secret
from distpool.managers.interface import Launched
from distpool.managers.launches import Launch
from distpool.managers.placed import PlacedManager, PlacedProcess, needed
from distpool.tcp import LOOPBACK
from distpool.threads import CallThreads

# What the scheduler tells of, and what it says when a worker of Dask's has come.
_TOPIC: Final = "all"
_NEWCOMER: Final = "add-worker"


class DaskManager(PlacedManager):
    """Starts workers on the machines of a Dask cluster, each in the place of one of its threads.

    Args:
        client: a ``distributed.Client``, not an asynchronous one; whatever cluster stands behind it (dask-jobqueue,
        dask-kubernetes, dask-mpi, ...). count: the number of workers. None: one for each thread that the cluster has,
        and for each that it gets later (``cluster.scale``, ``adapt``). at_least: how many of them ``addprocs`` waits
        for; with None as count, of those that there is a thread for now. bind_addr: the address of this machine that
        Dask's workers reach (``DialBackManager``). options: what ``client.submit`` takes: ``workers`` (addresses, hosts
        or names), ``allow_other_workers``, ``resources``, ``priority``; with them ``count`` must be given.

    A worker counts as a running task of Dask's: its thread is not there for other tasks as long as it lives, a cluster
    that adapts grows for workers that wait, and does not retire a machine with one. Machines need the same distpool;
    workers run the Python that Dask has there unless ``exename`` names another. Those on this machine see what this
    process sees, others get functions by value.

    Raises ModuleNotFoundError without Dask (``pip install 'distpool[dask]'``), TypeError for a client that is none,
    ValueError for an asynchronous one, and without ``count`` for a cluster that has no thread or with ``options``.
    ``addprocs`` raises CompositeException when workers do not come. Each worker's exit code is known; one that does
    not end is killed; pools replace their dead.
    """

    engine = "Dask"

    def __init__(
        self,
        client: Any,
        count: int | None = None,
        *,
        at_least: int | None = None,
        bind_addr: str = LOOPBACK,
        **options: Any,
    ) -> None:
        distributed = needed("distributed", "dask", type(self).__name__)
        if not isinstance(client, distributed.Client):
            raise TypeError(f"DaskManager({client!r}): a distributed.Client is wanted, such as Client(cluster)")
        if client.asynchronous:
            raise ValueError("DaskManager() needs a client that is not asynchronous: Client(..., asynchronous=False)")
        if count is None and options:
            raise ValueError(f"with {', '.join(options)} it takes the number of workers, too: DaskManager(client, 4)")
        super().__init__(_threads(client) if count is None else count, at_least=at_least, bind_addr=bind_addr)
        self._client = client
        self._options = options
        self._follows = count is None
        self._lock_of_tasks = threading.Lock()  # protects the two below
        self._tasks: set[PlacedProcess] = set()  # not over yet
        self._growth: tuple[dict[str, Any], Launched] | None = None  # for whom to follow Dask when it grows

    def __repr__(self) -> str:
        return f"DaskManager({self._client!r}, {self.count})"

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Have Dask start the workers; return when enough have come."""
        if self._follows:
            with self._lock_of_tasks:
                self._growth = params, launched
            # There is one listener per topic and client; "all" is where the scheduler tells of workers.
            self._client.subscribe_topic(_TOPIC, self._heard)
        super().launch(params, launched)

    def place(self, launch: Launch, process: PlacedProcess, secret: Secret, command: list[str]) -> None:
        """Submit one task."""
        key = f"distpool-{launch.ticket}-{process.ident}"
        with self._lock_of_tasks:
            self._tasks.add(process)
        try:
            task = self._client.submit(host, key, command, secret, key=key, pure=False, **self._options)
        except BaseException:
            self._forget(process)
            raise
        process.has_begun(partial(self._cancel, task))
        # Not by a callback of the task's: those run on threads that there are no more of at the end of the program.
        self._client.loop.add_callback(self._follow, launch, process, task)

    def close(self) -> None:
        """Let no more workers come, and do not follow Dask any more. Those that have come go on."""
        self._unfollow()
        super().close()

    def end_with_us(self) -> None:
        """As ``close``, for the end of this process."""
        self._unfollow()
        super().end_with_us()

    def tell(self, launch: Launch) -> str:
        """How many threads Dask has, and what stands on them."""
        try:
            threads, tasks = self._client.nthreads(), self._client.processing()
        except Exception as error:  # the scheduler is gone
            return f"Dask does not answer: {error}"
        busy = sum(len(keys) for keys in tasks.values())
        return f"Dask has {sum(threads.values())} threads on {len(threads)} workers, and {busy} tasks given to them"

    async def _follow(self, launch: Launch, process: PlacedProcess, task: Any) -> None:
        """Wait until a task is over. On the client's thread."""
        outcome: End | BaseException
        try:
            outcome = End(*await task)
        except BaseException as error:  # what has kept the worker from starting; cancelled, by us or with the client
            outcome = error
        self._forget(process)
        self.ended(launch, process, outcome)

    def _forget(self, process: PlacedProcess) -> None:
        with self._lock_of_tasks:
            self._tasks.discard(process)

    def _cancel(self, task: Any) -> None:
        """Without waiting, for the client's own thread has to do it."""
        self._client.loop.add_callback(partial(self._client.cancel, [task], asynchronous=True))

    # -- growth ----------------------------------------------------------------------------------------------------

    def _heard(self, event: tuple[float, Any]) -> None:
        """Something has happened at the scheduler. On the client's thread."""
        if isinstance(event[1], dict) and event[1].get("action") == _NEWCOMER:
            self._threads.run(self._grow)

    def _grow(self) -> None:
        """Ask for workers for threads that nobody was asked for. What waits already gets them without us."""
        with self._lock_of_tasks:
            if self._growth is None:
                return
            params, launched = self._growth
            missing = _threads(self._client, at_least=0) - len(self._tasks)
        if missing > 0:
            try:
                self._run(self._new_launch(missing, params, launched), 0)
            except Exception as error:  # nobody waits for it
                launched.lost(error)

    def _unfollow(self) -> None:
        with self._lock_of_tasks:
            growth, self._growth = self._growth, None
        if growth is not None:
            with suppress(Exception):  # the client may be closed
                self._client.unsubscribe_topic(_TOPIC)


async def host(key: str, command: Sequence[str], secret: Secret) -> tuple[int, str]:
    """Start the worker and wait for its end. In a worker of Dask's, on its event loop."""
    from distributed import get_worker

    loop = asyncio.get_running_loop()
    over: asyncio.Future[End] = loop.create_future()
    plugins, tasks = get_worker().plugins, get_worker().state.tasks
    child = await loop.run_in_executor(None, HostedWorker, command, secret)

    def tell(end: End) -> None:
        if not over.done():  # cancelled
            over.set_result(end)

    def wait() -> None:
        end = child.wait()
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(tell, end)

    CallThreads("distpool hosted").run(wait)
    # Not by plugin_add(), which would log each.
    plugins[key] = _Watch(key, child)
    try:
        if key not in tasks or tasks[key].state not in _RUNS:  # it was released while the child was started
            child.kill()
        return await over
    finally:
        plugins.pop(key, None)
        child.kill()


# The states of a task that Dask still wants. It does not interrupt the others.
_RUNS: Final = ("executing", "long-running")


class _Watch:
    """A plugin of Dask's worker: ends the child when its task is released. Called on the event loop."""

    def __init__(self, key: str, child: HostedWorker) -> None:
        self._key = key
        self._child = child

    def transition(self, key: str, start: str, finish: str, **more: object) -> None:
        """A task there goes from one state to another."""
        if key == self._key and finish not in _RUNS:
            self._child.kill()


def _threads(client: Any, at_least: int = 1) -> int:
    """How many threads all of Dask's workers have."""
    threads = sum(client.nthreads().values())
    if threads < at_least:
        raise ValueError(f"{client!r} has no workers yet; say how many there will be: DaskManager(client, 4)")
    return int(threads)
