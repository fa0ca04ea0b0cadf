"""A shell in a terminal of its own, for what only a terminal does: Ctrl-C reaches everything in its foreground.

    with Terminal(folder) as terminal:
        terminal.type("python script.py")
        terminal.wait_for("ready")
        seconds, said = terminal.interrupt()  # until the shell's prompt is back

A real interactive shell on a pseudo-terminal, in a session of its own. Everything it starts carries a mark.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import TracebackType

import psutil

from support.leaks import describe, eventually, marked

MARK = "DISTPOOL_TEST_TERMINAL"
PROMPT = "your turn> "
HANG = 40  # seconds

# What stands between this process and the shell: in the new session it opens the terminal, which so becomes that of the
# session. SIGINT may have come ignored from whoever started the tests in the background, and would stay so.
_OPEN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
terminal = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(terminal, number)
os.execv("/bin/sh", ["sh", "-i"])
"""


class Terminal:
    """A shell that waits for what is typed."""

    def __init__(self, folder: Path) -> None:
        self._mark = uuid.uuid4().hex
        self._screen = ""
        self._fd, far = os.openpty()
        self._far = far  # open as long as this, else reading fails when nobody has it open
        environ = {**os.environ, "PS1": PROMPT, "ENV": "", "TERM": "dumb", MARK: self._mark}
        self._shell = subprocess.Popen(
            [sys.executable, "-S", "-c", _OPEN, os.ttyname(far)],
            cwd=folder,
            env=environ,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def __enter__(self) -> Terminal:
        self.wait_for(PROMPT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in marked(MARK, self._mark):
            process.kill()
        self._shell.wait()
        os.close(self._fd)
        os.close(self._far)

    def wait_for(self, text: str) -> str:
        """Read until `text` has appeared; return what has up to there, and forget it."""
        limit = time.monotonic() + HANG
        while text not in self._screen:
            ready, _, _ = select.select([self._fd], [], [], limit - time.monotonic())
            assert ready, f"no {text!r} within {HANG} s, but:\n{self._screen}"
            self._screen += os.read(self._fd, 65536).decode(errors="replace").replace("\r\n", "\n")
        before, _, self._screen = self._screen.partition(text)
        return before

    def type(self, line: str) -> None:
        """Give the shell, or what it runs, a line."""
        os.write(self._fd, f"{line}\n".encode())

    def press_ctrl_c(self) -> None:
        """The terminal makes SIGINT of it, for all in the foreground."""
        os.write(self._fd, b"\x03")

    def interrupt(self) -> tuple[float, str]:
        """Press Ctrl-C; return how long the prompt took, and what was shown before it."""
        begun = time.monotonic()
        self.press_ctrl_c()
        said = self.wait_for(PROMPT)
        return time.monotonic() - begun, said

    def others(self) -> list[psutil.Process]:
        """What runs beside the shell."""
        return [each for each in marked(MARK, self._mark) if each.pid != self._shell.pid]

    def nothing_else_runs(self) -> None:
        """Returns once the shell is alone; fails, naming what is left, when that takes too long."""
        try:
            eventually(lambda: not self.others(), 10)
        except AssertionError:
            left = "\n".join(describe(each)[0] for each in self.others())
            raise AssertionError(f"still there after the prompt:\n{left}") from None
