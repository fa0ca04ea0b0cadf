"""Workers that dial each other: their doors, and what becomes of pairs that cannot meet. A room: visits."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from conformance import deeds

import distpool
from distpool import addprocs, myid, remotecall, remotecall_fetch
from distpool.door import Introduction
from distpool.member import default_member
from distpool.tcp import dial, greet
from distpool.transport import Deadline
from support import jobs
from support.fake_ssh import FakeSsh
from support.listeners import GARBAGE, is_closed_by_other_side

pytestmark = pytest.mark.usefixtures("no_cluster")


def dialled() -> list[int]:
    """Runs in a worker: to which other workers it has a connection of its own."""
    peers = default_member().cluster.peers()
    return sorted(peer.pid for peer in peers if peer.pid != 1 and peer._stream.family == socket.AF_INET)


def door() -> tuple[str, int]:
    """Runs in a worker: where its door for other workers is."""
    return default_member().visits._address


def shut_the_door() -> None:
    """Runs in a worker: it will say where its door is, and nobody will be there."""
    default_member().visits.close()


@pytest.fixture
def machines(tmp_path: Path) -> list[int]:
    """Two workers on one machine and one on another; both are this one."""
    return addprocs([("h1", 2), "h2"], ssh=str(FakeSsh(tmp_path).program))


def meet(one: int, other: int) -> None:
    """Have one worker call another one."""
    assert remotecall_fetch(deeds.relay, one, myid, other) == other


def test_workers_dial_each_other(machines: list[int]) -> None:
    """Remote ones, and local ones that have never been told the cookie: nothing goes through process 1."""
    pids = [*addprocs(2), *machines]
    for one in pids:
        for other in pids:
            if one != other:
                meet(one, other)
    local = pids[:2]
    for pid in machines:
        assert remotecall_fetch(dialled, pid) == sorted(set(pids) - {pid})
    for pid in local:
        assert remotecall_fetch(dialled, pid) == sorted(machines)


def test_both_may_ask_at_once(tmp_path: Path) -> None:
    """Two that call each other for the first time at the same moment share one connection."""
    w1, w2 = addprocs([("h1", 2)], ssh=str(FakeSsh(tmp_path).program))
    calls = [remotecall(deeds.calls_to, one, other, 3, 3) for one, other in ((w1, w2), (w2, w1))]
    assert [call.fetch(timeout=20) for call in calls] == [[w2] * 9, [w1] * 9]
    assert [remotecall_fetch(dialled, pid) for pid in (w1, w2)] == [[w2], [w1]]


def test_eager_workers_are_connected_when_addprocs_returns(tmp_path: Path) -> None:
    """lazy=False: each has dialled, or was dialled by, all others."""
    pids = addprocs([("h1", 3), "h2"], ssh=str(FakeSsh(tmp_path).program), lazy=False)
    assert [remotecall_fetch(dialled, pid) for pid in pids] == [sorted(set(pids) - {pid}) for pid in pids]


def test_one_that_cannot_be_dialled_dials(machines: list[int]) -> None:
    """A door that does not open is no harm while the other one's does."""
    first, second, third = sorted(machines)
    meet(first, second)  # it has a door now
    remotecall_fetch(shut_the_door, first)
    meet(first, third)
    assert remotecall_fetch(dialled, first) == [second, third]


def test_those_that_cannot_meet_talk_through_process_1(machines: list[int]) -> None:
    """When no way leads to the other one: nothing is different for their callers."""
    first, second, _ = sorted(machines)
    meet(first, second)
    (local,) = addprocs(1)  # which has no door
    remotecall_fetch(shut_the_door, first)
    meet(local, first)
    assert remotecall_fetch(dialled, local) == []
    large = bytes(range(256)) * 20_000
    assert remotecall_fetch(deeds.relay, local, jobs.identity, first, large) == large


def test_one_that_dies_before_they_have_met(machines: list[int]) -> None:
    """Whoever waits for the connection is told that it is gone."""
    first, second, third = machines
    os_pid = remotecall_fetch(jobs.os_pid, second)
    os.kill(os_pid, signal.SIGSTOP)  # it will not answer
    calls = [remotecall(deeds.relay, pid, myid, second) for pid in (first, third)]
    assert not any(call.isready() for call in calls)
    os.kill(os_pid, signal.SIGKILL)
    for call in calls:
        with pytest.raises(distpool.ProcessExitedException):
            call.fetch(timeout=20)
    meet(first, third)


def test_a_neighbour_that_dies_is_told_of(machines: list[int]) -> None:
    """A call that runs there fails, at a worker as in process 1."""
    first, second, _ = machines
    meet(first, second)
    with pytest.raises(distpool.ProcessExitedException):
        remotecall_fetch(deeds.relay, first, jobs.vanish, second)


@pytest.mark.parametrize("introduction", [b"", b"1 2 3", b"nonsense", b"77 {pid}", b"{guest} 77", b"x" * 100])
def test_strangers_at_the_door(machines: list[int], introduction: bytes) -> None:
    """Garbage, and members of the cluster whom nobody expects, are turned away; nobody else is harmed."""
    first, second, third = sorted(machines)
    meet(first, second)
    address = remotecall_fetch(door, first)
    with socket.create_connection(address) as stream:
        stream.sendall(GARBAGE)
        assert is_closed_by_other_side(stream)
    text = introduction.replace(b"{pid}", b"%d" % first).replace(b"{guest}", b"%d" % third)
    with dial(*address, Deadline(10)) as stream:
        greet(stream, Deadline(10))
        stream.sendall(Introduction.of(text))
        assert is_closed_by_other_side(stream)
    meet(first, third)
    assert remotecall_fetch(dialled, first) == [second, third]
