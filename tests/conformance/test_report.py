"""Which of the numbered cases have a test: read from the tests' syntax trees, so that nothing has to run.

A case is one of C001 to C244 of the list that restates Julia's Distributed; a test says which it shows with the marker
``case``. Run as a script (``python tests/conformance/test_report.py``) or with ``pytest -s`` it prints what is covered.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
NUMBERS = tuple(f"C{number:03}" for number in range(1, 245))

# Cases that are about workers on other machines, which are reached through ssh: they come with SSHManager.
NEED_SSH = {
    "C029": "a machine list with an unknown host",
    "C227": "the grammar of machine names",
    "C229": "the command that is run through ssh",
    "C230": "several workers on one host with one ssh",
    "C231": "bind ports and quoting of machine specifications",
}
# Cases whose test leaves a part out, for the same reason.
PARTLY = {
    "C225": "the options of SSHManager",
    "C228": "how SSHManager counts its machines, and its text",
    "C240": "machine files",
}
# Cases that should have a test and have none yet, and why.
STILL_MISSING: dict[str, str] = {}


def numbers_in(source: str) -> Iterator[str]:
    """The numbers in all ``pytest.mark.case(...)`` of a source text, wherever they stand."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.case":
            for argument in node.args:
                yield str(ast.literal_eval(argument))


def covered() -> dict[str, list[str]]:
    """The test files of each number that any test carries."""
    files: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for number in set(numbers_in(path.read_text(encoding="utf-8"))):
            files.setdefault(number, []).append(path.relative_to(TESTS).as_posix())
    return files


def report() -> str:
    """What is covered and what is not, as text."""
    found = covered()
    lines = [f"{len(found.keys() & set(NUMBERS))} of {len(NUMBERS)} numbered cases have a test"]
    for title, table in (
        ("without a test until workers are reached through ssh", NEED_SSH),
        ("with a test but for a part that needs ssh", PARTLY),
        ("still missing", STILL_MISSING),
    ):
        lines += [f"{title}:", *(f"  {number}  {reason}" for number, reason in table.items())] if table else []
    unknown = [number for number in NUMBERS if number not in found | NEED_SSH | STILL_MISSING]
    return "\n".join([*lines, f"without a test and without a reason: {' '.join(unknown) or 'none'}"])


def test_every_case_has_a_test_or_a_reason() -> None:
    """No number is left out in silence."""
    print(f"\n{report()}")
    without = set(NUMBERS) - covered().keys()
    assert sorted(without - NEED_SSH.keys() - STILL_MISSING.keys()) == []


def test_no_reason_outlives_its_absence() -> None:
    """A number that has got a test leaves the tables of those without; one with a part left out has a test."""
    found = covered()
    assert sorted((NEED_SSH | STILL_MISSING).keys() & found.keys()) == []
    assert sorted(PARTLY.keys() - found.keys()) == []


def test_only_numbers_of_the_list_are_carried() -> None:
    """A misspelt number would count for nothing."""
    assert {number: files for number, files in covered().items() if number not in NUMBERS} == {}


@pytest.mark.parametrize(
    ("source", "numbers"),
    [
        ("@pytest.mark.case('C001', 'C002')\ndef test_one(): ...", ["C001", "C002"]),
        ("ROWS = [pytest.param(1, marks=pytest.mark.case('C003'))]", ["C003"]),
        ("pytestmark = [pytest.mark.slow, pytest.mark.case('C004')]", ["C004"]),
        ("# pytest.mark.case('C005')\ntext = \"pytest.mark.case('C006')\"\ncase('C007')", []),
    ],
)
def test_markers_are_found(source: str, numbers: list[str]) -> None:
    """The check itself: markers count wherever they stand, and text that looks like one does not."""
    assert list(numbers_in(source)) == numbers


if __name__ == "__main__":
    sys.exit(print(report()))
