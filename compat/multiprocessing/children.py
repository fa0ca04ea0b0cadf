"""The workers of pools as ``multiprocessing`` shows processes: for ``active_children()``, and for those who look.

They are children of a fork server, not of this process, so their exit codes stay with distpool, which tells them in its
errors; everything else is as for any process object.
"""

from __future__ import annotations

import contextlib
import multiprocessing.process
import os
import signal
import time
import weakref

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Pool(Protocol):
        """What is asked of a pool."""

        @property
        def _pool(self) -> list[PoolWorker]: ...


# How often a wait looks where the system cannot tell of a process's end. Arbitrary.
LOOK_SECONDS = 0.02
# What the standard library says of a process whose exit code it cannot learn.
UNKNOWN = 255

pools: weakref.WeakSet[Pool] = weakref.WeakSet()  # that have not ended


def active_children() -> list[Any]:
    """Return the living child processes, the workers of open pools among them."""
    workers = [worker for pool in list(pools) for worker in pool._pool if worker.is_alive()]
    return [*multiprocessing.process.active_children(), *workers]


class PoolWorker(multiprocessing.process.BaseProcess):
    """One worker of a pool."""

    def __init__(self, name: str, identity: tuple[int, ...], os_pid: int) -> None:
        self._identity = identity
        self._config: dict[str, Any] = {"daemon": True}
        self._parent_pid = os.getpid()
        self._popen = Handle(os_pid)
        self._closed = False
        self._name = name

    @property
    def sentinel(self) -> int:
        """A descriptor that becomes readable when it has ended."""
        self._check_closed()  # type: ignore[attr-defined]  # not in the types
        return self._popen.sentinel


class Handle:
    """What a process object asks its process by."""

    def __init__(self, os_pid: int) -> None:
        self.pid = os_pid
        self.returncode: int | None = None
        self._sentinel = -1
        # Now, as long as the number is surely this process's.
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._sentinel = os.pidfd_open(os_pid)

    @property
    def sentinel(self) -> int:
        """As of the process object; ValueError where the system has none."""
        if self._sentinel < 0:
            raise ValueError("this system has no descriptor that tells of the end of such a process")
        return self._sentinel

    def poll(self, flag: int = 0) -> int | None:
        """Return None while it lives."""
        if self.returncode is None and not self._lives():
            self.returncode = UNKNOWN
        return self.returncode

    def _lives(self) -> bool:
        if self._sentinel >= 0:
            from multiprocessing.connection import wait

            return not wait([self._sentinel], timeout=0)
        return self._send(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, at most ``timeout`` seconds."""
        if self._sentinel >= 0:
            from multiprocessing.connection import wait

            wait([self._sentinel], timeout)
        else:
            end = None if timeout is None else time.monotonic() + timeout
            while self._lives() and (end is None or time.monotonic() < end):
                time.sleep(LOOK_SECONDS)
        return self.poll()

    def terminate(self) -> None:
        """Send it SIGTERM. The pool puts another one in its place."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL. The pool puts another one in its place."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> bool:
        try:
            if self._sentinel >= 0 and number:
                signal.pidfd_send_signal(self._sentinel, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Give the descriptor back."""
        fd, self._sentinel = self._sentinel, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
