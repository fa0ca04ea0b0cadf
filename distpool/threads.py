"""Threads for calls that may block: kept for reuse, as many as there are blocked calls.

Used by a member to run the requests that its main thread cannot take. A pool of fixed size would deadlock (a call may
wait for another call to this very process, Julia's rule), so there is no upper limit; an idle thread ends after a
while.

Guarantees: a job given to ``run`` starts at once, in an idle thread or a new one; an error of a job goes to
``threading.excepthook`` and hurts nobody; threads are daemons, so none keeps the process alive.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable

from distpool.copies import tell_in_copies
from distpool.light import Final

# Long enough for a user who works step by step, short enough that a burst's threads do not stay for ever. Arbitrary.
IDLE_SECONDS: Final = 10.0


class CallThreads:
    """Runs each job in a thread of its own, reusing idle ones.

    >>> done = threading.Event()
    >>> CallThreads("example").run(done.set)
    >>> done.wait(5)
    True
    """

    def __init__(
        self, name: str, idle_seconds: float = IDLE_SECONDS, begin: Callable[[], object] | None = None
    ) -> None:
        self._name = name
        self._begin = begin  # what each thread does first
        self._idle_seconds = idle_seconds
        self._idle: deque[_Slot] = deque()  # threads that wait for a job; appended and popped atomically
        tell_in_copies(self)

    def disown(self) -> None:
        """Forget the idle threads, which a forked copy of the process has not."""
        self._idle.clear()

    def run(self, job: Callable[[], object]) -> None:
        """Start ``job`` now; returns without waiting for it."""
        while self._idle:
            try:
                slot = self._idle.pop()
            except IndexError:
                break
            if slot.give(job):
                return
        slot = _Slot()
        slot.give(job)
        threading.Thread(target=self._work, args=(slot,), name=self._name, daemon=True).start()

    def run_unless_over(self, job: Callable[[], object]) -> bool:
        """As ``run``; returns False, and nothing is run, where the interpreter ends and gives no more threads."""
        try:
            self.run(job)
        except RuntimeError as error:
            if "shutdown" not in str(error):  # but for want of memory, or of threads that one may have
                raise
            return False
        return True

    def _work(self, slot: _Slot) -> None:
        if self._begin is not None:
            self._begin()
        while (job := slot.next(self._idle_seconds)) is not None:
            try:
                job()
            except BaseException:
                # The job's own edge has the duty to report; what comes here is a fault of ours, and must be seen.
                threading.excepthook(threading.ExceptHookArgs((*_exc_info(), threading.current_thread())))
            del job
            self._idle.append(slot)
        with contextlib.suppress(ValueError):  # taken off by run(), which has seen that it retired
            self._idle.remove(slot)


class _Slot:
    """Where one thread gets its next job. ``give`` and giving up exclude each other, so no job is lost."""

    __slots__ = ("_job", "_lock", "_ready", "_retired")

    def __init__(self) -> None:
        self._job: Callable[[], object] | None = None
        self._retired = False
        self._lock = threading.Lock()  # protects _job and _retired
        self._ready = threading.Semaphore(0)

    def give(self, job: Callable[[], object]) -> bool:
        with self._lock:
            if self._retired:
                return False
            self._job = job
        self._ready.release()
        return True

    def next(self, timeout: float) -> Callable[[], object] | None:
        was_given = self._ready.acquire(timeout=timeout)
        with self._lock:
            job, self._job = self._job, None
            self._retired = job is None
        if job is not None and not was_given:  # it came just when the time was up
            self._ready.acquire()
        return job


def _exc_info() -> tuple[type[BaseException], BaseException, object]:
    import sys  # only on the way down

    return sys.exc_info()  # type: ignore[return-value]
