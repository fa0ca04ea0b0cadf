"""Frames: the same messages come out however the bytes were cut, and garbage is the peer's fault and nothing worse."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distpool.errors import RemoteProtocolError
from distpool.messages import CALL_FETCH, LAST_KIND, RESULT, RRID
from distpool.wire import (
    HEADER,
    IN_SEGMENT,
    MAX_BUFFERS,
    MAX_KINDS,
    MAX_LENGTH,
    SHARED_BUFFER_BYTES,
    Frame,
    FrameParser,
    encode,
)

BIG = 2**64 - 1


def feed(parser: FrameParser, data: bytes, cuts: Iterator[int] | None = None) -> list[Frame]:
    """Reads the bytes as a transport does: where the parser says, in pieces of the given sizes."""
    frames: list[Frame] = []
    rest = memoryview(data)
    while rest:
        place = parser.destination()
        assert place.nbytes, "there must be room for what comes"
        count = min(place.nbytes, len(rest), next(cuts) if cuts is not None else len(rest))
        place[:count] = rest[:count]
        frames += parser.received(count)
        rest = rest[count:]
    return frames


def joined(*pieces: Sequence[bytes | memoryview]) -> bytes:
    """The bytes of some frames."""
    return b"".join(bytes(piece) for frame in pieces for piece in frame)


def fields(frame: Frame) -> tuple[object, ...]:
    """All that a frame carries, comparable."""
    buffers = [None if view is None else bytes(view) for view in frame.buffers]
    header = (frame.kind, frame.flags, frame.descriptors, frame.request, frame.whence, frame.ref)
    return (*header, bytes(frame.body), buffers, list(frame.segment_lengths))


def forever(size: int) -> Iterator[int]:
    """Pieces of one size."""
    while True:
        yield size


SAMPLES = [
    encode(CALL_FETCH, 0, 1, 0, 0, b"a small body"),
    encode(RESULT, 255, BIG, BIG, BIG),
    encode(RESULT, 0, 2, 0, 0, b"", [memoryview(b"")]),
    encode(RESULT, 0, 3, 1, 2, b"body", [memoryview(b"one"), memoryview(b""), memoryview(b"three")]),
    encode(RESULT, 0, 4, 0, 0, b"x" * 5000, [memoryview(bytes(range(256)) * 20)]),
    encode(RESULT, 0, 5, 0, 0, b"s", [memoryview(b"inline"), memoryview(b"shared")], [False, True]),
    encode(RESULT, 0, 6, 0, 0, b"y" * (SHARED_BUFFER_BYTES + 1)),
    encode(RESULT, 0, 7, 0, 0, b"z" * (SHARED_BUFFER_BYTES - HEADER.size)),
    encode(CALL_FETCH, 0, 8, 0, 0, b"w" * 100_000),
]


@pytest.mark.parametrize("sample", SAMPLES)
def test_whole(sample: list[bytes | memoryview]) -> None:
    """One frame in one piece comes out, and nothing is left."""
    parser = FrameParser()
    assert len(feed(parser, joined(sample))) == 1
    assert parser.is_between_frames


@pytest.mark.parametrize("sample", [sample for sample in SAMPLES if len(joined(sample)) < 20_000])
def test_byte_by_byte(sample: list[bytes | memoryview]) -> None:
    """The last byte completes it, no earlier one."""
    parser = FrameParser()
    data = joined(sample)
    assert feed(parser, data[:-1], forever(1)) == []
    assert not parser.is_between_frames
    frames = feed(parser, data[-1:])
    assert [fields(frame) for frame in frames] == [fields(frame) for frame in feed(FrameParser(), data)]


@pytest.mark.parametrize("sample", SAMPLES)
def test_with_the_beginning_of_the_next_behind_it(sample: list[bytes | memoryview]) -> None:
    """What follows stays until it is complete."""
    parser = FrameParser()
    after = joined(SAMPLES[0])
    assert len(feed(parser, joined(sample) + after[:-1])) == 1
    assert not parser.is_between_frames
    (frame,) = feed(parser, after[-1:])
    assert frame.body == b"a small body"


def test_all_samples_in_one_piece() -> None:
    """In order, small and large ones mixed."""
    frames = feed(FrameParser(), joined(*SAMPLES))
    assert [frame.request for frame in frames] == [1, BIG, 2, 3, 4, 5, 6, 7, 8]


@given(st.lists(st.sampled_from(SAMPLES[:6]), max_size=8), st.lists(st.integers(1, 3000), min_size=1))
def test_cut_anywhere(samples: list[list[bytes | memoryview]], sizes: list[int]) -> None:
    """The same frames come out, in order, whatever one read brings."""
    data = joined(*samples)

    def cuts() -> Iterator[int]:
        while True:
            yield from sizes

    expected = [fields(frame) for sample in samples for frame in feed(FrameParser(), joined(sample))]
    assert [fields(frame) for frame in feed(FrameParser(), data, cuts())] == expected


@given(
    st.integers(1, LAST_KIND),
    st.integers(0, 255),
    *[st.integers(0, BIG)] * 3,
    st.binary(max_size=200),
    st.lists(st.binary(max_size=50), max_size=5),
    st.data(),
)
def test_round_trip(
    kind: int, flags: int, request: int, whence: int, ref: int, body: bytes, contents: list[bytes], data: st.DataObject
) -> None:
    """Every header field in its full width, body and buffers arrive as they were sent; those in segments by length."""
    away = data.draw(st.lists(st.booleans(), min_size=len(contents), max_size=len(contents)))
    sent = encode(kind, flags, request, whence, ref, body, [memoryview(c) for c in contents], away)
    (frame,) = feed(FrameParser(), joined(sent))
    assert (frame.kind, frame.flags, frame.request, frame.rrid) == (kind, flags, request, RRID(whence, ref))
    assert frame.body == body
    here = [content for content, is_away in zip(contents, away, strict=True) if not is_away]
    assert [bytes(view) for view in frame.buffers if view is not None] == here
    assert [view is None for view in frame.buffers] == away
    assert list(frame.segment_lengths) == [len(c) for c, is_away in zip(contents, away, strict=True) if is_away]
    assert frame.descriptors == int(any(away))


@given(st.binary(min_size=1, max_size=300), st.lists(st.integers(1, 50), min_size=1))
def test_garbage_is_a_remote_protocol_error_or_waits_for_more(data: bytes, sizes: list[int]) -> None:
    """And nothing else."""

    def cuts() -> Iterator[int]:
        while True:
            yield from sizes

    with contextlib.suppress(RemoteProtocolError):
        feed(FrameParser(no_memory), data, cuts())


def no_memory(length: int) -> memoryview:
    """Refuses what no test should really allocate."""
    if length > 1 << 20:
        raise MemoryError
    return memoryview(bytearray(length))


@pytest.mark.parametrize("kind", [0, MAX_KINDS, 255])
@pytest.mark.parametrize("length", [0, 10, SHARED_BUFFER_BYTES])
def test_no_kind_of_message_is_refused_however_it_is_cut(kind: int, length: int) -> None:
    """Complete, incomplete and large alike, as soon as the header is there."""
    with pytest.raises(RemoteProtocolError, match="kind"):
        feed(FrameParser(), HEADER.pack(kind, 0, 0, 0, 0, 0, 0, length) + bytes(min(length, 5)))


@pytest.mark.parametrize("cut", [1, 1000])
def test_kind_of_a_later_version_is_let_through(cut: int) -> None:
    """The member passes over it; the frames behind it count."""
    unknown = encode(LAST_KIND + 1, 0, 1, 0, 0, b"news")
    frames = feed(FrameParser(), joined(unknown, SAMPLES[0]), forever(cut))
    assert [frame.kind for frame in frames] == [LAST_KIND + 1, CALL_FETCH]


def test_length_beyond_all_limits_is_refused() -> None:
    """Before any memory is asked for."""
    with pytest.raises(RemoteProtocolError, match="beyond all limits"):
        feed(FrameParser(), HEADER.pack(RESULT, 0, 0, 0, 0, 0, 0, MAX_LENGTH + 1))


def test_number_of_buffers_beyond_all_limits_is_refused() -> None:
    """Likewise."""
    with pytest.raises(RemoteProtocolError, match="beyond all limits"):
        feed(FrameParser(), HEADER.pack(RESULT, 0, 0, MAX_BUFFERS + 1, 0, 0, 0, 0))


@pytest.mark.parametrize("bit", [0, IN_SEGMENT])
def test_buffer_beyond_all_limits_is_refused(bit: int) -> None:
    """Also one that is said to lie in a segment."""
    table = struct.pack("<Q", (MAX_LENGTH + 1) | bit)
    with pytest.raises(RemoteProtocolError, match="beyond all limits"):
        feed(FrameParser(), HEADER.pack(RESULT, 0, 0, 1, 0, 0, 0, 0) + table)


@pytest.mark.parametrize("fault", [MemoryError, OSError, OverflowError, ValueError])
def test_no_memory_for_a_buffer_is_the_senders_fault(fault: type[Exception]) -> None:
    """Whatever the allocation raises becomes our error, with its cause."""

    def refuse(length: int) -> memoryview:
        raise fault

    with pytest.raises(RemoteProtocolError, match="no memory") as caught:
        feed(FrameParser(refuse), joined(SAMPLES[4]))
    assert isinstance(caught.value.__cause__, fault)


def test_lengths_have_64_bits() -> None:
    """A buffer of more than 4 GiB in a segment is announced in full."""
    table = struct.pack("<QQ", (5 << 30) | IN_SEGMENT, 3)
    header = HEADER.pack(RESULT, 0, 1, 2, 0, 0, 0, 0)
    (frame,) = feed(FrameParser(), header + table + b"abc")
    assert list(frame.segment_lengths) == [5 << 30]
    assert [view and bytes(view) for view in frame.buffers] == [None, b"abc"]


def test_large_buffer_is_read_straight_into_its_place() -> None:
    """Once the table is read, the transport gets the buffer's own memory: no other copy is made."""
    places: list[memoryview] = []

    def allocate(length: int) -> memoryview:
        places.append(memoryview(bytearray(length)))
        return places[-1]

    content = bytes(range(256)) * 8192  # 2 MiB
    data = joined(encode(RESULT, 0, 1, 0, 0, b"body", [memoryview(content)]))
    parser = FrameParser(allocate)
    start = len(data) - len(content)
    assert feed(parser, data[:start]) == []
    target = parser.destination()
    assert target.nbytes == len(content)
    target[:1] = b"!"
    assert places[0][:1] == b"!"
    (frame,) = feed(parser, content)
    (view,) = frame.buffers
    assert view is places[0]
    assert view == content


def test_large_body_is_read_straight_into_its_place() -> None:
    """A body that does not fit the shared buffer likewise gets memory of its own."""
    body = b"b" * (4 * SHARED_BUFFER_BYTES)
    parser = FrameParser()
    data = joined(encode(RESULT, 0, 1, 0, 0, body))
    feed(parser, data[: HEADER.size])
    assert parser.destination().nbytes == len(body)
    (frame,) = feed(parser, data[HEADER.size :])
    assert frame.body == body


def test_body_of_a_small_frame_outlives_the_shared_buffer() -> None:
    """It is a copy: what comes later does not change it."""
    parser = FrameParser()
    (first,) = feed(parser, joined(SAMPLES[0]))
    feed(parser, joined(encode(RESULT, 0, 9, 0, 0, b"X" * 200_000)))
    assert first.body == b"a small body"


def test_thousands_of_small_frames_with_buffers_in_one_read() -> None:
    """As many as the shared buffer holds: their number does not meet the recursion limit."""
    one = joined(encode(RESULT, 0, 1, 0, 0, b"", [memoryview(b"tiny")]))
    count = SHARED_BUFFER_BYTES // len(one)
    assert len(feed(FrameParser(), one * count)) == count


def test_small_message_is_one_piece() -> None:
    """One small copy is cheaper than a gather list; large pieces are not copied."""
    assert len(encode(RESULT, 0, 1, 0, 0, b"x" * 4000)) == 1
    body = b"x" * 5000
    assert encode(RESULT, 0, 1, 0, 0, body)[1] is body
    view = memoryview(b"y" * 10)
    assert encode(RESULT, 0, 1, 0, 0, b"", [view])[1] is view


def test_repr_of_a_frame_tells_its_header() -> None:
    """For whoever debugs."""
    (frame,) = feed(FrameParser(), joined(SAMPLES[3]))
    assert repr(frame) == "Frame(kind=5, flags=0, request=3, ref=(1, 2), 4 bytes, 3 buffers)"
