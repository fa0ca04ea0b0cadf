"""When to read and who reads: deadlines, the poller, and the ``Reader``, of which a process has one.

**The thread that waits reads.** A hand-over between threads costs as much as the round trip of an empty call, so there
is one role, *reading*, and whoever waits for an answer takes it::

    a thread waits ---- role free ---------------------> leads: polls, handles what comes, until its own answer is there
                   ---- another waiting thread leads --> follows: sleeps until its answer came or the role is passed on
                   ---- the background thread leads ---> asks it to step aside, then leads
    nobody waits   ---- for one tick (5 ms) -----------> the background thread reads
    a worker's main thread is in user code for one tick: the same rule, so the background thread takes over

Threads: every thread of the process may enter. Handlers run on the thread that leads; they never block, never wait on
the reader (that raises), never run user code. Owns: the poller, the table of handlers, the timers, the role.
"""

from __future__ import annotations

# contextlib.suppress takes ten times as long as try and pass, and these are on the way of every wait: hence SIM105.
import os
import select
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from types import FrameType
from typing import Any, Final, Protocol

monotonic = time.monotonic

# How long the reading role stays free before the background thread takes it. Below it a thread switch would cost more
# than it brings (a switch of the interpreter's lock takes up to 5 ms); above it a blocked worker would answer late.
TICK_SECONDS: Final = 0.005
# A blocked thread of this process wakes 20 us later than one that looks again and again (measured on a virtual machine:
# 41 us for a round trip that sleeps, 20 us for one that spins), so a waiter of short calls looks this often before
# sleeping.
SPINS: Final = 60
# After this many vain spins in a row the next waits sleep at once, and only every 32nd tries again.
SPIN_PATIENCE: Final = 4


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

    @property
    def has_passed(self) -> bool:
        """True when the limit is over."""
        return self._at is not None and monotonic() >= self._at


class Waiter:
    """One thread's wait for one event. Whoever brings the event calls ``complete``; ``Reader.wait`` does the rest."""

    __slots__ = ("_leads", "_lock", "done")

    def __init__(self) -> None:
        self.done = False
        self._leads: Reader | None = None  # the reader that its thread leads just now: it sleeps in a poll, if at all
        self._lock: threading.Lock | None = None  # made only when its thread must sleep: most never do

    def complete(self) -> None:
        """Say that the event is there. Safe from any thread, any number of times."""
        self.done = True
        self.wake()

    def wake(self) -> None:
        """Let its thread look again, be it done or called to lead."""
        lock = self._lock
        if lock is not None:
            try:  # noqa: SIM105
                lock.release()
            except RuntimeError:  # it is awake already
                pass
        reader = self._leads
        if reader is not None and not reader.is_leading:  # brought by another thread: nothing arrives that ends the poll
            reader.wake()

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


class Handler(Protocol):
    """What the reader needs from a connection. Both methods run on the thread that leads and must not block."""

    def fileno(self) -> int:
        """The descriptor to watch."""

    def on_readable(self) -> None:
        """Take what has arrived."""

    def on_writable(self) -> None:
        """Send what is left to send."""


class Timer:
    """A call that the reading thread makes at a given time; ``cancel`` takes it back."""

    __slots__ = ("_call", "at")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Make it do nothing; harmless when it has run."""
        self._call = None

    def run(self) -> None:
        """Make the call, once."""
        call, self._call = self._call, None
        if call is not None:
            call()

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


_READ: Final = select.POLLIN | select.POLLHUP | select.POLLERR if hasattr(select, "POLLIN") else 1
_WRITE: Final = select.POLLOUT if hasattr(select, "POLLOUT") else 4


class _Poller:
    """epoll where there is one, else poll; the same numbers and seconds for both."""

    def __init__(self) -> None:
        self._poll: Any = select.epoll() if hasattr(select, "epoll") else select.poll()
        # poll() takes its table when it starts: a change made meanwhile by another thread needs a wake-up.
        self.sees_changes_at_once = hasattr(select, "epoll")
        self._scale = 1.0 if self.sees_changes_at_once else 1000.0

    def register(self, fd: int, writable: bool) -> None:
        self._poll.register(fd, _READ | (_WRITE if writable else 0))

    def modify(self, fd: int, writable: bool) -> None:
        self._poll.modify(fd, _READ | (_WRITE if writable else 0))

    def unregister(self, fd: int) -> None:
        self._poll.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        events: list[tuple[int, int]] = self._poll.poll(None if timeout is None else timeout * self._scale)
        return events

    def close(self) -> None:
        if self.sees_changes_at_once:
            self._poll.close()


class Reader:
    """The readiness of all connections of this process, and the role of reading them.

    ``on_takeover`` is called by the background thread when it begins to read, because nobody else did for a tick: a
    worker uses it to give threads to requests that its busy main thread has not begun.
    """

    def __init__(self, on_takeover: Callable[[], None] | None = None) -> None:
        self._poller = _Poller()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[Timer] = []
        self._timers_lock = threading.Lock()  # protects _timers
        self._role = threading.Lock()  # held by the thread that reads
        self._leader: int | None = None  # its identity; meaningful to the leader itself
        self._followers: deque[Waiter] = deque()  # waiting threads that would lead; appended and popped atomically
        self._background_leads = False
        self._step_aside = False  # the background thread shall give up the role
        self._epoch = 0  # counts the times that the role was given up by a waiting thread
        self._parked = True  # the background thread sleeps without a limit
        self._is_nudged = False  # it shall read without waiting for the end of its tick
        self._unpark = threading.Lock()  # released to wake the background thread
        self._unpark.acquire()
        self.on_takeover = on_takeover  # may be set later, by the one whose main thread it is about
        # Told when a thread begins (True) and ends (False) a wait; a worker learns so that user code waits.
        self.on_wait: Callable[[bool], None] | None = None
        self._closed = False
        self._vain_spins = 0
        self._may_spin = _usable_cpus() > 1
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._poller.register(self._wake_in, False)
        self._thread: threading.Thread | None = None

    # -- connections ---------------------------------------------------------------------------------------------

    def register(self, handler: Handler) -> None:
        """Watch a connection from now on; somebody will read it even when nobody waits."""
        fd = handler.fileno()
        self._handlers[fd] = handler
        self._poller.register(fd, False)
        self._start_background()
        self._changed()

    def watch_writable(self, handler: Handler, wanted: bool) -> None:
        """Also (or no longer) call ``on_writable``."""
        fd = handler.fileno()
        if self._handlers.get(fd) is handler:
            self._poller.modify(fd, wanted)
            self._changed()

    def unregister(self, handler: Handler) -> None:
        """Forget a connection; must be called before its descriptor is closed."""
        fd = handler.fileno()
        if self._handlers.get(fd) is handler:
            del self._handlers[fd]
            self._poller.unregister(fd)

    def _changed(self) -> None:
        if not self._poller.sees_changes_at_once:
            self.wake()

    def wake(self) -> None:
        """Make the leader come back from its poll."""
        try:  # noqa: SIM105
            os.write(self._wake_out, b"w")
        except OSError:  # full: it will come back anyway; closed: the process ends
            pass

    # -- timers --------------------------------------------------------------------------------------------------

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Let the reading thread make a short call in ``seconds``."""
        timer = Timer(monotonic() + seconds, call)
        with self._timers_lock:
            heappush(self._timers, timer)
            is_first = self._timers[0] is timer
        if is_first:
            self._start_background()
            if self._leader != threading.get_ident():
                self.wake()
            self.nudge()
        return timer

    def _run_timers(self) -> float | None:
        """Run what is due; return the seconds until the next, None when there is none."""
        while self._timers:
            with self._timers_lock:
                if not self._timers:
                    return None
                left = self._timers[0].at - monotonic()
                if left > 0:
                    return left
                timer = heappop(self._timers)
            timer.run()
        return None

    # -- waiting -------------------------------------------------------------------------------------------------

    @property
    def is_leading(self) -> bool:
        """True on the thread that reads just now, inside a handler."""
        return self._leader == threading.get_ident()

    def wait(self, waiter: Waiter, deadline: Deadline | None = None, *, eager: bool = False) -> bool:
        """Block until ``waiter`` is done or the deadline has passed, reading for everybody meanwhile.

        ``eager`` says that the answer is expected within microseconds. Returns whether the waiter is done. Ctrl-C
        raises KeyboardInterrupt here, only between messages, so no message is lost. Raises RuntimeError when called by
        a handler.
        """
        if waiter.done:
            return True
        if self._leader == threading.get_ident():
            raise RuntimeError("the reading thread cannot wait: this would never end")
        tell = self.on_wait
        if tell is not None:
            tell(True)
        try:
            with _DeferredInterrupt(self):
                while not waiter.done and not (deadline and deadline.has_passed):
                    if self._role.acquire(False):
                        self._lead(waiter, deadline, eager)
                    else:
                        self._follow(waiter, deadline)
        finally:
            if tell is not None:
                tell(False)
        return waiter.done

    def _lead(self, waiter: Waiter, deadline: Deadline | None, eager: bool) -> None:
        try:
            self._leader = threading.get_ident()
            waiter._leads = self  # before looking: whoever completes it from now on ends the poll
            while not waiter.done and not (deadline and deadline.has_passed):
                self._turn(deadline.remaining() if deadline else None, eager)
        finally:
            waiter._leads = None
            self._give_up_role()

    def _give_up_role(self) -> None:
        self._leader = None
        self._epoch += 1
        self._role.release()
        if self._followers:
            self._promote()
        elif self._parked:
            self._unpark_background()

    def _promote(self) -> None:
        try:  # noqa: SIM105
            self._followers[0].wake()
        except IndexError:  # it left meanwhile
            pass

    def _follow(self, waiter: Waiter, deadline: Deadline | None) -> None:
        waiter.prepare_to_sleep()
        self._followers.append(waiter)
        try:
            # The role may have become free before we were on the list: then nobody would wake us.
            if waiter.done or not self._role.locked():
                return
            if self._background_leads:
                self._step_aside = True
                self.wake()
            waiter.sleep(deadline.remaining() if deadline else None)
        finally:
            self._followers.remove(waiter)
            if waiter.done and not self._role.locked() and self._followers:
                self._promote()  # we were called to lead and have no need to: pass the call on

    # -- reading -------------------------------------------------------------------------------------------------

    def _turn(self, timeout: float | None, eager: bool) -> None:
        """Wait for something to read, at most ``timeout`` seconds, and handle it."""
        if self._timers:
            due = self._run_timers()
            if due is not None and (timeout is None or due < timeout):
                timeout = due
        events = self._spin() if eager and self._may_spin else None
        if not events:
            events = _interruptible_poll(self._poller, timeout)
        for fd, mask in events:
            handler = self._handlers.get(fd)
            if handler is None:
                if fd == self._wake_in:
                    self._drain_wake_pipe()
                continue
            if mask & _READ:
                handler.on_readable()
            if mask & _WRITE:
                handler.on_writable()

    def _spin(self) -> list[tuple[int, int]]:
        """Look some times without sleeping, as long as that has paid off lately."""
        if self._vain_spins > SPIN_PATIENCE:
            self._vain_spins = self._vain_spins + 1 if self._vain_spins < 32 else 0
            return []
        poll = self._poller.poll
        for _ in range(SPINS):
            events = poll(0)
            if events:
                self._vain_spins = 0
                return events
        self._vain_spins += 1
        return []

    def _drain_wake_pipe(self) -> None:
        try:  # noqa: SIM105
            os.read(self._wake_in, 4096)
        except BlockingIOError:
            pass

    # -- the background thread -----------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Say that something is outstanding that nobody waits for: the background thread reads without delay."""
        if not self._role.locked():
            self._is_nudged = True
            self._unpark_background()

    def _unpark_background(self) -> None:
        self._parked = False
        try:  # noqa: SIM105
            self._unpark.release()
        except RuntimeError:  # awake already
            pass

    def _start_background(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._background, name="distpool reader", daemon=True)
            self._thread.start()

    def _background(self) -> None:
        while not self._closed:
            epoch = self._epoch
            self._unpark.acquire(timeout=TICK_SECONDS)
            if self._closed:
                return
            if self._role.locked():
                if epoch == self._epoch:  # one thread has led for a whole tick: it will call when it stops
                    self._park()
            elif self._is_nudged or epoch == self._epoch:
                self._is_nudged = False
                self._read_in_background()

    def _park(self) -> None:
        self._parked = True
        if self._role.locked():  # else it was given up just before we said that we sleep
            self._unpark.acquire()
        self._parked = False

    def _read_in_background(self) -> None:
        if not self._role.acquire(False):
            return
        self._background_leads = True
        self._leader = threading.get_ident()
        try:
            if self.on_takeover is not None:
                self.on_takeover()
            while not self._step_aside and not self._closed:
                if self._followers:  # came while we took the role
                    break
                self._turn(None, False)
        finally:
            self._background_leads = False
            self._step_aside = False
            self._leader = None
            self._role.release()
            if self._followers:
                self._promote()

    def close(self) -> None:
        """End the background thread and give the descriptors back; for processes that end, and for tests."""
        self._closed = True
        self.wake()
        self._unpark_background()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        self._poller.close()
        os.close(self._wake_in)
        os.close(self._wake_out)


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------


class _Interrupts:
    """Whether Ctrl-C may raise at once on the main thread; written by the main thread alone."""

    polling = False
    pending = False


def _interruptible_poll(poller: _Poller, timeout: float | None) -> list[tuple[int, int]]:
    if threading.get_ident() != _MAIN_IDENT:
        return poller.poll(timeout)
    _Interrupts.polling = True
    try:
        if _Interrupts.pending:
            _Interrupts.pending = False
            raise KeyboardInterrupt
        # Level-triggered: what poll reports is reported again if the interrupt comes before we have seen it.
        return poller.poll(timeout)
    finally:
        _Interrupts.polling = False


def _interrupt_between_messages(signum: int, frame: FrameType | None) -> None:
    """SIGINT while the main thread waits: raise only inside the poll, else remember. A message half handled is lost."""
    if _Interrupts.polling:
        raise KeyboardInterrupt
    _Interrupts.pending = True


class _DeferredInterrupt:
    """For the time of one wait on the main thread, Ctrl-C raises between messages and not inside one.

    Only when Python's own handler is in place: whoever set another one wants another behaviour.
    """

    __slots__ = ("_is_set", "_reader")

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._is_set = False

    def __enter__(self) -> None:
        if threading.get_ident() == _MAIN_IDENT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._is_set = True
            signal.signal(signal.SIGINT, _interrupt_between_messages)

    def __exit__(self, *exc: object) -> None:
        if self._is_set:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if _Interrupts.pending:
                _Interrupts.pending = False
                if exc[0] is None:
                    raise KeyboardInterrupt


_MAIN_IDENT = threading.main_thread().ident


def _usable_cpus() -> int:
    if sys.platform.startswith("linux"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
