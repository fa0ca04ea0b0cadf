"""Julia's Distributed, a process pool and drop-in replacements for Python's own pools, on one engine.

Three doors: the native one (``addprocs``, ``pmap``, ``remotecall``, ``RemoteChannel``), the pool (``WorkerPool``), and
the drop-ins (``distpool.compat``). Names are loaded at first use, so that importing distpool, which every worker does,
is light.
"""

from __future__ import annotations

from distpool.light import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from distpool.broadcast import everywhere as everywhere
    from distpool.broadcast import remotecall_eval as remotecall_eval
    from distpool.calls import remote_do as remote_do
    from distpool.calls import remotecall as remotecall
    from distpool.calls import remotecall_fetch as remotecall_fetch
    from distpool.calls import remotecall_wait as remotecall_wait
    from distpool.channel import Channel as Channel
    from distpool.connections import current_peer as current_peer
    from distpool.connections import init_worker as init_worker
    from distpool.connections import process_messages as process_messages
    from distpool.connections import worker_id_from_socket as worker_id_from_socket
    from distpool.cookie import cluster_cookie as cluster_cookie
    from distpool.cores import usable_cores as usable_cores
    from distpool.errors import ChannelClosedError as ChannelClosedError
    from distpool.errors import CompositeException as CompositeException
    from distpool.errors import LaunchWorkerError as LaunchWorkerError
    from distpool.errors import ProcessExitedException as ProcessExitedException
    from distpool.errors import RemoteException as RemoteException
    from distpool.futures import Outcome as Outcome
    from distpool.futures import Promise as Promise
    from distpool.lifecycle import add_worker_exited_callback as add_worker_exited_callback
    from distpool.lifecycle import add_worker_exiting_callback as add_worker_exiting_callback
    from distpool.lifecycle import add_worker_started_callback as add_worker_started_callback
    from distpool.lifecycle import add_worker_starting_callback as add_worker_starting_callback
    from distpool.lifecycle import getstatus as getstatus
    from distpool.lifecycle import remove_worker_exited_callback as remove_worker_exited_callback
    from distpool.lifecycle import remove_worker_exiting_callback as remove_worker_exiting_callback
    from distpool.lifecycle import remove_worker_started_callback as remove_worker_started_callback
    from distpool.lifecycle import remove_worker_starting_callback as remove_worker_starting_callback
    from distpool.lifecycle import setstatus as setstatus
    from distpool.light import Any
    from distpool.listening import start_worker as start_worker
    from distpool.main_names import capture as capture
    from distpool.main_names import clear as clear
    from distpool.managers.dask import DaskManager as DaskManager
    from distpool.managers.dialback import DialBackManager as DialBackManager
    from distpool.managers.interface import ClusterManager as ClusterManager
    from distpool.managers.interface import WorkerConfig as WorkerConfig
    from distpool.managers.interface import default_addprocs_params as default_addprocs_params
    from distpool.managers.local import LocalManager as LocalManager
    from distpool.managers.mpi import MPIManager as MPIManager
    from distpool.managers.ray import RayManager as RayManager
    from distpool.managers.slurm import SlurmManager as SlurmManager
    from distpool.managers.ssh import SSHManager as SSHManager
    from distpool.managers.verbs import connect as connect
    from distpool.managers.verbs import kill as kill
    from distpool.managers.verbs import launch as launch
    from distpool.managers.verbs import manage as manage
    from distpool.membership import addprocs as addprocs
    from distpool.membership import check_same_host as check_same_host
    from distpool.membership import interrupt as interrupt
    from distpool.membership import myid as myid
    from distpool.membership import nprocs as nprocs
    from distpool.membership import nworkers as nworkers
    from distpool.membership import other_procs as other_procs
    from distpool.membership import other_workers as other_workers
    from distpool.membership import procs as procs
    from distpool.membership import rmprocs as rmprocs
    from distpool.membership import workers as workers
    from distpool.parallel_for import DistributedLoop as DistributedLoop
    from distpool.parallel_for import distributed as distributed
    from distpool.parallel_for import splitrange as splitrange
    from distpool.pickling import Descriptor as Descriptor
    from distpool.pickling import register_reducer as register_reducer
    from distpool.pools.abstract import AbstractWorkerPool as AbstractWorkerPool
    from distpool.pools.caching import CachingPool as CachingPool
    from distpool.pools.default import default_worker_pool as default_worker_pool
    from distpool.pools.default import remote as remote
    from distpool.pools.default import set_default_worker_pool as set_default_worker_pool
    from distpool.pools.promising import ResultStream as ResultStream
    from distpool.pools.worker_pool import WorkerPool as WorkerPool
    from distpool.refs import Future as Future
    from distpool.remote_channel import RemoteChannel as RemoteChannel
    from distpool.spawning import fetchfrom as fetchfrom
    from distpool.spawning import spawn as spawn
    from distpool.spawning import spawnat as spawnat
    from distpool.spawning import sync as sync
    from distpool.tallies import Usage as Usage
    from distpool.tallies import usage as usage
    from distpool.turns import InTurn as InTurn
    from distpool.verbs import channel_from_id as channel_from_id
    from distpool.verbs import close as close
    from distpool.verbs import fetch as fetch
    from distpool.verbs import isopen as isopen
    from distpool.verbs import isready as isready
    from distpool.verbs import put as put
    from distpool.verbs import remoteref_id as remoteref_id
    from distpool.verbs import take as take
    from distpool.verbs import wait as wait
    from distpool.waiting import Waiter as Waiter

# Every public name and the room that has it.
_ROOMS = {
    "calls": ("remote_do", "remotecall", "remotecall_fetch", "remotecall_wait"),
    "channel": ("Channel",),
    "connections": ("current_peer", "init_worker", "process_messages", "worker_id_from_socket"),
    "cookie": ("cluster_cookie",),
    "errors": (
        "ChannelClosedError",
        "CompositeException",
        "LaunchWorkerError",
        "ProcessExitedException",
        "RemoteException",
    ),
    "listening": ("start_worker",),
    "managers.interface": ("ClusterManager", "WorkerConfig", "default_addprocs_params"),
    "managers.local": ("LocalManager",),
    "managers.dialback": ("DialBackManager",),
    "managers.mpi": ("MPIManager",),
    "managers.ray": ("RayManager",),
    "managers.dask": ("DaskManager",),
    "managers.slurm": ("SlurmManager",),
    "managers.ssh": ("SSHManager",),
    "managers.verbs": ("connect", "kill", "launch", "manage"),
    "lifecycle": (
        "add_worker_exited_callback",
        "add_worker_exiting_callback",
        "add_worker_started_callback",
        "add_worker_starting_callback",
        "getstatus",
        "remove_worker_exited_callback",
        "remove_worker_exiting_callback",
        "remove_worker_started_callback",
        "remove_worker_starting_callback",
        "setstatus",
    ),
    "membership": (
        "addprocs",
        "check_same_host",
        "interrupt",
        "myid",
        "nprocs",
        "nworkers",
        "other_procs",
        "other_workers",
        "procs",
        "rmprocs",
        "workers",
    ),
    "pickling": ("Descriptor", "register_reducer"),
    "refs": ("Future",),
    "remote_channel": ("RemoteChannel",),
    "verbs": (
        "channel_from_id",
        "close",
        "fetch",
        "isopen",
        "isready",
        "put",
        "remoteref_id",
        "take",
        "wait",
    ),
    "cores": ("usable_cores",),
    "futures": ("Outcome", "Promise"),
    "tallies": ("Usage", "usage"),
    "turns": ("InTurn",),
    "waiting": ("Waiter",),
    "pools.abstract": ("AbstractWorkerPool",),
    "pools.caching": ("CachingPool",),
    "pools.default": ("default_worker_pool", "remote", "set_default_worker_pool"),
    "pools.promising": ("ResultStream",),
    "pools.worker_pool": ("WorkerPool",),
    "spawning": ("fetchfrom", "spawn", "spawnat", "sync"),
    "loops": ("pmap",),
    "parallel_for": ("DistributedLoop", "distributed", "splitrange"),
    "broadcast": ("everywhere", "remotecall_eval"),
    "main_names": ("capture", "clear"),
}
_HOMES = {name: f"distpool.{room}" for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'distpool' has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # the next time costs nothing
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
