"""What a program has set for itself and its workers go by as well: the limit of recursion, warnings, logging.

Forked workers have these from their parent, others from running the script again; ours do neither. The driver looks
when it makes a pool; workers ``take`` it when they start. Owns nothing.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from types import ModuleType

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any

# Action, pattern of the message, module and name of the category, pattern of the module, line.
Filter = tuple[str, str, str, str, str, int]


class Carried:
    """The settings, as names and numbers, so that opening them imports nothing."""

    def __init__(self, recursion_limit: int, filters: list[Filter] | None) -> None:
        self.recursion_limit = recursion_limit
        self.filters = filters  # None: those that every interpreter begins with

    def take(self) -> dict[str, Callable[[ModuleType], object]]:
        """Go by the settings; return what is to be done when modules of these names are imported."""
        if self.recursion_limit != sys.getrecursionlimit():
            sys.setrecursionlimit(self.recursion_limit)
        filters = self.filters
        if filters is None:
            return {}
        warnings.resetwarnings()
        _add_filters(filters)
        # Others follow when the module of their category is imported; once more after the whole package, which may have
        # set its own in front of them.
        homes = {each[2] for each in filters}
        names = {name for home in homes for name in (home, home.partition(".")[0]) if name not in sys.modules}
        return {name: partial(_add_those_of, filters) for name in names}


def current() -> Carried | None:
    """Return the settings of this process; None when nothing was set."""
    limit, filters = sys.getrecursionlimit(), [_described(*each) for each in warnings.filters]
    if filters == _BEGINNING:
        return None if limit == _BEGINNING_LIMIT else Carried(limit, None)
    return Carried(limit, filters)


def preload(own: tuple[str, ...]) -> tuple[str, ...]:
    """Return ``own`` and the modules that ``multiprocessing.set_forkserver_preload`` was told of."""
    forkserver = sys.modules.get("multiprocessing.forkserver")
    if forkserver is None:
        return own
    return (*own, *(name for name in forkserver._forkserver._preload_modules if name != "__main__"))


def is_logging() -> bool:
    """Tell whether logging is set up here: then what workers log is handled here. Forked ones had these handlers."""
    logging = sys.modules.get("logging")
    return logging is not None and bool(logging.getLogger().handlers)


def _described(action: str, message: Any, category: Any, module: Any, line: int) -> Filter:
    return (action, _pattern(message), category.__module__, category.__qualname__, _pattern(module), line)


def _pattern(each: Any) -> str:
    return "" if each is None else each if isinstance(each, str) else each.pattern


_BEGINNING_LIMIT = 1000
# A debug build begins with none; what is carried then does no harm.
_BEGINNING: list[Filter] = [
    ("default", "", "builtins", "DeprecationWarning", "__main__", 0),
    ("ignore", "", "builtins", "DeprecationWarning", "", 0),
    ("ignore", "", "builtins", "PendingDeprecationWarning", "", 0),
    ("ignore", "", "builtins", "ImportWarning", "", 0),
    ("ignore", "", "builtins", "ResourceWarning", "", 0),
]


def _add_those_of(filters: list[Filter], module: ModuleType) -> None:
    name = module.__name__
    _add_filters([each for each in filters if each[2] == name or each[2].startswith(name + ".")])


def _add_filters(filters: list[Filter]) -> None:
    for action, message, home, name, module, line in reversed(filters):  # each is put in front of the others
        category = getattr(sys.modules.get(home), name, None)
        if category is None:
            continue
        if message or module:
            warnings.filterwarnings(action, message, category, module, line)  # type: ignore[arg-type]  # a text
        else:
            warnings.simplefilter(action, category, line)  # type: ignore[arg-type]
