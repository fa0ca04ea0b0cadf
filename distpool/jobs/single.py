"""Calls that were submitted one by one, each with its future.

Arguments were pickled when the call was submitted, so every thread may send them, the reading thread too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count

from distpool.bundles import bundle
from distpool.futures import TaskFuture
from distpool.jobs.job import Job, Run
from distpool.light import Any, Final
from distpool.pickling import Parcel
from distpool.tasks import CALL

# Calls in one message beyond which its fixed costs do not matter any more.
FEW_CALLS: Final = 128


class CallJob(Job):
    """Single calls of one callable, each with its future; arguments were pickled when the call was submitted."""

    how = CALL

    def __init__(self, f: Callable[..., Any], pump: Callable[[CallJob], None], **options: Any) -> None:
        super().__init__(f, **options)
        self._pump = pump
        self.waiting: deque[tuple[Parcel, TaskFuture[Any]]] = deque()
        self._next_first = count().__next__

    def window(self) -> int:
        """As for every job; but a busy worker gets no second envelope before there is enough to fill half of one.

        A caller that submits in a loop would else send thousands of messages with one call in each.
        """
        return super().window() if len(self.waiting) * 2 >= min(self.size, FEW_CALLS) else 1

    @property
    def is_hungry(self) -> bool:
        """True while calls wait."""
        return bool(self.waiting or self.returned)

    def next_run(self, size: int) -> Run | None:
        """Return calls that came back, else the oldest ones; those that were cancelled are left out."""
        if self.returned:
            try:
                return self.returned.popleft()
            except IndexError:
                pass
        items: list[tuple[Parcel, TaskFuture[Any]]] = []
        while len(items) < size and self.waiting:
            try:
                call = self.waiting.popleft()
            except IndexError:
                break
            if not call[1].done():
                items.append(call)
        return Run(0, items) if items else None

    def pack(self, run: Run, to: int = 0) -> tuple[Parcel, bool]:
        """Put the parcels together."""
        return bundle([(True, parcel) for parcel, _ in run.items], note=CALL), True

    def settle(self, run: Run, first: int, results: list[Any]) -> None:
        """Complete the futures."""
        start = first - run.first
        for (_, future), result in zip(run.items[start : start + len(results)], results, strict=True):
            future.resolve(result)

    def demand(self) -> None:
        """Send more at once: everything is pickled, so no user code runs."""
        self._pump(self)
