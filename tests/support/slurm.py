"""A Slurm of the tests' own: munge, one controller and two virtual nodes on this machine, on loopback only.

Debian's packages ``slurm-wlm`` and ``munge``; needs root, for munge and the daemons change users. Nothing of the
system's own configuration is touched or used: all of it lives in one folder.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from support.leaks import MARK, marked

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "salloc", "sinfo")
START_SECONDS = 60

CONFIG = """\
ClusterName=distpool
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
SrunPortRange={srun_first}-{srun_last}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=0
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port={node_first}-{node_last} CPUs=4 State=UNKNOWN
PartitionName=here Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why there can be no Slurm here; empty when there can."""
    absent = [program for program in PROGRAMS if find(program) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install --no-install-recommends slurm-wlm munge)"
    if os.geteuid() != 0:
        return "munged and slurmd need root"
    try:
        return "" if socket.gethostbyname(socket.gethostname()).startswith("127.") else "this host is not on loopback"
    except OSError as error:
        return f"this host does not know its own name: {error}"


def find(program: str) -> str | None:
    """The path of a program; daemons are not in everybody's PATH."""
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Slurm:
    """The running daemons; ``SLURM_CONF`` is set in this process's environment as long as they run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._daemons: list[subprocess.Popen[bytes]] = []
        # The daemons are no part of any test: they must not be taken for its leftovers.
        self._environment = {name: value for name, value in os.environ.items() if name != MARK}

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        self._prepare()
        self._start_munge()
        port = _free_ports(13)
        config = self._folder / "slurm.conf"
        config.write_text(
            CONFIG.format(
                host=socket.gethostname(),
                folder=self._folder,
                port=port,
                node_first=port + 1,
                node_last=port + 2,
                srun_first=port + 3,
                srun_last=port + 12,
            )
        )
        os.environ["SLURM_CONF"] = self._environment["SLURM_CONF"] = str(config)
        self._run("slurmctld", "-D", "-f", str(config))
        for node in ("n1", "n2"):
            self._run("slurmd", "-D", "-f", str(config), "-N", node)
        self._await(self._nodes_are_idle, "the nodes did not become idle")

    def _prepare(self) -> None:
        self._folder.chmod(0o755)
        munge = pwd.getpwnam("munge")
        for name, mode in (("run", 0o755), ("munge", 0o700)):
            (self._folder / name).mkdir(mode=mode)
            os.chown(self._folder / name, munge.pw_uid, munge.pw_gid)
        for name in ("state", "spool"):
            (self._folder / name).mkdir()
        key = self._folder / "munge" / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        os.chown(key, munge.pw_uid, munge.pw_gid)

    def _start_munge(self) -> None:
        own = self._folder / "munge"
        self._run(
            "munged",
            "--foreground",
            "--force",
            f"--key-file={own}/key",
            f"--socket={self._folder}/run/socket",
            f"--pid-file={self._folder}/run/pid",
            f"--log-file={own}/log",
            f"--seed-file={own}/seed",
            user="munge",
        )
        self._await((self._folder / "run" / "socket").exists, "munged did not start")

    def _run(self, program: str, *arguments: str, user: str | None = None) -> None:
        path = find(program)
        assert path is not None
        log = (self._folder / f"{program}.out").open("ab")
        with log:
            self._daemons.append(
                subprocess.Popen(
                    [path, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    user=user,
                    start_new_session=True,
                )
            )

    def _await(self, condition: object, complaint: str) -> None:
        limit = time.monotonic() + START_SECONDS
        assert callable(condition)
        while not condition():
            if time.monotonic() > limit or any(daemon.poll() is not None for daemon in self._daemons):
                raise AssertionError(f"{complaint}; logs:\n{self._logs()}")
            time.sleep(0.05)

    def _nodes_are_idle(self) -> bool:
        asked = subprocess.run(["sinfo", "-h", "-N", "-o", "%T"], capture_output=True, text=True, timeout=30)
        return asked.stdout.split() == ["idle", "idle"]

    def _logs(self) -> str:
        logs = [*self._folder.glob("*.out"), *self._folder.glob("*.log"), *self._folder.glob("munge/log")]
        return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in logs)

    def jobs(self) -> list[str]:
        """The ids of the jobs that Slurm still knows and that have not ended."""
        asked = subprocess.run(["squeue", "-h", "-o", "%i"], capture_output=True, text=True, timeout=30, check=True)
        return asked.stdout.split()

    def stop(self) -> None:
        """End all jobs and the daemons."""
        config = os.environ.pop("SLURM_CONF", None)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()
            daemon.wait()
        # What looks after a step belongs to init, and tries for ever to tell the controller that its step is over.
        for process in marked("SLURM_CONF", config) if config is not None else ():
            with suppress(psutil.Error):
                if process.name().startswith("slurmstepd"):
                    process.kill()


@contextmanager
def running() -> Iterator[Slurm]:
    """A Slurm that runs for the time of the context."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:  # not pytest's: munge is another user
        slurm = Slurm(Path(folder))
        try:
            slurm.start()
            yield slurm
        finally:
            slurm.stop()


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that are free on loopback now."""
    for first in range(36817, 60000, count):
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
            return first
    raise AssertionError(f"no {count} free ports in a row")
