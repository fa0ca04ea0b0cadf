"""How two workers come to know each other: process 1 makes a socket pair and hands each of them one end.

Used by the member. A worker that first needs another one asks process 1 (MEET); both get NEIGHBOUR with a descriptor,
and the asker then its answer, on the same stream, so the connection is there when the answer is. Nobody listens on a
port. Two of which one was reached over the network get no descriptor: if one of them listens where the other may reach
it, that one is sent there (``visits``), and only if that fails process 1 passes on what they say (``relays``). Process
1 owns the memory of which pairs it has introduced, and of which machines do not reach each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from distpool import messages as m
from distpool.cluster import Cluster
from distpool.light import Final, NamedTuple, Protocol, socket
from distpool.peer import Peer
from distpool.pickling import Parcel, dump, load
from distpool.waiting import Waiter
from distpool.wire import Frame

# Called when two workers are connected, or with the reason why they will never be.
Done = Callable[["Exception | None"], object]


class Way(NamedTuple):
    """How two workers may be connected directly: who is dialled, by whom, on which machines, and what he must know."""

    host: Peer
    guest: Peer
    machines: tuple[str, str]
    secret: str | None  # for a guest who has not been told


class Guide(Protocol):
    """What introductions need of the member: how to ask a worker, and what else to try."""

    def ways(self, one: Peer, other: Peer) -> Sequence[Way]:
        """How these two may be connected directly, the best way first."""

    def relay(self, one: Peer, other: Peer) -> None:
        """Have process 1 pass on what they say."""

    def ask(self, peer: Peer, pending: object, kind: int, parcel: Parcel, ref: int) -> None:
        """Send a request."""


class Introductions:
    """On process 1: which workers have been connected to each other."""

    def __init__(self, cluster: Cluster, guide: Guide) -> None:
        self._cluster = cluster
        self._guide = guide
        self._pairs: dict[frozenset[int], list[Done] | None] = {}  # who waits for it; None: they are introduced
        self._apart: set[tuple[str, str]] = set()  # machines of which the second has dialled the first in vain
        self._lock = threading.Lock()  # protects _pairs, and that a pair in it has been told
        cluster.listen(joined=self._joined)

    def _joined(self, pid: int) -> None:
        """A newcomer may find open what was shut: machines are tried again."""
        self._apart.clear()

    def introduce(self, one: Peer, other: Peer, done: Done) -> None:
        """Connect two workers, unless they are; both are told, then ``done`` is called, at once or later. Never blocks.

        Raises RuntimeError when the topology keeps them apart.
        """
        self._cluster.check_topology(one.pid, other.pid)
        pair = frozenset((one.pid, other.pid))
        with self._lock:
            is_known, waiting = pair in self._pairs, self._pairs.get(pair)
            if waiting is not None:
                waiting.append(done)
                return
            if not is_known:
                self._pairs[pair] = [done]
                if one.shares_memory and other.shares_memory:
                    # Before anybody finds them introduced: a second one who asks is answered after it.
                    self._hand_out(one, other)
                    self._pairs[pair] = None
                    is_known = True
        if is_known:
            done(None)
        else:
            _Attempt(self, one, other, self._guide.ways(one, other)).go_on()

    def _hand_out(self, one: Peer, other: Peer) -> None:
        ours, theirs = socket.socketpair()
        one.send_descriptor(m.NEIGHBOUR, other.pid, ours.detach())  # sends never block
        other.send_descriptor(m.NEIGHBOUR, one.pid, theirs.detach())

    def introduce_all(self) -> Waiter:
        """Connect all workers that the topology lets talk to each other (``lazy=False``); done when they are."""
        peers = sorted(self._cluster.peers(), key=lambda peer: peer.pid)
        pairs = [
            (one, other)
            for index, one in enumerate(peers)
            for other in peers[:index]
            if self._cluster.may_meet(one.pid, other.pid)
        ]
        all_met = Waiter()
        met: list[None] = []

        def count(error: Exception | None) -> None:
            met.append(None)
            if len(met) == len(pairs):
                all_met.complete()

        for one, other in pairs:
            self.introduce(one, other, count)
        if not pairs:
            all_met.complete()
        return all_met

    # -- what an attempt needs -----------------------------------------------------------------------------------

    def may_try(self, way: Way) -> bool:
        """False when the two machines are known not to reach each other this way."""
        return way.machines not in self._apart

    def has_failed(self, way: Way) -> None:
        """The next pair of these machines need not try."""
        self._apart.add(way.machines)

    def ask(self, peer: Peer, pending: object, kind: int, parcel: Parcel, ref: int) -> None:
        """Send a request to a worker."""
        self._guide.ask(peer, pending, kind, parcel, ref)

    def give_up(self, one: Peer, other: Peer) -> None:
        """No way leads from one to the other: they are connected through process 1."""
        with self._lock:
            self._guide.relay(one, other)
        self.end(one, other)

    def end(self, one: Peer, other: Peer, error: Exception | None = None) -> None:
        """An attempt is over: whoever waits is told."""
        pair = frozenset((one.pid, other.pid))
        with self._lock:
            waiting, self._pairs[pair] = self._pairs[pair], None
        for done in waiting or ():
            done(error)


class _Attempt:
    """An attempt to connect two workers directly, one way after the other. A pending request, on the reading thread."""

    def __init__(self, introductions: Introductions, one: Peer, other: Peer, ways: Sequence[Way]) -> None:
        self._introductions: Final = introductions
        self._pair = (one, other)
        self._ways = [way for way in ways if introductions.may_try(way)]
        self._way: Way | None = None
        self._has_address = False

    def go_on(self) -> None:
        """Try the next way; without one the two are connected through process 1."""
        if not self._ways:
            self._introductions.give_up(*self._pair)
            return
        self._way = self._ways.pop(0)
        self._has_address = False
        self._introductions.ask(self._way.host, self, m.EXPECT, dump(None), self._way.guest.pid)

    def arrived(self, frame: Frame) -> None:
        """An answer: where to go, or that the guest has been there."""
        assert self._way is not None
        if frame.flags & m.FLAG_ERROR:
            self._introductions.has_failed(self._way)
            self.go_on()
        elif self._has_address:
            self._introductions.end(*self._pair)
        else:
            self._has_address = True
            host, port = load(frame.body)
            parcel = dump((host, port, self._way.secret))
            self._introductions.ask(self._way.guest, self, m.VISIT, parcel, self._way.host.pid)

    def lost(self, error: BaseException) -> None:
        """One of them has ended."""
        self._introductions.end(*self._pair, error if isinstance(error, Exception) else RuntimeError(str(error)))
