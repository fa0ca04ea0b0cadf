"""What the tests of output run in workers: each writes in some way. Light, because workers import it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distpool import RemoteChannel


def say(text: str, end: str = "\n") -> None:
    """Print to stdout."""
    print(text, end=end)


def complain(text: str) -> None:
    """Print to stderr."""
    print(text, file=sys.stderr)


def write(data: bytes, descriptor: int = 1) -> None:
    """Write below Python's streams, as C code does."""
    while data:
        data = data[os.write(descriptor, data) :]


def write_to_buffer(data: bytes) -> None:
    """Write into the buffer of Python's stream and leave it there."""
    sys.stdout.buffer.write(data)


def c_print(text: bytes) -> None:
    """Print by the C library, which has a buffer of its own."""
    import ctypes

    ctypes.CDLL(None).printf(text)


def run_program(text: str) -> None:
    """Have another program print."""
    subprocess.run(["echo", text], check=True)


def leave_program_behind(text: str) -> int:
    """Start a program in a session of its own that outlives us with our output in its hands; return its process id."""
    print(text)
    return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid


def count_aloud(who: int, first: int, last: int) -> None:
    """Print numbered lines that show if a part is missing or strange."""
    for number in range(first, last):
        print(f"{who}:{number}:{'x' * (number % 60)}.")


def die_after(text: str, end: str = "\n") -> None:
    """Print, then die by SIGKILL; what is in Python's buffer is lost with any process."""
    print(text, end=end, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def hold_the_interpreter(text: str) -> None:
    """Print, then let no other thread of this process run for a long time."""
    import ctypes

    print(text)
    ctypes.PyDLL(None).sleep(1000)


def say_and_stay(pid: int, text: str) -> None:
    """Have a worker print, then stay; returns when it has printed."""
    from distpool import RemoteChannel, remote_do, take

    said: RemoteChannel[bool] = RemoteChannel()
    remote_do(_say_and_stay, pid, said, text)
    take(said)


def _say_and_stay(said: RemoteChannel[bool], text: str) -> None:
    print(text)
    said.put(True)
    time.sleep(1000)


def print_much(count: int) -> int:
    """Print so many lines of a thousand characters."""
    for _ in range(count):
        print("x" * 999)
    return count


def streams() -> list[Any]:
    """What the standard streams of a worker are like."""
    return [[f.isatty(), f.encoding, f.errors, f.line_buffering] for f in (sys.stdout, sys.stderr)]


def open_file_limit() -> tuple[int, int]:
    """The limit of open files."""
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)


class Stubborn:
    """Cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("no")

    def __repr__(self) -> str:
        return "<stubborn>"


def log(message: str, *args: object, level: int = logging.INFO) -> None:
    """Log, with a field that cannot travel."""
    logging.getLogger("support.printing").log(level, message, *args, extra={"field": Stubborn()})


def log_numbers(task: int) -> None:
    """Log many records in order, every other one an error."""
    for number in range(50):
        logging.log(logging.ERROR if number % 2 else logging.INFO, "%d %d", task, number)


def log_an_exception() -> None:
    """Log a traceback."""
    try:
        raise ValueError("bad value")
    except ValueError:
        logging.exception("it failed for %r", Stubborn())
