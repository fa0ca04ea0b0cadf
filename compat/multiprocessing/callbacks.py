"""The one thread of a pool in which callbacks run, one after the other, in the order in which results came.

As the standard library's thread for results, but it exists only while there is something to call, and a callback that
raises ends neither it nor the pool.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable


class Callbacks:
    """Calls to make, in order. ``run_aside`` lends a thread to the first that waits."""

    def __init__(self, run_aside: Callable[[Callable[[], object]], object]) -> None:
        self._run_aside = run_aside
        self._calls: deque[Callable[[], object]] = deque()
        self._lock = threading.Lock()  # protects _is_running
        self._is_running = False
        self._idle = threading.Event()  # nothing is called, and nothing waits to be
        self._idle.set()

    def add(self, call: Callable[[], object]) -> None:
        """Have a call made soon. Does not block: results are told of on the reading thread."""
        self._calls.append(call)
        if self._is_running:  # it looks once more, after it has said that it stops
            return
        with self._lock:
            if self._is_running:
                return
            self._is_running = True
            self._idle.clear()
        self._run_aside(self._run)

    def _run(self) -> None:
        while True:
            while self._calls:
                call = self._calls.popleft()
                try:
                    call()
                except BaseException:  # the user's code
                    _report()
                del call
            with self._lock:
                self._is_running = False
            if not self._calls:
                break
            with self._lock:
                if self._is_running:  # another thread has taken over
                    return
                self._is_running = True
        with self._lock:
            if not self._is_running:
                self._idle.set()

    def wait(self) -> None:
        """Wait until nothing is to be called any more."""
        self._idle.wait()


def _report() -> None:
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
