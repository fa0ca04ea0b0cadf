"""Contexts: what makes pools, locks, queues and processes, by start method.

``Pool`` makes ours. Everything that holds a semaphore is made with a name, whatever the start method: workers open it
by that name, and a process that was forked inherits it all the same (the standard library's fork context unlinks the
name at once; see ``lent``). All else is the standard library's context, so ``Process``, ``Manager`` and ``Pipe`` are as
ever, and the start method of the program is one, whoever sets it.
"""

from __future__ import annotations

import multiprocessing.context as standard
from collections.abc import Callable, Iterable

import distpool

from .carried import preload
from .worker import PRELOAD

TYPE_CHECKING = False  # type checkers take it as true; importing typing would take several ms of each start
if TYPE_CHECKING:
    from typing import Any

    from .pool import Pool

# Its semaphores keep their names.
_named = standard.SpawnContext()


class _Factories(standard.BaseContext):
    """What a context of ours makes other than the standard library's."""

    Lock = staticmethod(_named.Lock)
    RLock = staticmethod(_named.RLock)
    Condition = staticmethod(_named.Condition)
    Semaphore = staticmethod(_named.Semaphore)
    BoundedSemaphore = staticmethod(_named.BoundedSemaphore)
    Event = staticmethod(_named.Event)
    Barrier = staticmethod(_named.Barrier)
    Queue = staticmethod(_named.Queue)
    JoinableQueue = staticmethod(_named.JoinableQueue)
    SimpleQueue = staticmethod(_named.SimpleQueue)
    Value: Any = staticmethod(_named.Value)
    Array: Any = staticmethod(_named.Array)

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> Pool:
        """Return a pool of ours."""
        distpool.WorkerPool.prepare(preload(PRELOAD))  # it boots while the rest is imported
        from .pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context())

    @staticmethod
    def active_children() -> list[Any]:
        """Return the living child processes, the workers of open pools among them."""
        from . import children

        return children.active_children()

    def get_context(self, method: str | None = None) -> Any:
        """Return the context for a start method; ValueError when there is no such method."""
        if method is None:
            return self
        if method not in CONTEXTS:
            raise ValueError(f"cannot find context for {method!r}")
        context = CONTEXTS[method]
        context._check_available()
        return context


def _concrete(base: type[Any]) -> Any:
    return type(base.__name__, (_Factories, base), {"__doc__": base.__doc__, "__module__": __name__})()


CONTEXTS: dict[str, Any] = {
    base._name: _concrete(base)
    for base in (getattr(standard, name, None) for name in ("ForkContext", "SpawnContext", "ForkServerContext"))
    if base is not None
}


class DefaultContext(_Factories):
    """The context of the module's functions: that of the program's start method, which the standard library keeps."""

    Process = standard.Process

    def get_context(self, method: str | None = None) -> Any:
        """Return the context for a start method (None: the program's); ValueError when there is no such method."""
        return super().get_context(self.get_start_method() if method is None else method)

    def get_start_method(self, allow_none: bool = False) -> Any:
        """Return the name of the start method, which is fixed from then on unless ``allow_none``."""
        return standard._default_context.get_start_method(allow_none)

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        """Fix the start method of the program: that of its processes; workers of our pools always start alike."""
        standard._default_context.set_start_method(method, force)

    def get_all_start_methods(self) -> list[str]:
        """Return what ``set_start_method`` takes, the default first."""
        return standard._default_context.get_all_start_methods()


default = DefaultContext()
active_children: Callable[[], list[Any]] = default.active_children


def __getattr__(name: str) -> Any:
    return getattr(standard, name)
