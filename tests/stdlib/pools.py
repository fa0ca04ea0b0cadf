"""CPython's own tests of ``multiprocessing.Pool``, run against ``distpool.compat.multiprocessing``.

    python tests/stdlib/pools.py [--verbose] [part of a test's name ...]

Uses the ``test`` package of the interpreter that runs it and copies nothing from it: where its modules say ``import
multiprocessing`` they get ours, and so do the programs that they write. Run are the tests that make a pool, once for
each start method. Each skip stands in ``SKIPS`` with its reason. Exit code 0 when nothing failed, 77 when this
interpreter came without these tests.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import pkgutil
import re
import shutil
import sys
import tempfile
import textwrap
import types
import unittest
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from running import NO_TESTS, each, run

START_METHODS = ("fork", "spawn", "forkserver")

# The classes whose tests make a pool of processes.
CLASSES = (
    "WithProcessesTestPool",
    "WithProcessesTestPoolWorkerErrors",
    "WithProcessesTestPoolWorkerLifetime",
    "TestPoolNotLeakOnFailure",
    "TestInitializers",
    "TestStdinBadfiledescriptor",
    "MiscTestCase.test_large_pool",
)

# Part of a test's name: why it cannot be run.
SKIPS = {
    "TestPoolNotLeakOnFailure.test_release_unused_processes": "the context's Process class is to fail; our workers are "
    "not started by it",
    "test_unpickleable_result": "the result is a lambda, which can be sent (one that cannot: tests/dropin)",
}

IMPORTS = (
    (re.compile(r"^( *)from multiprocessing\b", re.M), r"\1from distpool.compat.multiprocessing"),
    (re.compile(r"^( *)import multiprocessing$", re.M), r"\1import distpool.compat.multiprocessing as multiprocessing"),
)


def changed(text: str) -> str:
    """A program with its one import changed."""
    for pattern, ours in IMPORTS:
        text = pattern.sub(ours, text)
    path = [path for path in sys.path if path]
    return f"import sys; sys.path += {path!r}\n" + textwrap.dedent(text.removeprefix("if 1:\n"))


def import_with_ours(name: str) -> ModuleType | None:
    """Import a module of tests that gets our module when it says ``import multiprocessing``; None if there is none."""
    import multiprocessing

    import distpool.compat.multiprocessing as ours

    for module in pkgutil.iter_modules(multiprocessing.__path__, "multiprocessing."):
        if "win32" not in module.name:
            importlib.import_module(module.name)
    for room in ("face", "pool"):  # they need the real one
        importlib.import_module(f"{ours.__name__}.{room}")
    sys.modules["multiprocessing"] = ours
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
    finally:
        sys.modules["multiprocessing"] = multiprocessing


def change_programs(module: ModuleType) -> None:
    """Have the programs that the tests write, and run, use ours as well."""
    from test.support import script_helper

    run = script_helper.assert_python_ok

    def run_changed(*args: str, **env: str) -> Any:
        if args[0] == "-c":
            return run("-c", changed(args[1]), *args[2:], **env)
        script = Path(args[0])
        if script.is_file() and b"import multiprocessing\n" in script.read_bytes():  # others are made of changed text
            script.write_text(changed(script.read_text()))
        return run(*args, **env)

    script_helper.assert_python_ok = run_changed
    for source in ("test_source", "test_source_main_skipped_in_children"):
        if hasattr(module, source):
            old, new = getattr(module, source), changed(getattr(module, source))
            setattr(module, source, new)
            for thing in vars(module).values():  # it is a default of some functions there
                if isinstance(thing, types.FunctionType) and old in (thing.__defaults__ or ()):
                    thing.__defaults__ = tuple(new if value == old else value for value in thing.__defaults__ or ())


def tests(folder: str) -> Iterator[unittest.TestCase]:
    """All tests; modules that bring them together by start method are written into ``folder``."""
    module: Any = import_with_ours("test._test_multiprocessing")
    if module is not None:
        change_programs(module)
        for method in START_METHODS:
            # As the installed modules do it, which not every installation has; in files, for workers import them.
            text = (
                f"from test import _test_multiprocessing as t\nt.install_tests_in_module_dict(globals(), {method!r})\n"
            )
            Path(folder, f"pools_{method}.py").write_text(text)
            yield from each(unittest.defaultTestLoader.loadTestsFromName(f"pools_{method}"))
    main_handling = import_with_ours("test.test_multiprocessing_main_handling")
    if main_handling is not None:
        change_programs(main_handling)
        yield from each(unittest.defaultTestLoader.loadTestsFromModule(main_handling))


def is_of_pools(test: unittest.TestCase) -> bool:
    """Whether the test is one of those above; all of the module about ``__main__`` are."""
    return "main_handling" in test.id() or any(f"{test.id()}.".find(f".{name}.") > 0 for name in CLASSES)


def skip_reason(test: unittest.TestCase) -> str | None:
    return next((reason for part, reason in SKIPS.items() if part in test.id()), None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--verbose", action="store_true", help="name each test")
    parser.add_argument("names", nargs="*", help="run only tests with one of these in their name")
    options = parser.parse_args()

    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    sys.path.append(folder)
    found = [test for test in tests(folder) if is_of_pools(test)]
    if not found:
        print(f"Python {sys.version.split()[0]} came without the tests of multiprocessing: nothing to run")
        return NO_TESTS
    return run(found, skip_reason, options.names, options.verbose)


if __name__ == "__main__":
    if not any(Path(path, "distpool").is_dir() for path in sys.path if path):
        sys.path.insert(0, str(Path(__file__).parents[2]))
    sys.exit(main())
