"""A worker that dials back: an engine has started it, and it goes to its driver by itself.

Used by the command line (``python -m distpool --worker --connect HOST:PORT``), which managers of the dial-back kind
(``managers.dialback``) have their engine run. No port is opened here, and what the engine makes of standard input and
output does not matter::

    stdin, or a file of mode 600  -> the cookie
    driver  <== handshake ======= worker
            <-- introduction ---- which launch it belongs to, which of its workers it is
            --- answer ---------> how it shall look; or why it is turned away, which ends it
            ==== frames ========= Worker(stream).serve()
            <== handshake ======= a second connection becomes its standard output and error: what C code and programs
                                  that it starts write goes there too, and what it wrote just before a crash

Ends with status 1 and a message when there is no driver, when the driver turns it away, and when the driver has not
answered within ``DISTPOOL_WORKER_TIMEOUT`` seconds (60).
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NoReturn

from distpool.cookie import cluster_cookie
from distpool.credentials import learn_secrets
from distpool.door import Introduction, receive_answer
from distpool.errors import HandshakeError
from distpool.forkserver.newborn import hold_lifeline, text_stream
from distpool.listening import look_like, read_cookie
from distpool.managers.interface import worker_timeout
from distpool.tcp import Conversation, dial, greet, parse_bind_to, secured
from distpool.transport import Deadline
from distpool.watchdog import start_watchdog
from distpool.worker import Worker, fresh_main

# The variables in which launchers tell a process which one it is: MPICH and Intel MPI, Open MPI, PMIx, Slurm.
RANK_VARIABLES: Final = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
_PIECE_BYTES: Final = 1 << 16


def dial_back(
    address: str, ticket: str, *, cookie_file: str | None = None, ident: str | None = None, is_child: bool = False
) -> NoReturn:
    """Go to the driver at ``address`` (``HOST:PORT``) as a worker of its launch ``ticket``; never returns.

    ``cookie_file`` names a file of mode 600 with the cookie, None reads one line of standard input. ``ident`` is which
    of the launch's workers this is, by default what the launcher's environment says. With ``is_child`` standard input
    has a second line, and stays open: its end is our end (``managers.hosted``).
    """
    deadline = Deadline(worker_timeout())
    _take_standard_numbers()
    watchdog = start_watchdog()
    if is_child:
        _take_first_words()
    else:
        cluster_cookie(read_cookie(deadline) if cookie_file is None else _cookie_in(cookie_file))
    facts = {"ticket": ticket, "host": socket.gethostname(), "ident": rank() if ident is None else ident}
    stream, answer = _call_on(address, facts, deadline)
    if watchdog is not None:
        watchdog.watch(stream)
    _redirect(_output_stream(address, ticket, answer, deadline))
    os.environ.update(answer["env"])
    fresh_main()
    look_like(answer)
    stream.settimeout(None)
    connection: Any = stream  # a socket, or one that encrypts
    Worker(connection, None).serve()
    raise AssertionError("a worker serves until it ends its process")


def rank(variables: Sequence[str] = RANK_VARIABLES) -> str | None:
    """Return which process of its launch this is, as its launcher has told it; None when no launcher did."""
    return next((os.environ[name] for name in variables if name in os.environ), None)


def _take_first_words() -> None:
    """Learn the cookie and in which directory we are, and hold on to the process that has started us."""
    with os.fdopen(os.dup(0), "rb") as first_words:
        secrets = first_words.readline().decode("ascii").rstrip("\n")
        setup = json.loads(first_words.readline() or b"null")
    if setup is None:
        _fail("who has started it is gone, or has not said what it must know")
    cluster_cookie(learn_secrets(secrets))
    hold_lifeline(os.dup(0))
    with suppress(OSError):  # removed, or not ours to enter: then any other is as good
        os.chdir(setup["dir"])


def _cookie_in(path: str) -> str:
    """Read the cookie, and certificates if there are any, from a file that nobody else can read."""
    try:
        with open(path, encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            line = file.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"cannot read the cookie's file {path}: {error}; it must be in a folder that this machine sees, too")
    if stat.S_IMODE(mode) & (stat.S_IRWXG | stat.S_IRWXO):
        _fail(f"others may read the cookie's file {path} (mode {stat.S_IMODE(mode):o}); make it 600")
    return learn_secrets(line)


def _call_on(address: str, facts: dict[str, Any], deadline: Deadline) -> tuple[Conversation, dict[str, Any]]:
    """Dial, prove ourselves, say who we are; return the connection and the answer."""
    host, port = parse_bind_to(address)
    try:
        stream = secured(dial(host, port, deadline))
    except OSError as error:
        _fail(f"no driver at {address}: {error}; it has ended, or its launch is over, or bind_addr= is not its address")
    try:
        greet(stream, deadline)
        stream.sendall(Introduction.of(json.dumps(facts).encode("ascii")))
        answer = receive_answer(stream, deadline)
    except (HandshakeError, OSError) as error:
        _fail(f"not admitted by the driver at {address}: {error}")
    if "refused" in answer:
        _fail(f"turned away by the driver at {address}: {answer['refused']}")
    return stream, answer


def _output_stream(address: str, ticket: str, answer: dict[str, Any], deadline: Deadline) -> Conversation | None:
    """Return the connection that what we print goes to; None when nobody wants it."""
    if not answer["shows_output"]:
        return None
    stream, _ = _call_on(address, {"ticket": ticket, "output_of": answer["place"]}, deadline)
    stream.settimeout(None)
    return stream


def _take_standard_numbers() -> None:
    """Have no connection become descriptor 0, 1 or 2 where the engine has closed those."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)


def _redirect(output: Conversation | None) -> None:
    """Put the null device on standard input, and the connection on standard output and error."""
    if output is not None and not isinstance(output, socket.socket):
        output = _encrypting(output)
    null = os.open(os.devnull, os.O_RDWR)
    for text in (sys.stdout, sys.stderr):
        if text is not None:
            text.flush()
    os.dup2(null, 0)
    for number in (1, 2):
        os.dup2(null if output is None else output.fileno(), number)
    os.close(null)
    if output is not None:
        output.close()
    # New ones: those that Python has made remember what they were opened on, a file perhaps, and seek in it.
    sys.stdout = sys.__stdout__ = text_stream(1)  # type: ignore[misc]  # Final for typeshed only
    sys.stderr = sys.__stderr__ = text_stream(2)  # type: ignore[misc]


def _encrypting(output: Conversation) -> socket.socket:
    """Return what can be written to without knowing of TLS: a thread encrypts what comes there.

    What the process writes in its very last moment, and when it is killed, is lost then.
    """
    inner, outer = socket.socketpair()

    def carry() -> None:
        with suppress(OSError):  # the driver is gone, and so is this worker at once
            while data := outer.recv(_PIECE_BYTES):
                output.sendall(data)

    threading.Thread(target=carry, name="distpool output", daemon=True).start()
    return inner


def _fail(text: str) -> NoReturn:
    sys.exit(f"distpool worker {rank() or ''}".rstrip() + f": {text}")
