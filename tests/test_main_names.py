"""`clear` and `capture`: names of `__main__` freed, and functions that bring theirs along."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

import distpool
from distpool import CachingPool, CompositeException, ProcessExitedException, capture, clear, everywhere, rmprocs
from support import jobs

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def test_clear_of_a_pool(workers: StartWorkers) -> None:
    """The one function for both: a CachingPool forgets its callables."""
    pool = CachingPool(workers(1))
    pool.map(jobs.square, [1, 2])
    assert pool.cached() == [jobs.square]
    assert clear(pool) is pool
    assert pool.cached() == []
    with pytest.raises(TypeError, match="no pids"):
        clear(pool, 1)


def test_clear_of_several_processes(workers: StartWorkers) -> None:
    """All workers by default, or those named; this process only when it is named."""
    pids = workers(2)
    everywhere("conf_a = conf_b = 1")
    clear(iter(["conf_a", "conf_b"]))
    assert everywhere("conf_a, conf_b", collect=True) == {1: (1, 1), **dict.fromkeys(pids, (None, None))}
    clear("conf_a", [1])
    assert everywhere("conf_a", pids=1) is None
    clear(["conf_a", "conf_b"], 1)


def test_clear_of_processes_that_are_gone(workers: StartWorkers) -> None:
    """They fail, the others are cleared."""
    gone, worker = workers(2)
    everywhere("conf_c = 1", pids=worker)
    rmprocs(gone)
    with pytest.raises(CompositeException) as caught:
        clear("conf_c", [gone, worker])
    assert [type(error) for error in caught.value] == [ProcessExitedException]
    assert everywhere("conf_c", pids=worker) is None


def test_clear_checks_its_arguments() -> None:
    """What is no name, and pids that never were."""
    with pytest.raises(TypeError, match="several names"):
        clear(5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="as text"):
        clear([jobs])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="no process 9999"):
        clear("x", 9999)


def test_capture_freezes_names(run_script: RunScript) -> None:
    """Nothing is assigned at the worker; later assignments here have no effect; the call here gives the same."""
    code, out, err = run_script(
        """
        from distpool import addprocs, capture, everywhere, remotecall_fetch
        (w,) = addprocs(1)
        rate = 2
        def scale(x, plus=1, *, minus=0):
            "Scale it."
            return [x * rate + plus - minus for _ in range(1)][0]
        frozen = capture(scale)
        rate = 100
        print(remotecall_fetch(frozen, w, 10), frozen(10), frozen(10, 5, minus=1), scale(10))
        print(everywhere("'rate' in globals()", pids=w), frozen.__name__, frozen.__module__, frozen.__doc__)
        print(remotecall_fetch(scale, w, 10), everywhere("rate", pids=w))
        """
    )
    assert (code, err) == (0, "")
    assert out == "21 21 24 1001\nFalse scale __main__ Scale it.\n1001 100\n"


def test_capture_takes_helpers_along(run_script: RunScript) -> None:
    """Functions that it calls, those that call each other or themselves, modules; state is the copy's own."""
    code, out, err = run_script(
        """
        import math
        from distpool import addprocs, capture, everywhere, remotecall_fetch
        (w,) = addprocs(1)
        base = 3
        calls = 0
        def even(n):
            return True if n == 0 else odd(n - 1)
        def odd(n):
            return False if n == 0 else even(n - 1)
        def helper(x):
            return x + base
        def count():
            global calls
            calls += 1
            return calls
        frozen = capture(lambda n: (even(n), helper(n), math.floor(2.5), count()))
        print(remotecall_fetch(frozen, w, 4), frozen(5), frozen(5)[3], calls)
        names = ["base", "calls", "even", "odd", "helper", "count", "math"]
        print(everywhere("[n for n in names if n in globals()]", names=names, pids=w))
        """
    )
    assert (code, err) == (0, "")
    assert out == "(True, 7, 2, 1) (False, 8, 2, 1) 2 0\n[]\n"


def test_capture_of_what_needs_none() -> None:
    """An importable function is returned as it is; what is no function is refused."""
    assert capture(jobs.square) is jobs.square
    for thing in (functools.partial(jobs.square, 2), len, distpool.Channel(1).put):
        with pytest.raises(TypeError, match="capture the function inside"):
            capture(thing)


def test_captured_twice_is_the_same(run_script: RunScript) -> None:
    """Capturing again changes nothing."""
    code, out, err = run_script(
        """
        from distpool import capture
        x = 1
        once = capture(lambda: x)
        x = 2
        print(capture(once) is once, once())
        """
    )
    assert (code, out, err) == (0, "True 1\n", "")
