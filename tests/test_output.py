"""What workers print and log is shown here: complete, line by line, with or without their id, and it survives them."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import psutil
import pytest

import distpool
from distpool import ProcessExitedException, WorkerPool, addprocs, remote_do, remotecall_fetch, rmprocs
from distpool.output import LONGEST_LINE, Output, later, wait_until_shown
from support import printing
from support.leaks import eventually

if TYPE_CHECKING:
    from conftest import RunScript, StartWorkers

PREFIX = "      From worker "


def shown(capture: pytest.CaptureFixture[str]) -> tuple[list[str], list[str]]:
    """What was shown since the last time, as lines of stdout and of stderr."""
    assert wait_until_shown(30)
    out, err = capture.readouterr()
    return out.splitlines(), err.splitlines()


# -- what is shown


@pytest.mark.case("C241")
def test_lines_of_workers_come_with_their_id(workers: StartWorkers, capsys: pytest.CaptureFixture[str]) -> None:
    """C241a: stdout to stdout, stderr to stderr, each line with its worker; shown when rmprocs returns."""
    pids = workers(2)
    for pid in pids:
        remotecall_fetch(printing.say, pid, f"hi from {pid}\nand äöü")
        remotecall_fetch(printing.complain, pid, f"trouble in {pid}")
    rmprocs(pids)
    out, err = capsys.readouterr()
    expected = [f"{PREFIX}{pid}:\t{text}" for pid in pids for text in (f"hi from {pid}", "and äöü")]
    assert sorted(out.splitlines()) == sorted(expected)
    assert sorted(err.splitlines()) == [f"{PREFIX}{pid}:\ttrouble in {pid}" for pid in pids]


@pytest.mark.case("C241")
def test_what_is_written_below_python_is_shown_too(workers: StartWorkers, capfd: pytest.CaptureFixture[str]) -> None:
    """C241b: descriptors, the C library, subprocesses, and a last line without its end."""
    (pid,) = workers(1)
    remotecall_fetch(printing.write, pid, b"written\n")
    remotecall_fetch(printing.write, pid, b"written to stderr\n", 2)
    remotecall_fetch(printing.c_print, pid, b"by the C library\n")
    remotecall_fetch(printing.run_program, pid, "by a program")
    remotecall_fetch(printing.write_to_buffer, pid, b"from a buffer\n")
    remotecall_fetch(printing.say, pid, "without end", end="")
    rmprocs(pid)
    out, err = capfd.readouterr()
    said = ["written", "by the C library", "by a program", "from a buffer", "without end"]
    assert out.splitlines() == [f"{PREFIX}{pid}:\t{text}" for text in said]
    assert err.splitlines() == [f"{PREFIX}{pid}:\twritten to stderr"]


@pytest.mark.case("C241")
def test_a_hook_that_raises_loses_nothing(
    workers: StartWorkers, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """C241c: the line gets the ordinary prefix; the failure is logged once."""

    def hook(pid: int, stream: str, line: str) -> str | None:
        if "bad" in line:
            raise LookupError("the hook's own")
        return f"{pid} {stream} {line}"

    (pid,) = workers(1, output=hook)
    for text in ("good", "bad", "bad again", "good again"):
        remotecall_fetch(printing.say, pid, text)
    rmprocs(pid)
    out, _ = shown(capsys)
    assert out == [
        f"{pid} stdout good",
        f"{PREFIX}{pid}:\tbad",
        f"{PREFIX}{pid}:\tbad again",
        f"{pid} stdout good again",
    ]
    assert [record.name for record in caplog.records] == ["distpool"]


def test_a_hook_decides_what_is_written(workers: StartWorkers, capsys: pytest.CaptureFixture[str]) -> None:
    """It is told pid, stream and line; None writes nothing; text that is no text counts as a failure."""
    told: list[tuple[int, str, str]] = []

    def hook(pid: int, stream: str, line: str) -> Any:
        told.append((pid, stream, line))
        return {"one": "1\n2", "two": None, "three": ""}.get(line, 7)

    (pid,) = workers(1, output=hook)
    remotecall_fetch(printing.complain, pid, "one\ntwo\nthree\nfour")
    rmprocs(pid)
    assert told == [(pid, "stderr", line) for line in ("one", "two", "three", "four")]
    assert shown(capsys) == ([], ["1", "2", "", f"{PREFIX}{pid}:\tfour"])


@pytest.mark.parametrize(("mode", "expected"), [("raw", ["plain"]), ("none", [])])
def test_output_without_prefix_and_none(
    workers: StartWorkers, capfd: pytest.CaptureFixture[str], mode: str, expected: list[str]
) -> None:
    """`raw` shows lines as they are, `none` drops them."""
    (pid,) = workers(1, output=mode)
    remotecall_fetch(printing.say, pid, "plain")
    remotecall_fetch(printing.complain, pid, "plain")
    rmprocs(pid)
    assert shown(capfd) == (expected, expected)


def test_pools_print_as_if_it_were_here(capsys: pytest.CaptureFixture[str]) -> None:
    """A pool of its own workers shows plain lines, all of them when it is closed, and pytest's capture gets them."""
    with WorkerPool(processes=2) as pool:
        pool.map(printing.say, [f"line {number}" for number in range(100)])
        pool.submit(printing.say, "no end", end="").result()
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == sorted([*(f"line {number}" for number in range(100)), "no end"])
    assert err == ""


def test_pools_can_be_told_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    """The same modes as addprocs."""
    with WorkerPool(processes=1, output="prefix") as pool:
        pool.map(printing.say, ["line"])
        pids = pool.workers()
    assert capsys.readouterr().out == f"{PREFIX}{pids[0]}:\tline\n"


def test_a_fresh_interpreter_prints_the_same_way(workers: StartWorkers, capsys: pytest.CaptureFixture[str]) -> None:
    """Workers that are not forked have the same modes; their stderr comes with their stdout, as in Julia."""
    (pid,) = workers(1, exeflags=["-X", "utf8"], output=lambda pid, stream, line: f"{pid} {stream} {line}")
    remotecall_fetch(printing.say, pid, "said")
    remotecall_fetch(printing.complain, pid, "complained")
    rmprocs(pid)
    assert shown(capsys) == ([f"{pid} stdout said", f"{pid} stdout complained"], [])


def test_a_hundred_thousand_lines_are_complete_and_unmixed(capsys: pytest.CaptureFixture[str]) -> None:
    """Four workers at once, several tasks each: every line whole, none missing, in order for each task."""
    jobs = [(who, 0, 5000) for who in range(20)]
    with WorkerPool(processes=4, output="prefix") as pool:
        pool.starmap(printing.count_aloud, jobs, batch_size=1)
    pattern = re.compile(rf"{PREFIX}\d+:\t(\d+):(\d+):(x*)\.")
    heard: dict[int, list[int]] = {who: [] for who, _, _ in jobs}
    for line in capsys.readouterr().out.splitlines():
        match = pattern.fullmatch(line)
        assert match is not None, line
        who, number = int(match[1]), int(match[2])
        assert len(match[3]) == number % 60
        heard[who].append(number)
    assert heard == {who: list(range(first, last)) for who, first, last in jobs}


def test_what_the_streams_of_a_worker_are_like(workers: StartWorkers) -> None:
    """No terminal, UTF-8, by lines; and the limit of open files is ours, whatever the fork server needs."""
    import resource

    (pid,) = workers(1)
    assert remotecall_fetch(printing.streams, pid) == [[False, "utf-8", "backslashreplace", True]] * 2
    assert remotecall_fetch(printing.open_file_limit, pid) == resource.getrlimit(resource.RLIMIT_NOFILE)


# -- ends


@pytest.mark.parametrize("end", ["\n", ""], ids=["whole line", "part of a line"])
def test_the_last_words_of_a_killed_worker_are_shown(
    workers: StartWorkers, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """Who is told of the death finds the output on its way."""
    (pid,) = workers(1)
    with pytest.raises(ProcessExitedException):
        remotecall_fetch(printing.die_after, pid, "last words", end)
    assert shown(capsys)[0] == [f"{PREFIX}{pid}:\tlast words"]


def test_a_worker_that_holds_the_interpreter_is_heard(
    workers: StartWorkers, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody in the worker needs to do anything for its output to come."""
    (pid,) = workers(1)
    remote_do(printing.hold_the_interpreter, pid, "I am off")
    out: list[str] = []

    def heard() -> bool:
        out.extend(shown(capsys)[0])
        return bool(out)

    eventually(heard)
    assert out == [f"{PREFIX}{pid}:\tI am off"]
    rmprocs(pid)


def test_a_program_left_behind_holds_nobody_up(workers: StartWorkers, capsys: pytest.CaptureFixture[str]) -> None:
    """It has the worker's output in its hands; the removal does not wait for it."""
    (pid,) = workers(1)
    program = psutil.Process(remotecall_fetch(printing.leave_program_behind, pid, "bye"))
    try:
        rmprocs(pid, waitfor=10)
        assert shown(capsys)[0] == [f"{PREFIX}{pid}:\tbye"]
        assert program.is_running()
    finally:
        program.kill()
        eventually(lambda: not program.is_running() or program.status() == psutil.STATUS_ZOMBIE)


EXIT_SCRIPT = """
    import sys
    from distpool import WorkerPool, addprocs, remote_do, remotecall_fetch
    from support import printing

    {start}
"""


@pytest.mark.case("C241")
@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("remotecall_fetch(printing.say, addprocs(1)[0], 'unfinished', end='')", PREFIX + "2:\tunfinished\n"),
        (
            "pool = WorkerPool(processes=1); pool.submit(printing.say, 'never closed', end='').result()",
            "never closed\n",
        ),
        ("for _ in range(3): remotecall_fetch(printing.count_aloud, addprocs(1)[0], 0, 0, 9999)", None),
        ("remotecall_fetch(printing.write_to_buffer, addprocs(1)[0], b'x\\n'); sys.exit(3)", PREFIX + "2:\tx\n"),
    ],
    ids=["incomplete", "pool", "many", "exit code"],
)
def test_nothing_is_lost_when_the_program_ends(run_script: RunScript, start: str, expected: str | None) -> None:
    """Also where nobody removed the workers: what they had printed is shown before the interpreter is gone."""
    root = os.path.dirname(os.path.abspath(__file__))
    text = EXIT_SCRIPT.format(start=start)
    code, out, err = run_script(text, env={"PYTHONPATH": f"{os.path.dirname(root)}{os.pathsep}{root}"})
    assert (code, err) == (3 if "exit" in start else 0, "")
    if expected is None:
        assert len(out.splitlines()) == 3 * 9999
    else:
        assert out == expected


def test_a_worker_that_is_busy_at_the_end_was_heard(run_script: RunScript) -> None:
    """It is killed, its words are not lost."""
    root = os.path.dirname(os.path.abspath(__file__))
    start = "printing.say_and_stay(addprocs(1)[0], 'still busy')"
    text = EXIT_SCRIPT.format(start=start)
    code, out, _ = run_script(text, env={"PYTHONPATH": f"{os.path.dirname(root)}{os.pathsep}{root}"})
    assert (code, out) == (0, PREFIX + "2:\tstill busy\n")


# -- slow and broken streams


def test_who_prints_too_much_waits_and_nobody_else_does(workers: StartWorkers) -> None:
    """While output is not shown a worker that prints stops after a bounded amount; starts and ends stay prompt."""
    may_show, lines = threading.Event(), 0

    def hook(pid: int, stream: str, line: str) -> None:
        nonlocal lines
        may_show.wait(60)
        lines += 1

    (pid,) = workers(1, output=hook)
    much = distpool.remotecall(printing.print_much, pid, 8000)
    other, third = workers(2, output="none")
    assert remotecall_fetch(os.getpid, other) > 0
    remotecall_fetch(os.getpid, pid)  # its other threads live
    with pytest.raises(ProcessExitedException):
        remotecall_fetch(os.kill, third, remotecall_fetch(os.getpid, third), signal.SIGKILL)
    assert not much.isready()
    may_show.set()
    assert much.fetch() == 8000
    rmprocs(pid, other)
    assert lines == 8000


class Broken(io.StringIO):
    """A stream that cannot be written."""

    def write(self, text: str) -> int:
        raise OSError("broken")


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Broken(), closed(), None], ids=["broken", "closed", "none"])
def test_a_broken_stream_hurts_nobody(
    workers: StartWorkers, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None
) -> None:
    """Workers go on, and what is printed later goes to the stream that is there then."""
    (pid,) = workers(1)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        remotecall_fetch(printing.say, pid, "lost")
        assert remotecall_fetch(abs, pid, -1) == 1
        eventually(lambda: wait_until_shown(30))
    whole = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", whole)
        remotecall_fetch(printing.say, pid, "heard")
        rmprocs(pid)
    assert f"{PREFIX}{pid}:\theard\n" in whole.getvalue()


def test_a_stream_with_a_small_alphabet_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is not lost for one letter."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    output = fed(Output("raw"), "für\n".encode())
    output.end()
    assert wait_until_shown(30)
    assert raw.getvalue() == b"f\\xfcr\n"


# -- lines


def fed(output: Output, *chunks: bytes, pid: int | None = 7) -> Output:
    """An output of worker 7 that was given these bytes."""
    if pid is not None:
        output.assign(pid)
    for chunk in chunks:
        output.feed(1, chunk)
    return output


def test_lines_are_put_together_from_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    """However they were cut, inside a character too."""
    data = "one\ntwö\n\nthree\r\nfour".encode()
    fed(Output(), *(data[place : place + 1] for place in range(len(data)))).end()
    assert wait_until_shown(30)
    expected = "".join(f"{PREFIX}7:\t{line}\n" for line in ("one", "twö", "", "three\r", "four"))
    assert capsys.readouterr().out == expected


def test_bytes_that_are_no_text_are_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody's output may break the driver's."""
    fed(Output("raw"), b"\xff\xfe?\n")
    assert shown(capsys)[0] == ["\N{REPLACEMENT CHARACTER}" * 2 + "?"]


def test_a_line_with_a_prefix_gets_no_second_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Julia's rule, for workers that forward the output of workers they have started."""
    fed(Output(), f"{PREFIX}9:\tinner\nouter\n".encode())
    assert shown(capsys)[0] == [f"{PREFIX}9:\tinner", f"{PREFIX}7:\touter"]


def test_a_very_long_line_is_shown_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of bounded size and cut between characters; nothing is lost."""
    output, text = Output("raw"), "ä" * (LONGEST_LINE // 2) + "b" + "ä" * LONGEST_LINE
    data = text.encode()
    fed(output, *(data[place : place + 65536] for place in range(0, len(data), 65536))).end()
    pieces = shown(capsys)[0]
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= LONGEST_LINE


def test_output_that_is_early_waits_for_the_id(capsys: pytest.CaptureFixture[str]) -> None:
    """And comes before what comes later; who never gets an id is named as Julia names it."""
    output = fed(Output(), b"early\n", pid=None)
    assert shown(capsys)[0] == []
    fed(output, b"late\n")
    fed(Output(), b"hopeless\n", pid=None).end()
    assert shown(capsys)[0] == [f"{PREFIX}7:\tearly", f"{PREFIX}7:\tlate", f"{PREFIX}startup:\thopeless"]


def test_waiting_is_bounded_and_never_for_oneself() -> None:
    """A job that takes long makes `wait_until_shown` give up; one that waits for itself is told at once."""
    release, waited = threading.Event(), threading.Event()
    answers: list[bool] = []

    def hold() -> None:
        waited.set()
        release.wait(30)

    later(lambda: answers.append(wait_until_shown()))
    later(hold)
    assert waited.wait(30)
    assert not wait_until_shown(0.01)
    release.set()
    assert wait_until_shown(30)
    assert answers == [False]


# -- logging


def test_records_are_handled_by_our_own_loggers(workers: StartWorkers, caplog: pytest.LogCaptureFixture) -> None:
    """Level, name, text, fields and worker arrive; what cannot travel arrives as text; our level decides."""
    caplog.set_level(logging.INFO)
    (pid,) = workers(1, logging=True)
    remotecall_fetch(printing.log, pid, "%s and %r", "text", 3)
    remotecall_fetch(printing.log, pid, "too fine", level=logging.DEBUG)
    remotecall_fetch(printing.log_an_exception, pid)
    rmprocs(pid)
    first, second = caplog.records
    assert (first.name, first.levelno, first.getMessage()) == ("support.printing", logging.INFO, "text and 3")
    assert (vars(first)["worker"], vars(first)["field"], first.processName) == (pid, "<stubborn>", "MainProcess")
    assert second.getMessage() == "it failed for <stubborn>"
    assert "ValueError: bad value" in (second.exc_text or "")


def test_a_level_can_be_given_and_pools_log_too(caplog: pytest.LogCaptureFixture) -> None:
    """Records of all workers, in order for each thread there; what is below the level is not sent."""
    caplog.set_level(logging.DEBUG)
    with WorkerPool(processes=2, logging="ERROR") as pool:
        pool.map(printing.log_numbers, range(8))
        pids = pool.workers()
    heard: dict[str, list[str]] = {}
    for record in caplog.records:
        assert vars(record)["worker"] in pids
        task, number = record.getMessage().split()
        heard.setdefault(task, []).append(number)
    assert heard == {str(task): [str(number) for number in range(1, 50, 2)] for task in range(8)}


def test_workers_that_were_not_asked_do_without_logging(run_script: RunScript) -> None:
    """They do not even import it; what they log by themselves goes where logging puts it, to stderr."""
    root = os.path.dirname(os.path.abspath(__file__))
    text = """
        from distpool import WorkerPool
        with WorkerPool(processes=1) as pool:
            print(pool.submit(eval, "'logging' in __import__('sys').modules").result())
            pool.submit(eval, "__import__('logging').warning('hear me')").result()
    """
    code, out, err = run_script(text, env={"PYTHONPATH": os.path.dirname(root)})
    assert (code, out, err) == (0, "False\n", "WARNING:root:hear me\n")


# -- what a caller can get wrong


def test_wrong_options_are_refused_at_the_call(workers: StartWorkers) -> None:
    """With the names there are."""
    with pytest.raises(ValueError, match="'prefix', 'raw', 'none'"):
        addprocs(1, output="loud")
    with pytest.raises(TypeError, match="callable"):
        WorkerPool(processes=1, output=3)
    with pytest.raises(ValueError, match="level"):
        addprocs(1, logging="LOUD")
    (pid,) = workers(1)
    with pytest.raises(TypeError, match="processes="):
        WorkerPool([pid], output="none")
