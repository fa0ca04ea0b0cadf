"""The four things that a cluster manager does, as functions: the names that Julia's users define methods of.

Used by managers that pass on to another one, and by tests; distpool itself calls the methods. Owns nothing.
"""

from __future__ import annotations

from distpool.light import Any
from distpool.managers.interface import ClusterManager, Launched, WorkerConfig


def launch(manager: ClusterManager, params: dict[str, Any], launched: Launched) -> None:
    """Have a manager start its workers and append a ``WorkerConfig`` for each to ``launched``: ``manager.launch``.

    Runs here; ``addprocs(manager)`` is what calls it, and connects what was launched. Raises what the manager raises.
    Julia's ``launch``, without its condition: ``append`` is safe from any thread.

    >>> from distpool import SSHManager
    >>> launch(SSHManager([]), {}, [])
    Traceback (most recent call last):
        ...
    RuntimeError: SSHManager.launch() is for addprocs() to call: it attaches the reader first
    """
    manager.launch(params, launched)


def connect(manager: ClusterManager, pid: int, config: WorkerConfig) -> Any:
    """Have a manager reach a worker that was launched: ``manager.connect``, which tells what it returns. Julia's."""
    return manager.connect(pid, config)


def manage(manager: ClusterManager, pid: int, config: WorkerConfig, op: str) -> None:
    """Tell a manager what becomes of a worker: ``manager.manage``. Julia's ``manage``.

    ``op`` is "register" when it is made a member, "deregister" and then "finalize" when it has gone, "interrupt" when
    what it does shall be interrupted. Runs here; raises what the manager raises.
    """
    manager.manage(pid, config, op)


def kill(manager: ClusterManager, pid: int, config: WorkerConfig) -> None:
    """Have a manager do its part in the end of a worker: ``manager.kill``. Julia's ``kill`` of a manager's worker.

    To remove workers use ``rmprocs``, which calls it. Runs here; raises what the manager raises.
    """
    manager.kill(pid, config)
