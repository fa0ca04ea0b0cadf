"""Numbered cases, section G: Futures, between the driver and workers that it reaches itself.

What two workers share is in test_worker_to_worker: C089, C090 b, the second half of C094, C098 between two workers
(here between driver and owner). C090 a uses `remotecall` in the place of `spawn`.
"""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import Future, RemoteChannel, RemoteException, fetch, isready, put, remotecall, remotecall_fetch, take
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers


def refs_has(pid: int, ref: Any) -> bool:
    """Whether the owner table of process `pid` has an entry for a reference."""

    def look(rrid: tuple[int, int]) -> bool:
        try:
            distpool.channel_from_id(rrid)
        except LookupError:
            return False
        return True

    return remotecall_fetch(look, pid, tuple(distpool.remoteref_id(ref)))


@pytest.mark.case("C087")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_future_is_written_once_and_never_taken(workers: StartWorkers, owner_is_me: bool) -> None:
    """C087: a Future is not ready, then written, then ready; a second put and any take are errors, the value stays."""
    (worker,) = workers(1)
    future: Future[str] = Future(distpool.myid() if owner_is_me else worker)
    assert isready(future) is False
    assert put(future, "OK") is future
    assert isready(future) is True
    assert fetch(future) == "OK"
    with pytest.raises(RuntimeError, match="written once"):
        put(future, "again")
    with pytest.raises(TypeError, match="take"):
        take(future)
    assert fetch(future) == "OK"


@pytest.mark.case("C087")
def test_second_put_by_another_process_raises_there(workers: StartWorkers) -> None:
    """C087: when another process puts into a Future that is set, it gets the error, and the value stays."""
    (worker,) = workers(1)
    future: Future[str] = Future(worker)
    remotecall_fetch(lambda f: distpool.put(f, "first") and None, worker, future)
    with pytest.raises(RuntimeError, match="written once"):
        future.put("second")


@pytest.mark.case("C088")
def test_owner_keeps_a_future_from_first_question_to_last_answer(workers: StartWorkers) -> None:
    """C088: the owner knows a Future from the first question about it, and forgets it when its only holder has the
    value.
    """
    (worker,) = workers(1)
    future: Future[int] = Future(worker)
    assert not refs_has(worker, future)
    assert not isready(future)
    assert refs_has(worker, future)
    put(future, 1)
    assert not refs_has(worker, future)
    assert fetch(future) == 1


@pytest.mark.case("C090")
def test_ten_threads_fetch_one_future(workers: StartWorkers) -> None:
    """C090 (a): ten threads fetch one Future at once; all return the same value."""
    (worker,) = workers(1)
    gate: RemoteChannel[Any] = RemoteChannel(pid=worker)
    future = remotecall(lambda channel: [channel.take()] * 1000, worker, gate)
    fetches = [Aside(fetch, future) for _ in range(10)]
    gate.put(7)
    values = [each.result() for each in fetches]
    assert values == [[7] * 1000] * 10


@pytest.mark.case("C091")
def test_fetched_future_is_fetched_again_by_its_owner(workers: StartWorkers) -> None:
    """C091: a Future that the driver has fetched is fetched by its owner as well: no hang."""
    (worker,) = workers(1)
    value = distpool.remotecall_wait(lambda: 1, worker)
    assert fetch(value) == 1
    assert fetch(distpool.remotecall_wait(fetch, worker, value)) == 1


@pytest.mark.case("C092")
def test_fetched_value_outlives_its_owner(workers: StartWorkers) -> None:
    """C092: a fetched value is kept: the same object each time, also when its owner is gone."""
    (worker,) = workers(1)
    future = remotecall(lambda: ["value"], worker)
    value = fetch(future)
    assert fetch(future) is value
    distpool.rmprocs(worker)
    assert fetch(future) is value
    assert value == ["value"]


@pytest.mark.case("C092")
def test_value_that_was_not_fetched_is_lost_with_its_owner(workers: StartWorkers) -> None:
    """C092: the contrast: what nobody has fetched is gone with the process, and fetch says so instead of hanging."""
    (worker,) = workers(1)
    future = remotecall(lambda: ["value"], worker).wait()
    distpool.rmprocs(worker)
    with pytest.raises(distpool.ProcessExitedException):
        fetch(future)


@pytest.mark.case("C093")
def test_fetched_value_travels_with_its_future(workers: StartWorkers) -> None:
    """C093: a Future of w1 that the driver has fetched is sent to w2, which can fetch it although w1 is gone."""
    w1, w2 = workers(2)
    future = remotecall(lambda: "from w1", w1)
    assert fetch(future) == "from w1"
    distpool.rmprocs(w1)
    assert remotecall_fetch(fetch, w2, future) == "from w1"


@pytest.mark.case("C094")
def test_copies_of_a_future_are_equal(workers: StartWorkers) -> None:
    """C094, in part: a Future that went to a worker and back is equal to itself and has the same hash."""
    (worker,) = workers(1)
    for future in (Future[Any](), Future[Any](worker)):
        copy = remotecall_fetch(jobs.identity, worker, future)
        assert copy == future
        assert hash(copy) == hash(future)
        assert distpool.remoteref_id(copy) == distpool.remoteref_id(future)
        assert copy != Future()


@pytest.mark.case("C095")
def test_none_is_a_value(workers: StartWorkers) -> None:
    """C095 (a): a Future that was set to None is ready, and its value is None."""
    (worker,) = workers(1)
    for future in (Future[None](), Future[None](worker)):
        put(future, None)
        assert isready(future) is True
        assert fetch(future, timeout=0) is None
    assert fetch(remotecall(lambda: None, worker)) is None


@pytest.mark.case("C095")
def test_fetch_of_anything_else_returns_it() -> None:
    """C095 (b): fetch of what is no reference returns it."""
    values = [1]
    assert fetch(5) == 5
    assert fetch(values) is values


@pytest.mark.case("C096")
@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_fetch_gives_up_after_timeout(workers: StartWorkers, owner_is_me: bool) -> None:
    """C096: fetch with a timeout raises TimeoutError; the Future stays good for a later put and fetch."""
    (worker,) = workers(1)
    future: Future[int] = Future(distpool.myid() if owner_is_me else worker)
    with pytest.raises(TimeoutError):
        future.fetch(timeout=0.2)
    with pytest.raises(TimeoutError):
        fetch(future, timeout=0)
    future.put(3)
    assert future.fetch(timeout=10) == 3


@pytest.mark.case("C097")
def test_future_cannot_be_pickled_into_a_file() -> None:
    """C097: pickling a reference outside a message of the cluster is a TypeError that says why."""
    for ref in (Future[Any](), RemoteChannel[Any]()):
        with pytest.raises(TypeError, match="cluster"):
            pickle.dumps({"ref": ref})


@pytest.mark.case("C098")
def test_owner_is_asked_before_the_result_is_there(workers: StartWorkers, tmp_path: Path) -> None:
    """C098, between driver and owner: a question about a running call is answered when the call ends."""
    (worker,) = workers(1)
    gate: RemoteChannel[str] = RemoteChannel(pid=worker)
    running = remotecall(take, worker, gate)
    asked_there = remotecall(fetch, worker, running)
    asked_here = Aside(fetch, running)
    gate.put("late")
    assert asked_here.result() == "late"
    assert fetch(asked_there) == "late"


@pytest.mark.case("C099")
def test_isready_does_not_wait_for_the_value(workers: StartWorkers) -> None:
    """C099: isready of a running call is False at once, and True after fetch."""
    (worker,) = workers(1)
    gate: RemoteChannel[int] = RemoteChannel(pid=worker)
    future = remotecall(take, worker, gate)
    before = time.monotonic()
    assert isready(future) is False
    assert time.monotonic() - before < 1
    gate.put(1)
    assert fetch(future) == 1
    assert isready(future) is True


@pytest.mark.case("C099")
def test_failed_call_is_ready(workers: StartWorkers) -> None:
    """C099: a Future whose call failed is ready, and raises each time it is fetched."""
    (worker,) = workers(1)
    future = remotecall(jobs.fail, worker, "once more")
    with pytest.raises(RemoteException, match="once more"):
        future.wait()
    assert isready(future) is True
    for _ in range(2):
        with pytest.raises(ValueError, match="once more"):
            fetch(future)


@pytest.mark.case("C100")
def test_put_by_a_worker_wakes_a_waiting_thread(workers: StartWorkers) -> None:
    """C100: a thread waits for a Future of the driver; a worker puts, and the thread has the value."""
    (worker,) = workers(1)
    future: Future[Any] = Future()
    waiting = Aside(fetch, future)
    assert not waiting.is_done(after=0.05)
    remotecall(lambda f: distpool.put(f, distpool.myid()) and None, worker, future)
    assert waiting.result() == worker
