"""Who gets what, when: tasks in envelopes to the workers of one pool, and what becomes of them.

Used by the pools, one object per pool. Every task is tracked alone; an envelope is only how tasks travel. A worker has
a small window of envelopes, sized by measured durations; what has not started is taken back when another worker is
idle, or when its worker dies::

    job --next_run--> pump --TASKS--> worker --TASKS_DONE--> arrived --settle--> job
     ^                                   |                       |
     +------ returned <--- TAKE_BACK ----+---- lost, late -------+

Threads: ``pump`` runs user code (input, pickling) and is called by the job's owner or a call thread; everything else
may run on the reading thread and only moves records. Owns: the slots (what each worker has in flight), under one lock;
nothing is sent, settled or called back under it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator

from distpool import messages as m
from distpool.bundles import unbundle
from distpool.errors import ProcessExitedException
from distpool.futures import Outcome, Raised, TaskFuture, Unopened
from distpool.jobs import InputJob, Job, MapJob, Run, StreamJob
from distpool.light import Any, Final
from distpool.member import Member
from distpool.peer import Peer
from distpool.pickling import load
from distpool.tasks import CALL, ONE, PAGE_ENVELOPE, PAGE_NOTES, PAGE_SINCE, PAGE_STARTED
from distpool.transport import Deadline, Waiter
from distpool.wire import Frame

monotonic = time.monotonic

# An envelope that has been silent for so long is stuck in a task that takes longer than expected.
SILENCE_SECONDS: Final = 0.005
# Taking back less work than this costs more than it brings.
WORTH_SECONDS: Final = 0.001
# A task that was interrupted because its time was up has this long to end before its worker is killed.
GRACE_SECONDS: Final = 1.0

_NOTHING_LEFT: Final = 2**64 - 1  # a worker's answer to TAKE_BACK of an envelope it does not have


class Slot:
    """One worker, as dispatch sees it."""

    __slots__ = ("in_flight", "is_held", "page", "peer", "pid", "reserved")

    def __init__(self, pid: int, peer: Peer | None, page: memoryview | None) -> None:
        self.pid = pid
        self.peer = peer  # None for this very process
        self.page = page  # where the worker notes what it does
        self.in_flight: deque[Shipment] = deque()
        self.reserved = 0  # envelopes that are being packed for it
        self.is_held = False  # somebody took it out of the pool, and will put it back

    @property
    def load(self) -> int:
        """Envelopes it has, or is about to get."""
        return len(self.in_flight) + self.reserved


class Shipment:
    """An envelope in flight: which tasks a worker has, and how many of their results have come."""

    __slots__ = (
        "count",
        "dispatch",
        "done",
        "heard",
        "is_dropped",
        "is_recalled",
        "job",
        "late",
        "request",
        "run",
        "slot",
    )

    def __init__(self, dispatch: Dispatch, job: Job, slot: Slot, run: Run) -> None:
        self.dispatch = dispatch
        self.job = job
        self.slot = slot
        self.run = run
        self.request = 0
        self.count = len(run.items)  # less after a part was taken back
        self.done = 0
        self.heard = monotonic()  # when the last result came
        self.is_recalled = False  # a part is being taken back
        self.is_dropped = False  # nobody wants its results
        self.late: int | None = None  # the task whose time was up

    def arrived(self, frame: Frame) -> None:
        """Results of some of its tasks. On the reading thread."""
        self.dispatch.arrived(self, frame)

    def lost(self, error: BaseException) -> None:
        """Its worker is gone. On the reading thread."""
        self.dispatch.lost(self, error)

    def started(self) -> tuple[int, float] | None:
        """Return how many tasks have begun and when the last did (monotonic seconds); None when none has.

        The time is 0.0 when all have ended and their results are on their way.
        """
        page = self.slot.page
        if page is None:
            return None
        for notes in (0, PAGE_NOTES):
            if page[notes + PAGE_ENVELOPE] == self.request:
                return page[notes + PAGE_STARTED], page[notes + PAGE_SINCE] / 1e9
        return None


class _Recall:
    """A TAKE_BACK that waits for its answer."""

    __slots__ = ("_shipment",)

    def __init__(self, shipment: Shipment) -> None:
        self._shipment = shipment

    def arrived(self, frame: Frame) -> None:
        self._shipment.dispatch.taken_back(self._shipment, frame.whence)

    def lost(self, error: BaseException) -> None:
        """The shipment itself is told, too."""


class Dispatch:
    """The workers of one pool and the jobs that are sent to them."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self._lock = threading.Lock()  # protects the fields below, and the fields of slots and shipments
        self._slots: dict[int, Slot] = {}
        self._lost: set[int] = set()  # died with work in flight, and the pool has not removed them yet
        self._jobs: deque[Job] = deque()
        self._takers: deque[Waiter] = deque()  # threads in take() and wait()
        self._drainers: list[Waiter] = []  # threads in drain()
        self._checks_silence = False
        self.is_replenished = False  # workers that die are replaced: no worker now does not mean none later
        self._broken: BaseException | None = None  # why there will be no worker any more

    # -- workers -------------------------------------------------------------------------------------------------

    def add_worker(self, pid: int) -> None:
        """Give a member of the cluster work from now on; harmless to repeat."""
        peer = None if pid == self._member.pid else self._member.peer(pid)
        config = self._member.configs.get(pid)
        progress = getattr(config.process, "progress", None) if config is not None else None
        with self._lock:
            if pid not in self._slots:
                self._slots[pid] = Slot(pid, peer, progress() if progress is not None else None)
        self._capacity_came()

    def remove_worker(self, pid: int) -> bool:
        """Give a worker nothing more; what it has comes back by ``lost`` when it is gone. False if not one of ours."""
        with self._lock:
            was_ours = self._slots.pop(pid, None) is not None or pid in self._lost
            self._lost.discard(pid)
            takers = list(self._takers) if not self._slots else []
        for taker in takers:
            taker.complete()
        return was_ours

    def workers(self) -> list[int]:
        """The pids that have a slot, in the order of their coming."""
        with self._lock:
            return list(self._slots)

    def give_up(self, error: BaseException) -> None:
        """There will be no worker any more: every task that waits fails with ``error``, now and later."""
        self._broken = error
        with self._lock:
            jobs = [job for job in self._jobs if job.is_hungry or isinstance(job, InputJob)]
        for job in jobs:
            self._member.threads.run(lambda job=job: self._fail_waiting(job))  # type: ignore[misc]
        self._wake_drainers()

    @property
    def broken(self) -> BaseException | None:
        """Why there will be no worker any more."""
        return self._broken

    def _fail_waiting(self, job: Job) -> None:
        assert self._broken is not None
        job.stop_reading(self._broken)
        while (run := job.next_run(1024)) is not None:
            for index in range(len(run.items)):
                job.settle(run, run.first + index, [Raised(self._broken)])
        job.demand()

    # -- holding a worker (Julia's take! and put!) -----------------------------------------------------------------

    def take(self, deadline: Deadline) -> int | None:
        """Hold a worker that has nothing to do; None when the deadline passes or there is no worker."""
        while True:
            waiter = Waiter()
            with self._lock:
                for slot in self._slots.values():
                    if not slot.is_held and not slot.load:
                        slot.is_held = True
                        # To the end: the others have their turn first.
                        self._slots[slot.pid] = self._slots.pop(slot.pid)
                        return slot.pid
                if not self._slots and not (self.is_replenished and self._broken is None):
                    return None
                self._takers.append(waiter)
            try:
                if not self._member.reader.wait(waiter, deadline):
                    return None
            except BaseException:
                if waiter.done:  # the worker that it was called for is another's now
                    self._wake_taker()
                raise
            finally:
                with self._lock:
                    if waiter in self._takers:
                        self._takers.remove(waiter)

    def put(self, pid: int) -> None:
        """Give a held worker back; any other pid is ignored."""
        with self._lock:
            slot = self._slots.get(pid)
            if slot is None or not slot.is_held:
                return
            slot.is_held = False
        self._capacity_came()

    def is_idle(self) -> bool:
        """True when ``take`` would return a worker at once."""
        with self._lock:
            return any(not slot.is_held and not slot.load for slot in self._slots.values())

    def _capacity_came(self) -> None:
        self._feed()
        self._wake_taker()
        self._wake_drainers()

    def _wake_taker(self) -> None:
        """Call the next thread in ``take``; it leaves the queue here, so that two free workers never call the same."""
        with self._lock:
            taker = self._takers.popleft() if self._takers else None
        if taker is not None:
            taker.complete()

    def _wake_drainers(self) -> None:
        with self._lock:
            drainers, self._drainers = self._drainers, []
        for waiter in drainers:
            waiter.complete()

    def drain(self) -> None:
        """Wait until everything that was submitted is done."""
        while True:
            waiter = Waiter()
            with self._lock:
                is_busy = any(slot.load for slot in self._slots.values())
                if self._broken or not (is_busy or any(job.is_hungry for job in self._jobs)):
                    return
                self._drainers.append(waiter)
            self._member.reader.wait(waiter)

    # -- sending -------------------------------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        """Take a job on; its owner calls ``pump``."""
        with self._lock:
            if not job.is_listed:
                job.is_listed = True
                self._jobs.append(job)
        if self._broken is not None:
            self._fail_waiting(job)

    def end(self, job: Job) -> None:
        """The job is done: workers forget its callable."""
        with self._lock:
            if job.is_listed:
                job.is_listed = False
                self._jobs.remove(job)
            slots = list(self._slots.values())
        if not job.is_kept:
            for slot in slots:
                self._forget(slot, job.number)
        job.release()

    def pass_on(self, job: Job) -> None:
        """The job gets no more tasks, but those it has are done: it ends by itself."""
        job.is_passing = True
        self._end_if_passed(job)

    def _end_if_passed(self, job: Job) -> None:
        if not job.is_passing or job.is_hungry:
            return
        with self._lock:  # what is in flight may come back, and needs the job then
            in_flight = [shipment for slot in self._slots.values() for shipment in slot.in_flight]
            is_busy = job.reserved or any(shipment.job is job for shipment in in_flight)
        if not is_busy:
            self.end(job)
            if job.is_hungry:  # somebody who had it already gave it one more task
                self.start(job)

    def forget(self, number: int) -> None:
        """Let all workers drop a callable that was kept."""
        with self._lock:
            slots = list(self._slots.values())
        for slot in slots:
            self._forget(slot, number)

    def _forget(self, slot: Slot, number: int) -> None:
        if slot.peer is not None and number in slot.peer.known_functions:
            slot.peer.known_functions.discard(number)
            slot.peer.send(m.FORGET, ref=number)

    def pump(self, job: Job) -> None:
        """Send the job's tasks to workers that have room, until there is no room or no task. Runs user code."""
        while job.is_hungry:
            slot = self._reserve(job)
            if slot is None:
                break
            run = None
            try:
                run = job.next_run(job.next_size(len(self._slots)))
                if run is not None:
                    self._ship(job, slot, run)
            finally:
                with self._lock:
                    slot.reserved -= 1
                    job.reserved -= 1
            if run is None:
                self._capacity_came()  # others may have found no room while this worker was reserved in vain
                break
        if not job.is_hungry:
            self._end_if_passed(job)
            self._balance()

    def _reserve(self, job: Job) -> Slot | None:
        """Choose the worker with the least to do, if it has room for one more envelope of this job."""
        with self._lock:
            best: Slot | None = None
            window = job.window()
            for slot in self._slots.values():
                load = slot.load
                if not slot.is_held and load < window and (best is None or load < best.load):
                    best = slot
                    if not load:
                        break
            if best is not None:
                best.reserved += 1
                job.reserved += 1
            return best

    def _ship(self, job: Job, slot: Slot, run: Run) -> None:
        try:
            parcel, is_apart = job.pack(run)
        except BaseException as error:  # an item that cannot be pickled
            self._set_apart(job, run, error)
            return
        job.item_bytes = parcel.nbytes / len(run.items)
        shipment = Shipment(self, job, slot, run)
        peer = slot.peer
        if peer is None:
            self._book(shipment)
            self._member.threads.run(lambda: self._run_here(shipment))
            return
        if job.number not in peer.known_functions:
            # Sent before it is noted: a second thread may send it once more, but never tasks before their callable.
            peer.send_parcel(
                m.FUNCTION, job.function, ref=job.number, segment=None if job.function.globals else job.segment()
            )
            peer.known_functions.add(job.number)
        shipment.request = peer.next_request()
        self._book(shipment)
        peer.pending[shipment.request] = shipment
        flags = m.FLAG_APART if is_apart else 0
        sent = peer.send_parcel(m.TASKS, parcel, flags, shipment.request, whence=shipment.count, ref=job.number)
        if not sent and peer.pending.pop(shipment.request, None) is not None:
            shipment.lost(self._member.cluster.absence(slot.pid))
        elif job.timeout is not None:
            self._member.reader.call_later(job.timeout, lambda: self._check_late(shipment))

    def _book(self, shipment: Shipment) -> None:
        with self._lock:
            shipment.slot.in_flight.append(shipment)

    def _set_apart(self, job: Job, run: Run, error: BaseException) -> None:
        """Some task of the run cannot be pickled: that one fails, the others go on alone."""
        if len(run.items) == 1:
            self._failed(job, run, 0, Raised(error))
            return
        for index, item in reversed(list(enumerate(run.items))):
            job.returned.appendleft(Run(run.first + index, [item], run.attempt))

    def _feed(self) -> None:
        """There is room at some worker: tell the jobs that have tasks."""
        with self._lock:
            jobs = [job for job in self._jobs if job.is_hungry]
            self._jobs.rotate(-1)  # the next time another job is first
        for job in jobs:
            job.demand()
        if not jobs:
            self._balance()

    # -- results -------------------------------------------------------------------------------------------------

    def arrived(self, shipment: Shipment, frame: Frame) -> None:
        """Put results away, and give their worker more. On the reading thread."""
        job, run, count = shipment.job, shipment.run, frame.whence
        start = shipment.done
        if count:
            job.learn(count, frame.ref / 1e9)
        with self._lock:
            shipment.done += count
            shipment.heard = monotonic()
            if frame.flags & m.FLAG_LAST:
                rest = run.items[shipment.done : shipment.count]
                shipment.count = shipment.done  # nothing is left to take back, should a worker's answer come late
                if rest and not shipment.is_dropped:  # in the job again before it is out of here: drain looks at both
                    job.returned.appendleft(Run(run.first + shipment.done, rest, run.attempt))
                self._unbook(shipment)
        if count and not shipment.is_dropped:
            self._settle(shipment, start, self._opened(shipment, frame, count))
        if frame.flags & m.FLAG_LAST:
            self._end_if_passed(job)
            self._capacity_came()

    def _unbook(self, shipment: Shipment) -> None:
        if shipment in shipment.slot.in_flight:
            shipment.slot.in_flight.remove(shipment)

    def _opened(self, shipment: Shipment, frame: Frame, count: int) -> list[Any]:
        """Return results: plain ones opened here (no strange code can run), the others still to be opened."""
        try:
            if frame.error is not None:
                raise frame.error
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
            self._put_last(shipment.slot)
        doubtful: list[tuple[int, Outcome]] = []
        for index, outcome in enumerate(results, start):
            if outcome.ok and job.retries is not None and isinstance(outcome, Unopened):
                doubtful.append((index, outcome))
            elif outcome.ok:
                job.settle(run, run.first + index, [outcome])
            elif shipment.late == index:
                self._failed(job, run, index, Raised(_too_late(job)))
            else:
                self._failed(job, run, index, outcome)
        if doubtful:
            self._member.threads.run(lambda: self._open_and_judge(job, run, doubtful))

    def _put_last(self, slot: Slot) -> None:
        """Let the other workers have their turn first: where a task has failed is not where it is tried again."""
        with self._lock:
            if self._slots.get(slot.pid) is slot:
                self._slots[slot.pid] = self._slots.pop(slot.pid)

    # -- failures ------------------------------------------------------------------------------------------------

    def _open_and_judge(self, job: Job, run: Run, results: list[tuple[int, Outcome]]) -> None:
        """Open results now, because the user has handlers for those that do not open. In a call thread."""
        for index, outcome in results:
            try:
                value = outcome.value()
            except BaseException as error:  # the user's objects
                self._judge(job, run, index, Raised(error))
            else:
                job.settle(run, run.first + index, [value])

    def _failed(self, job: Job, run: Run, index: int, outcome: Outcome) -> None:
        """A task has failed, for whatever reason: judge it elsewhere if the user wants that, else it is its result."""
        if job.retries is None or job.is_stopped:
            job.settle(run, run.first + index, [outcome])
        else:
            self._member.threads.run(lambda: self._judge(job, run, index, outcome))

    def _judge(self, job: Job, run: Run, index: int, outcome: Outcome) -> None:
        """Ask the user's handlers. In a call thread."""
        assert job.retries is not None
        error = outcome.exception()
        try:
            if job.retries.on_error is not None:
                job.settle(run, run.first + index, [job.retries.on_error(_original(error))])
                return
        except Exception as raised:  # what the handler raises takes the place of the error (Julia's rule)
            error, outcome = raised, Raised(raised)
        try:
            delay = job.retries.delay(run.attempt, _original(error))
        except Exception as raised:
            delay, outcome = None, Raised(raised)
        if delay is None:
            job.settle(run, run.first + index, [outcome])
            return
        again = Run(run.first + index, [run.items[index]], run.attempt + 1)
        if delay > 0:
            self._member.reader.call_later(delay, lambda: self._again(job, again))
        else:
            self._again(job, again)

    def _again(self, job: Job, run: Run) -> None:
        job.returned.append(run)
        self._feed()

    def lost(self, shipment: Shipment, error: BaseException) -> None:
        """A worker is gone: the task it was in fails, what had not started (or not been sent back) goes to others."""
        begun = self._begun(shipment)  # before it is off the list of what its worker has
        with self._lock:
            self._unbook(shipment)
            if self._slots.pop(shipment.slot.pid, None) is not None:
                self._lost.add(shipment.slot.pid)
        job, run, done = shipment.job, shipment.run, shipment.done
        if shipment.is_dropped:
            return
        culprit = begun - 1 if begun > done else None
        rest = [index for index in range(done, shipment.count) if index != culprit]
        for index in reversed(rest):
            job.returned.appendleft(Run(run.first + index, [run.items[index]], run.attempt))
        if culprit is not None:
            self._blame(shipment, culprit, error)
        self._end_if_passed(job)
        if self._broken is not None:
            self._member.threads.run(lambda: self._fail_waiting(job))
        self._feed()

    def _begun(self, shipment: Shipment) -> int:
        """How many tasks had begun. Without a page we blame the first whose result is missing."""
        started = shipment.started()
        if started is not None:
            return started[0]
        if shipment.slot.page is not None:
            return 0
        return shipment.done + 1 if shipment.slot.in_flight and shipment is shipment.slot.in_flight[0] else 0

    def _blame(self, shipment: Shipment, culprit: int, error: BaseException) -> None:
        if shipment.late == culprit:
            error = _too_late(shipment.job)
        elif isinstance(error, ProcessExitedException):
            error.running = _describe(shipment.job, shipment.run.items[culprit])
        self._failed(shipment.job, shipment.run, culprit, Raised(error))

    # -- tasks that take too long --------------------------------------------------------------------------------

    def _check_late(self, shipment: Shipment) -> None:
        """Look whether the task that an envelope is in has used up its time. A timer, on the reading thread."""
        timeout = shipment.job.timeout
        if timeout is None or shipment not in shipment.slot.in_flight or shipment.slot.peer is None:
            return
        started = shipment.started()
        left = timeout if shipment.slot.page is not None else 0.0
        if started is not None and started[1]:
            left = started[1] + timeout - monotonic()
        if left > 0:
            self._member.reader.call_later(left, lambda: self._check_late(shipment))
            return
        shipment.late = started[0] - 1 if started is not None else shipment.done
        self.stop(shipment, shipment.late)
        self._member.reader.call_later(timeout, lambda: self._check_late(shipment))

    def stop(self, shipment: Shipment, index: int | None) -> None:
        """Interrupt one task of a shipment, None: whichever runs; kill the worker if that does not end it."""
        assert shipment.slot.peer is not None
        shipment.slot.peer.send(m.INTERRUPT, ref=shipment.request, whence=0 if index is None else index + 1)
        self._member.reader.call_later(GRACE_SECONDS, lambda: self._kill_if_stuck(shipment, index))

    def _kill_if_stuck(self, shipment: Shipment, index: int | None) -> None:
        if shipment not in shipment.slot.in_flight or (index is not None and shipment.done > index):
            return
        started = shipment.started()
        if started is None and shipment.slot.page is not None:
            return  # the worker is in a task of somebody else
        is_stuck = started is None or (started[1] > 0 and index in (None, started[0] - 1))
        config = self._member.configs.get(shipment.slot.pid)
        if is_stuck and config is not None and config.process is not None:
            config.process.send_signal(9)

    # -- taking back ---------------------------------------------------------------------------------------------

    def _balance(self) -> None:
        """A worker is idle and no job has more: take from another one what it has not started."""
        with self._lock:
            idle = sum(1 for slot in self._slots.values() if not slot.is_held and not slot.load)
            if not idle:
                return
            candidates = [ship for slot in self._slots.values() for ship in slot.in_flight if _can_share(ship)]
            chosen = _worth_taking(candidates, idle)
            for shipment, _ in chosen:
                shipment.is_recalled = True
            check = bool(candidates) and not chosen and not self._checks_silence
            self._checks_silence = self._checks_silence or check
        for shipment, keep in chosen:
            self._recall(shipment, keep)
        if check:
            self._member.reader.call_later(SILENCE_SECONDS, self._check_silence)

    def _check_silence(self) -> None:
        self._checks_silence = False
        self._balance()

    def _recall(self, shipment: Shipment, keep: int) -> None:
        peer = shipment.slot.peer
        assert peer is not None
        request = peer.next_request()
        peer.pending[request] = _Recall(shipment)
        peer.send(m.TAKE_BACK, request=request, whence=keep, ref=shipment.request)

    def taken_back(self, shipment: Shipment, count: int) -> None:
        """A worker has given tasks up: the envelope ends after ``count`` of them. On the reading thread."""
        job, run = shipment.job, shipment.run
        with self._lock:
            shipment.is_recalled = False
            back = run.items[count : shipment.count] if count != _NOTHING_LEFT else []
            if back:
                shipment.count = count
        if shipment.is_dropped or not back:
            return
        # In pieces, one for each worker that has nothing to do.
        size = max(1, -(-len(back) // max(1, len(self._slots))))
        for start in range(0, len(back), size):
            job.returned.append(Run(run.first + count + start, back[start : start + size], run.attempt))
        self._feed()

    def drop(self, job: Job, interrupt: bool = False) -> None:
        """Nobody wants the job's results any more: what has not started does not, what runs may be interrupted."""
        job.is_stopped = True
        with self._lock:
            shipments = [ship for slot in self._slots.values() for ship in slot.in_flight if ship.job is job]
            for shipment in shipments:
                shipment.is_dropped = True
        for shipment in shipments:
            if shipment.slot.peer is not None:
                self._recall(shipment, 0)
                if interrupt:
                    self.stop(shipment, None)
        self.end(job)

    def find(self, future: TaskFuture[Any]) -> Shipment | None:
        """Return the shipment that the task of a future is in."""
        with self._lock:
            for slot in self._slots.values():
                for shipment in slot.in_flight:
                    if shipment.job.how == CALL and any(item[1] is future for item in shipment.run.items):
                        return shipment
        return None

    # -- the owner of a job ----------------------------------------------------------------------------------------

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

    def stream(self, job: StreamJob) -> Iterator[Any]:
        """Yield the results of a stream; feed it meanwhile. Closing the iterator drops what is left."""
        self.start(job)
        try:
            while True:
                job.waiter.done = False
                try:
                    result = job.take()
                except IndexError:
                    if job.is_finished:
                        break
                    self._wait_for_stream(job)
                    continue
                if job.is_hungry:
                    self.pump(job)
                yield result.value() if isinstance(result, Outcome) else result
            if job.input_error is not None:
                raise job.input_error
        finally:
            self.drop(job)

    def _wait_for_stream(self, job: StreamJob) -> None:
        job.consumer_waits = True
        try:
            self.pump(job)
            self._member.reader.wait(job.waiter)
        finally:
            job.consumer_waits = False

    def schedule(self, job: StreamJob) -> None:
        """Have a call thread pump."""
        self._member.threads.run(lambda: self.pump(job))

    # -- this process as a worker --------------------------------------------------------------------------------

    def _run_here(self, shipment: Shipment) -> None:
        """Run tasks in this process: nothing is pickled, errors are bare. In a call thread."""
        job, run = shipment.job, shipment.run
        for index, item in enumerate(run.items):
            if shipment.is_dropped:
                break
            begun = monotonic()
            try:
                result: list[Any] = [_call_here(job, item)]
            except BaseException as error:  # the user's code
                self._failed(job, run, index, Raised(error))
            else:
                job.settle(run, run.first + index, result)
            job.learn(1, monotonic() - begun)
        with self._lock:
            self._unbook(shipment)
        self._capacity_came()


def _call_here(job: Job, item: Any) -> Any:
    if job.how == ONE:
        return job.f(item)
    if job.how == CALL:
        args, kwargs = load(item[0].body, item[0].buffers)
        return job.f(*args, **kwargs)
    return job.f(*item)


def _can_share(shipment: Shipment) -> bool:
    """True when some of its tasks could be taken back. An explicit batch size is honoured as given."""
    return (
        shipment.count - shipment.done > 1
        and not shipment.is_recalled
        and not shipment.is_dropped
        and shipment.job.batch_size is None
        and shipment.slot.peer is not None
    )


def _worth_taking(candidates: Iterable[Shipment], idle: int) -> list[tuple[Shipment, int]]:
    """Choose envelopes to take from, at most one per idle worker, and how many unstarted tasks each may keep."""
    now = monotonic()
    chosen: list[tuple[float, Shipment, int]] = []
    for shipment in candidates:
        waiting = shipment.count - shipment.done - 1
        work = waiting * (shipment.job.cost or 0.0)
        is_silent = now - shipment.heard > SILENCE_SECONDS
        if is_silent:
            chosen.append((work + 1.0, shipment, 0))  # stuck in a long task: it keeps nothing
        elif work > WORTH_SECONDS:
            chosen.append((work, shipment, waiting // 2))
    chosen.sort(key=lambda choice: choice[0], reverse=True)
    return [(shipment, keep) for _, shipment, keep in chosen[:idle]]


def _original(error: BaseException) -> BaseException:
    captured = getattr(error, "captured", None)
    return captured.ex if captured is not None else error


def _too_late(job: Job) -> TimeoutError:
    return TimeoutError(f"a task of {job.name} took longer than {job.timeout} seconds and was stopped")


def _describe(job: Job, item: Any) -> str:
    """Say in a few words what ran: the callable and its arguments, shortened."""
    import reprlib  # only when something went wrong

    if job.how == CALL:
        return f"{job.name}(...)"
    return f"{job.name}({reprlib.repr(item)})"
