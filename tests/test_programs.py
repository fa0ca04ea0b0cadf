"""Code text: where it stands, what it borrows, and what the pieces of it are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distpool.errands import run_program
from distpool.programs import Text, text_of, text_of_file


def run(text: Text, module: str = "colorsys", **names: object) -> object:
    """Compile and run here, in a module that nobody uses."""
    return run_program(text.program(module), dict(names), True)


def test_the_last_expression_is_the_value() -> None:
    """Also after statements, over several lines, and with a semicolon; not when a statement comes last."""
    frame = sys._getframe()
    assert run(text_of("a = 2\n(a +\n 3)", frame)) == 5
    assert run(text_of("a = 2; a", frame)) == 2
    assert run(text_of("a\nb = 3", frame)) is None


def test_text_in_the_file_keeps_its_place() -> None:
    """File, line and column are those of the literal."""
    code = text_of("conf_place = undefined_name", sys._getframe())
    line = sys._getframe().f_lineno - 1
    with pytest.raises(NameError) as caught:
        run(code)
    step = caught.value.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    assert step is not None
    assert (step.tb_frame.f_code.co_filename, step.tb_lineno) == (__file__, line)
    if sys.version_info >= (3, 11):
        columns = {position[2] for position in step.tb_frame.f_code.co_positions() if position[0] == line}
        assert Path(__file__).read_text().splitlines()[line - 1].index("undefined_name") in columns


def test_text_elsewhere_names_the_call() -> None:
    """What was put together has a name that tells file and line of the call, and lines of its own."""
    program = text_of("3" + "+4", sys._getframe()).program("colorsys")
    assert program.filename == f"<everywhere at {__file__}:{sys._getframe().f_lineno - 1}>"
    assert program.source == f"{3}+{4}"


def test_syntax_errors_of_text_elsewhere() -> None:
    """They name the call, too."""
    with pytest.raises(SyntaxError) as caught:
        text_of("1" + "+", sys._getframe())
    assert str(caught.value.filename).startswith("<everywhere at")


def test_borrowed_names() -> None:
    """Public names of distpool that the text reads, in __main__ only."""
    text = text_of("x = myid()\ndef f():\n    return nprocs\ndel put", sys._getframe())
    assert text.program("__main__").borrowed == ("myid", "nprocs")
    assert text.program("colorsys").borrowed == ()


def test_file_of_code(tmp_path: Path) -> None:
    """Read as Python reads source, with the encoding that it declares; __file__ is itself."""
    path = tmp_path / "definitions.py"
    path.write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\nname, __file__".encode("latin-1"))
    assert run(text_of_file(path, sys._getframe())) == ("é", str(path))


def test_future_statements_of_distpool_do_not_reach_the_text() -> None:
    """Annotations are evaluated as the text itself says."""
    assert run(text_of("def f(x: 1 + 1): pass\nf.__annotations__", sys._getframe())) == {"x": 2}
    assert run(
        text_of("from __future__ import annotations\ndef f(x: 1 + 1): pass\nf.__annotations__", sys._getframe())
    ) == {"x": "1 + 1"}
