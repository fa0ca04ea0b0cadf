"""``pmap``: a map over the workers of the cluster, with Julia's name and options."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from distpool.errors import RemoteException
from distpool.jobs import Retries
from distpool.light import Any
from distpool.member import default_member
from distpool.membership import workers
from distpool.pools.abstract import AbstractWorkerPool
from distpool.pools.caching import CachingPool
from distpool.pools.making import map_options
from distpool.pools.worker_pool import WorkerPool


def pmap(
    f: Callable[..., Any],
    /,
    *args: Any,
    distributed: bool = True,
    batch_size: int | str = "auto",
    on_error: Callable[[BaseException], Any] | None = None,
    retry_delays: Iterable[float] = (),
    retry_check: Callable[..., Any] | None = None,
    timeout: float | None = None,
) -> list[Any]:
    """``pmap(f, [pool,] *iterables)``: return ``[f(x) for x in iterable]``, computed by the workers, in input order.

    Without a pool all workers of the cluster at this moment are used; while there is none, or with
    ``distributed=False``, or when the calling process is the pool's only member, ``f`` runs here: nothing is pickled
    and errors are bare. Options, and errors, as for ``WorkerPool.map``. Julia's ``pmap``; differences: the first failed
    element in input order decides the error, ``on_error`` runs in the calling process and also sees the death of a
    worker, the elements travel together where ``batch_size`` does not say how many (Julia: one by one), and the result
    is always a list.

    >>> pmap(lambda x: x + 1, range(3))
    [1, 2, 3]
    """
    pool, iterables = _split(args)
    retry_delays = list(retry_delays)
    map_options(batch_size, timeout, on_error, retry_delays, retry_check)  # wrong ones raise, wherever it runs
    options: dict[str, Any] = {
        "on_error": on_error,
        "retry_delays": retry_delays,
        "retry_check": retry_check,
        "timeout": timeout,
    }
    if pool is None:
        pids = workers()
        if not distributed or pids == [default_member().pid]:
            return _here(f, iterables, on_error, retry_delays, retry_check)
        with CachingPool(pids) as own:
            return own.map(f, *iterables, batch_size=batch_size, **options)
    if not distributed or pool.workers() == [default_member().pid]:
        return _here(f, iterables, on_error, retry_delays, retry_check)
    if not isinstance(pool, WorkerPool):
        return _by_calls(f, pool, iterables, options)
    return pool.map(f, *iterables, batch_size=batch_size, **options)


def _split(args: tuple[Any, ...]) -> tuple[AbstractWorkerPool | None, tuple[Any, ...]]:
    """Julia puts the pool second; ``distpool`` also takes it there."""
    if args and isinstance(args[0], AbstractWorkerPool):
        args, pool = args[1:], args[0]
    else:
        pool = None
    if not args:
        raise TypeError("pmap() needs at least one iterable: pmap(f, [pool,] iterable, ...)")
    return pool, args


def _here(
    f: Callable[..., Any],
    iterables: tuple[Any, ...],
    on_error: Callable[[BaseException], Any] | None,
    retry_delays: Iterable[float],
    retry_check: Callable[..., Any] | None,
) -> list[Any]:
    """Run everything in the calling thread."""
    retries = Retries(retry_delays, retry_check, on_error)
    return [_one_here(f, item, retries) for item in zip(*iterables)]  # noqa: B905


def _one_here(f: Callable[..., Any], item: tuple[Any, ...], retries: Retries) -> Any:
    attempt = 0
    while True:
        try:
            return _handled(f, item, retries)
        except Exception as error:
            delay = retries.delay(attempt, _original(error))
            if delay is None:
                raise
            attempt += 1
            _pause(delay)


def _handled(f: Callable[..., Any], item: tuple[Any, ...], retries: Retries) -> Any:
    try:
        return f(*item)
    except Exception as error:
        if retries.on_error is None:
            raise
        return retries.on_error(_original(error))


def _original(error: BaseException) -> BaseException:
    """Handlers see what the function raised, and not what brought it here."""
    return error.unwrap() if isinstance(error, RemoteException) else error


def _pause(seconds: float) -> None:
    import time

    time.sleep(seconds)


def _by_calls(
    f: Callable[..., Any], pool: AbstractWorkerPool, iterables: tuple[Any, ...], options: dict[str, Any]
) -> list[Any]:
    """Map over a pool that only promises Julia's interface: one call for each element, as many at a time as members."""
    import threading  # only for pools of the user's own making
    from concurrent.futures import ThreadPoolExecutor

    retries = Retries(options["retry_delays"], options["retry_check"], options["on_error"])
    source, source_lock = enumerate(zip(*iterables)), threading.Lock()  # noqa: B905
    results: dict[int, Any] = {}
    failures: dict[int, BaseException] = {}

    def work() -> None:
        while not failures:
            with source_lock:  # one thread reads at a time, and only when it can go on with what it reads
                entry = next(source, None)
            if entry is None:
                return
            try:
                results[entry[0]] = _one_here(lambda *item: pool.remotecall_fetch(f, *item), entry[1], retries)
            except Exception as error:
                failures[entry[0]] = error

    count = max(1, pool.nworkers())
    with ThreadPoolExecutor(max_workers=count) as threads:
        readers = [threads.submit(work) for _ in range(count)]
    if failures:
        raise failures[min(failures)]
    for reader in readers:
        reader.result()  # the input's own error
    return [results[index] for index in range(len(results))]
