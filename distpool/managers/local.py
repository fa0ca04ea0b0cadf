"""Workers on this machine, forked by the fork server and reached over an inherited socket pair.

Where forking is not possible or not wanted they are fresh interpreters, reached as remote ones are (``interpreter``).
Used by ``addprocs(n)`` and by pools that own their workers. One fork server per process and list of preloaded modules,
kept warm for the next pool and ended with the process; its reports (started, exited and how) come in on the reading
thread. Owns: the fork servers, the shared page on which workers note what they are doing.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from distpool.cores import THREAD_VARIABLES
from distpool.errors import LaunchWorkerError
from distpool.forkserver import OUTPUT_WINDOW, PRELOAD_TOKEN, ForkServer, describe_exit, interpreter_flags, oom_kills
from distpool.light import Any, Final, pickle, signal, socket
from distpool.managers.interface import ClusterManager, Launched, WorkerConfig
from distpool.managers.interpreter import (
    InterpreterProcess,
    first_words,
    interpreter_command,
    own_path_entries,
    start_worker_interpreter,
    words,
)
from distpool.output import How, Output, checked_mode, wait_until_shown
from distpool.segments import SharedPage
from distpool.transport import Reader

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

    def __init__(self, reader: Reader, preload: Sequence[str], env: dict[str, str]) -> None:
        self.page = SharedPage.create(PAGE_SLOTS)
        self.server = ForkServer(preload, self.page.fd, warm=WARM, env=env)
        self.preload_error: str | None = None
        self.inherited = {*os.environ, *env}  # what the fork server, and so each worker, has unless told otherwise
        self.is_gone = False
        self._reader = reader
        self._processes: dict[int, ForkedProcess] = {}
        self._next_token = count().__next__
        self._oom_kills = oom_kills()
        self._shown = 0  # bytes of output that were shown and not yet told to the fork server
        reader.register(self)

    def start(self, setup: dict[str, Any], streams: Sequence[int], output: How = "prefix") -> ForkedProcess:
        """Ask for one more worker; returns at once. ``streams``: its socket, then stdout and stderr if not to us."""
        token = self._next_token()
        slot = self.page.allocate()
        process = self._processes[token] = ForkedProcess(self, slot, Output(output, self._consumed))
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
        if token == PRELOAD_TOKEN:
            self.preload_error = text
        else:
            self._end(token, None, None, f"it could not be started: {text}")

    def _server_gone(self) -> None:
        self.is_gone = True
        self._reader.unregister(self)
        self.server.close()
        for token in list(self._processes):
            self._end(token, None, 9, "the fork server was killed, and its workers with it")

    def close(self) -> None:
        """End the fork server and every worker it forked."""
        if not self.is_gone:
            self.is_gone = True
            self._reader.unregister(self)
            for event in self.server.close():
                if event[0] == "output":
                    self._processes[event[1]].output.feed(event[2], event[3])
            for process in self._processes.values():
                process.output.end()


class _Servers:
    """The fork servers of this process, one per list of preloaded modules and number of threads these may use."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # protects _forks
        self._forks: dict[tuple[tuple[str, ...], bool], Forks] = {}
        self._os_pid = os.getpid()

    def get(self, reader: Reader, preload: tuple[str, ...], is_threaded: bool) -> Forks:
        # Libraries decide on their threads when they are loaded: for preloaded ones that is in the fork server.
        unset = [name for name in THREAD_VARIABLES if name not in os.environ]
        env = dict.fromkeys(unset, "1") if preload and not is_threaded else {}
        key = preload, bool(env)
        with self._lock:
            if self._os_pid != os.getpid():  # a forked copy of the process must not use its parent's
                self._forks, self._os_pid = {}, os.getpid()
            forks = self._forks.get(key)
            if forks is None or forks.is_gone:
                forks = self._forks[key] = Forks(reader, preload, env)
            return forks

    def close(self) -> None:
        with self._lock:
            forks, self._forks = list(self._forks.values()), {}
        if self._os_pid == os.getpid():
            for each in forks:
                each.close()
            if forks:
                wait_until_shown()


_servers = _Servers()
atexit.register(_servers.close)


class LocalManager(ClusterManager):
    """Starts ``np`` workers on this machine. Julia's ``LocalManager``; ``repr`` says no more than that, as there.

    Workers share a socket pair with this process: no port is opened. ``preload`` names modules that the fork server
    imports once, before it forks the first worker, so that all workers share their memory.

    With another program or flags for it (``exename``, ``exeflags``), with ``restrict=False`` (workers listen on an
    address that other machines can reach), and where the platform cannot fork, each worker is a fresh interpreter that
    listens, on loopback unless told otherwise; the handshake keeps strangers out, and ``tls=True`` encrypts what
    follows it.
    """

    signals_the_deaf_only = True

    def __init__(
        self, np: int, restrict: bool = True, *, reader: Reader | None = None, preload: Sequence[str] = ()
    ) -> None:
        self.np = np
        self.restrict = restrict
        self._reader = reader
        self._preload = tuple(preload)

    def attach(self, reader: Reader, timeout: float | None = None) -> None:
        """Take the reader of the cluster that the workers are for; ``addprocs`` does that."""
        self._reader = reader

    def __repr__(self) -> str:
        return "LocalManager()"

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Start the workers; each gets our directory, environment, ``sys.path`` and ``sys.argv`` as they are now."""
        if self.np <= 0:
            return
        if self._reader is None:
            raise RuntimeError("LocalManager.launch() is for addprocs() to call: it attaches the reader first")
        if self._wants_interpreters(params):
            self._launch_interpreters(params, launched, self._reader)
            return
        forks = _servers.get(self._reader, self._preload, bool(params.get("enable_threaded_blas")))
        setup = {
            "cwd": params["dir"],
            "env": {**dict.fromkeys(forks.inherited), **worker_environment(params)},
            "path": list(sys.path),
            "argv": list(sys.argv),
        }
        for _ in range(self.np):
            launched.append(self._launch_one(forks, setup, checked_mode(params.get("output", "prefix"))))

    def _launch_one(self, forks: Forks, setup: dict[str, Any], output: How) -> WorkerConfig:
        ours, theirs = socket.socketpair()
        nowhere = [os.open(os.devnull, os.O_WRONLY)] if output == "none" else []
        try:
            process = forks.start(setup, [theirs.fileno(), *nowhere * 2], output)
        except (OSError, LaunchWorkerError):
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in nowhere:
                os.close(fd)
        return WorkerConfig(
            stream=ours, process=process, output=process.output, host="127.0.0.1", enable_threaded_blas=False
        )

    def _wants_interpreters(self, params: Mapping[str, Any]) -> bool:
        is_ours = words(params["exename"]) == [sys.executable] and not words(params["exeflags"])
        return not (self.restrict and is_ours and ForkServer.available())

    def _launch_interpreters(self, params: Mapping[str, Any], launched: Launched, reader: Reader) -> None:
        from distpool.tcp import LOOPBACK, outward_address  # here: forked workers do not need it

        program, flags = words(params["exename"]), words(params["exeflags"])
        if not program:
            raise LaunchWorkerError("exename is empty, so there is no program to start; pass the path of a Python")
        is_ours = program == [sys.executable]
        flags = [*interpreter_flags(), *flags] if is_ours else flags
        directory = os.path.abspath(params["dir"])
        command = interpreter_command(program, flags, directory, LOOPBACK if self.restrict else outward_address())
        setup = {
            "dir": directory,
            # Another interpreter has libraries of its own, so it gets what is not libraries of ours.
            "path": [entry for entry in sys.path if isinstance(entry, str)] if is_ours else own_path_entries(),
            "is_whole_path": is_ours,
            "argv": list(sys.argv),
            "preload": list(self._preload),
        }
        words_to_say = first_words(self.secret_line(params), setup)
        environment = worker_environment(params)
        for _ in range(self.np):
            popen = start_worker_interpreter(command, environment, words_to_say)
            launched.append(WorkerConfig(io=popen.stdout, process=InterpreterProcess(popen, reader)))

    def manage(self, pid: int, config: WorkerConfig, op: str) -> None:
        """Send SIGINT for "interrupt"; the rest needs nothing, the fork server reports deaths."""
        if op == "interrupt" and config.process is not None:
            config.process.send_signal(signal.SIGINT)


def worker_environment(params: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment of a new worker: ours as it is now, libraries told to use one core, ``env`` on top."""
    environment = dict(os.environ)
    if not params.get("enable_threaded_blas"):
        for name in THREAD_VARIABLES:
            environment.setdefault(name, "1")
    environment.update(dict(params.get("env") or {}))
    return environment
