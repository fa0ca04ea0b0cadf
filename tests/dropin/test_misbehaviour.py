"""Both doors: eight items, one of which misbehaves in every way that hurts people, then a second map on the same pool.

That item fails soon and says why, the others are done, the pool answers again, and nothing of it is left behind (which
is looked at around every test). What each door promises beyond that stands in its own files.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

import distpool
from distpool.compat.futures.process import BrokenProcessPool, ProcessPoolExecutor
from distpool.compat.multiprocessing.pool import MaybeEncodingError, Pool
from distpool.compat.multiprocessing.pool import TimeoutError as PoolTimeout
from support import dropins
from support.leaks import eventually

SOON = 20  # seconds; only a hang takes that long
Errors = dict[str, tuple[type[BaseException], str]]
GOOD = [0, 1, 2, 4, 5, 6, 7]


class PoolDoor:
    """``multiprocessing.Pool``."""

    timeout = PoolTimeout
    # What item 3 raises, and what the error says.
    errors: ClassVar[Errors] = {
        "kill": (distpool.ProcessExitedException, "SIGKILL"),
        "_exit": (distpool.ProcessExitedException, "exited with code 3"),
        "sys.exit": (SystemExit, "3"),
        "lock": (MaybeEncodingError, "lock"),
        "two": (dropins.NeedsTwo, "1"),
        "pickled": (LookupError, "cannot be pickled"),
        "opened": (LookupError, "cannot be opened"),
        "initializer": (ZeroDivisionError, "initializer"),
    }

    def __init__(self, **options: Any) -> None:
        self.pool = Pool(2, **options)

    def begin(self, function: Any, item: Any) -> Any:
        return self.pool.apply_async(function, (item,))

    def result(self, begun: Any, timeout: float) -> Any:
        return begun.get(timeout)

    def map(self, function: Any, items: Any, timeout: float = SOON) -> list[Any]:
        return self.pool.map_async(function, items).get(timeout)

    def kill(self) -> None:
        self.pool.terminate()

    def end(self) -> None:
        self.pool.close()
        self.pool.join()


class ExecutorDoor:
    """``concurrent.futures.ProcessPoolExecutor``."""

    timeout = FutureTimeout
    errors: ClassVar[Errors] = {
        "kill": (BrokenProcessPool, "SIGKILL"),
        "_exit": (BrokenProcessPool, "exited with code 3"),
        "sys.exit": (SystemExit, "3"),
        "lock": (TypeError, "lock"),
        "two": (dropins.NeedsTwo, "1"),
        "pickled": (LookupError, "cannot be pickled"),
        "opened": (BrokenProcessPool, "cannot be opened"),
        "initializer": (BrokenProcessPool, "initializer"),
    }

    def __init__(self, **options: Any) -> None:
        self.pool = ProcessPoolExecutor(2, **options)

    def begin(self, function: Any, item: Any) -> Any:
        return self.pool.submit(function, item)

    def result(self, begun: Any, timeout: float) -> Any:
        return begun.result(timeout)

    def map(self, function: Any, items: Any, timeout: float = SOON) -> list[Any]:
        return list(self.pool.map(function, items, timeout=timeout))

    def kill(self) -> None:
        self.pool.terminate_workers()

    def end(self) -> None:
        self.pool.shutdown()


Door = PoolDoor | ExecutorDoor
both = pytest.mark.parametrize("kind", [PoolDoor, ExecutorDoor], ids=["Pool", "ProcessPoolExecutor"])


@pytest.fixture
def door(kind: type[Door]) -> Iterator[Door]:
    made = kind()
    yield made
    made.end()


def outcomes(door: Door, function: Any, items: Any) -> list[Any]:
    """The value or the error of each item, all begun before the first is looked at."""
    got: list[Any] = []
    for begun in [door.begin(function, item) for item in items]:
        try:
            got.append(door.result(begun, SOON))
        except (Exception, SystemExit) as error:
            got.append(error)
    return got


def check_error(error: BaseException, door: Door, how: str) -> None:
    """Of the promised type, and it says what happened."""
    kind, told = door.errors[how]
    assert type(error) is kind, repr(error)
    assert told in str(error)


@both
@pytest.mark.parametrize("how", ["kill", "_exit", "sys.exit", "lock", "two"])
def test_a_task_that_misbehaves(door: Door, how: str, tmp_path: Path) -> None:
    """It dies, exits, returns what cannot travel, raises what cannot be rebuilt: by itself, and in a map."""
    function = partial(dropins.misbehave_at_3, how)
    got = outcomes(door, function, range(8))
    check_error(got.pop(3), door, how)
    assert got == GOOD
    with pytest.raises(door.errors[how][0]) as caught:
        door.map(function, range(8))
    check_error(caught.value, door, how)
    assert door.map(dropins.square, range(8)) == [x * x for x in range(8)]


@both
@pytest.mark.parametrize("when", ["pickled", "opened"])
def test_an_argument_that_explodes(door: Door, when: str) -> None:
    """Here or at the worker: no other call is hurt, not even one that travels in the same message."""
    items = [0, 1, 2, dropins.Poison(when), 4, 5, 6, 7]
    got = outcomes(door, dropins.same, items)
    check_error(got.pop(3), door, when)
    assert got == GOOD
    with pytest.raises(door.errors[when][0]) as caught:
        door.map(dropins.same, items)
    check_error(caught.value, door, when)
    assert door.map(dropins.square, range(8)) == [x * x for x in range(8)]


@both
def test_an_initializer_that_raises(kind: type[Door]) -> None:
    """Every call says so, whenever it was begun; workers are not started over and over."""
    door = kind(initializer=dropins.fail)
    try:
        for _ in range(2):
            with pytest.raises(kind.errors["initializer"][0]) as caught:
                door.map(abs, range(8))
            check_error(caught.value, door, "initializer")
            with pytest.raises(kind.errors["initializer"][0]) as caught:
                door.result(door.begin(abs, 1), SOON)
            check_error(caught.value, door, "initializer")
    finally:
        door.end()


@both
def test_a_task_that_never_ends(kind: type[Door]) -> None:
    """Who waits gives up in time; the other worker does everything else, behind it and later; the end is not held."""
    door = kind()
    calls = [door.begin(partial(dropins.misbehave_at_3, "sleep"), x) for x in range(8)]
    assert [door.result(call, SOON) for x, call in enumerate(calls) if x != 3] == GOOD
    begun = time.monotonic()
    with pytest.raises(door.timeout):
        door.result(calls[3], 0.1)
    assert door.map(dropins.square, range(8)) == [x * x for x in range(8)]
    door.kill()
    door.end()
    assert time.monotonic() - begun < SOON


@both
def test_nothing_waits_behind_a_task_that_never_ends(kind: type[Door]) -> None:
    """Whatever the driver knows of how far its worker is: one pool in seven once stood still here."""
    for _ in range(12):
        door = kind()
        calls = [door.begin(partial(dropins.misbehave_at_3, "sleep"), x) for x in range(8)]
        assert [door.result(call, SOON) for x, call in enumerate(calls) if x != 3] == GOOD
        door.kill()
        door.end()


@both
def test_a_map_with_an_item_that_never_ends(kind: type[Door]) -> None:
    """The map is given up in time, the next one is answered meanwhile."""
    door = kind()
    function = partial(dropins.misbehave_at_3, "sleep")
    with pytest.raises(door.timeout):
        door.map(function, range(8), 0.3)
    assert door.map(dropins.square, range(8)) == [x * x for x in range(8)]
    door.kill()
    door.end()


def test_a_future_that_never_ends_is_cancelled(tmp_path: Path) -> None:
    """With cancel_running=True: the call stops, and both workers work on."""
    with ProcessPoolExecutor(2, cancel_running=True) as executor:
        begun = tmp_path / "begun"
        stuck = executor.submit(dropins.touch_and_sleep, str(begun))
        eventually(begun.exists)
        with pytest.raises(FutureTimeout):
            stuck.result(0.1)
        assert stuck.cancel()
        with pytest.raises(CancelledError):
            stuck.result(SOON)
        assert list(executor.map(dropins.square, range(8))) == [x * x for x in range(8)]
        # Each waits for the other's file, so they are done only if two workers are there.
        paths = [str(tmp_path / name) for name in ("one", "other")]
        pairs = [executor.submit(dropins.meet_at, *each) for each in (paths, paths[::-1])]
        assert [pair.result(SOON) for pair in pairs] == paths


def test_the_standard_library_s_way_to_end_what_hangs() -> None:
    """What programs do today: kill the processes of ``_processes``; the call fails, the executor lives."""
    with ProcessPoolExecutor(2) as executor:
        stuck = executor.submit(time.sleep, 1000)
        eventually(stuck.running)
        for process in list(executor._processes.values()):  # type: ignore[union-attr]
            process.kill()
        assert type(stuck.exception(SOON)) is BrokenProcessPool
        assert list(executor.map(dropins.square, range(8))) == [x * x for x in range(8)]
