"""Rows about a worker that is killed in the middle of a map: what it costs beyond the lost work.

`multiprocessing.Pool` has no figure: it waits for ever. The executors break; their users catch that, open a new pool
and do the rest again, which is what the contenders here do. The figure is the time taken, less an undisturbed run of
the same tasks just before, less the work that was lost with the worker.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests.bench import peers, work
from tests.bench.runner import Contender, Goal, Measure, Row, Scale

LOST = 0.1  # seconds of work that are lost with the worker
Task = tuple[str, float, float, bool]
Run = Callable[[list[Task]], object]


def _tasks(count: int, usual: float, deadly: int, path: str) -> list[Task]:
    """`count` tasks, of which `deadly` lasts twice what is lost and is killed half way (if `path` is given)."""
    tasks: list[Task] = [(path, LOST, usual, False)] * count
    tasks[deadly] = (path, LOST, 2 * LOST, bool(path))
    return tasks


def _over_lost_work(run: Run, count: int, usual: float, deadly: int) -> Measure:
    def timed(path: str) -> float:
        start = time.perf_counter()
        run(_tasks(count, usual, deadly, path))
        return time.perf_counter() - start

    def measure() -> float:
        undisturbed = timed("")
        with tempfile.TemporaryDirectory() as folder:
            return timed(os.path.join(folder, "died")) - undisturbed - LOST

    return measure


@contextmanager
def _ours(processes: int) -> Iterator[Run]:
    with peers.our_pool(processes) as pool:

        def run(tasks: list[Task]) -> None:
            assert len(pool.map(work.pause_or_die, *zip(*tasks, strict=True), retry_delays=(0,))) == len(tasks)

        yield run


@contextmanager
def _asked_again(processes: int) -> Iterator[Run]:
    """Our executor, which does not break: the one call that fails is submitted again."""
    from concurrent.futures.process import BrokenProcessPool

    with peers.executor_door(processes) as pool:

        def run(tasks: list[Task]) -> None:
            futures = [(pool.submit(work.pause_or_die, *task), task) for task in tasks]
            for future, task in futures:
                try:
                    future.result()
                except BrokenProcessPool:
                    pool.submit(work.pause_or_die, *task).result()

        yield run


@contextmanager
def _renewed(opened: Callable[[int], AbstractContextManager[Any]], processes: int) -> Iterator[Run]:
    """An executor that is thrown away when it breaks; what has no result yet is submitted to the next one."""
    from concurrent.futures.process import BrokenProcessPool

    current = opened(processes)
    pool = current.__enter__()

    def run(tasks: list[Task]) -> None:
        nonlocal current, pool
        missing = tasks
        while missing:
            futures = [(pool.submit(work.pause_or_die, *task), task) for task in missing]
            missing = []
            for future, task in futures:
                try:
                    future.result()
                except BrokenProcessPool:
                    missing.append(task)
            if missing:
                current.__exit__(None, None, None)
                current = opened(processes)
                pool = current.__enter__()

    try:
        yield run
    finally:
        current.__exit__(None, None, None)


def _contenders(count: int, usual: float, deadly: int, workers: int) -> Sequence[Contender]:
    def opened(way: Callable[[], AbstractContextManager[Run]]) -> Callable[[], AbstractContextManager[Measure]]:
        @contextmanager
        def contender() -> Iterator[Measure]:
            with way() as run:
                yield _over_lost_work(run, count, usual, deadly)

        return contender

    return [
        Contender("ProcessPoolExecutor, a new one", opened(lambda: _renewed(peers.executor, workers))),
        Contender("loky, a new one", opened(lambda: _renewed(peers.loky_executor, workers))),
        Contender("distpool", opened(lambda: _ours(workers))),
        Contender(peers.EXECUTOR_DOOR, opened(lambda: _asked_again(workers))),
    ]


def _in_the_middle(scale: Scale) -> Sequence[Contender]:
    count = scale.size(400, 60)
    return _contenders(count, 0.01, count // 2, scale.workers)


def _at_the_end(scale: Scale) -> Sequence[Contender]:
    count = scale.size(100, 20)
    return _contenders(count, 0.01, count - 1, scale.workers)


AT_MOST_100_MS = (Goal("at most 100 ms more than the lost work", 0.1),)
ROWS = [
    Row(
        "death",
        "worker killed in the middle of a map",
        _in_the_middle,
        goals=AT_MOST_100_MS,
        note="400 tasks of 10 ms; one, half way through the map, works 100 ms and is killed, and is run again for "
        "200 ms. Time over an undisturbed run and the 100 ms lost; below zero where the other workers use the time.",
    ),
    Row(
        "death-last",
        "worker killed in the last task of a map",
        _at_the_end,
        goals=AT_MOST_100_MS,
        note="The same with the last of 100 tasks: nothing else is left to do, so finding out and starting a worker "
        "are in plain sight.",
    ),
]
