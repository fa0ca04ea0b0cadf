"""Maps that no thread owns: read and sent by a call thread, the oldest first.

Used by ``front``. Only the map whose input is being read is on the list of those that want workers; the others wait
here, so a thousand of them cost no more than one. Owns: their queue, and whether a thread feeds.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from distpool.jobs import PromisedMap


class Background:
    """Feeds maps one after the other."""

    def __init__(
        self,
        start: Callable[[PromisedMap], None],
        pump: Callable[[PromisedMap], None],
        run: Callable[[Callable[[], object]], None],
    ) -> None:
        self._start = start
        self._pump = pump
        self._run = run  # lends a thread
        self._lock = threading.Lock()  # protects what follows
        self._waiting: deque[PromisedMap] = deque()  # not started
        self._due: deque[PromisedMap] = deque()  # started, and to be pumped
        self._newest: PromisedMap | None = None  # the last that was started
        self._is_feeding = False

    def add(self, job: PromisedMap) -> None:
        """Take a map on. What workers have room for is sent now, if it is its turn."""
        job.feed = self.demand
        with self._lock:
            self._waiting.append(job)
        self._start_next()
        if job.is_listed:
            self._pump(job)
            self._start_next()

    def demand(self, job: PromisedMap) -> None:
        """A worker could have more of this one. On the reading thread: another one does it."""
        with self._lock:
            if job not in self._due:
                self._due.append(job)
            if self._is_feeding:
                return
            self._is_feeding = True
        self._run(self._feed)

    def start_all(self) -> None:
        """Nothing more will be added: let those who wait for the end of all work see what there is."""
        while self._start_next(even_if_hungry=True):
            pass

    def _feed(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._is_feeding = False
                    return
                job = self._due.popleft()
            self._pump(job)
            self._start_next()

    def _start_next(self, even_if_hungry: bool = False) -> bool:
        """Start maps whose turn it is: the input of those before has been read. Returns whether there was one."""
        has_started = False
        while True:
            with self._lock:
                is_turn = even_if_hungry or self._newest is None or not self._newest.is_hungry
                if not self._waiting or not is_turn:
                    break
                job = self._newest = self._waiting.popleft()
            self._start(job)
            has_started = True
            self.demand(job)
        if not has_started and not self._waiting:
            with self._lock:
                if self._newest is not None and not self._newest.is_hungry:
                    self._newest = None  # it is not for us to keep its results
        return has_started
