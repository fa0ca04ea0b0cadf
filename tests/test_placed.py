"""Workers that an engine places one by one: managers.placed, .hosted, and what dialback knows of single workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

import distpool
from distpool.errors import LaunchWorkerError
from distpool.managers.hosted import Secret
from distpool.managers.placed import PlacedProcess, needed
from support import jobs
from support.placed import Threads

if TYPE_CHECKING:
    from conftest import StartScript

Eventually = Callable[..., None]
TESTS = str(Path(__file__).parent)


def test_how_they_end_is_known(no_cluster: None) -> None:
    """Exit code and signal, as of local workers; they are where we are."""
    first, second, third = distpool.addprocs(Threads(3), timeout=30)
    assert distpool.pmap(jobs.square, range(20)) == [x * x for x in range(20)]
    assert distpool.remotecall_fetch(os.getcwd, first) == os.getcwd()
    assert distpool.remotecall_fetch(lambda: sys.path, first) == sys.path, "this host is ours"
    with pytest.raises(distpool.ProcessExitedException) as caught:
        distpool.remotecall_fetch(os._exit, first, 5)
    assert caught.value.exit_code == 5
    with pytest.raises(distpool.ProcessExitedException) as caught:
        distpool.remotecall_fetch(jobs.kill_self, second)
    assert caught.value.signal == signal.SIGKILL
    assert distpool.workers() == [third]


def test_one_that_is_stuck_is_killed(no_cluster: None, eventually: Eventually) -> None:
    """And so is what it has started."""
    (pid,) = distpool.addprocs(Threads(1), timeout=30)
    started = distpool.remotecall_fetch(lambda: subprocess.Popen(["sleep", "1000"]).pid, pid)
    distpool.remote_do(jobs.hold_interpreter, pid)
    distpool.rmprocs(pid, waitfor=30)
    eventually(lambda: not psutil.pid_exists(started))


def test_what_a_worker_leaves_behind_ends_with_it(no_cluster: None, eventually: Eventually) -> None:
    """When it is removed in good order, too."""
    (pid,) = distpool.addprocs(Threads(1), timeout=30)
    started = distpool.remotecall_fetch(lambda: subprocess.Popen(["sleep", "1000"]).pid, pid)
    distpool.rmprocs(pid, waitfor=30)
    eventually(lambda: not psutil.pid_exists(started))


@pytest.mark.skipif(sys.platform != "linux", reason="the lifeline is Linux's")
@pytest.mark.parametrize("deed", ["hold_interpreter", "block_for_ever"])
def test_none_outlives_the_process_that_has_started_it(start_script: StartScript, deed: str) -> None:
    """SIGKILL for it ends them at once, whatever they do."""
    script = start_script(
        f"""
        import sys, time
        sys.path.insert(0, {TESTS!r})
        import distpool
        from support import jobs
        from support.placed import Threads
        (pid,) = distpool.addprocs(Threads(1))
        distpool.remote_do(jobs.{deed}, pid)
        print("ready", flush=True)
        time.sleep(1000)
        """
    )
    script.wait_for("ready")
    script.send(signal.SIGKILL)
    script.no_survivors()


def test_workers_that_cannot_start(no_cluster: None) -> None:
    """The error has what they said, and does not wait for the time limit."""
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(Threads(2), exename=["sh", "-c", "echo no room; exit 7"], timeout=60)
    text = str(caught.value.exceptions[0])
    assert "2 of 2 workers of threads did not come: it ended (exit code 7) before it had come" in text
    assert text.endswith("having said:\nno room")
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(Threads(1), exename="/no/python", timeout=60)
    assert "threads says: LaunchWorkerError: cannot start '/no/python'" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("is_first", [True, False])
def test_who_will_not_come_is_not_waited_for(no_cluster: None, eventually: Eventually, is_first: bool) -> None:
    """Whether that is known before the others have come, or afterwards; those that have come stay."""
    manager = Threads(2, held=2)
    problem: list[BaseException] = []

    def add() -> None:
        try:
            distpool.addprocs(manager, timeout=60)
        except distpool.CompositeException as error:
            problem.append(error)

    thread = threading.Thread(target=add)
    thread.start()
    while len(manager._waiting) < 2:
        thread.join(0.01)
    if is_first:
        manager.refuse_next()
        manager.begin_next()
    else:
        manager.begin_next()
        while not manager._open_launches()[0].has_come(0):
            thread.join(0.01)
        manager.refuse_next()
    thread.join(30)
    assert "1 of 2 workers of threads did not come: threads says: RuntimeError: no room, ever" in str(problem[0])
    eventually(distpool.other_workers)  # it joins by itself if it was just being let in
    assert distpool.pmap(jobs.square, range(5)) == [0, 1, 4, 9, 16]


def test_what_has_not_come_is_taken_away(no_cluster: None) -> None:
    """When the time is over, and when the manager is closed; the others go on."""
    manager = Threads(2, held=1)
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, timeout=2)
    assert "not within 2 s" in str(caught.value.exceptions[0])
    assert manager.taken_away == [1]
    patient = Threads(3, held=2, at_least=1)
    distpool.addprocs(patient, timeout=30)
    assert patient.awaits_more
    patient.close()
    assert patient.taken_away == [1, 2]
    assert not patient.awaits_more
    assert len(distpool.workers()) == 2


def test_late_ones_join_and_failures_are_told(no_cluster: None) -> None:
    """A pool takes what comes, and fails when it is known that nobody will."""
    manager = Threads(2, held=2, at_least=0)
    with distpool.WorkerPool(manager=manager) as pool:
        future = pool.submit(jobs.square, 3)
        manager.begin_next()
        assert future.result() == 9
        manager.refuse_next()
        assert not manager.awaits_more
        assert pool.map(jobs.square, range(5)) == [0, 1, 4, 9, 16]
    manager = Threads(1, held=1, at_least=0)
    with distpool.WorkerPool(manager=manager) as pool:
        future = pool.submit(jobs.square, 3)
        manager.refuse_next()
        with pytest.raises(LaunchWorkerError, match="no room, ever"):
            future.result()


def test_a_handle_that_is_told_before_it_is_asked() -> None:
    """Orders and news may come in any order; each watcher hears once."""
    heard: list[object] = []
    process = PlacedProcess(0)
    process.send_signal(signal.SIGINT)  # does not get there
    process.send_signal(signal.SIGKILL)
    process.has_begun(lambda: heard.append("ended"))
    assert heard == ["ended"]
    process.watch(lambda code, signum: heard.append((code, signum)))
    process.has_ended(-9)
    process.has_ended(0)
    process.watch(lambda code, signum: heard.append((code, signum)))
    process.send_signal(signal.SIGKILL)
    process.has_begun(lambda: heard.append("again"))
    assert heard == ["ended", (None, 9), (None, 9)]
    lost = PlacedProcess(1)
    lost.has_ended(None)
    lost.watch(lambda code, signum: heard.append((code, signum)))
    assert heard[-1] == (None, None)


def test_a_secret_is_not_shown() -> None:
    """Engines log arguments."""
    assert "cookie" not in f"{Secret('cookie')!r} {Secret('cookie')}"


def test_a_package_that_is_missing() -> None:
    """Told with the extra; what the package itself lacks is not hidden."""
    with pytest.raises(ModuleNotFoundError, match=r"Manager needs .*no_such_engine.*pip install 'distpool\[engine\]'"):
        needed("no_such_engine", "engine", "Manager")
    assert needed("json", "json", "Manager").loads("1") == 1


def test_a_child_whose_starter_says_nothing() -> None:
    """It ends with the reason."""
    command = [sys.executable, "-m", "distpool", "--worker", "--connect", "127.0.0.1:9", "--ticket", "t", "--child"]
    done = subprocess.run(command, input="a secret\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "who has started it is gone" in done.stderr
