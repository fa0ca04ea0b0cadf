"""``install()``: programs that know nothing of distpool get its pools wherever they make one of the standard library's.

The standard library's classes stay where and what they are, and make ours: an object whose ``__init__`` begins becomes
one of our class. So it does not matter who has imported which name when (``from multiprocessing import Pool``, a
context's ``Pool``, a name bound long ago), ``isinstance`` holds, and there is nothing to look for in other modules. Our
classes are subclasses of theirs. A method called by way of the class (``Pool.map(self, ...)`` in a subclass) comes out
at ours, too.

Nothing is imported here before the program imports it: what is to be done to a module is done right after that
(``Watcher``). Workers of a pool that was made this way are installed as well, by their initializer, so that what they
make are our pools again. Owns: whether it is installed, and the default number of workers.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, Protocol

from .multiprocessing.worker import Watcher


def install(workers: int | None = None) -> None:
    """Let the standard library's process pools, and joblib's default backend, be distpool's in this process.

    Replaced are ``multiprocessing.Pool`` (also ``multiprocessing.pool.Pool``, and ``Pool`` of every context),
    ``concurrent.futures.ProcessPoolExecutor`` and, from joblib 1.4, what ``Parallel`` takes when no backend is named;
    whoever imports them, and whoever has imported them before. Pools that exist go on as they are. Subclasses are
    ours, too, unless they rebuild the private machinery of a pool (as ``ThreadPool`` and torch's do). In workers of
    these pools it holds as well; not in processes that the program starts by other means, but for forked ones.

    Args:
        workers: how many a pool has for which the program gives no number, and joblib's ``n_jobs=-1``; None: one for
            each core that this process may use.

    Harmless to repeat: the last ``workers`` counts. Raises ValueError for less than 1, TypeError for what is no number.

    >>> import multiprocessing
    >>> install()
    >>> with multiprocessing.Pool(2) as pool:
    ...     print(type(pool).__module__, pool.map(lambda x: x * x, range(4)))
    distpool.compat.multiprocessing.pool [0, 1, 4, 9]
    >>> uninstall()
    """
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
        raise TypeError(f"workers={workers!r}: a number of workers, or None for as many as there are cores")
    if workers is not None and workers < 1:
        raise ValueError(f"workers={workers}: a pool needs at least one worker")
    global _installed
    with _lock:
        if _installed is None:
            _installed = _Installed()
        _installed.workers = workers
        _installed.begin()


def uninstall() -> None:
    """Undo ``install()``: everything is the standard library's and joblib's again. Pools that exist go on.

    Harmless when nothing is installed.
    """
    global _installed
    with _lock:
        installed, _installed = _installed, None
        if installed is not None:
            installed.end()


def inherit(workers: int | None, initializer: Callable[..., object] | None, *initargs: Any) -> None:
    """Install in a worker, and run the initializer that the program has given."""
    install(workers)
    if initializer is not None:
        initializer(*initargs)


class Change(Protocol):
    """What is done to a module of others, after it was imported, and undone."""

    module: str

    def begin(self, module: ModuleType, /) -> None:
        """It has been imported."""

    def end(self) -> None:
        """Undo it; nothing, if it never was."""


class _Installed:
    """What has been done, and is to be undone."""

    def __init__(self) -> None:
        self.workers: int | None = None
        self._changes: list[Change] = [
            Swap(
                "multiprocessing.pool",
                "Pool",
                "distpool.compat.multiprocessing.pool",
                ("processes", "initializer", "initargs", "maxtasksperchild", "context"),
            ),
            Swap(
                "concurrent.futures.process",
                "ProcessPoolExecutor",
                "distpool.compat.futures.process",
                ("max_workers", "mp_context", "initializer", "initargs"),
            ),
            Named(),
            Joblib(),
        ]
        self._watcher = Watcher({change.module: change.begin for change in self._changes})

    def begin(self) -> None:
        """Change what is imported, and what will be."""
        if self._watcher not in sys.meta_path:
            self._watcher.begin()

    def end(self) -> None:
        """Change it back."""
        sys.meta_path.remove(self._watcher)
        for change in self._changes:
            change.end()


_installed: _Installed | None = None
_lock = threading.RLock()  # protects _installed; an import that it leads to may come here again


def _workers() -> int | None:
    installed = _installed
    return None if installed is None else installed.workers


class Swap:
    """One class of the standard library that makes objects of ours.

    ``parameters`` are those that may be given by place; the first is the number of workers.
    """

    def __init__(self, module: str, name: str, room: str, parameters: tuple[str, ...]) -> None:
        self.module = module
        self._name = name
        self._room = room
        self._parameters = parameters
        self._theirs: Any = None
        self._ours: Any = None  # loaded with the first object
        self._originals: dict[str, Any] = {}

    def begin(self, module: ModuleType) -> None:
        """Its module has been imported."""
        self._theirs = getattr(module, self._name)
        self._replace("__init__", self._constructor(self._theirs.__init__))

    def end(self) -> None:
        """Put everything back."""
        while self._originals:
            setattr(self._theirs, *self._originals.popitem())

    def _replace(self, name: str, function: Callable[..., Any]) -> None:
        self._originals[name] = vars(self._theirs)[name]
        setattr(self._theirs, name, function)

    def _constructor(self, original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def __init__(pool: Any, /, *args: Any, **kwargs: Any) -> None:
            kind = self._kind_for(type(pool))
            if kind is None:
                original(pool, *args, **kwargs)
            else:
                pool.__class__ = kind
                self._begin_object(pool, args, kwargs)

        return __init__

    def _kind_for(self, kind: type) -> type | None:
        """Return the class that an object of this one is to become; None when it must stay what it is."""
        if self._theirs is not kind and self._is_rebuilt(kind):
            return None
        ours = self._loaded()
        if kind is self._theirs or issubclass(kind, ours):
            return ours if kind is self._theirs else kind
        return _mixed(kind, ours)

    def _is_rebuilt(self, kind: type) -> bool:
        """Whether a subclass has private parts of its own in the place of theirs: it would not work with ours."""
        above = kind.__mro__[: kind.__mro__.index(self._theirs)]
        theirs = {name for name in vars(self._theirs) if name.startswith("_") and not name.startswith("__")}
        return self._ours not in above and any(theirs & vars(each).keys() for each in above)

    def _loaded(self) -> Any:
        """Return our class. Their methods find ours from now on, called by way of their class."""
        with _lock:
            if self._ours is None:
                import importlib

                self._ours = ours = getattr(importlib.import_module(self._room), self._name)
                for name, function in vars(ours).items():
                    has_it = isinstance(function, FunctionType) and name in vars(self._theirs)
                    if has_it and not name.startswith("_"):
                        self._replace(name, _either(ours, function, vars(self._theirs)[name]))
            return self._ours

    def _begin_object(self, pool: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Call our ``__init__`` with what theirs was called with, and what workers need to be installed."""
        options = dict(zip(self._parameters, args, strict=False))
        if len(args) <= len(self._parameters) and not options.keys() & kwargs.keys():  # else it raises
            options.update(kwargs)
            args, kwargs = (), options
            self._complete(options)
        self._ours.__init__(pool, *args, **kwargs)

    def _complete(self, options: dict[str, Any]) -> None:
        if options.get("pool") is not None:  # an executor over workers that exist
            return
        if options.get(self._parameters[0]) is None:
            options[self._parameters[0]] = _workers()
        initializer = options.get("initializer")
        if initializer is None or callable(initializer):  # else it raises
            options["initargs"] = (_workers(), initializer, *options.get("initargs", ()))
            options["initializer"] = inherit


@functools.cache
def _mixed(kind: type, ours: type) -> type:
    """A subclass of theirs on top of ours."""
    return type(kind)(kind.__name__, (kind, ours), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _either(ours: type, our_way: Callable[..., Any], their_way: Callable[..., Any]) -> Callable[..., Any]:
    """A method that does the right thing for objects of both kinds."""

    @functools.wraps(our_way)
    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        return (our_way if isinstance(self, ours) else their_way)(self, *args, **kwargs)

    return method


class Named:
    """Locks, queues, all that holds a semaphore: made with a name by every context, so that workers can open it.

    One that has none, from before, is used through the process that has it (room ``lent``): a hundred times as slow.
    """

    module = "multiprocessing.synchronize"

    def __init__(self) -> None:
        self._semaphore: Any = None

    def begin(self, synchronize: ModuleType) -> None:
        """It has been imported."""
        self._semaphore = vars(synchronize)["SemLock"]
        self._original = original = self._semaphore.__init__
        context = sys.modules["multiprocessing.context"]
        spawning = vars(context)["SpawnContext"]()

        @functools.wraps(original)
        def __init__(self: Any, *args: Any, ctx: object = None) -> None:
            original(self, *args, ctx=spawning)

        self._semaphore.__init__ = __init__

    def end(self) -> None:
        """Let a context for forked processes make nameless ones again."""
        if self._semaphore is not None:
            self._semaphore.__init__, self._semaphore = self._original, None


class Joblib:
    """What ``joblib.Parallel`` takes when no backend is named."""

    module = "joblib"
    _name = "distpool-installed"

    def __init__(self) -> None:
        self._parallel: Any = None

    def begin(self, joblib: ModuleType) -> None:
        """It has been imported."""
        from .joblib.backend import DistpoolBackend  # brings much of joblib along

        class Backend(DistpoolBackend):
            """With the default number of workers of ``install()``; and in its workers it is installed."""

            def __init__(self, *args: Any, **options: Any) -> None:
                if options.get("initializer") is None:
                    options.update(initializer=inherit, initargs=(_workers(), None))
                super().__init__(*args, **options)

            def effective_n_jobs(self, n_jobs: int | None) -> int:
                workers = _workers()
                if workers is not None and n_jobs is not None and n_jobs < 0:
                    return max(workers + 1 + n_jobs, 1)
                return super().effective_n_jobs(n_jobs)

        Backend.__name__ = Backend.__qualname__ = DistpoolBackend.__name__  # joblib shows it
        self._parallel = parallel = sys.modules["joblib.parallel"]
        self._before = vars(parallel)["DEFAULT_BACKEND"]
        vars(parallel)["BACKENDS"][self._name] = Backend
        vars(parallel)["DEFAULT_BACKEND"] = self._name

    def end(self) -> None:
        """Put its own default back."""
        if self._parallel is not None:
            parallel, self._parallel = vars(self._parallel), None
            parallel["BACKENDS"].pop(self._name, None)
            if parallel["DEFAULT_BACKEND"] == self._name:
                parallel["DEFAULT_BACKEND"] = self._before
