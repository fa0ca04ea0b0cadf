"""Section E: calls on a process id, from the driver to its workers and back.

C061, C062 and C075, and C064 and C076 with calls between workers, are in test_worker_to_worker. C069 is
shown with `remotecall` in the place of `spawnat`.
"""

from __future__ import annotations

import random
import string
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import distpool
from conformance import deeds
from distpool import (
    Channel,
    Future,
    RemoteChannel,
    RemoteException,
    fetch,
    isready,
    myid,
    procs,
    remote_do,
    remotecall,
    remotecall_fetch,
    remotecall_wait,
)
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.mark.case("C051")
@pytest.mark.parametrize("where", ["other", "me", "pool"])
def test_arguments_arrive_as_they_are(where: str, workers: StartWorkers, capfd: pytest.CaptureFixture[str]) -> None:
    """C051: positional and keyword arguments, in all four forms, here, elsewhere and in the default pool."""
    (other,) = workers(1)
    target: Any = {"other": other, "me": 1, "pool": distpool.default_worker_pool()}[where]
    mixes: list[tuple[tuple[int, ...], dict[str, int], int]] = [
        ((1,), {}, 1),
        ((1, 2), {}, 3),
        ((1,), {"kw1": 4}, 5),
        ((1,), {"kw1": 4, "kw2": 8}, 13),
        ((1, 2), {"kw1": 4, "kw2": 8}, 15),
    ]
    for args, kwargs, expected in mixes:
        assert fetch(remotecall(deeds.total, target, *args, **kwargs)) == expected
        assert fetch(remotecall_wait(deeds.total, target, *args, **kwargs)) == expected
        assert remotecall_fetch(deeds.total, target, *args, **kwargs) == expected
        remote_do(deeds.total, target, *args, **kwargs)
    distpool.rmprocs(other)
    assert capfd.readouterr() == ("", "")


@pytest.mark.case("C052")
def test_large_arguments_come_back_equal(workers: StartWorkers) -> None:
    """C052a: a million numbers, and a hundred thousand texts."""
    (pid,) = workers(1)
    array = np.random.default_rng(1).random(10**6)
    assert np.array_equal(remotecall_fetch(jobs.identity, pid, array), array)
    draw = random.Random(1)
    texts = ["".join(draw.choices(string.printable, k=10)) for _ in range(10**5)]
    assert remotecall_fetch(jobs.identity, pid, texts) == texts


@pytest.mark.case("C052")
def test_large_arguments_from_many_threads(workers: StartWorkers) -> None:
    """C052b: ten threads send large arrays to one worker, and get their own back."""
    (pid,) = workers(1)

    def echo(number: int) -> bool:
        array = np.full(2 * 10**5, float(number))
        return all(np.array_equal(remotecall_fetch(jobs.identity, pid, array), array) for _ in range(10))

    with ThreadPoolExecutor(10) as threads:
        assert all(threads.map(echo, range(10)))


@pytest.mark.case("C053")
def test_ten_thousand_calls(workers: StartWorkers) -> None:
    """C053: ten thousand calls, one after the other, all answered, in less than a minute."""
    (pid,) = workers(1)
    begin = time.monotonic()
    assert all(remotecall_fetch(myid, pid) == pid for _ in range(10_000))
    assert time.monotonic() - begin < 60


@pytest.mark.case("C054")
def test_none_is_a_result(workers: StartWorkers) -> None:
    """C054a: a function that returns None has a result: None."""
    (pid,) = workers(1)
    assert fetch(remotecall(deeds.nothing, pid)) is None
    assert remotecall_fetch(deeds.nothing, pid) is None


@pytest.mark.case("C054")
def test_a_type_can_be_called(workers: StartWorkers) -> None:
    """C054b: whatever can be called here can be called there."""
    (pid,) = workers(1)
    assert fetch(remotecall(float, pid, 1)) == 1.0
    assert fetch(remotecall_wait(float, pid, 1)) == 1.0
    assert remotecall_fetch(float, pid, 1) == 1.0


@pytest.mark.case("C055")
def test_remotecall_returns_at_once(workers: StartWorkers) -> None:
    """C055a: remotecall does not wait for the function."""
    (pid,) = workers(1)
    begin = time.monotonic()
    future = remotecall(time.sleep, pid, 5)
    assert time.monotonic() - begin < 1
    assert isinstance(future, Future)
    assert (future.where, future.whence) == (pid, 1)
    assert not isready(future)


@pytest.mark.case("C055")
def test_remotecall_wait_returns_when_it_is_done(workers: StartWorkers) -> None:
    """C055b: remotecall_wait waits for the function and leaves the value there."""
    (pid,) = workers(1)
    begin = time.monotonic()
    future: Future[None] = remotecall_wait(time.sleep, pid, 1)
    assert time.monotonic() - begin >= 1
    assert isready(future)


@pytest.mark.case("C056")
def test_the_value_stays_until_it_is_fetched(workers: StartWorkers) -> None:
    """C056: after remotecall_wait the value is kept by the worker that made it; fetch brings it."""
    (pid,) = workers(1)
    future: Future[list[int]] = remotecall_wait(list, pid, range(10**5))
    assert remotecall_fetch(deeds.refs_has, pid, distpool.remoteref_id(future))
    assert fetch(future) == list(range(10**5))


@pytest.mark.case("C057")
@pytest.mark.parametrize("where", ["other", "me"])
def test_remote_do_does_it(where: str, workers: StartWorkers) -> None:
    """C057: remote_do with a Future of the target, which the function fills."""
    (other,) = workers(1)
    target = {"other": other, "me": 1}[where]
    future: Future[int] = Future(target)
    remote_do(lambda fut: fut.put(distpool.myid()), target, future)
    assert future.fetch(timeout=30) == target


@pytest.mark.case("C058", "C059")
@pytest.mark.parametrize("where", ["other", "me"])
def test_an_error_of_remote_do_is_printed(
    where: str, workers: StartWorkers, eventually: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """C058, C059: the caller of remote_do hears nothing; error and traceback are printed where it ran."""
    (other,) = workers(1)
    remote_do(deeds.caller_of_foo, {"other": other, "me": 1}[where])
    said = ""

    def printed() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "ValueError: raised in foo" in said

    eventually(printed)
    assert "in caller_of_foo" in said
    assert "Traceback" in said


@pytest.mark.case("C060")
def test_every_remote_do_is_done(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C060: a hundred of them, all carried out, and all started before a call that came later."""
    (pid,) = workers(1)
    for i in range(100):
        remote_do(deeds.append, pid, i)
    seen: list[int] = []

    def all_there() -> bool:
        seen.extend(remotecall_fetch(deeds.kept, pid))
        return len(seen) == 100

    eventually(all_there)
    assert sorted(seen) == list(range(100))


@pytest.mark.case("C063")
def test_a_worker_calls_back(workers: StartWorkers) -> None:
    """C063: a worker calls process 1 while that waits for it."""
    (pid,) = workers(1)
    assert remotecall_fetch(deeds.relay, pid, myid, 1) == 1


@pytest.mark.case("C064")
def test_a_chain_of_calls(workers: StartWorkers) -> None:
    """C064 (each worker calls the next through process 1): calls inside calls, back and forth, end."""
    first, second, third = workers(3)
    assert deeds.chain([third, 1, second, 1, first, 1, first, 1, first], 0) == 9


@pytest.mark.case("C065")
def test_a_blocked_call_blocks_no_other(workers: StartWorkers) -> None:
    """C065: while one call waits at an empty channel, fifty others to the same worker are answered."""
    (pid,) = workers(1)
    started: RemoteChannel[int] = RemoteChannel()
    gate: RemoteChannel[str] = RemoteChannel(lambda: Channel(1), pid)
    waiting = remotecall(deeds.say_and_wait, pid, started, gate)
    assert started.take(timeout=30) == pid
    assert [remotecall_fetch(myid, pid) for _ in range(50)] == [pid] * 50
    assert not waiting.isready()
    gate.put("open")
    assert waiting.fetch(timeout=30) == "open"


@pytest.mark.case("C065")
def test_many_blocked_calls(workers: StartWorkers) -> None:
    """C065: any number of calls may be blocked in one worker."""
    (pid,) = workers(1)
    gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(100))
    waiting = [remotecall(deeds.wait_then_return, pid, gate, i) for i in range(50)]
    assert remotecall_fetch(myid, pid) == pid
    for _ in waiting:
        gate.put(0)
    assert [future.fetch(timeout=30) for future in waiting] == list(range(50))


@pytest.mark.case("C066")
def test_a_computing_worker_answers(workers: StartWorkers) -> None:
    """C066: a call is answered within two seconds while another computes in pure Python."""
    (pid,) = workers(1)
    started: RemoteChannel[int] = RemoteChannel()
    spinning = remotecall(deeds.say_and_spin, pid, started, 30)
    assert started.take(timeout=30) == pid
    begin = time.monotonic()
    assert remotecall_fetch(myid, pid) == pid
    assert time.monotonic() - begin < 2
    assert not spinning.isready()
    remotecall_fetch(deeds.stop_spinning, pid)
    assert spinning.fetch(timeout=30) > 0


@pytest.mark.case("C067")
def test_a_call_elsewhere_copies(workers: StartWorkers) -> None:
    """C067: what a worker changes is its own copy."""
    (pid,) = workers(1)
    v = [0]
    result = remotecall_fetch(deeds.mark, pid, v)
    assert (v, result) == ([0], [1])
    assert result is not v


@pytest.mark.case("C068")
def test_arguments_are_taken_at_the_call(workers: StartWorkers) -> None:
    """C068: what the caller changes after the call is not seen."""
    (pid,) = workers(1)
    gate: RemoteChannel[int] = RemoteChannel()
    a = [1]
    future = remotecall(deeds.wait_then_return, pid, gate, a)
    a[0] = 99
    gate.put(0)
    assert future.fetch(timeout=30) == [1]


@pytest.mark.case("C069")
@pytest.mark.slow
def test_many_calls_to_oneself_keep_nothing() -> None:
    """C069 (`remotecall` for `spawnat`): a hundred thousand calls to oneself, and nothing is kept of them."""
    before = deeds.refs_count()
    assert all(fetch(remotecall(myid, 1)) == 1 for _ in range(10**5))
    assert deeds.refs_count() <= before


@pytest.mark.case("C070")
def test_functions_inside_functions(workers: StartWorkers) -> None:
    """C070: a lambda that makes and calls another."""
    (pid,) = workers(1)
    assert remotecall_fetch(lambda x: (lambda y: 2 * y)(x) + 1, pid, 3) == 7


@pytest.mark.case("C071")
@pytest.mark.parametrize("call", [remotecall, remotecall_wait, remotecall_fetch, remote_do])
def test_an_argument_that_cannot_be_pickled(call: Callable[..., Any], workers: StartWorkers) -> None:
    """C071: the caller gets a TypeError that names the argument, and the connection is as good as before."""
    (pid,) = workers(1)
    with pytest.raises(TypeError, match=r"args\[1\]"):
        call(jobs.echo, pid, 1, threading.Lock())
    assert [remotecall_fetch(myid, pid) for _ in range(10)] == [pid] * 10


@pytest.mark.case("C072")
def test_a_result_that_cannot_be_pickled(workers: StartWorkers) -> None:
    """C072: the call fails with the name of the type, the worker lives on."""
    (pid,) = workers(1)
    with pytest.raises(RemoteException, match="lock"):
        remotecall_fetch(jobs.make_lock, pid)
    with pytest.raises(RemoteException, match="lock"):
        fetch(remotecall(jobs.make_lock, pid))
    assert remotecall_fetch(myid, pid) == pid


@pytest.mark.case("C072")
def test_a_result_that_does_not_open(workers: StartWorkers) -> None:
    """C072: a result that raises when it is opened here costs this one call."""
    (pid,) = workers(1)
    with pytest.raises(RuntimeError, match="does not open"):
        remotecall_fetch(jobs.make_poison, pid)
    assert remotecall_fetch(myid, pid) == pid


@pytest.mark.case("C073")
def test_a_function_that_does_not_open(workers: StartWorkers) -> None:
    """C073: a function that needs a module which the worker has not: this call fails, the next does not."""
    (pid,) = workers(1)
    for call in (remotecall_fetch, remotecall_wait):
        with pytest.raises(RemoteException, match="no_such_module_anywhere") as caught:
            call(deeds.NeedsModule(), pid)
        assert caught.value.pid == pid
        assert isinstance(caught.value, ImportError)
        assert remotecall_fetch(myid, pid) == pid
    future: Future[Any] = remotecall(deeds.NeedsModule(), pid)
    with pytest.raises(RemoteException, match="no_such_module_anywhere"):
        fetch(future)
    assert remotecall_fetch(myid, pid) == pid


@pytest.mark.case("C074")
def test_a_remote_do_that_does_not_open(
    workers: StartWorkers, eventually: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """C074: its error is printed by the worker."""
    (pid,) = workers(1)
    remote_do(deeds.NeedsModule(), pid)
    said = ""

    def printed() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "ModuleNotFoundError" in said

    eventually(printed)
    assert "no_such_module_anywhere" in said
    assert remotecall_fetch(myid, pid) == pid


@pytest.mark.case("C075")
def test_a_worker_calls_who_never_was(workers: StartWorkers) -> None:
    """C075: the call fails instead of waiting, and the driver's view of the cluster is unchanged."""
    (pid,) = workers(1)
    with pytest.raises(RemoteException, match="4711"):
        remotecall_fetch(deeds.relay, pid, myid, 4711)
    assert procs() == [1, pid]
    assert remotecall_fetch(myid, pid) == pid


@pytest.mark.case("C076")
def test_calls_from_many_threads_both_ways(workers: StartWorkers) -> None:
    """C076 (driver and workers, not worker and worker): four threads of each process call at once; all succeed."""
    first, second = workers(2)
    theirs = [remotecall(deeds.calls_to, pid, 1, 4, 25) for pid in (first, second)]
    with ThreadPoolExecutor(2) as threads:
        ours = list(threads.map(lambda pid: deeds.calls_to(pid, 4, 25), (first, second)))
    assert ours == [[first] * 100, [second] * 100]
    assert [future.fetch(timeout=60) for future in theirs] == [[1] * 100, [1] * 100]
