"""Callbacks of the drop-ins' futures and results: what programs with progress bars and counters rely on."""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distpool.compat.futures import ProcessPoolExecutor
from distpool.compat.multiprocessing import Pool
from support import jobs
from support.bars import Bar

WAIT = 30.0  # seconds; a limit for what should take none
CALLS = 20


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """So long that nothing depends on how busy the machine is."""
    monkeypatch.setattr("distpool.turns.PATIENCE_SECONDS", WAIT)


def _each(futures: list[Any]) -> None:
    for future in futures:
        future.result()


def _completed(futures: list[Any]) -> None:
    for _ in concurrent.futures.as_completed(futures):
        pass


WAITS: dict[str, Callable[[list[Any]], object]] = {
    "result": _each,
    "as_completed": _completed,
    "wait": concurrent.futures.wait,
    "the last first": lambda futures: futures[-1].result() and _completed(futures),
}


@pytest.mark.parametrize("way", WAITS)
@pytest.mark.usefixtures("patience")
def test_a_progress_bar_is_right_when_the_wait_is_over(way: str) -> None:
    """In the standard library this holds because callbacks are quicker than a switch of threads; here it is made so."""
    for _ in range(5):
        bar = Bar()
        with ProcessPoolExecutor(2) as executor:
            futures = [executor.submit(pow, 2, number) for number in range(CALLS)]
            for future in futures:
                future.add_done_callback(bar.update)
            WAITS[way](futures)
            assert bar.count == CALLS
        assert bar.count == CALLS


@pytest.mark.parametrize("method", ["with", "shutdown twice", "cancel_futures", "killed"])
def test_after_the_end_every_callback_has_run(method: str) -> None:
    """Also those of calls that were cancelled, or lost; whoever ends it."""
    for _ in range(10):
        bar = Bar()
        executor = ProcessPoolExecutor(2)
        for number in range(CALLS):
            executor.submit(pow, 2, number).add_done_callback(bar.update)
        if method == "shutdown twice":
            executor.shutdown(wait=False)
        if method == "killed":
            executor.kill_workers()
        executor.shutdown(wait=True, cancel_futures=method == "cancel_futures")
        assert bar.count == CALLS


def test_shutdown_in_a_callback() -> None:
    """Waits for the others' calls and not for itself."""
    ended = threading.Event()
    executor = ProcessPoolExecutor(1)

    def end(future: object) -> None:
        executor.shutdown(wait=True)
        ended.set()

    future = executor.submit(time.sleep, 0.1)
    future.add_done_callback(end)
    assert ended.wait(WAIT)
    executor.shutdown(wait=True)
    assert future.done()


def test_a_callback_that_wants_what_the_waiting_thread_holds(tmp_path: Path) -> None:
    """A lock, say: who waits goes on after a moment, whichever way it waits."""
    lock, made = threading.Lock(), []

    def call_back(future: object) -> None:
        with lock:
            made.append(1)

    with ProcessPoolExecutor(1) as executor:
        for number, wait in enumerate(WAITS.values()):
            go = str(tmp_path / str(number))
            os.mkfifo(go)
            future = executor.submit(jobs.touch_and_wait, f"{go}-started", go)
            future.add_done_callback(call_back)  # before it is done: else it were called here
            with lock:
                Path(go).write_text("")
                wait([future])
    assert len(made) == len(WAITS)


def test_the_callback_of_a_cancelled_future_runs_in_cancel() -> None:
    """In that thread, before it returns; the end of the executor is not kept waiting by it."""
    here: list[object] = []
    with ProcessPoolExecutor(1) as executor:
        executor.submit(time.sleep, 0.2)
        future = executor.submit(abs, -1)
        future.add_done_callback(lambda future: here.append(threading.current_thread()))
        assert future.cancel()
        assert here == [threading.current_thread()]


@pytest.mark.parametrize("kind", ["apply_async", "map_async", "starmap_async"])
def test_after_join_every_callback_has_run(kind: str) -> None:
    """Of values and of errors, however close the end comes upon them."""
    for _ in range(5):
        bar = Bar()
        pool: Any = Pool(2)
        for number in range(CALLS):
            arguments = (
                (number % 3,) if kind == "apply_async" else ([(number % 3,)] if kind[0] == "s" else [number % 3])
            )
            function = divmod_by if number % 2 else abs
            getattr(pool, kind)(function, arguments, callback=bar.update, error_callback=bar.update)
        pool.close()
        pool.join()
        assert bar.count == CALLS


def divmod_by(number: int) -> tuple[int, int]:
    """Fails for zero."""
    return divmod(7, number)


def test_error_callbacks_when_there_never_was_a_worker() -> None:
    """An initializer that raises fails every call; after join each was told."""
    bar = Bar()
    pool: Any = Pool(2, initializer=divmod_by, initargs=(0,))
    for _ in range(CALLS):
        pool.apply_async(abs, (1,), error_callback=bar.update)
    pool.close()
    pool.join()
    assert bar.count == CALLS


def test_a_forked_copy_waits_for_no_callback(run_script: Callable[..., Any]) -> None:
    """They are made where the call was submitted; a copy of that process has nothing to wait for."""
    code, out, err = run_script(
        """
        import os, time
        from distpool.compat.futures import ProcessPoolExecutor
        from distpool.compat.multiprocessing import Pool

        made = []
        executor, pool = ProcessPoolExecutor(1), Pool(1)
        executor.submit(time.sleep, 0.5).add_done_callback(made.append)
        pool.apply_async(time.sleep, (0.5,), callback=made.append)
        pid = os.fork()
        if pid == 0:
            executor.shutdown()
            pool.close()
            pool.join()
            os._exit(len(made))
        print(os.waitpid(pid, 0)[1])
        executor.shutdown()
        pool.close()
        pool.join()
        print(len(made))
        """,
        env={"PYTHONWARNINGS": "ignore:This process:DeprecationWarning"},
    )
    assert (code, out, err) == (0, "0\n2\n", "")
