"""Connections between workers that cannot be handed the two ends of a socket pair: through process 1.

Used by the member, for every pair of workers of which one was reached over the network or a transport of the user's.
Each of the two has a tunnel, whose bytes travel in RELAY messages on the connection to process 1, which passes them on
unread; so nothing above knows, and any mix of workers works that process 1 can reach::

    Peer(3) ==socket pair== Tunnel(3)  --RELAY to 3--> process 1 --RELAY from 2-->  Tunnel(2) ==socket pair== Peer(2)
    worker 2                                                                                         worker 3

The cost: process 1 moves every byte between such a pair. An empty call takes five times as long as between workers with
a socket pair (measured: 780 against 160 us), and 100 MB take a second. No more than a window of bytes is under way in
each direction, so a slow receiver fills nobody's memory. Everything here runs on the reading thread, and nothing waits.
Owns: the tunnels of this process; on process 1, the memory of which pairs use them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

from distpool import messages as m
from distpool.cluster import Cluster
from distpool.errors import ProcessExitedException
from distpool.light import Final, socket
from distpool.messages import DRIVER
from distpool.peer import Peer
from distpool.streams import carried_pair
from distpool.transport import Reader
from distpool.wire import Frame

# How many bytes may be under way in one direction: as much as a fast network holds in 10 ms. Arbitrary.
WINDOW_BYTES: Final = 4 << 20
# How much goes in one message: half of what a parser takes without memory of its own.
PIECE_BYTES: Final = 1 << 17

Send = Callable[[int, int, bytes], object]


class Relays:
    """The tunnels of this process, and on process 1 the pairs it passes bytes on for."""

    def __init__(self, cluster: Cluster, reader: Reader) -> None:
        self._cluster = cluster
        self._reader = reader
        self._tunnels: dict[int, Tunnel] = {}  # on a worker, by the process at the other end
        self._pairs: set[frozenset[int]] = set()  # on process 1; added to before either of the two hears of it
        cluster.listen(departed=self._departed)

    # -- process 1 -----------------------------------------------------------------------------------------------

    def join(self, one: Peer, other: Peer) -> None:
        """Have two workers open a tunnel to each other."""
        self._pairs.add(frozenset((one.pid, other.pid)))
        one.send(m.NEIGHBOUR, ref=other.pid)
        other.send(m.NEIGHBOUR, ref=one.pid)

    def _departed(self, pid: int, error: ProcessExitedException) -> None:
        """What it sent before its end has been passed on: now the others may know that no more comes."""
        for pair in [pair for pair in list(self._pairs) if pid in pair]:
            self._pairs.discard(pair)
            (other,) = pair - {pid}
            self._send(other, pid, m.FLAG_LAST, 0, b"")

    # -- both ----------------------------------------------------------------------------------------------------

    def received(self, peer: Peer, frame: Frame) -> None:
        """Bytes for us, or to be passed on."""
        if self._cluster.pid == DRIVER:
            if frame.ref != DRIVER:
                self._send(frame.ref, peer.pid, frame.flags, frame.request, frame.body)
            return
        tunnel = self._tunnels.get(frame.whence)
        if tunnel is None:  # closed here meanwhile
            return
        tunnel.granted(frame.request)
        tunnel.deliver(bytes(frame.body))
        if frame.flags & m.FLAG_LAST:
            tunnel.ended()

    def _send(self, pid: int, source: int, flags: int, grant: int, body: bytes | memoryview) -> None:
        try:
            route = self._cluster.peer(pid if self._cluster.pid == DRIVER else DRIVER)
        except (ValueError, RuntimeError):  # it is gone or going, and its tunnels with it
            return
        route.send(m.RELAY, flags, grant, source, pid, body)

    # -- workers -------------------------------------------------------------------------------------------------

    def open(self, pid: int) -> socket.socket:
        """Open our end of a tunnel to a worker; returns the socket for its peer."""

        def send(flags: int, grant: int, body: bytes) -> None:
            if flags & m.FLAG_LAST:
                self._tunnels.pop(pid, None)
            self._send(pid, self._cluster.pid, flags, grant, body)

        inner, outer = carried_pair()
        self._tunnels[pid] = Tunnel(outer, self._reader, send)
        return inner

    def close(self) -> None:
        """Close all tunnels of this process, for a worker that ends without ending its process."""
        for tunnel in list(self._tunnels.values()):
            tunnel.close()
        self._tunnels.clear()


class Tunnel:
    """One end of a relayed connection: between a socket and RELAY messages. A handler of the reader.

    Watched while it may send or has something to deliver. While it may not send and has something to deliver, what can
    be read is looked at in vain; not for long, for the peer at the other end of the pair reads on the same thread.
    """

    def __init__(self, outer: socket.socket, reader: Reader, send: Send) -> None:
        self._outer = outer
        self._reader = reader
        self._send = send
        self._credit = WINDOW_BYTES  # how much may still be sent before the other side has said that it goes on
        self._outbox: deque[bytes] = deque()  # received, not yet taken by the socket
        self._delivered = 0  # bytes that were taken and not yet granted again
        self._is_watched = True
        self._wants_to_write = False
        self._has_ended = False  # nothing more comes from the other side
        self._is_closed = False
        outer.setblocking(False)
        reader.register(self)

    def fileno(self) -> int:
        """The descriptor of our end of the pair."""
        return self._outer.fileno()

    def on_readable(self) -> None:
        """Send on what the peer has written."""
        if self._is_closed or not self._credit:
            return
        try:
            data = self._outer.recv(min(self._credit, PIECE_BYTES))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the peer has closed the connection
            self._send(m.FLAG_LAST, 0, b"")
            self.close()
            return
        self._credit -= len(data)
        self._send(0, 0, data)
        self._watch()

    def on_writable(self) -> None:
        """Deliver what is left."""
        if not self._is_closed:
            self._flush()

    def granted(self, count: int) -> None:
        """The other side has delivered so much."""
        if count and not self._is_closed:
            self._credit += count
            self._watch()

    def deliver(self, data: bytes) -> None:
        """Write what the other side has sent."""
        if data and not self._is_closed:
            self._outbox.append(data)
            self._flush()

    def ended(self) -> None:
        """Nothing more comes: the peer reads the end after what came before it."""
        self._has_ended = True
        if not self._is_closed:
            self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                sent = self._outer.send(self._outbox[0])
            except BlockingIOError:
                break
            except OSError:  # the peer has closed it, and reading will tell
                self._outbox.clear()
                break
            self._delivered += sent
            rest = self._outbox.popleft()[sent:]
            if rest:
                self._outbox.appendleft(rest)
        if self._delivered >= WINDOW_BYTES // 4:
            grant, self._delivered = self._delivered, 0
            self._send(0, grant, b"")
        if self._has_ended and not self._outbox:
            with suppress(OSError):  # the peer was quicker
                self._outer.shutdown(socket.SHUT_WR)
        self._watch()

    def _watch(self) -> None:
        if self._is_closed:
            return
        wanted = self._credit > 0 or bool(self._outbox)
        if wanted and not self._is_watched:
            self._reader.register(self)
            self._wants_to_write = False
        elif self._is_watched and not wanted:
            self._reader.unregister(self)
        self._is_watched = wanted
        if wanted and self._wants_to_write is not bool(self._outbox):
            self._wants_to_write = bool(self._outbox)
            self._reader.watch_writable(self, self._wants_to_write)

    def close(self) -> None:
        """Give up the descriptor."""
        if not self._is_closed:
            self._is_closed = True
            if self._is_watched:
                self._reader.unregister(self)
            self._outer.close()
