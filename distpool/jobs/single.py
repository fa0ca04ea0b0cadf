"""Calls that were submitted one by one, each with the promise (a future, say) that its outcome goes to.

Arguments were pickled when the call was submitted, so every thread may send them, the reading thread too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from distpool.bundles import bundle
from distpool.envelopes import CALL
from distpool.futures import Promise
from distpool.jobs.job import FAR_SECONDS, Job, Run
from distpool.light import Any, Final
from distpool.pickling import Parcel

# Calls in one message beyond which its fixed costs do not matter any more.
FEW_CALLS: Final = 128


class CallJob(Job):
    """Single calls of one callable, each with its promise; arguments were pickled when the call was submitted."""

    how = CALL
    remedy = "Only this call is lost: submit it again if it may run twice."

    def __init__(self, f: Callable[..., Any], pump: Callable[[CallJob], None], **options: Any) -> None:
        super().__init__(f, **options)
        self._pump = pump
        self.waiting: deque[tuple[Parcel, Promise]] = deque()

    def window(self, lag: float = 0.0) -> int:
        """As for every job; but a busy worker gets no second envelope before there is enough to fill half of one.

        A caller that submits in a loop would else send thousands of messages with one call in each. To one that is far
        away that is better than to have it wait.
        """
        is_far = lag >= FAR_SECONDS
        return super().window(lag) if is_far or len(self.waiting) * 2 >= min(self.size, FEW_CALLS) else 1

    @property
    def is_hungry(self) -> bool:
        """True while calls wait."""
        return bool(self.waiting or self.returned)

    def next_run(self, size: int) -> Run | None:
        """Return calls that came back, else the oldest ones; those that were cancelled are left out."""
        while self.returned:
            try:
                again = self.returned.popleft()
            except IndexError:
                break
            wanted = [call for call in again.items if call[1].leave()]
            if wanted:
                return Run(0, wanted, again.attempt)
        items: list[tuple[Parcel, Promise]] = []
        while len(items) < size and self.waiting:
            try:
                call = self.waiting.popleft()
            except IndexError:
                break
            if call[1].leave():
                items.append(call)
        return Run(0, items) if items else None

    def put_back(self, run: Run) -> None:
        """They can be cancelled again."""
        for _, promise in run.items:
            promise.come_back()
        super().put_back(run)

    def put_first(self, run: Run) -> None:
        """They can be cancelled again."""
        for _, promise in run.items:
            promise.come_back()
        super().put_first(run)

    def pack(self, run: Run, to: int = 0) -> tuple[Parcel, bool]:
        """Put the parcels together."""
        parcel = bundle([(True, parcel) for parcel, _ in run.items], note=CALL)
        if self.function.globals:  # other functions may mention them, too, and have sent other values since
            parcel.globals = {**self.function.globals, **(parcel.globals or {})}
        return parcel, True

    def unwanted(self, run: Run) -> list[int]:
        """Those that were cancelled, with ``running=True``."""
        return [index for index, (_, promise) in enumerate(run.items) if promise.cancelled()]

    def settle(self, run: Run, first: int, results: list[Any]) -> None:
        """Keep the promises."""
        start = first - run.first
        for (_, promise), result in zip(run.items[start : start + len(results)], results, strict=True):
            promise.resolve(result)

    def sweep(self) -> None:
        """Let go of calls that were cancelled while they waited: their arguments may be large."""
        for _ in range(len(self.waiting)):
            try:
                call = self.waiting.popleft()
            except IndexError:  # sent meanwhile
                return
            if not call[1].cancelled():
                self.waiting.append(call)

    def demand(self) -> None:
        """Send more at once: everything is pickled, so no user code runs."""
        self._pump(self)
