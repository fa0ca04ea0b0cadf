"""What tasks of random programs do (``do``), and what may come of it (``OUTCOMES``). Light, because workers import it.

An outcome is VALUE, DEATH or the name of an exception's class. Deeds leave the worker as it was, or end it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

VALUE, DEATH = "value", "death"


class DumpBomb:
    """A result that raises when it is pickled."""

    def __reduce__(self) -> NoReturn:
        raise LookupError("cannot be pickled")


class ExitOnDump:
    """A result that ends its worker when it is pickled."""

    def __reduce__(self) -> NoReturn:
        os._exit(7)


def ok(x: int) -> int:
    return x * x


def nap(x: int) -> int:
    time.sleep(x % 7 / 500)
    return x * x


def big(x: int) -> bytes:
    return bytes([x & 255]) * (100_000 + 50_000 * (x % 40))


def fail(x: int) -> NoReturn:
    raise ValueError(x)


def leave(x: int) -> NoReturn:
    sys.exit(x)


def vanish(x: int) -> NoReturn:
    os._exit(x & 127)


def kill(x: int) -> NoReturn:
    os.kill(os.getpid(), 9)
    time.sleep(60)
    raise AssertionError


def too_much_memory(x: int) -> int:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:
        now = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (32 << 20), limits[1]))
    try:
        return len(bytearray(1 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def close_descriptors(x: int) -> int:
    os.closerange(3, 1024)
    return x * x


def close_standard_streams(x: int) -> int:
    os.closerange(0, 3)
    return x * x


def fork_and_come_back(x: int) -> int:
    pid = os.fork()
    if pid == 0:
        return -1
    os.waitpid(pid, 0)
    return x * x


def leave_a_child(x: int) -> int:
    if os.fork() == 0:
        time.sleep(1000)
    return x * x


def leave_a_program(x: int) -> int:
    subprocess.Popen(["sleep", "1000"])
    return x * x


def leave_a_thread(x: int) -> int:
    threading.Thread(target=time.sleep, args=(0.2,), daemon=bool(x % 2)).start()
    return x * x


def pool_inside(x: int) -> int:
    from distpool import WorkerPool

    with WorkerPool(processes=1) as pool:
        return pool.submit(ok, x).result()


def explode_when_packed(x: int) -> DumpBomb:
    return DumpBomb()


def vanish_when_packed(x: int) -> ExitOnDump:
    return ExitOnDump()


HARMLESS = [ok, nap, big]
OUTCOMES = {
    **{deed: {VALUE} for deed in HARMLESS},
    fail: {"ValueError"},
    leave: {"SystemExit"},
    vanish: {DEATH},
    kill: {DEATH},
    too_much_memory: {"MemoryError"},
    close_descriptors: {DEATH, "OSError", "ValueError"},
    close_standard_streams: {VALUE},
    fork_and_come_back: {VALUE},
    leave_a_child: {VALUE},
    leave_a_program: {VALUE},
    leave_a_thread: {VALUE},
    pool_inside: {VALUE},
    explode_when_packed: {"LookupError", "TypeError", "MaybeEncodingError"},
    vanish_when_packed: {DEATH},
}
DEEDS = {deed.__name__: deed for deed in OUTCOMES}


def value_of(name: str, x: int) -> object:
    """What the deed is to return, if it returns."""
    return big(x) if name == "big" else x * x


def do(item: tuple[str, int]) -> Any:
    """Do a deed, told by its name."""
    name, x = item
    return DEEDS[name](x)


def forked_pids(server: int) -> list[int]:
    """The processes that a fork server has started, as the kernel lists them."""
    with contextlib.suppress(OSError), open(f"/proc/{server}/task/{server}/children") as children:
        return [int(pid) for pid in children.read().split()]
    return []
