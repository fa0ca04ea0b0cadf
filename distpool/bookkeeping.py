"""References given and given back between the members of one cluster: what each message about them does.

Used by the member. Turns claims (``claims``) into news for the owners and news from others into counts in the store.
News are sent when a message with references is, or when references were dropped, from time to time and never in a
finaliser. Any thread may enter; one at a time gives back, so that what it tells an owner keeps its order.

Why no count stays wrong for ever. The owner keeps one count for each (holder, giver); the value goes when all are zero.

* Every news that is sent arrives, once: connections lose nothing while both ends live. Sums do not depend on the order,
  so when nothing is under way each count is what its holder has and the counts of one that has nothing are zero.
* They are not all zero too early. Who sends a reference holds it himself until the message is in its socket, and tells
  "one more" before he gives back: both by way of process 1, so that the second cannot overtake the first. The maker's
  own count needs no news: it is there when the owner hears of the reference at all. What was never sent has no "one
  more" to wait for, and is given back behind the calls and questions about it, on the same connection: those could
  otherwise arrive when nobody remembers any more that it was released.
* When a holder ends, its counts go; what it said last is waited for (``Cluster.listen_for_end``), because it may have
  sent a reference on.
* When a giver ends, news and message may not both have arrived. So the owner asks everyone whom that giver gave
  something how much of it he holds (SETTLE), which he answers when he has read the giver's stream to its end (SETTLED),
  behind all that he has given back; that is the count from then on.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Sequence

from distpool import messages as m
from distpool.claims import Claim, Claims, by_owner
from distpool.cluster import Cluster
from distpool.interrupts import DeferredInterrupt
from distpool.light import Any, Final, pickle
from distpool.messages import DRIVER, RRID
from distpool.peer import Peer
from distpool.store import Store
from distpool.transport import Reader, Timer
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
        self._timer: Timer | None = None
        self._is_giving = threading.Lock()  # held by the thread that gives back; nobody waits for it
        self._questions: deque[tuple[int, int]] = deque()  # to be answered: which giver, which owner
        self._early: deque[tuple[int, int]] = deque()  # those about givers that may still be heard of
        cluster.listen_for_end(self._ended)

    # -- what this process gives and drops -----------------------------------------------------------------------

    def made(self, where: int, rrid: RRID) -> Claim:
        """Return the claim of a reference that this process has just made."""
        claim = self.claims.made(where, rrid)
        self._set_timer()
        return claim

    def announce(self, claims: Sequence[Claim], pid: int) -> None:
        """Tell the owners that ``pid`` is about to get these references, before it gets them."""
        self.claims.sent(claims)
        for where, rrids in by_owner(claims).items():
            if where == self._cluster.pid:
                for rrid in rrids:
                    self._store.add_client(rrid, pid, giver=where)
            else:
                self._tell(m.ADDED, where, [(rrid, pid, 1) for rrid in rrids])

    def received(self, table: Sequence[tuple[int, int, int]], giver: int) -> list[Claim]:
        """Take note of references that came in; the claims live until the message is opened, and longer if kept."""
        claims = [self.claims.received(where, RRID(whence, number), giver) for where, whence, number in table]
        self._set_timer()
        return claims

    def give_back(self) -> None:
        """Tell the owners of the references that were dropped here. Any thread; waits for nothing."""
        if not self.claims.dropped and not self._questions:
            return
        with DeferredInterrupt():  # Ctrl-C in here would lose what is in hand
            # Who finds another thread at it leaves it to that one, which looks again when it has ended.
            while (self.claims.dropped or self._questions) and self._is_giving.acquire(False):
                released: list[object] = []  # what was kept here: its finalisers are the user's code
                try:
                    self._give_back(released)
                finally:
                    self._is_giving.release()

    def _give_back(self, released: list[object]) -> None:
        assert self._is_giving.locked()
        dropped = self.claims.take_dropped()
        for where, rows in dropped.own.items():
            released += self._tell(m.DROPPED, where, rows, directly=self._cluster.is_connected(where))
        for where, rows in dropped.rows.items():
            released += self._tell(m.DROPPED, where, rows)
        while self._questions:
            giver, where = self._questions.popleft()
            released += self._tell(m.SETTLED, where, self.claims.held(where, giver), giver)

    def _set_timer(self) -> None:
        """See that dropped claims are given back. After making a claim: a timer that just ends looks for claims."""
        if self._timer is None or self._timer.is_over:
            self._timer = self._reader.call_later(GIVE_BACK_SECONDS, self._give_back_regularly)

    def _give_back_regularly(self) -> None:
        try:
            self.give_back()
        finally:
            if self.claims.is_in_use:
                self._set_timer()

    # -- the way of the news: between workers by way of process 1 ------------------------------------------------

    def _tell(self, kind: int, where: int, rows: list[Any], giver: int = 0, directly: bool = False) -> list[object]:
        """Tell an owner, or ask a holder. Returns what was released by it here."""
        pid = self._cluster.pid
        if where == pid:
            return self._heard(kind, pid, rows, giver)
        self._send(where if directly or pid == DRIVER else DRIVER, kind, giver, pid, where, pickle.dumps(rows))
        return []

    def _send(self, route: int, kind: int, giver: int, whence: int, where: int, body: Any) -> None:
        with contextlib.suppress(ValueError, RuntimeError):  # it is gone, and what it kept with it
            self._cluster.peer(route).send(kind, request=giver, whence=whence, ref=where, body=body)

    # -- what others tell, on the reading thread -----------------------------------------------------------------

    def arrived(self, peer: Peer, frame: Frame) -> None:
        """News about references; those for others are passed on."""
        if frame.ref != self._cluster.pid:
            self._send(frame.ref, frame.kind, frame.request, frame.whence, frame.ref, frame.body)
        else:
            self._heard(frame.kind, frame.whence, pickle.loads(frame.body), frame.request)

    def _heard(self, kind: int, whence: int, rows: list[Any], giver: int) -> list[object]:
        """Act on news. Returns what was released by it, for who holds no lock to let go."""
        if kind == m.ADDED:
            for rrid, pid, count in rows:
                self._store.add_client(RRID(*rrid), pid, count, whence)
            return []
        if kind == m.DROPPED:
            return [self._store.del_client(RRID(*rrid), whence, count, of) for rrid, of, count in rows]
        if kind == m.SETTLED:
            return self._store.settle(whence, giver, {RRID(*rrid): count for rrid, count in rows})
        self._asked(giver, whence)
        return []

    # -- the end of a process ------------------------------------------------------------------------------------

    def _ended(self, pid: int) -> None:
        """Nothing of this process is under way any more, neither on its own connection nor by way of process 1."""
        for holder in self._store.client_ended(pid):
            self._tell(m.SETTLE, holder, [], pid)
        self._answer_early()

    def _asked(self, giver: int, where: int) -> None:
        """How much of what ``giver``, which has ended, gave us of ``where`` do we hold?"""
        self._early.append((giver, where))
        self._answer_early()

    def _answer_early(self) -> None:
        for _ in range(len(self._early)):
            try:
                question = self._early.popleft()
            except IndexError:  # another thread is at it
                break
            # While it is connected its last messages are still to be read.
            (self._early if self._cluster.is_connected(question[0]) else self._questions).append(question)
        self.give_back()
