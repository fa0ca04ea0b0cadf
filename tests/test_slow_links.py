"""Links with a tenth of a second there and back, and five megabytes a second: slow, and no reason to fail or idle."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

import distpool
from support import elsewhere, jobs
from support.listeners import listening
from support.slow import Behind, slow_link

# Seconds there and back.
ROUND_TRIP = 0.1


@pytest.fixture
def far(no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A worker behind such a link, with the shortest limit for silent hosts."""
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", "1")
    with listening(env=elsewhere.IMPORTS) as listener, slow_link(listener, delay=ROUND_TRIP / 2) as link:
        (pid,) = distpool.addprocs(Behind(link))
        yield pid
        distpool.rmprocs(pid, waitfor=30)


def seconds(f: object, *args: object, **options: object) -> float:
    begun = time.perf_counter()
    assert callable(f)
    f(*args, **options)
    return time.perf_counter() - begun


def test_a_slow_link_keeps_a_worker_busy(far: int) -> None:
    """Enough is under way: a map takes little longer than its tasks; with two at a time it would take six seconds."""
    pool = distpool.WorkerPool([far])
    assert pool.map(jobs.square, range(100)) == [x * x for x in range(100)]
    assert seconds(pool.map, time.sleep, [0.01] * 100) < 4  # measured: 1.3


def test_a_slow_link_carries_arrays_and_small_calls(far: int) -> None:
    """More than a second's worth each way at once; a small call waits for what was sent before it, and no more."""
    data = os.urandom(1 << 20)
    future = distpool.remotecall(jobs.identity, far, data)
    assert distpool.fetch(future) == data, "there and back"
    pool = distpool.WorkerPool([far])
    results = pool.imap(os.urandom, [1 << 18] * 12)
    assert len(next(results)) == 1 << 18
    reader = threading.Thread(target=lambda: list(results))
    reader.start()
    waited = seconds(distpool.remotecall_fetch, jobs.square, far, 3)
    reader.join()
    assert waited < 30
    assert distpool.workers() == [far]


def test_time_limits_allow_for_the_way(far: int) -> None:
    """A task's time does not begin before it does: those that wait on the way, or behind others, are not stopped."""
    pool = distpool.WorkerPool([far])
    assert pool.map(jobs.identity, range(30), timeout=0.15) == list(range(30))
    assert pool.map(time.sleep, [0.02] * 20, timeout=0.15) == [None] * 20
    outcomes = pool.map(time.sleep, [0.01, 5, 0.01], timeout=0.3, on_error=lambda error: type(error))
    assert outcomes == [None, TimeoutError, None]
