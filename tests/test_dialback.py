"""Workers that dial back, and their rooms: dialling, managers.dialback, .launches and .launcher."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool.errors import LaunchWorkerError
from distpool.managers.launcher import Launcher
from distpool.member import process_reader
from support import jobs
from support.dialback import Here, Irreplaceable, call_on, end, last_words, worker
from support.listeners import is_closed_by_other_side

if TYPE_CHECKING:
    from conftest import RunScript, StartScript

Eventually = Callable[..., None]
COMMAND = (sys.executable, "-m", "distpool", "--worker")


@pytest.fixture
def engine(no_cluster: None) -> Iterator[Callable[..., Here]]:
    """`engine(3, held=1)` makes a manager whose processes end with the test."""
    made: list[Here] = []

    def make(*args: Any, kind: type[Here] = Here, **options: Any) -> Here:
        made.append(kind(*args, **options))
        return made[-1]

    yield make
    pids = [pid for pid in distpool.workers() if pid != 1]
    if pids:
        distpool.rmprocs(*pids, waitfor=30)
    for manager in made:
        manager.end()


# -- joining -----------------------------------------------------------------------------------------------------------


def test_they_work_like_others(engine: Callable[..., Here]) -> None:
    """Calls, maps, references between workers, errors, large arguments; ids follow the idents."""
    pids = distpool.addprocs(engine(3), timeout=30)
    assert len(pids) == 3
    assert [distpool.remotecall_fetch(lambda: sys.argv[0], pid) for pid in pids] == [sys.argv[0]] * 3
    assert distpool.pmap(jobs.square, range(50)) == [x * x for x in range(50)]
    with pytest.raises(ValueError, match="boom"):
        distpool.remotecall_fetch(jobs.fail, pids[0])
    large = bytes(range(256)) * 10_000
    assert distpool.remotecall_fetch(jobs.identity, pids[1], bytearray(large)) == large
    future = distpool.remotecall(jobs.add, pids[0], 1, 2)
    assert distpool.remotecall_fetch(lambda: distpool.fetch(future), pids[2]) == 3
    assert distpool.procs(pids[0]) == [1, *pids], "one machine"


def test_ids_follow_idents(engine: Callable[..., Here]) -> None:
    """In whatever order they have come."""
    manager = engine(4, held=4)
    launched: list[list[int]] = []
    thread = threading.Thread(target=lambda: launched.append(distpool.addprocs(manager, timeout=30)))
    thread.start()
    while not manager.launches:
        thread.join(0.01)
    processes = [manager.begin(manager.launches[0], ident) for ident in (3, 1, 2, 0)]
    thread.join()
    os_pids = [distpool.remotecall_fetch(jobs.os_pid, pid) for pid in launched[0]]
    assert os_pids == [process.pid for process in (processes[3], processes[1], processes[2], processes[0])]


def test_they_look_like_the_driver(
    engine: Callable[..., Here], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directory, path, environment, preloaded modules; one core for libraries unless told otherwise."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "added")])
    options = {"dir": tmp_path, "env": {"CONF_E": "7"}, "preload": ["colorsys"], "timeout": 30}
    (pid,) = distpool.addprocs(engine(1), **options)

    def look() -> tuple[Any, ...]:
        facts = os.environ["CONF_E"], os.environ["OMP_NUM_THREADS"], "colorsys" in sys.modules
        return os.getcwd(), sys.path, *facts, sys.stdin.read()

    assert distpool.remotecall_fetch(look, pid) == (str(tmp_path), sys.path, "7", "1", True, "")


def test_where_files_are_not_shared(engine: Callable[..., Here], tmp_path: Path) -> None:
    """They stay where the engine has put them, with the path that they have there."""

    class Elsewhere(Here):
        shares_files = False

    (pid,) = distpool.addprocs(engine(1, kind=Elsewhere), timeout=30)
    assert distpool.remotecall_fetch(lambda: "added by the driver" in sys.path, pid) is False
    distpool.rmprocs(pid)
    (pid,) = distpool.addprocs(engine(1, kind=Elsewhere), dir=str(tmp_path), timeout=30)
    assert distpool.remotecall_fetch(os.getcwd, pid) == str(tmp_path), "asked for by name"


def test_over_tls(engine: Callable[..., Here], capfd: pytest.CaptureFixture[str]) -> None:
    """The connection and the output are encrypted; all works as without."""
    (pid,) = distpool.addprocs(engine(1), tls=True, timeout=30)
    assert distpool.pmap(jobs.square, range(20)) == [x * x for x in range(20)]
    distpool.remotecall_fetch(os.system, pid, "seq 3; echo done")
    _await_line(capfd, f"From worker {pid}:\tdone")


def test_one_port_has_one_kind_of_guests(engine: Callable[..., Here]) -> None:
    """A manager cannot be used with TLS and without at a time."""
    manager = engine(1)
    distpool.addprocs(manager, timeout=30)
    with pytest.raises(LaunchWorkerError, match="use another manager"):
        distpool.addprocs(manager, tls=True, timeout=30)


# -- elasticity --------------------------------------------------------------------------------------------------------


def test_late_ones_join_while_a_map_runs(engine: Callable[..., Here], eventually: Eventually) -> None:
    """addprocs returns when enough have come; the cluster, and the pool that follows it, grow later."""
    manager = engine(3, at_least=1, held=2)
    started: list[int] = []
    distpool.add_worker_started_callback(started.append, key="late")
    try:
        (first,) = distpool.addprocs(manager, timeout=30)
        assert manager.awaits_more
        pool = distpool.default_worker_pool()
        assert isinstance(pool, distpool.WorkerPool)
        who: set[int] = set()
        for number, pid in enumerate(pool.imap_unordered(lambda x: distpool.myid(), itertools.count())):
            who.add(pid)
            if number == 50:
                assert who == {first}
                for ident in (1, 2):
                    manager.begin(manager.launches[0], ident)
            if len(who) == 3:
                break
        assert sorted(who) == distpool.workers()
        eventually(lambda: len(started) == 3)
        assert sorted(started) == distpool.workers()
        assert not manager.awaits_more
    finally:
        distpool.remove_worker_started_callback("late")


def test_waiting_for_none(engine: Callable[..., Here], eventually: Eventually) -> None:
    """With at_least=0 addprocs returns at once."""
    manager = engine(2, at_least=0, held=2)
    assert distpool.addprocs(manager) == []
    manager.begin(manager.launches[0], "some")
    eventually(lambda: len(distpool.other_workers()) == 1)
    manager.close()
    assert not manager.awaits_more
    process = manager.begin(manager.launches[0], "other")
    assert distpool.remotecall_fetch(jobs.square, distpool.workers()[0], 3) == 9
    code, said = last_words(process)
    assert code == 1
    assert "turned away by the driver" in said
    assert "close() was called" in said


def test_too_few_have_come(engine: Callable[..., Here]) -> None:
    """The error counts those that are missing; those that have come stay; who is too late is turned away and ends."""
    manager = engine(3, held=2)
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, timeout=3)
    assert "2 of 3 workers of this machine did not come: not within 3 s; raise timeout=" in str(caught.value)
    assert len(caught.value.exceptions) == 2
    (pid,) = caught.value.pids
    assert distpool.remotecall_fetch(jobs.square, pid, 3) == 9
    code, said = last_words(manager.begin(manager.launches[0], 1))
    assert code == 1
    assert "its launch is over: not within 3 s" in said


def test_nobody_has_come(engine: Callable[..., Here]) -> None:
    """The port is closed then, and who comes after that ends."""
    manager = engine(1, held=1)
    with pytest.raises(distpool.CompositeException) as caught:
        distpool.addprocs(manager, timeout=0.2)
    assert "1 of 1 workers of this machine did not come" in str(caught.value)
    assert manager.stopped == [manager.launches[0].ticket]
    code, said = last_words(manager.begin(manager.launches[0], 0))
    assert code == 1
    assert "no driver at 127.0.0.1" in said


def test_an_engine_that_cannot_start(engine: Callable[..., Here]) -> None:
    """What `start` raises comes out of addprocs, and nothing is left."""

    class Broken(Here):
        def start(self, launch: Any) -> None:
            self.begin(launch, 0)
            raise LaunchWorkerError("no more machines")

    manager = engine(2, kind=Broken)
    with pytest.raises(LaunchWorkerError, match="no more machines"):
        distpool.addprocs(manager, timeout=30)
    assert last_words(manager.processes[0])[0] == 1
    assert distpool.workers() == [1]


def test_tickets_tell_launches_apart(engine: Callable[..., Here], eventually: Eventually) -> None:
    """Two launches in flight at one port; each worker joins the cluster that it was started for."""
    manager = engine(1, at_least=0, held=1)
    distpool.addprocs(manager)
    with distpool.WorkerPool(manager=manager) as pool:
        first, second = manager.launches
        assert first.address == second.address
        process = manager.begin(second, 0)
        assert pool.map(jobs.os_pid_for, [0]) == [process.pid]
        assert distpool.workers() == [1]
        process = manager.begin(first, 0)
        eventually(lambda: distpool.other_workers())
        assert distpool.remotecall_fetch(jobs.os_pid, distpool.workers()[0]) == process.pid


def test_who_is_too_many(engine: Callable[..., Here]) -> None:
    """The same ident twice, more than were asked for, a ticket of nobody's: turned away with the reason."""
    manager = engine(2, held=1, at_least=1)
    distpool.addprocs(manager, timeout=30)
    launch = manager.launches[0]
    assert "a worker 0 of its launch is here already" in last_words(manager.begin(launch, 0))[1]
    command = [*COMMAND, "--connect", launch.address, "--ticket"]
    assert "its launch is over" in last_words(worker(*command, "another", secret=launch.secret))[1]
    manager.begin(launch, 1)
    while len(distpool.workers()) < 2:
        threading.Event().wait(0.01)
    assert "all 2 workers of its launch have come" in last_words(manager.begin(launch, 2))[1]


def test_interrupted_while_it_waits(start_script: StartScript) -> None:
    """Ctrl-C during addprocs: those that have come end, the program goes on."""
    script = start_script(
        f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import distpool
        from support.dialback import Here, last_words
        manager = Here(2, held=1)
        class Told(Here):
            def start(self, launch):
                super().start(launch)
                print("started", flush=True)
        manager = Told(2, held=1)
        try:
            distpool.addprocs(manager)
        except KeyboardInterrupt:
            print("interrupted", last_words(manager.processes[0])[0], distpool.addprocs(1), manager.stopped != [])
        """
    )
    script.wait_for("started")
    script.send(signal.SIGINT)
    assert script.wait() == (0, "started\ninterrupted 1 [2] True\n", "")
    script.no_survivors()


# -- ends --------------------------------------------------------------------------------------------------------------


def test_the_port_is_closed_with_the_last_worker(engine: Callable[..., Here], eventually: Eventually) -> None:
    """And the engine is told once that nothing of the launch is needed any more."""
    manager = engine(2)
    pids = distpool.addprocs(manager, timeout=30)
    host, _, port = manager.launches[0].address.rpartition(":")
    distpool.rmprocs(pids[0], waitfor=30)
    with socket.create_connection((host, int(port)), timeout=30):
        pass
    distpool.rmprocs(pids[1], waitfor=30)
    assert [process.wait(30) for process in manager.processes] == [0, 0]

    def is_refused() -> bool:
        try:
            socket.create_connection((host, int(port)), timeout=30).close()
        except ConnectionRefusedError:
            return True
        return False

    eventually(is_refused)
    eventually(lambda: manager.stopped == [manager.launches[0].ticket])
    assert distpool.addprocs(manager, timeout=30) != [], "it can be used again"


@pytest.mark.parametrize("deed", ["identity", "block_for_ever"])
def test_none_outlives_its_driver(start_script: StartScript, deed: str) -> None:
    """SIGKILL for the driver ends workers, idle or busy."""
    script = start_script(
        f"""
        import os, sys, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import distpool
        from support import jobs
        from support.dialback import Here
        (pid,) = distpool.addprocs(Here(1))
        distpool.remote_do(jobs.{deed}, pid, *{[0] if deed == "identity" else []})
        print("ready", flush=True)
        time.sleep(1000)
        """
    )
    script.wait_for("ready")
    assert len(script.survivors()) >= 2
    script.send(signal.SIGKILL)
    script.no_survivors()


def test_a_death_is_told(engine: Callable[..., Here]) -> None:
    """The others go on."""
    first, second = distpool.addprocs(engine(2), timeout=30)
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(jobs.kill_self, first)
    assert distpool.workers() == [second]
    assert distpool.pmap(jobs.square, range(5)) == [0, 1, 4, 9, 16]


# -- strangers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "introduction",
    [b"no JSON", b"[]", b"{}", b'{"ticket": []}', b'{"ticket": "TICKET"}', b"\xff\xff" + b"x" * 100, b"9" * 1024],
)
def test_strange_introductions(
    engine: Callable[..., Here], introduction: bytes, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """Somebody who knows the secret and makes no sense is hung up on; the others join."""
    manager = engine(1, held=1, at_least=0)
    distpool.addprocs(manager)
    launch = manager.launches[0]
    with call_on(launch.address, introduction.replace(b"TICKET", launch.ticket.encode())) as stream:
        assert is_closed_by_other_side(stream)
    eventually(lambda: caplog.text)
    manager.begin(launch, 0)
    eventually(lambda: distpool.other_workers())


def test_output_of_nobody(engine: Callable[..., Here]) -> None:
    """A connection for the output of a worker that is not there is refused."""
    manager = engine(1, held=1, at_least=0)
    distpool.addprocs(manager)
    launch = manager.launches[0]
    text = json.dumps({"ticket": launch.ticket, "output_of": 7}).encode()
    with call_on(launch.address, text) as stream:
        assert b"has no place here" in stream.recv(1000)
        assert is_closed_by_other_side(stream)


def test_a_wrong_cookie(engine: Callable[..., Here], caplog: pytest.LogCaptureFixture) -> None:
    """Is refused on both sides, each with its reason."""
    manager = engine(1, held=1, at_least=0)
    distpool.addprocs(manager)
    launch = manager.launches[0]
    code, said = last_words(worker(*launch.command(), secret="another"))
    assert code == 1
    assert "not admitted by the driver" in said
    assert "does not know the cluster's secret" in caplog.text


def test_no_outward_port_without_a_secret(engine: Callable[..., Here], monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is started."""
    cookie = distpool.cluster_cookie()
    manager = engine(1, bind_addr="0.0.0.0")
    try:
        distpool.cluster_cookie("")
        with pytest.raises(LaunchWorkerError, match="empty cookie"):
            distpool.addprocs(manager)
    finally:
        distpool.cluster_cookie(cookie)
    assert manager.launches == []


@pytest.mark.parametrize("bind_addr", ["192.0.2.1", "127.0.0.1:PORT"])
def test_an_address_that_cannot_be_had(engine: Callable[..., Here], bind_addr: str) -> None:
    """Told with the address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        manager = engine(1, bind_addr=bind_addr.replace("PORT", str(taken.getsockname()[1])))
        with pytest.raises(LaunchWorkerError, match="cannot listen on bind_addr="):
            distpool.addprocs(manager)


@pytest.mark.parametrize("options", [{"count": 0}, {"count": True}, {"count": 2, "at_least": 3}, {"count": 2.5}])
def test_numbers_that_make_no_sense(options: dict[str, Any]) -> None:
    """Refused by the constructor."""
    with pytest.raises(ValueError, match=r"number of workers|at_least"):
        Here(**options)


# -- a worker without its driver ---------------------------------------------------------------------------------------


def test_a_worker_that_nobody_answers() -> None:
    """Somebody listens there and says nothing: it ends within its time limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        process = worker(*COMMAND, "--connect", address, "--ticket", "t", secret="s", DISTPOOL_WORKER_TIMEOUT="0.5")
        code, said = last_words(process)
    assert code == 1
    assert "did not finish the handshake in time" in said


def test_a_worker_without_a_cookie() -> None:
    """It says so and ends, before it dials."""
    process = worker(*COMMAND, "--connect", "127.0.0.1:9", "--ticket", "t")
    code, said = last_words(process)
    assert code == 1
    assert "no cookie came on standard input" in said


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o644, "others may read"), (0o660, "others may read"), (None, "cannot read")]
)
def test_a_cookie_file_must_be_private(tmp_path: Path, mode: int | None, reason: str) -> None:
    """One that others can read is refused, and so is one that is not there."""
    path = tmp_path / "cookie"
    if mode is not None:
        path.write_text("secret\n")
        path.chmod(mode)
    code, said = last_words(worker(*COMMAND, "--connect", "127.0.0.1:9", "--ticket", "t", "--cookie-file", str(path)))
    assert code == 1
    assert reason in said
    assert str(path) in said


def test_a_cookie_file_of_ones_own(engine: Callable[..., Here], tmp_path: Path, eventually: Eventually) -> None:
    """The way for launchers that do not pass standard input on."""
    manager = engine(1, held=1, at_least=0)
    distpool.addprocs(manager)
    launch = manager.launches[0]
    path = tmp_path / "cookie"
    path.touch(mode=0o600)
    path.write_text(launch.secret + "\n")
    manager.processes.append(worker(*launch.command("--cookie-file", str(path))))
    eventually(lambda: distpool.other_workers())


@pytest.mark.parametrize(
    "words",
    [["--worker", "--connect", "127.0.0.1:9"], ["--worker=secret", "--connect", "127.0.0.1:9", "--ticket", "t"]],
)
def test_command_lines_that_make_no_sense(words: list[str]) -> None:
    """No ticket; a cookie where everybody can read it."""
    code, said = last_words(worker(sys.executable, "-m", "distpool", *words))
    assert code == 2
    assert "--connect goes with --worker, without a cookie, and with --ticket" in said


# -- output ------------------------------------------------------------------------------------------------------------


def _await_line(capfd: pytest.CaptureFixture[str], wanted: str) -> list[str]:
    """Wait until a line is shown; return all that were."""
    shown = ""
    while wanted not in shown:
        threading.Event().wait(0.01)
        shown += capfd.readouterr().out
    return [line.strip() for line in shown.splitlines()]


def test_output_is_shown_for_each_worker(engine: Callable[..., Here], capfd: pytest.CaptureFixture[str]) -> None:
    """Of Python and of programs, of both streams, in order, and what was written just before a crash."""
    first, second = distpool.addprocs(engine(2), timeout=30)

    def talk() -> None:
        print("from Python")
        print("from stderr", file=sys.stderr)
        os.system("echo from C; printf 'no line end'")
        jobs.kill_self()

    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(talk, first)
    lines = _await_line(capfd, f"From worker {first}:\tno line end")
    expected = ["from Python", "from stderr", "from C", "no line end"]
    assert [line for line in lines if line.startswith("From")] == [f"From worker {first}:\t{text}" for text in expected]
    distpool.remotecall_fetch(print, second, "and the other")
    _await_line(capfd, f"From worker {second}:\tand the other")


def test_where_the_engine_sends_output_does_not_matter(
    engine: Callable[..., Here], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A file, as batch systems have it, or nothing at all."""

    class IntoFiles(Here):
        def start(self, launch: Any) -> None:
            self.launches.append(launch)
            for words in (f"> {tmp_path}/log 2>&1", ">&- 2>&-"):
                command = f'exec "$@" {words}'
                self.processes.append(worker("sh", "-c", command, "sh", *launch.command(), secret=launch.secret))

    pids = distpool.addprocs(engine(2, kind=IntoFiles), timeout=30)
    for pid in pids:
        distpool.remotecall_fetch(print, pid, "heard all the same")
        _await_line(capfd, f"From worker {pid}:\theard all the same")


def test_much_output(engine: Callable[..., Here], capfd: pytest.CaptureFixture[str]) -> None:
    """More than is taken at a time comes complete and in order."""
    (pid,) = distpool.addprocs(engine(1), output="raw", timeout=30)
    distpool.remotecall_fetch(os.system, pid, "seq 400000; echo finished")
    assert _await_line(capfd, "finished") == [*map(str, range(1, 400_001)), "finished"]


def test_no_output(engine: Callable[..., Here], capfd: pytest.CaptureFixture[str]) -> None:
    """It goes nowhere if nobody wants it."""
    (pid,) = distpool.addprocs(engine(1), output="none", timeout=30)
    distpool.remotecall_fetch(os.system, pid, "echo nobody hears this")
    is_null = distpool.remotecall_fetch(lambda: os.path.samestat(os.fstat(1), os.stat(os.devnull)), pid)
    assert is_null
    assert "nobody hears" not in capfd.readouterr().out


# -- pools -------------------------------------------------------------------------------------------------------------


def test_a_pool_over_a_manager(engine: Callable[..., Here], eventually: Eventually) -> None:
    """Initialised, replaced when they die, ended with the pool."""
    manager = engine(2)
    with distpool.WorkerPool(manager=manager, initializer=os.putenv, initargs=("X", "1")) as pool:
        assert len(pool.workers()) == 2
        assert distpool.workers() == [1], "they are the pool's own"
        assert pool.map(jobs.square, range(100)) == [x * x for x in range(100)]
        with pytest.raises(distpool.ProcessExitedException):
            pool.submit(jobs.kill_self).result()
        eventually(lambda: len(pool.workers()) == 2)
        assert len(manager.processes) == 3
        assert pool.map(jobs.square, range(100)) == [x * x for x in range(100)]
    assert sorted(process.wait(30) for process in manager.processes) == [-9, 0, 0]


def test_a_pool_replaces_those_that_have_done_their_share(engine: Callable[..., Here]) -> None:
    """max_tasks_per_child works with managers that can start one in another's place."""
    manager = engine(1)
    with distpool.WorkerPool(manager=manager, max_tasks_per_child=4) as pool:
        assert len(set(pool.map(jobs.os_pid_for, range(12)))) == 3
    with pytest.raises(ValueError, match="cannot start a worker in another's place"):
        distpool.WorkerPool(manager=engine(1, kind=Irreplaceable), max_tasks_per_child=4)


def test_a_pool_that_shrinks(engine: Callable[..., Here]) -> None:
    """A manager that cannot replace a worker: the pool goes on with the others, and fails with the last."""
    with distpool.WorkerPool(manager=engine(2, kind=Irreplaceable)) as pool:
        for left in (1, 0):
            with pytest.raises(distpool.ProcessExitedException):
                pool.submit(jobs.kill_self).result()
            assert len(pool.workers()) == left
            if left:
                assert pool.map(jobs.square, range(10)) == [x * x for x in range(10)]
        with pytest.raises(distpool.ProcessExitedException):
            pool.submit(jobs.square, 1).result()


def test_a_pool_that_grows(engine: Callable[..., Here], eventually: Eventually) -> None:
    """It takes work at once, and each worker as it comes."""
    manager = engine(2, held=2, at_least=0)
    with distpool.WorkerPool(manager=manager) as pool:
        futures = [pool.submit(jobs.square, x) for x in range(10)]
        assert pool.workers() == []
        manager.begin(manager.launches[0], 0)
        assert [future.result() for future in futures] == [x * x for x in range(10)]
        manager.begin(manager.launches[0], 1)
        eventually(lambda: len(pool.workers()) == 2)


def test_a_pool_to_which_nobody_comes(engine: Callable[..., Here]) -> None:
    """When it is known that nobody will, tasks that wait fail with the reason."""
    manager = engine(2, held=2, at_least=0)
    with distpool.WorkerPool(manager=manager) as pool:
        future = pool.submit(jobs.square, 2)
        manager.no_more_come(manager.launches[0], "the machines are on fire")
        with pytest.raises(LaunchWorkerError, match="on fire"):
            future.result()


def test_a_pool_ends_while_some_are_to_come(engine: Callable[..., Here]) -> None:
    """They are not waited for, and who comes later is turned away."""
    manager = engine(2, held=1, at_least=1)
    with distpool.WorkerPool(manager=manager) as pool:
        assert pool.map(jobs.square, [3]) == [9]
    code, said = last_words(manager.begin(manager.launches[0], 1))
    assert code == 1
    assert "no driver at" in said or "turned away" in said


def test_a_pool_takes_one_kind_of_workers(engine: Callable[..., Here]) -> None:
    """pids, processes=, manager= and machines= exclude each other."""
    with pytest.raises(TypeError, match="takes one of pids, processes=, manager= and machines="):
        distpool.WorkerPool(processes=2, manager=engine(1))
    with pytest.raises(TypeError, match="give processes= or manager="):
        distpool.WorkerPool([1], options={"tls": True})


# -- launchers ---------------------------------------------------------------------------------------------------------


def test_a_launcher_says_what_it_says(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines are shown with its name, kept, or taken by whoever wants them; its end is noticed."""
    heard: list[str] = []

    def hear(line: str) -> bool:
        heard.append(line)
        return line.startswith("for us")

    gone = threading.Event()
    script = "read word; echo $word; echo for us alone; echo complaint >&2; exit 3"
    launcher = Launcher(["sh", "-c", script], process_reader(), says=b"hello\n", on_line=hear)
    status: list[object] = []
    launcher.watch(lambda code, signum: (status.extend((code, signum)), gone.set()))  # type: ignore[func-returns-value]
    assert gone.wait(30)
    assert status == [3, None]
    assert launcher.last_words(30) == "hello\ncomplaint"
    assert heard == ["hello", "for us alone", "complaint"]
    shown = ""
    while "complaint" not in shown:
        threading.Event().wait(0.01)
        shown += capfd.readouterr().err
    assert shown == "      From sh:\thello\n      From sh:\tcomplaint\n"


def test_a_launcher_that_is_not_there() -> None:
    """Told with its name and the remedy."""
    with pytest.raises(LaunchWorkerError, match=r"cannot start '/no/such/program'.*is it installed"):
        Launcher(["/no/such/program"], process_reader())


@pytest.mark.skipif(sys.platform != "linux", reason="the lifeline is Linux's")
def test_a_launcher_ends_with_its_driver(start_script: StartScript) -> None:
    """However that ends: it gets SIGTERM, so that it can take along what it has started."""
    script = start_script(
        """
        import time
        from distpool.managers.launcher import Launcher
        from distpool.member import process_reader
        command = "trap '' PIPE; trap 'echo told > told; exit' TERM; echo ready; while :; do sleep 0.01; done"
        launcher = Launcher(["sh", "-c", command], process_reader(), on_line=lambda line: print(line, flush=True))
        time.sleep(1000)
        """
    )
    script.wait_for("ready")
    script.send(signal.SIGKILL)
    script.no_survivors()
    assert (script.folder / "told").read_text() == "told\n"


def test_a_launcher_that_does_not_obey(run_script: RunScript) -> None:
    """At the end of the program it is killed when SIGTERM does not help."""
    done = run_script(
        """
        from distpool.managers.launcher import Launcher
        from distpool.member import process_reader
        import threading
        ready = threading.Event()
        command = "trap '' TERM; echo ready; while :; do sleep 0.01; done"
        launcher = Launcher(["sh", "-c", command], process_reader(), on_line=lambda line: ready.set() or True)
        ready.wait(30)
        """
    )
    assert done == (0, "", "")


def test_ends_leave_no_processes() -> None:
    """What these tests start can be ended: `end` of a worker that waits."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert end(worker(*COMMAND, "--connect", address, "--ticket", "t", secret="s")) == ""
