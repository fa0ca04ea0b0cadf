"""`python -m distpool status`: what it says of the machine, and of processes that really run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import distpool
from distpool.status import EXTRAS, PROGRAMS, find_processes, problems
from support.listeners import listening

if TYPE_CHECKING:
    from conftest import StartWorkers


def status(**env: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "distpool", "status"]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def role_of(pid: int) -> str | None:
    """What it takes a process for."""
    return next((each.role for each in find_processes() if each.pid == pid), None)


def test_the_machine_is_described() -> None:
    """Versions, cores, memory, limits, and each extra and program with what it is for."""
    said = status(DISTPOOL_HOST_TIMEOUT="12")
    assert f"distpool     {distpool.__version__} in " in said
    assert sys.executable in said
    assert re.search(r"^cores +\d+", said, re.MULTILINE)
    assert re.search(r"^memory +\d+ MB available of \d+(; a control group allows \d+ MB)?$", said, re.MULTILINE)
    assert "12 s until a silent host counts as gone (set by DISTPOOL_HOST_TIMEOUT)" in said
    for name, *_ in (*EXTRAS, *PROGRAMS):
        assert re.search(rf"^{name} +\S", said, re.MULTILINE), name


def test_what_is_missing_is_told_with_its_remedy() -> None:
    """Programs that are not in PATH; an extra that is not installed."""
    said = status(PATH="/no/such/folder")
    assert "ssh          not in PATH; it is for workers on other machines" in said
    for package, _, extra in EXTRAS:
        if extra and f"{package:<13}not installed" in said:
            assert f"pip install 'distpool[{extra}]'" in said


def test_processes_are_known_for_what_they_are(workers: StartWorkers) -> None:
    """This driver, its fork server, forked and fresh workers, and one that listens."""
    forked, fresh = *workers(1), *workers(1, exeflags=["-X", "utf8"])
    os_pids = [distpool.remotecall_fetch(os.getpid, pid) for pid in (forked, fresh)]
    server = psutil.Process(os_pids[0]).ppid()
    with listening() as listener:
        roles = {each.pid: each for each in find_processes()}
        assert roles[os.getpid()].role == "driver"
        assert roles[server].role == "fork server"
        assert [roles[pid].role for pid in (*os_pids, listener.process.pid)] == ["worker"] * 3
        worker = roles[os_pids[0]]
        assert worker.parent == server
        assert 0 <= worker.age < 3600
        assert 1 << 20 < worker.rss < 1 << 32
        said = status()
        for pid in (os.getpid(), server, *os_pids):
            assert re.search(rf"^ +{pid} +\d+ ", said, re.MULTILINE)


def test_a_program_of_a_workers_is_none_of_ours(workers: StartWorkers) -> None:
    """What user code starts is not listed."""
    (pid,) = workers(1)

    def start() -> int:
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE).pid

    child = distpool.remotecall_fetch(start, pid)
    assert role_of(child) is None


def test_a_stopped_worker_is_a_problem(workers: StartWorkers, eventually: Any) -> None:
    """It is named, with what to do."""
    (pid,) = workers(1)
    os_pid = distpool.remotecall_fetch(os.getpid, pid)
    os.kill(os_pid, signal.SIGSTOP)
    try:
        eventually(lambda: psutil.Process(os_pid).status() == psutil.STATUS_STOPPED)
        assert f"worker {os_pid} is stopped, and whoever needs it waits: kill -CONT {os_pid}" in status()
    finally:
        os.kill(os_pid, signal.SIGCONT)


@pytest.mark.parametrize("variable", ["DISTPOOL_HOST_TIMEOUT", "DISTPOOL_WORKER_TIMEOUT"])
def test_settings_that_make_no_sense_are_problems(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be errors later."""
    said = status(**{variable: "soon"})
    assert "not a number" in said
    assert f"{variable}='soon' is no number of seconds" in said
    monkeypatch.delenv(variable, raising=False)
    assert not [problem for problem in problems([]) if variable in problem]


def test_few_descriptors_are_a_problem() -> None:
    """A limit that some dozen workers would reach is told."""
    code = "import resource, distpool.status as s; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)); s.show()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "only 64 open files are allowed, enough for some 12 workers: ulimit -n 4096" in done.stdout, done.stderr
