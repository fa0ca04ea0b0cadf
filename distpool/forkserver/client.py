"""The driver's side of the fork server.

Used by the local manager. Any thread may start and kill workers; the thread that reads for the driver at the moment
calls :meth:`ForkServer.receive` when the socket is readable. A :class:`ForkServer` owns its socket, the process at the
other end, and bytes that did not fit into the socket yet. It has no thread, and no call here blocks except
:meth:`ForkServer.close`.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import sys
import threading
import weakref

from distpool.light import TYPE_CHECKING, Literal, pickle, socket
from distpool.light import signal as signals

from ..errors import LaunchWorkerError
from .frames import (
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
    REQUEST,
    ROOM,
    STARTED,
)
from .interpreter import boot_message, start_interpreter

if TYPE_CHECKING:
    from collections.abc import Sequence

    Event = (
        tuple[Literal["started"], int, int]  # token, os_pid
        | tuple[Literal["exited"], int, int, int]  # token, os_pid, status as of waitpid
        | tuple[Literal["output"], int, int, bytes]  # token, 1 or 2 for stdout or stderr, what was written
        | tuple[Literal["failed"], int, str]  # token (PRELOAD_TOKEN: a module could not be preloaded), why
        | tuple[Literal["gone"]]  # the fork server itself has ended
    )

_NO_SIGPIPE = getattr(socket, "MSG_NOSIGNAL", 0)  # programs that restored SIGPIPE must not die of a dead fork server
_RECEIVE_BYTES = 1 << 16  # arbitrary: some two thousand events
_CLOSE_SECONDS = 5.0  # arbitrary: what an orderly end may take before we kill the fork server


class ForkServer:
    """A clean process that forks workers for this one.

    The process is started at once, but nobody waits for it: requests queue in the socket until it is ready. It lives
    until :meth:`close`, or until this process ends in whatever way; then it kills the workers and their process groups.
    When it dies itself, the kernel kills them (Linux).

    Args:
        preload: names of modules it imports before the first fork. One that fails is told by a ``failed`` event
            with the token ``PRELOAD_TOKEN``; the server lives on.
        page_fd: descriptor of a :class:`~distpool.segments.SharedPage`, which workers then find as ``setup["page"]``.
            Stays the caller's.
        warm: names of modules it imports when it has been idle after the first fork, so that later workers share them.
        env: variables to set there before anything is preloaded; its workers inherit them.
        executable: the Python to run (default: ``sys.executable``).

    Raises:
        LaunchWorkerError: this platform cannot fork, or the interpreter could not be started.
    """

    def __init__(
        self,
        preload: Sequence[str] = (),
        page_fd: int | None = None,
        *,
        warm: Sequence[str] = (),
        env: dict[str, str] | None = None,
        executable: str | None = None,
    ) -> None:
        if not self.available():
            raise LaunchWorkerError(
                "this platform cannot fork; start workers as fresh interpreters (exename=...) instead"
            )
        # Protects the sending half: _unsent, and the order of frames on the socket. Only non-blocking sends under it.
        self._lock = threading.Lock()
        # What did not fit into the socket, with duplicates of the descriptors, in order.
        self._unsent: collections.deque[tuple[memoryview, list[int]]] = collections.deque()
        self._incoming = bytearray()  # an incomplete event; the reading thread's
        self._is_gone = False  # the end of the stream was met, or we closed; told once
        self._owner = os.getpid()  # a forked copy of this object is not to touch the process
        self.socket, self.os_pid = start_interpreter(executable or sys.executable)
        _close_in_forked_copies(self)
        self._send(boot_message())
        hello = {"preload": list(preload), "warm": list(warm), "env": env or {}, "driver": self._owner}
        self._send_request(HELLO, 0, pickle.dumps(hello), () if page_fd is None else (page_fd,))

    @staticmethod
    def available() -> bool:
        """Tell whether this platform can fork, spawn and pass descriptors."""
        needed = hasattr(os, "fork") and hasattr(os, "posix_spawn") and hasattr(socket.socket, "sendmsg")
        return needed and hasattr(socket, "SCM_RIGHTS") and sys.platform not in ("emscripten", "wasi")

    def fileno(self) -> int:
        """Return the descriptor to wait on for :meth:`receive`."""
        return self.socket.fileno()

    def load(self, names: Sequence[str]) -> None:
        """Have modules imported before the next fork. When the fork server is gone, ``start_worker`` will tell."""
        with contextlib.suppress(ConnectionError):
            self._send_request(LOAD, 0, pickle.dumps(list(names)))

    def start_worker(self, token: int, setup: bytes, fds: Sequence[int]) -> None:
        """Ask for a worker; a ``started`` or ``failed`` event with the token will answer.

        Never blocks: what does not fit into the socket is kept and sent on by :meth:`receive`, so somebody must be
        reading events until the answer is there. The caller may close its copies of the descriptors on return.

        Args:
            token: the caller's name for this worker; 0 or more.
            setup: a pickled dict for the worker. The fork server heeds, all optional: ``cwd`` (a path), ``env``
                (name to value, or None to remove), ``path`` (``sys.path``), ``argv``, and ``entry``
                ("module:function", called as ``function(socket_fd, setup)``). The rest is between caller and worker.
            fds: the worker's stream socket; then, if given, its stdout and stderr. Else these are pipes to the fork
                server, and what is written to them comes as ``output`` events, all of it before ``exited``; each must
                be acknowledged with :meth:`grant`.

        Raises:
            LaunchWorkerError: the fork server has ended, or belongs to the process this one was forked from.
        """
        if not 1 <= len(fds) <= MOST_DESCRIPTORS:
            raise ValueError(f"a worker needs 1 to {MOST_DESCRIPTORS} descriptors, got {len(fds)}")
        if self._owner != os.getpid():
            raise LaunchWorkerError(
                "this process was forked from the one that owns the fork server; start one of its own"
            )
        try:
            self._send_request(FORK, token, setup, fds)
        except ConnectionError as error:
            raise LaunchWorkerError(f"the fork server (process {self.os_pid}) has ended; start another") from error

    def kill(self, os_pid: int, signal: int) -> None:
        """Send a signal to one of the workers; SIGKILL goes to its whole process group.

        Through the fork server, because only the parent knows that the number has not passed to a stranger. A worker
        that has ended already is left alone, and so is everything when the fork server is gone: its workers are, too.
        """
        if self._owner != os.getpid():
            return
        with contextlib.suppress(ConnectionError):
            self._send_request(KILL, os_pid, bytes([signal]))

    def grant(self, count: int) -> None:
        """Say that so many bytes of output have been dealt with, so that as many more may come. Any thread.

        The fork server sends ``OUTPUT_WINDOW`` bytes without a grant, then the workers that print have to wait.
        """
        if self._owner != os.getpid():
            return
        with contextlib.suppress(ConnectionError):
            self._send_request(GRANT, count, b"")

    def receive(self) -> list[Event]:
        """Return the events that have arrived, without waiting; for the one thread that reads.

        ``("gone",)`` is told once, as the last event: remove the socket from the reader then, and :meth:`close`.
        """
        if self._is_gone or self._owner != os.getpid():
            return []
        is_open = self._fill()
        events = self._parse()
        if is_open:
            self._send_on()
            return events
        self._is_gone = True
        return [*events, ("gone",)]

    def close(self) -> list[Event]:
        """End the fork server and all its workers, and wait for that (some milliseconds; at most about 5 s).

        Returns the events that came meanwhile, among them what the workers had printed last. For the reading thread,
        or after the socket was taken out of its reader. Harmless to repeat. In a process forked from the owner it only
        closes the copy of the socket.
        """
        if self._owner != os.getpid():
            self.socket.close()
            return []
        with self._lock:
            if self.socket.fileno() < 0:
                return []
            self._is_gone = True
            self._drop_unsent()
            _end_sending(self.socket)
        self._wait_for_end()
        self.socket.close()
        _reap(self.os_pid)
        return self._parse()

    # -- sending

    def _send_request(self, kind: int, number: int, body: bytes, fds: Sequence[int] = ()) -> None:
        self._send(REQUEST.pack(len(body), kind, len(fds), number) + body, fds)

    def _send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send now what fits, keep the rest for :meth:`receive` with duplicates of the descriptors."""
        with self._lock:
            if self.socket.fileno() < 0:
                raise BrokenPipeError(errno.EPIPE, "the fork server was closed")
            rest, kept = memoryview(data), fds
            if not self._unsent:
                rest, kept = self._push(rest, kept)
            if rest:
                self._unsent.append((rest, [os.dup(fd) for fd in kept]))

    def _send_on(self) -> None:
        """Send what had been kept back, as far as it fits."""
        with self._lock:
            try:
                while self._unsent:
                    data, fds = self._unsent[0]
                    rest, kept = self._push(data, fds)
                    if not kept:
                        _close_all(fds)
                    if rest:
                        self._unsent[0] = (rest, list(kept))
                        return
                    self._unsent.popleft()
            except ConnectionError:  # the end of the stream will tell the reader
                self._drop_unsent()

    def _push(self, data: memoryview, fds: Sequence[int]) -> tuple[memoryview, Sequence[int]]:
        """Send as much as fits and return what is left. Holds the lock."""
        while data:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(DESCRIPTOR.pack, fds)))] if fds else []
            try:
                sent = self.socket.sendmsg([data], rights, _NO_SIGPIPE)
            except BlockingIOError:
                break
            except OSError as error:
                # Too many descriptors of this user are under way: as good as a full socket, events will make room.
                if error.errno == errno.ETOOMANYREFS:
                    break
                raise
            data, fds = data[sent:], ()  # the descriptors went with the first byte
        return data, fds

    def _drop_unsent(self) -> None:
        while self._unsent:
            _close_all(self._unsent.popleft()[1])

    # -- receiving

    def _fill(self) -> bool:
        """Read what is there; False at the end of the stream."""
        while True:
            try:
                data = self.socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return True
            except OSError:  # reset, or closed by close()
                return False
            self._incoming += data
            if len(data) < _RECEIVE_BYTES:
                return bool(data)

    def _parse(self) -> list[Event]:
        """Cut the complete events from the bytes that arrived."""
        events: list[Event] = []
        start, data = 0, self._incoming
        while len(data) - start >= EVENT.size:
            size, kind, token, os_pid, status = EVENT.unpack_from(data, start)
            end = start + EVENT.size + size
            if end > len(data):
                break
            body = bytes(data[start + EVENT.size : end])
            start = end
            if kind == STARTED:
                events.append(("started", token, os_pid))
            elif kind == EXITED:
                events.append(("exited", token, os_pid, status))
            elif kind == FAILED:
                events.append(("failed", token, body.decode("utf-8", "replace")))
            elif kind == OUTPUT:
                events.append(("output", token, os_pid, body))
            else:
                assert kind == ROOM  # nothing to tell: receive() sends on what was kept back after any news
        del data[:start]
        return events

    # -- the end

    def _wait_for_end(self) -> None:
        """Wait until the kernel has closed the server's side of the socket, which it does when the server has ended."""
        import select  # here, and time: no other part of the driver side needs them
        import time

        deadline = time.monotonic() + _CLOSE_SECONDS
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0 and poll.poll(left * 1000):
            if not self._fill():
                return


def _end_sending(end: socket.socket) -> None:
    """Show the fork server the end of the stream: it ends its workers and itself."""
    with contextlib.suppress(OSError):  # it is dead already
        end.shutdown(socket.SHUT_WR)


def _reap(os_pid: int) -> None:
    """Make sure that the fork server has ended, and leave no zombie."""
    try:
        if os.waitpid(os_pid, os.WNOHANG) == (0, 0):  # so the number is still its own
            # It closes its socket only by ending, so this hits a process that is ending, or one that hangs.
            os.kill(os_pid, signals.SIGKILL)
            os.waitpid(os_pid, 0)
    except ChildProcessError:
        return  # the program ignores SIGCHLD, or has reaped all of its children itself


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)


def _close_in_forked_copies(server: ForkServer) -> None:
    """Have processes that user code forks from this one close their copy of the socket.

    Else the fork server would not notice our end while such a process lives. The hook cannot be taken back, so it
    holds the server weakly.
    """
    reference = weakref.ref(server)

    def close_copy() -> None:
        copy = reference()
        if copy is not None:
            copy.socket.close()

    os.register_at_fork(after_in_child=close_copy)
