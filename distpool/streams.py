"""Byte streams of any kind as connections: proved, and turned into a socket that a peer can use.

For transports that users write (``ClusterManager.connect``, ``process_messages``). A peer wants a socket with a
descriptor to watch. Whatever else bytes can go through (pipes, queues in memory, a channel of some other library) is
carried by two threads between the user's stream and one end of a socket pair, so that nothing above knows::

    Peer ==socket pair== carrier: "out" thread  recv -> write, flush -->  the user's write stream
                                  "in" thread   send <- read(n)      <--  the user's read stream

What a stream must have: ``read(n)``, blocking, at least one byte, at most ``n``, ``b""`` at the end; ``write(data)``,
blocking; ``close()``; ``flush()`` if it keeps anything back. Frames say how long they are, so a ``read`` that returns
only when it has all ``n`` bytes does as well. ``close`` must end a ``read`` that blocks in another thread, or make the
other side close, which ends it too. One stream for both directions is used by two threads at once. Each byte is copied
three times more than on a socket, and a message wakes two threads more: give us sockets where there are some.

Owns: the socket pair and the two threads of each carried stream; they end when the peer closes its end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from struct import Struct

from distpool.errors import RemoteProtocolError
from distpool.handshake import Handshake, Role
from distpool.light import Any, Final, Protocol, TypeAlias, socket
from distpool.tcp import new_handshake, shake_hands
from distpool.transport import Deadline
from distpool.wire import HEADER, IN_SEGMENT, MAX_BUFFERS

# How much is moved at a time: what a socket pair takes at once.
PIECE_BYTES: Final = 1 << 18
# How long a stream that cannot be written any more is still read, if it does not end by itself. Arbitrary.
LAST_WORDS_SECONDS: Final = 1.0


class ByteStream(Protocol):
    """One direction, or both, of a connection; see above."""

    def read(self, n: int, /) -> bytes:
        """Return at least one byte, at most ``n``; ``b""`` at the end."""

    def write(self, data: bytes, /) -> object:
        """Take bytes; may block, and may return how many it took."""

    def close(self) -> object:
        """Give it up."""


# What ``connect`` may return: a socket, one stream for both directions, or (read_stream, write_stream).
Connection: TypeAlias = "socket.socket | ByteStream | tuple[Any, Any]"


class CarriedSocket(socket.socket):
    """A peer's end of a pair whose bytes go on elsewhere: descriptors cannot be passed along, nor memory shared."""

    shares_memory = False
    carries: tuple[object, ...] = ()  # the user's streams: what else this connection is known by


def carried_pair() -> tuple[CarriedSocket, socket.socket]:
    """Return the two ends of a socket pair: a peer's, and the carrier's."""
    inner, outer = socket.socketpair()
    return CarriedSocket(fileno=inner.detach()), outer


def pair_of(connection: Connection) -> tuple[Any, Any]:
    """Return the stream to read from and the one to write to; TypeError when it is neither a stream nor a pair."""
    pair = connection if isinstance(connection, tuple) else (connection, connection)
    if len(pair) != 2 or not hasattr(pair[0], "read") or not hasattr(pair[1], "write"):
        raise TypeError(
            "a connection is a socket, a stream with read(n), write(data) and close(), or a pair (read_stream, "
            f"write_stream); not {connection!r}"
        )
    return pair


def prove(connection: Connection, role: Role, deadline: Deadline) -> socket.socket:
    """Shake hands over a connection and return it as a socket; closed when the other side does not prove itself.

    A socket from ``ClusterManager.connect`` has been through that; one of ``ssl`` is carried as a stream is, for its
    descriptor has only what is encrypted. The deadline holds for sockets; a stream blocks as long as its ``read`` does.
    Raises HandshakeError, TypeError for what is no connection, or what the stream raises.
    """
    if getattr(connection, "is_proved", False):
        return connection  # type: ignore[return-value]  # a socket, or what stands for one
    if isinstance(connection, socket.socket) and not hasattr(connection, "cipher"):  # TLS: its descriptor is not enough
        try:
            shake_hands(connection, new_handshake(role), deadline)
        except BaseException:
            connection.close()
            raise
        return connection
    reading, writing = pair_of(_in_turn(connection))
    try:
        _shake_hands(reading, writing, new_handshake(role))
    except BaseException:
        close_streams(reading, writing)
        raise
    return carry(reading, writing)


class TurnsAtSsl:
    """A socket of ``ssl`` as a stream: its state is for one thread at a time, and ours read and write at once.

    So it is made not to block, each call is made alone, and both wait outside of it for what it asks for.
    """

    def __init__(self, connection: Any) -> None:
        self.connection: Final = connection
        self._lock = threading.Lock()  # protects the state of the encryption, and the two below
        self._is_reading = False
        self._is_closed = False
        connection.setblocking(False)

    def read(self, n: int) -> bytes:
        """Return what is there, at most ``n`` bytes; waits for the first."""
        self._is_reading = True
        try:
            return bytes(self._patiently(lambda: self.connection.recv(n)))
        finally:
            with self._lock:
                self._is_reading = False
                if self._is_closed:
                    self.connection.close()

    def write(self, data: Any) -> int:
        """Take some of the bytes, at least one."""
        return int(self._patiently(lambda: self.connection.send(data)))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        import select
        import ssl

        while True:
            poll = select.poll()
            try:
                with self._lock:
                    return call()
            except ssl.SSLWantReadError:
                poll.register(self.connection, select.POLLIN)
            except ssl.SSLWantWriteError:
                poll.register(self.connection, select.POLLOUT)
            poll.poll()

    def close(self) -> None:
        """End it; a thread that waits in ``read`` is woken, and gives the descriptor back."""
        with self._lock:
            self._is_closed = True
            with suppress(OSError):  # not its own method, which would have the rest read as it is, encrypted
                socket.socket.shutdown(self.connection, socket.SHUT_RDWR)
            if not self._is_reading:
                self.connection.close()


def _in_turn(connection: Any) -> Any:
    """Return a connection as what two threads may use at once."""
    return TurnsAtSsl(connection) if isinstance(connection, socket.socket) else connection


def give_up(connection: Connection) -> None:
    """Close what ``connect`` returned, also while a handshake waits on it."""
    if isinstance(connection, socket.socket):
        _shut(connection, socket.SHUT_RDWR)
        connection.close()
    elif isinstance(connection, tuple):
        close_streams(connection[0], connection[-1])
    else:
        close_streams(connection, connection)


def _shake_hands(reading: Any, writing: Any, handshake: Handshake) -> None:
    _write(writing, handshake.data_to_send())
    while not handshake.is_complete:
        data = reading.read(handshake.wanted)
        if not data:
            raise handshake.connection_lost()
        try:
            handshake.receive(data)
        finally:
            _write(writing, handshake.data_to_send())


def carry(reading: Any, writing: Any) -> socket.socket:
    """Return a socket that stands for a pair of streams, which belong to it from now on."""
    inner, outer = carried_pair()
    inner.carries = tuple(each.connection if isinstance(each, TurnsAtSsl) else each for each in (reading, writing))
    _Carrier(outer, reading, writing).start()
    return inner


def close_streams(reading: Any, writing: Any) -> None:
    """Close both, whatever becomes of it."""
    for stream in (writing,) if reading is writing else (writing, reading):
        try:
            stream.close()
        except Exception:  # the user's code, and it is over anyway
            continue


class _Carrier:
    """The two threads between a socket and a user's streams."""

    def __init__(self, outer: socket.socket, reading: Any, writing: Any) -> None:
        self._outer = outer
        self._reading = reading
        self._writing = writing
        self._in = threading.Thread(target=self._carry_in, name="distpool stream in", daemon=True)
        self._out = threading.Thread(target=self._carry_out, name="distpool stream out", daemon=True)

    def start(self) -> None:
        self._in.start()
        self._out.start()

    def _carry_in(self) -> None:
        try:
            while self._carry_frame():
                pass
        except Exception:  # the stream is the user's code; whatever it raises is its end
            pass
        _shut(self._outer, socket.SHUT_WR)  # the peer reads the end after what came before it

    def _carry_frame(self) -> bool:
        """Read exactly one frame: to ask for more could block while the other side waits for our answer to this one."""
        head = _read_exactly(self._reading.read, HEADER.size)
        if not head:
            return False
        _, _, _, count, _, _, _, length = HEADER.unpack(head)
        if count > MAX_BUFFERS:
            raise RemoteProtocolError(f"a message with {count} buffers")
        table = _read_exactly(self._reading.read, 8 * count) if count else b""
        rest = length + sum(size for size in Struct(f"<{count}Q").unpack(table) if not size & IN_SEGMENT)
        self._outer.sendall(head + table)
        while rest:
            data = self._reading.read(min(rest, PIECE_BYTES))
            if not data:
                return False
            rest -= len(data)
            self._outer.sendall(data)
        return True

    def _carry_out(self) -> None:
        """Write what the peer sends until it closes its end; then the streams are closed, here and nowhere else."""
        try:
            while data := self._outer.recv(PIECE_BYTES):
                _write(self._writing, data)
        except Exception:  # the user's code: the other side is gone, and what it sent before that counts
            self._in.join(LAST_WORDS_SECONDS)
        close_streams(self._reading, self._writing)
        self._in.join()
        self._outer.close()


def _read_exactly(read: Callable[[int], bytes], count: int) -> bytes:
    """Return ``count`` bytes; fewer only at the end of the stream, which must not come inside a frame."""
    data = read(count)
    while 0 < len(data) < count:
        more = read(count - len(data))
        if not more:
            raise RemoteProtocolError("the stream ended inside a message")
        data += more
    return data


def _write(stream: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        taken = stream.write(view)
        view = view[taken:] if isinstance(taken, int) else view[len(view) :]
    flush = getattr(stream, "flush", None)
    if flush is not None:
        flush()


def _shut(outer: socket.socket, how: int) -> None:
    with suppress(OSError):  # it is over already
        outer.shutdown(how)
