"""Numbered cases of several sections that need workers to call each other, or references that several processes hold.

The rest of the sections is in the files named after them; section H has a file of its own.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from conformance import deeds
from distpool import (
    Channel,
    Future,
    ProcessExitedException,
    RemoteChannel,
    RemoteException,
    fetch,
    isready,
    myid,
    pmap,
    procs,
    remote_do,
    remotecall,
    remotecall_fetch,
    rmprocs,
    spawnat,
)
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")

Eventually = Callable[..., None]


def say_and_fetch(started: RemoteChannel[Any], future: Future[Any]) -> Any:
    """Runs in a worker: say that it is about to wait, then wait for a Future."""
    started.put(myid())
    return future.fetch()


def take_ready_put(channel: RemoteChannel[Any]) -> None:
    """Runs in a worker: take a Future out of a channel, wait until it is set, and put into it."""
    future = channel.take()
    future.wait(10)
    assert isready(future)
    future.put("mine")


def say_and_take(started: RemoteChannel[Any], channel: RemoteChannel[Any]) -> Any:
    """Runs in a worker: say that it is about to wait, then take."""
    started.put(myid())
    return channel.take()


def nap(seconds: float) -> float:
    """Runs in a worker: a slow call."""
    import time

    time.sleep(seconds)
    return seconds


def doubled(pid: int, array: Any) -> Any:
    """Runs in a worker: have another one add an array to itself."""
    return remotecall_fetch(jobs.add, pid, array, array)


@pytest.mark.case("C040")
def test_fetch_on_another_worker_fails_with_the_owner(workers: StartWorkers) -> None:
    """C040: w2 waits for a Future of w1; w1 is killed; what w2 gets reaches the driver."""
    w1, w2 = workers(2)
    os_pid = remotecall_fetch(jobs.os_pid, w1)
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    future = remotecall(jobs.block_for_ever, w1)
    waiting = Aside(remotecall_fetch, say_and_fetch, w2, started, future)
    assert started.take(timeout=20) == w2
    os.kill(os_pid, signal.SIGKILL)
    with pytest.raises(ProcessExitedException) as caught:
        waiting.result(20)
    assert isinstance(caught.value, RemoteException)
    assert caught.value.pid == w2
    assert w1 == getattr(caught.value.unwrap(), "worker_id", None)


@pytest.mark.case("C061")
def test_worker_calls_worker(workers: StartWorkers) -> None:
    """C061: a worker calls another one by itself; a lambda that was sent goes on from one worker to the other."""
    w1, w2 = workers(2)
    assert remotecall_fetch(lambda pid: remotecall_fetch(myid, pid), w1, w2) == w2

    def tell() -> int:
        return myid()

    assert [remotecall_fetch(tell, pid) for pid in (w1, w2)] == [w1, w2]
    assert remotecall_fetch(deeds.relay, w1, tell, w2) == w2
    assert remotecall_fetch(deeds.relay, w2, tell, w1) == w1


@pytest.mark.case("C062")
def test_first_contact_with_an_array(workers: StartWorkers) -> None:
    """C062: the first thing that one worker says to another is a large array, and the answer is right."""
    np = pytest.importorskip("numpy")
    w1, w2 = workers(2)
    array = np.arange(300_000.0)
    assert np.array_equal(remotecall_fetch(doubled, w1, w2, array), array * 2)


def b1() -> int:
    return 1


def b2(pids: list[int]) -> int:
    return int(spawnat(pids[0], b1).fetch()) + 1


def b3(pids: list[int]) -> int:
    return int(spawnat(pids[0], b2, pids[1:]).fetch()) + 1


@pytest.mark.case("C064")
def test_chain_through_three_workers(workers: StartWorkers) -> None:
    """C064: each spawns on the next worker and adds one, the driver too."""
    w1, w2, w3 = workers(3)
    assert spawnat(w3, b3, [w2, w1]).fetch() + 1 == 4


@pytest.mark.case("C075")
def test_worker_calls_a_pid_that_never_was(workers: StartWorkers) -> None:
    """C075: an error at once; nobody's view of the cluster changes."""
    w1, w2 = workers(2)
    before = procs()
    with pytest.raises(RemoteException) as caught:
        remotecall_fetch(deeds.relay, w1, myid, 4711)
    assert isinstance(caught.value, ValueError)
    assert procs() == before == remotecall_fetch(procs, w1)
    assert remotecall_fetch(deeds.relay, w1, myid, w2) == w2


@pytest.mark.case("C076")
def test_all_pairs_at_once(workers: StartWorkers) -> None:
    """C076: four threads of each process call every other process, while the connections are still being made."""
    everyone = [1, *workers(2)]
    calls = []
    for one, other in product(everyone, everyone):
        if one == 1:
            calls.append((other, Aside(deeds.calls_to, other, 4, 10)))
        else:
            calls.append((other, Aside(remotecall_fetch, deeds.calls_to, one, other, 4, 10)))
    for other, call in calls:
        assert call.result(50) == [other] * 40


@pytest.mark.case("C082")
def test_error_through_two_workers(workers: StartWorkers) -> None:
    """C082: both hops show, and the root is found without counting them."""
    w1, w2 = workers(2)
    with pytest.raises(ValueError, match="boom") as caught:
        remotecall_fetch(deeds.relay, w1, jobs.fail, w2)
    assert isinstance(caught.value, RemoteException)
    assert type(caught.value.unwrap()) is ValueError
    assert all(f"worker {pid}" in str(caught.value) for pid in (w1, w2))


@pytest.mark.case("C089")
def test_second_put_is_refused_wherever_the_first_was(workers: StartWorkers) -> None:
    """C089: a Future of w1 goes to w2 in a channel, the driver puts; w2 sees it set, and may not put (D#124)."""
    w1, w2 = workers(2)
    channel: RemoteChannel[Any] = RemoteChannel(lambda: Channel(1), w2)
    for _ in range(100):
        future: Future[str] = Future(w1)
        channel.put(future)
        future.put("first")
        with pytest.raises(RuntimeError, match="written once") as caught:
            remotecall_fetch(take_ready_put, w2, channel)
        assert isinstance(caught.value, RemoteException)


@pytest.mark.case("C090")
def test_two_processes_fetch_at_the_same_time(workers: StartWorkers) -> None:
    """C090: (b) the driver and w2 fetch a Future of w1, asking in either order."""
    w1, w2 = workers(2)
    for _ in range(50):
        future = remotecall(jobs.identity, w1, "value")
        there = Aside(remotecall_fetch, fetch, w2, future)
        assert future.fetch(timeout=20) == "value"
        assert there.result(20) == "value"


@pytest.mark.case("C094")
def test_one_process_has_one_handle(workers: StartWorkers) -> None:
    """C094: what comes back is the very object that was sent, while it lives; in a worker, too."""
    w1, w2 = workers(2)
    refs: list[Any] = [remotecall(myid, w2), RemoteChannel(pid=w1)]
    for ref in refs:
        back = remotecall_fetch(jobs.identity, w1, ref)
        assert back is ref
        assert len({back, ref}) == 1
        first, second = remotecall_fetch(deeds.same_objects, w1, [ref, (ref,)], ref)
        assert (first, second) == (True, True)


@pytest.mark.case("C098")
def test_question_may_come_before_the_call(workers: StartWorkers) -> None:
    """C098: w2 asks w1 for the result of a call that is still on its way to w1, or runs."""
    w1, w2 = workers(2)
    for _ in range(20):
        future = remotecall(nap, w1, 0.01)
        assert remotecall_fetch(fetch, w2, future) == 0.01


@pytest.mark.case("C115")
def test_put_by_one_worker_into_another(workers: StartWorkers) -> None:
    """C115: (b) a channel of w1, filled by w2, emptied by the driver."""
    w1, w2 = workers(2)
    channel: RemoteChannel[str] = RemoteChannel(pid=w1)
    remotecall_fetch(distpool.put, w2, channel, "from w2")
    assert channel.take(timeout=20) == "from w2"


@pytest.mark.case("C117")
def test_take_waits_for_the_put_of_another_worker(workers: StartWorkers) -> None:
    """C117: (a) the driver waits at an empty channel of w1, and a put by w2 releases it."""
    w1, w2 = workers(2)
    channel: RemoteChannel[str] = RemoteChannel(pid=w1)
    waiting = Aside(channel.take)
    remote_do(distpool.put, w2, channel, "late")
    assert waiting.result(20) == "late"


def produce(channel: RemoteChannel[int], count: int) -> None:
    for number in range(count):
        channel.put(number)


def consume(channel: RemoteChannel[int], count: int) -> list[int]:
    return [channel.take() for _ in range(count)]


@pytest.mark.case("C125")
def test_producers_and_consumers_in_all_pairs(workers: StartWorkers) -> None:
    """C125: two of each in every pair of workers, over channels of w1, before any connection between them exists."""
    pair = workers(2)
    running = []
    for producer, consumer in product(pair, pair):
        for _ in range(2):
            channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), pair[0])
            running.append((consumer, Aside(remotecall_fetch, consume, consumer, channel, 50)))
            running.append((0, Aside(remotecall_fetch, produce, producer, channel, 50)))
    assert len(running) == 16
    for consumer, call in running:
        assert call.result(60) == (list(range(50)) if consumer else None)


@pytest.mark.case("C128")
def test_item_for_a_removed_taker_goes_to_the_next(workers: StartWorkers) -> None:
    """C128: w1 waits in take on a channel of the driver and is removed; the next item is w2's (J#53780)."""
    w1, w2 = workers(2)
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    channel: RemoteChannel[str] = RemoteChannel(lambda: Channel(1))
    waiting = Aside(remotecall_fetch, say_and_take, w1, started, channel)
    assert started.take(timeout=20) == w1
    rmprocs(w1)
    with pytest.raises(ProcessExitedException):
        waiting.result(20)
    channel.put("X")
    assert remotecall_fetch(distpool.take, w2, channel) == "X"


@pytest.mark.case("C146")
def test_global_of_a_worker_goes_to_the_next(run_script: RunScript) -> None:
    """C146: a function of `__main__` that mentions a global there is sent on by a worker, with that worker's value."""
    code, out, err = run_script(
        """
        from distpool import *
        w1, w2 = sorted(addprocs(2))
        unit = 1
        def with_unit(x):
            return unit * x
        def from_worker(pid):
            global unit
            unit = 60
            return remotecall_fetch(with_unit, pid, 2), remotecall_fetch(lambda: unit, pid)
        assert remotecall_fetch(from_worker, w1, w2) == (120, 60)
        assert unit == 1
        assert remotecall_fetch(with_unit, w2, 2) == 2
        print("end")
        """
    )
    assert (code, out, err) == (0, "end\n", "")


def map_pids(count: int) -> list[int]:
    """Runs in a worker: which processes `pmap` uses from here."""
    return list(pmap(deeds.pid_after_a_moment, range(count)))


@pytest.mark.case("C171")
def test_pmap_on_a_worker_uses_all_workers(workers: StartWorkers) -> None:
    """C171: started on a worker, `pmap` gives work to every worker of the cluster."""
    pids = workers(3)
    assert set(remotecall_fetch(map_pids, pids[0], 100)) == set(pids)


def inner(base: int) -> list[int]:
    """Runs in a worker: a pmap within a pmap."""
    return list(pmap(jobs.add, range(4), [base] * 4))


@pytest.mark.case("C185")
def test_pmap_within_pmap_on_the_default_pool(workers: StartWorkers) -> None:
    """C185: both on the default pool, two workers, four times four elements: right, and no hang."""
    assert workers(2) == distpool.workers()
    assert pmap(inner, range(4)) == [[base + x for x in range(4)] for base in range(4)]
