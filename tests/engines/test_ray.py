"""RayManager, with a Ray cluster of the tests' own (support/ray.py)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import distpool
from support import engines, ray

if TYPE_CHECKING:
    from conftest import StartScript

    from support.scripts import Script

pytestmark = [pytest.mark.engine, pytest.mark.timeout(150)]

TESTS = str(Path(__file__).parent.parent)
Eventually = Callable[..., None]
Driver = Callable[[str], "Script"]
SECONDS = 100  # for a driver: on a busy machine Ray takes its time

SETUP = """\
import os, sys, time
sys.path.insert(0, {tests!r})
import ray
import distpool
from support import jobs
from support.leaks import eventually
ray.init(address="127.0.0.1:{port}", _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="ERROR")

def dies(action, *args):
    try: action(*args)
    except distpool.ProcessExitedException as error: return error.signal or error.exit_code

def free():
    return ray.available_resources().get("CPU", 0)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[ray.Ray]:
    """One node, for all tests of this file."""
    engines.require("ray", ray.missing())
    with ray.running() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: ray.Ray, eventually: Eventually) -> Iterator[ray.Ray]:
    """The same, with none of our workers and actors left after the test."""
    yield running
    eventually(lambda: not running.fleet.workers(), 30, what="all workers end")
    eventually(lambda: not running.fleet.processes("ray::Host"), 30, what="all actors end")


@pytest.fixture
def driver(cluster: ray.Ray, start_script: StartScript) -> Driver:
    """`driver(text)` runs a program that has joined the cluster."""

    def start(text: str) -> Script:
        text = SETUP.format(tests=TESTS, port=ray.PORT) + text
        return start_script(
            f"import os, sys\ncommand = [*{cluster.inside!r}, sys.executable, '-c', {text!r}]\n"
            "os.execvp(command[0], command)\n"
        )

    return start


def test_actors_hold_workers(driver: Driver) -> None:
    """They work, print, know how they ended; their places are free again when they have."""
    script = driver(
        "pids = distpool.addprocs(distpool.RayManager(3))\n"
        "eventually(lambda: free() == 1)\n"
        "print(distpool.pmap(jobs.square, range(100)) == [x * x for x in range(100)])\n"
        "print(distpool.remotecall_fetch(os.getcwd, pids[0]) == os.getcwd(), distpool.procs(pids[0]) == [1, *pids])\n"
        "distpool.remotecall_fetch(os.system, pids[1], 'echo heard')\n"
        "print(dies(distpool.remotecall_fetch, jobs.kill_self, pids[0]), distpool.workers() == pids[1:])\n"
        "print(dies(distpool.remotecall_fetch, os._exit, pids[1], 5))\n"
        "distpool.rmprocs(pids[2], waitfor=30)\n"
        "eventually(lambda: free() == 4)\n"
    )
    code, out, err = script.wait(SECONDS)
    assert code == 0, err
    assert out.replace("      From worker 3:\theard\n", "") == "True\nTrue True\n9 True\n5\n"
    assert "heard" in out


def test_placement_is_rays(driver: Driver) -> None:
    """Options are passed on; what finds no room waits, and joins when there is some; an error says what there is."""
    script = driver(
        "manager = distpool.RayManager(2, num_cpus=2, resources={'seats': 2}, at_least=1)\n"
        "(first,) = distpool.addprocs(manager)\n"
        "print(distpool.remotecall_fetch(os.getenv, first, 'OMP_NUM_THREADS'), manager.awaits_more)\n"
        "try: distpool.addprocs(distpool.RayManager(1, resources={'seats': 2}), timeout=1)\n"
        "except distpool.CompositeException as error: print(error)\n"
        "distpool.rmprocs(first)\n"
        "eventually(distpool.other_workers)\n"
        "print(distpool.other_workers() != [first], manager.awaits_more)\n"
        "try: distpool.addprocs(distpool.RayManager(1, num_seats=2))\n"
        "except Exception as error: print(type(error).__name__, 'num_seats' in str(error))\n"
    )
    code, out, err = script.wait(SECONDS)
    assert code == 0, err
    assert out.startswith("2 True\n")
    assert out.endswith("True False\nValueError True\n")
    assert "1 of 1 workers of Ray did not come: not within 1 s" in out
    assert "seats 2" in out


def test_the_death_of_an_actor_ends_its_worker(cluster: ray.Ray, driver: Driver) -> None:
    """SIGKILL for the actor's process: the kernel ends the worker and what it has started; pools replace it."""
    script = driver(
        "import subprocess\n"
        "with distpool.WorkerPool(manager=distpool.RayManager(2)) as pool:\n"
        "    first = set(pool.workers())\n"
        "    print(sum(pool.map(jobs.square, range(1000))))\n"
        "    for number in range(2): pool.submit(lambda: subprocess.Popen(['sleep', '1000']).pid).result()\n"
        "    print('ready', flush=True)\n"
        "    eventually(lambda: not first & set(pool.workers()) and len(pool.workers()) == 2, 60)\n"
        "    print(sum(pool.map(jobs.square, range(1000))))\n"
    )
    script.wait_for("ready", timeout=60)
    actors = cluster.fleet.processes("ray::Host")
    assert len(actors) == 2
    for actor in actors:
        actor.kill()
    code, out, err = script.wait(SECONDS)
    assert code == 0, err
    assert out.startswith("332833500\nready\n")
    assert out.count("332833500\n") == 2, "in between, or behind, Ray itself tells of the actors' death"


def test_one_that_is_stuck_is_killed(driver: Driver) -> None:
    """With its actor."""
    script = driver(
        "(pid,) = distpool.addprocs(distpool.RayManager(1))\n"
        "distpool.remote_do(jobs.hold_interpreter, pid)\n"
        "distpool.rmprocs(pid, waitfor=30)\n"
        "eventually(lambda: free() == 4)\n"
        "for program in ('/no/such/python', ['sh', '-c', 'echo no room; exit 7']):\n"
        "    try: distpool.addprocs(distpool.RayManager(2), exename=program, timeout=60)\n"
        "    except distpool.CompositeException as error: print(error.exceptions[0])\n"
    )
    code, out, err = script.wait(SECONDS)
    assert code == 0, err
    assert "2 of 2 workers of Ray did not come: Ray says:" in out
    assert "cannot start '/no/such/python' as a worker" in out
    assert "it ended (exit code 7) before it had come, having said:\nno room" in out


def test_nothing_outlives_a_killed_driver(cluster: ray.Ray, driver: Driver, eventually: Eventually) -> None:
    """Not even a worker that holds the interpreter in C code: Ray ends its actor."""
    script = driver(
        "pids = distpool.addprocs(distpool.RayManager(2))\n"
        "distpool.remote_do(jobs.hold_interpreter, pids[0])\n"
        "distpool.remote_do(jobs.block_for_ever, pids[1])\n"
        "print('ready', flush=True)\n"
        "time.sleep(1000)\n"
    )
    script.wait_for("ready", timeout=60)
    assert len(cluster.fleet.workers()) == 4, "each with its watchdog"
    script.send(signal.SIGKILL)
    script.no_survivors()
    eventually(lambda: not cluster.fleet.workers(), 30)


def test_a_program_that_ends_takes_them_along(cluster: ray.Ray, driver: Driver) -> None:
    """In good order: what they print at their end is shown."""
    script = driver(
        "def promise():\n"
        "    import atexit\n"
        "    atexit.register(print, 'last words')\n"
        "for pid in distpool.addprocs(distpool.RayManager(2)):\n"
        "    distpool.remotecall_fetch(promise, pid)\n"
    )
    code, out, err = script.wait(SECONDS)
    assert code == 0, err
    assert "Traceback" not in err
    assert out.count("last words") == 2


def test_the_example_over_ray(cluster: ray.Ray) -> None:
    """The census has the same result as in one process."""
    prefix = [*cluster.inside, "env", f"RAY_ADDRESS=127.0.0.1:{ray.PORT}"]
    there, here = engines.census("ray", prefix=prefix)
    assert there == here


@pytest.mark.skipif(not ray.missing(), reason="Ray is installed")
def test_where_there_is_no_ray() -> None:
    """Told with the extra that installs it."""
    with pytest.raises(ModuleNotFoundError, match=r"RayManager needs .*pip install 'distpool\[ray\]'"):
        distpool.RayManager(2)
