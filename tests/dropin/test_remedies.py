"""What a worker's death advises: at each door in the words of that door."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

import distpool
from distpool import ProcessExitedException, WorkerPool
from distpool.compat.futures import ProcessPoolExecutor
from distpool.compat.multiprocessing import Pool
from support import jobs


@pytest.fixture
def native() -> Iterator[WorkerPool]:
    with WorkerPool(processes=1) as pool:
        yield pool


OPTION = "Only this task is lost: give retry_delays=[...] to have such tasks run again."
NATIVE: dict[str, tuple[Callable[[WorkerPool], Any], str]] = {
    "map": (lambda pool: pool.map(jobs.vanish, [3]), OPTION),
    "starmap": (lambda pool: pool.starmap(jobs.vanish, [(3,)]), OPTION),
    "imap": (lambda pool: list(pool.imap_unordered(jobs.vanish, [3])), OPTION),
    "pmap": (lambda pool: distpool.pmap(jobs.vanish, pool, [3]), OPTION),
    "submit": (
        lambda pool: pool.submit(jobs.vanish).result(),
        "Only this call is lost: submit it again if it may run twice.",
    ),
}


@pytest.mark.parametrize("door", NATIVE)
def test_of_a_pool(native: WorkerPool, door: str) -> None:
    """``retry_delays`` where it is an option, else what takes its place."""
    use, remedy = NATIVE[door]
    with pytest.raises(ProcessExitedException) as caught:
        use(native)
    assert str(caught.value) == f"{caught.value.what_happened()}. {remedy}"


DROP_IN: dict[str, Callable[[Any], Any]] = {
    "apply": lambda pool: pool.apply(jobs.vanish),
    "apply_async": lambda pool: pool.apply_async(jobs.vanish).get(),
    "map": lambda pool: pool.map(jobs.vanish, [3]),
    "map_async": lambda pool: pool.map_async(jobs.vanish, [3]).get(),
    "imap": lambda pool: list(pool.imap(jobs.vanish, [3])),
}


@pytest.mark.parametrize("door", DROP_IN)
def test_of_the_drop_in_for_pools(door: str) -> None:
    """It has no option for it; ours has."""
    with Pool(1) as pool, pytest.raises(ProcessExitedException) as caught:
        DROP_IN[door](pool)
    assert str(caught.value).startswith(caught.value.what_happened())
    assert str(caught.value).endswith(
        ". Only this call is lost, and the pool goes on: call again if it may run twice, or use distpool.WorkerPool, "
        "whose map(..., retry_delays=[...]) does that by itself."
    )


def test_of_the_drop_in_for_executors() -> None:
    """For calls and maps."""
    with ProcessPoolExecutor(1) as executor:
        for use in (lambda: executor.submit(jobs.vanish).result(), lambda: list(executor.map(jobs.vanish, [3]))):
            with pytest.raises(BrokenProcessPool) as caught:
                use()
            remedy = "; only this call is lost, the executor goes on: submit it again if it may run twice"
            assert str(caught.value).endswith(remedy)


def test_of_a_direct_call() -> None:
    """What the process kept is lost, too."""
    (pid,) = distpool.addprocs(1)
    with pytest.raises(ProcessExitedException, match="Its work and the values it kept are lost: run it again on"):
        distpool.remotecall_fetch(jobs.vanish, pid)
