"""Who may join: two processes prove to each other that they know the cluster's secret, without any I/O.

Used by ``tcp`` (the side that dials) and ``listening`` (the side that is dialled), one object per connection, in one
thread at a time. Knows no socket, thread, clock or pickle: bytes in, bytes out. Local workers share a socket pair with
their driver and never load this room.
::

    initiator (dials)                            acceptor (listens)
    HELLO  magic, nonce 1       ---------------> a stranger is shut out here already if the magic is wrong
                                <--------------- HELLO  magic, nonce 2
    PROOF  HMAC("initiator")    ---------------> compared; a wrong one ends the connection without an answer
                                <--------------- PROOF  HMAC("acceptor"), then FACTS: versions and their HMAC
    FACTS  the same             ---------------> both compare

Why so: each HMAC covers both nonces, so a recorded one is worthless later (replay); each names the role of its sender
and what it stands for, so nobody can answer with what he was just sent (reflection); who dials proves first, so a
stranger who dials learns nothing that he could try guesses on; the versions are signed, so nobody on the way can make
equal ones look different. What follows is neither encrypted nor signed: this keeps strangers out, not somebody who can
change the traffic of the network (``tls`` does that). Nothing is unpickled before both sides are proved, and no more
than a kilobyte is taken.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import Callable
from typing import Final, Literal

from distpool.errors import HandshakeError, LocalProtocolError

Role = Literal["initiator", "acceptor"]

# The version of the frames that follow (wire, messages). Raise it with every change that an older process would not
# understand.
PROTOCOL: Final = 1
# The number at its end is that of the handshake itself: whoever speaks another one is told so.
MAGIC: Final = b"distpool\x01"
NONCE_BYTES: Final = 32  # as many as the hash has: two connections never draw the same one
PROOF_BYTES: Final = hashlib.sha256().digest_size
# For the text of versions; they are tens of bytes. With the rest far below the kilobyte that a stranger may cost.
MAX_FACTS_BYTES: Final = 512


class Handshake:
    """One side of one handshake.

    ``wanted`` says how many bytes to read next, ``receive`` takes them, ``data_to_send`` has what to write. Never a
    byte too many is read: what follows the handshake belongs to the frames.

    >>> dialling, listening = Handshake("initiator", b"secret", "0.1"), Handshake("acceptor", b"secret", "0.1")
    >>> sides = [(dialling, listening, bytearray()), (listening, dialling, bytearray())]
    >>> while not (dialling.is_complete and listening.is_complete):
    ...     for sender, receiver, wire in sides:
    ...         wire += sender.data_to_send()
    ...         piece = bytes(wire[: receiver.wanted])
    ...         del wire[: len(piece)]
    ...         receiver.receive(piece)

    Raises HandshakeError from ``receive``, and then for ever: the connection must be closed (after what is still to be
    sent). ``distpool`` is this side's version of the package, ``python`` and ``protocol`` are for tests.
    """

    def __init__(
        self,
        role: Role,
        secret: bytes,
        distpool: str,
        *,
        python: str | None = None,
        protocol: int = PROTOCOL,
    ) -> None:
        self._role: Final = role
        self._secret = secret
        self._facts = _facts(protocol, python or _this_python(), distpool)
        self._nonce = os.urandom(NONCE_BYTES)
        self._their_nonce = b""
        self._outgoing = b""
        self._incoming = bytearray()  # the beginning of what is being waited for
        self._error: HandshakeError | None = None
        # What is waited for: its length and who takes it; None when all is done.
        self._next: tuple[int, Callable[[bytes], None]] | None = (len(MAGIC) + NONCE_BYTES, self._hello)
        if role == "initiator":
            self._outgoing = MAGIC + self._nonce

    @property
    def is_complete(self) -> bool:
        """True when the other side is proved and of the same versions."""
        return self._next is None and self._error is None

    @property
    def wanted(self) -> int:
        """How many bytes may be read now; 0 when no more belong to the handshake."""
        return 0 if self._next is None or self._error is not None else self._next[0] - len(self._incoming)

    def data_to_send(self) -> bytes:
        """Return what is to be sent now, each byte once; empty when there is nothing."""
        data, self._outgoing = self._outgoing, b""
        return data

    def receive(self, data: bytes) -> None:
        """Take what was read: at most ``wanted`` bytes. Raises HandshakeError when the other side is not one of us."""
        if self._error is not None:
            raise self._error
        if len(data) > self.wanted:
            raise LocalProtocolError(f"{len(data)} bytes for a handshake that wants {self.wanted}")
        self._incoming += data
        # The magic is looked at as soon as it can be: a stranger who never sends more is known at once.
        if self._their_nonce == b"" and not MAGIC.startswith(self._incoming[: len(MAGIC)]):
            self._fail(_stranger(bytes(self._incoming[: len(MAGIC)])))
        if self._next is not None and len(self._incoming) == self._next[0]:
            message, take = bytes(self._incoming), self._next[1]
            self._incoming.clear()
            take(message)

    def connection_lost(self) -> HandshakeError:
        """Return what to raise when the stream ends before the handshake does."""
        if self._role == "initiator" and self._their_nonce:
            return HandshakeError(
                "the other process closed the connection instead of proving itself: it knows another secret "
                "(see cluster_cookie), or has too many strangers at its door"
            )
        return HandshakeError("the connection ended before the handshake did")

    # -- the messages, in order ----------------------------------------------------------------------------------

    def _hello(self, message: bytes) -> None:
        self._their_nonce = message[len(MAGIC) :]
        self._next = (PROOF_BYTES, self._their_proof)
        if self._role == "initiator":
            self._outgoing += self._proof("initiator")
        else:
            self._outgoing += MAGIC + self._nonce

    def _their_proof(self, message: bytes) -> None:
        theirs: Role = "acceptor" if self._role == "initiator" else "initiator"
        if not hmac.compare_digest(message, self._proof(theirs)):
            self._fail(f"the {theirs} of this connection does not know the cluster's secret (see cluster_cookie)")
        if self._role == "acceptor":
            self._outgoing += self._proof("acceptor")
        self._outgoing += len(self._facts).to_bytes(2, "big") + self._facts + self._seal(self._role, self._facts)
        self._next = (2, self._facts_length)

    def _facts_length(self, message: bytes) -> None:
        length = int.from_bytes(message, "big")
        if not 0 < length <= MAX_FACTS_BYTES:
            self._fail(f"the other process sent {length} bytes of versions; at most {MAX_FACTS_BYTES} make sense")
        self._next = (length + PROOF_BYTES, self._their_facts)

    def _their_facts(self, message: bytes) -> None:
        facts, seal = message[:-PROOF_BYTES], message[-PROOF_BYTES:]
        theirs: Role = "acceptor" if self._role == "initiator" else "initiator"
        if not hmac.compare_digest(seal, self._seal(theirs, facts)):
            self._fail("the versions of the other process were changed on their way")
        if facts != self._facts:
            self._fail(_difference(self._facts, facts))
        self._next = None

    def _proof(self, role: Role) -> bytes:
        """What ``role`` has to say to prove itself in this very connection."""
        return self._sign(b"%b proof" % role.encode(), b"")

    def _seal(self, role: Role, facts: bytes) -> bytes:
        """What shows that these versions are those of ``role``, and of this very connection."""
        return self._sign(b"%b facts" % role.encode(), facts)

    def _sign(self, label: bytes, data: bytes) -> bytes:
        """All before ``data`` has a fixed length for each label: two different things never look alike to the hash."""
        nonces = (self._nonce, self._their_nonce)  # the initiator's first
        if self._role == "acceptor":
            nonces = (self._their_nonce, self._nonce)
        return hmac.new(self._secret, b"%b %b " % (MAGIC, label) + b"".join(nonces) + data, "sha256").digest()

    def _fail(self, text: str) -> None:
        self._error = HandshakeError(text)
        raise self._error


def _this_python() -> str:
    """What decides whether functions sent by value run: the implementation and the minor version, whose bytecode it
    is."""
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


def _facts(protocol: int, python: str, distpool: str) -> bytes:
    return f"protocol={protocol}\nPython={python}\ndistpool={distpool}".encode()


def _difference(ours: bytes, theirs: bytes) -> str:
    """Name the first version that differs, and both values. The text of the other side is shown in ASCII only."""
    for our_line, their_line in zip(ours.split(b"\n"), [*theirs.split(b"\n"), b"", b"", b""], strict=False):
        if our_line != their_line:
            name, _, our_value = our_line.decode().partition("=")
            their_value = their_line.partition(b"=")[2].decode("ascii", "backslashreplace") or "unknown"
            return (
                f"{name} {our_value} here and {name} {their_value} in the other process; all processes of a cluster "
                f"need the same versions"
            )
    return "the other process sent more about its versions than this one knows of; all need the same distpool"


def _stranger(beginning: bytes) -> str:
    if beginning[: len(MAGIC) - 1] == MAGIC[:-1]:
        return f"handshake version {beginning[-1]} in the other process, {MAGIC[-1]} here; all need the same distpool"
    if beginning[:2] == b"\x16\x03":  # what TLS begins with
        return "the other process speaks TLS and this one does not: tls=True must be set for both sides"
    return f"the other process is none of distpool's: it began with {beginning!r}"
