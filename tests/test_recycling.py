"""Workers that are replaced after a number of tasks: exactly so many, nothing stranded, nothing left behind.

CPython's executor lost tasks or waited for ever in several of these (its issues 115634, 111498, 115831).
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from distpool import ProcessExitedException, WorkerPool
from distpool.calls import call_and_fetch
from support.jobs import fail_on, os_pid, os_pid_for, square, touch_and_wait
from support.leaks import eventually

WAIT = 60  # seconds; a limit for what should take none


def shares(os_pids: list[int]) -> list[int]:
    """How many tasks each process has run, the largest first."""
    return sorted(Counter(os_pids).values(), reverse=True)


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
@pytest.mark.parametrize("share", [1, 5])
def test_a_worker_runs_so_many_tasks_and_no_more(share: int, batch_size: int | str) -> None:
    with WorkerPool(processes=2, max_tasks_per_child=share) as pool:
        assert max(shares(pool.map(os_pid_for, range(60), batch_size=batch_size))) == share
        assert max(shares(list(pool.imap(os_pid_for, range(60), batch_size=batch_size)))) == share
        assert pool.starmap(pow, [(2, i) for i in range(20)], batch_size=batch_size) == [2**i for i in range(20)]


def test_it_is_exactly_so_many() -> None:
    """With one worker there is nobody to take tasks back for: all but the last run just their share."""
    with WorkerPool(processes=1, max_tasks_per_child=4) as pool:
        os_pids = pool.map(os_pid_for, range(30))
        assert shares(os_pids) == [4, 4, 4, 4, 4, 4, 4, 2]
        assert os_pids == sorted(os_pids, key=os_pids.index)  # one after the other
        assert shares([*os_pids[28:], *pool.map(os_pid_for, range(2))]) == [4]  # the share goes over from map to map


def test_a_new_worker_for_each_of_many_tasks() -> None:
    with WorkerPool(processes=2, max_tasks_per_child=1) as pool:
        assert pool.map(square, range(300)) == [i * i for i in range(300)]


@pytest.mark.slow
def test_a_new_worker_for_each_of_a_thousand_tasks() -> None:
    with WorkerPool(processes=3, max_tasks_per_child=1) as pool:
        assert sum(1 for _ in pool.imap_unordered(square, range(1000))) == 1000


def test_futures_come_all_and_in_no_case_twice() -> None:
    with WorkerPool(processes=2, max_tasks_per_child=3) as pool:
        futures = [pool.submit(os_pid) for _ in range(200)]
        assert max(shares([future.result(WAIT) for future in futures])) == 3


def test_streams_and_submissions_at_once_from_many_threads() -> None:
    results: dict[int, Any] = {}

    def use(number: int) -> None:
        if number % 3 == 0:
            results[number] = pool.map(square, range(40))
        elif number % 3 == 1:
            results[number] = sorted(pool.imap_unordered(square, range(40)))
        else:
            results[number] = [future.result(WAIT) for future in [pool.submit(square, i) for i in range(40)]]

    with WorkerPool(processes=2, max_tasks_per_child=2) as pool:
        threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
    assert results == {number: [i * i for i in range(40)] for number in range(6)}


def test_what_was_submitted_is_done_when_the_pool_closes() -> None:
    with WorkerPool(processes=2, max_tasks_per_child=1) as pool:
        futures = [pool.submit(square, i) for i in range(30)]
    assert [future.result(0) for future in futures] == [i * i for i in range(30)]


def test_a_pool_can_be_ended_in_the_middle() -> None:
    pool = WorkerPool(processes=2, max_tasks_per_child=1)
    futures = [pool.submit(square, i) for i in range(500)]
    futures[20].result(WAIT)
    pool.terminate()
    for future in futures:
        future.exception(WAIT)  # either way: all of them are done
    assert all(future.done() for future in futures)


def test_large_batches_that_come_back_are_cut_to_what_a_worker_may_run(tmp_path: Path) -> None:
    """The first worker sits in its first task with many behind it; they come back in pieces larger than a share."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    started = str(tmp_path / "started")
    with WorkerPool(processes=2, max_tasks_per_child=50) as pool:
        pool.map(square, range(400))  # tasks are known to be short
        blocked = pool.submit(touch_and_wait, started, gate)
        eventually(lambda: os.path.exists(started))
        os_pids = [future.result(WAIT) for future in [pool.submit(os_pid) for _ in range(300)]]
        assert max(shares(os_pids)) <= 50
        with open(gate, "w"):
            pass
        assert blocked.result(WAIT) not in os_pids[-50:]


def test_the_initializer_runs_in_every_one(tmp_path: Path) -> None:
    def begin(folder: str) -> None:
        with open(f"{folder}/{os.getpid()}", "x"):
            pass

    def was_begun(folder: str) -> bool:
        return os.path.exists(f"{folder}/{os.getpid()}")

    with WorkerPool(processes=2, initializer=begin, initargs=(str(tmp_path),), max_tasks_per_child=2) as pool:
        assert all(pool.map(was_begun, [str(tmp_path)] * 30))
    assert len(list(tmp_path.iterdir())) >= 15


def test_an_initializer_that_begins_to_fail_is_reported(tmp_path: Path) -> None:
    """Not started again and again: what it raised is the error of all that waits."""
    flag = tmp_path / "broken"

    def begin() -> None:
        if flag.exists():
            raise ValueError("no more of us")

    with WorkerPool(processes=2, initializer=begin, max_tasks_per_child=3) as pool:
        assert pool.map(square, range(6)) == [0, 1, 4, 9, 16, 25]
        flag.touch()
        with pytest.raises(ValueError, match="no more of us"):
            pool.map(square, range(100))
        with pytest.raises(ValueError, match="no more of us"):
            pool.submit(square, 2).result(WAIT)


def test_failures_count_as_tasks_and_cost_nothing_else() -> None:
    with WorkerPool(processes=2, max_tasks_per_child=2) as pool:
        futures = [pool.submit(fail_on, i % 3, i % 5) for i in range(45)]
        assert [future.exception(WAIT) is not None for future in futures] == [i % 3 == i % 5 for i in range(45)]
        assert pool.map(square, range(10)) == [i * i for i in range(10)]


def test_workers_that_die_are_replaced_as_well() -> None:
    def work(i: int) -> int:
        if i % 10 == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    with WorkerPool(processes=2, max_tasks_per_child=3) as pool:
        outcomes = [future.exception(WAIT) for future in [pool.submit(work, i) for i in range(60)]]
        died = [i for i, error in enumerate(outcomes) if isinstance(error, ProcessExitedException)]
        assert died == [7, 17, 27, 37, 47, 57]
        eventually(lambda: len(pool.workers()) == 2)


def test_retries_and_time_limits_hold() -> None:
    def stick(i: int) -> int:
        if i == 3:
            time.sleep(WAIT)
        return i

    with WorkerPool(processes=2, max_tasks_per_child=2) as pool:
        assert pool.map(stick, range(8), timeout=0.2, on_error=lambda error: -1) == [0, 1, 2, -1, 4, 5, 6, 7]


def test_a_taken_worker_is_not_replaced_under_its_taker() -> None:
    with WorkerPool(processes=1, max_tasks_per_child=2) as pool:
        first = pool.submit(os_pid).result(WAIT)
        pid = pool.take(WAIT)
        waiting = [pool.submit(os_pid) for _ in range(3)]
        # Direct calls do not count. The pool's cluster is its own, so they are made as the pool makes them.
        assert [call_and_fetch(pool._home(), os_pid, pid, (), {}) for _ in range(5)] == [first] * 5
        assert not any(future.done() for future in waiting)
        pool.put(pid)
        one, two, three = [future.result(WAIT) for future in waiting]
        assert (one == first, two == three) == (True, True)
        assert two != first


def test_whoever_waits_for_a_worker_gets_the_next_one() -> None:
    with WorkerPool(processes=1, max_tasks_per_child=1) as pool:
        for _ in range(20):
            pool.submit(os_pid)
            pid = pool.take(WAIT)
            pool.put(pid)


def test_callables_with_large_data_reach_replacements() -> None:
    table = bytes(range(256)) * 8192

    def look_up(i: int) -> int:
        return table[i]

    with WorkerPool(processes=2, max_tasks_per_child=3) as pool:
        assert pool.map(look_up, range(50)) == list(range(50))
        assert [pool.submit(look_up, i).result(WAIT) for i in range(8)] == list(range(8))


def test_a_spare_that_is_killed_is_not_missed() -> None:
    """Nor are those that are killed as soon as they are there, whatever they are just then."""
    with WorkerPool(processes=2, max_tasks_per_child=1) as pool:
        stop = threading.Event()

        def kill_some() -> None:
            while not stop.wait(0.05):
                for config in list(pool._home().configs.values())[:1]:
                    if config.process is not None:
                        config.process.send_signal(9)

        killer = threading.Thread(target=kill_some)
        killer.start()
        try:
            outcomes = [future.exception(WAIT) for future in [pool.submit(square, i) for i in range(200)]]
        finally:
            stop.set()
            killer.join(WAIT)
        assert all(error is None or isinstance(error, ProcessExitedException) for error in outcomes)
        assert pool.map(square, range(20), retry_delays=[0, 0]) == [i * i for i in range(20)]
        eventually(lambda: len(pool.workers()) == 2)


def test_callbacks_come() -> None:
    done = threading.Semaphore(0)
    with WorkerPool(processes=2, max_tasks_per_child=1) as pool:
        for i in range(30):
            pool.submit(square, i).add_done_callback(lambda future: done.release())
        for _ in range(30):
            assert done.acquire(timeout=WAIT)


def test_what_is_no_number_of_tasks_is_refused() -> None:
    no_numbers: list[Any] = ["3", 2.0, True]
    for wrong in no_numbers:
        with pytest.raises(TypeError, match="max_tasks_per_child"):
            WorkerPool(processes=1, max_tasks_per_child=wrong)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_tasks_per_child"):
            WorkerPool(processes=1, max_tasks_per_child=wrong)
    with pytest.raises(TypeError, match="max_tasks_per_child"):
        WorkerPool([1], max_tasks_per_child=3)
