"""Removing workers: what runs there is lost, or finished first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from distpool import (
    Channel,
    ProcessExitedException,
    RemoteChannel,
    RemoteException,
    WorkerPool,
    procs,
    remotecall,
    rmprocs,
)

StartWorkers = Callable[..., list[int]]


def say_and_wait(started: RemoteChannel[Any], go: RemoteChannel[Any], value: Any) -> Any:
    """Tell that this has begun, and end when told to."""
    started.put(value)
    go.fetch()
    return value


@pytest.fixture
def channels() -> tuple[RemoteChannel[Any], RemoteChannel[Any]]:
    """Where tasks say that they have begun, and what they wait for."""
    return RemoteChannel(lambda: Channel(100)), RemoteChannel(lambda: Channel(1))


def test_drained_worker_finishes_what_runs(
    workers: StartWorkers, channels: tuple[RemoteChannel[Any], RemoteChannel[Any]]
) -> None:
    """It is no member any more, gets nothing new, and ends when its calls have ended."""
    (worker,) = workers(1)
    started, go = channels
    results: RemoteChannel[Any] = RemoteChannel(lambda: Channel(10))

    def work(number: int) -> None:
        results.put(say_and_wait(started, go, number))

    for number in (1, 2):
        remotecall(work, worker, number)
    assert {started.take(timeout=20) for _ in range(2)} == {1, 2}
    removal = rmprocs(worker, waitfor=0, drain=True)
    with pytest.raises(TimeoutError):
        removal.wait(0.2)
    go.put(True)
    removal.wait(20)
    assert {results.take(timeout=20) for _ in range(2)} == {1, 2}
    assert worker not in procs()


def test_drained_worker_of_a_pool_gives_its_results(
    workers: StartWorkers, channels: tuple[RemoteChannel[Any], RemoteChannel[Any]]
) -> None:
    """What it runs counts, what waits goes to the others."""
    one, two = workers(2)
    started, go = channels
    with WorkerPool([one, two]) as pool:
        futures = [pool.submit(say_and_wait, started, go, number) for number in range(6)]
        started.take(timeout=20)
        removal = rmprocs(one, waitfor=0, drain=True)
        go.put(True)
        assert [future.result(20) for future in futures] == list(range(6))
        removal.wait(20)
        assert pool.workers() == [two]


def test_without_drain_what_runs_is_lost(
    workers: StartWorkers, channels: tuple[RemoteChannel[Any], RemoteChannel[Any]]
) -> None:
    """An orderly removal does not wait for calls."""
    (worker,) = workers(1)
    started, go = channels
    future = remotecall(say_and_wait, worker, started, go, 1)
    started.take(timeout=20)
    rmprocs(worker)
    with pytest.raises((ProcessExitedException, RemoteException)):
        future.fetch(timeout=20)


@pytest.mark.parametrize("names", ["WorkerPool, addprocs", "addprocs, WorkerPool"])
def test_workers_end_in_good_order_with_the_program(run_script: Callable[..., Any], names: str) -> None:
    """Their exit handlers run, and what they print is shown, whichever room of ours was loaded first."""
    text = f"""
        import atexit
        from distpool import {names}, remotecall_fetch
        (pid,) = addprocs(1)
        remotecall_fetch(lambda: atexit.register(print, "bye") and None, pid)
    """
    assert run_script(text) == (0, "      From worker 2:\tbye\n", "")
