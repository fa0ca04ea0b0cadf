"""What comes from workers: results, which go to their jobs, and the news that one is gone.

Told by shipments, on the reading thread. Nothing is opened here that could run the user's code.
"""

from __future__ import annotations

import time

from distpool import messages as m
from distpool.bundles import unbundle
from distpool.dispatch.holding import Holding
from distpool.dispatch.judging import Judging
from distpool.dispatch.ledger import Ledger
from distpool.dispatch.limits import too_late
from distpool.dispatch.listing import Listing
from distpool.dispatch.sharing import Sharing
from distpool.dispatch.slots import Shipment
from distpool.dispatch.turnover import Turnover
from distpool.envelopes import CALL
from distpool.errors import ProcessExitedException
from distpool.futures import Outcome, Raised, Unopened
from distpool.jobs import Job, Run
from distpool.light import Any
from distpool.member import Member
from distpool.pickling import load
from distpool.tallies import tasks_done
from distpool.wire import Frame

monotonic = time.monotonic


class Results:
    """Takes what becomes of shipments: their ``Receiver``."""

    def __init__(
        self,
        ledger: Ledger,
        sharing: Sharing,
        holding: Holding,
        listing: Listing,
        judging: Judging,
        turnover: Turnover,
        member: Member,
    ) -> None:
        self._ledger = ledger
        self._sharing = sharing
        self._holding = holding
        self._listing = listing
        self._judging = judging
        self._turnover = turnover
        self._member = member

    def arrived(self, shipment: Shipment, frame: Frame) -> None:
        """Put results away, and give their worker more."""
        job, start, count = shipment.job, shipment.done, frame.whence
        is_last = bool(frame.flags & m.FLAG_LAST)
        if count:
            if not start:
                shipment.slot.measure(shipment, frame.ref / 1e9)
            shipment.slot.heard = monotonic()
            if shipment.slot.lag is not None:
                job.result_bytes = (len(frame.body) + sum(buffer.nbytes for buffer in frame.buffers if buffer)) / count
            job.learn(count, frame.ref / 1e9)
            tasks_done(count, frame.ref / 1e9)
        is_retired = self._ledger.progress(shipment, count, is_last)
        if count and not shipment.is_dropped:
            self._settle(shipment, start, self._opened(shipment, frame, count))
        if is_last:
            if is_retired:
                self._turnover.retired(shipment.slot.pid)
            self._listing.end_if_passed(job)
            self._holding.capacity_came()

    def _opened(self, shipment: Shipment, frame: Frame, count: int) -> list[Any]:
        """Return results: plain ones opened here (no strange code can run), the others still to be opened."""
        try:
            frame.raise_error()
            if not frame.flags & m.FLAG_APART:
                with self._member.opening():
                    values: list[Any] = load(frame.body, frame.buffers)
                return values
            member, pid = self._member, shipment.slot.pid
            return [Unopened(member, pid, item, frame.claims) for item in unbundle(frame.body, frame.buffers)[1]]
        except Exception as error:  # a payload that does not open costs these tasks, never the connection
            return [Raised(error)] * count

    def _settle(self, shipment: Shipment, start: int, results: list[Any]) -> None:
        job, run = shipment.job, shipment.run
        if not (results and isinstance(results[0], Outcome)):
            job.settle(run, run.first + start, results)
            return
        if job.retries is not None:
            self._ledger.put_last(shipment.slot)  # where a task has failed is not where it is tried again
        doubtful: list[tuple[int, Outcome]] = []
        for index, outcome in enumerate(results, start):
            if outcome.ok and job.retries is not None and isinstance(outcome, Unopened):
                doubtful.append((index, outcome))
            elif outcome.ok:
                job.settle(run, run.first + index, [outcome])
            elif shipment.late == index:
                self._judging.failed(job, run, index, Raised(too_late(job)))
            else:
                self._judging.failed(job, run, index, outcome)
        if doubtful:
            self._judging.doubtful(job, run, doubtful)

    # -- death ---------------------------------------------------------------------------------------------------

    def lost(self, shipment: Shipment, error: BaseException) -> None:
        """A worker is gone: the task it was in fails, what had not started (or not been sent back) goes to others."""
        begun = _begun(shipment)  # before it is off the list of what its worker has
        self._ledger.write_off(shipment)
        if shipment.is_dropped:
            return
        job, run, done = shipment.job, shipment.run, shipment.done
        culprit = begun - 1 if begun > done else None
        rest = [index for index in range(done, shipment.count) if index != culprit]
        for index in reversed(rest):
            job.put_first(Run(run.first + index, [run.items[index]], run.attempt))
        if culprit is not None:
            self._blame(shipment, culprit, error)
        self._listing.end_if_passed(job)
        self._listing.fail_if_broken(job)
        self._sharing.feed()

    def _blame(self, shipment: Shipment, culprit: int, error: BaseException) -> None:
        if shipment.late == culprit:
            error = too_late(shipment.job)
        elif isinstance(error, ProcessExitedException):
            error.running = _describe(shipment.job, shipment.run.items[culprit])
            error.remedy = shipment.job.remedy
        self._judging.failed(shipment.job, shipment.run, culprit, Raised(error))


def _begun(shipment: Shipment) -> int:
    """How many tasks had begun. Without a page we blame the first whose result is missing."""
    started = shipment.started()
    if started is not None:
        return started[0]
    if shipment.slot.page is not None:
        return 0
    in_flight = shipment.slot.in_flight
    return shipment.done + 1 if in_flight and shipment is in_flight[0] else 0


def _describe(job: Job, item: Any) -> str:
    """Say in a few words what ran: the callable and its arguments, shortened."""
    import reprlib  # only when something went wrong

    if job.how == CALL:
        return f"{job.name}(...)"
    return f"{job.name}({reprlib.repr(item)})"
