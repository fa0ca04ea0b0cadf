"""Numbered cases about the life of a cluster: callbacks and statuses, interrupts, ids and channels of references.

C046, C047 (section D), C009 a, C214, C215 and C242 to C244 (section N).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from conformance import deeds
from distpool import (
    Channel,
    RemoteChannel,
    RemoteException,
    addprocs,
    channel_from_id,
    interrupt,
    myid,
    procs,
    remotecall,
    remotecall_fetch,
    remoteref_id,
    rmprocs,
)
from distpool import lifecycle as life
from support import jobs

if TYPE_CHECKING:
    from conftest import RunScript, StartScript, StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


class Noted:
    """The four callbacks, each putting what it is told into a channel."""

    def __init__(self) -> None:
        self.said: Channel[tuple[Any, ...]] = Channel(100)

    def starting(self, manager: Any, params: Any) -> None:
        self.said.put(("starting", type(manager).__name__, "topology" in params))

    def started(self, pid: int) -> None:
        self.said.put(("started", pid))

    def exiting(self, pid: int) -> None:
        self.said.put(("exiting", pid, distpool.getstatus("work", pid)))

    def exited(self, pid: int, state: str) -> None:
        self.said.put(("exited", pid, state, distpool.getstatus("work", pid)))


@pytest.fixture
def noted() -> Iterator[Noted]:
    """Registered for the time of the test."""
    noted = Noted()
    life.add_worker_starting_callback(noted.starting, "noted")
    life.add_worker_started_callback(noted.started, "noted")
    life.add_worker_exiting_callback(noted.exiting, "noted")
    life.add_worker_exited_callback(noted.exited, "noted")
    yield noted
    life.remove_worker_starting_callback("noted")
    life.remove_worker_started_callback("noted")
    life.remove_worker_exiting_callback("noted")
    life.remove_worker_exited_callback("noted")


@pytest.mark.case("C046")
def test_callbacks_at_each_moment(noted: Noted) -> None:
    """C046: (a) before the launch, after joining, before the removal and after it, each with what it is about."""
    (pid,) = addprocs(1)
    assert noted.said.take(10) == ("starting", "LocalManager", True)
    assert noted.said.take(10) == ("started", pid)
    rmprocs(pid)
    assert noted.said.take(10) == ("exiting", pid, None)
    assert noted.said.take(10) == ("exited", pid, "terminated", None)
    assert not noted.said.isready()


@pytest.mark.case("C046")
def test_error_of_a_started_callback_comes_out_of_addprocs() -> None:
    """C046: (b) and the worker stays."""
    key = life.add_worker_started_callback(lambda pid: jobs.fail(f"not {pid}"))
    try:
        with pytest.raises(ValueError, match="not "):
            addprocs(1)
    finally:
        life.remove_worker_started_callback(key)
    (pid,) = distpool.workers()
    assert remotecall_fetch(myid, pid) == pid > 1


@pytest.mark.case("C046")
def test_callbacks_are_checked_when_they_are_added() -> None:
    """C046: (b) a wrong signature and a used key are errors at once; an unknown key as well."""
    with pytest.raises(TypeError, match="arguments"):
        life.add_worker_exited_callback(lambda pid: None)
    key = life.add_worker_started_callback(print, "mine")
    assert key == "mine"
    with pytest.raises(ValueError, match="mine"):
        life.add_worker_started_callback(print, "mine")
    life.remove_worker_started_callback("mine")
    with pytest.raises(KeyError):
        life.remove_worker_started_callback("mine")


@pytest.mark.case("C047")
def test_status_tells_what_a_dead_worker_was_doing(
    noted: Noted, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """C047: a worker that is killed is "exterminated"; its last status is there in the callback, then gone."""
    life.add_worker_exited_callback(lambda pid, state: jobs.fail("careless"), "careless")
    (pid,) = addprocs(1)
    for _ in range(2):
        noted.said.take(10)
    remotecall_fetch(distpool.setstatus, pid, "counting sheep", "work")
    assert distpool.getstatus("work", pid) == "counting sheep"
    with caplog.at_level(logging.WARNING, "distpool"):
        os.kill(remotecall_fetch(jobs.os_pid, pid), signal.SIGKILL)
        assert noted.said.take(10) == ("exited", pid, "exterminated", "counting sheep")
        eventually(lambda: distpool.getstatus("work", pid) is None)
    life.remove_worker_exited_callback("careless")
    assert "careless" in caplog.text
    with pytest.raises(ValueError, match="4711"):
        distpool.setstatus(1, "work", 4711)


@pytest.mark.case("C009")
def test_interrupting_nobody(run_script: RunScript) -> None:
    """C009: (a) without workers nothing happens."""
    assert run_script("from distpool import interrupt\nprint(interrupt())\n") == (0, "None\n", "")


@pytest.mark.case("C214")
def test_id_of_a_reference(workers: StartWorkers) -> None:
    """C214: the maker's pid and a number of its own; the owner stands beside it."""
    (worker,) = workers(1)
    refs: list[RemoteChannel[Any]] = [RemoteChannel(pid=worker) for _ in range(3)]
    ids = {remoteref_id(ref): ref for ref in refs}
    assert len(ids) == 3
    assert all(rrid.whence == 1 and ref.where == worker for rrid, ref in ids.items())
    made_there: RemoteChannel[Any] = remotecall_fetch(RemoteChannel, worker)
    assert (remoteref_id(made_there).whence, made_there.where) == (worker, worker)


@pytest.mark.case("C215")
def test_channel_of_an_id(workers: StartWorkers) -> None:
    """C215: at the owner the very channel; elsewhere, and for an id of nothing, LookupError."""
    (worker,) = workers(1)
    channel: Channel[str] = Channel(2)
    ref: RemoteChannel[str] = RemoteChannel(lambda: channel)
    assert channel_from_id(remoteref_id(ref)) is channel
    channel.put("seen")
    assert remotecall_fetch(distpool.take, worker, ref) == "seen"
    for bad in (remoteref_id(RemoteChannel(pid=worker)), (0, 0), (7, 7)):
        with pytest.raises(LookupError):
            channel_from_id(bad)


def say_and_block(started: RemoteChannel[int]) -> None:
    """Runs in a worker: say so, then sleep for a minute."""
    import time

    started.put(myid())
    time.sleep(60)


@pytest.mark.case("C242")
@pytest.mark.parametrize("requests", [1, 2])
def test_interrupt_stops_what_runs(workers: StartWorkers, requests: int) -> None:
    """C242: each running request fails with KeyboardInterrupt, soon; what comes later is not affected."""
    (worker,) = workers(1)
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(10))
    running = [remotecall(say_and_block, worker, started) for _ in range(requests)]
    assert [started.take(timeout=20) for _ in running] == [worker] * requests
    interrupt(worker)
    for future in running:
        with pytest.raises(RemoteException) as caught:
            future.fetch(timeout=5)
        assert isinstance(caught.value.captured.ex, KeyboardInterrupt)
    assert remotecall_fetch(myid, worker) == worker


@pytest.mark.case("C242")
def test_interrupted_taker_takes_nothing(workers: StartWorkers) -> None:
    """C242: a take by an interrupted request is withdrawn at the owner: the next item is somebody else's (D#28)."""
    w1, w2 = workers(2)
    started: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    gate: RemoteChannel[str] = RemoteChannel(lambda: Channel(1), w2)
    running = remotecall(deeds.say_and_wait, w1, started, gate)
    assert started.take(timeout=20) == w1
    interrupt(w1)
    with pytest.raises(RemoteException):
        running.fetch(timeout=5)
    assert remotecall_fetch(myid, w1) == w1
    gate.put("for me")
    assert gate.take(timeout=5) == "for me"


@pytest.mark.case("C243")
def test_idle_workers_survive_interrupts(workers: StartWorkers) -> None:
    """C243: (a) one by its pid, all, just after they came, many times; (b) only process 1 may."""
    w1, w2 = workers(2)
    interrupt(w1)
    for _ in range(20):
        interrupt()
    assert [remotecall_fetch(myid, pid) for pid in (w1, w2)] == [w1, w2]
    interrupt(1)
    with pytest.raises(RuntimeError, match="process 1") as caught:
        remotecall_fetch(interrupt, w1, w2)
    assert isinstance(caught.value, RemoteException)
    with pytest.raises(ValueError, match="4711"):
        interrupt(4711)


@pytest.mark.case("C244")
def test_terminal_interrupt_is_the_drivers_alone(start_script: StartScript) -> None:
    """C244: SIGINT to the driver's process group, as a terminal sends it, leaves its workers as they are."""
    script = start_script(
        """
        import os, signal
        from distpool import *
        before = sorted(addprocs(2))
        try:
            os.killpg(0, signal.SIGINT)
            signal.pause()
        except KeyboardInterrupt:
            pass
        print([remotecall_fetch(myid, pid) for pid in before] == before == workers())
        """
    )
    finished = script.wait(30)
    assert (finished[0], finished[1]) == (0, "True\n")


def test_bound_channel_closes_with_its_producer(workers: StartWorkers) -> None:
    """A consumer of a channel that is bound to its producer does not wait for a dead one (D#29)."""
    w1, w2 = workers(2)
    for owner in (1, w2):
        (producer,) = addprocs(1)
        channel: RemoteChannel[str] = RemoteChannel(lambda: Channel(2), owner)
        assert channel.bind(producer) is channel
        channel.put("left over")
        if owner == 1:
            rmprocs(producer)
        else:
            os.kill(remotecall_fetch(jobs.os_pid, producer), signal.SIGKILL)
        assert channel.take() == "left over"
        with pytest.raises(distpool.ProcessExitedException) as caught:
            channel.take(timeout=20)
        assert f"{producer}" in str(caught.value)
        with pytest.raises(distpool.ProcessExitedException):
            RemoteChannel(lambda: Channel(2), owner).bind(producer).take(timeout=20)
    with pytest.raises(ValueError, match="4711"):
        RemoteChannel(pid=w1).bind(4711)


@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_channel_operations_that_do_not_wait(workers: StartWorkers, owner_is_me: bool) -> None:
    """try_put, try_take and try_fetch look once (J#58934)."""
    (worker,) = workers(1)
    channel: RemoteChannel[str] = RemoteChannel(lambda: Channel(1), myid() if owner_is_me else worker)
    assert channel.try_take("none") == channel.try_fetch("none") == "none"
    assert (channel.try_put("a"), channel.try_put("b")) == (True, False)
    assert channel.try_fetch("none") == channel.try_take("none") == "a"
    assert channel.try_take("none") == "none"
    with channel:
        pass
    assert not channel.isopen()
    with pytest.raises(distpool.ChannelClosedError):
        channel.try_take()


@pytest.mark.parametrize("owner_is_me", [True, False], ids=["here", "worker"])
def test_released_reference(workers: StartWorkers, owner_is_me: bool) -> None:
    """release() gives the value up at once; the handle is of no use, the same reference may come again."""
    (worker,) = workers(1)
    owner = myid() if owner_is_me else worker
    future = remotecall(jobs.identity, owner, 5)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(1), owner)
    future.wait()
    kept: RemoteChannel[Any] = RemoteChannel(lambda: Channel(1))
    kept.put(channel)
    rrids = [tuple(remoteref_id(future)), tuple(remoteref_id(channel))]
    for ref in (future, channel):
        ref.release()
        ref.release()
        with pytest.raises(RuntimeError, match="release"):
            ref.fetch()
        with pytest.raises((RuntimeError, TypeError), match="release"):
            remotecall_fetch(jobs.identity, worker, ref)
    assert not remotecall_fetch(deeds.refs_has, owner, rrids[0])
    assert procs() == [1, worker]
