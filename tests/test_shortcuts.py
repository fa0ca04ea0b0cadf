"""Streams of items between processes: the short ways change what puts and takes cost, and nothing else."""

from __future__ import annotations

import math
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import Channel, ChannelClosedError, Future, ProcessExitedException, RemoteChannel, remotecall
from distpool import remotecall_fetch as call
from distpool.member import default_member
from support import traffic
from support.aside import Aside
from support.jobs import os_pid

if TYPE_CHECKING:
    from conftest import StartWorkers

MANY = 3000


def channel_of(size: float, pid: int | None = None) -> RemoteChannel[Any]:
    return RemoteChannel(lambda: Channel(size), pid)


def stream_to(pid: int, channel: RemoteChannel[Any], start: int = 0) -> int:
    """Let a worker take so much that it gets a short way; return the next number."""
    call(traffic.keep, pid, channel)
    for stop in range(start + 20, start + 2000, 20):
        channel.put_many(range(stop - 20, stop))
        assert call(traffic.warm_up_taking, pid, channel, 20) == list(range(stop - 20, stop))
        if call(traffic.has_shortcut, pid, channel)[0]:
            return stop
    raise AssertionError("a stream of takes got no short way")


@pytest.mark.parametrize("size", [math.inf, 100], ids=["endless", "limited"])
def test_worker_takes_a_stream(workers: StartWorkers, size: float) -> None:
    """All items, in order, and nearly all of them without asking."""
    (worker,) = workers(1)
    channel = channel_of(size)
    call(traffic.keep, worker, channel)
    taking = remotecall(traffic.warm_up_taking, worker, channel, MANY)
    for number in range(MANY):
        channel.put(number)
    assert taking.fetch() == list(range(MANY))
    assert call(traffic.has_shortcut, worker, channel)[0]


@pytest.mark.parametrize("size", [math.inf, 100], ids=["endless", "limited"])
def test_worker_puts_a_stream(workers: StartWorkers, size: float) -> None:
    """All items, in order."""
    (worker,) = workers(1)
    channel = channel_of(size)
    putting = remotecall(traffic.put_range, worker, channel, 0, MANY)
    assert [channel.take() for _ in range(MANY)] == list(range(MANY))
    assert putting.fetch()[1]


@pytest.mark.parametrize("size", [math.inf, 50], ids=["endless", "limited"])
def test_stream_between_workers(workers: StartWorkers, size: float) -> None:
    """Owner, producer and consumer are three processes."""
    one, other = workers(2)
    channel = channel_of(size)
    call(traffic.keep, one, channel)
    taking = remotecall(traffic.warm_up_taking, one, channel, MANY)
    putting = remotecall(traffic.put_range, other, channel, 0, MANY)
    assert taking.fetch() == list(range(MANY))
    assert call(traffic.has_shortcut, one, channel)[0]
    assert putting.fetch()[1]


@pytest.mark.parametrize("size", [0, 1, 5])
def test_small_channels_have_no_short_way(workers: StartWorkers, size: int) -> None:
    """Nothing is laid out where each put waits for its take."""
    (worker,) = workers(1)
    channel = channel_of(size)
    taking = remotecall(traffic.warm_up_taking, worker, channel, 200)
    for number in range(200):
        channel.put(number)
    assert taking.fetch() == list(range(200))
    assert call(traffic.has_shortcut, worker, channel) == (False, False)


def test_what_lies_on_a_shelf_is_in_the_channel(workers: StartWorkers) -> None:
    """The owner, the worker that could take it and a third process see and take it as if there were no shelf."""
    one, other = workers(2)
    channel = channel_of(20)
    start = stream_to(one, channel)
    here = default_member().channel(channel.rrid)
    for number in range(start, start + 20):
        channel.put(number)
    here.stock()
    assert here._shelf is not None
    assert here._shelf.count() == 20
    assert len(here) == 20
    for pid in (one, other, distpool.myid()):
        assert call(RemoteChannel.isready, pid, channel)
        assert call(RemoteChannel.fetch, pid, channel) == start
        assert not call(RemoteChannel.try_put, pid, channel, "too much")
    takers = [one, other, distpool.myid(), other, one]
    assert [call(RemoteChannel.take, pid, channel) for pid in takers] == list(range(start, start + 5))
    assert [channel.try_put(number) for number in range(6)] == [True] * 5 + [False]
    channel.close()
    assert call(list, other, channel) == [*range(start + 5, start + 20), *range(5)]
    with pytest.raises(ChannelClosedError):
        call(traffic.warm_up_taking, one, channel, 1)


def test_take_lets_in_who_waits_for_room(workers: StartWorkers) -> None:
    """Also when it is taken from the shelf; both lie idle before."""
    (worker,) = workers(1)
    channel = channel_of(20)
    start = stream_to(worker, channel)
    channel.put_many(range(start, start + 20))
    default_member().channel(channel.rrid).stock()
    putting = Aside(channel.put, "last")
    assert not putting.is_done(0.05)
    assert call(RemoteChannel.take, worker, channel) == start
    putting.result(30)


def test_put_is_seen_by_whoever_hears_of_it(workers: StartWorkers) -> None:
    """When a put has returned, the item is there for everybody, at once."""
    producer, witness = workers(2)
    for size in (math.inf, 200):
        channel = channel_of(size)
        call(traffic.keep, producer, channel)
        for start in range(0, 2000, 10):
            _, is_short = call(traffic.put_range, producer, channel, start, start + 10)
            looks = [len(default_member().channel(channel.rrid)) == 10] if start % 20 else []
            looks.append(call(RemoteChannel.isready, witness, channel))
            assert all(looks)
            assert channel.take_many(20) == list(range(start, start + 10))
        assert is_short


def test_killed_consumer_leaves_what_it_has_not_taken(workers: StartWorkers, tmp_path: Path) -> None:
    """Nothing but the one item in its hands goes with it, and order is kept."""
    for round in range(4):
        first, second = workers(2)
        channel = channel_of((math.inf, 500)[round % 2])
        process, path = call(os_pid, first), tmp_path / f"taken {round}"
        distpool.remote_do(traffic.take_and_note, first, channel, path)
        putting = Aside(traffic.put_range, channel, 0, 5 * MANY)
        while len(traffic.noted(path)) < 500 + 300 * round:
            assert not putting.is_done(0.001) or round % 2 == 0
        os.kill(process, signal.SIGKILL)
        rest = call(traffic.warm_up_taking, second, channel, 1000)
        taken = traffic.noted(path)
        assert taken == list(range(len(taken)))
        assert rest[0] - len(taken) in (0, 1)
        assert rest == list(range(rest[0], rest[0] + 1000))
        last = rest[-1]
        while last < 5 * MANY - 1:
            assert channel.take(timeout=30) == last + 1
            last += 1
        putting.result(30)
        distpool.rmprocs(second)


def test_killed_producer_leaves_what_it_has_put(workers: StartWorkers, tmp_path: Path) -> None:
    """Each put that has returned is in the channel; its places are free again."""
    for round in range(4):
        (producer,) = workers(1)
        channel = channel_of((math.inf, 500)[round % 2])
        process, path = call(os_pid, producer), tmp_path / f"put {round}"
        distpool.remote_do(traffic.put_and_note, producer, channel, 100 * MANY, path)
        taken = [channel.take() for _ in range(500 + 300 * round)]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(ProcessExitedException):
            call(os_pid, producer)
        put = traffic.noted(path)
        while (item := channel.try_take()) is not None:
            taken.append(item)
        assert taken == list(range(len(taken)))
        assert len(taken) - len(put) in (0, 1)
        if round % 2:
            for number in range(500):
                channel.put(number, timeout=30)


def test_many_consumers_and_producers_by_all_ways(workers: StartWorkers) -> None:
    """Each item goes to exactly one, and each consumer gets those of each producer in order."""
    pids = workers(3)
    channel = channel_of(64)
    consumers = [remotecall(traffic.take_all_in_threads, pid, channel, 2) for pid in pids[:2]]
    here = Aside(traffic.take_all_in_threads, channel, 1)
    producers = [remotecall(traffic.put_range, pids[2], channel, 0, MANY)]
    producers.append(remotecall(traffic.put_range, pids[1], channel, MANY, 2 * MANY))
    traffic.put_range(channel, 2 * MANY, 3 * MANY)
    for producer in producers:
        producer.fetch()
    channel.close()
    taken = [its for consumer in consumers for its in consumer.fetch()] + here.result(60)
    assert Counter(item for its in taken for item in its) == Counter(range(3 * MANY))
    for its in taken:
        for producer_number in range(3):
            of_one = [item for item in its if item // MANY == producer_number]
            assert of_one == sorted(of_one)


@pytest.mark.parametrize("size", [math.inf, 100], ids=["endless", "limited"])
def test_close_in_the_middle_of_streams(workers: StartWorkers, size: float) -> None:
    """What was put before is taken, what comes later is refused; nothing between."""
    pids = workers(3)
    channel = channel_of(size)
    producers = [remotecall(traffic.put_until_closed, pid, channel, place, 2) for place, pid in enumerate(pids[:2])]
    consumer: Future[list[int]] = remotecall(list, pids[2], channel)
    mine = [channel.take() for _ in range(MANY)]
    channel.close()
    counts = [producer.fetch() for producer in producers]
    taken = mine + consumer.fetch()
    expected = [place + 2 * number for place in (0, 1) for number in range(counts[place])]
    assert sorted(taken) == sorted(expected)


def test_taker_that_waits_is_served_before_the_shelf(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """Who has asked first gets the next item, though others could take without asking."""
    one, other = workers(2)
    channel = channel_of(math.inf)
    start = stream_to(one, channel)
    waiting = remotecall(distpool.take, other, channel)
    eventually(lambda: len(default_member().store._requests) == 1)
    quick = remotecall(traffic.warm_up_taking, one, channel, 2)
    channel.put_many([start, start + 1, start + 2])
    assert waiting.fetch() == start
    assert quick.fetch() == [start + 1, start + 2]


def test_withdrawn_take_takes_nothing(workers: StartWorkers) -> None:
    """At an empty channel with a short way, too."""
    (worker,) = workers(1)
    channel = channel_of(math.inf)
    start = stream_to(worker, channel)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            call(RemoteChannel.take, worker, channel, timeout=0.01)
        assert call(RemoteChannel.try_take, worker, channel, "nothing") == "nothing"
    channel.put(start)
    assert call(RemoteChannel.take, worker, channel, timeout=30) == start
    assert channel.isempty()


def test_large_and_strange_items_go_among_small_ones(workers: StartWorkers) -> None:
    """In order, both ways; what cannot lie on a shelf or in an inbox is asked for."""
    (worker,) = workers(1)
    items: list[Any] = [number if number % 50 else ["x" * 5000, {number: (number, [number])}] for number in range(500)]
    channel, back = channel_of(math.inf), channel_of(math.inf)

    def mirror(channel: Any, back: Any) -> None:
        for item in channel:
            back.put(item)

    mirroring = remotecall(mirror, worker, channel, back)
    for item in items:
        channel.put(item)
    channel.close()
    assert [back.take() for _ in items] == items
    mirroring.fetch()


def test_references_in_a_stream_are_counted(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """They are asked for, one by one, and freed when they are fetched."""
    (worker,) = workers(1)
    channel = channel_of(math.inf)
    start = stream_to(worker, channel)
    assert start
    before = len(default_member().store)
    taking = remotecall(traffic.take_futures, worker, channel, 50)
    for number in range(50):
        future: Future[int] = Future(distpool.myid())
        channel.put(future)
        future.put(number)
    del future
    assert taking.fetch() == sum(range(50))
    del taking
    eventually(lambda: len(default_member().store) <= before)


def test_items_of_a_dead_owner_are_gone(workers: StartWorkers) -> None:
    """Though they may still lie in the pipe."""
    owner, taker = workers(2)
    channel = channel_of(math.inf, owner)
    call(traffic.keep, taker, channel)
    stop = 0
    while not call(traffic.has_shortcut, taker, channel)[0]:
        channel.put_many(range(100))
        call(traffic.warm_up_taking, taker, channel, 100)
        assert (stop := stop + 1) < 50
    channel.put_many(range(500))
    call(traffic.warm_up_taking, taker, channel, 1)
    os.kill(call(os_pid, owner), signal.SIGKILL)
    with pytest.raises(ProcessExitedException):
        call(os_pid, owner)
    with pytest.raises(ProcessExitedException):
        call(traffic.warm_up_taking, taker, channel, 500)


def test_descriptors_are_given_back(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """When nobody needs a channel any more, neither side keeps one."""
    (worker,) = workers(1)
    call(traffic.put_range, worker, channel_of(math.inf), 0, 10)
    far, near = call(traffic.open_descriptors, worker), traffic.open_descriptors()
    for size in (math.inf, 50):
        channel = channel_of(size)
        stream_to(worker, channel)
        for _ in range(20):
            call(traffic.put_range, worker, channel, 0, 20)
            channel.take_many(100)
        assert call(traffic.has_shortcut, worker, channel) == (True, True)
        assert call(traffic.open_descriptors, worker) > far
        del channel
        call(traffic.let_go, worker)
        eventually(lambda: call(traffic.open_descriptors, worker) == far)
        eventually(lambda: traffic.open_descriptors() == near)


def test_handle_that_was_given_up_and_came_again(workers: StartWorkers) -> None:
    """A new handle gets its own short way."""
    (worker,) = workers(1)
    channel = channel_of(math.inf)
    start = stream_to(worker, channel)
    call(traffic.let_go, worker)
    assert call(traffic.has_shortcut, worker, channel) == (False, False)
    assert stream_to(worker, channel, start) > start


def test_a_worker_that_is_removed_gives_way(workers: StartWorkers) -> None:
    """What it could have taken is taken by others."""
    one, other = workers(2)
    channel = channel_of(50)
    start = stream_to(one, channel)
    channel.put_many(range(start, start + 50))
    default_member().channel(channel.rrid).stock()
    distpool.rmprocs(one)
    putting = Aside(channel.put, start + 50)
    assert call(traffic.warm_up_taking, other, channel, 51) == list(range(start, start + 51))
    putting.result(30)
