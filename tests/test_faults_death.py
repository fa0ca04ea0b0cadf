"""Workers that die, in every way and at every point of their lives: nothing hangs, nothing is lost or delivered twice.

Deaths come from the worker itself (`support.faults.die`), which makes their moment exact, or from outside by signal
when the worker has said where it is. A worker that is only stopped (SIGSTOP) is killed from outside afterwards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from distpool import ProcessExitedException, WorkerPool, addprocs, pmap, procs, remotecall, remotecall_fetch, rmprocs
from distpool.roll import EXIT_REPORT_SECONDS
from support.aside import Aside
from support.faults import (
    DEATHS,
    Deadly,
    die_when_told,
    die_while_sending,
    fail_after_two,
    initialize_once,
    limit_memory,
    limit_memory_and_return,
    limit_memory_and_take,
    note_and_die,
    note_and_die_once,
    note_and_return_deadly,
    notes,
    say_and_block,
)
from support.jobs import os_pid, os_pid_for, square

TESTS = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
SQUARES = [x * x for x in range(8)]
SAYS = {"SIGKILL": "SIGKILL", "segfault": "SIGSEGV", "os._exit": "code 3", "SIGSTOP": "SIGKILL"}
WAYS = pytest.mark.parametrize("way", DEATHS)


def is_stopped(os_pid: int) -> bool:
    return psutil.Process(os_pid).status() == psutil.STATUS_STOPPED


@pytest.fixture
def finish_off(eventually: Callable[..., None]) -> Callable[[int, str], None]:
    """A worker that is to die by SIGSTOP and SIGKILL needs somebody for the second half."""

    def finish(os_pid: int, way: str) -> None:
        if way == "SIGSTOP":
            eventually(lambda: is_stopped(os_pid))
            os.kill(os_pid, signal.SIGKILL)

    return finish


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A named pipe at tmp_path/go; calling the fixture opens it, which lets whoever reads it go on."""
    os.mkfifo(tmp_path / "go")

    def open_gate() -> None:
        with open(tmp_path / "go", "w"):
            pass

    return open_gate


def said_pid(path: Path, eventually: Callable[..., None]) -> int:
    """The process id that a worker has noted."""
    eventually(lambda: notes(str(path)), what=f"a worker writes {path}")
    return int(notes(str(path))[0])


# -- idle ------------------------------------------------------------------------------------------------------------


@WAYS
def test_death_of_an_idle_worker_is_repaired(
    way: str,
    tmp_path: Path,
    gate: Callable[[], None],
    finish_off: Callable[[int, str], None],
    eventually: Callable[..., None],
) -> None:
    """No task is harmed; the worker is replaced."""
    with WorkerPool(processes=2) as pool:
        victim = pool.submit(die_when_told, str(tmp_path / "ready"), str(tmp_path / "go"), way).result()
        gate()
        finish_off(victim, way)
        eventually(lambda: not psutil.pid_exists(victim))
        assert pool.map(square, range(8)) == SQUARES
        eventually(lambda: len(pool) == 2, what="the dead worker is replaced")
        assert victim not in pool.map(os_pid_for, range(20), batch_size=1)


# -- reading ---------------------------------------------------------------------------------------------------------


def test_death_while_reading_a_large_argument_harms_nobody(eventually: Callable[..., None]) -> None:
    """The task had not begun, so it runs elsewhere."""
    with WorkerPool(processes=1) as pool:
        victim = pool.submit(os_pid).result()
        os.kill(victim, signal.SIGSTOP)
        eventually(lambda: is_stopped(victim))
        future = pool.submit(len, bytes(100_000_000))  # more than the socket takes: a part waits here
        os.kill(victim, signal.SIGKILL)
        assert future.result() == 100_000_000


@WAYS
def test_an_argument_that_is_deadly_to_open_fails_its_task(
    way: str, finish_off: Callable[[int, str], None], eventually: Callable[..., None]
) -> None:
    """It is not tried on one worker after the other for ever."""
    with WorkerPool(processes=2) as pool:
        workers = set(pool.map(os_pid_for, range(50), batch_size=1))
        future = pool.submit(len, Deadly(way))
        if way == "SIGSTOP":
            eventually(lambda: any(is_stopped(each) for each in workers))
            finish_off(next(each for each in workers if is_stopped(each)), way)
        with pytest.raises(ProcessExitedException, match=SAYS[way]):
            future.result()
        assert pool.map(square, range(8)) == SQUARES


# -- running ---------------------------------------------------------------------------------------------------------


@WAYS
def test_death_while_running_says_what_ran_and_how_it_ended(
    way: str, tmp_path: Path, finish_off: Callable[[int, str], None], eventually: Callable[..., None]
) -> None:
    """The error has the worker, the process, exit code or signal, and the task; the others' results are all there."""
    path = str(tmp_path / "runs")
    pid_path = tmp_path / "pid"
    with WorkerPool(processes=2) as pool:
        if way == "SIGSTOP":
            future = pool.submit(say_and_block, str(pid_path), 7)
            victim = said_pid(pid_path, eventually)
            os.kill(victim, signal.SIGSTOP)
            finish_off(victim, way)
            with pytest.raises(ProcessExitedException, match=r"SIGKILL.*say_and_block") as caught:
                future.result()
        else:
            with pytest.raises(ProcessExitedException, match=f"{SAYS[way]}.*note_and_die") as caught:
                pool.map(partial(note_and_die, path, way, victim=3), range(8), batch_size=1)
            assert notes(path).count("3") == 1
        error = caught.value
        assert error.worker_id >= 2
        assert error.os_pid is not None
        assert (error.exit_code, error.signal) == {
            "segfault": (None, signal.SIGSEGV),
            "os._exit": (3, None),
        }.get(way, (None, signal.SIGKILL))
        assert pool.map(square, range(8)) == SQUARES
        eventually(lambda: len(pool) == 2, what="the dead worker is replaced")


@pytest.mark.parametrize("way", ["SIGKILL", "segfault", "os._exit"])
def test_each_task_runs_once_whoever_dies(way: str, tmp_path: Path) -> None:
    """Tasks that died ran once, those that had not started run once elsewhere, no result is lost or comes twice."""
    path = str(tmp_path / "runs")
    with WorkerPool(processes=2) as pool:
        results = list(
            pool.imap_unordered(
                partial(note_and_die, path, way, victim=13), range(40), on_error=type, buffersize=40, batch_size=1
            )
        )
    assert results.count(ProcessExitedException) == 1
    results.remove(ProcessExitedException)
    assert sorted(results) == [x * x for x in range(40) if x != 13]
    assert sorted(map(int, notes(path))) == list(range(40))


@pytest.mark.parametrize("way", ["SIGKILL", "segfault", "os._exit"])
@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_retries_complete_a_map_whose_workers_die(way: str, batch_size: int | str, tmp_path: Path) -> None:
    """All results are right; a task that died ran once more for each retry.

    With envelopes of more than one task, those that had finished within the last millisecond, and whose results had not
    left, may run again.
    """
    path = str(tmp_path / "runs")
    victims = frozenset(range(0, 60, 7))
    task = partial(note_and_die_once, path, way, victims=victims)
    with WorkerPool(processes=2) as pool:
        assert pool.map(task, range(60), retry_delays=[0, 0.01], batch_size=batch_size) == [x * x for x in range(60)]
    counts = {x: notes(path).count(str(x)) for x in range(60)}
    if batch_size == 1:
        assert counts == {x: 2 if x in victims else 1 for x in range(60)}
    else:
        assert all(counts[x] >= (2 if x in victims else 1) for x in range(60))


def test_retries_end(tmp_path: Path) -> None:
    """A task that always dies runs attempts + 1 times, and then its death is the error."""
    path = str(tmp_path / "runs")
    with WorkerPool(processes=2) as pool:
        with pytest.raises(ProcessExitedException):
            pool.map(partial(note_and_die, path, "SIGKILL", victim=3), range(8), retry_delays=[0, 0, 0], batch_size=1)
        assert notes(path).count("3") == 4
        assert pool.map(square, range(8)) == SQUARES


def test_a_pool_of_given_workers_shrinks(workers: Callable[[int], list[int]], tmp_path: Path) -> None:
    """What is left goes on; when nobody is left, calls say so instead of waiting."""
    pids = workers(2)
    pool = WorkerPool(pids)
    path = str(tmp_path / "runs")
    with pytest.raises(ProcessExitedException):
        pool.map(partial(note_and_die, path, "SIGKILL", victim=0), range(8))
    assert len(pool) == 1
    assert pool.map(square, range(8)) == SQUARES
    with pytest.raises(ProcessExitedException):
        pool.map(partial(note_and_die, path, "SIGKILL", victim=8), range(8, 12))
    assert len(pool) == 0
    with pytest.raises((ProcessExitedException, RuntimeError)):
        pool.map(square, range(8))
    pool.close()


def test_a_task_that_waits_to_be_tried_again_does_not_wait_for_workers_that_never_come(
    workers: Callable[[int], list[int]], tmp_path: Path
) -> None:
    """The last worker of a pool that starts none dies: the map fails, also when another of its tasks failed first."""
    pool = WorkerPool(workers(1))
    calling = Aside(
        pool.map,
        partial(note_and_die, str(tmp_path / "runs"), "SIGKILL", victim=0),
        range(4),
        batch_size=2,
        retry_delays=[0.2],
    )
    with pytest.raises(ProcessExitedException):
        calling.result(20)


def test_a_pool_that_has_lost_its_last_worker_may_be_given_another(workers: Callable[[int], list[int]]) -> None:
    """With `push`; what was asked for in between has failed."""
    pool = WorkerPool(workers(1))
    with pytest.raises(ProcessExitedException):
        pool.submit(os._exit, 3).result()
    with pytest.raises(ProcessExitedException):
        pool.map(square, range(8))
    pool.push(*workers(1))
    assert pool.map(square, range(8)) == SQUARES
    assert pool.submit(square, 3).result() == 9


def test_pmap_survives_deaths_with_retries(workers: Callable[[int], list[int]], tmp_path: Path) -> None:
    """pmap over the cluster's workers: one dies, the other does the rest."""
    workers(2)
    task = partial(note_and_die_once, str(tmp_path / "runs"), "SIGKILL", victims=frozenset([5]))
    assert pmap(task, range(12), retry_delays=[0]) == [x * x for x in range(12)]
    assert len(procs()) == 2


# -- writing ---------------------------------------------------------------------------------------------------------


@WAYS
def test_death_in_the_middle_of_writing_a_large_result(
    way: str, tmp_path: Path, finish_off: Callable[[int, str], None], eventually: Callable[..., None]
) -> None:
    """The half result is thrown away, the task fails (it had run, so it is not run again), and the pool goes on."""
    path = tmp_path / "runs"
    with WorkerPool(processes=2) as pool:
        future = pool.submit(die_while_sending, str(path), way, 100_000_000)
        finish_off(said_pid(path, eventually), way)
        with pytest.raises(ProcessExitedException, match=f"{SAYS[way]}.*die_while_sending"):
            future.result()
        assert len(notes(str(path))) == 1
        assert pool.map(square, range(8)) == SQUARES


def test_a_result_that_is_deadly_to_pack_costs_its_own_task(tmp_path: Path) -> None:
    """Not the one that is just about to begin; and neither is run twice."""
    path = str(tmp_path / "runs")
    with WorkerPool(processes=1) as pool:
        pool.submit(note_and_return_deadly, path, -1, 1).result()  # so that it is loaded, and known to take no time
        # The first goes out alone; meanwhile the others gather, and share a message.
        futures = [pool.submit(note_and_return_deadly, path, item, 1) for item in range(4)]
        assert [future.exception(30) is None for future in futures] == [True, False, True, True]
        assert notes(path) == ["-1", "0", "1", "2", "3"]


# -- out of memory ---------------------------------------------------------------------------------------------------


def test_a_task_that_may_not_have_more_memory_fails_alone() -> None:
    """MemoryError is an error like others, and the worker lives on."""
    with WorkerPool(processes=1) as pool:
        with pytest.raises(MemoryError):
            pool.submit(limit_memory_and_take, 64 << 20, 1 << 30).result()
        assert pool.map(square, range(8)) == SQUARES


def test_a_result_that_cannot_be_packed_for_want_of_memory_fails_alone() -> None:
    """Be it MemoryError or the worker's end: the task has an error, and the pool goes on."""
    with WorkerPool(processes=1) as pool:
        with pytest.raises((MemoryError, ProcessExitedException)):
            pool.submit(limit_memory_and_return, 16 << 20, 128 << 20).result()
        assert pool.map(square, range(8)) == SQUARES


def test_an_argument_that_does_not_fit_into_the_workers_memory_harms_nobody() -> None:
    """A worker that cannot take it in fails that task or is replaced; the call does not hang."""
    with WorkerPool(processes=1) as pool:
        pool.submit(limit_memory, 64 << 20).result()
        with contextlib.suppress(MemoryError, ProcessExitedException):
            assert pool.submit(len, bytes(200_000_000)).result() == 200_000_000
        assert pool.map(square, range(8)) == SQUARES


# -- starting --------------------------------------------------------------------------------------------------------

BIRTHS = """
    import os, sys
    import distpool
    from distpool import CompositeException, LaunchWorkerError, ProcessExitedException, WorkerPool, addprocs
    from support.jobs import kill_self, square

    # Preloaded into the fork server; ends each newborn as long as a file named `deadly` is there.
    with open("stillborn.py", "w") as module:
        module.write("import os; from support.faults import die\\n")
        module.write(f"flag, way = {os.path.abspath('deadly')!r}, {sys.argv[1]!r}\\n")
        module.write("os.register_at_fork(after_in_child=lambda: die(way) if os.path.exists(flag) else None)\\n")
    os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
"""


@pytest.mark.parametrize("way", ["SIGKILL", "segfault", "os._exit", "SIGSTOP"])
def test_death_before_joining_is_an_error_of_the_start(
    way: str, run_script: Callable[..., tuple[int, str, str]]
) -> None:
    """Workers that never join: the pool and `addprocs` say so, soon, and leave nothing; without the cause all works."""
    code, out, err = run_script(
        BIRTHS
        + """
    open("deadly", "w").close()
    for start in (lambda: WorkerPool(processes=2, preload=["stillborn"]), lambda: addprocs(2, preload=["stillborn"])):
        try:
            start()
        except (LaunchWorkerError, CompositeException) as error:
            print("refused", flush=True)
    os.unlink("deadly")
    with WorkerPool(processes=2, preload=["stillborn"]) as pool:
        print(pool.map(square, range(4)))
        """,
        way,
        env={"PYTHONPATH": TESTS, "DISTPOOL_WORKER_TIMEOUT": "1"},
    )
    assert (code, out) == (0, "refused\nrefused\n[0, 1, 4, 9]\n"), err


@pytest.mark.parametrize("way", ["SIGKILL", "os._exit"])
def test_replacements_that_die_at_birth_do_not_keep_anybody_waiting(
    way: str, run_script: Callable[..., tuple[int, str, str]]
) -> None:
    """The living workers go on; when none is left and none can be started, tasks fail instead of waiting for ever."""
    code, out, err = run_script(
        BIRTHS
        + """
    pool = WorkerPool(processes=2, preload=["stillborn"])
    open("deadly", "w").close()
    for _ in range(2):
        try:
            pool.submit(kill_self).result()
        except ProcessExitedException:
            print("died")
    try:
        print(pool.map(square, range(4)))
    except distpool.RemoteException as error:
        print("given up:", isinstance(error.captured.ex, LaunchWorkerError))
    pool.terminate()
        """,
        way,
        env={"PYTHONPATH": TESTS},
    )
    assert (code, out) == (0, "died\ndied\ngiven up: True\n"), err


# -- initializing ----------------------------------------------------------------------------------------------------


def test_a_replacement_whose_initializer_fails_does_not_keep_anybody_waiting(tmp_path: Path) -> None:
    """While a worker is left it serves; then tasks get the initializer's error."""
    with WorkerPool(processes=2, initializer=fail_after_two, initargs=(str(tmp_path / "runs"),)) as pool:
        kill = partial(note_and_die, str(tmp_path / "kills"), "SIGKILL", victim=0)
        with pytest.raises(ProcessExitedException):
            pool.submit(kill, 0).result()
        assert pool.map(square, range(8)) == SQUARES
        with pytest.raises(ProcessExitedException):
            pool.submit(kill, 0).result()
        with pytest.raises(ValueError, match="the initializer failed"):
            pool.map(square, range(8))


@pytest.mark.parametrize("way", ["SIGKILL", "segfault", "os._exit"])
def test_a_replacement_that_dies_in_its_initializer_does_not_keep_anybody_waiting(way: str, tmp_path: Path) -> None:
    """As above, with the end of the process in the place of an error."""
    with WorkerPool(processes=2, initializer=initialize_once, initargs=(str(tmp_path / "runs"), way)) as pool:
        kill = partial(note_and_die, str(tmp_path / "kills"), "SIGKILL", victim=0)
        for _ in range(2):
            with pytest.raises(ProcessExitedException):
                pool.submit(kill, 0).result()
        with pytest.raises(ProcessExitedException, match=SAYS[way]):
            pool.map(square, range(8))


# -- being removed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_killed", [True, False], ids=["killed", "left alone"])
def test_rmprocs_of_a_worker_that_stands_still(
    is_killed: bool, no_cluster: None, eventually: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed meanwhile or not, it is gone in the end, and nobody waits longer than the grace time."""
    first, second = addprocs(2)
    victim = remotecall(os_pid, first).fetch()
    os.kill(victim, signal.SIGSTOP)
    removing = threading.Thread(target=rmprocs, args=(first,))
    removing.start()
    eventually(lambda: first not in procs())
    if is_killed:
        os.kill(victim, signal.SIGKILL)
    removing.join(30)
    assert not removing.is_alive()
    assert not psutil.pid_exists(victim)
    assert procs() == [1, second]


def test_rmprocs_of_a_busy_worker_fails_what_runs_there(
    no_cluster: None, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    """Whoever waits for the call is told."""
    (pid,) = addprocs(1)
    future = remotecall(say_and_block, pid, str(tmp_path / "pid"), 1)
    victim = said_pid(tmp_path / "pid", eventually)
    rmprocs(pid)
    with pytest.raises(ProcessExitedException):
        future.fetch()
    eventually(lambda: not psutil.pid_exists(victim))


def test_how_it_ended_is_told_although_the_report_is_late(workers: Callable[[int], list[int]]) -> None:
    """The fork server, which knows, is slow: on a busy machine for a moment, here because it is stopped."""
    (pid,) = workers(1)
    (server,) = (each for each in psutil.Process().children() if "fork server" in " ".join(each.cmdline()))
    server.suspend()
    try:
        calling = Aside(remotecall_fetch, os._exit, pid, 3)
        assert not calling.is_done(2 * EXIT_REPORT_SECONDS)
    finally:
        server.resume()
    with pytest.raises(ProcessExitedException, match="exited with code 3"):
        calling.result()
