"""``concurrent.futures`` with a process pool that does not hang: change one import, and nothing else.

``ProcessPoolExecutor`` is ours (room ``process``). Everything else is the standard library's own object, so futures of
both kinds can be waited for together, and an ``except`` clause written for one catches the other's::

    import distpool.compat.futures as futures                        # was: import concurrent.futures as futures
    from distpool.compat.futures.process import BrokenProcessPool    # the standard library's class

Rooms: ``failures`` (errors as the standard library raises them), ``calls`` (the future of one call), ``maps`` (the
iterator of a map), ``process`` (the executor), ``thread`` (passed through). Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import concurrent.futures

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from concurrent.futures import *  # noqa: F403
    from typing import Any

    from .process import ProcessPoolExecutor as ProcessPoolExecutor

__all__ = sorted({*concurrent.futures.__all__, "ProcessPoolExecutor"})


def __getattr__(name: str) -> Any:
    if name in ("ProcessPoolExecutor", "process", "thread"):
        import importlib

        room = importlib.import_module(f"{__name__}.{'thread' if name == 'thread' else 'process'}")
        return getattr(room, name) if name == "ProcessPoolExecutor" else room
    return getattr(concurrent.futures, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(concurrent.futures), *__all__})
