"""Who holds a reference to what this process keeps: distributed reference counting, as a table without a lock.

Used by the store, under its lock: nothing here waits, answers, or runs anything of a user's::

    ref id ──▶ entry ── channel     what a Future or RemoteChannel keeps its items in; a Channel(1) if none was given
                     ├─ clients     the processes that hold a reference, and how often each was given it by whom
                     └─ waiting     requests that will be answered later; they hold no thread

An entry comes into being when anything is first said about its id, with the process that made the id as its client. It
goes when its last client goes, and is not made again: a message that comes too late for it finds a tombstone, where a
new, empty entry would let it wait for ever (D#124).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from distpool.channel import Channel
from distpool.light import Any, Final, NamedTuple
from distpool.messages import RRID

# How many released ids are remembered. Arbitrary: more than can be under way while one message is late; below 1 MB.
TOMBSTONES: Final = 4096


class Entry:
    """What is kept under one id."""

    __slots__ = ("bound", "channel", "clients", "is_set", "kept", "waiting")

    def __init__(self, channel: Any, creator: int) -> None:
        self.channel = channel
        # How often each process was given the reference, by (process, giver); its creator by itself. Less than nothing:
        # it gave back before we heard that it got it.
        self.clients = {(creator, creator): 1}
        self.is_set = False  # it is a Future, and has its value
        self.waiting: set[Any] = set()  # requests
        self.bound: set[int] = set()  # processes whose end closes the channel
        # What was taken from a user's own store and reached nobody, with the arguments of its take: for the next one.
        self.kept: list[tuple[tuple[Any, ...], Any]] = []

    def holders(self) -> frozenset[int]:
        """The processes that hold a reference."""
        return frozenset(pid for (pid, _), count in self.clients.items() if count > 0)


class Counted(NamedTuple):
    """An entry after a change of its counts, and the requests that have lost it, if it has gone with its last client.

    The entry must outlive the lock: letting go of it may run the user's code.
    """

    rrid: RRID
    entry: Entry
    orphans: list[Any]


class Entries(dict[RRID, Entry]):
    """The entries by ref id, and what is remembered of those that have gone."""

    def __init__(self) -> None:
        super().__init__()
        self._released: OrderedDict[RRID, bool] = OrderedDict()  # tombstones, the oldest first; True: it had been set
        self._ended: set[int] = set()  # processes of which nothing more will be heard; pids are never used twice

    def find(self, rrid: RRID, channel: Any = None) -> Entry | None:
        """The entry of an id, made if need be. None if it was released, or its creator has ended."""
        entry = self.get(rrid)
        if entry is not None or rrid in self._released or rrid.whence in self._ended:
            return entry
        entry = self[rrid] = Entry(Channel(1) if channel is None else channel, rrid.whence)
        return entry

    def was_set(self, rrid: RRID) -> bool:
        """True for the id of a Future that was released and had its value."""
        return self._released.get(rrid, False)

    def add(self, rrid: RRID, client: int, giver: int, count: int) -> Counted | None:
        """Give a client so many more. None if too late: the id was released, or the client has ended."""
        entry = self.find(rrid) if client not in self._ended else None
        return None if entry is None else self._drop(rrid, entry, (client, giver), -count)

    def take_away(self, rrid: RRID, client: int, giver: int, count: int) -> Counted | None:
        """Take so many from a client. None if there is nothing to take them from any more."""
        if client in self._ended:
            return None
        if client == rrid.whence and rrid not in self and rrid not in self._released:
            self._bury(rrid, False)  # a Future that nobody used: what was sent about it may still come
            return None
        entry = self.find(rrid)  # if there is none yet, we are still to hear that this process was given it
        return None if entry is None else self._drop(rrid, entry, (client, giver), count)

    def end(self, pid: int) -> tuple[list[Counted], set[int]]:
        """Nothing more will be heard of a process: take all from it. Also returns who was given something by it."""
        self._ended.add(pid)
        held = self._with_key(lambda client, giver: client == pid)
        counted = [self._drop(rrid, entry, key, entry.clients[key]) for rrid, entry, key in held]
        return counted, {client for _, _, (client, _) in self._with_key(lambda client, giver: giver == pid)}

    def settle(self, client: int, giver: int, held: dict[RRID, int]) -> list[Counted]:
        """Set how often a client holds what it was given by ``giver``."""
        key = (client, giver)
        found = self._with_key(lambda *each: each == key)
        if client not in self._ended:
            found += [(rrid, entry, key) for rrid in held if (entry := self.get(rrid)) is not None]
        return [
            self._drop(rrid, entry, key, entry.clients.get(key, 0) - held.get(rrid, 0)) for rrid, entry, key in found
        ]

    def _with_key(self, wanted: Callable[[int, int], bool]) -> list[tuple[RRID, Entry, tuple[int, int]]]:
        """The counts of certain clients and givers."""
        return [(rrid, entry, key) for rrid, entry in self.items() for key in entry.clients if wanted(*key)]

    def _drop(self, rrid: RRID, entry: Entry, key: tuple[int, int], count: int) -> Counted:
        left = entry.clients.get(key, 0) - count
        if left < 0 and key[1] in self._ended:
            left = 0  # the giver ended before it could tell that it gave
        if left:
            entry.clients[key] = left
        else:
            entry.clients.pop(key, None)
        if entry.clients:
            return Counted(rrid, entry, [])
        if self.pop(rrid, None) is not None:
            self._bury(rrid, entry.is_set)
        return Counted(rrid, entry, list(entry.waiting))

    def _bury(self, rrid: RRID, was_set: bool) -> None:
        self._released[rrid] = was_set
        if len(self._released) > TOMBSTONES:
            self._released.popitem(last=False)
