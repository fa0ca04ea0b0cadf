"""Workers as fresh interpreters on this machine: how they are started, and how their end is noticed.

Used by the local manager where forking is not possible or not wanted, and by ``membership`` for the ``Popen`` objects
of other managers. Such a worker is ``python -m distpool --worker --child``: it listens on loopback and is reached as a
remote one would be. Its standard input brings the cookie and what it shall look like, and stays open as long as we
live::

    driver                                         worker, in a session of its own
    stdin   cookie, setup, then silence    ------> kept open: its end is our end, and the kernel kills the worker's
    group stdout  <----- address line, output    ------- also its standard error
    TCP     <===== handshake, frames       ======> 127.0.0.1

The lifeline is Linux's; elsewhere the end of the TCP connection ends a worker, but one that holds the interpreter in C
code then lives on until it comes back to Python. So does a worker on another machine, whose driver is only a connection
to it.

The reading thread learns of an exit through a pidfd; where there is none, a thread waits. Owns: the process handles.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence

from distpool.errors import LaunchWorkerError
from distpool.light import TYPE_CHECKING, Any, Final, signal
from distpool.output import wait_until_shown
from distpool.transport import Reader

if TYPE_CHECKING:
    import subprocess

OnExit = Callable[[int | None, int | None], None]

# How long the end of this process waits for the last words of workers that it has just killed. Arbitrary, never needed
# in full unless something that the worker started keeps its output open.
LAST_WORDS_SECONDS: Final = 1.0


class InterpreterProcess:
    """A process that was started with ``subprocess.Popen``, and how it ended. A handler of the reader."""

    def __init__(self, popen: subprocess.Popen[Any], reader: Reader) -> None:
        self.os_pid: int | None = popen.pid
        self.detail: str | None = None  # what else is known of its end
        self._popen = popen
        self._reader = reader
        self._lock = threading.Lock()  # protects the two below
        self._exit: tuple[int | None, int | None] | None = None
        self._watchers: list[OnExit] = []
        self._pidfd = _open_pidfd(popen.pid)
        _living.add(self)
        if self._pidfd >= 0:
            reader.register(self)
            reader.nudge()
        else:
            threading.Thread(target=self._await_end, name=f"distpool child {popen.pid}", daemon=True).start()

    def watch(self, on_exit: OnExit) -> None:
        """Call ``on_exit(exit_code, signal)`` once when it is gone, on the reading thread."""
        with self._lock:
            status = self._exit
            if status is None:
                self._watchers.append(on_exit)
                return
        self._reader.call_later(0.0, lambda: on_exit(*status))

    @property
    def has_exited(self) -> bool:
        """True when its end was noticed."""
        return self._exit is not None

    @property
    def exit_code(self) -> int | None:
        """Its exit code; None while it lives, and when a signal has ended it."""
        return self._exit[0] if self._exit is not None else None

    def send_signal(self, signum: int) -> None:
        """Send a signal; SIGKILL goes to its whole process group. Silent when it is gone."""
        if self._exit is not None:
            return
        if signum == signal.SIGKILL:
            kill_group(self._popen)
        else:
            self._popen.send_signal(signum)  # looks first whether it is gone, so it never hits a stranger

    # -- its end ---------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor that becomes readable when the process has ended."""
        return self._pidfd

    def on_writable(self) -> None:
        """Never asked for."""

    def on_readable(self) -> None:
        """It has ended. Runs on the reading thread."""
        if self._pidfd >= 0:
            self._reader.unregister(self)
            os.close(self._pidfd)
            self._pidfd = -1
            self._ended()

    def _await_end(self) -> None:
        """Where there are no pidfds: wait in a thread, without taking the status, so that the number stays its own."""
        try:
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
            else:  # macOS before Python 3.13
                self._popen.wait()
        except ChildProcessError:  # somebody else has taken the status: Popen knows what can be known
            pass
        self._reader.call_later(0.0, self._ended)

    def _ended(self) -> None:
        """End what is left of its group, take its status, and tell."""
        if _is_zombie(self._popen.pid):  # its number is still its own
            kill_group(self._popen)
        code = self._popen.wait()
        self._close_stdin()
        with self._lock:
            self._exit = (code, None) if code >= 0 else (None, -code)
            watchers, self._watchers = self._watchers, []
        _living.discard(self)
        for tell in watchers:
            tell(*self._exit)

    def _close_stdin(self) -> None:
        if self._popen.stdin is None:
            return
        try:
            self._popen.stdin.close()
        except OSError:  # another manager's buffered pipe had something left that nobody will read
            return

    def end_with_us(self) -> None:
        """Kill it and wait for its end, whoever notices it: for the end of this process."""
        self.send_signal(signal.SIGKILL)
        self._popen.wait()


def as_worker_process(process: Any, reader: Reader) -> Any:
    """Return a process handle that can be watched: a ``Popen`` of some manager is wrapped, others are left alone."""
    if process is None or hasattr(process, "watch"):
        return process
    if not (hasattr(process, "pid") and hasattr(process, "send_signal") and hasattr(process, "wait")):
        raise TypeError(f"WorkerConfig.process must be a Popen, or have watch and send_signal, not {process!r}")
    return InterpreterProcess(process, reader)


def start_worker_interpreter(
    command: Sequence[str], environment: Mapping[str, str], first_words: bytes
) -> subprocess.Popen[bytes]:
    """Start a worker in a session of its own and tell it what it must know. Its stdin stays open as its lifeline.

    It starts in the folder that holds the package, so that ``-m distpool`` finds it where it is not installed and no
    stray ``socket.py`` of the user's folder is taken for the real one; then it goes where its first words tell.

    Raises LaunchWorkerError when the program cannot be started.
    """
    import subprocess  # here: programs that fork their workers, nearly all, do without it

    try:
        popen = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd=package_folder(),
            env=dict(environment),
            start_new_session=True,  # so that the terminal's Ctrl-C does not reach it, and it leads a group of its own
        )
    except (OSError, ValueError) as error:
        raise LaunchWorkerError(f"cannot start {command[0]!r} as a worker: {error}") from error
    assert popen.stdin is not None
    close_in_forked_copies(popen.stdin)
    with contextlib.suppress(OSError):  # it has ended already: its output will say why
        popen.stdin.write(first_words)  # far less than a pipe takes (64 KiB) without anybody reading
    return popen


def interpreter_command(program: str | Sequence[str], flags: Sequence[str], directory: str, bind_to: str) -> list[str]:
    """Return the command that starts a worker. A relative path to the program is one from the worker's directory."""
    return [*located(words(program), directory), *flags, "-m", "distpool", "--worker", "--child", "--bind-to", bind_to]


def located(program: Sequence[str], directory: str) -> list[str]:
    """Return a program's command; a relative path to it is one from the worker's directory.

    >>> located(["bin/python", "-q"], "/data"), located(["python"], "/data")
    (['/data/bin/python', '-q'], ['python'])
    """
    name, *more = program
    return [os.path.join(os.path.abspath(directory), name) if os.sep in name else name, *more]


def first_words(secret_line: str, setup: Mapping[str, Any]) -> bytes:
    """Return what a worker reads from its input: two lines, what it must know and how it shall look, as JSON."""
    import json  # only for such workers

    return f"{secret_line}\n{json.dumps(setup)}\n".encode("ascii")


def package_folder() -> str:
    """Return the folder that holds the package: where ``-m distpool`` finds it even when it is not installed."""
    return os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def words(value: str | Sequence[str]) -> list[str]:
    """Return a program or its flags as a list: text is one word, nothing is split.

    >>> words("python3"), words(["nice", "python3"]), words("")
    (['python3'], ['nice', 'python3'], [])
    """
    if isinstance(value, str):
        return [value] if value else []
    return [os.fspath(word) for word in value]


def own_path_entries() -> list[str]:
    """Return the entries of ``sys.path`` that are not this interpreter's libraries: another one brings its own."""
    import sysconfig  # only for workers of another interpreter

    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return [
        entry
        for entry in sys.path
        if not entry.startswith(libraries) and not entry.endswith(".zip") and "site-packages" not in entry
    ]


# -- ends
# ----------------------------------------------------------------------------------------------------------------


def _open_pidfd(os_pid: int) -> int:
    try:
        return os.pidfd_open(os_pid)
    except (OSError, AttributeError):  # not Linux, an old kernel, or a sandbox
        return -1


def _is_zombie(os_pid: int) -> bool:
    """True when a child has ended and nobody has taken its status yet."""
    try:
        return os.waitid(os.P_PID, os_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except (ChildProcessError, AttributeError):
        return False


def kill_group(popen: subprocess.Popen[Any]) -> None:
    """SIGKILL a child that was not waited for yet, and its process group if it leads one."""
    if popen.returncode is not None:
        return
    for kill in (os.killpg, os.kill):
        try:
            kill(popen.pid, signal.SIGKILL)
        except OSError:  # no such group, or it has ended
            continue


# Not ended yet. A process that still lives when this one ends must not outlive it.
_living: weakref.WeakSet[InterpreterProcess] = weakref.WeakSet()
_owner = os.getpid()


def _end_all() -> None:
    if os.getpid() != _owner:  # a forked copy has no children
        return
    for process in list(_living):
        process.end_with_us()
    for thread in threading.enumerate():
        if thread.name.startswith("distpool output"):
            thread.join(LAST_WORDS_SECONDS)
    wait_until_shown()


atexit.register(_end_all)

# The ends of lifelines that only this process may hold: a copy that user code forks must not keep the workers alive.
_lifelines: weakref.WeakSet[Any] = weakref.WeakSet()


def close_in_forked_copies(end: Any) -> None:
    """Close this end of a pipe in copies of this process that user code forks."""
    _lifelines.add(end)


def _close_lifelines() -> None:
    for end in list(_lifelines):
        try:
            end.close()
        except OSError:
            continue


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_lifelines)
