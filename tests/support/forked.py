"""Entries of workers that the tests of the fork server start: `entry(socket_fd, setup)`.

Light, because the fork server imports it. A worker says something on its socket when it has reached the place that the
test is about, so that nobody needs to sleep.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any


def wait_for_end(fd: int, setup: dict[str, Any]) -> None:
    """Say "ready", then live until the other end closes."""
    os.write(fd, b"ready")
    os.read(fd, 1)


def ignore_everything(fd: int, setup: dict[str, Any]) -> None:
    """Block what can be blocked, say "ready", then hold the interpreter's lock in C code for years."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.write(fd, b"ready")
    re.match(r"(a+)+$", "a" * 60 + "b")


def start_subprocess(fd: int, setup: dict[str, Any]) -> None:
    """Start a program, say its process id, then wait; the program holds our socket until it ends."""
    import subprocess

    command = [sys.executable, "-S", "-c", "import time; time.sleep(1000)"]
    child = subprocess.Popen(command, pass_fds=[fd])
    os.write(fd, b"%d" % child.pid)
    if setup.get("stay", True):
        child.wait()


def die(fd: int, setup: dict[str, Any]) -> None:
    """End in the way that setup["how"] names."""
    how = setup["how"]
    if how == "exit":
        sys.exit(3)
    if how == "_exit":
        os._exit(4)
    if how == "text":
        sys.exit("a text, as the interpreter takes it")
    if how == "raise":
        raise LookupError("the worker's own fault")
    if how == "segfault":
        import ctypes

        ctypes.string_at(0)


def tell(fd: int, setup: dict[str, Any]) -> None:
    """Send what a worker finds when it begins, as text."""
    print("printed")
    print("complained", file=sys.stderr)
    main = sys.modules["__main__"]
    facts = {
        "cwd": os.getcwd(),
        "env": os.environ.get("DISTPOOL_TEST_WORD"),
        "home": os.environ.get("HOME"),
        "path": sys.path[-1],
        "argv": sys.argv,
        "session": os.getsid(0) == os.getpid() == os.getpgrp(),
        "stdin": os.path.sameopenfile(0, os.open(os.devnull, os.O_RDONLY)) or os.read(0, 1) == b"",
        "sigint": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
        "sigchld": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,
        "main": sorted(name for name in vars(main) if not name.startswith("__")),
        "size": len(setup.get("ballast", b"")),
        "fds": sorted(int(name) for name in os.listdir("/dev/fd") if _is_open(int(name))),
        "fd": fd,
        "gc": __import__("gc").isenabled(),
        "modules": [name for name in setup.get("modules", ()) if name in sys.modules],
    }
    os.write(fd, repr(facts).encode())


def draw(fd: int, setup: dict[str, Any]) -> None:
    """Send a random number."""
    import random

    os.write(fd, repr(random.random()).encode())


def mark_page(fd: int, setup: dict[str, Any]) -> None:
    """Write a word into the shared page, then die by SIGKILL."""
    setup["page"].slot(setup["slot"])[3] = os.getpid()
    os.kill(os.getpid(), signal.SIGKILL)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
