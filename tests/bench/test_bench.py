"""The benchmarks themselves: the ideal schedule, goals and medians, and that the command runs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NUMBERS = """
from tests.bench.runner import Goal, Outcome, Row
from tests.bench.schedule import ideal
from tests.bench.table import figure, verdict

assert ideal([1, 1, 1, 1], 2) == 2
assert ideal([1, 1, 4], 2) == 5, "in input order: the long one starts when the first worker is free"
assert ideal([4, 1, 1], 2) == 4
outcome = Outcome(Row("row", "title", lambda scale: []), 0.0, {"distpool": [3.0, 1.0, 2.0], "raw": [1.0, 9.0, 1.0]})
assert outcome.median("distpool") == 2
assert verdict(outcome, Goal("", 2.0, "raw")) == ("2 × raw", "met")
assert verdict(outcome, Goal("", 1.5, "raw")) == ("2 × raw", "missed")
assert verdict(outcome, Goal("", 1.5, "absent")) == ("–", "–")
assert [figure(value, "s") for value in (2.5, 0.0123, 4e-6)] == ["2.5 s", "12.3 ms", "4 µs"]
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter at the root, where `tests.bench` is found whatever pytest put on its path."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_ideal_schedule_and_goals() -> None:
    """A list schedule keeps the input order; a goal is judged by medians and left open where one is missing."""
    finished = run("-c", NUMBERS)
    assert finished.returncode == 0, finished.stderr


def test_names_that_select_nothing_are_refused() -> None:
    """A misspelt row is an error that lists the rows, not an empty run."""
    finished = run("-m", "tests.bench", "no-such-row")
    assert finished.returncode == 1
    assert "round-trip" in finished.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(importlib.util.find_spec("numpy") is None, reason="numpy is not installed")
def test_quick_run_measures_every_kind_of_row(tmp_path: Path) -> None:
    """The command runs rows of all rooms but those that take longest, writes both files and raises nothing."""
    rows = [
        "round-trip",
        "channel-workers",
        "tiny-map",
        "mixed-few",
        "array-result",
        "tcp-argument",
        "idle",
        "death-last",
    ]
    page, samples = tmp_path / "page.md", tmp_path / "samples.json"
    finished = run("-m", "tests.bench", "--quick", "--rounds=1", *rows, f"--markdown={page}", f"--json={samples}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "## Goals" in page.read_text()
    measured = json.loads(samples.read_text())["rows"]
    assert len(measured) == len(rows)
    assert all(row["samples"] and not row["failed"] for row in measured)
