"""What this machine offers to distpool and what of it runs here: ``python -m distpool status``.

Used by the command line alone. Looks and changes nothing: no worker is started, no engine is asked, and of other
programs it is only said whether they are there. Processes are those of the user who asks.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import psutil

from distpool import watchdog
from distpool.cores import usable_cores
from distpool.managers.interface import worker_timeout
from distpool.vanishing import host_timeout

# What is optional: the package that it takes, what it brings, and the extra that installs it; none: numpy is nobody's.
EXTRAS: Final = (
    ("numpy", "arrays travel without copies", None),
    ("cryptography", "tls=True", "tls"),
    ("tqdm", "progress bars", "progress"),
    ("ray", "RayManager", "ray"),
    ("distributed", "DaskManager", "dask"),
)
PROGRAMS: Final = (
    ("ssh", "workers on other machines"),
    ("mpiexec", "MPIManager"),
    ("srun", "SlurmManager in an allocation"),
    ("sbatch", "SlurmManager elsewhere"),
)
# How the fork server is written in the list of processes, and so are the workers that it has forked.
_FORK_SERVER: Final = "# distpool fork server"
# Below these it gets tight. A driver holds some four descriptors for each worker; a bare worker takes about 20 MB.
FEW_FILES: Final = 256
LITTLE_MEMORY: Final = 100 << 20
_MB: Final = 1 << 20


class Found(NamedTuple):
    """A process of distpool's."""

    pid: int
    parent: int
    role: str
    age: float  # seconds
    rss: int  # bytes, shared pages included
    state: str


def show() -> None:
    """Print it all."""
    processes = list(find_processes())
    for name, text in (*_machine(), *_settings(), *_extras(), *_programs()):
        print(f"{name:<13}{text}")
    print(f"\n{_count(len(processes))} of distpool's here" + (":" if processes else ""))
    if processes:
        print(f"  {'os pid':>8} {'parent':>8}  {'role':<12} {'age':>9} {'memory':>9}  state")
    for each in processes:
        memory = f"{each.rss / _MB:.0f} MB"
        print(f"  {each.pid:>8} {each.parent:>8}  {each.role:<12} {_age(each.age):>9} {memory:>9}  {each.state}")
    found = list(problems(processes))
    print("\nno problems" if not found else "\nproblems:")
    for problem in found:
        print(f"  {problem}")


def _count(number: int) -> str:
    return "no process" if not number else "1 process" if number == 1 else f"{number} processes"


def _age(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


# -- what there is -----------------------------------------------------------------------------------------------------


def _machine() -> Iterator[tuple[str, str]]:
    from distpool import __version__

    memory = psutil.virtual_memory()
    cores, all_cores = usable_cores(), os.cpu_count() or 1
    less = "" if cores >= all_cores else f" of {all_cores} (affinity, or the quota of a control group)"
    yield "distpool", f"{__version__} in {os.path.dirname(os.path.abspath(__file__))}"
    yield "Python", f"{platform.python_version()} {platform.python_implementation()}, {sys.executable}"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}, {platform.node()}"
    yield "cores", f"{cores}{less}: the default number of workers"
    limit = _memory_limit()
    group = f"; a control group allows {limit / _MB:.0f} MB" if limit is not None and limit < memory.total else ""
    yield "memory", f"{memory.available / _MB:.0f} MB available of {memory.total / _MB:.0f}{group}"
    fork = "forked from a server that imports once; " if hasattr(os, "fork") else ""
    yield "workers are", f"{fork}fresh interpreters (exename=, exeflags=)"


def _memory_limit() -> int | None:
    """What the control group of this process allows, version 2 or 1; None when it says nothing."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                return int(file.read())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _settings() -> Iterator[tuple[str, str]]:
    for variable, (read, meaning) in VARIABLES.items():
        try:
            value = f"{read():g} s"
        except ValueError:
            value = "not a number"
        is_set = "set by" if variable in os.environ else "default;"
        yield "limit", f"{value} {meaning} ({is_set} {variable})"


def _extras() -> Iterator[tuple[str, str]]:
    for package, brings, extra in EXTRAS:
        if importlib.util.find_spec(package) is None:
            remedy = f"pip install 'distpool[{extra}]'" if extra else f"pip install {package}"
            yield package, f"not installed: {brings} needs {remedy}"
        else:
            yield package, f"{_version(package)}: {brings}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a folder of that name, for example
        return "of unknown version"


def _programs() -> Iterator[tuple[str, str]]:
    for program, brings in PROGRAMS:
        path = shutil.which(program)
        yield program, f"not in PATH; it is for {brings}" if path is None else f"{path}: {brings}"


# -- what runs ---------------------------------------------------------------------------------------------------------


def find_processes() -> Iterator[Found]:
    """Find drivers, fork servers and workers of this user, by what the list of processes says of them."""
    now = time.time()
    ours = {process.pid: process for process in psutil.process_iter(_WANTED) if _is_our_user(process)}
    roles = {pid: role for pid, process in ours.items() if (role := _role(process.info["cmdline"] or ()))}
    for pid in list(roles):
        if ours[pid].info["name"] == watchdog.NAME:
            roles[pid] = "watchdog"
    for pid in list(roles):
        parent = ours[pid].info["ppid"]
        if roles[pid] == "fork server" and roles.get(parent) in ("fork server", "worker"):
            roles[pid] = "worker"
    for pid, role in list(roles.items()):
        parent = ours[pid].info["ppid"]
        if (role == "fork server" or "--child" in ours[pid].info["cmdline"]) and parent in ours and parent > 1:
            roles.setdefault(parent, "driver")
    for pid in sorted(roles, key=lambda pid: (ours[pid].info["create_time"], pid)):
        info = ours[pid].info
        rss = info["memory_info"].rss if info["memory_info"] else 0
        yield Found(pid, info["ppid"], roles[pid], now - info["create_time"], rss, info["status"])


_WANTED: Final = (
    "pid",
    "ppid",
    "name",
    "cmdline",
    "create_time",
    "memory_info",
    "status",
    "uids" if psutil.POSIX else "username",
)


def _is_our_user(process: psutil.Process) -> bool:
    if psutil.POSIX:
        uids = process.info["uids"]
        return uids is not None and uids.real == os.getuid()
    return bool(process.info["username"] == psutil.Process().username())


def _role(words: Sequence[str]) -> str | None:
    if any(word.startswith(_FORK_SERVER) for word in words):
        return "fork server"
    is_ours = any(os.path.basename(word) == "distpool" for word in words)  # -m distpool, or the installed command
    if is_ours and any(word.partition("=")[0] == "--worker" for word in words):
        return "host" if "--host" in words else "worker"
    return None


# -- what is wrong -----------------------------------------------------------------------------------------------------


def problems(processes: Sequence[Found]) -> Iterator[str]:
    """Say what will not work, or not well, and what to do about it."""
    for variable, (read, _) in VARIABLES.items():
        try:
            read()
        except ValueError:
            yield f"{variable}={os.environ[variable]!r} is no number of seconds: unset it, or set it to one such as 60"
    if not hasattr(os, "fork"):
        yield "this system cannot fork: workers are fresh interpreters, and take longer to start; keep them, use a pool"
    yield from _tight_limits()
    for each in processes:
        if each.state == psutil.STATUS_STOPPED:
            yield f"{each.role} {each.pid} is stopped, and whoever needs it waits: kill -CONT {each.pid}, or kill it"
        if each.role == "fork server" and each.parent <= 1:
            yield f"fork server {each.pid} has lost its driver and has not ended: kill {each.pid}"


def _tight_limits() -> Iterator[str]:
    if psutil.POSIX:
        import resource

        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files != resource.RLIM_INFINITY and files < FEW_FILES:
            yield f"only {files} open files are allowed, enough for some {files // 5} workers: ulimit -n 4096"
    available, cores = psutil.virtual_memory().available, usable_cores()
    if available < LITTLE_MEMORY * cores:
        yield (
            f"{available / _MB:.0f} MB of memory are little for {cores} workers: use fewer (-p N, processes=N), "
            "or end what needs it"
        )


VARIABLES: Final[dict[str, tuple[Callable[[], float], str]]] = {
    "DISTPOOL_WORKER_TIMEOUT": (worker_timeout, "for a worker to join"),
    "DISTPOOL_HOST_TIMEOUT": (host_timeout, "until a silent host counts as gone"),
}
