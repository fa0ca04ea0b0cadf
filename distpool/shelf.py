"""The first items of a channel, laid out where other processes take them without asking its owner.

Used by the owner's channel (`Shelf`) and by the processes that take from it (`Reach`). A round trip per item costs ten
times what the item does; here the owner writes items into a pipe whose reading end those processes have, too. The
kernel gives each record to exactly one reader, so an item is taken at the moment it is read, by whomever, and nothing
can be lost, doubled or overtaken. Nothing need be agreed on: the owner takes from the pipe as everybody does, and what
a process that died has not read lies there as before::

    owner   items ──▶ laid (the objects) ┐
                      pipe (their bytes) ┴──▶ Reach.take   in any process
                             │
                             └──▶ Shelf.take, recall       the objects themselves, where nobody else has read them

A record has a fixed size, far below what a pipe passes on in one piece: a pickle, filled up (pickle ignores what comes
after its end), a mark, a number that counts up. `Shelf` is used under its channel's lock, except `Shelf.pack`.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from struct import Struct

from distpool.desk import NOTHING
from distpool.light import Any, Final, pickle
from distpool.pickling import dump_flat

# Enough that to be told to lay out more is rare. Larger items cost their own copying anyway.
RECORD_BYTES: Final = 512
RECORDS: Final = 128
# A pipe holds pages, which are seldom full: with four times what the records need they never run out. Where the kernel
# refuses that (it has a limit for each user), it holds 16 pages, and fewer records.
PIPE_BYTES: Final = 4 * RECORDS * RECORD_BYTES
BODY_BYTES: Final = RECORD_BYTES - 9
_MARK: Final = BODY_BYTES  # where it stands: 1 if whoever takes the record must tell the owner
_RECORD: Final = Struct(f"<{BODY_BYTES}sBQ")
_NUMBER: Final = Struct("<Q")
# What a pipe takes in one piece or not at all.
_RECORDS_AT_ONCE: Final = max(1, select.PIPE_BUF // RECORD_BYTES)
# The owner takes from its own shelf what others could take faster: after so many in a row nobody else seems to.
VAIN_RECORDS: Final = 2 * RECORDS
# After an item that cannot lie on the shelf it is not looked at so many times. Arbitrary.
PAUSES: Final = 64
# A taker that finds nothing looks again so often (1 us each), then waits for a millisecond before it asks: while items
# stream, the next are about to be laid out, and an owner that is busy putting them takes longer to answer.
LOOKS: Final = 50
WAIT_MS: Final = 1
# When that was in vain it asks at once for some times, for twice as many after each time.
MOST_SKIPS: Final = 1024


class Shelf:
    """The owner's side.

    Args:
        pack: pickles what is not flat, in so many bytes at most; returns None for what cannot lie here (larger, or with
            references in it), no bytes for what cannot be pickled just now.

    >>> shelf = Shelf(lambda item, limit: pickle.dumps(item))
    >>> shelf.lay(["a", "b"], [shelf.pack("a"), shelf.pack("b")], tell=False, is_last=True)
    2
    >>> reach = Reach(shelf.open(), tell=print)
    >>> reach.take(), shelf.count(), shelf.take(), reach.take() is NOTHING
    ('a', 1, 'b', True)
    >>> shelf.close()
    """

    def __init__(self, pack: Callable[[Any, int], bytes | None]) -> None:
        self._pack = pack
        self._out = self._in = -1
        self._out, self._in = os.pipe()
        with suppress(AttributeError, OSError):  # only on Linux; not allowed
            fcntl.fcntl(self._in, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._most = RECORDS
        os.set_blocking(self._out, False)  # for all who have it
        os.set_blocking(self._in, False)
        self._laid: deque[Any] = deque()  # the objects; some at the left may have been taken by others
        self._gone: list[Any] = []  # objects that others have taken; to be dropped under no lock
        self._first = 0  # the number of the leftmost
        self._last_untold = 0  # the number after the last record without the mark
        self._vain = 0  # items that the owner has taken itself since others did
        self._pauses = 0  # how often nothing is laid out, after an item that could not be
        self.pids: set[int] = set()  # the processes that can take from it

    def open(self) -> int:
        """Return a new descriptor to take from."""
        return os.dup(self._out)

    def close(self) -> None:
        """Give the pipe up; who still takes from it finds that it has ended."""
        for descriptor in (self._out, self._in):
            if descriptor >= 0:
                os.close(descriptor)
        self._out = self._in = -1
        # A finaliser may still use the channel, when both are part of one cycle: it finds an empty shelf.
        self._laid, self._most = deque(), 0

    __del__ = close

    def revive(self) -> None:
        """Other processes take from this channel again."""
        self._vain = 0

    def count(self) -> int:
        """Return how many lie there."""
        if not self._laid:
            return 0
        size = fcntl.ioctl(self._out, termios.FIONREAD, b"\0\0\0\0")
        return int.from_bytes(size, sys.byteorder) // RECORD_BYTES

    def _note_taken(self, left: int) -> None:
        """Forget the objects that others have taken; so many are left."""
        taken = len(self._laid) - left
        if taken:
            self._first += taken
            self._vain = 0
            for _ in range(taken):
                self._gone.append(self._laid.popleft())

    def let_go(self) -> list[Any]:
        """Return the objects that others have taken. Dropping them may run finalisers, so not under the lock."""
        gone, self._gone = self._gone, []
        return gone

    def room(self) -> int:
        """Return how many more to lay out: none while nobody but the owner seems to take them."""
        if self._vain >= VAIN_RECORDS:
            return 0
        if self._pauses:
            self._pauses -= 1
            return 0
        if len(self._laid) > self._most // 2:
            self._note_taken(self.count())
        return max(0, self._most - len(self._laid))

    def take(self) -> Any:
        """Take the first one; NOTHING if there is none."""
        if not self._laid:
            return NOTHING
        try:
            record = os.read(self._out, RECORD_BYTES)
        except BlockingIOError:
            self._note_taken(0)
            return NOTHING
        (number,) = _NUMBER.unpack_from(record, _MARK + 1)
        self._note_taken(len(self._laid) - (number - self._first))
        self._vain += 1
        self._first += 1
        return self._laid.popleft()

    def first(self) -> Any:
        """Return the first one; NOTHING if there is none. It stays, unless somebody takes it at this moment."""
        self._note_taken(self.count())
        return self._laid[0] if self._laid else NOTHING

    def recall(self) -> list[Any]:
        """Take all."""
        count = 0
        while self._laid:
            try:
                count += len(os.read(self._out, RECORDS * RECORD_BYTES)) // RECORD_BYTES
            except BlockingIOError:
                break
        self._note_taken(count)
        items = list(self._laid)
        self._laid.clear()
        self._first += count
        return items

    def pack(self, item: Any) -> bytes | None:
        """Pickle an item; None if it cannot lie here, or not now."""
        body = dump_flat(item, BODY_BYTES) or self._pack(item, BODY_BYTES)
        if body is None:
            self._pauses = PAUSES  # most likely the next ones cannot either: they are not to be pickled twice each
        return body or None

    def lay(self, items: Sequence[Any], packed: Sequence[bytes], tell: bool, is_last: bool) -> int:
        """Lay out as many as there is room for; return how many. See `desk.Shelf`."""
        laid = 0
        while laid < len(items):
            group = packed[laid : laid + _RECORDS_AT_ONCE]
            number = self._first + len(self._laid)
            records = [
                # Half a shelf before the end is in time to lay out more.
                _RECORD.pack(body, tell or (not is_last and place % (RECORDS // 2) == 0), place)
                for place, body in enumerate(group, number)
            ]
            self._laid.extend(items[laid : laid + len(group)])  # before anybody can take them
            try:
                os.write(self._in, b"".join(records))
            except BlockingIOError:  # its pages are not filled evenly
                for _ in group:
                    self._laid.pop()
                self._most = max(RECORDS // 8, len(self._laid))
                break
            laid += len(group)
            if not tell:
                self._last_untold = number + len(group)
        return laid

    def has_untold(self) -> bool:
        """Whether some lie there whose taker will not tell."""
        return self._last_untold > self._first and self.count() > 0


class Reach:
    """A shelf as another process has it: any of its threads takes from it.

    ``descriptor`` is the Reach's from now on. ``tell`` is called with nothing after an item was taken whose owner wants
    to hear of that, and with the record when an interrupt came before the item was in the hands of who takes it: the
    owner shall put it back.
    """

    __slots__ = ("_descriptor", "_skips", "_tell", "_vain", "is_over")

    def __init__(self, descriptor: int, tell: Callable[[bytes], object]) -> None:
        self._descriptor = descriptor
        self._tell = tell
        self._vain = 0  # how often in a row nothing came while we looked
        self._skips = 0  # so often nobody looks
        self.is_over = False  # the owner has given it up

    def __del__(self) -> None:
        os.close(self._descriptor)

    def take(self, wait_ms: int = WAIT_MS) -> Any:
        """Take the first item, NOTHING if there is none.

        Looks again and waits for so many milliseconds, for as long as that pays off; with 0 only once.
        """
        record = bytearray(RECORD_BYTES)
        try:
            # A pickle begins with 0x80: so an interrupt, at whatever line, finds out whether a record is here.
            try:
                if not os.readv(self._descriptor, (record,)):
                    self.is_over = True
                    return NOTHING
            except BlockingIOError:
                if not wait_ms or not self._read_later(record, wait_ms):
                    return NOTHING
            item = pickle.loads(record)
        except Exception:  # what the item's own code raises: it was taken all the same
            if record[_MARK]:
                self._tell(b"")
            raise
        except BaseException:
            if record[0]:
                self._tell(bytes(record))
            raise
        if record[_MARK]:
            self._tell(b"")
        return item

    def _read_later(self, record: bytearray, wait_ms: int) -> bool:
        if self._skips:
            self._skips -= 1
            return False
        for _ in range(LOOKS):
            if self._read_now(record):
                self._vain = 0
                return True
        coming = select.poll()
        coming.register(self._descriptor, select.POLLIN)
        if coming.poll(wait_ms) and self._read_now(record):
            self._vain = 0
            return True
        self._vain += 1
        self._skips = min(1 << self._vain, MOST_SKIPS)
        return False

    def _read_now(self, record: bytearray) -> bool:
        try:
            self.is_over = not os.readv(self._descriptor, (record,))
        except BlockingIOError:
            return False
        return not self.is_over


def opened(record: bytes) -> Any:
    """Return the item of a record that comes back."""
    return pickle.loads(record)
