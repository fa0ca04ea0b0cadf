"""What a pool does while nobody waits: maps for promises, streams that have begun; and maps that do all their tasks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distpool import Outcome, ProcessExitedException, Waiter, WorkerPool
from support import dropins
from support.leaks import eventually


class Promise:
    """Takes one outcome."""

    def __init__(self) -> None:
        self.done = Waiter()
        self.times = 0
        self.outcome: Any = None

    def leave(self) -> bool:
        return True

    def come_back(self) -> None:
        pass

    def cancelled(self) -> bool:
        return False

    def resolve(self, outcome: Any, /) -> None:
        self.outcome = outcome
        self.times += 1
        self.done.complete()

    def value(self, pool: WorkerPool) -> Any:
        assert pool.wait_for(self.done, 30)
        assert isinstance(self.outcome, Outcome)
        return self.outcome.value()


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(processes=2) as pool:
        yield pool


def reciprocal(x: float) -> float:
    return 1 / x


def touch(path: str) -> None:
    Path(path).touch()


def wait_for(path: str) -> bool:
    while not Path(path).exists():
        time.sleep(0.005)
    return True


def test_a_map_for_a_promise(pool: WorkerPool) -> None:
    """Results in input order; several ways to give arguments; an empty one, too."""
    promises = [Promise() for _ in range(4)]
    pool.map_into(promises[0], abs, range(-50, 50))
    pool.map_into(promises[1], pow, [(2, 3), (3, 2)], star=True)
    pool.map_into(promises[2], abs, iter([-1, -2]), batch_size=1)
    pool.map_into(promises[3], abs, [])
    values = [promise.value(pool) for promise in promises]
    assert values == [[abs(x) for x in range(-50, 50)], [8, 9], [1, 2], []]
    assert [promise.times for promise in promises] == [1] * 4


def test_all_tasks_are_done_before_it_fails(pool: WorkerPool, tmp_path: Path) -> None:
    """For a promise as for ``map(fail_fast=False)``: the first error in input order."""

    def work(x: Any) -> None:
        if isinstance(x, str):
            Path(x).touch()
        else:
            raise x

    def items(name: str) -> list[Any]:
        return [KeyError("first"), *(str(tmp_path / f"{name}{i}") for i in range(20)), ValueError("second")]

    promise = Promise()
    pool.map_into(promise, work, items("a"))
    with pytest.raises(KeyError, match="first"):
        promise.value(pool)
    with pytest.raises(KeyError, match="first"):
        pool.map(work, items("b"), fail_fast=False)
    with pytest.raises(KeyError, match="first"):
        pool.starmap(work, [(item,) for item in items("c")], fail_fast=False)
    assert len(list(tmp_path.iterdir())) == 60


def test_what_goes_wrong_in_a_map_for_a_promise(pool: WorkerPool) -> None:
    """The input's error, an item that cannot be sent, a worker that dies: told once, the pool lives."""

    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("input")

    import os

    for wanted, f, items in (
        (LookupError, abs, broken()),
        (TypeError, id, [1, threading.Lock(), 3]),
        (ProcessExitedException, os._exit, [3]),
    ):
        promise = Promise()
        pool.map_into(promise, f, items)
        with pytest.raises(wanted):
            promise.value(pool)
        assert promise.times == 1
    with pytest.raises(TypeError, match="lock"):
        pool.map_into(Promise(), threading.Lock().__enter__, [1])
    assert pool.map(abs, [-1]) == [1]


def test_many_maps_wait_for_their_turn(pool: WorkerPool, tmp_path: Path) -> None:
    """Their inputs are read in turn, by few threads, while nobody waits."""
    read: list[int] = []

    def items(number: int) -> Iterator[int]:
        read.append(number)
        yield from range(5)

    gate = str(tmp_path / "gate")
    first = [Promise() for _ in range(2)]
    for promise in first:
        pool.map_into(promise, wait_for, [gate] * 2)
    promises = [Promise() for _ in range(200)]
    before = threading.active_count()
    for number, promise in enumerate(promises):
        pool.map_into(promise, abs, items(number))
    assert threading.active_count() < before + 10
    assert not any(promise.times for promise in promises)
    touch(gate)
    eventually(lambda: all(promise.times for promise in [*first, *promises]))
    assert [promise.value(pool) for promise in promises] == [[0, 1, 2, 3, 4]] * 200
    assert read == list(range(200))


def test_close_does_what_waits(tmp_path: Path) -> None:
    """Maps that have not begun belong to what was submitted."""
    promises = [Promise() for _ in range(20)]
    with WorkerPool(processes=1) as pool:
        for promise in promises:
            pool.map_into(promise, abs, range(3))
    assert [promise.value(pool) for promise in promises] == [[0, 1, 2]] * 20


def test_terminate_tells_every_promise(tmp_path: Path) -> None:
    """Those of maps that were never begun, too."""
    pool = WorkerPool(processes=1)
    promises = [Promise() for _ in range(5)]
    for promise in promises:
        pool.map_into(promise, time.sleep, [1000] * 3)
    pool.terminate()
    for promise in promises:
        with pytest.raises((RuntimeError, ProcessExitedException)):
            promise.value(pool)
    assert [promise.times for promise in promises] == [1] * 5


def test_a_stream_in_any_order(pool: WorkerPool, tmp_path: Path) -> None:
    """What is there comes first; "auto" reads a bounded way ahead, ``hurry`` to the end."""
    gate = str(tmp_path / "gate")
    stream = pool.stream(lambda f, x: f(x), [wait_for, abs, abs], [gate, -1, -2], ordered=False, batch_size=1)
    outcomes = stream.outcomes(30)
    assert sorted(next(outcomes) for _ in range(2)) == [1, 2]
    touch(gate)
    assert list(outcomes) == [True]
    read: list[int] = []
    stream = pool.stream(abs, (read.append(i) or i for i in range(1000)), buffersize="auto", batch_size=1)
    eventually(lambda: len(read) >= 8)
    assert len(read) < 100
    stream.hurry()
    eventually(lambda: stream.is_finished)
    assert len(read) == 1000
    assert stream.input_error is None
    stream.close()


def test_os_pids(pool: WorkerPool) -> None:
    """Of each member, as the workers say themselves."""
    import os

    told = {os_pid for _ in range(20) for os_pid in pool.map(lambda _: os.getpid(), range(4), batch_size=1)}
    assert told <= set(pool.os_pids().values())
    assert sorted(pool.os_pids()) == sorted(pool.workers())
    assert WorkerPool([1]).os_pids() == {}


def test_tasks_after_an_initializer_run_in_the_main_thread() -> None:
    """Also those that come before the main thread is back from the initializer that it has just answered."""
    for _ in range(20):
        with WorkerPool(processes=2, initializer=abs, initargs=(1,)) as pool:
            assert all(pool.map(dropins.is_main_thread, range(6), batch_size=1))
