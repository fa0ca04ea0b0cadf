"""When to read and who reads: the ``Reader``, of which a process has one.

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
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from distpool.copies import tell_in_copies
from distpool.interrupts import DeferredInterrupt, interruptibly
from distpool.light import Final, Protocol, heappop, heappush
from distpool.polling import READ, WRITE, Poller
from distpool.waiting import Deadline, Waiter

__all__ = ["Deadline", "Handler", "Reader", "Timer", "Waiter"]

monotonic = time.monotonic

# How long the reading role stays free before the background thread takes it. Below it a thread switch would cost more
# than it brings (a switch of the interpreter's lock takes up to 5 ms); above it a blocked worker would answer late.
TICK_SECONDS: Final = 0.005
# A blocked thread of this process wakes 20 us later than one that looks again and again (measured on a virtual machine:
# 41 us for a round trip that sleeps, 20 us for one that spins), so a waiter of short calls looks this often before
# sleeping: some 100 us. It must be longer than the other side takes if that sleeps: only then do both come to spin, and
# stay with it. A call through a pool took 110 us there and back with 60 looks, 44 us with 150.
SPINS: Final = 150
# After this many vain spins in a row the next waits sleep at once, and only every 32nd tries again.
SPIN_PATIENCE: Final = 4


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

    @property
    def is_over(self) -> bool:
        """True when the call was begun, or taken back."""
        return self._call is None

    def run(self) -> None:
        """Make the call, once."""
        call, self._call = self._call, None
        if call is not None:
            call()

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Reader:
    """The readiness of all connections of this process, and the role of reading them.

    ``on_takeover`` is called by the background thread when it begins to read, because nobody else did for a tick: a
    worker uses it to give threads to requests that its busy main thread has not begun. A handler or timer that raises
    is reported by ``threading.excepthook``; the handler is watched no more, everything else goes on.
    """

    def __init__(self, on_takeover: Callable[[], None] | None = None, poller: Poller | None = None) -> None:
        self._poller = poller or Poller()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[Timer] = []
        self._timers_lock = threading.Lock()  # protects _timers
        self._role = threading.Lock()  # held by the thread that reads
        self._leader: int | None = None  # its identity; meaningful to the leader itself
        self._followers: deque[Waiter] = deque()  # waiting threads that would lead; appended and popped atomically
        self._background_leads = False
        self._epoch = 0  # counts the times that the role was given up by a waiting thread
        self._parked = False  # the background thread sleeps without a limit
        self._is_nudged = False  # it shall read without waiting for the end of its tick
        self._unpark = threading.Lock()  # released to wake the background thread
        self._unpark.acquire()
        self.on_takeover = on_takeover  # may be set later, by the one whose main thread it is about
        # Told when a thread begins (True) and ends (False) a wait; a worker learns so that user code waits.
        self.on_wait: Callable[[bool], None] | None = None
        self._waiting: dict[int, Waiter] = {}  # by thread
        self._interrupted: dict[int, type[BaseException]] = {}  # what a waiting thread shall raise
        self._closed = False
        self._parent: int | None = None  # whose copy this is: another process reads, and none here
        self._vain_spins = 0
        self._may_spin = _usable_cpus() > 1
        self._soon: deque[Callable[[], object]] = deque()  # calls to make at the next wake-up
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._poller.register(self._wake_in, False)
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()  # protects _thread: one background thread and no second
        self._os_pid = os.getpid()
        tell_in_copies(self)

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
            try:
                self._poller.modify(fd, wanted)
            except (OSError, KeyError, ValueError):
                if self._handlers.get(fd) is handler:  # else the reading thread has just taken it off
                    raise
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

    def run_soon(self, call: Callable[[], object]) -> None:
        """Let the reading thread make a short call. For finalisers too: it takes no lock."""
        self._soon.append(call)
        self.wake()

    def wake(self) -> None:
        """Make the leader come back from its poll."""
        try:  # noqa: SIM105
            os.write(self._wake_out, b"w")
        except OSError:  # full: it will come back anyway; closed: the process ends
            pass

    def _end_poll(self) -> None:
        """What the leader waits for has been brought by another thread: let it see. By itself it will look anyway."""
        if self._leader != threading.get_ident():
            self.wake()

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
        """Run what is due; return for how many seconds to poll, None for as long as one likes."""
        has_run = False
        while self._timers:
            with self._timers_lock:
                left = self._timers[0].at - monotonic()
                if left > 0:
                    return 0.0 if has_run else left
                timer = heappop(self._timers)
            try:
                timer.run()
            except Exception as error:  # the reader's last line
                _report(error)
            has_run = True
        # What has run may have brought what the leader waits for: it must look, and not sleep in the poll.
        return 0.0 if has_run else None

    # -- waiting -------------------------------------------------------------------------------------------------

    @property
    def is_leading(self) -> bool:
        """True on the thread that reads just now, inside a handler."""
        return self._leader == threading.get_ident()

    def wait(self, waiter: Waiter, deadline: Deadline | None = None, *, eager: bool = False) -> bool:
        """Block until ``waiter`` is done or the deadline has passed, reading for everybody meanwhile.

        ``eager`` says that the answer is expected within microseconds. Returns whether the waiter is done. Ctrl-C
        raises KeyboardInterrupt here, only between messages, so no message is lost. Raises RuntimeError when called by
        a handler, and in a forked copy of the process.
        """
        if waiter.done:
            return True
        if self._parent is not None:
            raise RuntimeError(
                f"this process was forked from process {self._parent}, which alone hears of its workers; "
                "make new ones here"
            )
        if self._leader == threading.get_ident():
            raise RuntimeError("the reading thread cannot wait: this would never end")
        tell, ident = self.on_wait, threading.get_ident()
        try:
            self._waiting[ident] = waiter
            if tell is not None:
                tell(True)
            with DeferredInterrupt():
                while not waiter.done and not (deadline and deadline.has_passed):
                    if self._role.acquire(False):
                        self._lead(waiter, deadline, eager)
                    else:
                        self._follow(waiter, deadline)
        finally:
            self._waiting.pop(ident, None)
            # Whoever was called to lead and leaves instead (done, out of time, interrupted) passes the call on.
            if not self._role.locked():
                self._pass_on()
            if tell is not None:
                tell(False)
        if self._interrupted and (error := self._interrupted.pop(ident, None)) is not None:
            waiter.done = False  # it has only been called out of its wait
            raise error
        return waiter.done

    def end_wait(self, ident: int, error: type[BaseException]) -> bool:
        """Raise an exception in a thread that waits here, when it is between messages; False when it does not wait."""
        waiter = self._waiting.get(ident)
        if waiter is None:
            return False
        self._interrupted[ident] = error
        if self._waiting.get(ident) is not waiter:  # it was just coming back: has it looked already?
            return self._interrupted.pop(ident, None) is None
        waiter.complete()
        return True

    def _lead(self, waiter: Waiter, deadline: Deadline | None, eager: bool) -> None:
        try:
            self._leader = threading.get_ident()
            waiter.wakes = self._end_poll  # before looking, so that an event brought by another thread ends the poll
            while not waiter.done and not (deadline and deadline.has_passed):
                self._turn(deadline.pause() if deadline else None, eager)
        finally:
            waiter.wakes = None
            self._epoch += 1
            self._give_up_role()

    def _give_up_role(self) -> None:
        self._leader = None
        self._role.release()
        self._pass_on()

    def _pass_on(self) -> None:
        """The role is free: call the next thread to take it, else the background thread."""
        if self._followers:
            try:  # noqa: SIM105
                self._followers[0].wake()
            except IndexError:  # it left meanwhile, and passes the call on itself
                pass
        elif self._parked:
            self._unpark_background()

    def _follow(self, waiter: Waiter, deadline: Deadline | None) -> None:
        waiter.prepare_to_sleep()
        self._followers.append(waiter)
        try:
            # The role may have become free before we were on the list: then nobody would wake us.
            if waiter.done or not self._role.locked():
                return
            if self._background_leads:
                self.wake()  # it steps aside when it sees us on the list
            interruptibly(waiter.sleep, deadline.pause() if deadline else None)
        finally:
            self._followers.remove(waiter)

    # -- reading -------------------------------------------------------------------------------------------------

    def _turn(self, timeout: float | None, eager: bool) -> None:
        """Wait for something to read, at most ``timeout`` seconds, and handle it."""
        if self._timers:
            due = self._run_timers()
            if due is not None and (timeout is None or due < timeout):
                timeout = due
        events = self._spin() if eager and self._may_spin else None
        if not events:
            events = interruptibly(self._poller.poll, timeout)
        for fd, mask in events or ():
            handler = self._handlers.get(fd)
            if handler is None:
                if fd == self._wake_in:
                    self._drain_wake_pipe()
                continue
            try:
                if mask & READ:
                    handler.on_readable()
                if mask & WRITE:
                    handler.on_writable()
            except Exception as error:
                # The reader's last line: a fault of ours costs this connection, never the reader.
                self._abandon(fd, handler)
                _report(error)

    def _abandon(self, fd: int, handler: Handler) -> None:
        """Watch a connection no more, whatever state it is in."""
        if self._handlers.get(fd) is handler:
            del self._handlers[fd]
            try:  # noqa: SIM105
                self._poller.unregister(fd)
            except (OSError, KeyError, ValueError):  # it is closed, or unregistered half-way
                pass

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
        while self._soon:
            self._soon.popleft()()

    # -- the background thread -----------------------------------------------------------------------------------

    def nudge(self) -> None:
        """Say that something is outstanding that nobody waits for: the background thread reads without delay."""
        if not self._role.locked():
            self._is_nudged = True
            self._unpark_background()

    def expect(self) -> None:
        """Say that something is outstanding whose sender will most likely wait for it, and so read, itself.

        The background thread reads when nobody has for a tick. Waking it at once would cost two hand-overs.
        """
        if self._parked:
            self._unpark_background()

    def _unpark_background(self) -> None:
        self._parked = False
        try:  # noqa: SIM105
            self._unpark.release()
        except RuntimeError:  # awake already
            pass

    def _start_background(self) -> None:
        if self._thread is not None or self._closed:
            return
        with self._thread_lock:
            if self._thread is None:
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
            while not self._followers and not self._closed:  # whoever waits leads instead
                self._turn(None, False)
        except Exception as error:  # the reader's last line
            _report(error)
        finally:
            self._background_leads = False
            self._give_up_role()

    def disown(self) -> None:
        """Be of no use in a forked copy of the process: the poller is one with the parent's."""
        self._parent = self._os_pid
        self._closed = True  # nothing is started or closed here
        for handler in list(self._handlers.values()):
            disown = getattr(handler, "disown", None)
            if disown is not None:
                disown()

    def close(self) -> None:
        """End the background thread and give the descriptors back; for processes that end, and for tests."""
        if self._closed:
            return
        self._closed = True
        self.wake()
        self._unpark_background()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        self._handlers.clear()  # some know their reader: their descriptors would wait for a garbage collection
        self._poller.close()
        wake_in, wake_out = self._wake_in, self._wake_out
        self._wake_in = self._wake_out = -1  # the numbers may soon be other files': a late wake() must miss them
        os.close(wake_in)
        os.close(wake_out)


def _report(error: BaseException) -> None:
    """Make a fault of ours seen."""
    threading.excepthook(
        threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    )


def _usable_cpus() -> int:
    if sys.platform.startswith("linux"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
