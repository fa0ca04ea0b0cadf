"""Rows about large arrays: to one worker, back, both ways, and to all workers at once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from tests.bench import peers, raw, work
from tests.bench.doors import DOOR_GOALS, POOL_GOALS, ExecutorOpener, PoolOpener
from tests.bench.meeting import meeting
from tests.bench.runner import Contender, Goal, Measure, Row, Scale

FLOAT = 8  # bytes
# Calls per sample, of which the best counts: memory that a virtual machine must first get from its host takes ten times
# as long as memory that it has, and hits one contender or another by chance.
TRIES = 3


def new_array(megabytes: int) -> Any:
    import numpy

    return numpy.ones(megabytes * 1_000_000 // FLOAT)


def timed(call: Callable[[Any], Any], made: Callable[[], Any]) -> Measure:
    """Seconds of a call with an argument made for it: remembering what was sent before gains nothing."""

    def once() -> float:
        argument = made()
        start = time.perf_counter()
        kept = call(argument)  # freed after the clock is read: giving memory back is not part of the transfer
        if hasattr(kept, "nbytes"):
            work.ends(kept)  # what came back is there to be used
        taken = time.perf_counter() - start
        del kept
        return taken

    return lambda: min(once() for _ in range(TRIES))


@contextmanager
def _memcpy(made: Callable[[], Any], times: int = 1) -> Iterator[Measure]:
    """The limit: copy the bytes once into memory that the process did not have before."""
    import numpy

    def copies(array: Any) -> list[Any]:
        copied = []
        for _ in range(times):
            fresh = numpy.empty_like(array)
            numpy.copyto(fresh, array)
            copied.append(fresh)
        return copied

    yield timed(copies, made)


@contextmanager
def _by_hand(deed: str, made: Callable[[], Any]) -> Iterator[Measure]:
    """The bytes through a socket pair, straight into their place, with no copy but the system's own."""
    import numpy

    with raw.process("arrays") as stream:

        def call(argument: Any) -> Any:
            size = argument * FLOAT if deed == "result" else argument.nbytes
            back = size if deed in ("result", "both") else FLOAT
            stream.sendall(raw.TWO_SIZES.pack(0 if deed == "result" else size, back))
            if deed != "result":
                stream.sendall(argument)
            return numpy.frombuffer(raw.receive_fresh(stream, back))

        yield timed(call, made)


def _one_way(deed: str, megabytes: int, copies: int) -> Sequence[Contender]:
    """Call one worker with an array, for an array, or both."""
    function = {"argument": work.ends, "read": work.total, "result": work.made, "both": work.echo}[deed]
    make_array = partial(new_array, megabytes)
    make_length = partial(int, megabytes * 1_000_000 // FLOAT)
    made = make_length if deed == "result" else make_array

    @contextmanager
    def ours() -> Iterator[Measure]:
        with peers.our_pool(1) as opened:
            yield timed(lambda argument: opened.submit(function, argument).result(), made)

    @contextmanager
    def pool(opener: PoolOpener) -> Iterator[Measure]:
        with opener(1) as opened:
            yield timed(lambda argument: opened.apply(function, (argument,)), made)

    @contextmanager
    def executor(opener: ExecutorOpener) -> Iterator[Measure]:
        with opener(1) as opened:
            yield timed(lambda argument: opened.submit(function, argument).result(), made)

    @contextmanager
    def joblib() -> Iterator[Measure]:
        with peers.joblib_starmap(2) as starmap:
            yield timed(lambda argument: starmap(function, [(argument,)])[0], made)

    return [
        Contender("multiprocessing.Pool", partial(pool, peers.mp_pool)),
        Contender("ProcessPoolExecutor", partial(executor, peers.executor)),
        Contender("joblib", joblib),
        Contender("memcpy", lambda: _memcpy(make_array, copies)),
        Contender("raw", lambda: _by_hand(deed, made)),
        Contender("distpool", ours),
        Contender(peers.POOL_DOOR, partial(pool, peers.pool_door)),
        Contender(peers.EXECUTOR_DOOR, partial(executor, peers.executor_door)),
    ]


def _direction(deed: str, copies: int = 1) -> Callable[[Scale], Sequence[Contender]]:
    return lambda scale: _one_way(deed, scale.size(100, 10), copies)


Starmap = Callable[[Callable[..., Any], Sequence[tuple[Any, ...]]], Any]
Tasks = tuple[Callable[..., Any], Sequence[tuple[Any, ...]]]


def _in_function(array: Any, path: str, workers: int) -> Tasks:
    """The function carries the array, as a closure would."""
    return partial(work.hold, array), [(path,)] * workers


def _in_items(array: Any, path: str, workers: int) -> Tasks:
    """Each task names the same array as its argument."""
    return work.hold, [(array, path)] * workers


class _Held:
    """The same array to every worker of one pool, held there while the memory of the workers is looked at."""

    def __init__(self, megabytes: int, tasks: Callable[[Any, str, int], Tasks], workers: int, path: str) -> None:
        self.made = partial(new_array, megabytes)
        self.tasks = tasks  # how the array travels
        self.workers = workers
        self.path = path  # of the meeting, so that every worker gets one array
        self.starmap: Starmap  # of the contender

    def seconds(self) -> float:
        """Until the last worker had the array; once per sample, since `multiprocessing.Pool` takes very long."""
        array = self.made()  # a new one: a contender that remembers what it sent before gains nothing
        start = time.perf_counter()
        kept = self._hold(array)
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

        array = self.made()
        self._hold(array[: len(array) // 10])  # a first time: what stays for ever (imports) is not counted
        before = {pid: getattr(psutil.Process(pid).memory_full_info(), kind) for pid in self._release()}
        kept = [pid for pid, _ in self._hold(array)]
        after = {pid: getattr(psutil.Process(pid).memory_full_info(), kind) for pid in kept}
        self._release()
        return [after[pid] - before[pid] for pid in after]

    def _hold(self, array: Any) -> list[tuple[int, float]]:
        kept: list[tuple[int, float]] = list(self.starmap(*self.tasks(array, self.path, self.workers)))
        assert len({pid for pid, _ in kept}) == self.workers, "a worker got two arrays and another none"
        return kept

    def _release(self) -> list[int]:
        freed = list(self.starmap(work.release, [(self.path,)] * self.workers))
        assert len(set(freed)) == self.workers, "a worker was asked twice and another not at all"
        return freed


def _to_all(
    figure: Callable[[_Held], float], tasks: Callable[[Any, str, int], Tasks], *limits: str
) -> Callable[[Scale], Sequence[Contender]]:
    def contenders(scale: Scale) -> Sequence[Contender]:
        megabytes, workers = scale.size(400, 20), scale.workers

        def contender(name: str, opened: Callable[[], AbstractContextManager[Starmap]]) -> Contender:
            @contextmanager
            def measured() -> Iterator[Measure]:
                with opened() as starmap, meeting(workers) as path:
                    held = _Held(megabytes, tasks, workers, path)
                    held.starmap = starmap
                    yield partial(figure, held)

            return Contender(name, measured)

        @contextmanager
        def ours() -> Iterator[Starmap]:
            with peers.our_pool(workers) as opened:
                yield opened.starmap

        @contextmanager
        def pool(opener: PoolOpener) -> Iterator[Starmap]:
            with opener(workers) as opened:
                yield lambda function, items: opened.starmap(function, items, 1)

        return [
            contender("multiprocessing.Pool", partial(pool, peers.mp_pool)),
            contender("joblib", partial(peers.joblib_starmap, workers, batch_size=1, pre_dispatch="all")),
            *[Contender(limit, lambda: _memcpy(partial(new_array, megabytes))) for limit in limits],
            contender("distpool", ours),
            contender(peers.POOL_DOOR, partial(pool, peers.pool_door)),
        ]

    return contenders


AT_LEAST_4_POOLS = Goal("at least 4 × multiprocessing.Pool", 1 / 4, "multiprocessing.Pool")
AT_MOST_2_COPIES = Goal("at most 2 × one memcpy", 2.0, "memcpy")
ROWS = [
    Row(
        "array-argument",
        "100 MB array as argument",
        _direction("argument"),
        goals=(AT_MOST_2_COPIES, AT_LEAST_4_POOLS, *DOOR_GOALS),
        note="The worker looks at both ends of it. memcpy: one copy into fresh memory. raw: by hand through a socket "
        "pair. A sample is the best of three calls.",
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
        goals=(AT_MOST_2_COPIES, AT_LEAST_4_POOLS, *DOOR_GOALS),
        note="The worker has it ready.",
    ),
    Row(
        "array-both",
        "100 MB array as argument and as result",
        _direction("both", copies=2),
        goals=(Goal("at most 2 × memcpy (of both)", 2.0, "memcpy"), AT_LEAST_4_POOLS, *DOOR_GOALS),
        note="memcpy: two copies, one for each way.",
    ),
    Row(
        "array-to-all",
        "400 MB array to all workers: time",
        _to_all(_Held.seconds, _in_function, "memcpy"),
        goals=(Goal("copied once: at most 2 × one memcpy", 2.0, "memcpy"), *POOL_GOALS),
        note="The mapped function carries the array, as a closure would; until the last worker has it. memcpy: the "
        "best of three.",
    ),
    Row(
        "array-to-all-own",
        "400 MB array to all workers: own memory of each",
        _to_all(_Held.own_bytes, _in_function),
        "B",
        (Goal("near zero (below 1 MB)", 1e6),),
        "Growth of the unique set size (USS) of a worker that holds the array and has read all of it.",
    ),
    Row(
        "array-to-all-total",
        "400 MB array to all workers: memory of all together",
        _to_all(_Held.all_bytes, _in_function),
        "B",
        (Goal("one copy (below 420 MB)", 420e6),),
        "Growth of the proportional set size (PSS), summed over the workers.",
    ),
    Row(
        "array-in-items",
        "400 MB array, the same in the arguments of each task: time",
        _to_all(_Held.seconds, _in_items, "memcpy"),
        note="`starmap` over tasks that all name one array.",
    ),
    Row(
        "array-in-items-own",
        "400 MB array, the same in the arguments of each task: own memory of each worker",
        _to_all(_Held.own_bytes, _in_items),
        "B",
    ),
]
