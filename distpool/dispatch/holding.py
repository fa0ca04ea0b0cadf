"""Threads that wait: to hold a worker (Julia's take! and put!), or for the end of all work.

Used by ``front`` for the waiting, by the rooms below for ``capacity_came``, which may run on the reading thread.
"""

from __future__ import annotations

from collections.abc import Callable

from distpool.dispatch.ledger import Ledger
from distpool.dispatch.sharing import Sharing
from distpool.transport import Deadline, Reader, Waiter


class Holding:
    """Who waits, and who is called when a worker has room."""

    def __init__(self, ledger: Ledger, sharing: Sharing, reader: Reader) -> None:
        self._ledger = ledger
        self._sharing = sharing
        self._reader = reader

    def take(self, deadline: Deadline, may_come: Callable[[], bool]) -> int | None:
        """Hold a worker that has nothing to do; None when the deadline passes, or without a worker nor hope for one."""
        while True:
            waiter = Waiter()
            pid, is_queued = self._ledger.hold(waiter, may_come)
            if not is_queued:
                return pid
            try:
                if not self._reader.wait(waiter, deadline):
                    return None
            except BaseException:
                if waiter.done:  # the worker that it was called for is another's now
                    self._wake_taker()
                raise
            finally:
                self._ledger.leave_takers(waiter)

    def put(self, pid: int) -> None:
        """Give a held worker back; any other pid is ignored."""
        if self._ledger.let_go(pid):
            self.capacity_came()

    def capacity_came(self) -> None:
        """Some worker has room again."""
        self._sharing.feed()
        self._wake_taker()
        self.wake_drainers()

    def _wake_taker(self) -> None:
        taker = self._ledger.next_taker()
        if taker is not None:
            taker.complete()

    def wake_drainers(self) -> None:
        """Let those who wait for the end of the work look."""
        for waiter in self._ledger.pop_drainers():
            waiter.complete()

    def drain(self, is_over: Callable[[], bool]) -> None:
        """Wait until everything that was submitted is done, or ``is_over`` says that it never will be."""
        while self._ledger.await_end(waiter := Waiter(), is_over):
            self._reader.wait(waiter)
