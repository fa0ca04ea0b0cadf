"""The handshake without any I/O: bytes are handed from one side to the other by the test."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from distpool.errors import HandshakeError, LocalProtocolError
from distpool.handshake import MAGIC, MAX_FACTS_BYTES, NONCE_BYTES, PROOF_BYTES, Handshake, Role

SECRET = b"the secret of these tests"

Cut = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    """As it was sent."""
    return [data]


def bytewise(data: bytes) -> list[bytes]:
    """The worst that a network can do."""
    return [data[i : i + 1] for i in range(len(data))]


class Wire:
    """What one side has sent and the other has not read yet; remembers everything."""

    def __init__(self) -> None:
        self.pending = b""
        self.everything = b""

    def write(self, data: bytes) -> None:
        self.pending += data
        self.everything += data

    def read(self, most: int) -> bytes:
        data, self.pending = self.pending[:most], self.pending[most:]
        return data


class Tampered(Wire):
    """One on which somebody sits: he changes one byte, at a place counted from the beginning, or one text."""

    def __init__(self, place: int, flip: int) -> None:
        super().__init__()
        self.place, self.flip = place, flip
        self.replaced = (b"", b"")

    def write(self, data: bytes) -> None:
        if 0 <= self.place - len(self.everything) < len(data):
            changed = bytearray(data)
            changed[self.place - len(self.everything)] ^= self.flip
            data = bytes(changed)
        super().write(data.replace(*self.replaced) if self.replaced[0] else data)


def side(role: Role, secret: bytes = SECRET, **facts: Any) -> Handshake:
    return Handshake(role, secret, facts.pop("distpool", "1.2.3"), **facts)


def talk(initiator: Handshake, acceptor: Handshake, cut: Cut = whole) -> tuple[Wire, Wire, list[HandshakeError]]:
    """Let both talk until nobody has anything to say; returns what each side sent, and the errors."""
    there, back = Wire(), Wire()
    errors: list[HandshakeError] = []
    converse(initiator, acceptor, there, back, cut, errors)
    return there, back, errors


def converse(
    initiator: Handshake, acceptor: Handshake, there: Wire, back: Wire, cut: Cut, errors: list[HandshakeError]
) -> None:
    """Let both talk over these wires."""
    is_moving = True
    while is_moving:
        is_moving = False
        for speaker, wire, hearer in ((initiator, there, acceptor), (acceptor, back, initiator)):
            wire.write(speaker.data_to_send())
            while wire.pending and hearer.wanted:
                is_moving = True
                _hear(hearer, wire.read(hearer.wanted), cut, errors)


def _hear(hearer: Handshake, data: bytes, cut: Cut, errors: list[HandshakeError]) -> None:
    for piece in cut(data):
        try:
            hearer.receive(piece)
        except HandshakeError as error:
            errors.append(error)
            return


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_equal_secrets_meet(cut: Cut) -> None:
    """Both sides are complete, whatever pieces the bytes come in, and a kilobyte is never needed."""
    dialling, listening = side("initiator"), side("acceptor")
    there, back, errors = talk(dialling, listening, cut)
    assert errors == []
    assert dialling.is_complete
    assert listening.is_complete
    assert max(len(there.everything), len(back.everything)) < 1024


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_what_follows_is_not_touched(cut: Cut) -> None:
    """Bytes behind the handshake stay unread: they are the first frame."""
    dialling, listening = side("initiator"), side("acceptor")
    first_flight = dialling.data_to_send()
    listening.receive(first_flight)
    dialling.receive(listening.data_to_send())
    proof = dialling.data_to_send()
    listening.receive(proof)
    answer = listening.data_to_send()
    while dialling.wanted:
        taken, answer = answer[: dialling.wanted], answer[dialling.wanted :]
        for piece in cut(taken):
            dialling.receive(piece)
    stream = dialling.data_to_send() + b"frame of the driver"
    while listening.wanted:
        taken, stream = stream[: listening.wanted], stream[listening.wanted :]
        for piece in cut(taken):
            listening.receive(piece)
    assert listening.is_complete
    assert stream == b"frame of the driver"
    assert listening.wanted == 0


def test_more_than_wanted_is_our_own_fault() -> None:
    """Reading too far would swallow frames, so it is an error of the caller and not of the other process."""
    with pytest.raises(LocalProtocolError):
        side("acceptor").receive(bytes(NONCE_BYTES + len(MAGIC) + 1))


def test_a_wrong_initiator_gets_no_answer() -> None:
    """Who dials without the secret learns nothing that he could try guesses on: only a nonce comes back."""
    stranger, listening = side("initiator", b"a guess"), side("acceptor")
    _, back, errors = talk(stranger, listening)
    assert [str(error) for error in errors] == [
        "the initiator of this connection does not know the cluster's secret (see cluster_cookie)"
    ]
    assert len(back.everything) == len(MAGIC) + NONCE_BYTES
    assert not listening.is_complete
    assert "cluster_cookie" in str(stranger.connection_lost())


def test_a_wrong_acceptor_is_refused() -> None:
    """The side that dials checks, too: a port may have passed to somebody else."""
    dialling = side("initiator")
    dialling.data_to_send()
    dialling.receive(MAGIC + bytes(NONCE_BYTES))
    with pytest.raises(HandshakeError, match="the acceptor of this connection does not know"):
        dialling.receive(bytes(PROOF_BYTES))
    assert dialling.data_to_send()[PROOF_BYTES:] == b"", "no versions for a stranger"


def test_recorded_initiator_is_refused() -> None:
    """Replay: all that a real driver once sent does not open another connection."""
    there, _, _ = talk(side("initiator"), side("acceptor"))
    later = side("acceptor")
    later.receive(there.everything[: later.wanted])
    rest = there.everything[len(MAGIC) + NONCE_BYTES :]
    with pytest.raises(HandshakeError, match="does not know"):
        later.receive(rest[: later.wanted])


def test_recorded_acceptor_is_refused() -> None:
    """Replay in the other direction."""
    _, back, _ = talk(side("initiator"), side("acceptor"))
    later = side("initiator")
    later.receive(back.everything[: later.wanted])
    rest = back.everything[len(MAGIC) + NONCE_BYTES :]
    with pytest.raises(HandshakeError, match="does not know"):
        later.receive(rest[: later.wanted])


@pytest.mark.parametrize("cut", [whole, bytewise])
def test_a_mirror_is_refused(cut: Cut) -> None:
    """Reflection: who answers with what he was just sent proves nothing, because each proof names its side."""
    dialling, mirror = side("initiator"), Wire()
    errors: list[HandshakeError] = []
    while not errors:
        mirror.write(dialling.data_to_send())
        _hear(dialling, mirror.read(dialling.wanted), cut, errors)
    assert "does not know" in str(errors[0])
    assert not dialling.is_complete


def test_one_acceptor_cannot_be_asked_for_an_initiators_proof() -> None:
    """Reflection over two connections: a stranger passes the challenge of one on to the other, and gets nothing."""
    first, second = side("acceptor"), side("acceptor")
    first.receive(MAGIC + bytes(NONCE_BYTES))
    challenge = first.data_to_send()
    second.receive(challenge)
    answer = second.data_to_send()
    assert len(answer) == len(challenge), "no proof before the other side has proved itself"
    with pytest.raises(HandshakeError, match="does not know"):
        first.receive(answer[-PROOF_BYTES:])


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"python": "cpython 3.99"}, ["Python cpython 3.99", f"Python cpython 3.{sys.version_info[1]}"]),
        ({"distpool": "0.0.9"}, ["distpool 0.0.9", "distpool 1.2.3"]),
        ({"protocol": 77}, ["protocol 77", "protocol 1"]),
    ],
)
def test_versions_must_agree(facts: dict[str, Any], named: list[str]) -> None:
    """Both sides say which two versions have met."""
    _, _, errors = talk(side("initiator", **facts), side("acceptor"))
    assert len(errors) == 2
    for error in errors:
        for version in named:
            assert version in str(error)


def test_versions_come_after_the_proof() -> None:
    """A stranger does not even learn which version to attack."""
    listening = side("acceptor")
    listening.receive(MAGIC + bytes(NONCE_BYTES))
    assert b"distpool=" not in listening.data_to_send()


@pytest.mark.parametrize("length", [0, MAX_FACTS_BYTES + 1, 65535])
def test_absurd_versions_are_refused(length: int) -> None:
    """A member of the cluster, too, cannot make us read more than a kilobyte."""
    listening, nonce = side("acceptor"), bytes(NONCE_BYTES)
    listening.receive(MAGIC + nonce)
    theirs = listening.data_to_send()[len(MAGIC) :]
    listening.receive(hmac.new(SECRET, MAGIC + b" initiator proof " + nonce + theirs, hashlib.sha256).digest())
    with pytest.raises(HandshakeError, match=f"sent {length} bytes of versions"):
        listening.receive(length.to_bytes(2, "big"))


def test_strange_text_in_versions_is_shown_as_ascii() -> None:
    """What the other side calls its versions goes into a log: no control characters from there."""
    _, _, errors = talk(side("initiator", distpool="1\x9b2J\N{SNOWMAN}"), side("acceptor"))
    assert "\\x9b" in str(errors[1]), "the acceptor's error shows what came from the other side"
    assert str(errors[1]).isascii()


def test_another_handshake_version_is_named() -> None:
    """A later distpool is told from a stranger."""
    with pytest.raises(HandshakeError, match="handshake version 2 in the other process, 1 here"):
        side("acceptor").receive(b"distpool\x02")


@given(st.data())
def test_whatever_is_changed_on_the_way_is_noticed(data: st.DataObject) -> None:
    """One byte of the whole conversation, in either direction: nobody who was told another thing is complete.

    Lengths that were changed leave a side waiting for more (its time limit is the caller's), never complete.
    """
    sizes = [len(wire.everything) for wire in talk(side("initiator"), side("acceptor"))[:2]]
    way = data.draw(st.sampled_from([0, 1]))
    place = data.draw(st.integers(0, sizes[way] - 1))
    flip = data.draw(st.integers(1, 255))
    dialling, listening = side("initiator"), side("acceptor")
    there, back = Tampered(place if way == 0 else -1, flip), Tampered(place if way == 1 else -1, flip)
    errors: list[HandshakeError] = []
    converse(dialling, listening, there, back, whole, errors)
    deceived = listening if way == 0 else dialling
    assert not deceived.is_complete
    assert errors or deceived.wanted


@given(guess=st.binary(max_size=300), cuts=st.lists(st.integers(1, 40), min_size=1, max_size=20))
def test_another_secret_never_gets_in(guess: bytes, cuts: list[int]) -> None:
    """However the bytes are cut; and what the acceptor says does not depend on how close the guess is."""
    assume(guess != SECRET)
    stranger, listening = side("initiator", guess), side("acceptor")

    def cut(data: bytes) -> list[bytes]:
        pieces, place = [], 0
        while place < len(data):
            size = cuts[len(pieces) % len(cuts)]
            pieces.append(data[place : place + size])
            place += size
        return pieces

    _, back, errors = talk(stranger, listening, cut)
    assert len(errors) == 1
    assert len(back.everything) == len(MAGIC) + NONCE_BYTES


def test_changed_versions_are_told_from_other_versions() -> None:
    """Somebody on the way cannot make two equal versions look different: what he changed is not believed."""
    dialling, listening = side("initiator"), side("acceptor")
    there, back = Wire(), Tampered(-1, 0)
    back.replaced = (b"distpool=1.2.3", b"distpool=9.9.9")
    errors: list[HandshakeError] = []
    converse(dialling, listening, there, back, whole, errors)
    assert [str(error) for error in errors] == ["the versions of the other process were changed on their way"]


@pytest.mark.parametrize("role", ["initiator", "acceptor"])
@given(data=st.binary(min_size=1, max_size=2000))
def test_garbage_is_a_handshake_error(role: Role, data: bytes) -> None:
    """Whatever comes, in whatever pieces, the error is ours, and at most a kilobyte is looked at."""
    handshake, place = side(role), 0
    while handshake.wanted and place < len(data):
        piece = data[place : place + handshake.wanted]
        try:
            handshake.receive(piece)
        except HandshakeError:
            break
        place += len(piece)
    assert not handshake.is_complete
    assert place <= 1024


def test_the_first_wrong_byte_is_enough() -> None:
    """A browser or a scanner is not listened to."""
    with pytest.raises(HandshakeError, match="none of distpool's"):
        side("acceptor").receive(b"G")


def test_a_failed_handshake_stays_failed() -> None:
    """No second try on the same connection."""
    listening = side("acceptor")
    with pytest.raises(HandshakeError):
        listening.receive(b"x")
    assert listening.wanted == 0
    assert not listening.is_complete
    with pytest.raises(HandshakeError):
        listening.receive(b"")


def test_the_empty_secret_works_and_differs() -> None:
    """The empty cookie is legal, and still not the same as another one."""
    assert talk(side("initiator", b""), side("acceptor", b""))[2] == []
    assert len(talk(side("initiator", b""), side("acceptor", b"x"))[2]) == 1


def test_nonces_are_new_each_time() -> None:
    """The challenge of one connection is never that of another."""
    assert len({side("initiator").data_to_send() for _ in range(50)}) == 50


def test_nothing_is_unpickled() -> None:
    """The room does not even know pickle, sockets, threads or a clock."""
    code = (
        "import sys, distpool.errors; old = set(sys.modules); import distpool.handshake;print(*set(sys.modules) - old)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    new = set(found.stdout.split())
    assert new & {"pickle", "socket", "threading", "time", "select", "distpool.pickling"} == set()
