"""Section N, machines: how they are written, the command lines made of them, and workers started by such a line.

With a program in the place of ssh that runs the command on this machine; ``tests/test_ssh.py`` has a real server.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import CompositeException, LaunchWorkerError, SSHManager, addprocs, nprocs, remotecall_fetch
from distpool.managers.machines import parse_machine, parse_machine_file
from support import jobs
from support.fake_ssh import FakeSsh

if TYPE_CHECKING:
    from conftest import RunScript

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.fixture
def fake(tmp_path: Path) -> FakeSsh:
    """An ssh that logs in to this machine, whatever name it is given."""
    return FakeSsh(tmp_path)


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago, with others above it."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = int(server.getsockname()[1])
        if port < 65_000:
            return port
    raise AssertionError("this system gives out no ports below 65000")


# -- C029 --------------------------------------------------------------------------------------------------------------


@pytest.mark.case("C029")
def test_an_unknown_host() -> None:
    """C029: a name that leads nowhere: one error that names it, with ssh's own words; nothing has changed."""
    with pytest.raises(CompositeException) as caught:
        addprocs(["no-such-host-20372.invalid"])
    (error,) = caught.value.exceptions
    assert isinstance(error, LaunchWorkerError)
    assert "no-such-host-20372" in str(error)
    assert nprocs() == 1


# -- C227, C228, C240: texts -------------------------------------------------------------------------------------------


@pytest.mark.case("C227")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("127.0.0.1", ("127.0.0.1", None)),
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("127.0.0.1:90", ("127.0.0.1", 90)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("127.0.0.1:65535", ("127.0.0.1", 65535)),
        ("[2001:db8::1]", ("2001:db8::1", None)),
        ("[2001:db8::1]:443", ("2001:db8::1", 443)),
        ("127.0.0.1:-1", None),
        ("127.0.0.1:0", None),
        ("127.0.0.1:65536", None),
        ("[2001:db8::1]:443:888", None),
        ("[2001:db8::1", None),
        ("[2001:db8::1]:aaa", None),
    ],
)
def test_the_parse_table(spec: str, expected: tuple[str, int | None] | None) -> None:
    """C227: host and port, or ValueError, before anything is started."""
    if expected is None:
        with pytest.raises(ValueError, match=r"port|address"):
            addprocs([spec])
    else:
        machine = parse_machine(spec)
        assert (machine.host, machine.port) == expected


@pytest.mark.case("C228")
def test_mentions_of_a_machine_add_up() -> None:
    """C228a: and "auto" replaces a number."""
    assert SSHManager(["h", ("h", 2), "g"]).machines == {"h": 3, "g": 1}
    assert SSHManager([("h", 2), ("h", "auto")]).machines == {"h": "auto"}


@pytest.mark.case("C228")
def test_how_it_is_shown() -> None:
    """C228b: with its machines."""
    text = repr(SSHManager(["h"]))
    assert text.startswith("SSHManager(machines=")
    assert text.endswith(")")


@pytest.mark.case("C240")
def test_a_machine_file() -> None:
    """C240b: as it is written."""
    assert parse_machine_file(["2*localhost", "", "localhost"]) == [("localhost", 2), "localhost"]
    assert parse_machine_file(["auto*h"]) == [("h", "auto")]


@pytest.mark.case("C240")
def test_the_machines_of_a_file_are_added(fake: FakeSsh, run_script: RunScript, tmp_path: Path) -> None:
    """C240b: local workers first, then those of the file, then the program."""
    machines, program = tmp_path / "machines", tmp_path / "program.py"
    machines.write_text("2*localhost\n\nlocalhost\n")
    program.write_text("import distpool\nprint(distpool.workers(), distpool.procs(3))\n")
    done = run_script(
        f"""
        import os, sys
        os.environ["PATH"] = {str(tmp_path)!r} + os.pathsep + os.environ["PATH"]
        sys.argv[1:] = ["-p", "1", "--machine-file", {str(machines)!r}, {str(program)!r}]
        from distpool.__main__ import main
        main()
        """
    )
    assert done == (0, "[2, 3, 4, 5] [1, 2, 3, 4, 5]\n", "")
    assert len(fake.calls) == 1


@pytest.mark.case("C240")
@pytest.mark.parametrize("text", [None, "0*h\n", "a b c\n"])
def test_a_bad_machine_file(run_script: RunScript, tmp_path: Path, text: str | None) -> None:
    """C240b: is told before anything is started."""
    path = tmp_path / "machines"
    if text is not None:
        path.write_text(text)
    code = f"from distpool.__main__ import main; main(['--machine-file', {str(path)!r}, '-c', 'print(1)'])"
    done = run_script(code)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(path) in done.stderr


# -- C225 --------------------------------------------------------------------------------------------------------------


@pytest.mark.case("C225")
def test_the_options_for_machines() -> None:
    """C225b: those of all managers, and what only ssh needs."""
    params = distpool.default_addprocs_params(SSHManager(["h"]))
    julia = {"ssh": "ssh", "shell": "posix", "cmdline_cookie": False, "tunnel": False, "multiplex": False}
    assert params.items() >= {**julia, "max_parallel": 10}.items()
    assert not params["sshflags"]
    assert params.items() >= distpool.default_addprocs_params().items()
    with pytest.raises(TypeError, match="nonsense"):
        addprocs(["h"], nonsense=1)
    with pytest.raises(TypeError, match="restrict"):
        addprocs(["h"], restrict=False)


# -- C229 --------------------------------------------------------------------------------------------------------------


def look() -> tuple[str, str | None, int, list[str]]:
    """What a worker has been given."""
    with open(f"/proc/{os.getppid()}/cmdline") as file:
        words = file.read().split("\0")
    return os.getcwd(), os.environ.get("CONF_E"), sys.flags.utf8_mode, words


@pytest.mark.case("C229")
def test_a_worker_joins(fake: FakeSsh, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """C229: dir, env and exeflags are honoured; the cookie is neither on its command line nor on ssh's."""
    value = 'it\'s "new"; $HOME `x` \\ !\n2'
    (pid,) = addprocs(
        ["joe@h:2222"],
        ssh=str(fake.program),
        sshflags="-v",
        dir=tmp_path,
        env={"CONF_E": value},
        exeflags=["-X", "utf8"],
    )
    directory, variable, utf8, words = remotecall_fetch(look, pid)
    assert (directory, variable, utf8) == (str(tmp_path), value, 1)
    assert words[1:6] == ["-X", "utf8", "-m", "distpool", "--worker"]
    (call,) = fake.calls
    assert call[:7] == ["-T", "-x", "-a", "-o", "ClearAllForwardings=yes", "-v", "-p"]
    assert distpool.cluster_cookie() not in "\n".join([*words, *call])
    assert capfd.readouterr().out == ""


@pytest.mark.case("C229")
def test_the_cookie_on_the_command_line(fake: FakeSsh) -> None:
    """C229: only if it was asked for."""
    (pid,) = addprocs(["h"], ssh=str(fake.program), cmdline_cookie=True)
    assert f"--worker={distpool.cluster_cookie()}" in remotecall_fetch(look, pid)[3]
    assert distpool.cluster_cookie() in "\n".join(fake.calls[0])


@pytest.mark.case("C229")
@pytest.mark.parametrize("exename", [sys.executable, ["env", "CONF_E=7", sys.executable]])
def test_the_program(fake: FakeSsh, exename: Any) -> None:
    """C229: as a text or a list of words."""
    (pid,) = addprocs(["h"], ssh=str(fake.program), exename=exename)
    expected = None if isinstance(exename, str) else "7"
    assert remotecall_fetch(jobs.environment, pid, "CONF_E") == expected


@pytest.mark.case("C229")
def test_another_ssh_program_is_missing(tmp_path: Path) -> None:
    """C229: a client that cannot be started is an error of its machine."""
    with pytest.raises(CompositeException) as caught:
        addprocs(["h"], ssh=str(tmp_path / "no-ssh"))
    assert "no-ssh" in str(caught.value.exceptions[0])


# -- C230 --------------------------------------------------------------------------------------------------------------


@pytest.mark.case("C230")
def test_several_workers_by_one_login(fake: FakeSsh, capfd: pytest.CaptureFixture[str]) -> None:
    """C230: three workers, one start of ssh; what each prints carries its own number."""
    pids = addprocs([("localhost", 3)], ssh=str(fake.program))
    assert len(pids) == 3
    assert len(fake.calls) == 1
    for pid in pids:
        remotecall_fetch(print, pid, f"this is {pid}")
    distpool.rmprocs(pids)
    shown = sorted(line.strip() for line in capfd.readouterr().out.splitlines())
    assert shown == sorted(f"From worker {pid}:\tthis is {pid}" for pid in pids)


# -- C231 --------------------------------------------------------------------------------------------------------------


def port_here() -> int:
    """The port by which process 1 has come."""
    from distpool.member import default_member

    stream: socket.socket = default_member().cluster.peer(1)._stream
    return int(stream.getsockname()[1])


@pytest.mark.case("C231")
def test_an_exact_port_for_two(fake: FakeSsh, free_port: int) -> None:
    """C231a: the first worker gets it, the second one the next that is free."""
    pids = addprocs([(f"localhost 127.0.0.1:{free_port}", 2)], ssh=str(fake.program))
    first, second = (remotecall_fetch(port_here, pid) for pid in pids)
    assert first == free_port
    assert free_port < second < free_port + 100


@pytest.mark.case("C231")
def test_a_port_to_begin_with(fake: FakeSsh, free_port: int) -> None:
    """C231a: a hint that is taken is passed over."""
    with socket.create_server(("127.0.0.1", free_port)):
        (pid,) = addprocs([f"localhost 127.0.0.1:[{free_port}]"], ssh=str(fake.program))
        assert free_port < remotecall_fetch(port_here, pid) < free_port + 100


@pytest.mark.case("C231")
def test_an_exact_port_that_is_taken(fake: FakeSsh, free_port: int) -> None:
    """C231a: is an error that says so."""
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(CompositeException) as caught:
        addprocs([f"localhost 127.0.0.1:{free_port}"], ssh=str(fake.program))
    assert "Address already in use" in str(caught.value.exceptions[0])


@pytest.mark.case("C231")
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"env": {"A B": "1"}}, "A B"),
        ({"shell": "fish"}, "fish"),
        ({"shell": "wincmd", "dir": 'a"b'}, "cmd.exe"),
        ({"max_parallel": 0}, "max_parallel"),
        ({"venv": "/x", "exename": "y"}, "venv"),
    ],
)
def test_bad_options_are_refused_at_once(fake: FakeSsh, options: dict[str, Any], text: str) -> None:
    """C231b: before ssh is started."""
    with pytest.raises(ValueError, match=text):
        addprocs(["h"], ssh=str(fake.program), **options)
    assert fake.calls == []
