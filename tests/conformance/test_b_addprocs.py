"""Section B: adding workers, counting them, who they are.

Only workers of this machine. Left out: nothing of the section; C024 is shown without `everywhere`, which comes with a
later issue.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import distpool
from conformance import deeds
from distpool import (
    CompositeException,
    LaunchWorkerError,
    RemoteException,
    addprocs,
    myid,
    nprocs,
    nworkers,
    procs,
    remotecall_fetch,
    rmprocs,
)
from support import jobs

if TYPE_CHECKING:
    from conftest import RunScript, StartScript, StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


def other_processes() -> set[int]:
    """The descendants of this process."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.mark.case("C010")
def test_addprocs_returns_the_new_ids() -> None:
    """C010a: four workers, four ascending ids from 2 on, counted by everyone."""
    ids = addprocs(4)
    assert ids == sorted(set(ids))
    assert len(ids) == 4
    assert ids[0] >= 2
    assert (nprocs(), nworkers()) == (5, 4)


@pytest.mark.case("C010")
def test_the_first_ids_are_2_and_3(run_script: RunScript) -> None:
    """C010b: the first workers of a process are 2 and 3."""
    assert run_script("from distpool import addprocs\nprint(addprocs(2))") == (0, "[2, 3]\n", "")


@pytest.mark.case("C010")
def test_without_a_number_there_is_one_worker_per_core(run_script: RunScript) -> None:
    """C010c: addprocs() adds as many workers as this process has cores."""
    text = """
        import os
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
        from distpool import addprocs
        from distpool.membership import usable_cores
        print(len(addprocs()) == usable_cores() <= 2)
    """
    assert run_script(text) == (0, "True\n", "")


@pytest.mark.case("C011")
def test_procs_and_workers_list_everyone(run_script: RunScript) -> None:
    """C011a: procs has 1, workers has not."""
    text = """
        from distpool import addprocs, procs, workers
        addprocs(2)
        print(sorted(procs()), sorted(workers()))
    """
    assert run_script(text) == (0, "[1, 2, 3] [2, 3]\n", "")


@pytest.mark.case("C011")
def test_each_worker_knows_its_id(workers: StartWorkers) -> None:
    """C011b: myid() in a process is the id by which it was called."""
    pids = workers(3)
    assert [remotecall_fetch(myid, pid) for pid in [1, *pids]] == [1, *pids]


@pytest.mark.case("C012")
def test_ids_are_never_reused(workers: StartWorkers) -> None:
    """C012: the next worker takes the next id, though an earlier one is free."""
    pids = workers(2)
    rmprocs(pids[-1])
    assert addprocs(1) == [pids[-1] + 1]


@pytest.mark.case("C013")
def test_workers_count_as_the_driver_does(workers: StartWorkers) -> None:
    """C013: after addprocs every worker sees the driver's counts, itself included."""
    pids = workers(4)
    assert [remotecall_fetch(deeds.counts, pid) for pid in pids] == [deeds.counts()] * 4


@pytest.mark.case("C014")
def test_no_workers_are_added() -> None:
    """C014a: addprocs(0) starts nothing."""
    before = other_processes()
    assert addprocs(0) == []
    assert other_processes() == before
    assert procs() == [1]


@pytest.mark.case("C014")
def test_a_negative_number_is_refused() -> None:
    """C014b: addprocs(-1) is a mistake of the caller."""
    with pytest.raises(ValueError, match="-1"):
        addprocs(-1)


@pytest.mark.case("C015")
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"nonsense": 3}, TypeError, "nonsense"),
        ({"tunnel": True}, TypeError, "tunnel"),
        ({"topology": "ring"}, ValueError, "ring"),
        ({"on_failure": "shrug"}, ValueError, "shrug"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], error: type[Exception], text: str) -> None:
    """C015: an unknown option or value is named by the error, and no process is started."""
    before = other_processes()
    with pytest.raises(error, match=text):
        addprocs(1, **options)
    assert other_processes() == before
    assert procs() == [1]


@pytest.mark.case("C016")
def test_a_worker_cannot_add_workers(workers: StartWorkers) -> None:
    """C016a: addprocs on a worker fails before it does anything."""
    first, _ = pids = workers(2)
    with pytest.raises(RemoteException, match="only process 1") as caught:
        remotecall_fetch(addprocs, first, 1)
    assert type(caught.value.captured.ex) is RuntimeError
    assert procs() == [1, *pids]


@pytest.mark.case("C016")
def test_a_worker_cannot_remove_workers(workers: StartWorkers) -> None:
    """C016b: rmprocs on a worker fails, and everybody still answers."""
    first, second = pids = workers(2)
    with pytest.raises(RemoteException, match="only process 1") as caught:
        remotecall_fetch(rmprocs, first, second)
    assert type(caught.value.captured.ex) is RuntimeError
    assert [remotecall_fetch(myid, pid) for pid in pids] == pids


@pytest.mark.case("C017")
def test_a_worker_can_have_process_1_remove_another(workers: StartWorkers) -> None:
    """C017: rmprocs called by a worker but run on process 1 succeeds; the finished handle travels back."""
    first, second = workers(2)
    handle = remotecall_fetch(deeds.relay, first, rmprocs, 1, second)
    assert handle.isready()
    assert procs() == [1, first]
    assert remotecall_fetch(deeds.counts, first) == deeds.counts()


@pytest.mark.case("C018")
def test_a_worker_starts_in_its_directory(tmp_path: Path, workers: StartWorkers) -> None:
    """C018: relative names mean files of `dir` on the worker; the driver stays where it is."""
    (tmp_path / "x.py").write_text("found = True\n")
    here = os.getcwd()
    (pid,) = workers(1, dir=str(tmp_path))
    assert remotecall_fetch(deeds.read_text, pid, "x.py") == "found = True\n"
    assert os.getcwd() == here


@pytest.mark.case("C019")
@pytest.mark.parametrize("env", [{"CONF_E": "7"}, [("CONF_E", "7")]])
def test_env_reaches_the_worker_only(env: Any, workers: StartWorkers) -> None:
    """C019a: `env`, a mapping or pairs, is set on the worker and not on the driver."""
    (pid,) = workers(1, env=env)
    assert remotecall_fetch(jobs.environment, pid, "CONF_E") == "7"
    assert "CONF_E" not in os.environ


@pytest.mark.case("C019")
def test_a_worker_gets_the_path_of_its_birth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: StartWorkers
) -> None:
    """C019b: a worker has the driver's sys.path as it was when the worker was added."""
    before = sys.path[:]
    (early,) = workers(1)
    monkeypatch.setattr(sys, "path", [before[-1], *before[:-1], str(tmp_path)])
    (late,) = workers(1)
    assert remotecall_fetch(deeds.paths, early) == before
    assert remotecall_fetch(deeds.paths, late) == sys.path


@pytest.mark.case("C020")
def test_libraries_of_a_worker_use_one_thread(monkeypatch: pytest.MonkeyPatch, workers: StartWorkers) -> None:
    """C020: numerical libraries get one thread per worker, in name and in fact; the driver's limit stays."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    for pid in workers(2):
        assert remotecall_fetch(jobs.environment, pid, "OMP_NUM_THREADS") == "1"
        assert remotecall_fetch(jobs.environment, pid, "OPENBLAS_NUM_THREADS") == "1"
        before, after = remotecall_fetch(deeds.threads_of_numpy, pid)
        assert after <= before
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.case("C020")
def test_libraries_of_a_worker_may_be_left_alone(monkeypatch: pytest.MonkeyPatch, workers: StartWorkers) -> None:
    """C020: with enable_threaded_blas=True nothing is forced upon them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for pid in workers(2, enable_threaded_blas=True):
        assert remotecall_fetch(jobs.environment, pid, "OMP_NUM_THREADS") is None


@pytest.mark.case("C020")
def test_preloaded_libraries_use_one_thread(run_script: RunScript) -> None:
    """C020: a library that the workers share by preload= is limited too, unless it is to be left alone."""
    text = """
        import os
        for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
            del os.environ[name]
        from distpool import addprocs, remotecall_fetch

        def threads():
            import numpy
            numpy.ones((600, 600)) @ numpy.ones((600, 600))
            return len(os.listdir("/proc/self/task")), os.environ.get("OMP_NUM_THREADS")

        plain, preloaded, free = *addprocs(1), *addprocs(1, preload=["numpy"]), *addprocs(
            1, preload=["numpy"], enable_threaded_blas=True)
        remotecall_fetch(threads, plain)
        print(remotecall_fetch(threads, preloaded) == remotecall_fetch(threads, plain))
        print(remotecall_fetch(threads, preloaded)[1], remotecall_fetch(threads, free)[1])
    """
    assert run_script(text) == (0, "True\n1 None\n", "")


@pytest.mark.case("C020")
def test_the_limit_of_the_user_stays(monkeypatch: pytest.MonkeyPatch, workers: StartWorkers) -> None:
    """C020: a limit that the user has set already is passed on as it is."""
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (pid,) = workers(1)
    assert remotecall_fetch(jobs.environment, pid, "OMP_NUM_THREADS") == "3"


@pytest.mark.case("C021")
def test_counts_rise_while_workers_are_added() -> None:
    """C021: while another thread adds workers, nprocs never falls, and ends at the right number."""
    adding = threading.Thread(target=addprocs, args=(3,))
    adding.start()
    seen = [nprocs()]
    while adding.is_alive():
        seen.append(nprocs())
    seen.append(nprocs())
    assert seen == sorted(seen)
    assert seen[-1] == 4


@pytest.mark.case("C021")
def test_removal_waits_for_an_addition(run_script: RunScript) -> None:
    """C021: rmprocs called while addprocs runs in another thread waits for its end."""
    text = """
        import os, sys, threading
        from distpool import addprocs, procs, rmprocs

        folder = os.getcwd()
        started, gate = os.path.join(folder, "started"), os.path.join(folder, "gate")
        os.mkfifo(started)
        os.mkfifo(gate)
        with open("slow_to_import.py", "w") as module:
            module.write(f"open({started!r}, 'w').close()\\nopen({gate!r}).close()\\n")
        sys.path.insert(0, folder)
        [first] = addprocs(1)
        adding = threading.Thread(target=addprocs, args=(1,), kwargs={"preload": ["slow_to_import"]})
        adding.start()
        open(started).close()  # the new fork server imports the module now: addprocs is in the middle

        seen = []
        removing = threading.Thread(target=lambda: (rmprocs(first), seen.append(procs())))
        removing.start()
        removing.join(0.3)
        print(seen)
        open(gate, "w").close()
        removing.join()
        adding.join()
        print(seen)
    """
    assert run_script(text) == (0, "[]\n[[1, 3]]\n", "")


@pytest.mark.case("C022")
def test_new_workers_enter_the_default_pool(workers: StartWorkers) -> None:
    """C022: a default pool that was asked for before has the new workers, and no others."""
    pool = distpool.default_worker_pool()
    pids = workers(2)
    assert len(pool) == 2
    assert sorted(pool.workers()) == pids


@pytest.mark.case("C023")
def test_local_workers_share_a_machine_with_the_driver(workers: StartWorkers) -> None:
    """C023a: procs(pid) has everyone, whoever asks about whomever."""
    first, second = workers(2)
    everyone = [1, first, second]
    assert sorted(procs(1)) == sorted(procs(first)) == everyone
    assert sorted(remotecall_fetch(procs, second, first)) == everyone
    assert sorted(remotecall_fetch(procs, second, 1)) == everyone


@pytest.mark.case("C023")
def test_the_machine_of_nobody_is_an_error(workers: StartWorkers) -> None:
    """C023b: a process that never was has no machine."""
    workers(1)
    with pytest.raises(ValueError, match="999"):
        procs(999)


@pytest.mark.case("C023")
def test_check_same_host(workers: StartWorkers) -> None:
    """C023c: all local processes share a host, as the driver and workers see it."""
    first, second = workers(2)
    assert distpool.check_same_host([1, first, second]) is True
    assert remotecall_fetch(distpool.check_same_host, second, [1, first, second]) is True


@pytest.mark.case("C024")
def test_a_script_with_workers_ends(run_script: RunScript) -> None:
    """C024 (f sent by calls, not by `everywhere`): a script that used a worker ends with status 0 and leaves nobody."""
    text = """
        from distpool import addprocs, myid, procs, remotecall_fetch

        addprocs(1)

        def f():
            return myid()

        print([remotecall_fetch(f, pid) for pid in procs()])
    """
    assert run_script(text) == (0, "[1, 2]\n", "")


@pytest.mark.case("C025")
def test_others_are_everyone_else(workers: StartWorkers) -> None:
    """C025: other_workers and other_procs leave out the caller, on the driver and on workers."""
    assert distpool.other_workers() == distpool.other_procs() == []
    first, second = workers(2)
    assert distpool.other_workers() == distpool.workers() == [first, second]
    assert distpool.other_procs() == distpool.other_procs(1) == [first, second]
    assert remotecall_fetch(distpool.other_workers, first) == [second]


@pytest.mark.case("C026")
def test_a_worker_that_is_late_is_killed(start_script: StartScript) -> None:
    """C026: when the time limit passes first, addprocs raises soon, the child is gone, and the next addprocs works."""
    script = start_script(
        """
        import time
        from distpool import CompositeException, LaunchWorkerError, addprocs, procs

        begin = time.monotonic()
        try:
            addprocs(1, timeout=0.001)  # not even the fork server can be there in a millisecond
        except CompositeException as error:
            assert time.monotonic() - begin < 2, time.monotonic() - begin
            assert isinstance(error.exceptions[0], LaunchWorkerError), error.exceptions
            assert error.pids == [] and procs() == [1]
            print("late", "did not join in time" in str(error), flush=True)
        print(addprocs(1), flush=True)
        """
    )
    script.wait_for("late True")
    assert script.wait().stdout == "late True\n[3]\n"
    script.no_survivors()


@pytest.mark.case("C026")
def test_the_time_limit_may_come_from_the_environment(run_script: RunScript) -> None:
    """C026: DISTPOOL_WORKER_TIMEOUT is the limit when none is given, and is read at each use."""
    text = """
        import os
        from distpool import CompositeException, addprocs

        os.environ["DISTPOOL_WORKER_TIMEOUT"] = "0.001"
        try:
            addprocs(1)
        except CompositeException as error:
            print(len(error))
        os.environ["DISTPOOL_WORKER_TIMEOUT"] = "60"
        print(addprocs(1))
    """
    assert run_script(text) == (0, "1\n[3]\n", "")


@pytest.mark.case("C026")
@pytest.mark.parametrize("on_failure", ["raise", "rollback", "warn"])
def test_a_worker_that_cannot_start(on_failure: str, eventually: Callable[..., None], workers: StartWorkers) -> None:
    """C026: workers that end before they have joined are noticed at once; `on_failure` says what becomes of that."""
    pids = workers(1)
    before = other_processes()
    if on_failure == "warn":
        with pytest.warns(RuntimeWarning, match="ended before it had joined"):
            assert addprocs(2, dir="/nonexistent", on_failure=on_failure) == []
    else:
        with pytest.raises(CompositeException) as caught:
            addprocs(2, dir="/nonexistent", on_failure=on_failure)
        assert "ended before it had joined" in str(caught.value)
        assert [type(error) for error in caught.value.exceptions] == [LaunchWorkerError] * 2
        assert caught.value.pids == []
    eventually(lambda: other_processes() == before)
    assert procs() == [1, *pids]
    assert addprocs(1) == [pids[0] + 3]


@pytest.mark.case("C010")
def test_workers_are_processes_of_their_own(workers: StartWorkers) -> None:
    """C010: each worker is another process of the operating system."""
    pids = workers(2)
    assert len({os.getpid(), *(remotecall_fetch(jobs.os_pid, pid) for pid in pids)}) == 3
