"""The gates as tests, so that one command runs all: lint, format, types."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OLDEST = "3.10"
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"


def run(*command: str) -> None:
    """Runs a tool of this interpreter's environment over the source tree; its complaints are the failure's text."""
    result = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode:
        pytest.fail(f"{' '.join(command)}:\n{result.stdout}{result.stderr}", pytrace=False)


def test_lint() -> None:
    """ruff has nothing to say."""
    run("ruff", "check", ".")


def test_format() -> None:
    """The code is formatted; `ruff format` does it."""
    run("ruff", "format", "--check", ".")


@pytest.mark.timeout(300)  # the first time, when nothing is cached, it takes half a minute of a processor
@pytest.mark.parametrize("version", sorted({OLDEST, RUNNING}))
def test_types(version: str) -> None:
    """mypy --strict accepts the package for the oldest Python and for this one."""
    # By folder, not by package: compat/ becomes distpool.compat only when installed, by a hook mypy does not follow.
    run("mypy", "--python-version", version, "--cache-dir", f".mypy_cache/gate-{version}", "distpool", "compat")
