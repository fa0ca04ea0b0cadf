"""What the pools of this process have done so far: a few counters for all of them, for whoever wants a summary.

Used by dispatch (tasks) and by pools (workers), from any thread. Owns the counters. They cost one addition for each
message of results, not for each task.
"""

from __future__ import annotations

import os
import threading

from distpool.light import Any, Final, NamedTuple


class Usage(NamedTuple):
    """What all pools of this process have done since it began; what workers do with pools of their own is theirs."""

    pools: int  # that were made, with workers of their own
    tasks: int  # that workers have done, with a result or an error; a task that died with its worker is not done
    task_seconds: float  # what these took there, all workers together
    workers_started: int  # of pools' own; also in the places of others, and those whose initializer failed
    workers_died: int  # without having been asked to end
    workers_replaced: int  # how many have got a successor, because they died or had done max_tasks_per_child


_counts: Final[dict[str, Any]] = dict.fromkeys(Usage._fields, 0)
_lock = threading.Lock()  # protects _counts


def usage() -> Usage:
    """Return what the pools of this process have done so far; see ``Usage``.

    Of pools that are gone, too. Julia has nothing like it.

    >>> from distpool import WorkerPool
    >>> before = usage()
    >>> with WorkerPool(processes=1) as pool:
    ...     pool.map(abs, range(10))
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    >>> usage().tasks - before.tasks, usage().pools - before.pools
    (10, 1)
    """
    with _lock:
        return Usage(**_counts)


def tasks_done(number: int, seconds: float) -> None:
    """Results of so many tasks have come, which took so long."""
    with _lock:
        _counts["tasks"] += number
        _counts["task_seconds"] += seconds


def tally(name: str, number: int = 1) -> None:
    """Add to a counter."""
    with _lock:
        _counts[name] += number


def _forget() -> None:
    """A forked copy of this process has done nothing yet."""
    global _lock
    _lock = threading.Lock()
    _counts.update(dict.fromkeys(Usage._fields, 0))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
