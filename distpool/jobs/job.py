"""What dispatch needs of every job: its callable, how its tasks are packed, how many shall travel together.

The sizes and costs are measured: ``learn`` is told how long tasks took, on the reading thread. Owns what came back and
is to be sent again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from math import ceil

from distpool.bundles import bundle
from distpool.envelopes import ONE
from distpool.jobs.retries import Retries
from distpool.light import Any, Final
from distpool.pickling import Parcel, dump
from distpool.segments import THRESHOLD, Segment

# Tasks that are sent in one message shall keep a worker busy for about this long: enough to hide the message's cost
# (some 50 us), little enough that the last ones of a map end close together.
ENVELOPE_SECONDS: Final = 0.004
ENVELOPE_BYTES: Final = 8 << 20  # and no larger than this, so that memory stays bounded. Arbitrary.
GROWTH: Final = 4  # envelopes grow from one task by at most this factor, as results tell how long tasks take
# Tasks at least this long are sent one at a time and not ahead: waiting for the next costs a worker less than 1 %.
LONG_SECONDS: Final = 0.02
# A worker to which the way is long has more envelopes at a time, so that it is busy for that long: so many at most, and
# so many bytes in them and their results, for what is sent next stands behind them. Arbitrary.
FAR_SECONDS: Final = 0.002
FAR_ENVELOPES: Final = 64
FAR_BYTES: Final = 2 << 20
# And only if waiting for the next one would cost it more than this share of its time.
FAR_SHARE: Final = 0.02

next_number = count(1).__next__


class Run:
    """Tasks of one job that follow one another; the first is number ``first``."""

    __slots__ = ("attempt", "first", "items")

    def __init__(self, first: int, items: list[Any], attempt: int = 0) -> None:
        self.first = first
        self.items = items
        self.attempt = attempt  # how often these tasks have failed before


class Job:
    """One callable and its tasks. ``batch_size`` None lets dispatch choose, by measured durations."""

    how = ONE
    remedy = "Only this task is lost: give retry_delays=[...] to have such tasks run again."  # of a worker's death

    def __init__(
        self,
        f: Callable[..., Any],
        *,
        function: Parcel | None = None,
        number: int | None = None,
        is_kept: bool = False,
        batch_size: int | None = None,
        timeout: float | None = None,
        retries: Retries | None = None,
    ) -> None:
        self.f: Callable[..., Any] | None = f  # None: only its parcel is kept
        self.name = getattr(f, "__qualname__", None) or repr(f)
        self.function = dump(f) if function is None else function
        self.number = next_number() if number is None else number  # under which workers keep the callable
        self.is_kept = is_kept  # workers keep the callable after the job
        self.batch_size = batch_size
        self.timeout = timeout
        self.retries = retries
        self.size = batch_size or 1  # tasks in the next envelope
        self.cost: float | None = None  # seconds for one task, as measured lately
        self.item_bytes = 0.0  # of one packed task
        self.result_bytes = 0.0  # of one result, if it came from far away
        self.returned: deque[Run] = deque()  # to be sent again, before new input
        self.is_stopped = False  # nothing more shall be sent
        self.is_listed = False  # dispatch knows it; written under dispatch's lock
        self.reserved = 0  # envelopes that are being packed; under dispatch's lock
        self.is_passing = False  # dispatch ends it when all its tasks are done: nobody will give it more
        self._segment: Segment | None = None

    def segment(self) -> Segment | None:
        """Return the memory that holds the callable's large buffers for all workers; made at first need."""
        if self._segment is None:
            large = [view for view in self.function.buffers if view.nbytes >= THRESHOLD]
            if large:
                self._segment = Segment.store(large)
        return self._segment

    def release(self) -> None:
        """Give up what the job holds beside its results."""
        if self._segment is not None:
            self._segment.close()
            self._segment = None

    def learn(self, count: int, seconds: float) -> None:
        """Take note that ``count`` tasks took a worker so long."""
        sample = seconds / count
        self.cost = sample if self.cost is None else (self.cost + sample) / 2
        if self.batch_size is None:
            fitting = int(ENVELOPE_SECONDS / (self.cost + 1e-9))
            if self.item_bytes:
                fitting = min(fitting, int(ENVELOPE_BYTES / self.item_bytes))
            self.size = max(1, min(fitting, self.size * GROWTH))

    def window(self, lag: float = 0.0) -> int:
        """Return how many envelopes a worker may have at a time: one to run, one to go on with if tasks are short.

        More if the way there and back takes ``lag`` seconds: as much as it can do meanwhile.
        """
        if self.cost is None:
            return 1
        seconds = self.cost * self.size
        few = 1 if seconds >= LONG_SECONDS else 2
        if lag < FAR_SECONDS or lag < FAR_SHARE * seconds:
            return few
        most = min(FAR_ENVELOPES, int(FAR_BYTES / ((self.item_bytes + self.result_bytes) * self.size + 1)))
        return max(few, min(most, few + ceil(lag / max(seconds, FAR_SECONDS / FAR_ENVELOPES))))

    def put_back(self, run: Run) -> None:
        """Tasks have come back from a worker that has not run them, or shall be tried again."""
        self.returned.append(run)

    def put_first(self, run: Run) -> None:
        """Likewise, and they go out before all others: they were there before."""
        self.returned.appendleft(run)

    # -- for each kind of job ------------------------------------------------------------------------------------

    @property
    def is_hungry(self) -> bool:
        """True when there may be tasks to send."""
        raise NotImplementedError

    @property
    def is_ready(self) -> bool:
        """True when tasks can be had now; a hungry job may have to wait for its input."""
        return self.is_hungry

    def next_size(self, workers: int) -> int:
        """Return how many tasks the next envelope should have."""
        return self.size

    def next_run(self, size: int) -> Run | None:
        """Return up to ``size`` tasks, None when there is none now. May run the user's iterator."""
        raise NotImplementedError

    def pack(self, run: Run, to: int = 0) -> tuple[Parcel, bool]:
        """Pickle tasks for a process; the boolean says that they were pickled one by one.

        Raises when some task cannot be pickled.
        """
        try:
            parcel = dump((self.how, run.items), to)
        except TypeError:
            if len(run.items) == 1:
                dump(run.items[0])  # raises again, and names the part as seen from the item
            raise
        if parcel.foreign and len(run.items) > 1:
            return bundle([(True, dump(item, to)) for item in run.items], note=self.how), True
        return parcel, False

    def unwanted(self, run: Run) -> list[int]:
        """Which tasks of a run, just sent, nobody wants any more: they were given up while they were packed."""
        return []

    def settle(self, run: Run, first: int, results: list[Any]) -> None:
        """Put away the results of the tasks ``first`` and following of ``run``; an Outcome is one that is not plain."""
        raise NotImplementedError

    def stop_reading(self, error: BaseException) -> None:
        """There will be no worker for new input any more: whoever waits for it gets the error."""

    def demand(self) -> None:
        """A worker could have more: see that somebody calls dispatch's ``pump``. Called on the reading thread."""
        raise NotImplementedError
