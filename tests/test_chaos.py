"""Random programs and random faults: nothing hangs, nothing is lost or comes twice, nothing is left behind.

Each round has a seed, which a failure names: ``DISTPOOL_CHAOS_SEED=1234`` runs that round alone. What happens at the
same time as what is not in the seed, so a rare fault takes several runs. ``DISTPOOL_SOAK_SECONDS`` is how long each
test goes on.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import StartScript

from distpool import ProcessExitedException, RemoteException, WorkerPool
from distpool.compat.futures import ProcessPoolExecutor
from distpool.compat.multiprocessing import Pool
from support.chaos import DEATH, DEEDS, HARMLESS, OUTCOMES, VALUE, do, forked_pids, ok, value_of

if sys.platform != "linux":
    pytest.skip("what is hurt is found in /proc", allow_module_level=True)

SOAK_SECONDS = float(os.environ.get("DISTPOOL_SOAK_SECONDS", "2"))
LIMIT = 60.0  # for one result, on a machine that does much else
SQUARES = [x * x for x in range(20)]
TESTS = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

Item = tuple[str, int]
BROKEN = concurrent.futures.process.BrokenProcessPool


def seeds() -> Iterable[int]:
    """For so long; or the one that is asked for."""
    if "DISTPOOL_CHAOS_SEED" in os.environ:
        yield int(os.environ["DISTPOOL_CHAOS_SEED"])
        return
    end = time.monotonic() + SOAK_SECONDS
    for seed in itertools.count(time.time_ns() // 1000 % 10**9):
        yield seed
        if time.monotonic() > end:
            return


def outcome(get: Callable[[], object]) -> object:
    """What is returned, or the exception that is raised."""
    try:
        return get()
    except BaseException as error:
        return error


def names(error: BaseException) -> set[str]:
    """What an exception counts as."""
    if isinstance(error, (ProcessExitedException, BROKEN)):
        return {DEATH}
    original = error.unwrap() if isinstance(error, RemoteException) else error
    return {each.__name__ for each in type(original).__mro__}


def check(item: Item, got: object, door: Door) -> None:
    """Whether this may have come of the item."""
    allowed = OUTCOMES[DEEDS[item[0]]]
    if isinstance(got, BaseException):
        strange = {DEATH, "OSError", "LaunchWorkerError"} if door.is_hurt else set()
        if door.is_interrupted:
            strange.add("KeyboardInterrupt")
        assert names(got) & (allowed | strange), (item, str(got))
    else:
        assert VALUE in allowed, (item, got)
        assert got == value_of(*item), item


class Door:
    """One kind of pool, as the programs use it."""

    def __init__(self, kind: str, processes: int, rng: random.Random) -> None:
        self.is_hurt = False  # tasks may die that would not by themselves
        self.is_interrupted = False  # workers are; else it is this process, which is to end then
        if kind == "pool":
            self.may_cancel = True
            self.pool: Any = WorkerPool(processes=processes, max_tasks_per_child=rng.choice([None, None, 5]))
            self.submit: Callable[[Item], Any] = lambda item: self.pool.submit(do, item)
            self.map: Callable[..., Any] = self.pool.map
            self.ends = {"close": self.pool.close, "terminate": self.pool.terminate}
        elif kind == "Pool":
            self.may_cancel = False
            self.pool = Pool(processes)
            self.submit = lambda item: self.pool.apply_async(do, (item,))
            self.map = self.pool.map
            self.ends = {"close": self.close_and_join, "terminate": self.pool.terminate}
        else:
            self.may_cancel = True
            self.pool = ProcessPoolExecutor(processes, cancel_running=rng.random() < 0.5)
            self.submit = lambda item: self.pool.submit(do, item)
            self.map = lambda *args: list(self.pool.map(*args))
            self.ends = {"close": self.pool.shutdown, "terminate": self.pool.kill_workers}

    def close_and_join(self) -> None:
        self.pool.close()
        self.pool.join()

    @staticmethod
    def get(handle: Any) -> object:
        """The outcome of what was submitted."""
        return outcome(lambda: (handle.get if hasattr(handle, "get") else handle.result)(LIMIT))

    def is_usable(self) -> bool:
        """Whether a map comes right; a worker that was hurt a moment ago may still cost it one.

        One whose new workers were killed again and again has given up, and says so.
        """
        for _ in range(5):
            got = outcome(lambda: self.map(ok, range(20)))
            if not isinstance(got, BaseException) or not self.is_hurt:
                break
        return got == SQUARES or (self.is_hurt and isinstance(got, BaseException))


class Gremlin:
    """Hurts workers at random moments, until it is told to stop."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._rng.expovariate(8)):
            for server in psutil.Process().children():
                pids = forked_pids(server.pid)
                if pids:
                    with contextlib.suppress(ProcessLookupError):
                        self._hurt(self._rng.choice([*pids, *pids, server.pid]))

    def _hurt(self, pid: int) -> None:
        number = self._rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP])
        os.kill(pid, number)
        if number == signal.SIGSTOP:
            time.sleep(self._rng.random() * 0.1)
            os.kill(pid, signal.SIGCONT)


def items(rng: random.Random, has_strange: bool) -> list[Item]:
    """Mostly harmless ones."""
    chosen = [(rng.choice(HARMLESS).__name__, rng.randrange(200)) for _ in range(rng.choice([1, 5, 30]))]
    if has_strange:
        strange = [rng.choice(list(DEEDS)) for _ in range(rng.randrange(3))]
        # While it waits its worker runs others beside it, and their deaths would be its own.
        if "pool_inside" in strange:
            strange = ["pool_inside"]
        for name in strange:
            chosen[rng.randrange(len(chosen))] = (name, rng.randrange(200))
    return chosen


def use(door: Door, rng: random.Random) -> None:
    """Submit and cancel, and take results in any order."""
    chosen = items(rng, True)
    # Others may be in the worker when it dies: it hears late of closed descriptors, a thread packs results meanwhile.
    door.is_hurt = door.is_hurt or any(name in ("close_descriptors", "vanish_when_packed") for name, _ in chosen)
    handles = [door.submit(item) for item in chosen]
    cancelled = set()
    if door.may_cancel and rng.random() < 0.3:
        cancelled = {number for number in range(len(handles)) if rng.random() < 0.2 and handles[number].cancel()}
    order = list(range(len(handles)))
    rng.shuffle(order)
    for number in order:
        got = door.get(handles[number])
        if number in cancelled:
            assert isinstance(got, concurrent.futures.CancelledError), got
        else:
            check(chosen[number], got, door)


def play(seed: int) -> None:
    """One program."""
    rng = random.Random(seed)
    door = Door(rng.choice(["pool", "Pool", "executor"]), rng.choice([1, 2, 3]), rng)
    door.is_hurt = door.is_interrupted = has_gremlin = rng.random() < 0.5
    try:
        with Gremlin(random.Random(rng.random())) if has_gremlin else contextlib.nullcontext():
            for _ in range(rng.randrange(1, 5)):
                use(door, rng)
        assert door.is_usable(), "not usable afterwards"
        for item in items(rng, False):
            door.submit(item)
    except RuntimeError as error:  # new workers were killed again and again, or their server was, and the pool says so
        if not door.is_hurt or not ("did not start" in str(error) or isinstance(error, BROKEN)):
            raise
    end = rng.choice(["close", "terminate", "drop"])
    if end != "drop":
        door.ends[end]()


@pytest.mark.timeout(SOAK_SECONDS + 300)
@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_random_programs(capfd: pytest.CaptureFixture[str]) -> None:
    """Every result right, or an error that can be explained; the pool usable; the leak check after it finds nothing."""
    for seed in seeds():
        try:
            play(seed)
        except BaseException as error:
            raise AssertionError(f"DISTPOOL_CHAOS_SEED={seed}") from error
    gc.collect()  # of pools that were dropped
    capfd.readouterr()  # what the dying have said


DRIVER = """
    import itertools, random, sys
    import test_chaos
    print("ready", flush=True)
    rng = random.Random(int(sys.argv[1]))
    kept = []
    for turn in itertools.count():
        door = test_chaos.Door(rng.choice(["pool", "Pool", "executor"]), rng.choice([1, 2, 3]), rng)
        test_chaos.use(door, rng)
        for item in test_chaos.items(rng, False):
            door.submit(item)
        kept = [*kept[-2:], door] if rng.random() < 0.3 else kept
        if door not in kept:
            door.ends[rng.choice(["close", "terminate"])]()
    """


@pytest.mark.timeout(SOAK_SECONDS + 300)
def test_random_ends_of_the_driver(start_script: StartScript, tmp_path: Path) -> None:
    """Killed, told to end, interrupted once or often, at any moment: it ends, and leaves no process and no file."""
    for seed in seeds():
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        (folder / "tmp").mkdir(parents=True)
        script = start_script(DRIVER, seed, folder=folder, env={"PYTHONPATH": TESTS, "TMPDIR": str(folder / "tmp")})
        try:
            script.wait_for("ready")
            time.sleep(rng.random() * rng.choice([0.1, 1.0]))
            script.send(number := rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGINT]))
            if number == signal.SIGINT:
                for _ in range(rng.choice([0, 0, 1, 20])):
                    time.sleep(rng.random() * 0.02)
                    if script.process.poll() is None:
                        script.send(signal.SIGINT)
            assert script.wait(30).returncode != 0
            script.no_survivors()
            assert not list((folder / "tmp").iterdir())
        except BaseException as error:
            raise AssertionError(f"DISTPOOL_CHAOS_SEED={seed}\n{script.stderr}") from error
