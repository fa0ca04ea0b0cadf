"""Workers as threads of this very process, for tests of programs that use distpool.

For users, who want tests that start no process: fast, under one debugger, with coverage of what runs "remotely".
Everything but the process is real: each worker has connections, a store and threads of its own, and what goes to it is
pickled::

    distpool.addprocs(ThreadManager(2))       process 1
        |=====socket pair=====> thread "distpool worker", its reader and its call threads: worker 2
        |=====socket pair=====> the same again: worker 3        (2 and 3 meet as others do, over a socket pair)

What threads cannot give:

* The workers share this process's modules and ``__main__``. A global that code running on a worker changes is changed
  for all, and globals of ``__main__`` that a function mentions are not replaced by copies: they are there already.
  Classes of ``__main__`` travel by value, as they always do, so what comes back may be of a copy of the class.
* Module functions (``myid``, ``remotecall``...) act on the worker in the threads that run its calls and tasks. A thread
  that such code starts itself belongs to process 1, as does the thread that tests run in.
* A call that is stuck in C code cannot be ended. ``rmprocs`` and ``interrupt`` raise SystemExit or KeyboardInterrupt
  between two steps of Python code; a thread that never takes such a step stays behind, as a daemon. ``os._exit`` and
  signals hit the whole program.
* What a worker prints is printed by this process, without a prefix. There is one interpreter lock for all.

Owns: the threads, until their workers are removed.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Any

from distpool.managers.interface import ClusterManager, Launched, WorkerConfig
from distpool.worker import Worker

__all__ = ["ThreadManager"]

OnExit = Callable[[int | None, int | None], None]


class ThreadManager(ClusterManager):
    """Makes ``n`` workers that are threads of this process: ``addprocs(ThreadManager(2))``.

    All of distpool works on them: calls, references, channels, pools, ``pmap``, ``rmprocs``. No process is started,
    and ``rmprocs`` returns when their threads have ended. What threads cannot do stands at the top of
    ``distpool.testing``.

    Raises ValueError for a negative number.

    >>> import distpool
    >>> pids = distpool.addprocs(ThreadManager(2))
    >>> [distpool.remotecall_fetch(distpool.myid, pid) for pid in pids] == pids
    True
    >>> distpool.pmap(abs, [-1, 2, -3])
    [1, 2, 3]
    >>> distpool.rmprocs(pids).isready()
    True
    """

    def __init__(self, n: int) -> None:
        if n < 0:
            raise ValueError(f"ThreadManager({n}): the number of workers cannot be negative")
        self.n = n

    def __repr__(self) -> str:
        return f"ThreadManager({self.n})"

    def launch(self, params: dict[str, Any], launched: Launched) -> None:
        """Start the threads. Of the options only those about the cluster count, such as ``topology``."""
        for _ in range(self.n):
            ours, theirs = (_SharedSocket(fileno=end.detach()) for end in socket.socketpair())
            thread = _WorkerThread(theirs)
            launched.append(WorkerConfig(stream=ours, process=thread, host="127.0.0.1"))
            thread.start()


class _SharedSocket(socket.socket):
    """A connection inside this process: nothing in ``__main__`` needs to be sent."""

    is_in_our_process = True


class _WorkerThread:
    """One worker, and the handle by which its end is noticed."""

    def __init__(self, stream: socket.socket) -> None:
        self.os_pid: int | None = os.getpid()
        self._stream = stream
        self._lock = threading.Lock()  # protects the two below
        self._watchers: list[OnExit] = []
        self._has_ended = False
        self._thread = threading.Thread(target=self._run, name="distpool worker", daemon=True)

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()

    def watch(self, on_exit: OnExit) -> None:
        """Call ``on_exit(exit_code, signal)`` once when the worker has ended; at once if it has."""
        with self._lock:
            if not self._has_ended:
                self._watchers.append(on_exit)
                return
        on_exit(0, None)

    def send_signal(self, signum: int) -> None:
        """A thread takes no signals; a worker that does not end when it is asked to loses its connection, and ends."""

    def _run(self) -> None:
        try:
            Worker(self._stream, None, exit_on_close=False).serve()
        finally:
            self._stream.close()
            with self._lock:
                self._has_ended = True
                watchers, self._watchers = self._watchers, []
            for tell in watchers:
                tell(0, None)
