"""``python -m distpool run``: programs that know nothing of distpool, with its pools; otherwise as run by python."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from conftest import RunScript, StartScript

RUN = ("-m", "distpool", "run")
OURS = "distpool.compat.multiprocessing.pool"

# Prints what its pools are; without a guard; with functions and classes of its own.
POOLS = """
    import sys
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import Pool, get_context

    class Point:
        def __init__(self, x):
            self.x = x

    def move(point):
        return Point(point.x + step)

    step = 10
    with Pool() as pool:
        print(type(pool).__module__, pool._processes, [p.x for p in pool.map(move, map(Point, range(3)))])
    with get_context("spawn").Pool(1) as pool:
        print(type(pool).__module__, pool._processes, pool.apply(move, (Point(1),)).x)
    with ProcessPoolExecutor() as executor:
        print(type(executor).__module__, executor._max_workers, executor.submit(move, Point(2)).result().x)
"""
TOLD = f"{OURS} 2 [10, 11, 12]\n{OURS} 1 11\ndistpool.compat.futures.process 2 12\n"


def python(*words: object, folder: Path, ours: bool = True) -> subprocess.CompletedProcess[str]:
    """Run python, or ours."""
    command = [sys.executable, *(RUN if ours else ()), *map(str, words)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("how", ["file", "-c"])
def test_pools_are_ours(how: str, run_script: RunScript) -> None:
    """In scripts and code without a guard; workers know the program's own classes and globals."""
    assert run_script(POOLS, how=how, python=(*RUN, "--workers", "2")) == (0, TOLD, "")


def test_a_guard_does_no_harm(run_script: RunScript) -> None:
    """What stands under it is run, once."""
    text = "if __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(POOLS), "    ")
    assert run_script(text, python=(*RUN, "--workers=2")) == (0, TOLD, "")


def test_modules_and_packages(tmp_path: Path) -> None:
    """As ``python -m``: found in the current folder, arguments and all."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "work.py").write_text("def twice(x):\n    return 2 * x\n")
    (package / "__main__.py").write_text(
        "import sys\nfrom multiprocessing import Pool\nfrom .work import twice\nwith Pool(1) as pool:\n"
        "    print(type(pool).__module__, sys.argv[1:], __name__, __package__, pool.map(twice, [1, 2]))\n"
    )
    done = python("-m", "package", "-x", "--summary", folder=tmp_path)
    assert done.stdout == f"{OURS} ['-x', '--summary'] __main__ package [2, 4]\n"
    assert (done.returncode, done.stderr) == (0, "")


def test_a_program_that_nobody_wrote_for_us(tmp_path: Path) -> None:
    """compileall: its executor is ours, it does what it does, and says so."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for number in range(6):
        (folder / f"module{number}.py").write_text(f"x = {number}\n")
    (folder / "bad.py").write_text("def (\n")
    done = python("--summary", "-m", "compileall", "-j", "2", "sources", folder=tmp_path)
    assert done.returncode == 1, "one file is bad"
    assert len(list(folder.glob("__pycache__/*.pyc"))) == 6
    assert "SyntaxError" in done.stdout
    assert re.search(r"^distpool: pools: 1; tasks: 7, .* workers: 2 started, 0 died, 0 replaced$", done.stderr, re.M)


# What a program sees of itself, and how it ends: the same under both.
PROGRAMS = {
    "itself": "import sys; print(sys.argv, sys.path[0], __name__, __file__, __spec__, sorted(globals()))",
    "exit code": "import sys; sys.exit(7)",
    "exit message": "import sys; sys.exit('a reason')",
    "exception": "def f():\n    return 1 / 0\nf()",
    "chained": "try:\n    1 / 0\nexcept ZeroDivisionError:\n    raise LookupError('later')",
    "syntax": "def (",
    "hook": "import sys\nsys.excepthook = lambda *all: print('hook', all[0])\n1 / 0",
    "at exit": "import atexit\natexit.register(print, 'bye')\nprint('hello')",
    "thread": "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('late'))).start()",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_as_with_plain_python(name: str, tmp_path: Path) -> None:
    """Arguments, paths, names, exit codes, what is printed on the way out."""
    (tmp_path / "script.py").write_text(PROGRAMS[name] + "\n")
    ours, plain = (python("script.py", "-p", "x", folder=tmp_path, ours=ours) for ours in (True, False))
    assert (ours.returncode, ours.stderr) == (plain.returncode, plain.stderr)
    if name == "itself":  # these are there with runpy, and for scripts None
        names = {"__annotations__", "__cached__", "__builtins__", "__doc__", "__file__", "__loader__"}
        for each in names:
            plain.stdout = plain.stdout.replace(f"'{each}', ", "")
            ours.stdout = ours.stdout.replace(f"'{each}', ", "")
    assert ours.stdout == plain.stdout


def test_an_error_of_a_task_ends_the_program_as_ever(run_script: RunScript) -> None:
    """Code 1, a traceback with the worker's; none of it is ours above the program's."""
    text = "from multiprocessing import Pool\nwith Pool(1) as pool:\n    pool.map(lambda x: 1 / x, [0])\n"
    code, out, err = run_script(text, python=RUN)
    assert (code, out) == (1, "")
    assert "RemoteTraceback" in err
    assert err.rstrip().endswith("ZeroDivisionError: division by zero")
    assert "__main__.py" not in err
    assert "runpy" not in err


def test_summary(run_script: RunScript) -> None:
    """Counts are true, deaths included; it comes last, after what the program says at its exit, and on failure, too."""
    text = """
        import atexit, os, sys
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool
        from multiprocessing import Pool

        atexit.register(print, "bye", file=sys.stderr)
        with Pool(2) as pool:
            pool.map(abs, range(100))
            pool.apply(abs, (1,))
        with ProcessPoolExecutor(1) as executor:
            try:
                executor.submit(os._exit, 3).result()
            except BrokenProcessPool:
                print("died")
            executor.submit(abs, 1).result()
        with Pool(1, maxtasksperchild=1) as pool:
            pool.map(abs, range(3), chunksize=1)
            pool.close()
            pool.join()
        sys.exit(4)
    """
    code, out, err = run_script(text, python=(*RUN, "--summary"))
    assert (code, out) == (4, "died\n")
    first, last = err.splitlines()
    assert first == "bye"
    counts = re.fullmatch(
        r"distpool: pools: 3; tasks: 105, \d+\.\d\d s of work in \d+\.\d\d s; "
        r"workers: (\d+) started, 1 died, (\d+) replaced",
        last,
    )
    assert counts is not None, last
    started, replaced = map(int, counts.groups())
    assert replaced >= 3, "one died, and two at least had done their task"
    assert started >= 4 + replaced


def test_no_pools_no_cost(run_script: RunScript) -> None:
    """A program without pools has none, and nothing is loaded for it."""
    text = "import sys\nprint('multiprocessing' in sys.modules, 'concurrent.futures' in sys.modules)"
    code, out, err = run_script(text, python=(*RUN, "--summary"))
    assert (code, out) == (0, "False False\n")
    assert "pools: 0; tasks: 0, 0.00 s of work" in err


def test_ctrl_c(start_script: StartScript) -> None:
    """In the middle of a map: the program ends as python does, and nothing of it is left."""
    text = """
        import time
        from multiprocessing import Pool

        with Pool(2) as pool:
            pool.map(abs, range(4))
            print("working", flush=True)
            pool.map(time.sleep, [60] * 4)
    """
    script = start_script(text, python=RUN)
    script.wait_for("working")
    script.send(signal.SIGINT)
    code, _, err = script.wait(20)
    assert code == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    script.no_survivors()


def test_spawned_processes_of_the_program(run_script: RunScript) -> None:
    """``multiprocessing.Process`` is the standard library's, and finds the program's functions."""
    text = """
        import multiprocessing

        def work(queue):
            queue.put(6 * 7)

        if __name__ == "__main__":
            context = multiprocessing.get_context("spawn")
            queue = context.Queue()
            child = context.Process(target=work, args=(queue,))
            child.start()
            print(queue.get(timeout=30))
            child.join()
    """
    assert run_script(text, python=RUN) == (0, "42\n", "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "there is nothing to run"),
        (["--workers", "2"], "there is nothing to run"),
        (["--workers", "0", "x.py"], "at least one worker"),
        (["--workers", "many", "x.py"], "argument --workers"),
        (["-c"], "argument expected for -c"),
        (["-p", "2", "x.py"], "unrecognized arguments: -p 2"),
        (["no-such-script.py"], "can't open file 'no-such-script.py'"),
        (["-m", "no_such_module_20372"], "no module 'no_such_module_20372'"),
    ],
)
def test_mistakes_are_named(words: list[Any], complaint: str, tmp_path: Path) -> None:
    done = python(*words, folder=tmp_path)
    assert done.returncode in (1, 2)
    assert complaint in done.stderr
    assert done.stdout == ""
