"""The worker's half of a pool: envelopes opened, run, and given back in part."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from socket import socketpair

import pytest

from distpool import WorkerPool
from distpool import messages as m
from distpool.bundles import bundle, unbundle
from distpool.envelopes import ONE
from distpool.errors import RemoteException
from distpool.member import Member
from distpool.peer import Peer
from distpool.pickling import Parcel, dump, load
from distpool.tasks import Tasks
from distpool.transport import Deadline, Reader, Waiter
from distpool.wire import Frame

WAIT = 20  # seconds; a limit for what should take none


class Driver:
    """Process 1, that sends envelopes by hand, and process 2, whose tasks run in this thread when told."""

    def __init__(self) -> None:
        self.reader = Reader()
        self.worker = Member(2, self.reader)
        self.driver = Member(1, self.reader)
        self.woken = Waiter()
        self.tasks = Tasks(self.worker, self.woken.complete, None)
        near, far = socketpair()
        self.peer: Peer = self.driver.connect(2, near)
        self.back: Peer = self.worker.connect(1, far)
        self.driver.actions[m.TASKS_DONE] = self.driver.actions[m.TAKEN_BACK] = self._arrived
        self.frames: list[Frame] = []
        self.news = Waiter()

    def _arrived(self, peer: Peer, frame: Frame) -> None:
        self.frames.append(frame)
        self.news.complete()

    def send(self, f: object, parcel: Parcel, count: int, flags: int = 0) -> None:
        """Sends a callable and one envelope, and waits until it is queued."""
        self.peer.send_parcel(m.FUNCTION, dump(f), ref=9)
        self.woken.done = False
        self.peer.send_parcel(m.TASKS, parcel, flags, 77, whence=count, ref=9)
        assert self.reader.wait(self.woken, Deadline(WAIT))

    def wait_for(self, kind: int, flag: int = 0) -> Frame:
        """Reads until such a message has come."""
        while True:
            self.news.done = False
            for frame in self.frames:
                if frame.kind == kind and frame.flags & flag == flag:
                    return frame
            assert self.reader.wait(self.news, Deadline(WAIT))

    def take_back(self, keep: int, request: int = 77) -> int:
        """Asks for what has not started; returns how many tasks the envelope then holds."""
        self.peer.send(m.TAKE_BACK, request=5, whence=keep, ref=request)
        return self.wait_for(m.TAKEN_BACK).whence

    def results(self) -> list[object]:
        """All results of the envelope, after its last part has come; an exception in its place."""
        self.wait_for(m.TASKS_DONE, m.FLAG_LAST)
        results: list[object] = []
        for frame in self.frames:
            if frame.kind == m.TASKS_DONE and frame.flags & m.FLAG_APART:
                items = unbundle(frame.body, frame.buffers)[1]  # type: ignore[arg-type]  # no segment
                results += [item.open() if item.ok else type(item.open().ex) for item in items]
            elif frame.kind == m.TASKS_DONE:
                results += load(frame.body, frame.buffers)  # type: ignore[arg-type]  # no segment
        return results


@pytest.fixture
def driver() -> Iterator[Driver]:
    """Both halves."""
    driver = Driver()
    yield driver
    driver.peer.close()
    driver.back.close()
    driver.reader.close()


def test_envelope_is_run_in_order(driver: Driver) -> None:
    """And its results come in order, with the last part marked."""
    driver.send(abs, dump((ONE, [-1, -2, -3])), 3)
    driver.tasks.run_next()
    assert driver.results() == [1, 2, 3]
    assert sum(frame.whence for frame in driver.frames) == 3


def test_task_that_raises_costs_only_itself(driver: Driver) -> None:
    """Its exception is in its place."""
    driver.send(abs, dump((ONE, [-1, "no number", -3])), 3)
    driver.tasks.run_next()
    assert driver.results() == [1, TypeError, 3]


def test_result_that_cannot_travel_costs_only_itself(driver: Driver) -> None:
    """Likewise."""
    driver.send(lambda x: threading.Lock() if x == 2 else x, dump((ONE, [1, 2, 3])), 3)
    driver.tasks.run_next()
    assert driver.results() == [1, TypeError, 3]


def test_items_sent_apart_are_opened_one_by_one(driver: Driver) -> None:
    """One that does not open costs only itself."""
    parts = [(True, dump(-1)), (True, Parcel(b"garbage", [], None, False)), (True, dump(-3))]
    driver.send(abs, bundle(parts, ONE), 3, m.FLAG_APART)
    driver.tasks.run_next()
    first, second, third = driver.results()
    assert (first, third) == (1, 3)
    assert isinstance(second, type)


def test_envelope_that_does_not_open_fails_each_of_its_tasks(driver: Driver) -> None:
    """As many errors as tasks."""
    driver.send(abs, Parcel(b"garbage", [], None, False), 4)
    driver.tasks.run_next()
    assert len(driver.results()) == 4


def test_unknown_callable_fails_the_tasks(driver: Driver) -> None:
    """And nothing else."""
    driver.send(abs, dump((ONE, [1])), 1)
    driver.peer.send(m.FORGET, ref=9)
    driver.woken.done = False
    driver.peer.send_parcel(m.TASKS, dump((ONE, [1])), 0, 78, whence=1, ref=9)
    assert driver.reader.wait(driver.woken, Deadline(WAIT))
    driver.tasks.run_next()
    assert driver.results() == [1]  # it waited as the callable was forgotten, and has its own link to it
    driver.frames.clear()
    driver.tasks.run_next()
    (error,) = driver.results()
    assert isinstance(error, type)


def test_envelope_that_waits_gives_up_all_but_what_it_shall_keep(driver: Driver) -> None:
    """None of those runs."""
    driver.send(abs, dump((ONE, list(range(10)))), 10)
    assert driver.take_back(4) == 4
    driver.tasks.run_next()
    assert driver.results() == [0, 1, 2, 3]


def test_running_envelope_gives_up_its_tail(driver: Driver) -> None:
    """The task that runs and those to keep are done, the rest is not; what was finished comes at once."""
    entered, gate = threading.Event(), threading.Event()
    _events[:] = [entered, gate]
    driver.send(_enter_and_wait, dump((ONE, list(range(10)))), 10)
    runner = threading.Thread(target=driver.tasks.run_next)
    runner.start()
    assert entered.wait(WAIT)
    left = driver.take_back(2)
    gate.set()
    runner.join(WAIT)
    assert left == 1 + 2
    assert driver.results() == [0, 1, 2]
    _events.clear()


_events: list[threading.Event] = []


def _enter_and_wait(number: int) -> int:
    entered, gate = _events
    entered.set()
    gate.wait(WAIT)
    return number


def test_taking_back_and_running_at_once_lose_no_task(driver: Driver) -> None:
    """Whatever the two do to each other: the number that was told is the number that is done."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(150):
            driver.frames.clear()
            driver.send(abs, dump((ONE, list(range(60)))), 60)
            runner = threading.Thread(target=driver.tasks.run_next)
            runner.start()
            left = driver.take_back(5)
            runner.join(WAIT)
            results = driver.results()
            assert results == list(range(60 if left == 2**64 - 1 else left))
    finally:
        sys.setswitchinterval(interval)


def test_unknown_envelope_has_nothing_to_give(driver: Driver) -> None:
    """All ones say so."""
    assert driver.take_back(0, request=12345) == 2**64 - 1


def test_tasks_run_in_the_main_thread_of_a_worker() -> None:
    """Libraries that need it work; and a task that waits for another of the same worker does not block it."""
    with WorkerPool(processes=1) as pool:
        names = pool.map(lambda _: __import__("threading").current_thread().name, range(3))
        assert set(names) == {"MainThread"}
        assert pool.map(lambda _: __import__("os").getpid(), range(3)) != [os.getpid()] * 3
        with pytest.raises(ZeroDivisionError) as caught:
            pool.map(lambda x: 1 // x, [1, 0])
        assert isinstance(caught.value, RemoteException)
