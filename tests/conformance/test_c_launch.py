"""Launching and reaching workers: failing launchers, the cookie, strangers, addresses.

Real processes and sockets on loopback. Case C029 and parts of C225 need other machines: they are in ``test_n_ssh``.
"""

from __future__ import annotations

import contextlib
import operator
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import distpool
from distpool import messages as m
from distpool.door import MAX_STRANGERS
from distpool.errors import LaunchWorkerError
from distpool.member import default_member
from distpool.peer import Reply
from distpool.pickling import Parcel, dump
from support.listeners import (
    COMMAND,
    GARBAGE,
    GOOD,
    Addresses,
    Commands,
    is_closed_by_other_side,
    listening,
    python,
    standard_streams,
)
from support.scripts import Script

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers

TESTS = str(Path(__file__).parent.parent)

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.fixture
def own_cookie() -> Iterator[None]:
    """The test may set the cookie; afterwards it is what it was."""
    before = distpool.cluster_cookie()
    yield
    distpool.cluster_cookie(before)


def failure_of(manager: distpool.ClusterManager, **options: Any) -> distpool.CompositeException:
    """What addprocs raises."""
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, **options)
    return caught.value


@pytest.mark.case("C007")
def test_the_cookie_is_drawn_once(run_script: RunScript) -> None:
    """C007: a fresh process has a long random ASCII cookie, the same at the second call."""
    code = "from distpool import cluster_cookie as c\nprint(c())\nassert c() == c()"
    first, second = (run_script(code).stdout.strip() for _ in range(2))
    assert first.isascii()
    assert min(len(first), len(second)) >= 32
    assert first != second


@pytest.mark.case("C027")
def test_a_launcher_that_exits_at_once() -> None:
    """C027a: the error says that no address line came, how the process ended, and what it printed."""
    error = failure_of(Commands(python("import sys; print('no such option'); sys.exit(3)")))
    assert isinstance(error.exceptions[0], LaunchWorkerError)
    text = str(error.exceptions[0])
    assert "ended before its address line" in text
    assert "exit code 3" in text
    assert "no such option" in text


@pytest.mark.case("C027")
def test_a_launcher_that_talks_too_much() -> None:
    """C027b: 1001 lines without an address are enough."""
    error = failure_of(
        Commands(python("for i in range(1001): print('line', i, flush=True)\nimport time; time.sleep(99)"))
    )
    assert isinstance(error.exceptions[0], LaunchWorkerError)
    assert "no address line found in its first 1001 lines" in str(error.exceptions[0])
    assert "line 1000" in str(error.exceptions[0])


@pytest.mark.case("C027")
def test_a_launcher_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """C027c: the limit of the environment ends the wait."""
    monkeypatch.setenv("DISTPOOL_WORKER_TIMEOUT", "1")
    began = time.monotonic()
    error = failure_of(Commands(python("import time; time.sleep(10)")))
    assert time.monotonic() - began < 5
    assert isinstance(error.exceptions[0], LaunchWorkerError)
    assert "timed out" in str(error.exceptions[0])
    assert "printed nothing" in str(error.exceptions[0])


@pytest.mark.case("C027")
def test_the_limit_can_be_given_and_launches_overlap() -> None:
    """C027c with timeout=: three silent launchers take the time of one."""
    began = time.monotonic()
    error = failure_of(Commands(*[python("import time; time.sleep(30)")] * 3), timeout=0.5)
    assert time.monotonic() - began < 1.4
    assert len(error.exceptions) == 3


@pytest.mark.case("C028")
@pytest.mark.parametrize("banners", [1, 999, 1000])
def test_banners_are_tolerated_and_shown(banners: int, capfd: pytest.CaptureFixture[str]) -> None:
    """C028: other lines may come first; they are shown as start-up output."""
    code = (
        f"for i in range({banners}): print('banner', i, flush=True)\nfrom distpool import start_worker; start_worker()"
    )
    pids = distpool.addprocs(Commands(python(code)))
    assert distpool.remotecall_fetch(distpool.myid, pids[0]) == pids[0]
    shown = capfd.readouterr().out.splitlines()
    assert [line.strip() for line in shown if "From worker startup:" in line] == [
        f"From worker startup:\tbanner {i}" for i in range(banners)
    ]


@pytest.mark.case("C030")
def test_the_healthy_workers_stay() -> None:
    """C030a: two of three join, are members, and the error lists them."""
    error = failure_of(Commands(GOOD, python("raise SystemExit(1)"), GOOD))
    assert len(error.exceptions) == 1
    assert error.pids == distpool.workers()
    assert len(error.pids) == 2
    assert [distpool.remotecall_fetch(distpool.myid, pid) for pid in error.pids] == error.pids


@pytest.mark.case("C030")
def test_no_child_of_a_failed_launch_remains() -> None:
    """C030b: what never connects is killed before addprocs raises."""
    manager = Commands(python("print('never', flush=True); import time; time.sleep(1000)"))
    failure_of(manager, timeout=0.3)
    assert [process.returncode for process in manager.started] == [-9]
    assert not psutil.pid_exists(manager.started[0].pid)


@pytest.mark.case("C031")
def test_an_error_of_launch_comes_after_the_good_worker_has_joined() -> None:
    """C031: launch raises with one good worker appended."""
    with pytest.raises(OSError, match="the queue is full"):
        distpool.addprocs(Commands(GOOD, after=OSError("the queue is full")))
    assert distpool.nworkers() == 1
    (pid,) = distpool.workers()
    assert distpool.remotecall_fetch(distpool.myid, pid) == pid != 1


@pytest.mark.case("C032")
def test_after_a_failure_comes_the_next_id() -> None:
    """C032: the lock is free again, and the id that was burnt is not used."""
    (before,) = distpool.addprocs(Commands(GOOD))
    failure_of(Commands(python("raise SystemExit(1)")))
    assert distpool.addprocs(1) == [before + 2]


@pytest.mark.case("C050")
def test_a_worker_without_a_driver_ends() -> None:
    """C050: after the time limit it exits with status 1 and says why."""
    began = time.monotonic()
    with listening(env={"DISTPOOL_WORKER_TIMEOUT": "1"}) as listener:
        text = listener.rest()
        assert listener.process.wait(30) == 1
    assert "no driver came in time" in text
    assert 0.9 < time.monotonic() - began < 20


@pytest.mark.case("C050")
def test_a_worker_without_a_cookie_ends() -> None:
    """C050: it neither waits for a cookie for ever nor takes a missing one for the empty one."""
    silent, theirs = os.pipe()
    try:
        for stdin in (silent, subprocess.DEVNULL):
            done = subprocess.run(
                [*COMMAND, "--worker"],
                stdin=stdin,
                capture_output=True,
                text=True,
                timeout=30,
                env={**os.environ, "DISTPOOL_WORKER_TIMEOUT": "0.5"},
            )
            assert done.returncode == 1
            assert "no cookie came on standard input" in done.stderr
            assert done.stdout == ""
    finally:
        os.close(silent)
        os.close(theirs)


@pytest.mark.case("C217")
@pytest.mark.usefixtures("own_cookie")
def test_the_cookie_can_be_set() -> None:
    """C217: returned as given, the empty one too; what does not fit is refused and changes nothing."""
    assert distpool.cluster_cookie("foobar") == "foobar"
    assert distpool.cluster_cookie() == "foobar"
    for wrong in ("x" * 256, "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "two\nlines"):
        with pytest.raises(ValueError, match="cookie"):
            distpool.cluster_cookie(wrong)
    with pytest.raises(TypeError):
        distpool.cluster_cookie(b"foobar")  # type: ignore[arg-type]
    assert distpool.cluster_cookie() == "foobar"
    assert distpool.cluster_cookie("y" * 255) == "y" * 255
    assert distpool.cluster_cookie("") == ""


@pytest.mark.case("C218")
@pytest.mark.usefixtures("own_cookie")
@pytest.mark.parametrize(
    ("cookie", "options"),
    [
        ("0123456789abcdef", ["--worker"]),
        ("", ["--worker="]),
        ("foobar", ["--worker=foobar"]),
    ],
)
def test_ways_of_passing_the_cookie(cookie: str, options: list[str]) -> None:
    """C218: on standard input, empty, on the command line; each worker joins and answers."""
    distpool.cluster_cookie(cookie)
    (pid,) = distpool.addprocs(Commands([*COMMAND, *options]))
    assert distpool.remotecall_fetch(distpool.myid, pid) == pid
    assert distpool.remotecall_fetch(distpool.cluster_cookie, pid) == cookie


@pytest.mark.case("C218")
@pytest.mark.usefixtures("own_cookie")
def test_a_worker_with_another_cookie_is_not_admitted() -> None:
    """C218: and the error names the remedy."""
    error = failure_of(Commands([*COMMAND, "--worker=something else"]), timeout=20)
    assert "cluster_cookie" in str(error.exceptions[0])


BY_CODE = """
import os, sys
from distpool import start_worker
print("on stderr", file=sys.stderr, flush=True)
start_worker(close_stdin={close_stdin}, stderr_to_stdout={stderr_to_stdout})
"""


@pytest.mark.case("C219")
@pytest.mark.parametrize("close_stdin", [True, False])
@pytest.mark.parametrize("stderr_to_stdout", [True, False])
def test_standard_streams_of_a_worker_by_code(close_stdin: bool, stderr_to_stdout: bool) -> None:
    """C219: stdin is the null device or still the user's, without a byte lost; stderr is joined or separate."""
    code = BY_CODE.format(close_stdin=close_stdin, stderr_to_stdout=stderr_to_stdout)

    class ByCode(distpool.ClusterManager):
        def launch(self, params: dict[str, Any], launched: Any) -> None:
            pipe = subprocess.PIPE
            environment = {**os.environ, "PYTHONPATH": TESTS}
            self.process = subprocess.Popen(python(code), stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
            assert self.process.stdin is not None
            self.process.stdin.write(f"{distpool.cluster_cookie()}\nthe user's line\n".encode())
            self.process.stdin.flush()
            launched.append(distpool.WorkerConfig(io=self.process.stdout, process=self.process))

    manager = ByCode()
    (pid,) = distpool.addprocs(manager)
    expected = (close_stdin, stderr_to_stdout, "" if close_stdin else "the user's line\n")
    assert distpool.remotecall_fetch(standard_streams, pid) == expected
    distpool.rmprocs(pid)
    manager.process.wait(30)
    assert manager.process.stderr is not None
    with manager.process.stderr as stderr:
        assert b"on stderr" in stderr.read()


@pytest.mark.case("C220")
def test_garbage_harms_nobody() -> None:
    """C220a: 32 random bytes for every worker, before and after it has its driver."""
    with listening() as first, listening() as second:
        for listener in (first, second):
            with listener.visit() as stranger:
                stranger.sendall(GARBAGE)
                assert is_closed_by_other_side(stranger)
        pids = distpool.addprocs(Addresses(first, second))
        for listener in (first, second):
            with listener.visit() as stranger:
                stranger.sendall(GARBAGE)
                assert is_closed_by_other_side(stranger)
        assert distpool.workers() == pids
        assert [distpool.remotecall_fetch(distpool.myid, pid) for pid in pids] == pids
        distpool.rmprocs(*pids)
        assert "none of distpool's" in first.rest(), "the worker reports it, as Julia's does"


@pytest.mark.case("C220")
def test_silent_connections_harm_nobody() -> None:
    """C220b: connect, say nothing, close; and one that stays is closed by the worker in the end."""
    with listening() as listener:
        listener.visit().close()
        with listener.visit() as lingering:
            (pid,) = distpool.addprocs(Addresses(listener))
            listener.visit().close()
            assert distpool.remotecall_fetch(distpool.myid, pid) == pid
            assert lingering.recv(1) == b"", "after five seconds without a handshake"
        assert distpool.remotecall_fetch(distpool.myid, pid) == pid
        distpool.rmprocs(pid)


@pytest.mark.case("C221")
@pytest.mark.parametrize("door", ["forked", "tcp"])
def test_an_undecodable_request_fails_alone(door: str) -> None:
    """C221: a payload that is no pickle costs that request, and the next one is answered."""
    (pid,) = distpool.addprocs(1) if door == "forked" else distpool.addprocs(Commands(GOOD))
    member = default_member()
    peer = member.cluster.peer(pid)
    parcels = [Parcel(b"this is no pickle", []), dump((operator.mul, (7, 7), {}))]
    replies = [Reply(), Reply()]
    for reply, parcel in zip(replies, parcels, strict=True):
        member.send_request(peer, reply, m.CALL_FETCH, parcel)
    for reply in replies:
        member.reader.wait(reply)
    with pytest.raises(distpool.RemoteException):
        member.open_answer(peer, member.answer_of(replies[0]))
    assert member.open_answer(peer, member.answer_of(replies[1])) == 49


@pytest.mark.case("C225")
def test_worker_config_has_every_field() -> None:
    """C225a: all of the specification's, and all None."""
    fields = """
        io host port count exename exeflags userdata tunnel multiplex forward bind_addr sshflags max_parallel connect_at
        process ospid environ ident connect_idents enable_threaded_blas
    """
    config = distpool.WorkerConfig()
    assert {name: getattr(config, name) for name in fields.split()} == dict.fromkeys(fields.split())


@pytest.mark.case("C225")
def test_default_parameters() -> None:
    """C225b: without a manager, and the local one's."""
    expected = {
        "topology": "all_to_all",
        "dir": os.getcwd(),
        "exename": sys.executable,
        "exeflags": "",
        "env": [],
        "enable_threaded_blas": False,
        "lazy": True,
    }
    assert distpool.default_addprocs_params() == expected
    own = distpool.default_addprocs_params(distpool.LocalManager(1))
    assert expected.items() <= own.items(), "a manager may know more"


@pytest.mark.case("C228")
def test_the_local_manager_as_text() -> None:
    """C228b: it says no more than what it is."""
    assert repr(distpool.LocalManager(2)) == "LocalManager()"


@pytest.mark.case("C226")
def test_a_running_worker_is_reached_by_host_and_port() -> None:
    """C226: no io, no process: the address is enough."""
    with listening() as listener:
        (pid,) = distpool.addprocs(Addresses(listener))
        assert distpool.remotecall_fetch(os.getpid, pid) == listener.process.pid
        distpool.rmprocs(pid)
        assert listener.process.wait(30) == 0


@pytest.mark.case("C226")
def test_an_address_where_nobody_listens() -> None:
    """C226: the error names it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    class Nobody(distpool.ClusterManager):
        def launch(self, params: dict[str, Any], launched: Any) -> None:
            launched.append(distpool.WorkerConfig(host="user@127.0.0.1", port=port))

    assert f"127.0.0.1, port {port}" in str(failure_of(Nobody()).exceptions[0])


def listeners(os_pid: int) -> list[Any]:
    """The addresses on which a process listens."""
    connections = psutil.Process(os_pid).net_connections("inet")
    return [connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN]


@pytest.mark.case("C239")
def test_a_local_cluster_opens_no_port(start_script: Any) -> None:
    """C239a: neither the driver, nor the fork server, nor any worker listens, or has any internet socket at all."""
    script: Script = start_script(
        """
        import distpool
        pids = distpool.addprocs(2)
        assert distpool.remotecall_fetch(distpool.myid, pids[0]) == pids[0]
        print("ready", flush=True)
        import signal; signal.pause()
        """
    )
    script.wait_for("ready")
    family = script.survivors()
    assert len(family) == 4
    assert [process.net_connections("inet") for process in family] == [[]] * 4


@pytest.mark.case("C239")
def test_unrestricted_workers_listen_outwards(workers: StartWorkers) -> None:
    """C239a: restrict=False binds to the address that other machines see."""
    from distpool.tcp import outward_address

    (pid,) = workers(1, restrict=False)
    (address,) = listeners(distpool.remotecall_fetch(os.getpid, pid))
    assert address.ip == outward_address()


@pytest.mark.case("C239")
def test_the_address_line_is_one_line_with_exactly_that_port() -> None:
    """C239b: what --bind-to names is what is printed, at once."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with listening("--worker", "--bind-to", f"127.0.0.1:{port}") as listener:
        assert listener.first_line == f"distpool_worker:{port}#127.0.0.1\n"
        (pid,) = distpool.addprocs(Addresses(listener))
        distpool.rmprocs(pid)
        assert listener.rest() == "", "nothing else was printed"


@pytest.mark.case("C239")
def test_a_port_that_is_taken_is_an_error() -> None:
    """C239b: it does not quietly take another one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        command = [*COMMAND, "--worker=x", "--bind-to", address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"cannot listen on {address}" in done.stdout + done.stderr


@pytest.mark.case("C240")
def test_a_script_with_workers(run_script: RunScript, tmp_path: Any) -> None:
    """C240a: `-p 2` and `-p auto`."""
    path = tmp_path / "counts.py"
    path.write_text("import distpool; print(distpool.nworkers(), distpool.myid(), __name__)")
    cores = distpool.membership.usable_cores()
    for option, expected in (("2", 2), ("auto", cores)):
        done = subprocess.run([*COMMAND, "-p", option, str(path)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{expected} 1 __main__\n", "")


def test_strangers_are_counted() -> None:
    """So many unproved connections and no more: the next waits until one is given up, and so does a driver."""
    with listening() as listener, contextlib.ExitStack() as visits:
        silent = [visits.enter_context(listener.visit()) for _ in range(MAX_STRANGERS)]
        assert is_closed_by_other_side(silent[0]), "sooner than if nobody could be waiting"
        (pid,) = distpool.addprocs(Addresses(listener), timeout=20)
        assert distpool.remotecall_fetch(distpool.myid, pid) == pid
        distpool.rmprocs(pid)


def test_managers_are_told_who_joined() -> None:
    """ "register" names the pid, in the thread of addprocs."""
    manager = Commands(GOOD)
    (pid,) = distpool.addprocs(manager)
    assert ("register", pid) in manager.events
    assert threading.current_thread() is threading.main_thread()
