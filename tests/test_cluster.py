"""Who belongs to the cluster: a member's way in and out, and the one door for death."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from distpool.cluster import Cluster, Departure
from distpool.errors import ProcessExitedException
from distpool.member import Member
from distpool.peer import Peer, Reply
from distpool.transport import Reader


@pytest.fixture
def member() -> Iterator[Member]:
    """Process 1 of a cluster of its own."""
    reader = Reader()
    yield Member(1, reader)
    reader.close()


@pytest.fixture
def peer(member: Member) -> Iterator[Peer]:
    """A connection to process 2, which is no member yet."""
    near, far = socket.socketpair()
    peer = member.connect(2, near)
    yield peer
    peer.close()
    far.close()


def test_alone_there_is_only_this_process() -> None:
    """Work always has somewhere to go."""
    cluster = Cluster(1)
    assert cluster.procs() == [1]
    assert cluster.workers() == [1]
    assert cluster.is_member(1)


def test_pids_are_never_used_twice() -> None:
    """They count from 2 on process 1."""
    cluster = Cluster(1)
    assert [cluster.next_pid() for _ in range(3)] == [2, 3, 4]


def test_states_of_a_member(member: Member, peer: Peer) -> None:
    """Connecting, connected, terminating, departed; each can be told from the others."""
    cluster = member.cluster
    assert not cluster.is_member(2)
    cluster.add(peer)
    assert cluster.is_member(2)
    assert cluster.procs() == [1, 2]
    assert cluster.workers() == [2]
    assert cluster.peer(2) is peer
    assert cluster.terminate(2) is peer
    assert cluster.terminate(2) is None
    assert not cluster.is_member(2)
    assert cluster.was_member(2)
    assert cluster.peers() == [peer]
    with pytest.raises(ProcessExitedException, match="being removed"):
        cluster.peer(2)
    assert cluster.depart(peer, Departure(exit_code=3))
    assert cluster.was_member(2)
    assert cluster.peers() == []
    with pytest.raises(ProcessExitedException) as caught:
        cluster.peer(2)
    assert caught.value.exit_code == 3


def test_process_that_never_was() -> None:
    """A ValueError that names those there are."""
    with pytest.raises(ValueError, match=r"no process 9.*\[1\]"):
        Cluster(1).peer(9)


def test_departs_only_once(member: Member, peer: Peer) -> None:
    """Whoever notices first wins; everybody is told once."""
    told: list[int] = []
    member.cluster.listen(lambda pid: None, lambda pid, error: told.append(pid))
    member.cluster.add(peer)
    assert member.cluster.depart(peer, Departure(signal=9))
    assert not member.cluster.depart(peer, Departure(exit_code=0))
    assert told == [2]
    departure = member.cluster.departure(2)
    assert departure is not None
    assert departure.signal == 9
    assert not peer.is_open


def test_departure_knows_whether_it_was_asked_for(member: Member, peer: Peer) -> None:
    """A removal is no accident."""
    member.cluster.add(peer)
    member.cluster.terminate(2)
    departure = Departure()
    member.cluster.depart(peer, departure)
    assert departure.was_asked


def test_departing_fails_what_waits(member: Member, peer: Peer) -> None:
    """Each pending call gets an exception of its own."""
    member.cluster.add(peer)
    replies = [Reply(), Reply()]
    for number, reply in enumerate(replies):
        peer.pending[number] = reply
    member.cluster.depart(peer, Departure(exit_code=1))
    errors = [reply.error for reply in replies]
    assert all(isinstance(error, ProcessExitedException) for error in errors)
    assert errors[0] is not errors[1]


def test_listeners_are_told_outside_the_lock(member: Member, peer: Peer) -> None:
    """They may ask the cluster, and leave while they are told."""
    seen: list[object] = []

    def joined(pid: int) -> None:
        seen.append(("joined", pid, member.cluster.procs()))

    def departed(pid: int, error: ProcessExitedException) -> None:
        seen.append(("departed", pid, member.cluster.procs()))
        member.cluster.unlisten(joined, departed)

    member.cluster.listen(joined, departed)
    member.cluster.add(peer)
    member.cluster.depart(peer, Departure())
    assert seen == [("joined", 2, [1, 2]), ("departed", 2, [1])]


def test_everyone_is_told_though_one_fails(member: Member, peer: Peer) -> None:
    """A fault in one listener or pending call is raised in the end, and keeps nobody waiting."""
    told: list[int] = []

    class Faulty(Reply):
        def lost(self, error: BaseException) -> None:
            raise KeyError("pending")

    def fail(pid: int, error: ProcessExitedException) -> None:
        raise RuntimeError("listener")

    member.cluster.add(peer)
    reply = Reply()
    peer.pending.update({1: reply, 2: Faulty()})
    member.cluster.listen(lambda pid: None, fail)
    member.cluster.listen(lambda pid: None, lambda pid, error: told.append(pid))
    with pytest.raises(KeyError):
        member.cluster.depart(peer, Departure())
    assert reply.error is not None
    assert told == [2]


def test_worker_knows_whom_process_1_named() -> None:
    """And that those who are not named any more have departed."""
    told: list[int] = []
    cluster = Cluster(3)
    cluster.listen(lambda pid: None, lambda pid, error: told.append(pid))
    cluster.know([1, 2, 3])
    assert cluster.procs() == [1, 2, 3]
    cluster.know([1, 3])
    assert cluster.procs() == [1, 3]
    assert told == [2]
    assert cluster.was_member(2)


def test_nothing_more_is_heard_of_a_process_when_both_ways_have_ended(peer: Peer) -> None:
    """Its own connection, and what process 1 passes on: whichever ends first; while it is leaving neither has."""
    ended: list[int] = []
    for is_told_first in (True, False):
        cluster = Cluster(3)
        cluster.listen_for_end(ended.append)
        cluster.know([1, 2, 3])
        cluster.add(peer)
        cluster.know([1, 3], [2])
        if is_told_first:
            cluster.know([1, 3])
            assert ended == []
        cluster.depart(peer, Departure())
        assert ended == ([2] if is_told_first else [])
        cluster.know([1, 3])
        assert ended == [2]
        ended.clear()


def test_nothing_more_is_heard_of_a_process_that_was_never_connected() -> None:
    """When process 1 does not name it any more."""
    ended: list[int] = []
    cluster = Cluster(3)
    cluster.listen_for_end(ended.append)
    cluster.know([1, 2, 3])
    cluster.know([1, 3], [2])
    assert ended == []
    cluster.know([1, 3])
    assert ended == [2]


def test_process_1_has_one_way_to_each(member: Member, peer: Peer) -> None:
    """There the end of the connection is the end."""
    ended: list[int] = []
    member.cluster.listen_for_end(ended.append)
    member.cluster.add(peer)
    member.cluster.terminate(2)
    assert member.roll.membership() == ([1], [2])
    member.cluster.depart(peer, Departure())
    assert ended == [2]
    assert member.roll.membership() == ([1], [])
