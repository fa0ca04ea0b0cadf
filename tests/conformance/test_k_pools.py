"""Numbered cases, section K: worker pools, used by the driver.

Pools as other processes see them (C149, the second half of C150, C158) are in test_k_pool_handles.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import distpool
from distpool import (
    AbstractWorkerPool,
    CachingPool,
    Channel,
    ProcessExitedException,
    RemoteChannel,
    RemoteException,
    WorkerPool,
    default_worker_pool,
    fetch,
    myid,
    pmap,
    remote,
    remote_do,
    remotecall,
    remotecall_fetch,
    remotecall_wait,
)
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers

MAKERS = [WorkerPool, CachingPool]
any_pool = pytest.mark.parametrize("make", MAKERS, ids=["WorkerPool", "CachingPool"])


def kill(pid: int, eventually: Callable[..., None]) -> None:
    """End a worker by SIGKILL and return when the driver knows."""
    distpool.remotecall(jobs.kill_self, pid)
    eventually(lambda: pid not in distpool.procs())


@pytest.mark.case("C147")
@any_pool
def test_pmap_uses_the_members_and_only_them(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C147: pmap over a pool runs on all its members and on nobody else."""
    w1, w2, _ = workers(3)
    assert sorted(set(pmap(lambda _: myid(), make([w1, w2]), range(100)))) == [w1, w2]


@pytest.mark.case("C148")
@any_pool
def test_calls_on_a_pool_run_on_members(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C148: the four calls take a pool in the place of a pid; errors come out as from a pid."""
    w1, w2, _ = workers(3)
    pool = make([w1, w2])
    assert fetch(remotecall(myid, pool)) in pool.workers()
    assert remotecall_fetch(myid, pool) in pool.workers()
    assert fetch(remotecall_wait(myid, pool)) in pool.workers()
    where: RemoteChannel[int] = RemoteChannel()
    remote_do(lambda channel: channel.put(myid()), pool, where)
    assert where.take() in pool.workers()
    with pytest.raises(RemoteException, match="boom"):
        fetch(remotecall(jobs.fail, pool))
    with pytest.raises(RemoteException, match="boom"):
        remotecall_fetch(jobs.fail, pool)
    with pytest.raises(ValueError, match="boom"):
        remotecall_wait(jobs.fail, pool)


@pytest.mark.case("C150")
@any_pool
def test_wait_returns_when_a_member_is_put_back(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C150, on the driver: the only member is taken: not ready, wait waits; after put it returns and holds nobody."""
    (worker,) = workers(1)
    pool = make([worker])
    assert pool.isready()
    assert pool.take() == worker
    assert not pool.isready()
    waiting = Aside(pool.wait)
    assert not waiting.is_done(after=0.05)
    with pytest.raises(TimeoutError):
        pool.take(timeout=0.05)
    assert pool.put(worker) == worker
    waiting.result(10)
    assert pool.isready()


@pytest.mark.case("C150")
def test_two_threads_wait_and_both_return(workers: StartWorkers) -> None:
    """C150: wait claims nobody, so one put ends the wait of all."""
    (worker,) = workers(1)
    pool = WorkerPool([worker])
    pool.take()
    waiting = [Aside(pool.wait) for _ in range(3)]
    assert not waiting[0].is_done(after=0.05)
    pool.put(worker)
    for each in waiting:
        each.result(10)
    assert pool.take(timeout=0) == worker


@pytest.mark.case("C151")
@pytest.mark.parametrize("order", [1, -1], ids=["forward", "reverse"])
def test_default_pool_is_ready_when_one_is_free(
    workers: StartWorkers, eventually: Callable[..., None], order: int
) -> None:
    """C151: as many blocked `remote` calls as workers: not ready; each one that ends makes the pool ready again."""
    count = len(workers(3))
    channels: list[RemoteChannel[int]] = [RemoteChannel() for _ in range(count)]
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(count))

    def announce_and_take(started: Any, channel: Any) -> Any:
        started.put(myid())
        return channel.take()

    calls = [Aside(remote(announce_and_take), started, channel) for channel in channels]
    assert len({started.take() for _ in range(count)}) == count
    pool = default_worker_pool()
    assert not pool.isready()
    for number in range(count)[::order]:
        channels[number].put(number)
        assert calls[number].result() == number
        eventually(pool.isready, 10)
        assert pool.isready()


@pytest.mark.case("C152")
@any_pool
def test_pool_is_not_ready_while_a_call_is_open(
    workers: StartWorkers, eventually: Callable[..., None], make: type[WorkerPool]
) -> None:
    """C152: remotecall on a pool holds its worker until the call is done."""
    (worker,) = workers(1)
    pool = make([worker])
    gate: RemoteChannel[str] = RemoteChannel()
    future = remotecall(distpool.take, pool, gate)
    assert not pool.isready()
    gate.put("go")
    eventually(pool.isready, 10)
    assert fetch(future) == "go"


@pytest.mark.case("C153")
@any_pool
def test_failed_call_gives_its_worker_back(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C153 (a): after a failed call on a one-member pool the pool is ready again."""
    (worker,) = workers(1)
    pool = make([worker])
    for call in (remotecall_fetch, remotecall_wait):
        with pytest.raises(RemoteException):
            call(jobs.fail, pool)
        assert pool.take(timeout=10) == pool.put(worker)
    assert remotecall_fetch(myid, pool) == worker


@pytest.mark.case("C153")
@any_pool
def test_remote_do_holds_nobody(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C153 (b): remote_do of something that takes long leaves the pool ready."""
    (worker,) = workers(1)
    pool = make([worker])
    gate: RemoteChannel[int] = RemoteChannel()
    remote_do(distpool.take, pool, gate)
    assert pool.isready()
    assert remotecall_fetch(myid, pool) == worker
    gate.put(1)


@pytest.mark.case("C154")
@any_pool
def test_dead_members_are_no_members(
    workers: StartWorkers, eventually: Callable[..., None], make: type[WorkerPool]
) -> None:
    """C154 (a): a member that was killed is dropped by take, wait and isready."""
    w1, w2, w3 = workers(3)
    pool, alone, waited = make([w1, 1]), make([w2]), make([w3, 1])
    for pid in (w1, w2, w3):
        kill(pid, eventually)
    eventually(lambda: pool.workers() == waited.workers() == [1])  # pools are told just after
    assert pool.take() == 1
    assert not pool.isready()
    assert pool.workers() == [1]
    assert not alone.isready()
    waited.wait(timeout=10)
    assert waited.workers() == [1]
    assert len(waited) == waited.nworkers() == 1


@pytest.mark.case("C154")
@any_pool
def test_pool_of_a_process_that_never_was(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C154 (b): a pid that never was a process is a ValueError, also by push."""
    (worker,) = workers(1)
    with pytest.raises(ValueError, match="999"):
        make([999])
    pool = make([worker])
    with pytest.raises(ValueError, match="999"):
        pool.push(999)
    pool.push(worker)
    assert (pool.workers(), len(pool)) == ([worker], 1)


@pytest.mark.case("C155")
@any_pool
def test_take_from_a_pool_whose_only_worker_was_removed(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C155 (a): take raises, it does not hang; so does every kind of work."""
    (worker,) = workers(1)
    pool = make([worker])
    distpool.rmprocs(worker)
    with pytest.raises((RuntimeError, ProcessExitedException), match="no worker"):
        pool.take()
    for work in (lambda: pool.map(abs, [1]), lambda: remotecall_fetch(myid, pool), lambda: remote_do(myid, pool)):
        with pytest.raises(RuntimeError):
            work()


@pytest.mark.case("C155")
@any_pool
def test_blocked_take_raises_when_the_last_member_dies(
    workers: StartWorkers, eventually: Callable[..., None], make: type[WorkerPool]
) -> None:
    """C155 (b): a take that waits for the only member raises when that dies."""
    (worker,) = workers(1)
    pool = make([worker])
    pool.take()
    taking = Aside(pool.take)
    assert not taking.is_done(after=0.05)
    kill(worker, eventually)
    with pytest.raises(RuntimeError):
        taking.result(10)


@pytest.mark.case("C156")
@any_pool
def test_put_of_a_stranger_is_ignored(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C156: put of a pid that is no member changes nothing."""
    w1, w2 = workers(2)
    pool = make([w1])
    pool.put(w2)
    pool.put(999)
    pool.put(w1)  # a member that nobody has taken
    assert (len(pool), pool.workers()) == (1, [w1])
    assert pool.take() == w1
    assert not pool.isready()


class PlainPool(AbstractWorkerPool):
    """What a pool author has to write, and no more."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = list(pids)
        self._free: Channel[int] = Channel(len(pids))
        self.taken: deque[int] = deque()
        for pid in pids:
            self._free.put(pid)

    def push(self, pid: int) -> None:
        self._pids.append(pid)

    def put(self, pid: int) -> int:
        self._free.put(pid)
        return pid

    def take(self, timeout: float | None = None) -> int:
        pid = self._free.take(timeout=timeout)
        self.taken.append(pid)
        return pid

    def wait(self, timeout: float | None = None) -> None:
        self._free.wait(timeout=timeout)

    def isready(self) -> bool:
        return self._free.isready()

    def workers(self) -> list[int]:
        return list(self._pids)


@pytest.mark.case("C157")
def test_pool_of_ones_own_works_everywhere(workers: StartWorkers) -> None:
    """C157: a minimal subclass is accepted by the calls, by remote and by pmap, which use its take and put."""
    pids = workers(2)
    pool = PlainPool(pids)
    assert remotecall_fetch(myid, pool) in pids
    assert fetch(remotecall(myid, pool)) in pids
    assert fetch(remotecall_wait(myid, pool)) in pids
    assert remote(pool, myid)() in pids
    remote_do(jobs.os_pid, pool)
    assert pmap(lambda x: x * x, pool, range(20)) == [x * x for x in range(20)]
    assert pmap(lambda x, y: x + y, pool, range(3), range(4)) == [0, 2, 4]
    assert pmap(jobs.fail_on, pool, [1] * 3, [0, 1, 2], on_error=lambda error: str(error)) == [0, "bad item 1", 4]
    with pytest.raises(ValueError, match="bad item 1"):
        pmap(jobs.fail_on, pool, [1] * 3, [0, 1, 2])
    assert len(pool.taken) >= 25
    taken = [pool.take(timeout=10) for _ in pids]
    assert sorted(taken) == pids  # all were given back


@pytest.mark.case("C159")
def test_default_pool_is_replaced_and_restored(workers: StartWorkers) -> None:
    """C159: `remote` uses the pool that is the default when it is called."""
    w1, w2 = workers(2)
    where = remote(myid)
    before = distpool.set_default_worker_pool(CachingPool([w2]))
    try:
        assert isinstance(default_worker_pool(), CachingPool)
        assert {where() for _ in range(5)} == {w2}
    finally:
        distpool.set_default_worker_pool(before)
    assert default_worker_pool() is before
    assert sorted(before.workers()) == [w1, w2]
    assert where() in (w1, w2)


class Counted:
    """Counts how often it is pickled, and weighs ten megabytes then."""

    def __init__(self) -> None:
        self.pickles = 0

    def __reduce__(self) -> tuple[Any, ...]:
        self.pickles += 1
        return bytes, (b"x" * 10_000_000,)


@pytest.mark.case("C160")
def test_closure_travels_once_per_worker(workers: StartWorkers) -> None:
    """C160: a closure over ten megabytes, called a hundred times on two workers, is pickled at most twice."""
    pool = CachingPool(workers(2))
    heavy = Counted()

    def weigh(_: int) -> int:
        return len(heavy)  # type: ignore[arg-type]

    calls = [remotecall(weigh, pool, number) for number in range(50)]
    assert [fetch(call) for call in calls] == [10_000_000] * 50
    assert pmap(weigh, pool, range(50)) == [10_000_000] * 50
    assert heavy.pickles <= 2


@pytest.mark.case("C161")
def test_clear_frees_the_workers_copies(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C161: after clear the cache is empty, the workers have freed their copies, and the pool works again."""
    (worker,) = workers(1)
    pool = CachingPool([worker])
    process = psutil.Process(remotecall_fetch(os.getpid, worker))
    weight = bytes(100_000_000)

    def weigh() -> int:
        return len(weight)

    assert remotecall_fetch(weigh, pool) == len(weight)
    assert pool.cached() == [weigh]
    assert process.memory_info().rss > len(weight)
    assert distpool.clear(pool) is pool
    assert pool.cached() == []
    eventually(lambda: process.memory_info().rss < len(weight), 10)
    assert remotecall_fetch(weigh, pool) == len(weight)
    with pytest.raises(TypeError, match="CachingPool"):
        distpool.clear(WorkerPool([worker]))  # type: ignore[arg-type]


@pytest.mark.case("C162")
def test_caching_pool_is_not_sent(workers: StartWorkers) -> None:
    """C162: sending a CachingPool raises in the caller."""
    (worker,) = workers(1)
    with pytest.raises((RuntimeError, TypeError), match="CachingPool"):
        remotecall_fetch(jobs.identity, worker, CachingPool([worker]))
    assert remotecall_fetch(myid, worker) == worker


@pytest.mark.case("C163")
def test_callable_that_does_not_open_fails_each_time(workers: StartWorkers) -> None:
    """C163: a callable that the worker cannot open is an error at the second use as at the first."""
    (worker,) = workers(1)
    pool = CachingPool([worker])
    poison = jobs.Poison()

    def poisoned() -> Any:
        return poison

    for _ in range(2):
        with pytest.raises(RemoteException, match="does not open"):
            remotecall_fetch(poisoned, pool)
    with pytest.raises(RemoteException, match="does not open"):
        pmap(lambda _: poison, pool, range(2))
    assert remotecall_fetch(myid, pool) == worker


class Adder:
    """A callable object."""

    def __init__(self, amount: int) -> None:
        self.amount = amount

    def __call__(self, x: int) -> int:
        return x + self.amount


@pytest.mark.case("C164")
def test_types_and_callable_objects(workers: StartWorkers) -> None:
    """C164: a CachingPool takes types, built-ins, bound methods and callable objects."""
    pool = CachingPool(workers(1))
    for _ in range(2):
        assert remotecall_fetch(complex, pool, 1, imag=2) == complex(1, 2)
        assert pmap(str, pool, [1, 2]) == ["1", "2"]
        assert pmap("-".join, pool, ["ab"]) == ["a-b"]
        assert pmap(Adder(3), pool, [1, 2]) == [4, 5]
        assert remotecall_fetch(Adder(4), pool, 1) == 5
    assert pool.isready()


@pytest.mark.case("C165")
@any_pool
def test_many_lambdas_through_one_pool(workers: StartWorkers, make: type[WorkerPool]) -> None:
    """C165: ten thousand lambdas, a hundred megabytes if they were kept, leave the worker's memory bounded."""
    (worker,) = workers(1)
    pool = make([worker])
    process = psutil.Process(remotecall_fetch(os.getpid, worker))

    def use(count: int) -> None:
        for number in range(count):
            weight = b"x" * 20_000
            assert remotecall_fetch(lambda n=number, w=weight: (n, len(w)), pool) == (number, 20_000)

    use(500)
    before = process.memory_info().rss
    use(9_500)
    assert process.memory_info().rss - before < 30_000_000


@pytest.mark.case("C166")
def test_pool_with_workers_of_its_own() -> None:
    """C166: two new workers for the time of the block, gone after it, also after an exception."""
    with WorkerPool(processes=2) as pool:
        assert pool.map(jobs.square, range(10)) == [x * x for x in range(10)]
        assert len(pool) == 2
        processes = [psutil.Process(pid) for pid in set(pool.map(jobs.os_pid_for, range(50)))]
        assert 1 <= len(processes) <= 2
    psutil.wait_procs(processes, timeout=10)
    assert not any(process.is_running() for process in processes)

    class OwnError(Exception):
        pass

    with pytest.raises(OwnError), WorkerPool(processes=2) as pool:  # noqa: PT012
        processes = [psutil.Process(pid) for pid in set(pool.map(jobs.os_pid_for, range(50)))]
        raise OwnError
    psutil.wait_procs(processes, timeout=10)
    assert not any(process.is_running() for process in processes)
    assert distpool.workers() == [1]


@pytest.mark.case("C167")
def test_remote_passes_keywords_and_finds_workers_late(no_cluster: None) -> None:
    """C167: keywords reach f; a `remote` made before addprocs runs on a worker afterwards."""
    late = remote(myid)
    assert late() == 1
    w1, w2 = sorted(distpool.addprocs(2))
    assert remote(WorkerPool([w2]), jobs.echo)(1, k=2) == ((1,), {"k": 2})
    assert remote(WorkerPool([w2]), myid)() == w2
    assert late() in (w1, w2)


@pytest.fixture
def fresh_pool(no_cluster: None) -> AbstractWorkerPool:
    """The default pool while there is no worker."""
    return default_worker_pool()


@pytest.mark.case("C008")
def test_default_pool_without_workers(fresh_pool: AbstractWorkerPool) -> None:
    """C008: process 1 stands in, as often as asked, and is no member."""
    assert (fresh_pool.workers(), fresh_pool.nworkers(), len(fresh_pool)) == ([1], 1, 0)
    assert [fresh_pool.take() for _ in range(3)] == [1, 1, 1]
    fresh_pool.put(1)
    assert len(fresh_pool) == 0
    assert fresh_pool.isready()
    fresh_pool.wait(timeout=1)
    assert remotecall_fetch(myid, fresh_pool) == 1


@pytest.mark.case("C151", "C008")
def test_default_pool_follows_the_cluster(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C151: workers that join are members at once, those that leave or die are not any more."""
    pool = default_worker_pool()
    w1, w2 = workers(2)
    assert (sorted(pool.workers()), len(pool), pool.nworkers()) == ([w1, w2], 2, 2)
    distpool.rmprocs(w1)
    assert pool.workers() == [w2]
    kill(w2, eventually)
    eventually(lambda: pool.workers() == [1])  # pools are told just after
    assert len(pool) == 0
    assert remote(myid)() == 1


@pytest.mark.case("C166")
def test_pool_inside_a_task(run_script: RunScript) -> None:
    """C166: a task opens a pool of its own; its workers are gone with the block, and the script needs no guard."""
    code, out, err = run_script("""
        from distpool import WorkerPool
        def inner(n):
            with WorkerPool(processes=2) as pool:
                return sum(pool.map(lambda x: x * n, range(10)))
        with WorkerPool(processes=2) as pool:
            print(pool.map(inner, range(4)))
    """)
    assert (code, out, err) == (0, "[0, 45, 90, 135]\n", "")


@pytest.mark.case("C154")
def test_worker_killed_during_a_call_on_a_pool(workers: StartWorkers) -> None:
    """C154: a call on a pool whose worker is killed in it raises how it died; the pool goes on with the others."""
    pids = workers(2)
    pool = WorkerPool(pids)
    with pytest.raises(ProcessExitedException) as raised:
        remotecall_fetch(jobs.kill_self, pool)
    assert raised.value.signal == signal.SIGKILL
    assert len(pool) == 1
    assert remotecall_fetch(myid, pool) == pool.workers()[0]
