"""How two workers come to know each other: process 1 makes a socket pair and hands each of them one end.

Used by the member. A worker that first needs another one asks process 1 (MEET); both get NEIGHBOUR with a descriptor,
and the asker then its answer, on the same stream, so the connection is there when the answer is. Nobody listens on a
port. Two of which one was reached over the network get no descriptor: process 1 passes on what they say (``relays``).
Process 1 owns the memory of which pairs it has introduced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from distpool import messages as m
from distpool.cluster import Cluster
from distpool.light import socket
from distpool.peer import Peer


class Introductions:
    """On process 1: which workers have been connected to each other."""

    def __init__(self, cluster: Cluster, relay: Callable[[Peer, Peer], None]) -> None:
        self._cluster = cluster
        self._relay = relay  # connects two workers that cannot be handed descriptors
        self._pairs: set[frozenset[int]] = set()
        self._lock = threading.Lock()  # protects _pairs, and that a pair in it has been told

    def introduce(self, one: Peer, other: Peer) -> None:
        """Connect two workers, unless they are; both are told. Never blocks.

        Raises RuntimeError when the topology keeps them apart.
        """
        self._cluster.check_topology(one.pid, other.pid)
        pair = frozenset((one.pid, other.pid))
        with self._lock:
            if pair in self._pairs:
                return
            self._pairs.add(pair)
            # Before anybody finds them introduced: a second one who asks is answered after it. Sends never block.
            if not (one.shares_memory and other.shares_memory):
                self._relay(one, other)
                return
            ours, theirs = socket.socketpair()
            one.send_descriptor(m.NEIGHBOUR, other.pid, ours.detach())
            other.send_descriptor(m.NEIGHBOUR, one.pid, theirs.detach())

    def introduce_all(self) -> None:
        """Connect all workers that the topology lets talk to each other, now (``lazy=False``)."""
        peers = sorted(self._cluster.peers(), key=lambda peer: peer.pid)
        for index, one in enumerate(peers):
            for other in peers[:index]:
                if self._cluster.may_meet(one.pid, other.pid):
                    self.introduce(one, other)
