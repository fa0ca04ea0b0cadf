"""Submodules of the standard library's ``multiprocessing`` under our name: the same modules, not copies.

Used by the import system, which asks here for what is not a room of ours.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

TYPE_CHECKING = False  # type checkers take it as true; typing would cost each worker that loads this several ms
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

OURS = __name__.rpartition(".")[0]


def begin() -> None:
    """Have ``import distpool.compat.multiprocessing.managers`` find ``multiprocessing.managers``."""
    if Finder not in sys.meta_path:
        sys.meta_path.append(Finder)


class Finder:
    """Finds them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Answer for the names in our package that the standard library has, too."""
        package, _, module = name.rpartition(".")
        if package != OURS or not is_standard(module):
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, Loader())  # type: ignore[arg-type]  # a loader by its methods


class Loader:
    """Imports the real module in the place of a new one."""

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """An empty one, for a moment."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        """What stands in ``sys.modules`` after this is what the import returns."""
        import importlib

        name = module.__name__
        sys.modules[name] = importlib.import_module(f"multiprocessing.{name.rpartition('.')[2]}")


def is_standard(module: str) -> bool:
    """Tell whether ``multiprocessing`` has a submodule of this name."""
    from importlib.util import find_spec  # here: workers import this room and never ask

    return find_spec(f"multiprocessing.{module}") is not None
