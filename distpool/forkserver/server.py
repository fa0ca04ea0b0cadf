"""The fork server itself: what runs in the process that :class:`~.client.ForkServer` starts.

One thread, one loop: requests from the driver, deaths of children, and what they print, which it reads from a pair of
pipes for each and passes on. It owns its children, the write end of their lifeline and the read ends of their pipes,
and has no other purpose than to be cheap to fork: garbage collection is off, so that children go on sharing its memory.

What it promises about ends: a worker's process group is killed when the worker ends (so its subprocesses do not outlive
it; those that should must start a session of their own), when the driver asks for SIGKILL, and when the driver is gone.
When this process is killed itself, the lifeline does the same.
"""

from __future__ import annotations

import collections
import contextlib
import gc
import os
import select
import sys

from distpool.light import TYPE_CHECKING, Any, NoReturn, pickle, signal, socket

from .frames import (
    DEFAULT_ENTRY,
    DESCRIPTOR,
    EVENT,
    EXITED,
    FAILED,
    FORK,
    GRANT,
    HELLO,
    KILL,
    LOAD,
    MOST_DESCRIPTORS,
    OUTPUT,
    PRELOAD_TOKEN,
    REQUEST,
    ROOM,
    STARTED,
)
from .newborn import be_worker, hold_lifeline, load_entry
from .outputs import Outputs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import FrameType

_IDLE_MS = 50  # quiet time before modules are warmed; arbitrary, longer than the gaps while a pool is being started
_RECEIVE_BYTES = 1 << 16  # arbitrary: a hundred ordinary requests
_OUTGOING_BYTES = 1 << 16  # output is read only while less than this waits for the socket, so that reports are prompt
_FAREWELL_SECONDS = 1.0  # what passing on the last words may take when the driver has said that it is over; arbitrary
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
        self.outputs = Outputs()
        self.poll = select.poll()  # everything but output
        self.is_sending = False  # the control socket is watched for room
        self._watch(self.control.fileno())
        self._watch(self.wakeup)
        self.own_signals()

    def _watch(self, fd: int, events: int = select.POLLIN) -> None:
        """Watch a descriptor both where output is watched, too, and where it is not."""
        self.poll.register(fd, events)
        self.outputs.poll.register(fd, events)

    def own_signals(self) -> None:
        """Take the signals; again after every import, as a module may have taken one from us."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the driver's to hand out, before and after forks
        signal.signal(signal.SIGCHLD, _wake)
        signal.set_wakeup_fd(self.wakeup_end, warn_on_full_buffer=False)

    def run(self) -> NoReturn:
        """Answer requests and report deaths; import what is to be warmed while nothing else happens."""
        quiet = _IDLE_MS
        while True:
            poll = self.outputs.poll if self._may_read_output() else self.poll
            ready = poll.poll(quiet if self.warm and self.has_forked else None)
            if not ready:
                self._import(self.warm.popleft())
                quiet = 0  # the next one at once, unless somebody wants something
                continue
            quiet = _IDLE_MS
            talking = [fd for fd, _ in ready if fd in self.outputs.pipes]
            for fd, happened in ready:
                if fd not in self.outputs.pipes:
                    self._attend(fd, happened)
            if talking:
                self._pass_on(talking)

    def _attend(self, fd: int, happened: int) -> None:
        if fd == self.wakeup:
            _drain(fd)
            self._reap()
        elif fd == self.driver_fd:
            self._end(may_speak=False)
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
            elif kind == GRANT:
                self.outputs.window += number
            elif kind == LOAD:
                for name in pickle.loads(body):
                    self._import(name, must=True)
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
        os.environ.update(hello["env"])
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
            self._watch(self.driver_fd)
        if os.getppid() != os_pid:
            self._end(may_speak=False)

    def _import(self, name: str, must: bool = False) -> None:
        """Import a module, whatever it does; one that must be there and fails is told to the driver."""
        try:
            __import__(name)
        except BaseException as error:  # user code at import time: not even sys.exit() may end us
            if must:
                text = f"cannot preload {name!r}: {type(error).__name__}: {error}"
                self._tell(FAILED, PRELOAD_TOKEN, text.encode("utf-8", "replace"))
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
            if count == 1:
                fds = [*fds, *self.outputs.open(token)]
            gc.freeze()  # what is there now is never looked at again by a child's collector, so its pages stay shared
            os_pid = os.fork()
        except OSError as error:
            self._tell(FAILED, token, f"cannot fork: {error}".encode("utf-8", "replace"))
            self.outputs.close(token)
        else:
            if os_pid == 0:
                be_worker(self._shed, fds, setup, self.page)
            self.children[os_pid] = token
            self._tell(STARTED, token, b"", os_pid)
        for fd in fds:
            os.close(fd)

    def _shed(self) -> None:
        """In a child: give up what is ours, signals, socket and pipes; what is left is the lifeline, to hold on to."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # SIGINT stays ignored until the worker's own code can take it.
        self.control.close()
        for fd in (self.wakeup, self.wakeup_end, self.lifeline_end, self.driver_fd):
            if fd >= 0:
                os.close(fd)
        self.outputs.leave()
        hold_lifeline(self.lifeline)

    def _reap(self) -> None:
        while (dead := self._next_dead()) is not None:
            os_pid, status = dead
            token = self.children.pop(os_pid, None)
            if token is not None:  # else a child of some preloaded module
                for stream, data in self.outputs.last_words(token):
                    self._tell(OUTPUT, token, data, stream)
                self._tell(EXITED, token, b"", os_pid, status)

    # -- what the workers print

    def _may_read_output(self) -> bool:
        """Only as fast as the driver deals with it; what is not read stays in the pipes, and fills them."""
        return self.outputs.window > 0 and len(self.outgoing) < _OUTGOING_BYTES

    def _pass_on(self, talking: list[int]) -> None:
        """Read each of these pipes once, in turn, as long as the driver can take more."""
        for fd in self.outputs.in_turn(talking):
            if not self._may_read_output():
                return
            said = self.outputs.read(fd)
            if said is not None:
                self._tell(OUTPUT, *said)

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

    def _end(self, may_speak: bool = True) -> NoReturn:
        """The driver is gone: kill every worker with its group, reap them, and end.

        If it has only said that it is over, it still reads: pass on what the workers had printed.
        """
        signal.set_wakeup_fd(-1)
        for os_pid in self.children:
            kill_group(os_pid)
        for os_pid in self.children:
            os.waitpid(os_pid, 0)
        if may_speak:
            for token in self.children.values():
                for stream, data in self.outputs.last_words(token):
                    self.outgoing += EVENT.pack(len(data), OUTPUT, token, stream, 0) + data
            with contextlib.suppress(OSError):  # nobody is there
                self.control.settimeout(_FAREWELL_SECONDS)
                self.control.sendall(self.outgoing)
        os._exit(0)

    # -- events

    def _tell(self, kind: int, token: int, data: bytes = b"", os_pid: int = 0, status: int = 0) -> None:
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
        if self.is_sending != bool(self.outgoing):
            self.is_sending = bool(self.outgoing)
            self._watch(self.control.fileno(), select.POLLIN | (select.POLLOUT if self.is_sending else 0))


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
