"""A port that is open to a network: who comes, and who is let in.

Used by workers that listen for their driver (``listening``) and by a driver that listens for workers which dial back
(``managers.dialback``). Whoever connects has to prove that he knows the secret, within limits of time, size and number;
then, if the host asks for it, he says in one short line what he has come for, and is handed over::

    listener --accept--> Stranger --handshake within 5 s--> [introduction] --> admit(stream, name, introduction)
                                  --garbage, silence, a wrong secret--> closed; nobody else is harmed

All of it happens on the thread that reads: a handler takes what has arrived and never waits for a stranger. Those who
only stand there keep nobody out, and what is turned away is told, but not ten thousand times. Owns: the listener, the
connections that are not admitted yet. What the two say to each other after the handshake is defined here for both
sides: the guest's introduction, the host's answer.
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from distpool.errors import HandshakeError
from distpool.handshake import Handshake
from distpool.tcp import Conversation, new_handshake, tune
from distpool.transport import Deadline, Reader

# How long one connection may take to prove itself. Two round trips and no work: a slow link needs a second.
STRANGER_SECONDS: Final = 5.0
# How many connections may be unproved at a time, so that strangers cannot use up descriptors.
MAX_STRANGERS: Final = 64
# How long one may stand there while others may wait for his place. Longer than honest ones take; 64 silent ones a
# second get through, so a driver that comes behind a full queue of the kernel (128) is let in after two.
CROWDED_SECONDS: Final = 1.0
# In how many seconds how many complaints are made one by one; the others are counted. Arbitrary: enough to see what
# goes on, and too little to fill a pipe that nobody reads.
COMPLAINT_SECONDS: Final = 10.0
COMPLAINTS: Final = 5
# How often it is looked who has stood there too long; so much later than that one leaves.
ROUND_SECONDS: Final = 0.25
# How long the door stays shut when this process has no descriptor left. Arbitrary.
FULL_SECONDS: Final = 1.0
# An introduction has its length in front, and so has the answer to it.
LENGTH_BYTES: Final = 2
ANSWER_LENGTH_BYTES: Final = 4
# The longest answer that makes sense: an environment and a path, each tens of kilobytes at most.
MAX_ANSWER_BYTES: Final = 1 << 22

# What becomes of one who was admitted: his connection (not blocking), where he comes from, and his introduction.
Admit = Callable[[Any, str, bytes], None]
# Makes an encrypted connection of a plain one (``tls``).
Encrypt = Callable[[socket.socket], Any]


class Door:
    """The listener and those who stand before it. A handler of the reader.

    ``longest_introduction`` is how many bytes a guest may say of himself once he is proved, 0 when he is not asked;
    ``most`` how many may stand before the door at a time: more wait in the kernel until there is room, as hundreds of
    honest ones may come at once, and as long as some wait nobody may stand there longer than a second. With ``encrypt``
    all goes through what it makes of a connection. What is nobody's result goes to ``complain``.
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
        encrypt: Encrypt | None = None,
    ) -> None:
        self.reader: Final = reader
        self.admit: Final = admit
        self.longest_introduction: Final = longest_introduction
        self.strangers: dict[Stranger, None] = {}  # in the order in which they came
        self._complain = complain or complain_as_worker
        self._encrypt = encrypt
        self._turned_away = 0  # in the last COMPLAINT_SECONDS
        self._listener = listener
        self._most = most
        self._has_timer = False  # runs while somebody stands here
        self._is_watched = True
        self._is_closed = False
        listener.setblocking(False)
        reader.register(self)

    @property
    def is_encrypting(self) -> bool:
        """Whether those who come have to speak TLS."""
        return self._encrypt is not None

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
                self._look_away()
                self.reader.call_later(FULL_SECONDS, self._look_again)
            return
        connection = stream if self._encrypt is None else self._encrypt(stream)
        self.strangers[Stranger(self, connection, f"{address[0]}, port {address[1]}")] = None
        if len(self.strangers) >= self._most:
            self._look_away()
        if not self._has_timer:
            self._has_timer = True
            self.reader.call_later(ROUND_SECONDS, self._go_round)

    def _go_round(self) -> None:
        """Turn away who has stood here too long. One timer for all: a flood would leave thousands of cancelled ones."""
        patience = STRANGER_SECONDS if self._is_watched else CROWDED_SECONDS
        for stranger in list(self.strangers):
            if stranger.age < patience:
                break
            stranger.give_up(patience)
        self._has_timer = bool(self.strangers)
        if self._has_timer:
            self.reader.call_later(ROUND_SECONDS, self._go_round)

    def turn_away(self, name: str, reason: str) -> None:
        """Say why somebody was not admitted, unless that has been said too often."""
        self._turned_away += 1
        if self._turned_away == 1:
            self.reader.call_later(COMPLAINT_SECONDS, self._sum_up)
        if self._turned_away <= COMPLAINTS:
            self._complain(f"a connection from {name} was not admitted: {reason}")

    def _sum_up(self) -> None:
        unsaid, self._turned_away = self._turned_away - COMPLAINTS, 0
        if unsaid > 0 and not self._is_closed:
            self._complain(f"{unsaid} more connections were not admitted within {COMPLAINT_SECONDS:g} s")

    def forget(self, stranger: Stranger) -> None:
        """One does not stand here any more."""
        self.strangers.pop(stranger, None)
        self._look_again()

    def _look_away(self) -> None:
        self._is_watched = False
        self.reader.unregister(self)

    def _look_again(self) -> None:
        if not self._is_watched and not self._is_closed:
            self._is_watched = True
            self.reader.register(self)

    def close(self) -> None:
        """Listen no more, and close what has not been admitted. On the reading thread, or when nothing else reads."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._is_watched:
            self.reader.unregister(self)
        self._listener.close()
        for stranger in list(self.strangers):
            stranger.leave()


class Stranger:
    """A connection on its way in: the handshake, then perhaps an introduction. A handler of the reader."""

    def __init__(self, door: Door, stream: Any, name: str) -> None:
        self._door = door
        self._since = time.monotonic()
        self._stream = stream
        self._name = name
        self._handshake: Handshake = new_handshake("acceptor")
        self._introduction = Introduction(door.longest_introduction)
        stream.setblocking(False)
        door.reader.register(self)

    @property
    def age(self) -> float:
        """How many seconds he has stood here."""
        return time.monotonic() - self._since

    def fileno(self) -> int:
        """The connection's descriptor."""
        number: int = self._stream.fileno()
        return number

    def on_writable(self) -> None:
        """Never asked for: what handshakes send fits into the empty buffer of a new connection."""

    def on_readable(self) -> None:
        """Take what has come, but nothing that follows."""
        try:
            # An encrypted connection may have received more than was asked for, which no poll would tell of again.
            while not (self._handshake.is_complete and self._introduction.is_complete):
                self._take()
        except BlockingIOError:
            return
        except HandshakeError as error:
            self._turn_away(str(error))
        except OSError as error:
            self._turn_away(f"the connection broke: {error}")
        else:
            self._forget()
            tune(self._stream)
            self._door.admit(self._stream, self._name, self._introduction.text)

    def _take(self) -> None:
        stage = self._introduction if self._handshake.is_complete else self._handshake
        data = self._stream.recv(stage.wanted)
        if not data:
            raise stage.connection_lost()
        stage.receive(data)
        if answer := self._handshake.data_to_send():
            self._stream.sendall(answer)

    def give_up(self, patience: float) -> None:
        """Wait no more for what he has to say."""
        self._turn_away(f"no handshake within {patience:g} s")

    def _turn_away(self, reason: str) -> None:
        self.leave()
        self._door.turn_away(self._name, reason)

    def leave(self) -> None:
        """Close it."""
        self._forget()
        self._stream.close()

    def _forget(self) -> None:
        self._door.reader.unregister(self)
        self._door.forget(self)


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


def send_answer(stream: Conversation, answer: Mapping[str, Any], deadline: Deadline) -> None:
    """Answer an introduction. OSError when the guest has gone, or does not read within the deadline."""
    import json  # only where workers dial back

    text = json.dumps(answer).encode("ascii")
    stream.settimeout(deadline.remaining())
    stream.sendall(len(text).to_bytes(ANSWER_LENGTH_BYTES, "big") + text)


def receive_answer(stream: Conversation, deadline: Deadline) -> dict[str, Any]:
    """Return the answer to an introduction. Raises HandshakeError when none comes, or none that makes sense."""
    import json  # as above

    length = int.from_bytes(_receive_exactly(stream, ANSWER_LENGTH_BYTES, deadline), "big")
    if length > MAX_ANSWER_BYTES:
        raise HandshakeError(f"an answer of {length} bytes; at most {MAX_ANSWER_BYTES} make sense")
    answer = json.loads(_receive_exactly(stream, length, deadline))
    if not isinstance(answer, dict):
        raise HandshakeError("an answer that is none")
    return answer


def _receive_exactly(stream: Conversation, count: int, deadline: Deadline) -> bytes:
    data = bytearray()
    while len(data) < count:
        left = deadline.remaining()
        stream.settimeout(left if left is None else max(left, 0.001))  # zero would mean "do not block"
        try:
            piece = stream.recv(count - len(data))
        except TimeoutError:
            raise HandshakeError("no answer came in time") from None
        if not piece:
            raise HandshakeError("the other side closed the connection instead of answering")
        data += piece
    return bytes(data)


def complain_as_worker(text: str) -> None:
    """Say on standard error what is nobody's result."""
    try:
        print(f"distpool worker: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError, AttributeError):  # there is none
        return
