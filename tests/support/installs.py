"""Functions that the tests of ``distpool.compat.install`` run in workers. Light, for workers import it."""

from __future__ import annotations

from typing import Any

from support import dropins


def count_and_tell(n: int) -> None:
    """Use a lock, a value (which has another) and a queue, if there is one, which the initializer was given."""
    lock, queue, value = dropins.things
    with lock:
        value.value += 1
    if queue is not None:
        queue.put(n)


def nested(n: int) -> Any:
    """What kinds of pools a task makes, of how many workers, and what they answer."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    with multiprocessing.Pool() as pool, ProcessPoolExecutor(1) as executor:
        kinds = [type(pool).__module__, type(executor).__module__]
        size: int = pool._processes  # type: ignore[attr-defined]  # not in the types
        return kinds, size, pool.map(abs, [-n]), executor.submit(abs, -n).result()


def is_installed() -> bool:
    import multiprocessing.pool

    return hasattr(multiprocessing.pool.Pool.__init__, "__wrapped__")
