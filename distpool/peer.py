"""One other process: its stream, what waits to be sent, and the calls it has not answered yet.

Used by the cluster (one per connection). Any thread sends; the thread that leads the reader receives. Sends never
block: what the socket does not take stays in the outbox and leaves when the reader finds the socket writable, so two
processes that send each other large data at once cannot block each other. Owns: the socket, the outbox, the table of
pending calls, and what this connection was already sent (globals of ``__main__``, callables of pools).
"""

from __future__ import annotations

import os
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from errno import EHOSTUNREACH, ENETUNREACH, ETIMEDOUT
from itertools import count

from distpool import segments
from distpool.claims import split_table, table_of, with_table
from distpool.errors import RemoteProtocolError
from distpool.interrupts import DeferredInterrupt
from distpool.light import TYPE_CHECKING, Any, Final, Protocol, socket
from distpool.messages import FLAG_GLOBALS, FLAG_REFS
from distpool.pickling import (
    Parcel,
    Received,
    SentGlobals,
    detached,
    duplicates,
    is_attachment,
    peel,
    peel_beside,
    wrap,
)
from distpool.transport import Deadline, Reader, Waiter
from distpool.wire import Buffer, Frame, FrameParser, encode

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from distpool.vanishing import HostWatch

# A caller whose connection has more than this unsent waits until it is below: enough to keep the other side busy, and
# no more memory than one large message. Arbitrary.
OUTBOX_BYTES: Final = 16 << 20
# As large as most systems allow without privileges; the kernel takes less where it must. Only within this machine: for
# others the kernel finds the size itself, which may have to be much larger (bandwidth times delay). Measured over
# loopback: 100 MB take 30 ms with this, 36 with the kernel's own choice.
SOCKET_BUFFER_BYTES: Final = 1 << 20
_LOOPBACK: Final = ("127.0.0.1", "::1")
# What the kernel says of a connection whose other host does not answer it any more.
_UNREACHABLE: Final = (ETIMEDOUT, EHOSTUNREACH, ENETUNREACH)
# The kernel takes at most IOV_MAX pieces in one call, 1024 on Linux.
MAX_PIECES: Final = 512
# How many times one connection is read before the others get their turn.
READS_PER_TURN: Final = 16

_TO_PREPARE: Final = FLAG_GLOBALS | FLAG_REFS
# Descriptors that go along with one piece of a message, or with its first bytes when there are more. Arbitrary; the
# kernel's limit is 253.
DESCRIPTORS_AT_ONCE: Final = 16
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(DESCRIPTORS_AT_ONCE * 4) if hasattr(socket, "CMSG_SPACE") else 0
_RECEIVE_FLAGS: Final = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Pending(Protocol):
    """A request that waits for its answer. Both methods run on the reading thread, at most one of them, once."""

    def arrived(self, frame: Frame) -> None:
        """Take the answer, unopened."""

    def lost(self, error: BaseException) -> None:
        """The process will never answer."""


class References(Protocol):
    """What a connection needs to know of the references in its messages (``Member``)."""

    def check(self, parcel: Parcel) -> None:
        """Raise TypeError when references in it have no meaning at the other side."""

    def announce(self, claims: Sequence[Any], pid: int) -> None:
        """Tell the owners that ``pid`` is about to get these references. Before the message itself is sent."""

    def received(self, table: Sequence[tuple[int, int, int]], giver: int) -> object:
        """Take note of references that came from ``giver``; return what must live until the message is opened."""

    def opening(self) -> AbstractContextManager[None]:
        """Return a context in which what is unpickled belongs to this connection's cluster."""


class Reply(Waiter):
    """A pending request whose thread sleeps (or reads) until the answer is there, and opens it itself."""

    __slots__ = ("error", "frame")

    def __init__(self) -> None:
        super().__init__()
        self.frame: Frame | None = None
        self.error: BaseException | None = None

    def arrived(self, frame: Frame) -> None:
        """Keep the answer and wake the thread."""
        self.frame = frame
        self.complete()

    def lost(self, error: BaseException) -> None:
        """Keep the reason and wake the thread."""
        self.error = error
        self.complete()


class Peer:
    """The connection to process ``pid``.

    ``receive(peer, frame)`` is called for each message, ``lost(peer)`` once when the stream has ended; both on the
    thread that reads. ``shares_memory`` says that descriptors can be passed along, so large buffers travel as segments.
    """

    def __init__(
        self,
        pid: int,
        stream: socket.socket,
        reader: Reader,
        receive: Callable[[Peer, Frame], None],
        lost: Callable[[Peer], None],
        references: References,
    ) -> None:
        self.pid = pid
        is_unix = hasattr(socket, "AF_UNIX") and stream.family == socket.AF_UNIX
        self.shares_memory: bool = getattr(stream, "shares_memory", is_unix)
        self.is_encrypted: bool = hasattr(stream, "is_ready")  # one of ``tls``
        self.is_open = True
        self.pending: dict[int, Pending] = {}
        self.next_request: Callable[[], int] = count(1).__next__
        self.sent_globals = SentGlobals()
        self.is_in_our_process = False  # the other side shares our ``__main__``: nothing in it is replaced by a copy
        self.fault: str | None = None  # why what came could not be understood
        self.silence: str | None = None  # that its host does not answer any more
        self.known_functions: set[int] = set()  # numbers of the callables it keeps for our pools
        self._stream = stream
        self._reader = reader
        self._receive = receive
        self._lost = lost
        self._references = references
        self._parser = FrameParser(segments.fresh_memory)
        self._has_ended = False  # the stream: by its end, or because it cannot be understood
        self._descriptors: deque[int] = deque()  # received, not yet claimed by their frame
        self._send_lock = threading.Lock()  # protects _outbox, _unsent and the order of bytes
        self._globals_lock = threading.RLock()  # from choosing globals to sending them, so that none is overtaken
        self._outbox: deque[tuple[deque[memoryview], list[int]]] = deque()
        self._unsent = 0
        self._thirsty: deque[Waiter] = deque()  # threads that wait for room in the outbox
        # A connection that brings more than was asked for (``tls``) says so; no poll would.
        self._has_pending: Callable[[], bool] | None = getattr(stream, "has_pending", None)
        stream.setblocking(False)
        is_near = is_unix or stream.getpeername()[0] in _LOOPBACK
        if is_near:
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                stream.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
        self._watch: HostWatch | None = None  # over the network only
        if not is_near:
            self.watch_host()
        reader.register(self)  # from here on the other side may end it, on the thread that reads
        self._read_on()

    def __repr__(self) -> str:
        state = "open" if self.is_open else "closed"
        return f"<Peer {self.pid} {state}, {len(self.pending)} pending, {self._unsent} bytes unsent>"

    def is_reached_by(self, stream: object) -> bool:
        """True for the socket of this connection, and for the streams of a user that it stands for."""
        return any(stream is each for each in (self._stream, *getattr(self._stream, "carries", ())))

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._stream.fileno()

    @property
    def local_address(self) -> str:
        """The address of this machine by which the connection goes; OSError when it goes over no network."""
        if self._stream.family not in (socket.AF_INET, socket.AF_INET6):
            raise OSError("this connection goes over no network")
        return str(self._stream.getsockname()[0])

    # -- its host ------------------------------------------------------------------------------------------------

    def watch_host(self) -> None:
        """See to it that the end of its host is noticed in time; again after the limit has changed."""
        if self._stream.family not in (socket.AF_INET, socket.AF_INET6):
            return
        from distpool.vanishing import HostWatch, ask_when_silent, host_timeout  # not for workers of this machine

        if self._watch is not None:
            self._watch.cancel()
        seconds = host_timeout()
        ask_when_silent(self._stream, seconds)
        self._watch = HostWatch(self._stream, self._reader, seconds, self._host_vanished)

    def _host_vanished(self) -> None:
        self._note(OSError(ETIMEDOUT, "Connection timed out"))
        self._end()

    def _note(self, error: OSError) -> None:
        """Remember when a connection did not end by the other side's doing."""
        if error.errno in _UNREACHABLE and self.silence is None:
            limit = "" if self._watch is None else f" for {self._watch.seconds:g} s (DISTPOOL_HOST_TIMEOUT)"
            self.silence = f"its host has not answered{limit}: {error.strerror}"

    # -- sending -------------------------------------------------------------------------------------------------

    def send(
        self, kind: int, flags: int = 0, request: int = 0, whence: int = 0, ref: int = 0, body: Buffer = b""
    ) -> bool:
        """Send a message without buffers. Returns False when the connection is closed; never blocks."""
        return self._write(encode(kind, flags, request, whence, ref, body), [])

    def send_parcel(
        self,
        kind: int,
        parcel: Parcel,
        flags: int = 0,
        request: int = 0,
        whence: int = 0,
        ref: int = 0,
        segment: segments.Segment | None = None,
    ) -> bool:
        """Send a message with a pickled payload; ``segment`` holds its large buffers, one for many receivers.

        Returns False when the connection is closed. Raises TypeError for references of another cluster.
        """
        if not parcel.globals and not parcel.refs:
            return self._send_wrapped(kind, flags, request, whence, ref, parcel.body, parcel.buffers, segment)
        if parcel.refs:
            self._references.check(parcel)
        # Ctrl-C in here would leave globals noted as sent, and references told of, that nobody gets.
        with DeferredInterrupt(), self._globals_lock:
            more, body, buffers = wrap(parcel, self.sent_globals)
            if parcel.refs:
                self._references.announce(parcel.refs, self.pid)
                more |= FLAG_REFS
                body = with_table(table_of(parcel.refs), body)
            return self._send_wrapped(kind, flags | more, request, whence, ref, body, buffers, segment)

    def forget_globals(self, names: Sequence[str]) -> None:
        """These names were cleared at the other side: they are sent again when code mentions them."""
        with self._globals_lock:
            self.sent_globals.forget(names)

    def send_descriptor(self, kind: int, ref: int, descriptor: int, whence: int = 0) -> bool:
        """Send a descriptor along; it is closed here in any case."""
        return self._write(encode(kind, 0, 0, whence, ref, descriptors=1), [descriptor])

    def _send_wrapped(
        self,
        kind: int,
        flags: int,
        request: int,
        whence: int,
        ref: int,
        body: Buffer,
        buffers: Sequence[memoryview],
        segment: segments.Segment | None,
    ) -> bool:
        if not buffers:
            return self._write(encode(kind, flags, request, whence, ref, body), [])
        attached: list[int] = []
        fds: list[int] = []
        if self.shares_memory:
            attached = [index for index, view in enumerate(buffers) if is_attachment(view)]
            fds = duplicates(buffers) if attached else []
        # For one receiver the socket is twice as fast as a segment (measured, see segments): only what goes to several
        # processes comes as a segment, made once by the caller.
        if segment is None or not self.shares_memory:
            return self._write(encode(kind, flags, request, whence, ref, body, buffers, attached=attached), fds)
        away = [view.nbytes >= segments.THRESHOLD for view in buffers]
        pieces = encode(kind, flags, request, whence, ref, body, buffers, away, attached=attached)
        return self._write(pieces, [os.dup(segment.fd), *fds])

    def _write(self, pieces: Sequence[Buffer], descriptors: list[int]) -> bool:
        with self._send_lock:
            if not self.is_open:
                _close_all(descriptors)
                return False
            if not self._outbox and not descriptors and len(pieces) == 1:
                pieces = self._send_small(pieces[0])
                if not pieces:
                    return True
            # Ctrl-C between the kernel's taking bytes and our noting it would garble the stream.
            with DeferredInterrupt():
                self._enqueue(pieces, descriptors)
            return True

    def _enqueue(self, pieces: Sequence[Buffer], descriptors: list[int]) -> None:
        views = deque(view for view in (memoryview(piece).cast("B") for piece in pieces) if view.nbytes)
        self._outbox.append((views, descriptors))
        self._unsent += sum(view.nbytes for view in views)
        if len(self._outbox) == 1:
            self._flush()
            if self._outbox:
                self._reader.watch_writable(self, True)

    def _send_small(self, piece: Buffer) -> Sequence[Buffer]:
        """The common case, one piece and nothing before it; returns what is left of it."""
        try:
            sent = self._stream.send(piece)
        except BlockingIOError:
            return [piece]
        except OSError as error:
            self._note(error)
            self._end_sending()
            return []
        return [] if sent == len(piece) else [memoryview(piece)[sent:]]

    def _flush(self) -> None:
        """Send from the outbox what the socket takes. Needs the send lock."""
        assert self._send_lock.locked()
        while self._outbox:
            views, descriptors = self._outbox[0]
            try:
                sent = self._send_some(views, descriptors)
            except BlockingIOError:
                return
            except OSError as error:
                self._note(error)
                self._drop_outbox()
                self._end_sending()
                return
            self._unsent -= sent
            if descriptors:
                _close_all(descriptors[:DESCRIPTORS_AT_ONCE])
                del descriptors[:DESCRIPTORS_AT_ONCE]
            while views and sent >= views[0].nbytes:
                sent -= views.popleft().nbytes
            if views:
                views[0] = views[0][sent:]
            else:
                self._outbox.popleft()

    def _send_some(self, views: deque[memoryview], descriptors: list[int]) -> int:
        pieces = list(views) if len(views) <= MAX_PIECES else [views[i] for i in range(MAX_PIECES)]
        if not descriptors:
            return self._stream.sendmsg(pieces)
        if len(descriptors) > DESCRIPTORS_AT_ONCE:  # one byte for so many, so that all have left with the header
            descriptors, pieces = descriptors[:DESCRIPTORS_AT_ONCE], [pieces[0][:1]]
        return self._stream.sendmsg(pieces, [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", descriptors))])

    def _end_sending(self) -> None:
        """What we sent is lost: the other side is gone, or the kernel refuses.

        The reader will find the end of the stream after what came before it, which counts. A side that lives on must
        not wait for the rest of a message.
        """
        with suppress(OSError):  # it is at its end already
            self._stream.shutdown(socket.SHUT_WR)

    def _drop_outbox(self) -> None:
        for _, descriptors in self._outbox:
            _close_all(descriptors)
        self._outbox.clear()
        self._unsent = 0

    def on_writable(self) -> None:
        """Send on, and call those who waited for room. Runs on the reading thread."""
        with self._send_lock:
            if not self.is_open:
                return
            self._flush()
            if not self._outbox:
                self._reader.watch_writable(self, False)
        if self._unsent <= OUTBOX_BYTES:
            while self._thirsty:
                self._thirsty.popleft().complete()

    def wait_for_room(self) -> None:
        """Block while very much is unsent, so that a fast caller does not fill the memory. Not for handlers."""
        while self._unsent > OUTBOX_BYTES and self.is_open:
            waiter = Waiter()
            self._thirsty.append(waiter)
            if self._unsent > OUTBOX_BYTES and self.is_open:
                self._reader.wait(waiter, Deadline(1.0))

    @property
    def is_sending(self) -> bool:
        """True while some thread, perhaps this one, is putting a message into the socket or the outbox."""
        return self._send_lock.locked()

    @property
    def has_unsent(self) -> bool:
        """True while something waits in the outbox."""
        return self._unsent > 0

    def disown(self) -> None:
        """Send nothing more, in a forked copy of the process: its bytes would land in the middle of the parent's."""
        self._send_lock = threading.Lock()  # some thread of the parent's may hold the old one
        self.is_open = False

    # -- receiving -----------------------------------------------------------------------------------------------

    @property
    def has_input(self) -> bool:
        """True while bytes wait in the socket that may still be messages."""
        try:
            return not self._has_ended and bool(self._stream.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def on_readable(self) -> None:
        """Take what has arrived and hand the complete messages on. Runs on the reading thread."""
        try:
            self._read()
        except BaseException:  # a fault of ours, reported by the reader: whoever waits for this stream must not hang
            self._end()
            raise

    def _end(self) -> None:
        """Nothing more is read; said once."""
        if self.is_open and not self._has_ended:
            self._has_ended = True
            self._lost(self)

    def _read(self) -> None:
        for _ in range(READS_PER_TURN):
            if self._has_ended:
                return
            try:
                place = self._parser.destination()
                received = self._receive_into(place)
                frames = self._parser.received(received) if received else None
            except BlockingIOError:
                return
            except (OSError, RemoteProtocolError) as error:
                frames = None
                # A connection that breaks is the end of the other side; one that brings nonsense is told of as such.
                if isinstance(error, RemoteProtocolError) or hasattr(error, "reason"):  # or of an error of TLS
                    self.fault = str(error)
                else:
                    self._note(error)
            if frames is None:
                self._end()
                return
            for frame in frames:
                if frame.descriptors or frame.flags & _TO_PREPARE:
                    self._prepare(frame)
                self._receive(self, frame)
            if received < place.nbytes or not self.is_open:
                return
        self._read_on()

    def _read_on(self) -> None:
        """Have bytes read that came along with others."""
        if self._has_pending is not None and self._has_pending():
            self._reader.call_later(0.0, self.on_readable)

    def _receive_into(self, place: memoryview) -> int:
        if not self.shares_memory:
            return self._stream.recv_into(place)
        received, ancillary, _, _ = self._stream.recvmsg_into([place], _ANCILLARY_BYTES, _RECEIVE_FLAGS)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors = array("i")
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
                self._descriptors.extend(descriptors)
        return received

    def _prepare(self, frame: Frame) -> None:
        """Do what must be done in the order of the stream: take the descriptor, count references, assign globals.

        Globals are the one thing that is unpickled here and not by the one who asked: a later message counts on them,
        and may be opened first. What goes wrong is kept for whoever opens the payload.
        """
        try:
            if frame.segment_lengths:
                mapped = iter(segments.map_buffers(self._descriptors.popleft(), frame.segment_lengths))
                attached = frozenset(frame.attached)
                buffers = enumerate(frame.buffers)
                frame.buffers = [next(mapped) if v is None and i not in attached else v for i, v in buffers]
            elif frame.descriptors and not frame.attached:
                frame.descriptor = self._descriptors.popleft()
            if frame.attached:
                self._attach(frame)
            if frame.flags & FLAG_REFS:
                table, frame.body = split_table(frame.body)
                frame.claims = self._references.received(table, self.pid)
            if frame.flags & FLAG_GLOBALS:
                peel_off = peel_beside if self.is_in_our_process else peel
                with self._references.opening():
                    frame.body, frame.buffers = peel_off(FLAG_GLOBALS, frame.body, frame.buffers, self.sent_globals)
        except Exception as error:  # the user's objects, or no memory
            frame.error = detached(error)

    def _attach(self, frame: Frame) -> None:
        """Put the descriptors that came along in their places."""
        buffers: list[Any] = list(frame.buffers)
        for index in frame.attached:
            buffers[index] = Received(self._descriptors.popleft())
        frame.buffers = buffers

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up the connection; what waits for room is woken. Pending calls are failed by ``fail_pending``."""
        with self._send_lock:
            if not self.is_open:
                return
            self.is_open = False
            self._reader.unregister(self)
            if self._watch is not None:
                self._watch.cancel()
            self._drop_outbox()
            self._stream.close()
        descriptors, self._descriptors = self._descriptors, deque()  # a message in hand must not claim a closed one
        _close_all(descriptors)
        while self._thirsty:
            self._thirsty.popleft().complete()

    def fail_pending(self, error: Callable[[], BaseException]) -> list[Exception]:
        """Tell everyone who waits for an answer that none will come; each gets an exception object of its own.

        Returns what those raised who could not be told: a fault of ours, which must not keep the others waiting.
        """
        faults: list[Exception] = []
        while self.pending:
            try:
                _, pending = self.pending.popitem()
            except KeyError:
                break
            try:
                pending.lost(error())
            except Exception as fault:
                faults.append(fault)
        return faults


def _close_all(descriptors: Sequence[int] | deque[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
