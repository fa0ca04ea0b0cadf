"""The end of a worker that cannot end itself: stuck in C code or stopped when its driver is gone.

Used by workers that nobody near could kill: those that were started by hand and listen for a driver (``listening``),
and those that dial back (``dialling``). A worker that works notices by itself, at once. One that holds the interpreter,
or is stopped by SIGSTOP, runs no Python; so a second process, forked before there is anything in the first, keeps a
duplicate of the connection and looks at it with the kernel's eyes::

    worker  ==== connection =====  driver
      |  \\--- its duplicate ---.
    pidfd                     watchdog: the connection has ended, or nobody answers for DISTPOOL_HOST_TIMEOUT seconds
      '------ SIGKILL <----------'      -> five seconds more at most, and the worker is killed

It costs three megabytes of memory, reads nothing, knows no secret, and ends at once with its worker. Linux only:
elsewhere a stuck worker ends when it lets go. Owns: its own process, and in the worker the socket to it.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import warnings
from contextlib import suppress
from typing import Any, Final, NoReturn

from distpool.vanishing import LOOKS, Silence, limit_of, unanswered

# How long a worker may take to end by itself when its driver is gone, at most: as long as a host may be silent, if that
# is less. It does so at once, if the machine lets it run.
GRACE_SECONDS: Final = 5.0
# How it is called in the list of processes; the kernel keeps fifteen characters.
NAME: Final = "distpool watch"


class Watchdog:
    """In the worker: what its watchdog is told through."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def watch(self, stream: Any) -> None:
        """Have it watch the connection to the driver, for as long as this object lives."""
        with suppress(OSError):  # it was killed by somebody: then we are as without one
            socket.send_fds(self._channel, [b"!"], [stream.fileno()])


def start_watchdog() -> Watchdog | None:
    """Fork the watchdog of this process; None where there can be none.

    To be called first of all: what this process holds and knows by now, its fork begins with.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        worker = os.pidfd_open(os.getpid())
        ours, theirs = socket.socketpair()
    except OSError:  # an old kernel, a sandbox, no descriptor left
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the child does nothing that threads, if there are any, could have locked
        try:
            child = os.fork()
        except OSError:  # no more processes are allowed
            child = -1
    if child == 0:
        _leave_the_worker(worker, theirs)
    if child > 0:
        os.waitpid(child, 0)
    os.close(worker)
    theirs.close()
    return Watchdog(ours) if child > 0 else None


def _leave_the_worker(worker: int, channel: socket.socket) -> NoReturn:
    """Become a process that belongs to nobody: a worker's ``os.wait()`` must not find a child that it did not start."""
    try:
        os.setsid()
        if os.fork() == 0:
            _shed({worker, channel.fileno()})
            _guard(worker, channel)
    finally:
        os._exit(0)


def _shed(keep: set[int]) -> None:
    """Let go of what the worker has: whoever waits for the end of its output, say, must not wait for ours."""
    with suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write(NAME)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        if fd not in keep:
            os.dup2(null, fd)
    for name_of_fd in os.listdir("/proc/self/fd"):
        if (fd := int(name_of_fd)) > 2 and fd not in keep:
            with suppress(OSError):  # the descriptor of the listing itself
                os.close(fd)
    with suppress(OSError):  # so that no file system is kept in use
        os.chdir("/")


def _guard(worker: int, channel: socket.socket) -> None:
    """Wait for the connection to the driver, then for the end of it; then see to the end of the worker."""
    poll = select.poll()
    poll.register(worker, select.POLLIN)  # readable when the process has ended
    poll.register(channel, select.POLLIN)
    if any(fd == worker for fd, _ in poll.poll()):
        return
    _, fds, _, _ = socket.recv_fds(channel, 1, 1)
    if not fds:
        return
    poll.modify(channel, 0)  # its end is told all the same: the worker has become another program, by exec
    with socket.socket(fileno=fds[0]) as stream:
        poll.register(stream, select.POLLRDHUP)
        if not _is_bereft(poll, stream):
            return
        grace = min(GRACE_SECONDS, limit_of(stream))
        poll.unregister(stream)
    if not poll.poll(grace * 1000):
        signal.pidfd_send_signal(worker, signal.SIGKILL)


def _is_bereft(poll: select.poll, stream: socket.socket) -> bool:
    """Wait until the worker has ended, or its driver is gone: return whether only the driver is."""
    silence = Silence(limit_of(stream))
    while True:
        if found := {fd for fd, _ in poll.poll(silence.seconds / LOOKS * 1000)}:
            return found == {stream.fileno()}
        if limit_of(stream) != silence.seconds:  # the driver has told another one
            silence = Silence(limit_of(stream))
        with suppress(OSError):  # no connection over TCP
            if silence.has_lasted(*unanswered(stream)):
                return True
