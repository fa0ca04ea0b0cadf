"""A port that is open to a network: who comes, and who is let in.

Used by workers that listen for their driver (``listening``) and by a driver that listens for workers which dial back
(``managers.dialback``). Whoever connects has to prove that he knows the secret, within limits of time, size and number;
then, if the host asks for it, he says in one short line what he has come for, and is handed over::

    listener --accept--> Stranger --handshake within 5 s--> [introduction] --> admit(stream, name, introduction)
                                  --garbage, silence, a wrong secret--> closed; nobody else is harmed

All of it happens on the thread that reads: a handler takes what has arrived and never waits for a stranger. Owns: the
listener, the connections that are not admitted yet.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import Final

from distpool.errors import HandshakeError
from distpool.handshake import Handshake
from distpool.tcp import new_handshake, tune
from distpool.transport import Reader, Timer

# How long one connection may take to prove itself. Two round trips and no work: a slow link needs a second.
STRANGER_SECONDS: Final = 5.0
# How many connections may be unproved at a time; more are closed at once, so that strangers cannot use up descriptors.
MAX_STRANGERS: Final = 16
# How long the door stays shut when this process has no descriptor left. Arbitrary.
FULL_SECONDS: Final = 1.0
# An introduction has its length in front.
LENGTH_BYTES: Final = 2

# What becomes of one who was admitted: his connection (not blocking), where he comes from, and his introduction.
Admit = Callable[[socket.socket, str, bytes], None]


class Door:
    """The listener and those who stand before it. A handler of the reader.

    ``longest_introduction`` is how many bytes a guest may say of himself once he is proved, 0 when he is not asked;
    ``most`` how many may stand before the door at a time. What is nobody's result goes to ``complain``.
    """

    def __init__(
        self,
        listener: socket.socket,
        reader: Reader,
        admit: Admit,
        *,
        longest_introduction: int = 0,
        most: int = MAX_STRANGERS,
        complain: Callable[[str], None] | None = None,
    ) -> None:
        self.reader: Final = reader
        self.admit: Final = admit
        self.longest_introduction: Final = longest_introduction
        self.complain: Final = complain or complain_as_worker
        self.strangers: set[Stranger] = set()
        self._listener = listener
        self._most = most
        self._is_closed = False
        listener.setblocking(False)
        reader.register(self)

    def fileno(self) -> int:
        """The listener's descriptor."""
        return self._listener.fileno()

    def on_writable(self) -> None:
        """Never asked for."""

    def on_readable(self) -> None:
        """Somebody has come."""
        if self._is_closed:
            return
        try:
            stream, address = self._listener.accept()
        except OSError as error:  # gone already, or no descriptor left for him
            if error.errno in (errno.EMFILE, errno.ENFILE):
                # He stays in the queue, so the listener would be readable again at once and for ever.
                self.reader.unregister(self)
                self.reader.call_later(FULL_SECONDS, self._open_again)
            return
        if len(self.strangers) >= self._most:
            stream.close()
            return
        self.strangers.add(Stranger(self, stream, f"{address[0]}, port {address[1]}"))

    def _open_again(self) -> None:
        if not self._is_closed:
            self.reader.register(self)

    def close(self) -> None:
        """Listen no more, and close what has not been admitted. On the reading thread, or when nothing else reads."""
        if self._is_closed:
            return
        self._is_closed = True
        self.reader.unregister(self)
        self._listener.close()
        for stranger in list(self.strangers):
            stranger.leave()


class Stranger:
    """A connection on its way in: the handshake, then perhaps an introduction. A handler of the reader."""

    def __init__(self, door: Door, stream: socket.socket, name: str) -> None:
        self._door = door
        self._stream = stream
        self._name = name
        self._handshake: Handshake = new_handshake("acceptor")
        self._introduction = Introduction(door.longest_introduction)
        stream.setblocking(False)
        self._timer: Timer = door.reader.call_later(STRANGER_SECONDS, self._too_slow)
        door.reader.register(self)

    def fileno(self) -> int:
        """The connection's descriptor."""
        return self._stream.fileno()

    def on_writable(self) -> None:
        """Never asked for: what the handshake sends fits into the empty buffer of a new connection."""

    def on_readable(self) -> None:
        """Take what has come, but nothing that follows."""
        stage = self._introduction if self._handshake.is_complete else self._handshake
        try:
            data = self._stream.recv(stage.wanted)
            if not data:
                raise stage.connection_lost()
            stage.receive(data)
            if answer := self._handshake.data_to_send():
                self._stream.sendall(answer)
        except BlockingIOError:
            return
        except HandshakeError as error:
            self._turn_away(str(error))
        except OSError as error:
            self._turn_away(f"the connection broke: {error}")
        else:
            if self._handshake.is_complete and self._introduction.is_complete:
                self._forget()
                self._door.admit(tune(self._stream), self._name, self._introduction.text)

    def _too_slow(self) -> None:
        self._turn_away(f"no handshake within {STRANGER_SECONDS:g} s")

    def _turn_away(self, reason: str) -> None:
        self.leave()
        self._door.complain(f"a connection from {self._name} was not admitted: {reason}")

    def leave(self) -> None:
        """Close it."""
        self._forget()
        self._stream.close()

    def _forget(self) -> None:
        self._timer.cancel()
        self._door.reader.unregister(self)
        self._door.strangers.discard(self)


class Introduction:
    """What a guest says once he is proved: two bytes of length, then so much text. Bytes in, no I/O.

    >>> heard = Introduction(longest=80)
    >>> heard.receive(Introduction.of(b"good morning")[: heard.wanted])
    >>> heard.wanted
    12
    """

    def __init__(self, longest: int) -> None:
        self.text = b""
        self._longest = longest
        self._length: int | None = None if longest else 0
        self._incoming = bytearray()

    @staticmethod
    def of(text: bytes) -> bytes:
        """Return what to send to say ``text``."""
        return len(text).to_bytes(LENGTH_BYTES, "big") + text

    @property
    def is_complete(self) -> bool:
        """True when all has been heard, or nothing is wanted."""
        return self._length is not None and len(self.text) == self._length

    @property
    def wanted(self) -> int:
        """How many bytes may be read now."""
        return (LENGTH_BYTES if self._length is None else self._length) - len(self._incoming)

    def receive(self, data: bytes) -> None:
        """Take what was read: at most ``wanted`` bytes. Raises HandshakeError when it will be too long, or is empty."""
        self._incoming += data
        if self.wanted:
            return
        message = bytes(self._incoming)
        self._incoming.clear()
        if self._length is not None:
            self.text = message
            return
        self._length = int.from_bytes(message, "big")
        if not 0 < self._length <= self._longest:
            raise HandshakeError(f"an introduction of {self._length} bytes; from 1 to {self._longest} make sense")

    def connection_lost(self) -> HandshakeError:
        """Return what to raise when the stream ends before."""
        return HandshakeError("the connection ended before it was said what it is for")


def complain_as_worker(text: str) -> None:
    """Say on standard error what is nobody's result."""
    try:
        print(f"distpool worker: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):  # there is none
        return
