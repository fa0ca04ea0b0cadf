"""The future of a task: asked, waited for, called back, cancelled, awaited, sent."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest

from distpool import WorkerPool
from distpool.futures import Outcome, Raised, TaskFuture
from distpool.member import Member
from distpool.transport import Reader
from support.givers import Giver

WAIT = 20  # seconds; a limit for what should take none
Make = Callable[..., "TaskFuture[Any]"]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    """Two real workers, for all tests of this file."""
    with WorkerPool(processes=2) as pool:
        pool.map(abs, range(10))
        yield pool


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes futures of no pool; `is_away` says that the task has been sent."""
    reader = Reader()
    member = Member(1, reader)

    giver = Giver(member)

    def make(is_away: bool = False) -> TaskFuture[Any]:
        future: TaskFuture[Any] = TaskFuture(member, giver)
        if is_away:
            assert future.leave()
        return future

    yield make
    reader.close()


def test_result_when_done(make: Make) -> None:
    """The value; only the first counts."""
    future = make()
    assert not future.done()
    future.resolve(5)
    future.resolve(6)
    assert future.done()
    assert future.isready()
    assert future.result() == future.fetch() == 5
    assert future.exception() is None
    assert future.wait() is future


def test_error_is_raised_by_result_and_wait_and_returned_by_exception(make: Make) -> None:
    """The same exception each time."""
    future = make()
    error = ValueError("no")
    future.resolve(Raised(error))
    for ask in (future.result, future.wait):
        with pytest.raises(ValueError, match="no"):
            ask()
    assert future.exception() is error


def test_outcome_is_opened_when_asked_for_and_once(make: Make) -> None:
    """Every thread gets the same object."""
    opened: list[int] = []

    class Value(Outcome):
        def value(self) -> object:
            opened.append(1)
            return object()

    future = make()
    future.resolve(Value())
    assert not opened
    assert future.result() is future.result()
    assert opened == [1]


@pytest.mark.parametrize("method", ["result", "fetch", "wait", "exception"])
def test_timeout(make: Make, method: str) -> None:
    """TimeoutError, and the future stays good; zero only looks; nothing of the waits is left in it."""
    future = make()
    for timeout in (0, 0.001):
        with pytest.raises(TimeoutError, match="not done"):
            getattr(future, method)(timeout)
    assert not future._waiters
    future.resolve(1)
    assert future.result(0) == 1


def test_timeout_error_of_the_task_is_its_exception(make: Make) -> None:
    """And not taken for the end of waiting."""
    future = make()
    error = TimeoutError("of the task")
    future.resolve(Raised(error))
    assert future.exception(0) is error


def test_threads_that_wait_are_all_woken(make: Make) -> None:
    """By one resolve, from any thread."""
    future = make()
    got: list[int] = []
    threads = [threading.Thread(target=lambda: got.append(future.result(WAIT))) for _ in range(6)]
    for thread in threads:
        thread.start()
    future.resolve(3)
    for thread in threads:
        thread.join(WAIT)
    assert got == [3] * 6


def test_callback_runs_once_when_done(make: Make) -> None:
    """In a thread of distpool's; at once and here when it is done already."""
    future = make()
    called: list[tuple[TaskFuture[Any], int]] = []
    done = threading.Event()

    def callback(future: TaskFuture[Any]) -> None:
        called.append((future, threading.get_ident()))
        done.set()

    future.add_done_callback(callback)
    future.resolve(1)
    assert done.wait(WAIT)
    assert called[0][0] is future
    assert called[0][1] != threading.get_ident()
    future.add_done_callback(callback)
    assert called[1] == (future, threading.get_ident())


def test_callback_that_raises_is_logged_and_the_next_runs(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """As in concurrent.futures."""
    future = make()
    future.resolve(1)
    with caplog.at_level(logging.ERROR, "distpool"):
        future.add_done_callback(lambda future: 1 / 0)
    assert "ZeroDivisionError" in caplog.text


def test_cancel_before_it_is_sent(make: Make) -> None:
    """CancelledError for whoever asks; its result, should it come, is nobody's."""
    future = make()
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert future.done()
    future.resolve(1)
    for ask in (future.result, future.exception, future.wait):
        with pytest.raises(CancelledError):
            ask()


def test_cancel_too_late(make: Make) -> None:
    """A task that runs, or is done, is not cancelled."""
    future = make(is_away=True)
    assert not future.cancel()
    future.resolve(1)
    assert not future.cancel()
    assert future.result() == 1


def test_cancel_while_it_runs(make: Make) -> None:
    """Counts at once, and the task is told to stop where it is, once."""
    future = make(is_away=True)
    assert future.cancel(running=True)
    assert future.cancel(running=True)
    assert future.cancelled()
    assert future._giver.stopped == [future]  # type: ignore[attr-defined]


def test_cancelled_before_it_is_sent_it_is_not_sent(make: Make) -> None:
    """Cancelling and sending exclude each other: True from `cancel` means that the task does not begin."""
    future = make()
    assert future.cancel()
    assert not future.leave()


def test_nothing_can_be_put(make: Make) -> None:
    """The value comes from the task."""
    with pytest.raises(RuntimeError, match="from its task"):
        make().put(1)


def test_repr_tells_the_state(make: Make) -> None:
    """Pending, done, cancelled."""
    future, other = make(), make()
    assert "pending" in repr(future)
    future.resolve(1)
    other.cancel()
    assert "done" in repr(future)
    assert "cancelled" in repr(other)


def test_await(pool: WorkerPool) -> None:
    """Many at once, values and errors."""

    async def main() -> list[object]:
        futures = [pool.submit(divmod, 7, number) for number in (1, 2, 0)]

        async def one(future: TaskFuture[Any]) -> object:
            return await future

        return await asyncio.gather(*map(one, futures), return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert (first, second) == ((7, 0), (3, 1))
    assert isinstance(third, ZeroDivisionError)


def test_await_that_is_cancelled_stops_the_task() -> None:
    """The task is interrupted where it runs, or before it begins if its function is not open yet; no worker dies."""

    def for_ever() -> None:
        import time

        while True:
            time.sleep(0.01)

    async def main(future: TaskFuture[Any]) -> None:
        async def one() -> object:
            return await future

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(one(), 0.05)

    with WorkerPool(processes=1) as pool:
        before = pool.workers()
        future = pool.submit(for_ever)
        asyncio.run(main(future))
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(WAIT)
        assert future.cancelled()
        assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
        assert pool.workers() == before


@pytest.mark.parametrize("is_done", [False, True])
def test_travels_as_a_plain_future(pool: WorkerPool, make: Make, is_done: bool) -> None:
    """Inside a message; the worker fetches from the process that submitted it, whenever it is done."""
    first = pool.submit(pow, 2, 5)
    if is_done:
        first.wait()
    second = pool.submit(lambda future: (type(future).__name__, future.fetch()), first)
    assert second.result(WAIT) == ("Future", 32)


def test_does_not_travel_outside_messages(make: Make) -> None:
    """A file has no cluster."""
    import pickle

    with pytest.raises(TypeError, match="only inside its cluster"):
        pickle.dumps(make())
