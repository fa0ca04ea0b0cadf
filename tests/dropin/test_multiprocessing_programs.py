"""Whole programs on ``distpool.compat.multiprocessing``: no guard, Ctrl-C, ends of all kinds."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

UNGUARDED = """
from distpool.compat.multiprocessing import Lock, Pool, Value

lock = Lock()
total = Value("i", 0, lock=False)
offset = 100


def work(x):
    with lock:
        total.value += 1
    return x + offset


with Pool(2) as pool:
    print(pool.map(work, range(3)), list(pool.imap(lambda x: -x, range(3))))
print(total.value)
"""


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_a_script_without_guard(run_script: Any, how: str) -> None:
    """Functions and locks of the script, however it is run; nothing on stderr."""
    finished = run_script(UNGUARDED, how=how)
    assert finished == (0, "[100, 101, 102] [0, -1, -2]\n3\n", "")


def test_only_the_import_of_pool_was_changed(run_script: Any) -> None:
    """Locks and queues of the standard library's default context, shared memory; no warning at the end."""
    text = """
    import warnings
    warnings.simplefilter("error")
    from multiprocessing import Lock, Queue, Value
    from multiprocessing.shared_memory import SharedMemory
    from distpool.compat.multiprocessing import Pool

    def begin(*given):
        global lock, queue, value, memory
        lock, queue, value, memory = given

    def work(x):
        with lock:
            value.value += x
        memory.buf[x] = x
        queue.put(x)

    memory = SharedMemory(create=True, size=8)
    value, queue = Value("i", 0), Queue()
    with Pool(2, begin, (Lock(), queue, value, memory)) as pool:
        pool.map(work, range(4), 1)
        print(sorted(queue.get(timeout=20) for _ in range(4)), value.value, list(memory.buf[:4]))
    memory.close()
    memory.unlink()
    """
    assert run_script(text) == (0, "[0, 1, 2, 3] 6 [0, 1, 2, 3]\n", "")


@pytest.mark.parametrize("end", ["pass", "pool.close()", "del pool", "raise SystemExit(0)"])
def test_the_program_ends_with_a_pool_open(run_script: Any, end: str) -> None:
    """Whatever state it is in, with work under way: no hang, nothing left, no noise."""
    text = f"""
    import time
    from distpool.compat.multiprocessing import Pool
    pool = Pool(2)
    print(pool.map(abs, [-1]))
    results = [pool.apply_async(time.sleep, (1000,)), pool.map_async(time.sleep, [1000] * 3), pool.imap(abs, [1])]
    {end}
    """
    finished = run_script(text, timeout=30)
    assert finished == (0, "[1]\n", "")


BUSY = """
import time
from distpool.compat.multiprocessing import Pool
with Pool(2) as pool:
    pool.apply(abs, (1,))
    print("ready", flush=True)
    pool.map(time.sleep, [1000] * 4)
"""


def test_the_program_is_killed(start_script: Any) -> None:
    """Its workers end with it, in the middle of what they do."""
    script = start_script(BUSY)
    script.wait_for("ready")
    script.send(signal.SIGKILL)
    script.wait(20)
    script.no_survivors()


INTERRUPTED = """
import os, signal, sys, threading, time
from distpool.compat.multiprocessing import Pool

def begin(pool):
    if {how!r} == "map":
        return pool.map(time.sleep, [1000] * 4)
    if {how!r} == "get":
        return pool.map_async(time.sleep, [1000] * 4).get()
    if {how!r} == "imap":
        return list(pool.imap(time.sleep, [1000] * 4))
    return pool.apply(time.sleep, (1000,))

with Pool(2) as pool:
    pool.map(abs, range(4))
    print("ready", flush=True)
    try:
        begin(pool)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        if {how!r} in ("map", "apply"):
            print(pool.map(abs, [-1, -2]), flush=True)
print("end", flush=True)
"""


@pytest.mark.parametrize("how", ["map", "get", "imap", "apply"])
def test_ctrl_c(start_script: Any, how: str) -> None:
    """One KeyboardInterrupt, soon, and no word from the workers; after a map or a call the pool can be used on."""
    script = start_script(INTERRUPTED.format(how=how))
    script.wait_for("ready")
    time.sleep(0.2)  # so that it waits; if it does not yet, the test shows the same
    begun = time.monotonic()
    script.send(signal.SIGINT)
    script.wait_for("interrupted")
    assert time.monotonic() - begun < 5
    code, out, err = script.wait(30)
    usable = "[1, 2]\n" if how in ("map", "apply") else ""
    assert (code, out, err) == (0, f"ready\ninterrupted\n{usable}end\n", "")
    script.no_survivors()


def test_ctrl_c_that_nobody_catches(start_script: Any) -> None:
    """One traceback, that of the program."""
    script = start_script(BUSY)
    script.wait_for("ready")
    script.send(signal.SIGINT)
    code, out, err = script.wait(30)
    assert (code, out) == (-signal.SIGINT, "ready\n")
    assert err.count("Traceback") == 1
    assert err.endswith("KeyboardInterrupt\n")
    script.no_survivors()


def test_logging_of_the_standard_library(run_script: Any) -> None:
    """``get_logger`` and ``log_to_stderr`` pass through."""
    text = """
    from distpool.compat import multiprocessing
    logger = multiprocessing.log_to_stderr()
    logger.setLevel("WARNING")
    logger.warning("seen")
    assert logger is multiprocessing.get_logger()
    """
    code, out, err = run_script(text)
    assert (code, out) == (0, "")
    assert err == "[WARNING/MainProcess] seen\n"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_cpython_s_own_tests_of_pools() -> None:
    """Those for one start method, which says how workers are named; .ci/run runs all, on several interpreters."""
    script = Path(__file__).parents[1] / "stdlib" / "pools.py"
    command = [sys.executable, str(script), "pools_fork.", ".ForkCmdLineTest."]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=180)
    if finished.returncode == 77:
        pytest.skip(finished.stdout)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    count = re.search(r": (\d+) run, 0 failed", finished.stdout)
    assert count is not None
    assert int(count[1]) > 30
