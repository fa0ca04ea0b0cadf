"""Functions that tests run in workers.

One light file, because a worker imports it by name: it must not drag in pytest, numpy or the package's tests. Heavier
imports stand inside the function that needs them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, NoReturn


def square(x: Any) -> Any:
    """The usual small task."""
    return x * x


def add(x: Any, y: Any) -> Any:
    """Two arguments, for `starmap` and several iterables."""
    return x + y


def identity(x: Any) -> Any:
    """What came goes back: two trips through pickling."""
    return x


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Everything that came, keywords too."""
    return args, kwargs


def os_pid() -> int:
    """The operating system's id of the process that runs this."""
    return os.getpid()


def os_pid_for(_: Any) -> int:
    """`os_pid` for maps: one process id per item."""
    return os.getpid()


def thread_name() -> str:
    """The thread that runs this."""
    return threading.current_thread().name


def modules() -> list[str]:
    """What the process has imported so far."""
    return sorted(sys.modules)


def environment(name: str) -> str | None:
    """One environment variable of the process that runs this."""
    return os.environ.get(name)


def fail(text: str = "boom") -> NoReturn:
    """An ordinary error of the user's function."""
    raise ValueError(text)


def fail_on(bad: Any, x: Any) -> Any:
    """`square`, but one value is an error."""
    if x == bad:
        raise ValueError(f"bad item {x!r}")
    return x * x


def leave(code: int = 3) -> NoReturn:
    """`sys.exit` in a task: an exception like others, not the end of the worker."""
    sys.exit(code)


def vanish(code: int = 3) -> NoReturn:
    """The process ends without a word."""
    os._exit(code)


def kill_self(number: int = signal.SIGKILL) -> None:
    """The process ends by a signal."""
    os.kill(os.getpid(), number)


def segfault() -> None:
    """A crash in C code: reads address zero."""
    import ctypes

    ctypes.string_at(0)


def block_for_ever() -> None:
    """A task that never ends by itself but can be interrupted."""
    threading.Event().wait()


def hold_interpreter() -> None:
    """A task in C code that keeps the interpreter lock, so that no Python code of the process runs any more."""
    import ctypes

    while True:
        ctypes.PyDLL(None).sleep(3600)  # PyDLL, unlike CDLL, does not release the lock around the call


def hold_for(seconds: float, started: str = "") -> float:
    """C code that lets no other thread run for so long; makes a file right before that."""
    import ctypes

    if started:
        touch(started)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return seconds


def make_lock() -> Any:
    """A result that cannot be pickled."""
    return threading.Lock()


class TwoArgumentError(Exception):
    """An exception that pickle cannot rebuild: its constructor wants more than its `args` hold."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")


def fail_unpicklably() -> NoReturn:
    """An error that cannot travel as it is."""
    raise TwoArgumentError("one", "two")


def _explode() -> NoReturn:
    raise RuntimeError("this payload does not open")


class Poison:
    """Pickles well, and raises when it is opened."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _explode, ()


def make_poison() -> Poison:
    """A result that does not open at the caller."""
    return Poison()


def touch(path: str) -> str:
    """Leaves a sign that the task has run: tests wait for the file instead of sleeping."""
    with open(path, "a") as sign:
        sign.write(f"{os.getpid()}\n")
    return path


def touch_and_block(path: str) -> None:
    """Says that it has started, then never ends by itself."""
    touch(path)
    block_for_ever()


def touch_and_wait(started: str, go: str) -> int:
    """Says that it has started, then waits until the other side opens the named pipe `go` for writing."""
    touch(started)
    with open(go) as gate:  # opening a named pipe to read blocks until somebody opens it to write
        gate.read()
    return os.getpid()
