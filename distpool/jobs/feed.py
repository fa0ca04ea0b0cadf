"""An input that is read in a thread of its own, because reading may wait for what comes of the results.

Programs limit what is under way by a semaphore that their generator takes and whoever handles results gives back;
others map over what a queue brings. Whoever takes results must not be held up by either. Owns: the items that were read
and are not sent; the thread, which ends with the input or the job.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator

from distpool.light import Any


class Feed:
    """Reads ``items`` as long as ``room()`` says that more than those that wait here may be read.

    ``tell()`` is called when something has come that nobody knows of: items where there were none, or the end.
    """

    def __init__(
        self,
        items: Iterator[Any],
        room: Callable[[], int],
        tell: Callable[[], object],
        aside: Callable[[Callable[[], object]], object],
    ) -> None:
        self._items = items
        self._room = room
        self._tell = tell
        self._aside = aside
        self._come: deque[Any] = deque()
        self._error: BaseException | None = None
        self._has_ended = False  # nothing is added any more
        self._is_stopped = False
        self._is_started = False
        self._waits = False  # the thread, for room
        self._changed = threading.Semaphore(0)

    @property
    def has_come(self) -> bool:
        """True when ``take`` has something to say. Has the thread go on, or begin."""
        if not self._is_started:
            self._is_started = True
            self._aside(self._read)
        self.look()
        return bool(self._come) or self._has_ended

    def take(self, items: list[Any], size: int) -> bool:
        """Append up to ``size`` items; return whether the input has ended, or raise what it raised."""
        has_ended = self._has_ended  # before looking: what came before the end is seen
        while len(items) < size:
            try:
                items.append(self._come.popleft())
            except IndexError:
                break
        self.look()
        if not has_ended or self._come:
            return False
        if self._error is not None:
            raise self._error
        return True

    def look(self) -> None:
        """There may be room now."""
        if self._waits:
            self._changed.release()

    def stop(self) -> None:
        """Nobody wants more."""
        self._is_stopped = True
        self.look()

    def _read(self) -> None:
        come, room = self._come, self._room
        try:
            for item in self._items:
                was_dry = not come
                come.append(item)
                if was_dry:
                    self._tell()
                while len(come) >= room() and not self._is_stopped:
                    self._wait()
                if self._is_stopped:
                    break
        except BaseException as error:  # the user's: raised by whoever takes results
            self._error = error
        self._has_ended = True
        self._tell()

    def _wait(self) -> None:
        self._waits = True
        try:
            if len(self._come) >= self._room() and not self._is_stopped:
                self._changed.acquire()
        finally:
            self._waits = False
