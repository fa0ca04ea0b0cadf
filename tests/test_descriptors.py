"""File descriptors in messages, and objects that travel by rules of the user's."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import distpool
from distpool import Descriptor, WorkerPool, register_reducer
from distpool.pickling import dump
from distpool.pickling.descriptors import duplicates


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(processes=2) as pool:
        yield pool


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def write(end: Descriptor, data: bytes) -> int:
    return os.write(end.fileno(), data)


def inode(end: Descriptor) -> int:
    return os.fstat(end.fileno()).st_ino


def own_pipe() -> Descriptor:
    reading, writing = os.pipe()
    os.write(writing, b"from a worker")
    os.close(writing)
    return Descriptor.owning(reading)


def count_descriptors(_: object) -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_descriptor_is_the_same_open_file_there(pool: WorkerPool, pipe: tuple[int, int]) -> None:
    """What a worker writes into a pipe that it was sent comes out here, from maps and from single calls."""
    reading, writing = pipe
    assert pool.starmap(write, [(Descriptor(writing), b"ab")] * 6) == [2] * 6
    assert pool.submit(write, Descriptor(writing), b"c").result() == 1
    assert os.read(reading, 100) == b"ab" * 6 + b"c"


def test_a_result_may_be_a_descriptor(pool: WorkerPool) -> None:
    """It comes back open, and is closed with its object."""
    end = pool.submit(own_pipe).result()
    assert os.read(end.fileno(), 100) == b"from a worker"
    fd = end.detach()
    os.close(fd)
    with pytest.raises(ValueError, match="detached"):
        end.fileno()


def test_many_at_once_with_large_buffers(pool: WorkerPool, pipe: tuple[int, int]) -> None:
    """More than go along with one piece of a message, between arrays: each in its place."""
    parts = [Descriptor(pipe[index % 2]) if index % 3 else np.full(5000, index) for index in range(150)]
    told = pool.submit(lambda parts: [int(p[0]) if hasattr(p, "sum") else inode(p) for p in parts], parts).result()
    assert told == [os.fstat(pipe[index % 2]).st_ino if index % 3 else index for index in range(150)]


def test_beside_a_segment(pool: WorkerPool, pipe: tuple[int, int]) -> None:
    """A callable whose large buffers go into shared memory may have a descriptor, too."""
    table, end = np.arange(1_000_000), Descriptor(pipe[1])
    assert pool.map(lambda i: (int(table[i]), inode(end)), [5, 7]) == [(5, inode(end)), (7, inode(end))]


def test_nothing_stays_open(pool: WorkerPool, pipe: tuple[int, int]) -> None:
    """Neither here nor there, whether the task looked at it or not."""
    before = len(os.listdir("/proc/self/fd"))
    there = pool.map(count_descriptors, range(2))
    pool.map(id, [Descriptor(pipe[1]) for _ in range(50)])
    assert pool.map(count_descriptors, range(2)) == there
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_goes_to_the_worker_that_takes_over(pool: WorkerPool, pipe: tuple[int, int]) -> None:
    """A call that is sent again, because its worker died before it began, still has its descriptor."""
    reading, writing = pipe
    calls = [pool.submit(os._exit, 1) for _ in range(2)]
    later = [pool.submit(write, Descriptor(writing), b"x") for _ in range(8)]
    assert [call.result() for call in later] == [1] * 8
    assert [type(call.exception()) for call in calls] == [distpool.ProcessExitedException] * 2
    assert os.read(reading, 100) == b"x" * 8


def test_within_one_process(pipe: tuple[int, int]) -> None:
    """A pool over this very process pickles its calls, too."""
    assert WorkerPool([1]).submit(inode, Descriptor(pipe[1])).result() == os.fstat(pipe[1]).st_ino


def test_not_in_other_pickles_nor_closed_ones(pipe: tuple[int, int]) -> None:
    """A number in a file would be somebody else's descriptor."""
    end = Descriptor(pipe[0])
    with pytest.raises(TypeError, match="only for processes of this machine"):
        pickle.dumps(end)
    end.close()
    end.close()
    with pytest.raises(ValueError, match="closed"):
        end.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        Descriptor(10**6)


@pytest.mark.usefixtures("no_cluster")
def test_over_the_network_it_fails_where_it_is_opened(pipe: tuple[int, int]) -> None:
    """A worker that was reached over TCP cannot be handed one: this call fails, the connection lives."""
    (worker,) = distpool.addprocs(1, exeflags="-u")
    with pytest.raises(TypeError, match="same machine"):
        distpool.remotecall_fetch(inode, worker, Descriptor(pipe[0]))
    assert distpool.remotecall_fetch(abs, worker, -1) == 1


class Shelf:
    """Cannot be pickled as it is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()


class Drawer(Shelf):
    """A subclass, with no rule of its own."""


def test_a_reducer_is_for_subclasses_and_for_messages_only(pool: WorkerPool) -> None:
    """The rule is found along the classes, by class or by name; other pickles go on as before."""
    with pytest.raises(TypeError, match="lock"):
        pool.submit(id, Drawer("a"))
    register_reducer(f"{__name__}.Shelf", lambda shelf: (type(shelf), (shelf.name,)))
    assert pool.map(lambda shelf: (type(shelf).__name__, shelf.name), [Shelf("a"), Drawer("b")]) == [
        ("Shelf", "a"),
        ("Drawer", "b"),
    ]
    with pytest.raises(TypeError, match="lock"):
        pickle.dumps(Shelf("a"))


def test_a_reducer_may_pass(pool: WorkerPool) -> None:
    """NotImplemented leaves the object to pickle."""
    register_reducer(socket.socket, lambda sock: NotImplemented)
    with socket.socket() as sock, pytest.raises(TypeError, match="socket"):
        pool.submit(id, sock)


@pytest.mark.parametrize("bad", [(3, id), (Shelf, 3)])
def test_what_is_no_reducer_is_refused(bad: tuple[object, object]) -> None:
    """At the call."""
    with pytest.raises(TypeError, match="register_reducer"):
        register_reducer(*bad)  # type: ignore[arg-type]


def test_tasks_that_wait_with_the_same_descriptor_share_one_duplicate(pool: WorkerPool, pipe: tuple[int, int]) -> None:
    """Thousands of them would else need more than a process may have."""
    end = Descriptor(pipe[1])
    before = len(os.listdir("/proc/self/fd"))
    futures = [pool.submit(write, end, b"x") for _ in range(500)]
    assert len(os.listdir("/proc/self/fd")) < before + 100
    end.close()  # what is under way does not need it
    assert [future.result(60) for future in futures] == [1] * 500
    assert len(os.read(pipe[0], 1000)) == 500
    with pytest.raises(TypeError, match="closed"):
        pool.submit(write, end, b"x")


def test_a_descriptor_is_sent_by_many_threads_at_once(pipe: tuple[int, int]) -> None:
    """What they share for their messages is closed by the last of them, while others ask for it."""
    end = Descriptor(pipe[1])
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    stop = time.monotonic() + 1

    def send() -> int:
        sent = 0
        while time.monotonic() < stop:
            parcel = dump(end)
            for fd in duplicates(parcel.buffers):
                assert os.fstat(fd).st_ino == os.fstat(pipe[1]).st_ino
                os.close(fd)
            del parcel
            sent += 1
        return sent

    try:
        with ThreadPoolExecutor(4) as threads:
            assert all(sent.result() for sent in [threads.submit(send) for _ in range(4)])
    finally:
        sys.setswitchinterval(before)


def test_nothing_can_be_sent_along_when_no_descriptor_is_left(run_script: Callable[..., Any]) -> None:
    """The call fails that was to take one along, in maps and alone, and the pool goes on."""
    code, out, err = run_script(
        """
        import os, resource
        from distpool import Descriptor, WorkerPool
        from distpool.pickling import dump

        def end_of(pipe):
            return os.fstat(pipe.fileno()).st_mode

        def without(give):
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            spare = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 1, hard))
            try:
                while True:
                    spare.append(os.dup(0))
            except OSError:
                pass
            try:
                return give()
            finally:
                for fd in spare:
                    os.close(fd)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        def failure(give):
            try:
                return give()
            except OSError as error:
                return error.strerror

        with WorkerPool(processes=1) as pool:
            end = Descriptor(0)
            pool.submit(end_of, end).result()
            held = dump(end)  # as a message on its way does: then pickling needs no descriptor more, but sending does
            calls = [lambda: pool.submit(end_of, end).result(), lambda: pool.map(end_of, [end] * 5, batch_size=5)]
            print([without(lambda: failure(call)) for call in calls])
            print([type(failure(call)).__name__ for call in calls], pool.map(abs, [-1, -2]))
        """
    )
    assert (code, out) == (0, "['Too many open files', 'Too many open files']\n['int', 'list'] [1, 2]\n"), err
