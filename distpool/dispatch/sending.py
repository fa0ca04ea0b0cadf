"""Tasks into envelopes, envelopes to the workers that have room.

Runs user code (the input's iterator, pickling of items), so it is entered by the thread that owns the job or by a call
thread; the reading thread only for jobs whose tasks are pickled already.
"""

from __future__ import annotations

import threading

from distpool import messages as m
from distpool.dispatch.here import Here
from distpool.dispatch.holding import Holding
from distpool.dispatch.judging import Judging
from distpool.dispatch.ledger import Ledger
from distpool.dispatch.limits import Limits
from distpool.dispatch.listing import Listing
from distpool.dispatch.results import Results
from distpool.dispatch.sharing import Sharing
from distpool.dispatch.slots import Shipment, Slot
from distpool.dispatch.turnover import Turnover
from distpool.futures import Raised
from distpool.interrupts import DeferredInterrupt
from distpool.jobs import Job, Run
from distpool.member import Member
from distpool.peer import Peer
from distpool.pickling import Parcel


class Sending:
    """Sends the tasks of jobs. Has a hand in every room above it, because it begins what they go on with."""

    def __init__(
        self,
        member: Member,
        ledger: Ledger,
        sharing: Sharing,
        holding: Holding,
        listing: Listing,
        limits: Limits,
        judging: Judging,
        turnover: Turnover,
    ) -> None:
        self._member = member
        self._ledger = ledger
        self._sharing = sharing
        self._holding = holding
        self._listing = listing
        self._limits = limits
        self._judging = judging
        self._turnover = turnover
        self._results = Results(ledger, sharing, holding, listing, judging, turnover, member)
        self._here = Here(ledger, holding, judging)
        self._giving_way: dict[int, bool] = {}  # threads that are in _give_way, and whether to go round once more

    def pump(self, job: Job) -> None:
        """Send the job's tasks to workers that have room, until there is no room or no task. Runs user code."""
        was_in_vain = False
        while job.is_ready:
            slot, size = self._ledger.reserve(job, job.next_size(max(1, len(self._ledger))))
            if slot is None:
                break
            run = None
            try:
                run = job.next_run(size)
            finally:
                if run is None:
                    self._ledger.unreserve(job, slot, size)
            was_sent = run is not None and self._ship(job, slot, run, size)
            was_in_vain = was_in_vain or not was_sent
            if run is None:
                break
        if was_in_vain:
            self._give_way()
        if not job.is_hungry:
            self._listing.end_if_passed(job)
            self._sharing.balance()

    def _give_way(self) -> None:
        """Feed others: they may have found no room while a worker was reserved for nothing."""
        ident = threading.get_ident()
        if ident in self._giving_way:  # one of those others, likewise in vain: a thousand of them must not be nested
            self._giving_way[ident] = True
            return
        self._giving_way[ident] = True
        try:
            while self._giving_way[ident]:
                self._giving_way[ident] = False
                self._holding.capacity_came()
        finally:
            del self._giving_way[ident]

    def _ship(self, job: Job, slot: Slot, run: Run, size: int) -> bool:
        """Send a run; False when it cannot be pickled, or not be sent."""
        if len(run.items) > size and self._turnover.is_on:  # it came back, and this worker may not have all of it
            job.put_first(Run(run.first + size, run.items[size:], run.attempt))
            run = Run(run.first, run.items[:size], run.attempt)
        try:
            parcel, is_apart = job.pack(run, slot.pid)
            self._member.check(parcel)
            if slot.peer is not None:
                _introduce(job, slot.peer)
        except BaseException as error:  # an item that cannot be pickled
            self._ledger.unreserve(job, slot, size)
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                job.put_first(run)  # the user's Ctrl-C, and nothing that is wrong with an item
                self._holding.capacity_came()
                raise
            self._set_apart(job, run, error)
            return False
        job.item_bytes = parcel.nbytes / len(run.items)
        shipment = Shipment(self._results, job, slot, run)
        if slot.peer is None:
            self._ledger.book(shipment, size)
            self._member.threads.run(lambda: self._here.run(shipment))
            return True
        with DeferredInterrupt():  # what is booked and never sent would be waited for without end
            return self._send(shipment, slot.peer, parcel, m.FLAG_APART if is_apart else 0, size)

    def _send(self, shipment: Shipment, peer: Peer, parcel: Parcel, flags: int, size: int) -> bool:
        job = shipment.job
        if job.timeout is not None:
            flags |= m.FLAG_TIMED
        shipment.request = peer.next_request()
        is_spent = self._ledger.book(shipment, size)
        peer.pending[shipment.request] = shipment
        try:
            sent = peer.send_parcel(m.TASKS, parcel, flags, shipment.request, whence=shipment.count, ref=job.number)
        except Exception as error:  # no descriptor is left for what goes along, or no memory
            if peer.pending.pop(shipment.request, None) is not None:
                self._ledger.cancel(shipment)
                self._set_apart(job, shipment.run, error)
            return False
        if not sent and peer.pending.pop(shipment.request, None) is not None:
            shipment.lost(self._member.cluster.absence(shipment.slot.pid))
        elif job.timeout is not None:
            self._limits.watch(shipment, job.timeout)
        if is_spent:
            self._turnover.spent()
        for index in job.unwanted(shipment.run):
            self._limits.stop(shipment, index)
        return True

    def _set_apart(self, job: Job, run: Run, error: BaseException) -> None:
        """Some task of the run cannot be pickled: that one fails, the others go on alone."""
        if len(run.items) == 1:
            self._judging.failed(job, run, 0, Raised(error))
            return
        for index, item in reversed(list(enumerate(run.items))):
            job.put_first(Run(run.first + index, [item], run.attempt))


def _introduce(job: Job, peer: Peer) -> None:
    """Send the callable, unless the worker has it."""
    if job.number not in peer.known_functions:
        # Sent before it is noted: a second thread may send it once more, but never tasks before their callable.
        segment = None if job.function.globals else job.segment()
        peer.send_parcel(m.FUNCTION, job.function, ref=job.number, segment=segment)
        peer.known_functions.add(job.number)
