"""Tasks that go wrong in every way we know, for the tests of faults. Light, because workers import it by name.

A task is given a `Deed`, or anything else, which it squares. What it did is written into a file with `note`: lines of
a file that is opened for appending survive the process, whatever ends it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, NoReturn

from support.jobs import (
    Poison,
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


__all__ = ["DEEDS", "Deed", "Locked", "Poison", "block_for_ever", "note", "notes", "perform", "perform_two", "signal", "touch"]
