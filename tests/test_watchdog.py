"""Workers that can do nothing themselves when their driver goes: they hold the interpreter, or are stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import distpool
from distpool.login_watch import LoginWatch
from distpool.status import find_processes
from distpool.vanishing import Silence
from distpool.watchdog import NAME
from support import elsewhere
from support.listeners import Addresses, listening
from support.sshd import Sshd, start_sshd
from support.stuck import DEEDS, wait_until_begun

if TYPE_CHECKING:
    from conftest import StartScript

Eventually = Callable[..., None]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a watchdog takes pidfds")

# For workers and drivers that are to notice soon that their host is silent, or to be killed soon.
SOON = {**elsewhere.IMPORTS, "DISTPOOL_HOST_TIMEOUT": "1"}
# Seconds that the end of something may take on a busy machine.
PATIENCE = 40.0


def os_pids(*pids: int) -> list[psutil.Process]:
    return [psutil.Process(distpool.remotecall_fetch(os.getpid, pid)) for pid in pids]


def all_end(processes: list[psutil.Process], seconds: float = PATIENCE) -> bool:
    """Whether they have ended in time, or wait only for somebody to take their status."""
    limit = time.monotonic() + seconds
    while living := [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]:
        if time.monotonic() > limit:
            for each in living:
                each.kill()
            return False
        time.sleep(0.02)
    return True


# -- the driver has ended ----------------------------------------------------------------------------------------------

DRIVER = """
import os, sys, time
import distpool
from distpool import WorkerConfig
from support.dialback import Here
from support.stuck import DEEDS, wait_until_begun

class There(distpool.ClusterManager):
    def launch(self, params, launched):
        for port in map(int, sys.argv[2:]):
            launched.append(WorkerConfig(host="127.0.0.1", port=port))

distpool.cluster_cookie("between us")
engine = Here(2)
pids = [*distpool.addprocs(There()), *distpool.addprocs(engine)]
print(*(distpool.remotecall_fetch(os.getpid, pid) for pid in pids), flush=True)
for pid, deed in zip(pids, 2 * list(DEEDS.values()), strict=True):
    distpool.remote_do(deed, pid, sys.argv[1])
wait_until_begun(sys.argv[1], 4)
print("all stuck", flush=True)
time.sleep(1000)
"""


def test_whatever_they_do_they_end_after_their_driver(start_script: StartScript, tmp_path: Path) -> None:
    """Started by hand or by an engine, stuck in C code or stopped: killed seconds after the driver was."""
    with (
        listening(cookie="between us", env=SOON) as one,
        listening(cookie="between us", env=SOON) as other,
    ):
        script = start_script(DRIVER, tmp_path, one.port, other.port, env=SOON)
        script.wait_for("all stuck")
        workers = [psutil.Process(int(pid)) for pid in script.stdout.splitlines()[0].split()]
        script.send(signal.SIGKILL)
        assert len(workers) == 4
        assert all_end(workers)
        assert [one.process.wait(PATIENCE), other.process.wait(PATIENCE)] == [-signal.SIGKILL] * 2


def test_a_stopped_one_ends_when_its_driver_lets_it_go(no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here can kill one that was started by hand; its watchdog does when the connection is closed."""
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", "1")
    with listening(env=SOON) as listener:
        (pid,) = distpool.addprocs(Addresses(listener))
        os.kill(listener.process.pid, signal.SIGSTOP)
        distpool.rmprocs(pid, waitfor=0.5)
        assert listener.process.wait(PATIENCE) == -signal.SIGKILL


# -- its host has vanished ---------------------------------------------------------------------------------------------


@pytest.fixture
def host(no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[elsewhere.Host]:
    """Another host; who has not answered for a second counts as gone."""
    if reason := elsewhere.why_not():
        pytest.skip(reason)
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", "1")
    with elsewhere.another_host() as host:
        yield host


def _gone() -> bool:
    return distpool.workers() == [1]


def test_whatever_they_do_they_end_when_the_host_of_their_driver_vanishes(
    host: elsewhere.Host, eventually: Eventually, tmp_path: Path
) -> None:
    """Started by hand or by an engine; without a word of the driver's."""
    manager = elsewhere.There(2, host)
    try:
        with host.listener() as one, host.listener() as other:
            pids = [*distpool.addprocs(Addresses(one, other)), *distpool.addprocs(manager, timeout=PATIENCE)]
            processes = os_pids(*pids)
            for pid, deed in zip(pids, 2 * list(DEEDS.values()), strict=True):
                distpool.remote_do(deed, pid, str(tmp_path))
            wait_until_begun(str(tmp_path), 4)
            host.vanish()
            assert all_end(processes)
            eventually(_gone)
    finally:
        manager.end()


@pytest.mark.parametrize("tunnel", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_login_from_a_host_that_vanishes(
    host: elsewhere.Host, tunnel: bool, tmp_path: Path, eventually: Eventually
) -> None:
    """All that was started through ssh ends, though the ssh server there would wait for hours."""
    sshd = start_sshd(tmp_path, host.address, host.command())
    try:
        pids = distpool.addprocs([("h1", 3)], sshflags=sshd.flags, tunnel=tunnel, env=elsewhere.IMPORTS)
        processes = os_pids(*pids)
        started_there = [*processes, *{process.parent() for process in processes}]
        for pid, deed in zip(pids, DEEDS.values(), strict=False):
            distpool.remote_do(deed, pid, str(tmp_path))
        wait_until_begun(str(tmp_path), 2)
        host.vanish()
        assert all_end([process for process in started_there if process is not None])
        eventually(_gone)
    finally:
        sshd.close()


def test_a_driver_that_is_stuck_keeps_its_logins(sshd: Sshd, no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host answers for it, several times as long as one that vanished would have."""
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", "1")
    (pid,) = distpool.addprocs(["h1"], sshflags=sshd.flags)
    ctypes.PyDLL(None).usleep(2_500_000)
    assert distpool.remotecall_fetch(os.getenv, pid, "DISTPOOL_HOST_TIMEOUT") == "1"
    distpool.rmprocs(pid, waitfor=PATIENCE)


# -- what looks --------------------------------------------------------------------------------------------------------


def test_silence_counts_from_the_first_look_that_found_it() -> None:
    """And not at all while nothing is due, or when an answer has come since."""
    silence = Silence(0.05)
    assert not silence.has_lasted(True, 1000.0), "the answer is old because nothing was asked"
    time.sleep(0.06)
    assert not silence.has_lasted(True, 0.01), "there was an answer in between"
    assert not silence.has_lasted(True)
    time.sleep(0.06)
    assert silence.has_lasted(True)
    assert not silence.has_lasted(False)
    assert not silence.has_lasted(True)


@pytest.mark.parametrize("connection", ["", "no such thing", "a 1 b 2", "127.0.0.1 1 127.0.0.1 2", "::1 x ::1 y"])
def test_a_login_that_is_not_seen_is_not_watched(connection: str) -> None:
    """A server with a network of its own, or none: never declared gone."""
    watch = LoginWatch({"SSH_CONNECTION": connection}, 0.01)
    assert not watch.has_vanished()
    time.sleep(0.02)
    assert not watch.has_vanished()


# -- what a worker sees of it ------------------------------------------------------------------------------------------


def own_children() -> tuple[int, bool]:
    """On a worker: how many children it has, and whether there is one to wait for."""
    try:
        os.wait()
    except ChildProcessError:
        return len(psutil.Process().children()), False
    return len(psutil.Process().children()), True


def watchdogs_of(pid: int) -> list[psutil.Process]:
    """The watchdogs that belong to the command line of a worker."""
    words, found = psutil.Process(pid).cmdline(), []
    for each in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):  # it has ended just now
            if each.name() == NAME and each.cmdline() == words:
                found.append(each)
    return found


def test_it_is_in_nobodys_way(no_cluster: None, eventually: Eventually) -> None:
    """It is no child of the worker's, holds nothing of its, is told apart in the status, and ends with it."""
    with listening("--worker", "--bind-to", "127.0.0.1:0", env=elsewhere.IMPORTS) as listener:
        (pid,) = distpool.addprocs(Addresses(listener))
        assert distpool.remotecall_fetch(own_children, pid) == (0, False)
        (watchdog,) = watchdogs_of(listener.process.pid)
        assert [each.role for each in find_processes() if each.pid == watchdog.pid] == ["watchdog"]
        kinds = sorted(os.readlink(f"/proc/{watchdog.pid}/fd/{fd}").partition(":")[0] for fd in range(6))
        assert kinds == ["/dev/null"] * 3 + ["anon_inode", "socket", "socket"]
        assert os.readlink(f"/proc/{watchdog.pid}/cwd") == "/"
        distpool.rmprocs(pid, waitfor=PATIENCE)
        assert listener.process.wait(PATIENCE) == 0
        assert all_end([watchdog])


def test_one_that_becomes_another_program_is_gone(no_cluster: None) -> None:
    """Its connection ends then: the watchdog holds a duplicate, and lets go of it."""
    with listening(env=elsewhere.IMPORTS) as listener:
        (pid,) = distpool.addprocs(Addresses(listener))
        with pytest.raises(distpool.ProcessExitedException):
            distpool.remotecall_fetch(os.execvp, pid, "sleep", ["sleep", "1000"])
        assert listener.process.poll() is None


def test_without_one_a_worker_works(no_cluster: None) -> None:
    """The watchdog was killed by somebody."""
    with listening(env=elsewhere.IMPORTS) as listener:
        for watchdog in watchdogs_of(listener.process.pid):
            watchdog.kill()
        (pid,) = distpool.addprocs(Addresses(listener))
        assert distpool.remotecall_fetch(os.getpid, pid) == listener.process.pid
        distpool.rmprocs(pid, waitfor=PATIENCE)
