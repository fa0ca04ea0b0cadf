"""Numbered cases, section H: distributed garbage collection of references.

What an owner keeps is asked for in the owner itself, by id, so that looking holds nothing. When a reference has been
given up is nobody's news, hence `eventually`.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from conformance import deeds
from distpool import Channel, Future, RemoteChannel, fetch, myid, remotecall, remotecall_fetch, remotecall_wait, rmprocs
from distpool.member import default_member
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")

Eventually = Callable[..., None]
either_owner = pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])


def number_of(ref: Any) -> tuple[int, int]:
    """The id of a reference, which holds nothing."""
    whence, number = distpool.remoteref_id(ref)
    return whence, number


def is_kept(pid: int, rrid: tuple[int, int]) -> bool:
    """Whether process `pid` keeps something under an id."""
    return remotecall_fetch(deeds.refs_has, pid, rrid)


def is_gone(pid: int, rrid: tuple[int, int]) -> Callable[[], bool]:
    """For `eventually`."""
    return lambda: not is_kept(pid, rrid)


def clients(rrid: tuple[int, int]) -> list[int]:
    """Runs at the owner: who holds a reference."""
    from distpool.member import default_member
    from distpool.messages import RRID

    return sorted(default_member().store.clients(RRID(*rrid)))


def take_and_drop(channel: RemoteChannel[Any]) -> None:
    """Runs in a worker: take a reference out of a channel and keep nothing."""
    channel.take()


def take_and_fetch(channel: RemoteChannel[Any]) -> Any:
    """Runs in a worker: take a reference out of a channel, and fetch it."""
    return channel.take().fetch()


@pytest.mark.case("C101")
@either_owner
@pytest.mark.parametrize("is_fetched", [True, False], ids=["fetched", "dropped"])
def test_result_goes_when_nobody_needs_it(
    workers: StartWorkers, eventually: Eventually, owner_is_me: bool, is_fetched: bool
) -> None:
    """C101: a call's result is kept by its owner until the caller has fetched it, or has dropped its Future."""
    (worker,) = workers(1)
    owner = myid() if owner_is_me else worker
    future = remotecall(myid, owner)
    rrid = number_of(future)
    assert is_kept(owner, rrid)
    if is_fetched:
        assert fetch(future) == owner
    else:
        del future
    eventually(is_gone(owner, rrid))


@pytest.mark.case("C102")
def test_future_in_a_channel_is_kept_for_its_taker(workers: StartWorkers, eventually: Eventually) -> None:
    """C102: a Future of w1 that lies in a channel on w2 keeps its value although the driver has fetched it."""
    w1, w2 = workers(2)
    channel: RemoteChannel[Any] = RemoteChannel(lambda: Channel(1), w2)
    future = remotecall(myid, w1)
    rrid = number_of(future)
    channel.put(future)
    assert fetch(future) == w1
    del future
    assert is_kept(w1, rrid)
    assert remotecall_fetch(take_and_fetch, w2, channel) == w1
    eventually(is_gone(w1, rrid))


@pytest.mark.case("C103")
def test_future_that_visits_its_owner_leaves_no_trace(workers: StartWorkers, eventually: Eventually) -> None:
    """C103: a Future sent to its owner and fetched there is afterwards held by the driver alone (J#25847)."""
    (worker,) = workers(1)
    future = remotecall_wait(myid, worker)
    rrid = number_of(future)
    for _ in range(2):
        assert remotecall_fetch(fetch, worker, future) == worker
        eventually(lambda: remotecall_fetch(clients, worker, rrid) == [1])
    del future
    eventually(is_gone(worker, rrid))


@pytest.mark.case("C104")
@either_owner
def test_channel_is_kept_as_its_handle(workers: StartWorkers, eventually: Eventually, owner_is_me: bool) -> None:
    """C104: looking at an item gives nothing up; dropping the handle does."""
    (worker,) = workers(1)
    owner = myid() if owner_is_me else worker
    channel: RemoteChannel[int] = RemoteChannel(pid=owner)
    rrid = number_of(channel)
    channel.put(1)
    assert fetch(channel) == 1
    assert is_kept(owner, rrid)
    assert channel.isready()
    del channel
    eventually(is_gone(owner, rrid))


@pytest.mark.case("C105")
def test_channel_in_a_channel_outlives_its_sender(workers: StartWorkers, eventually: Eventually) -> None:
    """C105: a channel of w1 that lies in a channel on w2 is kept when the driver drops it, and goes with its taker."""
    w1, w2 = workers(2)
    mailbox: RemoteChannel[Any] = RemoteChannel(lambda: Channel(1), w2)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), w1)
    rrid, others = number_of(channel), remotecall_fetch(deeds.refs_count, w1)
    mailbox.put(channel)
    probe: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), w1)
    del channel, probe
    eventually(lambda: remotecall_fetch(deeds.refs_count, w1) == others)  # the probe went: so would have the other
    assert is_kept(w1, rrid)
    remotecall_fetch(take_and_drop, w2, mailbox)
    eventually(is_gone(w1, rrid))


@pytest.mark.case("C106")
def test_what_a_dead_process_held_is_freed(workers: StartWorkers, eventually: Eventually) -> None:
    """C106: w2 holds the only reference to a channel of w1, and is killed."""
    w1, w2 = workers(2)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), w1)
    rrid = number_of(channel)
    os_pid = remotecall_fetch(jobs.os_pid, w2)
    remotecall_fetch(deeds.append, w2, channel)
    del channel
    eventually(lambda: remotecall_fetch(clients, w1, rrid) == [w2])
    os.kill(os_pid, signal.SIGKILL)
    eventually(is_gone(w1, rrid))


@pytest.mark.case("C107")
def test_references_in_messages_that_do_not_open(workers: StartWorkers, eventually: Eventually) -> None:
    """C107: 10,000 references of w1 reach w2 in messages that nobody there can open; none stays behind at w1."""
    w1, w2 = workers(2)
    before = remotecall_fetch(deeds.refs_count, w1)
    for _ in range(100):
        refs: list[Future[Any]] = [Future(w1) for _ in range(100)]
        assert not any(ref.isready() for ref in refs[:3])  # some are known to their owner, most are not
        with pytest.raises(distpool.RemoteException):
            remotecall_fetch(jobs.identity, w2, (jobs.Poison(), refs))
        del refs
    eventually(lambda: remotecall_fetch(deeds.refs_count, w1) == before)


def make_and_drop(pid: int, count: int) -> None:
    """So many channels in a process, each dropped at once."""
    for _ in range(count):
        RemoteChannel(pid=pid).isready()


@pytest.mark.case("C108")
@pytest.mark.parametrize(
    "number",
    # The large number took 31 s on four cores that had some other work, 62 s when they had very much.
    [20_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])],
)
def test_thousands_of_references_while_calls_run(workers: StartWorkers, eventually: Eventually, number: int) -> None:
    """C108: references come and go on a worker while other threads call it; all tables return to their start size."""
    faulthandler.cancel_dump_traceback_later()  # of all stacks after a minute, which a busy machine may need
    (worker,) = workers(1)
    claims = default_member().books.claims
    before, here = remotecall_fetch(deeds.refs_count, worker), len(claims._records)
    enough = threading.Event()

    def call() -> int:
        calls = 0
        while not enough.is_set():
            assert remotecall_fetch(myid, worker) == worker
            calls += 1
        return calls

    calling = Aside(call)
    makers = [Aside(make_and_drop, worker, number // 4) for _ in range(2)]
    for _ in range(number // 2):
        remotecall(jobs.identity, worker, None)
    for maker in makers:
        maker.result(200)
    enough.set()
    assert calling.result(60) > 0
    gc.collect()
    eventually(lambda: remotecall_fetch(deeds.refs_count, worker) == before)
    eventually(lambda: len(claims._records) <= here)


@pytest.mark.case("C109")
def test_calls_leave_nothing_behind(workers: StartWorkers, eventually: Eventually) -> None:
    """C109: no remotecall_fetch or remotecall_wait leaves an entry with its caller or owner, failed or not."""
    (worker,) = workers(1)
    here, there = deeds.refs_count(), remotecall_fetch(deeds.refs_count, worker)
    for call in (remotecall_fetch, remotecall_wait):
        for _ in range(1000):
            call(jobs.identity, worker, 1)
        for _ in range(300):
            with pytest.raises(ValueError, match="boom"):
                call(jobs.fail, worker)
    eventually(lambda: deeds.refs_count() <= here)
    eventually(lambda: remotecall_fetch(deeds.refs_count, worker) == there)


@pytest.mark.case("C110")
def test_references_of_a_removed_owner_are_dropped_in_silence(
    workers: StartWorkers, capfd: pytest.CaptureFixture[str]
) -> None:
    """C110: there is nobody to tell, and nothing to say."""
    (worker,) = workers(1)
    refs = [remotecall_wait(myid, worker), RemoteChannel(lambda: Channel(1), worker)]
    rmprocs(worker)
    refs.clear()
    gc.collect()
    assert deeds.refs_count() >= 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
