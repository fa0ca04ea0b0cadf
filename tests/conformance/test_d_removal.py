"""Section D: removing workers, and workers that die.

Only workers of this machine, watched from the driver. C046 and C047 are in test_lifecycle; left out:
C050 (a worker started by hand over TCP, likewise); C040 is shown with a thread of the driver as the one who waits, and
with a worker in test_worker_to_worker.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
import pytest

import distpool
from conformance import deeds
from distpool import (
    Channel,
    ProcessExitedException,
    RemoteChannel,
    addprocs,
    myid,
    nprocs,
    procs,
    remote_do,
    remotecall,
    remotecall_fetch,
    rmprocs,
)
from support import jobs

if TYPE_CHECKING:
    from conftest import RunScript, StartScript, StartWorkers

pytestmark = pytest.mark.usefixtures("no_cluster")


@pytest.mark.case("C033")
def test_everyone_agrees_after_each_removal(workers: StartWorkers) -> None:
    """C033: after each removal all remaining workers count as the driver does."""
    pids = workers(4)
    while pids:
        rmprocs(pids.pop())
        assert [remotecall_fetch(deeds.counts, pid) for pid in pids] == [deeds.counts()] * len(pids)
    assert deeds.counts() == (1, 1, [1])


@pytest.mark.case("C034")
def test_pids_and_lists_of_pids(workers: StartWorkers) -> None:
    """C034a: pids and sequences of pids may be mixed; the handle is finished."""
    first, second = workers(2)
    handle = rmprocs(first, [second])
    assert handle.isready()
    assert procs() == [1]


@pytest.mark.case("C034")
def test_removal_in_the_background(workers: StartWorkers) -> None:
    """C034b: with waitfor=0 the handle tells when the processes are gone; others are not touched."""
    first, second, third = workers(3)
    os_pids = [remotecall_fetch(jobs.os_pid, pid) for pid in (first, second)]
    handle = rmprocs(first, second, waitfor=0)
    handle.wait()
    assert not any(map(psutil.pid_exists, os_pids))
    assert procs() == [1, third]
    assert remotecall_fetch(myid, third) == third


@pytest.mark.case("C035")
def test_a_removal_that_takes_too_long(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C035: past `waitfor` a TimeoutError names the process, which disappears nevertheless."""
    (pid,) = workers(1)
    os_pid = remotecall_fetch(jobs.os_pid, pid)
    remotecall_fetch(deeds.block_exit, pid)
    with pytest.raises(TimeoutError, match=rf"\b{pid}\b"):
        rmprocs(pid, waitfor=0.001)
    assert procs() == [1]
    eventually(lambda: not psutil.pid_exists(os_pid))


@pytest.mark.case("C036")
def test_every_call_to_a_removed_worker_says_so(workers: StartWorkers) -> None:
    """C036: whatever is asked of a worker that was removed, the error is ProcessExitedException with its pid."""
    (pid,) = workers(1)
    rmprocs(pid)
    asks: list[Callable[[], object]] = [
        lambda: remotecall_fetch(myid, pid),
        lambda: remotecall(myid, pid),
        lambda: distpool.remotecall_wait(myid, pid),
        lambda: remote_do(myid, pid),
        lambda: RemoteChannel(pid=pid).put(1),
        lambda: distpool.Future(pid).fetch(),
    ]
    for ask in asks:
        with pytest.raises(ProcessExitedException) as caught:
            ask()
        assert caught.value.worker_id == pid


@pytest.mark.case("C037")
def test_a_process_that_never_was() -> None:
    """C037: a pid that never was a member is a mistake of the caller, not a death."""
    with pytest.raises(ValueError, match="4711"):
        remotecall_fetch(myid, 4711)


@pytest.mark.case("C038")
def test_a_worker_that_ends_itself(
    workers: StartWorkers, eventually: Callable[..., None], capfd: pytest.CaptureFixture[str]
) -> None:
    """C038: the caller learns how it ended, the driver's stderr has one notice, and the worker is a member no more."""
    (pid,) = workers(1)
    with pytest.raises(ProcessExitedException) as caught:
        remotecall_fetch(os._exit, pid, 3)
    assert (caught.value.worker_id, caught.value.exit_code) == (pid, 3)
    assert procs() == [1]
    said = ""

    def noticed() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "\n" in said

    eventually(noticed)
    assert said.startswith(f"distpool: worker {pid} ")
    assert "exited with code 3" in said
    assert said.count("\n") == 1


@pytest.mark.case("C038")
def test_the_notice_of_a_death_survives_the_end_of_the_script(run_script: RunScript) -> None:
    """C038: a script that ends at once after the death has the notice, once, as well."""
    text = """
        import os
        from distpool import ProcessExitedException, addprocs, remotecall_fetch

        [pid] = addprocs(1)
        try:
            remotecall_fetch(os._exit, pid, 3)
        except ProcessExitedException as error:
            print(error.exit_code)
    """
    code, out, err = run_script(text)
    assert (code, out) == (0, "3\n")
    assert err.count("distpool: worker 2 ") == 1
    assert err.count("\n") == 1


@pytest.mark.case("C038")
def test_a_worker_that_is_killed(workers: StartWorkers, eventually: Callable[..., None]) -> None:
    """C038: nobody calls it when it dies: it leaves the cluster all the same, and others stay."""
    first, second = workers(2)
    os.kill(remotecall_fetch(jobs.os_pid, first), signal.SIGKILL)
    eventually(lambda: procs() == [1, second])
    with pytest.raises(ProcessExitedException) as caught:
        remotecall_fetch(myid, first)
    assert caught.value.signal == signal.SIGKILL
    assert remotecall_fetch(deeds.counts, second) == deeds.counts()


@pytest.mark.case("C039")
def test_removal_wakes_who_waits(workers: StartWorkers) -> None:
    """C039: a thread in a call to the removed worker gets ProcessExitedException."""
    first, _ = workers(2)
    started: RemoteChannel[int] = RemoteChannel()
    gate: RemoteChannel[int] = RemoteChannel()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(remotecall_fetch, deeds.say_and_wait, first, started, gate)
        assert started.take(timeout=30) == first
        rmprocs(first)
        with pytest.raises(ProcessExitedException) as caught:
            waiting.result(30)
    assert caught.value.worker_id == first


@pytest.mark.case("C040")
def test_death_of_the_owner_wakes_who_fetches(workers: StartWorkers) -> None:
    """C040 (a thread of the driver fetches, not another worker): the fetch of a value that will never be fails."""
    (pid,) = workers(1)
    os_pid = remotecall_fetch(jobs.os_pid, pid)
    started: RemoteChannel[int] = RemoteChannel()
    gate: RemoteChannel[int] = RemoteChannel()
    future = remotecall(deeds.say_and_wait, pid, started, gate)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(future.fetch)
        assert started.take(timeout=30) == pid
        os.kill(os_pid, signal.SIGKILL)
        with pytest.raises(ProcessExitedException) as caught:
            waiting.result(30)
    assert caught.value.worker_id == pid


@pytest.mark.case("C041")
def test_removing_twice(workers: StartWorkers, recwarn: pytest.WarningsRecorder) -> None:
    """C041a: the second removal of a process is silent."""
    first, second = workers(2)
    rmprocs(first)
    assert rmprocs(first).isready()
    assert not recwarn.list
    assert procs() == [1, second]


@pytest.mark.case("C041")
def test_removing_who_never_was(workers: StartWorkers) -> None:
    """C041b: a pid that never was a member is an error, and nobody is removed."""
    pids = workers(1)
    with pytest.raises(ValueError, match="4711"):
        rmprocs(4711, pids)
    assert procs() == [1, *pids]


@pytest.mark.case("C042")
def test_an_orderly_removal_is_silent(run_script: RunScript) -> None:
    """C042: removing a worker that obeys prints nothing and warns of nothing."""
    text = """
        import logging, warnings
        logging.basicConfig(level=logging.DEBUG)
        warnings.simplefilter("error")
        from distpool import addprocs, rmprocs
        rmprocs(addprocs(1))
    """
    assert run_script(text) == (0, "", "")


@pytest.mark.case("C043")
@pytest.mark.parametrize("how", ["exit handler", "stopped"])
def test_a_worker_that_does_not_obey(how: str, workers: StartWorkers, caplog: pytest.LogCaptureFixture) -> None:
    """C043: a worker that cannot or will not end is killed, with a warning; then rmprocs returns."""
    (pid,) = workers(1)
    os_pid = remotecall_fetch(jobs.os_pid, pid)
    if how == "exit handler":
        remotecall_fetch(deeds.block_exit, pid)
    else:
        os.kill(os_pid, signal.SIGSTOP)
    with caplog.at_level(logging.WARNING, "distpool"):
        rmprocs(pid)
    assert not psutil.pid_exists(os_pid)
    assert [f"worker {pid} did not end" in record.message for record in caplog.records] == [True]


@pytest.mark.case("C044")
def test_adding_while_others_leave(workers: StartWorkers) -> None:
    """C044a: addprocs right after a removal that goes on in the background; everyone who is left answers."""
    handles = []
    for _ in range(5):
        (pid,) = workers(1)
        started: RemoteChannel[int] = RemoteChannel()
        future = remotecall(deeds.say_and_wait, pid, started, RemoteChannel())
        assert started.take(timeout=30) == pid
        handles.append(rmprocs(pid, waitfor=0))
        addprocs(1)
        assert [remotecall_fetch(myid, each) for each in procs()] == procs()
        assert pid not in procs()
        del future
    for handle in handles:
        handle.wait(30)
    assert nprocs() == 6


@pytest.mark.case("C044")
def test_the_others_answer_after_a_removal(workers: StartWorkers) -> None:
    """C044b: after the handle's wait there is one process less, and all others answer."""
    pids = workers(3)
    rmprocs(pids[1], waitfor=0).wait()
    assert nprocs() == 3
    assert [remotecall_fetch(myid, pid) for pid in procs()] == [1, pids[0], pids[2]]


@pytest.mark.case("C045")
def test_a_leaving_worker_is_no_member(workers: StartWorkers) -> None:
    """C045: a worker that is asked to go is out of procs() at once, busy or not."""
    first, second = workers(2)
    started: RemoteChannel[int] = RemoteChannel()
    remote_do(deeds.say_and_wait, first, started, RemoteChannel())
    assert started.take(timeout=30) == first
    handle = rmprocs(first, waitfor=0)
    assert procs() == [1, second]
    with pytest.raises(ProcessExitedException):
        remotecall_fetch(myid, first)
    handle.wait(30)


@pytest.mark.case("C048")
def test_workers_end_with_the_script(start_script: StartScript) -> None:
    """C048: two seconds after a script's end none of its workers is left; what they had printed is there."""
    script = start_script(
        """
        from distpool import addprocs, remotecall_fetch
        for pid in addprocs(2):
            remotecall_fetch(print, pid, "printed by", pid)
        """
    )
    code, out, err = script.wait()
    script.no_survivors(2)
    assert (code, err) == (0, "")
    said = sorted(out.splitlines())
    assert [line.endswith(f"printed by {pid}") for line, pid in zip(said, (2, 3), strict=True)] == [True, True], said


@pytest.mark.case("C048")
@pytest.mark.parametrize("deed", ["block_for_ever", "hold_interpreter"])
def test_busy_workers_end_with_the_script(deed: str, start_script: StartScript) -> None:
    """C048: busy workers too, stuck in C code or not, and the script's status is 0."""
    script = start_script(
        f"""
        import sys
        sys.path.insert(0, {os.path.dirname(os.path.dirname(jobs.__file__))!r})
        from distpool import addprocs, remote_do
        from support import jobs
        for pid in addprocs(2):
            remote_do(jobs.touch, pid, f"started-{{pid}}")
            remote_do(jobs.{deed}, pid)
        """
    )
    assert script.wait(20) == (0, "", "")
    script.no_survivors(2)


@pytest.mark.case("C048")
def test_an_error_ends_the_workers_too(run_script: RunScript) -> None:
    """C048: a script that ends by an exception or by sys.exit keeps its own exit status, and leaves nobody."""
    code, _, err = run_script("import distpool\ndistpool.addprocs(2)\nraise SystemExit(7)")
    assert (code, err) == (7, "")
    code, _, err = run_script("import distpool\ndistpool.addprocs(2)\nraise LookupError('on purpose')")
    assert code == 1
    assert err.splitlines()[-1] == "LookupError: on purpose"


@pytest.mark.case("C049")
def test_workers_end_when_the_driver_is_killed(start_script: StartScript) -> None:
    """C049: the driver is killed while its workers compute, one of them in C code: all are gone within 10 s."""
    script = start_script(
        f"""
        import sys, threading
        sys.path.insert(0, {os.path.dirname(os.path.dirname(jobs.__file__))!r})
        from distpool import RemoteChannel, addprocs, remote_do
        from conformance import deeds
        first, second = addprocs(2)
        started = RemoteChannel()
        remote_do(deeds.say_and_spin, first, started, 1000)
        started.take()
        remote_do(deeds.say_and_hold, second, started)
        started.take()
        print("busy", flush=True)
        threading.Event().wait()
        """
    )
    script.wait_for("busy")
    assert len(script.survivors()) >= 4  # the script, the fork server, two workers
    script.send(signal.SIGKILL)
    assert script.wait().returncode == -signal.SIGKILL
    script.no_survivors(10)


@pytest.mark.case("C034")
def test_removal_may_be_called_from_any_thread(workers: StartWorkers) -> None:
    """C034: several threads remove at once, the same process among theirs: one after the other, none fails."""
    first, second, third = workers(3)
    errors: list[BaseException] = []

    def remove(*pids: int) -> None:
        try:
            rmprocs(*pids)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=remove, args=pids) for pids in [(first, second), (second, third), (third,)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors
    assert procs() == [1]


@pytest.mark.case("C036")
def test_a_channel_of_a_removed_worker_is_dead(workers: StartWorkers) -> None:
    """C036: a channel that the removed worker owned raises for each operation."""
    (pid,) = workers(1)
    channel: RemoteChannel[int] = RemoteChannel(lambda: Channel(2), pid)
    channel.put(1)
    rmprocs(pid)
    for ask in (lambda: channel.put(2), channel.take, channel.fetch, channel.isready, channel.close):
        with pytest.raises(ProcessExitedException):
            ask()
