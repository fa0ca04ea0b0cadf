"""Numbered cases, section K: pools that were sent to a worker, where they are handles, and the default pool there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import distpool
from distpool import WorkerPool, default_worker_pool, fetch, myid, pmap, remote, remotecall, remotecall_fetch
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers


def members_that_worked(pool: WorkerPool) -> set[int]:
    """Run a map over the handle, on the worker where this runs."""
    return set(pmap(lambda _: myid(), pool, range(100)))


@pytest.mark.case("C149")
def test_a_map_over_a_handle_runs_on_the_members(workers: StartWorkers) -> None:
    """C149: started on a worker, it uses all members of the driver's pool and no one else."""
    w1, w2, w3 = workers(3)
    pool = WorkerPool([w2, w3])
    assert remotecall_fetch(members_that_worked, w1, pool) == {w2, w3}
    assert remotecall_fetch(members_that_worked, w2, pool) == {w2, w3}, "also on a member"
    assert pool.isready(), "all have been given back"


@pytest.mark.case("C150")
def test_wait_through_a_handle(workers: StartWorkers) -> None:
    """C150, on a worker: while the only member is held, wait through the handle waits; it ends when it is put back."""
    w1, w2 = workers(2)
    pool = WorkerPool([w1])
    assert pool.take() == w1
    assert remotecall_fetch(lambda: pool.isready(), w2) is False
    waiting = Aside(remotecall_fetch, lambda: pool.wait(), w2)
    assert not waiting.is_done(after=0.05)
    pool.put(w1)
    waiting.result(10)
    assert remotecall_fetch(lambda: pool.isready(), w2) is True


@pytest.mark.case("C158")
def test_the_default_pool_of_a_worker_is_that_of_the_driver(workers: StartWorkers) -> None:
    """C158: it is a handle with the driver's members; whom a worker takes there is not free here, and the reverse."""
    w1, w2 = workers(2)
    here = default_worker_pool()
    assert remotecall_fetch(lambda: default_worker_pool().nworkers(), w1) == here.nworkers() == 2
    assert remotecall_fetch(lambda: sorted(default_worker_pool().workers()), w1) == [w1, w2]
    assert remotecall_fetch(lambda: type(default_worker_pool()).__name__, w1) == "PoolHandle"

    taken = remotecall_fetch(lambda: default_worker_pool().take(), w1)
    (other,) = {w1, w2} - {taken}
    assert here.take() == other
    assert not here.isready()
    assert remotecall_fetch(lambda: default_worker_pool().isready(), w2) is False
    here.put(taken)
    assert remotecall_fetch(lambda: default_worker_pool().isready(), w2) is True
    remotecall_fetch(lambda pid: default_worker_pool().put(pid), w1, other)
    assert here.isready()


@pytest.mark.case("C158")
def test_calls_through_the_default_pool_of_a_worker(workers: StartWorkers) -> None:
    """C158: remote and remotecall on it run on members, and give them back."""
    pids = workers(2)
    seen = [remotecall_fetch(lambda: remote(myid)(), pid) for pid in pids for _ in range(4)]
    assert set(seen) <= set(pids)
    assert remotecall_fetch(lambda: fetch(remotecall(myid, default_worker_pool())), pids[0]) in pids
    pool = default_worker_pool()
    assert sorted(pool.take(10) for _ in pids) == pids
    for pid in pids:
        pool.put(pid)
    assert distpool.nworkers() == 2
