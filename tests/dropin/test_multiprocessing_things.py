"""Locks, queues, pipes, shared memory, proxies in the workers of ``distpool.compat.multiprocessing``; who is who."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Iterator
from ctypes import Structure, c_double, c_int
from multiprocessing.shared_memory import ShareableList, SharedMemory
from typing import Any

import pytest

import distpool
import distpool.compat.multiprocessing as mp
from distpool.compat.multiprocessing.pool import Pool
from support import dropins
from support.leaks import eventually

# Made by the module's own factories; by contexts of its own, whatever their start method; by the standard library's
# fork context, whose semaphores have no names (a program that has changed only the import of Pool).
SOURCES: dict[str, Any] = {
    "ours": mp,
    "our fork": mp.get_context("fork"),
    "our spawn": mp.get_context("spawn"),
    "the fork of the standard library": multiprocessing.get_context("fork"),
}


@pytest.fixture(scope="module", autouse=True)
def _what_the_standard_library_keeps() -> None:
    """Its resource tracker, and the first piece of its heap: made before the first leak census."""
    mp.Lock()
    mp.Value("i", 0)


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> Any:
    return SOURCES[request.param]


def test_a_lock_protects_a_value(source: Any) -> None:
    """Between workers; also in one that takes a dead one's place."""
    lock, total = source.Lock(), source.Value("i", 0, lock=False)
    with Pool(2, dropins.keep, (lock, total)) as pool:
        pool.map(dropins.add_under_lock, [25, 25], 1)
        assert total.value == 50
        with pytest.raises(distpool.ProcessExitedException):
            pool.apply(os._exit, (1,))
        pool.map(dropins.add_under_lock, [5] * 4, 1)
    assert total.value == 70


def test_a_lock_is_held_here_too(source: Any) -> None:
    """What this process holds no worker gets, and the other way round."""
    lock = source.Lock()
    with Pool(1, dropins.keep, (lock,)) as pool:
        with lock:
            assert pool.apply(dropins.use_semaphore, (0,)) == (False, False)
        assert pool.apply(dropins.use_semaphore, (0,)) == (True, False)
        assert pool.apply(dropins.acquire)
        assert not lock.acquire(block=False)
        lock.release()


def test_semaphores(source: Any) -> None:
    """Count across processes; a bounded one refuses too many."""
    with Pool(1, dropins.keep, (source.Semaphore(1),)) as pool:
        assert pool.apply(dropins.use_semaphore, (0,)) == (True, False)
    with Pool(1, dropins.keep, (source.Semaphore(2),)) as pool:
        assert pool.apply(dropins.use_semaphore, (0,)) == (True, True)
    with Pool(1, dropins.keep, (source.BoundedSemaphore(1),)) as pool:
        assert "too many times" in pool.apply(dropins.release_too_often, (0,))


def test_recursive_locks(source: Any) -> None:
    """Know who holds them, in each process."""
    lock = source.RLock()
    with Pool(1, dropins.keep, (lock,)) as pool:
        assert pool.apply(dropins.recurse, (0,))
        with lock, lock:
            waiting = pool.apply_async(dropins.recurse, (0,))
            with pytest.raises(mp.TimeoutError):
                waiting.get(0.2)
        assert waiting.get(20)


def test_events_conditions_barriers(source: Any) -> None:
    """Processes wait for each other."""
    ready, go = source.Event(), source.Event()
    with Pool(1, dropins.keep, (ready, go)) as pool:
        waiting = pool.apply_async(dropins.set_event, (0,))
        assert ready.wait(20)
        assert not waiting.ready()
        go.set()
        assert waiting.get(20)
    condition, ready = source.Condition(), source.Event()
    with Pool(1, dropins.keep, (condition, ready)) as pool:
        waiting = pool.apply_async(dropins.wait_condition, (0,))
        assert ready.wait(20)
        with condition:
            condition.notify_all()
        assert waiting.get(20)
    with Pool(2, dropins.keep, (source.Barrier(3),)) as pool:
        waiting = pool.map_async(dropins.meet, range(2), 1)
        pool._kept[0].wait(20)
        assert sorted({*waiting.get(20)})[-1] <= 2


def test_queues(source: Any) -> None:
    """Of all three kinds, in both directions."""
    incoming, outgoing = source.Queue(), source.Queue(5)
    with Pool(2, dropins.keep, (incoming, outgoing)) as pool:
        for number in range(4):
            incoming.put(number)
        pool.map(dropins.relay, range(4), 1)
        assert sorted(outgoing.get(timeout=20) for _ in range(4)) == [1, 2, 3, 4]
    for queue in (incoming, outgoing):
        queue.close()
        queue.join_thread()
    simple, other = source.SimpleQueue(), source.SimpleQueue()
    with Pool(1, dropins.keep, (simple, other)) as pool:
        simple.put(1)
        pool.apply(dropins.relay_simple, (0,))
        assert other.get() == 2
    joinable = source.JoinableQueue()
    with Pool(2, dropins.keep, (joinable,)) as pool:
        for number in range(4):
            joinable.put(number)
        pool.map(dropins.do_task, range(4), 1)
        joinable.join()
    joinable.close()
    joinable.join_thread()
    for end in (simple, other):
        end.close()


def test_values_and_arrays(source: Any) -> None:
    """Synchronised ones and raw ones are the same memory."""
    things = source.Value("i", 0), source.Array("i", 4), source.RawValue(c_double, 0), source.RawArray("d", 4)
    with Pool(2, dropins.keep, things) as pool:
        pool.map(dropins.change_values, range(4), 1)
    value, array, raw, raw_array = things
    assert (value.value, list(array), raw.value, list(raw_array)) == (4, [0, 1, 2, 3], 2.5, [0, 2, 4, 6])


class Point(Structure):
    _fields_ = (("x", c_int), ("y", c_int))


def test_structures_and_what_is_not_shared() -> None:
    """A shared structure is shared, an ordinary ctypes object is copied."""
    point, number = mp.Value(Point, 1, 2), c_int(3)
    with Pool(1, dropins.keep, (point, number)) as pool:
        assert pool.apply(set_both, (5,)) == (1, 3)
    assert (point.x, point.y, number.value) == (5, 2, 3)


def set_both(value: int) -> tuple[int, int]:
    point, number = dropins.things
    before = point.x, number.value
    point.x = number.value = value
    return before


def test_pipes() -> None:
    """Ends of pipes, in initargs, as arguments, as results; also plain sockets."""
    here, there = mp.Pipe()
    back, answers = mp.Pipe(duplex=False)
    with Pool(1, dropins.keep, (there, answers)) as pool:
        here.send(["there"])
        pool.apply(dropins.send_on, (0,))
        assert back.recv() == ["there", "and back"]
        pool.apply(dropins.send_through, (there, "as an argument"))
        assert here.recv() == "as an argument"
        with pool.apply(dropins.connection_of_mine) as connection:
            assert connection.recv() == "from a worker"
        one, other = socket.socketpair()
        with one, other:
            pool.apply(socket.socket.sendall, (other, b"bytes"))
            assert one.recv(10) == b"bytes"
    for end in (here, there, back, answers):
        end.close()


def test_proxies_of_managers() -> None:
    """They find their server, in initargs and as arguments; also with a key of its own."""
    with mp.get_context("spawn").Manager() as manager:
        table, names = manager.dict(), manager.list()
        with Pool(2, dropins.keep, (table, names)) as pool:
            pool.map(dropins.change_proxies, range(4), 1)
            assert pool.apply(len, (names,)) == 4
            lock, queue = manager.Lock(), manager.Queue()
            pool.starmap(locked_put, [(lock, queue, i) for i in range(4)])
            assert sorted(queue.get() for _ in range(4)) == [0, 1, 2, 3]
        assert dict(table) == {0: 0, 1: 1, 2: 4, 3: 9}


def locked_put(lock: Any, queue: Any, item: int) -> None:
    with lock:
        queue.put(item)


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    memory = SharedMemory(create=True, size=64)
    yield memory
    memory.close()
    memory.unlink()


def test_shared_memory(memory: SharedMemory) -> None:
    """Arrives attached; the end of workers, even a violent one, does not unlink it."""
    shared = ShareableList(["x" * 10] * 4)
    with Pool(2, dropins.keep, (memory, shared)) as pool:
        pool.map(dropins.change_memory, range(4), 1)
        assert pool.apply(memory_size, (memory,)) >= 64
        with pytest.raises(distpool.ProcessExitedException):
            pool.apply(os._exit, (1,))
        name = pool.apply(dropins.fresh_memory, (0,))
    assert bytes(memory.buf[:4]) == bytes([1, 2, 3, 4])
    assert list(shared) == [f"item {i}" for i in range(4)]
    shared.shm.close()
    shared.shm.unlink()
    fresh = SharedMemory(name=name)  # of a worker that is gone
    assert bytes(fresh.buf[:5]) == b"hello"
    fresh.close()
    fresh.unlink()


def memory_size(memory: SharedMemory) -> int:
    return memory.size


def test_things_in_globals_of_functions() -> None:
    """As a forked worker would inherit them."""
    lock, total = mp.Lock(), mp.Value("i", 0, lock=False)

    def count(_: int) -> None:
        with lock:
            total.value += 1

    with Pool(2) as pool:
        pool.map(count, range(50), 1)
    assert total.value == 50


def test_things_go_on_to_pools_of_workers(source: Any) -> None:
    """What a worker was given it can give on."""
    lock, total = source.Lock(), source.Value("i", 0, lock=False)
    with Pool(1, dropins.keep, (lock, total)) as pool:
        assert pool.apply(dropins.nested_with_lock, (5,)) == [5, 5]
    assert total.value == 10


def test_a_lock_that_is_gone_is_named() -> None:
    """A nameless one lives here: when it does not any more, the error says what to do."""
    from distpool.compat.multiprocessing import lent

    with pytest.raises(LookupError, match=r"distpool\.compat\.multiprocessing"):
        lent.value_of(10**9)


def test_other_pickles_refuse_as_ever() -> None:
    """Our rules are for our messages."""
    with pytest.raises(RuntimeError, match="through inheritance"):
        pickle.dumps(mp.Lock())
    with pytest.raises(TypeError, match="security"):
        pickle.dumps(mp.current_process().authkey)


# -- who is who


@pytest.mark.parametrize(("method", "name"), [("fork", "Fork"), ("spawn", "Spawn"), ("forkserver", "ForkServer")])
def test_workers_know_who_they_are(method: str, name: str) -> None:
    """Name, number, parent, key and start method as in the standard library's workers."""
    with mp.get_context(method).Pool(1) as pool:
        told = pool.apply(dropins.who_am_i)
        (worker,) = pool._pool
        assert pool.apply(dropins.log_name) == told["name"]
    (number,) = told.pop("identity")
    assert told == {
        "name": f"{name}PoolWorker-{number}",
        "pid is mine": True,
        "is_alive": True,
        "daemon": True,
        "authkey": bytes(multiprocessing.current_process().authkey),
        "parent": (os.getpid(), "MainProcess", True),
        "method": method,
        "children": [],
    }
    assert (worker.name, worker._identity) == (f"{name}PoolWorker-{number}", (number,))
    assert not worker.is_alive()


def test_numbers_are_not_used_twice() -> None:
    """Not by another pool, nor by who takes a dead one's place; processes are counted along."""
    with Pool(2) as one, Pool(2) as other:
        first = [worker._identity for pool in (one, other) for worker in pool._pool]
        os.kill(one._pool[0].pid, 9)
        eventually(lambda: set(first) != {w._identity for pool in (one, other) for w in pool._pool})
        later = [worker._identity for pool in (one, other) for worker in pool._pool]
    assert len({*first}) == 4
    assert len({*first, *later}) == 5
    assert multiprocessing.Process()._identity > max(later)  # type: ignore[attr-defined]


def test_active_children() -> None:
    """The workers of open pools are among them, and can be asked."""
    before = mp.active_children()
    with Pool(2) as pool:
        workers = [child for child in mp.active_children() if child not in before]
        assert sorted(child.pid for child in workers) == sorted(child.pid for child in pool._pool)
        assert isinstance(workers[0], multiprocessing.process.BaseProcess)
        assert workers[0].is_alive()
        assert workers[0].daemon
        assert workers[0].exitcode is None
        assert "PoolWorker" in repr(workers[0])
        workers[0].terminate()
        workers[0].join(20)
        assert not workers[0].is_alive()
        workers[1].kill()
        assert multiprocessing.connection.wait([workers[1].sentinel], 20)
        assert pool.map(abs, [-1]) == [1]
    assert mp.active_children() == before


def test_workers_have_children_and_pools() -> None:
    """The standard library forbids that."""
    with Pool(1) as pool:
        outer = pool.apply(dropins.who_am_i)["name"]
        name, code = pool.apply(dropins.run_child, (0,))
        assert name.startswith("ForkProcess-")
        assert code == 0
        squares, inner = pool.apply(dropins.nested, (4,))
    assert squares == [0, 1, 4, 9]
    assert inner.startswith(f"{outer}:")


# -- the module


def test_every_public_name_is_there() -> None:
    """Those of the standard library, and nothing is lost on the way."""
    assert sorted(mp.__all__) == sorted(multiprocessing.__all__)
    names: dict[str, Any] = {}
    exec("from distpool.compat.multiprocessing import *", names)
    assert names.keys() >= set(multiprocessing.__all__)
    for name in ("Process", "Manager", "cpu_count", "TimeoutError", "freeze_support", "get_logger", "Pipe"):
        assert callable(getattr(mp, name))
    assert mp.Process is multiprocessing.Process
    assert mp.cpu_count() == multiprocessing.cpu_count()
    assert {"pool", "Pool", "Queue"} <= set(dir(mp))
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mp.nonsense


@pytest.mark.parametrize(
    "name", ["managers", "shared_memory", "connection", "queues", "synchronize", "dummy.connection"]
)
def test_submodules_are_the_standard_library_s(name: str) -> None:
    """The same modules, however they are imported."""
    code = f"""
import importlib, sys
ours = importlib.import_module("distpool.compat.multiprocessing.{name.partition(".")[0]}")
assert ours is sys.modules["multiprocessing.{name.partition(".")[0]}"]
import distpool.compat.multiprocessing as mp
assert mp.{name.partition(".")[0]} is ours
from distpool.compat.multiprocessing import pool
assert pool.Pool is not sys.modules["multiprocessing.pool"].Pool
from distpool.compat.multiprocessing.pool import MaybeEncodingError, RUN, mapstar
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(ModuleNotFoundError):
        __import__("distpool.compat.multiprocessing.nonsense")


def test_contexts() -> None:
    """Answer as the standard library's, and are such."""
    for method in mp.get_all_start_methods():
        context = mp.get_context(method)
        assert isinstance(context, multiprocessing.context.BaseContext)
        assert context.get_start_method() == method
        assert context.get_context() is context
        assert context.Process is multiprocessing.get_context(method).Process
        with pytest.raises(ValueError, match="concrete context"):
            context.set_start_method("fork")
    with pytest.raises(ValueError, match="cannot find context for 'nonsense'"):
        mp.get_context("nonsense")
    before = multiprocessing.get_start_method()
    assert mp.get_start_method() == before
    assert mp.get_context().get_start_method() == before
    mp.set_start_method("spawn", force=True)
    try:
        assert multiprocessing.get_start_method() == mp.get_start_method() == "spawn"
    finally:
        mp.set_start_method(before, force=True)
    with pytest.raises(RuntimeError, match="already been set"):
        mp.set_start_method("spawn")


def test_importing_it_is_light() -> None:
    """Every worker does that."""
    code = (
        "import sys; old = {*sys.modules}; import distpool.compat.multiprocessing.worker; print(*{*sys.modules} - old)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert {"multiprocessing", "pickle", "ctypes"}.isdisjoint(told.split())
