"""The test support itself: a leak check that finds nothing must be known to find what is there."""

from __future__ import annotations

import _thread
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from conftest import RunScript, StartScript

from distpool.threads import CallThreads
from support.leaks import MARK, Census, eventually, leaked_since

# A script that ends and leaves a process behind.
ORPHANING = """
    import subprocess, sys
    subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
"""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Set at the end, whatever happens, so that threads of these tests end."""
    event = threading.Event()
    yield event
    event.set()


def sleeper(*arguments: str) -> subprocess.Popen[bytes]:
    """A child that lives until its input ends, with arguments that it only wears in its command line."""
    return subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()", *arguments], stdin=subprocess.PIPE)


def end(process: subprocess.Popen[bytes]) -> None:
    with process:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def test_processes_are_found(census: Callable[[], Census]) -> None:
    """A child counts while it lives, and as a zombie until it is reaped; not after."""
    before = census()
    child = sleeper()
    try:
        assert any(f"process {child.pid} " in line for line in census().leaked_since(before))
    finally:
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert any("zombie" in line for line in census().leaked_since(before))
    end(child)
    assert leaked_since(before) == []


def test_orphans_are_found(census: Callable[[], Census], start_script: StartScript) -> None:
    """A process whose parent is gone is nobody's child, but carries the mark."""
    before = census()
    script = start_script(ORPHANING, python=("-W", "ignore"))
    assert script.wait().returncode == 0
    (orphan,) = script.survivors()
    assert any(f"process {orphan.pid} " in line for line in census().leaked_since(before))
    script.kill()
    assert leaked_since(before) == []


def test_call_threads_may_idle_but_not_work(census: Callable[[], Census], gate: threading.Event) -> None:
    """A thread that waits for its next job ends by itself; one that is still in a job has been left behind."""
    threads = pytest.importorskip("distpool.threads")
    before = census()
    threads.CallThreads("caller").run(gate.wait)
    eventually(lambda: census().leaked_since(before) == ["thread caller"])
    gate.set()
    assert leaked_since(before, patience=2) == []


class Token:
    """Something that can be looked for."""


def hold(token: Token, done: threading.Event) -> None:
    """Runs in a call thread."""
    done.set()


def test_a_census_keeps_nothing(census: Callable[[], Census]) -> None:
    """Counting looks at what all threads are doing, and lets go of it at once, without a garbage collection."""
    threads, freed = CallThreads("distpool call"), threading.Event()
    done = threading.Event()
    threads.run(done.set)
    assert done.wait(30)
    eventually(lambda: threads._idle)
    gc.disable()
    try:
        census()
        token = Token()
        weakref.finalize(token, freed.set)
        threads.run(partial(hold, token, done))
        del token
        assert freed.wait(10)
    finally:
        gc.enable()


def test_threads_are_found(census: Callable[[], Census], gate: threading.Event) -> None:
    """Threads count, also those that `threading` does not know."""
    before = census()
    threading.Thread(target=gate.wait, name="idler").start()
    assert census().leaked_since(before) == ["thread idler"]
    _thread.start_new_thread(gate.wait, ())
    eventually(lambda: len(census().leaked_since(before)) == 2)
    gate.set()
    assert leaked_since(before) == []


def test_descriptors_are_found(census: Callable[[], Census]) -> None:
    """An open file counts, with its name."""
    before = census()
    with open(__file__):
        (line,) = census().leaked_since(before)
    assert line.endswith(__file__)
    assert leaked_since(before) == []


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no shared memory folder here")
def test_shared_memory_files_are_found(census: Callable[[], Census]) -> None:
    """A name in /dev/shm counts."""
    before = census()
    path = Path("/dev/shm") / f"distpool-test-{os.getpid()}"
    path.touch()
    assert f"shared memory file {path.name}" in census().leaked_since(before)
    path.unlink()
    assert leaked_since(before) == []


def test_one_fork_server_and_one_reader_may_stay(census: Callable[[], Census], gate: threading.Event) -> None:
    """What stays warm by design is no leak, with its descriptors; a second one is."""
    before = census()
    # In a whole run this process has its own, from the tests before; then these are the second ones already.
    has_reader = any("reader" in thread.name for thread in threading.enumerate())
    has_server = any("forkserver" in " ".join(child.cmdline()) for child in psutil.Process().children())
    first = sleeper("distpool.forkserver")
    threading.Thread(target=gate.wait, name="distpool-reader").start()
    leaked = census().leaked_since(before)
    assert any("second fork server" in line for line in leaked) == has_server
    assert any("second reader thread" in line for line in leaked) == has_reader
    warm = census()
    second = sleeper("distpool.forkserver")
    assert any("second fork server" in line for line in census().leaked_since(warm))
    threading.Thread(target=gate.wait, name="distpool-reader").start()
    assert any("second reader thread" in line for line in census().leaked_since(warm))
    end(first)
    end(second)
    gate.set()
    assert leaked_since(before) == []


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_scripts_run(how: str, run_script: RunScript) -> None:
    """A script's end, output and error output come back, however it was given to Python."""
    finished = run_script("import sys; print(sys.argv[1:]); print('err', file=sys.stderr); sys.exit(3)", 1, how=how)
    assert finished == (3, "['1']\n", "err\n")


def test_scripts_have_the_default_sigint(start_script: StartScript) -> None:
    """Ctrl-C works in a script although the test run may have been started with SIGINT ignored."""
    script = start_script("import signal; print('up', flush=True); signal.pause()")
    script.wait_for("up")
    script.send(signal.SIGINT)
    code, _, err = script.wait()
    assert code == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_a_script_that_hangs_shows_its_stacks(start_script: StartScript) -> None:
    """The text of the failure says where it hung."""
    script = start_script("import signal\ndef stuck():\n    signal.pause()\nprint('up', flush=True)\nstuck()")
    script.wait_for("up")
    with pytest.raises(AssertionError, match="in stuck"):
        script.wait(0)


def test_survivors_of_scripts_are_found(start_script: StartScript) -> None:
    """An orphan in a session of its own that holds the script's output is found and ended."""
    script = start_script(ORPHANING, python=("-W", "ignore"))
    assert script.wait().returncode == 0
    with pytest.raises(AssertionError, match=r"signal\.pause"):
        script.no_survivors(0)
    script.kill()
    script.no_survivors()


def test_the_run_is_marked() -> None:
    """Everything started from here can be found again."""
    assert len(os.environ[MARK]) == 32
