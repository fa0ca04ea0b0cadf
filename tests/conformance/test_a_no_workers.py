"""Section A: a driver without workers plays worker itself.

Needs no worker process; `fresh process` is a script where earlier tests could matter. Left out, for names that come
with a later issue: C003b (`distributed`), C004 (`spawn`), C006 (`everywhere`), C007 (`cluster_cookie`), C009a
(`interrupt`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import distpool
from conformance import deeds

if TYPE_CHECKING:
    from conftest import RunScript

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.mark.case("C001")
def test_a_fresh_process_is_alone(run_script: RunScript) -> None:
    """C001: before any addprocs there is one process, and it counts as the one worker."""
    finished = run_script(
        """
        from distpool import myid, nprocs, nworkers, procs, workers
        print(nprocs(), nworkers(), procs(), workers(), myid())
        """
    )
    assert finished == (0, "1 1 [1] [1] 1\n", "")


@pytest.mark.case("C001")
def test_without_workers_the_driver_counts_as_one() -> None:
    """C001: the same after workers have come and gone."""
    assert deeds.counts() == (1, 1, [1])
    assert (distpool.procs(), distpool.myid()) == ([1], 1)


@pytest.mark.case("C002")
def test_remote_runs_here() -> None:
    """C002: remote(f) finds its way to process 1."""
    assert distpool.remote(distpool.myid)() == 1


@pytest.mark.case("C003")
def test_pmap_runs_here() -> None:
    """C003 (a only): pmap works without workers."""
    assert distpool.pmap(lambda x: x, range(1, 101)) == list(range(1, 101))


@pytest.mark.case("C005")
def test_a_call_to_oneself_copies_nothing() -> None:
    """C005: argument and result are the caller's own object."""
    v = [0]
    assert distpool.remotecall_fetch(deeds.mark, 1, v) is v
    assert v == [1]


@pytest.mark.case("C008")
def test_the_default_pool_has_process_1() -> None:
    """C008a: without workers the default pool gives out process 1, as often as asked, and holds nobody."""
    pool = distpool.default_worker_pool()
    assert (pool.workers(), pool.nworkers(), len(pool)) == ([1], 1, 0)
    assert [pool.take() for _ in range(3)] == [1, 1, 1]
    pool.put(1)
    assert len(pool) == 0


@pytest.mark.case("C008")
def test_the_default_pool_is_ready() -> None:
    """C008b: without workers the default pool is always ready."""
    pool = distpool.default_worker_pool()
    assert pool.isready()
    pool.wait()


@pytest.mark.case("C009")
def test_process_1_is_not_removed() -> None:
    """C009b: rmprocs(1) warns, removes nothing and returns a finished handle."""
    with pytest.warns(RuntimeWarning, match="process 1 is not removed"):
        handle = distpool.rmprocs(1)
    assert handle.isready()
    handle.wait(0)
    assert distpool.procs() == [1]
