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
    without = [number for number in NUMBERS if number not in found]
    return (
        f"{len(found.keys() & set(NUMBERS))} of {len(NUMBERS)} numbered cases have a test\n"
        f"without a test: {' '.join(without) or 'none'}"
    )


def test_every_case_has_a_test() -> None:
    """No number is left out."""
    print(f"\n{report()}")
    assert sorted(set(NUMBERS) - covered().keys()) == []


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
