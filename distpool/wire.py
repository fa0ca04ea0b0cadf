"""The bytes between two processes, without any I/O: frames in, frames out, and where the next bytes go.

Used by ``peer``, one object per connection and direction; entered by one thread at a time (the one that reads, or the
one that holds the send lock). Knows no socket, thread, clock or user object, so tests feed it bytes cut anywhere.

A frame::

    header     kind u8 | flags u8 | descriptors u16 | buffers u32 | request u64 | whence u64 | ref u64 | body length u64
    table      one u64 per buffer: its length; the top bit says that it lies in the segment whose descriptor came along,
               the next one that it is itself a descriptor, and has no bytes
    body       a pickle, opened later by whoever asked for it
    buffers    the out-of-band buffers that are not in a segment, each read straight into its final place

All numbers are little-endian, lengths have 64 bits. Small frames are cut out of one buffer that many frames share; a
frame that does not fit there gets memory of its own, and the transport reads right into it: large data is copied once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from distpool.errors import RemoteProtocolError
from distpool.light import Final
from distpool.messages import RRID

HEADER: Final = struct.Struct("<BBHIQQQQ")
IN_SEGMENT: Final = 1 << 63
IS_DESCRIPTOR: Final = 1 << 62

# 256 KiB: what one recv of a Unix stream socket can bring with the kernel's default limits, and so large that a
# worker's envelope of tiny tasks is parsed without a second allocation.
SHARED_BUFFER_BYTES: Final = 1 << 18
# Arbitrary, generous: a length above this is a broken or hostile peer and not a large array.
MAX_LENGTH: Final = 1 << 44
MAX_BUFFERS: Final = 1 << 22
# Kinds from here on are no messages of ours nor of a later version, which the member would pass over: they are garbage.
MAX_KINDS: Final = 64

Buffer = bytes | memoryview
Allocate = Callable[[int], memoryview]


class Frame:
    """One message as it came in: header fields, the unopened body, its buffers.

    ``buffers`` is in pickle order; an entry is None while it lies in a segment, and ``segment_lengths`` then tells the
    sizes of those, so that the peer, who has the descriptor, can map and fill them in. ``attached`` says which ones are
    descriptors, which the peer has as well.
    """

    __slots__ = (
        "attached",
        "body",
        "buffers",
        "claims",
        "descriptor",
        "descriptors",
        "error",
        "flags",
        "kind",
        "ref",
        "request",
        "segment_lengths",
        "whence",
    )

    def __init__(
        self, kind: int, flags: int, descriptors: int, request: int, whence: int, ref: int, body: Buffer
    ) -> None:
        self.kind = kind
        self.flags = flags
        self.descriptors = descriptors
        self.request = request
        self.whence = whence
        self.ref = ref
        self.body = body
        self.buffers: Sequence[memoryview | None] = ()
        self.segment_lengths: Sequence[int] = ()
        self.attached: Sequence[int] = ()
        self.claims: object = None  # on the references in it; they live until it is opened
        self.descriptor = -1  # that came along; whoever acts on the message owns it
        self.error: BaseException | None = None  # why the payload cannot be opened, when that is known already

    def raise_error(self) -> None:
        """Raise the reason why the payload cannot be opened, if one is known.

        Only once: the two would keep each other, and the references in the message, until a garbage collection.
        """
        error, self.error = self.error, None
        if error is not None:
            try:
                raise error
            finally:
                del error

    @property
    def rrid(self) -> RRID:
        """The reference that this message is about."""
        return RRID(self.whence, self.ref)

    def __repr__(self) -> str:
        return (
            f"Frame(kind={self.kind}, flags={self.flags}, request={self.request}, ref=({self.whence}, {self.ref}), "
            f"{len(self.body)} bytes, {len(self.buffers)} buffers)"
        )


def encode(
    kind: int,
    flags: int,
    request: int,
    whence: int,
    ref: int,
    body: Buffer = b"",
    buffers: Sequence[memoryview] = (),
    in_segment: Sequence[bool] = (),
    descriptors: int = 0,
    attached: Sequence[int] = (),
) -> list[Buffer]:
    """Return the pieces of one frame, in order, ready for a gathering send; large pieces are not copied.

    ``in_segment[i]`` says that buffer i travels in the segment whose descriptor the caller sends along with these
    bytes; ``attached`` names the buffers in whose place it sends descriptors, after that of the segment;
    ``descriptors`` says how many it sends along in a frame without buffers.

    >>> b"".join(encode(5, 0, 1, 0, 0, b"abc"))[-3:]
    b'abc'
    """
    if not buffers:
        head = HEADER.pack(kind, flags, descriptors, 0, request, whence, ref, len(body))
        # One small copy is cheaper than a second entry in the kernel's gather list.
        return [head + body] if len(body) < 4096 else [head, body]
    shared = in_segment or [False] * len(buffers)
    head = HEADER.pack(kind, flags, int(any(shared)) + len(attached), len(buffers), request, whence, ref, len(body))
    lengths = [view.nbytes | IN_SEGMENT if away else view.nbytes for view, away in zip(buffers, shared, strict=True)]
    if attached:
        shared = list(shared)
        for index in attached:
            lengths[index], shared[index] = IS_DESCRIPTOR, True
    table = struct.pack(f"<{len(lengths)}Q", *lengths)
    inline = [view for view, away in zip(buffers, shared, strict=True) if not away and view.nbytes]
    return [head + table + body if len(body) < 4096 else head + table, *([] if len(body) < 4096 else [body]), *inline]


def _plain_memory(length: int) -> memoryview:
    return memoryview(bytearray(length))


def _reserve(allocate: Allocate, length: int) -> memoryview:
    """Return memory for a part of a message; that there is so little is the fault of whoever sends so much."""
    try:
        return allocate(length)
    except (MemoryError, OSError, OverflowError, ValueError) as error:
        raise RemoteProtocolError(f"there is no memory for {length} bytes of a message") from error


class FrameParser:
    """Turns the bytes of one stream into frames.

    ``destination()`` says where the next bytes go; ``received(n)`` says how many came and returns the frames that they
    completed. Between the two the transport reads; there is no other copy of large data. ``allocate`` gives the memory
    for each large buffer.

    >>> parser = FrameParser()
    >>> data = b"".join(encode(5, 0, 42, 0, 0, b"payload"))
    >>> parser.destination()[: len(data)] = data
    >>> [frame.body for frame in parser.received(len(data))]
    [b'payload']
    """

    __slots__ = ("_allocate", "_buffer", "_end", "_large", "_start", "_view")

    def __init__(self, allocate: Allocate = _plain_memory) -> None:
        self._allocate = allocate
        self._buffer = bytearray(SHARED_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0  # the first byte in the shared buffer that no frame has used
        self._end = 0  # the end of what was received into it
        self._large: _LargeFrame | None = None  # a frame that gets memory of its own, while it arrives

    @property
    def is_between_frames(self) -> bool:
        """True when the stream may end here without cutting a message in two."""
        return self._large is None and self._start == self._end

    def destination(self) -> memoryview:
        """Return the memory that the next bytes of the stream must be read into; never empty."""
        if self._large is not None:
            return self._large.destination()
        if self._start:
            self._compact()
        return self._view[self._end :]

    def _compact(self) -> None:
        rest = self._end - self._start
        if rest:
            self._buffer[:rest] = self._buffer[self._start : self._end]
        self._start, self._end = 0, rest

    def received(self, count: int) -> list[Frame]:
        """Take note of ``count`` bytes that were read into ``destination()``; return the frames they completed.

        Raises RemoteProtocolError when the bytes are no frames of ours; the connection is of no use any more then.
        """
        frames: list[Frame] = []
        if self._large is None:
            self._end += count
        else:
            self._large.filled(count)
            if not self._finish_large(frames):
                return frames
        self._cut(frames)
        return frames

    def _cut(self, frames: list[Frame]) -> None:
        start, end, view, size = self._start, self._end, self._view, HEADER.size
        while end - start >= size:
            kind, flags, descriptors, count, request, whence, ref, length = HEADER.unpack_from(view, start)
            if not 0 < kind < MAX_KINDS:
                raise RemoteProtocolError(f"no kind of message: {kind}")
            if count or length > SHARED_BUFFER_BYTES - size:
                self._start = start
                if not self._begin_large(frames):
                    return
                start = self._start
                continue
            stop = start + size + length
            if stop > end:
                break
            frames.append(Frame(kind, flags, descriptors, request, whence, ref, bytes(view[start + size : stop])))
            start = stop
        self._start = start

    def _begin_large(self, frames: list[Frame]) -> bool:
        """Give the frame at the start of the buffer memory of its own, and move into it what has already come.

        Returns whether that was all of it.
        """
        header = HEADER.unpack_from(self._view, self._start)
        self._start += HEADER.size
        self._large = _LargeFrame(self._allocate, *header)
        while self._start < self._end and not self._large.is_complete:
            target = self._large.destination()
            count = min(target.nbytes, self._end - self._start)
            target[:count] = self._view[self._start : self._start + count]
            self._start += count
            self._large.filled(count)
        return self._finish_large(frames)

    def _finish_large(self, frames: list[Frame]) -> bool:
        if self._large is None or not self._large.is_complete:
            return False
        frames.append(self._large.frame())
        self._large = None
        return True


class _LargeFrame:
    """A frame on its way in whose table, body and buffers each have a place of their own."""

    __slots__ = ("_allocate", "_body", "_filled", "_header", "_inline", "_lengths", "_table", "_waiting")

    def __init__(
        self,
        allocate: Allocate,
        kind: int,
        flags: int,
        descriptors: int,
        count: int,
        request: int,
        whence: int,
        ref: int,
        length: int,
    ) -> None:
        if length > MAX_LENGTH or count > MAX_BUFFERS:
            raise RemoteProtocolError(f"a message of {length} bytes with {count} buffers is beyond all limits")
        self._allocate = allocate
        self._header = (kind, flags, descriptors, request, whence, ref)
        self._table = memoryview(bytearray(8 * count))
        self._body = _reserve(_plain_memory, length)
        self._lengths: Sequence[int] = ()
        self._inline: list[memoryview] = []
        # The places still to fill, last one first; the buffers join when the table has told their sizes.
        self._waiting = [place for place in (self._body, self._table) if place.nbytes]
        self._filled = 0  # bytes already in the place that is being filled
        if not count:
            self._table = memoryview(b"")

    @property
    def is_complete(self) -> bool:
        return not self._waiting

    def destination(self) -> memoryview:
        return self._waiting[-1][self._filled :]

    def filled(self, count: int) -> None:
        self._filled += count
        place = self._waiting[-1]
        if self._filled < place.nbytes:
            return
        self._waiting.pop()
        self._filled = 0
        if place is self._table:
            self._read_table()

    def _read_table(self) -> None:
        self._lengths = struct.unpack(f"<{self._table.nbytes // 8}Q", self._table)
        for length in self._lengths:
            if length & ~IN_SEGMENT > MAX_LENGTH and length != IS_DESCRIPTOR:
                raise RemoteProtocolError(f"a buffer of {length & ~IN_SEGMENT} bytes is beyond all limits")
        self._inline = [_reserve(self._allocate, length) for length in self._lengths if length <= MAX_LENGTH]
        self._waiting[:0] = [place for place in reversed(self._inline) if place.nbytes]

    def frame(self) -> Frame:
        frame = Frame(*self._header, self._body)
        inline = iter(self._inline)
        frame.buffers = [next(inline) if length <= MAX_LENGTH else None for length in self._lengths]
        frame.segment_lengths = [length & ~IN_SEGMENT for length in self._lengths if length & IN_SEGMENT]
        frame.attached = [index for index, length in enumerate(self._lengths) if length == IS_DESCRIPTOR]
        return frame
