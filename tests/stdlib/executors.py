"""CPython's own tests of ``concurrent.futures``, run against ``distpool.compat.futures.ProcessPoolExecutor``.

    python tests/stdlib/executors.py [--strict] [--verbose] [part of a test's name ...]

Uses the ``test`` package of the interpreter that runs it and copies nothing from it: the standard library's class is
replaced where the tests look for it, also in the processes that they start. Only tests of process pools are run; each
three times, for the tests are multiplied by start methods. Each skip stands in ``SKIPS`` with its reason; a test that
is skipped and would pass is not an error, one that is run and fails is. Exit code 0 when nothing failed, 77 when this
interpreter came without these tests.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import re
import sys
import textwrap
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from running import NO_TESTS, each, run

PRIVATE = "looks at private attributes of the standard library's executor: "
AT_ONCE = "counts workers that are started one by one; ours are started together, with the first call"
# A regular expression that a test's name matches: why it cannot be run.
SKIPS = {
    r"test_idle_process_reuse": AT_ONCE,
    r"(Spawn|Forkserver).*test_processes_terminate": AT_ONCE,
    r"ShutdownTest.test_(del_shutdown|shutdown_no_wait)": PRIVATE + "_call_queue (the same in tests/dropin)",
    r"test_shutdown_deadlock_pickle": PRIVATE + "_executor_manager_thread (the same in tests/dropin)",
    r"test_python_finalization_error": "counts the threads that the standard library's executor starts",
}
LENIENT_SKIPS = {
    r"test_killed_child": "a dead worker breaks our executor only with strict=True: run with --strict",
}

PRELUDE = """
import sys
sys.path[:0] = {path!r}
import concurrent.futures, concurrent.futures.process
from distpool.compat.futures.process import ProcessPoolExecutor as _Ours
concurrent.futures.ProcessPoolExecutor = concurrent.futures.process.ProcessPoolExecutor = _Ours
"""


def replace(is_strict: bool) -> None:
    """Put our class where the tests look for the standard library's."""
    import concurrent.futures
    import concurrent.futures.process

    from distpool.compat.futures.process import ProcessPoolExecutor

    class StrictExecutor(ProcessPoolExecutor):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, strict=True, **kwargs)

    ours: Any = StrictExecutor if is_strict else ProcessPoolExecutor
    ours.__name__ = "ProcessPoolExecutor"  # tests write it into programs
    concurrent.futures.process.ProcessPoolExecutor = ours
    concurrent.futures.ProcessPoolExecutor = ours  # type: ignore[misc]  # that is the point


def modules() -> list[ModuleType]:
    """The installed tests: one module, or from 3.12 on a package."""
    try:
        found = importlib.import_module("test.test_concurrent_futures")
    except ImportError:
        return []
    if not hasattr(found, "__path__"):
        return [found]
    names = [each.name for each in pkgutil.iter_modules(found.__path__) if each.name.startswith("test_")]
    return [importlib.import_module(f"{found.__name__}.{name}") for name in names]


def give_prelude(module: ModuleType) -> None:
    """Have the programs that a module's tests write use our class, too."""
    run = getattr(module, "assert_python_ok", None)
    if run is not None:
        prelude = PRELUDE.format(path=[path for path in sys.path if path])

        def run_with_prelude(option: str, code: str, **env: str) -> Any:
            return run(option, prelude + textwrap.dedent(code.removeprefix("if 1:").removeprefix("if True:")), **env)

        module.assert_python_ok = run_with_prelude  # type: ignore[attr-defined]


def tests(found: list[ModuleType]) -> Iterator[unittest.TestCase]:
    """All tests of process pools in these modules."""
    for module in found:
        give_prelude(module)
        for test in each(unittest.defaultTestLoader.loadTestsFromModule(module)):
            if "ProcessPool" in test.id():
                yield test


def keep_threads() -> None:
    """Do not wait after each test for our threads to end: they are kept for the next calls, and are daemons."""
    from test.support import threading_helper

    def nothing(*_: object) -> None:
        """What tests leave behind is looked at by our own tests."""

    threading_helper.threading_cleanup = nothing


def skip_reason(test: unittest.TestCase, is_strict: bool) -> str | None:
    skips = SKIPS if is_strict else {**SKIPS, **LENIENT_SKIPS}
    return next((reason for pattern, reason in skips.items() if re.search(pattern, test.id())), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--strict", action="store_true", help="with executors made with strict=True")
    parser.add_argument("--verbose", action="store_true", help="name each test")
    parser.add_argument("names", nargs="*", help="run only tests with one of these in their name")
    options = parser.parse_args()

    replace(options.strict)
    found = modules()
    if not found:
        print(f"Python {sys.version.split()[0]} came without test.test_concurrent_futures: nothing to run")
        return NO_TESTS
    keep_threads()
    return run(
        tests(found),
        lambda test: skip_reason(test, options.strict),
        options.names,
        options.verbose,
        f", strict={options.strict}",
    )


if __name__ == "__main__":
    if not any(Path(path, "distpool").is_dir() for path in sys.path if path):
        sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
