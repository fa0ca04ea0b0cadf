"""``distpool.compat.install()``: the standard library's names make our pools, and ``uninstall()`` leaves no trace."""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import multiprocessing
import multiprocessing.pool
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor as BoundExecutor
from multiprocessing import Pool as bound_pool  # as programs import it: long before
from multiprocessing import resource_tracker
from multiprocessing.pool import Pool as BoundPool
from multiprocessing.pool import ThreadPool
from typing import Any

import pytest
from conftest import RunScript
from test_exports import HEAVY

import distpool
from distpool.compat import install, uninstall
from distpool.compat.futures import ProcessPoolExecutor as OurExecutor
from distpool.compat.multiprocessing.pool import Pool as OurPool
from support import dropins, installs

Make = Callable[..., Any]


class Counting(BoundPool):
    """A user's pool, written before anything was installed: a constructor, and methods called both ways."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.calls = 0
        super().__init__(*args, **kwargs)

    def map(self, func: Any, iterable: Any, chunksize: Any = None) -> Any:
        """By way of the class, as in many recipes."""
        self.calls += 1
        return BoundPool.map(self, func, iterable, chunksize)

    def apply(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().apply(func, *args, **kwargs)


class Rebuilt(BoundPool):
    """Has a private part of its own."""

    def _setup_queues(self) -> None:
        super()._setup_queues()  # type: ignore[misc]  # not in the types


class Executor(BoundExecutor):
    """A user's executor."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(fn, *args, **kwargs)


@pytest.fixture(autouse=True, scope="module")
def _standard_library_at_work() -> None:
    """Its resource tracker, and the first piece of its heap: made before the first leak census."""
    resource_tracker.ensure_running()
    multiprocessing.Value("i")


@pytest.fixture
def installed() -> Iterator[None]:
    install(workers=2)
    yield
    uninstall()


def dicts() -> list[dict[str, Any]]:
    """All that could have been changed."""
    import multiprocessing.synchronize

    semaphore = vars(multiprocessing.synchronize)["SemLock"]
    places = [multiprocessing, multiprocessing.pool, BoundPool, ThreadPool, semaphore, BoundExecutor]
    return [*(dict(vars(place)) for place in places), {"finders": list(sys.meta_path)}]


POOLS: dict[str, Make] = {
    "multiprocessing.Pool": lambda *args: multiprocessing.Pool(*args),
    "multiprocessing.pool.Pool": lambda *args: multiprocessing.pool.Pool(*args),
    "bound function": bound_pool,
    "bound class": BoundPool,
    "fork": multiprocessing.get_context("fork").Pool,
    "spawn": multiprocessing.get_context("spawn").Pool,
    "default": multiprocessing.get_context().Pool,
}


@pytest.mark.parametrize("name", POOLS)
def test_every_way_to_a_pool(name: str, installed: None) -> None:
    """However it was imported, whenever: it is ours, and of the standard library's class."""
    with POOLS[name]() as pool:
        assert type(pool) is OurPool
        assert isinstance(pool, BoundPool)
        assert pool._processes == 2, "the default of install()"
        assert pool.map(lambda x: x + 1, range(3)) == [1, 2, 3]


EXECUTORS: dict[str, Make] = {
    "concurrent.futures": lambda *args, **options: concurrent.futures.ProcessPoolExecutor(*args, **options),
    "process": lambda *args, **options: concurrent.futures.process.ProcessPoolExecutor(*args, **options),
    "bound": BoundExecutor,
}


@pytest.mark.parametrize("name", EXECUTORS)
def test_every_way_to_an_executor(name: str, installed: None) -> None:
    """Likewise; our own options can be given, too."""
    with EXECUTORS[name](cancel_running=True) as executor:
        assert type(executor) is OurExecutor
        assert isinstance(executor, BoundExecutor)
        assert executor._max_workers == 2
        assert list(executor.map(lambda x: x + 1, range(3))) == [1, 2, 3]
    with distpool.WorkerPool(processes=1) as pool, EXECUTORS[name](pool=pool) as executor:
        assert executor.submit(abs, -1).result() == 1


def test_a_number_that_is_given_counts(installed: None) -> None:
    """By place and by name; what is wrong raises as ever."""
    with multiprocessing.Pool(1) as pool, BoundExecutor(max_workers=3) as executor:
        assert (pool._processes, executor._max_workers) == (1, 3)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="at least 1"):
        multiprocessing.Pool(0)
    with pytest.raises(ValueError, match="greater than 0"):
        BoundExecutor(0)
    with pytest.raises(TypeError, match="callable"):
        BoundPool(initializer=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="multiple values"):
        BoundPool(1, processes=1)  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        BoundExecutor(1, None, None, (), 5)  # type: ignore[call-arg]


def test_subclasses(installed: None) -> None:
    """Of before the installation and of after it are ours; those that rebuild the machinery stay as they are."""

    class Later(BoundPool):
        pass

    with Counting(2) as pool:
        assert isinstance(pool, OurPool)
        assert type(pool).__name__ == "Counting"
        assert pool.map(lambda x: -x, [1, 2]) == [-1, -2]
        assert pool.apply(lambda: 7) == 7
        assert pool.calls == 2
    with Counting(1) as other:
        assert type(other) is type(pool)
    with Later(1) as later:
        assert isinstance(later, OurPool)
    with Executor(1) as executor:
        assert isinstance(executor, OurExecutor)
        assert executor.submit(lambda: 7).result() == 7
    with ThreadPool(2) as threads:
        assert threads.map(lambda x: threading.current_thread() is not threading.main_thread(), [1]) == [True]
        assert threads.apply_async(abs, (-1,)).get() == 1
        assert not isinstance(threads, OurPool)
    with Rebuilt(1, context=multiprocessing.get_context("spawn")) as rebuilt:
        assert not isinstance(rebuilt, OurPool)
        assert rebuilt.map(abs, [-1]) == [1]


def test_initializers_still_run(installed: None) -> None:
    """With their arguments; one that fails fails as ever."""
    with multiprocessing.Pool(1, dropins.keep, (5, "x")) as pool:
        assert pool.apply(dropins.kept) == (5, "x")
    with BoundExecutor(1, initializer=dropins.keep, initargs=("y",)) as executor:
        assert executor.submit(dropins.kept).result() == ("y",)
    broken = pytest.raises(concurrent.futures.process.BrokenProcessPool)
    with BoundExecutor(1, initializer=divmod, initargs=(1, 0)) as executor, broken:
        executor.submit(abs, 1).result()


def test_pools_in_workers_are_ours(installed: None) -> None:
    """Under both doors; with the default number of install()."""
    ours = ["distpool.compat.multiprocessing.pool", "distpool.compat.futures.process"]
    with multiprocessing.Pool(1) as pool:
        assert pool.apply(installs.is_installed) is True
        assert pool.apply(installs.nested, (3,)) == (ours, 2, [3], 3)
    with BoundExecutor(1) as executor:
        assert executor.submit(installs.nested, 4).result() == (ours, 2, [4], 4)


def test_workers_of_other_pools_are_left_alone(installed: None) -> None:
    """Nothing is inherited by pools that were not made by the standard library's names."""
    with OurPool(1) as pool, distpool.WorkerPool(processes=1) as native:
        for run in (pool.apply, lambda f: native.submit(f).result()):
            assert run(installs.is_installed) is False


def test_locks_and_queues_of_the_standard_library(installed: None) -> None:
    """Made by its own default context, they work in workers, and are opened there by name."""
    lock, queue, value = multiprocessing.Lock(), multiprocessing.Queue(), multiprocessing.Value("i", 0)
    assert vars(lock)["_semlock"].name is not None
    with multiprocessing.Pool(2, dropins.keep, (lock, queue, value)) as pool:
        pool.map(installs.count_and_tell, range(20), chunksize=1)
        assert value.value == 20
        assert sorted(queue.get(timeout=10) for _ in range(20)) == list(range(20))
    queue.close()
    queue.join_thread()


def test_a_lock_of_before() -> None:
    """It has no name, and works all the same."""
    lock, value = multiprocessing.get_context("fork").Lock(), multiprocessing.get_context("fork").Value("i", 0)
    install()
    try:
        with multiprocessing.Pool(2, dropins.keep, (lock, None, value)) as pool:
            pool.map(installs.count_and_tell, range(4), chunksize=1)
        assert value.value == 4
    finally:
        uninstall()


def test_uninstall_restores_exactly() -> None:
    """Classes, modules and import hooks are what they were; pools of either kind that exist go on."""
    import multiprocessing.synchronize

    before = dicts()
    with multiprocessing.get_context("spawn").Pool(1) as theirs:
        install()
        install(workers=3)
        assert dicts() != before
        with multiprocessing.Pool() as ours, BoundExecutor() as executor:
            assert ours._processes == 3  # type: ignore[attr-defined]
            uninstall()
            assert dicts() == before
            assert ours.map(lambda x: x, [1]) == [1]
            assert executor.submit(lambda: 2).result() == 2
            assert theirs.map(abs, [-1]) == [1]
    uninstall()
    assert dicts() == before
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert type(pool) is BoundPool


@pytest.mark.parametrize(("workers", "error"), [(0, ValueError), (-1, ValueError), (True, TypeError), ("4", TypeError)])
def test_wrong_numbers(workers: Any, error: type[Exception]) -> None:
    before = dicts()
    with pytest.raises(error, match="workers="):
        install(workers)
    assert dicts() == before


def test_from_many_threads() -> None:
    """Whoever is first installs, and the pools are ours for all."""
    before = dicts()
    kinds: list[type] = []

    def work() -> None:
        install(1)
        with multiprocessing.Pool() as pool:
            kinds.append(type(pool))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert kinds == [OurPool] * 4
    uninstall()
    assert dicts() == before


def test_joblib(installed: None) -> None:
    """What Parallel takes when no backend is named; a name that is given counts."""
    joblib = pytest.importorskip("joblib")
    from distpool.compat.joblib import DistpoolBackend, shutdown

    def backend(**options: Any) -> Any:
        return joblib.Parallel(**options)._backend

    assert isinstance(backend(n_jobs=2), DistpoolBackend)
    assert type(backend(n_jobs=2)).__name__ == "DistpoolBackend"
    assert not isinstance(backend(n_jobs=2, backend="loky"), DistpoolBackend)
    assert not isinstance(backend(n_jobs=2, prefer="threads"), DistpoolBackend)
    with joblib.Parallel(n_jobs=-1) as parallel:
        assert parallel._effective_n_jobs() == 2
        found = parallel(joblib.delayed(installs.nested)(n) for n in range(2))
    assert [each[0][0] for each in found] == ["distpool.compat.multiprocessing.pool"] * 2
    shutdown()
    uninstall()
    assert not isinstance(backend(n_jobs=2), DistpoolBackend)
    assert joblib.parallel.DEFAULT_BACKEND == "loky"
    assert "distpool-installed" not in joblib.parallel.BACKENDS


def test_joblib_that_comes_later(run_script: RunScript) -> None:
    """Modules that are imported after the installation, by way of packages, too."""
    pytest.importorskip("joblib")
    text = """
        import sys
        from distpool.compat import install
        install()
        assert "joblib" not in sys.modules and "multiprocessing.pool" not in sys.modules
        import joblib.parallel as p
        from joblib import Parallel, delayed
        print(type(Parallel(n_jobs=2)._backend).__name__, Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(3)))
        import multiprocessing.pool
        print(multiprocessing.pool.__loader__.__class__.__name__)
    """
    assert run_script(text) == (0, "DistpoolBackend [0, 1, 2]\nSourceFileLoader\n", "")


def test_forked_children_inherit(run_script: RunScript) -> None:
    """A process that the program forks makes our pools, too."""
    text = """
        import multiprocessing
        from distpool.compat import install

        def work(n):
            with multiprocessing.Pool(1) as pool:
                print(type(pool).__module__, pool.map(abs, [-n]), flush=True)

        install()
        with multiprocessing.Pool(1) as pool:
            pool.map(abs, [1])
            child = multiprocessing.get_context("fork").Process(target=work, args=(3,))
            child.start()
            child.join()
    """
    code, out, err = run_script(text, python=("-W", "ignore"))
    assert (code, out, err) == (0, "distpool.compat.multiprocessing.pool [3]\n", "")


def test_installing_is_light() -> None:
    """Nothing is imported for what the program may never use."""
    text = "import sys; from distpool.compat import install; install(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.split()
    assert [name for name in (*HEAVY, "joblib") if name in loaded] == []
