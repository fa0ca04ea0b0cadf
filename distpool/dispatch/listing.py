"""Jobs, from being taken on to the end, and the end of all: that there will be no worker any more.

Used by ``front`` and the rooms below, in any thread. Owns: why the pool is broken, if it is.
"""

from __future__ import annotations

from distpool import messages as m
from distpool.dispatch.ledger import Ledger
from distpool.dispatch.slots import Slot
from distpool.futures import Raised
from distpool.jobs import Job
from distpool.member import Member


class Listing:
    """The jobs that a pool has taken on."""

    def __init__(self, ledger: Ledger, member: Member) -> None:
        self._ledger = ledger
        self._threads = member.threads
        self.broken: BaseException | None = None  # why there will be no worker any more

    def start(self, job: Job) -> None:
        """Take a job on; its owner calls ``pump``."""
        self._ledger.enlist(job)
        if self.broken is not None:
            self._fail_waiting(job)

    def end(self, job: Job) -> None:
        """The job is done: workers forget its callable."""
        self._ledger.strike(job)
        if not job.is_kept:
            self.forget(job.number)
        job.release()

    def pass_on(self, job: Job) -> None:
        """The job gets no more tasks, but those it has are done: it ends by itself."""
        job.is_passing = True
        self.end_if_passed(job)

    def end_if_passed(self, job: Job) -> None:
        """End a job that gets no more tasks when it has none left."""
        if not job.is_passing or job.is_hungry or self._ledger.is_busy_with(job):
            return
        self.end(job)
        if job.is_hungry:  # somebody who had it already gave it one more task
            self.start(job)

    def forget(self, number: int) -> None:
        """Let all workers drop a callable."""
        for slot in self._ledger.slots():
            _forget(slot, number)

    def give_up(self, error: BaseException) -> None:
        """There will be no worker any more: every task that waits fails with ``error``, now and later."""
        self.broken = error
        for job in self._ledger.unfinished_jobs():
            self.fail_if_broken(job)

    def fail_if_broken(self, job: Job) -> None:
        """Let a call thread fail what waits, if nobody will ever do it: it may read the user's input."""
        if self.broken is not None:
            self._threads.run(lambda: self._fail_waiting(job))

    def _fail_waiting(self, job: Job) -> None:
        assert self.broken is not None
        job.stop_reading(self.broken)
        while (run := job.next_run(1024)) is not None:
            for index in range(len(run.items)):
                job.settle(run, run.first + index, [Raised(self.broken)])
        job.demand()


def _forget(slot: Slot, number: int) -> None:
    if slot.peer is not None and number in slot.peer.known_functions:
        slot.peer.known_functions.discard(number)
        slot.peer.send(m.FORGET, ref=number)
