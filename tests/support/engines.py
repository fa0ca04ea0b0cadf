"""Engines that tests drive for real: which are here, and what it means when one is not.

On a developer's machine a missing engine skips its tests, and the reason names the command that installs it. Where the
build has installed one it says so (``DISTPOOL_ENGINES``, see tests/engines.sh), and a test that cannot use it fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "examples" / "source_census.py"


def require(engine: str, missing: str) -> None:
    """Skip the test, or fail it, when ``missing`` says why this engine cannot be used."""
    if not missing:
        return
    if engine in os.environ.get("DISTPOOL_ENGINES", "").split():
        pytest.fail(f"{engine} was installed for these tests, but: {missing}")
    pytest.skip(missing)


def census(where: str, *, prefix: Sequence[str] = (), path: str = "") -> tuple[str, str]:
    """Run the main example over these tests' own files, there and in one process; return both reports."""
    command = [sys.executable, str(EXAMPLE), str(Path(__file__).parent)]
    environ = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}

    def run(*words: str) -> str:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run(*prefix, *command, "--workers", "2", "--on", where), run(*command, "--workers", "0")


def mpi_launchers() -> dict[str, list[str]]:
    """The launchers on this machine, by name, with the flags that each needs to start any number of ranks here."""
    as_root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
    wanted = {
        "mpich, pip": [os.path.join(os.path.dirname(sys.executable), "mpiexec.hydra")],
        "mpich": ["mpiexec.mpich"],
        "openmpi": ["mpiexec.openmpi", *as_root, "--oversubscribe"],
    }
    return {name: command for name, command in wanted.items() if shutil.which(command[0])}
