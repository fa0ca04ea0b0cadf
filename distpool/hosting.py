"""Several workers on a machine that a driver has logged in to: started from one interpreter, watched, ended with it.

Used by the command line (``python -m distpool --worker --host N``), which the SSH manager runs at the other end. The
interpreter binds a port for each worker, forks them, and then does what no driver can do from afar: it passes on what
they print, gives them signals, tells how they ended, and kills them all when the login ends, however that comes; that
the driver's host has vanished without a word it finds out by itself (``login_watch``)::

    driver --ssh-- stdin   cookie, orders --> host --fork, signals--> workers, in sessions of their own
                   stdout  <-- header, reports ------- pipes <------- their stdout and stderr
    driver ================ TCP, or ssh -W ========================> each worker's port

Should it die itself, the kernel kills the workers (a pipe with a signal of our choice, on Linux). One thread. Owns: the
listeners until the forks, the children, the pipes.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import socket
import sys
import types
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from distpool.cookie import cluster_cookie
from distpool.cores import THREAD_VARIABLES, usable_cores
from distpool.forkserver.frames import GRANT, KILL
from distpool.forkserver.newborn import hold_lifeline
from distpool.forkserver.outputs import Outputs
from distpool.forkserver.server import kill_group
from distpool.listening import read_cookie, serve_driver
from distpool.login_watch import LoginWatch
from distpool.managers.interface import worker_timeout
from distpool.managers.machines import AUTO, Bind, Count
from distpool.managers.reports import Header, alive, ended, orders_in, printed
from distpool.tcp import advertised_address, listen, outward_address
from distpool.transport import Deadline
from distpool.vanishing import host_timeout
from distpool.worker import fresh_main

_READ_BYTES: Final = 1 << 16
_LAST_PORT: Final = (1 << 16) - 1


def host_workers(
    count: Count,
    bind: Bind | None,
    cookie: str | None,
    *,
    preload: Sequence[str] = (),
    threaded: bool = False,
) -> NoReturn:
    """Start ``count`` workers ("auto": one for each usable core), say where they listen, stay until they have ended.

    ``bind`` None is the address by which the login came in. ``cookie`` None reads a line of standard input. ``preload``
    names modules that are imported once, before the workers are forked; ``threaded`` leaves it to native libraries how
    many threads they start. Ends this process: with status 1 and a message when the workers cannot be started.
    """
    deadline = Deadline(worker_timeout())
    cluster_cookie(read_cookie(deadline) if cookie is None else cookie)
    if not hasattr(os, "fork"):
        sys.exit("distpool: this system cannot fork, so it can host no workers")
    if not threaded:
        for name in THREAD_VARIABLES:
            os.environ.setdefault(name, "1")
    number = usable_cores() if count == AUTO else int(count)
    try:
        listeners = open_listeners(bind or Bind(login_address()), number)
    except OSError as error:
        sys.exit(f"distpool: cannot listen on {bind or login_address()}: {error}")
    for name in preload:
        __import__(name)
    try:
        host = Host(listeners, deadline)
    except OSError as error:
        sys.exit(f"distpool: cannot host {number} workers: {error}")
    host.run()


def login_address() -> str:
    """Return the address of this machine that the login came to; who got that far gets farther."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else outward_address()


def open_listeners(bind: Bind, count: int) -> list[socket.socket]:
    """Listen on one port for each worker: the first on the very port that is asked for, if one is, others above it.

    A port that is only a hint is where the search begins for the first one, too (the rule of Julia's successor). Raises
    OSError when an address cannot be had.
    """
    listeners: list[socket.socket] = []
    port, is_exact = bind.port, not bind.is_hint
    try:
        for _ in range(count):
            listeners.append(listen(bind.address, port) if is_exact or not port else _listen_from(bind.address, port))
            if port:
                port, is_exact = listeners[-1].getsockname()[1] + 1, False
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listen_from(address: str, port: int) -> socket.socket:
    """Listen on the first port from here on that is free."""
    while True:
        try:
            return listen(address, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port >= _LAST_PORT:
                raise
            port += 1


class Host:
    """The process that has forked the workers, and stays with them."""

    def __init__(self, listeners: Sequence[socket.socket], deadline: Deadline) -> None:
        self._listeners = listeners
        self._deadline = deadline  # for the driver to come to each worker
        self._children: dict[int, int] = {}  # os_pid to number; not reaped yet, so the os_pid is still the child's
        self._orders = bytearray()  # the beginning of one that has not come whole
        self._outputs = Outputs()  # also polls all else, while output may be read
        self._poll = select.poll()  # polls all but output
        self._lifeline, self._lifeline_end = os.pipe()  # only this process holds its end: the workers hear when it dies
        self._wakeup, self._wakeup_end = os.pipe()  # a byte for every signal
        self._login = LoginWatch(os.environ, host_timeout())
        for fd in (self._wakeup, self._wakeup_end):
            os.set_blocking(fd, False)
        for fd in (0, self._wakeup):
            self._poll.register(fd, select.POLLIN)
            self._outputs.poll.register(fd, select.POLLIN)

    def run(self) -> NoReturn:
        """Fork the workers, say where they listen, then report until the last one has ended or the login has."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(self._wakeup_end, warn_on_full_buffer=False)
        addresses = [advertised_address(listener) for listener in self._listeners]
        gc.freeze()  # what is there now stays shared with the children
        for number in range(len(self._listeners)):
            self._fork(number)
        for listener in self._listeners:
            listener.close()
        self._say(Header.here(addresses).line())
        next_look = Deadline(self._login.interval)
        while self._children:
            may_read = self._outputs.window > 0
            ready = (self._outputs.poll if may_read else self._poll).poll((next_look.remaining() or 0) * 1000)
            for fd, _ in ready:
                self._attend(fd)
            if next_look.has_passed:
                next_look = Deadline(self._login.interval)
                self._look_at_the_login()
        os._exit(0)

    def _look_at_the_login(self) -> None:
        """End all when nobody is at its other end any more; else say something that he must acknowledge."""
        if self._login.has_vanished():
            self._end()
        self._say(alive())

    def _attend(self, fd: int) -> None:
        if fd == self._wakeup:
            with contextlib.suppress(BlockingIOError):
                os.read(fd, _READ_BYTES)
            self._reap()
        elif fd == 0:
            self._take_orders()
        elif self._outputs.window > 0 and (said := self._outputs.read(fd)) is not None:
            self._say(printed(*said))

    # -- births and deaths

    def _fork(self, number: int) -> None:
        try:
            ends = self._outputs.open(number)
            os_pid = os.fork()
        except OSError as error:
            self._end(f"distpool: cannot start worker {number + 1} of {len(self._listeners)}: {error}")
        if os_pid == 0:
            self._be_worker(self._listeners[number], ends)
        self._children[os_pid] = number
        for end in ends:
            os.close(end)

    def _be_worker(self, listener: socket.socket, ends: Sequence[int]) -> NoReturn:
        """Shed what is the host's, and serve. Runs in the child, and never returns."""
        status = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for other in self._listeners:
                if other is not listener:
                    other.close()
            for fd in (self._lifeline_end, self._wakeup, self._wakeup_end):
                os.close(fd)
            self._outputs.leave()
            hold_lifeline(self._lifeline)
            null = os.open(os.devnull, os.O_RDONLY)
            for fd, target in zip((null, *ends), (0, 1, 2), strict=True):
                os.dup2(fd, target)
                os.close(fd)
            for stream in (sys.stdout, sys.stderr):
                _by_line(stream)
            sys.argv[:] = [""]
            gc.enable()
            fresh_main()
            serve_driver(listener, self._deadline)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:  # the last line of this process: it must not go on as a second host
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Report those that have ended, with their last words before; what is left of their groups ends with them."""
        for os_pid, number in list(self._children.items()):
            # Looked at before it is reaped: as long as it is not, the number cannot become somebody else's.
            if os.waitid(os.P_PID, os_pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            kill_group(os_pid)
            _, status = os.waitpid(os_pid, 0)
            del self._children[os_pid]
            for stream, data in self._outputs.last_words(number):
                self._say(printed(number, data, stream))
            self._say(ended(number, os_pid, status))

    def _end(self, text: str | None = None) -> NoReturn:
        """Kill every worker with its group, and end."""
        signal.set_wakeup_fd(-1)
        for os_pid in self._children:
            kill_group(os_pid)
        for os_pid in self._children:
            os.waitpid(os_pid, 0)
        if text is not None:
            print(text, file=sys.stderr, flush=True)
        os._exit(0 if text is None else 1)

    # -- the driver

    def _take_orders(self) -> None:
        try:
            data = os.read(0, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:  # the driver, its ssh or the network between has ended
            self._end()
        self._orders += data
        for kind, number, body in orders_in(self._orders):
            if kind == GRANT:
                self._outputs.window += number
            elif kind == KILL:
                self._signal(number, body[0])

    def _signal(self, number: int, signum: int) -> None:
        for os_pid, each in self._children.items():
            if each == number:
                kill_group(os_pid) if signum == signal.SIGKILL else os.kill(os_pid, signum)

    def _say(self, data: bytes) -> None:
        """Write to the driver. Blocks only when it does not read: no more output is under way than it has granted."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(1, view) :]
        except BlockingIOError:  # the other end of this stream has made it so
            os.set_blocking(1, True)
            self._say(bytes(view))
        except OSError:
            self._end()


def _by_line(stream: Any) -> None:
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")


def _wake(number: int, frame: types.FrameType | None) -> None:
    """Handle a signal whose arrival is all that matters: the wakeup descriptor tells of it."""
