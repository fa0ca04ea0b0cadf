"""Functions that the benchmarks run in workers.

Every contender imports this module in its workers, so it stays light: numpy and sockets are imported by the functions
that need them, never at the top, or start-up and memory figures would measure our own test code.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False  # spelled out: importing typing would cost a worker more than this whole module
if TYPE_CHECKING:
    from typing import Any

# A sleeping process wakes late by the timer slack (50 us by default) and the scheduler's mood. The rest is spun away,
# so that a task of 1 ms takes 1 ms and the ideal schedule can be computed from nominal durations.
SPUN = 0.00015  # seconds


def nothing() -> None:
    """The empty call."""


def successor(number: int) -> int:
    """A tiny task with a result."""
    return number + 1


def pause(seconds: float) -> None:
    """Last exactly `seconds`, nearly all of it asleep, so that the number of CPUs does not matter."""
    end = time.perf_counter() + seconds
    if seconds > SPUN:
        time.sleep(seconds - SPUN)
    while time.perf_counter() < end:
        pass


def burn(rounds: int) -> float:
    """Compute for `rounds` rounds (about a millisecond each) and return the CPU seconds that it took."""
    start = time.thread_time()
    for _ in range(rounds):
        sum(range(50_000))
    return time.thread_time() - start


def ends(array: Any) -> float:
    """Look at both ends of an array: it has arrived, but only two of its pages are touched."""
    return float(array[0] + array[-1])


def total(array: Any) -> float:
    """Read an array from end to end."""
    return float(array.sum())


def echo(array: Any) -> Any:
    """An array in, the same array out, both ends looked at on the way."""
    ends(array)
    return array


_kept: dict[str, Any] = {}  # what this worker holds between calls: `made` results, `held` arguments


def made(length: int) -> Any:
    """An array of `length` floats that this worker made before: only its way back costs."""
    import numpy

    if len(_kept.get("made", ())) != length:
        _kept["made"] = numpy.ones(length)
    return _kept["made"]


def meet(path: str) -> int:
    """Connect to the meeting at `path` and stay until it is complete: proves that as many workers run at once."""
    import socket

    with socket.socket(socket.AF_UNIX) as place:
        place.connect(path)
        if not place.recv(1):
            raise RuntimeError("the meeting was called off")
    return os.getpid()


def hold(array: Any, path: str) -> tuple[int, float]:
    """Keep an array until `release`; says who keeps it and when it had arrived (a clock that all processes share).

    Reads every page, so that memory figures count what a real task would touch, and meets the others, so that no worker
    gets two.
    """
    ends(array)
    arrived = time.perf_counter()
    _kept["held"] = array
    total(array)
    return meet(path), arrived


def release(path: str) -> int:
    """Let go of what `hold` kept."""
    _kept.pop("held", None)
    return meet(path)


def die_once(path: str, before: float, whole: float) -> None:
    """Work `before` seconds and be killed; when run again (the file at `path` exists) work `whole` seconds."""
    import signal

    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        pause(whole)
        return
    pause(before)
    os.kill(os.getpid(), signal.SIGKILL)


def pause_or_die(path: str, before: float, whole: float, dies: bool) -> None:
    """One task of the map in which a worker is killed."""
    if dies:
        die_once(path, before, whole)
    else:
        pause(whole)
