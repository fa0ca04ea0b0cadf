"""Code text for other processes: found in the caller's file, compiled here.

Used by ``everywhere`` when it is given text, in the thread of the caller. Owns nothing. A text has a place, which is
what tracebacks show of it::

    it stands in the caller's file, at the call   that file and line
    it is a file of its own                       that file
    otherwise (put together, dedented, ...)       "<everywhere at FILE:LINE>", and the text travels along
"""

from __future__ import annotations

import ast
import builtins
import importlib
import linecache
import marshal
import os
import sys
import tokenize
from collections.abc import Iterator, Sequence
from types import FrameType

from distpool.errands import Program

_OURS = __name__.partition(".")[0]  # "distpool"
_LINES_LOOKED_AT = 3  # a literal may begin on the line of the call, or on one of the next; arbitrary


def calling_frame() -> FrameType:
    """The innermost frame outside distpool: whoever called us."""
    frame = sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == _OURS:
        frame = frame.f_back
    return frame


def caller_file(frame: FrameType) -> str | None:
    """The absolute path of the caller's file; None for an interactive session."""
    name = frame.f_globals.get("__file__")  # absolute, where the code's own may be relative to another directory
    code_name = frame.f_code.co_filename
    if isinstance(name, str) and os.path.basename(name) == os.path.basename(code_name):
        return os.path.abspath(name)
    return os.path.abspath(code_name) if os.path.isfile(code_name) else None


class Text:
    """One text, parsed. Raises SyntaxError, with the place of the mistake."""

    def __init__(
        self, source: str, filename: str, first_line: int = 1, columns: Sequence[int] = (), own_file: str | None = None
    ) -> None:
        padding = "\n" * (first_line - 1)
        self._tree = ast.parse(padding + source, filename)
        self._filename = filename
        self._source = None if columns else source
        self._file = own_file
        for node in ast.walk(self._tree):
            _shift(node, first_line, columns)

    def program(self, module: str) -> Program:
        """Compile it, to run at top level of a module; the last expression apart, for its value."""
        tree = self._tree if self._file is None else _FileName(self._file).visit(self._tree)
        last = tree.body[-1] if tree.body else None
        if not isinstance(last, ast.Expr):
            last = None
        else:
            tree.body.pop()
        borrowed = self._borrowed(last) if module == "__main__" else ()
        statements = compile(tree, self._filename, "exec", dont_inherit=True)
        expression = None
        if last is not None:
            expression = compile(ast.Expression(last.value), self._filename, "eval", dont_inherit=True)
        return Program(module, marshal.dumps((statements, expression)), self._filename, self._source, borrowed)

    def _borrowed(self, last: ast.Expr | None) -> tuple[str, ...]:
        """Public names of distpool that the text reads and does not define."""
        names = [node for part in (self._tree, last) if part is not None for node in ast.walk(part)]
        read = {node.id for node in names if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        public: list[str] = sys.modules[_OURS].__all__
        return tuple(name for name in public if name in read and not hasattr(builtins, name))

    def import_modules(self) -> None:
        """Import what it imports outside of functions; what cannot be imported here is left to the targets."""
        for name in _imported(self._tree):
            try:
                importlib.import_module(name)
            except Exception:  # meant for other machines, or guarded in the text; the targets will say
                continue


def text_of(source: str, frame: FrameType) -> Text:
    """A text that the caller has given."""
    file = caller_file(frame)
    where = file or frame.f_code.co_filename
    place = _place_in(linecache.getlines(file), source, frame.f_lineno) if file is not None else None
    if place is None or file is None:
        return Text(source, f"<everywhere at {where}:{frame.f_lineno}>", own_file=file)
    first_line, columns = place
    return Text(source, file, first_line, columns, file)


def text_of_file(path: os.PathLike[str], frame: FrameType) -> Text:
    """A file of code; its name, if relative, counts from the directory of the caller's file."""
    file = caller_file(frame)
    full = os.path.abspath(os.path.join(os.path.dirname(file) if file is not None else "", path))
    with tokenize.open(full) as lines:
        return Text(lines.read(), full, own_file=full)


def _place_in(lines: list[str], source: str, near: int) -> tuple[int, list[int]] | None:
    """Where a text stands in a file: its first line, and how far (in bytes) each line is indented against it."""
    wanted = source.split("\n")
    for first in range(near, near + _LINES_LOOKED_AT):
        there = lines[first - 1 : first - 1 + len(wanted)]
        found = [line.find(part) for line, part in zip(there, wanted)]  # noqa: B905  # the file may end before
        if len(found) < len(wanted) or -1 in found or (len(found) > 1 and any(found[1:])):
            continue
        return first, [len(line[:column].encode()) for line, column in zip(there, found)]  # noqa: B905
    return None


def _shift(node: ast.AST, first_line: int, columns: Sequence[int]) -> None:
    """Move a node to the columns of the file, so that the marks in tracebacks stand under the right words."""
    for line_name, column_name in (("lineno", "col_offset"), ("end_lineno", "end_col_offset")):
        line = getattr(node, line_name, None)
        if line is not None and line - first_line < len(columns):
            setattr(node, column_name, getattr(node, column_name) + columns[line - first_line])


class _FileName(ast.NodeTransformer):
    """Puts the caller's file in the place of ``__file__``, which a worker's ``__main__`` does not have."""

    def __init__(self, file: str) -> None:
        self._file = file

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id == "__file__" and isinstance(node.ctx, ast.Load):
            return ast.copy_location(ast.Constant(self._file), node)
        return node


def _imported(node: ast.AST) -> Iterator[str]:
    """The modules that a text imports when it runs; function bodies may never run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level and child.module != "__future__":
            yield child.module
        elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield from _imported(child)
