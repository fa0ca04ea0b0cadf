"""What the runs of CPython's own tests have in common: which tests are run, and what is said of those that are not."""

from __future__ import annotations

import sys
import unittest
from collections.abc import Callable, Iterable, Iterator, Sequence

NO_TESTS = 77  # exit code of a run for which this interpreter came without tests


def each(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[unittest.TestCase]:
    """The tests of a suite, and of those in it, one by one."""
    if isinstance(suite, unittest.TestCase):
        yield suite
        return
    for part in suite:
        yield from each(part)


def run(
    tests: Iterable[unittest.TestCase],
    skip_reason: Callable[[unittest.TestCase], str | None],
    names: Sequence[str],
    verbose: bool,
    title: str = "",
) -> int:
    """Run those with one of ``names`` in theirs (all, if there are none) that have no reason to be skipped.

    Prints how many, and the reasons. Returns 0 when nothing failed, else 1.
    """
    suite = unittest.TestSuite()
    skipped: list[tuple[str, str]] = []
    for test in tests:
        if not any(name in test.id() for name in names or [""]):
            continue
        reason = skip_reason(test)
        if reason is None:
            suite.addTest(test)
        else:
            skipped.append((test.id(), reason))
    result = unittest.TextTestRunner(verbosity=2 if verbose else 1).run(suite)
    skipped += [(test.id(), f"skips itself: {reason}") for test, reason in result.skipped]
    print(
        f"Python {sys.version.split()[0]}{title}: {result.testsRun - len(result.skipped)} run, "
        f"{len(result.failures) + len(result.errors)} failed, {len(skipped)} skipped"
    )
    for reason in sorted({reason for _, reason in skipped}):
        left_out = sorted({name.rpartition(".")[2] for name, why in skipped if why == reason})
        print(f"  {', '.join(left_out)}: {reason}")
    return 0 if result.wasSuccessful() else 1
