"""What a worker is told when it starts, and what it tells those who ask ``multiprocessing`` who they are.

Run in workers before anything else of the user's. Most tasks never ask, and importing ``multiprocessing`` would cost a
worker as much as its whole start, so nothing is imported here: what is to be done to a module of the standard library
is done when somebody imports that module (``Watcher``). Owns, in a worker: who it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from . import travel

TYPE_CHECKING = False  # type checkers take it as true; typing would cost each worker that loads this several ms
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any

    from .carried import Carried

# What the workers of the drop-ins have loaded when they start.
PRELOAD = (__name__, f"{__package__}.carried")


class Role:
    """Who a worker is to be; made in the driver (``births``), for all workers of a pool but for their numbers."""

    def __init__(
        self,
        start_method: str,
        authkey: bytes,
        parent_name: str,
        parent_pid: int,
        parent_identity: tuple[int, ...],
        kind: str,
        carried: Carried | None,
    ) -> None:
        self.start_method = start_method  # as the context of the pool says it; names and get_start_method() follow it
        self.authkey = authkey
        self.parent_name = parent_name
        self.parent_pid = parent_pid
        self.parent_identity = parent_identity
        self.kind = kind  # "PoolWorker", or "Process" in an executor: part of the name
        self.carried = carried  # what the driver has set for itself, if anything


def worker_name(start_method: str, identity: Sequence[int], kind: str) -> str:
    """Return the name of a worker of a pool: ForkPoolWorker-1, or ForkPoolWorker-1:2 for a worker of a worker."""
    method = {"fork": "Fork", "spawn": "Spawn", "forkserver": "ForkServer"}.get(start_method, "")
    return f"{method}{kind}-{':'.join(map(str, identity))}"


def become(role: Role, number: int) -> None:
    """Become a worker of a pool. Called once in each, when what it begins with is opened, before all else in that."""
    travel.register()
    identity = (*role.parent_identity, number)
    watcher = Watcher(
        {
            "multiprocessing.process": lambda module: _take_name(module, role, identity),
            "multiprocessing.context": lambda module: _take_method(module, role),
            "multiprocessing.resource_tracker": travel.share_tracker,
            "logging": _name_processes,
            **({} if role.carried is None else role.carried.take()),
        }
    )
    watcher.begin()
    vars(sys.modules["__main__"])["__getattr__"] = _borrowed


def begin(birth: None, initializer: Callable[..., object] | None, initargs: Sequence[Any]) -> None:
    """Run the user's initializer. What it raises ends the pool. ``birth``: what ``become`` has returned."""
    if initializer is not None:
        initializer(*initargs)


# -- names of the script that no function brought along


def _borrowed(name: str) -> Any:
    """What ``__main__`` has not, the driver's may have: unpickling asks for classes so, whose objects are in a file."""
    if not name.startswith("__"):
        import distpool

        try:
            found = distpool.remotecall_fetch(lend_name, 1, name)
        except Exception as error:  # it is there, and cannot travel; or the driver is gone
            raise AttributeError(f"module '__main__' has no attribute {name!r} here: {error}") from error
        if found:
            return vars(sys.modules["__main__"]).setdefault(name, found[0])
    raise AttributeError(f"module '__main__' has no attribute {name!r}")


def lend_name(name: str) -> tuple[Any, ...]:
    """Return what ``__main__`` has under this name, if it has it. Called in the driver."""
    names = vars(sys.modules["__main__"])
    return (names[name],) if name in names else ()


# -- modules of the standard library, when they are imported


class Watcher:
    """Calls a function with a module right after it was imported; at once if it has been."""

    def __init__(self, acts: dict[str, Callable[[ModuleType], object]]) -> None:
        self._acts = acts

    def begin(self) -> None:
        """Act on what is there; wait for the rest."""
        sys.meta_path.insert(0, self)  # first, for one may import another
        for name in [name for name in self._acts if name in sys.modules]:
            self._act(name, sys.modules[name])

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Let the other finders find it, and see its loader through. Called by the import system."""
        act = self._acts.get(name)
        if act is None:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Then(spec.loader, lambda module: self._act(name, module))  # type: ignore[assignment]
                return spec
        return None

    def _act(self, name: str, module: ModuleType) -> None:
        act = self._acts.pop(name, None)
        if act is not None:
            act(module)


class _Then:
    """A module's own loader, and something to do after it."""

    def __init__(self, loader: Any, then: Callable[[ModuleType], object]) -> None:
        self._loader = loader
        self._then = then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does it."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run it, as if we had never been here, and do what is to be done."""
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._then(module)


# -- who am I


def _take_name(process: Any, role: Role, identity: tuple[int, ...]) -> None:
    """``current_process()`` and ``parent_process()`` answer as in a worker of the standard library's."""
    myself = process.BaseProcess.__new__(_worker_class(process.BaseProcess))
    old = process._current_process
    myself._identity = identity
    myself._config = {**old._config, "authkey": process.AuthenticationString(role.authkey)}
    myself._parent_pid = role.parent_pid
    myself._parent_name = role.parent_name
    myself._popen = None
    myself._closed = False
    myself._name = worker_name(role.start_method, identity, role.kind)
    process._current_process = myself
    process._parent_process = process._ParentProcess(role.parent_name, role.parent_pid, _sentinel(role.parent_pid))


def _worker_class(base: Any) -> Any:
    """The class of ``current_process()``. A worker is a daemon, but may have children: ours end with their parent."""

    class PoolWorker(base):  # type: ignore[misc]  # not known before it is imported
        @property
        def daemon(self) -> bool:
            return True

    return PoolWorker


def _sentinel(os_pid: int) -> int:
    """Return a descriptor that becomes readable when the parent has ended; stays open as long as this process."""
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(os_pid)
        except OSError:  # an old kernel, or a sandbox
            pass
    return os.pipe()[0]  # never readable: a worker does not outlive its parent, so as long as it asks, that lives


def _take_method(context: Any, role: Role) -> None:
    """``get_start_method()`` answers as in the driver."""
    default = context._default_context
    if default.get_start_method() != role.start_method:
        default.set_start_method(role.start_method, force=True)
    else:
        default.set_start_method(None, force=True)  # asking has fixed it


def _name_processes(logging: object) -> None:
    """Log records tell the name of the process only where ``multiprocessing`` was imported."""
    __import__("multiprocessing.process")
