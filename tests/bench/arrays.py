"""Rows about large arrays: to one worker, back, both ways, and to all workers at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.bench import peers, work
from tests.bench.meeting import meeting
from tests.bench.runner import Contender, Goal, Measure, Row, Scale

FLOAT = 8  # bytes


def _timed(call: Callable[[], object]) -> Measure:
    def measure() -> float:
        start = time.perf_counter()
        kept = call()  # freed after the clock is read: giving memory back is not part of the transfer
        taken = time.perf_counter() - start
        del kept
        return taken

    return measure


def _array(megabytes: int) -> Any:
    import numpy

    return numpy.ones(megabytes * 1_000_000 // FLOAT)


@contextmanager
def _memcpy(array: Any, times: int = 1) -> Iterator[Measure]:
    """The limit: copy the bytes once into memory that the process did not have before."""
    import numpy

    def copies() -> list[Any]:
        made = []
        for _ in range(times):
            fresh = numpy.empty_like(array)
            numpy.copyto(fresh, array)
            made.append(fresh)
        return made

    yield _timed(copies)


def _one_way(deed: str, megabytes: int, copies: int) -> Sequence[Contender]:
    """Call one worker with an array, for an array, or both."""
    array = _array(megabytes)
    function, argument = {
        "argument": (work.ends, array),
        "read": (work.total, array),
        "result": (work.made, len(array)),
        "both": (work.echo, array),
    }[deed]

    @contextmanager
    def ours() -> Iterator[Measure]:
        with peers.our_pool(1) as opened:
            yield _timed(lambda: opened.submit(function, argument).result())

    @contextmanager
    def pool() -> Iterator[Measure]:
        with peers.mp_pool(1) as opened:
            yield _timed(lambda: opened.apply(function, (argument,)))

    @contextmanager
    def executor() -> Iterator[Measure]:
        with peers.executor(1) as opened:
            yield _timed(lambda: opened.submit(function, argument).result())

    @contextmanager
    def joblib() -> Iterator[Measure]:
        with peers.joblib_starmap(2) as starmap:
            yield _timed(lambda: starmap(function, [(argument,)]))

    return [
        Contender("multiprocessing.Pool", pool),
        Contender("ProcessPoolExecutor", executor),
        Contender("joblib", joblib),
        Contender("memcpy", lambda: _memcpy(array, copies)),
        Contender("distpool", ours),
    ]


def _direction(deed: str, copies: int = 1) -> Callable[[Scale], Sequence[Contender]]:
    return lambda scale: _one_way(deed, scale.size(100, 10), copies)


MapEach = Callable[[Callable[[Any], Any], Sequence[Any]], Any]


class _Held:
    """The same array to every worker of one pool, held there while the memory of the workers is looked at."""

    def __init__(self, array: Any, workers: int, path: str, starmap: Callable[..., Any]) -> None:
        self.array = array
        self.workers = workers
        self.path = path  # of the meeting, so that every worker gets one array
        self.starmap = starmap

    def seconds(self) -> float:
        """Until the last worker had the array."""
        start = time.perf_counter()
        kept = self._hold()
        self._release()
        return max(arrived for _, arrived in kept) - start

    def own_bytes(self) -> float:
        """How much memory of its own a worker has more than before (USS, the middle worker)."""
        return statistics.median(self._growth("uss"))

    def all_bytes(self) -> float:
        """How much memory all workers together have more than before (PSS: shared pages are divided by their users)."""
        return sum(self._growth("pss"))

    def _growth(self, kind: str) -> list[float]:
        import psutil

        self._hold()  # a first time, so that what stays for ever (allocator, imports) is not counted
        before = {pid: getattr(psutil.Process(pid).memory_full_info(), kind) for pid in self._release()}
        kept = [pid for pid, _ in self._hold()]
        after = {pid: getattr(psutil.Process(pid).memory_full_info(), kind) for pid in kept}
        self._release()
        return [after[pid] - before[pid] for pid in after]

    def _hold(self) -> list[tuple[int, float]]:
        kept: list[tuple[int, float]] = list(self.starmap(work.hold, [(self.array, self.path)] * self.workers))
        assert len({pid for pid, _ in kept}) == self.workers, "a worker got two arrays and another none"
        return kept

    def _release(self) -> list[int]:
        freed = list(self.starmap(work.release, [(self.path,)] * self.workers))
        assert len(set(freed)) == self.workers, "a worker was asked twice and another not at all"
        return freed


def _to_all(figure: Callable[[_Held], Measure], *, beside_memcpy: bool) -> Callable[[Scale], Sequence[Contender]]:
    def contenders(scale: Scale) -> Sequence[Contender]:
        array = _array(scale.size(400, 20))
        workers = scale.workers

        @contextmanager
        def ours() -> Iterator[Measure]:
            with peers.our_pool(workers) as opened, meeting(workers) as path:
                yield figure(_Held(array, workers, path, opened.starmap))

        @contextmanager
        def pool() -> Iterator[Measure]:
            with peers.mp_pool(workers) as opened, meeting(workers) as path:
                yield figure(_Held(array, workers, path, lambda function, items: opened.starmap(function, items, 1)))

        @contextmanager
        def joblib() -> Iterator[Measure]:
            options = {"batch_size": 1, "pre_dispatch": "all"}
            with peers.joblib_starmap(workers, **options) as starmap, meeting(workers) as path:
                yield figure(_Held(array, workers, path, starmap))

        limit = [Contender("memcpy", lambda: _memcpy(array))] if beside_memcpy else []
        return [
            Contender("multiprocessing.Pool", pool),
            Contender("joblib", joblib),
            *limit,
            Contender("distpool", ours),
        ]

    return contenders


AT_LEAST_4_POOLS = Goal("at least 4 × multiprocessing.Pool", 1 / 4, "multiprocessing.Pool")
AT_MOST_2_COPIES = Goal("at most 2 × one memcpy", 2.0, "memcpy")
ROWS = [
    Row(
        "array-argument",
        "100 MB array as argument",
        _direction("argument"),
        goals=(AT_MOST_2_COPIES, AT_LEAST_4_POOLS),
        note="The worker looks at both ends of it. memcpy: one copy into fresh memory.",
    ),
    Row(
        "array-read",
        "100 MB array as argument, read from end to end",
        _direction("read"),
        note="What a task that uses all of it sees.",
    ),
    Row(
        "array-result",
        "100 MB array as result",
        _direction("result"),
        goals=(AT_MOST_2_COPIES, AT_LEAST_4_POOLS),
        note="The worker has it ready.",
    ),
    Row(
        "array-both",
        "100 MB array as argument and as result",
        _direction("both", copies=2),
        goals=(Goal("at most 2 × memcpy (of both)", 2.0, "memcpy"), AT_LEAST_4_POOLS),
        note="memcpy: two copies, one for each way.",
    ),
    Row(
        "array-to-all",
        "400 MB array to all workers: time",
        _to_all(lambda held: held.seconds, beside_memcpy=True),
        goals=(Goal("copied once: at most 2 × one memcpy", 2.0, "memcpy"),),
        note="`starmap` with the same array in each task, until the last worker has it.",
    ),
    Row(
        "array-to-all-own",
        "400 MB array to all workers: own memory of each",
        _to_all(lambda held: held.own_bytes, beside_memcpy=False),
        "B",
        (Goal("near zero (below 1 MB)", 1e6),),
        "Growth of the unique set size (USS) of a worker that holds the array and has read all of it.",
    ),
    Row(
        "array-to-all-total",
        "400 MB array to all workers: memory of all together",
        _to_all(lambda held: held.all_bytes, beside_memcpy=False),
        "B",
        (Goal("one copy (below 420 MB)", 420e6),),
        "Growth of the proportional set size (PSS), summed over the workers.",
    ),
]
