"""Whether the machine that has logged in is still there, as seen from the machine that was logged in to.

Used by ``hosting``. The login is the lifeline of its workers, but when the driver's host vanishes without a word,
nothing ends it: the ssh server here has nothing to say, and waits for hours. So the host of the workers says something
now and then, and looks whether the kernel gets it acknowledged; the connection is the server's and not ours, but what
the kernel knows of it stands in /proc/net/tcp, for everybody::

    host --ALIVE--> sshd ==== TCP, watched in /proc/net/tcp ====> ssh -> driver

It is the other *kernel* that must acknowledge: a driver that is stopped or busy keeps its workers. Where there is no
such table, or the connection is not in it (the server has a network of its own), nothing is watched, and the ssh server
notices when it does. Owns nothing.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from typing import Final

from distpool.vanishing import LOOKS, Silence

_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")


class LoginWatch:
    """Looks at the connection of one login. ``environment`` has what the ssh server says of it (SSH_CONNECTION)."""

    def __init__(self, environment: Mapping[str, str], seconds: float) -> None:
        self.interval: Final = seconds / LOOKS  # how often to say something and to look
        self._silence = Silence(seconds)
        self._ends = frozenset(_ends(environment.get("SSH_CONNECTION", "")))

    def has_vanished(self) -> bool:
        """Look once; True when the other host has acknowledged nothing for so long, although it was asked to."""
        return bool(self._ends) and self._silence.has_lasted(any(map(_is_waiting, self._rows())))

    def _rows(self) -> Iterator[list[str]]:
        """The rows of the connection: none or one."""
        for table in _TABLES:
            try:
                with open(table, encoding="ascii") as file:
                    rows = [line.split() for line in file]
            except OSError:
                continue
            yield from (
                row for row in rows if len(row) > _UNANSWERED_AT and (row[_OURS_AT], row[_THEIRS_AT]) in self._ends
            )


# Columns of the tables: see Documentation/networking/proc_net_tcp.rst of Linux.
_OURS_AT: Final = 1
_THEIRS_AT: Final = 2
_RETRANSMITS_AT: Final = 6
_UNANSWERED_AT: Final = 8  # probes of a closed window, or of a silent connection


def _is_waiting(row: list[str]) -> bool:
    """Whether something was sent again, or asked, and has not been answered yet."""
    return int(row[_RETRANSMITS_AT], 16) > 0 or int(row[_UNANSWERED_AT]) > 0


def _ends(connection: str) -> Iterator[tuple[str, str]]:
    """Yield the ways in which the tables may write a connection, our end first.

    >>> sorted(_ends("127.0.0.1 40000 10.0.0.7 22"))[1]
    ('0700000A:0016', '0100007F:9C40')
    """
    words = connection.split()
    try:
        (theirs, their_port), (ours, our_port) = ((_packed(words[n]), int(words[n + 1])) for n in (0, 2))
    except (ValueError, OSError, IndexError):
        return
    yield _written(ours, our_port), _written(theirs, their_port)
    if len(ours) == len(theirs) == 4:  # a server that listens for both kinds sees the older one as this
        yield _written(_MAPPED + ours, our_port), _written(_MAPPED + theirs, their_port)


# What stands before an address of version 4 where one of version 6 is wanted.
_MAPPED: Final = bytes(10) + b"\xff\xff"


def _packed(address: str) -> bytes:
    """The bytes of an address; the interface that it is of, behind a percent sign, does not count."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address.partition("%")[0])


def _written(address: bytes, port: int) -> str:
    """An address as the kernel prints it: words of 32 bits in the order of this machine's bytes."""
    words = struct.unpack(f"={len(address) // 4}I", address)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
