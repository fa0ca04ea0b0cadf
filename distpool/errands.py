"""What other processes are asked to do by ``everywhere``, ``clear`` and ``distributed``: the far end of each.

Called in the target, on whatever thread runs the request there (in this process, too, when it is a target itself). Kept
apart from the rooms that ask, so that a worker need not import those. Owns nothing.
"""

from __future__ import annotations

import builtins
import marshal
import os
import sys
from collections.abc import Callable, Iterable

from distpool.light import Any, NamedTuple


class Program(NamedTuple):
    """Code text, compiled by whoever sends it (all processes run the same version of Python)."""

    module: str  # where it runs
    code: bytes  # marshalled pair: the statements, and the last one as an expression or None
    filename: str
    source: str | None  # for tracebacks, where the file is not at the target; None: the text stands in a file
    borrowed: tuple[str, ...]  # public names of distpool that it uses


def run_program(program: Program, names: dict[str, Any], is_wanted: bool) -> Any:
    """Run it at top level of its module; return the value of the last expression, or None when nobody wants it."""
    namespace = vars(_module(program.module))
    for name in program.borrowed:
        if name not in namespace and not hasattr(builtins, name):
            namespace[name] = getattr(sys.modules["distpool"], name)
    namespace.update(names)
    if program.source is not None and not os.path.exists(program.filename):
        import linecache  # only for text that stands in no file

        # A time of None keeps it there. One entry for each place that calls everywhere, so it does not grow.
        lines = (program.source + "\n").splitlines(keepends=True)
        linecache.cache[program.filename] = (len(program.source), None, lines, program.filename)
    statements, last = marshal.loads(program.code)
    exec(statements, namespace)
    value = None if last is None else eval(last, namespace)
    return value if is_wanted else None


def _module(name: str) -> Any:
    if name != "__main__":
        __import__(name)
    return sys.modules[name]


def run_silently(f: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
    """Call ``f``; what it returns stays here."""
    f(*args, **kwargs)


def clear_names(names: Iterable[str]) -> None:
    """Bind those names of ``__main__`` that are bound to None."""
    namespace = vars(sys.modules["__main__"])
    for name in names:
        if name in namespace:
            namespace[name] = None


def run_slice(body: Callable[[Any], Any], items: Iterable[Any]) -> None:
    """Call ``body`` for each item and keep nothing."""
    for item in items:
        body(item)


def reduce_slice(body: Callable[[Any], Any], reducer: Callable[[Any, Any], Any], items: Iterable[Any]) -> Any:
    """Reduce what ``body`` returns for the items, from left to right; there is at least one."""
    values = iter(items)
    total = body(next(values))
    for item in values:
        total = reducer(total, body(item))
    return total
