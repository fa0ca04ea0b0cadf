"""The life of a worker: from its first message to its end.

Entered by the fork server's child (``run_forked``), by a program that has made itself a worker, and by a thread that is
a worker inside another program (``distpool.testing``). The main thread, or the one that serves in its place, reads a
request, runs it, answers, reads the next; there is no hand-over for short requests. While it is in user code for more
than a tick, the reader's background thread reads: it answers what needs no user code, gives further direct calls
threads of their own, sends finished results, and takes orders to stop. Owns: what the main thread is doing, and whether
SIGINT may interrupt it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import types
from collections import deque
from collections.abc import Callable
from functools import partial

from distpool import messages as m
from distpool import serving, tasks
from distpool.interrupts import raise_in_thread
from distpool.light import Any, Final, signal, socket
from distpool.member import Member, act_as, install_default
from distpool.messages import DRIVER
from distpool.peer import Peer
from distpool.pickling import dump, note_spread
from distpool.tasks import Tasks, flush_output
from distpool.transport import Deadline, Reader, Waiter
from distpool.wire import Frame

# While one of these is on the stack, SIGINT is of no effect: answers and results must not be lost half-way.
UNINTERRUPTIBLE: Final = serving.UNINTERRUPTIBLE | tasks.UNINTERRUPTIBLE
# How often the background thread sends what a long-running envelope has finished.
FLUSH_EVERY_SECONDS: Final = 0.01
# How long an order to end waits for the main thread to come back from a call that it has answered. Arbitrary.
MOMENT_SECONDS: Final = 0.2
# How long the end of a guest waits for calls that are being stopped, and how often it looks; what C code holds is left.
GUEST_SECONDS: Final = 1.0
LOOK_SECONDS: Final = 0.01
# What a worker without a driver takes to say why it ends, at most. Arbitrary.
LAST_WORDS_SECONDS: Final = 0.5


def run_forked(descriptor: int, setup: dict[str, Any]) -> None:
    """Serve process 1 over an inherited socket until it says that it is enough."""
    fresh_main()
    page, number = setup.get("page"), setup.get("slot")
    slot = page.slot(number) if page is not None and number is not None else None
    Worker(socket.socket(fileno=descriptor), slot).serve()


class _Order:
    """To interrupt what the main thread runs, and nothing that it runs later."""

    def __init__(self, meant: object) -> None:
        self.meant = meant


class Worker:
    """This process as a worker: its main thread, and who stands in for it.

    Made in the thread that will serve. Where that is not the main thread of the process, there are no signals: an
    interrupt is raised between two steps of Python code, as in any other call thread. With ``exit_on_close=False`` the
    worker is a guest: its end is that of ``serve``, and nothing of the process is its own.
    """

    def __init__(
        self,
        stream: socket.socket,
        page: memoryview | None,
        reader: Reader | None = None,
        *,
        exit_on_close: bool = True,
    ) -> None:
        self._main = threading.get_ident()
        self._os_pid = os.getpid()
        self._is_guest = not exit_on_close
        self._has_signals = exit_on_close and threading.current_thread() is threading.main_thread()
        self._jobs: deque[Callable[[], object]] = deque()  # direct calls that the main thread shall run
        self._work = Waiter()  # done when there is something to run, or to end
        self._is_leaving = False
        self._is_idle = True  # the main thread waits for work
        self._may_interrupt = False  # the main thread is in user code
        # To interrupt the main thread; a message gave it, and that has not heard of it yet.
        self._order: _Order | None = None
        self._was_signalled = False  # a SIGINT from elsewhere has interrupted something; its message is still to come
        self._user_waits = 0  # how deep the main thread waits inside user code
        self._reader = reader or Reader()  # a worker that listened for its driver has one already
        self._member = Member(0, self._reader, self._execute, self._is_guest)
        self._tasks = Tasks(self._member, self._work.complete, page)
        self._reader.on_takeover = self._main_is_busy  # one that has listened has its thread, which calls at once
        self._reader.on_wait = self._user_code_waits
        self._member.actions.update({m.JOIN: self._join, m.MEMBERS: self._members, m.EXIT: self._exit})
        self._member.actions[m.INTERRUPT] = self._interrupt
        self._member.cluster.listen(departed=self._departed)
        if self._is_guest:
            act_as(self._member)
        else:
            install_default(self._member, self._reader)
        if self._has_signals:
            signal.signal(signal.SIGINT, self._on_sigint)
            _enable_faulthandler()
        self._member.connect(DRIVER, stream)

    # -- the main thread -----------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Run what comes until the end."""
        while not self._is_leaving:
            try:
                self._serve_on()
            except (KeyboardInterrupt, SystemExit):  # raised in a thread without signals when it was just done
                if self._has_signals:
                    raise
        self._leave()

    def _serve_on(self) -> None:
        while not self._is_leaving:
            # Both before looking, so that what comes meanwhile is not overlooked, nor left to a thread that is busy.
            self._work.done = False
            self._is_idle = False
            if self._jobs:
                self._run_job()
            elif self._tasks.has_waiting:
                self._run_guarded(self._tasks.run_next)
            else:
                self._wait()

    def _wait(self) -> None:
        self._is_idle = True
        try:
            if not self._is_leaving:  # the order to end may have come before the wait
                self._reader.wait(self._work, eager=True)
        finally:
            self._is_idle = False

    def _run_job(self) -> None:
        try:
            job = self._jobs.popleft()
        except IndexError:  # the background thread gave it a thread
            return
        self._tasks.main_call = job if isinstance(job, serving.Call) else None
        self._tasks.main_is_free = False
        if self._tasks.has_waiting:  # left to this thread while it was coming back from the last call
            self._tasks.run_aside()
        try:
            self._run_guarded(job)
            flush_output()
        finally:
            self._tasks.main_is_free = True
            self._tasks.main_call = None

    def _run_guarded(self, run: Callable[[], object]) -> None:
        """Run user code, which SIGINT may interrupt. One that comes when the code is just done is of no effect."""
        try:
            self._may_interrupt = True
            run()
            self._may_interrupt = False
        except KeyboardInterrupt:
            pass
        finally:
            self._may_interrupt = False

    # -- who runs what -------------------------------------------------------------------------------------------

    def _execute(self, job: Callable[[], object]) -> None:
        """Run a direct call: the main thread if it is idle, else a thread of its own. Called on the reading thread."""
        if self._is_idle and not self._jobs:
            self._jobs.append(job)
            self._work.complete()
            if self._is_idle:
                return
            # The main thread woke meanwhile, for this job or for something else that it has seen first.
            try:
                job = self._jobs.popleft()
            except IndexError:  # it has it
                return
        self._member.threads.run(partial(_run_aside, job))

    def _main_is_busy(self) -> None:
        """The main thread has been in user code for a tick: stand in for it. Called on the background thread."""
        while self._jobs:
            try:
                job = self._jobs.popleft()
            except IndexError:
                break
            self._member.threads.run(partial(_run_aside, job))
        if not self._tasks.main_is_free:
            self._tasks.run_aside()
        self._flush_while_busy()

    def _flush_while_busy(self) -> None:
        if not self._is_idle:
            self._tasks.flush_running()
            self._reader.call_later(FLUSH_EVERY_SECONDS, self._flush_while_busy)

    def _user_code_waits(self, waits: bool) -> None:
        """User code on the main thread begins or ends to wait for another process: its tasks need another runner."""
        if self._is_idle or threading.get_ident() != self._main:
            return
        self._user_waits += 1 if waits else -1
        self._tasks.main_is_free = self._user_waits == 0
        if waits:
            self._tasks.run_aside()

    # -- messages ------------------------------------------------------------------------------------------------

    def _join(self, peer: Peer, frame: Frame) -> None:
        """Process 1 says who we are. Runs before any request: messages of one connection keep their order."""
        welcome = self._member.open(frame)
        self._member.pid = self._member.cluster.pid = welcome["pid"]
        self._member.cluster.add(peer)
        told = welcome["host_timeout"]
        if told is not None and told != os.environ.get("DISTPOOL_HOST_TIMEOUT") and not self._is_guest:
            os.environ["DISTPOOL_HOST_TIMEOUT"] = told  # for whom it dials later, too
            peer.watch_host()
        self._member.cluster.know(welcome["members"], welcome["leaving"])
        note_spread(self._member, welcome["is_spread"])
        if "logging" in welcome:
            from distpool import logs  # here: it imports logging, which most workers do without

            logs.forward(peer, welcome["logging"], self._member.threads.run)
        peer.send_parcel(m.JOINED, dump({"os_pid": os.getpid(), "cpus": os.cpu_count()}), request=frame.request)

    def _members(self, peer: Peer, frame: Frame) -> None:
        self._member.cluster.know(*self._member.open(frame))
        note_spread(self._member, bool(frame.ref))

    def _exit(self, peer: Peer, frame: Frame) -> None:
        """End now; or, when this is a request, only say when nothing runs here any more."""
        if frame.request:
            self._member.serving.when_done = lambda: self._say_when_done(peer, frame.request)
            self._say_when_done(peer, frame.request)
            return
        self._is_leaving = True
        if self._is_idle:
            self._work.complete()
        elif self._has_just_answered() and not self._is_guest:  # it alone may run exit handlers, and will in a moment
            self._work.complete()
            self._reader.call_later(MOMENT_SECONDS, self._leave)
        else:
            self._leave()  # the main thread is in user code, and may stay there

    def _has_just_answered(self) -> bool:
        """Whether the main thread is on its way back from a call whose answer may have brought the order to end."""
        call = self._member.serving.running.get(self._main)
        return call is not None and call.is_answered

    def _interrupt(self, peer: Peer, frame: Frame) -> None:
        """Interrupt one task (``whence``; 0: any) of an envelope, or (``ref`` 0) all that runs here."""
        if frame.request:
            peer.send_parcel(m.RESULT, serving.NOTHING, request=frame.request)
        if not frame.ref:
            self._interrupt_waiting()
            self._member.serving.interrupt(self._main if self._has_signals else 0)
            if self._was_signalled:  # the main thread heard of this order before we could read it
                self._was_signalled = False
                return
        self._tasks.refuse(peer, frame.ref, frame.whence)
        is_task = self._tasks.is_running(self._main, frame.ref, frame.whence)
        if not self._has_signals:
            is_in_some_task = self._may_interrupt and self._main not in self._member.serving.running
            if is_task or (not frame.ref and is_in_some_task):
                self._stop(self._main, KeyboardInterrupt)
        elif not frame.ref or is_task:
            meant = self._what_main_runs()
            if not is_task or self._tasks.is_running(self._main, frame.ref, frame.whence):  # else just now it has ended
                self._order = order = _Order(meant)
                self._signal_main(order)

    def _say_when_done(self, peer: Peer, request: int) -> None:
        if not self._jobs and not self._member.serving.running and not self._tasks.is_busy:
            self._member.serving.when_done = None
            peer.send_parcel(m.RESULT, serving.NOTHING, request=request)

    def _what_main_runs(self) -> object:
        """The call, or the envelope and the task of it, that the main thread is in."""
        return self._member.serving.running.get(self._main) or self._tasks.running_in(self._main)

    def _signal_main(self, order: _Order, pause: float = 0.005) -> None:
        """Send the main thread SIGINT until it has heard of it, as long as it runs what is meant.

        Once is not enough: a signal that comes just before a system call (a sleep, say) does not end that call.
        """
        if self._order is not order:  # heard, or a later order takes care
            return
        if self._what_main_runs() != order.meant:
            self._order = None
            return
        signal.pthread_kill(self._main, signal.SIGINT)
        self._reader.call_later(pause, lambda: self._signal_main(order, min(2 * pause, 0.5)))

    def _interrupt_waiting(self) -> None:
        """Fail the calls that came before the order to stop and wait for the main thread."""
        while self._jobs:
            try:
                job = self._jobs.popleft()
            except IndexError:
                break
            if isinstance(job, serving.Call):
                job.fail(KeyboardInterrupt("interrupted before it began"))
            else:
                self._member.threads.run(job)

    def _on_sigint(self, signum: int, frame: types.FrameType | None) -> None:
        """Raise KeyboardInterrupt in what the main thread runs for others; an idle worker is not harmed."""
        order = self._order
        if order is not None and order.meant != self._what_main_runs():
            self._order = None  # too late
            return
        # An order that finds the thread elsewhere stays: its signal is sent again.
        while frame is not None:
            if frame.f_code in UNINTERRUPTIBLE:
                return
            frame = frame.f_back
        if self._may_interrupt and not self._tasks.is_between(self._main):
            self._order = None
            self._was_signalled = order is None
            raise KeyboardInterrupt

    def _departed(self, pid: int, error: BaseException) -> None:
        if pid == DRIVER and not self._is_leaving and os.getpid() == self._os_pid:
            if self._is_guest:
                self._is_leaving = True
                self._leave()
            else:
                if getattr(error, "detail", None):  # not just its end
                    _say_within(LAST_WORDS_SECONDS, f"distpool worker: {error}")
                os._exit(1)  # nobody is left to work for; the fork server ends what we started

    def _leave(self) -> None:
        """End this process without waiting for any thread: some may be stuck in user code."""
        if self._is_guest and (threading.get_ident() != self._main or self._reader.is_leading):
            self._hang_up()
            return
        if self._is_guest:
            self._check_out()
            return
        if threading.current_thread() is threading.main_thread():
            import atexit  # only here, and only the main thread may run what others registered

            atexit._run_exitfuncs()
        flush_output()
        os._exit(0)

    def _hang_up(self) -> None:
        """Begin the end of a guest: its callers hear of it, and what runs is stopped where Python can do that."""
        self._tasks.drop_all()
        self._member.leave()
        for ident in {*self._member.serving.running, *([] if self._is_idle else [self._main])}:
            self._stop(ident, SystemExit)
        self._work.complete()

    def _check_out(self) -> None:
        """End as a guest, on the serving thread. What is stuck in C code is left; its thread ends when that does."""
        raise_in_thread(self._main, None)  # what was to end user code has come too late for it
        self._is_idle = True
        self._hang_up()
        deadline = Deadline(GUEST_SECONDS)
        while self._member.serving.running and not deadline.has_passed:  # the reader's timers stop them
            self._reader.wait(Waiter(), Deadline(LOOK_SECONDS))
        self._reader.close()

    def _stop(self, ident: int, error: type[BaseException]) -> None:
        """Raise an exception in a thread of a guest, if it runs what it runs now when that can be done."""
        call = self._member.serving.running.get(ident)
        task = self._tasks.running_in(ident)

        def is_meant() -> bool:
            return self._member.serving.running.get(ident) is call and self._tasks.running_in(ident) == task

        entrance = tasks.ENTRANCE if call is None else None
        self._member.serving.stop(ident, error, is_meant, entrance)


def _say_within(seconds: float, text: str) -> None:
    """Print to standard error if that can be done: it may be a connection to the host that has just vanished."""

    def say() -> None:
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    thread.join(seconds)


def _run_aside(job: Callable[[], object]) -> None:
    """Run a direct call in a thread of its own."""
    try:
        job()
    finally:
        flush_output()


def fresh_main() -> None:
    """Give this process a ``__main__`` of its own, empty: what functions of the driver's ``__main__`` share here."""
    main = types.ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main


def _enable_faulthandler() -> None:
    # There may be no standard error to write to.
    with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
        faulthandler.enable()
