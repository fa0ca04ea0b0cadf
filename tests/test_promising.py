"""What drop-ins build on: calls and maps whose outcomes go where they say, pools that start or end in their own way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distpool import Outcome, ProcessExitedException, Waiter, WorkerPool
from support import faults, jobs
from support.leaks import eventually


class Note:
    """The smallest promise: keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.outcome: Any = None
        self.waiter = Waiter()
        self.is_wanted = True

    def leave(self) -> bool:
        self.told.append("leave")
        return self.is_wanted

    def come_back(self) -> None:
        self.told.append("come back")

    def cancelled(self) -> bool:
        return not self.is_wanted

    def resolve(self, outcome: Any, /) -> None:
        self.told.append("resolve")
        self.outcome = outcome
        self.waiter.complete()


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(processes=1) as pool:
        yield pool


def test_submit_into(pool: WorkerPool) -> None:
    """A plain value comes opened; what is not plain, and failures, as outcomes that are opened when asked."""
    note = Note()
    pool.submit_into(note, jobs.echo, 1, promise=2, f=3)
    assert pool.wait_for(note.waiter)
    assert note.told == ["leave", "resolve"]
    assert note.outcome == ((1,), {"promise": 2, "f": 3})

    strange, failed, explosive = Note(), Note(), Note()
    pool.submit_into(strange, Note)
    pool.submit_into(failed, jobs.fail, "boom")
    pool.submit_into(explosive, jobs.make_poison)
    for note in (strange, failed, explosive):
        assert pool.wait_for(note.waiter)
        assert isinstance(note.outcome, Outcome)
    assert strange.outcome.ok
    assert isinstance(strange.outcome.value(), Note)
    assert not failed.outcome.ok
    assert isinstance(failed.outcome.exception(), ValueError)
    assert failed.outcome.exception().captured.stage == ""
    assert explosive.outcome.ok  # as far as anybody knows before it is opened
    with pytest.raises(RuntimeError, match="this payload does not open"):
        explosive.outcome.value()
    with pytest.raises(TypeError, match=r"args\[0\]"):
        pool.submit_into(Note(), jobs.identity, threading.Lock())


def test_a_failure_says_whether_the_function_was_called(pool: WorkerPool) -> None:
    """Arguments that do not open, results that cannot be pickled."""
    for f, args, stage in ((jobs.identity, (jobs.Poison(),), "opening"), (jobs.make_lock, (), "packing")):
        note = Note()
        pool.submit_into(note, f, *args)
        assert pool.wait_for(note.waiter)
        assert note.outcome.exception().captured.stage == stage


def test_resolved_by_the_thread_that_waits(pool: WorkerPool) -> None:
    """No hand-over: who waits for a promise reads its outcome itself."""

    class Where(Note):
        def resolve(self, outcome: Any, /) -> None:
            self.thread = threading.current_thread()
            super().resolve(outcome)

    pool.submit(abs, -1).result()
    notes = [Where() for _ in range(20)]
    for note in notes:
        pool.submit_into(note, jobs.square, 3)
        assert pool.wait_for(note.waiter)
    assert threading.current_thread() in {note.thread for note in notes}
    late = Note()
    pool.submit_into(late, time.sleep, 0.2)
    assert not pool.wait_for(late.waiter, timeout=0.01)
    pool.attend()
    eventually(lambda: late.told[-1] == "resolve")  # in the background


def test_unwanted_calls_are_not_sent(pool: WorkerPool, tmp_path: Path) -> None:
    """``leave`` decides; ``sweep`` lets those go that are cancelled, and brings back what was sent ahead."""
    note = Note()
    note.is_wanted = False
    pool.submit_into(note, jobs.touch, str(tmp_path / "never"))
    assert note.told == ["leave"]

    os.mkfifo(tmp_path / "go")
    first, waiting = Note(), [Note() for _ in range(3)]
    pool.submit_into(first, jobs.touch_and_wait, str(tmp_path / "begun"), str(tmp_path / "go"))
    for each in waiting:
        pool.submit_into(each, jobs.square, 2)
    eventually(lambda: (tmp_path / "begun").exists())
    waiting[1].is_wanted = False
    pool.sweep()
    with open(tmp_path / "go", "w"):
        pass
    for each in (first, waiting[0], waiting[2]):
        assert pool.wait_for(each.waiter, 30)
    assert "resolve" not in waiting[1].told
    assert not (tmp_path / "never").exists()


def test_stop_call(pool: WorkerPool, tmp_path: Path) -> None:
    """It is interrupted where it runs."""
    note = Note()
    pool.submit_into(note, jobs.touch_and_block, str(tmp_path / "begun"))
    eventually(lambda: (tmp_path / "begun").exists())
    pool.stop_call(note)
    assert pool.wait_for(note.waiter, 30)
    assert isinstance(note.outcome.exception().unwrap(), KeyboardInterrupt)
    pool.stop_call(note)  # done: of no effect
    assert pool.submit(abs, -1).result() == 1


# -- streams


def test_a_stream_begins_at_once(pool: WorkerPool, tmp_path: Path) -> None:
    """Whether or not anybody takes results; all input is read."""
    stream = pool.stream(jobs.touch, [str(tmp_path / str(n)) for n in range(50)])
    eventually(lambda: stream.is_finished)
    assert len(list(tmp_path.iterdir())) == 50
    assert [os.path.basename(path) for path in stream.outcomes()] == [str(n) for n in range(50)]
    stream.close()


def test_chunks(pool: WorkerPool) -> None:
    """Lists in order; in each all are values, or all are outcomes."""
    stream = pool.stream(pow, zip(range(5000), [1] * 5000, strict=True), star=True)
    chunks = list(stream.chunks())
    assert [x for chunk in chunks for x in chunk] == list(range(5000))
    assert len(chunks) < 2500
    stream = pool.stream(jobs.fail_on, [3] * 6, range(6), batch_size=6)
    outcomes = list(stream.outcomes())
    assert [isinstance(each, Outcome) and not each.ok for each in outcomes] == [False] * 3 + [True] + [False] * 2


def test_a_limit_of_time(pool: WorkerPool, tmp_path: Path) -> None:
    """The iterator is spent, the stream is not."""
    os.mkfifo(tmp_path / "go")
    stream = pool.stream(jobs.touch_and_wait, [str(tmp_path / "begun")], [str(tmp_path / "go")])
    with pytest.raises(TimeoutError, match="touch_and_wait"):
        list(stream.outcomes(timeout=0.01))
    with open(tmp_path / "go", "w"):
        pass
    assert len(list(stream.outcomes())) == 1


def test_stopping_a_stream(pool: WorkerPool) -> None:
    """What was sent is done, then its error is raised."""
    stream = pool.stream(time.sleep, [0.01] * 1000)
    results = stream.outcomes()
    next(results)
    stream.stop(OSError("enough"))
    with pytest.raises(OSError, match="enough"):
        list(results)
    assert stream.is_finished


def test_forsaken_streams_are_done(pool: WorkerPool, tmp_path: Path) -> None:
    """And what they keep is kept until then."""
    kept = Note()
    stream = pool.stream(jobs.touch, [str(tmp_path / str(n)) for n in range(200)], buffersize=2)
    stream.keep(kept)
    stream.forsake()
    del stream
    eventually(lambda: len(list(tmp_path.iterdir())) == 200)


# -- how pools start and end


def test_a_pool_that_starts_in_the_background(tmp_path: Path) -> None:
    """The constructor does not wait for the initializer; tasks do; the end waits for both."""
    os.mkfifo(tmp_path / "go")
    begun = str(tmp_path / "begun")
    with WorkerPool(
        processes=1, initializer=jobs.touch_and_wait, initargs=(begun, str(tmp_path / "go")), wait=False
    ) as pool:
        future = pool.submit(jobs.square, 3)
        eventually(lambda: os.path.exists(begun))
        assert not future.done()
        with open(tmp_path / "go", "w"):
            pass
        assert future.result(30) == 9
        assert pool.broken is None


def test_a_start_in_the_background_that_fails() -> None:
    """Each task raises what the constructor would have raised."""
    with WorkerPool(processes=2, initializer=faults.fail_to_initialize, wait=False) as pool:
        future = pool.submit(abs, 1)
        with pytest.raises(ValueError, match="the initializer failed"):
            future.result(30)
        with pytest.raises(ValueError, match="the initializer failed"):
            pool.map(abs, [1])
        assert isinstance(pool.broken, ValueError)


def test_closing_before_the_start_is_over() -> None:
    """Nothing is left, as the leak check sees."""
    for end in (WorkerPool.close, WorkerPool.terminate):
        end(WorkerPool(processes=2, wait=False))


def test_a_pool_that_ends_with_its_first_death() -> None:
    """What runs elsewhere is killed, what waits fails, later tasks fail, all with the death that began it."""
    with WorkerPool(processes=2, replace=False) as pool:
        long = [pool.submit(time.sleep, 600) for _ in range(3)]
        os.kill(next(iter(pool.os_pids().values())), 9)
        for each in long:
            with pytest.raises(ProcessExitedException):
                each.result(30)
        assert isinstance(pool.broken, ProcessExitedException)
        assert "SIGKILL" in str(pool.broken)
        with pytest.raises(ProcessExitedException):
            pool.submit(abs, 1).result(30)


def test_terminate_while_close_waits(tmp_path: Path) -> None:
    """One thread closes and waits for a task that never ends; another ends the pool."""
    pool = WorkerPool(processes=1)
    future = pool.submit(jobs.touch_and_block, str(tmp_path / "begun"))
    eventually(lambda: (tmp_path / "begun").exists())
    closing = threading.Thread(target=pool.close)
    closing.start()
    eventually(lambda: "closed" in repr(pool))
    pool.terminate(signal=15)
    closing.join(30)
    assert not closing.is_alive()
    with pytest.raises(ProcessExitedException):  # by the signal, or because it was asked to end: whichever came first
        future.result(0)
    pool.terminate()


@pytest.mark.parametrize("option", [{"wait": False}, {"replace": False}])
def test_for_workers_of_its_own_only(option: dict[str, Any]) -> None:
    """There is nothing to start or replace in a pool over given processes."""
    with pytest.raises(TypeError, match="replace= and wait= are for workers of the pool's own"):
        WorkerPool([1], **option)
