"""Workers on this machine, forked by the fork server (``forks``) and reached over an inherited socket pair.

Where forking is not possible or not wanted they are fresh interpreters, reached as remote ones are (``interpreter``).
Used by ``addprocs(n)`` and by pools that own their workers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from distpool.cores import THREAD_VARIABLES
from distpool.errors import LaunchWorkerError
from distpool.forkserver.client import ForkServer
from distpool.forkserver.interpreter import interpreter_flags
from distpool.light import Any, signal, socket
from distpool.managers.forks import Forks, servers
from distpool.managers.interface import ClusterManager, Launched, WorkerConfig
from distpool.managers.interpreter import (
    InterpreterProcess,
    first_words,
    interpreter_command,
    own_path_entries,
    start_worker_interpreter,
    words,
)
from distpool.output import How, checked_mode
from distpool.transport import Reader


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
        forks = servers.get(self._preload, bool(params.get("enable_threaded_blas")), self._reader)
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
