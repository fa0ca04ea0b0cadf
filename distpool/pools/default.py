"""The default pool: every worker that ``addprocs`` made, and ``remote``, which uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from distpool.light import TYPE_CHECKING, Any, later
from distpool.messages import DRIVER
from distpool.pools.abstract import AbstractWorkerPool
from distpool.pools.worker_pool import WorkerPool

if TYPE_CHECKING:
    from distpool import calls
    from distpool import member as members
    from distpool.errors import ProcessExitedException
    from distpool.member import Member
else:
    calls, members = later("distpool.calls"), later("distpool.member")


class DefaultPool(WorkerPool):
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
        self._leaving(pid)

    def _leaving(self, pid: int) -> None:
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

    On a worker it is a handle on the pool of process 1. While there is no worker its ``take`` returns 1 and work runs
    in this process.

    >>> default_worker_pool().workers()
    [1]
    """
    member = members.default_member()
    with _default_lock:
        pool = _default.get(id(member))
    if pool is None:
        if member.pid == DRIVER:
            made: AbstractWorkerPool = DefaultPool(member)
        else:  # process 1 has it; here it is a handle
            made = calls.call_and_fetch(member, default_worker_pool, DRIVER, (), {})
        with _default_lock:
            pool = _default.setdefault(id(member), made)
    return pool


def set_default_worker_pool(pool: AbstractWorkerPool) -> AbstractWorkerPool:
    """Replace the default pool; return the one before. Julia's ``default_worker_pool!``."""
    if not isinstance(pool, AbstractWorkerPool):
        raise TypeError(f"set_default_worker_pool() takes a pool, not a {type(pool).__name__}")
    before = default_worker_pool()
    with _default_lock:
        _default[id(members.default_member())] = pool
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
