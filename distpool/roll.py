"""The roll of a cluster: how the end of a process is noticed, and who is told who belongs.

Used by the member, one each. Of a process that this one has started, two things tell, in any order; of any other the
end of its stream is all there is::

    stream_ended    not started by us:  gone
                    else                wait for the report; if none comes, kill it, and it is gone
    exit_reported   what it has sent before is still in the socket, and counts: read on to the end, then it is gone

    gone -> cluster.depart, the one door -> its manager, the other workers and the user are told

Threads: ends are noticed on the reading thread, told of on any. Owns: which workers have other files than we, of whom
the others were told that they are leaving, and the notices of deaths that are not printed yet.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import MutableMapping

from distpool import messages as m
from distpool.cluster import Cluster, Departure
from distpool.light import TYPE_CHECKING, Any, Final
from distpool.messages import DRIVER
from distpool.peer import Peer
from distpool.pickling import dump, note_spread
from distpool.threads import CallThreads
from distpool.transport import Reader

if TYPE_CHECKING:
    from distpool.managers.interface import ClusterManager, WorkerConfig

# How long a closed stream waits for the report of how its process ended. The report of a fork server comes within a
# millisecond; a process that closed its stream and lives on is killed after this time.
EXIT_REPORT_SECONDS: Final = 0.5
# How long after that nothing is said of its end, for the report tells how it was. Arbitrary: more than a busy machine
# needs, for nobody waits so long on any other.
LATE_REPORT_SECONDS: Final = 5.0


class Roll:
    """Who belongs to one cluster, as this process notices and tells it.

    ``configs`` and ``managers`` are the member's: of the workers that this process started, and that have joined it.
    """

    def __init__(
        self,
        cluster: Cluster,
        reader: Reader,
        threads: CallThreads,
        configs: MutableMapping[int, WorkerConfig],
        managers: MutableMapping[int, ClusterManager],
    ) -> None:
        self._cluster = cluster
        self._reader = reader
        self._threads = threads
        self._configs = configs
        self._managers = managers
        self.announces_deaths = False  # True for the cluster of ``addprocs``; pools replace their dead without a word
        self._elsewhere: set[int] = set()  # on process 1: workers on machines that do not share our files
        self._notices: deque[str] = deque()  # of deaths, not yet printed
        self._notices_lock = threading.Lock()  # held while printing, so that the end of the program comes after it
        self._told_leaving: set[int] = set()  # on process 1: of whom the others were told that they are being removed
        self._told_lock = threading.Lock()  # protects _told_leaving; taken before the cluster's

    # -- how an end is noticed -----------------------------------------------------------------------------------

    def exit_reported(self, peer: Peer, exit_code: int | None, signum: int | None) -> None:
        """The process is gone. Told on any thread; what is left in its socket is for the reading one."""
        if self._reader.is_leading:
            self._process_ended(peer, exit_code, signum)
        else:
            self._reader.call_later(0, lambda: self._process_ended(peer, exit_code, signum))

    def stream_ended(self, peer: Peer) -> None:
        """The other side closed the connection: it has ended, or will be ended."""
        config = self._configs.get(peer.pid)
        if config is None or config.process is None:
            self._depart(peer, Departure())
            return
        self._reader.unregister(peer)
        process = config.process
        if hasattr(process, "stream_ended"):  # one elsewhere: news of its end come another way, and wait for this
            process.stream_ended()
            return
        self._reader.call_later(EXIT_REPORT_SECONDS, lambda: self._end_silent(peer, process))

    def _end_silent(self, peer: Peer, process: Any) -> None:
        if peer.is_open:
            process.send_signal(9)  # of no effect where it has ended, and only the report of it is late
            self._reader.call_later(LATE_REPORT_SECONDS, lambda: self._end_unreported(peer, process))

    def _end_unreported(self, peer: Peer, process: Any) -> None:
        self._depart(peer, Departure(process.os_pid, detail="it closed its connection, and was killed"))

    def give_up(self, peer: Peer, detail: str = "it did not end when asked", was_asked: bool = True) -> None:
        """Close the connection to a process that does not end and cannot be killed from here."""
        self._depart(peer, Departure(detail=detail, was_asked=was_asked))

    def _process_ended(self, peer: Peer, exit_code: int | None, signum: int | None) -> None:
        """The process is gone; what it sent before is still in the socket and counts."""
        process = self._configs[peer.pid].process if peer.pid in self._configs else None
        detail = getattr(process, "detail", None)
        while peer.is_open and peer.has_input:
            peer.on_readable()
        self._depart(peer, Departure(process.os_pid if process else None, exit_code, signum, detail))

    def _depart(self, peer: Peer, departure: Departure) -> None:
        if peer.fault is not None:
            departure.detail = f"what came from it could not be understood, and its connection was closed: {peer.fault}"
        elif peer.silence is not None:
            departure.detail = peer.silence
        if self._cluster.depart(peer, departure):
            if peer.pid in self._elsewhere:
                self._elsewhere.discard(peer.pid)
                note_spread(self, self.is_spread)
            config, manager = self._configs.pop(peer.pid, None), self._managers.pop(peer.pid, None)
            if config is not None and manager is not None:
                self._threads.run_unless_over(lambda: _deregister(manager, peer.pid, config))
            if self._cluster.pid == DRIVER and not departure.was_asked:
                self._announce(departure.error(peer.pid))
            with self._told_lock:
                was_told_of = peer.pid in self._told_leaving
                self._told_leaving.discard(peer.pid)
            if was_told_of:  # they keep what it held until they hear that it has ended
                self.tell_members()

    # -- who is told ---------------------------------------------------------------------------------------------

    def note_elsewhere(self, pid: int) -> None:
        """A worker on a machine that does not share our files is joining. On process 1; the others hear of it later."""
        self._elsewhere.add(pid)
        note_spread(self, True)

    def tell_members(self) -> None:
        """Tell every worker who belongs to the cluster now, and whether all of them have the same files."""
        news = dump(self.membership())
        for peer in self._cluster.peers():
            peer.send_parcel(m.MEMBERS, news, ref=int(self.is_spread))

    def membership(self) -> tuple[list[int], list[int]]:
        """On process 1: who belongs to the cluster, and who is being removed; of these the others are told again."""
        with self._told_lock:
            leaving = self._cluster.leaving_pids()
            self._told_leaving.update(leaving)
            return self._cluster.procs(), leaving

    @property
    def is_spread(self) -> bool:
        """On process 1: whether some worker is on a machine that does not share our files."""
        return bool(self._elsewhere)

    def _announce(self, death: BaseException) -> None:
        """Tell the workers who is left, and the user. Who removes a worker does so itself, once for all it removes."""
        self.tell_members()
        if self.announces_deaths:
            self._notices.append(f"distpool: {death}")
            self._threads.run_unless_over(self.print_notices)

    def print_notices(self) -> None:
        """Print what nobody may have waited for: which workers died by themselves. Not for the reading thread."""
        with self._notices_lock:
            while self._notices:
                print(self._notices.popleft(), file=sys.stderr, flush=True)


def _deregister(manager: ClusterManager, pid: int, config: WorkerConfig) -> None:
    """Tell a manager that its worker is gone; in a call thread, for it is somebody else's code."""
    try:
        manager.manage(pid, config, "deregister")
    finally:
        manager.manage(pid, config, "finalize")
