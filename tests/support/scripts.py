"""Scripts in fresh interpreters: for everything that ends a process, or must work without a guard.

Two traps of such tests, met by everyone who writes them, are avoided here. A shell starts background jobs with SIGINT
ignored and Python keeps that, so SIGINT is reset to its default in the child. An orphaned worker holds its parent's
output open, so output goes to files: with pipes, the test would wait for ever for exactly the fault it looks for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import uuid
from pathlib import Path
from typing import NamedTuple

import psutil

from support.leaks import describe, eventually, marked

SCRIPT_MARK = "DISTPOOL_TEST_SCRIPT"


class Finished(NamedTuple):
    """How a script ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Script:
    """One running script: its own interpreter, session, folder and environment mark.

    `how` is "file" (`python script.py`), "-c" (`python -c text`) or "stdin" (text piped into `python -`).
    """

    def __init__(
        self,
        text: str,
        *args: object,
        folder: Path,
        how: str = "file",
        env: dict[str, str] | None = None,
        python: tuple[str, ...] = (),
    ) -> None:
        self.text = textwrap.dedent(text)
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self._out, self._err = folder / "stdout.txt", folder / "stderr.txt"
        command = [sys.executable, *python, *self._source(how), *map(str, args)]
        # faulthandler: `wait` asks a script that hangs for its stacks before it is killed.
        environ = {**os.environ, "PYTHONFAULTHANDLER": "1", **(env or {}), SCRIPT_MARK: self.mark}
        self.process = self._start(command, environ, piped=how == "stdin")

    def _source(self, how: str) -> list[str]:
        if how == "-c":
            return ["-c", self.text]
        if how == "stdin":
            return ["-"]
        path = self.folder / "script.py"
        path.write_text(self.text)
        return [str(path)]

    def _start(self, command: list[str], environ: dict[str, str], *, piped: bool) -> subprocess.Popen[bytes]:
        stdin = subprocess.PIPE if piped else subprocess.DEVNULL
        # A handled signal becomes the default again in an exec'd program, an ignored one stays ignored.
        previous = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            with self._out.open("wb") as out, self._err.open("wb") as err:
                process = subprocess.Popen(
                    command, cwd=self.folder, env=environ, stdin=stdin, stdout=out, stderr=err, start_new_session=True
                )
        finally:
            signal.signal(signal.SIGINT, previous)
        if process.stdin is not None:
            process.stdin.write(self.text.encode())
            process.stdin.close()
        return process

    @property
    def stdout(self) -> str:
        """What the script and its workers have written so far."""
        return self._out.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """Likewise for the error output."""
        return self._err.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Sends a signal to the script's own process only, as `kill` does."""
        self.process.send_signal(number)

    def wait_for(self, text: str, timeout: float = 30) -> None:
        """Returns once the script has printed `text`; fails at once if it ends without."""

        def said() -> bool:
            ended = self.process.poll() is not None
            if text in self.stdout:
                return True
            assert not ended, f"the script ended without printing {text!r}:\n{self.stdout}\n{self.stderr}"
            return False

        eventually(said, timeout, what=f"the script prints {text!r}")

    def wait(self, timeout: float = 60) -> Finished:
        """Waits for the script's end; one that hangs is asked for its stacks, killed, and fails the test."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._dump()
            raise AssertionError(f"script still running after {timeout} s\n{self.stdout}\n{self.stderr}") from None
        return Finished(code, self.stdout, self.stderr)

    def _dump(self) -> None:
        """faulthandler answers SIGABRT with all stacks; a process that is stopped cannot, and is killed anyway."""
        self.send(signal.SIGABRT)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def survivors(self) -> list[psutil.Process]:
        """What the script started, directly or not, and is still alive, the script itself included."""
        return marked(SCRIPT_MARK, self.mark)

    def no_survivors(self, timeout: float = 10) -> None:
        """Returns once nothing of the script is alive; fails after `timeout` seconds, naming what is."""
        try:
            eventually(lambda: not self.survivors(), timeout)
        except AssertionError:
            alive = "\n".join(describe(process)[0] for process in self.survivors())
            raise AssertionError(f"still alive {timeout} s after the script:\n{alive}") from None

    def kill(self) -> None:
        """Ends the script and everything that carries its mark; harmless when all has ended."""
        for process in self.survivors():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended just now
                process.kill()
        self.process.wait()
