"""The public names: complete, documented, and cheap to import."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from types import ModuleType

import pytest
from test_layers import ORDER

# Julia's exported names in their Python spelling (exclamation marks and at-signs fall away). Where one Julia function
# became methods (`put!`, `isready`), the function of that name exists as well.
THERE = """
    interrupt addprocs rmprocs procs workers nprocs nworkers myid
    remotecall remotecall_fetch remotecall_wait remote_do remote
    Future RemoteChannel Channel put take fetch wait isready close
    RemoteException ProcessExitedException CompositeException
    AbstractWorkerPool WorkerPool CachingPool default_worker_pool
    pmap distributed spawn spawnat fetchfrom everywhere
    ClusterManager WorkerConfig LocalManager SSHManager default_addprocs_params start_worker cluster_cookie
    launch manage kill connect
    remoteref_id channel_from_id clear isopen init_worker process_messages worker_id_from_socket
"""
# What `import distpool` must not load: start-up of every program that uses it would pay.
HEAVY = ("asyncio", "subprocess", "multiprocessing", "numpy", "concurrent.futures", "cloudpickle", "tblib", "psutil")


def public() -> ModuleType:
    """The package, once it has a front door."""
    distpool = importlib.import_module("distpool")
    if not hasattr(distpool, "__all__"):
        pytest.skip("distpool exports nothing yet")
    return distpool


def test_exported_names_exist() -> None:
    """Every name of __all__ can be had, and none is there twice."""
    distpool = public()
    assert [name for name in distpool.__all__ if not hasattr(distpool, name)] == []
    assert len(set(distpool.__all__)) == len(distpool.__all__)


def test_public_names_are_exported() -> None:
    """What looks public in the namespace, and is no room, is in __all__."""
    distpool = public()
    names = {name for name in vars(distpool) if not name.startswith("_")} - ORDER.keys() - {"annotations", "compat"}
    assert names - set(distpool.__all__) - {"TYPE_CHECKING"} == set()


def test_julia_names_are_exported() -> None:
    """Julia's names are all there."""
    exported = set(public().__all__)
    assert [name for name in THERE.split() if name not in exported] == []


def test_public_names_are_documented() -> None:
    """Every public class and function says what it does, and so do the public methods of the classes."""
    distpool = public()
    things = {name: getattr(distpool, name) for name in distpool.__all__ if not name.startswith("__")}
    silent = [name for name, thing in things.items() if callable(thing) and not inspect.getdoc(thing)]
    for name, thing in things.items():
        if inspect.isclass(thing):
            silent += [f"{name}.{key}" for key in _own_methods(thing) if not inspect.getdoc(getattr(thing, key))]
    assert silent == []


def _own_methods(thing: type) -> list[str]:
    return [key for key, value in vars(thing).items() if not key.startswith("_") and inspect.isroutine(value)]


def test_version_is_that_of_the_distribution() -> None:
    """`distpool.__version__` and what the installer recorded agree; if not, install again."""
    assert importlib.import_module("distpool").__version__ == importlib.metadata.version("distpool")


def test_compat_is_importable() -> None:
    """The top-level folder is mapped into the package."""
    assert importlib.import_module("distpool.compat").__name__ == "distpool.compat"


def test_import_is_light() -> None:
    """Importing distpool loads none of the heavy modules."""
    # An editable install needs site, which may load some of them itself; so what was there before is subtracted.
    code = "import sys; old = set(sys.modules); import distpool; print(*set(sys.modules) - old)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert set(result.stdout.split()).intersection(HEAVY) == set()
