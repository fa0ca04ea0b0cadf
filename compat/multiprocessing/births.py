"""The workers of a drop-in as processes of ``multiprocessing``: what each is told first, and how each is shown.

In the driver; what a worker does with what it is told is in ``worker``. Used by ``pool``, and by the executors of
``distpool.compat.futures``. Owns, for each pool: who its workers are.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from multiprocessing import process

import distpool

from . import carried
from .children import PoolWorker
from .worker import Role, become, worker_name

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any

# How often those look who ask for the workers before these have started, and for how long at most. Arbitrary.
LOOK_SECONDS = 0.002
START_SECONDS = 30.0


class Births:
    """The first argument of the first call of each worker of a pool: tells it who it is, another number each time."""

    def __init__(self, context: Any, kind: str) -> None:
        me = process.current_process()
        method = context.get_start_method()
        self._role = Role(method, bytes(me.authkey), me.name, os.getpid(), tuple(me._identity), kind, carried.current())
        self._numbers: dict[int, int] = {}  # by pid; counted with all processes of this one
        self._shown: dict[int, PoolWorker] = {}  # by pid

    def __reduce__(self) -> Any:
        number = self._numbers[distpool.current_peer()] = next(process._process_counter)  # type: ignore[attr-defined]
        return become, (self._role, number)

    def processes(self, pool: distpool.WorkerPool, places: int, is_over: Callable[[], object]) -> list[PoolWorker]:
        """Return the workers of a pool as process objects; waits until all places are taken, or ``is_over()``."""
        end = time.monotonic() + START_SECONDS
        while True:
            os_pids = pool.os_pids()
            if len(os_pids) >= places or is_over() or pool.broken is not None or time.monotonic() > end:
                break
            time.sleep(LOOK_SECONDS)
        known = self._shown
        self._shown = {pid: known.get(pid) or self._show(pid, os_pid) for pid, os_pid in os_pids.items()}
        return list(self._shown.values())

    def forget(self) -> None:
        """The pool has ended: give the descriptors of its processes back."""
        self._shown = {}

    def _show(self, pid: int, os_pid: int) -> PoolWorker:
        role = self._role
        identity = (*role.parent_identity, self._numbers.get(pid, 0))
        return PoolWorker(worker_name(role.start_method, identity, role.kind), identity, os_pid)
