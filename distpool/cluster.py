"""Who belongs to the cluster: pid to peer, the departed, and the one door for death.

Used by ``member``, one object per cluster; a process may hold several clusters, which never see each other. Entered by
any thread; the tables are changed under one lock, and everybody concerned is told after it is released. Owns: the table
of peers, the memory of the departed, the counter of ids (driver).

A member's way::

    connecting --joined--> connected --rmprocs--> terminating --stream ended--> departed
        \\------------------------\\------------------ died --------------------->/

``depart`` is the only place where a process leaves: whoever notices its end (the stream, the fork server, a manager)
comes here, the first one wins, and every pending call, waiter and pool is told from here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from distpool.errors import ProcessExitedException
from distpool.light import TYPE_CHECKING
from distpool.messages import DRIVER

if TYPE_CHECKING:
    from distpool.peer import Peer

Listener = Callable[[int, ProcessExitedException], None]


class Departure:
    """How a process ended: what ``ProcessExitedException`` tells about it."""

    __slots__ = ("detail", "exit_code", "os_pid", "signal", "was_asked")

    def __init__(
        self,
        os_pid: int | None = None,
        exit_code: int | None = None,
        signal: int | None = None,
        detail: str | None = None,
        was_asked: bool = False,
    ) -> None:
        self.os_pid = os_pid
        self.exit_code = exit_code
        self.signal = signal
        self.detail = detail
        self.was_asked = was_asked

    def error(self, pid: int, running: str | None = None) -> ProcessExitedException:
        """Return a new exception that says so."""
        return ProcessExitedException(
            pid, os_pid=self.os_pid, exit_code=self.exit_code, signal=self.signal, detail=self.detail, running=running
        )


class Cluster:
    """The membership as this process knows it.

    >>> Cluster(1).procs()
    [1]
    """

    def __init__(self, pid: int) -> None:
        self.pid: int = pid  # this process
        self.topology = "all_to_all"
        self.is_lazy = True  # workers are connected when they first talk to each other
        self.links: set[frozenset[int]] = set()  # with topology="custom": who may talk to whom
        self._lock = threading.Lock()  # protects the tables below
        self._peers: dict[int, Peer] = {}  # connected
        self._terminating: dict[int, Peer] = {}  # asked to end, still connected
        self._known: set[int] = set()  # worker's view: all pids that it was told of
        self._departed: dict[int, Departure] = {}
        # Worker's view: of whom process 1 may still pass something on. Until it says otherwise, in the order of its
        # messages, what one has said to others may be under way although its own connection has ended.
        self._heard_of: set[int] = set()
        self._last_pid = DRIVER
        self._on_joined: list[Callable[[int], None]] = []
        self._on_departed: list[Listener] = []
        self._on_leaving: list[Callable[[int], None]] = []
        self._on_ended: list[Callable[[int], None]] = []

    # -- looking -------------------------------------------------------------------------------------------------

    def procs(self) -> list[int]:
        """All pids, this process included, ascending."""
        with self._lock:
            return sorted({self.pid, *self._peers, *self._known})

    def workers(self) -> list[int]:
        """All pids but 1; ``[1]`` when there is no worker."""
        pids = self.procs()
        return pids if len(pids) == 1 else [pid for pid in pids if pid != DRIVER]

    def is_member(self, pid: int) -> bool:
        """True for this process, every connected one, and (on a worker) every one that process 1 has told of."""
        return pid == self.pid or pid in self._peers or (pid in self._known and pid not in self._departed)

    def was_member(self, pid: int) -> bool:
        """True for a process that is gone, or going."""
        return pid in self._departed or pid in self._terminating

    def peer(self, pid: int) -> Peer:
        """Return the connection to ``pid``.

        Raises ProcessExitedException for a process that is gone and ValueError for one that never was.
        """
        try:
            return self._peers[pid]
        except KeyError:
            raise self.absence(pid) from None

    def absence(self, pid: int) -> Exception:
        """Return why ``pid`` cannot be reached."""
        departure = self._departed.get(pid)
        if departure is not None:
            return departure.error(pid)
        if pid in self._terminating:
            return ProcessExitedException(pid, detail="it is being removed")
        if self.pid != DRIVER and pid in self._known:
            return RuntimeError(f"process {self.pid} has no connection to process {pid}: only process 1 reaches all")
        return ValueError(f"there is no process {pid} in this cluster; procs() lists those there are: {self.procs()}")

    def peers(self) -> list[Peer]:
        """All connections, those of processes that are being removed included."""
        with self._lock:
            return [*self._peers.values(), *self._terminating.values()]

    # -- changing ------------------------------------------------------------------------------------------------

    def next_pid(self) -> int:
        """Return an id that was never used (driver only). A failed launch burns its id."""
        with self._lock:
            self._last_pid += 1
            return self._last_pid

    def add(self, peer: Peer) -> bool:
        """Make a process a member and tell the listeners; False when it has ended meanwhile."""
        with self._lock:
            if peer.pid in self._departed:
                return False
            self._peers[peer.pid] = peer
            if self.pid != DRIVER:
                self._heard_of.add(peer.pid)
            listeners = list(self._on_joined)
        for tell in listeners:
            tell(peer.pid)
        return True

    def know(self, pids: Sequence[int], leaving: Sequence[int] = ()) -> None:
        """Replace the list of members that process 1 has told (worker only); those that are missing have departed.

        ``leaving`` are no members any more, but still connected to process 1.
        """
        with self._lock:
            known, self._known = self._known, set(pids)
            heard_of, self._heard_of = self._heard_of, {*pids, *leaving}
            ended = [pid for pid in heard_of - self._heard_of if pid not in self._peers]
            gone = [pid for pid in known - self._known if pid not in self._peers and pid not in self._departed]
            for pid in gone:
                self._departed[pid] = Departure(was_asked=True)
            listeners = list(self._on_departed)
        for pid in gone:
            for tell in listeners:
                tell(pid, self._departed[pid].error(pid))
        self._tell_end(ended)

    def may_meet(self, one: int, other: int) -> bool:
        """Whether the topology lets two workers talk to each other."""
        if self.topology == "custom":
            return frozenset((one, other)) in self.links
        return self.topology == "all_to_all"

    def agree_on(self, topology: str, is_lazy: bool) -> None:
        """Take note of how workers are to be connected; while there are workers, it cannot be changed.

        Raises RuntimeError for another topology, ValueError for another laziness (all_to_all only).
        """
        if self._peers or self._terminating:
            if topology != self.topology:
                raise RuntimeError(
                    f"topology={topology!r}: there are workers with topology {self.topology!r}; remove them first"
                )
            if topology == "all_to_all" and is_lazy != self.is_lazy:
                raise ValueError(f"lazy={is_lazy}: there are workers with lazy={self.is_lazy}; remove them first")
            return
        self.topology, self.is_lazy = topology, is_lazy
        self.links.clear()

    def check_topology(self, one: int, other: int) -> None:
        """Raise RuntimeError when the topology keeps two workers apart."""
        if not self.may_meet(one, other):
            raise RuntimeError(f"processes {one} and {other} are not connected: the topology is {self.topology!r}")

    def terminate(self, pid: int) -> Peer | None:
        """Begin an orderly removal: not a member any more, still connected. Returns None when it is gone or going."""
        with self._lock:
            peer = self._peers.pop(pid, None)
            if peer is not None:
                self._terminating[pid] = peer
            listeners = list(self._on_leaving) if peer is not None else []
        for tell in listeners:
            tell(pid)
        return peer

    def leaving_pids(self) -> list[int]:
        """The processes that are being removed and still connected."""
        with self._lock:
            return list(self._terminating)

    def is_connected(self, pid: int) -> bool:
        """True while messages of this process may come on its own connection."""
        return pid in self._peers or pid in self._terminating

    def leaving(self, pid: int) -> Peer | None:
        """Return the connection to a process that is being removed, None for any other."""
        return self._terminating.get(pid)

    def depart(self, peer: Peer, departure: Departure) -> bool:
        """The one door for death: forget the process, close its stream, wake everyone who waits on it.

        Returns False when it had gone through before.
        """
        with self._lock:
            if peer.pid in self._departed:
                return False
            # One that is being removed or never joined: whoever asked for that is told by the call that did.
            departure.was_asked = departure.was_asked or peer.pid not in self._peers
            self._departed[peer.pid] = departure
            self._peers.pop(peer.pid, None)
            self._terminating.pop(peer.pid, None)
            has_ended = peer.pid not in self._heard_of
            listeners = list(self._on_departed)
        peer.close()
        faults = peer.fail_pending(lambda: departure.error(peer.pid))
        for tell in listeners:
            try:
                tell(peer.pid, departure.error(peer.pid))
            except Exception as fault:  # a fault of ours: the others must be told all the same
                faults.append(fault)
        if has_ended:
            self._tell_end([peer.pid])
        if faults:
            raise faults[0]
        return True

    def _tell_end(self, pids: Sequence[int]) -> None:
        for pid in pids:
            for tell in list(self._on_ended):
                tell(pid)

    def departure(self, pid: int) -> Departure | None:
        """Return how ``pid`` ended, None when it has not."""
        return self._departed.get(pid)

    # -- listening -----------------------------------------------------------------------------------------------

    def listen(self, joined: Callable[[int], None] | None = None, departed: Listener | None = None) -> None:
        """Be told of every member that comes or goes, on the thread that notices; must not block."""
        with self._lock:
            if joined is not None:
                self._on_joined.append(joined)
            if departed is not None:
                self._on_departed.append(departed)

    def listen_for_end(self, ended: Callable[[int], None]) -> None:
        """Be told when nothing of a process is under way any more, on its own connection or by way of process 1."""
        with self._lock:
            self._on_ended.append(ended)

    def listen_for_leaving(self, leaving: Callable[[int], None]) -> None:
        """Be told when the removal of a member begins: it must get no more work."""
        with self._lock:
            self._on_leaving.append(leaving)

    def unlisten_for_leaving(self, leaving: Callable[[int], None]) -> None:
        """Be told no more."""
        with self._lock:
            self._on_leaving.remove(leaving)

    def unlisten(self, joined: Callable[[int], None] | None = None, departed: Listener | None = None) -> None:
        """Be told no more."""
        with self._lock:
            if joined is not None:
                self._on_joined.remove(joined)
            if departed is not None:
                self._on_departed.remove(departed)
