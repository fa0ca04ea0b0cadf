"""Drop-in replacements for pools that programs already use, built on `distpool`'s public names only.

Import them as `distpool.compat.<name>`, or let `install()` put them in the place of the standard library's. This folder
lies at the top level of the source tree and is mapped into the package when it is installed, which keeps it honest: a
module here may say `import distpool` and nothing deeper. Nothing is imported here, so that asking for one replacement
does not load the others.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it as true; typing would cost each worker that loads this several ms
if TYPE_CHECKING:
    from typing import Any

    from .installing import install as install
    from .installing import uninstall as uninstall

__all__ = ["install", "uninstall"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.installing"), name)
