"""Calls that are made in turn, by a lent thread: their order, who waits for them, and for how long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from distpool import WorkerPool
from distpool.futures import TaskFuture
from distpool.threads import CallThreads
from distpool.transport import Reader
from distpool.turns import PATIENCE_SECONDS, InTurn
from support import jobs
from support.bars import Bar

WAIT = 30  # seconds; a limit for what should take none


@pytest.fixture
def turns() -> Iterator[InTurn]:
    """Of no pool."""
    reader = Reader()
    yield InTurn(CallThreads("turns").run, reader.call_later)
    reader.close()


def test_one_after_the_other_in_order(turns: InTurn) -> None:
    """From many threads at once; never two at the same time."""
    made: list[tuple[int, int]] = []
    inside = threading.Lock()

    def call(thread: int, number: int) -> None:
        assert inside.acquire(False)
        made.append((thread, number))
        inside.release()

    def give(thread: int) -> None:
        for number in range(300):
            turns.expect()
            turns.add(lambda number=number: call(thread, number))  # type: ignore[misc]

    threads = [threading.Thread(target=give, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    turns.wait()
    for number in range(4):
        assert [n for thread, n in made if thread == number] == list(range(300))


def test_wait_waits_for_what_is_only_expected(turns: InTurn) -> None:
    """Until it was given and made, or will not be given after all."""
    turns.expect()
    turns.expect()
    made: list[int] = []
    waited: list[int] = []

    def wait() -> None:
        turns.wait()
        waited.append(len(made))

    thread = threading.Thread(target=wait)
    thread.start()
    turns.add(lambda: made.append(1))
    time.sleep(0.05)
    assert not waited
    turns.excuse()
    thread.join(WAIT)
    assert waited == [1]
    turns.wait()


def test_waiting_in_a_call_would_be_for_itself(turns: InTurn) -> None:
    """So it does not."""
    here: list[bool] = []
    turns.expect()
    turns.add(lambda: here.append(turns.is_here) or turns.wait())  # type: ignore[func-returns-value]
    turns.wait()
    assert here == [True]
    assert not turns.is_here


def test_a_call_that_raises_is_reported_and_hurts_nobody(turns: InTurn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what is no Exception."""
    reported: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_type))
    made: list[int] = []
    for call in (lambda: 1 / 0, lambda: exec("raise SystemExit"), lambda: made.append(1)):
        turns.expect()
        turns.add(call)
    turns.wait()
    assert made == [1]
    assert reported == [ZeroDivisionError, SystemExit]


def test_what_comes_after_a_call(turns: InTurn) -> None:
    """Comes right after a quick one, and long before the end of one that takes its time."""
    told = threading.Event()
    made: list[bool] = []
    turns.expect()
    turns.add(lambda: made.append(told.is_set()), then=told.set)
    assert told.wait(WAIT)
    assert made == [False]
    late = threading.Event()
    turns.expect()
    turns.add(lambda: made.append(late.wait(WAIT)), then=late.set)
    begun = time.monotonic()
    turns.wait()
    assert made == [False, True]
    assert time.monotonic() - begun >= PATIENCE_SECONDS


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that nothing depends on how busy the machine is."""
    monkeypatch.setattr("distpool.turns.PATIENCE_SECONDS", float(WAIT))


async def gather(futures: list[TaskFuture[int]]) -> None:
    """Wait for all of them."""
    await asyncio.gather(*futures)


@pytest.mark.parametrize("waits", ["result", "wait", "await", "end"])
@pytest.mark.usefixtures("patience")
def test_callbacks_of_a_pools_futures(waits: str) -> None:
    """They run one after the other, before those who wait go on; the end of the pool waits for all of them."""
    for _ in range(5):
        bar = Bar()
        with WorkerPool(processes=2) as pool:
            futures = [pool.submit(abs, number) for number in range(20)]
            for future in futures:
                future.add_done_callback(bar.update)
            if waits == "await":
                asyncio.run(gather(futures))
            elif waits != "end":
                for future in futures:
                    getattr(future, waits)()
            if waits != "end":
                assert bar.count == sum(future.done() for future in futures) == 20
        assert bar.count == 20


def test_a_callback_that_waits_for_who_waits(tmp_path: Path) -> None:
    """A future with a callback that wants a lock of the thread in result(): that goes on, and the lock comes free."""
    lock = threading.Lock()
    made: list[int] = []

    def call_back(future: object) -> None:
        with lock:
            made.append(1)

    os.mkfifo(tmp_path / "go")
    with WorkerPool(processes=1) as pool:
        future = pool.submit(jobs.touch_and_wait, str(tmp_path / "started"), str(tmp_path / "go"))
        future.add_done_callback(call_back)
        with lock:
            (tmp_path / "go").write_text("")
            assert future.result() > 0
            assert not made
        assert future.result() > 0
    assert made == [1]


def test_a_callback_asks_its_future() -> None:
    """It has its result there, and no wait for itself."""
    seen: list[int] = []
    with WorkerPool(processes=1) as pool:
        for _ in range(20):
            future = pool.submit(abs, -1)
            future.add_done_callback(lambda future: seen.append(future.result() + (future.wait() is None)))
            future.result()
    assert seen == [1] * 20
