"""Rows about many tiny tasks in one map."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

from tests.bench import peers, raw, work
from tests.bench.doors import POOL_GOALS, PoolOpener, executor_goals
from tests.bench.runner import Contender, Goal, Measure, Row, Scale


def _timed(run: Callable[[], Sequence[int]], count: int) -> Measure:
    def measure() -> float:
        start = time.perf_counter()
        results = run()
        taken = time.perf_counter() - start
        assert len(results) == count, "lost results"
        assert results[0] == 1, "wrong first result"
        assert results[-1] == count, "wrong last result"
        return taken

    return measure


def _tiny_maps(scale: Scale) -> Sequence[Contender]:
    count = scale.size(1_000_000, 20_000)
    numbers = range(count)

    @contextmanager
    def ours() -> Iterator[Measure]:
        with peers.our_pool(scale.workers) as opened:
            yield _timed(lambda: opened.map(work.successor, numbers), count)

    @contextmanager
    def pool(opener: PoolOpener) -> Iterator[Measure]:
        with opener(scale.workers) as opened:
            yield _timed(lambda: opened.map(work.successor, numbers), count)

    @contextmanager
    def executor() -> Iterator[Measure]:
        with peers.executor(scale.workers) as opened:
            # Its own default of one task per message takes minutes: it gets the chunks that Pool.map chooses.
            chunk = -(-count // (4 * scale.workers))
            yield _timed(lambda: list(opened.map(work.successor, numbers, chunksize=chunk)), count)

    @contextmanager
    def executor_door() -> Iterator[Measure]:
        with peers.executor_door(scale.workers) as opened:
            yield _timed(lambda: list(opened.map(work.successor, numbers)), count)

    return [
        Contender("multiprocessing.Pool", partial(pool, peers.mp_pool)),
        Contender("ProcessPoolExecutor, chunks", executor),
        Contender("raw", lambda: _in_big_pieces(numbers, scale.workers)),
        Contender("distpool", ours),
        Contender(peers.POOL_DOOR, partial(pool, peers.pool_door)),
        Contender(peers.EXECUTOR_DOOR, executor_door),
    ]


@contextmanager
def _in_big_pieces(numbers: range, processes: int) -> Iterator[Measure]:
    """The limit: one piece per process, each pickled as one list."""
    with ExitStack() as stack:
        streams = [stack.enter_context(raw.process("lists")) for _ in range(processes)]
        step = -(-len(numbers) // processes)

        def run() -> list[int]:
            for position, stream in enumerate(streams):
                raw.send_pickled(stream, (work.successor, list(numbers[position * step : (position + 1) * step])))
            results: list[int] = []
            for stream in streams:
                results += raw.receive_pickled(stream)
            return results

        yield _timed(run, len(numbers))


def _lazy_maps(scale: Scale) -> Sequence[Contender]:
    count = scale.size(100_000, 2_000)
    numbers = range(count)

    @contextmanager
    def ours() -> Iterator[Measure]:
        with peers.our_pool(scale.workers) as opened:
            yield _timed(lambda: list(opened.imap(work.successor, numbers)), count)

    @contextmanager
    def pool(opener: PoolOpener) -> Iterator[Measure]:
        with opener(scale.workers) as opened:
            yield _timed(lambda: list(opened.imap(work.successor, numbers)), count)

    @contextmanager
    def joblib() -> Iterator[Measure]:
        with peers.joblib_starmap(scale.workers) as starmap:
            yield _timed(lambda: starmap(work.successor, zip(numbers, strict=True)), count)

    return [
        Contender("multiprocessing.Pool", partial(pool, peers.mp_pool)),
        Contender("joblib", joblib),
        Contender("distpool", ours),
        Contender(peers.POOL_DOOR, partial(pool, peers.pool_door)),
    ]


ROWS = [
    Row(
        "tiny-map",
        "map of 1,000,000 tiny tasks, default settings",
        _tiny_maps,
        goals=(
            Goal("as fast as multiprocessing.Pool.map with its own chunks", 1.0, "multiprocessing.Pool"),
            *POOL_GOALS,
            *executor_goals("ProcessPoolExecutor, chunks"),
        ),
        note="`map(successor, range(1_000_000))`. Raw: one pickled list per process, and one back.",
    ),
    Row(
        "lazy-map",
        "imap of 100,000 tiny tasks, default settings",
        _lazy_maps,
        goals=POOL_GOALS,
        note="`list(pool.imap(successor, range(100_000)))`; joblib dispatches as it goes, too.",
    ),
]
