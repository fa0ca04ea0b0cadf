"""This process's claims on values that others keep: how often each reference was given to us, and giving it back.

Used by the member, one table per cluster. Distributed reference counting, by weight: whoever sends a reference to
process p first tells its owner "p has one more", and p, when it drops the reference, gives back as many as it was
given. So it does not matter which of the two the owner hears first, and a reference that was received but never
decoded is given back too::

    sender --added: p, 1--> owner          the owner keeps the value while any count is not zero
       +----the reference--> p --dropped: p, 1--> owner

A ``Claim`` is what all handles of one reference in this process share, and what a message holds from its making until
it is sent, and from its coming until it is opened. So a reference is given back only when nobody here can need it any
more, never while a message with it waits to be sent. How often it was given to us, and by whom, is counted beside the
claim, in the weak reference to it, which is all that is left when the claim dies. Any thread may enter; its end appends
that weak reference to a deque and does nothing else, for it comes at any line of any thread, whatever lock is held.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from struct import Struct

from distpool.light import Final
from distpool.messages import RRID
from distpool.wire import Buffer


class Claim:
    """What this process holds of one reference. Given back when nobody needs it."""

    __slots__ = ("__weakref__", "rrid", "table", "where")

    def __init__(self, table: Claims, where: int, rrid: RRID) -> None:
        self.table = table  # of the cluster to which the reference belongs
        self.where = where
        self.rrid = rrid


class _Record(weakref.ref[Claim]):
    """A claim and its counts. Counted here and not in the claim: a claim that dies cannot be found any more by then, so
    that nobody counts on what is being given back (a ``__del__`` runs while it still can be).
    """

    __slots__ = ("counts", "is_own", "rrid", "where")

    def __new__(cls, claim: Claim, tell: Callable[[_Record], object]) -> _Record:
        return super().__new__(cls, claim, tell)

    def __init__(self, claim: Claim, tell: Callable[[_Record], object]) -> None:
        super().__init__(claim, tell)  # type: ignore[call-arg]  # unknown to its types
        self.where = claim.where
        self.rrid = claim.rrid
        self.counts: dict[int, int] = {}  # by giver; what this process made, it was given by itself
        self.is_own = False  # made here, and never sent to anybody


Row = tuple[RRID, int, int]  # a reference, who gave it, and how often


class Dropped:
    """What is to be given back, by owner."""

    def __init__(self) -> None:
        self.rows: dict[int, list[Row]] = {}
        # What was made here and never sent: no news can be under way that its end must not overtake.
        self.own: dict[int, list[Row]] = {}


class Claims:
    """The claims of this process, by reference."""

    def __init__(self) -> None:
        self.dropped: deque[_Record] = deque()  # of claims that have died; appended to at any moment
        self._records: dict[RRID, _Record] = {}
        # Protects _records and what is in them. Re-entrant: a finaliser of the user's may make references meanwhile.
        self._lock = threading.RLock()

    def made(self, where: int, rrid: RRID) -> Claim:
        """Return the claim of a reference that this process has just made: its first."""
        with self._lock:
            claim, record = self._find(where, rrid)
            record.counts[rrid.whence] = 1
            record.is_own = True
            return claim

    def received(self, where: int, rrid: RRID, giver: int) -> Claim:
        """Return the claim of a reference that has just come in a message: one more."""
        with self._lock:
            claim, record = self._find(where, rrid)
            record.counts[giver] = record.counts.get(giver, 0) + 1
            return claim

    def known(self, where: int, rrid: RRID) -> Claim:
        """Return the claim of a reference that is mentioned, without adding to it."""
        with self._lock:
            return self._find(where, rrid)[0]

    def check(self, claims: Iterable[Claim]) -> None:
        """Raise TypeError for references that are about to leave the cluster in which they have a meaning."""
        for claim in claims:
            if claim.table is not self:
                whence, number = claim.rrid
                raise TypeError(
                    f"the Future or RemoteChannel (where={claim.where}, whence={whence}, id={number}) "
                    "belongs to another cluster than the process that it was to be sent to: WorkerPool(processes=...) "
                    "has a cluster of its own. Send what it holds, or make the pool of workers that know it: "
                    "WorkerPool(addprocs(n))"
                )

    def sent(self, claims: Iterable[Claim]) -> None:
        """Take note that somebody is about to get these references from us."""
        with self._lock:
            for claim in claims:
                record = self._records.get(claim.rrid)
                if record is not None:
                    record.is_own = False

    def _find(self, where: int, rrid: RRID) -> tuple[Claim, _Record]:
        """The claim of a reference and its record, made if there is none. Under the lock."""
        claim = self._living(rrid)
        if claim is None:
            claim = Claim(self, where, rrid)
            new = _Record(claim, self.dropped.append)
            other = self._living(rrid)  # making objects may have run finalisers, which may have made this one
            if other is None:
                self._put_in_place(new)
            else:
                claim = other
        return claim, self._records[rrid]

    def _living(self, rrid: RRID) -> Claim | None:
        record = self._records.get(rrid)
        return record() if record is not None else None

    def _put_in_place(self, new: _Record) -> None:
        """The counts of a claim that is dead and was not given back yet go over to the new one.

        Nobody may ever hear of its death: while a claim is being destroyed, this table may hold the only reference to
        its record.
        """
        old = self._records.get(new.rrid)
        if old is not None:
            new.counts, old.counts = old.counts, new.counts
            new.is_own = old.is_own
        self._records[new.rrid] = new

    @property
    def is_in_use(self) -> bool:
        """True while this process holds references, or has some to give back."""
        return bool(self._records)

    def take_dropped(self) -> Dropped:
        """Return what is to be given back; it is the caller's from now on."""
        found = Dropped()
        while self.dropped:
            try:
                record = self.dropped.popleft()
            except IndexError:
                break
            with self._lock:
                if self._records.get(record.rrid) is record:
                    del self._records[record.rrid]
                rows = [(record.rrid, giver, count) for giver, count in record.counts.items()]
            if rows:
                by_owner = found.own if record.is_own else found.rows
                by_owner.setdefault(record.where, []).extend(rows)
        return found

    def held(self, where: int, giver: int) -> list[tuple[RRID, int]]:
        """Return what ``giver`` gave us of one owner's, and we have not taken out yet to give it back."""
        with self._lock:
            records = [record for record in self._records.values() if record.where == where and giver in record.counts]
            return [(record.rrid, record.counts[giver]) for record in records]


def by_owner(claims: Iterable[Claim]) -> dict[int, list[RRID]]:
    """Return the references of some claims, by owner."""
    owners: dict[int, list[RRID]] = {}
    for claim in claims:
        owners.setdefault(claim.where, []).append(claim.rrid)
    return owners


def table_of(claims: Iterable[Claim]) -> list[tuple[int, int, int]]:
    """Return references as plain numbers: (owner, whence, id)."""
    return [(claim.where, *claim.rrid) for claim in claims]


_NUMBERS: Final = Struct("<QQQ")
_COUNT: Final = Struct("<Q")


def with_table(table: Sequence[tuple[int, int, int]], body: Buffer) -> bytes:
    """Put references in front of a message's body, readable without unpickling.

    >>> split_table(with_table([(2, 1, 7)], b"body"))[0]
    [(2, 1, 7)]
    """
    return b"".join((_COUNT.pack(len(table)), *(_NUMBERS.pack(*numbers) for numbers in table), body))


def split_table(body: Buffer) -> tuple[list[tuple[int, int, int]], memoryview]:
    """Return the references in front of a body, and the rest of it."""
    view = memoryview(body)
    (count,) = _COUNT.unpack_from(view)
    end = _COUNT.size + count * _NUMBERS.size
    return [row for row in _NUMBERS.iter_unpack(view[_COUNT.size : end])], view[end:]
