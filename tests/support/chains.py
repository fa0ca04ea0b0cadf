"""Chains of channels and calls through all processes, for long runs under load: each round checks what it gets.

A round ends by itself and waits at most ``PATIENCE`` seconds for anything, so that a hang shows as a TimeoutError that
says where. Light, because workers import it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import distpool
from distpool import Channel, ChannelClosedError, Future, RemoteChannel, myid, remotecall, remotecall_fetch
from distpool.member import default_member

PATIENCE = 120.0


def kept() -> int:
    """Count what this process keeps for references."""
    return len(default_member().store)


def claims() -> int:
    """Count the references that this process holds."""
    return len(default_member().books.claims._records)


def chain(pids: list[int], value: int) -> int:
    """Call through all pids, one inside the other; each adds one."""
    if not pids:
        return value
    return 1 + remotecall(chain, pids[0], pids[1:], value).fetch(timeout=PATIENCE)


def work(todo: RemoteChannel[int], results: RemoteChannel[tuple[int, int]]) -> int:
    """Serve a farm until there is nothing left to do."""
    count = 0
    while True:
        try:
            job = todo.take(timeout=PATIENCE)
        except ChannelClosedError:
            return count
        results.put((job, job * job), timeout=PATIENCE)
        count += 1


def forward(source: RemoteChannel[Any], target: RemoteChannel[Any], count: int) -> None:
    """Pass items on."""
    for _ in range(count):
        target.put(source.take(timeout=PATIENCE), timeout=PATIENCE)


def answer(letters: RemoteChannel[RemoteChannel[int]], count: int) -> None:
    """Take channels out of a channel, and put a number into each."""
    for number in range(count):
        letters.take(timeout=PATIENCE).put(number)


def write(future: Future[int], value: int) -> None:
    """Write a Future of another process."""
    future.put(value)


def farm(pids: list[int], random: random.Random) -> None:
    """One channel of jobs, one of results, every worker takes and puts."""
    owner, other = random.choices([myid(), *pids], k=2)
    todo: RemoteChannel[int] = RemoteChannel(lambda: Channel(8), owner)
    results: RemoteChannel[tuple[int, int]] = RemoteChannel(lambda: Channel(4), other)
    working = [remotecall(work, pid, todo, results) for pid in pids]
    feeding = remotecall(feed, random.choice([myid(), *pids]), todo, 100)
    got = sorted(results.take(timeout=PATIENCE) for _ in range(100))
    assert got == [(job, job * job) for job in range(100)]
    feeding.fetch(timeout=PATIENCE)
    assert sum(each.fetch(timeout=PATIENCE) for each in working) == 100


def feed(todo: RemoteChannel[int], count: int) -> None:
    """Put jobs, then close."""
    for job in range(count):
        todo.put(job, timeout=PATIENCE)
    todo.close()


def line(pids: list[int], random: random.Random) -> None:
    """Items go through channels of all processes, some of which hold nothing, in order."""
    order = random.sample(pids, len(pids))
    size = random.choice([0, 1, 3])
    channels: list[RemoteChannel[int]] = [RemoteChannel(lambda: Channel(size), pid) for pid in [*order, myid()]]
    passing = [remotecall(forward, random.choice(pids), source, target, 30) for source, target in pairwise(channels)]
    feeding = remotecall(feed, order[-1], channels[0], 30)
    assert [channels[-1].take(timeout=PATIENCE) for _ in range(30)] == list(range(30))
    for each in [*passing, feeding]:
        each.fetch(timeout=PATIENCE)


def calls(pids: list[int], random: random.Random) -> None:
    """Calls in calls, through all workers and back."""
    for _ in range(5):
        order = random.choices([*pids, myid()], k=6)
        assert chain(order, 10) == 16


def letters(pids: list[int], random: random.Random) -> None:
    """Channels travel in channels, and are answered by whoever takes them."""
    mailbox: RemoteChannel[RemoteChannel[int]] = RemoteChannel(lambda: Channel(2), random.choice(pids))
    answering = remotecall(answer, random.choice(pids), mailbox, 20)
    for number in range(20):
        reply: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), random.choice([myid(), *pids]))
        mailbox.put(reply, timeout=PATIENCE)
        assert reply.take(timeout=PATIENCE) == number
    answering.fetch(timeout=PATIENCE)


def futures(pids: list[int], random: random.Random) -> None:
    """Futures of one worker, written by another, fetched here and by a third."""
    for number in range(20):
        owner, writer, reader = (random.choice([myid(), *pids]) for _ in range(3))
        future: Future[int] = Future(owner)
        reading = remotecall(distpool.fetch, reader, future)
        writing = remotecall(write, writer, future, number)
        assert future.fetch(timeout=PATIENCE) == number
        assert reading.fetch(timeout=PATIENCE) == number
        writing.fetch(timeout=PATIENCE)


def impatient(pids: list[int], random: random.Random) -> None:
    """Takes that give up, beside puts: each item is taken once."""
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(3), random.choice([myid(), *pids]))
    feeding = remotecall(feed, random.choice(pids), channel, 50)
    got = []
    while True:
        try:
            got.append(channel.take(timeout=random.choice([0, 0.0001, 0.001, 0.01])))
        except TimeoutError:
            continue
        except ChannelClosedError:
            break
    assert got == list(range(50))
    feeding.fetch(timeout=PATIENCE)


def spread(pids: list[int], random: random.Random) -> None:
    """Maps and single calls beside all that, on a pool of all workers."""
    pool = distpool.WorkerPool(pids)
    assert pool.map(abs, range(-200, 0)) == list(range(200, 0, -1))
    assert remotecall_fetch(myid, pids[0]) == pids[0]


def short_lived(pids: list[int], random: random.Random) -> None:
    """A pool of its own comes, works and goes, perhaps in the middle of something."""
    with distpool.WorkerPool(processes=random.choice([1, 2])) as pool:
        assert pool.map(abs, range(-50, 0)) == list(range(50, 0, -1))
        last = pool.submit(abs, -1)
        stream = pool.imap(abs, range(-1000, 0))
        assert next(iter(stream)) == 1000
        if random.random() < 0.5:
            pool.terminate()
        else:
            assert last.result(PATIENCE) == 1


ROUNDS: list[Callable[[list[int], random.Random], None]] = [
    farm,
    line,
    calls,
    letters,
    futures,
    impatient,
    spread,
    short_lived,
]
