"""Shorter ways into and out of channels of other processes: streams of small items without a round trip for each.

Used by the member. On the owner's side it counts who puts and takes by asking. A process that does so often, one after
the other, is handed a descriptor: to take the channel's first items from (``shelf``), or to put items with
(``inbox``). On that process's side the handle of the channel gets them. Whoever cannot be handed descriptors (over a
network, relayed) asks for each item as before; so does everybody for items that are large or hold references.

Any thread enters; messages come in on the reading thread. Owns: who has asked how often.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, MutableMapping
from functools import partial
from weakref import WeakKeyDictionary, ref

from distpool import messages as m
from distpool.channel import Channel
from distpool.errors import RemoteException
from distpool.light import TYPE_CHECKING, Any, Final, Protocol
from distpool.messages import RRID
from distpool.peer import Peer
from distpool.pickling import dump_small, is_plain
from distpool.store import Store
from distpool.transport import Reader
from distpool.wire import Frame

if TYPE_CHECKING:
    from distpool.inbox import Slot
    from distpool.shelf import Reach, Shelf

# So many requests of one process, each so soon after the one before, are a stream. Its first items cost what they
# always did; a process that works for longer than this on each item gains nothing by a shorter way.
STREAM_REQUESTS: Final = 16
STREAM_SECONDS: Final = 0.01
# A channel of few places has nothing to lay out, and none to keep for somebody.
LEAST_SIZE: Final = 16


class Handle(Protocol):
    """The handle of a channel that another process owns (``RemoteChannel``)."""

    where: int

    def take_from(self, reach: Reach | None) -> None:
        """Take from this first, from now on; None: ask the owner for each item."""

    def put_into(self, slot: Slot | None) -> None:
        """Put here first, from now on; None: ask the owner to put each item."""


class _Stream:
    """How often one process has asked in a row, and when it did last."""

    __slots__ = ("asked", "at")

    def __init__(self) -> None:
        self.asked = 0
        self.at = 0.0

    def goes_on(self) -> bool:
        """Count one more; True each time that it has been enough in a row."""
        now = time.monotonic()
        self.asked = self.asked + 1 if now - self.at < STREAM_SECONDS else 1
        self.at = now
        if self.asked < STREAM_REQUESTS:
            return False
        self.asked = 0
        return True


class _Traffic:
    """What is known of a channel that other processes use."""

    __slots__ = ("_shelf", "is_stocked_aside", "puts", "takes")

    def __init__(self) -> None:
        self.puts: dict[int, _Stream] = {}  # by process
        self.takes: dict[int, _Stream] = {}
        self._shelf: Callable[[], Shelf | None] = _none  # the channel keeps it, and it keeps us
        self.is_stocked_aside = False  # a thread is on its way that lays out what the reading thread must not pickle

    @property
    def shelf(self) -> Shelf | None:
        """The shelf that we have made for it."""
        return self._shelf()

    @shelf.setter
    def shelf(self, shelf: Shelf) -> None:
        self._shelf = ref(shelf)


def _none() -> None:
    return None


class Shortcuts:
    """The shelves and inboxes of the channels of this process, and those of others that it uses."""

    def __init__(
        self,
        store: Store,
        handles: MutableMapping[RRID, Any],
        reader: Reader,
        run_blocking: Callable[[Callable[[], None]], None],
    ) -> None:
        self._store = store
        self._handles = handles
        self._reader = reader
        self._run_blocking = run_blocking
        self._traffic: WeakKeyDictionary[Channel[Any], _Traffic] = WeakKeyDictionary()
        self._lock = threading.Lock()  # protects _traffic and the tables in it
        self._places: dict[RRID, int] = {}  # descriptors that came before the slot they belong to

    # -- the owner's side ----------------------------------------------------------------------------------------

    def putting(self, peer: Peer, rrid: RRID) -> None:
        """A process is about to put an item by asking: perhaps it shall have an inbox."""
        channel = self._channel(peer, rrid)
        if channel is not None and self._goes_on(self._of(channel).puts, peer.pid):
            self._hand_inbox(channel, peer, rrid)

    def taking(self, peer: Peer, rrid: RRID) -> None:
        """A process is about to take an item by asking: perhaps it shall have a shelf to take from."""
        channel = self._channel(peer, rrid)
        if channel is None:
            return
        traffic = self._of(channel)
        shelf = traffic.shelf
        if shelf is not None and peer.pid in shelf.pids and not shelf.count():
            return  # it has emptied the shelf
        if self._goes_on(traffic.takes, peer.pid):
            self._hand_shelf(channel, traffic, peer, rrid)

    def _channel(self, peer: Peer, rrid: RRID) -> Channel[Any] | None:
        channel = self._store.fast_channel(rrid)
        return None if channel is None or channel.size < LEAST_SIZE or not peer.shares_memory else channel

    def _of(self, channel: Channel[Any]) -> _Traffic:
        with self._lock:
            traffic = self._traffic.get(channel)
            if traffic is None:
                traffic = self._traffic[channel] = _Traffic()
            return traffic

    def _goes_on(self, streams: dict[int, _Stream], pid: int) -> bool:
        with self._lock:
            return streams.setdefault(pid, _Stream()).goes_on()

    def _hand_inbox(self, channel: Channel[Any], peer: Peer, rrid: RRID) -> None:
        try:
            from distpool.inbox import Inbox  # only for channels that are used much; not on every system

            inbox = Inbox(channel, self._reader)
            out, places = inbox.open()
        except (ImportError, AttributeError, OSError):  # no such sockets here, or no descriptors left: it goes without
            return
        if not channel.listen_to(inbox):  # it sees the end of the other side, and goes
            for descriptor in (out, places):
                if descriptor >= 0:
                    os.close(descriptor)
            return
        if places >= 0:
            peer.send_descriptor(m.PLACES, rrid.id, places, rrid.whence)
        peer.send_descriptor(m.SLOT, rrid.id, out, rrid.whence)

    def _hand_shelf(self, channel: Channel[Any], traffic: _Traffic, peer: Peer, rrid: RRID) -> None:
        try:
            from distpool.shelf import Shelf  # as above

            shelf = traffic.shelf
            if shelf is None:
                # The channel keeps the shelf, so the shelf must not keep the channel.
                shelf = Shelf(partial(self._pack, ref(channel), traffic))
                if not channel.lend(shelf):  # another member of this process lends it already
                    return
                traffic.shelf = shelf
            descriptor = shelf.open()
        except (ImportError, OSError):
            return
        shelf.revive()
        shelf.pids.add(peer.pid)
        peer.send_descriptor(m.SHELF, rrid.id, descriptor, rrid.whence)

    def taken(self, peer: Peer, rrid: RRID) -> None:
        """The process has its item, or waits for it: lay out more."""
        channel = self._store.fast_channel(rrid)
        if channel is not None and (shelf := self._of(channel).shelf) is not None and peer.pid in shelf.pids:
            channel.stock()

    def _pack(self, channel: ref[Channel[Any]], traffic: _Traffic, item: object, limit: int) -> bytes | None:
        """Pickle an item for whoever takes it; None if it cannot go that way, no bytes if not in this thread."""
        if is_plain(item):
            return dump_small(item, limit)
        if self._reader.is_leading:
            self._stock_aside(channel(), traffic)
            return b""
        if isinstance(item, RemoteException):  # it is raised at the taker
            return None
        shelf = traffic.shelf
        pids = shelf.pids if shelf is not None else ()
        return dump_small(item, limit, next(iter(pids)) if len(pids) == 1 else 0)

    def _stock_aside(self, channel: Channel[Any] | None, traffic: _Traffic) -> None:
        if channel is None or traffic.is_stocked_aside:
            return
        traffic.is_stocked_aside = True

        def stock() -> None:
            traffic.is_stocked_aside = False
            channel.stock()

        self._run_blocking(stock)

    def told(self, peer: Peer, frame: Frame) -> None:
        """Another process has taken from the shelf of a channel that somebody waits to put into; or gives back."""
        channel = self._store.fast_channel(frame.rrid)
        if channel is None:
            return
        if not frame.body:
            channel.look()
            return
        record = bytes(frame.body)

        def put_back() -> None:
            from distpool.shelf import opened

            channel.put_back(opened(record))

        self._run_blocking(put_back)

    # -- the taker's side ----------------------------------------------------------------------------------------

    def shelf_came(self, peer: Peer, frame: Frame) -> None:
        """The owner of a channel lets us take from its shelf."""
        handle = self._handle(peer, frame)
        if handle is None:
            return
        from distpool.shelf import Reach

        whence, number = frame.whence, frame.ref

        def tell(record: bytes) -> None:
            peer.send(m.TAKEN, 0, 0, whence, number, record)

        handle.take_from(Reach(frame.descriptor, tell))

    def places_came(self, peer: Peer, frame: Frame) -> None:
        """They belong to the slot that comes next."""
        if frame.descriptor >= 0:
            self._places[frame.rrid] = frame.descriptor

    def slot_came(self, peer: Peer, frame: Frame) -> None:
        """The owner of a channel gives us an inbox there."""
        places = self._places.pop(frame.rrid, -1)
        handle = self._handle(peer, frame)
        if handle is not None:
            from distpool.inbox import Slot

            handle.put_into(Slot(frame.descriptor, places))
        elif places >= 0:
            os.close(places)

    def _handle(self, peer: Peer, frame: Frame) -> Handle | None:
        """The handle that a descriptor is for; if there is none any more, the descriptor is closed."""
        handle: Handle | None = self._handles.get(frame.rrid)
        if frame.descriptor >= 0 and handle is not None and handle.where == peer.pid and hasattr(handle, "take_from"):
            return handle
        if frame.descriptor >= 0:
            os.close(frame.descriptor)
        return None

    # -- both ----------------------------------------------------------------------------------------------------

    def gone(self, pid: int) -> None:
        """A process has left: what it took and had no time to tell of is noticed, and nothing of its own is used."""
        for handle in list(self._handles.values()):
            if handle.where == pid and hasattr(handle, "take_from"):
                handle.take_from(None)
                handle.put_into(None)
        with self._lock:
            traffic = list(self._traffic.items())
        for channel, its in traffic:
            its.puts.pop(pid, None)
            its.takes.pop(pid, None)
            shelf = its.shelf
            if shelf is not None and pid in shelf.pids:
                shelf.pids.discard(pid)
                channel.look()
