"""Tasks that go wrong in every way we know, for the tests of faults. Light, because workers import it by name.

A task is given a `Deed`, or anything else, which it squares. What it did is written into a file with `note`: lines of
a file that is opened for appending survive the process, whatever ends it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from distpool.tasks import FLUSH_SECONDS
from support.jobs import (
    TwoArgumentError,
    block_for_ever,
    hold_interpreter,
    kill_self,
    make_lock,
    make_poison,
    segfault,
    touch,
    vanish,
)


class Deed:
    """An item that tells `perform` what to do instead of squaring."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"Deed({self.name!r})"


class Locked:
    """Cannot be pickled, because of what it holds."""

    def __init__(self) -> None:
        self.inner = threading.Lock()


class LockedError(Exception):
    """An exception that holds something that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("it holds a lock")
        self.inner = threading.Lock()


def perform(item: Any) -> Any:
    """Squares, or does the deed."""
    return DEEDS[item.name]() if isinstance(item, Deed) else item * item


def perform_two(item: Any, power: int) -> Any:
    """As `perform`, with two arguments: for starmap and several iterables."""
    return DEEDS[item.name]() if isinstance(item, Deed) else item**power


def raise_system_exit() -> NoReturn:
    """The exception itself, with a text."""
    raise SystemExit("enough")


def raise_keyboard_interrupt() -> NoReturn:
    """As if the user had pressed Ctrl-C in the task."""
    raise KeyboardInterrupt("not really")


def raise_two_arguments() -> NoReturn:
    """Pickle alone could not rebuild it."""
    raise TwoArgumentError("one", "two")


def raise_locked() -> NoReturn:
    """Cannot be pickled at all."""
    raise LockedError


def run_out_of_memory() -> bytearray:
    """More than any machine has: MemoryError, at once."""
    return bytearray(1 << 60)


def recurse(depth: int = 0) -> int:
    """RecursionError."""
    return recurse(depth + 1) + 1


DEEDS = {
    "unpicklable result": make_lock,
    "poisoned result": make_poison,
    "unpicklable exception": raise_locked,
    "two-argument exception": raise_two_arguments,
    "sys.exit": lambda: sys.exit(3),
    "SystemExit": raise_system_exit,
    "KeyboardInterrupt": raise_keyboard_interrupt,
    "os._exit": vanish,
    "SIGKILL": kill_self,
    "segfault": segfault,
    "abort": os.abort,
    "MemoryError": run_out_of_memory,
    "RecursionError": recurse,
    "sleep for ever": block_for_ever,
    "hold the interpreter": hold_interpreter,
}


def fail_to_initialize() -> NoReturn:
    """An initializer that does not work."""
    raise ValueError("the initializer failed")


def note(path: str, item: Any) -> None:
    """Appends one line in one system call, so that lines of several processes do not mix."""
    with open(path, "ab", buffering=0) as file:
        file.write(f"{item}\n".encode())


def notes(path: str) -> list[str]:
    """The lines that `note` has left, in their order."""
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


class Deadly:
    """Pickles well, and ends the process that opens it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return die, (self.name,)


def stop_self() -> None:
    """Stands still until somebody kills or continues it."""
    os.kill(os.getpid(), signal.SIGSTOP)


DEATHS = {
    "SIGKILL": kill_self,
    "segfault": segfault,
    "os._exit": vanish,
    "SIGSTOP": stop_self,
}


def die(name: str) -> None:
    """Ends (or stops) this process."""
    DEATHS[name]()


def note_and_die_once(path: str, name: str, item: int, victims: frozenset[int]) -> int:
    """Squares; a victim ends its worker the first time."""
    is_first = str(item) not in notes(path)
    note(path, item)
    if item in victims and is_first:
        die(name)
    return item * item


def note_and_die(path: str, name: str, item: int, victim: int) -> int:
    """Squares; the victim ends its worker each time."""
    note(path, item)
    if item == victim:
        die(name)
    return item * item


class DeadlyResult:
    """Ends the process that pickles it."""

    def __reduce__(self) -> NoReturn:
        os._exit(3)


def note_and_return_deadly(path: str, item: int, victim: int) -> Any:
    """Squares; the victim takes longer than results may wait, and ends its worker when its result is packed."""
    note(path, item)
    if item != victim:
        return item * item
    end = time.monotonic() + 2 * FLUSH_SECONDS
    while time.monotonic() < end:
        continue
    return DeadlyResult()


def die_when_told(started: str, go: str, name: str) -> int:
    """Returns at once, and ends this process, idle by then, when the named pipe `go` is opened for writing."""

    def wait() -> None:
        with open(go) as gate:
            gate.read()
        die(name)

    threading.Thread(target=wait, daemon=True).start()
    touch(started)
    return os.getpid()


def die_while_sending(path: str, name: str, size: int) -> bytes:
    """Returns much, and ends this process when a part of that has left and the rest waits for the driver to read."""
    from distpool.member import default_member

    peer = default_member().cluster.peer(1)

    def wait() -> None:
        while not peer.has_unsent:
            continue
        die(name)

    note(path, os.getpid())
    threading.Thread(target=wait, daemon=True).start()
    return bytes(size)


def say_and_block(path: str, item: int) -> int:
    """Tells its process id and never ends."""
    note(path, os.getpid())
    block_for_ever()
    return item


def limit_memory(more: int) -> int:
    """Lets this process have so many more bytes of address space and no more."""
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
    return os.getpid()


def limit_memory_and_take(more: int, size: int) -> int:
    """Wants more than it may have."""
    limit_memory(more)
    return len(bytearray(size))


def limit_memory_and_return(more: int, size: int) -> list[bytearray]:
    """Has the result but no room to pack it."""
    limit_memory(more + size)
    return [bytearray(1000) for _ in range(size // 1000)]


def initialize_once(path: str, name: str) -> None:
    """An initializer that works in the first two workers and ends each later one."""
    note(path, os.getpid())
    if len(notes(path)) > 2:
        die(name)


def fail_after_two(path: str) -> None:
    """An initializer that works in the first two workers only."""
    note(path, os.getpid())
    if len(notes(path)) > 2:
        raise ValueError("the initializer failed")


def interrupted_when_put_away(x: int) -> int:
    """What x is; with 1, KeyboardInterrupt comes to the worker's loop when it has just put the result away."""

    def hook(frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_return" and arg.__name__ == "append" and frame.f_code.co_name.startswith("_loop"):
            sys.setprofile(None)
            raise KeyboardInterrupt

    if x == 1:
        sys.setprofile(hook)
    return x
