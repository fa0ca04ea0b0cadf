"""Rows about starting: cold, a second time, with very many workers. Each sample is a fresh interpreter (`probe.py`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.bench.doors import executor_goals, pool_goals
from tests.bench.fresh import contenders
from tests.bench.peers import RUN_EACH
from tests.bench.runner import Contender, Goal, Row, Scale

FOUR = 4  # workers, whatever the machine: the goals are stated for four


def _starting(deed: str) -> Callable[[Scale], Sequence[Contender]]:
    return lambda scale: contenders(deed, list(RUN_EACH), FOUR)


def _many(workers: int) -> Callable[[Scale], Sequence[Contender]]:
    # Not those that start an interpreter per worker: 200 of them take most of a minute and say nothing new.
    names = ["distpool", "raw", "multiprocessing forkserver", "multiprocessing fork", "ProcessPoolExecutor fork"]
    return lambda scale: contenders("whole", names, scale.size(workers, workers // 4))


ROWS = [
    Row(
        "start-cold",
        "pool of 4 ready, first result from each, cold",
        _starting("cold"),
        goals=(
            Goal("at most a third of multiprocessing spawn", 1 / 3, "multiprocessing spawn"),
            Goal("at most a quarter of loky", 1 / 4, "loky"),
            *pool_goals("multiprocessing spawn"),
            *executor_goals("loky"),
        ),
        note="In a fresh interpreter, from before the import of the library; all four workers are in their first call "
        "at the same time. Raw: exec one bare interpreter that forks four times.",
    ),
    Row(
        "start-second",
        "pool of 4 ready, second pool in the process",
        _starting("second"),
        goals=(
            Goal("at most 1.5 × a forked ProcessPoolExecutor", 1.5, "ProcessPoolExecutor fork"),
            *pool_goals("multiprocessing fork"),
            *executor_goals("ProcessPoolExecutor fork"),
        ),
        note="The same after a first pool was opened and closed. Raw starts its bare interpreter anew.",
    ),
    Row(
        "workers-64",
        "64 workers start, serve 10 calls each, end",
        _many(64),
        note="All 64 are in a call at the same time.",
    ),
    Row(
        "workers-200",
        "200 workers start, serve 10 calls each, end",
        _many(200),
        note="All 200 are in a call at the same time.",
    ),
]
