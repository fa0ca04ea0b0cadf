"""``ProcessPoolExecutor.map``: order, laziness, limits, and what becomes of an iterator that is dropped."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import distpool
from distpool.compat.futures.process import BrokenProcessPool, ProcessPoolExecutor
from support import jobs
from support.leaks import eventually


@pytest.fixture(scope="module")
def shared() -> Iterator[distpool.WorkerPool]:
    """Workers for the tests that leave them as they were."""
    with distpool.WorkerPool(processes=2) as pool:
        yield pool


@pytest.fixture
def executor(shared: distpool.WorkerPool) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(pool=shared) as executor:
        yield executor


def test_order_and_shape(executor: ProcessPoolExecutor) -> None:
    """As map(): one iterable or several, the shortest counts; none at all gives nothing."""
    assert list(executor.map(jobs.square, range(3000))) == [x * x for x in range(3000)]
    assert list(executor.map(pow, range(10), itertools.repeat(2))) == [x * x for x in range(10)]
    assert list(executor.map(lambda x: x + 1, iter([1, 2]))) == [2, 3]
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs)) == []
    assert list(executor.map(jobs.echo, [(1, 2)])) == [(((1, 2),), {})]
    assert list(executor.map(jobs.square, range(100), chunksize=7)) == [x * x for x in range(100)]
    assert list(executor.map(jobs.square, range(100), buffersize=3)) == [x * x for x in range(100)]
    assert list(executor.map(pow, range(100), range(100), chunksize=3, buffersize=2)) == [x**x for x in range(100)]


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1."),
        ({"chunksize": -1}, ValueError, "chunksize must be >= 1."),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": 1.5}, TypeError, "buffersize must be an integer or None"),
    ],
)
def test_bad_options(executor: ProcessPoolExecutor, options: dict[str, Any], error: type[Exception], text: str) -> None:
    """The standard library's errors, at the call."""
    with pytest.raises(error, match=text):
        executor.map(abs, [1], **options)
    with pytest.raises(TypeError, match="not iterable"):
        executor.map(abs, 3)  # type: ignore[arg-type]


def test_it_begins_at_once(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Nobody has to ask for a result; and an iterator that is dropped leaves its tasks to be done."""
    paths = [str(tmp_path / str(n)) for n in range(20)]
    executor.map(jobs.touch, paths)
    eventually(lambda: len(list(tmp_path.iterdir())) == 20)


def test_the_input_is_read_at_the_call(executor: ProcessPoolExecutor) -> None:
    """All of it, in this thread, and its error is raised here; a later change of it does not matter."""
    threads = set()

    def numbers() -> Iterator[int]:
        for n in range(50):
            threads.add(threading.current_thread())
            yield n

    source = list(range(50))
    results = executor.map(jobs.square, numbers(), source)  # type: ignore[call-arg]  # two arguments: fails in time
    source.clear()
    assert threads == {threading.current_thread()}
    with pytest.raises(TypeError):
        next(results)

    def broken() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        executor.map(abs, broken())


def test_buffersize_bounds_what_is_read(executor: ProcessPoolExecutor) -> None:
    """So many items ahead, one more for each result, all in this thread: infinite inputs work."""
    read: list[int] = []
    threads = set()

    def numbers() -> Iterator[int]:
        for n in itertools.count():
            read.append(n)
            threads.add(threading.current_thread())
            yield n

    results = executor.map(jobs.square, numbers(), buffersize=5)
    assert read == list(range(5))
    for taken in range(1, 50):
        assert next(results) == (taken - 1) ** 2
        assert len(read) == 5 + taken
    assert threads == {threading.current_thread()}
    results.close()  # type: ignore[attr-defined]  # a generator

    def broken() -> Iterator[int]:
        yield from range(4)
        raise OSError("no more")

    results = executor.map(jobs.square, broken(), buffersize=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(OSError, match="no more"):
        next(results)


def test_a_failure_comes_in_its_turn(executor: ProcessPoolExecutor) -> None:
    """Results before it are there, also those of the same chunk; the iterator ends with it."""
    results = executor.map(jobs.fail_on, [3] * 6, range(6), chunksize=6)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="bad item 3") as caught:
        next(results)
    assert type(caught.value) is ValueError
    assert "fail_on" in str(caught.value.__cause__)
    assert list(results) == []


def test_items_and_results_that_do_not_travel(executor: ProcessPoolExecutor) -> None:
    """Each fails alone."""
    results = executor.map(jobs.identity, [1, threading.Lock(), 3])
    assert next(results) == 1
    with pytest.raises(TypeError, match="lock"):
        next(results)
    results = executor.map(jobs.identity, [1, jobs.Poison()])
    assert next(results) == 1
    with pytest.raises(BrokenProcessPool, match="this payload does not open"):
        next(results)


def test_time_limit(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """From the call on, for all results together; what has come before it is given out."""
    gate = tmp_path / "go"
    os.mkfifo(gate)
    results = executor.map(wait_if, [False, False, True], [str(gate)] * 3, timeout=1)
    assert [next(results), next(results)] == [False, False]
    begun = time.monotonic()
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    assert time.monotonic() - begun < 30
    with open(gate, "w"):
        pass


def wait_if(flag: bool, gate: str) -> bool:
    if flag:
        with open(gate) as file:
            file.read()
    return flag


def test_closing_takes_back_what_has_not_begun(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """By close(), or by dropping an iterator that was begun."""
    for drop in ("close", "forget"):
        signs = tmp_path / drop
        signs.mkdir()
        results: Any = executor.map(touch_slowly, [str(signs / str(n)) for n in range(1000)])
        next(results)
        if drop == "close":
            results.close()
        else:
            del results
            gc.collect()
        assert executor.submit(abs, -1).result() == 1  # everything before it is done or taken back
        assert len(list(signs.iterdir())) < 900


def touch_slowly(path: str) -> None:
    jobs.touch(path)
    time.sleep(0.002)


def test_results_are_let_go(executor: ProcessPoolExecutor) -> None:
    """The iterator keeps no reference to what it has given out (bpo-14406)."""
    for thing in executor.map(make_thing, range(5)):
        weak = weakref.ref(thing)
        del thing
        gc.collect()
        assert weak() is None


class Thing:
    """Not plain, and weakly referable."""


def make_thing(_: Any) -> Thing:
    return Thing()


def test_two_maps_at_a_time(executor: ProcessPoolExecutor) -> None:
    """Consumed in step, or the second one first."""
    one, two = executor.map(jobs.square, range(500)), executor.map(jobs.square, range(500, 1000))
    assert [pair for pair in zip(one, two, strict=True)][-1] == (499 * 499, 999 * 999)
    one, two = executor.map(jobs.square, range(100)), executor.map(jobs.square, range(100, 200))
    assert sum(two) > sum(one)


def test_an_iterator_outlives_shutdown() -> None:
    """Results of a map can be taken after the with block."""
    with ProcessPoolExecutor(2) as executor:
        results = executor.map(jobs.square, range(1000))
    assert list(results) == [x * x for x in range(1000)]


def test_shutdown_that_cancels_ends_maps(tmp_path: Path) -> None:
    """Results that were computed come, then CancelledError."""
    executor = ProcessPoolExecutor(2)
    results = executor.map(touch_slowly, [str(tmp_path / str(n)) for n in range(2000)])
    next(results)
    executor.shutdown(cancel_futures=True)
    with pytest.raises(concurrent.futures.CancelledError):
        list(results)
    assert len(list(tmp_path.iterdir())) < 1900


@pytest.mark.parametrize("size", [1, 3])
def test_a_submit_of_ones_own_sees_each_chunk(executor: ProcessPoolExecutor, size: int) -> None:
    """On the executor or in a subclass, as in the standard library: programs count, or log, that way."""
    seen: list[Any] = []
    original = executor.submit

    def counting(*args: Any) -> Any:
        seen.append(args)
        return original(*args)

    executor.submit = counting  # type: ignore[method-assign,assignment]
    assert list(executor.map(jobs.add, range(7), range(1, 9), chunksize=size)) == [1, 3, 5, 7, 9, 11, 13]
    assert len(seen) == -(-7 // size)
    numbers = itertools.count()
    ahead = executor.map(jobs.square, numbers, chunksize=size, buffersize=2)
    assert [next(ahead) for _ in range(4)] == [0, 1, 4, 9]
    assert next(numbers) == {1: 6, 3: 12}[size]  # the buffer's two chunks, and one for each that was begun to be taken
    ahead.close()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="bad item 2"):
        list(executor.map(jobs.fail_on, itertools.repeat(2), range(5), chunksize=size))
    with pytest.raises(concurrent.futures.TimeoutError):
        list(executor.map(time.sleep, [0.5], timeout=0.01))
