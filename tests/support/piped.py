"""A transport of the user's own: workers whose standard input and output are the connection. And a manager that notes.

``python -c PROGRAM`` is such a worker. Everything else here runs in the test's own process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import distpool

# The worker keeps the two descriptors for itself: what tasks print goes to standard error.
PROGRAM = """
import os, sys
import distpool
cookie = os.environ["PIPED_COOKIE"]
reading, writing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
os.dup2(2, 1)
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
distpool.init_worker(cookie)
distpool.process_messages(reading, writing).join()
sys.exit("the connection was not admitted")
"""


class Recording(distpool.ClusterManager):
    """Passes everything on to a local manager, and notes what it was asked to do."""

    def __init__(self, n: int) -> None:
        self.local = distpool.LocalManager(n)
        self.events: list[tuple[str, int]] = []

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        from distpool.member import default_member

        self.local.attach(default_member().reader)
        self.local.launch(params, launched)

    def manage(self, pid: int, config: distpool.WorkerConfig, op: str) -> None:
        self.events.append((op, pid))
        self.local.manage(pid, config, op)

    def kill(self, pid: int, config: distpool.WorkerConfig) -> None:
        self.events.append(("kill", pid))
        self.local.kill(pid, config)

    def of(self, pid: int) -> list[str]:
        """What was asked about one worker, in order."""
        return [op for op, about in self.events if about == pid]


class Piped(distpool.ClusterManager):
    """Starts workers that are reached through two pipes each; ``watches``: their processes are handed over."""

    def __init__(self, n: int, cookie: str | None = None, watches: bool = False) -> None:
        self.n = n
        self.cookie = distpool.cluster_cookie() if cookie is None else cookie
        self.watches = watches
        self.started: list[subprocess.Popen[bytes]] = []
        self.killed: list[int] = []

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        paths = os.pathsep.join(map(str, (Path(__file__).parent.parent, os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "PIPED_COOKIE": self.cookie, "PYTHONPATH": paths}
        for _ in range(self.n):
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
            self.started.append(process)
            config = distpool.WorkerConfig(userdata=process)
            if self.watches:
                config.process = process  # type: ignore[assignment]
            launched.append(config)

    def connect(self, pid: int, config: distpool.WorkerConfig) -> Any:
        return config.userdata.stdout, config.userdata.stdin

    def kill(self, pid: int, config: distpool.WorkerConfig) -> None:
        self.killed.append(pid)

    def wait(self) -> list[int]:
        """Wait for the ends of all processes; returns their exit codes."""
        return [process.wait(30) for process in self.started]
