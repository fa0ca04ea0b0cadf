"""Small programs as people write them, run whole: each has once shown a fault that no other test had."""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distpool.compat.futures import ProcessPoolExecutor, wait
from distpool.compat.multiprocessing import Pool


@pytest.mark.parametrize("end", ["close", "close join", "terminate", "terminate join"])
def test_a_pool_that_an_object_ends_after_the_program(run_script: Any, end: str) -> None:
    """``__del__`` of a global runs when no thread can be started any more: it says nothing and does not hang."""
    text = """
    import sys
    from distpool.compat.multiprocessing import Pool

    class Holder:
        def __init__(self):
            self.pool, self.ends = Pool(2), sys.argv[1:]

        def __del__(self):
            for how in self.ends:
                getattr(self.pool, how)()

    holder = Holder()
    print(holder.pool.map(abs, [-1, -2]))
    """
    assert run_script(text, *end.split()) == (0, "[1, 2]\n", "")


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_worker_pool_that_an_object_ends_after_the_program(run_script: Any, end: str) -> None:
    """The same for distpool's own pool."""
    text = """
    import sys
    from distpool import WorkerPool

    class Holder:
        def __init__(self):
            self.pool, self.end = WorkerPool(processes=2), sys.argv[1]

        def __del__(self):
            getattr(self.pool, self.end)()

    holder = Holder()
    print(holder.pool.map(abs, [-1, -2]))
    """
    assert run_script(text, end) == (0, "[1, 2]\n", "")


def test_objects_with_slots(run_script: Any) -> None:
    """Classes of a script with ``__slots__``, dataclasses among them, come back as what they were."""
    text = """
    from dataclasses import dataclass
    from distpool.compat.multiprocessing import Pool

    class Plain:
        __slots__ = ("__hidden", "seen")

        def __init__(self):
            self.__hidden, self.seen = 4, 5

        def total(self):
            return self.__hidden + self.seen

    @dataclass(slots=True)
    class Row:
        number: int = 3

    def same(thing):
        return thing, hasattr(thing, "__dict__")

    with Pool(1) as pool:
        (plain, open_plain), (row, open_row) = pool.map(same, [Plain(), Row(7)])
        print(plain.total(), row == Row(7), open_plain, open_row, type(pool.apply(Row)) is Row)
    """
    assert run_script(text) == (0, "9 True False False True\n", "")


def test_nested_functions_of_a_test(tmp_path: Path) -> None:
    """pytest rewrites ``assert`` with the help of names that the module, imported by a worker, does not have."""
    (tmp_path / "test_inner.py").write_text(
        """
import pytest
from distpool.compat.multiprocessing import Pool

def test_nested():
    def check(x):
        assert x == 3, "told"
        return x

    with Pool(1) as pool:
        assert pool.map(check, [3]) == [3]
        with pytest.raises(AssertionError, match="told"):
            pool.map(check, [4])
"""
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_inner.py"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stdout


@pytest.mark.parametrize("door", ["multiprocessing", "futures"])
def test_what_a_script_has_set(run_script: Any, door: str) -> None:
    """Filters of warnings, the limit of recursion and handlers of log records hold for workers, as in forked ones."""
    text = """
    import logging, sys, warnings
    from distpool.compat.futures import ProcessPoolExecutor
    from distpool.compat.multiprocessing import Pool

    warnings.filterwarnings("ignore", message="care.*", category=UserWarning)
    warnings.filterwarnings("error", category=RuntimeWarning, module=".*")
    sys.setrecursionlimit(4000)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(processName)s %(message)s", stream=sys.stdout)

    def deep(n):
        return 0 if n == 0 else 1 + deep(n - 1)

    def work(n):
        logging.info("task %d", n)
        warnings.warn("Careful")
        try:
            warnings.warn("slow", RuntimeWarning)
        except RuntimeWarning:
            return deep(n)

    make = {"multiprocessing": Pool, "futures": ProcessPoolExecutor}[sys.argv[1]]
    with make(1) as pool:
        results = list(pool.map(work, [3000]))
    print(results)
    """
    name = {"multiprocessing": "ForkPoolWorker-1", "futures": "ForkProcess-1"}[door]
    assert run_script(text, door) == (0, f"INFO {name} task 3000\n[3000]\n", "")


def test_warnings_of_packages(run_script: Any) -> None:
    """A filter for warnings of a package is there when a worker imports that, and does not import it before."""
    text = """
    import sys, warnings
    import numpy
    from distpool.compat.multiprocessing import Pool

    warnings.simplefilter("error", numpy.exceptions.RankWarning)

    def work(_):
        try:
            warnings.warn("rank", numpy.exceptions.RankWarning)
        except numpy.exceptions.RankWarning:
            return "raised"

    with Pool(1) as pool:
        print(pool.apply(eval, ("'numpy' in __import__('sys').modules",)), pool.apply(work, (0,)))
    """
    assert run_script(text) == (0, "False raised\n", "")


def test_modules_that_a_fork_server_shall_load(run_script: Any) -> None:
    """``set_forkserver_preload`` holds here as well; a module that is not there is passed over, as ever."""
    text = """
    import multiprocessing, sys
    multiprocessing.set_forkserver_preload(["no_such_module", "decimal"])
    from distpool.compat.multiprocessing import Pool

    with Pool(1) as pool:
        print(pool.apply(eval, ("'decimal' in __import__('sys').modules",)))
    """
    assert run_script(text) == (0, "True\n", "")


@pytest.mark.parametrize("how", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunksize", [None, 1])
def test_an_input_that_waits_for_results(how: str, chunksize: int | None) -> None:
    """A generator takes a semaphore that whoever handles the results gives back: the usual way to bound a map."""
    free, total = threading.Semaphore(5), 0

    def numbers() -> Iterator[int]:
        for number in range(200):
            free.acquire()
            yield number

    with Pool(2) as pool:
        for result in getattr(pool, how)(abs, numbers(), chunksize):
            total += result
            free.release()
    assert total == sum(range(200))


def test_results_of_what_a_queue_brings() -> None:
    """Results come while the input waits for more; close() waits for its end."""
    wanted: queue.Queue[int | None] = queue.Queue()
    with Pool(2) as pool:
        results = pool.imap(abs, iter(wanted.get, None))
        for number in range(5):
            wanted.put(-number)
            assert results.next(30) == number
        pool.close()
        wanted.put(-7)
        wanted.put(None)
        pool.join()
        assert list(results) == [7]


def test_an_input_that_waits_for_ever_does_not_hold_up_the_end() -> None:
    """The end of a ``with`` block, and a dropped iterator, leave the generator where it is."""
    never = threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        never.wait()

    with Pool(2) as pool:
        assert next(pool.imap(abs, numbers())) == 1
        assert pool.map(abs, [-1]) == [1]
    never.set()


def test_an_input_is_read_only_some_way_ahead() -> None:
    """Also when it is read in a thread of its own; an error of it comes after the results before it."""

    def numbers(read: list[int]) -> Iterator[int]:
        for number in range(10**9):
            read.append(number)
            yield number

    def failing() -> Iterator[int]:
        yield -5
        raise LookupError("no more")

    with Pool(2) as pool:
        read: list[int] = []
        results = pool.imap(abs, numbers(read), 1)
        assert [next(results) for _ in range(20)] == list(range(20))
        assert len(read) <= 20 + 8  # four envelopes of one task for each worker
        read_bounded: list[int] = []
        bounded = pool.imap(abs, numbers(read_bounded), 1, buffersize=3)
        assert [next(bounded) for _ in range(10)] == list(range(10))
        assert len(read_bounded) <= 10 + 3
        results = pool.imap(abs, failing())
        assert next(results) == 5
        with pytest.raises(LookupError, match="no more"):
            next(results)


@pytest.mark.parametrize("door", ["multiprocessing", "futures"])
def test_what_is_looked_up_in_the_script(run_script: Any, door: str) -> None:
    """A worker opens a file with objects of the script's classes, which no function mentions."""
    text = """
    import pickle, sys, threading
    from distpool.compat.futures import ProcessPoolExecutor
    from distpool.compat.multiprocessing import Pool

    class Model:
        def predict(self, x):
            return scale * x

    scale, lock = 3, threading.Lock()

    def load(path):
        global model
        with open(path, "rb") as file:
            model = pickle.load(file)

    def predict(x):
        import __main__
        return model.predict(x), hasattr(__main__, "nothing"), hasattr(__main__, "lock")

    with open("model.pickle", "wb") as file:
        pickle.dump(Model(), file)
    make = {"multiprocessing": Pool, "futures": ProcessPoolExecutor}[sys.argv[1]]
    with make(1, initializer=load, initargs=("model.pickle",)) as pool:
        print(list(pool.map(predict, [1, 2])))
    """
    assert run_script(text, door) == (0, "[(3, False, False), (6, False, False)]\n", "")


@pytest.mark.parametrize("how", ["import", "install"])
def test_recipes_that_look_inside_a_pool(run_script: Any, how: str) -> None:
    """Progress by ``_number_left``, waiting on ``_cache`` and ``_taskqueue``, and the ``istarmap`` of the answers."""
    change = "distpool.compat." if how == "import" else ""
    text = f"""
    import sys, time
    if sys.argv[1] == "install":
        from distpool.compat import install
        install()
    import {change}multiprocessing.pool as inside
    from {change}multiprocessing import Pool

    def istarmap(self, func, iterable, chunksize=1):
        self._check_running()
        batches = inside.Pool._get_tasks(func, iterable, chunksize)
        result = inside.IMapIterator(self)
        work = self._guarded_task_generation(result._job, inside.starmapstar, batches)
        self._taskqueue.put((work, result._set_length))
        return (item for chunk in result for item in chunk)

    inside.Pool.istarmap = istarmap
    with Pool(2) as pool:
        print(list(pool.istarmap(pow, [(n, 2) for n in range(5)], 2)))
        got = []
        for n in range(5):
            pool.apply_async(time.sleep, (0.01,), callback=got.append)
        most = len(pool._cache), pool._taskqueue.qsize()
        while pool._cache:
            time.sleep(0.01)
        print(most[0] <= 5, len(got), pool._taskqueue.qsize())
        result = pool.map_async(time.sleep, [0.02] * 20, 2)
        seen = set()
        while not result.ready():
            seen.add(result._number_left)
            result.wait(0.01)
        print(max(seen) <= 10, len(seen) > 2, result._number_left, result._chunksize)
    """
    assert run_script(text, how) == (0, "[0, 1, 4, 9, 16]\nTrue 5 0\nTrue True 0 2\n", "")


def test_an_executor_is_asked_how_much_is_pending() -> None:
    """``len(executor._pending_work_items)``, as programs bound what they submit."""
    with ProcessPoolExecutor(2) as executor:
        assert not executor._pending_work_items
        futures = [executor.submit(time.sleep, 0.2) for _ in range(6)]
        assert len(executor._pending_work_items) == 6
        wait(futures)
        assert not executor._pending_work_items


def test_a_pool_that_ends_while_it_starts() -> None:
    """What its calls fail with says that the pool was closed, and not that workers did not start."""
    for _ in range(10):
        with Pool(2) as pool:
            result = pool.apply_async(abs, (-1,))
        with contextlib.suppress(RuntimeError):
            assert result.get(30) == 1
        if not result.successful():
            with pytest.raises(RuntimeError, match=r"^the pool was closed before this task was done$"):
                result.get()


def test_functions_that_choose_by_type(run_script: Any) -> None:
    """``functools.singledispatch`` and ``singledispatchmethod`` in a script."""
    text = """
    from functools import singledispatch, singledispatchmethod
    from distpool.compat.multiprocessing import Pool

    @singledispatch
    def kind(x):
        return "object"

    @kind.register
    def _(x: int):
        return "int"

    class Teller:
        @singledispatchmethod
        def tell(self, x):
            return "object"

        @tell.register(str)
        def _(self, x):
            return "str"

    kind(1)
    with Pool(1) as pool:
        print(pool.map(kind, [1, "a"]), pool.map(Teller().tell, [1, "a"]))
    """
    assert run_script(text) == (0, "['int', 'object'] ['object', 'str']\n", "")
