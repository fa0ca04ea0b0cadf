"""RemoteChannels over objects of the user's own: time limits and interrupts although their methods cannot be ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from distpool import ProcessExitedException, RemoteChannel, remotecall_fetch
from distpool.member import default_member
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")

either_owner = pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])


class Shelves:
    """One place for each key; puts wait while it is full, takes while it is empty, and neither knows time limits."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self.changed = threading.Condition()

    def put(self, key: str, value: Any) -> None:
        with self.changed:
            self.changed.wait_for(lambda: key not in self.items)
            self.items[key] = value
            self.changed.notify_all()

    def take(self, key: str) -> Any:
        with self.changed:
            self.changed.wait_for(lambda: key in self.items)
            self.changed.notify_all()
            return self.items.pop(key)

    def fetch(self, key: str) -> Any:
        with self.changed:
            self.changed.wait_for(lambda: key in self.items)
            return self.items[key]

    def isready(self, key: str) -> bool:
        return key in self.items


def make(owner: int) -> RemoteChannel[Any]:
    return RemoteChannel(Shelves, owner)


@either_owner
def test_takes_and_fetches_end_in_time(workers: StartWorkers, owner_is_me: bool) -> None:
    """They raise TimeoutError, as at a Channel; and what is there is got."""
    (worker,) = workers(1)
    channel = make(1 if owner_is_me else worker)
    for operation in (channel.take, channel.fetch):
        with pytest.raises(TimeoutError, match=r"within 0\.05 seconds"):
            operation("k", timeout=0.05)
    channel.put("x", 1)
    assert channel.fetch("x", timeout=20) == 1
    assert channel.take("x", timeout=20) == 1
    channel.put("k", 1, timeout=20)  # for the take that runs on
    channel.put("k", 2, timeout=20)
    assert [channel.take("k", timeout=20), channel.take("k", timeout=20)] == [1, 2]
    channel.put("k", 3, timeout=20)  # for the fetch that runs on


@either_owner
def test_what_comes_late_is_for_the_next(
    workers: StartWorkers, eventually: Callable[..., None], owner_is_me: bool
) -> None:
    """The abandoned take gets its item some time, for nobody; whoever takes with that key then gets it."""
    (worker,) = workers(1)
    channel = make(1 if owner_is_me else worker)
    with pytest.raises(TimeoutError):
        channel.take("k", timeout=0)
    channel.put("k", "late")  # taken by the one that runs on
    channel.put("k", "next", timeout=20)  # so there is room again
    eventually(lambda: channel.fetch("k") == "late")
    assert channel.isready("k")
    assert [channel.take("k", timeout=20), channel.take("k", timeout=20)] == ["late", "next"]
    assert not channel.isready("k")


@either_owner
def test_late_put_is_done_in_the_end(workers: StartWorkers, owner_is_me: bool) -> None:
    """A put that is out of time cannot be taken back."""
    (worker,) = workers(1)
    channel = make(1 if owner_is_me else worker)
    assert channel.try_put("k", 1) is True
    assert channel.try_put("k", 2) is False
    with pytest.raises(TimeoutError):
        channel.put("k", 3, timeout=0.01)
    assert sorted(channel.take("k", timeout=20) for _ in range(3)) == [1, 2, 3]


def take_from(channel: RemoteChannel[Any], key: str) -> Any:
    """Runs in a worker."""
    return channel.take(key)


def test_item_of_a_taker_that_died_is_not_lost(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C128, for such stores: it waits in the store's method when it is killed."""
    w1, w2 = workers(2)
    channel: RemoteChannel[Any] = RemoteChannel(Shelves, w1)
    taking = Aside(remotecall_fetch, take_from, w2, channel, "k")
    os_pid = remotecall_fetch(jobs.os_pid, w2)
    eventually(lambda: remotecall_fetch(running, w1) == 1)
    os.kill(os_pid, signal.SIGKILL)
    with pytest.raises(ProcessExitedException):
        taking.result()
    channel.put("k", 1)
    assert channel.take("k", timeout=20) == 1


def running() -> int:
    """Runs at the owner: how many requests run in such stores."""
    return len(default_member().store._requests)
