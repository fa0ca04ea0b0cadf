"""The books of one pool: which worker has what, which jobs there are, who waits for them. The one lock is in here.

Used by every other room of dispatch, from any thread. Each method is one step that no other thread sees half done. It
returns what must be done about it, and the caller does that after the lock: nothing is sent, settled or called back
under it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from distpool.dispatch.slots import Shipment, Slot
from distpool.envelopes import CALL
from distpool.jobs import CallJob, InputJob, Job, Run
from distpool.light import Any
from distpool.transport import Waiter

monotonic = time.monotonic


class Ledger:
    """The state of one pool's dispatch."""

    def __init__(self) -> None:
        # Protects the fields below, the fields of slots and shipments, and what a job says is under dispatch's lock.
        self._lock = threading.Lock()
        self._slots: dict[int, Slot] = {}  # by pid; the first idle one gets the next envelope
        self._lost: set[int] = set()  # died with work in flight, and the pool has not removed them yet
        self._jobs: OrderedDict[Job, None] = OrderedDict()  # may be thousands: each step takes some of them only
        self._takers: deque[Waiter] = deque()  # threads that wait for an idle worker
        self._drainers: list[Waiter] = []  # threads that wait for the end of all work

    # -- workers -------------------------------------------------------------------------------------------------

    def add(self, slot: Slot) -> None:
        """Open a slot, unless its worker has one."""
        with self._lock:
            self._slots.setdefault(slot.pid, slot)

    def remove(self, pid: int) -> tuple[bool, list[Waiter]]:
        """Close a slot; return whether the worker was one of ours, and the takers who wait in vain from now on."""
        with self._lock:
            was_ours = self._slots.pop(pid, None) is not None or pid in self._lost
            self._lost.discard(pid)
            return was_ours, [] if self._slots else list(self._takers)

    def pids(self) -> list[int]:
        """The workers, in the order of their turns."""
        with self._lock:
            return list(self._slots)

    def slots(self) -> list[Slot]:
        """Their slots."""
        with self._lock:
            return list(self._slots.values())

    def __len__(self) -> int:
        return len(self._slots)

    def put_last(self, slot: Slot) -> None:
        """Let the other workers have their turn first."""
        with self._lock:
            if self._slots.get(slot.pid) is slot:
                self._put_last(slot)

    def _put_last(self, slot: Slot) -> None:
        self._slots[slot.pid] = self._slots.pop(slot.pid)

    def spent(self) -> int:
        """How many workers have had all the tasks that they may have: they are replaced when these are done."""
        with self._lock:
            return sum(1 for slot in self._slots.values() if slot.left <= 0)

    # -- who waits -----------------------------------------------------------------------------------------------

    def hold(self, waiter: Waiter, may_come: Callable[[], bool]) -> tuple[int | None, bool]:
        """Hold an idle worker, else queue ``waiter``; return the pid, and whether it is queued.

        Neither when there is no worker and none ``may_come``.
        """
        with self._lock:
            for slot in self._slots.values():
                if not slot.is_held and not slot.load:
                    slot.is_held = True
                    self._put_last(slot)
                    return slot.pid, False
            is_hopeful = bool(self._slots) or may_come()
            if is_hopeful:
                self._takers.append(waiter)
            return None, is_hopeful

    def let_go(self, pid: int) -> bool:
        """Take a held worker back; False if nobody held it."""
        with self._lock:
            slot = self._slots.get(pid)
            if slot is None or not slot.is_held:
                return False
            slot.is_held = False
            return True

    def is_idle(self) -> bool:
        """True when ``hold`` would return a worker."""
        with self._lock:
            return any(not slot.is_held and not slot.load for slot in self._slots.values())

    def next_taker(self) -> Waiter | None:
        """Return who is to be called next; it leaves the queue, so that two free workers never call the same."""
        if not self._takers:  # whoever comes after this sees the room that we were called for
            return None
        with self._lock:
            return self._takers.popleft() if self._takers else None

    def leave_takers(self, waiter: Waiter) -> None:
        """Take a waiter off the queue, if it is still there."""
        with self._lock:
            if waiter in self._takers:
                self._takers.remove(waiter)

    def await_end(self, waiter: Waiter, is_over: Callable[[], bool]) -> bool:
        """Queue ``waiter`` for the next change, unless everything is done or over; return whether it is queued."""
        with self._lock:
            is_busy = any(slot.load for slot in self._slots.values()) or any(job.is_hungry for job in self._jobs)
            is_busy = is_busy and not is_over()
            if is_busy:
                self._drainers.append(waiter)
            return is_busy

    def pop_drainers(self) -> list[Waiter]:
        """Return all who wait for the end of the work; they look, and queue again."""
        if not self._drainers:  # whoever comes after this sees what we were called for
            return []
        with self._lock:
            drainers, self._drainers = self._drainers, []
            return drainers

    # -- jobs ----------------------------------------------------------------------------------------------------

    def enlist(self, job: Job) -> None:
        """Have a job on the list."""
        with self._lock:
            if not job.is_listed:
                job.is_listed = True
                self._jobs[job] = None

    def strike(self, job: Job) -> None:
        """Take a job off the list."""
        with self._lock:
            if job.is_listed:
                job.is_listed = False
                del self._jobs[job]

    def hungry_jobs(self, most: int | None = None) -> list[Job]:
        """Jobs that have tasks, so many at most; each time another one is first."""
        jobs: list[Job] = []
        with self._lock:
            for job in self._jobs:
                if job.is_hungry:
                    jobs.append(job)
                    if len(jobs) == most:
                        break
            if jobs:
                self._jobs.move_to_end(next(iter(self._jobs)))
        return jobs

    def unfinished_jobs(self) -> list[Job]:
        """The jobs whose owners would wait for ever without workers."""
        with self._lock:
            return [job for job in self._jobs if job.is_hungry or isinstance(job, InputJob)]

    def is_busy_with(self, job: Job) -> bool:
        """True while tasks of the job are being packed or in flight: they may come back, and need it then."""
        with self._lock:
            return bool(job.reserved) or any(shipment.job is job for shipment in self._shipments())

    # -- envelopes -----------------------------------------------------------------------------------------------

    def _shipments(self) -> list[Shipment]:
        return [shipment for slot in self._slots.values() for shipment in slot.in_flight]

    def reserve(self, job: Job, size: int) -> tuple[Slot | None, int]:
        """Choose the worker with the least to do, if it has room for one more envelope of this job.

        Returns also how many tasks, ``size`` at most, it may be sent; they are deducted from what it has left.
        """
        with self._lock:
            best: Slot | None = None
            window = job.window()
            for slot in self._slots.values():
                load = slot.load
                room = window if slot.lag is None else job.window(slot.lag)
                if not slot.is_held and load < room and slot.left > 0 and (best is None or load < best.load):
                    best = slot
                    if not load:
                        break
            if best is not None:
                best.reserved += 1
                job.reserved += 1
                size = size if size < best.left else int(best.left)
                best.left -= size
            return best, size

    def unreserve(self, job: Job, slot: Slot, size: int) -> None:
        """There was nothing to send."""
        with self._lock:
            slot.reserved -= 1
            slot.left += size
            job.reserved -= 1

    def book(self, shipment: Shipment, size: int) -> bool:
        """What was reserved is in flight from now on: one step, so that its end is seen as room by everyone.

        ``size`` tasks were reserved. Returns whether the worker is spent: it may have no more than it has.
        """
        slot = shipment.slot
        with self._lock:
            slot.in_flight.append(shipment)
            slot.reserved -= 1
            slot.left += size - shipment.count
            shipment.job.reserved -= 1
            return slot.left <= 0

    def cancel(self, shipment: Shipment) -> None:
        """It was booked, and could not be sent."""
        with self._lock:
            shipment.slot.left += shipment.count
            self._unbook(shipment)

    def unbook(self, shipment: Shipment) -> None:
        """Its worker has it no more."""
        with self._lock:
            self._unbook(shipment)

    def _unbook(self, shipment: Shipment) -> None:
        if shipment in shipment.slot.in_flight:
            shipment.slot.in_flight.remove(shipment)

    def write_off(self, shipment: Shipment) -> None:
        """Its worker is gone, and gets nothing more."""
        with self._lock:
            self._unbook(shipment)
            if self._slots.pop(shipment.slot.pid, None) is not None:
                self._lost.add(shipment.slot.pid)

    def progress(self, shipment: Shipment, count: int, is_last: bool) -> bool:
        """Note that ``count`` more results have come; after the last what was not run goes back to the job.

        Returns whether the worker has done all the tasks that it may do: then its slot is closed.
        """
        job, run, slot = shipment.job, shipment.run, shipment.slot
        with self._lock:
            shipment.done += count
            shipment.heard = monotonic()
            if not is_last:
                return False
            rest = run.items[shipment.done : shipment.count]
            shipment.count = shipment.done  # nothing is left to take back, should a worker's answer come late
            if rest and not shipment.is_dropped:  # in the job again before it is out of here: drain looks at both
                job.put_first(Run(run.first + shipment.done, rest, run.attempt))
            slot.left += len(rest)
            self._unbook(shipment)
            return slot.left <= 0 and not slot.load and self._slots.pop(slot.pid, None) is not None

    # -- taking back ---------------------------------------------------------------------------------------------

    def mark_recalls(
        self, choose: Callable[[Iterable[Shipment], int], list[tuple[Shipment, int]]]
    ) -> tuple[bool, list[tuple[Shipment, int]]]:
        """Let ``choose`` say which shipments shall give tasks to the idle workers, and how many they keep.

        Returns also whether there was an idle worker, and something in flight, for which it may choose later.
        """
        with self._lock:
            # Plain loops: this is looked at twice for each single call, mostly in vain.
            idle = 0
            for slot in self._slots.values():
                if not slot.in_flight and not slot.reserved and not slot.is_held:
                    idle += 1
            if not idle:
                return False, []
            candidates = []
            for slot in self._slots.values():
                for shipment in slot.in_flight:
                    if _can_share(shipment):
                        candidates.append(shipment)
            if not candidates:
                return False, []
            chosen = choose(candidates, idle)
            for shipment, _ in chosen:
                shipment.is_recalled = True
            return True, chosen

    def mark_calls(self) -> tuple[list[Shipment], list[CallJob]]:
        """Return the jobs of single calls, and their shipments that something can be taken back from."""
        with self._lock:
            shipments = [
                shipment for shipment in self._shipments() if shipment.job.how == CALL and _can_share(shipment)
            ]
            for shipment in shipments:
                shipment.is_recalled = True
            return shipments, [job for job in self._jobs if isinstance(job, CallJob)]

    def cut(self, shipment: Shipment, count: int | None) -> list[Any]:
        """A recall is answered: the envelope ends after ``count`` tasks, None: as it is. Return what it gave up."""
        with self._lock:
            shipment.is_recalled = False
            if count is None:
                return []
            back = shipment.run.items[count : shipment.count]
            if back:
                shipment.count = count
                shipment.slot.left += len(back)
            return [] if shipment.is_dropped else back

    def drop(self, job: Job) -> list[Shipment]:
        """Nobody wants the results of a job any more; return what is in flight of it."""
        with self._lock:
            shipments = [shipment for shipment in self._shipments() if shipment.job is job]
            for shipment in shipments:
                shipment.is_dropped = True
            return shipments

    def find(self, future: object) -> Shipment | None:
        """Return the shipment that the call of a future, or another promise, is in."""
        with self._lock:
            for shipment in self._shipments():
                if shipment.job.how == CALL and any(item[1] is future for item in shipment.run.items[: shipment.count]):
                    return shipment
        return None


def _can_share(shipment: Shipment) -> bool:
    """True when some of its tasks could be taken back. An explicit batch size is honoured as given."""
    return (
        shipment.waiting > 0
        and not shipment.is_recalled
        and not shipment.is_dropped
        and shipment.job.batch_size is None
        and shipment.slot.peer is not None
    )
