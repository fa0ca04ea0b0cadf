"""The documentation is true: examples in docstrings, Python blocks of the pages, and the test command.

A ```python block of a page is run as a script of its own, without a guard, in a fresh interpreter. If a ```output block
follows it directly, that must be what the script prints. A block behind a comment that says so finds a real ssh server.
"""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from conftest import RunScript
from test_layers import COMPAT, ORDER, PACKAGE, ROOT, files, module_of

from support.sshd import Sshd

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKER = "<!-- .ci/run runs the next block -->"
WITH_SSH = "<!-- with the ssh server of the tests -->"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """One Python block of a page and the output promised for it."""

    page: str
    line: int
    code: str
    output: str | None
    logs_in: bool = False  # there must be machines to log in to


def examples(page: str, text: str) -> list[Example]:
    """The Python blocks of a page, each with the output block that follows it directly, if any."""
    found: list[Example] = []
    end = -1
    for match in FENCE.finditer(text):
        language, body = match.groups()
        if language == "python":
            logs_in = text[: match.start()].rstrip().endswith(WITH_SSH)
            found.append(Example(page, text.count("\n", 0, match.start()) + 1, body, None, logs_in))
        elif language == "output" and found and not text[end : match.start()].strip():
            found[-1] = found[-1]._replace(output=body)
        end = match.end()
    return found


EXAMPLES = [example for path in PAGES for example in examples(str(path.relative_to(ROOT)), path.read_text())]
MODULES = [module_of(path) for path in files() if path.stem != "__main__"]
MODULES += ["distpool." + module_of(path) for path in sorted(COMPAT.rglob("*.py"))]


def named(example: Example) -> str:
    return f"{example.page}:{example.line}"


@pytest.mark.parametrize("example", [each for each in EXAMPLES if not each.logs_in], ids=named)
def test_page_examples(example: Example, run_script: RunScript) -> None:
    """The block runs as a script without a guard, says nothing on the error output, and prints what is promised."""
    check(example, *run_script(example.code))


@pytest.mark.parametrize("example", [each for each in EXAMPLES if each.logs_in], ids=named)
def test_page_examples_with_machines(example: Example, run_script: RunScript, sshd: Sshd) -> None:
    """The same, of blocks that log in to other machines."""
    check(example, *run_script(example.code, env={"PATH": sshd.path}))


def check(example: Example, code: int, out: str, err: str) -> None:
    assert (code, err) == (0, "")
    if example.output is not None:
        assert out == example.output


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, request: pytest.FixtureRequest) -> None:
    """Every example of a docstring gives what it shows."""
    module = _imported(name)
    tests = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    if not tests:
        return
    if hasattr(importlib.import_module("distpool"), "addprocs"):
        request.getfixturevalue("no_cluster")  # examples may add workers and need not remove them
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = ORDER.keys() - {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in files()}
        if not missing:
            raise
        pytest.skip(f"{error}; rooms still to be built: {', '.join(sorted(missing))}")


def test_examples_are_found() -> None:
    """The check itself: blocks are found with their output, and only an output that follows directly counts."""
    text = "a\n```python\nprint(1)\n```\n\n```output\n1\n```\n```python\nx\n```\nbut\n```output\n2\n```\n"
    assert examples("p", text) == [Example("p", 2, "print(1)\n", "1\n"), Example("p", 9, "x\n", None)]


def test_the_readme_names_the_command_that_ci_runs() -> None:
    """The README is the only place of the test command: it marks one, and .ci/run has none of its own."""
    readme = (ROOT / "README.md").read_text()
    assert readme.count(MARKER) == 1
    command = FENCE.search(readme, readme.index(MARKER))
    assert command is not None
    assert command[1] == "bash"
    assert command[2].rstrip().endswith("pytest")
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script
    assert not re.search(r"^[^#]*\b(pip|pytest)\b", script, re.MULTILINE)


@pytest.mark.parametrize("script", [".ci/run", "tests/interpreters.sh"])
def test_shell_scripts_parse(script: str) -> None:
    """bash understands them; what they do is shown by the build."""
    path = Path(ROOT, script)
    assert path.stat().st_mode & 0o111, "must be executable"
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)
