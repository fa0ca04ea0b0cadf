"""Producers and consumers of channels, for tests: functions that run in workers. Light, as `support.jobs`."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distpool import ChannelClosedError

NUMBER = struct.Struct("<q")

_kept: list[Any] = []  # handles that outlive the call they came with


def keep(channel: Any) -> None:
    """Keep this handle: the next call is about the same."""
    _kept.append(channel)


def let_go() -> None:
    """Keep no handles any more."""
    _kept.clear()


def has_shortcut(channel: Any) -> tuple[bool, bool]:
    """Whether this process takes from the channel, and puts into it, without asking."""
    return channel._reach is not None, channel._slot is not None


def warm_up_taking(channel: Any, count: int) -> list[int]:
    """Take so many, one by one."""
    return [channel.take() for _ in range(count)]


def put_range(channel: Any, start: int, stop: int) -> tuple[bool, bool]:
    """Put numbers, one by one; tell by what way."""
    for number in range(start, stop):
        channel.put(number)
    return has_shortcut(channel)


def put_and_note(channel: Any, count: int, path: Path) -> None:
    """Note each number in a file when its put has returned; it is there whatever becomes of this process."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(count):
        channel.put(number)
        os.write(file, NUMBER.pack(number))


def take_and_note(channel: Any, path: Path) -> None:
    """Note each number in a file when its take has returned."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in channel:
        os.write(file, NUMBER.pack(number))


def noted(path: Path) -> list[int]:
    """What such a file says."""
    data = path.read_bytes() if path.exists() else b""
    return [number for (number,) in NUMBER.iter_unpack(data[: len(data) // NUMBER.size * NUMBER.size])]


def put_until_closed(channel: Any, first: int, step: int) -> int:
    """Put numbers until the channel is closed; how many got in."""
    number = first
    while True:
        try:
            channel.put(number)
        except ChannelClosedError:
            return (number - first) // step
        number += step


def take_in_turns(channel: Any) -> Iterator[int]:
    """Take by all ways in turn, until the channel is closed and empty."""
    while True:
        try:
            yield channel.take()
            item = channel.try_take()
            if item is not None:
                yield item
            with contextlib.suppress(TimeoutError):
                yield channel.take(timeout=0.001)
            yield from channel.take_many(3)
            for item in channel:
                yield item
                break
        except ChannelClosedError:
            return


def take_all_in_threads(channel: Any, threads: int) -> list[list[int]]:
    """What each of some threads has got, in its order."""
    taken: list[list[int]] = [[] for _ in range(threads)]
    workers = [threading.Thread(target=lambda its=its: its.extend(take_in_turns(channel))) for its in taken]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    return taken


def open_descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))


def take_futures(channel: Any, count: int) -> int:
    """Take futures and fetch them."""
    return sum(channel.take().fetch() for _ in range(count))
