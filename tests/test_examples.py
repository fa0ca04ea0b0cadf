"""The examples under docs/examples run and print what they promise: over a small folder, in fresh interpreters."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "docs" / "examples"
CENSUS = EXAMPLES / "source_census.py"
COMMAND = EXAMPLES / "command_manager.py"
GUARD = 'if __name__ == "__main__":\n    main()\n'

Finished = subprocess.CompletedProcess[str]


def run(script: Path, *words: str | Path) -> Finished:
    """The script as a user runs it, with its hash seed left to chance: no order may depend on it."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"} | {"PYTHONPATH": path}
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real files (a few packages of the standard library) and every kind of file that cannot be read."""
    folder = tmp_path_factory.mktemp("sources")
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    for package in ("asyncio", "email", "json"):
        shutil.copytree(stdlib / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    bad = folder / "bad"
    bad.mkdir()
    (bad / "syntax.py").write_text("def f(:\n")
    (bad / "encoding.py").write_bytes(b"name = 'caf\xe9'\n")
    (bad / "null.py").write_bytes(b"x = 1\0\n")
    (bad / "deep.py").write_text("(" * 1000 + ")" * 1000 + "\n")
    (bad / "dangling.py").symlink_to(folder / "nowhere.py")
    return folder


@pytest.fixture(scope="module")
def sequential(folder: Path) -> Finished:
    """The census of one process, with which all others must agree."""
    return run(CENSUS, folder, "--workers=0")


def test_every_example_is_tested() -> None:
    """An example that is added is added here, too."""
    assert sorted(EXAMPLES.glob("*.py")) == [COMMAND, CENSUS]


def test_census_of_one_process(folder: Path, sequential: Finished) -> None:
    """Real packages are measured; a file that cannot be read is reported with its reason and skipped."""
    assert sequential.returncode == 0, sequential.stderr
    count = len([path for path in folder.rglob("*.py") if path.is_file()])
    assert sequential.stdout.startswith(f"{count} files: {count - 4} read, 4 skipped\n")
    for expected in ("asyncio", "email", "json", "Near duplicates", "isinstance"):
        assert expected in sequential.stdout
    skipped = sequential.stdout[sequential.stdout.index("\nSkipped\n") :]
    for name in ("syntax", "encoding", "null", "deep"):
        assert f"bad/{name}.py" in skipped


def test_census_with_workers_equals_that_of_one_process(folder: Path, sequential: Finished) -> None:
    """The report is the same to the letter, and the script's own check says so, too."""
    finished = run(CENSUS, folder, "--workers=2", "--check")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == sequential.stdout
    assert "check: equal to the result of one process" in finished.stderr


def test_census_needs_no_guard(folder: Path, sequential: Finished, tmp_path: Path) -> None:
    """The script without its last lines' guard does the same: workers never run it again."""
    text = CENSUS.read_text()
    assert text.endswith(GUARD)
    bare = tmp_path / "bare.py"
    bare.write_text(text.removesuffix(GUARD) + "main()\n")
    finished = run(bare, folder, "--workers=2")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == sequential.stdout


def test_census_beside_multiprocessing(folder: Path) -> None:
    """The comparison runs both pools and names their times."""
    finished = run(CENSUS, folder, "--workers=2", "--compare", "--rounds=1")
    assert finished.returncode == 0, finished.stderr
    assert "distpool.WorkerPool.imap_unordered" in finished.stderr
    assert "multiprocessing.Pool.imap_unordered" in finished.stderr


def test_census_of_single_files_with_a_limit(folder: Path) -> None:
    """Files are taken as they are named; a limit says what it left out."""
    files = sorted((folder / "json").glob("*.py"))
    finished = run(CENSUS, *files, "--workers=1", "--limit=2")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("2 files: 2 read, 0 skipped\n")
    assert f"{len(files)} files found, the first 2 are read" in finished.stderr


def test_workers_behind_commands() -> None:
    """Two shells become workers: all work is done, and one worker calls the other, over standard input and output."""
    finished = run(COMMAND)
    assert finished.returncode == 0, finished.stderr
    *answers, last = finished.stdout.splitlines()
    assert [answer.split(",")[0] for answer in answers] == [f"{n} squared is {n * n}" for n in range(1, 7)]
    assert last == "worker 2 called worker 3"
    assert finished.stderr == ""


def test_workers_behind_commands_that_say_other_things_first() -> None:
    """A banner of a login is passed over, and what a task prints does not get between the messages."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")])  # its python3 is this one
    login = f"echo Welcome!; export PATH={shlex.quote(path)}; exec sh"
    finished = run(COMMAND, shlex.join(["sh", "-c", login]))
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.endswith("worker 2 called worker 2\n")


def test_a_command_that_is_no_shell() -> None:
    """The error names the command; nothing hangs."""
    finished = run(COMMAND, "false")
    assert finished.returncode == 1
    assert "'false' ended before a worker had begun" in finished.stderr
    assert "--python" in finished.stderr
    assert "Traceback" not in finished.stderr
