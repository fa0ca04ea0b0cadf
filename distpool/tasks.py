"""The worker's half of a pool: envelopes of tasks, run one after the other, results sent back as they come.

Used by ``worker``; the driver's half is ``dispatch``. Envelopes are run by one thread at a time, the worker's main
thread if it is free (libraries that need the main thread work, and signals can interrupt), else a thread of their own::

    reading thread --TASKS-----> the queue ------> the runner: open, run task by task --> TASKS_DONE, at most 1 ms late
                   --TAKE_BACK-> cuts the tail of an envelope that has not started -----> TAKEN_BACK with what is left

Owns: the queue, the callables that pools have sent here, the running envelope. What a task is doing is noted on a page
that outlives the process, so that its death can be blamed on the right task.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from distpool import messages as m
from distpool.bundles import Item
from distpool.copies import end_copy, tell_in_copies
from distpool.envelopes import (
    ONE,
    PAGE_ENVELOPE,
    PAGE_NOTES,
    PAGE_SINCE,
    PAGE_STARTED,
    STAR,
    Envelope,
    Failure,
    KnownCallable,
    pack_results,
)
from distpool.light import Any, Final
from distpool.member import Member
from distpool.peer import Peer
from distpool.serving import Call
from distpool.wire import Frame

monotonic = time.monotonic

# A result is at most this late, and a worker that dies loses at most so much of what it has finished but not sent.
FLUSH_SECONDS: Final = 0.001


class Tasks:
    """The queue of envelopes of one worker, and the thread that runs them."""

    def __init__(self, member: Member, wake_main: Callable[[], None], page: memoryview | None) -> None:
        self._member = member
        self._wake_main = wake_main
        words = page if page is not None else memoryview(bytearray(64)).cast("Q")
        self._main_notes, self._extra_notes = words[:PAGE_NOTES], words[PAGE_NOTES : 2 * PAGE_NOTES]
        self._main = threading.get_ident()
        self._queue: deque[Envelope] = deque()
        self._functions: dict[tuple[int, int], KnownCallable] = {}  # (whose, number)
        self._running: dict[int, Envelope] = {}  # thread to the envelope it runs
        self._runners_lock = threading.Lock()  # protects _has_extra_runner
        self._has_extra_runner = False
        self.main_call: Call | None = None  # the direct call that it is in
        self.main_is_free = True  # the main thread runs tasks; false while it is in a direct call or waits in user code
        member.actions.update({m.TASKS: self._tasks, m.FUNCTION: self._function, m.FORGET: self._forget})
        member.actions[m.TAKE_BACK] = self._take_back
        self._is_copy = False  # this process was forked by a task that it ran
        tell_in_copies(self)

    def disown(self) -> None:
        """Run and send nothing any more, in a forked copy of the process. The task that forked may still go on."""
        self._is_copy = True
        for envelope in [*self._running.values(), *self._queue]:
            envelope.items.clear()
            envelope.results.clear()

    # -- messages, on the reading thread -------------------------------------------------------------------------

    def _function(self, peer: Peer, frame: Frame) -> None:
        self._functions[peer.pid, frame.ref] = KnownCallable(frame)  # opened by the first task that needs it

    def _forget(self, peer: Peer, frame: Frame) -> None:
        self._functions.pop((peer.pid, frame.ref), None)

    def _tasks(self, peer: Peer, frame: Frame) -> None:
        self._queue.append(Envelope(peer, frame, self._functions.get((peer.pid, frame.ref))))
        if self.main_is_free:
            self._wake_main()
            return
        call = self.main_call
        if call is None or not call.is_answered:
            self.run_aside()
        # Else it is just coming back, and looks. What runs elsewhere now would run beside what it runs next: not in the
        # main thread, and lost with that should it be deadly.

    def _take_back(self, peer: Peer, frame: Frame) -> None:
        envelope = self._find(peer, frame.ref)
        left = -1 if envelope is None else envelope.take_back(frame.whence)
        # An envelope that is done, or not there, has nothing to give: all ones say so.
        peer.send(m.TAKEN_BACK, request=frame.request, whence=left & (2**64 - 1))
        if envelope is not None:
            self._flush_aside([envelope])

    def _find(self, peer: Peer, request: int) -> Envelope | None:
        for envelope in [*self._running.values(), *self._queue]:
            if envelope.frame.request == request and envelope.peer is peer:
                return envelope
        return None

    # -- who runs ------------------------------------------------------------------------------------------------

    @property
    def has_waiting(self) -> bool:
        """True when an envelope waits for a runner."""
        return bool(self._queue)

    def run_next(self) -> None:
        """Run the first envelope of the queue in this thread."""
        try:
            envelope = self._queue.popleft()
        except IndexError:
            return
        self._run(envelope)

    def run_aside(self) -> None:
        """Have a thread run what waits, because the main thread cannot."""
        with self._runners_lock:
            if self._has_extra_runner or not self._queue:
                return
            self._has_extra_runner = True
        self._member.threads.run(self._run_aside)

    def _run_aside(self) -> None:
        while True:
            self.run_next()
            with self._runners_lock:
                # Checked under the lock: whoever appends after this starts another runner.
                if not self._queue or self.main_is_free:
                    self._has_extra_runner = False
                    break
        if self._queue:
            self._wake_main()

    def drop_all(self) -> None:
        """Begin no more tasks."""
        for envelope in [*self._running.values(), *self._queue]:
            envelope.take_back(0)

    def refuse(self, peer: Peer, request: int, number: int) -> None:
        """See that a task of an envelope does not begin, if it has not yet; 0 is none in particular."""
        envelope = self._find(peer, request)
        if envelope is not None and number:
            envelope.refuse(number)

    def running_in(self, thread: int) -> tuple[int, int] | None:
        """Return the envelope that ``thread`` runs and its task, counted from 1; None when it runs none."""
        envelope = self._running.get(thread)
        return None if envelope is None else (id(envelope), envelope.started)

    @property
    def is_busy(self) -> bool:
        """True while an envelope runs or waits."""
        return bool(self._running or self._queue)

    def is_running(self, thread: int, request: int, number: int) -> bool:
        """True while ``thread`` runs task ``number`` (counted from 1; 0 is any) of the envelope ``request``."""
        envelope = self._running.get(thread)
        return envelope is not None and envelope.frame.request == request and number in (0, envelope.started)

    def is_between(self, thread: int) -> bool:
        """True when ``thread``, the caller, is just between two tasks of an envelope: nobody's would be interrupted."""
        envelope = self._running.get(thread)
        if envelope is None or envelope.unopened:
            return False
        taken = envelope.count - len(envelope.items)
        return taken != envelope.started or envelope.started <= envelope.sent + len(envelope.results)

    def flush_running(self) -> None:
        """Send what the running envelopes have finished; the reading thread calls it while a long task runs."""
        self._flush_aside(list(self._running.values()))

    # -- running -------------------------------------------------------------------------------------------------

    def _run(self, envelope: Envelope) -> None:
        ident = threading.get_ident()
        outer = self._running.get(ident)  # an envelope that waits for another one, run by the same thread
        self._running[ident] = envelope
        page = self._notes()
        noted = page[PAGE_ENVELOPE], page[PAGE_STARTED], page[PAGE_SINCE]
        envelope.since = monotonic()
        page[PAGE_ENVELOPE] = 0  # nobody must read these two as the former envelope's
        # Opening the envelope counts as its first task: if that is deadly, trying it elsewhere would never end.
        page[PAGE_STARTED] = 1
        page[PAGE_SINCE] = int(envelope.since * 1e9)
        page[PAGE_ENVELOPE] = envelope.frame.request
        try:
            f, how = self._prepare(envelope)
        except BaseException as error:
            self._fail_all(envelope, error)
        else:
            if not self._is_copy:  # what forked was in the items
                self._run_tasks(envelope, f, how)
        finally:
            if self._is_copy:
                last = envelope.results[-1] if envelope.results else None
                end_copy(last.error if type(last) is Failure else None)
            page[PAGE_SINCE] = 0
            if outer is None:
                del self._running[ident]
            else:
                self._running[ident] = outer
            self._finish(envelope)
            self._member.serving.done()
            if outer is not None:
                page[PAGE_ENVELOPE], page[PAGE_STARTED], page[PAGE_SINCE] = noted

    def _notes(self) -> memoryview:
        """Return this thread's part of the page; besides the main thread one more runs tasks at a time."""
        return self._main_notes if threading.get_ident() == self._main else self._extra_notes

    def _prepare(self, envelope: Envelope) -> tuple[Any, int]:
        """Open the callable (once per worker) and the items; either may fail, which fails these tasks alone."""
        known = envelope.callable
        if known is None:
            raise LookupError(f"callable {envelope.frame.ref} of process {envelope.peer.pid} is not here")
        if isinstance(known.value, Frame):
            known.value = self._member.open(known.value)
        return known.value, envelope.open()

    def _run_tasks(self, envelope: Envelope, f: Any, how: int) -> None:
        while True:
            try:
                self._loop(envelope, f, how)
                return
            except KeyboardInterrupt as error:
                # It came between two lines of the loop instead of inside the task; the task that had begun is meant.
                self._fail(envelope, error)

    def _fail(self, envelope: Envelope, error: BaseException, stage: str = "") -> None:
        """The task that had begun has failed; unless its result is there: Ctrl-C came when that was just put away."""
        with envelope.flush_lock:  # else results that are just leaving count neither as here nor as sent
            if envelope.started > envelope.sent + len(envelope.results):
                envelope.failed = True
                envelope.results.append(Failure(error, stage))

    def _loop(self, envelope: Envelope, f: Any, how: int) -> None:
        """Everything a task costs beside itself is here, and in the next one."""
        if how == ONE and not envelope.frame.flags & (m.FLAG_APART | m.FLAG_TIMED):
            self._loop_plainly(envelope, f)
            return
        take, done, page, started = envelope.items.popleft, envelope.results.append, self._notes(), envelope.started
        apart = bool(envelope.frame.flags & m.FLAG_APART)
        while True:
            try:
                item = take()
            except IndexError:
                return
            started += 1
            envelope.started = page[PAGE_STARTED] = started
            now = monotonic()
            if now - envelope.since > FLUSH_SECONDS and envelope.results:
                self._flush_between(envelope, page)
            page[PAGE_SINCE] = int(now * 1e9)
            try:
                if apart:
                    item = item.open()
                if how == ONE:
                    done(f(item))
                elif how == STAR:
                    done(f(*item))
                else:
                    done(f(*item[0], **item[1]))
            except BaseException as error:  # the user's code: one of the three edges that catch everything
                self._fail(envelope, error, "opening" if apart and type(item) is Item else "")

    def _loop_plainly(self, envelope: Envelope, f: Any) -> None:
        """The same for what maps of tiny tasks are made of: half of what the general loop costs.

        The clock is looked at some eight times in a millisecond, if tasks take as long as the last ones did.
        """
        take, done, page, started = envelope.items.popleft, envelope.results.append, self._notes(), envelope.started
        mask, looked_at, looked = 0, started, monotonic()
        while True:
            try:
                item = take()
            except IndexError:
                return
            started += 1
            envelope.started = page[PAGE_STARTED] = started
            if not started & mask:
                now = monotonic()
                if now - envelope.since > FLUSH_SECONDS and envelope.results:
                    self._flush_between(envelope, page)
                mask = _mask(started - looked_at, now - looked)
                looked_at, looked = started, now
            try:
                done(f(item))
            except BaseException as error:  # the user's code: one of the three edges that catch everything
                self._fail(envelope, error)

    def _fail_all(self, envelope: Envelope, error: BaseException) -> None:
        """The callable or the items could not be opened: every task of the envelope has this error."""
        if envelope.unopened:
            envelope.unopened = False
            envelope.items.clear()  # an interrupt may have come when they were just there
            envelope.items.extend([None] * envelope.count)
        while envelope.items:
            envelope.items.popleft()
            envelope.failed = True
            envelope.results.append(Failure(error, "opening"))

    # -- sending results -----------------------------------------------------------------------------------------

    def _flush(self, envelope: Envelope) -> None:
        with envelope.flush_lock:
            self._send_results(envelope, 0)

    def _flush_between(self, envelope: Envelope, page: memoryview) -> None:
        """Flush before the next task begins: if that is deadly, the one before is to blame, whose result is packed."""
        page[PAGE_STARTED] = envelope.started - 1
        self._flush(envelope)
        page[PAGE_STARTED] = envelope.started

    def _flush_aside(self, envelopes: list[Envelope]) -> None:
        """Have a call thread send what is finished: packing results may run the user's code (``__reduce__``)."""
        # One that is being flushed is left alone, else threads would pile up behind a result that is slow to pickle.
        waiting = [envelope for envelope in envelopes if envelope.results and not envelope.flush_lock.locked()]
        if waiting:
            self._member.threads.run(lambda: self._flush_all(waiting))

    def _flush_all(self, envelopes: list[Envelope]) -> None:
        for envelope in envelopes:
            self._flush(envelope)

    def _finish(self, envelope: Envelope) -> None:
        flush_output()
        with envelope.flush_lock:
            self._send_results(envelope, m.FLAG_LAST)

    def _send_results(self, envelope: Envelope, flag: int) -> None:
        count = len(envelope.results)
        if not count and not flag:
            return
        results = envelope.results[:count]
        del envelope.results[:count]
        envelope.sent += count
        now = monotonic()
        spent, envelope.since = now - envelope.since, now
        parcel, apart = pack_results(results, envelope.failed, envelope.peer.pid, self._member.check)
        envelope.peer.send_parcel(
            m.TASKS_DONE,
            parcel,
            flags=flag | (m.FLAG_APART if apart else 0),
            request=envelope.frame.request,
            whence=count,
            ref=int(spent * 1e9),
        )


def _mask(count: int, seconds: float) -> int:
    """Return 2**n - 1 so that 2**n tasks take about an eighth of a millisecond, after ``count`` took so long."""
    fitting = int(FLUSH_SECONDS / 8 * count / (seconds + 1e-9))
    return (1 << max(0, min(fitting, 4096).bit_length() - 1)) - 1


def flush_output() -> None:
    """Let what user code has printed leave this process: after each request, so that none is told of it too early."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105  # suppress() would take longer than flushing nothing
            stream.flush()
        except Exception:  # None, closed, broken, or an object of the user's
            pass


# From where a task enters the user's code.
ENTRANCE: Final = Tasks._loop.__code__
# While one of these is on the stack, SIGINT is of no effect: no task runs, and results must not be lost half-way.
UNINTERRUPTIBLE: Final = frozenset(
    function.__code__
    for function in (Tasks._flush, Tasks._flush_between, Tasks._finish, Tasks._fail_all, Tasks._run_aside)
)
