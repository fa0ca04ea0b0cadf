"""The fork server's ends of its workers' stdout and stderr.

Used by :mod:`.server`; one thread. Owns the read ends of the pipes, two for each worker, and the count of bytes that
the driver can still take. The server reads them, and not the driver, so that the driver needs no descriptor more for a
worker, and what a worker has printed survives it, however it dies.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Sequence

from .frames import OUTPUT_WINDOW

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

_READ_BYTES = 1 << 16  # what a pipe holds unless somebody enlarged it
# What is read at most when a worker has ended: as much as Linux lets anybody enlarge a pipe to. A limit, because a
# program that the worker left behind may go on writing.
_LAST_WORDS_BYTES = 1 << 20


class Outputs:
    """The pipes, by descriptor; ``poll`` watches them, and whatever else the server registers there."""

    def __init__(self) -> None:
        self.poll = select.poll()
        self.pipes: dict[int, tuple[int, int]] = {}  # read end to token and stream, 1 or 2
        self.window = OUTPUT_WINDOW  # bytes that the driver can take; below 0 after last words, which are not held back
        self._by_token: dict[int, list[int]] = {}
        self._last_read = -1
        self._limits = _raise_limit()

    def open(self, token: int) -> list[int]:
        """Make the pipes of a worker; return the write ends, which the caller closes when the worker has them."""
        write_ends: list[int] = []
        self._by_token[token] = []
        try:
            for stream in (1, 2):
                read_end, write_end = os.pipe()
                write_ends.append(write_end)
                os.set_blocking(read_end, False)
                self._by_token[token].append(read_end)
                self.pipes[read_end] = (token, stream)
                self.poll.register(read_end, select.POLLIN)
        except OSError:
            for fd in write_ends:
                os.close(fd)
            raise
        return write_ends

    def close(self, token: int) -> None:
        """Give up the pipes of a worker."""
        for fd in self._by_token.pop(token, ()):
            self._close_pipe(fd)

    def _close_pipe(self, fd: int) -> None:
        if self.pipes.pop(fd, None) is not None:
            self.poll.unregister(fd)
            os.close(fd)

    def leave(self) -> None:
        """In a fresh worker: close what is the server's, and take back the higher limit of open files."""
        for fd in self.pipes:
            os.close(fd)
        if self._limits is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._limits)

    def in_turn(self, fds: Sequence[int]) -> list[int]:
        """Order descriptors so that none is served twice before the others: on from where the last turn ended."""
        return sorted(fds, key=lambda fd: (fd <= self._last_read, fd))

    def read(self, fd: int) -> tuple[int, bytes, int] | None:
        """Return token, bytes and stream if there is something in this pipe; close it when its writers have."""
        if fd not in self.pipes:  # its worker has ended in this very turn
            return None
        token, stream = self.pipes[fd]
        data = _read(fd)
        if data is None:
            return None
        if not data:
            self._close_pipe(fd)
            return None
        self._last_read = fd
        self.window -= len(data)
        return token, data, stream

    def last_words(self, token: int) -> Iterator[tuple[int, bytes]]:
        """Yield what an ended worker has left in its pipes, stream by stream, and close them.

        Never waits: a program that the worker started, and that outlives it, may hold the other ends for long.
        """
        for fd in self._by_token.get(token, ()):
            left = _LAST_WORDS_BYTES
            while left > 0 and fd in self.pipes and (data := _read(fd)):
                left -= len(data)
                self.window -= len(data)
                yield self.pipes[fd][1], data
        self.close(token)


def _read(fd: int) -> bytes | None:
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return None


def _raise_limit() -> tuple[int, int] | None:
    """Let this process open as many files as it may: two for each worker. Returns the limits there were."""
    if resource is None:
        return None
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    except (OSError, ValueError):  # macOS takes no "unlimited" here
        return None
    return limits
