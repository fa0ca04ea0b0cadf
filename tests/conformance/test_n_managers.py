"""Section N, the managers: what they are told and when, transports of the user's own, workers without processes."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool.testing import ThreadManager
from support import jobs
from support.listeners import GOOD, Addresses, Commands, listening
from support.memory import crossed
from support.piped import Piped, Recording

from . import deeds

if TYPE_CHECKING:
    from conftest import RunScript

Eventually = Callable[..., None]

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.fixture(autouse=True)
def _find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that nobody tells their path are to find the functions of tests."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))


def everything_works(pids: list[int]) -> None:
    """Calls, errors, references, channels, worker to worker, maps."""
    first, last = pids[0], pids[-1]
    assert [distpool.remotecall_fetch(distpool.myid, pid) for pid in pids] == pids
    with pytest.raises(ValueError, match="boom"):
        distpool.remotecall_fetch(jobs.fail, first)
    assert distpool.remotecall(jobs.add, last, 1, 2).fetch() == 3
    channel: distpool.RemoteChannel[int] = distpool.RemoteChannel(lambda: distpool.Channel(4), pid=first)
    distpool.remotecall_wait(distpool.put, last, channel, 7)
    assert distpool.remotecall_fetch(distpool.take, last, channel) == 7
    if first != last:
        assert distpool.remotecall_fetch(deeds.relay, first, distpool.myid, last) == last
        assert distpool.remotecall_fetch(deeds.chain, 1, [first, last, first], 5) == 8
    large = bytes(range(256)) * 20_000
    assert distpool.remotecall_fetch(jobs.identity, last, large) == large
    assert distpool.pmap(jobs.square, range(50)) == [x * x for x in range(50)]


# -- C222, C223: transports --------------------------------------------------------------------------------------------


@pytest.mark.case("C222")
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("future = distpool.Future()", "has workers or references"),
        ("distpool.addprocs(1)", "has workers or references"),
        ("distpool.remotecall_wait(len, 1, '')", ""),
        ("distpool.init_worker('y')", "worker 0 already"),
    ],
)
def test_init_worker_comes_first(run_script: RunScript, before: str, said: str) -> None:
    """C222: with workers, references or a role already it is an error; calls that left nothing do not matter."""
    done = run_script(
        f"""
        import distpool
        {before}
        try:
            distpool.init_worker("x")
        except RuntimeError as error:
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert bool(done.stdout) == bool(said)


@pytest.mark.case("C222")
def test_a_worker_to_be_may_not_manage(run_script: RunScript) -> None:
    """It is no driver any more: addprocs belongs to process 1; a bad cookie leaves it what it was."""
    done = run_script(
        """
        import distpool
        for cookie, error in (("ä", ValueError), (7, TypeError)):
            try:
                distpool.init_worker(cookie)
            except error:
                print(distpool.myid())
        distpool.init_worker("x", distpool.LocalManager(1))
        print(distpool.cluster_cookie())
        try:
            distpool.addprocs(1)
        except RuntimeError as error:
            print("only process 1" in str(error))
        """
    )
    assert done == (0, "1\n1\nx\nTrue\n", "")


@pytest.mark.case("C223")
def test_workers_over_pipes() -> None:
    """C223: a manager's own streams carry all that sockets carry, and nothing of it is left afterwards."""
    manager = Piped(2)
    pids = distpool.addprocs(manager)
    everything_works(pids)
    distpool.rmprocs(pids, waitfor=30)
    assert manager.killed == pids
    assert manager.wait() == [0, 0]
    assert distpool.workers() == [1]


@pytest.mark.case("C223")
def test_a_worker_over_pipes_dies(eventually: Eventually) -> None:
    """Its end is that of its streams; with a handle on the process it is known how. Nobody is asked to kill it."""
    for watches in (False, True):
        manager = Piped(1, watches=watches)
        (pid,) = distpool.addprocs(manager)
        with pytest.raises(distpool.ProcessExitedException) as caught:
            distpool.remotecall_fetch(jobs.vanish, pid)
        assert caught.value.worker_id == pid
        assert caught.value.exit_code == (3 if watches else None)
        assert manager.wait() == [3]
        assert manager.killed == []
        eventually(lambda: distpool.workers() == [1])


@pytest.mark.case("C223")
def test_a_stranger_over_pipes() -> None:
    """Both sides prove themselves over the streams: a worker with another cookie does not join."""
    manager = Piped(1, cookie="something else")
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, timeout=30)
    assert isinstance(caught.value.exceptions[0], distpool.LaunchWorkerError)
    assert "was not admitted" in str(caught.value.exceptions[0])
    assert manager.wait() == [1]
    assert len(manager.killed) == 1


@pytest.mark.case("C223")
def test_a_silent_worker_over_pipes() -> None:
    """One that never answers is given up in time, and its streams are closed: whoever waited on them comes back."""

    class Silent(Piped):
        def connect(self, pid: int, config: distpool.WorkerConfig) -> Any:
            ours, self.theirs = crossed(1000)
            return ours

        def launch(self, params: dict[str, Any], launched: Any) -> None:
            launched.append(distpool.WorkerConfig())

    manager = Silent(1)
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, timeout=0.3)
    assert "did not join in time" in str(caught.value.exceptions[0])
    assert all(stream.is_closed for stream in manager.theirs)
    assert len(manager.killed) == 1


@pytest.mark.case("C223")
def test_a_connect_that_raises_or_returns_nonsense() -> None:
    """It is the worker's set-up error, after kill was tried."""

    class Broken(Piped):
        def connect(self, pid: int, config: distpool.WorkerConfig) -> Any:
            if self.cookie == "raise":
                raise OSError("no line today")
            return 5

        def launch(self, params: dict[str, Any], launched: Any) -> None:
            launched.append(distpool.WorkerConfig())

    for cookie, text in (("raise", "no line today"), ("return", "a connection is a socket")):
        manager = Broken(1, cookie)
        with pytest.raises(distpool.CompositeException) as caught:
            distpool.addprocs(manager)
        assert text in str(caught.value.exceptions[0])
        assert len(manager.killed) == 1


@pytest.mark.case("C223")
def test_workers_that_are_threads() -> None:
    """C223: the in-memory transport: all of it works, in this very process."""
    pids = distpool.addprocs(ThreadManager(3))
    everything_works(pids)
    assert {distpool.remotecall_fetch(os.getpid, pid) for pid in pids} == {os.getpid()}
    distpool.rmprocs(pids, waitfor=30)
    assert distpool.workers() == [1]


@pytest.mark.case("C223")
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0)])
def test_any_mix_of_workers(order: tuple[int, ...]) -> None:
    """Forked workers, threads, TCP and pipes in one cluster: every one reaches every other."""
    piped = Piped(1)
    makers: list[Callable[[], list[int]]] = [
        lambda: distpool.addprocs(1),
        lambda: distpool.addprocs(ThreadManager(1)),
        lambda: distpool.addprocs(Commands(GOOD)),
        lambda: distpool.addprocs(piped),
    ]
    pids = [pid for index in order for pid in makers[index]()]
    for one in pids:
        for other in pids:
            if one != other:
                assert distpool.remotecall_fetch(deeds.relay, one, distpool.myid, other) == other
    everything_works(pids)
    distpool.rmprocs(pids, waitfor=30)
    assert piped.wait() == [0]


# -- C224: what a manager is told --------------------------------------------------------------------------------------


@pytest.mark.case("C224")
def test_a_recording_manager(eventually: Eventually) -> None:
    """C224a: "register" once, "interrupt" on interrupt, "deregister" once at removal or death, "finalize" last."""
    manager = Recording(2)
    removed, dead = distpool.addprocs(manager)
    assert manager.events == [("register", removed), ("register", dead)]
    distpool.interrupt(removed)
    assert manager.of(removed) == ["register", "interrupt"]
    distpool.rmprocs(removed)
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(jobs.vanish, dead)
    eventually(lambda: manager.of(removed)[-1] == manager.of(dead)[-1] == "finalize")
    assert manager.of(removed) == ["register", "interrupt", "kill", "deregister", "finalize"]
    assert manager.of(dead) == ["register", "deregister", "finalize"]


@pytest.mark.case("C224")
def test_kill_is_part_of_a_removal(eventually: Eventually) -> None:
    """C224b: rmprocs calls kill with the right pid; a worker that dies by itself is nobody's to kill."""
    manager = Recording(3)
    first, second, third = distpool.addprocs(manager)
    distpool.rmprocs(second)
    assert [event for event in manager.events if event[0] == "kill"] == [("kill", second)]
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(jobs.kill_self, first)
    eventually(lambda: manager.of(first)[-1] == "finalize")
    assert "kill" not in manager.of(first)
    distpool.rmprocs(third, waitfor=0).wait(30)
    assert [event for event in manager.events if event[0] == "kill"] == [("kill", second), ("kill", third)]


@pytest.mark.case("C224")
def test_a_manager_that_raises(caplog: pytest.LogCaptureFixture, eventually: Eventually) -> None:
    """What kill raises is logged, and the removal goes on; "finalize" comes whatever "deregister" raised."""

    class Failing(Recording):
        def kill(self, pid: int, config: distpool.WorkerConfig) -> None:
            raise RuntimeError("kill failed")

    manager = Failing(1)
    (pid,) = distpool.addprocs(manager)
    distpool.rmprocs(pid)
    assert distpool.workers() == [1]
    assert "kill failed" in caplog.text
    eventually(lambda: manager.of(pid)[-1] == "finalize")


@pytest.mark.case("C224")
def test_a_worker_that_cannot_be_killed_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Without a handle on its process, rmprocs closes the connection to one that is stuck, and comes back."""
    with listening() as listener:
        (pid,) = distpool.addprocs(Addresses(listener))
        os.kill(listener.process.pid, signal.SIGSTOP)
        distpool.rmprocs(pid, waitfor=1)
        assert distpool.workers() == [1]
        assert "its connection is closed" in caplog.text
        assert listener.process.poll() is None


# -- C226: workers that run already ------------------------------------------------------------------------------------


@pytest.mark.case("C226")
def test_adopted_workers_call_each_other() -> None:
    """C226: two that were started by hand, and a local one: all of it works among them."""
    with listening() as one, listening() as other:
        pids = [*distpool.addprocs(Addresses(one, other)), *distpool.addprocs(1)]
        everything_works(pids)
        distpool.rmprocs(pids)
        assert [listener.process.wait(30) for listener in (one, other)] == [0, 0]


@pytest.mark.case("C226")
def test_a_socket_of_the_managers_own() -> None:
    """A manager that dials itself returns its socket, and distpool proves both sides on it."""

    class Dialling(Addresses):
        def connect(self, pid: int, config: distpool.WorkerConfig) -> Any:
            return socket.create_connection((config.host, config.port))

    with listening() as listener:
        (pid,) = distpool.addprocs(Dialling(listener))
        assert distpool.remotecall_fetch(os.getpid, pid) == listener.process.pid
        distpool.rmprocs(pid)


def test_managers_run_in_the_thread_of_addprocs() -> None:
    """launch is called where addprocs was: no condition, no thread of its own is needed."""

    class Noting(distpool.ClusterManager):
        def launch(self, params: dict[str, Any], launched: Any) -> None:
            self.thread = threading.current_thread()

    manager = Noting()
    assert distpool.addprocs(manager) == []
    assert manager.thread is threading.current_thread()


def test_a_program_that_serves_on_a_socket(run_script: RunScript) -> None:
    """process_messages takes a socket as it is; the wrong side and the wrong order are refused."""
    done = run_script(
        """
        import distpool, socket
        for arguments in ((None,), (None, None, False)):
            try:
                distpool.process_messages(*arguments)
            except (RuntimeError, ValueError) as error:
                print(error)
        distpool.init_worker("secret")
        ours, theirs = socket.socketpair()
        ours.sendall(b"this is no handshake")
        distpool.process_messages(theirs).join()
        print("still here", distpool.myid())
        """
    )
    assert done.returncode == 0
    assert "has called init_worker()" in done.stdout
    assert "made by distpool itself" in done.stdout
    assert done.stdout.endswith("still here 0\n")
    assert "was not admitted" in done.stderr
