"""Which names of ``distpool.compat.multiprocessing`` are ours, and how the others are passed through.

Used by the package at the first use of a name.
"""

from __future__ import annotations

import importlib
import multiprocessing
from types import ModuleType

from .aliases import OURS, is_standard
from .context import default

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any


def lookup(name: str) -> Any:
    """Return a name of the package: of the default context, a submodule, or as the standard library has it."""
    if name == "__all__":
        return list(multiprocessing.__all__)
    if name in multiprocessing.__all__:
        return getattr(default, name)
    value = getattr(multiprocessing, name, None)
    if isinstance(value, ModuleType) or (value is None and not name.startswith("_") and is_standard(name)):
        return importlib.import_module(f"{OURS}.{name}")
    return getattr(multiprocessing, name)


def names() -> list[str]:
    """All that ``lookup`` knows."""
    return dir(multiprocessing)
