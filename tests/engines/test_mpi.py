"""MPIManager, with every launcher that this machine has."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import distpool
from distpool.errors import LaunchWorkerError
from support import engines, jobs

if TYPE_CHECKING:
    from conftest import StartScript

pytestmark = pytest.mark.engine

TESTS = str(Path(__file__).parent.parent)
LAUNCHERS = engines.mpi_launchers()
MISSING = "" if LAUNCHERS else "no mpiexec here (pip install mpich, or apt-get install mpich)"


@pytest.fixture(params=[*LAUNCHERS] or ["none"])
def launcher(request: pytest.FixtureRequest, no_cluster: None) -> list[str]:
    """Each launcher in turn, a list of words."""
    engines.require("mpi", MISSING)
    return LAUNCHERS[request.param]


@pytest.fixture
def any_launcher(no_cluster: None) -> list[str]:
    """The first launcher, where one is as good as another."""
    engines.require("mpi", MISSING)
    return next(iter(LAUNCHERS.values()))


def test_ranks_are_workers(launcher: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """In their order; they work, print, and one that dies leaves the others."""
    before = set(os.listdir(tempfile.gettempdir()))
    pids = distpool.addprocs(distpool.MPIManager(3, launcher), timeout=60)
    left = {name for name in set(os.listdir(tempfile.gettempdir())) - before if name.startswith("distpool-")}
    assert left == set(), "the file with the cookie is gone"

    def rank() -> str:
        return os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]

    assert [distpool.remotecall_fetch(rank, pid) for pid in pids] == ["0", "1", "2"]
    assert distpool.pmap(jobs.square, range(100)) == [x * x for x in range(100)]
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(jobs.kill_self, pids[0])
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(jobs.vanish, pids[1])
    assert distpool.workers() == [pids[2]]
    distpool.remotecall_fetch(os.system, pids[2], "echo heard")
    distpool.rmprocs(pids[2], waitfor=30)
    assert f"From worker {pids[2]}:\theard" in capfd.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="launchers hear of their driver's end by Linux's means")
def test_nothing_outlives_a_killed_driver(launcher: list[str], start_script: StartScript) -> None:
    """Not even a rank that holds the interpreter in C code."""
    script = start_script(
        f"""
        import sys, time
        sys.path.insert(0, {TESTS!r})
        import distpool
        from support import jobs
        pids = distpool.addprocs(distpool.MPIManager(3, {launcher!r}))
        distpool.remote_do(jobs.hold_interpreter, pids[0])
        distpool.remote_do(jobs.block_for_ever, pids[1])
        print("ready", flush=True)
        time.sleep(1000)
        """
    )
    script.wait_for("ready")
    script.send(signal.SIGKILL)
    script.no_survivors(timeout=20)


def test_a_program_that_ends_takes_them_along(any_launcher: list[str], start_script: StartScript) -> None:
    """In good order: what they print at their end is shown."""
    script = start_script(
        f"""
        import distpool
        def promise():
            import atexit
            atexit.register(print, "last words")
        for pid in distpool.addprocs(distpool.MPIManager(2, {any_launcher!r})):
            distpool.remotecall_fetch(promise, pid)
        """
    )
    done = script.wait()
    script.no_survivors()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("last words") == 2


def test_a_pool_over_mpi(any_launcher: list[str], eventually: Callable[..., None]) -> None:
    """Its dead are replaced by launches of one."""
    with distpool.WorkerPool(manager=distpool.MPIManager(2, any_launcher)) as pool:
        assert pool.map(jobs.square, range(1000)) == [x * x for x in range(1000)]
        with pytest.raises(distpool.ProcessExitedException):
            pool.submit(jobs.kill_self).result()
        eventually(lambda: len(pool.workers()) == 2)
        assert pool.map(jobs.square, range(1000)) == [x * x for x in range(1000)]


def test_the_example_over_mpi(any_launcher: list[str], tmp_path: Path) -> None:
    """The census has the same result as in one process."""
    (tmp_path / "mpiexec").write_text(f'#!/bin/sh\nexec {shlex.join(any_launcher)} "$@"\n')
    (tmp_path / "mpiexec").chmod(0o755)
    there, here = engines.census("mpi", path=str(tmp_path))
    assert there == here


def test_ranks_that_cannot_start(any_launcher: list[str]) -> None:
    """The error has what was printed, long before the time limit."""
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(distpool.MPIManager(2, any_launcher), exename="/no/such/python", timeout=60)
    text = str(caught.value.exceptions[0])
    assert "2 of 2 workers of mpiexec did not come: mpiexec has ended" in text
    assert "/no/such/python: not found" in text
    assert "a worker has ended with status 127" in text


def test_the_folder_of_the_cookie(any_launcher: list[str], tmp_path: Path) -> None:
    """It is where it was asked for while ranks come, readable for this user only; a bad folder is told."""
    manager = distpool.MPIManager(2, any_launcher, cookie_dir=tmp_path)
    seen: list[tuple[str, int]] = []

    class Looking(distpool.MPIManager):
        def tell(self, launch: object) -> str:
            seen.extend((path.read_text(), path.stat().st_mode & 0o777) for path in tmp_path.iterdir())
            return ""

    late = Looking(2, any_launcher, cookie_dir=tmp_path)
    with pytest.raises(distpool.CompositeException):
        distpool.addprocs(late, exename=["sh", "-c", "sleep 30"], timeout=1)
    assert seen == [(distpool.cluster_cookie() + "\n", 0o600)]
    assert [*tmp_path.iterdir()] == []
    assert len(distpool.addprocs(manager, timeout=60)) == 2
    with pytest.raises(LaunchWorkerError, match="cookie_dir="):
        distpool.addprocs(distpool.MPIManager(2, any_launcher, cookie_dir=tmp_path / "missing"))


def test_a_launcher_that_is_missing(no_cluster: None) -> None:
    """Told with its name; needs none to be installed."""
    with pytest.raises(LaunchWorkerError, match=r"cannot start '/no/mpiexec'.*is it installed"):
        distpool.addprocs(distpool.MPIManager(2, "/no/mpiexec"))
    with pytest.raises(ValueError, match="mpiexec= is empty"):
        distpool.MPIManager(2, "")
