"""``multiprocessing`` with a pool that does not hang: change one import, and nothing else.

``Pool`` is ours, and so is what goes into its workers: locks, queues and the like, which arrive working there. All
else is the standard library's own, under the same name, submodules included::

    import distpool.compat.multiprocessing as multiprocessing        # was: import multiprocessing
    from distpool.compat.multiprocessing.shared_memory import SharedMemory

Rooms:

    aliases     submodules that are the standard library's
    face        which names are ours, which are passed through
    context     contexts: the factories of everything, by start method
    pool        Pool, ThreadPool
    failures    errors as the standard library raises them
    results     what its methods return
    streams     what imap returns
    insides     what programs reach for inside a pool
    births      what each worker is told first
    carried     what the program has set for itself and its workers go by as well
    children    the workers, as multiprocessing shows processes
    travel      how locks, pipes, shared memory and proxies get to workers
    opening     the function Pool
    lent        semaphores that cannot be opened elsewhere, used through their owner
    worker      what a worker is told, and tells those who ask multiprocessing

Nothing is loaded before it is asked for: every worker imports this package, and few need more than ``worker``.
"""

from __future__ import annotations

from . import aliases

TYPE_CHECKING = False  # type checkers take it as true; typing would cost each worker that loads this several ms
if TYPE_CHECKING:
    from multiprocessing import *  # noqa: F403
    from typing import Any

    from .context import active_children as active_children

aliases.begin()


# The import system asks for these before it imports them; none of them is a name of the standard library's.
_ROOMS = (
    "aliases",
    "births",
    "callbacks",
    "children",
    "face",
    "failures",
    "lent",
    "opening",
    "results",
    "streams",
    "travel",
    "worker",
)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r} before it is imported")
    if name == "Pool":  # as the standard library has it, a function: the class is in the room ``pool``
        from .opening import Pool as value
    else:
        value = _face().lookup(name)
    if not name.startswith("__"):
        globals()[name] = value  # the next time costs nothing
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_face().names()})


def _face() -> Any:
    import importlib

    return importlib.import_module(f"{__name__}.face")
