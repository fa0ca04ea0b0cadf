"""Threads of the driver in tests: a hang is an error of the test after its time, and not of the whole run.

Unlike the standard library's executors nothing here waits for a thread without a limit: a thread that never ends is a
daemon, and the leak check names it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from support.leaks import eventually


def interrupt_when(is_time: Callable[[], object]) -> threading.Thread:
    """Sends SIGINT to this process as soon as `is_time()` and its main thread is asleep: not on its way to where it
    shall be hit. A signal between Python's last look for signals and the system call that waits is seen only after that
    call, in any program; on a busy machine a thread may stand there for long.
    """

    def interrupt() -> None:
        eventually(is_time)
        eventually(_main_thread_sleeps)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, name="interrupt", daemon=True)
    thread.start()
    return thread


def _main_thread_sleeps() -> bool:
    """Whether it does so now and a moment later: one that only waits for the interpreter goes on between."""
    if not _sleeps_now():
        return False
    time.sleep(0.002)
    return _sleeps_now()


def _sleeps_now() -> bool:
    try:
        with open(f"/proc/self/task/{threading.main_thread().native_id}/stat", "rb") as stat:
            return stat.read().rpartition(b") ")[2].startswith(b"S")
    except FileNotFoundError:
        return True  # another system, which does not tell


class Aside:
    """A call that runs in a thread of its own: `Aside(f, *args).result()`."""

    def __init__(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(f, args, kwargs), name=f"aside {f}", daemon=True)
        self._thread.start()

    def _run(self, f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            self._value = f(*args, **kwargs)
        except BaseException as error:  # raised by result()
            self._error = error

    def is_done(self, after: float = 0) -> bool:
        """Whether the call has ended, or does within `after` seconds."""
        self._thread.join(after)
        return not self._thread.is_alive()

    def result(self, timeout: float = 30) -> Any:
        """What the call returned or raised; AssertionError when it has not ended in time."""
        assert self.is_done(timeout), f"{self._thread.name} still runs after {timeout} s"
        if self._error is not None:
            raise self._error
        return self._value
