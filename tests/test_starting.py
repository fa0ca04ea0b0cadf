"""What the start of a pool loads, and when: the fork server boots while the rest is imported, and little is not needed.

Each test runs programs of its own, because what counts is what a fresh interpreter has loaded.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import RunScript, StartScript

# What else stands at the top of the rooms of a pool.
ENGINE_ROOMS = ("distpool.member", "distpool.dispatch", "distpool.jobs", "distpool.peer", "distpool.managers.local")


def loaded_by(run_script: RunScript, statement: str, before: str = "pass") -> set[str]:
    """The modules that a statement loads in a fresh interpreter which has executed another one."""
    text = f"import sys\n{before}\nold = set(sys.modules)\n{statement}\nprint(*set(sys.modules) - old)"
    code, out, err = run_script(text)
    assert code == 0, err
    return set(out.split())


def test_a_pools_class_is_had_without_what_its_objects_need(run_script: RunScript) -> None:
    """So the fork server can boot before that is imported."""
    loaded = loaded_by(run_script, "from distpool import WorkerPool")
    assert "distpool.pools.worker_pool" in loaded
    assert loaded.isdisjoint({*ENGINE_ROOMS, "typing", "socket", "pickle", "subprocess"})


def test_the_boot_of_a_fork_server_needs_little(run_script: RunScript) -> None:
    """Neither does it load what is imported meanwhile."""
    loaded = loaded_by(run_script, "from distpool import WorkerPool; WorkerPool.prepare()")
    assert "distpool.forkserver.client" in loaded
    assert loaded.isdisjoint({*ENGINE_ROOMS, "distpool.transport", "typing", "socket", "pickle", "subprocess"})


@pytest.mark.parametrize(
    ("statement", "standard"),
    [
        ("from distpool.compat.multiprocessing import Pool", "pass"),
        ("from distpool.compat.futures import ProcessPoolExecutor", "import concurrent.futures.process"),
    ],
    ids=["function", "executor"],
)
def test_a_drop_in_is_had_without_what_its_pool_needs(run_script: RunScript, statement: str, standard: str) -> None:
    """Beside what it replaces, it loads rooms of its own; the name of the function not even that."""
    loaded = loaded_by(run_script, statement, standard)
    assert loaded.isdisjoint({*ENGINE_ROOMS, "typing", "multiprocessing", "hashlib"})


def test_to_ask_for_the_current_peer_loads_no_cryptography(run_script: RunScript) -> None:
    """Drop-ins ask when they start a worker."""
    loaded = loaded_by(run_script, "import distpool; distpool.current_peer()")
    assert "distpool.connections" in loaded
    assert loaded.isdisjoint({"hashlib", "hmac", "distpool.tcp", "distpool.streams", "distpool.worker"})


def test_a_worker_loads_no_rooms_of_the_driver(run_script: RunScript) -> None:
    """What a local worker has loaded when it begins: every one of them would pay for more."""
    text = """
        import sys
        from distpool import WorkerPool

        def loaded():
            import sys
            return [name for name in sys.modules if name.startswith("distpool.")]

        with WorkerPool(processes=1) as pool:
            print(*pool.submit(loaded).result())
    """
    code, out, err = run_script(text)
    assert code == 0, err
    loaded = set(out.split())
    assert "distpool.worker" in loaded
    unwanted = ("managers", "pools", "jobs", "dispatch", "forkserver.client", "joining", "tcp", "compat")
    assert not [name for name in loaded if name.removeprefix("distpool.").startswith(unwanted)]


PREPARED = """
    import os, signal, sys, time
    import psutil
    from distpool import WorkerPool

    def servers():
        return [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]

    def parent(_):
        return os.getppid()

    WorkerPool.prepare()
    WorkerPool.prepare()
    first = servers()
    assert len(first) == 1, first
"""


def test_a_prepared_server_is_that_of_the_pools(run_script: RunScript) -> None:
    """However often it was prepared; those of drop-ins and the native ones have it in common."""
    text = """
    from distpool.compat.futures import ProcessPoolExecutor
    from distpool.compat.multiprocessing import Pool

    with WorkerPool(processes=1) as one, Pool(1) as two, ProcessPoolExecutor(1) as three:
        assert [pool.map(parent, [0])[0] for pool in (one, two)] + list(three.map(parent, [0])) == 3 * first
    with WorkerPool(processes=1) as pool:  # the room of the drop-ins' workers is in the server by now, shared
        assert pool.submit(lambda: "distpool.compat.multiprocessing.worker" in sys.modules).result()
    print("done")
    """
    assert run_script(PREPARED + text) == (0, "done\n", "")


def test_a_prepared_server_that_has_died_is_replaced(run_script: RunScript) -> None:
    """Nobody reads its reports before there is a pool, so the first pool looks."""
    text = """
    os.kill(first[0], signal.SIGKILL)
    os.waitid(os.P_PID, first[0], os.WEXITED | os.WNOWAIT)
    with WorkerPool(processes=2) as pool:
        assert first[0] not in pool.map(parent, range(2))
    print("done")
    """
    assert run_script(PREPARED + text) == (0, "done\n", "")


def test_a_server_that_cannot_be_booted_is_told_where_workers_are_wanted(run_script: RunScript) -> None:
    """By the constructor that waits for its workers, else by the tasks; not by what only prepares."""
    text = """
        import sys
        from distpool import LaunchWorkerError, WorkerPool

        sys.executable = "/no/such/python"
        WorkerPool.prepare()
        try:
            WorkerPool(processes=1)
        except LaunchWorkerError as error:
            print("/no/such/python" in str(error))
        with WorkerPool(processes=1, wait=False) as pool:
            try:
                pool.submit(abs, -1).result()
            except LaunchWorkerError as error:
                print("/no/such/python" in str(error))
    """
    assert run_script(text) == (0, "True\nTrue\n", "")


def test_a_program_that_only_prepares_leaves_nothing(run_script: RunScript) -> None:
    """The server ends with the program, also one that has not come to serve; `run_script` counts who is left."""
    assert run_script("from distpool import WorkerPool\nWorkerPool.prepare()\nprint('done')") == (0, "done\n", "")


@pytest.mark.parametrize("after", [0.0, 0.01, 0.03, 0.06, 0.1], ids=lambda after: f"{after * 1000:.0f} ms")
def test_nothing_survives_a_driver_killed_at_its_start(
    start_script: StartScript, eventually: Callable[..., None], after: float
) -> None:
    """Whatever the fork server is just doing then: booting, importing, forking."""
    text = """
        from distpool import WorkerPool
        print("begins", flush=True)
        WorkerPool(processes=4).map(abs, range(10 ** 9))
    """
    script = start_script(text)
    script.wait_for("begins")
    time.sleep(after)
    script.send(signal.SIGKILL)
    script.process.wait()
    eventually(lambda: not script.survivors(), 5)
