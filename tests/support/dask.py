"""A Dask cluster of the tests' own, on loopback: a scheduler, and workers of one thread each."""

from __future__ import annotations

import importlib.util
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.fleets import Fleet

START_SECONDS = 60


def missing() -> str:
    """Why there can be none; empty when there can."""
    found = importlib.util.find_spec("distributed")
    return "" if found else "Dask is not installed (pip install 'distpool[dask]')"


class Dask:
    """The running cluster: its address, and its processes."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        # Without an address for the dashboard it listens on all interfaces.
        self._common = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")

    def start(self) -> None:
        """Start the scheduler and two workers: a, and b, which has two of a resource called seats."""
        dask = (sys.executable, "-m", "dask")
        self.fleet.start("scheduler", *dask, "scheduler", *self._common, "--port", str(self._port), "--no-show")
        self.fleet.wait_until(self._listens, START_SECONDS)
        self.add_worker("a")
        self.add_worker("b", "--resources", "seats=2")
        self.fleet.wait_until(lambda: self.fleet.said().count("Registered to:") == 2, START_SECONDS)

    def add_worker(self, name: str, *options: str) -> None:
        """Start a worker of Dask's, without waiting for it."""
        limits = ("--nthreads", "1", "--no-nanny", "--death-timeout", "30", "--local-directory", str(self.fleet.folder))
        dask = (sys.executable, "-m", "dask", "worker", self.address)
        self.fleet.start(f"worker-{name}", *dask, *self._common, *limits, "--name", name, *options)

    def _listens(self) -> bool:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self._port), timeout=5).close()
            return True
        return False


@contextmanager
def running() -> Iterator[Dask]:
    """A cluster that runs for the time of the context."""
    with tempfile.TemporaryDirectory(prefix="dask-") as folder:
        cluster = Dask(Fleet(Path(folder)))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.fleet.stop()
