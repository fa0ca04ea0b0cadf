"""``distpool.compat.futures``: single calls, their futures, and what becomes of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import concurrent.futures.process
import gc
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import distpool
import distpool.compat.futures as futures
from distpool.compat.futures.process import BrokenProcessPool, ProcessPoolExecutor
from support import jobs
from support.leaks import eventually


@pytest.fixture(scope="module")
def shared() -> Iterator[distpool.WorkerPool]:
    """Workers for the tests that leave them as they were."""
    with distpool.WorkerPool(processes=2) as pool:
        yield pool


@pytest.fixture
def executor(shared: distpool.WorkerPool) -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(pool=shared) as executor:
        yield executor


def gate(folder: Path, name: str = "go") -> tuple[str, str]:
    """A file that a task makes, and a named pipe of its own that it waits for."""
    os.mkfifo(folder / name)
    return str(folder / f"{name}-started"), str(folder / name)


def let_go(go: str) -> None:
    with open(go, "w"):
        pass


# -- the module


def test_the_module_replaces_the_standard_one() -> None:
    """Every public name is there, and all but one are the standard library's own objects."""
    for name in concurrent.futures.__all__:
        is_same = getattr(futures, name) is getattr(concurrent.futures, name)
        assert is_same == (name != "ProcessPoolExecutor"), name
    assert BrokenProcessPool is concurrent.futures.process.BrokenProcessPool
    assert futures.process._ExceptionWithTraceback is concurrent.futures.process._ExceptionWithTraceback
    assert futures.thread.ThreadPoolExecutor is concurrent.futures.ThreadPoolExecutor
    assert issubclass(ProcessPoolExecutor, concurrent.futures.Executor)
    with pytest.raises(AttributeError, match="Gibbon"):
        _ = futures.Gibbon


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"max_workers": 0}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": -1}, ValueError, "max_workers must be greater than 0"),
        ({"max_workers": "2"}, TypeError, "max_workers must be an integer"),
        ({"initializer": 3}, TypeError, "initializer must be a callable"),
        ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be >= 1"),
        ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child must be an integer"),
        ({"initargs": 3}, TypeError, "not iterable"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    """The standard library's errors, at once."""
    with pytest.raises(error, match=text):
        ProcessPoolExecutor(**arguments)


def test_a_given_pool_takes_no_options_of_workers(shared: distpool.WorkerPool) -> None:
    """They exist already."""
    with pytest.raises(TypeError, match="max_workers"):
        ProcessPoolExecutor(2, pool=shared)


def test_making_one_is_cheap(census: Callable[[], Any]) -> None:
    """No process, thread or descriptor before the first call."""
    before = census()
    executor = ProcessPoolExecutor()
    assert census().leaked_since(before) == []
    assert executor._max_workers == distpool.usable_cores()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(abs, 1)


# -- results and errors


def test_submit(executor: ProcessPoolExecutor) -> None:
    """Arguments by place and by name; functions of any kind; futures of the standard library's type."""
    future = executor.submit(jobs.echo, 1, fn=2, self=3)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result() == ((1,), {"fn": 2, "self": 3})
    assert future.exception() is None
    assert future.result(timeout=0) is future.result()
    offset = 10
    assert executor.submit(lambda x: x + offset, 1).result() == 11
    assert executor.submit(partial(pow, 2), 3).result() == 8
    assert executor.submit("abc".upper).result() == "ABC"
    assert isinstance(executor.submit(make_thing).result(), Thing)
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]


class Thing:
    """What is opened by whoever asks for it, for it is not plain."""


def make_thing() -> Thing:
    return Thing()


def test_the_original_exception(executor: ProcessPoolExecutor) -> None:
    """The very type, not a relative; the worker's traceback is its cause, as in the standard library."""
    future = executor.submit(jobs.fail, "boom")
    error = future.exception()
    assert type(error) is ValueError
    assert error.args == ("boom",)
    assert type(error.__cause__) is concurrent.futures.process._RemoteTraceback
    assert "raise ValueError(text)" in str(error.__cause__)
    with pytest.raises(ValueError, match="boom") as caught:
        future.result()
    assert caught.value is error
    assert type(executor.submit(jobs.leave, 4).exception()) is SystemExit


def test_a_finished_future_leaves_no_cycle(executor: ProcessPoolExecutor) -> None:
    """Its exception does not hold what the frame of its result() call holds."""
    future = executor.submit(jobs.fail)
    with pytest.raises(ValueError, match="boom"):
        future.result()
    weak = weakref.ref(future)
    gc.disable()
    try:
        del future
        assert weak() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("bad", "kind"), [(threading.Lock(), TypeError), (lambda: (yield), TypeError), (jobs.TwoArgumentError, None)]
)
def test_arguments_that_cannot_be_pickled(
    executor: ProcessPoolExecutor, bad: Any, kind: type[Exception] | None
) -> None:
    """submit() does not raise; the future has pickle's own exception, and its cause names the part."""
    future = executor.submit(jobs.identity, bad() if kind is not None and callable(bad) else bad)
    if kind is None:
        assert future.result() is bad
        return
    error = future.exception()
    assert type(error) is kind
    assert "argument 'args[0]'" in str(error.__cause__)


class RefusesToPickle:
    def __reduce__(self) -> Any:
        raise pickle.PicklingError("never")


def test_pickles_own_error(executor: ProcessPoolExecutor) -> None:
    """What ``except PicklingError`` catches today it catches tomorrow: arguments and results."""
    assert type(executor.submit(jobs.identity, RefusesToPickle()).exception()) is pickle.PicklingError
    assert type(executor.submit(RefusesToPickle).exception()) is pickle.PicklingError
    assert type(executor.submit(jobs.make_lock).exception()) is TypeError


def test_what_does_not_open_costs_one_call(executor: ProcessPoolExecutor) -> None:
    """BrokenProcessPool as in the standard library, for arguments and results; but the executor is not broken."""
    for future in (executor.submit(jobs.identity, jobs.Poison()), executor.submit(jobs.make_poison)):
        error = future.exception()
        assert type(error) is BrokenProcessPool
        assert "this payload does not open" in str(error)
    assert type(executor.submit(jobs.fail_unpicklably).exception()) is jobs.TwoArgumentError  # it travels
    assert executor.submit(abs, -1).result() == 1


# -- waiting


def test_time_limits(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """result() and exception() raise concurrent.futures.TimeoutError, and the call goes on."""
    started, go = gate(tmp_path)
    future = executor.submit(jobs.touch_and_wait, started, go)
    for wait in (future.result, future.exception):
        with pytest.raises(concurrent.futures.TimeoutError):
            wait(0.01)
    eventually(lambda: os.path.exists(started))
    assert future.running()
    assert not future.done()
    let_go(go)
    assert future.result() > 0
    assert not future.running()


def test_wait_and_as_completed(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """The standard library's functions, also with futures of its thread pool."""
    started, go = gate(tmp_path)
    slow = executor.submit(jobs.touch_and_wait, started, go)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        quick = [executor.submit(jobs.square, 3), threads.submit(jobs.square, 4)]
        assert sorted(each.result() for each in concurrent.futures.as_completed(quick)) == [9, 16]
    bad = executor.submit(jobs.fail)
    done, left = concurrent.futures.wait([slow, bad], return_when=concurrent.futures.FIRST_EXCEPTION)
    assert (done, left) == ({bad}, {slow})
    done, left = concurrent.futures.wait([slow], timeout=0.01)
    assert (done, left) == (set(), {slow})
    let_go(go)
    assert concurrent.futures.wait([slow, bad, *quick]).not_done == set()


def test_many_wait_for_one(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """Threads in result(), in wait() and in as_completed(), and callbacks: all are told."""
    started, go = gate(tmp_path)
    future = executor.submit(jobs.touch_and_wait, started, go)
    told: list[Any] = []
    waits: list[Callable[[], object]] = [
        future.result,
        lambda: concurrent.futures.wait([future]),
        lambda: list(concurrent.futures.as_completed([future])),
    ]
    future.add_done_callback(told.append)
    threads = [threading.Thread(target=lambda wait=wait: told.append(wait())) for wait in waits * 3]
    for thread in threads:
        thread.start()
    let_go(go)
    for thread in threads:
        thread.join(30)
    eventually(lambda: len(told) == 10)


def test_ctrl_c_while_waiting_leaves_the_executor_usable(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """A thread in result() reads; an interrupt ends its wait and loses nothing."""
    started, go = gate(tmp_path)
    future: Any = executor.submit(jobs.touch_and_wait, started, go)
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        eventually(lambda: os.path.exists(started) and future._readers)  # the main thread is in result()
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        future.result()
    thread.join()
    let_go(go)
    assert future.result() > 0


# -- callbacks


def test_callbacks(executor: ProcessPoolExecutor, caplog: pytest.LogCaptureFixture) -> None:
    """In the order in which they were added, in one thread that is not the caller's; errors are logged."""
    seen: list[Any] = []

    def note(name: str, future: Any) -> None:
        seen.append((name, future.result(), threading.current_thread()))
        if name != "c":
            raise RuntimeError("a callback") if name == "a" else SystemExit("another")

    future = executor.submit(make_thing)
    for name in "abc":
        future.add_done_callback(partial(note, name))
    eventually(lambda: len(seen) == 3)
    assert [name for name, _, _ in seen] == ["a", "b", "c"]
    assert len({thread for _, _, thread in seen} - {threading.current_thread()}) <= 1
    assert caplog.text.count("exception calling callback") == 2
    future.add_done_callback(partial(note, "d"))  # done: at once, here
    assert seen[3][2] is threading.current_thread()


def test_a_slow_callback_holds_back_no_result(executor: ProcessPoolExecutor) -> None:
    """It runs aside, and may itself use the executor."""
    hold = threading.Event()
    seen: list[int] = []

    def slow(future: Any) -> None:
        seen.append(executor.submit(jobs.square, 4).result())
        hold.wait(30)

    # Not done when it gets its callback: that would be called at once, in this thread.
    executor.submit(time.sleep, 0.5).add_done_callback(slow)
    eventually(lambda: seen)
    assert executor.submit(jobs.square, 5).result(timeout=30) == 25
    hold.set()
    assert seen == [16]


def test_shutdown_waits_for_callbacks(shared: distpool.WorkerPool) -> None:
    """After the with block all have run, as in the standard library."""
    seen: list[int] = []
    with ProcessPoolExecutor(pool=shared) as executor:
        for number in range(50):
            executor.submit(jobs.square, number).add_done_callback(lambda future: seen.append(future.result()))
    assert sorted(seen) == [x * x for x in range(50)]


# -- cancelling


def test_cancel_before_it_begins(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """What has not been sent is taken back, for whoever waits for it, too; what runs is not."""
    gates = [gate(tmp_path, name) for name in "ab"]
    running = [executor.submit(jobs.touch_and_wait, *each) for each in gates]
    waiting = executor.submit(jobs.touch, str(tmp_path / "never"))
    seen: list[Any] = []
    waiting.add_done_callback(seen.append)
    eventually(lambda: all(os.path.exists(started) for started, _ in gates))
    assert waiting.cancel()
    assert waiting.cancel()
    assert seen == [waiting]
    assert waiting.cancelled()
    assert waiting.done()
    assert concurrent.futures.wait([waiting], timeout=0).done == {waiting}
    for wait in (waiting.result, waiting.exception):
        with pytest.raises(concurrent.futures.CancelledError):
            wait(0)
    assert not running[0].cancel()
    for _, go in gates:
        let_go(go)
    assert all(each.result() for each in running)
    assert not running[0].cancel()
    assert executor.submit(abs, -1).result() == 1
    assert not os.path.exists(tmp_path / "never")


def test_cancel_wakes_who_waits(executor: ProcessPoolExecutor, tmp_path: Path) -> None:
    """A thread in as_completed() when a future is cancelled (python/cpython#136655)."""
    gates = [gate(tmp_path, name) for name in "ab"]
    running = [executor.submit(jobs.touch_and_wait, *each) for each in gates]
    waiting = executor.submit(abs, 1)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.extend(concurrent.futures.as_completed([waiting])))
    thread.start()
    eventually(lambda: "_waiters" in vars(waiting) and vars(waiting)["_waiters"])
    assert waiting.cancel()
    thread.join(30)
    assert seen == [waiting]
    for _, go in gates:
        let_go(go)
    concurrent.futures.wait(running)


def test_cancel_running(tmp_path: Path) -> None:
    """With cancel_running=True a running call is stopped; one in C code dies with its worker, and only it."""
    with ProcessPoolExecutor(2, cancel_running=True) as executor:
        blocked = executor.submit(jobs.touch_and_block, str(tmp_path / "a"))
        stuck = executor.submit(hold, str(tmp_path / "b"))
        eventually(lambda: (tmp_path / "a").exists() and (tmp_path / "b").exists())
        assert blocked.running()
        assert blocked.cancel()
        assert stuck.cancel()
        assert blocked.cancelled()
        assert list(executor.map(jobs.square, range(5))) == [0, 1, 4, 9, 16]


def hold(path: str) -> None:
    jobs.touch(path)
    jobs.hold_interpreter()


# -- asyncio


def test_asyncio(executor: ProcessPoolExecutor) -> None:
    """run_in_executor and wrap_future, many at a time, with failures."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(executor, jobs.square, x) for x in range(200)]
        wrapped = asyncio.wrap_future(executor.submit(make_thing))
        failed = await asyncio.gather(loop.run_in_executor(executor, jobs.fail), return_exceptions=True)
        assert [type(each) for each in failed] == [ValueError]
        assert isinstance(await wrapped, Thing)
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [x * x for x in range(200)]


def test_asyncio_cancellation_reaches_the_worker(tmp_path: Path) -> None:
    """wait_for() that gives up stops the call, with cancel_running=True (noxdafox/pebble#154)."""
    signs = [tmp_path / name for name in "ab"]

    async def main(executor: ProcessPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        call = loop.run_in_executor(executor, jobs.touch_and_block, str(signs[0]))
        while not signs[0].exists():
            await asyncio.sleep(0.01)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(call, 0.01)
        # The only worker is free again.
        assert await asyncio.wait_for(loop.run_in_executor(executor, jobs.touch, str(signs[1])), 30)

    with ProcessPoolExecutor(1, cancel_running=True) as executor:
        asyncio.run(main(executor))


# -- states


def test_repr_and_pickling(executor: ProcessPoolExecutor) -> None:
    """A future says how it is; it does not travel."""
    future = executor.submit(make_thing)
    concurrent.futures.wait([future])
    assert "state=finished" in repr(future)
    future.result()
    assert "state=finished returned Thing" in repr(future)
    failed = executor.submit(jobs.fail)
    failed.exception()
    assert "raised ValueError" in repr(failed)
    with pytest.raises(TypeError, match="cannot pickle 'CallFuture' object"):
        pickle.dumps(future)
    assert "calls pending" in repr(executor)


def test_a_future_holds_little(executor: ProcessPoolExecutor) -> None:
    """No condition, no list of waiters before somebody looks: a hundred thousand futures are nothing special."""
    future = executor.submit(abs, -1)
    assert future.result() == 1
    assert not {"_condition", "_waiters"} & vars(future).keys()


def test_arguments_are_freed(executor: ProcessPoolExecutor) -> None:
    """The executor holds on to nothing of a call that is done, nor to what a method is bound to."""
    thing = Thing()
    weak = weakref.ref(thing)
    executor.submit(jobs.echo, thing).result()
    executor.submit(Bound(thing).method).result()
    del thing
    gc.collect()
    assert weak() is None


class Bound:
    def __init__(self, thing: Thing) -> None:
        self.thing = thing

    def method(self) -> None:
        """Called."""


def test_from_many_threads(executor: ProcessPoolExecutor) -> None:
    """Submissions, results and cancellations at once: every future ends, and with its own result."""
    failures: list[str] = []

    def work(seed: int) -> None:
        mine = [(x, executor.submit(jobs.square, x)) for x in range(seed, seed + 200)]
        for x, future in mine:
            if x % 7 == 0:
                future.cancel()
        for x, future in mine:
            if not future.cancelled() and future.result(60) != x * x:
                failures.append(f"{x}: {future!r}")

    threads = [threading.Thread(target=work, args=(1000 * n,)) for n in range(6)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 - (time.monotonic() - begun))
    assert failures == []
    assert not any(thread.is_alive() for thread in threads)
