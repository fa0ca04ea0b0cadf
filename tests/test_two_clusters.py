"""References have a meaning in one cluster: what happens to those that would leave it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import Channel, Future, RemoteChannel, WorkerPool, remotecall, remotecall_fetch

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")

refused = pytest.raises(TypeError, match=r"where=\d+, whence=\d+, id=\d+\) belongs to another cluster.*WorkerPool")


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(processes=1) as pool:
        yield pool


def put(channel: Any, item: Any) -> None:
    """Runs in a worker."""
    channel.put(item)


def fail_with(value: Any) -> None:
    """Runs in a worker."""
    raise ValueError(value)


SENDS: dict[str, Callable[[WorkerPool, Any], object]] = {
    "argument": lambda pool, ref: pool.submit(put, ref, 1).result(20),
    "keyword": lambda pool, ref: pool.submit(put, channel=ref, item=1).result(20),
    "captured": lambda pool, ref: pool.submit(lambda: ref.put(1)).result(20),
    "item": lambda pool, ref: pool.map(put, [ref, ref], [1, 2]),
    "among others": lambda pool, ref: pool.map(repr, [1, ref, 2]),
    "captured in a map": lambda pool, ref: pool.map(lambda item: ref.put(item), [1, 2]),
    "stream": lambda pool, ref: list(pool.imap(put, [ref], [1])),
    "inside": lambda pool, ref: pool.submit(repr, {"deep": [ref]}).result(20),
}


@pytest.mark.parametrize("how", SENDS)
def test_reference_sent_to_a_pool_of_its_own(pool: WorkerPool, workers: StartWorkers, how: str) -> None:
    """A RemoteChannel, whoever owns it, and a Future: the call raises, and nothing else is harmed."""
    (worker,) = workers(1)
    here: RemoteChannel[int] = RemoteChannel(lambda: Channel(3))
    for ref in (here, RemoteChannel(lambda: Channel(3), worker), Future(worker), remotecall(abs, worker, -1)):
        with refused:
            SENDS[how](pool, ref)
    assert not here.isready()
    assert pool.map(abs, [-1, -2]) == [1, 2]


def test_good_tasks_beside_a_refused_one(pool: WorkerPool) -> None:
    """Only the one that holds the reference fails."""
    channel: RemoteChannel[int] = RemoteChannel()
    futures = [pool.submit(repr, item) for item in (1, channel, 2)]
    assert (futures[0].result(20), futures[2].result(20)) == ("1", "2")
    with refused:
        futures[1].result(20)


def test_reference_of_a_pool_sent_to_other_workers(pool: WorkerPool, workers: StartWorkers) -> None:
    """The same the other way round, in every kind of call; in its own cluster it goes on."""
    (worker,) = workers(1)
    theirs: RemoteChannel[Any] = pool.submit(RemoteChannel).result(20)
    there: RemoteChannel[Any] = RemoteChannel(lambda: Channel(3), worker)
    calls: list[Callable[[], object]] = [
        lambda: remotecall_fetch(put, worker, theirs, 1),
        lambda: remotecall_fetch(lambda: theirs, worker),
        lambda: remotecall(put, worker, theirs, 1),
        lambda: distpool.remotecall_wait(put, worker, theirs, 1),
        lambda: distpool.remote_do(put, worker, theirs, 1),
        lambda: distpool.pmap(put, [theirs], [1]),
        lambda: there.put(theirs),
        lambda: Future[Any](worker).put(theirs),
    ]
    for call in calls:
        with refused:
            call()
    assert not there.isready()
    pool.submit(put, theirs, 1).result(20)
    assert theirs.take(timeout=20) == 1
    assert remotecall_fetch(abs, worker, -1) == 1


def test_second_pool(pool: WorkerPool) -> None:
    """Two pools of their own are strangers to each other, too."""
    theirs: RemoteChannel[Any] = pool.submit(RemoteChannel).result(20)
    with WorkerPool(processes=1) as other, refused:
        other.submit(put, theirs, 1).result(20)


def test_item_that_its_taker_must_not_have(pool: WorkerPool, workers: StartWorkers) -> None:
    """Within this process a channel holds the object itself; a worker who takes it gets the error, and it stays."""
    (worker,) = workers(1)
    theirs: RemoteChannel[Any] = pool.submit(RemoteChannel).result(20)
    channel: RemoteChannel[Any] = RemoteChannel(lambda: Channel(3))
    channel.put(theirs)
    with refused:
        remotecall_fetch(distpool.take, worker, channel)
    assert channel.take(timeout=20) is theirs


def pool_inside(outer: Any) -> list[str]:
    """Runs in a worker, which has a pool of its own: what becomes of references on their way through it."""
    said = []
    with WorkerPool(processes=1) as inner:
        own: RemoteChannel[Any] = inner.submit(RemoteChannel).result(20)
        for call in (lambda: inner.submit(put, outer, 1).result(20), lambda: outer.put(own)):
            try:
                call()
            except TypeError as error:
                said.append(str(error))
        said.append(inner.submit(str, "works").result(20))
    return said


def return_own() -> Any:
    """Runs in a worker: a reference of a cluster of its own as a result."""
    with WorkerPool(processes=1) as inner:
        return inner.submit(RemoteChannel).result(20)


def raise_own() -> None:
    """Likewise, within an exception."""
    with WorkerPool(processes=1) as inner:
        fail_with(inner.submit(RemoteChannel).result(20))


@pytest.mark.parametrize("f", [return_own, raise_own])
def test_results_of_workers_that_have_pools(workers: StartWorkers, f: Callable[[], Any]) -> None:
    """A worker cannot hand out what only its own workers know: calls and tasks say so."""
    (worker,) = workers(1)
    with refused:
        remotecall_fetch(f, worker)
    with refused:
        remotecall(f, worker).fetch(timeout=20)
    with WorkerPool(processes=1) as pool:
        with refused:
            pool.submit(f).result(20)
        assert pool.submit(abs, -1).result(20) == 1


def test_pools_of_workers(workers: StartWorkers) -> None:
    """A worker's own pool and the cluster that it belongs to are as strange to each other."""
    w1, w2 = workers(2)
    said = remotecall_fetch(pool_inside, w1, RemoteChannel(lambda: Channel(3), w2))
    assert ["another cluster" in each for each in said] == [True, True, False]
