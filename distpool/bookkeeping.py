"""References given and given back between the members of one cluster: what each message about them does.

Used by the member. Turns claims (``claims``) into news for the owners and news from others into counts in the store.
News between two workers go through process 1, always, so that "one more" and "one less" of one sender cannot overtake
each other. News are sent when a message with references is, or when references were dropped, from time to time and
never in a finaliser.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from distpool import messages as m
from distpool.claims import Claim, Claims, by_owner
from distpool.cluster import Cluster
from distpool.light import Any, Final, pickle
from distpool.messages import DRIVER, RRID
from distpool.peer import Peer
from distpool.store import Store
from distpool.transport import Reader
from distpool.wire import Frame

# How often dropped references are given back while some are held. Arbitrary: soon enough for memory, rarely enough that
# an idle process sleeps.
GIVE_BACK_SECONDS: Final = 0.5


class Bookkeeping:
    """The claims of this process, and the counts that it keeps for others in its store."""

    def __init__(self, cluster: Cluster, store: Store, reader: Reader) -> None:
        self.claims = Claims()
        self._cluster = cluster
        self._store = store
        self._reader = reader
        self._timer_is_set = False

    # -- what this process gives and drops -----------------------------------------------------------------------

    def made(self, where: int, rrid: RRID) -> Claim:
        """Return the claim of a reference that this process has just made."""
        claim = self.claims.made(where, rrid)
        self._set_timer()
        return claim

    def announce(self, claims: Sequence[Claim], pid: int) -> None:
        """Tell the owners that ``pid`` is about to get these references, before it gets them."""
        for where, rrids in by_owner(claims).items():
            if where == self._cluster.pid:
                for rrid in rrids:
                    self._store.add_client(rrid, pid)
            else:
                self._tell(where, m.ADDED, [(rrid, pid, 1) for rrid in rrids])

    def received(self, table: Sequence[tuple[int, int, int]]) -> list[Claim]:
        """Take note of references that came in; the claims live until the message is opened, and longer if kept."""
        claims = [self.claims.received(where, RRID(whence, number)) for where, whence, number in table]
        self._set_timer()
        return claims

    def give_back(self) -> None:
        """Tell the owners of the references that were dropped here. Any thread; waits for nothing."""
        for where, rows in self.claims.take_dropped().items():
            if where == self._cluster.pid:
                for rrid, count in rows:
                    self._store.del_client(rrid, where, count)
            else:
                self._tell(where, m.DROPPED, rows)

    def _set_timer(self) -> None:
        """See that dropped claims are given back. After making a claim: a timer that just ends looks for claims."""
        if not self._timer_is_set:
            self._timer_is_set = True
            self._reader.call_later(GIVE_BACK_SECONDS, self._give_back_regularly)

    def _give_back_regularly(self) -> None:
        try:
            self.give_back()
        finally:
            self._timer_is_set = False
            if self.claims.is_in_use:
                self._set_timer()

    def _tell(self, where: int, kind: int, rows: list[Any]) -> None:
        route = where if self._cluster.pid == DRIVER else DRIVER
        self._send(route, kind, self._cluster.pid, where, pickle.dumps(rows))

    def _send(self, route: int, kind: int, whence: int, where: int, body: Any) -> None:
        with contextlib.suppress(ValueError, RuntimeError):  # the owner is gone, and what it kept with it
            self._cluster.peer(route).send(kind, whence=whence, ref=where, body=body)

    # -- what others tell, on the reading thread -----------------------------------------------------------------

    def added(self, peer: Peer, frame: Frame) -> None:
        """Other processes hold references now to what we, or another worker, keep."""
        if frame.ref != self._cluster.pid:
            self._send(frame.ref, frame.kind, frame.whence, frame.ref, frame.body)
            return
        for rrid, pid, count in pickle.loads(frame.body):
            self._store.add_client(RRID(*rrid), pid, count)

    def dropped(self, peer: Peer, frame: Frame) -> None:
        """Another process gives references back."""
        if frame.ref != self._cluster.pid:
            self._send(frame.ref, frame.kind, frame.whence, frame.ref, frame.body)
            return
        for rrid, count in pickle.loads(frame.body):
            self._store.del_client(RRID(*rrid), frame.whence, count)
