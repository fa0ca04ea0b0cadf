"""The fork servers of this process, and the workers that they have forked for it.

Used by the local manager; and by pools, which have a server booted (``boot``) before they import the rest of what they
need, for that takes about as long. So this room imports little. There is one server per process and list of preloaded
modules, kept warm for the next pool and ended with the process; its reports (started, exited and how) come in on the
reading thread. Owns: the fork servers, the shared page on which workers note what they are doing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from itertools import count

from distpool.copies import tell_in_copies
from distpool.errors import LaunchWorkerError
from distpool.forkserver.client import ForkServer
from distpool.forkserver.exits import describe_exit, oom_kills
from distpool.forkserver.frames import OUTPUT_WINDOW, PRELOAD_TOKEN
from distpool.light import TYPE_CHECKING, Any, Final, later, pickle
from distpool.segments import SharedPage

if TYPE_CHECKING:
    from distpool import cores, output
    from distpool.output import How, Output
    from distpool.transport import Reader
else:
    cores, output = later("distpool.cores"), later("distpool.output")

# What the fork server imports when it is idle: what workers need now and then, and is slow to import. The second is for
# workers of the drop-ins, whose users ask it who they are.
WARM: Final = ("cloudpickle", "multiprocessing.context")

# The most local workers that one process can have at a time with progress notes; a slot is 64 bytes of a sparse file.
PAGE_SLOTS: Final = 16384

OnExit = Callable[[int | None, int | None], None]


class ForkedProcess:
    """A worker that the fork server forks, and how it ended."""

    def __init__(self, forks: Forks, slot: int | None, output: Output) -> None:
        self.output: Final = output
        self.os_pid: int | None = None
        self.detail: str | None = None  # what else is known of its end
        self.slot = slot  # its place on the shared page; None when the page was full
        self._forks = forks
        self._lock = threading.Lock()  # protects the three below
        self._exit: tuple[int | None, int | None] | None = None
        self._watchers: list[OnExit] = []
        self._signal: int | None = None  # to send as soon as it has a pid

    def watch(self, on_exit: OnExit) -> None:
        """Call ``on_exit(exit_code, signal)`` once when it is gone; at once if it is."""
        with self._lock:
            if self._exit is None:
                self._watchers.append(on_exit)
                return
        on_exit(*self._exit)

    @property
    def has_exited(self) -> bool:
        """True when the fork server has reported its end."""
        return self._exit is not None

    def progress(self) -> memoryview | None:
        """The slot of the shared page on which the worker notes what it does; it outlives the worker."""
        return self._forks.page.slot(self.slot) if self.slot is not None else None

    def send_signal(self, signum: int) -> None:
        """Send a signal; SIGKILL goes to everything it started as well. Silent when it is gone."""
        with self._lock:
            if self._exit is not None:
                return
            if self.os_pid is None:
                self._signal = signum
                return
        self._forks.server.kill(self.os_pid, signum)

    # -- told by the fork server, on the reading thread ----------------------------------------------------------

    def started(self, os_pid: int) -> None:
        """It exists now."""
        with self._lock:
            self.os_pid = os_pid
            signum = self._signal
        if signum is not None:
            self._forks.server.kill(os_pid, signum)

    def exited(self, exit_code: int | None, signum: int | None, detail: str | None) -> None:
        """It is gone."""
        with self._lock:
            if self._exit is not None:
                return
            self._exit = (exit_code, signum)
            self.detail = detail
            watchers, self._watchers = self._watchers, []
        for tell in watchers:
            tell(exit_code, signum)


class Forks:
    """One fork server and the processes it forked. A handler of the reader."""

    def __init__(self, preload: Sequence[str], env: dict[str, str]) -> None:
        self.page = SharedPage.create(PAGE_SLOTS)
        try:
            self.server = ForkServer(preload, self.page.fd, warm=WARM, env=env)
        finally:  # it has been sent, or is kept with what could not be sent yet; here the mapping is enough
            self.page.close()
        self.inherited = {*os.environ, *env}  # what the fork server, and so each worker, has unless told otherwise
        self.is_gone = False
        self._loaded: set[str] = set()  # rooms of our own that it was told to load
        self._reader: Reader | None = None  # who reads its reports, once there is something to report
        self._processes: dict[int, ForkedProcess] = {}
        self._next_token = count().__next__
        self._oom_kills = oom_kills()
        self._shown = 0  # bytes of output that were shown and not yet told to the fork server

    def attach(self, reader: Reader) -> None:
        """Have its reports read from now on; nothing happens if they are."""
        if self._reader is None:
            self._reader = reader
            reader.register(self)

    def look(self) -> None:
        """Notice that it has ended, if there is nobody yet who reads its reports."""
        if self._reader is None and not self.is_gone:
            self.on_readable()

    def load(self, rooms: Sequence[str]) -> None:
        """Have it import rooms of distpool before it forks again. Told once of each; under the lock of the servers."""
        new = [room for room in rooms if room not in self._loaded]
        if new:
            self._loaded.update(new)
            self.server.load(new)

    def start(self, setup: dict[str, Any], streams: Sequence[int], how: How = "prefix") -> ForkedProcess:
        """Ask for one more worker; returns at once. ``streams``: its socket, then stdout and stderr if not to us."""
        token = self._next_token()
        slot = self.page.allocate()
        process = self._processes[token] = ForkedProcess(self, slot, output.Output(how, self._consumed))
        self.server.start_worker(token, pickle.dumps({**setup, "slot": slot}), streams)
        return process

    def fileno(self) -> int:
        """The control socket's descriptor."""
        return self.server.fileno()

    def on_writable(self) -> None:
        """Send on what did not fit; ``receive`` does that too."""
        self.on_readable()

    def on_readable(self) -> None:
        """Pass the reports on to the processes they are about."""
        for event in self.server.receive():
            if event[0] == "output":
                self._processes[event[1]].output.feed(event[2], event[3])
            elif event[0] == "started":
                self._processes[event[1]].started(event[2])
            elif event[0] == "exited":
                self._end(event[1], *describe_exit(event[3]))
            elif event[0] == "failed":
                self._failed(event[1], event[2])
            else:
                self._server_gone()

    def _end(self, token: int, exit_code: int | None, signum: int | None, detail: str | None = None) -> None:
        process = self._processes.pop(token, None)
        if process is not None:
            process.output.end()
            process.exited(exit_code, signum, detail or self._memory_verdict(signum))
            if process.slot is not None:
                self.page.free(process.slot)

    def _consumed(self, count: int) -> None:
        """So much was shown. On the one thread that shows; told in quarters of what may be under way at a time."""
        self._shown += count
        if self._shown >= OUTPUT_WINDOW // 4:
            count, self._shown = self._shown, 0
            self.server.grant(count)

    def _memory_verdict(self, signum: int | None) -> str | None:
        """Say whether the kernel killed something for want of memory since we last looked; it does so with SIGKILL."""
        if signum != 9:
            return None
        before, self._oom_kills = self._oom_kills, oom_kills()
        if before is not None and self._oom_kills is not None and self._oom_kills > before:
            return "killed for want of memory (the control group's counter of such kills has risen)"
        return None

    def _failed(self, token: int, text: str) -> None:
        if token != PRELOAD_TOKEN:  # else it shows when a task imports the module
            self._end(token, None, None, f"it could not be started: {text}")

    def _server_gone(self) -> None:
        self._detach()
        self.server.close()
        for token in list(self._processes):
            self._end(token, None, 9, "the fork server was killed, and its workers with it")

    def close(self) -> None:
        """End the fork server and every worker it forked."""
        if not self.is_gone:
            self._detach()
            for event in self.server.close():
                if event[0] == "output":
                    self._processes[event[1]].output.feed(event[2], event[3])
            for process in self._processes.values():
                process.output.end()

    def _detach(self) -> None:
        self.is_gone = True
        if self._reader is not None:
            self._reader.unregister(self)


class _Servers:
    """The fork servers of this process, one per list of preloaded modules and number of threads these may use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _forks
        self._forks: dict[tuple[tuple[str, ...], bool], Forks] = {}
        tell_in_copies(self)

    def disown(self) -> None:
        """Have none, in a forked copy of the process; it may start its own."""
        self._lock = threading.Lock()
        self._forks = {}

    def get(self, preload: tuple[str, ...], is_threaded: bool, reader: Reader | None = None) -> Forks:
        """Return the fork server for such workers, starting it if there is none. With ``reader`` it can fork, too.

        Rooms of distpool's own do nobody harm, so those who want some have no server of their own for that.
        """
        rooms = [name for name in preload if name.startswith("distpool.")]
        preload = tuple(name for name in preload if name not in rooms)
        # Libraries decide on their threads when they are loaded: for preloaded ones that is in the fork server.
        unset = [name for name in cores.THREAD_VARIABLES if name not in os.environ]
        env = dict.fromkeys(unset, "1") if preload and not is_threaded else {}
        key = preload, bool(env)
        with self._lock:
            forks = self._forks.get(key)
            if forks is not None:
                forks.look()
            if forks is None or forks.is_gone:
                forks = self._forks[key] = Forks(preload, env)
            forks.load(rooms)
            if reader is not None:
                forks.attach(reader)
            return forks

    def close(self) -> None:
        with self._lock:
            forks, self._forks = list(self._forks.values()), {}
        for each in forks:
            each.close()
        if forks:
            output.wait_until_shown()


servers = _Servers()
atexit.register(servers.close)


def boot(preload: tuple[str, ...]) -> None:
    """Have the fork server for such workers started, unless there is one; who asks for workers need not wait then.

    Where that cannot be done, who asks for workers is told.
    """
    if ForkServer.available():
        with contextlib.suppress(OSError, LaunchWorkerError):
            servers.get(preload, False)
