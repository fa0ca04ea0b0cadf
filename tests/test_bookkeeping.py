"""References on their way between processes: nothing is freed that somebody needs, nothing stays that nobody does."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from conformance import deeds

import distpool
from distpool import CachingPool, Channel, Future, RemoteChannel, WorkerPool, myid, remotecall, remotecall_fetch
from distpool.entries import TOMBSTONES
from distpool.member import default_member
from distpool.messages import RRID
from support import jobs
from support.aside import Aside

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


def tell_and_die(kept: RemoteChannel[Any], pids: list[int]) -> None:
    """Runs in a worker: as if it were killed between its news that others get a reference and the message itself."""
    member = default_member()
    assert kept._claim is not None
    for pid in pids:
        member.books.announce([kept._claim], pid)
    os.kill(os.getpid(), signal.SIGKILL)


def give_and_die(kept: RemoteChannel[Any], to: RemoteChannel[Any]) -> None:
    """Runs in a worker: as if its news were lost when it was killed, and the message itself not."""
    books = default_member().books
    books.announce = lambda claims, pid: None  # type: ignore[method-assign]
    to.put(kept)
    os.kill(os.getpid(), signal.SIGKILL)


def ask(ref: RemoteChannel[Any]) -> bool:
    """Runs in a worker: use a reference."""
    return ref.isready()


@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_giver_dies_before_its_message(workers: StartWorkers, eventually: Eventually, owner_is_me: bool) -> None:
    """Nobody keeps what was announced and never came; what did come is kept."""
    w1, w2, w3 = workers(3)
    owner = 1 if owner_is_me else w1
    before = counts([1, w1])
    kept: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), owner)
    assert not remotecall_fetch(ask, w2, kept)
    remotecall_fetch(deeds.append, w3, kept)
    with pytest.raises(distpool.ProcessExitedException):
        remotecall_fetch(tell_and_die, w2, kept, [1, w1, w3])
    rrid = tuple(distpool.remoteref_id(kept))
    del kept
    eventually(lambda: remotecall_fetch(holders, owner, rrid) == [w3])
    remotecall_fetch(deeds.kept, w3)
    eventually(lambda: are_back(before, counts([1, w1])))


def holders(rrid: tuple[int, int]) -> list[int]:
    """Runs at the owner: who holds a reference."""
    return sorted(default_member().store.clients(RRID(*rrid)))


def test_giver_dies_after_its_message(workers: StartWorkers, eventually: Eventually) -> None:
    """A reference whose owner was not told of it is given back all the same, and leaves nothing."""
    w1, w2 = workers(2)
    before = counts([w1])
    mailbox: RemoteChannel[Any] = RemoteChannel(lambda: Channel(1))
    kept: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), w1)
    kept.put(1)
    with pytest.raises(distpool.ProcessExitedException):
        remotecall_fetch(give_and_die, w2, kept, mailbox)
    assert mailbox.take() is kept
    assert kept.take() == 1
    del kept
    eventually(lambda: are_back(before, counts([w1])))


def call_and_drop(pid: int, count: int) -> None:
    """Runs in a worker: many calls whose results nobody wants."""
    for _ in range(count):
        remotecall(jobs.identity, pid, None)


def test_calls_between_workers_leave_no_result(workers: StartWorkers, eventually: Eventually) -> None:
    """Their results are given up sooner than the calls are read, and an owner does not remember all it released."""
    w1, w2 = workers(2)
    before = counts([w1])
    gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    holding = remotecall(deeds.wait_then_return, w1, gate, None)
    remotecall_fetch(call_and_drop, w2, w1, 2 * TOMBSTONES)
    gate.put(0)
    holding.fetch()
    assert remotecall_fetch(remotecall_fetch, w2, myid, w1) == w1  # behind all of them
    eventually(lambda: are_back(before, counts([w1])))


def end_with(ref: Any) -> None:
    """Runs in a worker: its end, instead of an answer."""
    jobs.kill_self()


def test_failures_keep_no_references(workers: StartWorkers, eventually: Eventually) -> None:
    """What went along with a call that failed is given back without a garbage collection."""
    (worker,) = workers(1)
    before = counts([1, worker])
    gc.disable()
    try:
        for _ in range(3):
            closed: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
            with pytest.raises(distpool.RemoteException):
                remotecall_fetch(fail_with, worker, closed)
            closed.close()
            with pytest.raises(distpool.ChannelClosedError):
                closed.put(1)
            with pytest.raises(distpool.ChannelClosedError):
                remotecall_fetch(distpool.take, worker, closed)
            del closed
            there: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), worker)
            there.close()
            with pytest.raises(distpool.ChannelClosedError):
                there.take()
            with pytest.raises(TimeoutError):
                Future(worker).fetch(timeout=0)
            with pytest.raises(ValueError, match="RemoteChannel"):
                remotecall(jobs.fail, worker, there).fetch()
            del there
            eventually(lambda: are_back(before, counts([1, worker])))
        with pytest.raises(distpool.ProcessExitedException):
            remotecall_fetch(end_with, worker, RemoteChannel())
        eventually(lambda: are_back(before[:1], counts([1])))
    finally:
        gc.enable()


class Overtaken(Future[str]):
    """A Future that another thread writes just when this one has looked for its value in vain."""

    __slots__ = ("written",)

    def _other_fetcher(self) -> Any:
        if not hasattr(self, "written"):
            self.written = Aside(self.put, "written")
            self.written.result()
        return super()._other_fetcher()


@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_future_written_while_it_is_fetched(workers: StartWorkers, eventually: Eventually, owner_is_me: bool) -> None:
    """Who fetches finds that the value has come, and does not ask an owner who has released it."""
    (worker,) = workers(1)
    before = counts([1, worker])
    value = "".join(["writ", "ten"])
    future = Overtaken(1 if owner_is_me else worker)
    assert future.fetch(timeout=20) == value
    del future

    def fetch_and_put(future: Future[str]) -> None:
        fetching = [Aside(future.fetch, 20) for _ in range(3)]
        future.put(value)
        assert future.fetch() == value
        assert all(each.result() is future.fetch() for each in fetching)

    for _ in range(50):
        fetch_and_put(Future(1 if owner_is_me else worker))
    eventually(lambda: are_back(before, counts([1, worker])))
