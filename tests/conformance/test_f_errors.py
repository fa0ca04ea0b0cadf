"""Section F: what a failing call raises.

Left out: C086 (`sync`, a later issue). C082a goes from the driver to a worker and back, not to a second worker: that
is in test_worker_to_worker.
"""

from __future__ import annotations

import inspect
import math
import pickle
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from conformance import deeds
from distpool import (
    Future,
    ProcessExitedException,
    RemoteException,
    fetch,
    isready,
    myid,
    remotecall,
    remotecall_fetch,
    remotecall_wait,
)
from support import jobs

if TYPE_CHECKING:
    from conftest import StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def call_and_wait(f: Callable[..., Any], pid: int, *args: Any) -> Any:
    """The third way to wait for a call."""
    return remotecall(f, pid, *args).wait()


def call_and_fetch(f: Callable[..., Any], pid: int, *args: Any) -> Any:
    """The fourth."""
    return fetch(remotecall(f, pid, *args))


@pytest.mark.case("C077", "C078")
@pytest.mark.parametrize("call", [remotecall_fetch, remotecall_wait, call_and_wait, call_and_fetch])
@pytest.mark.parametrize("where", ["other", "me"])
def test_an_error_is_a_remote_exception(where: str, call: Callable[..., Any], workers: StartWorkers) -> None:
    """C077, C078: whichever process fails, the own too: a RemoteException that is a ValueError, with all it says."""
    (other,) = workers(1)
    target = {"other": other, "me": 1}[where]
    with pytest.raises(RemoteException) as caught:
        call(jobs.fail, target, "foobar")
    assert caught.value.pid == target
    assert type(caught.value.captured.ex) is ValueError
    assert caught.value.captured.ex.args == ("foobar",)
    assert isinstance(caught.value, ValueError)
    assert "foobar" in str(caught.value)


@pytest.mark.case("C079")
def test_a_failed_call_stays_failed(workers: StartWorkers) -> None:
    """C079: each fetch of a failed call raises; it counts as ready."""
    (pid,) = workers(1)
    future: Future[Any] = remotecall(jobs.fail, pid)
    for _ in range(3):
        with pytest.raises(RemoteException, match="boom"):
            fetch(future)
        assert isready(future)


@pytest.mark.case("C080")
def test_the_remote_traceback_ends_where_it_failed(workers: StartWorkers) -> None:
    """C080: the traceback of the worker comes along, as text and as frames, with file and line of the function."""
    (pid,) = workers(1)
    with pytest.raises(RemoteException) as caught:
        remotecall_fetch(deeds.caller_of_foo, pid)
    lines, first = inspect.getsourcelines(deeds.foo)
    line = first + len(lines) - 1
    innermost = traceback.extract_tb(caught.value.captured.ex.__traceback__)[-1]
    assert (innermost.name, innermost.filename, innermost.lineno) == ("foo", deeds.__file__, line)
    frames = [text for text in caught.value.captured.traceback.splitlines() if text.startswith("  File ")]
    assert frames[-1] == f'  File "{deeds.__file__}", line {line}, in foo'
    assert frames[-2].endswith("in caller_of_foo")


@pytest.mark.case("C081")
def test_the_text_says_who_and_what(workers: StartWorkers) -> None:
    """C081: the text has the worker's id and the original message."""
    (pid,) = workers(1)
    with pytest.raises(ValueError, match=r"math domain error|nonnegative") as caught:
        remotecall_fetch(math.sqrt, pid, -1)
    assert isinstance(caught.value, RemoteException)
    assert f"worker {pid}" in str(caught.value)
    assert str(caught.value.captured.ex) in str(caught.value)


@pytest.mark.case("C082")
def test_an_error_through_two_processes(workers: StartWorkers) -> None:
    """C082a (driver, worker, driver; not a second worker): both hops are shown, the root is at hand."""
    (pid,) = workers(1)
    with pytest.raises(RemoteException) as caught:
        remotecall_fetch(deeds.relay, pid, jobs.fail, 1, "deep")
    assert caught.value.hops == [pid, 1]
    assert f"On worker {pid}:\nOn worker 1:\n" in str(caught.value)
    root = caught.value.unwrap()
    assert root is caught.value.captured.ex
    assert (type(root), root.args) == (ValueError, ("deep",))


@pytest.mark.case("C082")
def test_the_cause_travels(workers: StartWorkers) -> None:
    """C082b: `raise A from B` arrives as A with its cause B."""
    (pid,) = workers(1)
    with pytest.raises(RemoteException) as caught:
        remotecall_fetch(deeds.fail_from, pid)
    cause = caught.value.captured.ex.__cause__
    assert type(cause) is KeyError
    assert cause.args == ("the cause",)


@pytest.mark.case("C083")
@pytest.mark.parametrize("call", [remotecall_fetch, remotecall_wait, call_and_fetch])
@pytest.mark.parametrize(
    ("deed", "type_name", "text", "function"),
    [
        (deeds.fail_with_stranger, "OnlyHereError", "nobody else knows me", "fail_with_stranger"),
        (deeds.fail_with_lock, "LockedError", "it holds a lock", "fail_with_lock"),
        (jobs.fail_unpicklably, "TwoArgumentError", "one and two", "fail_unpicklably"),
    ],
)
def test_an_error_that_cannot_travel(
    deed: Callable[[], Any], type_name: str, text: str, function: str, call: Callable[..., Any], workers: StartWorkers
) -> None:
    """C083: an exception of an unknown class, or one that cannot be pickled: name, text and traceback arrive."""
    (pid,) = workers(1)
    with pytest.raises(RemoteException) as caught:
        call(deed, pid)
    for part in (type_name, text, f"in {function}"):
        assert part in str(caught.value)
    assert caught.value.pid == pid
    assert remotecall_fetch(myid, pid) == pid


@pytest.mark.case("C084")
def test_a_returned_error_is_data(workers: StartWorkers) -> None:
    """C084a: an exception that is returned is returned."""
    (pid,) = workers(1)
    for target in (pid, 1):
        value = remotecall_fetch(deeds.return_error, target)
        assert type(value) is ValueError
        assert value.args == ("x",)
        assert type(fetch(remotecall(deeds.return_error, target))) is ValueError


@pytest.mark.case("C084")
def test_the_death_of_nobody_in_particular() -> None:
    """C084b: without a pid it is -1, and it can be pickled."""
    assert ProcessExitedException().worker_id == -1
    copy = pickle.loads(pickle.dumps(ProcessExitedException(7, exit_code=3)))
    assert (type(copy), copy.worker_id, copy.exit_code) == (ProcessExitedException, 7, 3)
    assert pickle.loads(pickle.dumps(ProcessExitedException())).worker_id == -1


@pytest.mark.case("C085")
def test_an_error_of_a_helper_thread(workers: StartWorkers) -> None:
    """C085: a map over one element that failed in a thread and was raised again: both errors are told."""
    workers(1)
    with pytest.raises(RemoteException) as caught:
        distpool.pmap(deeds.fail_in_thread, [1])
    assert "RuntimeError: the outer error" in str(caught.value)
    assert "ValueError: raised in foo" in str(caught.value)
