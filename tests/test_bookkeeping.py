"""References on their way between processes: nothing is freed that somebody needs, nothing stays that nobody does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from conformance import deeds

import distpool
from distpool import CachingPool, Channel, Future, RemoteChannel, WorkerPool, myid, remotecall, remotecall_fetch
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")

Eventually = Callable[..., None]


def make_send_put(pid: int, channel: RemoteChannel[Any]) -> None:
    """Runs in a worker: a Future of another worker goes to the driver, and is written by another way than it goes."""
    future: Future[int] = Future(pid)
    channel.put(future)
    future.put(7)


def fail_with(ref: Any) -> None:
    """Runs in a worker: an exception that carries a reference."""
    raise ValueError("look at this", ref)


def fail_with_own() -> None:
    """Runs in a worker: the only reference to a value goes away with an exception."""
    channel: RemoteChannel[str] = RemoteChannel(lambda: Channel(1))
    channel.put("inside")
    raise ValueError(channel)


def make_channel(text: str) -> RemoteChannel[str]:
    """Runs in a worker: a channel that only the result refers to."""
    channel: RemoteChannel[str] = RemoteChannel(lambda: Channel(1))
    return channel.put(text)


def counts(pids: list[int]) -> list[int]:
    """What each process keeps."""
    return [remotecall_fetch(deeds.refs_count, pid) for pid in pids]


def are_back(before: list[int], now: list[int]) -> bool:
    """Whether nothing has come to stay; what an earlier test left here may have gone since."""
    return all(new <= old for old, new in zip(before, now, strict=True))


def test_put_does_not_overtake_the_news_of_another_holder(workers: StartWorkers, eventually: Eventually) -> None:
    """w2 sends a Future of w1 to the driver (told by way of process 1) and writes it (directly): the driver gets it."""
    w1, w2 = workers(2)
    before = counts([w1, w2])
    channel: RemoteChannel[Future[int]] = RemoteChannel(lambda: Channel(1))
    for _ in range(100):
        remotecall_fetch(make_send_put, w2, w1, channel)
        assert channel.take().fetch(timeout=20) == 7
    eventually(lambda: are_back(before, counts([w1, w2])))


def test_task_that_waits_keeps_its_references(workers: StartWorkers, eventually: Eventually) -> None:
    """A submitted task holds a Future that is fetched and dropped here before the task is sent."""
    (worker,) = workers(1)
    before = counts([1, worker])
    gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(100))
    pool = WorkerPool([worker])
    held = [pool.submit(deeds.wait_then_return, gate, number) for number in range(4)]
    future = remotecall(jobs.identity, worker, "kept")
    waiting = [pool.submit(distpool.fetch, future) for _ in range(4)]
    assert future.fetch() == "kept"
    del future
    for _ in held:
        gate.put(0)
    assert [task.result(20) for task in waiting] == ["kept"] * 4
    del held, waiting, gate
    eventually(lambda: are_back(before, counts([1, worker])))


def test_future_sent_while_it_is_fetched(workers: StartWorkers, eventually: Eventually) -> None:
    """One thread fetches, the other sends: whoever is first, the receiver gets the value."""
    w1, w2 = workers(2)
    before = counts([w1, w2])
    for _ in range(100):
        gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), w1)
        future = remotecall(deeds.wait_then_return, w1, gate, "value")
        fetching = threading.Thread(target=future.fetch)
        fetching.start()
        gate.put(0)
        assert remotecall_fetch(distpool.fetch, w2, future) == "value"
        fetching.join()
        del future
    del gate
    eventually(lambda: are_back(before, counts([w1, w2])))


def test_references_in_exceptions(workers: StartWorkers, eventually: Eventually) -> None:
    """They count as any others: what an exception refers to is kept as long as it."""
    w1, w2 = workers(2)
    before = counts([w1, w2])
    with pytest.raises(ValueError, match="RemoteChannel") as caught:
        remotecall_fetch(fail_with_own, w1)
    (channel,) = caught.value.unwrap().args  # type: ignore[attr-defined]  # it is a RemoteException as well
    del caught
    assert remotecall_fetch(distpool.take, w2, channel) == "inside"
    with pytest.raises(ValueError, match="look"):
        remotecall_fetch(fail_with, w2, channel)
    del channel
    eventually(lambda: are_back(before, counts([w1, w2])))


def test_references_in_results_of_tasks(workers: StartWorkers, eventually: Eventually) -> None:
    """Results that hold the only reference to something, of many tasks in one message."""
    w1, w2 = workers(2)
    before = counts([w1, w2])
    channels = distpool.pmap(make_channel, [str(number) for number in range(50)])
    assert [channel.take() for channel in channels] == [str(number) for number in range(50)]
    del channels
    eventually(lambda: are_back(before, counts([w1, w2])))


def test_references_in_results_of_a_private_pool() -> None:
    """They belong to the pool's cluster, and are asked for there."""
    with WorkerPool(processes=1) as pool:
        channels = pool.map(make_channel, ["a", "b"])
        assert [channel.take(timeout=20) for channel in channels] == ["a", "b"]


def test_references_in_a_callable_that_is_kept(workers: StartWorkers, eventually: Eventually) -> None:
    """A CachingPool's callable keeps what it refers to until it is cleared."""
    (worker,) = workers(1)
    before = counts([1, worker])
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(10), worker)
    pool = CachingPool([worker])

    def put(number: int, channel: RemoteChannel[int] = channel) -> None:
        channel.put(number)

    pool.map(put, range(3))
    rrid = tuple(distpool.remoteref_id(channel))
    assert [channel.take() for _ in range(3)] == [0, 1, 2]
    del channel
    assert remotecall_fetch(deeds.refs_has, worker, rrid)
    del put
    pool.clear()
    del pool
    eventually(lambda: are_back(before, counts([1, worker])))


def test_failed_calls_leave_no_result(workers: StartWorkers, eventually: Eventually) -> None:
    """Calls that were dropped before they ended leave nothing, though thousands were released since."""
    (worker,) = workers(1)
    before = counts([worker])
    gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(100))
    for _ in range(20):
        remotecall(deeds.wait_then_return, worker, gate, None)
    for _ in range(6000):  # more than an owner remembers
        remotecall(myid, worker)
    eventually(lambda: are_back(before, counts([worker])))
    for _ in range(20):
        gate.put(0)
    assert remotecall_fetch(myid, worker) == worker
    eventually(lambda: not gate.isready() and are_back(before, counts([worker])))
