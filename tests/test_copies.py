"""Forks of the user's: of a driver with workers, and in tasks. A copy disturbs nobody, nor waits for ever."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from conftest import RunScript

from distpool import WorkerPool, addprocs, remotecall, remotecall_fetch, rmprocs
from distpool.compat.futures import ProcessPoolExecutor
from distpool.compat.multiprocessing import Pool
from support.jobs import square

# From Python 3.12 on the interpreter warns of os.fork() in a process with threads; that is its word, not ours.
WITHOUT_FORK_WARNINGS = {
    "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}

# -- in tasks --------------------------------------------------------------------------------------------------------


def fork_and(child: Callable[[], object], x: int) -> object:
    """The parent waits for its child and squares; the child does what it is told, and comes back from the task."""
    pid = os.fork()
    if pid == 0:
        return child()
    _, status = os.waitpid(pid, 0)
    return x * x, os.waitstatus_to_exitcode(status)


def come_back() -> int:
    """As if the child were the worker."""
    return -1


def leave() -> NoReturn:
    """As scripts do."""
    sys.exit(3)


def fail() -> NoReturn:
    """Nobody catches it."""
    raise ValueError("in the child")


ENDS = [(come_back, 0), (leave, 3), (fail, 1)]


@pytest.fixture(scope="module", params=["map", "submit", "call", "executor", "Pool"])
def door(request: pytest.FixtureRequest) -> Iterator[Callable[..., list[object]]]:
    """`run(f, xs)`: all results, in order."""
    if request.param == "call":
        (pid,) = addprocs(1)
        yield lambda f, xs: [remotecall_fetch(f, pid, x) for x in xs]
        rmprocs(pid, waitfor=30)
    elif request.param == "executor":
        with ProcessPoolExecutor(1) as executor:
            executor.submit(square, 1).result()  # starts its worker
            yield lambda f, xs: [future.result() for future in [executor.submit(f, x) for x in xs]]
    elif request.param == "Pool":
        with Pool(1) as pool:
            pool.map(square, [1])
            yield pool.map
    else:
        with WorkerPool(processes=1, output="none") as pool:
            if request.param == "map":
                yield pool.map
            else:
                yield lambda f, xs: [future.result() for future in [pool.submit(f, x) for x in xs]]


@pytest.mark.parametrize(("child", "status"), ENDS, ids=["returns", "exits", "raises"])
def test_a_task_that_forks_has_one_result(
    door: Callable[..., list[object]], child: Callable[[], object], status: int
) -> None:
    """The parent's; the child ends where it would come back, with the status of a script, and runs no other task."""
    assert door(lambda x: fork_and(child, x), range(10)) == [(x * x, status) for x in range(10)]


def test_a_call_that_forks_in_a_thread_of_its_own() -> None:
    """Behind one that is busy: there, too, the child does not come back."""
    (pid,) = addprocs(1)
    busy = remotecall(time.sleep, pid, 0.5)
    assert remotecall_fetch(lambda: fork_and(come_back, 4), pid) == (16, 0)
    busy.wait()
    rmprocs(pid, waitfor=30)


# -- of the driver ---------------------------------------------------------------------------------------------------

IMPORTS = """
    import os, sys, threading, time
    from distpool import WorkerPool
    from distpool.compat.futures import ProcessPoolExecutor
    from distpool.compat.multiprocessing import Pool
    from support.jobs import square
    def end_of(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    """


def test_a_forked_child_that_waits_for_its_parents_results_takes_none_away(run_script: RunScript) -> None:
    """It is told that they will not come; the parent gets all of them."""
    code, out, err = run_script(
        IMPORTS
        + """
    with WorkerPool(processes=2) as pool:
        for turn in range(10):
            futures = [pool.submit(lambda x: time.sleep(0.01) or x, x) for x in range(4)]
            pid = os.fork()
            if pid == 0:
                try:
                    futures[3].result(5)
                except RuntimeError as error:
                    os._exit("forked" not in str(error))
                os._exit(2)
            assert [future.result(20) for future in futures] == list(range(4))
            assert end_of(pid) == 0
    print("all")
    """,
        env=WITHOUT_FORK_WARNINGS,
    )
    assert (code, out, err) == (0, "all\n", "")


@pytest.mark.parametrize(
    "pool",
    ["ProcessPoolExecutor(2)", "Pool(2)", "WorkerPool(processes=2)"],
    ids=["executor", "Pool", "pool"],
)
def test_a_forked_child_leaves_the_block_of_its_parents_pool(pool: str, run_script: RunScript) -> None:
    """At once, whatever the parent has under way, which goes on."""
    code, out, err = run_script(
        IMPORTS
        + f"""
    with {pool} as pool:
        submit = pool.apply_async if hasattr(pool, "apply_async") else lambda f, args: pool.submit(f, *args)
        results = [submit(time.sleep, (0.05,)) for _ in range(10)]
        pid = os.fork()
        if pid == 0:
            sys.exit(7)
        assert end_of(pid) == 7
        for each in results:
            assert (each.get if hasattr(each, "get") else each.result)(20) is None
    print("done")
    """,
        env=WITHOUT_FORK_WARNINGS,
    )
    assert (code, out, err) == (0, "done\n", "")


def test_a_forked_child_has_pools_of_its_own_whatever_its_parent_was_doing(run_script: RunScript) -> None:
    """Forked in the middle of other threads' work with fork server, call threads and results."""
    code, out, err = run_script(
        IMPORTS
        + """
    with Pool(1) as pool, ProcessPoolExecutor(1) as executor:  # a fork during a first import has its lock for ever
        assert pool.map(square, [1]) == [1] == [executor.submit(square, 1).result()]
    over = threading.Event()
    def work():
        while not over.is_set():
            with Pool(1) as pool:
                assert pool.map(square, range(4)) == [0, 1, 4, 9]
    threads = [threading.Thread(target=work) for _ in range(2)]
    for each in threads:
        each.start()
    for turn in range(10):
        pid = os.fork()
        if pid == 0:
            with WorkerPool(processes=1) as pool, ProcessPoolExecutor(1) as executor:
                assert pool.map(square, range(4)) == [0, 1, 4, 9]
                assert executor.submit(square, 3).result() == 9
            os._exit(0)
        assert end_of(pid) == 0
    over.set()
    for each in threads:
        each.join()
    print("done")
    """,
        env=WITHOUT_FORK_WARNINGS,
    )
    assert (code, out, err) == (0, "done\n", "")
