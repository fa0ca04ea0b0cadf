"""`distributed` and `splitrange`: arguments, forms, kinds of sequences, failures, the handle."""

from __future__ import annotations

import operator
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from distpool import (
    Channel,
    CompositeException,
    ProcessExitedException,
    RemoteChannel,
    RemoteException,
    distributed,
    splitrange,
    sync,
)
from support import jobs, loops

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


class Frame:
    """Like a data frame: its length and slices are rows, but iterating gives columns."""

    def keys(self) -> list[str]:
        return ["x", "y"]

    def __iter__(self) -> Any:
        return iter(self.keys())

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, key: Any) -> Any:
        return self


@pytest.mark.parametrize("count", range(14))
@pytest.mark.parametrize("np", range(1, 6))
def test_splitrange_covers_evenly(count: int, np: int) -> None:
    """All indices once, in order; no empty range; lengths differ by at most one, longer ones first."""
    ranges = splitrange(5, 5 + count - 1, np)
    assert [index for each in ranges for index in each] == list(range(5, 5 + count))
    lengths = [len(each) for each in ranges]
    assert len(lengths) == min(count, np)
    assert lengths == sorted(lengths, reverse=True)
    assert not lengths or lengths[0] - lengths[-1] <= 1


def test_splitrange_needs_a_worker() -> None:
    """Zero workers are a mistake, not a division by zero."""
    with pytest.raises(ValueError, match="np=0"):
        splitrange(1, 10, 0)


def test_wrong_arguments_raise_at_the_call() -> None:
    """Number and kinds of arguments."""
    with pytest.raises(TypeError, match="a reducer and one"):
        distributed()
    with pytest.raises(TypeError, match="a reducer and one"):
        distributed(operator.add, [1], [2])
    with pytest.raises(TypeError, match="not callable"):
        distributed([1], operator.add)
    with pytest.raises(TypeError, match="init"):
        distributed([1], init=0)
    with pytest.raises(TypeError, match="not iterable"):
        distributed(operator.add, 5)
    with pytest.raises(TypeError, match="body 3 is not callable"):
        distributed([1])(3)


def test_forms(workers: StartWorkers) -> None:
    """By position, by keyword, and as a decorator."""
    workers(2)
    assert distributed(operator.add, [1, 2, 3])(jobs.square) == 14
    assert distributed([1, 2, 3], reducer=operator.add)(jobs.square) == 14

    @distributed(max, [3, -5, 4])
    def largest(x: int) -> int:
        return abs(x)

    assert largest == 5

    @distributed(range(3))
    def loop(x: int) -> int:
        return x

    assert repr(loop.wait()) == "<DistributedLoop: 2 of 2 slices done>"


@pytest.mark.parametrize(
    "sequence", [deque([1, 2, 3]), Frame(), memoryview(b"abc"), (1, 2)], ids=["deque", "frame", "view", "tuple"]
)
def test_items_are_those_of_iteration(workers: StartWorkers, sequence: Any) -> None:
    """Whatever slices would give, the body sees what `for` would."""
    workers(2)
    assert distributed(operator.add, sequence)(loops.in_list) == list(sequence)


def test_without_workers_nothing_is_copied() -> None:
    """A lone driver runs body and reducer on the objects themselves."""
    seen: list[object] = []
    thing = threading.Lock()
    distributed([thing])(seen.append).wait()
    assert seen == [thing]
    assert distributed(operator.or_, [{1}, {2}])(loops.identity) == {1, 2}


def test_one_element_needs_no_reducer(workers: StartWorkers) -> None:
    """The reducer is not called for a single value."""
    workers(2)
    assert distributed(jobs.fail, ["only"])(loops.identity) == "only"


def test_errors_of_all_slices(workers: StartWorkers) -> None:
    """Each slice ends at its first error; all slices' errors come, in order, in both forms."""
    pids = workers(2)
    for run in (
        lambda: distributed(operator.add, range(4))(loops.fail),
        lambda: distributed(range(4))(loops.fail).wait(),
    ):
        with pytest.raises(CompositeException) as caught:
            run()
        errors = [error for error in caught.value if isinstance(error, RemoteException)]
        assert [str(error.unwrap()) for error in errors] == ["item 0", "item 2"]
        assert sorted(error.pid for error in errors) == pids


def test_error_of_the_reducer_here_is_bare(workers: StartWorkers) -> None:
    """The last step runs in this process, like any function of the caller."""
    workers(2)
    with pytest.raises(TypeError, match="unsupported") as caught:
        distributed(operator.add, [1, "x"])(loops.identity)
    assert not isinstance(caught.value, RemoteException)


@pytest.mark.parametrize("form", ["reducer", "loop"])
def test_death_of_a_worker(workers: StartWorkers, form: str) -> None:
    """Its slice fails; nobody waits for it."""
    w1, _ = workers(2)

    def run() -> None:
        if form == "reducer":
            distributed(operator.add, [w1, w1])(_vanish_at)
        else:
            distributed([w1, w1])(_vanish_at).wait()

    with pytest.raises(CompositeException) as caught:
        run()
    (error,) = caught.value.exceptions
    assert isinstance(error, ProcessExitedException)
    assert error.worker_id == w1


def _vanish_at(pid: int) -> int:
    import distpool

    if distpool.myid() == pid:
        jobs.vanish()
    return 0


def test_what_cannot_be_pickled_raises_before_anything_runs(workers: StartWorkers) -> None:
    """The body, or an item."""
    workers(2)
    lock = threading.Lock()
    with pytest.raises(TypeError, match="lock"):
        distributed(operator.add, [1, 2])(lambda x: (x, lock))
    with pytest.raises(TypeError, match="lock"):
        distributed([1, lock])(print)


def test_wait_has_a_limit(workers: StartWorkers) -> None:
    """TimeoutError, and the loop goes on."""
    workers(1)
    gate: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    loop = distributed([gate])(RemoteChannel.take)
    with pytest.raises(TimeoutError):
        loop.wait(0)
    gate.put(1)
    assert loop.wait(30).isready()


def test_sync_raises_what_the_slices_raised(workers: StartWorkers) -> None:
    """The failures of a loop stand in the block's error one by one, among those of other calls."""
    from distpool import spawn

    workers(2)

    def block() -> None:
        with sync():
            spawn(jobs.fail, "before")
            distributed(range(2))(loops.fail)
            spawn(jobs.fail, "after")

    with pytest.raises(CompositeException) as caught:
        block()
    texts = [str(error.unwrap()) for error in caught.value if isinstance(error, RemoteException)]
    assert texts == ["before", "item 0", "item 1", "after"]


def test_error_is_printed_when_the_handle_is_gone(run_script: RunScript) -> None:
    """A handle that is dropped while the loop runs: printed once when it fails, without waiting for the end."""
    code, out, err = run_script(
        """
        import sys, threading
        from distpool import addprocs, distributed
        class Tee:
            def __init__(self):
                self.text, self.said = "", threading.Event()
            def write(self, text):
                self.text += text
                if "ValueError: dropped" in self.text:
                    self.said.set()
            def flush(self):
                pass
        def body(text):
            raise ValueError(text)
        addprocs(1)
        real, sys.stderr = sys.stderr, Tee()
        distributed(["dropped"])(body)
        print(sys.stderr.said.wait(30), sys.stderr.text.count("nobody waited"))
        sys.stderr = real
        """
    )
    assert (code, out, err) == (0, "True 1\n", "")


def test_slices_share_the_load(workers: StartWorkers) -> None:
    """Without a reducer a slice goes to the least busy worker, so each idle one gets one."""
    pids = workers(3)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(10))
    distributed([channel] * 3)(_put_pid).wait()
    assert sorted(channel.take() for _ in range(3)) == pids


def _put_pid(channel: RemoteChannel[int]) -> None:
    import distpool

    channel.put(distpool.myid())
