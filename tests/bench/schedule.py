"""Rows about tasks of mixed length: how near a map with default settings comes to the ideal schedule.

The ideal is a list schedule: tasks in input order, each to the worker that is free first, moving them costs nothing. A
dispatcher that does not know durations beforehand cannot do better on purpose. The figure is the time taken in terms of
it.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.bench import peers, work
from tests.bench.doors import DOOR_GOALS, ExecutorOpener, PoolOpener
from tests.bench.runner import Contender, Goal, Measure, Row, Scale

ROUND = 0.001  # seconds; roughly what one round of `work.burn` takes


def ideal(durations: Sequence[float], workers: int) -> float:
    """Seconds that a list schedule of these durations takes."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def mixture(count: int) -> list[float]:
    """Durations in seconds: many of a millisecond, some of ten, a few of 150; the same ones every time."""
    dice = random.Random(9)
    kinds = [(0.0005, 0.002), (0.005, 0.02), (0.1, 0.2)]
    return [dice.uniform(*dice.choices(kinds, weights=(85, 13, 2))[0]) for _ in range(count)]


def _asleep(durations: Sequence[float], scale: Scale) -> Sequence[Contender]:
    best = ideal(durations, scale.workers)

    def in_terms_of_ideal(run: Callable[..., object]) -> Measure:
        def measure() -> float:
            start = time.perf_counter()
            run(work.pause, durations)
            return (time.perf_counter() - start) / best

        return measure

    return _contenders(in_terms_of_ideal, scale.workers)


def _computing(scale: Scale) -> Sequence[Contender]:
    # One CPU is left to the driver: on a full machine every pool would only measure the scheduler of the system.
    workers = max(2, scale.workers - 1)
    rounds = [max(1, round(duration / ROUND)) for duration in mixture(scale.size(600, 60))]

    def in_terms_of_ideal(run: Callable[..., list[float]]) -> Measure:
        def measure() -> float:
            start = time.perf_counter()
            consumed = run(work.burn, rounds)
            # CPU seconds that each task consumed in this very run: a machine that slows down does not count.
            return (time.perf_counter() - start) / ideal(consumed, workers)

        return measure

    return _contenders(in_terms_of_ideal, workers)


def _contenders(figure: Callable[[Callable[..., Any]], Measure], workers: int) -> Sequence[Contender]:
    @contextmanager
    def ours() -> Iterator[Measure]:
        with peers.our_pool(workers) as opened:
            yield figure(opened.map)

    @contextmanager
    def pool(opener: PoolOpener) -> Iterator[Measure]:
        with opener(workers) as opened:
            yield figure(opened.map)

    @contextmanager
    def pool_singly() -> Iterator[Measure]:
        with peers.mp_pool(workers) as opened:
            yield figure(lambda function, items: opened.map(function, items, chunksize=1))

    @contextmanager
    def executor(opener: ExecutorOpener) -> Iterator[Measure]:
        with opener(workers) as opened:
            yield figure(lambda function, items: list(opened.map(function, items)))

    @contextmanager
    def joblib() -> Iterator[Measure]:
        with peers.joblib_starmap(workers) as starmap:
            yield figure(lambda function, items: starmap(function, zip(items, strict=True)))

    return [
        Contender("multiprocessing.Pool", partial(pool, peers.mp_pool)),
        Contender("multiprocessing.Pool, chunksize=1", pool_singly),
        Contender("ProcessPoolExecutor", partial(executor, peers.executor)),
        Contender("joblib", joblib),
        Contender("distpool", ours),
        Contender(peers.POOL_DOOR, partial(pool, peers.pool_door)),
        Contender(peers.EXECUTOR_DOOR, partial(executor, peers.executor_door)),
    ]


def _shuffled(scale: Scale) -> Sequence[Contender]:
    return _asleep(mixture(scale.size(600, 60)), scale)


def _long_last(scale: Scale) -> Sequence[Contender]:
    return _asleep(sorted(mixture(scale.size(600, 60))), scale)


def _few_long(scale: Scale) -> Sequence[Contender]:
    return _asleep([0.2] * (2 * scale.workers + 2), scale)


WITHIN_5_PERCENT = (Goal("within 5 % of the ideal schedule", 1.05), *DOOR_GOALS)
ROWS = [
    Row(
        "mixed",
        "600 tasks of 1, 10 and 150 ms mixed",
        _shuffled,
        "x",
        WITHIN_5_PERCENT,
        "Tasks sleep, so the number of CPUs does not matter. Time in terms of the ideal schedule.",
    ),
    Row(
        "mixed-sorted",
        "the same, short ones first",
        _long_last,
        "x",
        WITHIN_5_PERCENT,
        "The worst order for batches that grow.",
    ),
    Row("mixed-few", "a few tasks of 200 ms", _few_long, "x", WITHIN_5_PERCENT, "Two per worker and two more."),
    Row(
        "mixed-cpu",
        "600 tasks that compute for 1, 10 and 150 ms",
        _computing,
        "x",
        WITHIN_5_PERCENT,
        "One worker less than CPUs. The ideal is computed from the CPU time that each task consumed.",
    ),
]
