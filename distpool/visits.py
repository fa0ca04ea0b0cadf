"""Connections between workers on different machines: one of the two dials the other, at the word of process 1.

Used by the member of a worker. Process 1 has one of them open its door and expect a guest (EXPECT), learns where that
is, and sends the other one there (VISIT). Only if that fails does it pass on what the two say (``relays``)::

    process 1 --EXPECT 3--> worker 2: opens its door, once     --> where it listens
              --VISIT 2---> worker 3: dials, handshake, "3 2"  ==> worker 2: was 3 expected? one byte: welcome
              <-- RESULT -- worker 3                               both have the connection

The door is on the address by which process 1 has come, so nobody is nearer to a worker by this than he was before; the
handshake keeps strangers out as at the first door, and with TLS both show their certificates. What comes in is handled
on the reading thread, and a visit is made on a call thread, within seconds. Owns: the door, and who is expected there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from distpool import messages as m
from distpool.cluster import Cluster
from distpool.errors import HandshakeError
from distpool.light import TYPE_CHECKING, Any, Final
from distpool.peer import Peer
from distpool.pickling import dump, load
from distpool.serving import NOTHING, send_error
from distpool.transport import Deadline, Reader
from distpool.wire import Frame

if TYPE_CHECKING:
    from distpool.door import Door

# Seconds for dialling, the handshake and the welcome. Where a firewall drops what is sent, the first call between two
# machines waits that long. Arbitrary: three round trips take less than a second anywhere.
VISIT_SECONDS: Final = 3.0
WELCOME: Final = b"\1"
# Two process numbers and a blank.
LONGEST_NAME: Final = 40

Connect = Callable[[int, Any], Peer]


class Visits:
    """On a worker: its door for other workers, and its visits to theirs."""

    def __init__(
        self, cluster: Cluster, reader: Reader, run: Callable[[Callable[[], object]], object], connect: Connect
    ) -> None:
        self._cluster = cluster
        self._reader = reader
        self._run = run
        self._connect = connect
        self._door: Door | None = None
        self._address = ("", 0)
        self._expected: set[int] = set()

    def expect(self, peer: Peer, frame: Frame) -> None:
        """Process 1 will send a worker here: let it in, and say where."""
        try:
            if self._door is None:
                self._open_door(peer.local_address)
        except OSError as error:
            send_error(peer, frame.request, error)
            return
        self._expected.add(frame.ref)
        peer.send_parcel(m.RESULT, dump(self._address), request=frame.request)

    def _open_door(self, address: str) -> None:
        from distpool.door import Door  # here and below: only for clusters with workers on other machines
        from distpool.tcp import listen, own_encryption

        encryption = own_encryption("worker")
        listener = listen(address, 0)
        self._address = listener.getsockname()[:2]
        self._door = Door(
            listener,
            self._reader,
            self._admit,
            longest_introduction=LONGEST_NAME,
            encrypt=None if encryption is None else encryption.accepted,
        )

    def _admit(self, stream: Any, name: str, introduction: bytes) -> None:
        """Somebody who knows the secret has said who he is, and whom he is looking for."""
        try:
            guest, host = map(int, introduction.split())
        except ValueError:
            guest = host = 0
        if host != self._cluster.pid or guest not in self._expected or self._cluster.was_member(guest):
            stream.close()
            return
        self._expected.discard(guest)
        try:
            stream.sendall(WELCOME)  # into an empty buffer
        except OSError:
            stream.close()
            return
        self._cluster.add(self._connect(guest, stream))

    def visit(self, peer: Peer, frame: Frame) -> None:
        """Process 1 has found somebody for us to dial."""
        host, port, secret = load(frame.body)
        self._run(lambda: self._visit(peer, frame.request, frame.ref, host, port, secret))

    def _visit(self, peer: Peer, request: int, pid: int, host: str, port: int, secret: str | None) -> None:
        try:
            stream = self._dialled(pid, host, port, secret)
        except (OSError, HandshakeError) as error:
            send_error(peer, request, error)
            return
        if self._cluster.was_member(pid):  # it has ended since, and goes through the door of death only once
            stream.close()
        else:
            self._cluster.add(self._connect(pid, stream))
        peer.send_parcel(m.RESULT, NOTHING, request=request)

    def _dialled(self, pid: int, host: str, port: int, secret: str | None) -> Any:
        from distpool.cookie import cluster_cookie
        from distpool.door import Introduction
        from distpool.handshake import Handshake
        from distpool.tcp import dial, own_encryption, shake_hands

        encryption, deadline = own_encryption("worker"), Deadline(VISIT_SECONDS)
        connection = dial(host, port, deadline)
        stream: Any = connection if encryption is None else encryption.dialled(connection)
        try:
            version = sys.modules[__name__.partition(".")[0]].__version__  # as in ``tcp``
            # A forked worker was never told the cookie, and is told by its socket pair.
            known = cluster_cookie() if secret is None else secret
            shake_hands(stream, Handshake("initiator", known.encode("ascii"), str(version)), deadline)
            stream.sendall(Introduction.of(b"%d %d" % (self._cluster.pid, pid)))
            stream.settimeout(deadline.remaining() or 0.001)
            if stream.recv(1) != WELCOME:
                raise HandshakeError("it was not welcome")
        except BaseException:
            stream.close()
            raise
        return stream

    def close(self) -> None:
        """Shut the door, for a worker that ends without ending its process."""
        if self._door is not None:
            self._door.close()
