"""`everywhere`: what runs where, what it returns and raises, what later workers run, where its code seems to stand."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import distpool
from distpool import (
    Channel,
    CompositeException,
    ProcessExitedException,
    RemoteChannel,
    RemoteException,
    everywhere,
    fetchfrom,
    remotecall_eval,
    rmprocs,
)
from support import jobs, loops
from support.main import main_kept

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers


@pytest.fixture(autouse=True)
def as_before(no_cluster: None) -> Iterator[None]:
    """Takes away what a test has defined here, or has said that all later workers shall run."""
    from distpool.member import default_member

    with main_kept():
        yield
    default_member().first_calls.clear()


# -- order -------------------------------------------------------------------------------------------------------------


def test_own_run_comes_last_and_may_wait_for_the_others(workers: StartWorkers) -> None:
    """This process is named first, and still waits for what the worker does meanwhile."""
    (worker,) = workers(1)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(1))
    values = everywhere(
        "c.take() if myid() == 1 else c.put(myid()) and None", c=channel, pids=[1, worker], collect=True
    )
    assert values == {1: worker, worker: None}


def test_all_run_at_the_same_time(workers: StartWorkers) -> None:
    """Each worker waits for the other."""
    pids = workers(2)
    channels = {pid: RemoteChannel[int](lambda: Channel(1)) for pid in pids}
    everywhere(_meet, channels, pids=pids)


def _meet(channels: dict[int, RemoteChannel[int]]) -> None:
    for pid, channel in channels.items():
        if pid != distpool.myid():
            channel.put(1)
    channels[distpool.myid()].take()


def test_runs_in_one_process_follow_each_other(workers: StartWorkers) -> None:
    """A process that is named several times runs one after the other, so nothing is lost between them."""
    (worker,) = workers(1)
    everywhere("log = []", pids=worker)
    everywhere(
        "import threading\nlog.append('in')\nthreading.Event().wait(0.001)\nlog.append('out')", pids=[worker] * 5
    )
    assert everywhere("log", pids=worker) == ["in", "out"] * 5


# -- results and errors ------------------------------------------------------------------------------------------------


def test_values_stay_unless_wanted(workers: StartWorkers) -> None:
    """A value that cannot travel is no failure when nobody asks for it."""
    (worker,) = workers(1)
    assert everywhere(threading.Lock) is None
    assert everywhere("import threading; threading.Lock()", pids=[worker]) is None
    with pytest.raises(TypeError, match="lock"):
        everywhere(threading.Lock, pids=worker)


def test_collect(workers: StartWorkers) -> None:
    """A dict from pid to value, also for one pid; the last value of a process that ran several times."""
    (worker,) = workers(1)
    assert everywhere(distpool.myid, collect=True) == {1: 1, worker: worker}
    assert everywhere(distpool.myid, collect=True, pids=worker) == {worker: worker}
    everywhere("n = 0", pids=worker)
    assert everywhere("n += 1; n", pids=[worker, worker], collect=True) == {worker: 2}


def test_text_without_a_last_expression_has_no_value() -> None:
    """None for statements, for nothing, and for comments."""
    assert [everywhere(text, pids=1) for text in ("x = 1", "", "# nothing", "x")] == [None, None, None, 1]


def test_arguments_of_callables(workers: StartWorkers) -> None:
    """Positional ones and keywords; those that are options of ours by partial."""
    (worker,) = workers(1)
    assert everywhere(jobs.echo, 1, two=2, pids=worker) == ((1,), {"two": 2})
    assert everywhere(functools.partial(jobs.echo, pids=3, what=4), pids=worker) == ((), {"pids": 3, "what": 4})


def test_processes_that_are_gone_fail_alone(workers: StartWorkers) -> None:
    """ProcessExitedException for them; the others have run it."""
    gone, worker = workers(2)
    rmprocs(gone)
    with pytest.raises(CompositeException) as caught:
        everywhere("alive = True", pids=[gone, worker])
    (error,) = caught.value.exceptions
    assert isinstance(error, ProcessExitedException)
    assert caught.value.pids == [worker]
    assert everywhere("alive", pids=worker) is True
    with pytest.raises(ProcessExitedException):
        everywhere("alive", pids=gone)


def test_death_on_the_way(workers: StartWorkers) -> None:
    """A worker that ends while it runs the code; what was to follow there fails too."""
    w1, w2 = workers(2)
    with pytest.raises(CompositeException) as caught:
        everywhere("import os\nif myid() == bad: os._exit(3)", bad=w1, pids=[w1, w2, w1])
    assert [type(error) for error in caught.value] == [ProcessExitedException] * 2


def test_mistakes_raise_before_anything_is_sent(workers: StartWorkers) -> None:
    """Pids, kinds, positional arguments of text, what cannot be pickled."""
    (worker,) = workers(1)
    with pytest.raises(ValueError, match="no process 9999"):
        everywhere("ran = 1", pids=[worker, 9999])
    with pytest.raises(TypeError, match="whole numbers"):
        everywhere("ran = 1", pids=[worker, "2"])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="not a int"):
        everywhere(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="by keyword"):
        everywhere("ran = 1", 2)
    with pytest.raises(TypeError, match="lock"):
        everywhere("ran = 1", x=threading.Lock())
    with pytest.raises(FileNotFoundError):
        everywhere(Path("no_such_file.py"))
    assert fetchfrom(worker, loops.main_value, "ran") == "undefined"


def test_own_failures_look_like_those_of_others(workers: StartWorkers) -> None:
    """A RemoteException with the own pid, for text and callables."""
    workers(1)
    with pytest.raises(CompositeException) as caught:
        everywhere(jobs.fail, "everywhere")
    assert [error.pid for error in caught.value if isinstance(error, RemoteException)][-1] == 1
    assert [type(error.unwrap()) for error in caught.value if isinstance(error, RemoteException)] == [ValueError] * 2


# -- what is sent ------------------------------------------------------------------------------------------------------


class Counted:
    """Counts how often it is pickled, here."""

    pickled = 0

    def __reduce__(self) -> Any:
        Counted.pickled += 1
        return Counted, ()


def test_pickled_once_for_all(workers: StartWorkers) -> None:
    """However many processes get it."""
    pids = workers(3)
    Counted.pickled = 0
    everywhere(jobs.echo, Counted(), pids=[*pids, pids[0]])
    assert Counted.pickled == 1


def test_large_buffers_are_shared(workers: StartWorkers, run_script: RunScript) -> None:
    """Several megabytes to several workers: all get the contents, each may write to its own, and nothing is left."""
    np = pytest.importorskip("numpy")
    pids = workers(3)
    table = np.arange(1_000_000.0)
    everywhere("total = table.sum(); table[0] = myid(); first = table[0]", table=table, pids=pids)
    assert everywhere("first", pids=pids, collect=True) == {pid: float(pid) for pid in pids}
    assert set(everywhere("total", pids=pids, collect=True).values()) == {table.sum()}
    assert table[0] == 0


def test_functions_of_main_bring_their_globals(run_script: RunScript) -> None:
    """A callable of the script, with a large global of it, to several processes at once."""
    code, out, err = run_script(
        """
        from distpool import addprocs, everywhere
        addprocs(2)
        big = bytearray(3_000_000)
        def size(more):
            return len(big) + len(more)
        print(everywhere(size, bytearray(2_000_000), collect=True))
        """
    )
    assert (code, out, err) == (0, "{1: 5000000, 2: 5000000, 3: 5000000}\n", "")


def test_names_of_distpool_are_known_but_hide_nothing(workers: StartWorkers) -> None:
    """They are there unless the process has such a name of its own."""
    (worker,) = workers(1)
    assert everywhere("nprocs()", pids=worker) == 2
    everywhere("take = 'mine'", pids=worker)
    assert everywhere("take", pids=worker) == "mine"
    assert everywhere("def later():\n    return nworkers()\nlater()", pids=worker) == 1


def test_modules_are_imported_here_first(
    workers: StartWorkers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those at top level and in blocks, when several processes get the code; not those in functions."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("conf_top", "conf_block", "conf_function"):
        (tmp_path / f"{name}.py").write_text("")
    pids = workers(2)
    text = "import conf_top\nif True:\n    from conf_block import __name__ as n\ndef f():\n    import conf_function\n"
    with contextlib.suppress(CompositeException):  # these workers have an older path
        everywhere(text + "import conf_nowhere", pids=pids)
    loaded = {name for name in sys.modules if name.startswith("conf_")}
    assert loaded == {"conf_top", "conf_block"}
    for name in loaded:
        del sys.modules[name]


# -- where it seems to stand -------------------------------------------------------------------------------------------


def test_tracebacks_show_the_callers_file(workers: StartWorkers) -> None:
    """Text that stands in the file: its file name and line, and the line itself."""
    (worker,) = workers(1)
    with pytest.raises(ZeroDivisionError) as caught:
        everywhere(
            """
def conf_divide():
    return 1 / 0  # the line to find

conf_divide()
""",
            pids=worker,
        )
    assert isinstance(caught.value, RemoteException)
    lines = Path(__file__).read_text().splitlines()
    number = 1 + lines.index("    return 1 / 0  # the line to find")
    text = caught.value.captured.traceback
    assert f'File "{__file__}", line {number}, in conf_divide' in text
    assert "return 1 / 0  # the line to find" in text


def test_tracebacks_of_text_that_stands_nowhere(workers: StartWorkers) -> None:
    """Text that was put together: the place of the call, and its own lines."""
    (worker,) = workers(1)
    with pytest.raises(NameError) as caught:
        everywhere("\n".join(["x = 1", "conf_" + "unknown"]), pids=worker)
    assert isinstance(caught.value, RemoteException)
    text = caught.value.captured.traceback
    assert f"<everywhere at {__file__}:" in text
    assert "line 2, in <module>\n    conf_unknown" in text


def test_syntax_errors_name_the_callers_line() -> None:
    """The line of the file, so that an editor finds it."""
    with pytest.raises(SyntaxError) as caught:
        everywhere("x = = 1")
    assert caught.value.filename == __file__
    lines = Path(__file__).read_text().splitlines()
    assert caught.value.lineno == 1 + lines.index('        everywhere("x = = 1")')


def test_remotecall_eval_in_a_module_that_is_not_there(workers: StartWorkers) -> None:
    """An import error from there; here nothing is imported."""
    (worker,) = workers(1)
    with pytest.raises(ModuleNotFoundError):
        remotecall_eval("conf_no_module", worker, "1")
    assert remotecall_eval(sys.modules["math"], worker, "pi > 3") is True


# -- persist -----------------------------------------------------------------------------------------------------------


def test_persist_keeps_the_order_and_the_values(workers: StartWorkers) -> None:
    """Later workers run it all, one after the other, with the values of then; text and callables."""
    values = [1]
    everywhere("kept = list(values)", values=values, persist=True)
    values.append(2)
    everywhere("kept.append(myid())", persist=True, pids=[])
    everywhere(loops.bump, persist=True, pids=[])
    pids = workers(2)
    assert everywhere("kept", pids=pids, collect=True) == {pid: [1, pid] for pid in pids}
    assert everywhere("conf_bumps", pids=pids, collect=True) == dict.fromkeys(pids, 1)


def test_persist_runs_before_other_work(workers: StartWorkers) -> None:
    """A task of the default pool that waits for a worker finds the name there."""
    everywhere("import threading\nthreading.Event().wait(0.05)\nconf_ready = True", persist=True, pids=[])
    pids = workers(2)
    assert distpool.pmap(loops.main_value, ["conf_ready"] * 8) == [True] * 8
    assert distpool.workers() == pids


def test_the_same_again_is_kept_once(workers: StartWorkers) -> None:
    """A notebook's cell that is run twice."""
    for _ in range(2):
        everywhere("conf_times = globals().get('conf_times', 0) + 1", persist=True, pids=[])
    (worker,) = workers(1)
    assert everywhere("conf_times", pids=worker) == 1


def test_what_fails_is_not_kept(workers: StartWorkers) -> None:
    """The call raises, and later workers join as ever."""
    workers(1)
    with pytest.raises(CompositeException):
        everywhere("1 / 0", persist=True)
    assert len(workers(1)) == 1


def test_a_worker_that_cannot_run_it_does_not_join(workers: StartWorkers) -> None:
    """It is ended, and addprocs says why."""
    everywhere("if myid() > 1: raise KeyError('not here')", persist=True, pids=[1])
    with pytest.raises(CompositeException) as caught:
        workers(1)
    (error,) = caught.value.exceptions
    assert "persist=True" in str(error)
    assert isinstance(error, distpool.LaunchWorkerError)
    assert isinstance(error.__cause__, KeyError)
    assert distpool.workers() == [1]


def test_persist_is_for_process_1(workers: StartWorkers) -> None:
    """Only process 1 adds workers."""
    (worker,) = workers(1)
    with pytest.raises(RuntimeError, match="only process 1"):
        fetchfrom(worker, everywhere, "x = 1", persist=True)
