"""What goes through the standard streams of a login: where its workers listen, what they print, how they end.

Used by both ends: the SSH manager's logins, and ``hosting`` on the machine logged in to. Bytes in, records out; no I/O.
The other side may say anything first, for its login shell prints what it likes::

    there  --  a banner ..., one HEADER line, then reports (OUTPUT, EXITED, ALIVE)  -->  stdout -> driver
    there  <-- stdin <--  the cookie's line, then orders (KILL, GRANT); its end is the end of all that was started

Reports and orders are the frames of a fork server (``forkserver.frames``), with a worker's number on its machine in the
place of the token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence

from distpool.errors import LaunchWorkerError
from distpool.forkserver.frames import EVENT, EXITED, GRANT, KILL, OUTPUT, REQUEST
from distpool.light import Any, Final, NamedTuple
from distpool.managers.startup import MAX_BYTES, MAX_LINES

HEADER: Final = b"distpool_host:"
# A report of nothing: sent so that the kernel of the driver's host acknowledges it. Beyond those of fork servers.
ALIVE: Final = 100
# The version of what stands here. The header itself must stay readable, so that a difference can be told.
VERSION: Final = 1


class Header(NamedTuple):
    """What a machine says when its workers listen."""

    version: int  # of the reports
    distpool: str
    python: str
    addresses: list[tuple[str, int]]  # of each worker, by number

    @classmethod
    def here(cls, addresses: list[tuple[str, int]]) -> Header:
        """The header of this process."""
        distpool = sys.modules[__name__.partition(".")[0]].__version__  # loaded before any room; see ``tcp``
        python = f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"
        return cls(VERSION, str(distpool), python, addresses)

    def difference(self, ours: Header) -> str | None:
        """Say what keeps this machine's processes and ours from working together, if anything does."""
        for name, theirs, here in (
            ("distpool", self.distpool, ours.distpool),
            ("Python", self.python, ours.python),
            ("protocol", self.version, ours.version),
        ):
            if theirs != here:
                return (
                    f"{name} {theirs} there and {name} {here} here; all processes of a cluster need the same versions"
                )
        return None

    def line(self) -> bytes:
        """The header as it is sent: on a line of its own, whatever stood before it."""
        return b"\n" + HEADER + json.dumps(self._asdict()).encode("ascii") + b"\n"


class Printed(NamedTuple):
    """A worker has written to stdout (1) or stderr (2)."""

    number: int
    stream: int
    data: bytes


class Ended(NamedTuple):
    """A worker's process has ended, with this status of ``waitpid``."""

    number: int
    status: int


def printed(number: int, data: bytes, stream: int) -> bytes:
    """Return the report of a worker's output."""
    return EVENT.pack(len(data), OUTPUT, number, stream, 0) + data


def ended(number: int, os_pid: int, status: int) -> bytes:
    """Return the report of a worker's end."""
    return EVENT.pack(0, EXITED, number, os_pid, status)


def alive() -> bytes:
    """Return the report that all is as it was; nobody does anything about it."""
    return EVENT.pack(0, ALIVE, 0, 0, 0)


class Reports:
    """The driver's half: what came from one login, taken apart.

    >>> heard = Reports()
    >>> heard.receive(b"Welcome!" + Header(1, "0.1", "3.11", [("10.0.0.7", 9009)]).line() + printed(0, b"hi", 1))
    >>> heard.banner, heard.header.addresses, list(heard.news())
    (['Welcome!'], [('10.0.0.7', 9009)], [Printed(number=0, stream=1, data=b'hi')])
    """

    def __init__(self) -> None:
        self.banner: list[str] = []  # lines before the header
        self.header: Header | None = None
        self._incoming = bytearray()
        self._banner_bytes = 0

    def receive(self, data: bytes) -> None:
        """Take what was read. Raises LaunchWorkerError when there is too much before the header, or a bad one."""
        self._incoming += data
        while self.header is None and (end := self._incoming.find(b"\n")) >= 0:
            line = bytes(self._incoming[:end])
            del self._incoming[: end + 1]
            self._take_line(line)
        if self.header is None and len(self._incoming) + self._banner_bytes > MAX_BYTES:
            raise LaunchWorkerError(f"it printed more than {MAX_BYTES} bytes, and not where its workers listen")

    def _take_line(self, line: bytes) -> None:
        if line.startswith(HEADER):
            self.header = _parsed(line[len(HEADER) :])
            return
        self._banner_bytes += len(line)
        text = line.decode("utf-8", "replace").rstrip("\r")
        if text:
            self.banner.append(text)
        if len(self.banner) > MAX_LINES:
            raise LaunchWorkerError(f"it printed more than {MAX_LINES} lines, and not where its workers listen")

    @property
    def rest(self) -> str:
        """What stands after the last line end: for one who ended before the header."""
        return "" if self.header else self._incoming.decode("utf-8", "replace")

    def news(self) -> Iterator[Printed | Ended]:
        """Yield the complete reports that came, each once."""
        if self.header is None:
            return
        while len(self._incoming) >= EVENT.size:
            size, kind, number, value, status = EVENT.unpack_from(self._incoming)
            end = EVENT.size + size
            if end > len(self._incoming):
                return
            body = bytes(self._incoming[EVENT.size : end])
            del self._incoming[:end]
            if kind == OUTPUT:
                yield Printed(number, value, body)
            elif kind == EXITED:
                yield Ended(number, status)


def _parsed(text: bytes) -> Header:
    try:
        facts: dict[str, Any] = json.loads(text)
        addresses = [(str(host), int(port)) for host, port in facts["addresses"]]
        return Header(int(facts["version"]), str(facts["distpool"]), str(facts["python"]), addresses)
    except (ValueError, KeyError, TypeError) as error:
        raise LaunchWorkerError(
            f"it said in a way that is not understood where its workers listen: {error!r}"
        ) from None


def signal_order(number: int, signum: int) -> bytes:
    """Return the order to send a worker a signal; SIGKILL goes to all that it started."""
    return REQUEST.pack(1, KILL, 0, number) + bytes((signum,))


def grant_order(count: int) -> bytes:
    """Return the news that so many bytes of output have been shown, so that as many more may come."""
    return REQUEST.pack(0, GRANT, 0, count)


def orders_in(incoming: bytearray) -> Iterator[tuple[int, int, Sequence[int]]]:
    """Take complete orders from what came: kind, the number in it, and its body."""
    while len(incoming) >= REQUEST.size:
        size, kind, _, number = REQUEST.unpack_from(incoming)
        end = REQUEST.size + size
        if end > len(incoming):
            return
        body = bytes(incoming[REQUEST.size : end])
        del incoming[:end]
        yield kind, number, body
