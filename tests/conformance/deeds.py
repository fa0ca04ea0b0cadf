"""What the numbered cases run in workers, beside the small functions of ``support.jobs``.

Light, because workers import it: nothing of pytest, numpy only where it is used. Waiting is on channels and files that
the other side fills, never on time.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from typing import Any, NoReturn

import distpool

_kept: list[Any] = []
_stop = threading.Event()


def total(v1: int, v2: int = 0, *, kw1: int = 0, kw2: int = 0) -> int:
    """Sum positional and keyword arguments (Julia's `test_f_args`)."""
    return v1 + v2 + kw1 + kw2


def counts() -> tuple[int, int, list[int]]:
    """Tell how this process sees the cluster."""
    return distpool.nprocs(), distpool.nworkers(), sorted(distpool.workers())


def nothing() -> None:
    """Return None."""


def mark(v: list[int]) -> list[int]:
    """Change the argument and return it."""
    v[0] = 1
    return v


def append(x: Any) -> None:
    """Keep a value in this process."""
    _kept.append(x)


def kept() -> list[Any]:
    """Return what `append` has kept, and forget it."""
    values = _kept[:]
    _kept.clear()
    return values


def wait_then_return(gate: distpool.RemoteChannel[Any], value: Any) -> Any:
    """Return the value once something can be taken from the gate."""
    gate.take()
    return value


def say_and_wait(started: distpool.RemoteChannel[Any], gate: distpool.RemoteChannel[Any]) -> Any:
    """Say that the call runs, then wait at the gate."""
    started.put(distpool.myid())
    return gate.take()


def say_and_spin(started: distpool.RemoteChannel[Any], seconds: float) -> int:
    """Say that the call runs, then compute in pure Python until `stop_spinning` is called here, at most `seconds`."""
    started.put(distpool.myid())
    end = time.monotonic() + seconds
    turns = 0
    while not _stop.is_set() and time.monotonic() < end:
        turns += 1
    return turns


def stop_spinning() -> None:
    """End `say_and_spin`."""
    _stop.set()


def say_and_hold(started: distpool.RemoteChannel[Any]) -> None:
    """Say that the call runs, then keep the interpreter's lock in C code for ever."""
    import ctypes

    started.put(distpool.myid())
    while True:
        ctypes.PyDLL(None).sleep(3600)  # PyDLL, unlike CDLL, keeps the lock


def block_exit() -> None:
    """Make this process's orderly end wait for ever."""
    atexit.register(threading.Event().wait)


def puts(future: distpool.Future[int]) -> None:
    """Write this process's id into a Future."""
    future.put(distpool.myid())


def relay(f: Any, pid: int, *args: Any) -> Any:
    """Call another process from here."""
    return distpool.remotecall_fetch(f, pid, *args)


def chain(pids: list[int], value: int) -> int:
    """Call through all pids, one inside the other; each adds one."""
    if not pids:
        return value
    return 1 + distpool.remotecall(chain, pids[0], pids[1:], value).fetch()


def refs_has(rrid: tuple[int, int]) -> bool:
    """Tell whether this process keeps something for a reference."""
    from distpool.member import default_member
    from distpool.messages import RRID

    return RRID(*rrid) in default_member().store


def refs_count() -> int:
    """Count what this process keeps for references."""
    from distpool.member import default_member

    return len(default_member().store)


def read_text(name: str) -> str:
    """Read a file by a name that may be relative to this process's directory."""
    with open(name) as file:
        return file.read()


def paths() -> list[str]:
    """Return this process's module search path."""
    return sys.path[:]


def threads_of_numpy() -> tuple[int, int]:
    """Count the threads of this process before and after numpy has multiplied matrices."""
    before = len(os.listdir("/proc/self/task"))
    import numpy

    matrix = numpy.ones((600, 600))
    assert (matrix @ matrix)[0, 0] == 600
    return before, len(os.listdir("/proc/self/task"))


def calls_to(pid: int, threads: int, each: int) -> list[int]:
    """Call a process from several threads of this one at once; return all answers."""
    from concurrent.futures import ThreadPoolExecutor

    def calls() -> list[int]:
        return [distpool.remotecall_fetch(distpool.myid, pid) for _ in range(each)]

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(calls) for _ in range(threads)]
        return [answer for future in futures for answer in future.result()]


def foo() -> NoReturn:
    """Fail, in a function with a name to look for."""
    raise ValueError("raised in foo")


def caller_of_foo() -> NoReturn:
    """Fail one level deeper."""
    foo()


def fail_from() -> NoReturn:
    """Raise an error with a cause."""
    try:
        raise KeyError("the cause")
    except KeyError as cause:
        raise ValueError("the effect") from cause


def fail_with_stranger() -> NoReturn:
    """Raise an exception whose class exists in this process only."""
    import types

    module = sys.modules["only_on_worker"] = types.ModuleType("only_on_worker")
    stranger = type("OnlyHereError", (Exception,), {"__module__": "only_on_worker"})
    module.OnlyHereError = stranger  # type: ignore[attr-defined]
    raise stranger("nobody else knows me")


class LockedError(Exception):
    """An error that holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def fail_with_lock() -> NoReturn:
    """Raise an exception that cannot travel."""
    raise LockedError("it holds a lock")


def fail_in_thread(_: Any) -> NoReturn:
    """Fail in a helper thread and raise that again with an error of one's own around it."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(foo).result()
        except ValueError as inner:
            raise RuntimeError("the outer error") from inner


def return_error() -> ValueError:
    """Return an exception as data."""
    return ValueError("x")


class NeedsModule:
    """Pickles well; to open it, a module is needed that no worker has."""

    def __call__(self) -> str:
        return "opened"

    def __reduce__(self) -> tuple[Any, ...]:
        return _import, ("no_such_module_anywhere",)


def _import(name: str) -> Any:
    return __import__(name)


def same_objects(pair: list[Any], one: Any) -> tuple[bool, bool]:
    """Tell whether three mentions of a thing, sent in one message, are one object here."""
    first, (second,) = pair
    return first is one, second is one


def pid_after_a_moment(_: Any) -> int:
    """Return this process's id, after long enough that one worker alone does not get all of a map."""
    time.sleep(0.005)
    return distpool.myid()
