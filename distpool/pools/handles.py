"""A pool as other processes see it: a handle, whose every deed is done in the process that made the pool.

So one pool can be shared by a whole cluster, and a worker that is taken here is not free there. The handle does not
keep the pool alive; it dies with its maker.
"""

from __future__ import annotations

import threading
from itertools import count
from weakref import WeakKeyDictionary, WeakValueDictionary

from distpool.calls import call_and_fetch
from distpool.light import Any
from distpool.member import Member, opening_member
from distpool.pools.abstract import AbstractWorkerPool

_next_number = count(1).__next__
_lock = threading.Lock()  # protects the two below together
_pools: WeakValueDictionary[int, AbstractWorkerPool] = (
    WeakValueDictionary()
)  # pools of this process that were sent away
_numbers: WeakKeyDictionary[AbstractWorkerPool, int] = WeakKeyDictionary()


def register(pool: AbstractWorkerPool) -> int:
    """Return the number under which handles ask for this pool."""
    with _lock:
        number = _numbers.get(pool)
        if number is None:
            number = _numbers[pool] = _next_number()
            _pools[number] = pool
        return number


def handle_of(home: int, number: int) -> AbstractWorkerPool:
    """Return what a pool is in this process: the pool itself at home, a handle elsewhere."""
    member = opening_member()
    return _find(number) if home == member.pid else PoolHandle(member, home, number)


def _find(number: int) -> AbstractWorkerPool:
    pool = _pools.get(number)
    if pool is None:
        raise LookupError("the pool that this handle belongs to is gone")
    return pool


def _do(number: int, name: str, args: tuple[Any, ...]) -> Any:
    """Do something with a pool of this process, for a handle."""
    return getattr(_find(number), name)(*args)


class PoolHandle(AbstractWorkerPool):
    """A pool that lives in another process of the cluster."""

    def __init__(self, member: Member, home: int, number: int) -> None:
        self._member = member
        self._place = (home, number)

    def __repr__(self) -> str:
        return f"<PoolHandle of pool {self._place[1]} on process {self._place[0]}>"

    def _home(self) -> Member:
        return self._member

    def _ask(self, name: str, *args: Any) -> Any:
        home, number = self._place
        return call_and_fetch(self._member, _do, home, (number, name, args), {})

    def push(self, pid: int) -> None:
        """Make a process a member, and free."""
        self._ask("push", pid)

    def put(self, pid: int) -> int:
        """Give a process back that ``take`` returned."""
        return int(self._ask("put", pid))

    def take(self, timeout: float | None = None) -> int:
        """Return a free member and hold it, waiting for one; nobody else gets it, wherever they ask."""
        return int(self._ask("take", timeout))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until a member is free."""
        self._ask("wait", timeout)

    def isready(self) -> bool:
        """True when ``take`` would return at once."""
        return bool(self._ask("isready"))

    def workers(self) -> list[int]:
        """Return the members."""
        return list(self._ask("workers"))

    def nworkers(self) -> int:
        """Return the number of members."""
        return int(self._ask("nworkers"))

    def __len__(self) -> int:
        return int(self._ask("__len__"))

    def __reduce__(self) -> Any:
        return handle_of, self._place
