"""What is to be done: the tasks of one map, one stream or one submitted function, and where their results go.

A job knows its callable, its input and its results; it does not know workers. ``dispatch`` asks a job for the next
tasks and tells it what became of them::

    input --next_run(n)--> dispatch --> workers --> dispatch --settle(first, results)--> results
                 ^                                    |
                 +--returned (taken back, retried) <--+

User code (the input's iterator, pickling of items) runs in ``next_run`` and in ``pack``, called by the thread that owns
the job or by a call thread, never by the reading thread; ``settle`` runs on the reading thread and only puts results
away.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from operator import length_hint

from distpool.bundles import bundle
from distpool.futures import Outcome, TaskFuture
from distpool.light import Any, Final
from distpool.pickling import Parcel, dump
from distpool.segments import THRESHOLD, Segment
from distpool.tasks import CALL, ONE, STAR
from distpool.transport import Waiter

# Tasks that are sent in one message shall keep a worker busy for about this long: enough to hide the message's cost
# (some 50 us), little enough that the last ones of a map end close together.
ENVELOPE_SECONDS: Final = 0.004
ENVELOPE_BYTES: Final = 8 << 20  # and no larger than this, so that memory stays bounded. Arbitrary.
GROWTH: Final = 4  # envelopes grow from one task by at most this factor, as results tell how long tasks take
# Tasks at least this long are sent one at a time and not ahead: waiting for the next costs a worker less than 1 %.
LONG_SECONDS: Final = 0.02

# Calls in one message beyond which its fixed costs do not matter any more.
FEW_CALLS: Final = 128

next_number = count(1).__next__


class Run:
    """Tasks of one job that follow one another; the first is number ``first``."""

    __slots__ = ("attempt", "first", "items")

    def __init__(self, first: int, items: list[Any], attempt: int = 0) -> None:
        self.first = first
        self.items = items
        self.attempt = attempt  # how often these tasks have failed before


class Retries:
    """What to do when a task fails: ask ``on_error`` for a value, else try again after a delay, while there is one."""

    def __init__(
        self,
        delays: Iterable[float] = (),
        check: Callable[..., Any] | None = None,
        on_error: Callable[..., Any] | None = None,
    ) -> None:
        self.delays = list(delays)
        self._check = check
        self._check_takes_one = check is not None and _takes_one(check)
        self.on_error = on_error

    def delay(self, attempt: int, error: BaseException) -> float | None:
        """Return the seconds to wait before attempt number ``attempt`` + 1; None when it is not to be tried again."""
        if attempt >= len(self.delays):
            return None
        if self._check is not None:
            verdict = self._check(error) if self._check_takes_one else self._check(attempt + 1, error)
            if isinstance(verdict, tuple):  # Julia's form: (new state, verdict)
                verdict = verdict[-1]
            if not verdict:
                return None
        return self.delays[attempt]


class Job:
    """One callable and its tasks. ``batch_size`` None lets dispatch choose, by measured durations."""

    how = ONE

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
        self.f = f
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

    def window(self) -> int:
        """Return how many envelopes a worker may have at a time: one to run, one to go on with if tasks are short."""
        if self.cost is None or self.cost * self.size >= LONG_SECONDS:
            return 1
        return 2

    # -- for each kind of job ------------------------------------------------------------------------------------

    @property
    def is_hungry(self) -> bool:
        """True when there may be tasks to send."""
        raise NotImplementedError

    def next_size(self, workers: int) -> int:
        """Return how many tasks the next envelope should have."""
        return self.size

    def next_run(self, size: int) -> Run | None:
        """Return up to ``size`` tasks, None when there is none now. May run the user's iterator."""
        raise NotImplementedError

    def pack(self, run: Run) -> tuple[Parcel, bool]:
        """Pickle tasks; the boolean says that they were pickled one by one. Raises when some task cannot be pickled."""
        try:
            parcel = dump((self.how, run.items))
        except TypeError:
            if len(run.items) == 1:
                dump(run.items[0])  # raises again, and names the part as seen from the item
            raise
        if parcel.foreign and len(run.items) > 1:
            return bundle([(True, dump(item)) for item in run.items], note=self.how), True
        return parcel, False

    def settle(self, run: Run, first: int, results: list[Any]) -> None:
        """Put away the results of the tasks ``first`` and following of ``run``; an Outcome is one that is not plain."""
        raise NotImplementedError

    def stop_reading(self, error: BaseException) -> None:
        """There will be no worker for new input any more: whoever waits for it gets the error."""

    def demand(self) -> None:
        """A worker could have more: see that somebody calls ``Dispatcher.pump``. Called on the reading thread."""
        raise NotImplementedError


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
        """As measured; smaller near the end of an input of known length, so that all workers end together."""
        if self.batch_size is not None or self._total is None:
            return self.size
        return max(1, min(self.size, -(-(self._total - self.read) // (2 * workers))))

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
                items.extend(islice(self._input, size))  # keeps what came before an error
                ended = len(items) < size
            except BaseException as error:  # the user's iterator: raised by whoever waits for the results
                self.input_error = error
                ended = True
            first = self.read
            self.read += len(items)
            self.exhausted = ended
        if ended:
            self.waiter.complete()
        return Run(first, items) if items else None

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


class MapJob(InputJob):
    """All results in input order, or the error of the first task that failed."""

    def __init__(self, f: Callable[..., Any], iterables: tuple[Iterable[Any], ...], **options: Any) -> None:
        super().__init__(f, iterables, **options)
        self._chunks: list[tuple[int, list[Any]]] = []
        self._failed_at: int | None = None  # the lowest task that failed

    def keep(self, first: int, results: list[Any]) -> bool:
        """Store results; after a failure nothing more is read, and only what comes before it is waited for."""
        self._chunks.append((first, results))
        if len(results) == 1 and isinstance(results[0], Outcome) and not results[0].ok:
            self._failed_at = first if self._failed_at is None else min(first, self._failed_at)
            self.exhausted = True
        return self.is_finished

    @property
    def is_finished(self) -> bool:
        """True when the results, or the error to raise, are known."""
        if self._failed_at is not None:
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
        **options: Any,
    ) -> None:
        super().__init__(f, iterables, **options)
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

    def next_size(self, workers: int) -> int:
        """As measured, within what may be read ahead of the consumer."""
        size = super().next_size(workers)
        return max(1, min(size, self._room())) if self._buffer_size is not None and self.batch_size is None else size

    def _room(self) -> int:
        """Tasks that may still be read before the consumer takes a result."""
        limit = self._buffer_size if self._buffer_size is not None else 4 * self._workers * self.size
        return limit - (self.read - self.consumed)

    @property
    def is_hungry(self) -> bool:
        """True while something is to be sent, and there is room for its result."""
        return not self.is_stopped and (bool(self.returned) or (not self.exhausted and self._room() > 0))

    def keep(self, first: int, results: list[Any]) -> bool:
        """Store results; the consumer looks when its next one is there."""
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
            with self._lock:
                first = self._next if self._is_ordered else next(iter(self._ready), -1)
                results = self._ready.pop(first, None)
                if results is None:
                    raise IndexError
                self._next = first + len(results)
            self._taking.extend(results)
        self.consumed += 1
        return self._taking.popleft()

    @property
    def is_finished(self) -> bool:
        """True when no result will come any more."""
        return self.exhausted and self.consumed >= self.read


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

    def pack(self, run: Run) -> tuple[Parcel, bool]:
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


def _takes_one(f: Callable[..., Any]) -> bool:
    import inspect  # slow to import, rarely needed

    try:
        inspect.signature(f).bind(None, None)
    except TypeError:
        return True
    except ValueError:  # a built-in without a signature
        return False
    return False
