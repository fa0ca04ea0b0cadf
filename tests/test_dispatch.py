"""Who gets what, when: with two real workers, and judged by the order of events, not by time."""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest

from distpool import WorkerPool
from distpool.dispatch.ledger import Ledger
from distpool.dispatch.results import Results
from distpool.dispatch.slots import Shipment, Slot
from distpool.envelopes import CALL
from distpool.errors import ProcessExitedException
from distpool.jobs import MapJob
from distpool.member import Member
from distpool.transport import Reader

WAIT = 30  # seconds; a limit for what should take none


@pytest.fixture(scope="module")
def shared_pool() -> Iterator[WorkerPool]:
    """One pool for all tests of this file: none of them ends it."""
    with WorkerPool(processes=2) as pool:
        pool.map(abs, range(100))
        yield pool


@pytest.fixture
def pool(shared_pool: WorkerPool) -> WorkerPool:
    """Two real workers, both idle."""
    while len(shared_pool.workers()) < 2:
        shared_pool.wait(WAIT)
    return shared_pool


@pytest.fixture
def gate(tmp_path: Path) -> str:
    """A pipe with a name: whoever reads it blocks until somebody opens it for writing."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    return str(path)


def open_gate(path: str) -> None:
    """Lets whoever waits at the gate pass."""
    with open(path, "w"):
        pass


def test_single_task_behind_another_envelope_can_be_taken_back() -> None:
    """The one before it may take for ever."""
    reader, (ours, theirs) = Reader(), socket.socketpair()
    member = Member(1, reader)
    ledger = Ledger()
    ledger.add(Slot(2, member.connect(2, ours), None))
    ledger.add(Slot(3, None, None))  # idle
    job = MapJob(abs, ([-1, -2],))
    job.learn(1, 0.001)  # short enough for two envelopes at a time
    shipments = []
    for run in (job.next_run(1), job.next_run(1)):
        assert run is not None
        shipments.append(Shipment(Results.__new__(Results), job, ledger.slots()[0], run))
        ledger.slots()[0].reserved += 1
        job.reserved += 1
        ledger.book(shipments[-1], 1)
    _, chosen = ledger.mark_recalls(lambda candidates, idle: [(shipment, 0) for shipment in candidates])
    assert [shipment for shipment, _ in chosen] == shipments[1:]
    theirs.close()
    reader.close()
    ours.close()


def test_room_is_seen_as_soon_as_the_results_are_there() -> None:
    """Also while the thread that sent the tasks is not yet back: nobody would tell those who found no room."""
    ledger = Ledger()
    ledger.add(Slot(2, None, None))
    job = MapJob(abs, ([-1],))
    (slot, size), run = ledger.reserve(job, 1), job.next_run(1)
    assert slot is not None
    assert run is not None
    assert not ledger.is_idle()
    shipment = Shipment(Results.__new__(Results), job, slot, run)
    ledger.book(shipment, size)
    assert not ledger.is_idle()
    ledger.progress(shipment, 1, is_last=True)
    assert ledger.is_idle()
    assert not ledger.is_busy_with(job)


def test_results_are_never_pickled_by_the_reading_thread(pool: WorkerPool, gate: str) -> None:
    """One that is sent while the next task runs is pickled elsewhere: its own code may take long, or wait for us."""

    class Tells:
        def __reduce__(self) -> tuple[object, ...]:
            return str, (threading.current_thread().name,)

    def work(number: int) -> object:
        if number == 2:
            with open(gate) as file:
                file.read()
        return Tells()

    results = pool.imap(work, range(3), batch_size=3)
    names = [next(results), next(results)]  # the second cannot be sent by the runner, which is in the third
    open_gate(gate)
    assert not any("reader" in str(name) for name in names)
    assert next(results) == "MainThread"


def test_stream_can_be_dropped_by_a_thread_that_holds_the_lock(
    pool: WorkerPool, eventually: Callable[..., None]
) -> None:
    """As a garbage collection may do, at whatever line: nothing is waited for, and the tasks are dropped soon after."""
    ledger = pool._dispatch._ledger
    results = pool.imap(abs, count())
    assert next(results) == 0
    (job,) = (job for job in ledger._jobs if job.f is abs and not job.is_stopped and job.how != CALL)
    with ledger._lock:
        del results
    assert job.is_stopped
    eventually(lambda: not job.is_listed)


def known_functions(pool: WorkerPool) -> list[set[int]]:
    """The numbers of the callables that each worker keeps for us."""
    return [set(slot.peer.known_functions) for slot in pool._dispatch._ledger.slots() if slot.peer is not None]


def test_what_waits_behind_a_long_task_is_taken_back(pool: WorkerPool, gate: str) -> None:
    """All short tasks of a mix are done while the long one still runs, whatever envelope they were in."""

    def work(number: int) -> int:
        if number == 1000:
            with open(gate) as file:
                file.read()
        return number

    results = pool.imap_unordered(work, range(3000))
    early = [next(results) for _ in range(2999)]
    assert sorted([*early, 1000]) == list(range(3000))
    open_gate(gate)
    assert list(results) == [1000]


def test_long_task_first(pool: WorkerPool, gate: str) -> None:
    """Likewise when nothing is known of the durations yet."""

    def work(number: int) -> int:
        if number == 0:
            with open(gate) as file:
                file.read()
        return number

    results = pool.imap_unordered(work, range(200))
    assert 0 not in [next(results) for _ in range(199)]
    open_gate(gate)
    assert list(results) == [0]


@pytest.mark.parametrize("size", [1, 10, 33])
def test_explicit_batch_size_is_honoured(pool: WorkerPool, size: int) -> None:
    """Each batch is run by one worker, and none is divided; who runs how many is not promised."""
    ran = pool.map(lambda _: __import__("os").getpid(), range(330), batch_size=size)
    batches = [ran[start : start + size] for start in range(0, 330, size)]
    assert all(len(set(batch)) == 1 for batch in batches)


def test_every_task_is_run_once(pool: WorkerPool, tmp_path: Path) -> None:
    """Though envelopes are taken back all the time, towards the end of each map."""
    path = str(tmp_path / "ran")

    def work(number: int) -> int:
        import time

        if number % 97 == 0:
            time.sleep(0.01)  # the task's own work, of uneven length
        file = __import__("os").open(path, 0o2001 | 0o100)  # append, create
        __import__("os").write(file, b"%d\n" % number)
        __import__("os").close(file)
        return number

    assert pool.map(work, range(1500)) == list(range(1500))
    ran = Counter(Path(path).read_text().split())
    assert len(ran) == 1500
    assert set(ran.values()) == {1}


def test_timeout_costs_only_the_task_that_took_too_long(pool: WorkerPool) -> None:
    """It is interrupted and fails with TimeoutError; everyone else has a result."""

    def work(number: int) -> int:
        while number == 5:
            pass
        return number

    results = pool.map(work, range(50), timeout=0.2, on_error=lambda error: type(error).__name__)
    assert results[5] != 5
    assert "TimeoutError" in str(results[5])
    assert results[:5] + results[6:] == [*range(5), *range(6, 50)]


def test_function_is_sent_and_opened_once_per_worker(pool: WorkerPool, tmp_path: Path) -> None:
    """However many envelopes there are."""
    path = str(tmp_path / "opened")

    class Function:
        def __getstate__(self) -> dict[str, str]:
            return {"path": path}

        def __setstate__(self, state: dict[str, str]) -> None:
            with open(state["path"], "a") as file:
                file.write("opened\n")

        def __call__(self, number: int) -> int:
            return __import__("os").getpid()  # type: ignore[no-any-return]

    pids = set(pool.map(Function(), range(500), batch_size=5))
    assert len(pids) == 2
    assert Path(path).read_text().split() == ["opened"] * 2


def test_workers_forget_the_function_after_a_map(pool: WorkerPool) -> None:
    """What they keep is as before, on both sides."""
    before = known_functions(pool)
    pool.map(lambda number: number, range(100))
    list(pool.imap(lambda number: number, range(100)))
    assert known_functions(pool) == before


def test_one_job_does_not_starve_another(pool: WorkerPool) -> None:
    """Two jobs take turns: a map ends though a stream without end is being consumed."""
    stop = threading.Event()
    consumed: list[int] = []

    def consume() -> None:
        for number in pool.imap(lambda number: number, count()):
            consumed.append(number)
            if stop.is_set():
                return

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert pool.map(abs, range(-1000, 0)) == list(range(1000, 0, -1))
    stop.set()
    consumer.join(WAIT)
    assert consumed == list(range(len(consumed)))


def test_single_calls_come_from_many_threads(pool: WorkerPool) -> None:
    """The same new function, first submitted by several threads at once: no task overtakes it."""
    for _ in range(20):
        f = eval("lambda number: number + 1")
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda n=number, f=f, to=results: to.append(pool.submit(f, n).result(WAIT)))
            for number in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        assert sorted(results) == [1, 2, 3, 4, 5, 6]


def test_taken_worker_gets_no_task(pool: WorkerPool) -> None:
    """Until it is put back."""
    held = pool.take(WAIT)
    used = set(pool.map(lambda _: __import__("os").getpid(), range(100), batch_size=1))
    assert len(used) == 1
    pool.put(held)
    pool.put(held)  # harmless to repeat
    other = pool.take(WAIT)
    pool.put(other)


def test_take_waits_for_a_free_worker(pool: WorkerPool) -> None:
    """TimeoutError when there is none in time; putting one back wakes whoever waits."""
    held = [pool.take(WAIT), pool.take(WAIT)]
    assert sorted(held) == sorted(pool.workers())
    assert not pool.isready()
    with pytest.raises(TimeoutError):
        pool.take(0.01)
    taken: list[int] = []
    waiting = threading.Thread(target=lambda: taken.append(pool.take(WAIT)))
    waiting.start()
    pool.put(held[0])
    waiting.join(WAIT)
    assert taken == [held[0]]
    for pid in held:
        pool.put(pid)


def test_two_workers_put_back_at_once_wake_two(pool: WorkerPool) -> None:
    """Each wakes a thread of its own, however close together they come."""
    for _ in range(50):
        held = [pool.take(WAIT), pool.take(WAIT)]
        taken: list[int] = []
        threads = [threading.Thread(target=lambda: taken.append(pool.take(WAIT))) for _ in held]  # noqa: B023
        for thread in threads:
            thread.start()
        for pid in held:
            pool.put(pid)
        for thread in threads:
            thread.join(WAIT)
        assert sorted(taken) == sorted(held)
        for pid in held:
            pool.put(pid)


def test_item_that_cannot_be_pickled_costs_only_itself(pool: WorkerPool) -> None:
    """With the others of its envelope done."""
    items: list[object] = [*range(40), threading.Lock(), *range(40)]
    results = pool.map(lambda item: item, items, on_error=lambda error: type(error).__name__)
    assert results[40] == "TypeError"
    assert results[:40] + results[41:] == [*range(40), *range(40)]


def test_dropped_stream_stops(pool: WorkerPool, tmp_path: Path) -> None:
    """What has not started never does, and the pool is free for others."""
    results = pool.imap(lambda number: number, count())
    assert [next(results) for _ in range(100)] == list(range(100))
    results.close()  # type: ignore[attr-defined]
    assert pool.map(abs, [-1]) == [1]
    assert all(job.how == 2 or job.is_stopped for job in pool._dispatch._ledger._jobs)


def test_task_that_kills_its_worker_fails_and_the_others_do_not() -> None:
    """Its error says what ran; the rest of its envelope is run elsewhere."""

    def work(number: int) -> int:
        if number == 300:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with WorkerPool(processes=2) as pool:
        results = pool.map(work, range(600), on_error=lambda error: error)
        assert isinstance(results[300], ProcessExitedException)
        assert "300" in str(results[300])
        assert results[:300] + results[301:] == [*range(300), *range(301, 600)]
