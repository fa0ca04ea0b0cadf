"""Numbered cases, section J: globals of `__main__` and code, shipped from the driver to workers.

Each test is a script, because only a script has a `__main__` of its own; it runs without a guard and asserts inside.

Left out here: C142 (`spawn`), C143 (`clear` for names), C146 (from worker to worker; in test_worker_to_worker). C139
and C140 set the worker's names by a call where the cases use `everywhere`.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import RunScript

HEAD = """
from distpool import *
def worker_has(pid, *names):
    main = lambda: vars(__import__("sys").modules["__main__"])
    return remotecall_fetch(lambda names: [name in main() for name in names], pid, names)
def assign(pid, name, value):
    remotecall_fetch(lambda n, v: setattr(__import__("sys").modules["__main__"], n, v), pid, name, value)
w1, w2 = sorted(addprocs(2))
"""


@pytest.fixture
def check(run_script: RunScript) -> object:
    """Runs a script's text after the common head; its assertions must hold."""

    def run(text: str) -> None:
        code, out, err = run_script(HEAD + textwrap.dedent(text) + "\nprint('end')\n")
        assert (code, out, err) == (0, "end\n", "")

    return run


@pytest.mark.case("C131")
def test_each_new_value_of_a_global_arrives(check) -> None:  # type: ignore[no-untyped-def]
    """C131: a lambda sees each new value of a global, and the name then exists in the worker's `__main__`."""
    check("""
        assert worker_has(w1, "v1") == [False]
        for v1 in range(1, 6):
            assert remotecall_fetch(lambda: v1, w1) == v1
        assert worker_has(w1, "v1") == [True]
        assert worker_has(w2, "v1") == [False]
    """)


@pytest.mark.case("C132")
def test_global_changed_in_place_arrives(check) -> None:  # type: ignore[no-untyped-def]
    """C132: a list or array that is changed in place arrives as it is now; two names of one object are both there."""
    check("""
        import numpy
        values, numbers = [0], numpy.zeros(50_000)
        for count in range(5):
            values[0] = count
            numbers[7] = count
            assert remotecall_fetch(lambda: (values[0], float(numbers[7])), w1) == (count, count)
        v3 = v4 = [1, 2]
        assert remotecall_fetch(lambda: v3, w1) == remotecall_fetch(lambda: v4, w1) == [1, 2]
        assert worker_has(w1, "v3", "v4") == [True, True]
    """)


@pytest.mark.case("C133")
def test_globals_that_are_types_modules_or_cannot_travel(check) -> None:  # type: ignore[no-untyped-def]
    """C133: types and modules are bound by import; a global that cannot travel is an error that names it."""
    check("""
        import decimal, threading
        kind, module = decimal.Decimal, decimal
        assert remotecall_fetch(lambda: kind("1.5") + module.Decimal(1), w1) == decimal.Decimal("2.5")
        lock = threading.Lock()
        try:
            remotecall_fetch(lambda: lock, w1)
        except TypeError as error:
            assert "lock" in str(error), error
        else:
            raise AssertionError("no error")
        assert remotecall_fetch(myid, w1) == w1
    """)


@pytest.mark.case("C134")
def test_equal_but_new_object_replaces_the_old(check) -> None:  # type: ignore[no-untyped-def]
    """C134: an object with equal content but another identity replaces the worker's object."""
    check("""
        v = [1, 2]
        remotecall_fetch(lambda: v.append("here"), w1)
        assert remotecall_fetch(lambda: v, w1) == [1, 2, "here"]
        v = [1, 2]
        assert remotecall_fetch(lambda: v, w1) == [1, 2]
    """)


@pytest.mark.case("C135")
def test_name_goes_back_to_an_earlier_value(check) -> None:  # type: ignore[no-untyped-def]
    """C135: a name that is a, b, a is seen as a, b, a."""
    check("""
        for name in ("a", "b", "a"):
            assert remotecall_fetch(lambda: name, w1) == name
    """)


@pytest.mark.case("C136")
def test_global_travels_only_when_changed(check) -> None:  # type: ignore[no-untyped-def]
    """C136: unchanged it arrives once for five calls, changed each time five times; three mentions are one transfer."""
    check("""
        class Counted:
            def __init__(self, content=0):
                self.content = content
            def __setstate__(self, state):
                __import__("sys").arrived = getattr(__import__("sys"), "arrived", 0) + 1
                self.__dict__.update(state)
        def arrived():
            def count():
                import sys
                number, sys.arrived = getattr(sys, "arrived", 0), 0
                return number
            return remotecall_fetch(count, w1)
        g = Counted()
        for _ in range(5):
            assert remotecall_fetch(lambda: g.content, w1) == 0
        assert arrived() == 1
        for g.content in range(1, 6):
            assert remotecall_fetch(lambda: g.content, w1) == g.content
        assert arrived() == 5
        h = Counted(3)
        assert remotecall_fetch(lambda: h.content + h.content + h.content, w1) == 9
        assert arrived() == 1
    """)


@pytest.mark.case("C137")
def test_global_function_uses_another_one(check) -> None:  # type: ignore[no-untyped-def]
    """C137: a global lambda that uses a global lambda works, also through a third."""
    check("""
        f1 = lambda x: x
        f2 = lambda x: f1(x)
        assert remotecall_fetch(f2, w1, "v") == "v"
        assert remotecall_fetch(lambda x: f2(x), w2, "v") == "v"
    """)


@pytest.mark.case("C138")
def test_captured_locals_are_no_globals(check) -> None:  # type: ignore[no-untyped-def]
    """C138: local variables arrive with the closure, in their present state, and leave no name behind."""
    check("""
        def outer():
            local, values = 0, [0]
            for local in range(1, 4):
                values[0] = local
                assert remotecall_fetch(lambda: (local, values[0]), w1) == (local, local)
            inner = lambda x: (x, local)
            assert remotecall_fetch(lambda x: inner(x), w1, "v") == ("v", 3)
        outer()
        assert worker_has(w1, "local", "values", "inner", "x") == [False] * 4
    """)


@pytest.mark.case("C139")
def test_name_that_only_the_worker_has(check) -> None:  # type: ignore[no-untyped-def]
    """C139: a name that the driver does not have is looked up at the worker; where it is missing, a NameError."""
    check("""
        assign(w1, "only_there", 3)
        assert remotecall_fetch(lambda: only_there, w1) == 3
        try:
            remotecall_fetch(lambda: only_there, w2)
        except RemoteException as error:
            assert isinstance(error.captured.ex, NameError), error
            assert isinstance(error, NameError), error
        else:
            raise AssertionError("no error")
    """)


@pytest.mark.case("C140")
def test_state_in_globals_stays(check) -> None:  # type: ignore[no-untyped-def]
    """C140: shipped functions share one `__main__` at the worker: a counter kept there counts."""
    check("""
        assign(w1, "cnt", 0)
        def increment():
            global cnt
            cnt += 1
            return cnt
        assert [remotecall_fetch(increment, w1) for _ in range(3)] == [1, 2, 3]
        assert remotecall_fetch(lambda: cnt, w1) == 3
        assert "cnt" not in globals()
    """)


@pytest.mark.case("C140")
def test_what_the_worker_computed_is_not_overwritten(check) -> None:  # type: ignore[no-untyped-def]
    """C140, with a placeholder at the driver: a value that a worker put into a global stays while ours is unchanged."""
    check("""
        model = None
        def load():
            global model
            model = "loaded"
        def use():
            return model
        assert use() is None
        remotecall_fetch(load, w1)
        assert [remotecall_fetch(use, w1) for _ in range(3)] == ["loaded"] * 3
        assert model is None
    """)


@pytest.mark.case("C141")
def test_values_are_snapshots(check) -> None:  # type: ignore[no-untyped-def]
    """C141: each process has the value of the moment of sending; nothing flows back."""
    check("""
        A = "first"
        use = lambda: A
        assert remotecall_fetch(use, w1) == "first"
        A = "second"
        assert remotecall_fetch(use, w2) == "second"
        A = None
        there = lambda: vars(__import__("sys").modules["__main__"])["A"]
        assert remotecall_fetch(there, w1) == "first"
        assert remotecall_fetch(there, w2) == "second"
        assert A is None
    """)


@pytest.mark.case("C144")
def test_redefined_function_runs_new_code(check) -> None:  # type: ignore[no-untyped-def]
    """C144: a function of `__main__` that is defined anew runs its new code at the next call."""
    check("""
        def f(): return "old"
        def g(): return f()
        assert (remotecall_fetch(f, w1), remotecall_fetch(g, w1)) == ("old", "old")
        def f(): return "new"
        assert (remotecall_fetch(f, w1), remotecall_fetch(g, w1)) == ("new", "new")
        assert pmap(f, []) == [] and pmap(lambda _: f(), range(2)) == ["new", "new"]
    """)


@pytest.mark.case("C145")
def test_caching_pool_freezes_globals(check) -> None:  # type: ignore[no-untyped-def]
    """C145: a pool that is used again after a global changed still uses the old value; a new pool sees the new one."""
    check("""
        value = "old"
        f = lambda _: value
        pool = CachingPool([w1])
        assert pmap(f, pool, [1]) == ["old"]
        value = "new"
        assert pmap(f, pool, [1]) == ["old"]
        assert remotecall_fetch(f, pool, 1) == "old"
        assert pmap(f, CachingPool([w1]), [1]) == ["new"]
        assert pmap(f, [1]) == ["new"]
    """)
