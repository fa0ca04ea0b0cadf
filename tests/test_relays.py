"""Workers that are connected through process 1: any mix of forked and listening ones."""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import messages as m
from distpool.relays import WINDOW_BYTES, Tunnel
from distpool.streams import carried_pair
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers

FRESH: dict[str, Any] = {"exeflags": ["-X", "utf8"]}  # any flag asks for an interpreter that listens on loopback


def call(f: Callable[..., Any], pid: int, *args: Any) -> Any:
    return distpool.remotecall_fetch(f, pid, *args)


def new_channel(pid: int) -> distpool.RemoteChannel[Any]:
    return distpool.RemoteChannel(lambda: distpool.Channel(10), pid=pid)


def produce(channel: distpool.RemoteChannel[int], count: int) -> None:
    for i in range(count):
        channel.put(i)


def consume(channel: distpool.RemoteChannel[int], count: int) -> list[int]:
    return [channel.take() for _ in range(count)]


def swap(pid: int, size: int, rounds: int) -> bool:
    """Send large data to another worker and get it back, some times."""
    data = bytes(range(256)) * (size // 256)
    return all(distpool.remotecall_fetch(jobs.identity, pid, data) == data for _ in range(rounds))


@pytest.fixture
def mixed(workers: StartWorkers) -> list[int]:
    """Two forked workers, then two that listen."""
    return [*workers(2), *workers(2, **FRESH)]


def test_each_reaches_each(mixed: list[int]) -> None:
    """In both directions, whoever asks first."""
    for one in mixed:
        for other in mixed:
            if one != other:
                assert call(call, one, distpool.myid, other) == other


def test_channels_and_references_between_them(mixed: list[int]) -> None:
    """A channel at a third, used by two; a Future handed on; its value fetched from its owner."""
    forked, _, one, other = mixed
    channel = new_channel(one)
    done = distpool.remotecall(produce, forked, channel, 300)
    assert call(consume, other, channel, 300) == list(range(300))
    done.fetch()
    future = distpool.remotecall(jobs.square, one, 7)
    assert call(distpool.fetch, forked, future) == 49
    assert call(distpool.fetch, other, future) == 49


def test_errors_come_through(mixed: list[int]) -> None:
    """What is raised there is raised here, with both processes in the story."""
    with pytest.raises(ValueError, match="boom") as caught:
        call(call, mixed[0], jobs.fail, mixed[2])
    assert isinstance(caught.value, distpool.RemoteException)


def test_large_data_both_ways_at_once(mixed: list[int]) -> None:
    """Much more than a window, in both directions between the same two: neither waits for the other for ever."""
    forked, _, one, other = mixed
    size = 4 * WINDOW_BYTES
    for a, b in ((forked, one), (one, other)):
        futures = [distpool.remotecall(swap, x, y, size, 3) for x, y in ((a, b), (b, a), (a, b))]
        assert [future.fetch(timeout=60) for future in futures] == [True] * 3


def test_a_death_is_told_to_those_who_wait(mixed: list[int]) -> None:
    """Of either kind, by either kind."""
    forked, other_forked, one, other = mixed
    for victim, waiting in ((one, forked), (other_forked, other)):
        started = new_channel(1)
        future = distpool.remotecall(call, waiting, say_and_block, victim, started)
        assert started.take() == victim
        os.kill(call(os.getpid, victim), signal.SIGKILL)
        with pytest.raises(distpool.ProcessExitedException) as caught:
            future.fetch(timeout=30)
        assert caught.value.worker_id == victim
        with pytest.raises(distpool.ProcessExitedException):
            call(call, waiting, distpool.myid, victim)


def say_and_block(started: distpool.RemoteChannel[int]) -> None:
    started.put(distpool.myid())
    jobs.block_for_ever()


def test_removal_of_one_end(mixed: list[int]) -> None:
    """The others go on."""
    forked, other_forked, one, other = mixed
    assert call(call, forked, distpool.myid, one) == one
    distpool.rmprocs(one)
    with pytest.raises(distpool.ProcessExitedException):
        call(call, forked, distpool.myid, one)
    assert call(call, other, distpool.myid, other_forked) == other_forked


def test_topologies_hold(no_cluster: None) -> None:
    """master_worker keeps these apart, too; lazy=False connects them before addprocs returns."""
    one, other = distpool.addprocs(2, topology="master_worker", **FRESH)
    with pytest.raises(distpool.RemoteException, match="master_worker"):
        call(call, one, distpool.myid, other)
    distpool.rmprocs(one, other)
    pids = [*distpool.addprocs(1, lazy=False), *distpool.addprocs(1, lazy=False, **FRESH)]
    assert call(connected, pids[0]) == [1, pids[1]]
    assert call(connected, pids[1]) == [1, pids[0]]


def connected() -> list[int]:
    from distpool.member import default_member

    return sorted(peer.pid for peer in default_member().cluster.peers())


# -- one end, by itself ------------------------------------------------------------------------------------------------


class StillReader:
    """Watches nothing: the test decides when a tunnel looks."""

    def __init__(self) -> None:
        self.watched: set[object] = set()

    def register(self, handler: object) -> None:
        assert handler not in self.watched
        self.watched.add(handler)

    def unregister(self, handler: object) -> None:
        self.watched.remove(handler)

    def watch_writable(self, handler: object, wanted: bool) -> None:
        assert handler in self.watched


class Link:
    """Two tunnels whose messages are carried by hand."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        self.sent: deque[tuple[int, int, int, bytes]] = deque()
        self.ends: list[Tunnel] = []
        self.peers: list[socket.socket] = []
        for number in (0, 1):
            inner, outer = carried_pair()
            inner.setblocking(False)
            self.peers.append(inner)
            self.ends.append(Tunnel(outer, reader, self.sender(number)))

    def sender(self, number: int) -> Callable[[int, int, bytes], object]:
        return lambda flags, grant, body: self.sent.append((1 - number, flags, grant, body))

    def carry(self) -> None:
        """Deliver what has been sent."""
        while self.sent:
            number, flags, grant, body = self.sent.popleft()
            self.ends[number].granted(grant)
            self.ends[number].deliver(body)
            if flags & m.FLAG_LAST:
                self.ends[number].ended()


@pytest.fixture
def link() -> Iterator[Link]:
    made = Link(StillReader())
    yield made
    for end in made.ends:
        end.close()
    for peer in made.peers:
        peer.close()
    assert made.reader.watched == set()


def drain(peer: socket.socket) -> bytes | None:
    """What can be read now; None at the end."""
    data = b""
    while True:
        try:
            piece = peer.recv(1 << 20)
        except BlockingIOError:
            return data
        if not piece:
            return data or None
        data += piece


def push(link: Link, data: bytes) -> int:
    """Write into one end and let its tunnel send, until it takes no more."""
    taken = 0
    idle = 0
    while taken < len(data) and idle < 3:
        try:
            taken += link.peers[0].send(data[taken : taken + (1 << 16)])
            idle = 0
        except BlockingIOError:
            idle += 1
        link.ends[0].on_readable()
    return taken


def test_no_more_than_a_window_is_under_way(link: Link) -> None:
    """Who is not granted more stops reading; grants come when the other side has delivered."""
    data = bytes(WINDOW_BYTES + (1 << 22))
    taken = push(link, data)
    assert sum(len(body) for *_, body in link.sent) == WINDOW_BYTES
    assert taken < len(data)
    assert link.ends[0] not in link.reader.watched
    received = 0
    for _ in range(1000):
        link.carry()
        link.ends[1].on_writable()
        received += len(drain(link.peers[1]) or b"")
        taken += push(link, data[taken:])
        if received == len(data):
            break
    assert received == len(data)


def test_the_end_comes_after_the_data(link: Link) -> None:
    """A connection closed at one end is read to its end at the other, which then closes, too."""
    link.peers[0].send(b"last words")
    link.peers[0].close()
    for _ in range(2):
        link.ends[0].on_readable()
    assert link.sent[-1][1] & m.FLAG_LAST
    link.carry()
    assert drain(link.peers[1]) == b"last words"
    assert link.peers[1].recv(10) == b""
    link.peers[1].close()
    link.ends[1].on_readable()
    assert link.ends[1].fileno() == -1
    link.ends[1].deliver(b"too late")
    link.ends[1].granted(5)
    link.ends[1].ended()
