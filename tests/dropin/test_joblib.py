"""The joblib backend: what ``Parallel`` promises, what hurts people with loky, and scikit-learn on top of it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import joblib  # type: ignore[import-untyped]  # neither has types
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

import distpool.compat.joblib
from distpool import ProcessExitedException
from distpool.compat.arrays import SharedArrays
from support.jobs import make_lock, os_pid, square, touch, touch_and_block
from support.leaks import eventually

WAIT = 30  # seconds; a limit for what should take none
LARGE = 1 << 18  # numbers of eight bytes: 2 MB, shared


@pytest.fixture(scope="module", autouse=True)
def warm_workers() -> Iterator[None]:
    """Two workers that stay warm for all tests, as they do for all calls of a program."""
    with parallel_config(backend="distpool", n_jobs=2):
        Parallel()(delayed(square)(i) for i in range(4))
    yield
    distpool.compat.joblib.shutdown()


@pytest.fixture(autouse=True)
def two_workers() -> Iterator[None]:
    """The backend is the default, as a program would have it."""
    with parallel_config(backend="distpool", n_jobs=2):
        yield


@pytest.fixture
def own_workers() -> Iterator[None]:
    """For tests that harm workers: three others, which end when the test does."""
    with parallel_config(backend="distpool", n_jobs=3, idle_worker_timeout=0.1):
        yield


# -- what Parallel promises


def test_results_come_in_order_from_two_workers() -> None:
    assert Parallel()(delayed(square)(i) for i in range(50)) == [i * i for i in range(50)]
    os_pids = set(Parallel()(delayed(os_pid)() for _ in range(50)))
    assert len(os_pids) <= 2
    assert os.getpid() not in os_pids


def test_the_name_is_known_to_all_ways_of_choosing_a_backend() -> None:
    assert Parallel(n_jobs=2, backend="distpool")(delayed(os_pid)() for _ in range(2))[0] != os.getpid()
    with joblib.parallel_backend("distpool", n_jobs=2):
        assert Parallel()(delayed(os_pid)() for _ in range(2))[0] != os.getpid()
    joblib.parallel.BACKENDS.pop("distpool")
    with parallel_config(backend="distpool", n_jobs=2):  # joblib asks whoever can provide it
        assert Parallel()(delayed(os_pid)() for _ in range(2))[0] != os.getpid()


def test_numbers_of_jobs_mean_what_they_mean_elsewhere() -> None:
    backend = distpool.compat.joblib.DistpoolBackend(nesting_level=0)
    cores = joblib.cpu_count()
    assert [backend.effective_n_jobs(n) for n in (1, 3, -1, None)] == [1, 3, cores, 1]
    assert backend.effective_n_jobs(-2) == max(cores - 1, 1)
    assert backend.effective_n_jobs(-1000) == 1
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(square)(i) for i in range(2))
    assert Parallel(n_jobs=1)(delayed(os_pid)() for _ in range(2)) == [os.getpid()] * 2
    assert joblib.effective_n_jobs(2) == 2


@pytest.mark.parametrize("batch_size", ["auto", 1, 13])
@pytest.mark.parametrize("pre_dispatch", ["2*n_jobs", "all", 3])
def test_batches_and_dispatch_ahead(batch_size: int | str, pre_dispatch: int | str) -> None:
    taken = []

    def tasks() -> Iterator[Any]:
        for i in range(200):
            taken.append(i)
            yield delayed(square)(i)

    results = Parallel(batch_size=batch_size, pre_dispatch=pre_dispatch, return_as="generator")(tasks())
    assert next(results) == 0
    assert (len(taken) == 200) >= (pre_dispatch == "all")
    assert list(results) == [i * i for i in range(1, 200)]


def test_a_generator_gives_results_as_they_come() -> None:
    with_generator = Parallel(return_as="generator")(delayed(square)(i) for i in range(40))
    assert list(with_generator) == [i * i for i in range(40)]
    unordered = Parallel(return_as="generator_unordered", batch_size=1)(
        delayed(time.sleep)(seconds) for seconds in (0.5, 0.0, 0.0)
    )
    assert list(unordered) == [None] * 3


def test_a_slow_task_does_not_hold_back_others_when_order_does_not_matter(tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    def wait_or_not(i: int) -> int:
        if i == 0:
            with open(gate) as file:
                file.read()
        return i

    results = Parallel(return_as="generator_unordered", batch_size=1)(delayed(wait_or_not)(i) for i in range(8))
    first = [next(results) for _ in range(7)]
    with open(gate, "w"):
        pass
    assert (sorted(first), list(results)) == (list(range(1, 8)), [0])


def test_a_dropped_generator_stops_what_runs(tmp_path: Path) -> None:
    started = str(tmp_path / "started")
    results = Parallel(return_as="generator", batch_size=1)(
        [delayed(square)(3), *[delayed(touch_and_block)(started) for _ in range(2)]]
    )
    assert next(results) == 9
    eventually(lambda: os.path.exists(started))
    with pytest.warns(UserWarning, match="cancelled"):
        del results
    assert Parallel()(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_a_time_limit_ends_the_call_and_its_tasks(tmp_path: Path) -> None:
    started = str(tmp_path / "started")
    with pytest.raises(multiprocessing.TimeoutError):
        Parallel(timeout=0.5)(delayed(touch_and_block)(started) for _ in range(4))
    assert Parallel(timeout=WAIT)(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_workers_stay_for_the_next_call_and_for_others_with_as_many() -> None:
    first = set(Parallel()(delayed(os_pid)() for _ in range(40)))
    with Parallel() as parallel:
        for _ in range(2):  # one worker may be so quick that it does all of a call
            first.update(parallel(delayed(os_pid)() for _ in range(40)))
    assert len(first) <= 2
    with parallel_config(backend="distpool", n_jobs=3, idle_worker_timeout=0.1):
        others = set(Parallel()(delayed(os_pid)() for _ in range(40)))
    assert not others & first
    first.update(Parallel(backend="distpool", n_jobs=2)(delayed(os_pid)() for _ in range(40)))
    assert len(first) <= 2


def test_idle_workers_end() -> None:
    with parallel_config(backend="distpool", n_jobs=3, idle_worker_timeout=0.2):
        first = set(Parallel()(delayed(os_pid)() for _ in range(20)))
        eventually(lambda: not any(os.path.exists(f"/proc/{each}") for each in first))
        assert not set(Parallel()(delayed(os_pid)() for _ in range(20))) & first


def test_calls_from_many_threads_share_the_workers() -> None:
    results: dict[int, Any] = {}

    def call(number: int) -> None:
        with parallel_config(backend="distpool", n_jobs=2):
            if number == 0:
                with pytest.raises(ZeroDivisionError):
                    Parallel()(delayed(divmod)(1, i) for i in range(5, -1, -1))
            results[number] = Parallel()(delayed(square)(i) for i in range(60))
            results[-number] = Parallel(batch_size=1)(delayed(os_pid)() for _ in range(10))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert all(results[number] == [i * i for i in range(60)] for number in range(1, 4))
    assert len({each for number in range(1, 4) for each in results[-number]}) <= 2


def test_a_call_that_fails_leaves_another_one_alone(tmp_path: Path) -> None:
    """loky kills the workers under both."""
    started, gate = str(tmp_path / "started"), str(tmp_path / "gate")
    os.mkfifo(gate)

    def wait() -> int:
        touch(started)
        with open(gate) as file:
            file.read()
        return 7

    slow = Parallel(return_as="generator", backend="distpool", n_jobs=2)(delayed(wait)() for _ in range(1))
    eventually(lambda: os.path.exists(started))
    with pytest.raises(ZeroDivisionError):
        Parallel()(delayed(divmod)(1, 0) for _ in range(4))
    with open(gate, "w"):
        pass
    assert list(slow) == [7]


# -- errors


def test_the_original_exception_with_the_workers_traceback() -> None:
    def fail(x: int) -> None:
        raise LookupError(f"bad item {x}")

    with pytest.raises(LookupError, match="bad item 3") as caught:
        Parallel()(delayed(fail)(x) for x in [3])
    assert type(caught.value) is LookupError
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.parametrize("end", [(os._exit, 3), (signal.raise_signal, signal.SIGKILL)])
def test_a_worker_that_dies_fails_the_call_at_once_and_not_the_next(end: tuple[Any, int], own_workers: None) -> None:
    begun = time.monotonic()
    with pytest.raises(BrokenProcessPool, match=r"code 3|SIGKILL") as caught:
        Parallel()([*[delayed(square)(i) for i in range(3)], delayed(end[0])(end[1])])
    assert time.monotonic() - begun < 5
    assert isinstance(caught.value.__cause__, ProcessExitedException)
    assert Parallel()(delayed(square)(i) for i in range(20)) == [i * i for i in range(20)]


def test_what_cannot_be_pickled() -> None:
    with pytest.raises(pickle.PicklingError, match="lock"):
        Parallel()(delayed(square)(threading.Lock()) for _ in range(4))
    with pytest.raises(pickle.PicklingError, match="lock"):  # found when a callback dispatches it
        Parallel(batch_size=1)(delayed(square)(threading.Lock() if i == 30 else i) for i in range(40))
    with pytest.raises(TypeError, match="lock"):
        Parallel()(delayed(make_lock)() for _ in range(4))
    assert Parallel()(delayed(square)(i) for i in range(4)) == [0, 1, 4, 9]


def test_input_that_fails() -> None:
    def tasks() -> Iterator[Any]:
        yield from (delayed(square)(i) for i in range(20))
        raise OSError("the file has ended")

    with pytest.raises(OSError, match="the file has ended"):
        Parallel()(tasks())


def test_options_that_nobody_knows_and_those_of_pools(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="max_task_per_child"):
        Parallel(n_jobs=2, backend="distpool", max_task_per_child=3)(delayed(square)(i) for i in range(4))
    with parallel_config(backend="distpool", n_jobs=3, max_tasks_per_child=1, idle_worker_timeout=0.1):
        os_pids = Parallel(batch_size=1)(delayed(os_pid)() for _ in range(6))
        assert len(set(os_pids)) == 6

    def begin(name: str, value: str) -> None:
        os.environ[name] = value

    options = {"initializer": begin, "initargs": ("BEGUN", "yes"), "idle_worker_timeout": 0.1}
    with parallel_config(backend="distpool", n_jobs=3, **options):
        assert set(Parallel()(delayed(os.getenv)("BEGUN") for _ in range(8))) == {"yes"}
        assert set(Parallel()(delayed(os.getenv)("BEGUN") for _ in range(8))) == {"yes"}


# -- parallel calls within tasks


def inner(n_jobs: int | None) -> tuple[str, set[int], int]:
    """A parallel call in a task: by which backend, where."""
    backend, _ = joblib.parallel.get_active_backend()
    where = Parallel(n_jobs=n_jobs)(delayed(os_pid)() for _ in range(4))
    return type(backend).__name__, set(where), os.getpid()


def test_parallel_calls_within_tasks_start_no_processes() -> None:
    for n_jobs in (2, -1, None):
        for name, where, here in Parallel()(delayed(inner)(n_jobs) for _ in range(4)):
            assert (name, where) == ("ThreadingBackend", {here})


def outer() -> Any:
    """Two levels below."""
    return Parallel(n_jobs=2)(delayed(inner)(2) for _ in range(2))


def test_below_threads_everything_is_in_sequence() -> None:
    for results in Parallel()(delayed(outer)() for _ in range(2)):
        assert [name for name, _, _ in results] == ["SequentialBackend"] * 2


def test_workers_share_the_cores() -> None:
    cores = joblib.cpu_count()
    assert set(Parallel()(delayed(joblib.cpu_count)() for _ in range(4))) == {max(cores // 2, 1)}
    if "OMP_NUM_THREADS" not in os.environ:
        assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(4))) == {str(max(cores // 2, 1))}
    with parallel_config(backend="distpool", n_jobs=3, inner_max_num_threads=3, idle_worker_timeout=0.1):
        assert set(Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(4))) == {"3"}


def test_it_works_below_itself(own_workers: None) -> None:
    def below() -> Any:
        with parallel_config(backend="distpool", n_jobs=2):
            return Parallel()(delayed(square)(i) for i in range(4))

    assert Parallel()(delayed(below)() for _ in range(2)) == [[0, 1, 4, 9]] * 2


# -- large arrays


def place(array: Any) -> tuple[int, bool, float]:
    """Which file an array's memory is, as this process maps it; whether it can be written to; what is in it."""
    start = array.__array_interface__["data"][0]
    with open("/proc/self/maps") as maps:
        for line in maps:
            low, high = (int(end, 16) for end in line.split()[0].split("-"))
            if low <= start < high:
                return int(line.split()[4]), bool(array.flags.writeable), float(array.sum())
    raise LookupError("not mapped")


def places(*args: Any, **kwargs: Any) -> list[tuple[int, bool, float]]:
    """`place` of all that came."""
    arrays = [*args, *kwargs.values()]
    return [place(each["deep"] if isinstance(each, dict) else each) for each in arrays]


def test_a_large_array_is_in_memory_once_wherever_it_is() -> None:
    array = np.arange(LARGE, dtype=float).reshape(512, -1)
    results = Parallel(batch_size=1)(
        delayed(places)(array, {"deep": array}, third=array.T, fourth=array[:]) for _ in range(6)
    )
    inodes = {inode for each in results for inode, _, _ in each}
    assert len(inodes) == 1
    assert 0 not in inodes  # a file in memory, not the process's own
    assert {each[1:] for result in results for each in result} == {(True, float(array.sum()))}


def test_small_and_odd_arrays_are_copied() -> None:
    odd = [np.arange(10.0), np.arange(2.0 * LARGE)[::2], np.ones(LARGE, dtype=[("a", float)])]
    got = Parallel()(delayed(np.array_equal)(each, each.copy()) for each in odd)
    assert got == [True] * 3
    assert Parallel(max_nbytes=None)(delayed(place)(np.ones(LARGE)) for _ in range(2))[0][0] == 0
    assert Parallel(mmap_mode=None)(delayed(place)(np.ones(LARGE)) for _ in range(2))[0][0] == 0
    assert Parallel(max_nbytes=100)(delayed(place)(np.ones(1000)) for _ in range(2))[0][0] != 0


def add_one(array: Any) -> float:
    """A task that writes to its argument."""
    array += 1
    return float(array.sum())


def test_a_task_that_writes_to_its_argument_changes_its_own_copy() -> None:
    array = np.zeros(LARGE)
    assert Parallel(batch_size=1)(delayed(add_one)(array) for _ in range(6)) == [LARGE] * 6
    assert not array.any()


def test_the_next_call_sees_what_has_changed() -> None:
    array = np.zeros(LARGE)
    with Parallel() as parallel:
        assert parallel(delayed(np.sum)(array) for _ in range(4)) == [0] * 4
        array[0] = 5
        assert parallel(delayed(np.sum)(array) for _ in range(4)) == [5] * 4


def test_arrays_of_a_generator_are_not_kept() -> None:
    """Nor is a new array taken for an old one that lay at the same place."""
    made: list[Any] = []

    def tasks() -> Iterator[Any]:
        import weakref

        for i in range(30):
            array = np.full(LARGE, float(i))
            made.append(weakref.ref(array))
            yield delayed(np.max)(array)
            del array

    assert Parallel(batch_size=1)(tasks()) == [float(i) for i in range(30)]
    eventually(lambda: not any(ref() is not None for ref in made))


def test_descriptors_do_not_run_out() -> None:
    array = np.ones(LARGE)
    before = len(os.listdir("/proc/self/fd"))
    results = Parallel(batch_size=1, pre_dispatch="all", return_as="generator")(
        delayed(np.sum)(array) for _ in range(400)
    )
    assert len(os.listdir("/proc/self/fd")) < before + 150
    assert sum(results) == 400 * LARGE


def fill(out: Any, start: int, value: float) -> None:
    """Writes a part of a file that is mapped."""
    out[start : start + 10] = value


def test_files_that_are_arrays_are_opened_again(tmp_path: Path) -> None:
    out = np.memmap(tmp_path / "out", float, "w+", shape=(40,))
    Parallel()(delayed(fill)(out, start, start) for start in range(0, 40, 10))
    assert out.tolist() == [float(i // 10 * 10) for i in range(40)]
    Parallel()(delayed(add_one)(out[10:]) for _ in range(1))
    Parallel()(delayed(add_one)(out[::-4]) for _ in range(1))
    expected = np.array([float(i // 10 * 10) for i in range(40)])
    expected[10:] += 1
    expected[::-4] += 1
    assert out.tolist() == expected.tolist()
    source = np.memmap(tmp_path / "out", float, "r", shape=(5, 8), order="F")
    assert Parallel()(delayed(np.array_equal)(source, np.array(source)) for _ in range(2)) == [True] * 2
    assert Parallel()(delayed(place)(source) for _ in range(1))[0][1] is False
    private = np.memmap(tmp_path / "out", float, "c", shape=(40,))
    private[:] = 1
    assert Parallel()(delayed(np.sum)(private) for _ in range(1)) == [40]


def test_an_array_without_readers_costs_nothing() -> None:
    arrays = SharedArrays(None)
    assert arrays.reduce(np.ones(LARGE)) is NotImplemented


# -- scikit-learn


def test_scikit_learn_finds_the_same_as_in_sequence() -> None:
    from sklearn.datasets import make_classification  # type: ignore[import-untyped]
    from sklearn.ensemble import RandomForestClassifier  # type: ignore[import-untyped]
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]
    from sklearn.model_selection import GridSearchCV, cross_val_score  # type: ignore[import-untyped]

    X, y = make_classification(n_samples=300, n_features=20, random_state=0)
    large, labels = make_classification(n_samples=20_000, n_features=10, random_state=0)  # 1.6 MB: shared
    model = LogisticRegression(max_iter=300)
    search = GridSearchCV(model, {"C": [0.1, 1.0, 10.0]}, cv=3)
    forest = RandomForestClassifier(n_estimators=10, random_state=0)
    nested = RandomForestClassifier(n_estimators=4, max_depth=3, random_state=0)

    def found(n_jobs: int) -> Any:
        search.set_params(n_jobs=n_jobs).fit(X, y)
        forest.set_params(n_jobs=n_jobs).fit(X, y)
        scores = cross_val_score(model, X, y, cv=3, n_jobs=n_jobs)
        below = cross_val_score(nested.set_params(n_jobs=n_jobs), large, labels, cv=2, n_jobs=n_jobs)
        grid = search.cv_results_["mean_test_score"]
        return [*scores, *below, *grid, search.best_params_["C"], *forest.predict_proba(X).ravel()]

    parallel = found(2)
    with parallel_config(backend="sequential"):
        sequential = found(1)
    np.testing.assert_array_equal(parallel, sequential)


# -- the end


def test_nothing_is_left_when_the_program_ends(run_script: Any) -> None:
    code, out, err = run_script("""
        import distpool.compat.joblib, joblib
        with joblib.parallel_config(backend="distpool", n_jobs=2):
            print(joblib.Parallel()(joblib.delayed(lambda x: x + 1)(x) for x in range(3)))
    """)
    assert (code, out.strip(), err) == (0, "[1, 2, 3]", "")


def test_ctrl_c_stops_the_tasks_and_the_workers_stay(start_script: Any) -> None:
    script = start_script("""
        import os, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
        import distpool.compat.joblib, joblib

        def work(i):
            print("begun", flush=True)
            time.sleep(60)

        with joblib.parallel_config(backend="distpool", n_jobs=2):
            before = set(joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(20)))
            try:
                joblib.Parallel()(joblib.delayed(work)(i) for i in range(4))
            except KeyboardInterrupt:
                print("interrupted", flush=True)
            after = set(joblib.Parallel()(joblib.delayed(os.getpid)() for _ in range(20)))
            print("the same" if before | after == before else (before, after))
    """)
    script.wait_for("begun")
    script.send(signal.SIGINT)
    finished = script.wait(WAIT)
    assert "the same" in finished.stdout.split("interrupted")[1]
    assert (finished.returncode, finished.stderr) == (0, "")
    script.no_survivors()
