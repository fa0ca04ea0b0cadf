"""Connections over streams of any kind: the handshake on them, and the socket that stands for them."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

import distpool
from distpool import streams
from distpool.errors import HandshakeError
from distpool.handshake import Handshake
from distpool.messages import RESULT
from distpool.tcp import ProvedSocket
from distpool.transport import Deadline
from distpool.wire import HEADER, IN_SEGMENT, encode
from support import jobs
from support.leaks import eventually
from support.memory import MemoryStream, crossed
from support.secrecy import OverSsl, encrypted_pair

FRAME = b"".join(encode(RESULT, 0, 7, 0, 0, b"a body"))
EMPTY = b"".join(encode(RESULT, 0, 8, 0, 0))
LARGE = b"".join(encode(RESULT, 0, 9, 0, 0, b"b" * 5000, [memoryview(b"c" * 600_000), memoryview(b"d")]))


def read_all(stream: socket.socket, count: int) -> bytes:
    stream.settimeout(30)
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def write_all(stream: MemoryStream, data: bytes) -> None:
    while data:
        data = data[stream.write(data) :]


@contextmanager
def carried(reading: Any, writing: Any) -> Iterator[socket.socket]:
    stream = streams.carry(reading, writing)
    try:
        yield stream
    finally:
        stream.close()
        eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("distpool stream")])


@pytest.mark.parametrize("most", [None, 1000, 7, 1])
def test_frames_come_in(most: int | None) -> None:
    """Whether read returns all that was asked for, or some of it: every frame arrives whole, and at once."""
    incoming, outgoing = MemoryStream(most), MemoryStream()
    with carried(incoming, outgoing) as stream:
        for data in (FRAME, EMPTY, LARGE if most != 1 else FRAME, FRAME):
            write_all(incoming, data)
            assert read_all(stream, len(data)) == data, "before anything follows it"
    assert incoming.is_closed
    assert outgoing.is_closed


def test_buffers_in_segments_are_not_waited_for() -> None:
    """A table that says that a buffer lies elsewhere adds nothing to what is read."""
    frame = HEADER.pack(RESULT, 0, 1, 2, 1, 0, 0, 3) + struct.pack("<QQ", (5 << 30) | IN_SEGMENT, 2) + b"abcde"
    incoming = MemoryStream(100)
    incoming._data += frame
    with carried(incoming, MemoryStream()) as stream:
        assert read_all(stream, len(frame)) == frame


def test_what_is_sent_goes_out_and_is_flushed() -> None:
    """Streams that take a part at a time get the rest; flush follows each write."""
    outgoing = MemoryStream(1 << 20)
    with carried(MemoryStream(), outgoing) as stream:
        stream.sendall(LARGE)
        received = b""
        while len(received) < len(LARGE):
            received += outgoing.read(1 << 20)
        assert received == LARGE
        eventually(lambda: outgoing.flushes > 0)


def test_a_stream_without_flush_that_returns_nothing() -> None:
    """write may return None, and flush is not needed."""

    class Bare:
        written = b""
        done = threading.Event()

        def write(self, data: bytes) -> None:
            self.written += bytes(data)
            if len(self.written) == len(FRAME):
                self.done.set()

        def close(self) -> None:
            raise OSError("it does not want to")

    bare = Bare()
    with carried(MemoryStream(), bare) as stream:
        stream.sendall(FRAME)
        assert bare.done.wait(30)
    assert bare.written == FRAME


@pytest.mark.parametrize("rest", [b"", FRAME[:10], FRAME[:-1]])
def test_the_end_comes_after_what_came_before(rest: bytes) -> None:
    """Frames, then the end; a frame that was cut is not passed on whole."""
    incoming = MemoryStream(50)
    incoming._data += FRAME + rest
    incoming.is_closed = True
    with carried(incoming, MemoryStream()) as stream:
        received = read_all(stream, 1000)
        assert received.startswith(FRAME)
        assert len(received) <= len(FRAME + rest)


def test_a_stream_that_fails_is_at_its_end() -> None:
    """Whatever it raises, the peer reads the end."""

    class Failing:
        closed = threading.Event()

        def read(self, n: int) -> bytes:
            raise RuntimeError("the line is down")

        def write(self, data: bytes) -> int:
            raise RuntimeError("the line is down")

        def close(self) -> None:
            self.closed.set()

    failing = Failing()
    with carried(failing, failing) as stream:
        assert stream.recv(1) == b""
    assert failing.closed.wait(30)


def test_a_broken_write_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nothing can be written any more, the peer hears of it, though nobody closes the other direction."""
    monkeypatch.setattr(streams, "LAST_WORDS_SECONDS", 0.01)
    incoming, outgoing = MemoryStream(100), MemoryStream()
    outgoing.is_closed = True
    with carried(incoming, outgoing) as stream:
        stream.sendall(FRAME)
        stream.settimeout(30)
        assert stream.recv(1) == b""


def test_nothing_is_shared_over_it() -> None:
    """A peer must not pass descriptors, though the socket looks like one for which that works."""
    pair = MemoryStream(), MemoryStream()
    with carried(*pair) as stream:
        assert isinstance(stream, streams.CarriedSocket)
        assert stream.shares_memory is False
        assert stream.carries == pair


@pytest.mark.parametrize("most", [None, 3])
def test_both_sides_prove_themselves(most: int | None) -> None:
    """Over the streams themselves; what follows are frames."""
    here, there = crossed(most)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(streams.prove, there, "acceptor", Deadline(30))
        ours, theirs = streams.prove(here, "initiator", Deadline(30)), other.result(30)
    with closing(ours), closing(theirs):
        ours.sendall(FRAME)
        assert read_all(theirs, len(FRAME)) == FRAME
        theirs.sendall(LARGE)
        assert read_all(ours, len(LARGE)) == LARGE
    eventually(lambda: not [t for t in threading.enumerate() if t.name.startswith("distpool stream")])


def test_sockets_are_proved_and_used_as_they_are() -> None:
    """No thread stands between; one that has been proved is not asked again."""
    one, other = socket.socketpair()
    with one, other, ThreadPoolExecutor(1) as pool:
        future = pool.submit(streams.prove, other, "acceptor", Deadline(30))
        assert streams.prove(one, "initiator", Deadline(30)) is one
        assert future.result(30) is other
    with ProvedSocket() as proved:
        assert streams.prove(proved, "initiator", Deadline(30)) is proved


# -- sockets of ssl ----------------------------------------------------------------------------------------------------


def test_sockets_of_ssl_are_carried() -> None:
    """Both directions at once, more than the kernel takes; each is known by its socket, and closed at the end."""
    pair = encrypted_pair()
    with ThreadPoolExecutor(4) as pool:
        other = pool.submit(streams.prove, pair[1], "acceptor", Deadline(30))
        ours, theirs = streams.prove(pair[0], "initiator", Deadline(30)), other.result(30)
        with closing(ours), closing(theirs):
            assert isinstance(ours, streams.CarriedSocket)
            assert ours.carries == (pair[0], pair[0])
            data = HEADER.pack(1, 0, 0, 0, 0, 0, 0, 20 << 20) + os.urandom(20 << 20)
            sending = [pool.submit(each.sendall, data) for each in (ours, theirs)]
            got = [pool.submit(read_all, each, len(data)) for each in (ours, theirs)]
            assert [future.result(60) == data for future in got] == [True, True]
            assert [future.result(60) for future in sending] == [None, None]
    eventually(lambda: [each.fileno() for each in pair] == [-1, -1])


def test_a_socket_of_ssl_ends_like_others() -> None:
    """The other side goes without a word; one that does not prove itself is closed."""
    pair = encrypted_pair()
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(streams.prove, pair[1], "acceptor", Deadline(30))
        ours, theirs = streams.prove(pair[0], "initiator", Deadline(30)), other.result(30)
    ours.close()
    with closing(theirs):
        assert theirs.recv(1) == b""
    eventually(lambda: [each.fileno() for each in pair] == [-1, -1])
    one, other_end = encrypted_pair()
    other_end.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(HandshakeError, match="none of distpool's"):
        streams.prove(one, "initiator", Deadline(30))
    assert one.fileno() == -1
    other_end.close()


def test_workers_over_sockets_of_ssl(no_cluster: None) -> None:
    """A manager's `connect` may return one, and so may the worker's program pass one: everything works."""
    manager = OverSsl()
    try:
        (pid,) = distpool.addprocs(manager)
        assert distpool.remotecall_fetch(len, pid, bytes(5 << 20)) == 5 << 20
        assert distpool.pmap(jobs.square, range(50)) == [x * x for x in range(50)]
        assert distpool.worker_id_from_socket(manager.connections[0]) == pid
        distpool.rmprocs(pid, waitfor=30)
    finally:
        manager.end()


def test_strangers_are_not_admitted() -> None:
    """A stream that answers something else, a socket that ends, another secret: HandshakeError, and it is closed."""
    here, there = crossed(100)
    there[1]._data += b"HTTP/1.1 400 Bad Request"
    with pytest.raises(HandshakeError, match="none of distpool's"):
        streams.prove(here, "initiator", Deadline(30))
    assert here[0].is_closed
    assert here[1].is_closed
    here, there = crossed(100)
    here[0].close()
    with pytest.raises(HandshakeError, match="ended"):
        streams.prove(here, "initiator", Deadline(30))
    one, other = socket.socketpair()
    other.close()
    with pytest.raises(HandshakeError):
        streams.prove(one, "initiator", Deadline(30))
    assert one.fileno() == -1


def test_the_secret_counts() -> None:
    """Who is dialled turns away who does not know it, and tells him nothing."""
    here, there = crossed(100)
    stranger = Handshake("initiator", b"another secret", "0.1")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(streams.prove, there, "acceptor", Deadline(30))
        write_all(here[1], stranger.data_to_send())
        proof = b""
        while not proof:
            stranger.receive(here[0].read(stranger.wanted))
            proof = stranger.data_to_send()
        write_all(here[1], proof)
        with pytest.raises(HandshakeError, match="does not know"):
            other.result(30)
    assert here[0].read(100) == b""


@pytest.mark.parametrize("nonsense", [5, None, (1, 2), (MemoryStream(),), (MemoryStream(), MemoryStream(), 3)])
def test_what_is_no_connection(nonsense: Any) -> None:
    """A TypeError that says what one is."""
    with pytest.raises(TypeError, match="a connection is a socket, a stream"):
        streams.prove(nonsense, "initiator", Deadline(1))


def test_giving_up_ends_whoever_waits() -> None:
    """A handshake that nobody answers comes back when its connection is given up; each thing is closed once."""
    here, _ = crossed()
    one, other = socket.socketpair()
    with ThreadPoolExecutor(2) as pool, other:
        waiting = [pool.submit(streams.prove, each, "initiator", Deadline(None)) for each in (here, one)]
        assert other.recv(1)
        here[1]._changed.acquire()
        here[1]._changed.wait_for(lambda: here[1]._data)
        here[1]._changed.release()
        for each in (here, one):
            streams.give_up(each)
        for future in waiting:
            assert isinstance(future.exception(30), (HandshakeError, OSError, ValueError))
    both = MemoryStream()
    streams.give_up(both)
    assert both.is_closed
