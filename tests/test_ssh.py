"""Workers on other machines, through a real ssh server on loopback: one machine poses as several.

The server, its keys and the names that lead to it are in ``support.sshd``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import distpool
from distpool import CompositeException, LaunchWorkerError, addprocs, remotecall_fetch, rmprocs
from distpool.cores import usable_cores
from support import jobs
from support.fake_ssh import FakeSsh
from support.sshd import Sshd

if TYPE_CHECKING:
    from conftest import RunScript, StartScript

Eventually = Callable[..., None]

pytestmark = pytest.mark.usefixtures("no_cluster")

ROOT = Path(__file__).parent.parent


def relay(f: Any, pid: int, *args: Any) -> Any:
    """Runs in a worker: call another one."""
    return distpool.remotecall_fetch(f, pid, *args)


def children(name: str) -> list[psutil.Process]:
    """The programs of a name that this process has started, and that have not ended."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == name:
                found.append(child)
    return found


def ssh_clients() -> list[psutil.Process]:
    """The ssh programs among them."""
    return children("ssh")


# -- joining -----------------------------------------------------------------------------------------------------------


def test_nine_workers_on_three_machines(sshd: Sshd, eventually: Eventually) -> None:
    """Every new worker sees all new workers; a worker may have process 1 remove one; nothing of ssh is left."""
    pids = addprocs([("h1", 4), "h2", ("h3", 3), "h2"], sshflags=sshd.flags)
    assert len(pids) == 9
    for pid in pids:
        assert remotecall_fetch(distpool.workers, pid) == pids
    assert sorted(len(distpool.procs(pid)) for pid in pids) == [2, 2, 3, 3, 3, 4, 4, 4, 4]
    assert len(ssh_clients()) == 3
    remotecall_fetch(relay, pids[0], rmprocs, 1, pids[1])
    assert remotecall_fetch(distpool.workers, pids[2]) == [pids[0], *pids[2:]]
    rmprocs(pids)
    eventually(lambda: ssh_clients() == [])


def test_everything_works_everywhere(sshd: Sshd) -> None:
    """Calls, errors, references, channels and maps among local and remote workers."""
    pids = [*addprocs(1), *addprocs([("h1", 2), "h2"], sshflags=sshd.flags)]
    for one in pids:
        for other in pids:
            if one != other:
                assert remotecall_fetch(relay, one, distpool.myid, other) == other
    with pytest.raises(ValueError, match="boom") as caught:
        remotecall_fetch(jobs.fail, pids[-1])
    assert isinstance(caught.value, distpool.RemoteException)
    channel: distpool.RemoteChannel[int] = distpool.RemoteChannel(lambda: distpool.Channel(4), pid=pids[1])
    distpool.remotecall_wait(distpool.put, pids[-1], channel, 7)
    assert remotecall_fetch(distpool.take, pids[0], channel) == 7
    large = bytes(range(256)) * 20_000
    assert remotecall_fetch(jobs.identity, pids[-1], large) == large
    assert distpool.pmap(jobs.square, range(50)) == [x * x for x in range(50)]


def test_auto_and_options(sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker for each core; its directory, variables, flags and preloaded modules."""
    monkeypatch.setenv("DISTPOOL_SAMPLE", "forwarded")
    monkeypatch.setenv("OTHER_SAMPLE", "kept here")
    pids = addprocs(
        [("h1", "auto")], sshflags=sshd.flags, dir=tmp_path, env={"CONF_E": "7"}, exeflags="-B", preload=["colorsys"]
    )
    assert len(pids) == usable_cores()

    def look() -> tuple[Any, ...]:
        names = ("CONF_E", "DISTPOOL_SAMPLE", "OTHER_SAMPLE", "OMP_NUM_THREADS")
        values = [os.environ.get(name) for name in names]
        return os.getcwd(), values, sys.dont_write_bytecode, "colorsys" in sys.modules

    expected = (str(tmp_path), ["7", "forwarded", None, "1"], True, True)
    assert [remotecall_fetch(look, pid) for pid in pids] == [expected] * len(pids)


def test_a_virtual_environment(sshd: Sshd, monkeypatch: pytest.MonkeyPatch) -> None:
    """venv= names its folder; threads of libraries are left alone if that is wanted."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (pid,) = addprocs(["h1"], sshflags=sshd.flags, venv=sys.prefix, enable_threaded_blas=True)
    assert remotecall_fetch(lambda: sys.prefix, pid) == sys.prefix
    assert remotecall_fetch(jobs.environment, pid, "OMP_NUM_THREADS") is None


@pytest.mark.skipif(shutil.which("tcsh") is None, reason="tcsh is not installed (apt-get install tcsh)")
def test_a_login_shell_of_the_other_family(sshd: Sshd, tmp_path: Path) -> None:
    """A real tcsh takes the command apart: every sign of names and values arrives as it is, and what fails is told."""
    there = tmp_path / "a 'folder'! $HOME `date` {a,b} *"
    there.mkdir()
    values = {
        "PLAIN": "x",
        "STRANGE": 'it\'s new! $HOME `date` "~" \\ {a,b} * [x] ?; & | <>',
        "LINES": "one\ntwo!\n",
        "NONE": "",
    }
    (pid,) = addprocs(["tcsh"], sshflags=sshd.flags, shell="csh", env=values, dir=there)
    assert remotecall_fetch(os.getcwd, pid) == str(there)
    assert [remotecall_fetch(os.getenv, pid, name) for name in values] == list(values.values())
    rmprocs(pid)
    with pytest.raises(CompositeException) as caught:
        addprocs(["tcsh"], sshflags=sshd.flags, shell="csh", dir="/no/such/directory")
    assert "dir=" in str(caught.value.exceptions[0])
    with pytest.raises(CompositeException) as caught:
        addprocs(["tcsh"], sshflags=sshd.flags, shell="csh", exename="/no/such/python")
    assert "exename=" in str(caught.value.exceptions[0])


def test_a_talkative_login(sshd: Sshd, capfd: pytest.CaptureFixture[str]) -> None:
    """What a login shell prints does no harm, and is shown."""
    (pid,) = addprocs(["chatty"], sshflags=sshd.flags)
    assert remotecall_fetch(distpool.myid, pid) == pid
    rmprocs(pid)
    shown = capfd.readouterr().out
    for text in ("Welcome to chatty!", "no line end", "mind the gap"):
        assert f"From worker startup:\t{text}\n" in shown


def test_the_readmes_main_job(sshd: Sshd) -> None:
    """A pool over three machines finds what one process finds."""
    census = _load(ROOT / "docs" / "examples" / "source_census.py")
    paths = sorted(str(path) for path in (ROOT / "distpool").rglob("*.py"))
    pids = addprocs(["h1", "h2", "h3"], sshflags=sshd.flags)
    pool = distpool.WorkerPool(pids)
    assert census.collected(pool.imap_unordered(census.examine, paths)) == census.collected(census.census_here(paths))


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- tunnels -----------------------------------------------------------------------------------------------------------


def test_tunnels(sshd: Sshd, eventually: Eventually) -> None:
    """Driver and workers talk through ssh; workers listen on loopback only; the clients end with their workers."""
    pids = addprocs([("h1", 3), "h2"], sshflags=sshd.flags, tunnel=True, max_parallel=2)
    assert [remotecall_fetch(distpool.myid, pid) for pid in pids] == pids
    assert remotecall_fetch(relay, pids[0], distpool.myid, pids[3]) == pids[3]
    large = bytes(range(256)) * 20_000
    assert remotecall_fetch(jobs.identity, pids[0], large) == large
    assert len(ssh_clients()) == 2 + 4
    rmprocs(next(pid for pid in pids if len(distpool.procs(pid)) == 3))  # the login is its neighbours', too
    eventually(lambda: len(ssh_clients()) == 2 + 3)
    rmprocs(pids)
    eventually(lambda: ssh_clients() == [])


def test_tunnels_that_share_a_connection(sshd: Sshd, eventually: Eventually) -> None:
    """One connection for each machine, whose socket is there as long as the workers are."""

    def sockets() -> list[Path]:
        return list(Path("~/.ssh").expanduser().glob(f"distpool-{os.getpid()}-*"))

    logins = sshd.log.read_text().count("Accepted publickey")
    pids = addprocs([("h1", 3), "h2"], sshflags=sshd.flags, tunnel=True, multiplex=True)
    assert [remotecall_fetch(distpool.myid, pid) for pid in pids] == pids
    assert len(sockets()) == 2
    assert sshd.log.read_text().count("Accepted publickey") == logins + 2
    rmprocs(pids)
    eventually(lambda: sockets() == [], timeout=10)


def test_a_tunnel_that_cannot_be_opened(sshd: Sshd, tmp_path: Path, eventually: Eventually) -> None:
    """The second login fails: its words are in the error, and the worker that cannot be reached is ended."""
    program = tmp_path / "half-an-ssh"
    program.write_text(
        '#!/bin/sh\ncase " $* " in *" -W "*) echo "no tunnels today" >&2; exit 9;; esac\nexec ssh "$@"\n'
    )
    program.chmod(0o755)
    with pytest.raises(CompositeException) as caught:
        addprocs(["h1"], ssh=str(program), sshflags=sshd.flags, tunnel=True)
    assert "no tunnels today" in str(caught.value.exceptions[0])
    eventually(lambda: ssh_clients() == [])


# -- failures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "options", "said", "remedy"),
    [
        ("stranger", {}, "Host key verification failed", "StrictHostKeyChecking"),
        ("locked", {}, "Permission denied (publickey)", "ssh-copy-id"),
        ("nobody-there", {}, "Connection refused", "check the port"),
        ("full", {}, "No space left on device", "free some"),
        ("h1", {"exename": "/no/such/python"}, "/no/such/python", "exename="),
        ("h1", {"dir": "/no/such/directory"}, "/no/such/directory", "dir="),
        ("h1", {"exename": [sys.executable, "-I", "-S"]}, "No module named distpool", "install distpool"),
        ("h1", {"exeflags": "--no-such-flag"}, "no-such-flag", "exeflags="),
        ("h1", {"exename": "/bin/cat"}, "invalid option", "no Python"),
        ("h1", {"preload": ["no_such_module"]}, "no_such_module", "preload="),
        ("h1", {"shell": "csh"}, "syntax error", "shell="),
        ("h1", {"sshflags": "-Q nonsense"}, "nonsense", "by hand what ssh needs: ssh h1 true"),
        ("h1 203.0.113.1", {}, "cannot listen on 203.0.113.1", "an address of that machine"),
    ],
)
def test_a_login_that_fails(sshd: Sshd, machine: str, options: dict[str, Any], said: str, remedy: str) -> None:
    """The error names the machine, has the other side's own words, and says what to do."""
    with pytest.raises(CompositeException) as caught:
        addprocs([(machine, 2)], **{"sshflags": sshd.flags, **options})
    (error,) = caught.value.exceptions
    assert isinstance(error, LaunchWorkerError)
    text = str(error)
    assert text.startswith(f"{machine}: ")
    what_came, _, what_to_do = text.partition("what to do: ")
    assert said in what_came
    assert remedy in what_to_do
    assert distpool.workers() == [1]


@pytest.mark.parametrize(
    ("start_up", "said"),
    [
        ("exit 0", "nothing came from there"),
        ("ulimit -n 12", "cannot host 8 workers: [Errno 24] Too many open files"),
        ("yes banner | head -2000", "more than 1000 lines"),
        (r"printf '\033[2Jmind\n'; head -c 2000000 /dev/zero", "more than 1048576 bytes"),
    ],
)
def test_a_login_shell_that_is_in_the_way(tmp_path: Path, start_up: str, said: str) -> None:
    """What its start-up files do may keep workers from starting: that is said, briefly and in plain signs."""
    fake = FakeSsh(tmp_path, start_up)
    with pytest.raises(CompositeException) as caught:
        addprocs([("joe@h1:2222", 8)], ssh=str(fake.program))
    text = str(caught.value.exceptions[0])
    assert said in text
    assert text.count("\n") <= 25
    assert text.replace("\n", "").isprintable()
    if "Errno" in said:
        assert "what to do: start fewer workers there" in text
    else:
        assert "start-up file" in text
        assert "ssh -p 2222 joe@h1 python3 -m distpool --version" in text


@pytest.mark.parametrize("on_failure", ["raise", "warn", "rollback"])
def test_the_healthy_machines(sshd: Sshd, on_failure: str) -> None:
    """Those that can be reached join; the others are told of, each with its own error."""
    machines: list[str | tuple[str, int | str]] = ["locked", ("h1", 2), "nobody-there", "h2"]
    if on_failure == "warn":
        with pytest.warns(RuntimeWarning, match=r"(?s)locked: .*nobody-there: |nobody-there: .*locked: "):
            pids = addprocs(machines, sshflags=sshd.flags, on_failure=on_failure)
    else:
        with pytest.raises(CompositeException) as caught:
            addprocs(machines, sshflags=sshd.flags, on_failure=on_failure)
        assert sorted(str(error).partition(":")[0] for error in caught.value.exceptions) == ["locked", "nobody-there"]
        pids = caught.value.pids
    assert len(pids) == (0 if on_failure == "rollback" else 3)
    assert [pid for pid in distpool.procs() if pid != 1] == pids
    assert distpool.pmap(jobs.square, range(9)) == [x * x for x in range(9)]


def test_another_version(sshd: Sshd, tmp_path: Path) -> None:
    """A machine with another distpool or Python is told of with both versions, before anything is dialled."""
    python = tmp_path / "python"
    header = '{"version": 1, "distpool": "0.0.1", "python": "cpython 3.6", "addresses": [["127.0.0.1", 1]]}'
    python.write_text(f"#!/bin/sh\necho 'distpool_host:{header}'\nexec cat\n")
    python.chmod(0o755)
    with pytest.raises(CompositeException) as caught:
        addprocs(["h1"], sshflags=sshd.flags, exename=str(python))
    text = str(caught.value.exceptions[0])
    assert f"h1: distpool 0.0.1 there and distpool {distpool.__version__} here" in text
    assert "what to do: name a Python with the same versions" in text
    assert "nothing came" not in text


def test_a_login_that_takes_too_long(tmp_path: Path, eventually: Eventually) -> None:
    """Is given up in time, and nothing of it is left; another machine that was quicker has joined."""
    fake = FakeSsh(tmp_path, 'case " $* " in *" slow "*) echo "please hold the line"; exec sleep 1000;; esac')
    begin = time.monotonic()
    with pytest.raises(CompositeException) as caught:
        addprocs(["slow", "quick"], ssh=str(fake.program), timeout=3)
    assert time.monotonic() - begin < 30
    (error,) = caught.value.exceptions
    assert "timed out" in str(error)
    assert "please hold the line" in str(error)
    assert len(caught.value.pids) == 1
    rmprocs(caught.value.pids)
    eventually(lambda: children("sleep") == [])


def test_an_interrupt_ends_the_logins(start_script: StartScript, tmp_path: Path) -> None:
    """Ctrl-C during addprocs: the program goes on, and the logins that it waited for are gone."""
    fake = FakeSsh(tmp_path, f"echo begun > {tmp_path}/begun; exec sleep 1000")
    script = start_script(
        f"""
        import distpool
        try:
            distpool.addprocs(["h"], ssh={str(fake.program)!r})
        except KeyboardInterrupt:
            print("interrupted", distpool.addprocs(1), flush=True)
        """
    )
    while not (tmp_path / "begun").exists():
        assert script.process.poll() is None
        time.sleep(0.01)
    script.send(signal.SIGINT)
    assert script.wait() == (0, "interrupted [2]\n", "")
    script.no_survivors()


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deed", "exit_code", "signum"), [(jobs.vanish, 3, None), (jobs.segfault, None, signal.SIGSEGV)]
)
def test_a_death_is_told(sshd: Sshd, deed: Any, exit_code: int | None, signum: int | None) -> None:
    """Exit code or signal, as for a local worker; what it had sent before counts, and its neighbours live on."""
    first, second = addprocs([("h1", 2)], sshflags=sshd.flags)
    channel: distpool.RemoteChannel[bytes] = distpool.RemoteChannel(lambda: distpool.Channel(1))
    with pytest.raises(distpool.ProcessExitedException) as caught:
        remotecall_fetch(lambda: (channel.put(bytes(300_000)), deed()), first)
    assert (caught.value.worker_id, caught.value.exit_code, caught.value.signal) == (first, exit_code, signum)
    assert len(channel.take()) == 300_000
    assert remotecall_fetch(distpool.myid, second) == second


def test_what_workers_start_ends_with_them(sshd: Sshd) -> None:
    """A program that a worker has started does not outlive it."""
    (pid,) = addprocs(["h1"], sshflags=sshd.flags)
    child = psutil.Process(
        remotecall_fetch(lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid, pid)
    )
    rmprocs(pid)
    child.wait(10)


def test_rmprocs_of_one_that_is_stuck(sshd: Sshd, caplog: pytest.LogCaptureFixture) -> None:
    """One that does not obey is killed by its host."""
    (pid,) = addprocs(["h1"], sshflags=sshd.flags)
    process = psutil.Process(remotecall_fetch(os.getpid, pid))
    process.send_signal(signal.SIGSTOP)
    rmprocs(pid, waitfor=1)
    process.wait(10)
    assert "it is killed" in caplog.text


def test_a_login_that_breaks(sshd: Sshd) -> None:
    """Its workers end with it, and whoever waits for them is told why."""
    first, second = *addprocs(["h1"], sshflags=sshd.flags), *addprocs(["h2"], sshflags=sshd.flags)
    process = psutil.Process(remotecall_fetch(os.getpid, first))
    running = distpool.remotecall(jobs.block_for_ever, first)
    (client,) = [child for child in ssh_clients() if "h1" in child.cmdline()]
    client.kill()
    with pytest.raises(distpool.ProcessExitedException):
        running.fetch()
    process.wait(10)
    assert remotecall_fetch(distpool.myid, second) == second


DRIVER = """
import os, sys, distpool
sys.path.insert(0, {tests!r})
from support import jobs
local, = distpool.addprocs(1)
first, second = distpool.addprocs([("h1", 2)], sshflags={flags!r}, tunnel={tunnel!r}, multiplex=True)
distpool.remote_do(jobs.{deed}, first)
print("ready", distpool.remotecall_fetch(os.getpid, second), flush=True)
jobs.block_for_ever()
"""


@pytest.mark.parametrize(("deed", "tunnel"), [("block_for_ever", True), ("hold_interpreter", False)])
def test_nothing_outlives_a_killed_driver(start_script: StartScript, sshd: Sshd, deed: str, tunnel: bool) -> None:
    """SIGKILL for the driver ends its workers elsewhere, busy or holding the interpreter in C code, and all of ssh."""
    text = DRIVER.format(tests=str(Path(__file__).parent), flags=sshd.flags, deed=deed, tunnel=tunnel)
    script = start_script(text)
    script.wait_for("ready")
    assert len(script.survivors()) >= 6, "driver, fork server, local worker, ssh, host, two workers"
    script.send(signal.SIGKILL)
    script.no_survivors(timeout=10)
    assert list(Path("~/.ssh").expanduser().glob(f"distpool-{script.process.pid}-*")) == []


def test_a_driver_that_ends_takes_them_along(run_script: RunScript, sshd: Sshd) -> None:
    """The end of the program is in good order: exit handlers of workers run, their last words are shown."""
    done = run_script(
        f"""
        import distpool
        pids = distpool.addprocs(["h1", ("h2", 2)], sshflags={sshd.flags!r}, output="raw")
        def promise():
            import atexit
            atexit.register(print, "last words")
        for pid in pids:
            distpool.remotecall_fetch(promise, pid)
        """
    )
    assert done == (0, "last words\n" * 3, "")


# -- interrupts --------------------------------------------------------------------------------------------------------


def search_for_long() -> None:
    """A task in C code that keeps the interpreter, but looks for signals now and then."""
    import re

    re.match("(a?){40}a{40}", "a" * 40)


@pytest.mark.parametrize("deed", [jobs.block_for_ever, search_for_long])
def test_interrupts(sshd: Sshd, deed: Callable[[], None]) -> None:
    """A worker that waits, and one whose interpreter is held so that it reads no message, but a signal reaches it."""
    (pid,) = addprocs(["h1"], sshflags=sshd.flags)
    started: distpool.RemoteChannel[int] = distpool.RemoteChannel(lambda: distpool.Channel(1))

    def say_and_run() -> None:
        started.put(1)
        deed()

    running = distpool.remotecall(say_and_run, pid)
    started.take()
    distpool.interrupt(pid)
    with pytest.raises(distpool.RemoteException) as caught:
        running.fetch(timeout=20)
    assert isinstance(caught.value.captured.ex, KeyboardInterrupt)
    assert remotecall_fetch(distpool.myid, pid) == pid


# -- output ------------------------------------------------------------------------------------------------------------


def test_output(sshd: Sshd, capfd: pytest.CaptureFixture[str]) -> None:
    """Lines of Python and of programs, both streams apart, each with its worker's number; a flood, too."""
    pids = addprocs([("h1", 2)], sshflags=sshd.flags)

    def talk() -> None:
        print("from Python")
        print("to stderr", file=sys.stderr)
        os.system("printf 'no line end'")

    for pid in pids:
        remotecall_fetch(talk, pid)
    remotecall_fetch(lambda: print("x" * 3_000_000 + "\nafter the flood"), pids[0])
    rmprocs(pids)
    out, err = capfd.readouterr()
    for pid in pids:
        assert f"      From worker {pid}:\tfrom Python\n" in out
        assert f"      From worker {pid}:\tto stderr\n" in err
        assert f"      From worker {pid}:\tno line end" in out
    assert out.count("x" * 1000) >= 3000 - 3
    assert "after the flood" in out


def test_no_output(sshd: Sshd, capfd: pytest.CaptureFixture[str]) -> None:
    """output="none" is silent from the banner on."""
    (pid,) = addprocs(["chatty"], sshflags=sshd.flags, output="none")
    remotecall_fetch(print, pid, "hello")
    rmprocs(pid)
    assert capfd.readouterr() == ("", "")


# -- code --------------------------------------------------------------------------------------------------------------

MODULE = """
import math
import threading

lock = threading.Lock()  # cannot travel, and need not
factor = 3


class Thing:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Thing and other.x == self.x


class Oops(ValueError):
    pass


def scale(x):
    return factor * helper(x)


def helper(x):
    return math.floor(x)


def make(x):
    return Thing(x)


def fail():
    raise Oops("oops")
"""


def test_functions_of_files_that_machines_do_not_have(
    sshd: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that is not installed goes by value while there are workers elsewhere, and by name otherwise."""
    (tmp_path / "only_here.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import only_here  # type: ignore[import-not-found]  # written just now

    (local,) = addprocs(1)

    def is_loaded() -> bool:
        return "only_here" in sys.modules

    remote = addprocs(["h1", "h2"], sshflags=sshd.flags)
    for pid in (local, *remote):
        assert remotecall_fetch(only_here.scale, pid, 2.5) == 6
        assert remotecall_fetch(only_here.make, pid, 7) == only_here.Thing(7)
        assert remotecall_fetch(lambda: only_here.scale(5), pid) == 15
        assert remotecall_fetch(lambda thing: thing.x, pid, only_here.Thing(6)) == 6
        with pytest.raises(only_here.Oops):
            remotecall_fetch(only_here.fail, pid)
        assert not remotecall_fetch(is_loaded, pid)
    assert remotecall_fetch(relay, local, only_here.scale, remote[0], 1) == 3
    assert remotecall_fetch(relay, remote[0], only_here.scale, remote[1], 1) == 3
    assert distpool.pmap(only_here.scale, range(20)) == [3 * x for x in range(20)]
    rmprocs(remote)
    assert remotecall_fetch(only_here.scale, local, 2) == 6
    assert remotecall_fetch(is_loaded, local)


def test_two_may_add_machines_at_once(sshd: Sshd) -> None:
    """From two threads: one after the other, and all join."""
    threads = [
        threading.Thread(target=addprocs, args=([name],), kwargs={"sshflags": sshd.flags}) for name in ("h1", "h2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(distpool.workers()) == 2
