"""Requests for others: a taken item is lost by nobody's failure to take it away; interrupts stop what runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from conformance import deeds

from distpool import Channel, RemoteChannel, RemoteException, myid, remotecall, remotecall_fetch
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def test_item_that_cannot_travel_stays(workers: StartWorkers) -> None:
    """A waiting taker elsewhere gets the reason; the item is the next local taker's."""
    (worker,) = workers(1)
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    gate: RemoteChannel[object] = RemoteChannel(lambda: Channel(1))
    waiting = Aside(remotecall_fetch, deeds.say_and_wait, worker, started, gate)
    assert started.take(timeout=20) == worker
    lock = jobs.make_lock()
    gate.put(lock)
    with pytest.raises(RemoteException, match="lock"):
        waiting.result(20)
    assert gate.take(timeout=20) is lock


def test_failing_call_is_answered_though_its_value_is_dropped(workers: StartWorkers) -> None:
    """A call whose Future is given up at once runs all the same, and hurts nobody."""
    (worker,) = workers(1)
    for f in (jobs.fail, myid, jobs.make_lock):
        remotecall(f, worker).release()
    assert remotecall_fetch(myid, worker) == worker


def test_released_result_is_not_kept(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """Its result finds nobody, and is not kept."""
    (worker,) = workers(1)
    before = remotecall_fetch(deeds.refs_count, worker)
    gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    remotecall(deeds.wait_then_return, worker, gate, 1).release()
    gate.put(0)
    eventually(lambda: not gate.isready())
    eventually(lambda: remotecall_fetch(deeds.refs_count, worker) == before)
