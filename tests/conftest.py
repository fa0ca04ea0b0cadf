"""What every test gets: a leak check around it, workers that are removed again, scripts in fresh interpreters.

`distpool` is imported inside the fixtures, so that tests of single rooms run while others are being changed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol

import hypothesis
import pytest

from support import leaks as leak_census
from support.scripts import Finished, Script
from support.sshd import Sshd, start_sshd

# Examples that start processes or move megabytes have no meaningful limit per example; hangs are caught elsewhere.
hypothesis.settings.register_profile("distpool", deadline=None, print_blob=True)
hypothesis.settings.load_profile("distpool")

SLOW_WEIGHT = 50  # how many other tests take as long as one that is marked slow

_reports = pytest.StashKey[dict[str, pytest.TestReport]]()


class Standing:
    """How things stand after a test that has left nothing: the next one need not count again, which takes as long.

    Forgotten when something that serves several tests comes or goes. A plugin of its own, because pytest asks no
    conftest below its root about fixtures of the session.
    """

    def __init__(self) -> None:
        self._last: leak_census.Census | None = None

    def take(self) -> leak_census.Census:
        """Return how things stand before a test."""
        last, self._last = self._last, None
        return last or leak_census.census()

    def keep(self, census: leak_census.Census) -> None:
        """Say how they stand after it."""
        self._last = census

    @pytest.hookimpl(tryfirst=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        if fixturedef.scope != "function":
            self._last = None

    def pytest_fixture_post_finalizer(self, fixturedef: pytest.FixtureDef[Any]) -> None:
        if fixturedef.scope != "function":
            self._last = None


_standing = pytest.StashKey[Standing]()


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at what was asked for
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Has a whole run done by two processes, each with files of its own, for most tests wait most of their time.

    Not where a part was asked for, or output, or a debugger, and not where `-n` says how many it shall be.
    """
    option = config.getoption
    # Asked for, or there is no pytest-xdist here; or this is one of those two, which asks for none.
    if option("numprocesses", 0) is not None or hasattr(config, "workerinput"):
        return
    marks = option("markexpr")
    part = option("keyword") or option("lf", False) or (marks and not marks.startswith("not "))
    shown = option("usepdb") or option("capture") == "no" or option("collectonly")
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not part and not shown:
        config.option.numprocesses, config.option.dist = 2, "loadfile"
        config.option.loadscopereorder = False  # files keep the order they are given below


def pytest_configure(config: pytest.Config) -> None:
    """Marks the run before anything is started by it; Ctrl-C works as at a terminal, wherever the run was started."""
    if hasattr(config, "workerinput"):  # one of several processes: what the others start is not ours
        os.environ.pop(leak_census.MARK, None)
    leak_census.mark_this_run()
    config.stash[_standing] = Standing()
    config.pluginmanager.register(config.stash[_standing])
    # A shell starts background jobs with SIGINT ignored, and Python keeps that: who waits for the interrupt hangs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the files, those that take longest are begun first."""
    if hasattr(config, "workerinput"):
        weights = Counter[Path]()
        for item in items:
            weights[item.path] += SLOW_WEIGHT if item.get_closest_marker("slow") else 1
        items.sort(key=lambda item: -weights[item.path])


def pytest_collection_finish() -> None:
    """Garbage collections, of which tests and leak checks make thousands, leave out what lives to the end anyway."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remembers how the test went: after a failure, leftovers are a consequence and not worth a second report."""
    report = yield
    item.stash.setdefault(_reports, {})[report.when] = report
    return report


@pytest.fixture(scope="session", autouse=True)
def _be_a_member() -> None:
    """Makes this process a cluster of one before the first leak census: its reader's descriptors stay by design."""
    with contextlib.suppress(Exception):  # a room above is being changed: the tests of those below still run
        importlib.import_module("distpool").workers()


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test that leaves a process, thread, descriptor or shared memory file behind (support/leaks.py)."""
    standing = request.config.stash[_standing]
    before = standing.take()
    yield
    report = request.node.stash.get(_reports, {}).get("call")
    if report is None or not report.passed:
        return
    leaked, after = leak_census.settled_since(before)
    if leaked:
        pytest.fail("left behind:\n  " + "\n  ".join(leaked), pytrace=False)
    standing.keep(after)


@pytest.fixture
def census() -> Callable[[], leak_census.Census]:
    """`census()` counts now; `census().leaked_since(earlier)` lists what came since."""
    return leak_census.census


@pytest.fixture
def eventually() -> Callable[..., None]:
    """`eventually(predicate, timeout=30)`: for states that nobody announces."""
    return leak_census.eventually


class StartWorkers(Protocol):
    """What the `workers` fixture is: `workers(n, **options_of_addprocs)` returns the new pids, sorted."""

    def __call__(self, n: int, **options: Any) -> list[int]: ...


@pytest.fixture
def no_cluster() -> Iterator[None]:
    """A driver without workers, before the test and after it."""
    import distpool

    _remove_workers()
    assert distpool.workers() == [1]
    yield
    _remove_workers()


@pytest.fixture
def workers(no_cluster: None) -> StartWorkers:
    """`W(n)` of the numbered cases: `w1, w2 = workers(2)`. All workers are removed after the test, by `no_cluster`."""
    import distpool

    def start(n: int, **options: Any) -> list[int]:
        return sorted(distpool.addprocs(n, **options))

    return start


def _remove_workers() -> None:
    """Removes all workers of the default cluster; 30 s because a test may have left one in the middle of something."""
    import distpool

    pids = [pid for pid in distpool.workers() if pid != 1]
    if pids:
        distpool.rmprocs(*pids, waitfor=30)


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """A real ssh server on loopback: `addprocs(["h1", ("h2", 3)], sshflags=sshd.flags)`; skips where there is none."""
    server = start_sshd(tmp_path_factory.mktemp("sshd"))
    yield server
    server.close()


class StartScript(Protocol):
    """What the `start_script` fixture is."""

    def __call__(self, text: str, *args: object, **options: Any) -> Script: ...


class RunScript(Protocol):
    """What the `run_script` fixture is; `options` are those of `Script`."""

    def __call__(self, text: str, *args: object, timeout: float = 60, **options: Any) -> Finished: ...


@pytest.fixture
def start_script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartScript]:
    """Starts a script in a fresh interpreter and returns it running; whatever is left of it is killed at the end."""
    scripts: list[Script] = []

    def start(text: str, *args: object, **options: Any) -> Script:
        folder: Path = options.pop("folder", None) or tmp_path_factory.mktemp("script")
        scripts.append(Script(text, *args, folder=folder, **options))
        return scripts[-1]

    yield start
    for script in scripts:
        script.kill()


@pytest.fixture
def run_script(start_script: StartScript) -> RunScript:
    """Runs a script to its end: `code, out, err = run_script(text)`; fails if any process of it survives."""

    def run(text: str, *args: object, timeout: float = 60, **options: Any) -> Finished:
        script = start_script(text, *args, **options)
        finished = script.wait(timeout)
        script.no_survivors()
        return finished

    return run
