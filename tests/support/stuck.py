"""What keeps a worker from hearing anything, for ever; each says before that it has begun. Runs in workers."""

from __future__ import annotations

import ctypes
import os
import signal
import time


def _begun(folder: str) -> None:
    with open(os.path.join(folder, f"{os.getpid()}.begun"), "w"):
        pass


def hold_the_interpreter(folder: str) -> None:
    """C code that does not let other threads run."""
    _begun(folder)
    ctypes.PyDLL(None).sleep(1000)


def stop_myself(folder: str) -> None:
    """What Ctrl-Z does, or a debugger."""
    _begun(folder)
    os.kill(os.getpid(), signal.SIGSTOP)


DEEDS = {"stuck": hold_the_interpreter, "stopped": stop_myself}


def wait_until_begun(folder: str, count: int) -> None:
    """In the driver: return when so many have, a moment after that."""
    limit = time.monotonic() + 40
    while len([name for name in os.listdir(folder) if name.endswith(".begun")]) < count:
        assert time.monotonic() < limit, "they did not begin"
        time.sleep(0.01)
    time.sleep(0.1)
