"""Calls of the user's that are made one after the other: callbacks of a pool's futures.

Used by the pools and the drop-ins; given from any thread, the reading one too. They run in a call thread that is lent
as long as there is something to call, so that one that is slow holds back no result. Two things are kept here that
programs rely on with the standard library's executors, which call back in the thread that handles results:

- Who waits for the end of a pool may say that every callback has been made (``expect``, ``wait``).
- A quick callback has been made when those who wait for its future hear that it is done (``add(..., then=...)``), so a
  counter that callbacks add to is right after ``as_completed``. But a callback may wait for what that very thread does
  next; so nobody waits longer for it than a moment.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable

from distpool.light import Final
from distpool.transport import Timer

# What comes after a call comes so much later at most, however long the call takes. Arbitrary: some times as long as the
# interpreter leaves one thread running (5 ms).
PATIENCE_SECONDS: Final = 0.02


class InTurn:
    """Calls to make, in the order in which they were given.

    ``run`` lends a thread, ``call_later`` a timer (``CallThreads``, ``Reader``). Nothing here blocks but ``wait``.
    """

    def __init__(
        self,
        run: Callable[[Callable[[], object]], object],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._run = run
        self._call_later = call_later
        self._lock = threading.Lock()  # protects what follows
        self._made = threading.Condition(self._lock)  # nothing is expected any more
        self._calls: deque[tuple[Callable[[], object], Timer | None]] = deque()
        self._expected = 0
        self._is_running = False
        self._thread: int | None = None  # that makes the calls; meaningful to itself

    def expect(self) -> None:
        """A call will be given, some time: ``wait`` waits until it has been made. Once for each ``add``."""
        with self._lock:
            self._expected += 1

    def excuse(self) -> None:
        """One that was expected will not be given."""
        with self._lock:
            self._tick_off()

    def _tick_off(self) -> None:
        self._expected -= 1
        if self._expected <= 0:
            self._made.notify_all()

    def add(self, call: Callable[[], object], then: Callable[[], None] | None = None) -> None:
        """Make a call that was expected, after those that were given before. Does not block.

        ``then`` is called after it, and at the latest in a moment, when it may be on the reading thread; perhaps twice.
        """
        late = None if then is None else self._call_later(PATIENCE_SECONDS, then)
        with self._lock:
            self._calls.append((call, late))
            if self._is_running:
                return
            self._is_running = True
        self._run(self._make_all)

    def _make_all(self) -> None:
        self._thread = threading.get_ident()
        while self._make_next():
            pass

    def _make_next(self) -> bool:
        with self._lock:
            if not self._calls:
                self._is_running = False
                self._thread = None
                return False
            call, late = self._calls.popleft()
        try:
            call()
        except BaseException:  # the user's code
            _report()
        if late is not None:
            late.run()
        with self._lock:
            self._tick_off()
        return True

    @property
    def is_here(self) -> bool:
        """True in the thread that makes the calls, while it does."""
        return self._thread == threading.get_ident()

    def wait(self) -> None:
        """Wait until every call that is expected has been made; in such a call return at once."""
        if self.is_here:
            return
        with self._made:
            while self._expected > 0:
                self._made.wait()


def _report() -> None:
    threading.excepthook(threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread())))
