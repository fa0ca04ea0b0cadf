"""Much of everything: many pools, many workers, many tasks, many threads, large data both ways, endless input.

Sizes are chosen for what they can show, times for a machine with two cores.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distpool import WorkerPool, remotecall_fetch
from support import chains, jobs
from support.aside import Aside
from support.jobs import add, os_pid_for, square

if TYPE_CHECKING:
    from conftest import StartWorkers

# How long chains of channels and calls run under load, in seconds; ten minutes have been run.
SOAK_SECONDS = float(os.environ.get("DISTPOOL_SOAK_SECONDS", "10"))


def test_a_thousand_pools_leave_nothing(run_script: Callable[..., Any]) -> None:
    """No process, thread, descriptor or mapping more than before: counted after the first and after the last pool."""
    code, out, err = run_script(
        """
        import threading
        import psutil
        from distpool import WorkerPool

        def count():
            me = psutil.Process()
            # Call threads are kept for reuse and end by themselves: how many there are depends on the machine's load.
            threads = [thread for thread in threading.enumerate() if thread.name != "distpool call"]
            assert threading.active_count() - len(threads) < 20
            return len(me.children(recursive=True)), len(threads), me.num_fds()

        def mappings():
            with open("/proc/self/maps") as maps:
                return sum("memfd" in line for line in maps)

        def server_descriptors():
            (server,) = psutil.Process().children()
            return server.num_fds()

        for number in range(1000):
            with WorkerPool(processes=1) as pool:
                assert pool.submit(abs, -number).result() == number
            if number == 10:  # call threads and the fork server's warm modules are there by now
                before = count(), mappings(), server_descriptors()
        after = count(), mappings(), server_descriptors()
        print("same" if after == before else (before, after))
        """,
        timeout=60,
    )
    assert (code, out, err) == (0, "same\n", "")


def test_two_hundred_workers_start_and_serve() -> None:
    """Each of them."""
    with WorkerPool(processes=200) as pool:
        assert len(pool) == 200
        assert pool.map(square, range(2000)) == [x * x for x in range(2000)]
        serving: set[int] = set()
        held = [pool.take() for _ in range(200)]
        assert len(set(held)) == 200
        for pid in held:
            pool.put(pid)
        serving.update(pool.map(os_pid_for, range(1000), batch_size=1))
        assert len(serving) > 1


def test_a_million_tiny_tasks() -> None:
    """All results, in order."""
    with WorkerPool(processes=2) as pool:
        assert pool.map(abs, range(-1_000_000, 0)) == list(range(1_000_000, 0, -1))


def test_large_data_in_both_directions_at_once() -> None:
    """Arguments and results far beyond what sockets hold, while both sides are sending: nobody waits for the other."""
    blobs = [bytes([x]) * 5_000_000 for x in range(12)]
    with WorkerPool(processes=2) as pool:
        assert pool.map(lambda blob: blob + b"!", blobs) == [blob + b"!" for blob in blobs]
        futures = [pool.submit(lambda blob: blob + b"?", blob) for blob in blobs]
        assert [future.result() for future in futures] == [blob + b"?" for blob in blobs]


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Runs `work(0)` to `work(count - 1)` in threads that begin together."""
    together = threading.Barrier(count)

    def begin(number: int) -> Any:
        together.wait()
        return work(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(begin, range(count)))


def test_two_pools_used_by_several_threads() -> None:
    """Maps, streams and calls of one thread do not disturb those of another."""
    with WorkerPool(processes=2) as first, WorkerPool(processes=2) as second:

        def work(number: int) -> bool:
            pool = (first, second)[number % 2]
            base = 1000 * number
            for _ in range(10):
                assert pool.map(square, range(base, base + 50)) == [x * x for x in range(base, base + 50)]
                assert list(pool.imap(square, range(base, base + 20))) == [x * x for x in range(base, base + 20)]
                assert pool.submit(add, base, number).result() == base + number
            return True

        assert in_threads(8, work) == [True] * 8


def test_fifty_threads_submit_to_one_pool() -> None:
    """Everyone gets their own results."""
    with WorkerPool(processes=2) as pool:

        def work(number: int) -> list[int]:
            futures = [pool.submit(add, number, x) for x in range(100)]
            return [future.result() for future in futures]

        assert in_threads(50, work) == [[number + x for x in range(100)] for number in range(50)]


def with_a_pool_inside(x: int) -> list[int]:
    """A task that has workers of its own."""
    with WorkerPool(processes=2) as pool:
        return pool.map(square, range(x))


def test_nested_pools() -> None:
    """A worker is the driver of its own workers; several at a time, and a level deeper."""
    with WorkerPool(processes=2) as pool:
        assert pool.map(with_a_pool_inside, range(6)) == [[x * x for x in range(n)] for n in range(6)]
        assert pool.submit(lambda: WorkerPool(processes=1).map(with_a_pool_inside, [3])).result() == [[0, 1, 4]]


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("buffersize", [None, 10])
def test_endless_input_with_a_slow_consumer_is_read_a_bounded_way_ahead(ordered: bool, buffersize: int | None) -> None:
    """However slow the consumer: counted after each result, with workers that have nothing else to do."""
    read = itertools.count()
    last = 0

    def endless() -> Iterator[int]:
        nonlocal last
        for last in read:  # noqa: UP028 -- the loop counts
            yield last

    ahead = 0
    with WorkerPool(processes=2) as pool:
        stream = (pool.imap if ordered else pool.imap_unordered)(square, endless(), buffersize=buffersize)
        for taken, _ in zip(range(1, 3000), stream, strict=False):
            if taken % 100 == 0:
                pool.submit(square, 1).result()  # time passes here: whatever could be read ahead is read
            ahead = max(ahead, last + 1 - taken)
        stream.close()  # type: ignore[attr-defined]
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
    # Without a given size: four envelopes for each worker, which hold a few milliseconds of tasks each, and the results
    # that came in one message, which are handed on together.
    assert ahead <= (buffersize or (4 * 2 + 1) * 16384)


@settings(max_examples=15)
@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 60), st.sampled_from([None, 1, 5])),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from(["close", "terminate", "leave"]),
)
def test_closing_with_half_consumed_iterators(streams: list[tuple[bool, int, int, int | None]], end: str) -> None:
    """Whatever has been taken from however many streams, the pool ends at once, and the iterators do not hang."""
    pool = WorkerPool(processes=2)
    iterators = []
    for ordered, take, total, buffersize in streams:
        source = (pool.imap if ordered else pool.imap_unordered)(square, iter(range(total)), buffersize=buffersize)
        taken = list(itertools.islice(source, take))
        assert len(taken) == min(take, total)
        if ordered:
            assert taken == [x * x for x in range(len(taken))]
        iterators.append(source)
    if end == "leave":
        for each in iterators:
            each.close()  # type: ignore[attr-defined]
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
    (pool.terminate if end == "terminate" else pool.close)()
    for each in iterators:
        each.close()  # type: ignore[attr-defined]


def test_an_iterator_of_a_terminated_pool_does_not_wait_for_ever() -> None:
    """The next result will never come, and it says so."""
    pool = WorkerPool(processes=2)
    results = pool.imap(square, itertools.count())
    assert next(results) == 0
    pool.terminate()
    with pytest.raises(Exception, match=r"closed|ended|removed|killed|exited"):
        for _ in results:
            pass


@pytest.fixture
def burners() -> Iterator[None]:
    """Another process on each core that does nothing but compute."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    yield
    for each in started:
        each.kill()
        each.wait()


def sizes(pids: list[int]) -> dict[str, list[int]]:
    """What each process keeps for references, and its descriptors."""
    return {
        "kept": [remotecall_fetch(chains.kept, pid) for pid in pids],
        "claims": [remotecall_fetch(chains.claims, pid) for pid in pids],
        "descriptors": [psutil.Process(remotecall_fetch(jobs.os_pid, pid)).num_fds() for pid in pids],
    }


@pytest.mark.slow
@pytest.mark.timeout(SOAK_SECONDS + 300)
@pytest.mark.usefixtures("burners")
def test_chains_of_channels_and_calls_under_load(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """Nothing hangs, each item arrives once, and all tables and descriptors return to where they were."""
    # The dump of all stacks after a minute reads them while they change: it has crashed the run. Whatever waits here
    # has a limit of its own.
    faulthandler.cancel_dump_traceback_later()
    pids = workers(3)
    everyone = [1, *pids]
    seeds = itertools.count(int(time.time()))
    for each in chains.ROUNDS:  # after it everyone knows everyone
        each(pids, random.Random(next(seeds)))
    before = sizes(everyone)
    end = time.monotonic() + SOAK_SECONDS

    def soak(offset: int) -> int:
        rounds = 0
        while time.monotonic() < end:
            seed = next(seeds)
            try:
                chains.ROUNDS[(offset + rounds) % len(chains.ROUNDS)](pids, random.Random(seed))
            except BaseException as error:
                raise AssertionError(f"round {rounds} of thread {offset}, seed {seed}") from error
            rounds += 1
        return rounds

    soaking = [Aside(soak, number) for number in range(8)]
    counts = [each.result(SOAK_SECONDS + 250) for each in soaking]
    print(f"{sum(counts)} rounds in {SOAK_SECONDS} s")
    assert min(counts) > 0

    now = before

    def has_returned() -> bool:
        nonlocal now
        now = sizes(everyone)
        return all(new <= old for key in before for new, old in zip(now[key], before[key], strict=True))

    try:
        eventually(has_returned)
    except AssertionError:
        pytest.fail(f"before: {before}, after: {now}")
