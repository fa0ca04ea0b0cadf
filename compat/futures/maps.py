"""The iterator that ``ProcessPoolExecutor.map`` returns: results in input order, from a stream that has begun.

The input is read in the thread of the user alone: all of it at the call, or with ``buffersize`` so much, and one more
for each result that is asked for. ``Ahead`` is what lies between it and the threads that send tasks::

    user's thread --read()--> Ahead --next()--> whichever thread has a worker with room
"""

from __future__ import annotations

import concurrent.futures
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

import distpool

from .engine import Engine
from .failures import broken, opened
from .worker import each

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any

# Plain results that came in one message are small when they are so many, and are let go together: the loop that yields
# them one by one is the interpreter's own, four times as fast. Arbitrary.
MANY = 32

_END: Any = object()


class Ahead:
    """Input that was read and not sent yet: an iterator that runs no code of the user's."""

    def __init__(self, source: Iterator[Any], size: int) -> None:
        self._source = source
        self._items = deque(islice(source, size))

    def read(self) -> None:
        """Read one more, if there is one."""
        item = next(self._source, _END)
        if item is not _END:
            self._items.append(item)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._items.popleft()
        except IndexError:
            raise StopIteration from None


def results(engine: Engine, stream: distpool.ResultStream, ahead: Ahead | None, timeout: float | None) -> Iterator[Any]:
    """Yield the results of a stream, which the engine holds until it is done or given up.

    An iterator that nobody has begun to read may be dropped: all is done, and the results go with it. One that was
    begun and is dropped takes back what has not begun.
    """
    # Item by item only if somebody has said how far ahead of the last one that was taken the input may be read.
    came = stream.chunks(timeout) if ahead is None else ([each] for each in stream.outcomes(timeout))
    iterator = _results(engine, stream, came, ahead)
    # The generator's own ``finally`` does not run when it was never begun: nobody wants the results, then.
    engine.hold(stream, weakref.ref(iterator, lambda _: stream.forsake()))
    return iterator


def _as_standard(error: BaseException, why_broken: BaseException | None) -> BaseException:
    """What the stream itself raises, as the standard library does."""
    if error is why_broken:
        return broken(error)
    return concurrent.futures.TimeoutError() if isinstance(error, TimeoutError) else error  # another class before 3.11


def _results(
    engine: Engine, stream: distpool.ResultStream, came: Iterator[list[Any]], ahead: Ahead | None
) -> Iterator[Any]:
    is_interrupted = False
    try:
        while True:
            if ahead is not None:
                ahead.read()
            error: BaseException | None = None
            several: list[Any] = []
            try:
                several = next(came)
            except StopIteration:
                return
            except Exception as raised:
                error = raised
            if error is not None:
                raise _as_standard(error, engine.pool.broken)
            if len(several) >= MANY and not isinstance(several[0], distpool.Outcome):
                yield from several
                continue
            several.reverse()
            while several:  # taken off before it is yielded: when the user drops it, it shall be gone
                if isinstance(several[-1], distpool.Outcome):
                    several[-1], error = opened(several[-1], engine.judge())
                    if error is not None:
                        raise error
                yield several.pop()
    except KeyboardInterrupt:
        is_interrupted = True
        raise
    finally:
        stream.close(interrupt=is_interrupted or engine.stops_running)
        engine.let_go(stream)


def by_submit(
    engine: Engine,
    submit: Callable[..., concurrent.futures.Future[Any]],
    fn: Callable[..., Any],
    items: Iterator[tuple[Any, ...]],
    size: int,
    buffersize: int | None,
    timeout: float | None,
) -> Iterator[Any]:
    """The map of an executor whose ``submit`` somebody has replaced: it sees each chunk, as in the standard library.

    tqdm's ``process_map`` counts what is done that way, by callbacks; so results come when these have been made.
    """
    until = None if timeout is None else time.monotonic() + timeout
    chunks = iter(lambda: list(islice(items, size)), [])

    def begin(chunk: list[tuple[Any, ...]]) -> tuple[concurrent.futures.Future[Any], threading.Event]:
        call, called_back = submit(each, fn, chunk), threading.Event()
        call.add_done_callback(lambda _: called_back.set())
        return call, called_back

    calls = deque(begin(chunk) for chunk in islice(chunks, buffersize))

    def results() -> Iterator[Any]:
        try:
            while calls:
                calls.extend(begin(chunk) for chunk in islice(chunks, 1))  # with buffersize there are more
                call, called_back = calls[0]
                several = call.result(None if until is None else until - time.monotonic())
                if not engine.callbacks.is_here:  # a callback that reads a map would wait for itself
                    called_back.wait()
                calls.popleft()
                del call
                several.reverse()
                while several:
                    yield several.pop()
        finally:
            for unwanted, _ in calls:
                unwanted.cancel()

    return results()
