"""``distpool.compat.multiprocessing.Pool``: its methods, its errors, its end."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from multiprocessing.pool import MaybeEncodingError, RemoteTraceback  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

import pytest

import distpool
from distpool.compat.multiprocessing import TimeoutError as PoolTimeout
from distpool.compat.multiprocessing.pool import AsyncResult, Pool, ThreadPool
from support import dropins
from support.leaks import eventually


@pytest.fixture
def pool() -> Iterator[Any]:
    with Pool(2) as pool:
        yield pool


# -- what the methods return


def test_every_method(pool: Any) -> None:
    """Each with its arguments by place and by name."""
    assert pool.apply(dropins.pair, (1, 2)) == (1, 2)
    assert pool.apply(dropins.keywords, args=[1], kwds={"a": 2}) == ((1,), {"a": 2})
    assert pool.apply_async(dropins.keywords, (1,), {"a": 2}).get(timeout=10) == ((1,), {"a": 2})
    assert pool.map(dropins.square, range(100)) == [x * x for x in range(100)]
    assert pool.map(dropins.square, iter(range(100)), chunksize=7) == [x * x for x in range(100)]
    assert pool.map_async(dropins.square, range(5), 2).get() == [0, 1, 4, 9, 16]
    assert pool.starmap(pow, [(2, 3), (3, 2)], chunksize=1) == [8, 9]
    assert pool.starmap_async(pow, iter([(2, 3), (3, 2)])).get() == [8, 9]
    assert list(pool.imap(dropins.square, range(10), 3)) == [x * x for x in range(10)]
    assert sorted(pool.imap_unordered(dropins.square, range(10), chunksize=3)) == [x * x for x in range(10)]
    for empty in (pool.map(abs, []), pool.map_async(abs, []).get(), list(pool.imap(abs, [])), pool.starmap(abs, [])):
        assert empty == []


def test_functions_of_any_kind(pool: Any) -> None:
    """Lambdas, closures, partials, bound methods, classes."""
    offset = 10
    assert pool.map(lambda x: x + offset, [1, 2]) == [11, 12]
    assert pool.map(partial(pow, 2), [1, 2]) == [2, 4]
    assert pool.map("abc".startswith, ["a", "b"]) == [True, False]
    assert pool.map(str, [1]) == ["1"]


def test_types_are_those_of_the_standard_library(pool: Any) -> None:
    """Programs ask with isinstance()."""
    from multiprocessing import pool as standard

    assert isinstance(pool, standard.Pool)
    result = pool.apply_async(abs, (1,))
    assert isinstance(result, standard.AsyncResult)
    assert isinstance(result, AsyncResult)
    assert isinstance(pool.map_async(abs, [1]), standard.MapResult)
    assert isinstance(pool.imap(abs, [1]), standard.IMapIterator)
    assert isinstance(pool.imap_unordered(abs, [1]), standard.IMapUnorderedIterator)
    assert ThreadPool is standard.ThreadPool


def test_result_before_and_after(pool: Any, tmp_path: Path) -> None:
    """ready, successful, wait and get, with time limits."""
    gate = tmp_path / "gate"
    result = pool.apply_async(dropins.wait_for, (str(gate),))
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.wait(0.01)
    with pytest.raises(PoolTimeout):
        result.get(0.01)
    assert not issubclass(PoolTimeout, TimeoutError)  # the standard library's is none
    gate.touch()
    result.wait()
    assert result.ready()
    assert result.successful()
    assert result.get() is result.get(0)
    failed = pool.apply_async(dropins.reciprocal, (0,))
    failed.wait(10)
    assert not failed.successful()
    with pytest.raises(ZeroDivisionError):
        failed.get()


def test_many_threads_wait_for_one_result(pool: Any, tmp_path: Path) -> None:
    """Each gets the same object."""
    result = pool.apply_async(dropins.wait_for, (str(tmp_path / "gate"),))
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(result.get(20))) for _ in range(8)]
    for thread in threads:
        thread.start()
    (tmp_path / "gate").touch()
    for thread in threads:
        thread.join(20)
    assert len(got) == 8
    assert all(each is got[0] for each in got)


def test_imap_takes_a_time_limit_and_goes_on_after_failures(pool: Any, tmp_path: Path) -> None:
    """As ``next(timeout)`` of the standard library, which can be asked again."""
    results = pool.imap(dropins.wait_for, [str(tmp_path / "gate")])
    with pytest.raises(PoolTimeout):
        results.next(0.01)
    with pytest.raises(PoolTimeout):
        results.next(timeout=0)
    (tmp_path / "gate").touch()
    assert results.next(10) == str(tmp_path / "gate")
    with pytest.raises(StopIteration):
        results.next(10)
    with pytest.raises(StopIteration):
        next(results)
    results = pool.imap(dropins.reciprocal, [1, 0, 2, 0, 4])
    got: list[Any] = []
    while True:
        try:
            got.append(next(results))
        except ZeroDivisionError:
            got.append("failed")
        except StopIteration:
            break
    assert got == [1.0, "failed", 0.5, "failed", 0.25]


def test_imap_begins_at_once_and_reads_a_bounded_way_ahead(pool: Any, tmp_path: Path) -> None:
    """Without anybody who takes results; an endless input is no problem."""
    read: list[int] = []

    def endless() -> Iterator[str]:
        for number in count():
            read.append(number)
            yield str(tmp_path / str(number))

    results = pool.imap(dropins.touch, endless(), buffersize=3)
    eventually(lambda: (tmp_path / "2").exists())
    assert len(read) == 3
    assert next(results) == str(tmp_path / "0")
    eventually(lambda: (tmp_path / "3").exists())
    assert len(read) == 4
    pool.terminate()


def test_imap_reads_on_when_the_pool_is_closed(tmp_path: Path) -> None:
    """``close`` and ``join`` promise that all is done, also for results that nobody takes, or has dropped."""
    paths = [tmp_path / str(number) for number in range(200)]
    pool = Pool(2)
    kept = pool.imap(dropins.touch, (str(path) for path in paths[:100]), buffersize=1)
    pool.imap_unordered(dropins.touch, (str(path) for path in paths[100:]), buffersize=1)
    pool.close()
    pool.join()
    assert [path.read_text() for path in paths] == ["x"] * 200
    assert list(kept) == [str(path) for path in paths[:100]]


@pytest.mark.parametrize("method", ["imap", "imap_unordered"])
def test_what_the_input_raises_comes_at_its_place(pool: Any, method: str) -> None:
    """And ends the iterator; what was in the same chunk is not done."""

    def broken(n: int) -> Iterator[int]:
        yield from range(n)
        raise LookupError("input")

    results = getattr(pool, method)(dropins.square, broken(5), 2)
    got = sorted(next(results) for _ in range(4))
    assert got == [0, 1, 4, 9]
    with pytest.raises(LookupError, match="input"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)
    for do in (pool.map, pool.map_async, pool.starmap):
        with pytest.raises(LookupError, match="input"):
            do(dropins.square, broken(2))


def test_a_thousand_maps_outstanding(pool: Any) -> None:
    """They are done in turn, without a thread for each."""
    before = threading.active_count()
    results = [pool.map_async(dropins.square, range(i, i + 10)) for i in range(1000)]
    assert threading.active_count() < before + 20
    for i, result in enumerate(results):
        assert result.get(60) == [x * x for x in range(i, i + 10)]


# -- callbacks


def test_callbacks_run_in_one_thread_before_the_result_is_ready(pool: Any) -> None:
    """In the order in which results came, each once."""
    called: list[tuple[int, Any, bool]] = []
    results: list[Any] = []

    def note(value: Any) -> None:
        called.append((threading.get_ident(), value, results[0].ready() if value == 0 else True))

    results.extend(pool.apply_async(dropins.square, (i,), callback=note, error_callback=note) for i in range(300))
    pool.map_async(dropins.square, [20], callback=note).wait(20)
    for result in results:
        result.wait(20)
    assert sorted(value for _, value, _ in called if isinstance(value, int)) == sorted(i * i for i in range(300))
    assert [value for _, value, _ in called if isinstance(value, list)] == [[400]]
    assert threading.get_ident() not in {ident for ident, _, _ in called}
    assert len({ident for ident, _, _ in called}) <= 2  # never two at a time; another one after a pause
    assert not any(was_ready for _, value, was_ready in called if value == 0)


def test_error_callbacks_get_the_exception(pool: Any) -> None:
    """Of single calls and of maps; also that of an argument which cannot be pickled."""
    errors: list[BaseException] = []
    for result in (
        pool.apply_async(dropins.reciprocal, (0,), error_callback=errors.append, callback=pytest.fail),
        pool.map_async(dropins.reciprocal, [1, 0], error_callback=errors.append),
        pool.apply_async(dropins.square, (dropins.Poison("pickled"),), error_callback=errors.append),
    ):
        result.wait(20)
        assert not result.successful()
    assert sorted(type(error).__name__ for error in errors) == ["LookupError", *["ZeroDivisionError"] * 2]


def test_a_callback_that_raises_hurts_nobody(pool: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported; the next ones are called (in the standard library the pool hangs)."""
    reported: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    got: list[int] = []
    pool.apply_async(abs, (-1,), callback=lambda value: 1 / 0).wait(20)
    pool.apply_async(abs, (-2,), callback=got.append).wait(20)
    assert got == [2]
    assert [type(error) for error in reported] == [ZeroDivisionError]


def test_join_waits_for_callbacks() -> None:
    """They belong to what was submitted."""
    pool, got = Pool(1), []

    def slow(value: int) -> None:
        time.sleep(0.05)
        got.append(value)

    for i in range(5):
        pool.apply_async(abs, (i,), callback=slow)
    pool.close()
    pool.join()
    assert got == [0, 1, 2, 3, 4]


# -- what goes wrong


MISBEHAVIOURS = {
    "kill": distpool.ProcessExitedException,
    "_exit": distpool.ProcessExitedException,
    "sys.exit": SystemExit,
    "two": Exception,
    "lock": MaybeEncodingError,
}


@pytest.mark.parametrize("how", MISBEHAVIOURS)
def test_one_bad_item_fails_alone(pool: Any, how: str) -> None:
    """At once, the others are done, the pool lives."""
    got: list[Any] = []
    results = pool.imap(partial(dropins.misbehave_at_3, how), range(8), 1)
    for _ in range(8):
        try:
            got.append(results.next(10))
        except BaseException as error:
            got.append(error)
    assert isinstance(got[3], MISBEHAVIOURS[how])
    assert got[:3] + got[4:] == [0, 1, 2, 4, 5, 6, 7]
    assert pool.map(dropins.square, range(8)) == [x * x for x in range(8)]


@pytest.mark.parametrize("when", ["pickled", "opened"])
def test_a_bad_argument_fails_alone(pool: Any, when: str) -> None:
    """With the original error, whether it explodes here or there."""
    items = [0, 1, 2, dropins.Poison(when), 4]
    got: list[Any] = []
    results = pool.imap(dropins.os_pid, items)
    for _ in items:
        try:
            got.append(type(results.next(10)))
        except LookupError as error:
            got.append(error)
    assert str(got.pop(3)) == f"cannot be {when}"
    assert got == [int] * 4
    with pytest.raises(LookupError, match=f"cannot be {when}"):
        pool.map(dropins.os_pid, items)
    with pytest.raises(LookupError, match=f"cannot be {when}"):
        pool.apply(dropins.os_pid, (items[3],))


def test_errors_are_the_originals(pool: Any) -> None:
    """Not a subclass; the cause is the worker's traceback, as text."""
    for call in (
        lambda: pool.apply(dropins.reciprocal, (0,)),
        lambda: pool.map(dropins.reciprocal, [1, 0]),
        lambda: pool.map_async(dropins.reciprocal, [1, 0]).get(),
        lambda: list(pool.imap(dropins.reciprocal, [1, 0])),
    ):
        with pytest.raises(ZeroDivisionError) as caught:
            call()
        assert type(caught.value) is ZeroDivisionError
        assert caught.value.args == ("division by zero",)
        assert type(caught.value.__cause__) is RemoteTraceback
        assert "return 1 / x" in str(caught.value.__cause__)


def test_map_does_everything_before_it_raises(pool: Any, tmp_path: Path) -> None:
    """The first failure in input order, after all tasks."""
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"0\.4"):
        pool.map(dropins.slow_failure, [0.4, 0.0], 1)
    assert time.monotonic() - begun >= 0.4
    calls = [(dropins.reciprocal, 0), *((dropins.touch, str(tmp_path / str(i))) for i in range(20))]
    with pytest.raises(ZeroDivisionError):
        pool.starmap(lambda f, x: f(x), calls)
    assert len(list(tmp_path.iterdir())) == 20


def test_a_result_that_cannot_be_pickled(pool: Any) -> None:
    """Names the reason; the pool and its workers go on."""
    workers = {worker.pid for worker in pool._pool}
    for _ in range(20):
        with pytest.raises(MaybeEncodingError, match=r"_thread\.lock") as caught:
            pool.apply(threading.Lock)
        assert "TypeError" in caught.value.exc
        assert "lock" in caught.value.value
    assert {worker.pid for worker in pool._pool} == workers


@pytest.mark.parametrize("initializer", [dropins.fail, dropins.misbehave], ids=["raises", "exits"])
def test_an_initializer_that_fails_is_told_by_every_call(initializer: Callable[..., Any]) -> None:
    """Once tried, not for ever; the constructor is silent, as in the standard library."""
    with Pool(2, initializer, ("sys.exit",)) as pool:
        for _ in range(2):
            with pytest.raises((ZeroDivisionError, SystemExit)) as caught:
                pool.map(abs, range(5))
            assert "Error" in type(caught.value).__name__ or caught.value.args == (3,)
            with pytest.raises((ZeroDivisionError, SystemExit)):
                pool.apply_async(abs, (1,)).get(20)


def test_bad_arguments() -> None:
    """The standard library's types and texts."""
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least 1"):
            Pool(bad)
    with pytest.raises(TypeError):
        Pool("2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="callable"):
        Pool(1, 3)  # type: ignore[arg-type]
    for value in (0, -1, 0.5, "12"):
        with pytest.raises(ValueError, match="maxtasksperchild"):
            Pool(1, maxtasksperchild=value)  # type: ignore[arg-type]
    with Pool(1) as pool:
        for name in ("imap", "imap_unordered", "map", "map_async"):
            with pytest.raises(ValueError, match=r"Chunksize must be 1\+"):
                getattr(pool, name)(abs, [1], chunksize=0)
            with pytest.raises(TypeError, match="iterable"):
                getattr(pool, name)(abs, 3)
        with pytest.raises(ValueError, match="buffersize"):
            pool.imap(abs, [1], buffersize=0)
        with pytest.raises(TypeError, match="buffersize"):
            pool.imap(abs, [1], buffersize=1.5)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="not callable"):
            pool.apply(3)  # type: ignore[arg-type]


# -- the end


def test_states(pool: Any) -> None:
    """What is said at the wrong time."""
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    pool.close()
    for call in (pool.map, pool.map_async, pool.imap, pool.imap_unordered, pool.starmap):
        with pytest.raises(ValueError, match="Pool not running"):
            call(abs, [1])
    with pytest.raises(ValueError, match="Pool not running"):
        pool.apply_async(abs, (1,))
    with pytest.raises(ValueError, match="Pool not running"):
        pool.__enter__()
    pool.join()
    pool.terminate()
    pool.join()


def test_terminate_ends_everything_at_once(pool: Any) -> None:
    """Also while ``close`` waits. Who waits for a result is told; callbacks are not called."""
    called: list[object] = []
    running = pool.apply_async(time.sleep, (1000,), callback=called.append, error_callback=called.append)
    waiting = [pool.apply_async(abs, (1,)) for _ in range(3)] + [pool.map_async(time.sleep, [1000] * 100)]
    pids = [worker.pid for worker in pool._pool]
    pool.close()
    begun = time.monotonic()
    pool.terminate()
    pool.join()
    assert time.monotonic() - begun < 5
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    with pytest.raises((RuntimeError, distpool.ProcessExitedException)):
        running.get(5)
    with pytest.raises((RuntimeError, distpool.ProcessExitedException)):
        waiting[-1].get(5)
    assert called == []


def test_a_pool_that_is_dropped_open() -> None:
    """ResourceWarning, as in the standard library, and nothing is left; results under way keep it."""
    pools: list[Any] = [Pool(1)]
    pids = [worker.pid for worker in pools[0]._pool]
    assert pools[0].apply(dropins.square, (3,)) == 9

    def drop() -> None:
        pools.clear()
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        drop()
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))


def test_nothing_is_kept(pool: Any) -> None:
    """Neither arguments nor results, here or there, once they are done with."""

    class Thing:
        pass

    things = [Thing() for _ in range(3)]
    refs = [weakref.ref(thing) for thing in things]
    pool.map(id, things)
    pool.map_async(id, things).get()
    pool.apply(id, (things[0],))
    list(pool.imap(id, things))
    del things
    gc.collect()
    eventually(lambda: [ref() for ref in refs] == [None] * 3, 10)


def test_a_pool_cannot_be_pickled(pool: Any) -> None:
    """As in the standard library, and not as an argument either."""
    with pytest.raises(NotImplementedError, match="cannot be passed"):
        pickle.dumps(pool)
    with pytest.raises(NotImplementedError, match="cannot be passed"):
        pool.apply(id, (pool,))


def test_first_tasks_run_in_the_main_thread() -> None:
    """Where signals are handled: also those that come while the initializer has just answered."""
    for _ in range(10):
        with Pool(2, dropins.keep, (1,)) as pool:
            assert all(pool.map(dropins.is_main_thread, range(8), 1))


def test_max_tasks_per_child() -> None:
    """No worker does more."""
    with Pool(2, maxtasksperchild=3) as pool:
        done = pool.map(dropins.os_pid, range(20), 1)
    assert max(done.count(pid) for pid in done) <= 3
    assert len(set(done)) >= 7


def test_a_worker_that_is_killed_is_replaced(pool: Any) -> None:
    """Seen from outside, too."""
    first = {worker.pid for worker in pool._pool}
    os.kill(min(first), 9)
    eventually(lambda: min(first) not in {worker.pid for worker in pool._pool})
    assert set(pool.map(dropins.os_pid, range(50), 1)) <= {worker.pid for worker in pool._pool}


def test_no_warning_in_ordinary_use() -> None:
    """Made, used and closed, by ``with`` or by hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Pool(1) as pool:
            pool.map(abs, [1])
        other = Pool(1)
        other.close()
        other.join()
        del other, pool
        gc.collect()


def test_threads_are_the_standard_library_s() -> None:
    """``multiprocessing.dummy`` and ``ThreadPool`` pass through."""
    from distpool.compat.multiprocessing.dummy import Pool as DummyPool

    with DummyPool(2) as pool:
        assert isinstance(pool, multiprocessing.pool.ThreadPool)
        assert pool.map(dropins.square, range(3)) == [0, 1, 4]
