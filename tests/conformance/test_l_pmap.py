"""Numbered cases, section L: `pmap` and its relatives, run by the driver.

Left out here, until workers reach each other and pools can be sent: the second half of C171 (pmap on a worker) and C185
(pmap inside pmap on the default pool; a pool of its own inside a task is shown with C166).

How tasks travelled together shows without any instrument: objects shared by the items of one message are one object at
the receiver, and different ones in different messages. So a function that counts in a shared list returns 1 for the
first item of each message.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import (
    Channel,
    ProcessExitedException,
    RemoteChannel,
    RemoteException,
    WorkerPool,
    myid,
    pmap,
    remotecall_fetch,
)
from support import jobs
from support.aside import Aside

if TYPE_CHECKING:
    from conftest import StartWorkers


def place_in_message(item: tuple[list[int], Any]) -> int:
    """How many items of this message have come so far, this one included; `item[0]` is shared by all items."""
    item[0].append(1)
    return len(item[0])


def attempts(path: Path) -> list[str]:
    """What tasks have noted in a file, one line for each time that one ran."""
    return path.read_text().split() if path.exists() else []


@pytest.mark.case("C168")
@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_all_combinations_of_options(workers: StartWorkers, batch_size: Any, tmp_path: Path) -> None:
    """C168: all combinations of distributed, batch size, handler, retries and check give the values of the
    specification.
    """
    pids = workers(4)
    odd = [pid for pid in pids if pid % 2]

    def fails_on_even_pids(x: int) -> tuple[int, int]:
        if distpool.myid() % 2 == 0:
            raise RuntimeError("foobar")
        return x, distpool.myid()

    def when_all_work(x: int) -> tuple[int, int]:
        """Begins when all have got something: of short tasks, a quick worker may do those of a slow one as well."""
        (folder / str(distpool.myid())).touch()
        while len(os.listdir(folder)) < 4 and distpool.myid() != 1:
            time.sleep(0.001)
        return x, distpool.myid()

    def always_fails(x: int) -> tuple[int, int]:
        raise RuntimeError("foobar")

    for is_distributed, handles, retries, checks in product((True, False), repeat=4):
        options: dict[str, Any] = {"distributed": is_distributed, "batch_size": batch_size}
        if handles:
            options["on_error"] = lambda error: (str(error), 0)
        if retries:
            options["retry_delays"] = [0.001] * 1000
        if checks:
            options["retry_check"] = lambda attempt, error: str(error) == "foobar"
        case = (is_distributed, handles, retries, checks)
        folder = tmp_path / str(case)
        folder.mkdir()
        # A handler that returns makes retries needless; without one, retries find an odd worker.
        f = always_fails if handles else fails_on_even_pids if retries else when_all_work
        results = pmap(f, range(1, 101), **options)
        if handles:
            assert results == [("foobar", 0)] * 100, case
            continue
        assert [x for x, _ in results] == list(range(1, 101)), case
        used = {pid for _, pid in results}
        if not is_distributed:
            assert used == {1}, case
        elif retries:
            assert used <= set(odd), case
        else:
            assert used == set(pids), case


@pytest.mark.case("C169")
def test_error_of_one_element(workers: StartWorkers) -> None:
    """C169: an error at element 50 is raised with its message; a later pmap on the same workers works."""
    workers(2)

    def fail_at_50(x: int) -> int:
        if x == 50:
            raise RuntimeError("foobar")
        return x

    for _ in range(2):
        with pytest.raises(RemoteException, match="foobar") as raised:
            pmap(fail_at_50, range(1, 101))
        assert str(raised.value.captured.ex) == "foobar"
        assert pmap(jobs.square, range(100)) == [x * x for x in range(100)]


@pytest.mark.case("C169")
@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
def test_lowest_failed_element_decides(workers: StartWorkers, batch_size: Any) -> None:
    """C169: of several errors the one of the first failed element in input order is raised, whoever is quicker."""
    workers(2)
    for _ in range(20):
        with pytest.raises(ValueError, match=r"number 3$"):
            pmap(lambda x: jobs.fail(f"number {x}") if x in (3, 4, 5, 60) else x, range(100), batch_size=batch_size)


@pytest.mark.case("C170")
def test_slow_generator_as_input(workers: StartWorkers) -> None:
    """C170: a generator that takes its time gives the same list, in order."""
    workers(2)

    def slowly() -> Iterator[int]:
        for x in range(50):
            time.sleep(0.002)
            yield x

    assert pmap(jobs.square, slowly()) == [x * x for x in range(50)]


@pytest.mark.case("C171")
def test_every_worker_is_used(workers: StartWorkers) -> None:
    """C171, on the driver: a hundred items use every worker."""
    pids = workers(4)
    for options in ({}, {"batch_size": 1}, {"batch_size": 2}):
        assert sorted(set(pmap(lambda _: myid(), range(100), **options))) == pids


@pytest.mark.case("C172")
def test_kinds_of_input(workers: StartWorkers) -> None:
    """C172 (a): several inputs, and all kinds of iterables, give what `map` gives."""
    workers(2)
    assert pmap(jobs.add, [1, 2, 3], [10, 20]) == [11, 22]
    assert pmap(lambda *args: args, range(5), "abcde", (x for x in range(9))) == list(zip(range(5), "abcde", range(9)))  # noqa: B905
    for make in (tuple, list, iter, set, lambda xs: (x for x in xs)):
        assert pmap(jobs.square, make(range(20))) == list(map(jobs.square, make(range(20))))
    assert pmap(jobs.identity, "text") == list("text")
    assert pmap(jobs.identity, {"a": 1, "b": 2}) == ["a", "b"]
    pairs = [(1, 2), (3, 4)]
    assert pmap(jobs.identity, pairs) == pairs


@pytest.mark.case("C172")
def test_empty_input_calls_nobody(workers: StartWorkers) -> None:
    """C172 (b): empty inputs give an empty list without any call: the only worker is stopped meanwhile."""
    (worker,) = workers(1)
    os_pid = remotecall_fetch(os.getpid, worker)
    os.kill(os_pid, signal.SIGSTOP)
    try:
        pool = WorkerPool([worker])
        for make_input in (lambda: ([],), lambda: ([], [1, 2]), lambda: (iter(()),), lambda: ([1], "")):
            assert pmap(jobs.square, *make_input()) == []
            assert pmap(jobs.square, pool, *make_input()) == []
            assert pmap(jobs.square, *make_input(), batch_size=2, retry_delays=[1]) == []
    finally:
        os.kill(os_pid, signal.SIGCONT)
    assert pmap(jobs.square, [3]) == [9]


@pytest.mark.case("C173")
def test_pool_of_the_driver_alone_runs_here(workers: StartWorkers) -> None:
    """C173: over `WorkerPool([1])` everything runs here: the same objects, bare errors."""
    workers(1)
    pool = WorkerPool([1])
    items = [object(), object()]
    results = pmap(lambda x: (x, myid()), pool, items)
    assert all(x is item and pid == 1 for (x, pid), item in zip(results, items, strict=True))
    with pytest.raises(ValueError, match="boom") as raised:
        pmap(lambda _: jobs.fail(), pool, items)
    assert not isinstance(raised.value, RemoteException)


@pytest.mark.case("C174")
def test_not_distributed_runs_here(workers: StartWorkers) -> None:
    """C174: with `distributed=False` everything runs on process 1 although there are workers; also with a pool."""
    pids = workers(2)
    assert set(pmap(lambda _: myid(), range(20), distributed=False)) == {1}
    assert set(pmap(lambda _: myid(), WorkerPool(pids), range(20), distributed=False, batch_size=3)) == {1}


@pytest.mark.case("C175")
@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
@pytest.mark.parametrize("is_distributed", [True, False])
def test_on_error_gives_the_value(workers: StartWorkers, batch_size: Any, is_distributed: bool) -> None:
    """C175 (a): what the handler returns stands in the failed places; it sees the original exception, and runs here."""
    workers(2)
    options: dict[str, Any] = {"batch_size": batch_size, "distributed": is_distributed}

    def fail_if_even(x: int) -> int:
        if x % 2 == 0:
            raise ValueError(f"even {x}")
        return x

    seen: list[BaseException] = []

    def note(error: BaseException) -> BaseException:
        seen.append(error)
        return error

    results = pmap(fail_if_even, range(10), on_error=note, **options)
    assert [type(result) for result in results] == [ValueError, int] * 5
    assert [str(result) for result in results[::2]] == [f"even {x}" for x in range(0, 10, 2)]
    assert not any(isinstance(result, RemoteException) for result in results)
    assert sorted(map(str, seen)) == sorted(str(result) for result in results[::2])
    assert pmap(fail_if_even, range(10), on_error=lambda _: 0, **options) == [0, 1, 0, 3, 0, 5, 0, 7, 0, 9]


@pytest.mark.case("C175")
@pytest.mark.parametrize("is_distributed", [True, False])
def test_on_error_may_raise(workers: StartWorkers, is_distributed: bool) -> None:
    """C175 (b): a handler that raises, the same exception or another, makes pmap raise that."""
    workers(2)

    def again(error: BaseException) -> None:
        raise error

    def other(error: BaseException) -> None:
        raise LookupError("instead") from error

    with pytest.raises(ValueError, match="boom"):
        pmap(lambda _: jobs.fail(), range(4), on_error=again, distributed=is_distributed)
    with pytest.raises(LookupError, match="instead"):
        pmap(lambda _: jobs.fail(), range(4), on_error=other, distributed=is_distributed)


@pytest.mark.case("C176")
@pytest.mark.parametrize("batch_size", [1, 5, "auto"])
def test_retries_find_a_worker_that_can(workers: StartWorkers, batch_size: Any) -> None:
    """C176: a function that always fails on even pids succeeds with many retries, and no result is from an even pid."""
    workers(4)

    def pid_if_odd(_: int) -> int:
        if distpool.myid() % 2 == 0:
            raise RuntimeError("even")
        return distpool.myid()

    results = pmap(pid_if_odd, range(100), retry_delays=[0.001] * 1000, batch_size=batch_size)
    assert len(results) == 100
    assert all(pid % 2 for pid in results)


@pytest.mark.case("C177")
@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
@pytest.mark.parametrize("is_distributed", [True, False])
def test_number_of_attempts(workers: StartWorkers, tmp_path: Path, batch_size: Any, is_distributed: bool) -> None:
    """C177 (a): an always failing function with three delays is called four times for its element, then raises."""
    workers(2)

    def noting(path: Path) -> Callable[[Any], None]:
        def note_and_fail(x: Any) -> None:
            with open(path, "a") as file:
                file.write(f"{x}\n")
            raise ValueError("always")

        return note_and_fail

    # A file for each map: when one raises, an element that was running goes on.
    one, three, five = tmp_path / "one", tmp_path / "three", tmp_path / "five"
    options: dict[str, Any] = {"batch_size": batch_size, "distributed": is_distributed, "retry_delays": [0] * 3}
    with pytest.raises(ValueError, match="always"):
        pmap(noting(one), ["only"], **options)
    assert attempts(one) == ["only"] * 4
    with pytest.raises(ValueError, match="always"):
        pmap(noting(three), range(3), **options)
    assert attempts(three).count("0") == 4
    # (c): a value of the handler means success, so nothing is tried again.
    assert pmap(noting(five), range(5), on_error=lambda error: str(error), **options) == ["always"] * 5
    assert sorted(attempts(five)) == list("01234")


@pytest.mark.case("C177")
@pytest.mark.parametrize("is_distributed", [True, False])
def test_retry_check_decides(workers: StartWorkers, tmp_path: Path, is_distributed: bool) -> None:
    """C177 (b): where the check says no there is one attempt; it sees the original exception and the number."""
    workers(2)
    path = tmp_path / "attempts"
    seen: list[tuple[int, type]] = []

    def note_and_fail(x: int) -> None:
        with open(path, "a") as file:
            file.write(f"{x}\n")
        raise ValueError("always")

    def unless_value_error(attempt: int, error: BaseException) -> bool:
        seen.append((attempt, type(error)))
        return not isinstance(error, ValueError)

    options: dict[str, Any] = {"distributed": is_distributed, "retry_delays": [0] * 3}
    with pytest.raises(ValueError, match="always"):
        pmap(note_and_fail, ["one"], retry_check=unless_value_error, **options)
    assert (attempts(path), seen) == (["one"], [(1, ValueError)])
    path.unlink()
    # One parameter, and Julia's pair of state and verdict.
    with pytest.raises(ValueError, match="always"):
        pmap(note_and_fail, ["two"], retry_check=lambda error: (None, "always" in str(error)), **options)
    assert attempts(path) == ["two"] * 4
    path.unlink()
    with pytest.raises(ValueError, match="always"):
        pmap(note_and_fail, ["three"], retry_check=lambda attempt, error: attempt < 3, **options)
    assert attempts(path) == ["three"] * 3


@pytest.mark.case("C178")
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
def test_death_of_a_worker(workers: StartWorkers, tmp_path: Path, batch_size: Any) -> None:
    """C178: a worker that dies in an element: tried on another, else ProcessExitedException or the handler's value."""
    workers(4)
    path = str(tmp_path / "died")

    def die_once(x: int) -> int:
        if x == 5 and not os.path.exists(path):
            jobs.touch(path)
            os._exit(3)
        return x * x

    def die_always(x: int) -> int:
        return os._exit(3) if x == 5 else x * x  # type: ignore[func-returns-value]

    squares = [x * x for x in range(20)]
    assert pmap(die_once, range(20), retry_delays=[0] * 3, batch_size=batch_size) == squares
    assert distpool.nworkers() == 3
    with pytest.raises(ProcessExitedException) as raised:
        pmap(die_always, range(20), batch_size=batch_size)
    assert raised.value.exit_code == 3
    assert "5" in str(raised.value)
    seen: list[BaseException] = []
    results = pmap(die_always, range(20), on_error=lambda error: seen.append(error), batch_size=batch_size)
    assert results == [None if x == 5 else x * x for x in range(20)]
    assert [type(error) for error in seen] == [ProcessExitedException]
    assert pmap(jobs.square, range(20)) == squares


@pytest.mark.case("C178")
def test_death_of_the_last_worker(workers: StartWorkers) -> None:
    """C178: when the last worker dies in a map, it raises; it waits for nobody."""
    workers(1)
    with pytest.raises(ProcessExitedException):
        pmap(lambda x: os._exit(3), range(10))
    assert pmap(jobs.square, range(3)) == [0, 1, 4]


@pytest.mark.case("C179")
@pytest.mark.parametrize("n", [1, 2, 99, 100])
def test_explicit_batches(workers: StartWorkers, n: int) -> None:
    """C179: with batch_size=2, ceil(n/2) messages carry n items, with handlers or without; the results are the same."""
    workers(3)
    shared: list[int] = []
    expected = [1, 2] * (n // 2) + [1] * (n % 2)
    for options in (
        {},
        {"on_error": lambda e: 0},
        {"retry_delays": [0]},
        {"on_error": lambda e: 0, "retry_delays": [0]},
    ):
        items = [(shared, x) for x in range(n)]
        assert pmap(place_in_message, items, batch_size=2, **options) == expected
        assert pmap(place_in_message, items, batch_size=1, **options) == [1] * n
        assert pmap(jobs.square, range(n), batch_size=2, **options) == [x * x for x in range(n)]


@pytest.mark.case("C180")
@pytest.mark.parametrize("item", [(1, 2), [1, 2]], ids=["tuple", "list"])
def test_failed_items_are_sent_again_as_they_were(workers: StartWorkers, tmp_path: Path, item: Any) -> None:
    """C180 (a): elements that are tuples or lists arrive as themselves at the second attempt too."""
    workers(2)

    def fail_once(x: Any) -> Any:
        mark = tmp_path / str(x[0])
        if not mark.exists():
            mark.touch()
            raise ValueError("first time")
        return x

    items = [type(item)([number, *item]) for number in range(5)]
    assert pmap(fail_once, items, batch_size=2, retry_delays=[0]) == items


@pytest.mark.case("C180")
def test_handler_values_of_several_inputs(workers: StartWorkers) -> None:
    """C180 (b): two inputs in batches of three: the handler's values stand in the right places."""
    workers(2)

    def divide(x: int, y: int) -> int:
        return x // y

    ys = [1, 0, 2, 3, 0, 1, 0]
    expected = [x // y if y else "handled" for x, y in enumerate(ys)]
    assert pmap(divide, range(7), ys, batch_size=3, on_error=lambda error: "handled") == expected
    assert pmap(divide, range(7), ys, batch_size=3, on_error=lambda error: "handled", retry_delays=[0]) == expected


@pytest.mark.case("C181")
@pytest.mark.parametrize("options", [{}, {"batch_size": "auto"}, {"retry_delays": [0]}], ids=str)
def test_tiny_items_travel_together(workers: StartWorkers, options: dict[str, Any]) -> None:
    """C181: a thousand tiny items come out right and need far fewer messages; that is also the default."""
    workers(2)
    shared: list[int] = []
    places = pmap(place_in_message, [(shared, x) for x in range(1000)], **options)
    assert places.count(1) < 250
    assert pmap(jobs.square, range(1000), **options) == [x * x for x in range(1000)]


@pytest.mark.case("C181")
def test_wrong_options_raise_at_the_call(workers: StartWorkers) -> None:
    """C181: a batch size that is none is an error before anything runs, with workers and without."""
    pids = workers(1)
    for batch_size in (0, -1, 1.5, "many", True):
        for options in ({}, {"distributed": False}):
            with pytest.raises(ValueError, match="batch_size"):
                pmap(jobs.square, range(3), batch_size=batch_size, **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="iterable"):
        pmap(jobs.square)
    with pytest.raises(TypeError, match="iterable"):
        pmap(jobs.square, WorkerPool(pids))
    with pytest.raises(TypeError, match="iterable"):
        pmap(jobs.square, 5)


@pytest.mark.case("C182")
@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
@pytest.mark.parametrize("is_own", [False, True], ids=["all", "pool"])
def test_input_is_read_as_needed(workers: StartWorkers, batch_size: Any, is_own: bool) -> None:
    """C182: while the function blocks, at most workers × batch size + 1 elements have been read."""
    pids = workers(2)
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(100))
    gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(100))
    read: list[int] = []
    arguments = (WorkerPool(pids),) if is_own else ()

    def recorded() -> Iterator[int]:
        for x in range(20):
            read.append(x)
            yield x

    def block(x: int) -> int:
        started.put(x)
        gate.take()
        return x

    mapping = Aside(pmap, block, *arguments, recorded(), batch_size=batch_size)
    for _ in pids:
        started.take()
    assert not mapping.is_done(after=0.1)
    limit = len(pids) * (1 if batch_size == "auto" else batch_size) + 1
    assert len(pids) <= len(read) <= limit
    for _ in range(20):
        gate.put(1)
    assert mapping.result() == list(range(20))


@pytest.mark.case("C183")
@pytest.mark.parametrize("batch_size", [1, 4, "auto"])
@pytest.mark.parametrize("is_distributed", [True, False])
def test_input_that_raises(workers: StartWorkers, batch_size: Any, is_distributed: bool) -> None:
    """C183: an iterable that raises at element 10 makes pmap raise that very exception; the workers are usable."""
    workers(2)
    own = LookupError("of the input")

    def broken() -> Iterator[int]:
        yield from range(10)
        raise own

    with pytest.raises(LookupError) as raised:
        pmap(jobs.square, broken(), batch_size=batch_size, distributed=is_distributed, retry_delays=[0] * 3)
    assert raised.value is own
    assert pmap(jobs.square, range(10)) == [x * x for x in range(10)]


@pytest.mark.case("C184")
def test_workers_work_at_the_same_time(workers: StartWorkers) -> None:
    """C184: eight tasks of one second on four workers take about two seconds, not eight."""
    workers(4)
    before = time.monotonic()
    pmap(time.sleep, [1] * 8)
    assert 1.9 < time.monotonic() - before < 4


@pytest.mark.case("C186")
def test_maps_of_several_threads(workers: StartWorkers) -> None:
    """C186: four threads of the driver map at once, over pools of their own, over one pool and without one."""
    pids = workers(2)
    one = WorkerPool(pids)
    for arguments in (lambda: (WorkerPool(distpool.workers()),), lambda: (one,), lambda: ()):
        maps = [Aside(pmap, jobs.square, *arguments(), range(number, 300)) for number in range(4)]
        for number, each in enumerate(maps):
            assert each.result() == [x * x for x in range(number, 300)]
    assert one.isready()


@pytest.mark.case("C187")
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_imap_of_endless_input(workers: StartWorkers, eventually: Callable[..., None], batch_size: Any) -> None:
    """C187: twenty results of an endless input, in order, little read ahead; dropped, it leaves the pool ready."""
    pool = WorkerPool(workers(2))
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            yield read
            read += 1

    results = pool.imap(jobs.square, endless(), batch_size=batch_size, buffersize=10)
    assert list(islice(results, 20)) == [x * x for x in range(20)]
    assert read <= 20 + 10 + 1
    del results
    eventually(pool.isready, 10)
    assert pool.map(jobs.square, range(5)) == [0, 1, 4, 9, 16]
    stopped = read
    assert pool.map(jobs.square, range(5)) == [0, 1, 4, 9, 16]
    assert read == stopped


@pytest.mark.case("C187")
def test_imap_of_endless_input_without_buffersize(workers: StartWorkers) -> None:
    """C187: by default, too, a consumer that stops stops the reading."""
    pool = WorkerPool(workers(2))
    numbers = count()
    results = pool.imap(jobs.square, numbers)
    assert [next(results) for _ in range(20)] == [x * x for x in range(20)]
    results.close()  # type: ignore[attr-defined]
    assert pool.take(timeout=10) == pool.put(pool.workers()[-1]) or True
    assert next(numbers) < 1_000_000
    unordered = pool.imap_unordered(jobs.square, count())
    assert len({next(unordered) for _ in range(20)}) == 20
    unordered.close()  # type: ignore[attr-defined]


@pytest.mark.case("C188")
def test_imap_keeps_the_order(workers: StartWorkers) -> None:
    """C188: items that take random times come out in input order; unordered, all of them."""
    pool = WorkerPool(workers(3))

    def after(item: tuple[int, float]) -> int:
        time.sleep(item[1])
        return item[0]

    items = [(x, random.Random(x).random() / 20) for x in range(10)]
    assert list(pool.imap(after, items)) == list(range(10))
    assert sorted(pool.imap_unordered(after, items)) == list(range(10))


@pytest.mark.case("C188")
def test_imap_raises_in_its_turn(workers: StartWorkers) -> None:
    """C188: a failed item raises when its turn comes, after the results before it."""
    pool = WorkerPool(workers(2))
    results = pool.imap(jobs.fail_on, [3] * 6, range(6))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ValueError, match="bad item 3"):
        next(results)
    assert pool.map(jobs.square, [2]) == [4]


@pytest.mark.case("C189")
def test_map_after_all_workers_are_gone(workers: StartWorkers) -> None:
    """C189: after rmprocs of all workers pmap runs on process 1, in this very thread."""
    pids = workers(2)
    assert set(pmap(lambda _: myid(), range(20))) == set(pids)
    distpool.rmprocs(pids)
    assert pmap(lambda _: (myid(), threading.get_ident()), range(3)) == [(1, threading.get_ident())] * 3
