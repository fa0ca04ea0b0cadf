"""`spawn`, `spawnat`, `fetchfrom`: which process it is; `sync`: what it waits for and what it raises."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from distpool import (
    Channel,
    CompositeException,
    Future,
    ProcessExitedException,
    RemoteChannel,
    RemoteException,
    fetchfrom,
    myid,
    remotecall_wait,
    rmprocs,
    spawn,
    spawnat,
    sync,
)
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def take_from(gate: RemoteChannel[Any]) -> Any:
    """Wait at a gate."""
    return gate.take()


# -- which process -----------------------------------------------------------------------------------------------------


def test_spawn_prefers_an_idle_worker(workers: StartWorkers) -> None:
    """While one worker has a call that waits, everything goes to the other; afterwards it is chosen again."""
    busy, idle = workers(2)
    gate: RemoteChannel[str] = RemoteChannel(lambda: Channel(1))
    waiting = spawnat(busy, take_from, gate)
    for _ in range(5):
        with sync():  # its value may be here before the word that it has ended
            spawned = spawn(myid)
        assert spawned.fetch() == idle
    gate.put("open")
    assert waiting.fetch() == "open"
    gates = [spawnat(idle, take_from, gate) for _ in range(2)]
    assert spawn(myid).fetch() == busy
    for _ in gates:
        gate.put("open")
    assert [each.fetch() for each in gates] == ["open", "open"]


def test_equals_take_turns(workers: StartWorkers) -> None:
    """With nothing in flight anywhere, consecutive calls go to different workers."""
    pids = workers(3)
    assert sorted(fetchfrom("any", myid) for _ in pids) == pids


def test_calls_to_this_process_count_too() -> None:
    """A driver without workers runs its own calls, any number at a time."""
    gate: Channel[int] = Channel(1)
    futures = [spawn(gate.take) for _ in range(3)]
    for number in range(3):
        gate.put(number)
    assert sorted(future.fetch() for future in futures) == [0, 1, 2]


def test_all_keywords_are_the_functions_own(workers: StartWorkers) -> None:
    """No option of ours takes a keyword away from the user's function."""
    (worker,) = workers(1)
    keywords = {"pid": 1, "f": 2, "schedule": 3, "where": 4, "member": 5, "args": 6, "self": 7}
    for answer in (
        spawn(jobs.echo, **keywords).fetch(),
        spawnat(worker, jobs.echo, **keywords).fetch(),
        fetchfrom(worker, jobs.echo, **keywords),
    ):
        assert answer == ((), keywords)


def test_bad_targets_raise_at_the_call(workers: StartWorkers) -> None:
    """An unknown word, a pid that never was, one that is gone."""
    (worker,) = workers(1)
    with pytest.raises(ValueError, match="'any'"):
        spawnat("all", myid)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no process 9999"):
        spawnat(9999, myid)
    rmprocs(worker)
    with pytest.raises(ProcessExitedException):
        spawnat(worker, myid)
    with pytest.raises(ProcessExitedException):
        fetchfrom(worker, myid)


def test_what_cannot_be_pickled_raises_at_the_call(workers: StartWorkers) -> None:
    """TypeError here, and the worker's count of calls in flight stays right."""
    (worker,) = workers(1)
    with pytest.raises(TypeError, match=r"args\[0\]"):
        spawn(jobs.identity, threading.Lock())
    assert spawn(myid).fetch() == worker


def test_an_error_comes_out_of_fetch_each_time(workers: StartWorkers) -> None:
    """A spawned call that fails is told whoever fetches, and nobody else."""
    workers(1)
    future = spawn(jobs.fail, "spawned")
    for _ in range(2):
        with pytest.raises(ValueError, match="spawned"):
            future.fetch()


# -- sync --------------------------------------------------------------------------------------------------------------


def test_sync_waits_for_its_own_thread_and_block(workers: StartWorkers) -> None:
    """An inner block waits for its own; what another thread spawns is not waited for."""
    (worker,) = workers(1)
    gate: RemoteChannel[str] = RemoteChannel(lambda: Channel(1))
    other_gate: RemoteChannel[str] = RemoteChannel(lambda: Channel(1))
    elsewhere: list[Future[Any]] = []
    with sync():
        outer = spawnat(worker, take_from, gate)
        thread = threading.Thread(target=lambda: elsewhere.append(spawnat(worker, take_from, other_gate)))
        thread.start()
        thread.join()
        with sync():
            inner = spawnat(worker, jobs.square, 3)
        assert inner.isready()
        assert not outer.isready()
        gate.put("open")
    assert [outer.isready(), elsewhere[0].isready()] == [True, False]
    other_gate.put("open")
    assert (inner.fetch(), outer.fetch(), elsewhere[0].fetch()) == (9, "open", "open")


def test_sync_raises_the_errors_of_all(workers: StartWorkers) -> None:
    """Failures of functions and of processes, in the order of the calls; the others are done."""
    w1, w2 = workers(2)
    done = []

    def block() -> None:
        with sync():
            spawnat(w1, jobs.fail, "first")
            spawnat(w2, jobs.vanish)
            done.append(spawnat(w1, jobs.square, 4))

    with pytest.raises(CompositeException) as caught:
        block()
    first, second = caught.value.exceptions
    assert isinstance(first, RemoteException)
    assert isinstance(first, ValueError)
    assert isinstance(second, ProcessExitedException)
    assert second.worker_id == w2
    assert done[0].fetch() == 16


def test_sync_of_failures_here() -> None:
    """Without workers the calls run in this process, and their errors have the same shape."""

    def block() -> None:
        with sync():
            for number in range(3):
                spawn(jobs.fail, f"here {number}")

    with pytest.raises(CompositeException) as caught:
        block()
    assert [str(error.unwrap()) for error in caught.value if isinstance(error, RemoteException)] == [
        "here 0",
        "here 1",
        "here 2",
    ]


def test_an_error_of_the_block_is_raised_at_once(workers: StartWorkers) -> None:
    """What was begun may wait for what the block would have done next: nobody waits for it."""
    (worker,) = workers(1)
    gate: RemoteChannel[str] = RemoteChannel(lambda: Channel(1))
    waiting = []

    def block() -> None:
        with sync():
            waiting.append(spawnat(worker, take_from, gate))
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        block()
    gate.put("open")
    assert waiting[0].fetch() == "open"
    with sync():
        pass  # nothing is left over from the block that failed


def test_a_composite_raised_by_the_function_is_one_failure(workers: StartWorkers) -> None:
    """The members of an error that a function raised are not taken for failures of the block."""
    workers(1)

    def fail_twice() -> None:
        raise CompositeException([ValueError("a"), ValueError("b")])

    with pytest.raises(CompositeException) as caught, sync():
        spawn(fail_twice)
    assert len(caught.value) == 1


def test_values_stay_where_they_are(workers: StartWorkers) -> None:
    """Waiting moves no value: one that cannot travel is no failure."""
    workers(1)
    with sync():
        future = spawn(threading.Lock)
    assert future.isready()
    with pytest.raises(TypeError):
        future.fetch()


def test_a_finished_call_leaves_nothing_behind(workers: StartWorkers) -> None:
    """Nothing waits for an answer any more when all calls have ended and been told."""
    from distpool.member import default_member

    (worker,) = workers(1)
    with sync():
        for number in range(50):
            spawn(jobs.square, number)
    remotecall_wait(myid, worker)
    assert default_member().cluster.peer(worker).pending == {}
