"""A fresh interpreter that opens one pool and says what it took. Run by `startup.py` and `memory.py`, never by hand.

    python -m tests.bench.probe DEED CONTENDER WORKERS MEETING

Prints one JSON number. The clock starts before the contender's library is imported. Guarded and light, because
multiprocessing imports it again in its children; the functions of the workers are in `work.py`.
"""

from __future__ import annotations

import sys
import time

from tests.bench import work
from tests.bench.peers import RUN_EACH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SERVED = 10  # calls per worker in the row of many workers


def cold(contender: str, workers: int, meeting: str) -> float:
    """Seconds from nothing to the first result of each worker."""
    start = time.perf_counter()
    with RUN_EACH[contender](workers) as run_each:
        run_each(work.meet, [meeting] * workers)
        return time.perf_counter() - start


def second(contender: str, workers: int, meeting: str) -> float:
    """The same again in a process that had such a pool before."""
    cold(contender, workers, meeting)
    return cold(contender, workers, meeting)


def whole(contender: str, workers: int, meeting: str) -> float:
    """Seconds to start, to serve ten calls per worker, and to be gone."""
    start = time.perf_counter()
    with RUN_EACH[contender](workers) as run_each:
        assert len(set(run_each(work.meet, [meeting] * workers))) == workers, "fewer workers than asked for"
        numbers = range(SERVED * workers)
        assert run_each(work.successor, numbers) == [number + 1 for number in numbers], "wrong results"
    return time.perf_counter() - start


def memory(contender: str, workers: int, meeting: str) -> float:
    """Bytes that an idle worker has for itself (USS, the middle worker), after its first call."""
    with RUN_EACH[contender](workers) as run_each:
        pids = run_each(work.meet, [meeting] * workers)
        import statistics

        import psutil

        return statistics.median(psutil.Process(pid).memory_full_info().uss for pid in pids)


DEEDS: dict[str, Callable[[str, int, str], float]] = {"cold": cold, "second": second, "whole": whole, "memory": memory}

if __name__ == "__main__":
    figure = DEEDS[sys.argv[1]](sys.argv[2], int(sys.argv[3]), sys.argv[4])
    print(figure)
