"""The command line, each time as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import distpool
from distpool.__main__ import split_command

COMMAND = (sys.executable, "-m", "distpool")


def run(*words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    command = [*COMMAND, *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "ours", "program"),
    [
        ("script.py -p 3", "", "script.py -p 3"),
        ("-p 2 script.py --version", "-p 2", "script.py --version"),
        ("-p2 -m module --help", "-p2", "-m module --help"),
        ("--procs=2 -c code -m", "--procs=2", "-c code -m"),
        ("--worker --bind-to 127.0.0.1", "--worker --bind-to 127.0.0.1", ""),
        ("-p", "-p", ""),
        ("", "", ""),
    ],
)
def test_options_end_where_the_program_begins(words: str, ours: str, program: str) -> None:
    """What stands behind the program's name is the program's, even if it looks like ours."""
    assert split_command(words.split()) == (ours.split(), program.split())


def test_version() -> None:
    """`--version` says the name and the version, and nothing else."""
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"distpool {distpool.__version__}\n")


def test_help_shows_examples() -> None:
    """`--help` names every form, the environment and what is not for users is hidden."""
    done = run("--help")
    assert done.returncode == 0
    for text in ("-p N|auto", "-m module", "--worker", "--bind-to", "--preload", "status", "run", "examples:"):
        assert text in done.stdout
    for text in ("DISTPOOL_WORKER_TIMEOUT", "DISTPOOL_HOST_TIMEOUT"):
        assert text in done.stdout
    assert "--child" not in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "there is nothing to run"),
        (["-p", "2"], "there is nothing to run"),
        (["-p", "many", "x.py"], "argument -p/--procs"),
        (["-p", "-1", "x.py"], "argument -p/--procs"),
        (["-c"], "argument expected for -c"),
        (["--wrong", "x.py"], "unrecognized arguments: --wrong"),
        (["--worker=x", "-p", "2"], "--worker runs no program"),
        (["--worker=x", "--preload", "json"], "--worker runs no program"),
        (["--bind-to", "127.0.0.1", "x.py"], "--bind-to is for a worker"),
        (["--ticket", "T", "x.py"], "--ticket is for a worker"),
        (["--preload", "json", "-c", "pass"], "--preload is for the workers"),
        (["-p", "1", "--preload", "no_such_module_20372", "-c", "pass"], "there is no module 'no_such_module_20372'"),
        (["-p", "1", "--preload", "no_such_package_20372.x", "-c", "pass"], "--preload: there is no module"),
        (["statsu"], "it is no command either: these are run, status"),
        (["status", "all"], "unrecognized arguments: all"),
        (["--worker=x", "--bind-to", "nowhere:port"], "--bind-to: 'nowhere:port' is no ADDR[:PORT]"),
        (["--worker=caf\N{LATIN SMALL LETTER E WITH ACUTE}"], "the cookie must be ASCII"),
        (["no-such-script.py"], "can't open file 'no-such-script.py'"),
        (["-m", "no_such_module_20372"], "no module 'no_such_module_20372'"),
        (["-m", "no_such_package_20372.x"], "cannot find module"),
    ],
)
def test_mistakes_are_named(words: list[str], complaint: str) -> None:
    """A wrong call ends with an error status and says what is wrong, before anything is started."""
    done = run(*words)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert done.stdout == ""


def test_a_script_is_main(tmp_path: Path) -> None:
    """Its name, arguments and neighbours are as `python script.py` has them, here and on the workers."""
    (tmp_path / "neighbour.py").write_text("def double(x):\n    return 2 * x\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, distpool, neighbour\n"
        "def inner(x): return neighbour.double(x) + offset\n"
        "offset = 1\n"
        "print(__name__, sys.argv[1:], __file__ == sys.argv[0], sys.modules['__main__'].offset)\n"
        "print(distpool.pmap(inner, range(4)), distpool.remotecall_fetch(lambda: sys.argv[1:], 2))\n"
        "print(distpool.remotecall_fetch(neighbour.double, 3, 4))\n"
    )
    done = run("-p", 2, script, "-p", "9", "--flag")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "__main__ ['-p', '9', '--flag'] True 1",
        "[1, 3, 5, 7] ['-p', '9', '--flag']",
        "8",
    ]


def test_a_module_is_main(tmp_path: Path) -> None:
    """`-m` finds modules and packages of the current directory."""
    (tmp_path / "single.py").write_text("import sys; print(__name__, __spec__.name, sys.argv[1:])")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "near.py").write_text("word = 'near'")
    (tmp_path / "package" / "__main__.py").write_text("from . import near; print(__name__, __package__, near.word)")
    assert run("-m", "single", "-x", folder=tmp_path).stdout == "__main__ single ['-x']\n"
    assert run("-m", "package", folder=tmp_path).stdout == "__main__ package near\n"


def test_code_is_main() -> None:
    """`-c` runs text, with workers."""
    done = run(
        "-p", 1, "-c", "import sys, distpool; print(distpool.fetch(distpool.remotecall(max, 2, 3, 4)), sys.argv)", "a"
    )
    assert (done.stdout, done.stderr) == ("4 ['-c', 'a']\n", "")


def test_preloaded_modules_are_shared(tmp_path: Path) -> None:
    """They are imported once, by the process that the workers are forked from, be it a module of the program's own."""
    (tmp_path / "costly.py").write_text("import os; importer = os.getpid()")
    (tmp_path / "script.py").write_text(
        "import sys, os, distpool\n"
        "def look(_): return sys.modules['costly'].importer, os.getppid(), 'colorsys' in sys.modules\n"
        "seen = {distpool.remotecall_fetch(look, pid, 0) for pid in distpool.workers()}\n"
        "print(len(seen), [importer == parent and also for importer, parent, also in seen])\n"
    )
    done = run("-p", 2, "--preload", "costly", "--preload", "colorsys", tmp_path / "script.py")
    assert (done.stdout, done.stderr) == ("1 [True]\n", "")


def test_status_and_exit_handlers_are_the_programs(tmp_path: Path) -> None:
    """sys.exit, uncaught exceptions and exit handlers that use the program's globals work as always."""
    done = run("-p", 1, "-c", "import atexit, sys\nword = 'bye'\natexit.register(lambda: print(word))\nsys.exit(7)")
    assert (done.returncode, done.stdout) == (7, "bye\n")
    done = run("-c", "1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_the_installed_command_is_the_same() -> None:
    """The console script and `python -m distpool` are one program."""
    script = Path(sys.executable).with_name("distpool")
    done = subprocess.run(
        [script, "-c", "import sys; print(sys.path[0] == '')"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_importing_the_room_is_light() -> None:
    """argparse is loaded by a call and not by the import."""
    code = "import sys; old = set(sys.modules); import distpool.__main__; print(*set(sys.modules) - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(done.stdout.split()) & {"argparse", "socket", "runpy"} == set()
