"""Dispatch: what a pool sees of all this, and the loops of a thread that owns a job.

Used by the pools. The owner of a map or stream feeds it and reads meanwhile, in its own thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from distpool.dispatch.background import Background
from distpool.dispatch.holding import Holding
from distpool.dispatch.judging import Judging
from distpool.dispatch.ledger import Ledger
from distpool.dispatch.limits import Limits
from distpool.dispatch.listing import Listing
from distpool.dispatch.sending import Sending
from distpool.dispatch.sharing import Sharing
from distpool.dispatch.slots import Slot
from distpool.dispatch.turnover import Turnover
from distpool.futures import Outcome, Promise
from distpool.jobs import Job, MapJob, PromisedMap, StreamJob
from distpool.light import Any, Final
from distpool.member import Member
from distpool.transport import Deadline, Waiter

# Plain results that came in one message are small when they are so many, and are let go together: the loop that yields
# them one by one is the interpreter's own, ten times as fast. Arbitrary.
MANY: Final = 32


class Dispatch:
    """The workers of one pool and the jobs that are sent to them."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._ledger = Ledger()
        self._sharing = Sharing(self._ledger, member.reader)
        self._holding = Holding(self._ledger, self._sharing, member.reader)
        self._listing = Listing(self._ledger, member)
        self._limits = Limits(member)
        judging = Judging(self._sharing, self._listing, member)
        self.turnover = Turnover()
        sending = Sending(
            member, self._ledger, self._sharing, self._holding, self._listing, self._limits, judging, self.turnover
        )
        self.is_replenished = False  # workers that die are replaced: no worker now does not mean none later
        # Given on as they are: a million submissions go through the first.
        self.pump = sending.pump
        self.start = self._listing.start
        self.pass_on = self._listing.pass_on
        self._background = Background(self.start, self.pump, member.threads.run)
        self.forget = self._listing.forget
        self.put = self._holding.put
        self.workers = self._ledger.pids
        self.count_spent = self._ledger.spent
        self.is_idle = self._ledger.is_idle
        self.find = self._ledger.find
        self.stop = self._limits.stop

    # -- workers -------------------------------------------------------------------------------------------------

    def add_worker(self, pid: int) -> None:
        """Give a member of the cluster work from now on; harmless to repeat."""
        peer = None if pid == self._member.pid else self._member.peer(pid)
        config = self._member.configs.get(pid)
        progress = getattr(config.process, "progress", None) if config is not None else None
        self._ledger.add(Slot(pid, peer, progress() if progress is not None else None, self.turnover.share))
        self._holding.capacity_came()

    def remove_worker(self, pid: int) -> bool:
        """Give a worker nothing more; what it has comes back when it is gone. False if not one of ours."""
        was_ours, takers = self._ledger.remove(pid)
        for taker in takers:
            taker.complete()
        return was_ours

    def give_up(self, error: BaseException) -> None:
        """There will be no worker any more: every task that waits fails with ``error``, now and later."""
        self._listing.give_up(error)
        self._background.start_all()  # which fails them
        self._holding.wake_drainers()

    def hope(self) -> None:
        """There is a worker again."""
        self._listing.broken = None

    @property
    def broken(self) -> BaseException | None:
        """Why there will be no worker any more."""
        return self._listing.broken

    def take(self, deadline: Deadline) -> int | None:
        """Hold a worker that has nothing to do; None when the deadline passes or there is no worker."""
        return self._holding.take(deadline, lambda: self.is_replenished and self.broken is None)

    def drain(self) -> None:
        """Wait until everything that was submitted is done."""
        self._background.start_all()
        self._holding.drain(lambda: self.broken is not None)

    # -- the owner of a job --------------------------------------------------------------------------------------

    def run(self, job: MapJob) -> list[Any]:
        """Do a whole map: feed it and read results until all are there, in the calling thread."""
        self.start(job)
        try:
            while True:
                job.waiter.done = False  # before looking, so that what comes meanwhile is not overlooked
                self.pump(job)
                if job.is_finished or (job.input_error is not None and not job.has_failed):
                    return job.results()
                self._member.reader.wait(job.waiter)
        except KeyboardInterrupt:
            self.drop(job, interrupt=True)
            raise
        finally:
            self.drop(job)

    def run_aside(self, job: PromisedMap) -> None:
        """Do a whole map in the background; its promise is told."""
        self._background.add(job)

    def stream(self, job: StreamJob) -> Iterator[Any]:
        """Yield the results of a stream; feed it meanwhile. Closing the iterator drops what is left."""
        try:
            self.start(job)
            yield from self._results(job)
        except GeneratorExit:  # perhaps from a garbage collection, in a thread that holds any lock, one of ours too
            job.is_stopped = True
            self._member.reader.run_soon(lambda: self._member.threads.run(lambda: self.drop(job)))
            raise
        except BaseException:
            self.drop(job)
            raise
        self.drop(job)

    def _results(self, job: StreamJob) -> Iterator[Any]:
        while True:
            job.waiter.done = False
            try:
                results = job.take_together()
            except IndexError:
                if job.is_finished:
                    break
                self.await_result(job)
                continue
            if job.is_hungry:
                self.pump(job)
            if len(results) >= MANY and not isinstance(results[0], Outcome):
                yield from results
                continue
            results.reverse()
            while results:  # taken off before it is yielded: when the user drops it, it shall be gone
                if isinstance(results[-1], Outcome):
                    results[-1] = results[-1].value()
                yield results.pop()
        if job.input_error is not None:
            raise job.input_error

    def await_result(self, job: StreamJob, deadline: Deadline | None = None) -> bool:
        """Wait until there may be a result to take, feeding the stream; False when the deadline has passed."""
        job.consumer_waits = True
        try:
            self.pump(job)
            return self._member.reader.wait(job.waiter, deadline)
        finally:
            job.consumer_waits = False

    def forsake(self, job: StreamJob) -> None:
        """Do the tasks of a stream whose results nobody takes; it ends by itself."""
        job.forsake()
        self.pass_on(job)
        self.pump(job)

    def recall(self, promise: Promise, deadline: Deadline) -> None:
        """Take the call of a promise back, with those behind it, unless it has begun; wait for the worker's answer."""
        shipment = self._ledger.find(promise)
        if shipment is None or shipment.slot.peer is None:
            return
        started = shipment.started()
        if started is not None and any(item[1] is promise for item in shipment.run.items[: started[0]]):
            return  # the worker would say the same
        waiter = Waiter()
        self._sharing.recall(shipment, 0, waiter.complete)
        self._member.reader.wait(waiter, deadline, eager=True)

    def sweep(self) -> None:
        """Take single calls back that have not begun, and forget those that were cancelled."""
        shipments, jobs = self._ledger.mark_calls()
        for shipment in shipments:
            self._sharing.recall(shipment, 0)
        for job in jobs:
            job.sweep()
        self._holding.wake_drainers()

    def schedule(self, job: StreamJob) -> None:
        """Have a call thread pump."""
        self._member.threads.run(lambda: self.pump(job))

    def drop(self, job: Job, interrupt: bool = False) -> None:
        """Nobody wants the job's results any more: what has not started does not, what runs may be interrupted."""
        job.is_stopped = True
        for shipment in self._ledger.drop(job):
            if shipment.slot.peer is not None:
                self._sharing.recall(shipment, 0)
                if interrupt:
                    self._limits.stop(shipment, None)
        self._listing.end(job)
