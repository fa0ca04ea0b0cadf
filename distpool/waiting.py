"""One thread's wait for one event, and how long it may take.

Used by every room that waits. A ``Waiter`` is made by the thread that waits and completed by whoever brings the event,
in any thread; between the two ``Reader.wait`` puts the thread to use or to sleep.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from distpool.light import Final

monotonic = time.monotonic

# More seconds than this some systems refuse to wait in one go. Arbitrary: a day.
LONGEST_SECONDS: Final = 86400.0


class Deadline:
    """A time limit that several steps share, in seconds from now; None has no end.

    >>> Deadline(None).remaining() is None, Deadline(0).has_passed
    (True, True)
    """

    __slots__ = ("_at",)

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else monotonic() + seconds

    def remaining(self) -> float | None:
        """Seconds left, never negative; None when there is no limit."""
        return None if self._at is None else max(0.0, self._at - monotonic())

    def pause(self) -> float | None:
        """As ``remaining``, but no longer than systems can wait in one go: for waits that look again."""
        left = self.remaining()
        return left if left is None or left < LONGEST_SECONDS else LONGEST_SECONDS

    @property
    def has_passed(self) -> bool:
        """True when the limit is over."""
        return self._at is not None and monotonic() >= self._at


class Waiter:
    """One thread's wait for one event. Whoever brings the event calls ``complete``; ``Reader.wait`` does the rest.

    For those who build on a pool: ``WorkerPool.wait_for`` waits with it.

    >>> import threading
    >>> from distpool import WorkerPool
    >>> waiter = Waiter()
    >>> with WorkerPool(processes=1) as pool:
    ...     threading.Timer(0.01, waiter.complete).start()
    ...     pool.wait_for(waiter, timeout=60)
    True
    """

    __slots__ = ("_lock", "done", "wakes")

    def __init__(self) -> None:
        self.done = False
        self.wakes: Callable[[], None] | None = None  # ends the poll of its thread, while that leads a reader
        self._lock: threading.Lock | None = None  # made only when its thread must sleep: most never do

    def complete(self) -> None:
        """Say that the event is there. Safe from any thread, any number of times."""
        self.done = True
        self.wake()

    def wake(self) -> None:
        """Let its thread look again, be it done or called to lead."""
        end_poll = self.wakes
        if end_poll is not None:
            end_poll()
        lock = self._lock
        if lock is not None:
            try:  # noqa: SIM105  # suppress() takes ten times as long
                lock.release()
            except RuntimeError:  # it is awake already
                pass

    def sleep(self, timeout: float | None) -> None:
        """Wait for ``wake``. The lock must exist before the waiter is made known (``prepare_to_sleep``)."""
        assert self._lock is not None
        self._lock.acquire(timeout=-1 if timeout is None else timeout)

    def prepare_to_sleep(self) -> None:
        """Make ``wake`` effective from now on."""
        if self._lock is None:
            lock = threading.Lock()
            lock.acquire()
            self._lock = lock
