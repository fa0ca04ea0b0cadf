"""Another host: a network namespace of Linux with an address of its own, whose packets can be dropped.

Needs root and the command `ip` (package iproute2). Everything here runs in the test's own process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import distpool
from distpool.managers.launches import Launch
from support.dialback import Here, worker
from support.listeners import Listener, listening

# An address that no card has: what is sent there is dropped by whoever gets it, without a word.
_NOBODY = "02:00:00:00:00:01"


def why_not() -> str:
    """Why there can be no such host here; empty when there can. In the build, root without `ip` is a mistake."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip", path=_PATH) is None:
        assert os.environ.get("CI") != "true", "the command ip is missing: .ci/run installs iproute2"
        return "network namespaces need the command ip (iproute2)"
    probe = f"dpprobe{os.getpid()}"
    done = subprocess.run(["ip", "netns", "add", probe], env=_ENV, capture_output=True, text=True, timeout=30)
    if done.returncode:
        return f"no network namespace can be made here: {done.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


# For workers started by hand, who do not get the driver's path: the tests' folder.
IMPORTS = {"PYTHONPATH": str(Path(__file__).parents[1])}
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_ENV = {**os.environ, "PATH": _PATH}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], env=_ENV, check=True, timeout=30)


class Host:
    """A namespace; `here` is our address on the way there, `address` its own."""

    def __init__(self) -> None:
        number = os.getpid() & 0x3FFF
        # 198.18.0.0/15 is reserved for tests like this one; each test process has four addresses of it.
        net = f"198.18.{number >> 6}.{(number & 63) * 4}"
        base, _, last = net.rpartition(".")
        self.here, self.address = f"{base}.{int(last) + 1}", f"{base}.{int(last) + 2}"
        self.name = f"distpool{os.getpid()}"
        self._near, self._far = f"dpn{os.getpid()}", f"dpf{os.getpid()}"

    def begin(self) -> None:
        """Make it, and a cable to it."""
        _ip("netns", "add", self.name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self.name)
        _ip("address", "add", f"{self.here}/30", "dev", self._near)
        _ip("-n", self.name, "address", "add", f"{self.address}/30", "dev", self._far)
        _ip("link", "set", self._near, "up")
        for device in ("lo", self._far):
            _ip("-n", self.name, "link", "set", device, "up")

    def vanish(self) -> None:
        """From now on all packets are dropped, both ways, and nobody is told."""
        _ip("neigh", "replace", self.address, "lladdr", _NOBODY, "dev", self._near, "nud", "permanent")
        _ip("-n", self.name, "neigh", "replace", self.here, "lladdr", _NOBODY, "dev", self._far, "nud", "permanent")

    def command(self, *words: str) -> tuple[str, ...]:
        """The command that runs another one there."""
        return shutil.which("ip", path=_PATH) or "ip", "netns", "exec", self.name, *words

    @contextmanager
    def listener(self, **env: str) -> Iterator[Listener]:
        """A worker there that listens on its address."""
        prefix = self.command()
        with listening(
            "--worker", "--bind-to", self.address, env={**_ENV, **IMPORTS, **env}, prefix=prefix
        ) as listener:
            yield listener

    def end(self) -> None:
        """Leave nothing of it. The cable goes with the namespace."""
        _ip("netns", "del", self.name)
        subprocess.run(["ip", "link", "del", self._near], env=_ENV, capture_output=True, timeout=30)


@contextmanager
def another_host() -> Iterator[Host]:
    """A host that is gone at the end, whatever has happened."""
    host = Host()
    try:
        host.begin()
        yield host
    finally:
        host.end()


def watches(pid: int) -> bool:
    """On a worker: does its connection to another process notice when that one's host vanishes?"""
    from distpool.member import default_member

    return default_member().cluster.peer(pid)._watch is not None


def myself_soon(_: object) -> int:
    """A task of a hundredth of a second, which tells who has run it."""
    import time

    time.sleep(0.01)
    return distpool.myid()


class There(Here):
    """An engine that starts its workers on another host."""

    engine = "another host"

    def __init__(self, count: int, host: Host) -> None:
        super().__init__(count, bind_addr=host.here)
        self.host = host

    def begin(self, launch: Launch, ident: object, **env: str) -> subprocess.Popen[str]:
        command = self.host.command(*launch.command("--ident", str(ident)))
        self.processes.append(worker(*command, secret=launch.secret, **IMPORTS, **env))
        return self.processes[-1]
