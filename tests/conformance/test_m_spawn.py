"""Section M: spawn and its relatives, `distributed`, `everywhere`; and the cases without workers that need them.

Also here: C003 b, C004 and C006 of section A, C142 and C143 of section J.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import (
    CompositeException,
    Future,
    RemoteChannel,
    RemoteException,
    distributed,
    everywhere,
    fetch,
    fetchfrom,
    myid,
    procs,
    remotecall_eval,
    remotecall_fetch,
    spawn,
    spawnat,
    splitrange,
    sync,
)
from support import loops
from support.main import main_kept

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers


@pytest.fixture(autouse=True)
def main_as_before(no_cluster: None) -> Iterator[None]:
    """Takes away what a test has defined in this process's own `__main__`."""
    with main_kept():
        yield


# -- without workers ---------------------------------------------------------------------------------------------------


@pytest.mark.case("C003")
def test_distributed_runs_here_without_workers() -> None:
    """C003 b: the loop is the driver's while it is alone."""
    assert distributed(operator.add, range(100))(lambda i: 1) == 100


@pytest.mark.case("C004")
def test_spawn_runs_here_without_workers() -> None:
    """C004: a lone driver is the one worker."""
    assert [fetch(spawn(myid)) for _ in range(3)] == [1, 1, 1]


@pytest.mark.case("C006")
def test_everywhere_runs_here_without_workers() -> None:
    """C006: code runs in the driver's own __main__."""
    assert everywhere("conf_a = 5") is None
    assert loops.main_value("conf_a") == 5


# -- spawn -------------------------------------------------------------------------------------------------------------


@pytest.mark.case("C190")
def test_spawnat_and_fetchfrom_run_at_the_pid(workers: StartWorkers) -> None:
    """C190 a: the pid that was asked for is where it runs."""
    other, _ = workers(2)
    future = spawnat(other, myid)
    assert isinstance(future, Future)
    assert fetch(future) == other
    assert fetchfrom(other, myid) == other


@pytest.mark.case("C190")
def test_spawnat_any_picks_a_worker(workers: StartWorkers) -> None:
    """C190 b: the owner is one of the workers."""
    pids = workers(2)
    future = spawnat("any", myid)
    assert future.where in pids
    assert fetch(future) == future.where


@pytest.mark.case("C191")
def test_strict_turns_reach_every_worker_once(workers: StartWorkers) -> None:
    """C191: as many calls in turn as workers."""
    pids = workers(3)
    assert sorted(fetch(spawnat("next", myid)) for _ in pids) == pids
    assert sorted(fetchfrom("next", myid) for _ in pids) == pids


@pytest.mark.case("C191")
def test_strict_turns_on_a_worker_include_itself(workers: StartWorkers) -> None:
    """C191: each process counts its own turns, over all workers."""
    pids = workers(2)
    assert sorted(fetchfrom(pids[0], loops.spawn_from_here, 2)) == pids


@pytest.mark.case("C192")
def test_spawning_with_a_global_on_every_process(run_script: RunScript) -> None:
    """C192: a loop over a global of the driver, in each process."""
    code, out, err = run_script(
        """
        from distpool import addprocs, procs, spawnat
        addprocs(2)
        n = 10
        futures = [spawnat(p, lambda: [i for i in range(n)]) for p in procs()]
        for future in futures:
            future.wait()
        print([len(future.fetch()) for future in futures])
        """
    )
    assert (code, out, err) == (0, "[10, 10, 10]\n", "")


@pytest.mark.case("C142")
def test_spawned_lambda_uses_a_global(run_script: RunScript) -> None:
    """C142: the global travels with the lambda."""
    code, out, err = run_script(
        """
        from distpool import addprocs, fetch, spawn
        addprocs(1)
        v = 10
        print(fetch(spawn(lambda: 1 + v)))
        """
    )
    assert (code, out, err) == (0, "11\n", "")


# -- clear -------------------------------------------------------------------------------------------------------------


@pytest.mark.case("C143")
def test_clear_sets_names_to_none(run_script: RunScript) -> None:
    """C143: one name on one worker, three on all; the driver keeps its own, and unknown names are ignored."""
    code, out, err = run_script(
        """
        import sys
        from distpool import addprocs, clear, everywhere, remotecall_fetch
        w1, w2 = addprocs(2)
        a, b, c = [1], [2], [3]
        def at(pid):
            return [remotecall_fetch(lambda n=n: vars(sys.modules["__main__"]).get(n), pid) for n in "abc"]
        for pid in w1, w2:
            remotecall_fetch(lambda: (a, b, c), pid)
        clear("a", w1)
        print(at(w1), at(w2), a)
        clear(["a", "b", "c", "unknown"])
        print(at(w1), at(w2), a, b, c)
        print(everywhere("'unknown' in globals()", pids=w1))
        print(remotecall_fetch(lambda: a, w1))
        """
    )
    expected = "[None, [2], [3]] [[1], [2], [3]] [1]\n[None, None, None] [None, None, None] [1] [2] [3]\nFalse\n[1]\n"
    assert (code, out, err) == (0, expected, "")


# -- distributed -------------------------------------------------------------------------------------------------------


@pytest.mark.case("C193")
@pytest.mark.parametrize(
    ("first", "last", "np", "chunks"),
    [
        (1, 11, 1, [(1, 11)]),
        (1, 11, 2, [(1, 6), (7, 11)]),
        (0, 10, 2, [(0, 5), (6, 10)]),
        (-1, 9, 2, [(-1, 4), (5, 9)]),
        (1, 11, 3, [(1, 4), (5, 8), (9, 11)]),
        (0, 10, 3, [(0, 3), (4, 7), (8, 10)]),
        (1, 3, 3, [(1, 1), (2, 2), (3, 3)]),
        (1, 3, 4, [(1, 1), (2, 2), (3, 3)]),
        (0, 2, 4, [(0, 0), (1, 1), (2, 2)]),
        (1, 0, 4, []),
    ],
)
def test_splitrange(first: int, last: int, np: int, chunks: list[tuple[int, int]]) -> None:
    """C193: the table of the specification, and an empty range."""
    assert splitrange(first, last, np) == [range(start, end + 1) for start, end in chunks]


@pytest.mark.case("C194")
def test_items_are_spread_evenly(workers: StartWorkers) -> None:
    """C194 a: seven items on four workers."""
    pids = workers(4)
    counts = Counter(distributed(operator.add, range(7))(loops.pid_in_list))
    assert set(counts) == set(pids)
    assert sum(counts.values()) == 7
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.case("C194")
def test_fewer_items_than_workers(workers: StartWorkers) -> None:
    """C194 b: two items on four workers."""
    workers(4)
    assert distributed(operator.add, range(1, 3))(loops.identity) == 3


@pytest.mark.case("C195")
def test_the_sequence_is_made_once(workers: StartWorkers) -> None:
    """C195: the expression has its side effect once."""
    workers(2)
    made = []

    def sequence() -> range:
        made.append(1)
        return range(10)

    assert distributed(operator.add, sequence())(loops.identity) == 45
    assert made == [1]


@pytest.mark.case("C196")
@pytest.mark.parametrize("kind", ["range", "int8", "uint8", "int64", "float64"])
def test_ranges_and_arrays(workers: StartWorkers, kind: str) -> None:
    """C196 a: 1 to 10 adds up to 55 in all kinds of numbers."""
    np = pytest.importorskip("numpy")
    workers(3)
    sequence: Any = range(1, 11) if kind == "range" else np.arange(1, 11, dtype=kind)
    assert distributed(operator.add, sequence)(loops.identity) == 55


@pytest.mark.case("C196")
def test_order_is_kept(workers: StartWorkers) -> None:
    """C196 b: a reducer that is not commutative."""
    workers(3)
    assert distributed(operator.add, range(100))(loops.in_list) == list(range(100))


@pytest.mark.case("C197")
def test_empty_sequence(workers: StartWorkers) -> None:
    """C197: nothing to reduce is an error, unless init says what it gives."""
    workers(2)
    with pytest.raises(ValueError, match="init="):
        distributed(operator.add, [])(loops.identity)
    assert distributed(operator.add, [], init=7)(loops.identity) == 7
    assert distributed(operator.add, [1, 2, 3], init=10)(loops.identity) == 16


@pytest.mark.case("C198")
def test_error_with_reducer(workers: StartWorkers) -> None:
    """C198: the failing item's error comes out."""
    workers(2)
    with pytest.raises(CompositeException) as caught:
        distributed(operator.add, range(10))(loops.fail_at_three)
    (error,) = caught.value.exceptions
    assert isinstance(error, RemoteException)
    assert isinstance(error, KeyError)
    assert error.unwrap().args == ("item three",)


@pytest.mark.case("C199")
def test_without_reducer_it_returns_at_once(workers: StartWorkers) -> None:
    """C199 a: the body waits for room in a channel, the call does not; then all items were processed."""
    workers(2)
    channel: RemoteChannel[int] = RemoteChannel(lambda: distpool.Channel(1))
    loop = distributed(range(10))(loops.put_into(channel))
    assert not loop.isready()
    assert sorted(channel.take() for _ in range(10)) == list(range(10))
    assert loop.wait() is loop
    assert loop.isready()


@pytest.mark.case("C199")
def test_sync_waits_for_the_loop(workers: StartWorkers) -> None:
    """C199 b: at the end of the block all items are in the channel."""
    workers(2)
    channel: RemoteChannel[int] = RemoteChannel(lambda: distpool.Channel(100))
    with sync():
        distributed(range(10))(loops.put_into(channel))
    taken = []
    while channel.isready():
        taken.append(channel.take())
    assert sorted(taken) == list(range(10))


@pytest.mark.case("C200")
def test_error_without_reducer(workers: StartWorkers) -> None:
    """C200: waiting raises all that failed, in order."""
    workers(2)
    loop = distributed(range(2))(loops.fail)
    with pytest.raises(CompositeException) as caught:
        loop.wait()
    assert [str(error.unwrap()) for error in caught.value if isinstance(error, RemoteException)] == ["item 0", "item 1"]


@pytest.mark.case("C200")
def test_error_that_nobody_waits_for_is_printed(run_script: RunScript) -> None:
    """C200: it is printed when the handle is gone, or at the end of the program; not when somebody waited."""
    code, out, err = run_script(
        """
        from distpool import CompositeException, addprocs, distributed
        def body(text):
            raise ValueError(text)
        addprocs(1)
        waited = distributed(["waited for"])(body)
        try:
            waited.wait()
        except CompositeException:
            print("raised")
        kept = distributed(["kept and not waited for"])(body)
        while not kept.isready():
            pass
        """
    )
    assert (code, out) == (0, "raised\n")
    assert "kept and not waited for" in err
    assert "ValueError: waited for" not in err


@pytest.mark.case("C201")
def test_writes_stay_in_the_worker(workers: StartWorkers) -> None:
    """C201: a list of the driver is not changed by the loop."""
    workers(2)
    mine: list[int] = []
    distributed(range(10))(lambda x: mine.append(x)).wait()
    assert mine == []


@pytest.mark.case("C202")
@pytest.mark.parametrize(
    ("iterable", "items"),
    [
        (zip("abc", range(3), strict=True), [("a", 0), ("b", 1), ("c", 2)]),
        (enumerate("ab"), [(0, "a"), (1, "b")]),
        ((x * x for x in range(4)), [0, 1, 4, 9]),
        ({"k": 1, "l": 2}, ["k", "l"]),
        ({5}, [5]),
        ("text", ["t", "e", "x", "t"]),
    ],
    ids=["zip", "enumerate", "generator", "dict", "set", "str"],
)
def test_any_iterable(workers: StartWorkers, iterable: Any, items: list[Any]) -> None:
    """C202: each item once, in order."""
    workers(2)
    assert distributed(operator.add, iterable)(loops.in_list) == items


@pytest.mark.case("C203")
def test_each_worker_gets_its_slice_only(workers: StartWorkers) -> None:
    """C203: of 10,000,000 elements in 40 rows, each of four workers receives ten rows."""
    np = pytest.importorskip("numpy")
    workers(4)
    table = np.zeros((40, 250_000))
    received = distributed(operator.add, table)(lambda row: [loops.bytes_received(row)])
    assert len(received) == 40
    assert set(received) == {table.nbytes // 4}


# -- everywhere --------------------------------------------------------------------------------------------------------


@pytest.mark.case("C204")
def test_value_of_one_process(workers: StartWorkers) -> None:
    """C204: for a single pid the last expression's value comes back."""
    w1, _ = workers(2)
    assert everywhere("myid()+1", pids=1) == 2
    assert everywhere("myid()*2", pids=w1) == 2 * w1


@pytest.mark.case("C205")
def test_definition_on_one_process_only(workers: StartWorkers) -> None:
    """C205: a name for w1 alone; naming it twice runs the code twice."""
    w1, w2 = workers(2)
    everywhere("d = 1", pids=w1)
    assert [fetchfrom(pid, loops.main_value, "d") for pid in (w1, w2, 1)] == [1, "undefined", "undefined"]
    assert everywhere("d += 1", pids=[w1, w1]) is None
    assert everywhere("d", pids=w1) == 3


@pytest.mark.case("C206")
def test_callable_runs_once_for_each_mention(workers: StartWorkers) -> None:
    """C206: three times here, twice at w1, in __main__."""
    w1, _ = workers(2)
    assert everywhere(loops.bump, pids=[1, w1, 1, 1, w1]) is None
    assert loops.main_value("conf_bumps") == 3
    assert fetchfrom(w1, loops.main_value, "conf_bumps") == 2
    assert everywhere(loops.bump, pids=w1) == "__main__"


@pytest.mark.case("C207")
def test_shapes_of_errors(workers: StartWorkers) -> None:
    """C207: bare for one pid, a CompositeException for several, in order, this process last."""
    w1, w2 = workers(2)
    for pid in (w1, 1):
        with pytest.raises(RemoteException) as single:
            everywhere("1/0", pids=pid)
        assert single.value.pid == pid
        assert isinstance(single.value, ZeroDivisionError)
    for pids, order in (([w1, 1], [w1, 1]), ([w2, w1], [w2, w1]), ([1, w2], [w2, 1])):
        with pytest.raises(CompositeException) as several:
            everywhere("1/0", pids=pids)
        assert [error.pid for error in several.value if isinstance(error, RemoteException)] == order


@pytest.mark.case("C208")
def test_call_from_a_module_that_workers_lack(run_script: RunScript, tmp_path: Path) -> None:
    """C208: a module loaded from a file that no path leads to; the name is in every __main__ all the same."""
    hidden = tmp_path / "hidden.py"
    hidden.write_text("import distpool\ndef define():\n    distpool.everywhere('found = myid()')\n")
    code, out, err = run_script(
        """
        import importlib.util, sys
        from distpool import addprocs, everywhere
        spec = importlib.util.spec_from_file_location("hidden_module", sys.argv[1])
        module = sys.modules["hidden_module"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        addprocs(2)
        module.define()
        print(everywhere("found", collect=True), found, hasattr(module, "found"))
        """,
        hidden,
    )
    assert (code, out, err) == (0, "{1: 1, 2: 2, 3: 3} 1 False\n", "")


@pytest.mark.case("C209")
def test_paths_from_the_callers_directory(run_script: RunScript, tmp_path: Path) -> None:
    """C209: a file of code by a relative name, and a data file found by __file__, from another current directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "definitions.py").write_text("from_file = 40 + extra\nits_name = __file__\n")
    (folder / "data.txt").write_text("2")
    (folder / "caller.py").write_text(
        "import pathlib\n"
        "from distpool import everywhere\n"
        "def define():\n"
        "    everywhere(pathlib.Path('definitions.py'), extra=2)\n"
        "    everywhere('''\n"
        "from pathlib import Path\n"
        "from_data = int(Path(__file__).with_name('data.txt').read_text())\n"
        "''')\n"
    )
    code, out, err = run_script(
        """
        import sys
        from distpool import addprocs, everywhere
        sys.path.insert(0, sys.argv[1])
        import caller
        addprocs(2)
        caller.define()
        print(everywhere("from_file, from_data", collect=True))
        print(everywhere("its_name == path", path=sys.argv[1] + "/definitions.py", pids=2))
        """,
        folder,
    )
    assert (code, out, err) == (0, "{1: (42, 2), 2: (42, 2), 3: (42, 2)}\nTrue\n", "")


@pytest.mark.case("C210")
def test_workers_that_join_later(workers: StartWorkers) -> None:
    """C210 a: they lack the name, unless it was said that it persists."""
    workers(1)
    everywhere("conf_once = 1")
    (second,) = workers(1)
    assert fetchfrom(second, loops.main_value, "conf_once") == "undefined"
    everywhere("conf_always = 1", persist=True)
    (third,) = workers(1)
    assert fetchfrom(third, loops.main_value, "conf_always") == 1


@pytest.mark.case("C210")
def test_local_variables_are_not_seen(workers: StartWorkers) -> None:
    """C210 b: code text knows what it is given by keyword, and nothing else of the caller."""
    (w1,) = workers(1)
    local_variable = 5
    with pytest.raises(NameError, match="local_variable"):
        everywhere("y = local_variable", pids=w1)
    assert everywhere("y = value; y", value=local_variable, pids=w1) == 5


@pytest.mark.case("C211")
def test_imports(workers: StartWorkers) -> None:
    """C211 a: twice is fine; import and use in one block."""
    workers(2)
    for _ in range(2):
        everywhere("import json")
    everywhere("import string\nconf_letters = string.ascii_lowercase[:3]")
    assert set(everywhere("conf_letters", collect=True).values()) == {"abc"}


@pytest.mark.case("C211")
def test_syntax_errors_are_found_here(workers: StartWorkers) -> None:
    """C211 b: nothing is sent, so nothing runs."""
    workers(1)
    with pytest.raises(SyntaxError) as caught:
        everywhere("conf_begun = 1\nthis is wrong Python")
    assert not isinstance(caught.value, RemoteException)
    assert everywhere("'conf_begun' in globals()", collect=True) == dict.fromkeys(procs(), False)


@pytest.mark.case("C212")
def test_one_failure_stops_nobody(workers: StartWorkers) -> None:
    """C212: one of four fails, the other three have run it."""
    pids = [1, *workers(3)]
    with pytest.raises(CompositeException) as caught:
        everywhere("assert myid() != bad; conf_done = True", bad=pids[1])
    assert len(caught.value) == 1
    done = [remotecall_fetch(loops.main_value, pid, "conf_done") for pid in pids]
    assert done == [True, "undefined", True, True]


@pytest.mark.case("C213")
def test_evaluation_in_a_named_module(workers: StartWorkers) -> None:
    """C213: the name is set in that module, on that worker, only; the form with one pid returns the value."""
    w1, w2 = workers(2)
    assert remotecall_eval("colorsys", [w1], "conf_marked = 7") is None
    assert remotecall_eval("colorsys", w1, "conf_marked + 1") == 8
    assert remotecall_eval("colorsys", w2, "'conf_marked' in globals()") is False
    assert fetchfrom(w1, loops.main_value, "conf_marked") == "undefined"


@pytest.mark.case("C213")
def test_everywhere_from_a_worker(workers: StartWorkers) -> None:
    """C213: the same from a worker, to all processes that it knows."""
    w1, w2 = workers(2)
    remotecall_fetch(loops.everywhere_from_here, w1, "conf_told")
    assert [fetchfrom(pid, loops.main_value, "conf_told") for pid in (1, w1, w2)] == [1, w1, w2]
