"""Rows about channels: small items from one process to another, one by one, beside the queues of multiprocessing.

Each row has one producer and one consumer, and where nothing else is said all have room for everything that is under
way, as an unbounded queue has. A pipe with nothing on it is the limit: it serves two processes only, and none of them
may die.
"""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from tests.bench.runner import Contender, Goal, Measure, Row, Scale

# Which of the three parties puts, owns and takes: the driver, or one of two workers.
DRIVER, FIRST, SECOND = "driver", "first worker", "second worker"
FORK = multiprocessing.get_context("fork")


def put_all(put: Callable[[int], object], count: int) -> None:
    """Produce."""
    for number in range(count):
        put(number)


def take_all(take: Callable[[], int], count: int) -> None:
    """Consume; the items must be all, in order."""
    for number in range(count):
        if take() != number:
            raise AssertionError("an item was lost, or came out of order")


def unlimited() -> Any:
    """The store behind our channel, made by its owner."""
    from distpool import Channel

    return Channel(math.inf)


def limited() -> Any:
    """One that holds a hundred items; who puts more waits."""
    from distpool import Channel

    return Channel(100)


TOGETHER = 100


def put_into_channel(channel: Any, count: int, way: str) -> None:
    """Produce here, for our channel: one by one, or so many together."""
    if way == "many":
        for start in range(0, count, TOGETHER):
            channel.put_many(range(start, start + TOGETHER))
    else:
        put_all(channel.put, count)


def take_from_channel(channel: Any, count: int, way: str) -> None:
    """Consume here, from our channel: one by one, by iteration, or what is there together."""
    if way == "iteration":
        items = iter(channel)
        take_all(lambda: next(items), count)
    elif way == "many":
        items = (item for _ in range(count) for item in channel.take_many(TOGETHER))
        take_all(lambda: next(items), count)
    else:
        take_all(channel.take, count)


def _per_item(count: int, transfer: Callable[[], object]) -> Measure:
    """Seconds for one item, the mean of `count`."""

    def measure() -> float:
        start = time.perf_counter()
        transfer()
        return (time.perf_counter() - start) / count

    return measure


@contextmanager
def _ours(
    producer: str, owner: str, consumer: str, count: int, way: str = "", make: Callable[[], Any] = unlimited
) -> Iterator[Measure]:
    from distpool import RemoteChannel, addprocs, remotecall, rmprocs

    pids = addprocs(2)
    at = {DRIVER: 1, FIRST: pids[0], SECOND: pids[1]}

    def transfer() -> None:
        roles = ((consumer, take_from_channel), (producer, put_into_channel))
        away = [remotecall(move, at[party], channel, count, way) for party, move in roles if party != DRIVER]
        for party, move in roles:
            if party == DRIVER:
                move(channel, count, way)
        for future in away:
            future.fetch()

    try:
        channel: Any = RemoteChannel(make, at[owner])
        yield _per_item(count, transfer)
    finally:
        rmprocs(pids)


class _Child:
    """A process of multiprocessing that moves items when told to."""

    def __init__(self, move: Callable[[int], None]) -> None:
        self.orders, orders = FORK.Pipe()
        self.process: BaseProcess = FORK.Process(target=_serve, args=(orders, move), daemon=True)
        self.process.start()
        orders.close()

    def begin(self, count: int) -> None:
        """Tell it."""
        self.orders.send(count)

    def end(self) -> None:
        """Wait until it has moved them."""
        self.orders.recv()

    def close(self) -> None:
        """End it."""
        self.orders.send(0)
        self.process.join()


def _serve(orders: Connection, move: Callable[[int], None]) -> None:
    while count := orders.recv():
        move(count)
        orders.send(None)


@contextmanager
def _between(
    put: Callable[[int], object], take: Callable[[], int], producer: str, consumer: str, count: int
) -> Iterator[Measure]:
    """The same with processes of multiprocessing."""
    roles = ((producer, partial(put_all, put)), (consumer, partial(take_all, take)))
    children = [_Child(move) for party, move in roles if party != DRIVER]

    def transfer() -> None:
        for child in children:
            child.begin(count)
        for party, move in roles:
            if party == DRIVER:
                move(count)
        for child in children:
            child.end()

    try:
        yield _per_item(count, transfer)
    finally:
        for child in children:
            child.close()


@contextmanager
def _queue(producer: str, consumer: str, count: int) -> Iterator[Measure]:
    queue: Any = FORK.Queue()
    with _between(queue.put, queue.get, producer, consumer, count) as measure:
        yield measure
    queue.close()
    queue.join_thread()


@contextmanager
def _manager_queue(producer: str, consumer: str, count: int) -> Iterator[Measure]:
    with FORK.Manager() as manager:
        queue: Any = manager.Queue()
        with _between(queue.put, queue.get, producer, consumer, count) as measure:
            yield measure


@contextmanager
def _pipe(producer: str, consumer: str, count: int) -> Iterator[Measure]:
    receiving, sending = FORK.Pipe(duplex=False)
    with receiving, sending, _between(sending.send, receiving.recv, producer, consumer, count) as measure:
        yield measure


def _contenders(producer: str, owner: str, consumer: str, scale: Scale) -> Sequence[Contender]:
    count = scale.size(20_000, 500)
    return [
        # Forked peers first: forked from a process that has as little open as possible.
        Contender("multiprocessing.Queue", partial(_queue, producer, consumer, count)),
        Contender("Manager().Queue", partial(_manager_queue, producer, consumer, count)),
        Contender("raw", partial(_pipe, producer, consumer, count)),
        Contender("distpool", partial(_ours, producer, owner, consumer, count)),
        Contender("distpool, iteration", partial(_ours, producer, owner, consumer, count, "iteration")),
        Contender("distpool, put_many and take_many", partial(_ours, producer, owner, consumer, count, "many")),
        Contender("distpool, limit of 100", partial(_ours, producer, owner, consumer, count, "", limited)),
    ]


def _row(name: str, producer: str, owner: str, consumer: str) -> Row:
    goals = [Goal("at least 3 × Manager().Queue", 1 / 3, "Manager().Queue")]
    if producer == owner:
        goals.append(Goal("not slower than multiprocessing.Queue", 1.0, "multiprocessing.Queue"))
    return Row(
        name,
        f"one small item through a channel: {producer} puts, {owner} owns, {consumer} takes",
        partial(_contenders, producer, owner, consumer),
        goals=tuple(goals),
        note="20,000 items for each sample, all samples through the same channel, put and taken one by one. "
        "Raw: `multiprocessing.Pipe`, which has no store, and only one who sends. Many: 100 at a time. Limit: the "
        "others have none.",
    )


ROWS = [
    _row("channel-to-owner", FIRST, DRIVER, DRIVER),
    _row("channel-from-owner", FIRST, FIRST, DRIVER),
    _row("channel-to-worker", DRIVER, DRIVER, FIRST),
    _row("channel-workers", FIRST, FIRST, SECOND),
    _row("channel-apart", FIRST, DRIVER, SECOND),
]
