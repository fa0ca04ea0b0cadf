"""Hosts that vanish without a word, and hosts that are merely stuck."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

import distpool
from distpool.tcp import tune
from distpool.vanishing import HOST_SECONDS, host_timeout
from support import elsewhere, jobs
from support.listeners import Addresses, listening


class Meeting(Addresses):
    """Whose workers dial each other."""

    workers_meet = True


LIMIT = "2"  # seconds, of the tests here
# What a limit of two seconds may take on a busy machine; without any of this it would be a quarter of an hour.
PATIENCE = 30.0


@pytest.fixture
def host(no_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[elsewhere.Host]:
    """Another host, which counts as gone after two seconds."""
    if reason := elsewhere.why_not():
        pytest.skip(reason)
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", LIMIT)
    with elsewhere.another_host() as host:
        yield host
        pids = [pid for pid in distpool.workers() if pid != 1]
        if pids:
            distpool.rmprocs(*pids, waitfor=PATIENCE)


# -- the limit ---------------------------------------------------------------------------------------------------------


def test_the_limit_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a default, and nonsense is named."""
    monkeypatch.delenv("DISTPOOL_HOST_TIMEOUT", raising=False)
    assert host_timeout() == HOST_SECONDS
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", "7.5")
    assert host_timeout() == 7.5
    for wrong in ("", "soon", "0", "-3", "nan", "inf", "40000"):
        monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", wrong)
        with pytest.raises(ValueError, match="it is a number of seconds, from 1"):
            host_timeout()


@pytest.mark.parametrize("seconds", [1, 2, 10, 45, 3600])
def test_the_kernel_asks_in_time(seconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence and questions together take the limit, a quarter or a second more, and not less."""
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", str(seconds))
    with socket.socket() as stream:
        tune(stream)
        assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
        idle, interval, count = (stream.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in names)
        assert seconds <= idle + interval * count <= max(1.25 * seconds, seconds + 1)


# -- gone --------------------------------------------------------------------------------------------------------------


def test_a_map_survives_a_vanished_host(host: elsewhere.Host, record_property: Callable[[str, object], None]) -> None:
    """Its tasks are run by the others, the error says what happened, and the worker there ends by itself."""
    with host.listener() as listener:
        near = distpool.addprocs(2)
        (far,) = distpool.addprocs(Addresses(listener))
        pool = distpool.WorkerPool([*near, far])
        vanished, results = 0.0, []
        for done in pool.imap_unordered(elsewhere.myself_soon, range(600), retry_delays=[0.0]):
            results.append(done)
            if done == far and not vanished:
                host.vanish()
                vanished = time.monotonic()
        assert vanished, "it had part in the work"
        assert len(results) == 600
        assert {*results[-20:]} <= {*near}
        with pytest.raises(distpool.ProcessExitedException, match="its host has not answered for 2 s"):
            distpool.remotecall_fetch(os.getpid, far)
        record_property("seconds_to_the_end_of_the_map", time.monotonic() - vanished)
        assert listener.process.wait(PATIENCE) == 1, "it has noticed, too"


@pytest.mark.parametrize("deed", ["nothing", "computing"])
def test_a_silent_connection_ends(host: elsewhere.Host, deed: str) -> None:
    """A worker that has nothing to say, and a driver that waits: both sides notice."""
    with host.listener() as listener:
        (far,) = distpool.addprocs(Addresses(listener))
        if deed == "computing":
            future = distpool.remotecall(time.sleep, far, 1000)
        begun = time.monotonic()
        host.vanish()
        if deed == "computing":
            with pytest.raises(distpool.ProcessExitedException, match="its host has not answered"):
                distpool.fetch(future)
        while far in distpool.workers():
            time.sleep(0.01)
            assert time.monotonic() - begun < PATIENCE
        assert listener.process.wait(PATIENCE) == 1


def test_data_that_is_not_taken(host: elsewhere.Host) -> None:
    """A large argument is on its way, and a worker that does not read it, when its host vanishes."""
    with host.listener() as listener:
        (far,) = distpool.addprocs(Addresses(listener))
        os.kill(listener.process.pid, signal.SIGSTOP)
        future = distpool.remotecall(len, far, bytearray(12 << 20))
        time.sleep(0.5)  # the kernels' buffers are full, and the other side says so
        host.vanish()
        with pytest.raises(distpool.ProcessExitedException, match="its host has not answered"):
            distpool.fetch(future)
        os.kill(listener.process.pid, signal.SIGCONT)
        assert listener.process.wait(PATIENCE) in (1, -signal.SIGKILL), "by itself, or by its watchdog"


@pytest.mark.parametrize("tls", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_workers_that_have_dialled_back(host: elsewhere.Host, tls: bool) -> None:
    """Engines' workers, encrypted or not: one that computes and one that has nothing to do."""
    manager = elsewhere.There(2, host)
    try:
        first, _ = distpool.addprocs(manager, tls=tls, timeout=PATIENCE)
        future = distpool.remotecall(time.sleep, first, 1000)
        host.vanish()
        begun = time.monotonic()
        with pytest.raises(distpool.ProcessExitedException, match="its host has not answered for 2 s"):
            distpool.fetch(future)
        while distpool.workers() != [1]:
            time.sleep(0.01)
            assert time.monotonic() - begun < PATIENCE
        assert [process.wait(PATIENCE) for process in manager.processes] == [1, 1]
    finally:
        manager.end()


def test_workers_watch_each_other(host: elsewhere.Host) -> None:
    """They dial each other, and notice by themselves as well."""
    with host.listener() as listener, listening("--worker", "--bind-to", host.here, env=elsewhere.IMPORTS) as neighbour:
        far, near = sorted(distpool.addprocs(Meeting(listener, neighbour)))
        assert distpool.remotecall_fetch(lambda: distpool.remotecall_fetch(distpool.myid, far), near) == far
        assert distpool.remotecall_fetch(elsewhere.watches, near, far)
        assert distpool.remotecall_fetch(elsewhere.watches, far, near)
        assert distpool.remotecall_fetch(os.getenv, far, "DISTPOOL_HOST_TIMEOUT") == LIMIT, "the driver's"
        future = distpool.remotecall(lambda: distpool.remotecall_fetch(time.sleep, far, 1000), near)
        host.vanish()
        with pytest.raises(distpool.ProcessExitedException, match=f"[Pp]rocess {far}|worker {far}"):
            distpool.fetch(future)


# -- slow, not gone ----------------------------------------------------------------------------------------------------


def test_a_stuck_worker_is_not_gone(host: elsewhere.Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host answers for it: for three times the limit it reads nothing of what is sent, and then it works on."""
    monkeypatch.setenv("DISTPOOL_HOST_TIMEOUT", "1")
    with host.listener() as listener:
        (far,) = distpool.addprocs(Addresses(listener))
        os.kill(listener.process.pid, signal.SIGSTOP)
        future = distpool.remotecall(len, far, bytearray(12 << 20))
        with pytest.raises(TimeoutError):
            future.fetch(3.0)
        os.kill(listener.process.pid, signal.SIGCONT)
        assert distpool.fetch(future) == 12 << 20
        assert distpool.workers() == [far]


def test_a_stuck_worker_keeps_nobody_waiting(no_cluster: None) -> None:
    """It holds what it was given and no more; everything else is done without it, and later so is that."""
    with listening(env=elsewhere.IMPORTS) as listener:
        near = distpool.addprocs(2)
        (stuck,) = distpool.addprocs(Addresses(listener))
        pool = distpool.WorkerPool([*near, stuck])
        outcomes = pool.imap_unordered(elsewhere.myself_soon, range(400))
        results = [next(outcomes) for _ in range(20)]
        os.kill(listener.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        for done in outcomes:
            results.append(done)
            if len(results) >= 300:
                break
        assert time.monotonic() - begun < PATIENCE
        # Calls, and data that the stuck one does not take, hold nobody else up.
        future = distpool.remotecall(len, stuck, bytearray(12 << 20))
        assert distpool.remotecall_fetch(jobs.square, near[0], 7) == 49
        with pytest.raises(TimeoutError):
            future.fetch(0.1)
        os.kill(listener.process.pid, signal.SIGCONT)
        assert len(results) + len(list(outcomes)) == 400
        assert distpool.fetch(future) == 12 << 20
        distpool.rmprocs(*distpool.workers(), waitfor=PATIENCE)


def test_a_time_limit_frees_what_a_stuck_worker_holds(no_cluster: None) -> None:
    """`timeout=` ends the wait for one that cannot be killed from here: the pool goes on without it."""
    with listening(env=elsewhere.IMPORTS) as listener:
        near = distpool.addprocs(1)
        (stuck,) = distpool.addprocs(Addresses(listener))
        pool = distpool.WorkerPool([*near, stuck])
        outcomes = pool.imap_unordered(elsewhere.myself_soon, range(60), timeout=1.0, on_error=lambda error: error)
        results = [next(outcomes)]
        os.kill(listener.process.pid, signal.SIGSTOP)
        results.extend(outcomes)
        assert len(results) == 60
        late = [result for result in results if isinstance(result, Exception)]
        assert len(late) <= 1, "the task that it was in"
        assert stuck not in distpool.workers() or not late
        distpool.rmprocs(*near, waitfor=PATIENCE)
        os.kill(listener.process.pid, signal.SIGCONT)
