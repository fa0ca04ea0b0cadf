"""A connection with another one at its other end: order, large data both ways, descriptors, and the end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

import pytest

from distpool import messages as m
from distpool.peer import OUTBOX_BYTES, Peer, Reply
from distpool.pickling import Parcel, dump, load
from distpool.segments import THRESHOLD, Segment
from distpool.transport import Deadline, Reader, Waiter
from distpool.wire import HEADER, Frame

WAIT = 30  # seconds; a limit for what should take none


class NoReferences:
    """For messages without references."""

    def announce(self, claims: Sequence[object], pid: int) -> None:
        raise AssertionError("no reference is sent here")

    def received(self, table: Sequence[tuple[int, int, int]]) -> object:
        raise AssertionError("no reference is sent here")

    def opening(self) -> AbstractContextManager[None]:
        return nullcontext()


class End:
    """One end: a peer, and what it has received."""

    def __init__(self, pid: int, stream: socket.socket, reader: Reader) -> None:
        self.frames: list[Frame] = []
        self.lost: list[Peer] = []
        self.reader = reader
        self.arrival = Waiter()
        self.fault: Exception | None = None
        self.peer = Peer(pid, stream, reader, self._receive, self._lost, NoReferences())

    def _receive(self, peer: Peer, frame: Frame) -> None:
        if self.fault is not None:
            raise self.fault
        self.frames.append(frame)
        if frame.kind == m.RESULT and frame.request in peer.pending:
            peer.pending.pop(frame.request).arrived(frame)
        self.arrival.complete()

    def _lost(self, peer: Peer) -> None:
        self.lost.append(peer)
        self.arrival.complete()

    def wait_for(self, reached: Callable[[], object]) -> None:
        """Reads until it is so."""
        while True:
            self.arrival.done = False
            if reached():
                return
            assert self.reader.wait(self.arrival, Deadline(WAIT)), "nothing came"

    def wait_for_frames(self, count: int) -> list[Frame]:
        """Reads until so many messages have come."""
        self.wait_for(lambda: len(self.frames) >= count)
        return self.frames


@pytest.fixture
def reader() -> Iterator[Reader]:
    """One reader for both ends."""
    reader = Reader()
    yield reader
    reader.close()


@pytest.fixture
def ends(reader: Reader) -> Iterator[tuple[End, End]]:
    """Two connected peers."""
    near, far = socket.socketpair()
    both = End(2, near, reader), End(1, far, reader)
    yield both
    for end in both:
        end.peer.close()


@pytest.fixture
def mute(reader: Reader) -> Iterator[tuple[End, socket.socket]]:
    """A peer, and a bare socket at the other end that reads only when told."""
    near, far = socket.socketpair()
    end = End(2, near, reader)
    yield end, far
    end.peer.close()
    far.close()


def big(size: int) -> tuple[bytearray, Parcel]:
    """An object of that size and its parcel, which holds it as an out-of-band buffer."""
    import numpy as np

    data = bytearray(os.urandom(1024) * (size // 1024))
    return data, dump(np.frombuffer(data, dtype=np.uint8))


def read_all(stream: socket.socket, count: int) -> bytes:
    """Reads so many bytes from a bare socket."""
    stream.settimeout(WAIT)
    parts: list[bytes] = []
    while count:
        parts.append(stream.recv(min(count, 1 << 20)))
        assert parts[-1], "the stream ended"
        count -= len(parts[-1])
    return b"".join(parts)


# -- sending and receiving ------------------------------------------------------------------------


def test_message_arrives_with_all_its_fields(ends: tuple[End, End]) -> None:
    """Header and body."""
    near, far = ends
    assert near.peer.send(m.REF, 4, 5, 6, 7, b"body")
    (frame,) = far.wait_for_frames(1)
    assert (frame.kind, frame.flags, frame.request, frame.whence, frame.ref) == (m.REF, 4, 5, 6, 7)
    assert frame.body == b"body"


def test_messages_keep_their_order(ends: tuple[End, End]) -> None:
    """Small ones, large ones, and ones with buffers, mixed, from one thread."""
    near, far = ends
    _, parcel = big(300_000)
    for number in range(300):
        if number % 50 == 7:
            near.peer.send_parcel(m.DO, parcel, request=number)
        else:
            near.peer.send(m.DO, request=number, body=b"x" * (number * 40))
    frames = far.wait_for_frames(300)
    assert [frame.request for frame in frames] == list(range(300))


def test_messages_of_many_threads_are_not_mixed(ends: tuple[End, End]) -> None:
    """Each arrives whole, and those of one thread in order."""
    near, far = ends

    def talk(who: int) -> None:
        for number in range(200):
            near.peer.send(m.DO, request=number, whence=who, body=bytes([who]) * (number * 37))

    threads = [threading.Thread(target=talk, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    frames = far.wait_for_frames(800)
    for thread in threads:
        thread.join()
    for who in range(4):
        own = [frame for frame in frames if frame.whence == who]
        assert [frame.request for frame in own] == list(range(200))
        assert all(frame.body == bytes([who]) * (frame.request * 37) for frame in own)


def test_buffers_arrive_and_are_writable(ends: tuple[End, End]) -> None:
    """An array opens over the memory that it was received into."""
    near, far = ends
    data, parcel = big(5 << 20)
    near.peer.send_parcel(m.RESULT, parcel)
    (frame,) = far.wait_for_frames(1)
    array = load(frame.body, frame.buffers)  # type: ignore[arg-type]  # none lies in a segment
    assert array.tobytes() == data
    array[0] = 1


def test_send_does_not_block_while_the_other_side_does_not_read(mute: tuple[End, socket.socket]) -> None:
    """What the socket does not take stays in the outbox, and leaves in order when there is room."""
    end, far = mute
    body = bytes(range(256)) * 4096  # 1 MiB
    for number in range(20):
        assert end.peer.send(m.DO, request=number, body=body)
    assert end.peer.has_unsent
    assert "20" not in repr(end.peer)
    received = read_all(far, 20 * (HEADER.size + len(body)))
    step = HEADER.size + len(body)
    for number in range(20):
        piece = received[number * step : (number + 1) * step]
        assert HEADER.unpack_from(piece)[4] == number
        assert piece[HEADER.size :] == body
    waiter = Waiter()
    end.reader.call_later(0, lambda: waiter.complete())
    end.reader.wait(waiter)
    assert not end.peer.has_unsent


def test_both_sides_send_much_at_once(ends: tuple[End, End]) -> None:
    """50 MB each way at the same time: neither waits for the other."""
    payloads = [big(50_000_000) for _ in ends]
    for end, (_, parcel) in zip(ends, payloads, strict=True):
        end.peer.send_parcel(m.RESULT, parcel)
    for end, (data, _) in zip(ends, reversed(payloads), strict=True):
        (frame,) = end.wait_for_frames(1)
        assert load(frame.body, frame.buffers).tobytes() == data  # type: ignore[arg-type]  # none lies in a segment


def test_wait_for_room_returns_when_there_is_room(mute: tuple[End, socket.socket]) -> None:
    """A fast caller waits while very much is unsent, and goes on when the other side reads."""
    end, far = mute
    body = b"x" * (2 * OUTBOX_BYTES)
    end.peer.wait_for_room()
    end.peer.send(m.DO, body=body)
    waiting = threading.Thread(target=end.peer.wait_for_room)
    waiting.start()
    waiting.join(0.02)
    assert waiting.is_alive()
    read_all(far, HEADER.size + len(body))
    waiting.join(WAIT)
    assert not waiting.is_alive()


def test_close_wakes_who_waits_for_room(mute: tuple[End, socket.socket]) -> None:
    """There will be none."""
    end, _ = mute
    end.peer.send(m.DO, body=b"x" * (2 * OUTBOX_BYTES))
    waiting = threading.Thread(target=end.peer.wait_for_room)
    waiting.start()
    end.peer.close()
    waiting.join(WAIT)
    assert not waiting.is_alive()


# -- descriptors ----------------------------------------------------------------------------------


def test_segment_is_mapped_at_the_other_side(ends: tuple[End, End]) -> None:
    """Large buffers come by descriptor, small ones in the stream; no descriptor stays open."""
    near, far = ends
    data, parcel = big(THRESHOLD * 2)
    before = len(os.listdir("/proc/self/fd"))
    with Segment.store(parcel.buffers) as segment:
        for _ in range(5):
            near.peer.send_parcel(m.FUNCTION, parcel, segment=segment)
    for frame in far.wait_for_frames(5):
        assert len(frame.body) < 1000
        assert load(frame.body, frame.buffers).tobytes() == data  # type: ignore[arg-type]  # mapped
        assert frame.error is None
    assert len(os.listdir("/proc/self/fd")) == before


def test_segment_without_its_descriptor_is_an_error_of_that_message(mute: tuple[End, socket.socket]) -> None:
    """Kept for whoever opens it; the next message is as good as ever."""
    end, far = mute
    far.sendall(HEADER.pack(m.RESULT, 0, 1, 1, 1, 0, 0, 0) + (100 | 1 << 63).to_bytes(8, "little"))
    far.sendall(HEADER.pack(m.RESULT, 0, 0, 0, 2, 0, 0, 0))
    first, second = end.wait_for_frames(2)
    assert first.error is not None
    assert second.error is None


def test_descriptor_travels(ends: tuple[End, End]) -> None:
    """A pipe's end sent along is the same pipe."""
    near, far = ends
    read_end, write_end = os.pipe()
    assert near.peer.send_descriptor(m.NEIGHBOUR, 3, write_end)
    (frame,) = far.wait_for_frames(1)
    os.write(frame.descriptor, b"through")
    os.close(frame.descriptor)
    assert os.read(read_end, 100) == b"through"
    os.close(read_end)


def test_descriptor_for_a_closed_connection_is_closed(ends: tuple[End, End]) -> None:
    """It is given away in any case."""
    near, _ = ends
    near.peer.close()
    read_end, write_end = os.pipe()
    assert not near.peer.send_descriptor(m.NEIGHBOUR, 3, write_end)
    assert os.read(read_end, 1) == b""
    os.close(read_end)


def test_descriptors_nobody_claimed_are_closed(reader: Reader) -> None:
    """With the connection: they came with a message that never became complete."""
    near, far = socket.socketpair()
    end = End(2, near, reader)
    read_end, write_end = os.pipe()
    socket.send_fds(far, [b"half a header"], [write_end])
    os.close(write_end)
    far.close()
    end.wait_for(lambda: end.lost)
    end.peer.close()
    assert os.read(read_end, 1) == b""
    os.close(read_end)


# -- the end --------------------------------------------------------------------------------------


def test_end_of_stream_is_told_once(ends: tuple[End, End]) -> None:
    """After everything that came before it."""
    near, far = ends
    near.peer.send(m.DO, request=1, body=b"x" * 300_000)
    far_frames = far.wait_for_frames(1)
    near.peer.send(m.DO, request=2)
    near.peer.close()
    far.wait_for(lambda: far.lost)
    assert [frame.request for frame in far_frames] == [1, 2]
    assert far.lost == [far.peer]
    far.peer.on_readable()
    assert far.lost == [far.peer]


def test_garbage_ends_the_stream(mute: tuple[End, socket.socket]) -> None:
    """What comes after it is not looked at any more."""
    end, far = mute
    far.sendall(bytes(HEADER.size) + HEADER.pack(m.DO, 0, 0, 0, 1, 0, 0, 0))
    end.wait_for(lambda: end.lost)
    far.sendall(HEADER.pack(m.DO, 0, 0, 0, 2, 0, 0, 0))
    assert not end.peer.has_input
    end.peer.on_readable()
    assert end.frames == []


def test_fault_in_an_action_ends_that_stream_only(
    ends: tuple[End, End], mute: tuple[End, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported; whoever waits for that process is told; other connections live."""
    reported: list[BaseException | None] = []
    near, far = ends

    def report(args: threading.ExceptHookArgs) -> None:
        reported.append(args.exc_value)
        far.arrival.complete()  # it comes after the loss

    monkeypatch.setattr(threading, "excepthook", report)
    far.fault = RuntimeError("a fault of ours")
    near.peer.send(m.DO)
    far.wait_for(lambda: far.lost and reported)
    assert reported == [far.fault]
    end, other = mute
    other.sendall(HEADER.pack(m.DO, 0, 0, 0, 1, 0, 0, 0))
    end.wait_for_frames(1)


def test_send_after_close_says_so(ends: tuple[End, End]) -> None:
    """False, and no exception."""
    near, _ = ends
    near.peer.close()
    near.peer.close()  # harmless to repeat
    assert not near.peer.send(m.DO)
    near.peer.on_writable()
    assert "closed" in repr(near.peer)


def test_send_to_a_side_that_is_gone_is_silent(mute: tuple[End, socket.socket]) -> None:
    """The end of the stream is found by the reader; small and large messages alike."""
    end, far = mute
    far.close()
    for size in (1, 5000, 3 << 20):
        end.peer.send(m.DO, body=b"x" * size)
    end.wait_for(lambda: end.lost)
    assert not end.peer.has_unsent


def test_pending_calls_fail_each_with_its_own_error(ends: tuple[End, End]) -> None:
    """All waiters wake."""
    near, _ = ends
    replies = [Reply() for _ in range(3)]
    for reply in replies:
        near.peer.pending[near.peer.next_request()] = reply
    near.peer.fail_pending(lambda: ConnectionError("gone"))
    assert not near.peer.pending
    assert len({id(reply.error) for reply in replies}) == 3
    for reply in replies:
        assert near.reader.wait(reply, Deadline(0))


def test_reply_keeps_the_answer(ends: tuple[End, End]) -> None:
    """Unopened, for the thread that waits."""
    near, far = ends
    reply = Reply()
    near.peer.pending[1] = reply
    far.peer.send(m.RESULT, request=1, body=b"the answer")
    assert near.reader.wait(reply, Deadline(WAIT))
    assert reply.frame is not None
    assert reply.frame.body == b"the answer"


def test_interrupt_while_sending_cuts_no_message(mute: tuple[End, socket.socket]) -> None:
    """A SIGINT that raises amid a large message: it is sent whole or not at all, and the next one is understood."""
    end, far = mute
    body = os.urandom(1 << 20)
    received = bytearray()
    reading = threading.Thread(target=lambda: read_to_end(far, received))
    reading.start()
    is_sending, interrupts = False, 0

    def handler(*_: object) -> None:
        nonlocal is_sending, interrupts
        if is_sending:
            is_sending, interrupts = False, interrupts + 1
            raise KeyboardInterrupt

    stop = threading.Event()
    hitting = threading.Thread(target=lambda: hit(stop, lambda: is_sending))
    before = signal.signal(signal.SIGINT, handler)
    hitting.start()
    try:
        for number in range(3000):
            if interrupts >= 5:
                break
            with suppress(KeyboardInterrupt):
                is_sending = True
                end.peer.send(m.DO, request=number, body=body)
                is_sending = False
            end.peer.wait_for_room()
    finally:
        stop.set()
        hitting.join()
        signal.signal(signal.SIGINT, before)
    while end.peer.has_unsent:
        end.reader.wait(Waiter(), Deadline(0.01))
    end.peer.close()
    reading.join(WAIT)
    step = HEADER.size + len(body)
    numbers = [HEADER.unpack_from(received, start)[4] for start in range(0, len(received), step)]
    assert len(received) % step == 0
    assert numbers == sorted(set(numbers))
    assert all(received[start + HEADER.size : start + step] == body for start in range(0, len(received), step))
    assert interrupts


def hit(stop: threading.Event, is_time: Callable[[], bool]) -> None:
    """Sends SIGINT to this process, again and again, when it is time."""
    while not stop.wait(0.0003):
        if is_time():
            os.kill(os.getpid(), signal.SIGINT)


def read_to_end(stream: socket.socket, received: bytearray) -> None:
    """Reads all that comes on a bare socket."""
    stream.settimeout(WAIT)
    while data := stream.recv(1 << 20):
        received += data
