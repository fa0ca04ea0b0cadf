"""A Ray cluster of the tests' own, of one node with four cores, in a network namespace of its own.

The namespace, because Ray listens on all interfaces whatever it is told; in there is only loopback. Programs that use
it must be in there, too: ``inside`` is the prefix of their command.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.fleets import Fleet

PORT = 36379  # nobody else is in the namespace
START_SECONDS = 120
STORE_BYTES = 100_000_000


def missing() -> str:
    """Why there can be none; empty when there can."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed (pip install 'distpool[ray]')"
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"{program} is missing, so Ray cannot be kept on loopback (apt-get install iproute2 util-linux)"
    made = subprocess.run(["unshare", "-n", "true"], capture_output=True, timeout=30)
    return "" if made.returncode == 0 else "no network namespace can be made here (it takes root)"


class Ray:
    """The running cluster: how to get to it, and its processes."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.inside: list[str] = []

    def start(self) -> None:
        """Start the node and wait until it takes drivers."""
        ray = os.path.join(os.path.dirname(sys.executable), "ray")
        options = (
            f"--head --block --node-ip-address=127.0.0.1 --port={PORT} --include-dashboard=false --num-cpus=4"
            f" --object-store-memory={STORE_BYTES} --temp-dir={self.fleet.folder} --disable-usage-stats"
            ' --resources={"seats":2}'
        )
        script = 'ip link set lo up && exec "$@"'
        node = self.fleet.start("node", "unshare", "-n", "sh", "-c", script, "ray", ray, "start", *options.split())
        self.inside = ["nsenter", f"--net=/proc/{node.pid}/ns/net"]
        self.fleet.wait_until(lambda: "Ray runtime started" in self.fleet.said(), START_SECONDS)


@contextmanager
def running() -> Iterator[Ray]:
    """A cluster that runs for the time of the context."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # a short path: it becomes part of sockets' names
        # No token: programs that Ray has started for this user may have left one in the home directory.
        cluster = Ray(Fleet(Path(folder), RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled"))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.fleet.stop()
