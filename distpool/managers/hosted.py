"""A worker that is the child of an engine's own process: of a Ray actor, of a Dask worker. The engine's side.

Used by the managers of such engines (``placed`` and what builds on it): their code where the engine runs it. The child
dials back to the driver by itself; what is here starts it, waits for its end, and sees to it that it does not
outlive the engine's process, however that ends::

    engine's process                                    worker, in a session of its own
    stdin   what it must know, then silence    ------>  kept open: its end is the worker's, and of all it has started
    stdout  <------ what it says until the driver has let it in: why it could not start

Loaded by engines, so it is light, and imports nothing of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from distpool.light import Final, NamedTuple
from distpool.managers.interpreter import first_words, kill_group, start_worker_interpreter

# In the place of a command's program: the Python that the engine's process runs in.
OWN_PYTHON: Final = ""
# How much of what a worker said before it was let in is repeated: its end, where the reason stands.
SAID_BYTES: Final = 4000
_READ_BYTES: Final = 1 << 16


class Secret:
    """What a worker must know to be let in. Engines log the arguments of what fails, so its text shows nothing."""

    __slots__ = ("line",)

    def __init__(self, line: str) -> None:
        self.line = line

    def __repr__(self) -> str:
        return "Secret(...)"


class End(NamedTuple):
    """How a worker has ended: as ``Popen.returncode``, and what it said before it was let in."""

    code: int
    said: str


class HostedWorker:
    """The child. Raises LaunchWorkerError when it cannot be started."""

    def __init__(self, command: Sequence[str], secret: Secret) -> None:
        import sys

        program, *arguments = command
        here = first_words(secret.line, {"dir": os.getcwd()})
        self._popen = start_worker_interpreter([program or sys.executable, *arguments], os.environ, here)
        self._lock = threading.Lock()  # its status is not taken while it is killed: then its number is its own

    def wait(self) -> End:
        """Wait for its end, and end what it has left behind."""
        assert self._popen.stdout is not None
        said = b""
        with self._popen.stdout as stream:
            while data := os.read(stream.fileno(), _READ_BYTES):
                said = (said + data)[-SAID_BYTES:]
        if hasattr(os, "waitid"):  # not macOS before Python 3.13
            os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
            self.kill()
        with self._lock:
            code = self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()
        return End(code, said.decode("utf-8", "replace").strip())

    def kill(self) -> None:
        """End it now, with all that it has started. Any thread; harmless when it has ended."""
        with self._lock:
            kill_group(self._popen)
