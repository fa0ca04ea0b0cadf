"""The fork server: workers start, die and are reported; nothing outlives its owner. Real processes, real signals."""

from __future__ import annotations

import ast
import os
import pickle
import random
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from distpool.errors import LaunchWorkerError
from distpool.forkserver.client import ForkServer
from distpool.forkserver.exits import describe_exit, oom_kills
from distpool.forkserver.frames import PRELOAD_TOKEN
from distpool.segments import SharedPage
from support.leaks import eventually

if TYPE_CHECKING:
    from conftest import RunScript, StartScript

    from distpool.forkserver.client import Event

pytestmark = pytest.mark.skipif(not ForkServer.available(), reason="this platform cannot fork")
LIMIT = 30.0  # seconds; only a failing test comes near


class Driver:
    """A driver reduced to its dealings with one fork server."""

    def __init__(self, server: ForkServer) -> None:
        self.server = server
        self.events: list[Event] = []

    def start(self, token: int, entry: str, outputs: Sequence[int] = (), **setup: Any) -> socket.socket:
        """Start a worker of tests/support/forked.py; returns our end of its stream."""
        ours, theirs = socket.socketpair()
        ours.settimeout(LIMIT)
        data = pickle.dumps({"entry": f"support.forked:{entry}", **setup})
        with theirs:
            try:
                self.server.start_worker(token, data, [theirs.fileno(), *outputs])
            except BaseException:
                ours.close()
                raise
        return ours

    def event(self, kind: str, token: int | None = None) -> Any:
        """Wait for an event of this kind; others are kept."""
        deadline = time.monotonic() + LIMIT
        while True:
            for event in self.events:
                if event[0] == kind and (token is None or event[1:2] == (token,)):
                    self.events.remove(event)
                    return event
            ready, _, _ = select.select([self.server], [], [], deadline - time.monotonic())
            assert ready, f"no {kind!r} event of {token}; there are {self.events}"
            self.events += self.server.receive()

    def os_pid(self, token: int) -> int:
        return int(self.event("started", token)[2])

    def fate(self, token: int) -> tuple[int | None, int | None]:
        return describe_exit(self.event("exited", token)[3])


@pytest.fixture
def driver() -> Iterator[Driver]:
    """A driver with a fork server that has `support.forked` preloaded."""
    server = ForkServer(["support.forked"])
    yield Driver(server)
    server.close()


def said(stream: socket.socket, size: int = 100_000) -> bytes:
    """What a worker writes until it closes its end."""
    parts = []
    while part := stream.recv(size):
        parts.append(part)
    return b"".join(parts)


def is_gone(os_pid: int) -> bool:
    """Dead; reaped or, where nobody reaps orphans at once, a zombie."""
    try:
        return bool(psutil.Process(os_pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


# -- births


def test_a_worker_runs_its_entry_and_its_start_and_end_are_told(driver: Driver) -> None:
    """started, then exited with status 0 when the entry returns."""
    with driver.start(7, "wait_for_end") as stream:
        assert stream.recv(5) == b"ready"
        os_pid = driver.os_pid(7)
        assert os_pid not in (os.getpid(), driver.server.os_pid)
    event = driver.event("exited", 7)
    assert event == ("exited", 7, os_pid, 0)
    assert describe_exit(event[3]) == (0, None)


def test_what_a_worker_finds(driver: Driver, tmp_path: Path) -> None:
    """Directory, environment, path, arguments as told; a session of its own; the fork server's things shed."""
    setup: dict[str, Any] = {
        "cwd": str(tmp_path),
        "env": {"DISTPOOL_TEST_WORD": "word", "HOME": None},
        "path": [*sys.path, "/the/last"],
        "argv": ["program", "argument"],
    }
    out, err = os.pipe(), os.pipe()
    with driver.start(0, "tell", [out[1], err[1]], **setup) as stream:
        os.close(out[1])
        os.close(err[1])
        found = ast.literal_eval(said(stream).decode())
    with open(out[0]) as printed, open(err[0]) as complained:
        assert (printed.read(), complained.read()) == ("printed\n", "complained\n")
    expected = {"cwd": str(tmp_path), "env": "word", "home": None, "path": "/the/last", "argv": ["program", "argument"]}
    assert {name: found[name] for name in expected} == expected
    assert found["session"]
    assert found["stdin"]
    assert found["sigint"]
    assert found["sigchld"]
    assert found["gc"]
    assert found["main"] == []
    # stdin, stdout, stderr, its stream, its lifeline, and what `tell` itself opened: /dev/null
    assert len(found["fds"]) <= 6


def test_workers_draw_different_random_numbers(driver: Driver) -> None:
    """Forks of one process must not share its random state."""
    random.seed(1)
    streams = [driver.start(token, "draw") for token in range(8)]
    numbers = {said(stream) for stream in streams}
    for stream in streams:
        stream.close()
    assert len(numbers) == 8


def test_set_ups_larger_than_the_socket_arrive_whole_and_nobody_blocks(driver: Driver) -> None:
    """Forty requests of 100 kB: what does not fit is kept back and sent on while events are read."""
    os.kill(driver.server.os_pid, signal.SIGSTOP)  # so that nothing is taken from the socket meanwhile
    streams = [driver.start(token, "tell", [2, 2], ballast=bytes(100_000)) for token in range(40)]
    os.kill(driver.server.os_pid, signal.SIGCONT)
    for token in range(40):
        driver.event("started", token)
    for stream in streams:
        assert ast.literal_eval(said(stream).decode())["size"] == 100_000
        stream.close()


def test_two_threads_may_start_workers_at_once(driver: Driver) -> None:
    """Requests do not mix."""
    streams: list[socket.socket] = []

    def start(first: int) -> None:
        streams.extend(
            [driver.start(token, "wait_for_end", ballast=bytes(50_000)) for token in range(first, first + 10)]
        )

    threads = [threading.Thread(target=start, args=(first,)) for first in (0, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for token in range(20):
        driver.event("started", token)
    for stream in streams:
        assert stream.recv(5) == b"ready"
        stream.close()
    assert [driver.fate(token) for token in range(20)] == [(0, None)] * 20


def test_two_hundred_workers(driver: Driver) -> None:
    """All start and all ends are told; the `leaks` fixture counts what is left."""
    streams = [driver.start(token, "wait_for_end") for token in range(200)]
    for stream in streams:
        assert stream.recv(5) == b"ready"
        stream.close()
    assert len({driver.os_pid(token) for token in range(200)}) == 200
    assert {driver.fate(token) for token in range(200)} == {(0, None)}


def test_a_module_that_cannot_be_preloaded_is_told_and_costs_nothing_else() -> None:
    """`failed` with PRELOAD_TOKEN; workers start as ever."""
    driver = Driver(ForkServer(["no.such.module", "support.forked"]))
    try:
        _, _, text = driver.event("failed", PRELOAD_TOKEN)
        assert "no.such.module" in text
        with driver.start(0, "wait_for_end") as stream:
            assert stream.recv(5) == b"ready"
    finally:
        driver.server.close()


def test_modules_are_warmed_when_the_server_is_idle() -> None:
    """After the first fork and a quiet moment later forks have them; a broken one does no harm."""
    driver = Driver(ForkServer(["support.forked"], warm=["no.such.module", "colorsys", "this_is_not_there"]))
    warm: list[str] = []
    try:
        deadline = time.monotonic() + LIMIT
        token = 0
        while not warm and time.monotonic() < deadline:
            with driver.start(token, "tell", [2, 2], modules=["colorsys"]) as stream:
                warm = ast.literal_eval(said(stream).decode())["modules"]
            driver.fate(token)
            token += 1
            select.select([driver.server], [], [], 0.1)  # what we wait for is that nothing happens for 50 ms
        assert warm == ["colorsys"]
    finally:
        driver.server.close()


def test_workers_write_into_the_shared_page_and_the_words_survive_them() -> None:
    """The driver reads what a killed worker wrote."""
    page = SharedPage.create(4)
    driver = Driver(ForkServer(["support.forked"], page_fd=page.fd))
    try:
        driver.start(0, "mark_page", slot=2).close()
        os_pid = driver.os_pid(0)
        assert driver.fate(0) == (None, signal.SIGKILL)
        assert list(page.slot(2)) == [0, 0, 0, os_pid, 0, 0, 0, 0]
    finally:
        driver.server.close()
        page.close()


# -- deaths


@pytest.mark.parametrize(
    ("how", "fate"),
    [
        ("exit", (3, None)),
        ("_exit", (4, None)),
        ("text", (1, None)),
        ("raise", (1, None)),
        ("segfault", (None, signal.SIGSEGV)),
        ("return", (0, None)),
    ],
)
def test_how_a_worker_died_is_told(driver: Driver, how: str, fate: tuple[int | None, int | None]) -> None:
    """Exit code or signal, whatever the worker did."""
    with open(os.devnull, "w") as null, driver.start(0, "die", [null.fileno(), null.fileno()], how=how):
        assert driver.fate(0) == fate


def test_an_entry_that_is_not_there_ends_only_its_worker(driver: Driver) -> None:
    """Exit code 1 and a traceback on its stderr."""
    read_end, write_end = os.pipe()
    with driver.start(0, "no_such_entry", [write_end, write_end]):
        os.close(write_end)
        assert driver.fate(0) == (1, None)
    with open(read_end) as complaint:
        assert "no_such_entry" in complaint.read()


def test_kill_reaches_one_worker(driver: Driver) -> None:
    """SIGTERM and SIGKILL arrive; other workers live; one that has ended is left alone."""
    with driver.start(0, "wait_for_end") as first, driver.start(1, "wait_for_end") as second:
        assert first.recv(5) + second.recv(5) == b"readyready"
        os_pid = driver.os_pid(0)
        driver.server.kill(os_pid, signal.SIGTERM)
        assert driver.fate(0) == (None, signal.SIGTERM)
        driver.server.kill(os_pid, signal.SIGKILL)
        driver.server.kill(driver.os_pid(1), signal.SIGKILL)
        assert driver.fate(1) == (None, signal.SIGKILL)


@pytest.mark.parametrize("stay", [True, False], ids=["killed", "returned"])
def test_a_workers_subprocesses_die_with_it(driver: Driver, stay: bool) -> None:
    """The end of the stream comes when the last holder of the socket, the subprocess, is dead."""
    with driver.start(0, "start_subprocess", stay=stay) as stream:
        child = int(stream.recv(100))
        if stay:
            driver.server.kill(driver.os_pid(0), signal.SIGKILL)
        assert driver.fate(0) == ((None, signal.SIGKILL) if stay else (0, None))
        assert said(stream) == b""
    eventually(lambda: is_gone(child))


def test_close_ends_workers_that_hang_in_c_code(driver: Driver) -> None:
    """Nothing is left, and it takes no longer than killing takes."""
    with driver.start(0, "ignore_everything") as stream, driver.start(1, "start_subprocess") as other:
        assert stream.recv(5) == b"ready"
        child = int(other.recv(100))
        began = time.monotonic()
        driver.server.close()
        assert time.monotonic() - began < 2
        assert said(stream) == said(other) == b""
    eventually(lambda: is_gone(child))
    driver.server.close()  # harmless
    assert driver.server.receive() == []
    driver.server.kill(child, signal.SIGKILL)
    with pytest.raises(LaunchWorkerError, match="has ended"):
        driver.start(2, "wait_for_end")


def test_when_the_fork_server_is_killed_the_driver_is_told_and_the_workers_die(driver: Driver) -> None:
    """`gone` comes once; even a worker stuck in C code ends, with its subprocesses (Linux's doing)."""
    with driver.start(0, "ignore_everything") as stream, driver.start(1, "start_subprocess") as other:
        assert stream.recv(5) == b"ready"
        child = int(other.recv(100))
        os.kill(driver.server.os_pid, signal.SIGKILL)
        assert driver.event("gone") == ("gone",)
        assert driver.server.receive() == []
        assert said(stream) == said(other) == b""
        driver.server.kill(child, signal.SIGKILL)  # nobody is left to do it, or to die of it
        with pytest.raises(LaunchWorkerError, match="has ended"):
            driver.start(2, "wait_for_end")
    driver.server.close()
    eventually(lambda: is_gone(child))


DRIVER_SCRIPT = """
    import os, pickle, socket, sys, time
    from distpool.forkserver.client import ForkServer

    server = ForkServer(["support.forked"])
    streams = []
    for token, entry in enumerate(["ignore_everything", "start_subprocess", "wait_for_end"]):
        ours, theirs = socket.socketpair()
        setup = pickle.dumps({"entry": "support.forked:" + entry})
        server.start_worker(token, setup, [theirs.fileno()])
        theirs.close()
        streams.append(ours)
    for stream in streams:
        stream.recv(100)
    %s
    print("ready", flush=True)
    time.sleep(100)
"""


@pytest.mark.parametrize(
    "copy", ["", "if not os.fork(): os.setsid(); time.sleep(3); os._exit(0)"], ids=["plain", "forked"]
)
def test_nothing_survives_a_driver_killed_by_sigkill(start_script: StartScript, copy: str) -> None:
    """Fork server, workers and their subprocesses are gone within 2 s, also where a forked copy of the driver lives."""
    root = Path(__file__).parent
    script = start_script(DRIVER_SCRIPT % copy, env={"PYTHONPATH": f"{root.parent}{os.pathsep}{root}"})
    script.wait_for("ready")
    copies = {process.pid for process in script.survivors() if process.ppid() == script.process.pid}
    server = {pid for pid in copies if "fork server" in " ".join(psutil.Process(pid).cmdline())}
    copies -= server
    assert len(server) == 1
    assert len(copies) == bool(copy)
    script.send(signal.SIGKILL)
    script.process.wait()
    eventually(lambda: {process.pid for process in script.survivors()} <= copies, 2)
    eventually(lambda: not script.survivors(), 30)


def test_a_forked_copy_of_the_driver_leaves_the_fork_server_alone(driver: Driver) -> None:
    """It cannot start workers, closes nothing of ours, and says why."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            driver.server.kill(1, 0)
            driver.server.close()
            driver.server.start_worker(0, b"", [0])
        except LaunchWorkerError:
            status = 0 if driver.server.receive() == [] else 2
        finally:
            os._exit(status)
    assert describe_exit(os.waitpid(child, 0)[1]) == (0, None)
    with driver.start(0, "wait_for_end") as stream:
        assert stream.recv(5) == b"ready"
    assert driver.fate(0) == (0, None)


def test_close_works_where_children_are_reaped_by_others() -> None:
    """Programs that ignore SIGCHLD have the kernel reap; no error, nothing left."""
    previous = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        server = ForkServer()
        server.close()
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert is_gone(server.os_pid)


# -- starting the server


def test_a_program_that_is_no_python_is_refused_at_once() -> None:
    """The error names it."""
    with pytest.raises(LaunchWorkerError, match="/no/such/python"):
        ForkServer(executable="/no/such/python")


def test_stray_modules_and_closed_standard_streams_do_no_harm(run_script: RunScript, tmp_path: Path) -> None:
    """Modules of the current directory do not replace the standard library's; descriptors 0 to 2 may be closed."""
    (tmp_path / "socket.py").write_text("raise SystemExit('the wrong socket module')")
    text = """
        import os, sys
        sys.path.pop(0)
        for fd in (0, 1):
            os.close(fd)
        import pickle, socket
        from distpool.forkserver.client import ForkServer
        server = ForkServer(["support.forked"])
        ours, theirs = socket.socketpair()
        server.start_worker(0, pickle.dumps({"entry": "support.forked:wait_for_end"}), [theirs.fileno()])
        theirs.close()
        assert ours.recv(5) == b"ready"
        server.close()
        os._exit(0)
    """
    root = Path(__file__).parent
    code, _, err = run_script(text, folder=tmp_path, env={"PYTHONPATH": f"{root.parent}{os.pathsep}{root}"})
    assert (code, err) == (0, "")


def test_the_server_inherits_no_descriptor(driver: Driver) -> None:
    """Not even one that was made inheritable."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    second = ForkServer()
    os.close(write_end)
    with open(read_end) as stream:
        assert stream.read() == ""  # at once, while the second server lives
    second.close()


def test_wrong_numbers_of_descriptors_are_refused(driver: Driver) -> None:
    """A worker without a stream could never be heard of."""
    with pytest.raises(ValueError, match="descriptors"):
        driver.server.start_worker(0, b"", [])


# -- exits


def test_the_count_of_oom_kills_is_a_number_where_there_is_one() -> None:
    """On Linux there always is one."""
    count = oom_kills()
    assert count is None or count >= 0
    assert count is not None or not os.path.exists("/proc/vmstat")
