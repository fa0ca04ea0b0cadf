"""This process's claims on values that others keep: how often each reference was given to us, and giving it back.

Used by the member, one table per cluster. Distributed reference counting, by weight: whoever sends a reference to
process p first tells its owner "p has one more", and p, when it drops the reference, gives back as many as it was
given. So it does not matter which of the two the owner hears first, and a reference that was received but never
decoded is given back too::

    sender --added: p, 1--> owner          the owner keeps the value while any count is not zero
       +----the reference--> p --dropped: p, 1--> owner

A ``Claim`` is what all handles of one reference in this process share, and what a message holds on its way to be
opened. Any thread may enter; finalisers do nothing but append to a deque, for they run at any line of any thread,
whatever lock is held. ``flush`` sends what has gathered; the member calls it often.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final
from weakref import WeakValueDictionary

from distpool.messages import RRID
from distpool.wire import Buffer

Dropped = tuple[int, RRID, int]  # owner, reference, how many


class Claim:
    """What this process holds of one reference: ``count`` times it was given to us. Given back when nobody needs it."""

    __slots__ = ("__weakref__", "_dropped", "count", "rrid", "where")

    def __init__(self, dropped: deque[Dropped], where: int, rrid: RRID, count: int) -> None:
        self.where = where
        self.rrid = rrid
        self.count = count
        self._dropped = dropped

    def give_back(self) -> int:
        """Take the count: the owner is told in another way. Returns what it was."""
        count, self.count = self.count, 0
        return count

    def __del__(self) -> None:
        if self.count:
            self._dropped.append((self.where, self.rrid, self.count))


class Claims:
    """The claims of this process, by reference."""

    def __init__(self) -> None:
        self.dropped: deque[Dropped] = deque()  # appended to by finalisers
        self._claims: WeakValueDictionary[RRID, Claim] = WeakValueDictionary()
        self._lock = threading.Lock()  # protects look-up together with making, and counts

    def made(self, where: int, rrid: RRID) -> Claim:
        """Return the claim of a reference that this process has just made: its first."""
        claim = self._claims[rrid] = Claim(self.dropped, where, rrid, 1)
        return claim

    def received(self, where: int, rrid: RRID) -> Claim:
        """Return the claim of a reference that has just come in a message: one more."""
        with self._lock:
            claim = self._claims.get(rrid)
            if claim is None:
                claim = self._claims[rrid] = Claim(self.dropped, where, rrid, 0)
            claim.count += 1
            return claim

    def known(self, where: int, rrid: RRID) -> Claim:
        """Return the claim of a reference that is mentioned, without adding to it."""
        with self._lock:
            claim = self._claims.get(rrid)
            if claim is None:
                claim = self._claims[rrid] = Claim(self.dropped, where, rrid, 0)
            return claim

    @property
    def is_in_use(self) -> bool:
        """True while this process holds references, or has some to give back."""
        return bool(self.dropped) or len(self._claims) > 0

    def take_dropped(self) -> dict[int, list[tuple[RRID, int]]]:
        """Return what is to be given back, by owner; it is the caller's from now on."""
        by_owner: dict[int, list[tuple[RRID, int]]] = {}
        while self.dropped:
            try:
                where, rrid, count = self.dropped.popleft()
            except IndexError:
                break
            by_owner.setdefault(where, []).append((rrid, count))
        return by_owner


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
