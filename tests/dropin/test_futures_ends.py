"""``ProcessPoolExecutor``: workers that die, initializers that fail, and how an executor ends."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import pytest

import distpool
from distpool.compat.futures.process import BrokenProcessPool, ProcessPoolExecutor
from support import faults, jobs
from support.leaks import eventually


@pytest.fixture(scope="module", autouse=True)
def _resource_tracker() -> None:
    """The standard library's own, which stays: not what a test leaves behind."""
    resource_tracker.ensure_running()


# -- workers that die


@pytest.mark.parametrize(
    ("deed", "told"),
    [
        (jobs.kill_self, "was killed by SIGKILL"),
        (jobs.vanish, "exited with code 3"),
        (jobs.segfault, "was killed by SIGSEGV"),
    ],
)
def test_a_death_costs_one_call(deed: Callable[[], Any], told: str) -> None:
    """That call says who died how in what; the others are done, and the executor lives on."""
    with ProcessPoolExecutor(2) as executor:
        calls = [executor.submit(jobs.square, x) for x in range(20)]
        bad = executor.submit(deed)
        calls += [executor.submit(jobs.square, x) for x in range(20, 40)]
        error = bad.exception()
        assert type(error) is BrokenProcessPool
        assert told in str(error)
        assert f"while it ran {deed.__name__}" in str(error)
        assert isinstance(error.__cause__, distpool.ProcessExitedException)
        assert f"os pid {error.__cause__.os_pid}" in str(error)
        assert [call.result() for call in calls] == [x * x for x in range(40)]
        assert list(executor.map(jobs.square, range(10))) == [x * x for x in range(10)]


def test_a_death_in_a_map() -> None:
    """The item that did it raises in its turn; those before it are there."""
    with ProcessPoolExecutor(2) as executor:
        results = executor.map(die_on, [0, 1, -1, 3])
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(BrokenProcessPool, match="SIGKILL"):
            next(results)


def die_on(x: int) -> int:
    if x < 0:
        jobs.kill_self()
    return x


def test_strict() -> None:
    """One death breaks the executor, as the standard library has it: what runs, what waits, what comes later."""
    with ProcessPoolExecutor(2, strict=True) as executor:
        calls = [executor.submit(time.sleep, 60) for _ in range(5)]
        bad = executor.submit(jobs.kill_self)
        assert calls[0].running() or True
        first = next(iter(executor._processes.values()))  # type: ignore[union-attr]
        first.kill()
        for call in [*calls, bad]:
            with pytest.raises(BrokenProcessPool, match="SIGKILL"):
                call.result(30)
        with pytest.raises(BrokenProcessPool, match="the executor is broken"):
            executor.submit(abs, 1)
        with pytest.raises(BrokenProcessPool, match="the executor is broken"):
            executor.map(abs, [1])
        assert executor._broken


def test_strict_while_idle() -> None:
    """A worker that dies with nothing to do breaks it, too."""
    with ProcessPoolExecutor(2, strict=True) as executor:
        executor.submit(abs, 1).result()
        next(iter(executor._processes.values())).kill()  # type: ignore[union-attr]
        eventually(lambda: executor._broken)
        with pytest.raises(BrokenProcessPool):
            executor.submit(abs, 1)


# -- initializers


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_initializer(method: str) -> None:
    """Runs in every worker first; locks, queues and proxies arrive working, and workers know who they are."""
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    with multiprocessing.get_context("spawn").Manager() as manager:  # no fork server that stays
        names = manager.list()
        with ProcessPoolExecutor(2, context, begin, (context.Lock(), queue, names, os.getpid())) as executor:
            results = [executor.submit(is_begun) for _ in range(10)]
            assert all(each.result() for each in results)
        assert {queue.get(timeout=10), queue.get(timeout=10)} == set(names)
        prefix = {"spawn": "SpawnProcess-", "forkserver": "ForkServerProcess-"}[method]
        assert all(name.startswith(prefix) for name in set(names))
    queue.close()
    queue.join_thread()


def begin(lock: Any, queue: Any, names: Any, parent: int) -> None:
    global _begun
    me, above = multiprocessing.current_process(), multiprocessing.parent_process()
    assert above is not None
    assert above.pid == parent
    with lock:
        names.append(me.name)
        queue.put(me.name)
    _begun = True


_begun = False


def is_begun() -> bool:
    return _begun


def test_failing_initializer() -> None:
    """Tried once; pending futures, maps and later calls say so, with the worker's traceback; nothing hangs."""
    with ProcessPoolExecutor(2, initializer=faults.fail_to_initialize) as executor:
        calls = [executor.submit(jobs.square, x) for x in range(5)]
        results = executor.map(jobs.square, range(5))
        for call in calls:
            error = call.exception(30)
            assert type(error) is BrokenProcessPool
            assert "the initializer of the executor's workers raised" in str(error)
            assert "fail_to_initialize" in str(error.__cause__)
        with pytest.raises(BrokenProcessPool, match="initializer"):
            next(results)
        with pytest.raises(BrokenProcessPool, match="initializer"):
            executor.submit(abs, 1)
        assert executor._processes == {}


def test_submit_does_not_wait_for_a_slow_initializer(tmp_path: Path) -> None:
    """It returns at once; the call is done when the workers are ready."""
    gate = tmp_path / "go"
    os.mkfifo(gate)
    with ProcessPoolExecutor(
        1, initializer=jobs.touch_and_wait, initargs=(str(tmp_path / "begun"), str(gate))
    ) as executor:
        call = executor.submit(jobs.square, 3)
        assert not call.done()
        eventually(lambda: (tmp_path / "begun").exists())
        assert not call.done()
        with gate.open("w"):
            pass
        assert call.result(30) == 9


def test_max_tasks_per_child() -> None:
    """Workers are replaced; refused with the fork start method, as in the standard library."""
    with ProcessPoolExecutor(1, max_tasks_per_child=2) as executor:
        pids = [executor.submit(os.getpid).result() for _ in range(6)]
        assert len(set(pids)) == 3
    with pytest.raises(ValueError, match="max_tasks_per_child is incompatible with the 'fork'"):
        ProcessPoolExecutor(1, multiprocessing.get_context("fork"), max_tasks_per_child=2)


# -- the end


def test_shutdown_does_all() -> None:
    """wait=True: done when it returns. Harmless to repeat."""
    executor = ProcessPoolExecutor(2)
    calls = [executor.submit(time.sleep, 0.01) for _ in range(30)]
    executor.shutdown()
    assert all(call.done() for call in calls)
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)


def test_shutdown_without_waiting(tmp_path: Path) -> None:
    """wait=False: returns at once, all is done in the background; a second shutdown waits for that."""
    gate = tmp_path / "go"
    os.mkfifo(gate)
    executor = ProcessPoolExecutor(2)
    call = executor.submit(jobs.touch_and_wait, str(tmp_path / "begun"), str(gate))
    results = executor.map(jobs.square, range(100))
    executor.shutdown(wait=False)
    assert not call.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    with gate.open("w"):
        pass
    executor.shutdown(wait=True)
    assert call.done()
    assert list(results) == [x * x for x in range(100)]


def test_shutdown_that_cancels() -> None:
    """What has not begun is cancelled, wherever it waits; what runs is finished."""
    executor = ProcessPoolExecutor(2)
    executor.submit(abs, 1).result()
    calls = [executor.submit(time.sleep, 0.1) for _ in range(50)]
    executor.shutdown(cancel_futures=True)
    cancelled = [call for call in calls if call.cancelled()]
    assert len(cancelled) > 40
    assert all(call.exception() is None for call in calls if call not in cancelled)
    assert concurrent.futures.wait(calls, timeout=0).not_done == set()


def test_calls_sent_ahead_are_cancelled_too() -> None:
    """A short call's fellows, sent in one message with it, come back when one of them turns out to be long."""
    executor = ProcessPoolExecutor(1)
    for _ in range(3):
        concurrent.futures.wait([executor.submit(time.sleep, 0.00001) for _ in range(500)])
    calls = [executor.submit(time.sleep, 0.5)] + [executor.submit(time.sleep, 0.2) for _ in range(100)]
    eventually(lambda: calls[0].running())
    executor.shutdown(cancel_futures=True)
    assert sum(call.cancelled() for call in calls) > 90


@pytest.mark.parametrize("end", ["kill_workers", "terminate_workers"])
def test_ending_workers(end: str, tmp_path: Path) -> None:
    """Running calls fail, the rest is cancelled, the workers are gone; also while somebody waits in shutdown()."""
    executor = ProcessPoolExecutor(2)
    calls = [executor.submit(jobs.touch_and_block, str(tmp_path / str(n))) for n in range(4)]
    eventually(lambda: len(list(tmp_path.iterdir())) == 2)
    processes = list(executor._processes.values())  # type: ignore[union-attr]
    waiting = threading.Thread(target=executor.shutdown)
    waiting.start()
    getattr(executor, end)()
    waiting.join(30)
    assert not waiting.is_alive()
    assert not any(process.is_alive() for process in processes)
    failed = [call for call in calls if not call.cancelled()]
    assert len(failed) == 2
    for call in failed:
        with pytest.raises(BrokenProcessPool, match="told to end"):
            call.result(0)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    getattr(executor, end)()


def test_ctrl_c_in_a_with_block_does_not_wait(tmp_path: Path) -> None:
    """What runs is killed."""
    begun = time.monotonic()
    executor = ProcessPoolExecutor(1)

    def interrupted() -> None:
        with executor:
            executor.submit(jobs.touch_and_block, str(tmp_path / "begun"))
            eventually(lambda: (tmp_path / "begun").exists())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - begun < 30


def test_a_dropped_executor(tmp_path: Path) -> None:
    """Its calls are done, then its workers end, as the leak check sees; done futures keep nothing alive."""
    executor: Any = ProcessPoolExecutor(2)
    call = executor.submit(jobs.square, 3)
    executor.submit(jobs.touch, str(tmp_path / "done"))
    results = executor.map(jobs.square, range(10))
    del executor
    gc.collect()
    assert call.result() == 9
    assert list(results) == [x * x for x in range(10)]
    eventually(lambda: (tmp_path / "done").exists())
    del results
    gc.collect()


def test_over_a_pool() -> None:
    """It does not end the pool; it waits for its own calls only."""
    with distpool.WorkerPool(processes=2) as pool:
        other = pool.submit(time.sleep, 0.5)
        with ProcessPoolExecutor(pool=pool) as executor:
            assert executor._max_workers == 2
            call = executor.submit(jobs.square, 3)
        assert call.done()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(abs, 1)
        assert not other.done()
        assert pool.map(jobs.square, [2]) == [4]
        last = ProcessPoolExecutor(pool=pool)
    with pytest.raises(RuntimeError, match="the pool was closed"):
        last.submit(abs, 1)


def test_inside_a_worker() -> None:
    """An executor in a task of an executor."""
    with ProcessPoolExecutor(1) as executor:
        assert executor.submit(nested, 5).result() == [0, 1, 4, 9, 16]


def nested(n: int) -> list[int]:
    with ProcessPoolExecutor(2) as executor:
        return list(executor.map(jobs.square, range(n)))


# -- the end of the program


def test_the_program_waits_for_its_executors(run_script: Any) -> None:
    """What was submitted is done, dropped executors' too, before atexit's functions run; no guard is needed."""
    finished = run_script(
        """
        import atexit, sys, time
        from distpool.compat.futures import ProcessPoolExecutor

        def say(word):
            time.sleep(0.1)
            print(word, flush=True)

        @atexit.register
        def last():
            try:
                executor.submit(abs, 1)
            except RuntimeError as error:
                print(error)

        executor = ProcessPoolExecutor(2)
        executor.submit(say, "submitted")
        ProcessPoolExecutor(1).map(say, ["dropped"])
        closing = ProcessPoolExecutor(1)
        closing.submit(say, "closing")
        closing.shutdown(wait=False)
        """
    )
    lines = finished.stdout.splitlines()
    assert sorted(lines[:-1]) == ["closing", "dropped", "submitted"]
    assert lines[-1] == "cannot schedule new futures after interpreter shutdown"
    assert (finished.returncode, finished.stderr) == (0, "")


def test_ctrl_c_ends_the_program(start_script: Any) -> None:
    """One traceback, no waiting for what runs, no process left; with and without a with block."""
    for text in ("executor = ProcessPoolExecutor(2)\nrun()", "with ProcessPoolExecutor(2) as executor:\n    run()"):
        script = start_script(
            f"""
import time
from distpool.compat.futures import ProcessPoolExecutor

def block(n):
    print("begun", flush=True)
    time.sleep(1000)

def run():
    list(executor.map(block, range(4)))

{text}
"""
        )
        script.wait_for("begun")
        begun = time.monotonic()
        script.send(2)
        finished = script.wait()
        assert time.monotonic() - begun < 10
        assert finished.stderr.count("Traceback") == 1
        assert finished.stderr.endswith("KeyboardInterrupt\n")
        script.no_survivors()


def test_a_killed_program_leaves_nothing(start_script: Any) -> None:
    """SIGKILL of the driver while calls run."""
    script = start_script(
        """
        import time
        from distpool.compat.futures import ProcessPoolExecutor
        executor = ProcessPoolExecutor(2)
        calls = [executor.submit(time.sleep, 1000) for _ in range(3)]
        while not calls[0].running():
            time.sleep(0.01)
        print("running", flush=True)
        calls[0].result()
        """
    )
    script.wait_for("running")
    script.send(9)
    script.wait()
    script.no_survivors()
