"""Workers that an engine places one by one, as children of its own processes: what Ray and Dask have in common.

The driver's side; ``hosted`` is the other. The engine is asked for one thing (an actor, a task) per worker. It runs as
long as its worker does, so the engine's books are right: what the worker uses is in use, and where there is no room the
thing waits, which is how an engine that can grow knows that it should::

    manager --place--> the engine's thing, somewhere, some time --> child: python -m distpool --worker --connect ...
            <== the worker dials back: launches, dialback ========================'
            <--ended-- the thing is over: with the worker's exit status, or because the engine has lost it
            --end----> the thing is taken away, and its worker with it
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType

from distpool.light import signal
from distpool.managers.dialback import DialBackManager
from distpool.managers.hosted import OWN_PYTHON, End, Secret
from distpool.managers.interpreter import words
from distpool.managers.launches import Launch
from distpool.tcp import LOOPBACK

OnExit = Callable[[int | None, int | None], None]


class PlacedManager(DialBackManager):
    """The base: an engine's manager defines ``place``, which begins one worker."""

    # Which workers do is seen from where they come: those on this machine, or in this container, see our files.
    shares_files = False

    def shares_files_with(self, host: str | None) -> bool:
        """Those on this host do."""
        return host == LOOPBACK

    def place(self, launch: Launch, process: PlacedProcess, secret: Secret, command: list[str]) -> None:
        """Have the engine start one worker (``hosted.HostedWorker``); return without waiting.

        Call ``process.has_begun`` with what ends it, and ``ended`` when it is over.
        """
        raise NotImplementedError(f"{type(self).__name__} has to define place(launch, process, secret, command)")

    def start(self, launch: Launch) -> None:
        """Have the engine place all of them."""
        placed = [PlacedProcess(ident) for ident in range(launch.count)]
        launch.processes.update((process.ident, process) for process in placed)
        launch.extra = placed
        for process in placed:
            self.place(launch, process, Secret(launch.secret), _command(launch, process.ident))

    def complete(self, launch: Launch) -> None:
        """Take away what has been asked for and not come."""
        for process in launch.extra or ():
            if not launch.has_come(process.ident):
                process.send_signal(signal.SIGKILL)

    def stop(self, launch: Launch) -> None:
        """Take away what is left."""
        for process in launch.extra or ():
            process.send_signal(signal.SIGKILL)

    def ended(self, launch: Launch, process: PlacedProcess, outcome: End | BaseException) -> None:
        """A worker has ended, or the engine has lost it or could not start it. Any thread."""
        if isinstance(outcome, End):
            how = f"exit code {outcome.code}" if outcome.code >= 0 else f"signal {-outcome.code}"
            said = f", having said:\n{outcome.said}" if outcome.said else ""
            reason = f"it ended ({how}) before it had come{said}"
        else:
            reason = f"{self.engine} says: {type(outcome).__name__}: {outcome}"
        process.has_ended(outcome.code if isinstance(outcome, End) else None)
        self.will_not_come(launch, process.ident, reason)


class PlacedProcess:
    """A worker's process, as far as its engine lets us: how it ended is told, and it can be ended."""

    os_pid: int | None = None  # it may be on any machine
    dials_back = True  # what it prints comes over a connection of its own

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self._lock = threading.Lock()  # protects all below
        self._end: Callable[[], object] | None = None  # while there is something to end
        self._is_to_end = False  # asked for before there was anything
        self._exit: tuple[int | None, int | None] | None = None
        self._watchers: list[OnExit] = []

    def has_begun(self, end: Callable[[], object]) -> None:
        """The engine has taken it over; ``end`` takes it away again, without waiting, on any thread."""
        with self._lock:
            if self._exit is not None:
                return
            self._end = end
            is_to_end = self._is_to_end
        if is_to_end:
            end()

    def has_ended(self, code: int | None) -> None:
        """It is over; ``code`` as ``Popen.returncode``, None if nobody knows."""
        with self._lock:
            if self._exit is not None:
                return
            has_code = code is not None and code >= 0
            self._exit = (code, None) if code is None or has_code else (None, -code)
            self._end = None  # and with it what the engine keeps as long as somebody has it
            watchers, self._watchers = self._watchers, []
        for tell in watchers:
            tell(*self._exit)

    def watch(self, on_exit: OnExit) -> None:
        """Call ``on_exit(exit_code, signal)`` once when it is over; at once if it is."""
        with self._lock:
            status = self._exit
            if status is None:
                self._watchers.append(on_exit)
        if status is not None:
            on_exit(*status)

    def send_signal(self, signum: int) -> None:
        """SIGKILL ends it and what it has started; other signals do not get there. Silent when it is over."""
        if signum != signal.SIGKILL:
            return
        with self._lock:
            self._is_to_end = self._exit is None
            end = self._end
        if end is not None:
            end()


def needed(package: str, extra: str, who: str) -> ModuleType:
    """Return a package of an engine's. Raises ModuleNotFoundError that names the extra of ours which installs it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise ModuleNotFoundError(
            f"{who} needs the package {package}, which is not installed: pip install 'distpool[{extra}]'", name=package
        ) from None


def _command(launch: Launch, ident: int) -> list[str]:
    """What the engine's process has to run; with a Python of its own unless another was asked for."""
    command = launch.command("--child", "--ident", str(ident))
    if words(launch.params["exename"]) == [sys.executable]:
        command[0] = OWN_PYTHON
    return command
