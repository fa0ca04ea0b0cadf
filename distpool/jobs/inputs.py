"""Jobs whose tasks come from the user's iterables: a map, which wants all results, and a stream, which wants the next.

The input is read by one thread at a time, as workers have room, in the thread that pumps; results are put away by the
reading thread. Owns: the input, the results that nobody has consumed.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from operator import length_hint

from distpool.envelopes import ONE, STAR
from distpool.futures import Outcome
from distpool.jobs.feed import Feed
from distpool.jobs.job import Job, Run
from distpool.light import Any, Final
from distpool.transport import Waiter

# Tasks of a stream in one envelope at most: what is read ahead of the consumer stays bounded however tiny they are.
STREAM_TASKS: Final = 16384
# Work in one envelope at least, near the end of a map: some four times what a message costs.
LEAST_SECONDS: Final = 0.0002
# Tasks in the first envelopes of a map at most, whatever former maps of its callable have told: its items may be large,
# which shows only when the first ones are packed. Arbitrary.
FIRST_TASKS: Final = 16
# The same where the first item is a number, so that the others will hardly be large. Arbitrary.
FIRST_NUMBERS: Final = 256


class InputJob(Job):
    """A job whose tasks come from the user's iterables, read lazily."""

    def __init__(
        self, f: Callable[..., Any], iterables: tuple[Iterable[Any], ...], *, star: bool = False, **options: Any
    ) -> None:
        super().__init__(f, **options)
        self.how = STAR if star or len(iterables) > 1 else ONE
        self._input: Iterator[Any] = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables)  # noqa: B905
        self._input_lock = threading.Lock()  # one thread reads the input at a time
        known = [length_hint(iterable, -1) for iterable in iterables]
        self._total = min(known) if all(length >= 0 for length in known) else None
        self.read = 0  # tasks that have been read
        self.settled = 0  # tasks whose outcome is known
        self.exhausted = False
        self.input_error: BaseException | None = None
        self.waiter = Waiter()  # of the thread that owns the job
        self._lock = threading.Lock()  # protects settled and the results

    @property
    def is_hungry(self) -> bool:
        """True until the input has ended, and while something is to be sent again."""
        return not self.is_stopped and (bool(self.returned) or not self.exhausted)

    def next_size(self, workers: int) -> int:
        """As measured; smaller near the end of an input of known length, so that all workers end together.

        But not so small that the message costs more than the tasks.
        """
        if self.batch_size is not None or self._total is None:
            return self.size
        fair = -(-(self._total - self.read) // (2 * workers))
        worthwhile = 1 if self.cost is None else int(LEAST_SECONDS / (self.cost + 1e-9))
        return max(1, min(self.size, max(fair, worthwhile)))

    def next_run(self, size: int) -> Run | None:
        """Return tasks that came back, else new ones from the input."""
        try:
            return self.returned.popleft()
        except IndexError:
            pass
        with self._input_lock:
            if self.exhausted or self.is_stopped:
                return None
            items: list[Any] = []
            try:
                ended = self._read(items, size)
            except BaseException as error:  # the user's iterator: raised by whoever waits for the results
                self.input_error = error
                ended = True
            first = self.read
            self.read += len(items)
            self.exhausted = ended
        if ended:
            self.waiter.complete()
        return Run(first, items) if items else None

    def _read(self, items: list[Any], size: int) -> bool:
        """Append up to ``size`` tasks; return whether the input has ended."""
        items.extend(islice(self._input, size))  # keeps what came before an error
        return len(items) < size

    def stop_reading(self, error: BaseException) -> None:
        """As if the input had failed with this error."""
        if not self.exhausted:
            self.input_error = error
            self.exhausted = True

    def settle(self, run: Run, first: int, results: list[Any]) -> None:
        """Put results away and wake the owner if they matter to it."""
        with self._lock:
            self.settled += len(results)
            wake = self.keep(first, results)
        if wake:
            self.waiter.complete()

    def keep(self, first: int, results: list[Any]) -> bool:
        """Store results; return whether the owner must look. Runs under the job's lock."""
        raise NotImplementedError

    def demand(self) -> None:
        """Wake the owner, who pumps."""
        self.waiter.complete()


class Pace:
    """How long tasks of one callable took lately: with this its next map begins, instead of finding out anew."""

    __slots__ = ("cost", "size")

    def __init__(self) -> None:
        self.cost: float | None = None
        self.size = 1


class MapJob(InputJob):
    """All results in input order, or the error of the first task that failed.

    With ``fail_fast`` nothing more is read after a failure, and only what comes before it is waited for; else all tasks
    are done.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        *,
        fail_fast: bool = True,
        pace: Pace | None = None,
        **options: Any,
    ) -> None:
        super().__init__(f, iterables, **options)
        self._fail_fast = fail_fast
        self._pace = pace
        if pace is not None and self.batch_size is None:
            self.cost, self.size = pace.cost, min(pace.size, _first_tasks(iterables))
        self._chunks: list[tuple[int, list[Any]]] = []
        self._failed_at: int | None = None  # the lowest task that failed

    def learn(self, count: int, seconds: float) -> None:
        """Take note for this map and the next one."""
        super().learn(count, seconds)
        if self._pace is not None and self.batch_size is None:
            self._pace.cost, self._pace.size = self.cost, self.size

    def keep(self, first: int, results: list[Any]) -> bool:
        """Store results, and note which task is the first that failed."""
        self._chunks.append((first, results))
        if len(results) == 1 and isinstance(results[0], Outcome) and not results[0].ok:
            self._failed_at = first if self._failed_at is None else min(first, self._failed_at)
            self.exhausted = self.exhausted or self._fail_fast
        return self.is_finished

    @property
    def is_finished(self) -> bool:
        """True when the results, or the error to raise, are known."""
        if self._failed_at is not None and self._fail_fast:
            before = sum(len(results) for first, results in self._chunks if first < self._failed_at)
            return before >= self._failed_at
        return self.exhausted and self.settled == self.read

    @property
    def has_failed(self) -> bool:
        """True when some task has failed for good."""
        return self._failed_at is not None

    def results(self) -> list[Any]:
        """Return the results in input order, or raise: an earlier task's error before a later one's, both before the
        input's."""
        chunks = sorted(self._chunks, key=_first)
        if self._failed_at is not None:
            failed = next(results[0] for first, results in chunks if first == self._failed_at)
            failed.value()
        if self.input_error is not None:
            raise self.input_error
        return list(chain.from_iterable(_values(results) for _, results in chunks))


def _first_tasks(iterables: tuple[Iterable[Any], ...]) -> int:
    """How many tasks the first envelope of a map may have, as far as the input can be seen without reading it."""
    for iterable in iterables:
        is_list = type(iterable) is list and iterable and type(iterable[0]) in (int, float)
        if not is_list and type(iterable) is not range:
            return FIRST_TASKS
    return FIRST_NUMBERS


def _values(results: list[Any]) -> list[Any]:
    """Open results. They came in one message, so all of them are Outcomes or none is."""
    return [result.value() for result in results] if isinstance(results[0], Outcome) else results


def _first(chunk: tuple[int, list[Any]]) -> int:
    return chunk[0]


class StreamJob(InputJob):
    """Results one by one, in input order or as they come; the input is read only so far ahead of the consumer."""

    def __init__(
        self,
        f: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        *,
        is_ordered: bool,
        buffer_size: int | None,
        workers: int,
        schedule: Callable[[StreamJob], None],
        keeps: object = None,
        aside: Callable[[Callable[[], object]], object] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(f, iterables, **options)
        # What reads the input in a thread of its own, started by ``aside``; None: whoever pumps reads it.
        self._feed = None if aside is None else Feed(self._input, self._room, self.demand, aside)
        self._is_ordered = is_ordered
        self._buffer_size = buffer_size
        self._workers = max(1, workers)
        self._keeps = keeps  # the pool, which must not end while somebody has the iterator
        self._schedule = schedule  # has a call thread pump, when the consumer is busy elsewhere
        self._ready: dict[int, list[Any]] = {}  # first task to results, not consumed
        self._taking: deque[Any] = deque()  # the results that the consumer takes next
        self._next = 0  # the task whose result comes next, when ordered
        self.consumed = 0
        self.consumer_waits = False
        self.kept: object = None  # what else must not end meanwhile
        self.is_forsaken = False  # results are not kept; under _lock

    def next_size(self, workers: int) -> int:
        """As measured, within what may be read ahead of the consumer."""
        size = super().next_size(workers)
        return max(1, min(size, self._room(), STREAM_TASKS)) if self.batch_size is None else size

    def _room(self) -> int:
        """Tasks that may still be read before the consumer takes a result."""
        limit = self._buffer_size if self._buffer_size is not None else 4 * self._workers * min(self.size, STREAM_TASKS)
        return limit - (self.read - self.consumed)

    @property
    def is_hungry(self) -> bool:
        """True while something is to be sent, and there is room for its result."""
        return not self.is_stopped and (bool(self.returned) or (not self.exhausted and self._room() > 0))

    @property
    def is_ready(self) -> bool:
        """True while something can be sent without waiting for the input."""
        return self.is_hungry and (self._feed is None or bool(self.returned) or self._feed.has_come)

    def _read(self, items: list[Any], size: int) -> bool:
        """Append up to ``size`` tasks, as far as they have come; return whether the input has ended."""
        return super()._read(items, size) if self._feed is None else self._feed.take(items, size)

    def _may_read_on(self) -> None:
        if self._feed is not None:
            self._feed.look()

    def stop_reading(self, error: BaseException) -> None:
        """As if the input had failed with this error."""
        super().stop_reading(error)
        if self._feed is not None:
            self._feed.stop()

    def release(self) -> None:
        """Give up what the job holds beside its results."""
        super().release()
        if self._feed is not None:
            self._feed.stop()

    def keep(self, first: int, results: list[Any]) -> bool:
        """Store results; the consumer looks when its next one is there."""
        if self.is_forsaken:
            return False
        self._ready[first] = results
        return not self._is_ordered or first == self._next

    def demand(self) -> None:
        """Wake the consumer if it waits, for it can pump; else a call thread does, so that workers need not wait."""
        if self.consumer_waits:
            self.waiter.complete()
        else:
            self._schedule(self)

    def take(self) -> Any:
        """Return the next result, perhaps an Outcome; IndexError when it is not there."""
        if not self._taking:
            self._taking.extend(self._next_results())
        self.consumed += 1
        self._may_read_on()
        return self._taking.popleft()

    def take_several(self) -> list[Any]:
        """Return the results that came together next, all of them Outcomes or none; IndexError when none is there."""
        results = self._next_results()
        self.consumed += len(results)
        self._may_read_on()
        return results

    def take_together(self) -> list[Any]:
        """As ``take_several``; but one at a time if it was said how far ahead of the consumer the input is read."""
        return self.take_several() if self._buffer_size is None else [self.take()]

    def _next_results(self) -> list[Any]:
        with self._lock:
            first = self._next if self._is_ordered else next(iter(self._ready), -1)
            results = self._ready.pop(first, None)
            if results is None:
                raise IndexError
            self._next = first + len(results)
            return results

    @property
    def is_finished(self) -> bool:
        """True when no result will come any more."""
        return self.exhausted and self.consumed >= self.read

    @property
    def is_done(self) -> bool:
        """True when all results have come, taken or not."""
        return self.exhausted and self.settled >= self.read

    def hurry(self) -> None:
        """Read ahead of the consumer without a limit from now on."""
        self._buffer_size = sys.maxsize
        self._may_read_on()

    def forsake(self) -> None:
        """Nobody will take results any more; the tasks are wanted all the same."""
        with self._lock:
            self.is_forsaken = True
            self._ready.clear()
        self.hurry()
