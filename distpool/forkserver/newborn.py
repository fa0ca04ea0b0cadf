"""The first moments of a worker: from the return of ``fork`` to the call of its entry.

Used by :mod:`.server`, in the child only, and in parts by workers that come into being otherwise. A newborn must shed
what belongs to the fork server, take what the driver gave, and never return.
"""

from __future__ import annotations

import gc
import os
import sys

from distpool.light import TYPE_CHECKING, Any, NoReturn, pickle, signal

from .frames import DEFAULT_ENTRY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from io import TextIOWrapper

try:
    import fcntl
except ImportError:  # not a Unix; nobody forks there
    fcntl = None  # type: ignore[assignment]


def be_worker(shed: Callable[[], None], fds: Sequence[int], setup: bytes, page: object) -> NoReturn:
    """Turn this freshly forked process into a worker, and end it when its entry returns or raises.

    ``shed`` gives up what is the fork server's. The exit status is 0, what ``sys.exit`` was called with, or 1 after any
    other exception.
    """
    status = 1
    try:
        os.setsid()
        shed()
        status = _live(fds, pickle.loads(setup), page)
    except SystemExit as end:
        status = _exit_status(end)
    except BaseException:  # the last line of this process: whatever it is, it must not reach the server's loop
        sys.excepthook(*sys.exc_info())
    finally:
        _leave(status)


def load_entry(name: str) -> Callable[[int, dict[str, Any]], object]:
    """Import and return the function that "module:function" names."""
    module, _, function = name.partition(":")
    __import__(module)
    entry: Callable[[int, dict[str, Any]], object] = getattr(sys.modules[module], function)
    return entry


def hold_lifeline(pipe: int) -> None:
    """Have the kernel kill our process group when the last writer of a pipe dies, however, whatever we are doing then.

    The writer is the fork server, or the driver for a worker that is a fresh interpreter.

    Linux can send a signal of our choice when a pipe closes. Like PR_SET_PDEATHSIG, which Python has no call for, but
    for the whole group. Elsewhere, and when /proc is missing, the driver's socket must do.
    """
    try:
        # Opened anew: owner and signal belong to the open file, and the inherited one is shared by all workers.
        own = os.open(f"/proc/self/fd/{pipe}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(own, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own, fcntl.F_SETFL, os.O_NONBLOCK | fcntl.FASYNC)
        if os.read(own, 1) == b"":  # it died before we held on
            os._exit(1)
    except BlockingIOError:
        pass  # nothing to read, somebody holds the other end: all is well
    except (OSError, AttributeError):
        pass  # not Linux
    os.close(pipe)


def _live(fds: Sequence[int], setup: dict[str, Any], page: object) -> int:
    """Put on stdout, stderr, directory, environment and path as told, and call the entry."""
    stream, *outputs = fds
    for number, fd in enumerate(outputs[:2], start=1):
        os.dup2(fd, number)
    for fd in outputs:
        os.close(fd)
    sys.stdout = sys.__stdout__ = text_stream(1)  # type: ignore[misc]  # Final for typeshed only
    sys.stderr = sys.__stderr__ = text_stream(2)  # type: ignore[misc]
    if (directory := setup.get("cwd")) is not None:
        os.chdir(directory)
    for name, value in (setup.get("env") or {}).items():
        if value is None:
            os.environ.pop(name, None)
        elif os.environ.get(name) != value:  # most are as in the fork server, and setting one is slow
            os.environ[name] = value
    if (path := setup.get("path")) is not None:
        sys.path[:] = path
    sys.argv[:] = setup.get("argv") or [""]
    setup["page"] = page
    gc.enable()
    # The random module seeds itself anew in every forked child, by a hook of its own.
    load_entry(setup.get("entry") or DEFAULT_ENTRY)(stream, setup)
    return 0


def text_stream(fd: int) -> TextIOWrapper:
    """Open stdout or stderr by lines, in one encoding for all: the driver reads it, not a terminal or a file.

    The old objects stay usable by modules that were preloaded and hold them; they are unbuffered.
    """
    return open(fd, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _exit_status(end: SystemExit) -> int:
    """Translate what ``sys.exit`` was given as the interpreter does."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _leave(status: int) -> NoReturn:
    """End without the fork server's exit handlers, but not without what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # closed, broken, or replaced by something strange: we are leaving anyway
            continue
    os._exit(status)
