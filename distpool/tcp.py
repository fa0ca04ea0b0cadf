"""Connections over TCP: listen, dial, shake hands, and the line by which a worker says where it listens.

Used by managers (the side that dials) and ``listening`` (the side that is dialled); local workers on a socket pair
never load it. Functions block, for at most their deadline, on the thread that calls them. Owns nothing.
"""

from __future__ import annotations

import re
import socket
import sys
from typing import TYPE_CHECKING, Final, Protocol

from distpool.cookie import cluster_cookie
from distpool.credentials import Part, own_credentials
from distpool.errors import HandshakeError
from distpool.handshake import Handshake, Role
from distpool.transport import Deadline
from distpool.vanishing import ask_when_silent, host_timeout

if TYPE_CHECKING:
    from distpool.tls import Encryption

LOOPBACK: Final = "127.0.0.1"
# What a listening worker prints, alone on its line. Julia's form, under our name.
_ADDRESS_LINE: Final = re.compile(r"^distpool_worker:(\d{1,5})#(\S+)\s*$")


class Conversation(Protocol):
    """What a handshake needs of a socket, plain or encrypted."""

    def settimeout(self, seconds: float | None, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...


class ProvedSocket(socket.socket):
    """A connection on which both sides have proved themselves."""

    __slots__ = ()
    is_proved = True


def address_line(host: str, port: int) -> str:
    """Return the line by which a worker says where it listens.

    >>> address_line("127.0.0.1", 9009)
    'distpool_worker:9009#127.0.0.1'
    """
    return f"distpool_worker:{port}#{host}"


def parse_address_line(line: str) -> tuple[str, int] | None:
    """Return the host and port of an address line, None for any other line.

    >>> parse_address_line("distpool_worker:9009#127.0.0.1"), parse_address_line("Welcome!")
    (('127.0.0.1', 9009), None)
    """
    match = _ADDRESS_LINE.match(line)
    return (match[2], int(match[1])) if match else None


def parse_bind_to(text: str) -> tuple[str, int]:
    """Return the address and port that ``--bind-to`` names; port 0 (any free one) when it names none.

    >>> parse_bind_to("10.0.0.7"), parse_bind_to("127.0.0.1:9009"), parse_bind_to("[::1]:80"), parse_bind_to("::1")
    (('10.0.0.7', 0), ('127.0.0.1', 9009), ('::1', 80), ('::1', 0))
    """
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:  # more: an IPv6 address without a port
        host, _, port = text.partition(":")
    if not host or (port and not (port.isascii() and port.isdigit() and int(port) < 1 << 16)):
        raise ValueError(f"{text!r} is no ADDR[:PORT], such as 127.0.0.1, 10.0.0.7:9009 or [::1]:9009")
    return host, int(port or 0)


def listen(host: str, port: int) -> socket.socket:
    """Listen for connections; port 0 takes any free one. OSError when the address is not this machine's, or taken.

    Raises ValueError for an address that other machines can reach when there is no secret: the cookie is empty.
    """
    if not is_loopback(host) and not cluster_cookie():
        raise ValueError(
            f"refused to listen on {host} with an empty cookie: whoever reaches this port could run anything here; "
            f"use a cookie (see cluster_cookie) or listen on {LOOPBACK}"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def is_loopback(host: str) -> bool:
    """Return whether only processes of this machine can reach an address; False for one that is no number.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("0.0.0.0"), is_loopback("10.0.0.7")
    (True, True, False, False)
    """
    return host in ("::1", "localhost") or (host.startswith("127.") and host.replace(".", "").isdigit())


def advertised_address(listener: socket.socket) -> tuple[str, int]:
    """Return where others reach this listener: its own address, or an outward one when it listens everywhere."""
    host, port = listener.getsockname()[:2]
    return (outward_address() if host in ("0.0.0.0", "::") else host), port


def outward_address() -> str:
    """Return the address of this machine that others see: that of the way out, loopback when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: this only asks for the route. The address is one of those reserved for documentation.
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return LOOPBACK


def dial(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Connect to a listener. OSError when it refuses, TimeoutError when nobody answers in time.

    Looking up a name is the system's affair and has its limit, not ours; numeric addresses need none.
    """
    return tune(socket.create_connection((host, port), timeout=_seconds(deadline)))


def secured(stream: socket.socket) -> Conversation:
    """Return our end of a connection to the driver that we, a worker, have dialled: encrypted if it has told us to."""
    encryption = own_encryption("driver")
    return stream if encryption is None else encryption.dialled(stream)


def own_encryption(part: Part) -> Encryption | None:
    """Return what connections of ours, a worker's, to processes of this part go through; None when they are plain."""
    credentials = own_credentials()
    if credentials is None:
        return None
    from distpool.tls import Encryption  # only then: it brings the libraries of TLS

    return Encryption(credentials, part)


def tune(stream: socket.socket) -> socket.socket:
    """Set what every connection of ours wants: messages leave at once, and a host that has vanished is noticed."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    ask_when_silent(stream, host_timeout())
    return stream


def new_handshake(role: Role) -> Handshake:
    """Return this process's side of a handshake: with its secret, and its version of the package."""
    # The front door has the version, where the installer reads it; it is loaded before any room of the package can be,
    # and importing it from here would point upwards.
    version = sys.modules[__name__.partition(".")[0]].__version__
    return Handshake(role, cluster_cookie().encode("ascii"), str(version))


def greet(stream: Conversation, deadline: Deadline) -> None:
    """Shake hands on a connection that we have dialled."""
    shake_hands(stream, new_handshake("initiator"), deadline)


def shake_hands(stream: Conversation, handshake: Handshake, deadline: Deadline) -> None:
    """Go through a handshake on a connected socket, blocking; afterwards the stream stands where the frames begin.

    Raises HandshakeError when the other side does not prove itself, is of other versions, goes away or is silent.
    """
    try:
        _send(stream, handshake, deadline)
        while not handshake.is_complete:
            stream.settimeout(_seconds(deadline))
            data = stream.recv(handshake.wanted)
            if not data:
                raise handshake.connection_lost()
            handshake.receive(data)
            _send(stream, handshake, deadline)
    except TimeoutError:
        raise HandshakeError("the other process did not finish the handshake in time") from None
    except HandshakeError:
        raise
    except OSError as error:
        raise handshake.connection_lost() from error


def _send(stream: Conversation, handshake: Handshake, deadline: Deadline) -> None:
    if data := handshake.data_to_send():
        stream.settimeout(_seconds(deadline))
        stream.sendall(data)


def _seconds(deadline: Deadline) -> float | None:
    """What is left, for ``settimeout``, to which zero means "do not block" and not "no time left"."""
    left = deadline.remaining()
    return left if left is None else max(left, 0.001)
