"""Workers that meet: one connection for each pair, whoever asks, however often, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from conformance import deeds

import distpool
from distpool import myid, remotecall, remotecall_fetch
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def connections() -> list[int]:
    """Runs in a worker: whom it is connected to."""
    from distpool.member import default_member

    return sorted(peer.pid for peer in default_member().cluster.peers())


def test_both_may_ask_at_once(workers: StartWorkers) -> None:
    """Two workers that call each other for the first time at the same moment share one connection."""
    for _ in range(10):
        w1, w2 = workers(2)
        calls = [remotecall(deeds.calls_to, one, other, 3, 3) for one, other in ((w1, w2), (w2, w1))]
        assert [call.fetch(timeout=20) for call in calls] == [[w2] * 9, [w1] * 9]
        assert [remotecall_fetch(connections, pid) for pid in (w1, w2)] == [[1, w2], [1, w1]]
        distpool.rmprocs(w1, w2)


def test_neighbour_that_dies_is_forgotten(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """The connection goes with it, and who calls it later is told that it is gone."""
    w1, w2 = workers(2)
    assert remotecall_fetch(deeds.relay, w1, myid, w2) == w2
    os.kill(remotecall_fetch(jobs.os_pid, w2), signal.SIGKILL)
    eventually(lambda: remotecall_fetch(connections, w1) == [1])
    with pytest.raises(distpool.ProcessExitedException):
        remotecall_fetch(deeds.relay, w1, myid, w2)


def test_own_pid_and_process_1_need_no_introduction(workers: StartWorkers) -> None:
    """A worker reaches itself and process 1 from the start."""
    (w1,) = workers(1)
    assert [remotecall_fetch(deeds.relay, w1, myid, pid) for pid in (w1, 1)] == [w1, 1]
    assert remotecall_fetch(connections, w1) == [1]
