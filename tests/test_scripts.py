"""Code that people really write: scripts without a guard, `-c`, standard input, packages, notebooks."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WHOLE = """
    import distpool
    from distpool import WorkerPool

    FACTOR = 3

    def scale(x):
        return FACTOR * x

    with WorkerPool(processes=2) as pool:
        print(pool.map(scale, range(4)), pool.map(lambda x: x + FACTOR, range(3)), pool.submit(scale, 5).result())
    distpool.addprocs(2)
    print(distpool.pmap(scale, range(4)))
"""
SAID = "[0, 3, 6, 9] [3, 4, 5] 15\n[0, 3, 6, 9]\n"


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_a_program_without_a_guard(how: str, run_script: Callable[..., Any]) -> None:
    """Functions of `__main__` and the globals that they mention are found by the workers, however the program came."""
    assert run_script(WHOLE, how=how) == (0, SAID, "")


def test_a_package_that_is_run(
    run_script: Callable[..., Any], start_script: Callable[..., Any], tmp_path: Path
) -> None:
    """`python -m package`, with functions in `__main__` and in a module beside it, imported relatively."""
    package = tmp_path / "tool"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "numbers.py").write_text("def double(x):\n    return 2 * x\n")
    main = """
        from distpool import WorkerPool
        from .numbers import double
        def triple(x):
            return double(x) + x
        with WorkerPool(processes=2) as pool:
            print(pool.map(double, range(3)), pool.map(triple, range(3)))
    """
    (package / "__main__.py").write_text(textwrap.dedent(main))
    script = start_script("", folder=tmp_path, python=("-m", "tool"))
    assert script.wait() == (0, "[0, 2, 4] [0, 3, 6]\n", "")
    script.no_survivors()


def test_instances_of_a_class_of_main_go_there_and_back(run_script: Callable[..., Any]) -> None:
    """They come back as instances of the very class; methods, inheritance, dataclasses and enums work."""
    code, out, err = run_script("""
        import dataclasses, enum
        from distpool import WorkerPool

        class Colour(enum.Enum):
            RED = 1

        @dataclasses.dataclass
        class Base:
            x: int

        class Point(Base):
            def moved(self, by):
                return Point(self.x + by)

        def move(point):
            assert isinstance(point, Point) and isinstance(point, Base)
            return point.moved(10), Colour.RED

        with WorkerPool(processes=2) as pool:
            for _ in range(2):
                moved = pool.map(move, [Point(1), Point(2)])
                print([(type(p) is Point, p.x, c is Colour.RED) for p, c in moved])
            print(pool.submit(Point(5).moved, 1).result().x)
    """)
    line = "[(True, 11, True), (True, 12, True)]\n"
    assert (code, out, err) == (0, line + line + "6\n", "")


def test_globals_that_an_initializer_sets(run_script: Callable[..., Any]) -> None:
    """They are there in every task of the worker, and the driver's unchanged placeholder does not overwrite them."""
    code, out, err = run_script("""
        import os
        from distpool import WorkerPool

        connection = None
        cache = {}

        def connect(name):
            global connection
            connection = f"{name} to {os.getpid()}"
            cache["from"] = name

        def use(x):
            return connection == f"wire to {os.getpid()}" and cache["from"] == "wire"

        with WorkerPool(processes=2, initializer=connect, initargs=("wire",)) as pool:
            print(all(pool.map(use, range(50))), pool.submit(use, 1).result())
        print(connection, cache)
    """)
    assert (code, out, err) == (0, "True True\nNone {}\n", "")


def test_a_guarded_script_works_as_well(run_script: Callable[..., Any]) -> None:
    """The guard of other libraries does no harm."""
    code, out, err = run_script("""
        from distpool import WorkerPool
        def square(x):
            return x * x
        def main():
            with WorkerPool(processes=2) as pool:
                print(pool.map(square, range(4)))
        if __name__ == "__main__":
            main()
    """)
    assert (code, out, err) == (0, "[0, 1, 4, 9]\n", "")


CELLS = [
    "from distpool import WorkerPool\npool = WorkerPool(processes=2)",
    "OFFSET = 1\ndef f(x):\n    return x + OFFSET\nprint(pool.map(f, range(3)))",
    "def f(x):\n    return x * 10\nprint(pool.map(f, range(3)))",
    "OFFSET = 100\nprint(pool.map(lambda x: x + OFFSET, range(3)))",
    "class Box:\n    def __init__(self, x): self.x = x\nprint([type(b) is Box for b in pool.map(Box, range(2))])",
    "class Box:\n    def __init__(self, x): self.y = x\nprint([b.y for b in pool.map(Box, range(2))])",
    "print(pool.submit(lambda: f(7)).result())\npool.close()",
]


def test_a_notebook(run_script: Callable[..., Any]) -> None:
    """Run headless: functions and classes redefined between cells are the new ones at the workers, lambdas work."""
    pytest.importorskip("nbclient", reason="nbclient comes with the test extra")
    pytest.importorskip("ipykernel", reason="ipykernel comes with the test extra")
    code, out, err = run_script(
        """
        import json, os, sys
        from nbclient import NotebookClient
        import nbformat
        import jupyter_client.kernelspec as specs
        # The kernel of this very interpreter, whatever is installed elsewhere on the machine.
        os.makedirs("kernels/kernels/this")
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        with open("kernels/kernels/this/kernel.json", "w") as file:
            json.dump({"argv": command, "display_name": "this", "language": "python"}, file)
        os.environ["JUPYTER_PATH"] = os.path.abspath("kernels")
        cells = [nbformat.v4.new_code_cell(text) for text in json.loads(sys.argv[1])]
        notebook = nbformat.v4.new_notebook(cells=cells)
        NotebookClient(notebook, kernel_name="this", timeout=30).execute()
        for cell in notebook.cells:
            for output in cell.outputs:
                print(output.get("text", output), end="")
        """,
        json.dumps(CELLS),
        env={"PYTHONWARNINGS": "ignore", "JUPYTER_PLATFORM_DIRS": "1"},
    )
    assert code == 0, err
    assert out == "[1, 2, 3]\n[0, 10, 20]\n[100, 101, 102]\n[True, True]\n[0, 1]\n70\n", err
