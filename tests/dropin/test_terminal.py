"""Ctrl-C in a real terminal and in a notebook, on every door: at once, one traceback, nothing left, no word of workers.

A terminal sends SIGINT to the driver and to its workers alike; `kill -INT`, which other tests use, to the driver only.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import RunScript

from support.terminals import Terminal

SOON = 10  # seconds: a hang; what users get is printed

MAPS = {
    "WorkerPool": ("from distpool import WorkerPool", "WorkerPool(processes=2)"),
    "Pool": ("from distpool.compat.multiprocessing import Pool", "Pool(2)"),
    "ProcessPoolExecutor": ("from distpool.compat.futures import ProcessPoolExecutor", "ProcessPoolExecutor(2)"),
}

PROGRAM = """
import time
{0}

def work(x):
    print("working", flush=True)
    time.sleep(1000)

def busy(x):
    print("working", flush=True)
    while True:
        pass

with {1} as pool:
    {2}
"""

WAYS = {
    "map": "list(pool.map(work, range(8)))",
    "a loop that never sleeps": "list(pool.map(busy, range(8)))",
    "after many": "list(pool.map(abs, range(100_000))); list(pool.map(work, range(8)))",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("door", MAPS)
def test_ctrl_c_during_a_map(door: str, way: str, tmp_path: Path) -> None:
    """The prompt is back."""
    (tmp_path / "program.py").write_text(PROGRAM.format(*MAPS[door], WAYS[way]))
    with Terminal(tmp_path) as terminal:
        terminal.type(f"{sys.executable} program.py")
        for _ in range(2):  # both workers
            terminal.wait_for("working")
        seconds, said = terminal.interrupt()
        terminal.nothing_else_runs()
    print(f"{seconds * 1000:.0f} ms to the prompt")  # for `pytest -rP`
    assert said.count("Traceback") == 1, said
    assert said.rstrip().endswith("KeyboardInterrupt"), said
    assert seconds < SOON


CATCHES = """
import time
{0}

def work(x):
    print("working", flush=True)
    time.sleep(1000)

pool = {1}
try:
    list(pool.map(work, range(8)))
except KeyboardInterrupt:
    print("caught")
print(list(pool.map(abs, [-1, -2])))
with pool:
    list(pool.map(work, range(8)))
"""


@pytest.mark.parametrize("door", MAPS)
def test_ctrl_c_that_is_caught(door: str, tmp_path: Path) -> None:
    """The pool answers the next map; a second Ctrl-C ends the program."""
    (tmp_path / "program.py").write_text(CATCHES.format(*MAPS[door]))
    with Terminal(tmp_path) as terminal:
        terminal.type(f"{sys.executable} program.py")
        for _ in range(2):
            terminal.wait_for("working")
        terminal.press_ctrl_c()
        assert "Traceback" not in terminal.wait_for("caught\n")
        assert "Traceback" not in terminal.wait_for("[1, 2]\n")
        for _ in range(2):
            terminal.wait_for("working")
        _, said = terminal.interrupt()
        terminal.nothing_else_runs()
    assert said.count("Traceback") == 1, said
    assert said.rstrip().endswith("KeyboardInterrupt"), said


# A kernel as notebooks have it; told what the cells are, it runs them, and interrupts the one that says "working".
KERNEL = """
import json, os, sys, time
import jupyter_client
os.makedirs("kernels/kernels/this")  # of this very interpreter, whatever is installed elsewhere on the machine
command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
with open("kernels/kernels/this/kernel.json", "w") as file:
    json.dump({"argv": command, "display_name": "this", "language": "python"}, file)
os.environ["JUPYTER_PATH"] = os.path.abspath("kernels")
manager, client = jupyter_client.manager.start_new_kernel(kernel_name="this")
interrupted = []

def show(message):
    kind, content = message["msg_type"], message["content"]
    if kind == "error":
        print(content["ename"])
    elif kind == "stream" and content["name"] == "stdout" and "working" not in content["text"]:
        print(content["text"], end="")
    elif kind == "stream" and "working" in content["text"] and cell not in interrupted:
        interrupted.append(cell)
        time.sleep(0.3)  # so that it waits in the map
        manager.interrupt_kernel()

for cell in json.loads(sys.argv[1]):
    client.execute_interactive(cell, output_hook=show, timeout=40)
client.stop_channels()
manager.shutdown_kernel()
"""


@pytest.mark.parametrize("door", MAPS)
def test_interrupt_in_a_notebook(door: str, run_script: RunScript) -> None:
    """One KeyboardInterrupt, twice, and the pool answers after each."""
    pytest.importorskip("jupyter_client", reason="jupyter_client comes with nbclient, of the test extra")
    pytest.importorskip("ipykernel", reason="ipykernel comes with the test extra")
    cells = [
        f"import time\n{MAPS[door][0]}\npool = {MAPS[door][1]}\nprint(list(pool.map(abs, [-1])))",
        "print('working', flush=True)\nlist(pool.map(lambda x: time.sleep(1000), range(8)))",
        "print(list(pool.map(lambda x: x + 1, range(3))))",
        "print('working', flush=True)\nlist(pool.map(lambda x: time.sleep(1000), range(8))) ",
        "with pool:\n    print(list(pool.map(lambda x: x + 2, range(3))))",
    ]
    env = {"PYTHONWARNINGS": "ignore", "JUPYTER_PLATFORM_DIRS": "1"}
    code, out, err = run_script(KERNEL, json.dumps(cells), env=env)
    assert (code, out) == (0, "[1]\nKeyboardInterrupt\n[1, 2, 3]\nKeyboardInterrupt\n[2, 3, 4]\n"), err
