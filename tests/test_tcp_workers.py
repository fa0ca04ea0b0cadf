"""Workers as fresh interpreters on loopback, and their rooms: tcp, listening, managers.startup and .interpreter."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import psutil
import pytest

import distpool
from distpool import tcp
from distpool.errors import HandshakeError, LaunchWorkerError
from distpool.handshake import Handshake
from distpool.managers.interpreter import own_path_entries
from distpool.managers.startup import MAX_LINES, WorkerOutput
from distpool.transport import Deadline
from support import jobs
from support.elsewhere import IMPORTS, myself_soon
from support.listeners import GOOD, Addresses, Commands, listening

if TYPE_CHECKING:
    from conftest import RunScript, StartScript, StartWorkers

FRESH: dict[str, Any] = {"exeflags": ["-X", "utf8"]}  # any flag asks for an interpreter of one's own


# -- being a worker ----------------------------------------------------------------------------------------------------


def test_a_fresh_interpreter_serves_like_a_forked_one(workers: StartWorkers) -> None:
    """Calls, maps, references, exceptions and large arguments; and it is another program's process."""
    first, second = workers(2, **FRESH)
    assert distpool.remotecall_fetch(jobs.square, first, 7) == 49
    assert distpool.pmap(jobs.square, range(20)) == [x * x for x in range(20)]
    assert distpool.fetch(distpool.remotecall(jobs.add, second, 1, 2)) == 3
    with pytest.raises(ValueError, match="boom") as caught:
        distpool.remotecall_fetch(jobs.fail, first)
    assert isinstance(caught.value, distpool.RemoteException)
    large = bytes(range(256)) * 40_000
    assert distpool.remotecall_fetch(jobs.identity, second, bytearray(large)) == large
    assert distpool.remotecall_fetch(lambda: sys.flags.utf8_mode, first) == 1
    assert psutil.Process(distpool.remotecall_fetch(os.getpid, first)).ppid() == os.getpid()


def test_it_looks_like_the_driver(workers: StartWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directory, path, arguments, environment and preloaded modules; libraries use one core."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "added")])
    (pid,) = workers(1, dir=tmp_path, env={"CONF_E": "7"}, preload=["colorsys"], **FRESH)

    def look() -> tuple[Any, ...]:
        threads = os.environ["OMP_NUM_THREADS"]
        return os.getcwd(), sys.path, sys.argv, os.environ["CONF_E"], "colorsys" in sys.modules, threads

    assert distpool.remotecall_fetch(look, pid) == (str(tmp_path), sys.path, sys.argv, "7", True, "1")
    assert "CONF_E" not in os.environ


def test_stray_modules_of_its_directory_are_not_taken(workers: StartWorkers, tmp_path: Path) -> None:
    """A folder with a socket.py of the user's own is no reason to fail."""
    for name in ("socket.py", "signal.py", "json.py", "distpool.py"):
        (tmp_path / name).write_text("raise RuntimeError('a stray module')")
    (pid,) = workers(1, dir=tmp_path, **FRESH)
    assert distpool.remotecall_fetch(os.getcwd, pid) == str(tmp_path)


def test_another_program_may_start_it(workers: StartWorkers, tmp_path: Path) -> None:
    """exename is a path or a list; a relative path counts from the worker's directory."""
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\necho "a banner"\nWRAPPED=yes exec {sys.executable} "$@"\n')
    wrapper.chmod(0o755)
    for exename in (str(wrapper), "./wrapper", ["env", "WRAPPED=yes", sys.executable]):
        (pid,) = workers(1, exename=exename, dir=tmp_path)
        assert distpool.remotecall_fetch(jobs.environment, pid, "WRAPPED") == "yes", "and jobs was importable"


@pytest.mark.parametrize("exename", ["/no/such/program", "", "./not-there"])
def test_a_program_that_cannot_be_started(exename: str, no_cluster: None) -> None:
    """The error names it, and nothing is left behind."""
    with pytest.raises(LaunchWorkerError, match="exename is empty" if not exename else exename.lstrip(".")):
        distpool.addprocs(1, exename=exename)


def test_a_broken_start_shows_its_output(no_cluster: None) -> None:
    """What Python itself says is in the error's text."""
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(1, exeflags="--no-such-flag")
    text = str(caught.value.exceptions[0])
    assert "ended before its address line" in text
    assert "no-such-flag" in text
    assert "exit code 2" in text


def test_a_missing_directory_is_told(no_cluster: None) -> None:
    """The same for a directory."""
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(1, dir="/no/such/directory", **FRESH)
    assert "No such file or directory: '/no/such/directory'" in str(caught.value.exceptions[0])


def test_forked_workers_load_nothing_of_it(workers: StartWorkers) -> None:
    """The handshake, its hashes and TCP cost a local worker nothing."""
    (pid,) = workers(1)
    loaded = set(distpool.remotecall_fetch(jobs.modules, pid))
    assert loaded & {"hashlib", "hmac", "_hashlib", "distpool.handshake", "distpool.tcp", "distpool.cookie"} == set()
    assert loaded & {"argparse", "distpool.listening", "distpool.managers.startup"} == set()
    if sys.version_info >= (3, 11):  # before, `platform`, which cloudpickle imports, brought it
        assert "subprocess" not in loaded


def test_the_connection_does_not_wait_to_send(workers: StartWorkers) -> None:
    """Nagle's algorithm is off on both sides; dead hosts are noticed by the kernel."""
    with listening() as listener:
        stream = tcp.dial(listener.host, listener.port, Deadline(10))
        with stream:
            assert stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


def test_the_first_driver_is_the_only_one(no_cluster: None) -> None:
    """Whoever proves himself later is turned away, and the worker goes on with its own driver."""
    with listening() as listener:
        (pid,) = distpool.addprocs(Addresses(listener))
        with pytest.raises(distpool.CompositeException) as caught:
            distpool.addprocs(Addresses(listener))
        assert "ended before it had joined" in str(caught.value.exceptions[0])
        assert distpool.remotecall_fetch(distpool.myid, pid) == pid
        distpool.rmprocs(pid)
        assert "a second driver" in listener.rest()


def test_machines_join_while_a_map_runs(no_cluster: None) -> None:
    """Another thread adds workers that are dialled: the default pool's map goes on with them."""
    with listening(env=IMPORTS) as listener:
        (first,) = distpool.addprocs(Addresses(listener))
        pool, who = distpool.default_worker_pool(), set()
        assert isinstance(pool, distpool.WorkerPool)
        adding: threading.Thread | None = None
        for pid in pool.imap_unordered(myself_soon, itertools.count()):
            who.add(pid)
            if adding is None:
                assert who == {first}
                adding = threading.Thread(target=distpool.addprocs, args=(2,), kwargs=FRESH)
                adding.start()
            if len(who) == 3:
                break
        assert adding is not None
        adding.join()
        assert sorted(who) == distpool.workers()
        distpool.rmprocs(*who, waitfor=30)


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "exit_code", "signum"),
    [(jobs.vanish, 3, None), (jobs.kill_self, None, signal.SIGKILL), (jobs.segfault, None, signal.SIGSEGV)],
)
def test_its_death_is_told(workers: StartWorkers, deed: Any, exit_code: int | None, signum: int | None) -> None:
    """Exit code or signal, as for a forked worker, and the others live on."""
    first, second = workers(2, **FRESH)
    with pytest.raises(distpool.ProcessExitedException) as caught:
        distpool.remotecall_fetch(deed, first)
    assert (caught.value.worker_id, caught.value.exit_code, caught.value.signal) == (first, exit_code, signum)
    assert distpool.workers() == [second]


def test_what_it_had_sent_before_its_death_counts(workers: StartWorkers) -> None:
    """A result that was on its way is delivered, though its sender is dead."""
    (pid,) = workers(1, **FRESH)
    futures = [distpool.remotecall(bytes, pid, 300_000) for _ in range(3)]
    channel: distpool.RemoteChannel[int] = distpool.RemoteChannel(lambda: distpool.Channel(1))
    values = [distpool.fetch(future) for future in futures]
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(lambda: (channel.put(5), jobs.vanish()), pid)
    assert channel.take() == 5
    assert [len(value) for value in values] == [300_000] * 3


def test_its_children_end_with_it(workers: StartWorkers) -> None:
    """What a worker started is in its group, and does not outlive it."""
    (pid,) = workers(1, **FRESH)

    def start_child() -> int:
        import subprocess

        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid

    child = psutil.Process(distpool.remotecall_fetch(start_child, pid))
    distpool.rmprocs(pid, waitfor=30)
    child.wait(10)


def test_rmprocs_of_one_that_is_stuck(workers: StartWorkers, caplog: pytest.LogCaptureFixture) -> None:
    """One that cannot answer is killed after the grace time."""
    (pid,) = workers(1, **FRESH)
    os.kill(distpool.remotecall_fetch(os.getpid, pid), signal.SIGSTOP)
    distpool.rmprocs(pid, waitfor=1)
    assert distpool.workers() == [1]
    assert "it is killed" in caplog.text


DRIVER = """
import os, sys, distpool
sys.path.insert(0, {tests!r})
from support import jobs

def be_busy():
    jobs.touch("busy")
    jobs.{deed}()

first, second = distpool.addprocs(2, exeflags=["-X", "utf8"])
distpool.remotecall_fetch(os.getpid, second)
distpool.remote_do(be_busy, first)
while not os.path.exists("busy"):
    pass
print("ready", flush=True)
jobs.block_for_ever()
"""


@pytest.mark.parametrize("deed", ["block_for_ever", "hold_interpreter"])
def test_nothing_outlives_a_killed_driver(start_script: StartScript, deed: str) -> None:
    """SIGKILL for the driver ends its workers, idle, busy, or holding the interpreter in C code (Linux)."""
    script = start_script(DRIVER.format(tests=str(Path(__file__).parent), deed=deed))
    script.wait_for("ready")
    assert len(script.survivors()) >= 3
    script.send(signal.SIGKILL)
    script.no_survivors(timeout=10)


def test_a_forked_copy_of_the_driver_does_not_keep_them(start_script: StartScript) -> None:
    """A process that user code forked holds the sockets, but not the lifelines."""
    script = start_script(
        """
        import os, sys, time, distpool
        (pid,) = distpool.addprocs(1, exeflags=["-X", "utf8"])
        copy = os.fork()
        if copy == 0:
            os.setsid()
            time.sleep(1000)
        print("ready", copy, distpool.remotecall_fetch(os.getpid, pid), flush=True)
        time.sleep(1000)
        """
    )
    script.wait_for("ready")
    worker = psutil.Process(int(script.stdout.split()[2]))
    script.send(signal.SIGKILL)
    worker.wait(10)


def test_a_driver_that_ends_takes_them_along(run_script: RunScript) -> None:
    """The end of the program is in good order: exit handlers of workers run, their last words are shown."""
    done = run_script(
        """
        import distpool, sys
        pids = distpool.addprocs(2, exeflags=["-X", "utf8"])
        def promise():
            import atexit
            atexit.register(print, "last words")
        for pid in pids:
            distpool.remotecall_fetch(promise, pid)
        """
    )
    assert done.returncode == 0
    assert done.stdout.count("last words") == 2
    assert done.stderr == ""


def test_an_interrupt_ends_what_has_not_joined(start_script: StartScript) -> None:
    """Ctrl-C during addprocs: the program goes on, and the processes it had begun to wait for are gone."""
    script = start_script(
        """
        import distpool, subprocess, sys
        class Silent(distpool.ClusterManager):
            def launch(self, params, launched):
                command = [sys.executable, "-c", "import time; time.sleep(1000)"]
                self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
                launched.append(distpool.WorkerConfig(io=self.process.stdout, process=self.process))
                print("launched", flush=True)
        manager = Silent()
        try:
            distpool.addprocs(manager)
        except KeyboardInterrupt:
            print("interrupted", manager.process.wait(), distpool.addprocs(1), flush=True)
        """
    )
    script.wait_for("launched")
    script.send(signal.SIGINT)
    assert script.wait() == (0, "launched\ninterrupted -9 [3]\n", "")


def test_without_fork_everything_works(run_script: RunScript) -> None:
    """A platform that cannot fork gets interpreters by itself, in addprocs and in pools, which replace their dead."""
    done = run_script(
        """
        import os, signal
        del os.fork
        import distpool
        pids = distpool.addprocs(2)
        print(pids, distpool.pmap(lambda x: x + 1, range(5)))
        with distpool.WorkerPool(processes=2) as pool:
            first = pool.map(abs, range(-100, 0))
            try:
                pool.map(os.kill, [pool.map(lambda _: os.getpid(), [0])[0]], [9])
            except distpool.ProcessExitedException as error:
                print("killed by", error.signal)
            print(sum(first), sum(pool.map(abs, range(100))))
        """
    )
    assert done == (0, "[2, 3] [1, 2, 3, 4, 5]\nkilled by 9\n5050 4950\n", "")


def test_listening_workers_end_with_their_driver(start_script: StartScript) -> None:
    """One that was reached by its address has no lifeline but the connection: enough while it runs Python."""
    with listening() as listener:
        script = start_script(
            f"""
            import distpool
            distpool.cluster_cookie({distpool.cluster_cookie()!r})
            class There(distpool.ClusterManager):
                def launch(self, params, launched):
                    launched.append(distpool.WorkerConfig(host={listener.host!r}, port={listener.port}))
            (pid,) = distpool.addprocs(There())
            print("ready", flush=True)
            import time; time.sleep(1000)
            """
        )
        script.wait_for("ready")
        script.send(signal.SIGKILL)
        assert listener.process.wait(30) == 1


# -- output ------------------------------------------------------------------------------------------------------------


def test_output_is_shown(workers: StartWorkers, capfd: pytest.CaptureFixture[str]) -> None:
    """Lines of Python and of programs it starts, of both streams, carry its number."""
    (pid,) = workers(1, **FRESH)

    def talk() -> None:
        print("from Python")
        print("from stderr", file=sys.stderr)
        os.system("echo from C; printf 'no line end'")

    distpool.remotecall_fetch(talk, pid)
    distpool.rmprocs(pid, waitfor=30)
    shown = [line.strip() for line in capfd.readouterr().out.splitlines()]
    expected = ["from Python", "from stderr", "from C", "no line end"]
    assert shown == [f"From worker {pid}:\t{text}" for text in expected]


# -- managers.startup --------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[WorkerOutput, IO[bytes]]]:
    """A worker's output, and the end that the worker writes to."""
    read, write = os.pipe()
    output = WorkerOutput(read)
    writer = os.fdopen(write, "wb", buffering=0)
    yield output, writer
    output.close()
    writer.close()


def test_the_address_line_is_found(pipe: tuple[WorkerOutput, IO[bytes]]) -> None:
    """Among other lines, with any line end, cut anywhere."""
    output, writer = pipe
    writer.write(b"Welcome!\nnot distpool_worker:1#x\ndistpool_wor")
    threading.Timer(0, writer.write, [b"ker:9009#10.0.0.7\r\nlater"]).start()
    assert output.read_address(Deadline(30)) == ("10.0.0.7", 9009)
    assert output.captured == ["Welcome!", "not distpool_worker:1#x"]


def test_the_end_of_output_is_an_error(pipe: tuple[WorkerOutput, IO[bytes]]) -> None:
    """With what was captured, even without a line end."""
    output, writer = pipe
    writer.write(b"Segmentation fault")
    writer.close()
    with pytest.raises(LaunchWorkerError, match="ended before its address line") as caught:
        output.read_address(Deadline(30))
    assert "Segmentation fault" in str(caught.value)


def test_too_many_lines_are_an_error(pipe: tuple[WorkerOutput, IO[bytes]]) -> None:
    """An address that comes after them is not taken."""
    output, writer = pipe
    writer.write(b"x\n" * (MAX_LINES + 1) + b"distpool_worker:9009#10.0.0.7\n")
    with pytest.raises(LaunchWorkerError, match="no address line found"):
        output.read_address(Deadline(30))


def test_silence_is_an_error(pipe: tuple[WorkerOutput, IO[bytes]]) -> None:
    """A line that never ends is silence as well."""
    output, writer = pipe
    writer.write(b"distpool_worker:9009")
    with pytest.raises(LaunchWorkerError, match="timed out"):
        output.read_address(Deadline(0))


def test_io_must_have_a_descriptor() -> None:
    """The error says what would do."""
    with pytest.raises(TypeError, match=r"Popen\(\.\.\.\)\.stdout"):
        WorkerOutput(["a list"])


# -- tcp ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", ":9", "host:port", "1.2.3.4:70000", "[::1]:x", "[]:1", "1.2.3.4:-1"])
def test_bad_bind_addresses(text: str) -> None:
    """Refused before anything is opened."""
    with pytest.raises(ValueError, match=r"is no ADDR\[:PORT\]"):
        tcp.parse_bind_to(text)


@pytest.mark.parametrize(
    "line",
    ["distpool_worker:x#h", " distpool_worker:1#h", "distpool_worker:1#", "distpool_worker:1#a b", "julia_worker:1#h"],
)
def test_lines_that_are_no_address(line: str) -> None:
    """The rule is anchored and strict: a banner that talks about workers is none."""
    assert tcp.parse_address_line(line) is None


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """Somebody who listens and does not know our handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_a_silent_listener_is_given_up(server: socket.socket) -> None:
    """Whoever accepts and says nothing costs the time limit and no more."""
    with tcp.dial(*server.getsockname(), Deadline(10)) as stream, pytest.raises(HandshakeError, match="in time"):
        tcp.greet(stream, Deadline(0))


def test_a_listener_that_hangs_up(server: socket.socket) -> None:
    """And one that closes is told from one that is silent."""
    with tcp.dial(*server.getsockname(), Deadline(10)) as stream:
        server.accept()[0].close()
        with pytest.raises(HandshakeError, match="the connection ended before the handshake did"):
            tcp.greet(stream, Deadline(10))


def test_an_older_worker_is_named(no_cluster: None, server: socket.socket) -> None:
    """A worker of another version is not admitted, and the error has both versions."""
    secret = distpool.cluster_cookie().encode()

    def answer() -> None:
        stream, _ = server.accept()
        with stream:
            with pytest.raises(HandshakeError):
                tcp.shake_hands(stream, Handshake("acceptor", secret, "0.0.1"), Deadline(10))
            stream.recv(1)

    class There(distpool.ClusterManager):
        def launch(self, params: dict[str, Any], launched: Any) -> None:
            host, port = server.getsockname()
            launched.append(distpool.WorkerConfig(host=host, port=port))

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(There())
    thread.join()
    assert f"distpool {distpool.__version__} here and distpool 0.0.1 in the other" in str(caught.value.exceptions[0])


def test_own_path_entries_leave_libraries_out() -> None:
    """What another interpreter gets of ours: the folders of the user, never our standard library."""
    entries = own_path_entries()
    assert str(Path(__file__).parent) in entries
    assert not any(entry == os.path.dirname(os.__file__) or "site-packages" in entry for entry in entries)


def test_a_popen_of_another_manager_is_watched(no_cluster: None) -> None:
    """Its death is told with its status, though the manager knows nothing of our handles."""
    manager = Commands(GOOD)
    (pid,) = distpool.addprocs(manager)
    with pytest.raises(distpool.ProcessExitedException) as caught:
        distpool.remotecall_fetch(os._exit, pid, 4)
    assert caught.value.exit_code == 4
    assert manager.started[0].returncode == 4, "its Popen knows as well"
