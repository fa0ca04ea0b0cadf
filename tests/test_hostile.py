"""Ten thousand strangers at an open port, and members that send nonsense: nobody is harmed but themselves."""

from __future__ import annotations

import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import distpool
from distpool import messages as m
from distpool import tcp, wire
from distpool.authority import authority
from distpool.credentials import secret_line
from distpool.door import COMPLAINT_SECONDS, COMPLAINTS, MAX_STRANGERS, Door
from distpool.transport import Deadline, Reader
from support import hostile, jobs
from support.dialback import Here
from support.leaks import eventually
from support.listeners import Addresses, Listener, is_closed_by_other_side, listening

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")

# What a worker may have taken from the system after ten thousand visits, beyond what a thousand took. Measured: below
# one; a leak of a kilobyte for each would be ten.
GROWTH_BYTES = 4 << 20
TESTS = Path(__file__).parent
# For workers that are started by hand: what they run lies in tests/support.
IMPORTABLE = {"PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS.parent)))}


# What is recorded of a conversation with TLS begins so; nobody without a certificate gets farther.
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
MANY = pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])


@pytest.fixture
def member(no_cluster: None) -> Iterator[tuple[Listener, int]]:
    """A worker that listens, and has joined."""
    with listening(env=IMPORTABLE) as listener:
        (pid,) = distpool.addprocs(Addresses(listener), output="none")
        yield listener, pid
        distpool.rmprocs(pid, waitfor=30)


def attackers(listener: Listener, folder: Path) -> hostile.Attackers:
    """With what a good driver says at this port, which was turned away only because the worker has one."""
    return hostile.Attackers(
        hostile.record_handshake(listener.host, listener.port), hostile.bomb(folder / "opened by a worker")
    )


class Place(NamedTuple):
    """Where somebody listens."""

    host: str
    port: int


def under_attack(listener: Listener | Place, strangers: hostile.Attackers, meter: hostile.Meter, count: int) -> int:
    """Attack from another thread, and work with the members until it is over; returns how many were connected."""
    connected: list[int] = []
    thread = threading.Thread(
        target=lambda: connected.append(hostile.attack(listener.host, listener.port, strangers, count))
    )
    thread.start()
    while thread.is_alive():
        meter.run(10)
    thread.join()
    return connected[0]


def _attacked(listener: Listener, pid: int, folder: Path, count: int) -> None:
    distpool.remotecall_fetch(hostile.watch_pickle, pid)
    strangers = attackers(listener, folder)
    meter = hostile.Meter(lambda: distpool.remotecall_fetch(jobs.square, pid, 3))
    assert under_attack(listener, strangers, meter, count // 10) == count // 10  # what is needed once, is there
    memory, descriptors = distpool.remotecall_fetch(hostile.own_usage, pid)
    assert under_attack(listener, strangers, meter, count) == count, "the door was never shut"
    eventually(
        lambda: distpool.remotecall_fetch(hostile.own_usage, pid)[1] <= descriptors, what="descriptors are given back"
    )
    grown = distpool.remotecall_fetch(hostile.own_usage, pid)[0] - memory
    assert grown < GROWTH_BYTES, f"{grown} bytes more"
    asked_for = distpool.remotecall_fetch(hostile.pickle_asked_for, pid)
    assert "square" in asked_for, "what members send is opened, and noticed"
    assert "system" not in asked_for
    assert not list(folder.iterdir())
    assert meter.longest < 5, "a call of a member waited for strangers"
    assert distpool.remotecall_fetch(jobs.square, pid, 9) == 81


@pytest.mark.slow
@pytest.mark.case("C220")
def test_ten_thousand_strangers(member: tuple[Listener, int], tmp_path: Path) -> None:
    """Garbage, silence, wrong secrets, replays, oversized lengths, pickles: the worker works on, and grows by nothing.

    Nothing of a stranger is unpickled.
    """
    _attacked(*member, tmp_path, 10_000)


def test_some_hundred_strangers(member: tuple[Listener, int], tmp_path: Path) -> None:
    """The same, short."""
    _attacked(*member, tmp_path, 500)


@pytest.mark.parametrize("count", [300, MANY])
def test_strangers_at_an_encrypted_door(no_cluster: None, tmp_path: Path, count: int) -> None:
    """What is no TLS, and what is TLS without a certificate, costs no more."""
    line = secret_line(distpool.cluster_cookie(), authority().issue("worker"))
    with listening(cookie=line, env=IMPORTABLE) as listener:
        (pid,) = distpool.addprocs(Addresses(listener), tls=True, output="none")
        strangers = hostile.Attackers(HELLO, hostile.bomb(tmp_path / "opened by a worker"))
        meter = hostile.Meter(lambda: distpool.remotecall_fetch(jobs.square, pid, 3))
        assert under_attack(listener, strangers, meter, count // 10) == count // 10
        memory, before = distpool.remotecall_fetch(hostile.own_usage, pid)
        assert under_attack(listener, strangers, meter, count) == count
        eventually(lambda: distpool.remotecall_fetch(hostile.own_usage, pid)[1] <= before)
        assert distpool.remotecall_fetch(hostile.own_usage, pid)[0] - memory < GROWTH_BYTES
        assert not list(tmp_path.iterdir())
        assert meter.longest < 5
        distpool.rmprocs(pid, waitfor=30)


class Meeting(Addresses):
    """Whose workers dial each other."""

    workers_meet = True


def their_door(pid: int) -> tuple[str, int]:
    """On a worker: where it listens for others; opened when the first of them was sent here."""
    from distpool.member import default_member

    distpool.remotecall_fetch(distpool.myid, pid)
    return default_member().visits._address


@pytest.mark.parametrize("count", [300, MANY])
@pytest.mark.parametrize("tls", [False, True])
def test_strangers_at_the_port_of_a_driver(no_cluster: None, tmp_path: Path, tls: bool, count: int) -> None:
    """Where workers dial back: this process works on with those that have come, and lets in who comes later."""
    manager = Here(2, held=1, at_least=1)
    try:
        (pid,) = distpool.addprocs(manager, tls=tls, timeout=60)
        launch = manager.launches[0]
        host, _, port = launch.address.partition(":")
        recorded = HELLO if tls else hostile.record_handshake(host, int(port))
        strangers = hostile.Attackers(recorded, hostile.bomb(tmp_path / "opened by the driver"))
        meter = hostile.Meter(lambda: distpool.remotecall_fetch(jobs.square, pid, 3))
        place = Place(host, int(port))
        assert under_attack(place, strangers, meter, count // 10) == count // 10
        memory, descriptors = hostile.own_usage()
        assert under_attack(place, strangers, meter, count) == count, "the door was never shut"
        eventually(lambda: hostile.own_usage()[1] <= descriptors, what="descriptors are given back")
        assert hostile.own_usage()[0] - memory < GROWTH_BYTES
        assert meter.longest < 5
        manager.begin(launch, 1)
        eventually(lambda: len(distpool.workers()) == 2, what="the other worker has come")
        assert not list(tmp_path.iterdir())
    finally:
        distpool.rmprocs(*[pid for pid in distpool.workers() if pid != 1], waitfor=30)
        manager.end()


@pytest.mark.parametrize("count", [300, MANY])
@pytest.mark.parametrize("tls", [False, True])
def test_strangers_at_the_port_for_other_workers(no_cluster: None, tmp_path: Path, tls: bool, count: int) -> None:
    """The second port of a worker: it works on, and a worker that comes later is let in."""
    lines = [secret_line(distpool.cluster_cookie(), authority().issue("worker")) if tls else None for _ in range(3)]
    with (
        listening(cookie=lines[0], env=IMPORTABLE) as first,
        listening(cookie=lines[1], env=IMPORTABLE) as second,
        listening(cookie=lines[2], env=IMPORTABLE) as third,
    ):
        pid, other = sorted(distpool.addprocs(Meeting(first, second), tls=tls, output="none"))
        distpool.remotecall_fetch(hostile.watch_pickle, pid)
        distpool.remotecall_fetch(distpool.remotecall_fetch, other, distpool.myid, pid)
        place = Place(*distpool.remotecall_fetch(their_door, pid, other))
        recorded = HELLO if tls else hostile.record_handshake(place.host, place.port)
        strangers = hostile.Attackers(recorded, hostile.bomb(tmp_path / "opened by a worker"))
        meter = hostile.Meter(lambda: distpool.remotecall_fetch(jobs.square, pid, 3))
        assert under_attack(place, strangers, meter, count // 10) == count // 10
        memory, descriptors = distpool.remotecall_fetch(hostile.own_usage, pid)
        assert under_attack(place, strangers, meter, count) == count, "the door was never shut"
        eventually(lambda: distpool.remotecall_fetch(hostile.own_usage, pid)[1] <= descriptors)
        assert distpool.remotecall_fetch(hostile.own_usage, pid)[0] - memory < GROWTH_BYTES
        assert meter.longest < 5
        (late,) = distpool.addprocs(Meeting(third), tls=tls, output="none")
        assert distpool.remotecall_fetch(distpool.remotecall_fetch, late, distpool.myid, pid) == pid
        assert "system" not in distpool.remotecall_fetch(hostile.pickle_asked_for, pid)
        assert not list(tmp_path.iterdir())
        distpool.rmprocs(pid, other, late, waitfor=30)


def test_who_stands_at_the_door_keeps_nobody_out(no_cluster: None) -> None:
    """Slow talkers and silent ones on every place: the driver is let in, within seconds."""
    with (
        listening(env=IMPORTABLE) as listener,
        hostile.dripping(listener.host, listener.port, 3 * MAX_STRANGERS) as drip,
    ):
        drip()
        joined: list[int] = []
        thread = threading.Thread(target=lambda: joined.extend(distpool.addprocs(Addresses(listener), timeout=30)))
        thread.start()
        while thread.is_alive():
            drip()
            thread.join(0.01)
        assert distpool.remotecall_fetch(jobs.square, joined[0], 5) == 25
        distpool.rmprocs(joined, waitfor=30)


def test_slow_talkers_have_five_seconds(member: tuple[Listener, int]) -> None:
    """A byte now and then does not buy more time."""
    listener, pid = member
    with hostile.dripping(listener.host, listener.port, 1) as drip, listener.visit() as silent:
        threading.Thread(target=drip).start()
        assert is_closed_by_other_side(silent)
    assert distpool.remotecall_fetch(jobs.square, pid, 2) == 4


# -- the door itself, as hosts other than workers have it --------------------------------------------------------------


class Host:
    """A door in this process, and a thread that reads for it."""

    def __init__(self, **options: Any) -> None:
        self.reader = Reader()
        self.admitted: list[tuple[Any, str, bytes]] = []
        self.complaints: list[str] = []
        listener = tcp.listen("127.0.0.1", 0)
        self.address: tuple[str, int] = listener.getsockname()
        self.door = Door(
            listener,
            self.reader,
            lambda *one: self.admitted.append(one),
            complain=self.complaints.append,
            **options,
        )

    def close(self) -> None:
        done = threading.Event()
        self.reader.run_soon(self.door.close)
        self.reader.run_soon(done.set)
        assert done.wait(30)
        self.reader.close()
        for stream, _, _ in self.admitted:
            stream.close()


def test_any_door_survives_a_flood() -> None:
    """And lets in who knows the secret, while it lasts; what it says about the others is bounded."""
    with closing(Host(most=16)) as host:
        strangers = hostile.Attackers(bytes(100), b"I1\n.")
        flood = threading.Thread(target=hostile.attack, args=(*host.address, strangers, 400, 20))
        flood.start()
        for _ in range(3):
            with tcp.dial(*host.address, Deadline(30)) as stream:
                tcp.greet(stream, Deadline(30))
        flood.join()
        eventually(lambda: len(host.admitted) == 3 and not host.door.strangers)
        assert 0 < len(host.complaints) <= COMPLAINTS + 2


def test_where_guests_wait_nobody_stands_for_long() -> None:
    """Honest ones wait for a place, but not for those who only stand there."""
    with closing(Host(most=2)) as host:
        silent = [tcp.dial(*host.address, Deadline(30)) for _ in range(4)]
        with tcp.dial(*host.address, Deadline(30)) as stream:
            tcp.greet(stream, Deadline(20))
        for each in silent:
            each.close()
        eventually(lambda: len(host.admitted) == 1)


def test_complaints_are_summed_up() -> None:
    """Five are told one by one, then how many more there were."""
    with closing(Host()) as host:
        for _ in range(COMPLAINTS + 20):
            with socket.create_connection(host.address, timeout=30) as stream:
                stream.sendall(b"G")
                assert is_closed_by_other_side(stream)
        host.reader.run_soon(host.door._sum_up)  # in COMPLAINT_SECONDS by itself
        assert COMPLAINT_SECONDS > 1
        eventually(lambda: len(host.complaints) == COMPLAINTS + 1)
        assert host.complaints[-1].startswith("20 more connections were not admitted")


# -- members that send nonsense ----------------------------------------------------------------------------------------

NONSENSE = {
    "no kind of message": wire.HEADER.pack(0, 0, 0, 0, 0, 0, 0, 0),
    "a message of .* is beyond all limits": wire.HEADER.pack(m.CALL, 0, 0, 0, 1, 0, 0, 1 << 60),
    "no memory for .* bytes": wire.HEADER.pack(m.CALL, 0, 0, 0, 1, 0, 0, wire.MAX_LENGTH),
    "with .* buffers is beyond all limits": wire.HEADER.pack(m.CALL, 0, 0, wire.MAX_BUFFERS + 1, 1, 0, 0, 0),
    "a buffer of .* is beyond": wire.HEADER.pack(m.CALL, 0, 0, 1, 1, 0, 0, 0) + struct.pack("<Q", 1 << 60),
}


@pytest.mark.parametrize("fault", NONSENSE)
def test_a_worker_is_told_why_it_ends(no_cluster: None, fault: str) -> None:
    """A driver that has proved itself and sends oversized lengths: the worker says so, and ends."""
    with listening() as listener:
        with tcp.dial(listener.host, listener.port, Deadline(30)) as stream:
            tcp.greet(stream, Deadline(30))
            stream.sendall(NONSENSE[fault])
            assert listener.process.wait(30) == 1
        assert re.search(fault, listener.rest())


@pytest.mark.parametrize("fault", NONSENSE)
def test_a_driver_is_told_what_its_worker_did(workers: StartWorkers, fault: str) -> None:
    """A worker that sends oversized lengths: the error says so, and the others work on."""
    bad, good = workers(2)
    with pytest.raises(distpool.ProcessExitedException, match="could not be understood") as caught:
        distpool.remotecall_fetch(hostile.write_to_driver, bad, NONSENSE[fault])
    assert re.search(fault, str(caught.value))
    assert distpool.remotecall_fetch(jobs.square, good, 4) == 16
