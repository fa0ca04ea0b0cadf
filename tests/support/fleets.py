"""Programs that an engine consists of, started for tests: their processes can be told from all others, and are ended.

What an engine starts for itself, and the workers of ours that it starts, inherit a mark in their environment; an engine
is ended by killing exactly what carries it. They are no part of any single test, so they lack the mark of the run.
"""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from support.leaks import FLEET_MARK, MARK, eventually, marked


class Fleet:
    """Processes of one engine. ``folder`` has what they print."""

    def __init__(self, folder: Path, **environ: str) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        inherited = {name: value for name, value in os.environ.items() if name != MARK}
        self.environ = {**inherited, **environ, FLEET_MARK: self.mark}
        self._started: dict[str, subprocess.Popen[bytes]] = {}  # what lives, or has died by itself

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a program of the engine's."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environ,
                cwd=self.folder,
                start_new_session=True,
            )
        self._started[name] = process
        return process

    def wait_until(self, is_ready: Callable[[], object], seconds: float) -> None:
        """Wait for the engine; its programs must not end meanwhile."""
        limit = time.monotonic() + seconds
        while not is_ready():
            if time.monotonic() > limit or any(p.poll() is not None for p in self._started.values()):
                raise AssertionError(f"the engine did not start:\n{self.said()}")
            time.sleep(0.05)

    def said(self) -> str:
        """What its programs have printed."""
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in self.folder.glob("*.log"))

    def processes(self, *words: str) -> list[psutil.Process]:
        """Those that have one of the words in their command line; all, if there are none."""
        return [process for process in marked(FLEET_MARK, self.mark) if not words or _says(process, words)]

    def workers(self) -> list[psutil.Process]:
        """The workers of ours that it has started, and what those have started."""
        return self.processes("--ticket", "sleep 1000")

    def kill(self, name: str) -> None:
        """SIGKILL for one of its programs alone."""
        process = self._started.pop(name)
        process.kill()
        process.wait(30)

    def stop(self) -> None:
        """Kill everything."""

        def are_gone() -> bool:
            for process in self.processes():
                process.kill()
            return not self.processes()

        eventually(are_gone, 30)
        for process in self._started.values():
            process.wait(30)


def _says(process: psutil.Process, words: Sequence[str]) -> bool:
    try:
        command = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return any(word in command for word in words)
