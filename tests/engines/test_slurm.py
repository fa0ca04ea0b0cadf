"""SlurmManager, with a Slurm of the tests' own (support/slurm.py)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import distpool
from distpool.errors import LaunchWorkerError
from support import engines, jobs, slurm

if TYPE_CHECKING:
    from conftest import StartScript

    from support.scripts import Script

pytestmark = pytest.mark.engine

TESTS = str(Path(__file__).parent.parent)
Eventually = Callable[..., None]


@pytest.fixture(scope="module")
def running() -> Iterator[slurm.Slurm]:
    """Two nodes of four cores each, for all tests of this file."""
    engines.require("slurm", slurm.missing())
    with slurm.running() as daemons:
        yield daemons


@pytest.fixture
def cluster(running: slurm.Slurm, no_cluster: None, eventually: Eventually) -> Iterator[slurm.Slurm]:
    """The same, with no jobs before the test and none after it."""
    yield running
    eventually(lambda: not running.jobs(), 30, what="all jobs end")


Allocated = Callable[..., "Script"]


@pytest.fixture
def allocated(start_script: StartScript) -> Allocated:
    """`allocated(text, tasks=4)` starts a script inside an allocation."""

    def start(text: str, tasks: int = 4) -> Script:
        setup = f"import sys, time, os; sys.path.insert(0, {TESTS!r}); import distpool; from support import jobs\n"
        inner = setup + text
        return start_script(
            f"import os, sys\nos.execvp('salloc', ['salloc', '-Q', '-n', '{tasks}', sys.executable, '-c', {inner!r}])\n"
        )

    return start


# -- inside an allocation ----------------------------------------------------------------------------------------------


def test_a_step_of_the_allocation(cluster: slurm.Slurm, allocated: Allocated) -> None:
    """Without a number all of its tasks are workers, in their order; one that dies leaves the others."""
    script = allocated(
        "pids = distpool.addprocs(distpool.SlurmManager())\n"
        "where = lambda: (os.environ['SLURM_PROCID'], os.environ['SLURMD_NODENAME'], os.environ['OMP_NUM_THREADS'])\n"
        "print([distpool.remotecall_fetch(where, pid) for pid in pids])\n"
        "distpool.remotecall_fetch(os.system, pids[3], 'echo heard')\n"
        "try: distpool.remotecall_fetch(jobs.kill_self, pids[1])\n"
        "except distpool.ProcessExitedException: print('died')\n"
        "print(distpool.workers() == [pids[0], *pids[2:]], sum(distpool.pmap(jobs.square, range(100))))\n",
        tasks=6,
    )
    code, out, err = script.wait()
    assert code == 0, err
    ranks = re.findall(r"'(\d)', 'n(\d)', '1'", out)
    assert [int(rank) for rank, _ in ranks] == [0, 1, 2, 3, 4, 5]
    assert {node for _, node in ranks} == {"1", "2"}
    assert "died\nTrue 328350\n" in out
    assert "From worker 5:\theard" in out
    script.no_survivors()


def test_steps_one_after_the_other_and_at_once(cluster: slurm.Slurm, allocated: Allocated) -> None:
    """Options go to srun; a pool's dead are replaced by further steps in the same allocation."""
    script = allocated(
        "from support.leaks import eventually\n"
        "with distpool.WorkerPool(manager=distpool.SlurmManager(2, nodelist='n1', job_name='mine')) as pool:\n"
        "    print({*pool.map(lambda x: os.environ['SLURMD_NODENAME'], range(50))}, flush=True)\n"
        "    try: pool.submit(jobs.kill_self).result()\n"
        "    except distpool.ProcessExitedException: print('died')\n"
        "    eventually(lambda: len(pool.workers()) == 2)\n"
        "    print(sum(pool.map(jobs.square, range(100))))\n"
        "print(len(distpool.addprocs(distpool.SlurmManager(2, by='srun'))))\n",
        tasks=2,
    )
    code, out, err = script.wait()
    assert (code, out) == (0, "{'n1'}\ndied\n328350\n2\n"), err
    script.no_survivors()


@pytest.mark.skipif(sys.platform != "linux", reason="launchers hear of their driver's end by Linux's means")
def test_a_step_ends_with_its_driver(cluster: slurm.Slurm, allocated: Allocated, eventually: Eventually) -> None:
    """SIGKILL for the driver alone: its step ends, also the task that holds the interpreter in C code."""
    script = allocated(
        "pids = distpool.addprocs(distpool.SlurmManager())\n"
        "distpool.remote_do(jobs.hold_interpreter, pids[0])\n"
        "distpool.remote_do(jobs.block_for_ever, pids[1])\n"
        "print('ready', os.getpid(), flush=True)\n"
        "time.sleep(1000)\n"
    )
    script.wait_for("ready")
    os.kill(int(script.stdout.split("ready")[1].split()[0]), signal.SIGKILL)
    script.wait()
    script.no_survivors(timeout=20)


# -- jobs --------------------------------------------------------------------------------------------------------------


def test_a_job_of_its_own(cluster: slurm.Slurm, tmp_path: Path, eventually: Eventually) -> None:
    """Submitted, with its options; it ends with its last worker, and its output is removed then."""
    manager = distpool.SlurmManager(5, time="10", cpus_per_task=1, job_name="ours")
    assert manager.by == "sbatch"
    pids = distpool.addprocs(manager, dir=str(tmp_path), timeout=60)
    (job,) = cluster.jobs()
    asked = subprocess.run(["squeue", "-h", "-j", job, "-o", "%j %l %C"], capture_output=True, text=True, timeout=30)
    assert asked.stdout.split() == ["ours", "10:00", "5"]
    assert (tmp_path / f"distpool-{job}.out").exists()

    def where() -> tuple[int, str]:
        return int(os.environ["SLURM_PROCID"]), os.environ["SLURMD_NODENAME"]

    found = [distpool.remotecall_fetch(where, pid) for pid in pids]
    assert [number for number, _ in found] == [0, 1, 2, 3, 4]
    assert {node for _, node in found} == {"n1", "n2"}
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(jobs.kill_self, pids[1])
    assert distpool.pmap(jobs.square, range(100)) == [x * x for x in range(100)]
    distpool.rmprocs(*distpool.workers(), waitfor=30)
    eventually(lambda: not cluster.jobs(), 30)
    eventually(lambda: not [*tmp_path.iterdir()], 30)


def test_a_pool_over_jobs(cluster: slurm.Slurm, tmp_path: Path, eventually: Eventually) -> None:
    """It takes work before the job runs; its dead are replaced by jobs of one task."""
    manager = distpool.SlurmManager(2, at_least=0)
    with distpool.WorkerPool(manager=manager, options={"dir": str(tmp_path), "timeout": 60}) as pool:
        assert pool.map(jobs.square, range(100)) == [x * x for x in range(100)]
        eventually(lambda: len(pool.workers()) == 2)
        with pytest.raises(distpool.ProcessExitedException):
            pool.submit(jobs.kill_self).result()
        eventually(lambda: len(cluster.jobs()) == 2)
        assert pool.map(jobs.square, range(100)) == [x * x for x in range(100)]
        eventually(lambda: len(pool.workers()) == 2)


@pytest.mark.parametrize("prefix", [[], ["salloc", "-Q", "-n", "2"]], ids=["sbatch", "srun"])
def test_the_example_over_slurm(
    cluster: slurm.Slurm, prefix: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The census has the same result as in one process."""
    monkeypatch.chdir(tmp_path)
    there, here = engines.census("slurm", prefix=prefix)
    assert there == here


def test_a_job_that_waits(cluster: slurm.Slurm, tmp_path: Path) -> None:
    """The error has its state, and it is cancelled; with at_least=0 it may wait, until the manager is closed."""
    manager = distpool.SlurmManager(1, begin="now+3600")
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, dir=str(tmp_path), timeout=2)
    assert re.search(r"1 of 1 workers of Slurm did not come: not within 2 s.*\njob \d+ is PENDING", str(caught.value))
    assert cluster.jobs() == []
    patient = distpool.SlurmManager(1, begin="now+3600", at_least=0)
    assert distpool.addprocs(patient, dir=str(tmp_path)) == []
    assert patient.awaits_more
    patient.close()
    assert cluster.jobs() == []


def test_a_job_that_is_refused(cluster: slurm.Slurm, tmp_path: Path) -> None:
    """The error has what sbatch said, long before the time limit."""
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(distpool.SlurmManager(1, partition="nowhere"), dir=str(tmp_path), timeout=60)
    assert "invalid partition specified: nowhere" in str(caught.value)


def test_a_job_whose_workers_cannot_start(cluster: slurm.Slurm, tmp_path: Path, eventually: Eventually) -> None:
    """The error has what it printed."""
    manager = distpool.SlurmManager(1)
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, dir=str(tmp_path), exename="/no/such/python", timeout=60)
    assert re.search(r"job \d+ has ended", str(caught.value))
    assert "/no/such/python" in str(caught.value)
    eventually(lambda: not [*tmp_path.iterdir()], 30)


@pytest.mark.skipif(sys.platform != "linux", reason="launchers hear of their driver's end by Linux's means")
@pytest.mark.parametrize("when", ["runs", "waits"])
def test_a_job_ends_with_its_driver(
    cluster: slurm.Slurm, start_script: StartScript, eventually: Eventually, tmp_path: Path, when: str
) -> None:
    """SIGKILL for the driver cancels its job, also one that is queued, or whose task holds the interpreter in C.

    Its output is removed, too.
    """
    script = start_script(
        f"""
        import sys, time
        sys.path.insert(0, {TESTS!r})
        import distpool
        from support import jobs
        if {when == "runs"}:
            (pid,) = distpool.addprocs(distpool.SlurmManager(1), dir={str(tmp_path)!r})
            distpool.remote_do(jobs.hold_interpreter, pid)
        else:
            distpool.addprocs(distpool.SlurmManager(1, begin="now+3600", at_least=0))
        print("ready", flush=True)
        time.sleep(1000)
        """
    )
    script.wait_for("ready")
    eventually(lambda: len(cluster.jobs()) == 1)
    script.send(signal.SIGKILL)
    eventually(lambda: not cluster.jobs(), 30)
    script.no_survivors(timeout=20)
    assert not [*tmp_path.glob("distpool-*.out")]


def test_the_end_of_the_program_after_its_job_s(
    cluster: slurm.Slurm, start_script: StartScript, tmp_path: Path
) -> None:
    """Nothing is left of a job that has just ended, either."""
    script = start_script(
        f"""
        import subprocess, time
        import distpool
        distpool.addprocs(distpool.SlurmManager(1), dir={str(tmp_path)!r})
        distpool.rmprocs(*distpool.workers(), waitfor=30)
        while subprocess.check_output(["squeue", "-h"]):
            time.sleep(0.1)
        time.sleep(1.5)  # until that has been noticed, and not so long that it has been cleared away
        """
    )
    assert script.wait() == (0, "", "")
    assert not [*tmp_path.iterdir()]
    script.no_survivors()


def test_the_end_of_the_program_cancels_what_waits(
    cluster: slurm.Slurm, start_script: StartScript, eventually: Eventually
) -> None:
    """Without a word of the program's."""
    script = start_script(
        """
        import distpool
        distpool.addprocs(distpool.SlurmManager(1, begin="now+3600", at_least=0))
        """
    )
    assert script.wait() == (0, "", "")
    eventually(lambda: not cluster.jobs(), 30)
    script.no_survivors()


# -- without Slurm -----------------------------------------------------------------------------------------------------


def test_options_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by the constructor; needs no Slurm."""
    for name in ("SLURM_NTASKS", "SLURM_JOB_NUM_NODES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="inside an allocation"):
        distpool.SlurmManager()
    with pytest.raises(ValueError, match="by='squeue'"):
        distpool.SlurmManager(2, by="squeue")  # type: ignore[arg-type]


def test_where_there_is_no_slurm(no_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Told with the program's name."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchWorkerError, match=r"cannot start 'srun'.*is it installed"):
        distpool.addprocs(distpool.SlurmManager(2, by="srun"), timeout=60)
