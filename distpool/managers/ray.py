"""Workers that Ray places: an actor for each, on whichever node has room.

Used by who calls ``addprocs(RayManager(8, num_cpus=2))``. The actor only holds the place: its one method starts the
worker as a child and returns how that has ended. Ray ends actors with their driver, and the kernel a child with its
actor (``hosted``). The cookie is an argument of that method, which goes from this process to the actor's and is kept
nowhere; not one of the actor's constructor, which Ray's head node would store.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from distpool.managers.hosted import End, HostedWorker, Secret
from distpool.managers.launches import Launch
from distpool.managers.placed import PlacedManager, PlacedProcess, needed
from distpool.tcp import LOOPBACK


class RayManager(PlacedManager):
    """Starts ``count`` workers, each in an actor of Ray's.

    Args:
        count: the number of workers. at_least: how many of them ``addprocs`` waits for: with an autoscaler the others
        join when it has got their nodes. bind_addr: the address of this machine that the nodes reach
        (``DialBackManager``). ray_options: what ``Actor.options`` takes: ``num_cpus`` (1), ``num_gpus``, ``resources``,
        ``memory``, ``scheduling_strategy``, ``runtime_env``, ``accelerator_type``, ...

    The program calls ``ray.init`` first; one that has not gets what Ray makes of it without arguments. Nodes need the
    same distpool; their workers run the Python that Ray has there unless ``exename`` names another. Libraries get as
    many threads as ``num_cpus``; GPUs are those that Ray has given the actor (``CUDA_VISIBLE_DEVICES``). Workers on
    this machine see what this process sees, others get functions by value.

    Raises ModuleNotFoundError without Ray (``pip install 'distpool[ray]'``), ValueError for ``lifetime="detached"``.
    ``addprocs`` raises CompositeException when workers do not come, with what they said or what Ray has left. Each
    worker's exit code is known; one that does not end is killed with its actor; pools replace their dead.
    """

    engine = "Ray"

    def __init__(
        self, count: int, *, at_least: int | None = None, bind_addr: str = LOOPBACK, **ray_options: Any
    ) -> None:
        super().__init__(count, at_least=at_least, bind_addr=bind_addr)
        if ray_options.get("lifetime") == "detached":
            raise ValueError("lifetime='detached': a worker ends with its driver, and so does its actor")
        self._ray = needed("ray", "ray", type(self).__name__)
        self._options = {"num_cpus": 1, **ray_options}

    def __repr__(self) -> str:
        return f"RayManager({self.count})"

    def cores_per_worker(self) -> int:
        """What ``num_cpus`` says."""
        return max(1, int(self._options["num_cpus"] or 1))

    def start(self, launch: Launch) -> None:
        """Ask for the actors."""
        if not self._ray.is_initialized():
            self._ray.init()
        super().start(launch)

    def place(self, launch: Launch, process: PlacedProcess, secret: Secret, command: list[str]) -> None:
        """Ask for one."""
        actor = self._ray.remote(Host).options(**self._options).remote()
        over = actor.run.remote(command, secret).future()
        process.has_begun(partial(self._kill, actor))
        over.add_done_callback(lambda done: self.ended(launch, process, done.exception() or End(*done.result())))

    def _kill(self, actor: Any) -> None:
        with suppress(Exception):  # it is gone; or Ray is, which takes its actors along
            if self._ray.is_initialized():
                self._ray.kill(actor)

    def tell(self, launch: Launch) -> str:
        """What Ray has, and what of that is free."""
        has, free = (_shown(resources()) for resources in (self._ray.cluster_resources, self._ray.available_resources))
        return f"each asks Ray for {_shown(self._options)}; its nodes have {has}; free are {free}"


class Host:
    """The actor."""

    def run(self, command: Sequence[str], secret: Secret) -> tuple[int, str]:
        """Start the worker and wait for its end."""
        return HostedWorker(command, secret).wait()


def _shown(resources: dict[str, Any]) -> str:
    """Resources as words; those that Ray keeps for itself are left out.

    >>> _shown({"CPU": 2.0, "node:10.0.0.1": 1.0, "GPU": 1.0})
    'CPU 2, GPU 1'
    """
    named = {name: value for name, value in resources.items() if not name.startswith(("node:", "object_store"))}
    words = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in named.items()]
    return ", ".join(words) or "nothing"
