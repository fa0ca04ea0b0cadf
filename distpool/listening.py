"""A worker that listens: on this machine as a fresh interpreter, or on any other.

Used by the command line (``python -m distpool --worker``) and by programs that make themselves workers
(``start_worker``). It binds, says where on one line of its output, and waits for its driver; whoever proves himself
first is process 1::

    stdin   <- cookie              stdout  -> distpool_worker:PORT#ADDR
    door (accept, handshake) --> the driver: Worker(stream).serve()

The door stays open for as long as the worker lives, only to turn others away.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from typing import Any, NoReturn, TextIO

from distpool.cookie import cluster_cookie
from distpool.credentials import MAX_LINE_BYTES, learn_secrets
from distpool.door import Door, complain_as_worker
from distpool.forkserver.newborn import hold_lifeline
from distpool.managers.interface import worker_timeout
from distpool.tcp import LOOPBACK, address_line, advertised_address, listen, own_encryption, parse_bind_to
from distpool.transport import Deadline, Reader, Waiter
from distpool.watchdog import Watchdog, start_watchdog
from distpool.worker import Worker, fresh_main


def start_worker(
    out: TextIO | None = None,
    cookie: str | None = None,
    *,
    close_stdin: bool = True,
    stderr_to_stdout: bool = True,
    bind_to: str = LOOPBACK,
) -> NoReturn:
    """Make this process a worker that listens, say where, and serve the driver that proves itself; never returns.

    Runs in the process that calls it, on its main thread; the process ends when the driver says so or is gone.
    Functions of the driver's ``__main__`` share this process's ``__main__``.

    Args:
        out: where the address line goes, as one line ``distpool_worker:PORT#ADDR``, flushed; standard output by
        default. cookie: the cluster's secret, or what a manager's ``secret_line`` returned; None reads one line of
        standard input.
        close_stdin: make standard input the null device, so that no task waits for a user who is not there.
        stderr_to_stdout: send standard error where standard output goes, so that a driver gets both, in order.
        bind_to: ``ADDR[:PORT]`` to listen on; without a port, any free one.

    Exits with status 1 and a message on standard error when the address cannot be had, or when no driver has proved
    itself within ``DISTPOOL_WORKER_TIMEOUT`` seconds (60). Raises RuntimeError outside the main thread, ValueError for
    a bad ``bind_to`` or cookie. Julia's ``start_worker``.

    A worker that holds the interpreter in C code, or is stopped, when its driver goes, ends when it lets go; only
    ``python -m distpool --worker`` has a watchdog that kills it.
    """
    _listen_and_serve(out, cookie, close_stdin, stderr_to_stdout, bind_to, None)


def start_watched_worker(cookie: str | None, bind_to: str) -> NoReturn:
    """Be a worker that was started by hand: like ``start_worker``, and whatever it does it ends after its driver."""
    watchdog = start_watchdog()
    fresh_main()
    _listen_and_serve(None, cookie, True, True, bind_to, watchdog)


def _listen_and_serve(
    out: TextIO | None,
    cookie: str | None,
    close_stdin: bool,
    stderr_to_stdout: bool,
    bind_to: str,
    watchdog: Watchdog | None,
) -> NoReturn:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("start_worker() must be called on the main thread: it serves there, and takes interrupts")
    host, port = parse_bind_to(bind_to)
    deadline = Deadline(worker_timeout())
    cluster_cookie(read_cookie(deadline) if cookie is None else learn_secrets(cookie))
    _arrange_streams(close_stdin, stderr_to_stdout)
    try:
        listener = listen(host, port)
    except (OSError, ValueError) as error:
        sys.exit(f"distpool worker: cannot listen on {bind_to}: {error}")
    print(address_line(*advertised_address(listener)), file=out or sys.stdout, flush=True)
    serve_driver(listener, deadline, watchdog)


def serve_driver(listener: socket.socket, deadline: Deadline, watchdog: Watchdog | None = None) -> NoReturn:
    """Wait for the driver at a port of one's own, then work for it until the end of this process.

    Exits with status 1 and a message when none has proved itself in time.
    """
    reader = Reader()
    driver = _Driver(reader)
    encryption = own_encryption("driver")
    Door(listener, reader, driver.admit, encrypt=None if encryption is None else encryption.accepted)
    stream = driver.wait(deadline)
    if stream is None:
        sys.exit("distpool worker: no driver came in time (DISTPOOL_WORKER_TIMEOUT); this worker ends")
    if watchdog is not None:
        watchdog.watch(stream)
    Worker(stream, None, reader).serve()
    raise AssertionError("a worker serves until it ends its process")


def start_child(bind_to: str) -> NoReturn:
    """Be a worker that a local manager has started: its first words tell how to look, and its input is our lifeline."""
    import json  # here and below: only for such workers

    with os.fdopen(os.dup(0), "rb") as first_words:
        secrets = first_words.readline().decode("ascii").rstrip("\n")
        setup = json.loads(first_words.readline() or b"null")
    if setup is None:
        sys.exit("distpool worker: the driver is gone, or the cookie and the setup did not come on standard input")
    hold_lifeline(os.dup(0))
    fresh_main()
    look_like(setup)
    start_worker(None, secrets, bind_to=bind_to)


def look_like(setup: dict[str, Any]) -> None:
    """Take on the directory, path and arguments of the driver."""
    import importlib

    if setup["dir"] is not None:
        try:
            os.chdir(setup["dir"])
        except OSError as error:
            sys.exit(f"distpool worker: cannot go to its directory: {error}; name one that is there: dir=")
    # The first entry is the folder that ``-m`` was started in: the package's own.
    sys.path[:] = setup["path"] if setup["is_whole_path"] else [*setup["path"], *sys.path[1:], sys.path[0]]
    sys.argv[:] = setup["argv"]
    for name in setup["preload"]:
        importlib.import_module(name)


class _Driver:
    """Whoever proves himself first; nobody else is served."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._stream: socket.socket | None = None
        self._arrival = Waiter()

    def admit(self, stream: socket.socket, name: str, introduction: bytes) -> None:
        """Somebody knows the secret."""
        if self._stream is not None:
            stream.close()
            complain_as_worker(f"a second driver ({name}) was turned away")
            return
        self._stream = stream
        self._arrival.complete()

    def wait(self, deadline: Deadline) -> socket.socket | None:
        """Return his connection; None when nobody came in time."""
        self._reader.wait(self._arrival, deadline)
        return self._stream


def read_cookie(deadline: Deadline) -> str:
    """Read one line of standard input and nothing beyond it: with ``close_stdin=False`` the rest is the user's.

    Returns the cookie; certificates that came along are kept for this process's connections.
    """
    line = bytearray()
    while not line.endswith(b"\n") and len(line) <= MAX_LINE_BYTES:
        byte = os.read(0, 1) if _has_input(deadline) else b""
        if not byte:
            break
        line += byte
    if not line:
        sys.exit("distpool worker: no cookie came on standard input; give it there as one line, or as --worker=COOKIE")
    try:
        return learn_secrets(line.decode("ascii").rstrip("\r\n"))
    except UnicodeDecodeError:
        sys.exit("distpool worker: the line on standard input is no cookie: it is not ASCII")
    except ValueError as error:
        sys.exit(f"distpool worker: the line on standard input is no cookie: {error}")


def _has_input(deadline: Deadline) -> bool:
    """Wait until standard input has something, or ends; False when the time is over. True where that cannot be
    asked."""
    import select

    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(0, select.POLLIN)
    left = deadline.remaining()
    return bool(poll.poll(None if left is None else left * 1000))


def _arrange_streams(close_stdin: bool, stderr_to_stdout: bool) -> None:
    """At the level of descriptors, so that output of C code goes the same way."""
    if close_stdin:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        if null != 0:
            os.close(null)
    if stderr_to_stdout:
        os.dup2(1, 2)
    # The driver shows line by line what comes; into a pipe Python would write only when many lines have gathered.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)
