"""What bad input and bad tasks get: their item fails with its cause, the others complete, the pool goes on.

One matrix: two workers, eight items of which number 3 misbehaves, each misdeed through each door, and then a second
map on the same pool. The leak check around every test sees to the rest: nothing is left behind.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from distpool import ProcessExitedException, RemoteException, WorkerPool, pmap
from distpool.errors import RemoteStandIn
from support.faults import Deed, Locked, fail_to_initialize, interrupted_when_put_away, perform, perform_two
from support.jobs import Poison, TwoArgumentError, identity, kill_self, square

BAD = 3
GOOD = [x * x for x in range(8) if x != BAD]
# "Within about a second" is the promise; this only tells a late answer from one that waits for something else.
PROMPT_SECONDS = 10.0


class Misdeed(NamedTuple):
    """What the bad item is, and how it must fail."""

    item: Callable[[], Any]
    error: type[BaseException]
    text: str
    timeout: float | None = None


def deed(name: str, error: type[BaseException], text: str, timeout: float | None = None) -> Any:
    return pytest.param(Misdeed(lambda: Deed(name), error, text, timeout), id=name.replace(" ", "-"))


MISDEEDS = [
    pytest.param(Misdeed(Locked, TypeError, "inner"), id="unpicklable-argument"),
    pytest.param(Misdeed(Poison, RuntimeError, "this payload does not open"), id="poisoned-argument"),
    deed("unpicklable result", TypeError, "lock"),
    deed("poisoned result", RuntimeError, "this payload does not open"),
    deed("unpicklable exception", RemoteStandIn, "it holds a lock"),
    deed("two-argument exception", TwoArgumentError, "one and two"),
    deed("sys.exit", SystemExit, "3"),
    deed("SystemExit", SystemExit, "enough"),
    deed("KeyboardInterrupt", KeyboardInterrupt, "not really"),
    deed("os._exit", ProcessExitedException, "exited with code 3"),
    deed("SIGKILL", ProcessExitedException, "SIGKILL"),
    deed("segfault", ProcessExitedException, "SIGSEGV"),
    deed("abort", ProcessExitedException, "SIGABRT"),
    deed("MemoryError", MemoryError, ""),
    deed("RecursionError", RecursionError, "recursion"),
    deed("sleep for ever", TimeoutError, "longer than 0.2 seconds", 0.2),
    deed("hold the interpreter", TimeoutError, "longer than 0.2 seconds", 0.2),
]


def items_with(misdeed: Misdeed) -> list[Any]:
    return [misdeed.item() if x == BAD else x for x in range(8)]


def options_of(misdeed: Misdeed) -> dict[str, Any]:
    return {} if misdeed.timeout is None else {"timeout": misdeed.timeout}


# -- the doors: all eight outcomes, exceptions as values -------------------------------------------------------------


def by_map(pool: WorkerPool, misdeed: Misdeed) -> list[Any]:
    return pool.map(perform, items_with(misdeed), on_error=identity, **options_of(misdeed))


def by_starmap(pool: WorkerPool, misdeed: Misdeed) -> list[Any]:
    pairs = [(item, 2) for item in items_with(misdeed)]
    return pool.starmap(perform_two, pairs, on_error=identity, **options_of(misdeed))


def by_imap(pool: WorkerPool, misdeed: Misdeed) -> list[Any]:
    return list(pool.imap(perform, items_with(misdeed), on_error=identity, **options_of(misdeed)))


def by_imap_unordered(pool: WorkerPool, misdeed: Misdeed) -> list[Any]:
    """Put into input order again: what is not a square is the bad one."""
    results = list(pool.imap_unordered(perform, items_with(misdeed), on_error=identity, **options_of(misdeed)))
    good = sorted(result for result in results if isinstance(result, int))
    bad = [result for result in results if not isinstance(result, int)]
    return good[:BAD] + bad + good[BAD:]


def by_pmap(pool: WorkerPool, misdeed: Misdeed) -> list[Any]:
    return pmap(perform, pool, items_with(misdeed), on_error=identity, **options_of(misdeed))


def by_submit(pool: WorkerPool, misdeed: Misdeed) -> list[Any]:
    """One call for each item; a deadline is the caller's own: `result(timeout)`, then `cancel(running=True)`.

    The bad one first: a result that was finished less than a millisecond before its worker entered C code that holds
    the interpreter cannot leave before that is stopped.
    """
    futures = [_submitted(pool, item) for item in items_with(misdeed)]
    bad = _outcome(futures.pop(BAD), misdeed.timeout)
    results = [_outcome(future, None) for future in futures]
    return [*results[:BAD], bad, *results[BAD:]]


def _submitted(pool: WorkerPool, item: Any) -> Any:
    try:
        return pool.submit(perform, item)
    except TypeError as error:  # raised at the call
        return error


def _outcome(future: Any, timeout: float | None) -> Any:
    if isinstance(future, TypeError):
        return future
    try:
        return future.result(timeout)
    except TimeoutError as error:
        assert future.cancel(running=True)
        return TimeoutError(f"longer than {timeout} seconds: {error}")
    except BaseException as error:
        return error.captured.ex if isinstance(error, RemoteException) else error


DOORS = [by_map, by_starmap, by_imap, by_imap_unordered, by_pmap, by_submit]


@pytest.mark.parametrize("misdeed", MISDEEDS)
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_bad_item_fails_alone(door: Callable[[WorkerPool, Misdeed], list[Any]], misdeed: Misdeed) -> None:
    """The bad item gets its own cause, the others their results, and the pool serves the next map."""
    with WorkerPool(processes=2) as pool:
        begun = time.monotonic()
        results = door(pool, misdeed)
        bad = results.pop(BAD)
        assert results == GOOD
        assert isinstance(bad, misdeed.error)
        assert misdeed.text in str(bad)
        assert pool.map(square, range(8)) == [x * x for x in range(8)]
        assert time.monotonic() - begun < PROMPT_SECONDS


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_without_a_handler_map_raises_the_cause(misdeed: Misdeed) -> None:
    """The error of the failed task comes out of `map` (as its own type where Python allows), and the pool goes on."""
    with WorkerPool(processes=2) as pool:
        with pytest.raises(BaseException) as caught:  # noqa: PT011 -- checked below, by type and text
            pool.map(perform, items_with(misdeed), **options_of(misdeed))
        cause = caught.value.captured.ex if isinstance(caught.value, RemoteException) else caught.value
        assert isinstance(cause, misdeed.error)
        assert misdeed.text in str(cause)
        assert isinstance(caught.value, Exception), "a task's SystemExit or KeyboardInterrupt must not end the driver"
        assert pool.map(square, range(8)) == [x * x for x in range(8)]


@pytest.mark.parametrize("misdeed", [param for param in MISDEEDS if param.id not in ("poisoned-result",)])
def test_imap_raises_when_the_turn_of_the_bad_item_comes(misdeed: Misdeed) -> None:
    """What comes before it is delivered; the error ends the iterator."""
    with WorkerPool(processes=2) as pool:
        results = pool.imap(perform, items_with(misdeed), **options_of(misdeed))
        assert [next(results) for _ in range(BAD)] == GOOD[:BAD]
        with pytest.raises(Exception) as caught:  # noqa: PT011 -- checked below, by text
            next(results)
        assert misdeed.text in str(caught.value)
        assert list(results) == []
        assert pool.map(square, range(8)) == [x * x for x in range(8)]


# -- errors at the call ----------------------------------------------------------------------------------------------


def test_an_unpicklable_argument_is_an_error_of_the_call_and_names_the_path() -> None:
    """`submit` says at once which attribute of which argument is to blame; the cause is pickle's own error."""
    with WorkerPool(processes=2) as pool:
        with pytest.raises(TypeError, match=r"args\[1\]\[0\]\.inner.*lock") as caught:
            pool.submit(perform, 1, [Locked()])
        assert isinstance(caught.value.__cause__, TypeError)
        with pytest.raises(TypeError, match=r"kwargs\['item'\]\.inner"):
            pool.submit(perform, item=Locked())
        assert pool.submit(square, 3).result() == 9


def test_an_unpicklable_callable_is_an_error_of_the_call() -> None:
    """A function that has caught a lock in its closure is named, before anything runs."""
    locked = Locked()
    with WorkerPool(processes=2) as pool:
        for call in (pool.map, pool.imap):
            with pytest.raises(TypeError, match="lock"):
                call(lambda x: (x, locked), range(8))
        with pytest.raises(TypeError, match="lock"):
            pool.submit(lambda: locked)
        assert pool.map(square, range(4)) == [0, 1, 4, 9]


# -- the input raises ------------------------------------------------------------------------------------------------


class BrokenInputError(Exception):
    """What the user's iterator raises."""


def broken_input() -> Iterator[int]:
    yield from range(BAD)
    raise BrokenInputError("the input ended badly")


def test_an_iterable_that_raises_is_the_callers_own_error() -> None:
    """It comes out as it is, not wrapped, from every door; the pool goes on."""
    with WorkerPool(processes=2) as pool:
        for attempt in (
            lambda: pool.map(square, broken_input()),
            lambda: pool.starmap(square, ((x,) for x in broken_input())),
            lambda: pmap(square, pool, broken_input()),
            lambda: list(pool.imap(square, broken_input())),
            lambda: list(pool.imap_unordered(square, broken_input())),
        ):
            with pytest.raises(BrokenInputError, match="ended badly"):
                attempt()
        assert pool.map(square, range(8)) == [x * x for x in range(8)]


def test_imap_delivers_what_came_before_the_input_failed() -> None:
    """The items that were read are not lost."""
    delivered = []
    with WorkerPool(processes=2) as pool, pytest.raises(BrokenInputError):  # noqa: PT012 -- the loop is what raises
        for result in pool.imap(square, broken_input()):
            delivered.append(result)
    assert delivered == [0, 1, 4]


# -- initializers ----------------------------------------------------------------------------------------------------


def test_a_failing_initializer_is_raised_where_the_pool_is_made() -> None:
    """Once, with its own type and traceback, and no worker stays; no endless starting of new ones."""
    with pytest.raises(ValueError, match="the initializer failed") as caught:
        WorkerPool(processes=2, initializer=fail_to_initialize)
    assert isinstance(caught.value, RemoteException)
    assert "fail_to_initialize" in caught.value.captured.traceback


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_an_initializer_that_kills_its_worker_is_raised_where_the_pool_is_made(number: int) -> None:
    """The error says how the worker ended."""
    with pytest.raises(ProcessExitedException, match=signal.Signals(number).name):
        WorkerPool(processes=2, initializer=kill_self, initargs=(number,))


def test_an_unpicklable_initializer_argument_is_raised_where_the_pool_is_made() -> None:
    """It names the path, and no worker stays."""
    with pytest.raises(TypeError, match="inner"):
        WorkerPool(processes=2, initializer=square, initargs=(Locked(),))


@pytest.mark.parametrize("timeout", [None, 30], ids=["plain", "timed"])
def test_an_interrupt_after_the_result_costs_nothing(timeout: float | None) -> None:
    """The result that was just put away counts, and there is no second one, which would be the next task's."""
    with WorkerPool(processes=1) as pool:
        workers = pool.workers()
        assert pool.map(interrupted_when_put_away, range(5), batch_size=5, timeout=timeout) == list(range(5))
        assert pool.workers() == workers


def test_calls_that_are_cancelled_while_they_run_cost_no_other() -> None:
    """Hundreds of short ones, at any moment of theirs: who is not cancelled has a result, and no worker is killed."""
    rng = random.Random(7)
    with WorkerPool(processes=2) as pool:
        workers = pool.workers()
        for _ in range(15):
            futures = [pool.submit(square, x) for x in range(60)]
            for future in rng.sample(futures, 25):
                future.cancel(running=True)
            assert [future.result() for future in futures if not future.cancelled()] == [
                x * x for x, future in enumerate(futures) if not future.cancelled()
            ]
        assert pool.workers() == workers
