"""Which of many descriptors can be read or written now.

Used by the reader alone. Any thread registers, the one that leads polls.
"""

from __future__ import annotations

import select

from distpool.light import Any, Final

READ: Final = select.POLLIN | select.POLLHUP | select.POLLERR if hasattr(select, "POLLIN") else 1
WRITE: Final = select.POLLOUT if hasattr(select, "POLLOUT") else 4


class Poller:
    """epoll where there is one, else poll; the same numbers and seconds for both. ``poll`` is one or the other."""

    def __init__(self, poll: Any = None) -> None:
        self._poll: Any = poll or (select.epoll() if hasattr(select, "epoll") else select.poll())
        # poll() takes its table when it starts: a change made meanwhile by another thread needs a wake-up.
        self.sees_changes_at_once = hasattr(self._poll, "fileno")
        self._scale = 1.0 if self.sees_changes_at_once else 1000.0

    def register(self, fd: int, writable: bool) -> None:
        """Watch a descriptor for something to read, and for room to write if so asked."""
        self._poll.register(fd, READ | (WRITE if writable else 0))

    def modify(self, fd: int, writable: bool) -> None:
        """Watch it for room to write from now on, or no longer."""
        self._poll.modify(fd, READ | (WRITE if writable else 0))

    def unregister(self, fd: int) -> None:
        """Watch it no more; before it is closed."""
        self._poll.unregister(fd)

    def poll(self, timeout: float | None) -> list[tuple[int, int]]:
        """Wait at most ``timeout`` seconds (None: for ever); return descriptors and what may be done with each."""
        events: list[tuple[int, int]] = self._poll.poll(None if timeout is None else timeout * self._scale)
        return events

    def close(self) -> None:
        """Give the descriptor back, where there is one."""
        if self.sees_changes_at_once:
            self._poll.close()
