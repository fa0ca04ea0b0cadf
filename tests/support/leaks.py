"""The leak census: which processes, threads, descriptors and shared memory files belong to this test run.

Used by the `leaks` fixture around every test and by tests that count for themselves (`census()`). A census is compared
with an earlier one, never with an absolute number, because the test runner has threads and files of its own.

By design a driver may keep two things once it has used workers, and exactly these are allowed to appear:

* one fork server: a direct child whose command line names distpool's fork server;
* one background reader: a thread whose name, or whose outermost function, says "reader".

Each brings descriptors (sockets, a selector, the shared page), so the step from cold to warm is allowed a few; a warm
process is allowed none. Call threads that wait for their next job end by themselves after some seconds and are passed
over; one that is still in a job counts. The standard library's resource tracker, which peers start, is passed over too.
"""

from __future__ import annotations

import _thread
import contextlib
import gc
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import FrameType

import psutil

# In the environment of everything this test run starts. A worker whose parent is dead belongs to init and is nobody's
# child any more, but its environment still says where it came from.
MARK = "DISTPOOL_TEST_RUN"
# In the environment of an engine that serves several tests (support/fleets.py): it starts and ends processes when it
# likes, and its owner sees to it that none is left.
FLEET_MARK = "DISTPOOL_TEST_FLEET"
# Descriptors that one warm thing may bring along: control socket, selector, wake-up pair, shared page; a few spare.
WARM_DESCRIPTORS = 8
# Files in shared memory that the peers of comparisons leave to their own trackers.
FOREIGN_SHARED_MEMORY = ("loky-", "sem.loky-", "joblib_memmapping", "sem.mp-")


def eventually(predicate: Callable[[], object], timeout: float = 30, *, what: str = "") -> None:
    """Returns once `predicate()` is true; fails with `what` (or the predicate's name) after `timeout` seconds.

    For states that nobody announces, such as an orphan's disappearance. Where an event, an end of stream or an exit can
    be waited on, wait on that instead.
    """
    limit = time.monotonic() + timeout
    pause = 0.001
    while not predicate():
        if time.monotonic() > limit:
            raise AssertionError(f"not within {timeout} s: {what or getattr(predicate, '__name__', predicate)}")
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def mark_this_run() -> str:
    """Marks this process's environment, so that all descendants can be found again; idempotent."""
    return os.environ.setdefault(MARK, uuid.uuid4().hex)


def marked(name: str, value: str) -> list[psutil.Process]:
    """The living processes, other than this one, whose environment held `name=value` when they were started."""
    wanted = f"{name}={value}".encode()
    return [process for process in psutil.process_iter() if process.pid != os.getpid() and _carries(process, wanted)]


def _carries(process: psutil.Process, wanted: bytes) -> bool:
    """Reads /proc directly where it exists: psutil's parsing of every process's environment costs ten times as much."""
    try:
        if sys.platform == "linux":
            with open(f"/proc/{process.pid}/environ", "rb") as environ:
                return wanted in environ.read().split(b"\0")
        name, _, value = wanted.decode().partition("=")
        return process.environ().get(name) == value
    except (OSError, psutil.Error):
        return False  # gone meanwhile, or another user's


@dataclass(frozen=True)
class Census:
    """What was alive at one moment. Keys identify, values describe."""

    processes: dict[tuple[int, float], str] = field(default_factory=dict)
    fork_servers: dict[tuple[int, float], str] = field(default_factory=dict)
    threads: dict[int, str] = field(default_factory=dict)
    readers: dict[int, str] = field(default_factory=dict)
    thread_count: int = 0  # the interpreter's own count, less readers and idle call threads
    descriptors: dict[int, str] = field(default_factory=dict)
    shared_memory: frozenset[str] = frozenset()

    def leaked_since(self, before: Census) -> list[str]:
        """One line for each thing that is here now, was not before, and is not allowed to stay."""
        return [*self._processes(before), *self._threads(before), *self._descriptors(before), *self._files(before)]

    def _processes(self, before: Census) -> list[str]:
        leaked = [f"process {text}" for key, text in self.processes.items() if key not in before.processes]
        if len(self.fork_servers) > max(1, len(before.fork_servers)):
            leaked += [f"second fork server {text}" for text in self.fork_servers.values()]
        return leaked

    def _threads(self, before: Census) -> list[str]:
        leaked = [f"thread {text}" for ident, text in self.threads.items() if ident not in before.threads]
        if len(self.readers) > max(1, len(before.readers)):
            leaked += [f"second reader thread {text}" for text in self.readers.values()]
        # Threads without a Python frame show only in the interpreter's own count.
        unseen = self.thread_count - before.thread_count
        if not leaked and unseen > 0:
            leaked.append(f"{unseen} more threads than before, unknown to threading")
        return leaked

    def _descriptors(self, before: Census) -> list[str]:
        warm = self._warm() - before._warm()
        if len(self.descriptors) - len(before.descriptors) <= WARM_DESCRIPTORS * max(0, warm):
            return []
        fresh = self.descriptors.items() - before.descriptors.items()
        return [f"descriptor {number} -> {target}" for number, target in sorted(fresh)]

    def _warm(self) -> int:
        return len(self.fork_servers) + len(self.readers)

    def _files(self, before: Census) -> list[str]:
        fresh = self.shared_memory - before.shared_memory
        return [f"shared memory file {name}" for name in sorted(fresh) if not name.startswith(FOREIGN_SHARED_MEMORY)]


def census() -> Census:
    """Counts now: descendants and marked orphans, Python threads, descriptors, entries of /dev/shm."""
    processes, fork_servers = _processes()
    threads, readers, idle = _threads()
    count = _thread._count() - len(readers) - idle
    return Census(processes, fork_servers, threads, readers, count, _descriptors(), _shared_memory())


def settled_since(before: Census, patience: float = 10) -> tuple[list[str], Census]:
    """What is left, and how things stand, after a garbage collection and `patience` seconds for what is just ending."""
    now = census()
    leaked = now.leaked_since(before)

    def clean() -> bool:
        nonlocal now
        now = census()
        leaked[:] = now.leaked_since(before)
        return not leaked

    if leaked:
        gc.collect()  # sockets and files in reference cycles
        with contextlib.suppress(AssertionError):
            eventually(clean, patience)
    return leaked, now


def leaked_since(before: Census, patience: float = 10) -> list[str]:
    """What is left after garbage was collected and things that are just ending had `patience` seconds to end."""
    return settled_since(before, patience)[0]


def _processes() -> tuple[dict[tuple[int, float], str], dict[tuple[int, float], str]]:
    found = {(p.pid, _started(p)): p for p in psutil.Process().children(recursive=True)}
    found |= {(p.pid, _started(p)): p for p in marked(MARK, mark_this_run())}
    processes: dict[tuple[int, float], str] = {}
    fork_servers: dict[tuple[int, float], str] = {}
    for key, process in found.items():
        text, command = describe(process)
        if not text or "multiprocessing.resource_tracker" in command or _is_of_a_fleet(process):
            continue
        is_fork_server = "distpool" in command and "forkserver" in command and _is_child(process)
        (fork_servers if is_fork_server else processes)[key] = text
    return processes, fork_servers


def _is_of_a_fleet(process: psutil.Process) -> bool:
    try:
        return FLEET_MARK in process.environ()
    except (OSError, psutil.Error):
        return False


def _started(process: psutil.Process) -> float:
    """Together with the process id this identifies a process although ids are used again."""
    try:
        return float(process.create_time())
    except psutil.Error:
        return 0.0


def _is_child(process: psutil.Process) -> bool:
    """Workers are copies of the fork server, command line included; only the fork server is our own child."""
    try:
        return bool(process.ppid() == os.getpid() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def describe(process: psutil.Process) -> tuple[str, str]:
    """(one line about the process, its command line); both empty if it is gone."""
    try:
        command = "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
        text = f"{process.pid} (parent {process.ppid()}, {process.status()}): {command[:200] or process.name()}"
    except psutil.NoSuchProcess:
        return "", ""
    except psutil.Error as error:
        return f"{process.pid}: {error}", ""
    return text, command


def _threads() -> tuple[dict[int, str], dict[int, str], int]:
    """Threads by id, readers by id, and the number of idle call threads; this thread and the main one left out.

    From the interpreter's frames, so that threads started below `threading` are included.
    """
    everything = sys._current_frames()
    # Our own frame holds this table: in a cycle it would keep what each thread has at hand, such as the references in
    # its last job, until a garbage collection.
    del everything[threading.get_ident()]
    frames = {ident: frame for ident, frame in everything.items() if not _is_idle(frame)}
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    skipped = {threading.get_ident(), threading.main_thread().ident}
    described = {i: names.get(i) or _outermost(frame) for i, frame in frames.items() if i not in skipped}
    readers = {i: text for i, text in described.items() if "reader" in text.lower()}
    idle = len(everything) - len(frames)
    return {i: text for i, text in described.items() if i not in readers}, readers, idle


def _is_idle(frame: FrameType | None) -> bool:
    """Whether this is a call thread waiting for its next job, which it does in one function of distpool.threads."""
    while frame is not None:
        if frame.f_globals.get("__name__") == "distpool.threads" and frame.f_code.co_name == "next":
            return True
        frame = frame.f_back
    return False


def _outermost(frame: FrameType) -> str:
    """The function that a thread without a name was started with."""
    while frame.f_back is not None:
        frame = frame.f_back
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)  # qualified from Python 3.11
    holder = type(frame.f_locals["self"]).__name__ + "." if "self" in frame.f_locals else ""
    return f"{frame.f_globals.get('__name__')}:{holder}{name}"


def _descriptors() -> dict[int, str]:
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    described = {}
    for name in _listing(folder):
        try:
            os.fstat(int(name))  # leaves out the descriptor of the listing itself
            described[int(name)] = os.readlink(f"{folder}/{name}") if folder.startswith("/proc") else "open"
        except OSError:
            continue
    return described


def _shared_memory() -> frozenset[str]:
    return frozenset(_listing("/dev/shm"))


def _listing(folder: str) -> Iterable[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
