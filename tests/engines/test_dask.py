"""DaskManager, with a Dask cluster of the tests' own (support/dask.py)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import distpool
from support import dask, engines

if TYPE_CHECKING:
    from conftest import StartScript

    from support.scripts import Script

pytestmark = pytest.mark.engine

TESTS = str(Path(__file__).parent.parent)
Eventually = Callable[..., None]
Driver = Callable[[str], "Script"]

SETUP = """\
import os, sys, time
sys.path.insert(0, {tests!r})
import distpool
from distributed import Client, get_worker
from support import jobs
from support.leaks import eventually
client = Client({address!r})

def dies(action, *args):
    try: action(*args)
    except distpool.ProcessExitedException as error: return error.signal or error.exit_code
"""


@pytest.fixture(scope="module")
def running() -> Iterator[dask.Dask]:
    """Two workers of Dask's, for all tests of this file; some add another."""
    engines.require("dask", dask.missing())
    with dask.running() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: dask.Dask, eventually: Eventually) -> Iterator[dask.Dask]:
    """The same, with none of our workers left after the test."""
    yield running
    eventually(lambda: not running.fleet.workers(), 20, what="all workers end")


@pytest.fixture
def driver(cluster: dask.Dask, start_script: StartScript) -> Driver:
    """`driver(text)` runs a program with a `client` of the cluster."""

    def start(text: str) -> Script:
        return start_script(SETUP.format(tests=TESTS, address=cluster.address) + text)

    return start


def test_threads_are_workers(driver: Driver) -> None:
    """One for each; they work, print, know how they ended, and hold their place at Dask's as long as they live."""
    script = driver(
        "pids = distpool.addprocs(distpool.DaskManager(client))\n"
        "print(len(pids), sorted(len(keys) for keys in client.processing().values()))\n"
        "print(distpool.pmap(jobs.square, range(100)) == [x * x for x in range(100)])\n"
        "print(distpool.remotecall_fetch(os.getcwd, pids[0]) == os.getcwd(), distpool.procs(pids[0]) == [1, *pids])\n"
        "distpool.remotecall_fetch(os.system, pids[1], 'echo heard')\n"
        "print(dies(distpool.remotecall_fetch, jobs.kill_self, pids[0]), distpool.workers() == pids[1:])\n"
        "distpool.rmprocs(pids[1], waitfor=30)\n"
        "eventually(lambda: not any(client.processing().values()))\n"
        "print(client.submit(pow, 2, 10).result(timeout=30))\n"
    )
    code, out, err = script.wait()
    assert code == 0, err
    assert out.replace("      From worker 3:\theard\n", "") == "2 [1, 1]\nTrue\nTrue True\n9 True\n1024\n"
    assert "heard" in out


def test_placement_is_dasks(driver: Driver) -> None:
    """Names and resources are passed on; what finds no room waits, and joins when there is some."""
    script = driver(
        "manager = distpool.DaskManager(client, 2, workers=['b'], resources={'seats': 2}, at_least=1)\n"
        "(first,) = distpool.addprocs(manager)\n"
        "(key,) = client.processing(workers=[w for w, facts in client.scheduler_info()['workers'].items() "
        "if facts['name'] == 'b']).popitem()[1][:1]\n"
        "print(key.startswith('distpool-'), manager.awaits_more)\n"
        "print(dies(distpool.remotecall_fetch, os._exit, first, 5))\n"
        "eventually(distpool.other_workers)\n"
        "print(distpool.other_workers() != [first])\n"
        "try: distpool.addprocs(distpool.DaskManager(client, 1, resources={'beds': 1}), timeout=1)\n"
        "except distpool.CompositeException as error: print(error)\n"
        "eventually(lambda: not [key for keys in client.processing().values() for key in keys][1:])\n"
    )
    code, out, err = script.wait()
    assert code == 0, err
    assert out.startswith("True True\n5\nTrue\n")
    assert "1 of 1 workers of Dask did not come: not within 1 s" in out
    assert "Dask has 2 threads on 2 workers" in out


def test_a_pool_grows_with_dask(cluster: dask.Dask, driver: Driver, eventually: Eventually) -> None:
    """A worker of Dask's that comes brings one of ours; one that dies takes it along, and another takes its place."""
    script = driver(
        "with distpool.WorkerPool(manager=distpool.DaskManager(client)) as pool:\n"
        "    print(len(pool.workers()), sum(pool.map(jobs.square, range(1000))), flush=True)\n"
        "    eventually(lambda: len(pool.workers()) == 3, 60)\n"
        "    print('grown', sum(pool.map(jobs.square, range(1000))), flush=True)\n"
        "    eventually(lambda: len(pool.workers()) == 2, 60)\n"
        "    print('shrunk', sum(pool.map(jobs.square, range(1000))), flush=True)\n"
        "    print(dies(lambda: pool.submit(jobs.kill_self).result()))\n"
        "    eventually(lambda: len(pool.workers()) == 2)\n"
        "    print(sum(pool.map(jobs.square, range(1000))), flush=True)\n"
    )
    script.wait_for("332833500")
    cluster.add_worker("c")
    script.wait_for("grown 332833500", timeout=60)
    cluster.fleet.kill("worker-c")  # its child is killed by the kernel
    script.wait_for("shrunk 332833500", timeout=60)
    code, out, err = script.wait()
    assert code == 0, err
    assert out.endswith("\n9\n332833500\n")


def test_the_example_over_dask(cluster: dask.Dask) -> None:
    """The census has the same result as in one process."""
    there, here = engines.census(cluster.address)
    assert there == here


@pytest.mark.parametrize("deed", ["hold_interpreter", "block_for_ever"])
def test_nothing_outlives_a_killed_driver(
    cluster: dask.Dask, driver: Driver, eventually: Eventually, deed: str
) -> None:
    """Not even a worker that holds the interpreter in C code: Dask releases its task."""
    script = driver(
        "pids = distpool.addprocs(distpool.DaskManager(client))\n"
        f"distpool.remote_do(jobs.{deed}, pids[0])\n"
        "print('ready', flush=True)\n"
        "time.sleep(1000)\n"
    )
    script.wait_for("ready")
    assert len(cluster.fleet.workers()) == 4, "each with its watchdog"
    script.send(signal.SIGKILL)
    script.no_survivors()
    eventually(lambda: not cluster.fleet.workers(), 20)


def test_a_program_that_ends_takes_them_along(driver: Driver) -> None:
    """In good order: what they print at their end is shown."""
    script = driver(
        "def promise():\n"
        "    import atexit\n"
        "    atexit.register(print, 'last words')\n"
        "for pid in distpool.addprocs(distpool.DaskManager(client)):\n"
        "    distpool.remotecall_fetch(promise, pid)\n"
    )
    code, out, err = script.wait()
    assert (code, err) == (0, "")
    assert out.count("last words") == 2


def test_one_that_is_stuck_is_killed(driver: Driver) -> None:
    """By Dask's worker, which stays; what it has started goes with it."""
    script = driver(
        "import subprocess\n"
        "pids = distpool.addprocs(distpool.DaskManager(client))\n"
        "distpool.remotecall_fetch(lambda: subprocess.Popen(['sleep', '1000']).pid, pids[0])\n"
        "distpool.remote_do(jobs.hold_interpreter, pids[0])\n"
        "distpool.rmprocs(pids[0], waitfor=30)\n"
        "print(distpool.workers() == pids[1:], len(client.nthreads()))\n"
    )
    code, out, err = script.wait()
    assert (code, out) == (0, "True 2\n"), err


def test_workers_that_cannot_start(driver: Driver) -> None:
    """The error has what they said, long before the time limit."""
    script = driver(
        "for program in ('/no/such/python', ['sh', '-c', 'echo no room; exit 7']):\n"
        "    try: distpool.addprocs(distpool.DaskManager(client), exename=program, timeout=60)\n"
        "    except distpool.CompositeException as error: print(error.exceptions[0])\n"
    )
    code, out, err = script.wait(30)
    assert code == 0, err
    assert "2 of 2 workers of Dask did not come: Dask says: LaunchWorkerError: cannot start '/no/such/python'" in out
    assert "it ended (exit code 7) before it had come, having said:\nno room" in out
    assert "Dask has 2 threads on 2 workers" in out


def test_what_makes_no_sense(driver: Driver) -> None:
    """Told by the constructor."""
    script = driver(
        "for make in (\n"
        "    lambda: distpool.DaskManager('tcp://127.0.0.1:9', 1),\n"
        "    lambda: distpool.DaskManager(client, workers=['b']),\n"
        "    lambda: distpool.DaskManager(client, 0),\n"
        "):\n"
        "    try: make()\n"
        "    except (TypeError, ValueError) as error: print(error)\n"
    )
    code, out, err = script.wait()
    assert code == 0, err
    assert [line[:40] for line in out.splitlines()] == [
        "DaskManager('tcp://127.0.0.1:9'): a dist",
        "with workers it takes the number of work",
        "DaskManager(0): the number of workers, f",
    ]


@pytest.mark.skipif(not dask.missing(), reason="Dask is installed")
def test_where_there_is_no_dask() -> None:
    """Told with the extra that installs it."""
    with pytest.raises(ModuleNotFoundError, match=r"DaskManager needs .*pip install 'distpool\[dask\]'"):
        distpool.DaskManager(None)
