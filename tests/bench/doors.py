"""What is asked of the drop-ins, in every row that has them: as good as our own pool, ahead of the original.

Used by the rows. They run the very code that is written for the class they replace.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing.pool import Pool

from tests.bench.peers import EXECUTOR_DOOR, POOL_DOOR
from tests.bench.runner import OURS, Goal

PoolOpener = Callable[[int], AbstractContextManager[Pool]]
ExecutorOpener = Callable[[int], AbstractContextManager[ProcessPoolExecutor]]


def _goals(door: str, replaced: str, ours: str) -> tuple[Goal, Goal]:
    return (
        Goal(f"{door}: within 15 % of {ours}", 1.15, ours, door),
        Goal(f"{door}: ahead of {replaced}", 1.0, replaced, door),
    )


def pool_goals(replaced: str = "multiprocessing.Pool", ours: str = OURS) -> tuple[Goal, Goal]:
    """For a row in which `Pool` stands beside the one that it replaces and our own."""
    return _goals(POOL_DOOR, replaced, ours)


def executor_goals(replaced: str = "ProcessPoolExecutor", ours: str = OURS) -> tuple[Goal, Goal]:
    """The same for `ProcessPoolExecutor`."""
    return _goals(EXECUTOR_DOOR, replaced, ours)


POOL_GOALS = pool_goals()
DOOR_GOALS = (*POOL_GOALS, *executor_goals())
