"""Numbered cases, section I: channels and remote channels, between the driver and workers that it reaches itself.

What two workers share is in test_worker_to_worker: a put by w2 into a channel of w1 (C115 b, C117 a; here w1 itself or
the driver puts), and the pairs of two different workers in C125 (here driver and w1 are the two processes).
"""

from __future__ import annotations

import array
import math
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import Channel, ChannelClosedError, RemoteChannel, RemoteException, remotecall, remotecall_fetch
from distpool.member import default_member
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers

KINDS: list[Callable[[], Any]] = [lambda: Channel(10), lambda: RemoteChannel(lambda: Channel(10))]
either_kind = pytest.mark.parametrize("make", KINDS, ids=["Channel", "RemoteChannel"])


def waiting() -> int:
    """How many operations wait at this process's channels: nobody announces that."""
    return len(default_member().store._requests)


def waits_for_ever(operation: Callable[..., Any], *args: Any) -> bool:
    """Whether an operation is still waiting when its time is up; it is then withdrawn."""
    try:
        operation(*args, timeout=0.1)
    except TimeoutError:
        return True
    return False


def put_all(channel: Any, items: Any) -> None:
    """Put items, then close."""
    for item in items:
        channel.put(item)
    channel.close()


@pytest.mark.case("C111")
@pytest.mark.parametrize("where", ["Channel", "here", "worker"])
def test_items_come_out_as_they_went_in(workers: StartWorkers, where: str) -> None:
    """C111: put, fetch, take, isready, isopen and close of a channel here and there."""
    (worker,) = workers(1)
    channel: Any = Channel(10)
    if where != "Channel":
        channel = RemoteChannel(lambda: Channel(10), worker if where == "worker" else None)
    for item in (1, "Hello", 5.0):
        channel.put(item)
    assert channel.isready()
    assert [channel.fetch(), channel.fetch()] == [1, 1]
    assert [channel.take(), channel.take(), channel.fetch(), channel.take()] == [1, "Hello", 5.0, 5.0]
    assert not channel.isready()
    assert channel.isopen()
    channel.close()
    assert not channel.isopen()


@pytest.mark.case("C112")
@either_kind
def test_iteration_ends_when_the_channel_is_closed(make: Callable[[], Any]) -> None:
    """C112: a thread copies one channel to another until the first is closed; puts into a closed channel raise."""
    source, target = make(), make()

    def copy() -> None:
        for item in source:
            target.put(item)

    copying = Aside(copy)
    source.put(1)
    source.put("Hello")
    source.close()
    copying.result(30)
    assert [target.take(), target.take()] == [1, "Hello"]
    with pytest.raises(ChannelClosedError):
        source.put("late")


@pytest.mark.case("C113")
def test_worker_consumes_what_the_driver_produces(workers: StartWorkers) -> None:
    """C113: a thread of the driver puts ten items through a channel of size one; the worker iterates or lists."""
    (worker,) = workers(1)
    for consume, expected in ((lambda channel: sum(1 for _ in channel), 10), (list, list(range(10)))):
        channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
        producing = Aside(put_all, channel, range(10))
        assert remotecall_fetch(consume, worker, channel) == expected
        producing.result(30)


@pytest.mark.case("C113")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_driver_consumes_what_the_worker_produces(workers: StartWorkers, owner_is_me: bool) -> None:
    """C113: the roles reversed; the channel may live on either side."""
    (worker,) = workers(1)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), None if owner_is_me else worker)

    def produce(channel: Any) -> None:
        for item in range(10):
            channel.put(item)
        channel.close()

    producing = remotecall(produce, worker, channel)
    assert list(channel) == list(range(10))
    producing.fetch()


@pytest.mark.case("C114")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_isempty_leaves_the_item(workers: StartWorkers, owner_is_me: bool) -> None:
    """C114: isempty neither waits nor takes an item."""
    (worker,) = workers(1)
    channel: RemoteChannel[str] = RemoteChannel(lambda: Channel(2), None if owner_is_me else worker)
    assert channel.isempty() is True
    channel.put("item")
    assert channel.isempty() is False
    assert channel.take() == "item"
    assert channel.isempty() is True


@pytest.mark.case("C115")
def test_plain_remote_channel_is_here_and_has_one_place() -> None:
    """C115 (a): without a factory: owner me, capacity one; the second put waits for a take."""
    channel: RemoteChannel[int] = RemoteChannel()
    assert channel.where == distpool.myid()
    channel.put(1)
    assert waits_for_ever(channel.put, 2)
    putting = Aside(channel.put, 3)
    assert channel.take() == 1
    putting.result(30)
    assert channel.take() == 3


@pytest.mark.case("C115")
def test_channel_at_a_worker_serves_both_sides(workers: StartWorkers) -> None:
    """C115 (b), in part: a channel at w1 takes puts of w1 and of the driver, and gives to the driver."""
    (worker,) = workers(1)
    channel: RemoteChannel[str] = RemoteChannel(pid=worker)
    assert channel.where == worker
    channel.put("from the driver")
    assert channel.take() == "from the driver"
    remotecall_fetch(lambda c: c.put("from w1") and None, worker, channel)
    assert channel.take() == "from w1"


@pytest.mark.case("C116")
def test_factory_that_raises(workers: StartWorkers) -> None:
    """C116: an error of the factory is raised by the constructor."""
    (worker,) = workers(1)
    with pytest.raises(RemoteException, match="boom"):
        RemoteChannel(jobs.fail, worker)


@pytest.mark.case("C117")
def test_take_waits_for_a_put(workers: StartWorkers) -> None:
    """C117 (a), in part: take on an empty channel at w1 waits until something is put there."""
    (worker,) = workers(1)
    channel: RemoteChannel[int] = RemoteChannel(pid=worker)
    assert waits_for_ever(channel.take)
    taking = Aside(channel.take)
    remotecall_fetch(lambda c: c.put(17) and None, worker, channel)
    assert taking.result(30) == 17


@pytest.mark.case("C117")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_puts_are_chained(workers: StartWorkers, owner_is_me: bool) -> None:
    """C117 (b): put returns the channel."""
    (worker,) = workers(1)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(2), None if owner_is_me else worker)
    assert distpool.put(channel, 1).put(2) is channel
    assert [channel.take(), channel.take()] == [1, 2]


@pytest.mark.case("C118")
def test_own_channel_holds_the_object_itself() -> None:
    """C118 (a): a channel of this process holds the object; three puts of one list are one list, as it is now."""
    channel: RemoteChannel[list[int]] = RemoteChannel(lambda: Channel(3))
    value = [0]
    for count in (1, 2, 3):
        value[0] = count
        channel.put(value)
    taken = [channel.take() for _ in range(3)]
    assert all(each is value for each in taken)
    assert value == [3]


@pytest.mark.case("C118")
def test_channel_elsewhere_holds_copies(workers: StartWorkers) -> None:
    """C118 (b): a channel elsewhere gets a copy at each put."""
    (worker,) = workers(1)
    channel: RemoteChannel[list[int]] = RemoteChannel(lambda: Channel(3), worker)
    value = [0]
    for count in (1, 2, 3):
        value[0] = count
        channel.put(value)
    taken = [channel.take() for _ in range(3)]
    assert taken == [[1], [2], [3]]
    assert len({id(each) for each in taken}) == 3


@pytest.mark.case("C119")
@pytest.mark.parametrize("kind", ["array", "numpy"])
def test_unbuffered_put_returns_after_the_value_was_read(workers: StartWorkers, kind: str) -> None:
    """C119: the driver changes one large buffer between puts on an unbuffered channel; the worker sees each state."""
    (worker,) = workers(1)
    channel: RemoteChannel[Any] = RemoteChannel(lambda: Channel(0))
    value: Any = array.array("d", bytes(8 * 100_000))
    if kind == "numpy":
        import numpy as np

        value = np.zeros(100_000)
    taking = remotecall(lambda c: [float(c.take()[0]) for _ in range(10)], worker, channel)
    for count in range(1, 11):
        value[0] = count
        channel.put(value)
    assert taking.fetch() == [float(count) for count in range(1, 11)]


@pytest.mark.case("C120")
def test_failed_take_leaves_the_channel_usable(workers: StartWorkers) -> None:
    """C120: take from a closed unbuffered channel at w1 raises; what follows on that channel does not hang."""
    (worker,) = workers(1)
    channel: RemoteChannel[Any] = RemoteChannel(lambda: Channel(0), worker)
    channel.close()
    with pytest.raises(ChannelClosedError):
        channel.take()
    assert channel.isready() is False
    with pytest.raises(ChannelClosedError):
        channel.put(1)


@pytest.mark.case("C121")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_fetch_needs_a_buffer(workers: StartWorkers, owner_is_me: bool) -> None:
    """C121: fetch on an unbuffered channel is an error, not a hang."""
    (worker,) = workers(1)
    channel: RemoteChannel[Any] = RemoteChannel(lambda: Channel(0), None if owner_is_me else worker)
    with pytest.raises(RuntimeError, match="holds items"):
        channel.fetch()


@pytest.mark.case("C122")
def test_close_wakes_a_taker_elsewhere(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C122 (a): a worker that waits in take gets the channel's error when the driver closes the channel."""
    (worker,) = workers(1)
    channel: RemoteChannel[Any] = RemoteChannel()
    taking = remotecall(distpool.take, worker, channel)
    eventually(lambda: waiting() == 1)
    channel.close()
    with pytest.raises(ChannelClosedError):
        taking.fetch()


@pytest.mark.case("C122")
def test_close_wakes_a_putter_elsewhere(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C122 (b): a worker that waits for space in put gets the channel's error; what was put before can be taken."""
    (worker,) = workers(1)
    channel: RemoteChannel[Any] = RemoteChannel()
    channel.put("in time")
    putting = remotecall(lambda c: c.put("too late") and None, worker, channel)
    eventually(lambda: waiting() == 1)
    channel.close()
    with pytest.raises(ChannelClosedError):
        putting.fetch()
    assert channel.take() == "in time"


@pytest.mark.case("C122")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_closed_channel_gives_what_is_left(workers: StartWorkers, owner_is_me: bool) -> None:
    """C122 (c): closed with one item left: ready and not open; then not ready, and take raises the same bare error."""
    (worker,) = workers(1)
    channel: RemoteChannel[str] = RemoteChannel(lambda: Channel(2), None if owner_is_me else worker)
    channel.put("last")
    channel.close()
    assert (channel.isready(), channel.isopen()) == (True, False)
    assert channel.take() == "last"
    assert channel.isready() is False
    with pytest.raises(ChannelClosedError) as raised:
        channel.take()
    assert not isinstance(raised.value, RemoteException)


@pytest.mark.case("C123")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_own_backing_store(workers: StartWorkers, owner_is_me: bool) -> None:
    """C123: any object with put, take, fetch and isready can hold the items; arguments are passed through."""
    (worker,) = workers(1)

    class Keyed:
        def __init__(self) -> None:
            self.items: dict[Any, Any] = {}

        def put(self, key: Any, value: Any) -> None:
            self.items[key] = value

        def take(self, key: Any) -> Any:
            return self.items.pop(key)

        def fetch(self, key: Any) -> Any:
            return self.items[key]

        def isready(self, key: Any) -> bool:
            return key in self.items

    channel: RemoteChannel[Any] = RemoteChannel(Keyed, None if owner_is_me else worker)
    assert channel.put("a", 1) is channel
    assert channel.isready("a")
    assert channel.fetch("a") == 1
    assert channel.take("a") == 1
    assert channel.isready("a") is False


@pytest.mark.case("C124")
def test_farm_of_jobs_and_results(workers: StartWorkers) -> None:
    """C124: four workers, started by remote_do, take jobs and put results: twelve results, and everybody worked."""
    pids = workers(4)
    todo: RemoteChannel[int] = RemoteChannel(lambda: Channel(32))
    results: RemoteChannel[tuple[int, int]] = RemoteChannel(lambda: Channel(32))
    go: RemoteChannel[None] = RemoteChannel(lambda: Channel(32))

    def work(todo: Any, results: Any, go: Any) -> None:
        for job in todo:
            results.put((job, distpool.myid()))
            go.take()  # so that nobody has two jobs before everybody has one

    for job in range(12):
        todo.put(job)
    todo.close()
    for pid in pids:
        distpool.remote_do(work, pid, todo, results, go)
    done = [results.take() for _ in range(4)]
    assert sorted(pid for _, pid in done) == pids
    for _ in range(12):
        go.put(None)
    done += [results.take() for _ in range(8)]
    assert sorted(job for job, _ in done) == list(range(12))


@pytest.mark.case("C125")
def test_producers_and_consumers_everywhere(workers: StartWorkers) -> None:
    """C125, with the driver as the second process: all pairs of producer and consumer, two threads each, over one
    owner.
    """
    (worker,) = workers(1)
    me = distpool.myid()

    def consume(channel: Any) -> Any:
        return channel.take()

    def produce(channel: Any) -> None:
        channel.put(distpool.myid())

    pairs = []
    for producer, consumer in product((me, worker), repeat=2):
        for _ in range(2):
            channel: RemoteChannel[int] = RemoteChannel(pid=worker)
            taken = Aside(remotecall_fetch, consume, consumer, channel)
            pairs.append((producer, taken, Aside(remotecall_fetch, produce, producer, channel)))
    for producer, taken, done in pairs:
        done.result(60)
        assert taken.result(60) == producer


@pytest.mark.case("C126")
def test_channel_is_sent_as_a_copy(workers: StartWorkers) -> None:
    """C126 (a): a Channel that is sent arrives as an independent copy with its items."""
    (worker,) = workers(1)
    channel: Channel[int] = Channel(2)
    channel.put(1)

    def use(copy: Any) -> tuple[int, int]:
        copy.put(2)
        return copy.take(), copy.take()

    assert remotecall_fetch(use, worker, channel) == (1, 2)
    assert len(channel) == 1


@pytest.mark.case("C126")
def test_remote_channel_is_one_for_all(workers: StartWorkers) -> None:
    """C126 (b): a RemoteChannel that is sent to two workers is one store: the driver takes what both have put."""
    pids = workers(2)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(2))
    for pid in pids:
        remotecall_fetch(lambda c: c.put(distpool.myid()) and None, pid, channel)
    assert [channel.take(), channel.take()] == pids


@pytest.mark.case("C127")
def test_sizes_of_channels() -> None:
    """C127: a negative size is a ValueError, an infinite channel never blocks put, an unbuffered one until a take."""
    with pytest.raises(ValueError, match="-1"):
        Channel(-1)
    endless: Channel[int] = Channel(math.inf)
    for item in range(10_000):
        endless.put(item, timeout=0)
    assert len(endless) == 10_000
    meeting: Channel[str] = Channel(0)
    assert waits_for_ever(meeting.put, "nobody takes")
    putting = Aside(meeting.put, "taken")
    assert meeting.take() == "taken"
    putting.result(30)


@pytest.mark.case("C128")
def test_item_is_not_lost_to_a_taker_that_is_gone(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C128: w1 waits in take and is removed; the item that is put then goes to w2."""
    w1, w2 = workers(2)
    channel: RemoteChannel[str] = RemoteChannel()
    remotecall(distpool.take, w1, channel)
    eventually(lambda: waiting() == 1)
    distpool.rmprocs(w1)
    channel.put("X")
    assert remotecall_fetch(distpool.take, w2, channel) == "X"


@pytest.mark.case("C129")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_timed_out_take_takes_nothing(workers: StartWorkers, owner_is_me: bool) -> None:
    """C129: take with a timeout raises TimeoutError; the next put and take have their item."""
    (worker,) = workers(1)
    channel: RemoteChannel[str] = RemoteChannel(pid=None if owner_is_me else worker)
    with pytest.raises(TimeoutError):
        channel.take(timeout=0.2)
    channel.put("item")
    assert channel.take(timeout=10) == "item"


@pytest.mark.case("C130")
@pytest.mark.parametrize("takers_are_here", [True, False], ids=["threads", "workers"])
def test_takers_are_served_in_order(
    workers: StartWorkers, eventually: Callable[..., None], takers_are_here: bool
) -> None:
    """C130: five takers wait, five items are put: each item goes to one taker, in the order of their arrival."""
    pids = workers(1)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(5))
    takers: list[Any] = []
    for count in range(1, 6):
        if takers_are_here:
            takers.append(Aside(channel.take).result)
        else:
            takers.append(remotecall(distpool.take, pids[0], channel).fetch)
        eventually(lambda count=count: waiting() == count)
    for item in range(5):
        channel.put(item)
    assert [taker(timeout=30) for taker in takers] == list(range(5))
