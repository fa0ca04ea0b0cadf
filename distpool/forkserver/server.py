"""The fork server itself: what runs in the process that :class:`~.client.ForkServer` starts.

One thread, one loop: requests from the driver, deaths of children. It owns its children and the write end of their
lifeline, and has no other purpose than to be cheap to fork: garbage collection is off, so that children go on sharing
its memory.

What it promises about ends: a worker's process group is killed when the worker ends (so its subprocesses do not outlive
it; those that should must start a session of their own), when the driver asks for SIGKILL, and when the driver is gone.
When this process is killed itself, the lifeline does the same.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from .frames import (
    DEFAULT_ENTRY,
    DESCRIPTOR,
    EVENT,
    EXITED,
    FAILED,
    FORK,
    HELLO,
    KILL,
    MOST_DESCRIPTORS,
    PRELOAD_TOKEN,
    REQUEST,
    ROOM,
    STARTED,
)
from .newborn import be_worker, load_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

_IDLE_MS = 50  # quiet time before modules are warmed; arbitrary, longer than the gaps while a pool is being started
_RECEIVE_BYTES = 1 << 16  # arbitrary: a hundred ordinary requests
_RIGHTS_BYTES = socket.CMSG_SPACE(MOST_DESCRIPTORS * DESCRIPTOR.size)


def serve(fd: int) -> NoReturn:
    """Run the fork server on the socket at this descriptor until the driver is gone; never returns."""
    gc.disable()
    with contextlib.suppress(PermissionError):  # we lead one already: posix_spawn could do it
        os.setsid()
    Server(_take_control(fd)).run()


class Server:
    """The state of the fork server: the driver's socket, the children, modules still to be warmed."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.incoming = bytearray()  # an incomplete request
        self.fds: collections.deque[int] = collections.deque()  # descriptors that came with it
        self.outgoing = bytearray()  # events that did not fit into the socket
        self.children: dict[int, int] = {}  # os_pid to token; not reaped yet, so the number is still the child's
        self.warm: collections.deque[str] = collections.deque()  # modules to import when idle
        self.has_forked = False
        self.page: object = None  # the shared page, mapped once; children inherit the mapping
        self.driver_fd = -1  # becomes readable when the driver has ended
        # Only this process holds the write end: its closing tells every child that we are dead.
        self.lifeline, self.lifeline_end = os.pipe()
        self.wakeup, self.wakeup_end = os.pipe()  # a byte for every signal
        os.set_blocking(self.wakeup, False)
        os.set_blocking(self.wakeup_end, False)
        self.poll = select.poll()
        self.poll.register(self.control, select.POLLIN)
        self.poll.register(self.wakeup, select.POLLIN)
        self.own_signals()

    def own_signals(self) -> None:
        """Take the signals; again after every import, as a module may have taken one from us."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the driver's to hand out, before and after forks
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(self.wakeup_end, warn_on_full_buffer=False)

    def run(self) -> NoReturn:
        """Answer requests and report deaths; import what is to be warmed while nothing else happens."""
        quiet = _IDLE_MS
        while True:
            ready = self.poll.poll(quiet if self.warm and self.has_forked else None)
            if not ready:
                self._import(self.warm.popleft())
                quiet = 0  # the next one at once, unless somebody wants something
                continue
            quiet = _IDLE_MS
            for fd, happened in ready:
                self._attend(fd, happened)

    def _attend(self, fd: int, happened: int) -> None:
        if fd == self.wakeup:
            _drain(fd)
            self._reap()
        elif fd == self.driver_fd:
            self._end()
        elif happened & select.POLLOUT:
            self._flush()
        else:
            self._read_requests()

    # -- requests

    def _read_requests(self) -> None:
        while True:
            try:
                data, rights, _, _ = self.control.recvmsg(_RECEIVE_BYTES, _RIGHTS_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data, rights = b"", []
            if not data:
                self._end()
            self.incoming += data
            for _, _, packed in rights:
                self.fds.extend(fd for (fd,) in DESCRIPTOR.iter_unpack(packed[: len(packed) // 4 * 4]))
            # Before reading on, so that never more descriptors are open here than one request brings.
            self._answer_requests()
        if self.incoming:  # the driver had to keep the rest back, and sends it on after any event
            self._tell(ROOM, 0)

    def _answer_requests(self) -> None:
        start, data = 0, self.incoming
        while len(data) - start >= REQUEST.size:
            size, kind, count, number = REQUEST.unpack_from(data, start)
            end = start + REQUEST.size + size
            if end > len(data):
                break
            body = bytes(data[start + REQUEST.size : end])
            start = end
            fds = [self.fds.popleft() for _ in range(min(count, len(self.fds)))]
            if kind == FORK:
                self._fork(number, body, fds, count)
            elif kind == KILL:
                self._kill(number, body[0])
            else:
                assert kind == HELLO
                self._prepare(pickle.loads(body), fds)
        del data[:start]

    def _prepare(self, hello: dict[str, Any], fds: Sequence[int]) -> None:
        """Learn who the driver is and import what its workers will need."""
        self._watch_driver(hello["driver"])
        _forget_names()
        if fds:
            from ..segments import SharedPage  # only here: a server without a page need not import it

            self.page = SharedPage.open(fds[0])
        with contextlib.suppress(Exception):  # the worker that needs it will say what is wrong
            load_entry(DEFAULT_ENTRY)
        for name in hello["preload"]:
            self._import(name, must=True)
        self.warm.extend(hello["warm"])

    def _watch_driver(self, os_pid: int) -> None:
        """Notice the driver's end by its pid, too: a process it forked by other means may still hold its socket."""
        if hasattr(os, "pidfd_open"):
            try:
                self.driver_fd = os.pidfd_open(os_pid)
            except OSError:  # an old kernel, or a sandbox; the socket must do
                return
            self.poll.register(self.driver_fd, select.POLLIN)
        if os.getppid() != os_pid:
            self._end()

    def _import(self, name: str, must: bool = False) -> None:
        """Import a module, whatever it does; one that must be there and fails is told to the driver."""
        try:
            __import__(name)
        except BaseException as error:  # user code at import time: not even sys.exit() may end us
            if must:
                self._tell(FAILED, PRELOAD_TOKEN, text=f"cannot preload {name!r}: {type(error).__name__}: {error}")
        self.own_signals()

    def _kill(self, os_pid: int, number: int) -> None:
        if os_pid not in self.children:
            return
        if number == signal.SIGKILL:
            kill_group(os_pid)
        else:
            os.kill(os_pid, number)

    # -- births and deaths

    def _fork(self, token: int, setup: bytes, fds: Sequence[int], count: int) -> None:
        self.has_forked = True
        try:
            if len(fds) < count:
                raise OSError("descriptors were lost on the way; is the limit of open files (ulimit -n) reached?")
            gc.freeze()  # what is there now is never looked at again by a child's collector, so its pages stay shared
            os_pid = os.fork()
        except OSError as error:
            self._tell(FAILED, token, text=f"cannot fork: {error}")
        else:
            if os_pid == 0:
                be_worker(self, fds, setup)
            self.children[os_pid] = token
            self._tell(STARTED, token, os_pid)
        for fd in fds:
            os.close(fd)

    def _reap(self) -> None:
        while (dead := self._next_dead()) is not None:
            os_pid, status = dead
            token = self.children.pop(os_pid, None)
            if token is not None:  # else a child of some preloaded module
                self._tell(EXITED, token, os_pid, status)

    def _next_dead(self) -> tuple[int, int] | None:
        """Reap one dead child and what is left of its group."""
        try:
            if not hasattr(os, "waitid"):  # macOS before Python 3.13
                os_pid, status = os.waitpid(-1, os.WNOHANG)
                return (os_pid, status) if os_pid else None
            seen = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if seen is None:
                return None
            # Before it is reaped: as long as it is not, the number cannot become somebody else's.
            if seen.si_pid in self.children:
                kill_group(seen.si_pid)
            return os.waitpid(seen.si_pid, 0)
        except ChildProcessError:
            return None

    def _end(self) -> NoReturn:
        """The driver is gone: kill every worker with its group, reap them, and end."""
        signal.set_wakeup_fd(-1)
        for os_pid in self.children:
            kill_group(os_pid)
        for os_pid in self.children:
            os.waitpid(os_pid, 0)
        os._exit(0)

    # -- events

    def _tell(self, kind: int, token: int, os_pid: int = 0, status: int = 0, text: str = "") -> None:
        data = text.encode("utf-8", "replace")
        self.outgoing += EVENT.pack(len(data), kind, token, os_pid, status) + data
        self._flush()

    def _flush(self) -> None:
        try:
            while self.outgoing:
                del self.outgoing[: self.control.send(self.outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self._end()
        self.poll.modify(self.control, select.POLLIN | (select.POLLOUT if self.outgoing else 0))


def kill_group(os_pid: int) -> None:
    """SIGKILL a child and its process group; the child by name too, as it may not lead a group yet, or any more."""
    for kill in (os.killpg, os.kill):
        try:
            kill(os_pid, signal.SIGKILL)
        except OSError:  # no such group or process; EPERM: macOS says so of zombies
            continue


def _wake(number: int, frame: FrameType | None) -> None:
    """Handle a signal whose arrival is all that matters: the wakeup descriptor tells of it."""


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            continue
    except BlockingIOError:
        return


def _take_control(fd: int) -> socket.socket:
    """Move the driver's socket away from stdin, and see that 0, 1 and 2 are open: nothing of ours must land there."""
    null = os.open(os.devnull, os.O_RDWR)
    while null <= 2:  # the driver had closed its stdout or stderr; the lowest free numbers are theirs
        os.set_inheritable(null, True)
        null = os.open(os.devnull, os.O_RDWR)
    control = socket.socket(fileno=os.dup(fd))
    control.setblocking(False)
    os.dup2(null, fd)
    os.close(null)
    return control


def _forget_names() -> None:
    """Leave a clean ``__main__`` to the workers: the boot code's names are not the user's."""
    names: Iterable[str] = [name for name in vars(sys.modules["__main__"]) if not name.startswith("__")]
    for name in names:
        delattr(sys.modules["__main__"], name)
