"""How two workers may be connected directly, as process 1 knows their machines; and how it asks them to.

Used by the member for ``introductions``, on process 1 only. Owns nothing: it reads what is known of how each worker was
started.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from distpool.introductions import Way
from distpool.light import TYPE_CHECKING, Final, Protocol
from distpool.peer import Peer
from distpool.pickling import Parcel

if TYPE_CHECKING:
    from distpool.managers.interface import ClusterManager, WorkerConfig

# This machine, as far as its loopback addresses reach.
_HERE: Final = "localhost"


class Ask(Protocol):
    """Sends a request (``Member.send_request``)."""

    def __call__(self, peer: Peer, pending: object, kind: int, parcel: Parcel, *, ref: int) -> object:
        """The answer goes to ``pending``."""


class Guidance:
    """What ``introductions`` ask of process 1."""

    def __init__(
        self,
        configs: Mapping[int, WorkerConfig],
        managers: Mapping[int, ClusterManager],
        ask: Ask,
        relay: Callable[[Peer, Peer], object],
    ) -> None:
        self._configs = configs
        self._managers = managers
        self._ask = ask
        self._relay = relay

    def ways(self, one: Peer, other: Peer) -> Sequence[Way]:
        """How these two may be connected directly: each dials the other if that one may be dialled, the higher first.

        That order is Julia's rule.
        """
        pairs = sorted(((one, other), (other, one)), key=lambda pair: pair[0].pid)
        return [way for host, guest in pairs if (way := self._way(host, guest)) is not None]

    def _way(self, host: Peer, guest: Peer) -> Way | None:
        from distpool.cookie import cluster_cookie  # here and below: only for clusters on several machines
        from distpool.tcp import is_loopback

        config, manager = self._configs.get(host.pid), self._managers.get(host.pid)
        if config is None or manager is None or not manager.workers_meet:
            return None
        # Both have certificates, or neither: what goes encrypted to process 1 must not go plain to anybody else.
        if host.is_encrypted != guest.is_encrypted:
            return None
        machines = self._machine(host), self._machine(guest)
        if is_loopback(config.bind_addr or "") and machines[0] != machines[1]:
            return None
        return Way(host, guest, machines, cluster_cookie() if guest.shares_memory else None)

    def _machine(self, peer: Peer) -> str:
        """A name for the machine of a worker; one that we have dialled by a loopback address is on ours."""
        from distpool.tcp import is_loopback

        config = self._configs.get(peer.pid)
        dialled = config.connect_at[0] if config is not None and config.connect_at else ""
        if config is None or peer.shares_memory or is_loopback(dialled):
            return _HERE
        return config.host or dialled

    def relay(self, one: Peer, other: Peer) -> None:
        """Have process 1 pass on what they say."""
        self._relay(one, other)

    def ask(self, peer: Peer, pending: object, kind: int, parcel: Parcel, ref: int) -> None:
        """Send a request."""
        self._ask(peer, pending, kind, parcel, ref=ref)
