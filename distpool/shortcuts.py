"""Which channels have a shelf, and who takes from it: fast streams of items without a round trip for each.

Used by the member. On the owner's side it counts who asks for items, lays them out for processes that ask for many one
after the other (``shelf``), and hears of what they took. On the taker's side it gives the handle of a channel what it
takes from. A process that cannot be handed descriptors (over a network, relayed) asks for each item as before; so does
everybody for items that are large or hold references.

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
from distpool.pickling import dump, is_plain
from distpool.store import Store
from distpool.wire import Frame

if TYPE_CHECKING:
    from distpool.shelf import Reach, Shelf

# So many takes of one process, each so soon after the one before, are a stream. Its first items cost what they always
# did; a consumer that works for longer than this on each item gains nothing by a shelf.
STREAM_REQUESTS: Final = 16
STREAM_SECONDS: Final = 0.01
# A shelf holds items in advance of who waits for room; a channel of few places has none to gain by it.
LEAST_SIZE: Final = 16
# Texts beyond it do not fit on a shelf, however they are pickled.
LARGEST: Final = 512


class Taker(Protocol):
    """The handle of a channel that another process owns (``refs.RemoteChannel``)."""

    where: int

    def take_from(self, reach: Reach | None) -> None:
        """Take from this first, from now on; None: ask the owner for each item."""


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


class _Lent:
    """What is known of a channel from which others take."""

    __slots__ = ("is_stocked_aside", "shelf", "streams")

    def __init__(self) -> None:
        self.shelf: Shelf | None = None
        self.streams: dict[int, _Stream] = {}  # by process
        self.is_stocked_aside = False  # a thread is on its way that lays out what the reading thread must not pickle


class Shelving:
    """The shelves of the channels of this process, and those that it takes from."""

    def __init__(
        self,
        store: Store,
        handles: MutableMapping[RRID, Any],
        is_reading: Callable[[], bool],
        run_blocking: Callable[[Callable[[], None]], None],
    ) -> None:
        self._store = store
        self._handles = handles
        self._is_reading = is_reading
        self._run_blocking = run_blocking
        self._lent: WeakKeyDictionary[Channel[Any], _Lent] = WeakKeyDictionary()
        self._lock = threading.Lock()  # protects _lent and what is in it

    # -- the owner's side ----------------------------------------------------------------------------------------

    def asked(self, peer: Peer, rrid: RRID) -> None:
        """A process is about to take an item by asking: perhaps it shall have a shelf to take from."""
        channel = self._store.fast_channel(rrid)
        if channel is None or channel.size < LEAST_SIZE or not peer.shares_memory:
            return
        with self._lock:
            lent = self._lent.get(channel)
            if lent is None:
                lent = self._lent[channel] = _Lent()
            stream, shelf = lent.streams.setdefault(peer.pid, _Stream()), lent.shelf
        if shelf is not None and peer.pid in shelf.pids and not shelf.count():
            stream.asked = 0  # it had emptied the shelf
        elif stream.goes_on():
            self._hand(channel, lent, peer, rrid)

    def _hand(self, channel: Channel[Any], lent: _Lent, peer: Peer, rrid: RRID) -> None:
        """Let a process take from the channel's shelf."""
        try:
            from distpool.shelf import Shelf  # only for channels that are used much; not on every system

            if lent.shelf is None:
                # The channel keeps the shelf, so the shelf must not keep the channel.
                shelf = Shelf(partial(self._pack, ref(channel), lent))
                if not channel.lend(shelf):  # another member of this process lends it already
                    return
                lent.shelf = shelf
            descriptor = lent.shelf.open()
        except (ImportError, OSError):  # no such pipes here, or no descriptors left: it goes without
            return
        lent.shelf.revive()
        lent.shelf.pids.add(peer.pid)
        peer.send_descriptor(m.SHELF, rrid.id, descriptor, rrid.whence)

    def answered(self, peer: Peer, rrid: RRID) -> None:
        """The process has its item, or waits for it: lay out more."""
        channel = self._store.fast_channel(rrid)
        lent = self._lent.get(channel) if channel is not None else None
        if channel is not None and lent is not None and lent.shelf is not None and peer.pid in lent.shelf.pids:
            channel.stock()

    def _pack(self, channel: ref[Channel[Any]], lent: _Lent, item: object) -> bytes | None:
        """Pickle an item for whoever takes it; None if it cannot go that way, no bytes if not in this thread."""
        kind = type(item)
        if (kind is str or kind is bytes) and len(item) > LARGEST:  # type: ignore[arg-type]
            return None
        if self._is_reading() and not is_plain(item):
            self._stock_aside(channel(), lent)
            return b""
        if isinstance(item, RemoteException):  # it is raised at the taker
            return None
        try:
            parcel = dump(item, next(iter(lent.shelf.pids)) if lent.shelf and len(lent.shelf.pids) == 1 else 0)
        except Exception:  # whoever asks for it hears why
            return None
        return None if parcel.globals or parcel.refs or parcel.buffers else parcel.body

    def _stock_aside(self, channel: Channel[Any] | None, lent: _Lent) -> None:
        if channel is None or lent.is_stocked_aside:
            return
        lent.is_stocked_aside = True

        def stock() -> None:
            lent.is_stocked_aside = False
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

    def handed(self, peer: Peer, frame: Frame) -> None:
        """The owner of a channel lets us take from its shelf."""
        handle: Taker | None = self._handles.get(frame.rrid)
        if frame.descriptor < 0:
            return
        if handle is None or handle.where != peer.pid or not hasattr(handle, "take_from"):
            os.close(frame.descriptor)
            return
        from distpool.shelf import Reach

        whence, number = frame.whence, frame.ref

        def tell(record: bytes) -> None:
            peer.send(m.TAKEN, 0, 0, whence, number, record)

        handle.take_from(Reach(frame.descriptor, tell))

    # -- both ----------------------------------------------------------------------------------------------------

    def gone(self, pid: int) -> None:
        """A process has left: what it took and had no time to tell of is noticed, and nothing of its own is taken."""
        for handle in list(self._handles.values()):
            if handle.where == pid and hasattr(handle, "take_from"):
                handle.take_from(None)
        with self._lock:
            lent = list(self._lent.items())
        for channel, its in lent:
            its.streams.pop(pid, None)
            if its.shelf is not None and pid in its.shelf.pids:
                its.shelf.pids.discard(pid)
                channel.look()
