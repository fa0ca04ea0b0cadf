"""Rows about single calls: the empty round trip, and many submissions one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from tests.bench import peers, raw, work
from tests.bench.doors import DOOR_GOALS, ExecutorOpener, PoolOpener, executor_goals, pool_goals
from tests.bench.runner import Contender, Goal, Measure, Row, Scale

SUBMIT = "distpool submit"  # what a call through a drop-in is to be compared with
WINDOW = 100  # requests in flight in the raw limit of single submissions; arbitrary, more changes nothing


def per_call(call: Callable[[], object], count: int) -> Measure:
    """Seconds of one call, the mean of `count`."""

    def measure() -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    return measure


@contextmanager
def by_hand(count: int, over_tcp: bool = False) -> Iterator[Measure]:
    """A request and an answer of a few bytes, which nobody looks at."""
    with raw.process("bytes", over_tcp=over_tcp) as stream:

        def call() -> None:
            stream.sendall(raw.REQUEST)
            raw.read(stream, len(raw.ANSWER))

        yield per_call(call, count)


@contextmanager
def by_hand_pickled(count: int, over_tcp: bool = False) -> Iterator[Measure]:
    """An empty call, pickled and opened on both sides."""
    with raw.process("calls", over_tcp=over_tcp) as stream:

        def call() -> None:
            raw.send_pickled(stream, (work.nothing, ()))
            raw.receive_pickled(stream)

        yield per_call(call, count)


def _round_trips(scale: Scale) -> Sequence[Contender]:
    count = scale.size(3000, 200)

    @contextmanager
    def ours() -> Iterator[Measure]:
        from distpool import addprocs, remotecall_fetch, rmprocs

        (pid,) = addprocs(1)
        try:
            yield per_call(lambda: remotecall_fetch(work.nothing, pid), count)
        finally:
            rmprocs(pid)

    @contextmanager
    def ours_submit() -> Iterator[Measure]:
        with peers.our_pool(1) as pool:
            yield per_call(lambda: pool.submit(work.nothing).result(), count)

    @contextmanager
    def pool(opener: PoolOpener) -> Iterator[Measure]:
        with opener(1) as opened:
            yield per_call(lambda: opened.apply(work.nothing), count)

    @contextmanager
    def executor(opener: ExecutorOpener) -> Iterator[Measure]:
        with opener(1) as opened:
            yield per_call(lambda: opened.submit(work.nothing).result(), count)

    @contextmanager
    def loky() -> Iterator[Measure]:
        with peers.loky_executor(1) as opened:
            yield per_call(lambda: opened.submit(work.nothing).result(), count)

    return [
        # Forked peers first: forked from a process that has as little open as possible.
        Contender("multiprocessing.Pool", partial(pool, peers.mp_pool)),
        Contender("ProcessPoolExecutor", partial(executor, peers.executor)),
        Contender("loky", loky),
        Contender("raw", lambda: by_hand(count)),
        Contender("raw with pickle", lambda: by_hand_pickled(count)),
        Contender("distpool", ours),
        Contender(SUBMIT, ours_submit),
        Contender(peers.POOL_DOOR, partial(pool, peers.pool_door)),
        Contender(peers.EXECUTOR_DOOR, partial(executor, peers.executor_door)),
    ]


def _all_of(submit: Callable[[int], Any], outcome: Callable[[Any], object], count: int) -> Measure:
    """Seconds to submit `count` calls one by one and have all their results."""

    def measure() -> float:
        start = time.perf_counter()
        pending = [submit(number) for number in range(count)]
        results = [outcome(one) for one in pending]
        taken = time.perf_counter() - start
        assert results == list(range(1, count + 1)), "wrong results"
        return taken

    return measure


def _submissions(scale: Scale) -> Sequence[Contender]:
    count = scale.size(50_000, 1_000)

    @contextmanager
    def ours() -> Iterator[Measure]:
        with peers.our_pool(scale.workers) as opened:
            yield _all_of(lambda n: opened.submit(work.successor, n), lambda future: future.result(), count)

    @contextmanager
    def pool(opener: PoolOpener) -> Iterator[Measure]:
        with opener(scale.workers) as opened:
            yield _all_of(lambda n: opened.apply_async(work.successor, (n,)), lambda result: result.get(), count)

    @contextmanager
    def executor(opener: ExecutorOpener) -> Iterator[Measure]:
        with opener(scale.workers) as opened:
            yield _all_of(lambda n: opened.submit(work.successor, n), lambda future: future.result(), count)

    @contextmanager
    def loky() -> Iterator[Measure]:
        with peers.loky_executor(scale.workers) as opened:
            yield _all_of(lambda n: opened.submit(work.successor, n), lambda future: future.result(), count)

    return [
        Contender("multiprocessing.Pool", partial(pool, peers.mp_pool)),
        Contender("ProcessPoolExecutor", partial(executor, peers.executor)),
        Contender("loky", loky),
        Contender("raw", lambda: _pipelined(count)),
        Contender("distpool", ours),
        Contender(peers.POOL_DOOR, partial(pool, peers.pool_door)),
        Contender(peers.EXECUTOR_DOOR, partial(executor, peers.executor_door)),
    ]


@contextmanager
def _pipelined(count: int) -> Iterator[Measure]:
    """One message per call, a window of them at a time, to one process."""
    with raw.process("bytes") as stream:

        def measure() -> float:
            start = time.perf_counter()
            for _ in range(count // WINDOW):
                for _ in range(WINDOW):
                    stream.sendall(raw.REQUEST)
                for _ in range(WINDOW):
                    raw.read(stream, len(raw.ANSWER))
            return time.perf_counter() - start

        yield measure


ROWS = [
    Row(
        "round-trip",
        "empty call, send to result",
        _round_trips,
        goals=(Goal("at most 1.5 × raw", 1.5, "raw"), *pool_goals(ours=SUBMIT), *executor_goals(ours=SUBMIT)),
        note="One call at a time to one worker. distpool: `remotecall_fetch`. Raw moves 64 bytes there and 32 back and "
        "opens nothing; *raw with pickle* also pickles the call and the result.",
    ),
    Row(
        "submissions",
        "50,000 single submissions",
        _submissions,
        goals=(
            Goal("at least 10 × ProcessPoolExecutor", 1 / 10, "ProcessPoolExecutor"),
            Goal("at least 5 × multiprocessing.Pool.apply_async", 1 / 5, "multiprocessing.Pool"),
            *DOOR_GOALS,
        ),
        note="`submit` 50,000 times, then all results. Raw: one message per call, 100 in flight, to one process.",
    ),
]
