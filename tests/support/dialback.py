"""An engine of the simplest kind: processes of the test's own, started at once or when the test says so.

Runs in the test's own process.
"""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress
from typing import Any

import distpool
from distpool.door import Introduction
from distpool.managers.launches import Launch
from distpool.tcp import dial, greet
from distpool.transport import Deadline


class Here(distpool.DialBackManager):
    """Starts ``count - held`` of its workers; the others are for ``begin`` to start."""

    engine = "this machine"

    def __init__(self, count: int, *, held: int = 0, **options: Any) -> None:
        super().__init__(count, **options)
        self.held = held
        self.launches: list[Launch] = []
        self.processes: list[subprocess.Popen[str]] = []
        self.stopped: list[str] = []  # tickets

    def start(self, launch: Launch) -> None:
        self.launches.append(launch)
        for ident in range(launch.count - self.held):
            self.begin(launch, ident)

    def begin(self, launch: Launch, ident: object, **env: str) -> subprocess.Popen[str]:
        """Start a worker of this launch."""
        process = worker(*launch.command("--ident", str(ident)), secret=launch.secret, **env)
        self.processes.append(process)
        return process

    def stop(self, launch: Launch) -> None:
        self.stopped.append(launch.ticket)

    def end(self) -> None:
        """End what is left, at the end of a test."""
        self.close()
        for process in self.processes:
            end(process)


class Irreplaceable(Here):
    """One that cannot start a worker in another's place."""

    relaunch = distpool.ClusterManager.relaunch


def worker(*command: str, secret: str | None = None, **env: str) -> subprocess.Popen[str]:
    """Start a worker with this secret as its only line of input."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **env},
        start_new_session=True,
    )
    assert process.stdin is not None
    with suppress(OSError):
        if secret is not None:
            process.stdin.write(f"{secret}\n")
        process.stdin.close()
    return process


def end(process: subprocess.Popen[str]) -> str:
    """Kill it if it has not ended; return what it has printed that nobody has read."""
    process.kill()
    assert process.stdout is not None
    said = "" if process.stdout.closed else process.stdout.read()
    process.stdout.close()
    process.wait(30)
    return said


def last_words(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for its end by itself; return its status and what it has printed."""
    assert process.stdout is not None
    with process.stdout:
        said = process.stdout.read()
    return process.wait(30), said


def call_on(address: str, introduction: bytes) -> socket.socket:
    """Prove oneself at a driver's door and say something there; return the connection."""
    host, _, port = address.rpartition(":")
    stream = dial(host, int(port), Deadline(30))
    greet(stream, Deadline(30))
    stream.sendall(introduction if introduction[:1] == b"\xff" else Introduction.of(introduction))
    return stream
