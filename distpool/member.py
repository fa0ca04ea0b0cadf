"""This process as a member of one cluster: its id, its peers, what it keeps for others, and what each message does.

Used by the verbs above. One object per cluster; a worker has one for the cluster it belongs to and one more for each
cluster that it makes itself. Messages come in on the thread that leads the reader, which only looks at the header: a
table leads from the kind of message to the action, and whatever opens a payload or runs user code is handed to
``execute`` as a job::

    reading thread --frame--> actions[kind] --RESULT--------------> the pending call of that peer
                                            --CALL..., REF, DO----> execute(job): a worker's main thread, or another
                                            --TASKS, EXIT, LOG, ..-> what the worker, its tasks or ``logs`` have added

Owns: the store, the table of actions, the idle call threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary, WeakValueDictionary

from distpool import messages as m
from distpool.bookkeeping import Bookkeeping
from distpool.callbacks import Callbacks
from distpool.channel import Channel
from distpool.cluster import Cluster, Departure
from distpool.errors import ProcessExitedException, remote_exception
from distpool.guiding import Guidance
from distpool.introductions import Introductions
from distpool.light import TYPE_CHECKING, Any, Final, socket
from distpool.messages import DRIVER, RRID
from distpool.peer import Peer, Reply
from distpool.pickling import Parcel, load, load_exception
from distpool.roll import Roll
from distpool.segments import Segment
from distpool.serving import NOTHING, Serving, send_error
from distpool.shortcuts import Shortcuts
from distpool.store import Store
from distpool.threads import CallThreads
from distpool.transport import Deadline, Reader
from distpool.visits import Visits
from distpool.wire import Frame

if TYPE_CHECKING:
    from distpool.managers.interface import ClusterManager, WorkerConfig
    from distpool.relays import Relays

Job = Callable[[], object]
Action = Callable[[Peer, Frame], None]

# How long somebody whose time is up waits for a last word that may be lost. More than a round trip, or he would never
# get it; arbitrary.
LAST_WORD_SECONDS: Final = 0.5

# One set of idle threads for all clusters that share a reader: many pools, one after the other, need no more than one
# has.
_call_threads: WeakKeyDictionary[Reader, CallThreads] = WeakKeyDictionary()
_CALL_NAME: Final = "distpool call"


class Member:
    """One process's membership in one cluster."""

    def __init__(
        self, pid: int, reader: Reader, execute: Callable[[Job], None] | None = None, is_guest: bool = False
    ) -> None:
        self.pid = pid
        self.is_guest = is_guest  # a worker in some threads of a process whose default member is another
        self.cluster = Cluster(pid)
        self.reader = reader
        self.threads = _guest_threads(self) if is_guest else _call_threads.setdefault(reader, CallThreads(_CALL_NAME))
        self.execute: Callable[[Job], None] = execute or self.threads.run
        self.callbacks = Callbacks(self.threads)
        self.watches_exits = False  # "exited" callbacks are told of departures
        self.store = Store(run_blocking=self.threads.run)
        self.handles: WeakValueDictionary[RRID, Any] = WeakValueDictionary()  # one for each reference known here
        self.shortcuts = Shortcuts(self.store, self.handles, reader, self.threads.run)
        self.serving = Serving(
            self.cluster,
            self.store,
            self.open,
            self.execute,
            lambda: self.reader.is_leading,
            reader.call_later,
            reader.end_wait,
            self.shortcuts,
        )
        self.managers: dict[int, ClusterManager] = {}  # of the workers that have joined this process
        self.configs: dict[int, WorkerConfig] = {}  # of the workers that this process started
        self.roll = Roll(self.cluster, reader, self.threads, self.configs, self.managers)
        self.membership_lock = threading.Lock()  # one addprocs or rmprocs at a time (Julia's rule)
        # What a worker has to run before it is a member (``everywhere``); changed under membership_lock.
        self.first_calls: list[Parcel] = []
        self.books = Bookkeeping(self.cluster, self.store, reader)
        self._relays: Relays | None = None  # made at first use: most clusters are on one machine
        guidance = Guidance(
            self.configs, self.managers, self.send_request, lambda one, other: self.relays.join(one, other)
        )
        self.introductions = Introductions(self.cluster, guidance)
        self.visits = Visits(self.cluster, reader, self.threads.run, self.connect)
        self.actions = self._actions()  # a worker, its tasks and ``logs`` add theirs
        self.cluster.listen(departed=self._client_gone)

    def _actions(self) -> dict[int, Action]:
        serving, books, shortcuts = self.serving, self.books, self.shortcuts
        return {
            m.RESULT: self._answer,
            m.JOINED: self._answer,
            m.TAKEN_BACK: self._answer,
            m.TASKS_DONE: self._part_of_answer,
            m.CALL: serving.call,
            m.CALL_WAIT: serving.call,
            m.CALL_FETCH: serving.call,
            m.DO: serving.call,
            m.REF: serving.ref,
            m.WITHDRAW: serving.withdraw,
            m.ADDED: books.arrived,
            m.DROPPED: books.arrived,
            m.SETTLE: books.arrived,
            m.SETTLED: books.arrived,
            m.SHELF: shortcuts.shelf_came,
            m.TAKEN: shortcuts.told,
            m.SLOT: shortcuts.slot_came,
            m.PLACES: shortcuts.places_came,
            m.MEET: self._introduce,
            m.NEIGHBOUR: self._neighbour,
            m.EXPECT: self.visits.expect,
            m.VISIT: self.visits.visit,
            m.RELAY: lambda peer, frame: self.relays.received(peer, frame),
        }

    # -- connections ---------------------------------------------------------------------------------------------

    def connect(self, pid: int, stream: Any, config: WorkerConfig | None = None) -> Peer:
        """Make the connection to ``pid`` over a connected socket; it becomes a member by ``cluster.add``."""
        if config is not None:
            self.configs[pid] = config  # before anything can be read, for the stream may end at once
        peer = Peer(pid, stream, self.reader, self.receive, self.roll.stream_ended, self)
        peer.is_in_our_process = self.is_guest or getattr(stream, "is_in_our_process", False)
        if config is not None and config.process is not None:
            config.process.watch(lambda code, signum: self.roll.exit_reported(peer, code, signum))
        return peer

    def receive(self, peer: Peer, frame: Frame) -> None:
        """Act on one message. Runs on the reading thread; never blocks and opens nothing."""
        action = self.actions.get(frame.kind)
        if action is not None:  # an unknown kind comes from a newer peer: ignore it, the rest still works
            action(peer, frame)
        elif frame.descriptor >= 0:
            os.close(frame.descriptor)

    def _answer(self, peer: Peer, frame: Frame) -> None:
        pending = peer.pending.pop(frame.request, None)
        if pending is not None:  # None: its caller has given up
            pending.arrived(frame)

    def _part_of_answer(self, peer: Peer, frame: Frame) -> None:
        if frame.flags & m.FLAG_LAST:
            self._answer(peer, frame)
            return
        pending = peer.pending.get(frame.request)
        if pending is not None:
            pending.arrived(frame)

    def _client_gone(self, pid: int, error: ProcessExitedException) -> None:
        self.store.client_gone(pid, error)
        self.shortcuts.gone(pid)

    def leave(self) -> None:
        """Close all connections of this member, and fail what waits for an answer; the process lives on."""
        for peer in self.cluster.peers():
            self.cluster.depart(peer, Departure(detail="this worker has left the cluster", was_asked=True))
        if self._relays is not None:
            self._relays.close()
        self.visits.close()

    # -- workers meet --------------------------------------------------------------------------------------------

    def peer(self, pid: int) -> Peer:
        """Return the connection to ``pid``; a worker is introduced to another one when it first needs it.

        Raises ProcessExitedException for a process that is gone, ValueError for one that never was, RuntimeError when
        the topology keeps the two apart.
        """
        try:
            return self.cluster.peer(pid)
        except (ValueError, RuntimeError):
            if self.pid == DRIVER or pid in (DRIVER, self.pid) or self.cluster.was_member(pid):
                raise
        driver = self.cluster.peer(DRIVER)
        # The connection comes before the answer, on the same stream.
        self.open_answer(driver, self.request(driver, m.MEET, ref=pid))
        return self.cluster.peer(pid)

    def _introduce(self, peer: Peer, frame: Frame) -> None:
        """A worker wants to talk to another one. On process 1; answered when they are connected."""

        def answer(error: Exception | None) -> None:
            if error is None:
                peer.send_parcel(m.RESULT, NOTHING, request=frame.request)
            else:
                send_error(peer, frame.request, error)

        try:
            self.introductions.introduce(peer, self.cluster.peer(frame.ref), answer)
        except Exception as error:
            send_error(peer, frame.request, error)

    def _neighbour(self, peer: Peer, frame: Frame) -> None:
        """Process 1 has connected us to another worker."""
        is_tunnel = not frame.descriptors
        if frame.descriptor < 0 and not is_tunnel:
            return
        if self.cluster.was_member(frame.ref):  # it has ended since, and goes through the door of death only once
            if not is_tunnel:
                os.close(frame.descriptor)
            return
        stream = self.relays.open(frame.ref) if is_tunnel else socket.socket(fileno=frame.descriptor)
        self.cluster.add(self.connect(frame.ref, stream))

    @property
    def relays(self) -> Relays:
        """The connections through process 1."""
        if self._relays is None:
            from distpool.relays import Relays  # only for clusters with workers that cannot be handed descriptors

            self._relays = Relays(self.cluster, self.reader)
        return self._relays

    # -- references in messages (peer.References) ------------------------------------------------------------------

    def check(self, parcel: Parcel) -> None:
        """See ``Claims.check``."""
        self.books.claims.check(parcel.refs or ())

    def announce(self, claims: Sequence[Any], pid: int) -> None:
        """See ``Bookkeeping.announce``."""
        self.books.announce(claims, pid)

    def received(self, table: Sequence[tuple[int, int, int]], giver: int) -> object:
        """See ``Bookkeeping.received``."""
        return self.books.received(table, giver)

    # -- requests to others --------------------------------------------------------------------------------------

    def request(
        self, peer: Peer, kind: int, parcel: Parcel = NOTHING, whence: int = 0, ref: int = 0, eager: bool = True
    ) -> Frame:
        """Send a request and wait for its answer, reading meanwhile.

        Raises ProcessExitedException when the process ends before it answers. An interrupt withdraws the request.
        """
        reply = Reply()
        request = self.send_request(peer, reply, kind, parcel, whence, ref)
        try:
            self.reader.wait(reply, eager=eager)
        except BaseException:
            self.withdraw(peer, request)
            raise
        return self.answer_of(reply)

    def request_within(
        self, peer: Peer, kind: int, parcel: Parcel, rrid: RRID, timeout: float | None, takes: bool = True
    ) -> Frame:
        """As ``request``, about a reference, for at most ``timeout`` seconds; then it is withdrawn: TimeoutError.

        When it ``takes`` something away, the owner has the last word, and is waited for even if it is stuck.
        """
        if timeout is None:
            return self.request(peer, kind, parcel, rrid.whence, rrid.id)
        reply = Reply()
        request = self.send_request(peer, reply, kind, parcel, rrid.whence, rrid.id)
        self.reader.wait(reply, Deadline(timeout), eager=True)
        if not reply.done:
            # What the owner is just now sending must not be lost, so it has the last word, at once.
            peer.send(m.WITHDRAW, request=request)
            self.reader.wait(reply, None if takes else Deadline(LAST_WORD_SECONDS), eager=True)
        if not reply.done and peer.pending.pop(request, None) is not None:
            raise TimeoutError(f"process {peer.pid} had no answer about {tuple(rrid)} within {timeout} seconds")
        if not reply.done:  # it is arriving at this moment
            self.reader.wait(reply, eager=True)
        frame = self.answer_of(reply)
        if frame.flags & m.FLAG_WITHDRAWN:
            raise TimeoutError(f"process {peer.pid} had no answer about {tuple(rrid)} within {timeout} seconds")
        return frame

    def send_request(
        self,
        peer: Peer,
        pending: Any,
        kind: int,
        parcel: Parcel,
        whence: int = 0,
        ref: int = 0,
        segment: Segment | None = None,
    ) -> int:
        """Send a request whose answer goes to ``pending``; return its number. ``segment`` as for ``send_parcel``."""
        self.check(parcel)
        request = peer.next_request()
        peer.pending[request] = pending
        flags = 0 if parcel.foreign or parcel.refs or parcel.globals else m.FLAG_PLAIN
        sent = peer.send_parcel(kind, parcel, flags, request, whence, ref, segment)
        # The door for death empties the table once: who comes after it must look itself.
        if not sent and peer.pending.pop(request, None) is not None:
            pending.lost(self.cluster.absence(peer.pid))
        if peer.has_unsent and not self.reader.is_leading:
            peer.wait_for_room()
        return request

    def withdraw(self, peer: Peer, request: int) -> None:
        """Tell the other side that nobody wants this answer any more."""
        if peer.pending.pop(request, None) is not None:
            peer.send(m.WITHDRAW, request=request)

    def answer_of(self, reply: Reply) -> Frame:
        """Return the answer that has arrived, or raise what came instead."""
        error, reply.error = reply.error, None
        if error is not None:
            try:
                raise error
            finally:
                # They would keep each other, and all that was at hand here, until a garbage collection.
                del error
        frame = reply.frame
        assert frame is not None
        return frame

    def open_answer(self, peer: Peer, frame: Frame) -> Any:
        """Open a RESULT: return its value, or raise the exception it carries as a RemoteException."""
        if not frame.flags & m.FLAG_ERROR:
            return self.open(frame)
        frame.raise_error()
        with self.opening():
            captured = load_exception(frame.body, frame.buffers)
        raise remote_exception(peer.pid, captured) from captured.ex

    def open(self, frame: Frame) -> Any:
        """Open a payload here and now, for the one who asked for it."""
        frame.raise_error()
        with self.opening():
            return load(frame.body, frame.buffers)

    def opening(self) -> _Opening:
        """Return a context in which references that are unpickled belong to this cluster."""
        return _Opening(self)

    # -- local references ----------------------------------------------------------------------------------------

    def next_rrid(self) -> RRID:
        """Return an id for a new reference made by this process."""
        return RRID(self.pid, _next_ref())

    def make_channel(self, rrid: RRID, factory: Callable[[], Any]) -> None:
        """Run a factory here and keep what it returns under ``rrid``."""
        self.store.create(rrid, channel=factory())

    def channel(self, rrid: RRID) -> Channel[Any]:
        """Return the backing channel of a reference that this process owns."""
        return self.store.channel(rrid)


class _Opening:
    """For the time of one unpickling, ``opening_member()`` is this one."""

    __slots__ = ("_member", "_previous")

    def __init__(self, member: Member) -> None:
        self._member = member

    def __enter__(self) -> None:
        self._previous = getattr(_context, "member", None)
        _context.member = self._member

    def __exit__(self, *exc: object) -> None:
        _context.member = self._previous


# Ref numbers are unique in the process, whatever clusters it belongs to: a ref of one cluster is never taken for
# another's.
_ref_lock = threading.Lock()
_ref_count = 0


def _next_ref() -> int:
    global _ref_count
    with _ref_lock:
        _ref_count += 1
        return _ref_count


# -- the member that module functions act on ---------------------------------------------------------------------------

_context = threading.local()  # .member: whose message this thread is opening; .own: the guest that this thread is of
_has_guests = False  # some threads are workers of their own; looked at first, for a thread's own variables cost time
_default: Member | None = None
_reader: Reader | None = None
_owner_pid = 0  # the operating-system process that the two belong to: a fork must not use its parent's
_default_lock = threading.RLock()


def process_reader() -> Reader:
    """Return the one reader of this process; all clusters share it, so any waiting thread reads for all."""
    global _reader
    with _default_lock:
        _forget_after_fork()
        if _reader is None:
            _reader = Reader()
        return _reader


def default_member() -> Member:
    """Return this process's membership in its default cluster; nobody's worker is process 1 of its own."""
    global _default
    if _has_guests and (own := getattr(_context, "own", None)) is not None:
        return own  # type: ignore[no-any-return]
    if _default is not None and _owner_pid == os.getpid():
        return _default
    with _default_lock:
        _forget_after_fork()
        if _default is None:
            _default = Member(DRIVER, process_reader())
            _default.roll.announces_deaths = True
        return _default


def existing_default() -> Member | None:
    """As ``default_member``, but None when this process has had no use for one."""
    return _default if _owner_pid == os.getpid() else None


def install_default(member: Member, reader: Reader) -> None:
    """Make this process a worker: module functions act on ``member`` from now on."""
    global _default, _reader, _owner_pid
    with _default_lock:
        _default, _reader, _owner_pid = member, reader, os.getpid()


def act_as(guest: Member) -> None:
    """Make this thread one of a worker that has no process of its own: module functions act on it here from now on."""
    global _has_guests
    _has_guests, _context.own = True, guest


def _guest_threads(guest: Member) -> CallThreads:
    return CallThreads(_CALL_NAME, begin=lambda: act_as(guest))


def opening_member() -> Member:
    """Return the member whose message this thread is opening, else the default one."""
    member = getattr(_context, "member", None)
    return member if member is not None else default_member()


def _forget_after_fork() -> None:
    global _default, _reader, _owner_pid
    if _owner_pid != os.getpid():
        _default = _reader = None
        _owner_pid = os.getpid()
