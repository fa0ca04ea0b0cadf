"""One login to another machine: an ssh client of ours, what its other end says, and the workers there as processes.

Used by the SSH manager, one object per machine and ``addprocs``. What comes in is read on the reading thread. The login
stays open for as long as its workers live, for it is their lifeline: the host at the other end kills them when it ends,
and it ends when this process does. Owns: the ssh client, its three pipes, what it has said.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence

from distpool.errors import LaunchWorkerError
from distpool.forkserver.exits import describe_exit
from distpool.forkserver.frames import OUTPUT_WINDOW
from distpool.light import Any, Final
from distpool.managers.interpreter import InterpreterProcess, close_in_forked_copies
from distpool.managers.machines import Machine
from distpool.managers.reports import Header, Printed, Reports, grant_order, signal_order
from distpool.managers.startup import SHOWN_CHARACTERS
from distpool.output import Output
from distpool.transport import Deadline, Reader, Waiter

OnExit = Callable[[int | None, int | None], None]

# Lines of ssh's own complaints that are kept; a broken login says why in its last ones. Arbitrary.
KEPT_LINES: Final = 40
# Seconds that the report of a worker's end waits for the end of its connection: what the worker sent before its end
# comes another way, and counts. Only a connection that nobody closes makes it wait that long. Arbitrary.
LAST_BYTES_SECONDS: Final = 2.0
# Seconds that the end of a worker's connection waits for the report of how it ended, which may be slower. Arbitrary.
REPORT_SECONDS: Final = 5.0
# Seconds that the end of this process waits for the last words of workers that have been asked to end; for all logins
# together. Arbitrary.
FAREWELL_SECONDS: Final = 1.0
# Seconds that a login without a header waits for the exit status of its client, which tells what was wrong.
STATUS_SECONDS: Final = 1.0
# The exit status by which ssh tells that it has failed itself; any other one is the remote command's.
SSH_FAILED: Final = 255

# Of a talkative login shell so many of the last lines are shown in an error. Arbitrary: what fits on a screen.
SHOWN_LINES: Final = 20

# What is to be done about a login that failed: a sign in what was said, and the remedy. The first that fits is shown.
REMEDIES: Final = (
    ("Host key verification failed", "log in once by hand, or pass sshflags='-o StrictHostKeyChecking=accept-new'"),
    ("Permission denied (", "give it a key that ssh may use without asking: ssh-copy-id, ssh-agent, sshflags='-i KEY'"),
    ("Could not resolve hostname", "check the name, or give it an address in ~/.ssh/config"),
    ("Name or service not known", "check the name, or give it an address in ~/.ssh/config"),
    ("No space left on device", "the disk of that machine is full: free some of it"),
    ("Disk quota exceeded", "the disk quota on that machine is used up: free some of it"),
    ("No module named distpool", "install distpool there, or name a Python that has it: exename= or venv="),
    ("unrecognized arguments", "the distpool there is another version: install the same one as here"),
    ("Connection refused", "no ssh server answers there: check the port, as in 'host:2222'"),
    ("Connection timed out", "the machine does not answer: check its address, or the way to it"),
    ("No route to host", "the machine does not answer: check its address, or the way to it"),
    ("cannot listen on", "name an address of that machine, and a port that is free: 'host 10.0.0.7:9000', or neither"),
    ("Too many open files", "start fewer workers there, or allow more: ulimit -n"),
    ("Cannot fork", "start fewer workers there, or allow more processes: ulimit -u"),
    ("Resource temporarily unavailable", "start fewer workers there, or allow more processes: ulimit -u"),
    ("Cannot allocate memory", "start fewer workers there: its memory is used up"),
    ("SyntaxError", "the Python there is too old: name one with distpool by exename= or venv="),
    ("syntax error near unexpected token `cd'", "its login shell is no csh: leave shell= out"),
    ("nknown option", "the Python there does not know such a flag: check exeflags="),
    ("invalid option", "what was started there is no Python: check exename="),
    ("unrecognized option", "what was started there is no Python: check exename="),
    ("ModuleNotFoundError", "install that module there, or leave it out of preload="),
    ("can't cd to", "name a directory that is there: dir="),
    ("cd: ", "name a directory that is there: dir="),
    ("Permission denied", "name a Python that may be started there: exename= or venv="),
    ("not found", "name a Python that is there: exename= or venv="),
    ("No such file or directory", "name a Python that is there: exename= or venv="),
)  # fmt: skip


class Login:
    """One ssh client and the workers at its other end. A handler of the reader, for its standard output.

    ``settled(login)`` is called once, when the other side has said where its workers listen (``header``) or it is known
    that it will not (``error``).
    """

    def __init__(
        self,
        machine: Machine,
        command: Sequence[str],
        first_words: bytes,
        reader: Reader,
        settled: Callable[[Login], None],
    ) -> None:
        self.machine: Final = machine
        self.error: LaunchWorkerError | None = None
        self.tunnels_at_once = threading.BoundedSemaphore()  # how many ways to its workers may be opened at a time
        self._processes: list[RemoteProcess] = []  # by number
        self._reader = reader
        self._reports = Reports()
        self._settled: Callable[[Login], None] | None = settled
        self._lock = threading.Lock()  # protects error and _settled
        self._has_ended = False  # its output
        self._end_of_all = Waiter()  # done when it has
        self._shown = 0  # bytes that were shown and not yet granted again
        popen = start_client(command, first_words, machine.spec)
        self._stdin, self._stdout = popen.stdin, popen.stdout
        self._complaints = Complaints(popen.stderr, reader)
        self.client: Final = _Client(popen, reader, self._await_end)
        self.client.watch(lambda code, signum: self._complaints.close())
        os.set_blocking(self._stdout.fileno(), False)
        reader.register(self)
        reader.nudge()

    @property
    def header(self) -> Header | None:
        """What the other side says of its workers; None as long as it has not."""
        return self._reports.header

    def take_banner(self) -> list[str]:
        """Return what the login shell and ssh said before the workers were there; once."""
        lines = [*self._reports.banner, *self._complaints.lines]
        self._reports.banner.clear()
        self._complaints.lines.clear()
        return lines

    def processes(self, outputs: Sequence[Output]) -> list[RemoteProcess]:
        """Return the workers of this login as processes to be watched, each with where it prints to; once."""
        self._processes = [RemoteProcess(self, self._reader, number, output) for number, output in enumerate(outputs)]
        for output in outputs:
            output.when_consumed(self._consumed)
        self._reader.call_later(0.0, self._pass_on)  # what came meanwhile
        return self._processes

    def send_signal(self, number: int, signum: int) -> None:
        """Have a worker get a signal; SIGKILL goes to all that it started as well."""
        self._order(signal_order(number, signum))

    def _order(self, data: bytes) -> None:
        """Write to the other side; in vain when it is gone. Orders are some bytes: a pipe always has room for them."""
        with contextlib.suppress(OSError, ValueError):
            os.write(self._stdin.fileno(), data)

    def fail(self, reason: str) -> None:
        """Give up a login whose workers cannot be had, with what was said there and what can be done."""
        said = "\n".join([*self._reports.banner, self._reports.rest, *self._complaints.lines])
        lines = [_readable(line) for line in said.splitlines() if line.strip("\0 \t")]
        text = "\n".join(lines[-SHOWN_LINES:])[-SHOWN_CHARACTERS:]
        parts = [f"{self.machine.spec}: {reason}"]
        if text:
            parts.append(f"what came from there: {text}")
        elif self.header is None:
            parts.append("nothing came from there")
        parts.append(f"what to do: {self._remedy(text)}")
        self._settle(LaunchWorkerError("\n".join(parts)))
        self.end()

    def _remedy(self, text: str) -> str:
        """What can be done about it: by what was said, or by how far the login has come."""
        if self.header is not None:  # another version
            return "name a Python with the same versions as here: exename= or venv="
        if (remedy := next((remedy for sign, remedy in REMEDIES if sign in text), None)) is not None:
            return remedy
        login = f"ssh {f'-p {self.machine.port} ' if self.machine.port else ''}{self.machine.login}"
        if self.client.exit_code == SSH_FAILED:
            return f"see by hand what ssh needs: {login} true"
        return (
            f"see by hand what the login shell there does with a command, for a start-up file (.bashrc, .profile) may "
            f"end it, wait for input, or say too much: {login} python3 -m distpool --version"
        )

    def end(self) -> None:
        """End the client, and so the host at its other end with all its workers."""
        self.client.send_signal(signal.SIGTERM)  # not SIGKILL: one that is shared removes its socket

    def _settle(self, error: LaunchWorkerError | None) -> None:
        with self._lock:
            settled, self._settled = self._settled, None
            if settled is not None:
                self.error = error
        if settled is not None:
            settled(self)

    # -- on the reading thread -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The descriptor of the client's standard output."""
        return int(self._stdout.fileno())

    def on_writable(self) -> None:
        """Never asked for."""

    def on_readable(self) -> None:
        """Take what the other side says."""
        try:
            data = os.read(self._stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._end_of_output()
            return
        is_first = self.header is None
        try:
            self._reports.receive(data)
        except LaunchWorkerError as error:
            self.fail(str(error))
            return
        if is_first and self.header is not None:
            self._begin(self.header)
        self._pass_on()

    def _begin(self, header: Header) -> None:
        difference = header.difference(Header.here([]))
        if difference is None:
            self._settle(None)
        else:
            self.fail(difference)

    def _pass_on(self) -> None:
        """Hand out the reports that came; those that come before anybody takes them wait."""
        if not self._processes:
            return
        for news in self._reports.news():
            if news.number >= len(self._processes):  # none of ours
                continue
            process = self._processes[news.number]
            if isinstance(news, Printed):
                process.output.feed(news.stream, news.data)
            else:
                process.ended(*describe_exit(news.status))
        if self._has_ended:
            for process in self._processes:
                process.ended(None, None, self._how_it_ended())

    def _consumed(self, count: int) -> None:
        """So much was shown. On the one thread that shows; granted in quarters, as to fork servers."""
        self._shown += count
        if self._shown >= OUTPUT_WINDOW // 4:
            count, self._shown = self._shown, 0
            self._order(grant_order(count))

    def _end_of_output(self) -> None:
        """The other side says no more: its workers have ended, or the way to them is gone."""
        self._reader.unregister(self)
        self._stdout.close()
        self._has_ended = True
        self._end_of_all.complete()
        if self.header is not None:
            self._pass_on()
            return
        # Its status says who has failed, and its last words may come after the end of its output.
        self._reader.call_later(STATUS_SECONDS, self._fail_at_start)
        self.client.watch(lambda code, signum: self._fail_at_start())

    def _fail_at_start(self) -> None:
        self._complaints.read_all()
        status = self.client.exit_code
        self.fail("its workers did not start" + (f" (ssh ended with status {status})" if status is not None else ""))

    def _await_end(self) -> None:
        """This process ends: its workers, which have been asked to end, get a moment for their last words."""
        if self.header is not None:
            self._reader.wait(self._end_of_all, _farewell())

    def _how_it_ended(self) -> str:
        self._complaints.read_all()
        last = list(self._complaints.lines)[-1:]
        return f"the login to {self.machine.spec} ended" + "".join(f": {line}" for line in last)


def _readable(line: str) -> str:
    """A line without what would upset a terminal: a start-up file may say anything."""
    return "".join(sign if sign.isprintable() or sign == "\t" else "\N{REPLACEMENT CHARACTER}" for sign in line)


@functools.cache
def _farewell() -> Deadline:
    """One time limit for all logins, from the first that asks."""
    return Deadline(FAREWELL_SECONDS)


class _Client(InterpreterProcess):
    """The ssh client of a login: at the end of this process it may pass on what comes last."""

    def __init__(self, popen: Any, reader: Reader, await_end: Callable[[], None]) -> None:
        super().__init__(popen, reader)
        self._await_last_words = await_end

    def end_with_us(self) -> None:
        """Kill it, after a moment."""
        self._await_last_words()
        super().end_with_us()


class RemoteProcess:
    """A worker on another machine, as the host there reports of it."""

    def __init__(self, login: Login, reader: Reader, number: int, output: Output) -> None:
        self.os_pid: int | None = None  # a number of that machine, told by the worker when it joins
        self.detail: str | None = None  # what else is known of its end
        self.output: Final = output
        self.tunnel: InterpreterProcess | None = None  # the ssh client that is its connection
        self.login: Final = login
        self._reader = reader
        self._number = number
        self._lock = threading.Lock()  # protects the four below
        self._exit: tuple[int | None, int | None] | None = None
        self._watchers: list[OnExit] = []
        self._stream_has_ended = False
        self._is_told = False

    def watch(self, on_exit: OnExit) -> None:
        """Call ``on_exit(exit_code, signal)`` once when it is gone; at once if that was told already."""
        with self._lock:
            self._watchers.append(on_exit)
        if self._is_told:
            self._tell()

    @property
    def has_exited(self) -> bool:
        """True when its end was reported."""
        return self._exit is not None

    def send_signal(self, signum: int) -> None:
        """Have it get a signal; SIGKILL ends what it started as well. Silent when it is gone."""
        if self._exit is None:
            self.login.send_signal(self._number, signum)

    def stream_ended(self) -> None:
        """Its connection has ended: what it had sent is here, and its end may be told. On the reading thread."""
        self._stream_has_ended = True
        if self._exit is not None:
            self._tell()
        else:
            self._reader.call_later(REPORT_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self._exit is None:
            self.send_signal(signal.SIGKILL)
            self.ended(None, None, "it closed its connection, and was killed")

    def ended(self, exit_code: int | None, signum: int | None, detail: str | None = None) -> None:
        """It is gone. On the reading thread."""
        with self._lock:
            if self._exit is not None:
                return
            self._exit, self.detail = (exit_code, signum), detail
        self.output.end()
        if self._stream_has_ended:
            self._tell()
        else:
            self._reader.call_later(LAST_BYTES_SECONDS, self._tell)

    def _tell(self) -> None:
        with self._lock:
            self._is_told = True
            watchers, self._watchers = self._watchers, []
            status = self._exit
        assert status is not None
        for tell in watchers:
            tell(*status)


class Complaints:
    """The standard error of an ssh client: its last lines. A handler of the reader, until the client ends."""

    def __init__(self, stderr: Any, reader: Reader) -> None:
        self.lines: Final[deque[str]] = deque(maxlen=KEPT_LINES)
        self._stderr = stderr
        self._reader = reader
        self._rest = b""
        self._has_ended = False
        os.set_blocking(stderr.fileno(), False)
        reader.register(self)

    def fileno(self) -> int:
        """The pipe's descriptor."""
        return int(self._stderr.fileno())

    def on_writable(self) -> None:
        """Never asked for."""

    def on_readable(self) -> None:
        """Keep what was said."""
        try:
            data = os.read(self._stderr.fileno(), 1 << 16)
        except BlockingIOError:
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        self.lines.extend(text for line in lines if (text := line.decode("utf-8", "replace").rstrip("\r")))
        if not data:
            self._end()

    def close(self) -> None:
        """The client has ended: take what it said last. What it left running may keep the pipe open for long."""
        self.read_all()
        self._end()

    def _end(self) -> None:
        if not self._has_ended:
            self._has_ended = True
            self._reader.unregister(self)
            self._stderr.close()

    def read_all(self) -> None:
        """Take what is there now. On the reading thread."""
        import select

        poll = select.poll()
        while not self._has_ended:
            poll.register(self._stderr, select.POLLIN)
            if not poll.poll(0):
                return
            self.on_readable()


def start_client(command: Sequence[str], first_words: bytes, spec: str, stream: Any = None) -> Any:
    """Start an ssh client in a session of its own, so that the terminal's Ctrl-C does not reach it.

    With ``stream`` that is its standard input and output, else they are pipes. Raises LaunchWorkerError when the
    program cannot be started.
    """
    import subprocess  # here: a program without remote workers does without it

    try:
        popen = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if stream is None else stream,
            stdout=subprocess.PIPE if stream is None else stream,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise LaunchWorkerError(
            f"{spec}: cannot start {command[0]!r}: {error}; the option ssh= names the program"
        ) from error
    if popen.stdin is not None:
        close_in_forked_copies(popen.stdin)
        with contextlib.suppress(OSError):  # it has ended already: what it said tells why
            popen.stdin.write(first_words)  # far less than a pipe takes without anybody reading
    return popen
