"""Cancelling calls: those that wait here, and those that were sent ahead to a worker which has not begun them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from distpool import WorkerPool
from distpool.compat.futures import ProcessPoolExecutor
from distpool.futures import TaskFuture
from support import jobs
from support.leaks import eventually

QUICK = 400  # calls that teach the pool how quick they are
AHEAD = 100  # calls behind a long one

Caller = WorkerPool | ProcessPoolExecutor


def _is_away(future: Any) -> bool:
    return future.is_away if isinstance(future, TaskFuture) else future.running()


@contextmanager
def stuck(caller: Caller, tmp_path: Path) -> Iterator[list[Any]]:
    """Futures of calls of which many have been sent to a worker that is in a long one, which is the first of them."""
    note, go, started = str(tmp_path / "note"), str(tmp_path / "go"), str(tmp_path / "started")
    os.mkfifo(go)
    while True:
        for future in [caller.submit(jobs.touch_and_wait, note, os.devnull) for _ in range(QUICK)]:
            future.result()
        futures = [caller.submit(jobs.touch_and_wait, started, go)]
        futures += [caller.submit(jobs.touch_and_wait, str(tmp_path / str(n)), os.devnull) for n in range(AHEAD)]
        eventually(lambda: os.path.exists(started))
        if sum(map(_is_away, futures)) > 1:
            break
        Path(go).write_text("")  # the last calls took long, for the machine is busy: once more
        for future in futures:
            future.result()
        for name in os.listdir(tmp_path):
            if name != "go":
                os.remove(tmp_path / name)
    yield futures
    Path(go).write_text("")


@pytest.fixture(params=["WorkerPool", "ProcessPoolExecutor"])
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """With one worker, which is ended even if something is stuck."""
    pool = WorkerPool(processes=1)
    try:
        yield pool if request.param == "WorkerPool" else ProcessPoolExecutor(pool=pool)
    finally:
        pool.terminate()


@pytest.mark.parametrize("order", [1, -1])
def test_what_was_sent_ahead_is_taken_back(caller: Caller, tmp_path: Path, order: int) -> None:
    """All but the call that runs can be cancelled, from either end; none of them is run."""
    called_back: list[object] = []
    with stuck(caller, tmp_path) as futures:
        for future in futures[2:]:
            future.add_done_callback(called_back.append)
        assert all(future.cancel() for future in futures[2:][::order])
        assert not futures[0].cancel()
        assert all(future.cancelled() and future.done() for future in futures[2:])
    assert futures[0].result() == futures[1].result() > 0
    assert sorted(set(os.listdir(tmp_path)) - {"note"}) == ["0", "go", "started"]
    eventually(lambda: sorted(map(id, called_back)) == sorted(map(id, futures[2:])))


def test_cancelled_while_results_come(caller: Caller, tmp_path: Path) -> None:
    """Threads cancel what is just being done: each call is either cancelled, and then it was not run, or run once."""
    with stuck(caller, tmp_path) as futures:
        pass
    halves = [futures[1::2], futures[-1::-2]]
    told: dict[int, bool] = {}
    threads = [
        threading.Thread(target=lambda half=half: told.update({id(f): f.cancel() for f in half})) for half in halves
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, future in enumerate(futures[1:]):
        assert future.cancelled() == told.get(id(future), False)
        if not future.cancelled():
            assert future.result() > 0
        assert os.path.exists(tmp_path / str(number)) != future.cancelled()


def test_a_worker_that_cannot_answer(caller: Caller, tmp_path: Path) -> None:
    """C code holds its interpreter: what it was sent counts as begun after a second, and is done later."""
    away: list[Any] = []
    for trial in count():
        for future in [caller.submit(jobs.hold_for, 0.0) for _ in range(QUICK)]:
            future.result()
        started = str(tmp_path / str(trial))
        futures = [caller.submit(jobs.hold_for, 2.5, started)]
        futures += [caller.submit(jobs.hold_for, 0.0) for _ in range(AHEAD)]
        eventually(lambda: os.path.exists(started))  # noqa: B023
        away = [future for future in futures[1:] if _is_away(future)]
        if away:
            break
    time.sleep(0.1)  # from the file to the C code it is some microseconds
    begun = time.monotonic()
    assert not away[-1].cancel()
    assert time.monotonic() - begun < 2.3
    assert [future.result() for future in futures[1:]] == [0.0] * AHEAD


def test_a_worker_that_dies_meanwhile(caller: Caller, tmp_path: Path) -> None:
    """What it had not begun is back, and is cancelled or done."""
    around = stuck(caller, tmp_path)
    futures = around.__enter__()
    pool = caller if isinstance(caller, WorkerPool) else caller._engine.pool
    (os_pid,) = pool.os_pids().values()
    os.kill(os_pid, signal.SIGSTOP)  # it does not answer
    killer = threading.Timer(0.2, os.kill, (os_pid, signal.SIGKILL))
    killer.start()
    told = futures[-1].cancel()
    killer.join()
    assert futures[-1].cancelled() == told
    assert told or futures[-1].result() > 0
    assert all(future.result() > 0 for future in futures[1:-1])
    assert futures[0].exception() is not None
