"""The pools to compare with, and ours, each as a context manager that leaves no process behind.

Used by every row, also inside the fresh interpreters of the start-up rows: each pool's library is imported by the
function that opens it, never at the top, so that a cold start pays for its own imports and for no one else's.
"""

from __future__ import annotations

from contextlib import contextmanager

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import ProcessPoolExecutor
    from contextlib import AbstractContextManager
    from multiprocessing.pool import Pool
    from typing import Any

    from distpool import WorkerPool

    RunEach = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


# The names under which the drop-in replacements stand in the tables.
POOL_DOOR = "distpool Pool"
EXECUTOR_DOOR = "distpool ProcessPoolExecutor"


@contextmanager
def our_pool(processes: int) -> Iterator[WorkerPool]:
    """distpool's own."""
    from distpool import WorkerPool

    with WorkerPool(processes=processes) as pool:
        yield pool


@contextmanager
def pool_door(processes: int) -> Iterator[Pool]:
    """distpool's replacement of `multiprocessing.Pool`."""
    from distpool.compat.multiprocessing import Pool

    with Pool(processes) as pool:
        yield pool


@contextmanager
def executor_door(processes: int) -> Iterator[ProcessPoolExecutor]:
    """distpool's replacement of `concurrent.futures.ProcessPoolExecutor`."""
    from distpool.compat.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(processes) as pool:
        yield pool


@contextmanager
def mp_pool(processes: int, method: str = "fork") -> Iterator[Pool]:
    """`multiprocessing.Pool`, closed and joined; its own context manager terminates it and reaps later."""
    import multiprocessing

    pool = multiprocessing.get_context(method).Pool(processes)
    try:
        yield pool
        pool.close()
    except BaseException:
        pool.terminate()
        raise
    finally:
        pool.join()


@contextmanager
def executor(processes: int, method: str = "fork") -> Iterator[ProcessPoolExecutor]:
    """`concurrent.futures.ProcessPoolExecutor`."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context(method)) as pool:
        yield pool


@contextmanager
def loky_executor(processes: int) -> Iterator[Any]:
    """loky's executor, a private one: the reusable one would outlive its row."""
    import loky  # type: ignore[import-untyped]  # ships no types

    pool = loky.ProcessPoolExecutor(processes)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True)


@contextmanager
def joblib_starmap(processes: int, **options: object) -> Iterator[Callable[..., Any]]:
    """joblib with its default backend, kept open over several calls; yields `starmap(function, arguments)`."""
    import joblib  # type: ignore[import-untyped]  # ships no types
    from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]  # ships no types

    try:
        with joblib.Parallel(n_jobs=processes, **options) as parallel:
            yield lambda function, items: parallel(joblib.delayed(function)(*item) for item in items)
    finally:
        get_reusable_executor().shutdown(wait=True)


def _mp_each(method: str) -> Callable[[int], AbstractContextManager[RunEach]]:
    @contextmanager
    def opened(processes: int) -> Iterator[RunEach]:
        with mp_pool(processes, method) as pool:
            yield lambda function, items: pool.map(function, items, chunksize=1)

    return opened


@contextmanager
def _pool_door_each(processes: int) -> Iterator[RunEach]:
    with pool_door(processes) as pool:
        yield pool.map


@contextmanager
def _executor_door_each(processes: int) -> Iterator[RunEach]:
    with executor_door(processes) as pool:
        yield lambda function, items: list(pool.map(function, items))


@contextmanager
def _our_each(processes: int) -> Iterator[RunEach]:
    with our_pool(processes) as pool:
        yield pool.map


@contextmanager
def _executor_each(processes: int) -> Iterator[RunEach]:
    with executor(processes) as pool:
        yield lambda function, items: list(pool.map(function, items))


@contextmanager
def _loky_each(processes: int) -> Iterator[RunEach]:
    with loky_executor(processes) as pool:
        yield lambda function, items: list(pool.map(function, items))


@contextmanager
def _raw_each(processes: int) -> Iterator[RunEach]:
    from tests.bench.raw import forked_by_hand

    with forked_by_hand(processes) as run_each:
        yield run_each


# By name, for the fresh interpreters: "run this function on each item, one task per item".
RUN_EACH: dict[str, Callable[[int], AbstractContextManager[RunEach]]] = {
    "distpool": _our_each,
    "raw": _raw_each,
    "multiprocessing spawn": _mp_each("spawn"),
    "multiprocessing forkserver": _mp_each("forkserver"),
    "multiprocessing fork": _mp_each("fork"),
    "ProcessPoolExecutor fork": _executor_each,
    "loky": _loky_each,
    POOL_DOOR: _pool_door_each,
    EXECUTOR_DOOR: _executor_door_each,
}
