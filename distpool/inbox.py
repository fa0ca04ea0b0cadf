"""Where another process puts items into a channel without asking its owner.

Used by the owner's channel (`Inbox`, one for each process that puts much) and by that process (`Slot`). An item is in
the channel as soon as the kernel has taken its bytes, which is before `Slot.put` returns: the owner empties all inboxes
before it looks at anything else in the channel, whoever asks. What a process has put before it died is there, too::

    Slot.put ══ bytes ══▶ Inbox.empty ──▶ the channel's items       in any process ══▶ owner
       ◀══ places ═══════ Inbox.grant                                only for channels with a limit

Closing is exact: after `Inbox.shut` the kernel takes nothing more, and what it took before is still to be had.

A channel with a limit grants places, one byte each in a pipe: whoever puts takes one first. The owner counts those that
are granted as taken, and takes back what nobody has used, from the same pipe, when others need the room. The place of a
process that died with one in its hand is free when the end of its stream is seen.

Only such items go this way whose opening runs nobody's code, for they are opened under the channel's lock. `Inbox` is
used under that lock, except by the thread that reads.
"""

from __future__ import annotations

import os
from contextlib import suppress
from weakref import ref

from distpool.channel import Channel
from distpool.light import Any, Final, Protocol, pickle, socket
from distpool.pickling import dump_bare

# The largest item that goes this way; for larger ones a round trip weighs little.
LARGEST_BYTES: Final = 2048
# Places that one process may have at a time. What so many items need is below what a socket takes at least (212992
# bytes on Linux by default, with some 700 for each message), so that a place is always enough to put.
PLACES: Final = 64
# An owner that sees fewer grants more.
FEW_PLACES: Final = 16
# After an item that cannot go this way so many are not even tried, for each would be pickled twice. Arbitrary.
PAUSES: Final = 64


class _Reader(Protocol):
    """What an inbox needs of `transport.Reader`."""

    def register(self, handler: Any) -> None:
        """Watch it."""

    def unregister(self, handler: Any) -> None:
        """Watch it no more."""


class Inbox:
    """The owner's side. The reader watches it, so that who waits for an item is served.

    >>> from distpool.transport import Reader
    >>> channel, reader = Channel(4), Reader()
    >>> inbox = Inbox(channel, reader)
    >>> channel.listen_to(inbox)
    True
    >>> slot = Slot(*inbox.open())
    >>> slot.put("a"), slot.put("b"), slot.put("c")  # half of the free places are kept for it
    (True, True, False)
    >>> len(channel), channel.take(), channel.close(), slot.put("late"), list(channel)
    (2, 'a', None, False, ['b'])
    >>> reader.close()
    """

    def __init__(self, channel: Channel[Any], reader: _Reader) -> None:
        self._channel = ref(channel)  # which keeps this inbox
        self._reader = reader
        self._is_over = False
        self.granted = 0  # places that are neither used, as far as was seen, nor taken back
        self._places_out = self._places_in = self._in = self._far = -1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)  # the kernel takes less where it must
        self._in, self._far = ours.detach(), theirs.detach()
        self.has_limit = channel.size != float("inf")
        if self.has_limit:
            self._places_out, self._places_in = os.pipe()
        for descriptor in (self._in, self._far, self._places_out, self._places_in):
            if descriptor >= 0:
                os.set_blocking(descriptor, False)

    def open(self) -> tuple[int, int]:
        """Begin, and return the other side's descriptors: to put with, and for places (-1 without a limit)."""
        places = os.dup(self._places_out) if self.has_limit else -1
        far, self._far = self._far, -1
        self._reader.register(self)
        return far, places

    def close(self) -> None:
        """Give everything back."""
        for descriptor in (self._in, self._far, self._places_out, self._places_in):
            if descriptor >= 0:
                os.close(descriptor)
        self._in = self._far = self._places_out = self._places_in = -1

    __del__ = close

    def empty(self) -> list[Any]:
        """Return what has come."""
        items: list[Any] = []
        while not self._is_over:
            try:
                body = os.read(self._in, LARGEST_BYTES)
            except BlockingIOError:
                break
            if body:
                items.append(pickle.loads(body))
            else:
                self._is_over = True
        if self.has_limit:
            self.granted = 0 if self._is_over else self.granted - len(items)
        return items

    def grant(self, free: int) -> None:
        """Let the other side have some of these free places, if it has few."""
        number = min(PLACES - self.granted, free)
        if self.granted <= FEW_PLACES and number > 0 and not self._is_over:
            os.write(self._places_in, b"p" * number)
            self.granted += number

    def recall(self) -> None:
        """Take back the places that the other side does not use."""
        if self.granted:
            with suppress(BlockingIOError):  # all are in use
                self.granted -= len(os.read(self._places_out, PLACES))

    def shut(self) -> None:
        """Let nothing more in."""
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, self._in)
        with suppress(OSError):  # the other side has gone
            stream.shutdown(socket.SHUT_RD)
        stream.detach()

    # -- for the reader

    def fileno(self) -> int:
        """The descriptor to watch."""
        return self._in

    def on_readable(self) -> None:
        """Something has come, or the other side has gone."""
        channel = self._channel()
        if channel is not None:
            channel.look()
        if channel is None or self._is_over:
            self._reader.unregister(self)
            if channel is not None:
                channel.forget(self)
            self.close()

    def on_writable(self) -> None:
        """Never asked for."""


class Slot:
    """An inbox as the other process has it; any of its threads puts. The descriptors are the Slot's from now on."""

    __slots__ = ("_out", "_pauses", "_places", "is_over")

    def __init__(self, out: int, places: int) -> None:
        self._out = out
        self._places = places
        self._pauses = 0
        self.is_over = False  # of no use any more: the channel is closed, or its owner has gone

    def __del__(self) -> None:
        os.close(self._out)
        if self._places >= 0:
            os.close(self._places)

    def put(self, item: object) -> bool:
        """Put an item; False if it must be asked for: it may not go this way, or there is no room just now."""
        if self._pauses:
            self._pauses -= 1
            return False
        body = dump_bare(item, LARGEST_BYTES)
        if not body:
            if body is None:
                self._pauses = PAUSES
            return False
        try:
            if self._places >= 0 and not os.read(self._places, 1):
                self.is_over = True
                return False
        except BlockingIOError:
            return False
        try:
            os.write(self._out, body)
        except BlockingIOError:  # only without a limit, so no place is lost
            return False
        except OSError:
            self.is_over = True
            return False
        except BaseException:  # an interrupt: who knows whether it was put, or still has its place
            self.is_over = True
            raise
        return True
