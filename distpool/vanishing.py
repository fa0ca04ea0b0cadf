"""Hosts that vanish without a word: a cable pulled, a machine frozen, a firewall that drops what it let through.

Used by ``tcp`` for every connection, by ``peer`` for those to other machines, and by ``watchdog``. Three things could
be under way when the other host vanishes, and each has its means, all with the same limit:

    nothing           the kernel asks the other kernel (keepalive), and ends the connection when no answer comes
    our data          not acknowledged: ``HostWatch`` looks at what the kernel knows (TCP_INFO, Linux)
    data that the other side does not read     the kernel asks whether it would by now; ``HostWatch`` sees the answers

It is always the *kernel* of the other side that must answer, never its Python: a worker that is stopped, swapped out or
deep in C code is slow and not gone. That is why TCP_USER_TIMEOUT is not used: with it, Linux also ends the connection
to a process that has not read for so long, though its host answers every time it is asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from math import ceil, inf
from struct import unpack_from

from distpool.light import Any, Final, socket
from distpool.transport import Reader, Timer

monotonic = time.monotonic

VARIABLE: Final = "DISTPOOL_HOST_TIMEOUT"
# Longer than a network takes to find its way anew after a switch has failed (spanning tree: 30 s) or a virtual machine
# has moved; short for somebody who waits. A false alarm costs the work that ran there.
HOST_SECONDS: Final = 45.0
# How often a limit is looked at: what is noticed is at most a quarter of the limit, or a second, late.
LOOKS: Final = 8
# struct tcp_info, <linux/tcp.h>: six single bytes and two of bit fields, then numbers of 32 bits.
_PROBES_AT: Final = 3
_UNACKED_AT: Final = 8 + 4 * 4
_SINCE_ACK_AT: Final = 8 + 4 * 12
_INFO_BYTES: Final = _SINCE_ACK_AT + 4


def host_timeout() -> float:
    """Return the seconds of silence after which a host counts as gone: DISTPOOL_HOST_TIMEOUT, else 45.

    Raises ValueError when the variable is no number of seconds, 1 at least.
    """
    text = os.environ.get(VARIABLE)
    if text is None:
        return HOST_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1 << 15:  # the kernel's limit for each of the numbers below
        raise ValueError(f"{VARIABLE}={text!r}: it is a number of seconds, from 1 to {1 << 15}")
    return seconds


def ask_when_silent(stream: Any, seconds: float) -> None:
    """Have the kernel ask whether the other host is there when nothing has come from it for half of the time."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle, interval = max(1, int(seconds / 2)), max(1, int(seconds / LOOKS))
    count = max(1, ceil((seconds - idle) / interval))
    for name, value in (("TCP_KEEPIDLE", idle), ("TCP_KEEPINTVL", interval), ("TCP_KEEPCNT", count)):
        if hasattr(socket, name):  # not every system has all three
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def limit_of(stream: Any) -> float:
    """Return after how many seconds the kernel gives up a silent connection; the default where it does not say."""
    try:
        idle, interval, count = (
            stream.getsockopt(socket.IPPROTO_TCP, number)
            for number in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
    except (OSError, AttributeError):  # no connection over TCP, or another system
        return HOST_SECONDS
    return float(idle + interval * count)


def unanswered(stream: Any) -> tuple[bool, float]:
    """Return whether an answer of the other kernel is due, and how many seconds ago the last one came.

    Raises OSError when the connection has been closed, or is none over TCP.
    """
    info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    is_due = bool(info[_PROBES_AT] or unpack_from("=I", info, _UNACKED_AT)[0])
    return is_due, unpack_from("=I", info, _SINCE_ACK_AT)[0] / 1000


class Silence:
    """Adds up what looks at a connection have found."""

    def __init__(self, seconds: float) -> None:
        self.seconds: Final = seconds
        self._since: float | None = None  # no answer since then, although one is due

    def has_lasted(self, is_due: bool, since_answer: float = inf) -> bool:
        """Note what was found just now; True when no answer has come for so long, although one was due all the time."""
        now = monotonic()
        # The last answer may be old because nothing was sent for long: what counts is from our first look on.
        if not is_due or (self._since is not None and since_answer < now - self._since):
            self._since = None
        elif self._since is None:
            self._since = now
        return self._since is not None and now - self._since >= self.seconds


class HostWatch:
    """Calls ``vanished`` when the other host has acknowledged nothing for so long, although it was asked to.

    ``stream`` is a connected TCP socket, or something with its ``getsockopt``. All of it runs on the reading thread.
    """

    def __init__(self, stream: Any, reader: Reader, seconds: float, vanished: Callable[[], None]) -> None:
        self.seconds: Final = seconds
        self._stream = stream
        self._reader = reader
        self._vanished = vanished
        self._silence = Silence(seconds)
        self._is_over = False
        self._timer: Timer | None = None
        if hasattr(socket, "TCP_INFO"):  # elsewhere there is only what the kernel does by itself
            self._look_later()

    def cancel(self) -> None:
        """Look no more. Any thread."""
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()

    def _look_later(self) -> None:
        self._timer = self._reader.call_later(self.seconds / LOOKS, self._look)

    def _look(self) -> None:
        if self._is_over:
            return
        try:
            has_vanished = self._silence.has_lasted(*unanswered(self._stream))
        except OSError:  # closed by another thread just now
            return
        if has_vanished:
            self.cancel()
            self._vanished()
        else:
            self._look_later()
