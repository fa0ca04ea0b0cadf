"""Encrypted connections: what goes over the network can be neither read nor changed on its way.

Used by managers that were asked for ``tls=True`` and by the workers they start; nobody else loads it. A
``SecureSocket`` stands where a peer, a handshake or a door expects a socket. The cookie is proved inside it all the
same: certificates keep those on the way out, the cookie says which cluster is meant::

    peer, handshake   <-- plain bytes -->  SecureSocket  <-- TLS 1.3 records -->  a TCP connection
                                                   checks: signed by this cluster's authority, and made for the part
                                                   (driver or worker) that the other side must be

Any thread sends, the one that reads receives; a lock is held while bytes are encrypted and handed to the kernel, never
over a wait (connections of peers do not block). 100 MB take about four times as long as without.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from distpool.credentials import NAMES, Credentials, Part
from distpool.errors import HandshakeError
from distpool.interrupts import DeferredInterrupt

# How much is encrypted or decrypted at a time (measured for 100 MB: 180 ms with 64 KiB, 145 with 256, 180 with 1024).
PIECE_BYTES: Final = 1 << 18
# How much a stranger may send before his certificate is proved, and how much of it is taken at once. Ours are below
# 4 KiB, most of it a key exchange that also holds against quantum computers.
MAX_HANDSHAKE_BYTES: Final = 1 << 14
_HANDSHAKE_PIECE_BYTES: Final = 1 << 12


class Encryption:
    """What a process needs for connections with TLS to processes of one part of its cluster.

    ``part`` is what the other side has to be: a driver connects to workers, a worker to its driver.
    """

    def __init__(self, credentials: Credentials, part: Part) -> None:
        self._name = NAMES[part]
        # Now, and not for the first who comes: they are read from a file, and then there may be no descriptor left.
        self._to_dial = _new_context(credentials, ssl.PROTOCOL_TLS_CLIENT)
        self._to_accept = _new_context(credentials, ssl.PROTOCOL_TLS_SERVER)

    def dialled(self, stream: socket.socket) -> SecureSocket:
        """Return the encrypted end of a connection that we have made."""
        return SecureSocket(stream, self._to_dial, self._name)

    def accepted(self, stream: socket.socket) -> SecureSocket:
        """Return the encrypted end of a connection that was made to us."""
        return SecureSocket(stream, self._to_accept, self._name)


def _new_context(credentials: Credentials, protocol: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name is that of a part, and both sides look at it themselves
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=credentials.authority)  # this cluster's, and no other that the system knows
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # sessions are never resumed
    with _file_of(credentials.certificate + credentials.key) as path:
        context.load_cert_chain(path)
    return context


@contextmanager
def _file_of(text: str) -> Iterator[str]:
    """A file that only this user can read, for the moment in which OpenSSL, which takes no key from memory, reads
    it; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("distpool credentials"), "w") as file:
            file.write(text)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile("w") as file:  # made with mode 600
        file.write(text)
        file.flush()
        yield file.name


class SecureSocket:
    """One end of an encrypted connection, with the methods of a socket that peers and handshakes use.

    The first byte that is sent or wanted makes the TLS handshake. Blocking, with a time limit or not, as the socket
    beneath; what a connection brings beyond the bytes asked for waits here (``has_pending``), where no poll sees it.

    Raises HandshakeError, until ``is_ready``, when the other side does not speak TLS or has no certificate of this
    cluster for its part; later what goes wrong is an OSError, as with any socket.
    """

    shares_memory = False

    def __init__(self, stream: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self.is_ready = False  # the other side's certificate is proved
        self.is_proved = False  # the cookie, too; set by whoever has made that handshake
        self._stream = stream
        self._name = name
        self._lock = threading.Lock()  # protects all below: OpenSSL's state is for one thread at a time
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        is_server = context.protocol == ssl.PROTOCOL_TLS_SERVER
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server)
        self._handshake_bytes = 0
        self._buffer: memoryview | None = None  # where encrypted bytes are received, once they may be many
        self._sealed = memoryview(b"")  # encrypted, and not yet taken by the kernel
        self._sealed_from = 0  # how many plain bytes that was; claimed as sent when all of it is

    # -- as a socket -------------------------------------------------------------------------------------------------

    @property
    def family(self) -> int:
        """The address family of the socket beneath."""
        return self._stream.family

    def fileno(self) -> int:
        """The descriptor of the socket beneath."""
        return self._stream.fileno()

    def getpeername(self) -> Any:
        """The address of the other side."""
        return self._stream.getpeername()

    def getsockname(self) -> Any:
        """Our address."""
        return self._stream.getsockname()

    def setblocking(self, is_blocking: bool) -> None:
        """As a socket's."""
        self._stream.setblocking(is_blocking)

    def settimeout(self, seconds: float | None) -> None:
        """As a socket's."""
        self._stream.settimeout(seconds)

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """As a socket's."""
        self._stream.setsockopt(level, option, value)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        """As a socket's, with a size."""
        return self._stream.getsockopt(level, option, size)

    def shutdown(self, how: int) -> None:
        """As a socket's. Frames say how long they are, so the end of a connection needs no words of TLS."""
        self._stream.shutdown(how)

    def close(self) -> None:
        """As a socket's."""
        self._stream.close()

    # -- receiving ---------------------------------------------------------------------------------------------------

    def has_pending(self) -> bool:
        """True while bytes have been received that nobody has taken yet."""
        with self._lock:
            return bool(self._tls.pending() or self._incoming.pending)

    def recv(self, size: int, flags: int = 0) -> bytes:
        """As a socket's. With flags it only tells whether anything has come, for that is what it is asked."""
        if flags:
            return b"?" if self.has_pending() else self._stream.recv(size, flags)
        data = bytearray(size)
        return bytes(data[: self.recv_into(memoryview(data))])

    def recv_into(self, place: memoryview) -> int:
        """As a socket's; less than asked for means that nothing is pending."""
        with self._lock:
            if not self.is_ready:
                self._shake_hands()
            received = self._decrypt(place)
            while received is None:
                self._pull()
                received = self._decrypt(place)
            return received

    def _decrypt(self, place: memoryview) -> int | None:
        """Fill a place as far as possible; None when there is nothing to fill it with, 0 at the end of the stream."""
        received = 0
        read: Callable[[int, memoryview], int] = self._tls.read  # type: ignore[assignment]  # into a buffer: the count
        try:
            while received < place.nbytes:
                count = read(place.nbytes - received, place[received:])
                if not count:
                    break
                received += count
        except ssl.SSLWantReadError:
            return received or None
        except ssl.SSLEOFError:
            return received
        return received

    def _pull(self) -> None:
        """Receive encrypted bytes; what the socket raises goes through."""
        if self._buffer is None:
            self._buffer = memoryview(bytearray(PIECE_BYTES))
        count = self._stream.recv_into(self._buffer)
        if count:
            self._incoming.write(self._buffer[:count])
        else:
            self._incoming.write_eof()

    # -- sending -----------------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview) -> int:
        """As a socket's."""
        return self.sendmsg((data,))

    def sendall(self, data: bytes) -> None:
        """As a socket's."""
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def sendmsg(self, pieces: Sequence[bytes | memoryview]) -> int:
        """As a socket's, without descriptors. Returns how many bytes are on their way.

        Bytes that were encrypted and did not fit into the socket are not reported as sent: the caller, who has to
        offer them again first, learns so that there is something left to do.
        """
        with DeferredInterrupt(), self._lock:  # a byte that is encrypted is used up: it must be noted as well
            if not self.is_ready:
                self._shake_hands()
            if not self._sealed:
                self._encrypt(pieces)
            self._push()
            sent, self._sealed_from = self._sealed_from, 0
            return sent

    def _encrypt(self, pieces: Sequence[bytes | memoryview]) -> None:
        for piece in pieces:
            view = memoryview(piece)[: PIECE_BYTES - self._sealed_from]
            if view:
                self._sealed_from += self._tls.write(view)
            if self._sealed_from == PIECE_BYTES:
                break
        self._sealed = memoryview(self._outgoing.read())

    def _push(self) -> None:
        while self._sealed:
            self._sealed = self._sealed[self._stream.send(self._sealed) :]

    # -- the beginning -----------------------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        """Go on with the handshake of TLS; raises BlockingIOError or TimeoutError when it has to wait for the other
        side."""
        while not self.is_ready:
            try:
                self._tls.do_handshake()
                self._check_name()
                self.is_ready = True
            except ssl.SSLWantReadError:
                self._send_handshake()
                self._pull_handshake()
            except ssl.SSLError as error:
                with suppress(OSError):
                    self._send_handshake()  # the reason, for the other side
                raise HandshakeError(_reason(error)) from error
        self._send_handshake()

    def _send_handshake(self) -> None:
        self._sealed = memoryview(bytes(self._sealed) + self._outgoing.read())
        self._push()  # a few kilobytes: the empty buffer of a new connection takes them

    def _pull_handshake(self) -> None:
        try:
            data = self._stream.recv(_HANDSHAKE_PIECE_BYTES)
        except ConnectionError:
            data = b""
        self._handshake_bytes += len(data)
        if not data:
            raise HandshakeError("the connection ended before its encryption began: is tls=True set for both sides?")
        if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
            raise HandshakeError(f"more than {MAX_HANDSHAKE_BYTES} bytes, and still no proved certificate")
        self._incoming.write(data)

    def _check_name(self) -> None:
        certificate: Any = self._tls.getpeercert() or {}
        names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]
        if names != [self._name]:
            raise HandshakeError(f"the certificate of the other side is not that of a {self._name.partition('.')[0]}")


def _reason(error: ssl.SSLError) -> str:
    text = (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the other side's certificate is none of this cluster's: {error.verify_message}"
    return f"no encryption: {text}; tls=True must be set for both sides, and by the same driver"
