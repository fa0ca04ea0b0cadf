"""A program of an engine's that starts our workers and lives as long as they do: mpiexec, srun, sbatch.

Used by the managers of such engines. It is a child of ours in a session of its own. However our process ends, the
kernel sends it SIGTERM then (Linux: it holds a pipe that does so when its writer is gone), and each of these programs
takes along what it has started; SIGKILL would let some leave it behind. What it prints is shown line by line with its
name, and kept for the error when workers do not come. Owns: the child, the pipe, the thread that reads what it prints.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Final

from distpool.errors import LaunchWorkerError
from distpool.light import signal
from distpool.managers.interpreter import InterpreterProcess, close_in_forked_copies
from distpool.output import How, Output
from distpool.transport import Reader

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

# Seconds that it has to obey SIGTERM. Open MPI gives its ranks one second before it kills them.
END_SECONDS: Final = 3.0
# How much of what it printed an error repeats: its end, where the reason stands.
KEPT_LINES: Final = 40


class Launcher(InterpreterProcess):
    """A running program of an engine's.

    ``says`` is what it gets on its standard input. ``on_line`` is given each line that it prints and returns True when
    that was meant for us; else the line is shown. Raises LaunchWorkerError when it cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        reader: Reader,
        *,
        says: bytes = b"",
        directory: str | None = None,
        output: How = "prefix",
        on_line: Callable[[str], bool] | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or os.path.basename(command[0])
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._on_line = on_line
        self._is_told_to_end = False  # what it says of that is of no interest
        self._output = Output(output if output in ("raw", "none") else self._marked)
        self._output.assign(0)
        with _Lifeline() as lifeline:
            popen = _start(command, says, directory, lifeline.fds)
            lifeline.hold(popen.pid)
        self._lifeline = lifeline.end
        self._said = threading.Thread(target=self._read, args=(popen.stdout,), daemon=True)
        self._said.name = f"distpool output of {self.name}"
        self._said.start()
        super().__init__(popen, reader)
        if says:
            assert popen.stdin is not None
            with suppress(OSError):  # it has ended already, and what it printed says why
                popen.stdin.write(says)
                popen.stdin.close()

    def end(self) -> None:
        """Have it end what it has started and itself; kill it if it does not. Blocks for some seconds at most."""
        self._is_told_to_end = True
        self.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(END_SECONDS)
        self.send_signal(signal.SIGKILL)

    def end_with_us(self) -> None:
        """As ``end``, for the end of this process."""
        self.end()
        super().end_with_us()

    def last_words(self, seconds: float) -> str:
        """Return the end of what it has printed; waits so long for it to be complete."""
        if self.has_exited:
            self._said.join(seconds)
        return "\n".join(self._lines)

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for data in stream:
                line = data.decode("utf-8", "replace").rstrip("\r\n")
                if self._on_line is not None and self._on_line(line):
                    continue
                self._lines.append(line)
                if not self._is_told_to_end:
                    self._output.feed(2, data)
        self._output.end()

    def _marked(self, pid: int, stream: str, line: str) -> str:
        return f"      From {self.name}:\t{line}"

    def _ended(self) -> None:
        super()._ended()
        if self._lifeline is not None:
            self._lifeline.close()


def _start(command: Sequence[str], says: bytes, directory: str | None, fds: Sequence[int]) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if says else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            pass_fds=fds,
            start_new_session=True,  # so that the terminal's Ctrl-C does not reach it, and it leads a group of its own
        )
    except (OSError, ValueError) as error:
        raise LaunchWorkerError(
            f"cannot start {command[0]!r}: {error}; is it installed, and its folder in PATH?"
        ) from error


class _Lifeline:
    """A pipe whose reading end is the child's, and whose writing end is ours alone: our end is the child's."""

    def __init__(self) -> None:
        self.end: IO[bytes] | None = None
        self.fds: tuple[int, ...] = ()
        if hasattr(fcntl, "F_SETSIG"):  # Linux
            reading, writing = os.pipe()
            self.fds = (reading,)
            self.end = os.fdopen(writing, "wb", buffering=0)
            close_in_forked_copies(self.end)

    def hold(self, group: int) -> None:
        """Have the kernel end this process group when the writing end is closed.

        Owner and signal belong to the open file, not to the descriptor: they outlive ours, and an ``exec`` there.
        """
        for fd in self.fds:
            fcntl.fcntl(fd, fcntl.F_SETOWN, -group)
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGTERM)
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | fcntl.FASYNC)

    def __enter__(self) -> _Lifeline:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        for fd in self.fds:
            os.close(fd)
        if kind is not None and self.end is not None:
            self.end.close()
