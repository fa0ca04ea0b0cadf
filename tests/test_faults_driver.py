"""The driver's side of trouble: killed, interrupted, forked, left in the middle, its fork server gone.

Each in a script of its own, because what is tested is the end of a process and what remains after it.
"""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from distpool import WorkerPool
from support.faults import say_and_block
from support.jobs import square

TESTS = str(Path(__file__).parent)
IMPORTS = """
    import gc, os, signal, sys, threading
    import distpool
    from distpool import WorkerPool, addprocs
    from support.faults import notes, say_and_block
    from support.jobs import block_for_ever, hold_interpreter, kill_self, os_pid, square, touch

    def hold(path):
        touch(path)
        hold_interpreter()
"""
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([TESTS, os.environ.get("PYTHONPATH", "")]),
    "PYTHON_COLORS": "0",  # tracebacks on a terminal are coloured from Python 3.13 on
    # From Python 3.12 on the interpreter warns of os.fork() in a process with threads; that is its word, not ours.
    "PYTHONWARNINGS": "ignore:This process:DeprecationWarning",
}


@pytest.fixture
def start(start_script: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Starts a script that has the usual imports and can say things in files."""
    return lambda text, *args: start_script(IMPORTS + text, *args, env=ENVIRONMENT)


@pytest.fixture
def run(run_script: Callable[..., Any]) -> Callable[..., Any]:
    """Runs such a script to its end; fails if a process of it survives."""
    return lambda text, *args: run_script(IMPORTS + text, *args, env=ENVIRONMENT)


# -- the driver is killed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["block", "hold"])
def test_workers_are_gone_when_the_driver_is_killed(
    task: str, start: Callable[..., Any], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """In the middle of a map, also those in C code that holds the interpreter; within two seconds."""
    script = start(
        """
    def block(path):
        touch(path)
        block_for_ever()
    with WorkerPool(processes=2) as pool:
        pool.map(globals()[sys.argv[1]], sys.argv[2:])
        """,
        task,
        tmp_path / "one",
        tmp_path / "two",
    )
    eventually(lambda: (tmp_path / "one").exists() and (tmp_path / "two").exists())
    assert len(script.survivors()) == 4  # driver, fork server, two workers
    script.send(signal.SIGKILL)
    script.process.wait()
    script.no_survivors(timeout=2)


# -- the fork server is killed ---------------------------------------------------------------------------------------


def test_a_killed_fork_server_takes_its_workers_along_and_nobody_waits(run: Callable[..., Any]) -> None:
    """What ran has failed, and says why; the pool starts another fork server; so does a new pool."""
    code, out, err = run("""
    import psutil
    pool = WorkerPool(processes=2)
    futures = [pool.submit(say_and_block, f"ready{i}", i) for i in range(2)]
    while not (notes("ready0") and notes("ready1")):
        os.sched_yield()
    (server,) = psutil.Process().children()
    server.kill()
    print([type(future.exception()).__name__ for future in futures])
    print("fork server" in str(futures[0].exception()))
    print(pool.map(square, range(4)))
    pool.close()
    with WorkerPool(processes=2) as pool:
        print(pool.map(square, range(4)))
    """)
    names = ["ProcessExitedException"] * 2
    assert (code, out) == (0, f"{names}\nTrue\n[0, 1, 4, 9]\n[0, 1, 4, 9]\n"), err


def test_fork_servers_that_were_killed_leave_no_descriptor(run: Callable[..., Any]) -> None:
    """However many: those that are just on their way are gone soon."""
    code, out, err = run("""
    import psutil, time
    me, counts = psutil.Process(), []
    for turn in range(12):
        with WorkerPool(processes=1) as pool:
            assert pool.map(square, range(4)) == [0, 1, 4, 9]
        (server,) = me.children()
        server.kill()
        while me.children():
            os.sched_yield()
        gc.collect()
        counts.append(me.num_fds())
    deadline = time.monotonic() + 20
    while me.num_fds() > counts[0] and time.monotonic() < deadline:
        time.sleep(0.01)
    print("same" if me.num_fds() <= counts[0] else counts)
    """)
    assert (code, out) == (0, "same\n"), err


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


def read_to_the_end(terminal: int) -> Iterator[str]:
    """What is written on the other side of a pseudo terminal, until nobody has it open any more."""
    with contextlib.suppress(OSError):  # Linux says EIO for "the other side is closed"
        while data := os.read(terminal, 65536):
            yield data.decode(errors="replace")


@pytest.mark.parametrize("task", ["say_and_block", "hold"])
def test_ctrl_c_in_a_terminal_ends_a_map_at_once(task: str, tmp_path: Path, eventually: Callable[..., None]) -> None:
    """One traceback, no noise of the workers, no process left."""
    ready = tmp_path / "ready"
    arguments = "[(sys.argv[1], 1), (sys.argv[1], 2)]" if task == "say_and_block" else "[(sys.argv[1],)] * 2"
    text = (
        IMPORTS
        + f"""
    with WorkerPool(processes=2) as pool:
        pool.starmap({task}, {arguments})
    """
    )
    script = tmp_path / "script.py"
    script.write_text("\n".join(line[4:] for line in text.splitlines()))
    ours, theirs = pty.openpty()
    # The child makes it its controlling terminal, as a shell's is: then ^C is SIGINT to the foreground group.
    boot = (
        "import fcntl, runpy, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); del sys.argv[0]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", boot, str(script), str(ready)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, **ENVIRONMENT},
    ) as process:
        os.close(theirs)
        eventually(lambda: ready.exists() and len(ready.read_text().split()) == 2)
        begun = time.monotonic()
        os.write(ours, b"\x03")
        said = "".join(read_to_the_end(ours))
        assert process.wait(10) == -signal.SIGINT or process.returncode == 1
    os.close(ours)
    assert time.monotonic() - begun < 5
    assert said.count("Traceback (most recent call last)") == 1, said
    assert said.rstrip().endswith("KeyboardInterrupt"), said
    assert said.count("KeyboardInterrupt") == 1, said


@pytest.mark.parametrize("task", ["say_and_block", "hold"])
def test_a_pool_survives_ctrl_c(
    task: str, start: Callable[..., Any], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """Whoever catches KeyboardInterrupt goes on with the same pool; what ran was stopped, or its worker killed."""
    script = start(
        """
    with WorkerPool(processes=2) as pool:
        for attempt in range(2):
            try:
                items = [(sys.argv[2 + attempt], 1)] * 2
                pool.starmap(say_and_block if sys.argv[1] == "say_and_block" else lambda path, _: hold(path), items)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        print(pool.map(square, range(8)), flush=True)
        """,
        task,
        tmp_path / "first",
        tmp_path / "second",
    )
    for name in ("first", "second"):
        eventually(
            lambda name=name: len((tmp_path / name).read_text().split()) == 2 if (tmp_path / name).exists() else False
        )
        script.send(signal.SIGINT)
        script.wait_for("interrupted\n" * (1 if name == "first" else 2))
    code, out, err = script.wait()
    assert (code, out) == (0, "interrupted\ninterrupted\n[0, 1, 4, 9, 16, 25, 36, 49]\n"), err
    assert err == ""
    script.no_survivors()


# -- the driver forks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("presses", [1, 2])
@pytest.mark.parametrize("end", ["with pool: pass", "pool.close()"], ids=["block", "close"])
def test_ctrl_c_at_the_end_of_a_pool_ends_its_workers(end: str, presses: int, start: Callable[..., Any]) -> None:
    """The end waits for what was submitted, the user does not; a second press does not keep the workers either."""
    script = start(f"""
    import psutil, signal
    from support.leaks import eventually
    pool = WorkerPool(processes=2)
    futures = [pool.submit(hold_interpreter) for _ in range(2)]
    (server,) = psutil.Process().children()
    try:
        threading.Timer(0.2, print, ("ready",), {{"flush": True}}).start()
        {end}
    except KeyboardInterrupt:
        pass
    try:
        eventually(lambda: not server.children(), 10)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # on a busy machine the second press may come this late
        print("gone", pool._dispatch.broken is not None or futures[0].exception() is not None)
    except KeyboardInterrupt:
        eventually(lambda: not server.children(), 10)
        print("gone True")
    """)
    script.wait_for("ready")
    for _ in range(presses):
        script.send(signal.SIGINT)
    code, out, err = script.wait(30)
    assert (code, out) == (0, "ready\ngone True\n"), err
    script.no_survivors()


@pytest.mark.parametrize("way", ["os._exit(0)", "sys.exit(0)", "raise SystemExit", "pool.close(); os._exit(0)"])
def test_a_forked_child_that_exits_does_not_harm_the_pool(way: str, run: Callable[..., Any]) -> None:
    """Even if the child leaves by the end of the `with` block, or closes the pool: it is not the child's."""
    code, out, err = run(f"""
    with WorkerPool(processes=2) as pool:
        pids = sorted(set(pool.map(lambda _: os.getpid(), range(50), batch_size=1)))
        child = os.fork()
        if child == 0:
            {way}
        _, status = os.waitpid(child, 0)
        print(status, pool.map(square, range(4)))
        print(sorted(set(pool.map(lambda _: os.getpid(), range(50), batch_size=1))) == pids)
    """)
    assert (code, out, err) == (0, "0 [0, 1, 4, 9]\nTrue\n", "")


def test_a_forked_child_cannot_use_the_pool(run: Callable[..., Any]) -> None:
    """Two processes that read one stream would both get rubbish: it is refused, with the remedy."""
    code, out, err = run("""
    with WorkerPool(processes=2) as pool:
        child = os.fork()
        if child == 0:
            try:
                pool.map(square, range(4))
            except RuntimeError as error:
                print(error, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        print(pool.map(square, range(4)))
    """)
    assert code == 0, err
    assert "make a new pool here\n[0, 1, 4, 9]\n" in out


def test_a_forked_child_may_have_a_pool_of_its_own(run: Callable[..., Any]) -> None:
    """Its own fork server and workers; both pools serve."""
    code, out, err = run("""
    with WorkerPool(processes=2) as pool:
        pool.map(square, range(4))
        child = os.fork()
        if child == 0:
            with WorkerPool(processes=1) as own:
                assert own.map(square, range(4)) == [0, 1, 4, 9]
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), pool.map(square, range(4)))
    """)
    assert (code, out, err) == (0, "7 [0, 1, 4, 9]\n", "")


# -- leaving in the middle -------------------------------------------------------------------------------------------


def test_an_exception_in_the_with_block_ends_the_workers(tmp_path: Path, eventually: Callable[..., None]) -> None:
    """At once, whatever they do; the exception is the caller's own."""
    with pytest.raises(ZeroDivisionError), WorkerPool(processes=2) as pool:  # noqa: PT012 -- the block is the subject
        future = pool.submit(say_and_block, str(tmp_path / "ready"), 1)
        eventually((tmp_path / "ready").exists)
        1 / 0  # noqa: B018
    assert future.done()
    with pytest.raises(RuntimeError, match="closed"):
        pool.map(square, range(4))


def test_sys_exit_in_a_thread_that_has_a_pool(run: Callable[..., Any]) -> None:
    """It ends the thread and its pool; the rest of the process goes on."""
    code, out, err = run("""
    def work():
        with WorkerPool(processes=2) as pool:
            print(pool.map(square, range(4)))
            sys.exit(5)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with WorkerPool(processes=2) as pool:
        print(pool.map(square, range(4)))
    """)
    assert (code, out, err) == (0, "[0, 1, 4, 9]\n[0, 1, 4, 9]\n", "")


@pytest.mark.parametrize(
    "end",
    [
        "",
        "pool.submit(block_for_ever)",
        "pool.submit(say_and_block, 'ready', 1)\n    while not notes('ready'): os.sched_yield()",
        "pool.submit(hold, 'ready')\n    while not os.path.exists('ready'): os.sched_yield()",
        "results = pool.imap(square, iter(int, 1)); next(results)",
        "del pool",
        "addprocs(2)",
        "pool.terminate(); pool.close()",
        "threading.Thread(target=pool.map, args=(lambda x: block_for_ever(), [1]), daemon=True).start()",
    ],
    ids=["idle", "submitted", "running", "in C code", "half read", "deleted", "cluster", "closed", "daemon thread"],
)
def test_a_pool_that_is_never_closed_ends_with_the_interpreter(end: str, run: Callable[..., Any]) -> None:
    """Exit status 0, no hang, no process left, nothing on standard error."""
    code, out, err = run(f"""
    pool = WorkerPool(processes=2)
    print(pool.map(square, range(4)))
    {end}
    """)
    assert (code, out, err) == (0, "[0, 1, 4, 9]\n", "")


def test_a_pool_that_nobody_has_any_more_ends_its_workers(run: Callable[..., Any]) -> None:
    """Garbage collection is enough; the process goes on without them."""
    code, out, err = run("""
    import psutil
    from support.leaks import eventually
    pool = WorkerPool(processes=2)
    pids = set(pool.map(lambda _: os.getpid(), range(50), batch_size=1))
    del pool
    gc.collect()
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), 10)
    print("gone")
    """)
    assert (code, out, err) == (0, "gone\n", "")


def test_what_a_closed_pool_raised_keeps_no_other_pool(run: Callable[..., Any]) -> None:
    """The error has the frames that it went through, and these have whatever is at hand later: another pool, say."""
    code, out, err = run("""
    import psutil
    from support.leaks import eventually
    def use():
        pool = WorkerPool(processes=1)
        future = pool.submit(block_for_ever)
        pool.terminate()
        try:
            future.result()
        except RuntimeError:
            pool = WorkerPool(processes=1)
        return set(pool.map(lambda _: os.getpid(), range(4)))
    pids = use()
    gc.collect()
    eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), 10)
    print("gone")
    """)
    assert (code, out, err) == (0, "gone\n", "")


def test_an_input_that_fails_does_not_keep_the_pool(run: Callable[..., Any]) -> None:
    """Its error has the frames of the loop over the results, and so all that could tell that nobody has these."""
    code, out, err = run("""
    import psutil
    from distpool.compat.multiprocessing import Pool
    from support.leaks import eventually
    def numbers():
        yield from range(20)
        raise ValueError("no more")
    def use():
        pool = Pool(2)
        pids = [each.pid for each in pool._pool]
        try:
            for _ in pool.imap_unordered(square, numbers()):
                pass
        except ValueError as error:
            print(error)
        return pids
    pids = use()
    def are_gone():
        gc.collect()  # of the iterator, and then of the pool
        return not any(psutil.pid_exists(pid) for pid in pids)
    eventually(are_gone, 10)
    print("gone")
    """)
    assert (code, out) == (0, "no more\ngone\n"), err


def test_an_error_of_the_script_is_its_only_noise(run: Callable[..., Any]) -> None:
    """An uncaught exception with a pool open: its traceback, status 1, and nothing of ours."""
    code, _, err = run("""
    pool = WorkerPool(processes=2)
    pool.submit(block_for_ever)
    raise ValueError("mine")
    """)
    assert code == 1
    assert err.count("Traceback") == 1
    assert err.endswith("ValueError: mine\n")
