"""Workers that tests start by hand: ``python -m distpool --worker`` as a process of the test, and who visits them.

Also cluster managers for such processes. Everything here runs in the test's own process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import distpool
from distpool.tcp import parse_address_line

COMMAND = (sys.executable, "-m", "distpool")
# What a stranger sends in Julia's own test: random bytes, here always the same.
GARBAGE = bytes(range(7, 39))


class Listener:
    """A worker that waits for its driver; ``host`` and ``port`` are what it has printed."""

    def __init__(
        self, *options: str, cookie: str | None, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.process = subprocess.Popen(
            [*prefix, *COMMAND, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        if cookie is not None:
            self.process.stdin.write(f"{cookie}\n".encode())
        self.process.stdin.close()
        self.first_line = self.process.stdout.readline().decode()
        address = parse_address_line(self.first_line)
        assert address is not None, self.first_line + self.rest()
        self.host, self.port = address

    def visit(self) -> socket.socket:
        """Connect as a stranger."""
        return socket.create_connection((self.host, self.port), timeout=30)

    def rest(self) -> str:
        """What it has printed, up to its end."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def close(self) -> None:
        """End it if it has not ended."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def listening(
    *options: str, cookie: str | None = None, env: dict[str, str] | None = None, prefix: Sequence[str] = ()
) -> Iterator[Listener]:
    """A worker on loopback that knows this process's cookie, or the one given; `prefix` is a command to start it by."""
    secret = distpool.cluster_cookie() if cookie is None else cookie
    listener = Listener(*(options or ("--worker",)), cookie=secret, env=env, prefix=prefix)
    try:
        yield listener
    finally:
        listener.close()


def is_closed_by_other_side(stream: socket.socket) -> bool:
    """Wait for the other side to say or do something; True when it has hung up."""
    with suppress(ConnectionError):
        return stream.recv(1 << 10) == b""
    return True


class Commands(distpool.ClusterManager):
    """Launches one worker for each command, with the cookie on its input unless told otherwise."""

    def __init__(
        self, *commands: Sequence[str], cookie_line: str | None = None, after: Exception | None = None
    ) -> None:
        self.commands = commands
        self.cookie_line = distpool.cluster_cookie() if cookie_line is None else cookie_line
        self.after = after  # what launch raises when it has launched all
        self.events: list[tuple[str, int]] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        for command in self.commands:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.started.append(process)
            assert process.stdin is not None
            with suppress(OSError):  # it has ended already
                process.stdin.write(f"{self.cookie_line}\n".encode())
                process.stdin.close()
            launched.append(distpool.WorkerConfig(io=process.stdout, process=process))
        if self.after is not None:
            raise self.after

    def manage(self, pid: int, config: distpool.WorkerConfig, op: str) -> None:
        self.events.append((op, pid))


class Addresses(distpool.ClusterManager):
    """Reaches workers that run already: sets host and port and nothing else."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def launch(self, params: dict[str, Any], launched: Any) -> None:
        for listener in self.listeners:
            launched.append(distpool.WorkerConfig(host=listener.host, port=listener.port))


def standard_streams() -> tuple[bool, bool, str]:
    """On a worker: is stdin the null device, is stderr where stdout is, and what is left on stdin."""
    is_null = os.path.samestat(os.fstat(0), os.stat(os.devnull))
    is_joined = os.path.samestat(os.fstat(1), os.fstat(2))
    return is_null, is_joined, sys.stdin.readline()


def python(code: str) -> tuple[str, ...]:
    """The command that runs a piece of Python."""
    return (sys.executable, "-c", code)


GOOD = (*COMMAND, "--worker")
