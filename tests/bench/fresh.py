"""Runs probes in fresh interpreters; used by the rows about starting and about idle memory."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tests.bench.meeting import meeting
from tests.bench.runner import Contender, Measure

PROBE_LIMIT = 120  # seconds for one probe; the slowest (64 spawned workers) takes about 10
NEEDS = {"distpool": "WorkerPool", "loky": "ProcessPoolExecutor"}  # contenders that may be absent, and what they need


def contenders(deed: str, names: Sequence[str], workers: int) -> Sequence[Contender]:
    """One contender per name of `peers.RUN_EACH`, each sample a fresh interpreter."""
    return [Contender(name, partial(_opened, deed, name, workers)) for name in names]


@contextmanager
def _opened(deed: str, name: str, workers: int) -> Iterator[Measure]:
    if name in NEEDS and not hasattr(importlib.import_module(name), NEEDS[name]):
        raise ImportError(f"{name} has no {NEEDS[name]}")
    with meeting(workers) as path:
        yield lambda: _probe([deed, name, str(workers), path])


def _probe(arguments: Sequence[str]) -> float:
    """One fresh interpreter in a session of its own, so that everything it left behind can be ended with it."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.probe", *arguments]
    # Else every process of every contender would compile all that it imports anew, and only that would be measured.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment) as child:
        try:
            output, _ = child.communicate(timeout=PROBE_LIMIT)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode:
        raise RuntimeError(f"probe {' '.join(arguments[:3])} ended with {child.returncode}")
    return float(output)
