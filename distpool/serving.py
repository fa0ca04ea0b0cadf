"""Requests from other processes: what runs here for them, and how it is answered.

Used by the member. The reading thread only notes that a request has come and hands a job to ``execute``; the job opens
the payload, runs it and answers, in a worker's main thread or a thread of its own. Every request is answered exactly
once, whatever happens: by its value, by what it raised, by the reason why its value cannot travel, or, when it is
interrupted while its thread cannot be stopped, by KeyboardInterrupt at once. Owns: the table of running requests.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import CodeType

from distpool import messages as m
from distpool.cluster import Cluster
from distpool.copies import end_copy, tell_in_copies
from distpool.errors import RemoteException, remote_exception
from distpool.interrupts import raise_in_thread
from distpool.light import Any, Final
from distpool.peer import Peer
from distpool.pickling import capture, dump, dump_exception, is_plain
from distpool.shortcuts import Shortcuts
from distpool.store import OWN_STORE_SECONDS, Store
from distpool.wire import Frame

Job = Callable[[], object]

NOTHING: Final = dump(None)  # the payload of an answer without a value


class Call:
    """One request to run a function, until it is answered."""

    __slots__ = ("_serving", "frame", "is_answered", "peer")

    def __init__(self, serving: Serving, peer: Peer, frame: Frame) -> None:
        self._serving = serving
        self.peer = peer
        self.frame = frame
        self.is_answered = False

    def __call__(self) -> None:
        """Run and answer. One of the three edges that catch everything: it is the user's code."""
        running, ident = self._serving.running, threading.get_ident()
        outer = running.get(ident)
        running[ident] = self
        try:
            self._run()
        except KeyboardInterrupt as error:  # it came between two lines of ours instead of inside the user's code
            self.fail(error)
        finally:
            if outer is None:
                running.pop(ident, None)
            else:
                running[ident] = outer
            self._serving.done()

    def _run(self) -> None:
        try:
            f, args, kwargs = self._serving.open(self.frame)
            value = f(*args, **kwargs)
        except BaseException as error:
            if self._serving.is_copy:
                end_copy(error)
            self.fail(error)
        else:
            if self._serving.is_copy:
                end_copy(None)
            self.succeed(value)

    def succeed(self, value: object) -> None:
        """Answer with a value: send it, or keep it here under the call's reference."""
        if self.is_answered:
            return
        self.is_answered = True
        frame = self.frame
        if frame.kind == m.CALL_FETCH:
            send_value(self.peer, frame.request, value)
        elif frame.kind != m.DO:
            self._keep(True, value)
            if frame.kind == m.CALL_WAIT:
                self.peer.send_parcel(m.RESULT, NOTHING, request=frame.request)

    def fail(self, error: BaseException) -> None:
        """Answer with an exception."""
        if self.is_answered:
            return
        self.is_answered = True
        frame, serving = self.frame, self._serving
        if frame.kind == m.DO:
            report_unraisable(serving.pid, error)
            return
        if frame.kind != m.CALL_FETCH:
            self._keep(False, remote_exception(serving.pid, capture(error)))
        if frame.kind != m.CALL:
            send_error(self.peer, frame.request, error)

    def _keep(self, ok: bool, value: object) -> None:
        if self.frame.rrid in self._serving.store:
            self._serving.store.set_result(self.frame.rrid, ok, value)


class Serving:
    """The requests that this process runs for others."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        open: Callable[[Frame], Any],
        execute: Callable[[Job], None],
        is_reading: Callable[[], bool],
        call_later: Callable[[float, Callable[[], None]], object],
        end_wait: Callable[[int, type[BaseException]], bool],
        shortcuts: Shortcuts,
    ) -> None:
        self.store = store
        self.open = open
        self.running: dict[int, Call] = {}  # by thread
        self.when_done: Callable[[], None] | None = None  # called each time that something has ended
        self._cluster = cluster
        self._shortcuts = shortcuts
        self._end_wait = end_wait  # raises an exception out of a thread's wait, if it is in one
        self._execute = execute
        self._call_later = call_later  # makes a short call on the reading thread, in so many seconds
        self._is_reading = is_reading  # whether this thread reads just now, and must not run code of the user's
        # REF requests that have arrived and are not at the store yet, and whether they were withdrawn meanwhile.
        self._beginning: dict[tuple[int, int], bool] = {}
        self._beginning_lock = threading.Lock()  # protects _beginning
        self.is_copy = False  # this process was forked by a call that it ran
        tell_in_copies(self)

    @property
    def pid(self) -> int:
        """This process."""
        return self._cluster.pid

    def disown(self) -> None:
        """Answer nothing any more, in a forked copy of the process."""
        self.is_copy = True

    # -- calls ---------------------------------------------------------------------------------------------------

    def call(self, peer: Peer, frame: Frame) -> None:
        """Run a function for another process. On the reading thread."""
        if frame.kind in (m.CALL, m.CALL_WAIT):
            # The entry exists before anything that follows on this connection can ask for it. When it is missing in the
            # end, it was released meanwhile, however long ago.
            self.store.create(frame.rrid)
            if frame.kind == m.CALL and frame.request:
                self._tell_end(peer, frame)
        self._execute(Call(self, peer, frame))

    def _tell_end(self, peer: Peer, frame: Frame) -> None:
        """The caller wants to know when the call has ended: before anybody who fetches its result, who asks later."""

        def tell(ok: bool, value: Any) -> bool:
            return peer.send(m.RESULT, 0 if ok else m.FLAG_ERROR, frame.request)

        self.store.request(frame.rrid, "wait", (), peer.pid, frame.request, tell)

    def interrupt(self, main: int) -> None:
        """Answer everything that runs in threads other than ``main`` with KeyboardInterrupt, and raise it there.

        A thread that waits in C code hears of it late or never (Python has no way to reach it), its caller at once.
        """
        for ident, call in list(self.running.items()):
            if ident != main and not call.is_answered:
                call.fail(KeyboardInterrupt(f"interrupted on process {self.pid}"))
                self.stop(ident, KeyboardInterrupt, partial(self._runs, ident, call))

    def done(self) -> None:
        """Something that ran here has ended: tell whoever waits until nothing does."""
        tell = self.when_done
        if tell is not None:
            tell()

    def _runs(self, ident: int, call: Call) -> bool:
        return self.running.get(ident) is call

    def stop(
        self,
        ident: int,
        error: type[BaseException],
        is_meant: Callable[[], bool],
        entrance: CodeType | None = None,
        pause: float = 0.001,
    ) -> None:
        """Raise an exception in a thread: out of a wait of ours, or in the user's code that ``entrance`` has called.

        Elsewhere in our code it would cut a message in two: then it is tried again, as long as ``is_meant`` says so.
        """
        if not is_meant() or self._end_wait(ident, error):
            return
        if _is_in_user_code(ident, entrance or Call._run.__code__):
            raise_in_thread(ident, error)
            return
        longer = min(2 * pause, 0.5)
        self._call_later(pause, lambda: self.stop(ident, error, is_meant, entrance, longer))

    # -- references ----------------------------------------------------------------------------------------------

    def ref(self, peer: Peer, frame: Frame) -> None:
        """Do something with a reference that this process owns. On the reading thread."""
        if frame.flags & m.FLAG_PLAIN and self.store.is_prompt(frame.rrid):
            self._do_ref(peer, frame)  # nothing of the user's runs: no thread is needed
            return
        self._beginning[peer.pid, frame.request] = False
        self._execute(lambda: self._run_ref(peer, frame))

    def _do_ref(self, peer: Peer, frame: Frame) -> None:
        def answer(ok: bool, value: Any) -> bool | Callable[[], bool]:
            """Send the answer; False when it was not delivered, so that a taken item goes back to its place."""
            if not peer.is_open:
                return False
            send = send_value if ok else send_error
            if self._is_reading() and not (ok and is_plain(value)):
                return lambda: send(peer, frame.request, value)  # pickling it runs the user's code: elsewhere
            return send(peer, frame.request, value)

        try:
            operation = m.OPERATIONS[frame.body[0]]
            frame.body = memoryview(frame.body)[1:]
            args, _ = self.open(frame)
        except BaseException as error:  # the user's objects
            send_error(peer, frame.request, error)
        else:
            if operation == "put":
                self._shortcuts.putting(peer, frame.rrid)
            elif operation == "take":
                self._shortcuts.taking(peer, frame.rrid)
            self.store.request(frame.rrid, operation, args, peer.pid, frame.request, answer)
            if operation == "take":
                self._shortcuts.taken(peer, frame.rrid)

    def _run_ref(self, peer: Peer, frame: Frame) -> None:
        self._do_ref(peer, frame)
        with self._beginning_lock:
            is_withdrawn = self._beginning.pop((peer.pid, frame.request), False)
        if is_withdrawn:
            self.withdraw(peer, frame)

    def withdraw(self, peer: Peer, frame: Frame) -> None:
        """A request about a reference is not wanted any more: answered at once, unless its answer is under way."""
        key = (peer.pid, frame.request)
        with self._beginning_lock:
            if key in self._beginning:  # it overtook its own request, which looks when it is known
                self._beginning[key] = True
                return
        if self.store.withdraw(*key):
            peer.send(m.RESULT, m.FLAG_WITHDRAWN, frame.request)
        elif self.store.is_in_own_store(*key):
            self._call_later(OWN_STORE_SECONDS, lambda: self._abandon(peer, frame.request))

    def _abandon(self, peer: Peer, request: int) -> None:
        if self.store.abandon(peer.pid, request):
            peer.send(m.RESULT, m.FLAG_WITHDRAWN, request)


def send_value(peer: Peer, request: int, value: object) -> bool:
    """Answer a request; a value that cannot travel becomes an error that says so, for this request alone.

    Returns whether the value itself was sent.
    """
    try:
        return peer.send_parcel(m.RESULT, dump(value, peer.pid), request=request)
    except BaseException as error:
        send_error(peer, request, error)
        return False


def send_error(peer: Peer, request: int, error: BaseException) -> bool:
    """Answer a request with the exception it raised. Returns whether it was sent."""
    try:
        return peer.send_parcel(m.RESULT, dump_exception(error), flags=m.FLAG_ERROR, request=request)
    except TypeError as unsendable:  # it holds references that have no meaning there, and is the context of this one
        instead = TypeError(*unsendable.args)
    return peer.send_parcel(m.RESULT, dump_exception(instead), flags=m.FLAG_ERROR, request=request)


def report_unraisable(pid: int, error: BaseException) -> None:
    """Print an exception that nobody waits for, as Julia's remote_do does."""
    captured = error.captured if isinstance(error, RemoteException) else capture(error)
    print(f"exception on process {pid}:\n{captured.traceback}", file=sys.stderr, flush=True)


def _is_in_user_code(ident: int, entrance: CodeType) -> bool:
    """Whether a thread that runs a request has left our code for the user's, and not come back by a call of ours."""
    frame = sys._current_frames().get(ident)
    while frame is not None and frame.f_code is not entrance:
        if str(frame.f_globals.get("__name__")).partition(".")[0] == "distpool":
            return False
        frame = frame.f_back
    return frame is not None


# While one of these is on the stack SIGINT is of no effect: an answer must not be lost half-way.
UNINTERRUPTIBLE: Final = frozenset(f.__code__ for f in (Call.succeed, Call.fail, Serving._do_ref, Serving._run_ref))
