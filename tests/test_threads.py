"""Call threads: a job starts at once, threads are used again, and none stays for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from distpool.threads import CallThreads

WAIT = 20  # seconds; a limit for what should take none


def run_and_wait(threads: CallThreads) -> int:
    """Runs a job to its end; returns the identity of its thread."""
    ident: list[int] = []
    done = threading.Event()

    def job() -> None:
        ident.append(threading.get_ident())
        done.set()

    threads.run(job)
    assert done.wait(WAIT)
    return ident[0]


def test_job_runs_in_another_thread() -> None:
    """`run` does not run the job itself."""
    assert run_and_wait(CallThreads("call", 0.01)) != threading.get_ident()


def test_idle_thread_is_used_again(eventually: Callable[..., None]) -> None:
    """A second job does not start a second thread when the first one's is idle."""
    threads = CallThreads("call", 5)
    first = run_and_wait(threads)
    eventually(lambda: threads._idle)
    assert run_and_wait(threads) == first


def test_blocked_jobs_do_not_hold_up_others() -> None:
    """There is no upper limit: each of many blocked jobs has a thread, and the next one starts at once."""
    threads = CallThreads("call", 0.01)
    gate, started = threading.Event(), threading.Semaphore(0)

    def blocked() -> None:
        started.release()
        gate.wait(WAIT)

    for _ in range(20):
        threads.run(blocked)
    for _ in range(20):
        assert started.acquire(timeout=WAIT)
    run_and_wait(threads)
    gate.set()


def test_idle_thread_ends() -> None:
    """After the idle time its thread is gone, and the pool of threads works on."""
    threads = CallThreads("call", 0.01)
    workers: list[threading.Thread] = []
    threads.run(lambda: workers.append(threading.current_thread()))
    while not workers:
        run_and_wait(threads)
    workers[0].join(WAIT)
    assert not workers[0].is_alive()
    run_and_wait(threads)


def test_no_job_is_lost_while_threads_retire() -> None:
    """With an idle time of nothing, each job meets a thread that is about to end; all of them run, once."""
    threads = CallThreads("call", 0.0)
    count = 2000
    ran: list[int] = []
    done = threading.Semaphore(0)

    def job(number: int) -> None:
        ran.append(number)
        done.release()

    for number in range(count):
        threads.run(lambda number=number: job(number))  # type: ignore[misc]
        if number % 3 == 0:  # now and then let it end before the next comes
            assert done.acquire(timeout=WAIT)
    for _ in range(count - len(range(0, count, 3))):
        assert done.acquire(timeout=WAIT)
    assert sorted(ran) == list(range(count))


def test_job_that_comes_as_the_time_is_up_counts_once() -> None:
    """A thread that takes a job at its last moment does not end early at its next wait."""
    threads = CallThreads("call", 0.0)
    for _ in range(200):
        run_and_wait(threads)
    assert all(slot._ready._value == 0 for slot in list(threads._idle))  # type: ignore[attr-defined]


def test_error_of_a_job_is_reported_and_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes to threading.excepthook, and the thread takes the next job."""
    reported: list[BaseException | None] = []
    seen = threading.Event()

    def hook(args: threading.ExceptHookArgs) -> None:
        reported.append(args.exc_value)
        seen.set()

    monkeypatch.setattr(threading, "excepthook", hook)
    threads = CallThreads("call", 5)
    error = ValueError("a fault of ours")

    def job() -> None:
        raise error

    threads.run(job)
    assert seen.wait(WAIT)
    assert reported == [error]
    run_and_wait(threads)


def test_threads_are_daemons() -> None:
    """None keeps the process alive."""
    seen: list[bool] = []
    done = threading.Event()

    def job() -> None:
        seen.append(threading.current_thread().daemon)
        done.set()

    CallThreads("call", 0.01).run(job)
    assert done.wait(WAIT)
    assert seen == [True]
