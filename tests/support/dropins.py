"""Functions that the tests of ``distpool.compat.multiprocessing`` run in workers. Light, for workers import it."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

things: tuple[Any, ...] = ()  # what the initializer was given


class NeedsTwo(Exception):
    """Cannot be rebuilt from its args."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__(one)
        self.two = two


class Poison:
    """Explodes when it is pickled, or when it is opened."""

    def __init__(self, when: str) -> None:
        self.when = when

    def __reduce__(self) -> Any:
        if self.when == "pickled":
            raise LookupError("cannot be pickled")
        return explode, ()


def explode() -> None:
    raise LookupError("cannot be opened")


def misbehave_at_3(how: str, x: Any) -> Any:
    """What x is, but for 3."""
    if x == 3:
        misbehave(how)
        if how == "lock":
            import threading

            return threading.Lock()
    return x


def misbehave(how: str) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "_exit":
        os._exit(3)
    elif how == "sys.exit":
        sys.exit(3)
    elif how == "two":
        raise NeedsTwo(1, 2)
    elif how == "sleep":
        time.sleep(1000)


def square(x: Any) -> Any:
    return x * x


def same(x: Any) -> Any:
    return x


def pair(x: Any, y: Any) -> Any:
    return (x, y)


def reciprocal(x: Any) -> float:
    return 1 / x


def slow_failure(seconds: float) -> None:
    time.sleep(seconds)
    raise ValueError(seconds)


def touch(path: str) -> str:
    with open(path, "a") as file:
        file.write("x")
    return path


def wait_for(path: str) -> str:
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def touch_and_sleep(path: str) -> None:
    touch(path)
    time.sleep(1000)


def meet_at(mine: str, other: str) -> str:
    """Two of these need two workers."""
    touch(mine)
    wait_for(other)
    return mine


def keywords(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def os_pid(_: object = None) -> int:
    return os.getpid()


def is_main_thread(_: object = None) -> bool:
    import threading

    return threading.current_thread() is threading.main_thread()


def keep(*given: Any) -> None:
    """An initializer."""
    global things
    things = given


def fail(*given: Any) -> None:
    """An initializer that does not work."""
    raise ZeroDivisionError("initializer")


def kept(_: object = None) -> Any:
    return things


def add_under_lock(n: int) -> int:
    """Needs the lock to be right: reads, lets others run, writes."""
    lock, total = things
    for _ in range(n):
        with lock:
            value = total.value
            time.sleep(0.0001)
            total.value = value + 1
    return n


def use_semaphore(_: object) -> tuple[bool, bool]:
    (semaphore,) = things
    got = semaphore.acquire(timeout=0.2), semaphore.acquire(block=False)
    for each in got:
        if each:
            semaphore.release()
    return got


def release_too_often(_: object) -> str:
    try:
        things[0].release()
    except ValueError as error:
        return str(error)
    return "released"


def recurse(_: object) -> bool:
    (lock,) = things
    with lock, lock, lock:
        return bool(lock.acquire(timeout=1) and lock.release() is None)


def set_event(_: object) -> bool:
    ready, go = things
    ready.set()
    return bool(go.wait(10))


def wait_condition(_: object) -> bool:
    condition, ready = things
    with condition:
        ready.set()
        return bool(condition.wait(10))


def meet(_: object) -> int:
    return int(things[0].wait(10))


def relay(_: object) -> None:
    """From one queue to the other."""
    incoming, outgoing = things
    outgoing.put(incoming.get(timeout=10) + 1)


def relay_simple(_: object) -> None:
    incoming, outgoing = things
    outgoing.put(incoming.get() + 1)


def do_task(_: object) -> None:
    (queue,) = things
    queue.get(timeout=10)
    queue.task_done()


def send_on(_: object) -> None:
    incoming, outgoing = things
    outgoing.send([*incoming.recv(), "and back"])


def change_values(i: int) -> None:
    value, array, raw, raw_array = things
    with value.get_lock():
        value.value += 1
    array[i] = i
    raw.value = 2.5
    raw_array[i] = i * 2


def change_proxies(i: int) -> int:
    table, names = things
    table[i] = i * i
    names.append(i)
    return len(names)


def change_memory(i: int) -> bytes:
    memory, shared = things
    memory.buf[i] = i + 1
    shared[i] = f"item {i}"
    return bytes(memory.buf[:1])


def fresh_memory(_: object) -> str:
    """Shared memory that outlives this worker."""
    from multiprocessing.shared_memory import SharedMemory

    memory = SharedMemory(create=True, size=16)
    memory.buf[:5] = b"hello"
    memory.close()
    return memory.name


def who_am_i() -> dict[str, Any]:
    import multiprocessing

    me, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    assert parent is not None
    return {
        "name": me.name,
        "identity": me._identity,  # type: ignore[attr-defined]
        "pid is mine": me.pid == os.getpid() == me.ident,
        "is_alive": me.is_alive(),
        "daemon": me.daemon,
        "authkey": bytes(me.authkey),
        "parent": (parent.pid, parent.name, parent.is_alive()),
        "method": multiprocessing.get_start_method(),
        "children": multiprocessing.active_children(),
    }


def log_name() -> str:
    """The name that log records of this process tell."""
    import logging

    return str(logging.LogRecord("x", 20, "x", 1, "x", (), None).processName)


def acquire() -> bool:
    return bool(things[0].acquire())


def run_child(_: object) -> tuple[Any, Any]:
    """A process of this worker's own."""
    import multiprocessing

    queue: Any = multiprocessing.SimpleQueue()
    child = multiprocessing.get_context("fork").Process(target=tell_name, args=(queue,))
    child.start()
    name = queue.get()
    child.join(10)
    return name, child.exitcode


def tell_name(queue: Any) -> None:
    import multiprocessing

    queue.put(multiprocessing.current_process().name)


def nested(n: int) -> tuple[Any, Any]:
    from distpool.compat.multiprocessing import Pool

    with Pool(1) as pool:
        return pool.map(square, range(n)), pool.apply(who_am_i)["name"]


def nested_with_lock(n: int) -> Any:
    """Gives on what the initializer gave."""
    from distpool.compat.multiprocessing import Pool

    with Pool(2, keep, things) as pool:
        return pool.map(add_under_lock, [n, n])


def connection_of_mine() -> Any:
    from multiprocessing import Pipe

    here, there = Pipe()
    there.send("from a worker")
    there.close()
    return here


def send_through(connection: Any, what: Any) -> None:
    connection.send(what)
    connection.close()


def rosenbrock(x: Any) -> float:
    """A valley that is hard to find the bottom of."""
    return float(sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def log_density(x: Any, width: float) -> float:
    return -0.5 * float(x @ x) / width


def wave(x: float) -> Any:
    import numpy

    return numpy.sin(numpy.arange(1, 4) * x)
