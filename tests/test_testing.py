"""Workers as threads of the program that tests them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import psutil
import pytest

import distpool
from distpool.member import default_member
from distpool.testing import ThreadManager
from support import jobs

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.fixture
def pids(no_cluster: None) -> list[int]:
    """Two of them; removed by `no_cluster`."""
    return distpool.addprocs(ThreadManager(2))


def spin() -> None:
    while True:
        pass


def say_and_spin(started: distpool.RemoteChannel[int]) -> None:
    started.put(distpool.myid())
    spin()


def new_channel() -> distpool.RemoteChannel[int]:
    return distpool.RemoteChannel(lambda: distpool.Channel(10))


def worker_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "distpool worker"]


def test_no_process_is_started_and_no_thread_left() -> None:
    """Not even the fork server; after rmprocs the threads are gone, not going."""
    children = psutil.Process().children()
    pids = distpool.addprocs(ThreadManager(3))
    assert len(worker_threads()) == 3
    assert distpool.nworkers() == 3
    assert psutil.Process().children() == children
    distpool.rmprocs(pids)
    assert worker_threads() == []
    assert distpool.workers() == [1]


def test_none_and_fewer_than_none() -> None:
    """Zero is a number of workers, minus one is not."""
    assert distpool.addprocs(ThreadManager(0)) == []
    with pytest.raises(ValueError, match="cannot be negative"):
        ThreadManager(-1)


def test_each_thread_knows_whose_it_is(pids: list[int]) -> None:
    """Module functions act on the worker in all threads that run its calls and tasks, and on process 1 elsewhere."""
    first, second = pids
    assert distpool.remotecall_fetch(distpool.procs, first) == [1, first, second]
    inside = new_channel()

    def wait_and_ask() -> int:
        inside.put(distpool.myid())
        return distpool.remotecall_fetch(distpool.myid, second)  # waits, so the next call gets another thread

    futures = [distpool.remotecall(wait_and_ask, first) for _ in range(5)]
    assert [future.fetch() for future in futures] == [second] * 5
    assert [inside.take() for _ in range(5)] == [first] * 5
    assert sorted(set(distpool.pmap(lambda _: distpool.myid(), range(50)))) <= pids
    assert distpool.myid() == 1
    with pytest.raises(RuntimeError, match="only process 1"):
        distpool.remotecall_fetch(distpool.addprocs, first, 1)


def test_what_travels_is_pickled(pids: list[int]) -> None:
    """Arguments and results are copies, and what cannot be pickled cannot be sent: as with processes."""
    argument = [1, 2]
    assert distpool.remotecall_fetch(list.append, pids[0], argument, 3) is None
    assert argument == [1, 2]
    with pytest.raises(TypeError, match="cannot pickle"):
        distpool.remotecall_fetch(id, pids[0], threading.Lock())
    with pytest.raises(TypeError, match="lock"):
        distpool.remotecall_fetch(threading.Lock, pids[0])


def test_globals_of_main_are_left_alone(pids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are shared, so what a function mentions is there already, and is not replaced by a copy."""
    main = sys.modules["__main__"]
    shared = ["the very one"]
    monkeypatch.setattr(main, "shared_by_all", shared, raising=False)
    code = "def mentions(): shared_by_all.append('seen'); return id(shared_by_all)"
    namespace = vars(main)
    exec(code, namespace)
    try:
        assert distpool.remotecall_fetch(namespace["mentions"], pids[0]) == id(shared)
    finally:
        del namespace["mentions"]
    assert namespace["shared_by_all"] is shared
    assert shared == ["the very one", "seen"]


def test_references_are_counted(pids: list[int], eventually: Callable[..., None]) -> None:
    """What a worker keeps for others is dropped when nobody holds it."""
    future = distpool.remotecall(jobs.identity, pids[0], 7)
    assert future.fetch() == 7
    before = distpool.remotecall_fetch(lambda: len(default_member().store), pids[0])
    kept = [distpool.remotecall_wait(jobs.identity, pids[0], i) for i in range(20)]
    assert distpool.remotecall_fetch(lambda: len(default_member().store), pids[0]) >= before + 20
    del kept
    eventually(lambda: distpool.remotecall_fetch(lambda: len(default_member().store), pids[0]) <= before)


def test_pools_on_them(pids: list[int]) -> None:
    """WorkerPool and CachingPool, with errors of tasks."""
    pool = distpool.WorkerPool(pids)
    assert pool.map(jobs.square, range(100)) == [x * x for x in range(100)]
    with pytest.raises(ValueError, match="boom"):
        pool.map(_fail_if_negative, [1, -1])
    caching = distpool.CachingPool(pids)
    assert distpool.pmap(jobs.square, caching, range(10)) == [x * x for x in range(10)]


def _fail_if_negative(x: int) -> int:
    if x < 0:
        raise ValueError("boom")
    return x


def test_interrupt(pids: list[int]) -> None:
    """Python code is interrupted where it is, on the main thread of the worker and beside it; it works on."""
    started = new_channel()
    futures = [distpool.remotecall(say_and_spin, pids[0], started) for _ in range(2)]
    assert [started.take() for _ in futures] == [pids[0]] * 2
    distpool.interrupt(pids[0])
    for future in futures:
        with pytest.raises(distpool.RemoteException) as caught:
            future.fetch()
        assert isinstance(caught.value.captured.ex, KeyboardInterrupt)
    assert distpool.remotecall_fetch(distpool.myid, pids[0]) == pids[0]
    distpool.interrupt()
    assert distpool.remotecall_fetch(distpool.myid, pids[0]) == pids[0]


def test_interrupt_of_a_map(pids: list[int]) -> None:
    """The task that runs fails with KeyboardInterrupt."""
    started = new_channel()
    pool = distpool.WorkerPool(pids[:1])
    future = pool.submit(say_and_spin, started)
    assert started.take() == pids[0]
    distpool.interrupt(pids[0])
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # a KeyboardInterrupt inside a RemoteException
        future.result(30)
    assert isinstance(caught.value, distpool.RemoteException)
    assert pool.map(jobs.square, [3]) == [9]


def test_removal_ends_python_code(pids: list[int]) -> None:
    """A worker that computes is ended; its callers hear of it; the other one lives on."""
    first, second = pids
    started = new_channel()
    futures = [distpool.remotecall(say_and_spin, first, started) for _ in range(2)]
    assert [started.take() for _ in futures] == [first] * 2
    distpool.rmprocs(first, waitfor=30)
    for future in futures:
        with pytest.raises(distpool.ProcessExitedException):
            future.fetch()
    assert distpool.remotecall_fetch(distpool.procs, second) == [1, second]
    with pytest.raises(distpool.ProcessExitedException):
        distpool.remotecall_fetch(distpool.remotecall_fetch, second, distpool.myid, first)


def test_a_worker_that_waits_is_removed(pids: list[int], eventually: Callable[..., None]) -> None:
    """Whatever waits for an answer fails when its worker goes, and its thread with it."""
    first, second = pids
    channel: distpool.RemoteChannel[int] = distpool.RemoteChannel(lambda: distpool.Channel(1), pid=second)
    started = new_channel()

    def wait() -> int:
        started.put(distpool.myid())
        return channel.take()

    future = distpool.remotecall(wait, first)
    assert started.take() == first
    distpool.rmprocs(first, waitfor=30)
    with pytest.raises(distpool.ProcessExitedException):
        future.fetch()
    eventually(lambda: len(worker_threads()) == 1)


def test_exits_of_code_are_its_own(pids: list[int]) -> None:
    """sys.exit() in a call is that call's error, not the end of the program."""
    with pytest.raises(distpool.RemoteException) as caught:
        distpool.remotecall_fetch(sys.exit, pids[0], 3)
    assert isinstance(caught.value.captured.ex, SystemExit)
    assert distpool.remotecall_fetch(os.getpid, pids[0]) == os.getpid()


def test_they_come_and_go_many_times(census: Callable[[], object]) -> None:
    """Nothing gathers: threads, descriptors, readers (checked around every test)."""
    for _ in range(10):
        pids = distpool.addprocs(ThreadManager(2))
        assert distpool.pmap(jobs.square, range(5)) == [0, 1, 4, 9, 16]
        distpool.rmprocs(pids)


def test_topologies_hold(eventually: Callable[..., None]) -> None:
    """Options of the cluster count as ever."""
    first, second = distpool.addprocs(ThreadManager(2), topology="master_worker")
    with pytest.raises(distpool.RemoteException, match="master_worker"):
        distpool.remotecall_fetch(distpool.remotecall_fetch, first, distpool.myid, second)
